"""The centre's keys: files that only their owner reads, never overwritten, and what is signed with them."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from exporters.keys import PASSPHRASE, KeyFileError, SigningKey, new_key, number_of_now
from labref.bundles.bundle import Bundle, install, pack
from labref.bundles.signing import MAX_NUMBER, KnownKey, Trust, read_public_key, read_rotation, read_signature
from tests.keys import tiny
from tests.trainings import command

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")


@pytest.fixture
def bundle(starter: Bundle, tmp_path: Path) -> Path:
    pack(tiny(starter, tmp_path / "tiny"), tmp_path / "tiny.labref")
    return tmp_path / "tiny.labref"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    command("exporters", "key", "new", tmp_path / "a.key", "--name", "A hospital")
    return tmp_path / "a.key"


def trusting(file: Path) -> Trust:
    public = read_public_key(file.read_bytes(), file)
    return Trust({public.id: KnownKey(public, "trusted")})


@posix
def test_a_private_key_is_for_its_owner_alone(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert b"PRIVATE" not in (key.parent / "a.key.pub").read_bytes()
    key.chmod(0o640)
    with pytest.raises(KeyFileError, match="can be read by others than its owner"):
        SigningKey.open(key)


def test_a_key_is_never_written_over(key: Path) -> None:
    before = key.read_bytes()
    assert "is there already" in " ".join(
        command("exporters", "key", "new", key, "--name", "again", code=1).stderr.split()
    )
    (key.parent / "b.key.pub").write_text("somebody's")
    command("exporters", "key", "new", key.parent / "b.key", "--name", "b", code=1)
    assert key.read_bytes() == before and not (key.parent / "b.key").exists()
    for name in ("", "x" * 101, "a\nb", "\x1b[2J"):
        with pytest.raises(KeyFileError):
            new_key(key.parent / "c.key", name)
    assert not (key.parent / "c.key").exists()


def test_a_passphrase_is_needed_and_only_where_there_is_one(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE, "correct horse")
    command("exporters", "key", "new", tmp_path / "p.key", "--name", "p", "--passphrase")
    command("exporters", "key", "new", tmp_path / "plain.key", "--name", "plain")
    for file in ("p.key", "plain.key"):
        command("exporters", "key", "sign", bundle, "--key", tmp_path / file)
    monkeypatch.setenv(PASSPHRASE, "wrong")
    assert "another one" in command("exporters", "key", "sign", bundle, "--key", tmp_path / "p.key", code=1).stderr
    with pytest.raises(KeyFileError, match="has a passphrase"):
        SigningKey.open(tmp_path / "p.key")


def test_what_is_no_key_signs_nothing(key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    new_key(other, "other")
    shutil.copyfile(tmp_path / "other.key.pub", tmp_path / "a.key.pub")
    with pytest.raises(KeyFileError, match="is not the public key of"):
        SigningKey.open(key)
    curve = generate_private_key(SECP256R1())
    pem = curve.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for raw, why in ((pem, "another kind than Ed25519"), (b"no key", "holds no private key")):
        other.write_bytes(raw)
        with pytest.raises(KeyFileError, match=why):
            SigningKey.open(other)
    with pytest.raises(KeyFileError, match="cannot be read"):
        SigningKey.open(tmp_path / "nowhere.key")


def test_two_that_are_signed_in_one_second_have_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [datetime(2026, 11, 28, 11, 16, 41, tenths * 100_000 + 999, UTC) for tenths in range(10)]
    clock = mock.Mock(now=mock.Mock(side_effect=[*moments, datetime(2099, 12, 31, 23, 59, 59, 999_999, UTC)]))
    monkeypatch.setattr("labref.bundles.keyfile.datetime", clock)
    given = [number_of_now() for _ in moments]
    assert given == sorted(set(given)) and given[0] == 261128111641000
    assert (
        given[0] > 20991231235959
    )  # later than what earlier versions gave, which had the year whole and no part of a second
    assert given[-1] < number_of_now() <= MAX_NUMBER


def test_a_bundle_is_signed_in_itself_or_beside(key: Path, bundle: Path, tmp_path: Path) -> None:
    plain, trust = bundle.read_bytes(), trusting(key.parent / "a.key.pub")
    said = command("exporters", "key", "sign", bundle, "--key", key, "--detached", "--number", 3).stdout
    assert "tiny.labref.sig: bundle" in said and bundle.read_bytes() == plain
    beside = (tmp_path / "tiny.labref.sig").read_bytes()
    assert read_signature(beside, bundle).number == 3
    install(bundle, tmp_path / "one", trust=trust)
    (tmp_path / "tiny.labref.sig").unlink()
    before = number_of_now()
    command("exporters", "key", "sign", bundle, "--key", key)
    with zipfile.ZipFile(bundle) as archive:
        first = archive.comment
    assert before <= read_signature(first, bundle).number <= number_of_now()
    command("exporters", "key", "sign", bundle, "--key", key, "--number", 4, "--out", tmp_path / "four.labref")
    assert install(tmp_path / "four.labref", tmp_path / "two", trust=trust).signature() is not None
    with zipfile.ZipFile(tmp_path / "four.labref") as archive:
        assert read_signature(archive.comment, bundle).number == 4
    with zipfile.ZipFile(bundle) as archive:
        assert archive.comment == first
    assert sorted(path.name for path in tmp_path.glob("*.part")) == []
    for words in (("--number", 0), ("--number", 10**15 + 1), ("--detached", "--out", tmp_path / "x")):
        assert command(
            "exporters", "key", "sign", bundle, "--key", key, *words, code=2 if words[-1] != 10**15 + 1 else 1
        )


def test_what_is_no_bundle_is_not_signed(key: Path, bundle: Path) -> None:
    bundle.write_bytes(bundle.read_bytes()[:-30])
    command("exporters", "key", "sign", bundle, "--key", key, code=1)
    command("exporters", "key", "sign", bundle.with_name("none"), "--key", key, code=1)
    assert not bundle.with_name("none").exists()


def test_a_rotation_record_is_of_its_two_keys(key: Path, bundle: Path, tmp_path: Path) -> None:
    new_key(tmp_path / "b.key", "B")
    out = tmp_path / "b.rotation"
    command("exporters", "key", "rotate", key, tmp_path / "b.key.pub", "--out", out)
    record = read_rotation(out.read_bytes(), out)
    assert record.new.name == "B" and record.old == SigningKey.open(key).public.id
    command("exporters", "key", "rotate", key, tmp_path / "b.key.pub", "--out", out, code=1)  # it is there
    command("exporters", "key", "rotate", key, tmp_path / "a.key.pub", "--out", tmp_path / "x", code=1)
    refused = command("exporters", "key", "sign", bundle, "--key", key, "--rotation", out, code=1)
    assert "the last rotation record is for the key B" in " ".join(refused.stderr.split())
    command("exporters", "key", "sign", bundle, "--key", tmp_path / "b.key", "--rotation", out)
    install(bundle, tmp_path / "bundles", trust=trusting(tmp_path / "a.key.pub"))
