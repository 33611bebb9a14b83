"""Nothing of a bundle is believed before somebody whom the lab trusts has signed it, and what was signed stays as it
is."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from labref.bundles.bundle import Bundle, install, starter_bundle, unpacked
from labref.bundles.signing import (
    KnownKey,
    PublicKey,
    Trust,
    built_in_key,
    canonical,
    judge,
    read_public_key,
    read_rotation,
    read_signature,
    rotated,
)
from labref.errors import BundleError
from tests.bundles import describe
from tests.keys import TestKey, graph_of, plain_graph, signed, tiny, trusting, whatever, zipped

CENTRE = TestKey.make("the centre")
STRANGER = TestKey.make("a stranger")


@pytest.fixture(scope="module")
def folder(starter: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(starter, tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="module")
def shipped(folder: Path) -> Path:
    return signed(folder, folder.parent / "tiny.labref", CENTRE, 7)


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    return tmp_path / "bundles"


def test_a_signed_bundle_comes_in_with_its_signature(shipped: Path, bundles: Path) -> None:
    bundle = install(shipped, bundles, trust=trusting(CENTRE))
    found = bundle.signature()
    assert found is not None and (found.bundle, found.name, found.number) == (bundle.digest, "tiny", 7)
    assert judge(found, trusting(CENTRE), shipped).key == CENTRE.public
    again = install(bundle.folder, bundles.with_name("others"), trust=trusting(CENTRE))  # from its folder as well
    assert (again.digest, again.signature()) == (bundle.digest, found)


def test_an_older_labref_reads_a_signed_file(shipped: Path, folder: Path) -> None:
    """It knows no signature, and takes the file for a zip with a comment."""
    with zipfile.ZipFile(shipped) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {path.name for path in folder.iterdir()}
        assert json.loads(archive.comment)["name"] == "tiny"


def test_every_single_byte_of_a_signed_file_is_held(shipped: Path, tmp_path: Path, bundles: Path) -> None:
    data, trust, rng = shipped.read_bytes(), trusting(CENTRE), random.Random(1)
    file, seen = tmp_path / "changed.labref", []
    assert len(data) < 8_000
    for place in range(len(data)):
        file.write_bytes(data[:place] + bytes([data[place] ^ rng.randint(1, 255)]) + data[place + 1 :])
        with pytest.raises(BundleError) as told:
            install(file, bundles, trust=trust)
        seen.append(str(told.value))
    reasons = (
        "after it was signed",
        "is no whole bundle",
        "is not signed",
        "holds no labref bundle signature",
        "does not trust",
    )
    assert all(any(reason in said for reason in reasons) for said in seen)
    assert list(bundles.iterdir()) == []
    for cut in (1, 22, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:-cut])
        with pytest.raises(BundleError, match="is no whole bundle.*copy or fetch it again"):
            install(file, bundles, trust=trust)  # nobody is told to say --unsigned of a copy that broke off
    for more in (b"\0", b"\n", b"PK\5\6", b"PK\5\6" + bytes(18), data):
        for changed in (data + more, more + data):
            file.write_bytes(changed)
            with pytest.raises(BundleError):
                install(file, bundles, trust=trust)
    assert list(bundles.iterdir()) == []


def test_every_single_byte_of_a_signature_beside_its_file_is_held(folder: Path, tmp_path: Path, bundles: Path) -> None:
    bundle = signed(folder, tmp_path / "plain.labref", CENTRE)
    with zipfile.ZipFile(bundle, "a") as archive:
        document, archive.comment = archive.comment, b""
    beside = tmp_path / "plain.labref.sig"
    beside.write_bytes(document)
    install(bundle, bundles, trust=trusting(CENTRE))
    for place in range(len(document)):
        beside.write_bytes(document[:place] + bytes([document[place] ^ 1]) + document[place + 1 :])
        with pytest.raises(BundleError):
            install(bundle, bundles.with_name("none"), trust=trusting(CENTRE))
    for other in (document.replace(b",", b", "), document.rstrip(), document.replace(b'"number":1,', b'"number":1.0,')):
        beside.write_bytes(other)
        with pytest.raises(BundleError, match="holds no labref bundle signature"):
            install(bundle, bundles.with_name("none"), trust=trusting(CENTRE))
    beside.unlink()
    with pytest.raises(BundleError, match="is not signed"):
        install(bundle, bundles.with_name("none"), trust=trusting(CENTRE))


def test_every_single_byte_of_an_installed_bundle_is_held(shipped: Path, bundles: Path) -> None:
    bundle = install(shipped, bundles, trust=trusting(CENTRE))
    for file in bundle.folder.iterdir():
        data = file.read_bytes()
        for place in range(len(data)):
            file.write_bytes(data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :])
            if file.name == "signature.json":
                found = bundle.signature()
                with pytest.raises(BundleError):
                    judge(found, trusting(CENTRE), file)
            else:
                with pytest.raises(BundleError):
                    Bundle.installed(bundles, bundle.digest)
        file.write_bytes(data)
    assert Bundle.installed(bundles, bundle.digest) == bundle


def test_what_was_verified_is_what_runs(shipped: Path, bundles: Path) -> None:
    """The file is exchanged after it was looked at."""
    bundle = install(shipped, bundles, trust=trusting(CENTRE))
    (bundle.folder / "trunk.onnx").write_bytes(graph_of([helper.make_node("Sigmoid", ["a"], ["b"])]))
    with pytest.raises(BundleError, match=r"trunk\.onnx was changed since it was verified|cannot be read"):
        bundle.check_graphs()


def test_an_unsigned_bundle_comes_in_only_where_somebody_says_so(folder: Path, bundles: Path) -> None:
    with pytest.raises(BundleError, match=r"is not signed, so nobody vouches for it.*--unsigned"):
        install(folder, bundles, trust=trusting(CENTRE))
    assert install(folder, bundles, trust=trusting(CENTRE, unsigned=True)).signature() is None


def test_a_signature_that_does_not_hold_is_no_better_than_none(folder: Path, tmp_path: Path, bundles: Path) -> None:
    """--unsigned is for what nobody signed."""
    trust = trusting(CENTRE, unsigned=True)
    with pytest.raises(BundleError, match=rf"key {STRANGER.public.id}, which this lab does not trust"):
        install(signed(folder, tmp_path / "a.labref", STRANGER), bundles, trust=trust)
    file = signed(folder, tmp_path / "b.labref", CENTRE)
    claimed = file.read_bytes().replace(CENTRE.public.id.encode(), STRANGER.public.id.encode())
    file.write_bytes(claimed)
    with pytest.raises(BundleError, match="is not that of the key"):
        install(file, bundles, trust=trusting(STRANGER, unsigned=True))


def test_nothing_is_looked_at_before_the_signature(
    tmp_path: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was looked at")

    for name in ("zipfile.ZipFile", "parse_json", "check_graph"):
        monkeypatch.setattr(f"labref.bundles.bundle.{name}" if "." not in name else name, never, raising=False)
    file = tmp_path / "evil.labref"
    file.write_bytes(b"PK\3\4 whatever")
    with pytest.raises(BundleError, match="is no whole bundle"):
        install(file, bundles, trust=trusting(CENTRE))
    file.write_bytes(b"PK\3\4 whatever" + b"PK\5\6" + bytes(18))  # the end of an archive without a comment
    with pytest.raises(BundleError, match="is not signed"):
        install(file, bundles, trust=trusting(CENTRE))
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "manifest.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match="is not signed"):
        install(tmp_path / "evil", bundles, trust=trusting(CENTRE))


# what is refused although somebody whom the lab trusts has signed it: {case: (what is packed, reason)}


def entry(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


def files_of(folder: Path) -> list[tuple[str | zipfile.ZipInfo, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def without(name: str) -> Callable[[Path], bytes]:
    return lambda folder: zipped([file for file in files_of(folder) if file[0] != name])


def with_more(*more: tuple[str | zipfile.ZipInfo, bytes]) -> Callable[[Path], bytes]:
    return lambda folder: zipped([*files_of(folder), *more])


def instead(name: str, data: bytes) -> Callable[[Path], bytes]:
    return lambda folder: zipped([(file, data if file == name else was) for file, was in files_of(folder)])


def remade(name: str, data: bytes) -> Callable[[Path], bytes]:
    """With the digest that belongs to it."""

    def make(folder: Path) -> bytes:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        files = dict(files_of(folder)) | {name: data, "manifest.json": json.dumps(manifest).encode()}
        return zipped(list(files.items()))

    return make


def saying(where: str, value: Any) -> Callable[[Path], bytes]:
    """With another value in the manifest."""

    def make(folder: Path) -> bytes:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        place: Any = manifest
        *groups, last = where.split(".")
        for group in groups:
            place = place[int(group) if group.isdigit() else group]
        place[last] = value
        return instead("manifest.json", json.dumps(manifest).encode())(folder)

    return make


def linked(folder: Path) -> bytes:
    files = dict(files_of(folder))
    target = files.pop("trunk.onnx")
    return zipped([*files.items(), (entry("trunk.onnx", stat.S_IFLNK), target)])


def twice(folder: Path) -> bytes:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return zipped([*files_of(folder), ("trunk.onnx", plain_graph())])


def bomb(folder: Path) -> bytes:
    """It says that it unpacks to four gigabytes."""
    data = bytearray(zipped(files_of(folder)))
    at = data.index(b"PK\1\2")
    data[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
    return bytes(data)


def enciphered(folder: Path) -> bytes:
    data = bytearray(zipped(files_of(folder)))
    for mark, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.index(mark) + offset] |= 1
    return bytes(data)


def packed_by_bzip2(folder: Path) -> bytes:
    info = zipfile.ZipInfo("trunk.onnx")
    info.compress_type = zipfile.ZIP_BZIP2
    files = dict(files_of(folder))
    return zipped([*((n, d) for n, d in files.items() if n != "trunk.onnx"), (info, files["trunk.onnx"])])


def tensor(**more: Any) -> Any:
    made = numpy_helper.from_array(np.ones(4, np.float32), "weights")
    for name, value in more.items():
        if name == "dims":
            del made.dims[:]
            made.dims.extend(value)
        else:
            made.external_data.add(key="location", value=value)
            made.data_location = TensorProto.EXTERNAL
    return made


ADD = [helper.make_node("Add", ["a", "weights"], ["b"])]


def holding(operator: str, **graphs: Any) -> bytes:
    inner = helper.make_graph([helper.make_node("Relu", ["a"], ["c"])], "inner", [], [])
    return graph_of([helper.make_node(operator, ["a"], ["b"], **dict.fromkeys(graphs, inner))])


def sparse() -> bytes:
    model = helper.make_model(helper.make_graph(ADD, "g", [], []))
    values = numpy_helper.from_array(np.ones(1, np.float32), "weights")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    data: bytes = model.SerializeToString()
    return data


FUNCTION = helper.make_function(
    "mine", "Mine", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
)
CASES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a changed byte": (instead("MODEL_CARD.md", b"# Model kard\n"), r"MODEL_CARD\.md does not have its digest"),
    "an added file": (with_more(("more.bin", b"x")), r"missing or unknown more\.bin"),
    "a missing file": (without("trunk.onnx"), r"missing or unknown trunk\.onnx"),
    "no manifest": (without("manifest.json"), r"it has no manifest\.json"),
    "a symlink": (linked, r"trunk\.onnx is a link in it"),
    "a device": (with_more((entry("null", stat.S_IFCHR), b"")), "null is a link in it, or no plain file"),
    "zip slip": (with_more(("../outside", b"x")), "names that are not plain file names"),
    "an absolute name": (with_more(("/etc/cron.d/x", b"x")), "names that are not plain file names"),
    "a backslash": (with_more(("..\\outside", b"x")), "names that are not plain file names|missing or unknown"),
    "a drive": (with_more(("C:x", b"x")), "names that are not plain file names"),
    "a folder": (with_more(("folder/", b"")), "names that are not plain file names"),
    "a name twice": (twice, "a name twice"),
    "a name twice but for its case": (with_more(("TRUNK.onnx", b"x")), "a name twice"),
    "a zip bomb": (bomb, "unpacks to more than|larger than"),
    "a thousand files": (with_more(*((f"f{n}", b"") for n in range(1000))), "it holds 100"),
    "a password": (enciphered, "is no labref bundle, or is damaged"),
    "another packing": (packed_by_bzip2, "another method than `deflate`"),
    "external data": (remade("trunk.onnx", graph_of(ADD, [tensor(external="../x")])), "outside the file"),
    "sparse data": (remade("trunk.onnx", sparse()), "sparse weights"),
    "an unknown domain": (
        remade("trunk.onnx", graph_of([helper.make_node("Relu", ["a"], ["b"], domain="evil")])),
        "operator Relu of evil",
    ),
    "If": (remade("trunk.onnx", holding("If", then_branch=1, else_branch=1)), "operator If"),
    "Loop": (remade("trunk.onnx", holding("Loop", body=1)), "operator Loop"),
    "Scan": (remade("trunk.onnx", holding("Scan", body=1)), "operator Scan"),
    "a graph in another operator": (remade("trunk.onnx", holding("Relu", body=1)), "a graph of its own"),
    "a function": (remade("trunk.onnx", graph_of(ADD, functions=[FUNCTION])), "functions of its own"),
    "a tensor of 2^40 numbers": (
        remade("trunk.onnx", graph_of(ADD, [tensor(dims=[2**20, 2**20])])),
        r"its tensor weights has the shape \[1048576, 1048576\]",
    ),
    "a tensor of a negative side": (remade("trunk.onnx", graph_of(ADD, [tensor(dims=[-1, 4])])), "has the shape"),
    "a tensor of many sides": (remade("trunk.onnx", graph_of(ADD, [tensor(dims=[1] * 9)])), "and 8 sides"),
    "no graph": (remade("encoder.onnx", b"no graph"), "no ONNX graph"),
    "a threshold that is no number": (saying("novelty.threshold", float("nan")), "NaN"),
    "an endless threshold": (saying("novelty.threshold", float("inf")), "Infinity"),
    "an endless tolerance": (saying("golden_tolerance", float("inf")), "Infinity"),
    "a class named by a terminal's code": (saying("classes.0.name", "\x1b[2J"), r"classes\.0"),
    "a class named as another looks": (saying("classes.0.name", "bl\u0430st"), "cannot tell apart"),
    "a class named as an option": (saying("classes.0.name", "--lab"), r"classes\.0\.name"),
    "an older format": (saying("format_version", 0), "format_version"),
    "a newer format": (saying("format_version", 99), "Upgrade labref"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_makes_no_sense_is_refused_whoever_signed_it(
    case: str, folder: Path, tmp_path: Path, bundles: Path
) -> None:
    make, reason = CASES[case]
    file = whatever(make(folder), tmp_path / "case.labref", CENTRE)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(BundleError, match=reason) as told:
        install(file, bundles, trust=trusting(CENTRE))
    assert "\x1b" not in str(told.value) and len(str(told.value)) < 1500
    assert list(bundles.iterdir()) == []
    assert before == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if bundles not in (path, *path.parents)
    }


@pytest.mark.skipif(os.name == "nt", reason="no such links")
def test_links_in_a_folder_are_refused(folder: Path, tmp_path: Path, bundles: Path) -> None:
    """What they lead to can be changed from elsewhere, after it was looked at."""
    trust = trusting(CENTRE, unsigned=True)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (tmp_path / "elsewhere").hardlink_to(copy / "trunk.onnx")
    with pytest.raises(BundleError, match=r"trunk\.onnx is a hard link"):
        install(copy, bundles, trust=trust)
    (copy / "trunk.onnx").unlink()
    (copy / "trunk.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"trunk\.onnx is a link to elsewhere"):
        install(copy, bundles, trust=trust)


def test_a_signature_is_for_one_bundle_and_one_packing(
    starter: Bundle, folder: Path, tmp_path: Path, bundles: Path
) -> None:
    first = signed(folder, tmp_path / "first.labref", CENTRE)
    with zipfile.ZipFile(first) as archive:
        document = archive.comment
    other = signed(tiny(starter, tmp_path / "other", version="other"), tmp_path / "other.labref", CENTRE)
    with zipfile.ZipFile(other, "a") as archive:
        archive.comment = document
    with pytest.raises(BundleError, match="was changed after it was signed"):
        install(other, bundles, trust=trusting(CENTRE))
    (tmp_path / "other" / "signature.json").write_bytes(document)
    with pytest.raises(BundleError, match=r"manifest\.json is not the one that was signed"):
        install(tmp_path / "other", bundles, trust=trusting(CENTRE))


def test_documents_of_one_kind_are_none_of_another(folder: Path, tmp_path: Path) -> None:
    record = CENTRE.hands_over_to(STRANGER)
    with zipfile.ZipFile(signed(folder, tmp_path / "a.labref", CENTRE)) as archive:
        signature = archive.comment
    for read, raw in (
        (read_signature, record.to_bytes()),
        (read_rotation, CENTRE.public.to_bytes()),
        (read_public_key, signature),
    ):
        with pytest.raises(BundleError, match="it is a labref"):
            read(raw, "x")
    newer = signature.replace(b"signature 1", b"signature 2")
    with pytest.raises(BundleError, match="upgrade labref"):
        read_signature(newer, "x")
    for raw in (b"", b"{}", b"[]", b"\xff", b"{" * 5000, b" " * 40_000, canonical({"kind": 3})):
        for any_kind in (read_signature, read_rotation, read_public_key):
            with pytest.raises(BundleError, match="x holds no labref"):
                any_kind(raw, "x")


def test_a_public_key_that_was_mistyped_is_noticed() -> None:
    raw = CENTRE.public.to_bytes()
    assert read_public_key(raw, "x") == CENTRE.public
    for place in range(len(raw)):
        changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        try:
            found = read_public_key(changed, "x")
        except BundleError:
            continue
        assert found.raw == CENTRE.public.raw and found.name != CENTRE.public.name  # the name is for people alone


def test_numbers_of_a_name_only_grow(starter: Bundle, folder: Path, tmp_path: Path, bundles: Path) -> None:
    file = signed(folder, tmp_path / "a.labref", CENTRE, 5)
    digest = Bundle.open(folder).digest
    for numbers in ({}, {"tiny": 4}, {"other": 9}):
        install(file, bundles, trust=trusting(CENTRE, numbers=numbers))
    for number in (5, 6):
        with pytest.raises(
            BundleError, match=rf"is number 5 of the bundles tiny, and this lab has had number {number}"
        ):
            install(file, bundles, trust=trusting(CENTRE, numbers={"tiny": number}))
    # one that the lab still has may be mended
    install(file, bundles, trust=trusting(CENTRE, numbers={"tiny": 6}, admitted=frozenset({digest})))
    renamed = signed(tiny(starter, tmp_path / "renamed", name="fresh"), tmp_path / "renamed.labref", CENTRE)
    with zipfile.ZipFile(renamed) as archive:
        said = read_signature(archive.comment, renamed)
    lying = replace(said, name="tiny", number=9, value=b"")
    lying = replace(lying, value=CENTRE.private.sign(lying.message()))
    with zipfile.ZipFile(renamed, "a") as archive:
        archive.comment = lying.to_bytes()
    with pytest.raises(BundleError, match="is called fresh, and was signed as tiny"):
        install(renamed, bundles, trust=trusting(CENTRE))


def test_a_key_hands_over_to_the_next_in_the_bundle_itself(folder: Path, tmp_path: Path, bundles: Path) -> None:
    second, third = TestKey.make("second"), TestKey.make("third")
    chain = [CENTRE.hands_over_to(second), second.hands_over_to(third)]
    file = signed(folder, tmp_path / "a.labref", third, rotations=chain)
    with unpacked(file, trusting(CENTRE)) as (_, verdict):
        assert verdict.key == third.public and list(verdict.rotations) == chain
    with unpacked(file, trusting(second)) as (_, verdict):
        assert list(verdict.rotations) == chain[1:]
    for known in (trusting(STRANGER), trusting()):
        with pytest.raises(BundleError, match=rf"{third.public.id}, which this lab does not trust"):
            install(file, bundles, trust=known)
    for broken in (chain[1:], [replace(chain[0], value=chain[1].value), chain[1]], chain[::-1]):
        with pytest.raises(BundleError, match="does not trust"):
            install(signed(folder, tmp_path / "b.labref", third, rotations=broken), bundles, trust=trusting(CENTRE))
    own = signed(folder, tmp_path / "c.labref", CENTRE, rotations=chain[:1])
    with pytest.raises(BundleError, match="was replaced by a newer key"):
        install(own, bundles, trust=trusting(CENTRE))


def known(**states: TestKey) -> dict[str, KnownKey]:
    found: dict[str, KnownKey] = {}
    for state, key in states.items():
        found[key.public.id] = KnownKey(key.public, state)  # type: ignore[arg-type]
    return found


def test_no_record_of_before_brings_a_key_back(folder: Path, tmp_path: Path, bundles: Path) -> None:
    new, thief = TestKey.make("new"), TestKey.make("thief")
    record = CENTRE.hands_over_to(new)
    # followed before: nothing changes
    assert rotated(record, known(replaced=CENTRE, trusted=new)) == {}
    for keys, why in (
        (known(replaced=CENTRE, revoked=new), "which another has replaced"),
        (known(trusted=CENTRE, revoked=new), "comes too late: that key was revoked here"),
        (known(trusted=CENTRE, replaced=new), "comes too late: that key was replaced here"),
        (known(revoked=CENTRE), "which was revoked here"),
        (known(revoked=CENTRE, trusted=new), "which was revoked here"),
        (known(trusted=new), "which this lab does not know"),
    ):
        with pytest.raises(BundleError, match=why):
            rotated(record, keys)
    # whoever stole the old key after it was replaced
    with pytest.raises(BundleError, match="which another has replaced"):
        rotated(CENTRE.hands_over_to(thief), known(replaced=CENTRE, trusted=new))
    file = signed(folder, tmp_path / "a.labref", thief, rotations=[CENTRE.hands_over_to(thief)])
    with pytest.raises(BundleError, match="does not trust.*which another has replaced"):
        install(file, bundles, trust=Trust(known(replaced=CENTRE, trusted=new)))
    assert rotated(new.hands_over_to(CENTRE), known(trusted=new)).keys() == {new.public.id, CENTRE.public.id}
    with pytest.raises(BundleError, match="is not signed by the key"):
        rotated(replace(record, value=bytes(64)), known(trusted=CENTRE))


@pytest.mark.parametrize("state", ["revoked", "replaced"])
def test_what_a_key_signs_that_is_trusted_no_more_is_refused(
    state: str, folder: Path, tmp_path: Path, bundles: Path
) -> None:
    file, digest = signed(folder, tmp_path / "a.labref", CENTRE), Bundle.open(folder).digest
    keys = known(**{state: CENTRE})
    with pytest.raises(BundleError, match="was revoked here" if state == "revoked" else "was replaced by a newer key"):
        install(file, bundles, trust=Trust(keys))
    have = Trust(keys, admitted=frozenset({digest}))  # what is there already may be mended, but not by a stolen key
    if state == "revoked":
        with pytest.raises(BundleError, match="was revoked here"):
            install(file, bundles, trust=have)
    else:
        assert install(file, bundles, trust=have).digest == digest


def test_the_starter_is_signed_by_the_key_that_comes_with_labref(tmp_path: Path, starter: Bundle) -> None:
    own = built_in_key()
    bundle = install(starter_bundle(), tmp_path, trust=Trust({own.id: KnownKey(own, "trusted")}))
    assert bundle.digest == starter.digest
    signature = starter.signature()
    assert signature is not None and signature.key == own.id
    assert not [path for path in starter_bundle().parent.iterdir() if b"PRIVATE KEY" in path.read_bytes()[:4096]]


def test_a_key_of_nobody_signs_nothing() -> None:
    """The point of order one, with which anything verifies by the equation alone."""
    nobody = PublicKey(bytes([1]) + bytes(31), "nobody")
    forged = bytes([1]) + bytes(63)
    assert not nobody.has_signed(b"whatever", forged)


def test_the_manifest_of_a_signed_bundle_is_that_of_its_files(folder: Path, tmp_path: Path, starter: Bundle) -> None:
    """`describe` of the tests leaves the signature out of the files that a manifest names."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "signature.json").write_bytes(b"{}")
    describe(copy, Bundle.open(folder).manifest)
    assert Bundle.open(copy).digest == Bundle.open(folder).digest
