"""A bundle is looked at for sense, not only for its digests: fields, shapes, operators, and what its networks give."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle, install, pack, starter_bundle
from labref.bundles.graph import OPERATORS, check_graph
from labref.bundles.inference import Embedder
from labref.bundles.schema import check_manifest, parse_json
from labref.cli import app
from labref.errors import BundleError, LabrefError
from labref.lab import Lab
from labref.web import desk

Values = dict[str, Any]
Remade = Callable[..., Path]


@pytest.fixture
def values(starter: Bundle) -> Values:
    found: Values = json.loads((starter.folder / "manifest.json").read_bytes())
    return found


@pytest.fixture
def remade(starter: Bundle, tmp_path: Path) -> Remade:
    """A bundle's folder, made of the starter with other files or fields, and with the digests that belong to them."""

    def make(place: str = "remade", files: dict[str, bytes] | None = None, **fields: Any) -> Path:
        folder = Path(shutil.copytree(starter.folder, tmp_path / place, copy_function=os.link))
        manifest = json.loads((folder / "manifest.json").read_bytes()) | fields
        for file, data in (files or {}).items():
            (folder / file).unlink()
            (folder / file).write_bytes(data)
            manifest["files"][file] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (folder / "manifest.json").unlink()
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return folder

    return make


def changed(values: Values, where: str, value: Any) -> Values:
    """`values` with the field at the path `where` set, or taken out (…)."""
    copy: Values = json.loads(json.dumps(values))
    *groups, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    place: Any = copy
    for group in groups:
        place = place[group]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        ("duplicates.candidate_bits", ["x", 0, -1, 65, 10.5, "10", None, True]),
        ("duplicates.duplicate_from", [0, -0.5, 1.5, NAN, INFINITE, "0.96", 0.5]),  # 0.5: below possible_from
        ("duplicates.same_within", [0, -1, NAN, 1e9]),
        ("duplicates.hash", ["ahash", 3, None]),
        ("golden_tolerance", [0, -1, NAN, INFINITE, 5, 1e300, "0.02", None, True, ...]),
        ("novelty.threshold", [0, -1, NAN, INFINITE, "x", None, ...]),
        ("novelty.k", [0, -1, 1.5, 10**6]),
        ("novelty.cells", [0, -3, 10**30]),
        ("novelty.dimension", [0, -1, 1e-300, NAN, INFINITE]),
        ("novelty.how", ["x" * 100_000, 3, "\x1b[2J"]),
        ("latent.size", [0, -1, 10**9, 50.5, "50"]),
        ("latent.scale", [0, -1, NAN, INFINITE]),
        ("features", [[4, 4], [4, 4, 256, 1], [0, 4, 256], [4, 4, 10**9], "446"]),
        ("orientations", [0, 3, 16, -8, "8"]),
        ("name", ["", "x" * 101, "a\nb", " a", "a/b", "\x1b[31m", "\u202eevil", 3, None]),
        ("version", ["", "x" * 101, "1/2", 2]),
        ("format_version", [0, -1, "1", 1.5, None, True]),
        ("classes", [[], {}, "basophil", None, [{}] * 2000]),
        ("classes.0.name", ["blast", "BLAST", "", "a\nb", "x" * 101, 7]),
        ("classes.0.id", ["BL", ""]),
        ("classes.0.index", [1, -1, 9, "0"]),
        ("classes.0.group", ["", 3]),
        ("optics.measures.focus.deviation", [-1, NAN, "x"]),
        ("optics.cells", [0, -1]),
        ("files", [[], "x", {"trunk.onnx": {}}]),
        ("training", [[], None, {"a": NAN}, {"a": {"b": [INFINITE]}}]),
        ("figures", [3, {"a": -INFINITE}]),
        ("trunks", [{}, [{"precision": "full"}], ["int8"]]),
        ("preparation", [[], {"version": "3"}, {"version": NAN}]),
        ("more", [1]),
        ("novelty.more", [1]),
        ("classes.0.more", [1]),
    ],
)  # fmt: skip
def test_a_field_that_makes_no_sense_is_named_with_the_reason(
    values: Values, tmp_path: Path, where: str, wrong: list[Any]
) -> None:
    for value in wrong:
        text = json.dumps(changed(values, where, value))
        (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
        with pytest.raises(BundleError) as told:
            Bundle.open(tmp_path)
        said = str(told.value)
        assert "no usable manifest" in said and "\x1b" not in said and "\n" not in said and len(said) < 1500
        number = next((word for word in ("NaN", "Infinity") if word in text), None)
        group = where.split(".")[0]
        assert group in said or group.removesuffix("es") in said or (number is not None and number in said), said


def test_a_trunk_cannot_loosen_the_check_of_the_full_one(values: Values) -> None:
    """A reduced trunk called "full" was asked for the tolerance of the full one."""
    stay = {"value": 7.9, "low": 7.8, "high": 8.0, "n": 9, "how": "bootstrap"}
    trunk = {
        "precision": "int8", "file": "trunk.int8.onnx", "admitted": True, "agreement": {"own": stay},
        "golden_tolerance": 0.05, "measured": {"limit": 7.8},
    }  # fmt: skip
    check_manifest(values | {"trunks": [trunk]})
    for wrong in (
        {"precision": "full"},
        {"golden_tolerance": 50.0},
        {"golden_tolerance": 0},
        {"file": "../x.onnx"},
        {"file": "encoder.onnx"},
        {"file": "golden.npz"},
        {"file": ""},
        {"admitted": "yes"},
        {"agreement": {"own": {**stay, "value": NAN}}},
        {"measured": {"limit": INFINITE}},
    ):
        with pytest.raises(ValueError, match="trunks"):
            check_manifest(values | {"trunks": [trunk | wrong]})
    with pytest.raises(ValueError, match="two trunks"):
        check_manifest(values | {"trunks": [trunk, trunk]})


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"name": "a", "name": "b"}', "'name' twice"),
        (b'{"golden_tolerance": NaN}', "NaN"),
        (b'{"golden_tolerance": -Infinity}', "Infinity"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"{}" + b" " * 5_000_000, "longer than"),
        (b"\xff\xfe\xff", "decode"),
        (b"{", "Expecting"),
    ],
)
def test_json_that_is_none_is_refused(raw: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(raw)
    (tmp_path / "manifest.json").write_bytes(raw)
    with pytest.raises(BundleError, match="manifest"):
        Bundle.open(tmp_path)


def test_what_is_no_manifest_at_all_is_refused(tmp_path: Path) -> None:
    for raw in (b"[]", b"3", b"null", b'"x"', b"{}", b'{"format_version": []}'):
        (tmp_path / "manifest.json").write_bytes(raw)
        with pytest.raises(BundleError, match="no usable manifest"):
            Bundle.open(tmp_path)


def test_manifests_of_earlier_bundles_still_make_sense(values: Values) -> None:
    """The thesis' rule, the thresholds of preparation 2, a novelty threshold without its cells, no optics."""
    check_manifest(values)
    old: Values = {"hash": "average_hash", "duplicate_below": 2, "possible_up_to": 3, "how": "the thesis' rule"}
    far = {key: value for key, value in values["duplicates"].items() if key != "same_within"} | {"farthest": 40.0}
    for duplicates in ({}, old, far):
        check_manifest(values | {"duplicates": duplicates})
    novelty = {key: values["novelty"][key] for key in ("threshold", "k", "how")}
    check_manifest({key: value for key, value in values.items() if key != "optics"} | {"novelty": novelty})
    check_manifest(values | {"preparation": {"version": 2, "crop_size": 256, "background": 240}})


def graph(nodes: list[Any], *, initializer: list[Any] | None = None, **more: Any) -> bytes:
    shape = ["n", 4]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, shape)],
        initializer=initializer or [],
    )
    model: bytes = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], **more).SerializeToString()
    return model


def endless() -> bytes:
    """A loop of 2^63 turns."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )  # fmt: skip
    return graph(
        [helper.make_node("Loop", ["turns", "yes", "a"], ["b"], body=body)],
        initializer=[
            numpy_helper.from_array(np.array(2**63 - 1), "turns"),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
    )


def outside(*, in_node: bool = False) -> bytes:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "weights")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    if in_node:
        return graph(
            [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Add", ["a", "w"], ["b"])]
        )
    return graph([helper.make_node("Add", ["a", "weights"], ["b"])], initializer=[tensor])


def hidden() -> bytes:
    """A graph within an operator that has none by the standard."""
    inner = onnx.ModelProto.FromString(endless()).graph
    return graph([helper.make_node("Relu", ["a"], ["b"], then_branch=inner)])


def function() -> bytes:
    node = helper.make_node("Relu", ["a"], ["b"])
    made = helper.make_function("", "Mine", ["a"], ["b"], [node], [helper.make_opsetid("", 17)])
    return graph([node], functions=[made])


GRAPHS: dict[str, tuple[bytes, str]] = {
    "loop": (endless(), "operator Loop"),
    "random": (graph([helper.make_node("RandomNormalLike", ["a"], ["b"])]), "operator RandomNormalLike"),
    "foreign": (graph([helper.make_node("Gelu", ["a"], ["b"], domain="com.microsoft")]), "of com.microsoft"),
    "named": (graph([helper.make_node("If\x1b[2J", ["a"], ["b"])]), r"operator If\?"),
    "outside": (outside(), "weights outside the file"),
    "outside in a node": (outside(in_node=True), "weights outside the file"),
    "hidden": (hidden(), "a graph of its own"),
    "function": (function(), "functions of its own"),
    "long": (graph([helper.make_node("Relu", ["a"], ["b"])] * 20_001), "20001 operators"),
    "empty": (b"", "0 operators"),
    "text": (b"no graph", "no ONNX graph"),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_graph_that_holds_more_than_plain_operators_is_refused_wherever_it_comes_in(
    kind: str, remade: Remade, tmp_path: Path, starter: Bundle
) -> None:
    data, says = GRAPHS[kind]
    folder = remade(files={"encoder.onnx": data})
    with pytest.raises(BundleError, match=says):
        pack(folder, tmp_path / "evil.labref")
    assert not (tmp_path / "evil.labref").exists()
    with pytest.raises(BundleError, match=says):
        install(folder, tmp_path / "bundles")
    assert list((tmp_path / "bundles").iterdir()) == []
    with pytest.raises(BundleError, match=rf"encoder\.onnx cannot be run: .*{says}"):
        Embedder.open(Bundle.open(folder), device="cpu")  # as a lab that has it from an earlier labref


def test_what_ships_passes_and_so_do_plain_operators(starter: Bundle, tmp_path: Path) -> None:
    for name in ("trunk.onnx", "encoder.onnx"):
        check_graph(starter.folder / name)
    (tmp_path / "plain.onnx").write_bytes(graph([helper.make_node("Relu", ["a"], ["b"])]))
    check_graph(tmp_path / "plain.onnx")
    assert not OPERATORS & {"Loop", "If", "Scan", "RandomNormal", "Multinomial", "Optional", "SequenceMap"}


def with_latent(starter: Bundle, nodes: list[Any], weights: list[Any], shape: list[Any]) -> bytes:
    """The starter's encoder with `nodes` behind it, which turn `inner` into `latent`."""
    model = onnx.load(starter.folder / "encoder.onnx")
    last = next(node for node in model.graph.node if "latent" in node.output)
    last.output[list(last.output).index("latent")] = "inner"
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(weights)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("latent", TensorProto.FLOAT, shape))
    data: bytes = model.SerializeToString()
    return data


def one_number(starter: Bundle, shape: list[Any]) -> bytes:
    """An encoder that gives one number a cell, and says that it has the shape `shape`."""
    mean = helper.make_node("ReduceMean", ["inner"], ["latent"], axes=[1], keepdims=1)
    return with_latent(starter, [mean], [], shape)


def one_number_unsaid(starter: Bundle) -> bytes:
    """The same, where only running it tells how many numbers there are."""
    nodes = [
        helper.make_node("ReduceMax", ["inner"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "zero"], ["none"]),
        helper.make_node("Add", ["none", "one"], ["single"]),
        helper.make_node("Cast", ["single"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["whole", "side"], ["end"]),
        helper.make_node("Slice", ["inner", "start", "end", "side"], ["latent"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
        numpy_helper.from_array(np.array([1], np.int64), "side"),
        numpy_helper.from_array(np.array([0], np.int64), "start"),
    ]
    return with_latent(starter, nodes, weights, ["n", "m"])


def off_by(starter: Bundle, much: float) -> bytes:
    add = helper.make_node("Add", ["inner", "much"], ["latent"])
    return with_latent(starter, [add], [numpy_helper.from_array(np.array(much, np.float32), "much")], ["n", 50])


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (["n", 1], r"latent of encoder\.onnx is tensor\(float\)\['n', 1\]; by its manifest it must be .* each \[50\]"),
        (None, r"latent of \d+ crops have the shape \[\d+, 1\], its manifest says \[\d+, 50\]"),
        ([1, 50], "of any number of cells"),
        (["n", 50, 1], "by its manifest"),
    ],
)
def test_one_latent_number_does_not_fill_fifty(
    starter: Bundle, remade: Remade, shape: list[Any] | None, says: str
) -> None:
    encoder = one_number_unsaid(starter) if shape is None else one_number(starter, shape)
    folder = remade(files={"encoder.onnx": encoder})
    with pytest.raises(BundleError, match=says), Embedder.open(Bundle.open(folder), device="cpu") as embedder:
        embedder.embed(np.zeros((1, 256, 256, 3), np.uint8))


def test_a_manifest_of_other_shapes_than_the_networks_is_refused(
    starter: Bundle, remade: Remade, values: Values
) -> None:
    classes = values["classes"][:8]
    for number, fields in enumerate(
        ({"latent": {"size": 49, "scale": 1.0}}, {"classes": classes}, {"features": [4, 4, 255]})
    ):
        with pytest.raises(BundleError, match="by its manifest it must be"):
            Embedder.open(Bundle.open(remade(f"other-{number}", **fields)), device="cpu")


def refused_init(tmp_path: Path, bundle: Path) -> str:
    (tmp_path / "export").mkdir(exist_ok=True)
    words = ["init", tmp_path / "made", "--watch", tmp_path / "export", "--bundle", bundle]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 1 and not (tmp_path / "made").exists()
    return " ".join(done.output.split())


def test_init_runs_the_golden_cells_first(starter: Bundle, remade: Remade, tmp_path: Path) -> None:
    said = refused_init(tmp_path, remade(files={"encoder.onnx": off_by(starter, 18.7)}))
    assert "does not give its golden outputs" in said and "18.7" in said
    said = refused_init(tmp_path, remade("nan", files={"encoder.onnx": off_by(starter, NAN)}))
    assert "does not give its golden outputs" in said


def packed_arrays(**arrays: Any) -> bytes:
    import io

    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def test_golden_cells_that_show_nothing_are_refused(starter: Bundle, remade: Remade) -> None:
    good = vars(starter.golden())
    for number, (change, says) in enumerate(
        [
            ({"crops": good["crops"][:0], "probabilities": good["probabilities"][:0], "latents": good["latents"][:0]},
             "1 to 1000 crops"),
            ({"latents": good["latents"][:, :1]}, "latents must be float32"),
            ({"latents": good["latents"].astype(np.float64)}, "latents must be float32"),
            ({"latents": np.full_like(good["latents"], np.nan)}, "latents must be finite"),
            ({"probabilities": good["probabilities"][:1]}, "probabilities must be"),
            ({"crops": good["crops"].astype(np.float32)}, "crops must be uint8"),
            ({"crops": np.array([{"a": 1}], dtype=object)}, "Object arrays"),
        ]
    ):  # fmt: skip
        folder = remade(f"golden-{number}", files={"golden.npz": packed_arrays(**(good | change))})
        with pytest.raises(BundleError, match=f"golden.npz cannot be used: .*{says}"):
            Bundle.open(folder).golden()
    for number, data in enumerate((b"", b"no archive", packed_arrays(crops=good["crops"]))):
        with pytest.raises(BundleError, match=r"golden\.npz cannot be used"):
            Bundle.open(remade(f"broken-{number}", files={"golden.npz": data})).golden()


@pytest.mark.slow
def test_what_a_computer_has_shown_is_not_asked_at_each_start(
    starter: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each bundle, computer and version of ONNX Runtime: the record is in the lab, not in the process."""
    from labref.bundles import proof

    (tmp_path / "export").mkdir()
    lab = Lab.create(tmp_path / "lab", [tmp_path / "export"], starter.folder)
    asked: list[str] = []
    measured = Embedder.golden_difference

    def counted(self: Embedder) -> float:
        asked.append(self.bundle.digest)
        return measured(self)

    def start() -> int:
        monkeypatch.setattr(proof, "_shown_here", set())  # as another process
        before = len(asked)
        desk.status(lab)
        return len(asked) - before

    monkeypatch.setattr(Embedder, "golden_difference", counted)
    assert [start(), start()] == [0, 0]
    monkeypatch.setattr(proof.onnxruntime, "__version__", "99.0")
    assert [start(), start()] == [1, 0]
    monkeypatch.setattr(proof.platform, "node", lambda: "another")
    assert [start(), start()] == [1, 0]
    record = lab.folder / "logs" / "proven.json"
    for broken in ("[3]", "[" * 100_000):
        record.write_text(broken)
        assert start() == 1
    record.unlink()
    assert start() == 1


def test_a_folder_that_holds_another_whole_bundle_is_not_believed(
    starter: Bundle, remade: Remade, tmp_path: Path
) -> None:
    (tmp_path / "export").mkdir()
    lab = Lab.create(tmp_path / "lab", [tmp_path / "export"], starter.folder)
    other = Bundle.open(remade(name="other", figures={}))
    shutil.rmtree(lab.bundles / starter.short)
    shutil.copytree(other.folder, lab.bundles / starter.short)
    with lab.open_store() as store, pytest.raises(BundleError, match=f"holds another bundle.*{other.short}"):
        lab.bundle(store)
    (row,) = desk.run(lab, "bundle.verify")
    assert "holds another bundle" in row["problem"]
    (listed,) = desk.run(lab, "bundle.list")
    assert (listed["digest"], listed["installed"]) == (starter.digest, False)
    *_, checked = desk.run(lab, "store.check")
    assert not checked["ok"] and checked["bundles"][0]["state"] == "damaged"
    assert install(starter_bundle(), lab.bundles).digest == starter.digest  # and the right one takes its place
    with lab.open_store() as store:
        assert lab.bundle(store).digest == starter.digest


def test_odd_things_in_a_bundles_folder_are_refused_by_name(remade: Remade, tmp_path: Path) -> None:
    folder = remade()
    (folder / "encoder.onnx").unlink()
    (folder / "encoder.onnx").mkdir()
    with pytest.raises(BundleError, match=r"encoder\.onnx is no file"):
        Bundle.open(folder)
    folder = remade("more", files={"MODEL_CARD.md": b"x" * 2_000_000})
    with pytest.raises(BundleError, match="impossible size"):
        Bundle.open(folder)


def test_a_bundle_that_makes_no_sense_is_not_installed(remade: Remade, tmp_path: Path, values: Values) -> None:
    folder = remade(duplicates=values["duplicates"] | {"candidate_bits": "x"})
    with pytest.raises(LabrefError, match=r"duplicates\.candidate_bits: .*'x'"):
        install(folder, tmp_path / "bundles")
    assert "duplicates.candidate_bits" in refused_init(tmp_path, folder)


def packed_file(folder: Path, out: Path) -> Path:
    pack(folder, out / f"{folder.name}.labref")
    return out / f"{folder.name}.labref"


def test_two_bundles_of_one_name_are_told_apart(starter: Bundle, remade: Remade, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    lab = Lab.create(tmp_path / "lab", [tmp_path / "export"], starter.folder)
    second, third = (remade(f"starter-{number}", figures={"n": number}) for number in (2, 3))
    row = next(desk.run(lab, "bundle.install", file=str(packed_file(second, tmp_path))))
    with pytest.raises(LabrefError, match="names several bundles") as told:
        next(desk.run(lab, "bundle.show", bundle="starter"))
    for words in (starter.short, row["digest"][:12], "active since 20", "installed 20", "beginning of its digest"):
        assert words in str(told.value)
    shown = CliRunner().invoke(app, ["bundle", "show", row["digest"][:6], "--lab", str(lab.folder)])
    assert shown.exit_code == 0 and "# Model card" in shown.output
    *_, change = desk.run(lab, "bundle.activate", bundle="starter")  # one of the two is active already
    assert change["bundle"]["digest"] == row["digest"] and change["state"] == "ready"
    next(desk.run(lab, "bundle.install", file=str(packed_file(third, tmp_path))))
    with pytest.raises(LabrefError, match="names several bundles"):
        list(desk.run(lab, "bundle.activate", bundle="starter"))


def test_a_bundle_that_runs_wrongly_is_not_changed_to(starter: Bundle, remade: Remade, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    lab = Lab.create(tmp_path / "lab", [tmp_path / "export"], starter.folder)
    wrong = remade("wrong", name="wrong", files={"encoder.onnx": off_by(starter, 18.7)})
    next(desk.run(lab, "bundle.install", file=str(packed_file(wrong, tmp_path))))
    with pytest.raises(BundleError, match="does not give its golden outputs"):
        list(desk.run(lab, "bundle.activate", bundle="wrong"))
    with lab.open_store() as store:
        assert store.changes.pending() is None


def test_a_lab_whose_bundle_cannot_be_used_still_answers(starter: Bundle, remade: Remade, tmp_path: Path) -> None:
    """The agent's start says why; status, ledger and bundles can be asked for, and another bundle be changed to."""
    (tmp_path / "export").mkdir()
    lab = Lab.create(tmp_path / "lab", [tmp_path / "export"], starter.folder)
    (lab.bundles / starter.short / "encoder.onnx").write_bytes(b"damaged")

    def command(*words: str, code: int) -> str:
        done = CliRunner().invoke(app, [*words, "--lab", str(lab.folder)])
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    assert "encoder.onnx does not have its digest" in command("agent", code=1)
    assert "encoder.onnx does not have its digest" in command("status", code=1)
    command("ledger", code=0)
    command("bundle", "list", code=0)
    other = remade("other", name="other", figures={})
    command("bundle", "install", str(packed_file(other, tmp_path)), code=0)
    command("bundle", "activate", "other", "--yes", code=0)
    assert "other" in command("status", code=0)
