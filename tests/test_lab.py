"""A lab folder: made whole or not at all, found from below, its bytes kept under their digest."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from labref.bundles.bundle import Bundle
from labref.errors import BundleError, ConfigError, LabError
from labref.lab import Lab


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    return folder


@pytest.fixture
def lab(tmp_path: Path, export: Path, starter: Bundle) -> Lab:
    return Lab.create(tmp_path / "lab", [export], starter.folder)


def test_a_new_lab_is_whole(lab: Lab, export: Path, starter: Bundle) -> None:
    names = {path.name for path in lab.folder.iterdir()}
    assert names == {"labref.toml", "store.duckdb", "images", "bundles", "logs", "token"}
    assert lab.watched == (export,)
    with lab.open_store() as store:
        assert lab.bundle(store).digest == starter.digest
        assert store.counts().files == 0
    assert len(lab.token()) >= 32
    if os.name != "nt":
        assert stat.S_IMODE((lab.folder / "token").stat().st_mode) == 0o600


def test_a_lab_can_be_made_in_a_folder_that_holds_other_things(tmp_path: Path, export: Path, starter: Bundle) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    lab = Lab.create(tmp_path, [export], starter.folder)
    assert lab.watched == (export,)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".labref-init-*"))


def test_a_lab_is_not_made_twice(lab: Lab, export: Path, starter: Bundle) -> None:
    token = lab.token()
    with pytest.raises(LabError, match="already is a lab"):
        Lab.create(lab.folder, [export], starter.folder)
    assert lab.token() == token


def test_a_folder_that_holds_a_store_but_no_lab_is_left_alone(tmp_path: Path, export: Path, starter: Bundle) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "store.duckdb").write_bytes(b"precious")
    with pytest.raises(LabError, match=r"'store\.duckdb'"):
        Lab.create(tmp_path / "lab", [export], starter.folder)
    assert (tmp_path / "lab" / "store.duckdb").read_bytes() == b"precious"


def test_where_making_a_lab_fails_nothing_is_left(tmp_path: Path, export: Path, starter: Bundle) -> None:
    broken = tmp_path / "broken.labref"
    broken.write_bytes(b"no bundle")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError):
        Lab.create(tmp_path / "deep" / "lab", [export], broken)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "there").mkdir()
    with pytest.raises(BundleError):
        Lab.create(tmp_path / "there", [export], broken)
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("watch", ["missing", "a file", "lab"])
def test_a_folder_that_cannot_be_watched_is_refused(tmp_path: Path, starter: Bundle, watch: str) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "lab").mkdir()
    with pytest.raises(LabError):
        Lab.create(tmp_path / "lab", [tmp_path / watch], starter.folder)
    assert list((tmp_path / "lab").iterdir()) == []


def test_a_lab_is_found_by_name_by_variable_and_from_below(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABREF_LAB", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match="labref init"):
        Lab.find(None)
    assert Lab.find(Path("lab")).folder == lab.folder
    monkeypatch.setenv("LABREF_LAB", str(lab.folder))
    assert Lab.find(None).folder == lab.folder
    monkeypatch.delenv("LABREF_LAB")
    monkeypatch.chdir(lab.images)
    assert Lab.find(None).folder == lab.folder
    with pytest.raises(LabError, match="is no lab"):
        Lab.find(tmp_path)


def test_a_wrong_setting_is_found_when_the_lab_is_opened(lab: Lab) -> None:
    with lab.config_file.open("a") as file:
        file.write("[wach]\n")
    with pytest.raises(ConfigError, match="wach"):
        Lab.open(lab.folder)


def test_folders_in_the_configuration_are_meant_from_the_lab(lab: Lab) -> None:
    lab.config_file.write_text("[watch]\nfolders = ['../export', 'incoming']\n")
    assert Lab.open(lab.folder).watched == (lab.folder.parent / "export", lab.folder / "incoming")


def test_bytes_are_kept_once_under_their_digest_and_checked_when_read(lab: Lab) -> None:
    data = b"the bytes of an image"
    digest = hashlib.sha256(data).hexdigest()
    path = lab.store_image(data, digest)
    assert path == lab.images / digest[:2] / digest[2:4] / digest
    assert lab.store_image(data, digest) == path
    lab.sync_images([digest])
    assert lab.read_image(digest) == data
    assert lab.kept_image(digest[:16]) == data
    path.write_bytes(data[:-1])
    with pytest.raises(LabError, match="damaged"):
        lab.read_image(digest)
    assert lab.kept_image(digest[:16]) is None
    assert lab.kept_image("0" * 16) is None
    assert lab.kept_image("../../token/x") is None
    lab.clear_incoming()
    assert [found for found in lab.images.rglob("*") if found.is_file()] == [path]


def test_lost_bytes_come_back_with_their_name_on_the_disk(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"an image"
    name = hashlib.sha256(data).hexdigest()
    synced: list[Path] = []
    monkeypatch.setattr("labref.lab.lab.sync_folder", synced.append)
    lab.heal_image(data, name)
    kept = lab.image_path(name)
    assert kept.read_bytes() == data and synced == [kept.parent, kept.parent.parent, lab.images]
    lab.heal_image(data, name)
    assert len(synced) == 3, "what is there costs a look"


def test_a_token_that_is_gone_or_cut_is_named(lab: Lab) -> None:
    (lab.folder / "token").write_text("short\n")
    with pytest.raises(LabError, match="token"):
        lab.token()
    (lab.folder / "token").unlink()
    with pytest.raises(LabError, match="token"):
        lab.token()


def test_a_path_s_pseudonym_is_steady_and_another_lab_s_is_another(lab: Lab, tmp_path: Path, starter: Bundle) -> None:
    other = Lab.create(tmp_path / "other", lab.watched, starter.folder)
    assert lab.pseudonym("/a/b.jpg") == lab.pseudonym("/a/b.jpg") != other.pseudonym("/a/b.jpg")
