"""A bundle is looked at for sense, not only for its digests: fields, shapes, operators, and what its networks give."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from labref.agent import run
from labref.bundles import proof, trial
from labref.bundles.bundle import Bundle, golden_terms, install, pack, starter_bundle
from labref.bundles.graph import OPERATORS, check_graph
from labref.bundles.inference import Embedder, Embeddings
from labref.bundles.schema import check_manifest, parse_json
from labref.bundles.sense import check_golden_cells
from labref.bundles.signing import SIGNATURE_FILE
from labref.cli import app
from labref.errors import BundleError, LabrefError
from labref.lab import Lab
from labref.store import Admission, How
from labref.web import desk

pytestmark = pytest.mark.usefixtures("processes_started")
Values = dict[str, Any]
Remade = Callable[..., Path]
Retold = Callable[[Bundle], Embedder]


@pytest.fixture(scope="module")
def retold(embedder: Embedder) -> Retold:
    """Another bundle of the starter's networks, opened; the golden cells were run once for all."""
    made: list[Embeddings] = []

    class Retelling(Embedder):
        def embed(self, crops: np.ndarray[Any, Any]) -> Embeddings:
            if not made:
                made.append(embedder.embed(crops))
            assert len(made[0].latents) == len(crops)
            return made[0]

    return lambda bundle: Retelling(bundle, None, None, embedder.provider, embedder.provider_line)


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """First runs are left out: bundles of the starter's networks are installed in no time."""
    shown = trial.Shown("CPUExecutionProvider", "full", "", 0.0)
    monkeypatch.setattr(proof, "tried", lambda *_: shown)


@pytest.fixture
def values(starter: Bundle) -> Values:
    found: Values = json.loads((starter.folder / "manifest.json").read_bytes())
    return found


@pytest.fixture
def remade(starter: Bundle, tmp_path: Path) -> Remade:
    """A bundle's folder, made of the starter with other files or fields, and with the digests that belong to them."""

    def make(place: str = "remade", files: dict[str, bytes] | None = None, **fields: Any) -> Path:
        folder = Path(shutil.copytree(starter.folder, tmp_path / place, ignore=shutil.ignore_patterns(SIGNATURE_FILE)))
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
        ("duplicates.candidate_bits", [1, 3, 32]),
        ("duplicates.duplicate_from", [0, -0.5, 1.5, NAN, INFINITE, "0.96", 0.5, 1e-9, 0.92, 1.0]),  # 0.92: below possible_from
        ("duplicates.possible_from", [1e-9, 0.5, 0.97, 1]),
        ("duplicates.same_within", [0, -1, NAN, 1e9, 1e-3, 30, 256.0]),
        ("duplicates.hash", ["ahash", 3, None]),
        ("golden_tolerance", [0, -1, NAN, INFINITE, 5, 1e300, "0.02", None, True, ...]),
        ("novelty.threshold", [0, -1, NAN, INFINITE, "x", None, ..., 1e-300, 1e-9, 2, 1000.0, 1e12]),
        ("novelty.k", [0, -1, 1.5, 10**6, 1000]),
        ("novelty.cells", [0, -3, 10**30]),
        ("novelty.dimension", [0, -1, 1e-300, NAN, INFINITE, 0.1, 1, 101]),
        ("novelty.how", ["x" * 100_000, 3, "\x1b[2J"]),
        ("latent.size", [0, -1, 10**9, 50.5, "50"]),
        ("latent.scale", [0, -1, NAN, INFINITE, 1e-9, 0.01, 1e6]),
        ("features", [[4, 4], [4, 4, 256, 1], [0, 4, 256], [4, 4, 10**9], "446"]),
        ("orientations", [0, 3, 16, -8, "8"]),
        ("name", ["", "x" * 101, "a\nb", " a", "a/b", "\x1b[31m", "\u202eevil", 3, None]),
        ("name", ["..", ".", ".hidden", "-h", "--lab", "a.", "a:b", "a\\b", "CON", "nul.txt", "~", "$HOME", "5527187af76e", "*"]),
        ("version", ["", "x" * 101, "1/2", 2, "-h", "--help", "..", "1\u2028", "a|b", "aux"]),
        ("format_version", [0, -1, "1", 1.5, None, True]),
        ("classes", [[], {}, "basophil", None, [{}] * 2000]),
        ("classes.0.name", ["blast", "BLAST", "", "a\nb", "x" * 101, 7]),
        ("classes.0.name", ["blasts", "Blasts", "bla st", "bl-ast", "blast.", "bl\u00e1st", "bla\u0301st", "bl\u0430st", "\uff42last"]),
        ("classes.0.name", ["..", "-h", ".x", "--", "a\\b", "\ufffd", "\u200b"]),
        ("classes.0.id", ["BL", "", "BL ", "bl.", "-"]),
        ("classes.0.index", [1, -1, 9, "0"]),
        ("classes.0.group", ["", 3]),
        ("optics.measures.focus.deviation", [-1, NAN, "x", 1e6]),
        ("optics.measures.focus.median", [-1e6, 200]),
        ("optics.measures.background_red.median", [-1e6, 256]),
        ("optics.measures.sharpness", [{"median": 1, "deviation": 1}]),
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
    "named": (graph([helper.make_node("If\x1b[2J", ["a"], ["b"])]), r"operator If\\x1b\[2J"),
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
        check_graph((starter.folder / name).read_bytes(), name)
    check_graph(graph([helper.make_node("Relu", ["a"], ["b"])]), "plain.onnx")
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
    words = ["init", tmp_path / "made", "--watch", tmp_path / "export", "--bundle", bundle, "--unsigned"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 1 and not (tmp_path / "made").exists()
    return " ".join(done.output.split())


def test_init_runs_the_golden_cells_first(starter: Bundle, remade: Remade, tmp_path: Path) -> None:
    said = refused_init(tmp_path, remade(files={"encoder.onnx": off_by(starter, 18.7)}))
    assert "does not give its golden outputs" in said and "18.7" in said
    odd = Bundle.open(remade("nan", files={"encoder.onnx": off_by(starter, NAN)}))
    with Embedder.open(odd, device="cpu") as opened, pytest.raises(BundleError, match="differ by nan"):
        check_golden_cells(opened)


def rotated(values: Values) -> list[Any]:
    names = [one["name"] for one in values["classes"]]
    return [one | {"name": name} for one, name in zip(values["classes"], [*names[1:], names[0]], strict=True)]


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("classes", rotated, "classes than the manifest says: 0: name: 'basophil' there, 'blast' in the manifest"),
        ("classes.0.group", "other", "classes than .* group: 'myelopoiesis' there"),
        ("latent.scale", 0.9, "latent than .* scale: 0.84"),
        ("novelty.threshold", 0.07, "novelty than .* threshold: 0.067"),
        ("novelty.k", 2, "novelty than .* k: 1 there"),
        ("novelty.cells", 7000, "novelty than .* cells"),
        ("novelty.cells", ..., "novelty than .* cells: 7179 there, None"),
        ("novelty.dimension", 6.0, "novelty than .* dimension"),
        ("duplicates.candidate_bits", 11, "duplicates than .* candidate_bits: 10"),
        ("duplicates.duplicate_from", 0.97, "duplicates than .* duplicate_from"),
        ("duplicates", {}, "duplicates than"),
        ("optics.measures.focus.median", 1.5, "optics than .* median"),
        ("orientations", 1, "orientations than .* 8 there, 1"),
        ("golden_tolerance", 0.05, "golden_tolerance than"),
    ],
)
def test_whatever_changes_answers_is_as_it_was_when_the_golden_outputs_were_written(
    starter: Bundle, remade: Remade, values: Values, where: str, value: Any, says: str
) -> None:
    """Rotated class names gave every cell a neighbour's name, and every check was passed."""
    wanted = changed(values, where, value(values) if callable(value) else value)
    group = where.split(".")[0]
    golden = packed_arrays(**vars(starter.golden()), terms=np.array(golden_terms(starter.manifest)))
    bundle = Bundle.open(remade(files={"golden.npz": golden}, **{group: wanted[group]}))
    with pytest.raises(BundleError, match=f"golden.npz cannot be used: its outputs are of a bundle with other {says}"):
        bundle.golden()


def without_terms(starter: Bundle) -> bytes:
    """Golden outputs as bundles have them that were made before: they do not say what they are true of."""
    return packed_arrays(**vars(starter.golden()))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"golden_tolerance": 2.0}, "golden_tolerance is 2, but two of its golden cells differ by 1.76 only"),
        ({"golden_tolerance": 0.9}, "wrong outputs would not be noticed"),
        ({"latent.scale": 0.04, "novelty.dimension": 50}, "latent.scale is 0.04, but its golden cells are 1.04"),
        ({"latent.scale": 30.0}, "latent.scale is 30"),
        ({"novelty.threshold": 1.2, "novelty.dimension": 50}, "threshold is 1.2, .* no cell would be novel"),
        ({"novelty.threshold": 3e-4}, "threshold is 0.0003, .* every cell would be novel"),
    ],
)
def test_numbers_that_contradict_the_golden_cells_are_refused_in_older_bundles_too(
    starter: Bundle, retold: Retold, remade: Remade, values: Values, fields: dict[str, float], says: str
) -> None:
    for where, value in fields.items():
        values = changed(values, where, value)
    folder = remade(
        files={"golden.npz": without_terms(starter)},
        **{k: values[k] for k in ("latent", "novelty", "golden_tolerance")},
    )
    with pytest.raises(BundleError, match=f"^bundle starter/.* makes no sense: .*{says}"):
        check_golden_cells(retold(Bundle.open(folder)))


def test_a_sound_bundle_makes_sense_with_and_without_what_its_golden_outputs_are_true_of(
    starter: Bundle, retold: Retold, remade: Remade
) -> None:
    assert check_golden_cells(retold(starter)) < 1e-3
    older = Bundle.open(remade(files={"golden.npz": without_terms(starter)}))
    assert check_golden_cells(retold(older)) < 1e-3


def costly(starter: Bundle, times: int, side: int) -> bytes:
    """The starter's encoder, with so many products of matrices of side × side numbers, which change nothing."""
    model = onnx.load(starter.folder / "encoder.onnx")
    last = next(node for node in model.graph.node if "latent" in node.output)
    last.output[list(last.output).index("latent")] = "inner"
    small = helper.make_tensor("v", TensorProto.FLOAT, [1], [1e-6])
    # of the input's size, so that it is not computed once and for all when the graph is opened
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["inner"], ["largest"], keepdims=0),
            helper.make_node("Mul", ["largest", "zero"], ["none"]),
            helper.make_node("Cast", ["none"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Add", ["shape", "whole"], ["sides"]),
            helper.make_node("ConstantOfShape", ["sides"], ["m0"], value=small),
            *(helper.make_node("MatMul", [f"m{n}", "m0"], [f"m{n + 1}"]) for n in range(times)),
            helper.make_node("ReduceMax", [f"m{times}"], ["end"], keepdims=0),
            helper.make_node("Mul", ["end", "zero"], ["nothing"]),
            helper.make_node("Add", ["inner", "nothing"], ["latent"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([side, side], np.int64), "shape"))
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("times", "side", "limit", "says"),
    [
        (5000, 3000, {"LABREF_INFERENCE__TRIAL_SECONDS": "1"}, "takes too long on this computer: .* more than 1 s"),
        (1, 20_000, {"LABREF_INFERENCE__TRIAL_MEMORY_MEGABYTES": "300"}, "takes too much memory .* more than 300 MB"),
    ],
)
def test_a_bundle_that_takes_too_much_is_ended_and_refused_by_name(
    starter: Bundle, remade: Remade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    times: int, side: int, limit: dict[str, str], says: str,
) -> None:  # fmt: skip
    """5,000 products of large matrices, all allowed, computed for ever at `init`; Ctrl-C was not answered."""
    for name, value in limit.items():
        monkeypatch.setenv(name, value)
    said = refused_init(tmp_path, remade(files={"encoder.onnx": costly(starter, times, side)}))
    assert re.search(rf"bundle starter/c76fb5ffe2c2 \(.*\) {says}", said) and "trial_" in said


def a_trial(starter: Bundle, monkeypatch: pytest.MonkeyPatch, code: str) -> Callable[[], object]:
    """A first run of the starter, by a process that does `code` instead."""

    def start(_: str, *__: str, errors: Any) -> subprocess.Popen[bytes]:
        script = f"import os, sys, time\nprint('started', flush=True)\n{code}"
        return subprocess.Popen(
            [sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )

    monkeypatch.setattr(trial, "start_child", start)
    return lambda: trial.tried(starter, trial.Inference())


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import ctypes; ctypes.string_at(0)", r"ends the process that runs it on this computer \((signal|exit)"),
        ("os._exit(3)", r"ends the process that runs it on this computer \(status 3\)"),
        ("sys.exit('bad_alloc')", r"ends the process .*\(status 1, bad_alloc\)"),
        ("os.abort()", r"ends the process that runs it"),
    ],
)
def test_a_crash_of_the_runtime_is_told_and_ends_nothing_else(
    starter: Bundle, monkeypatch: pytest.MonkeyPatch, code: str, says: str
) -> None:
    with pytest.raises(BundleError, match=rf"bundle starter/\S+ \({starter.short}\) {says}"):
        a_trial(starter, monkeypatch, code)()


@pytest.mark.parametrize("by", ["ctrl-c", "leave_off"])
def test_a_first_run_is_given_up_at_once(starter: Bundle, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """Ctrl-C in a command, and whatever ends the agent while it starts."""
    run = a_trial(starter, monkeypatch, "time.sleep(60)")
    ending = trial.leave_off if by == "leave_off" else lambda: os.kill(os.getpid(), signal.SIGINT)
    timer = threading.Timer(0.5, ending)
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt if by == "ctrl-c" else BundleError, match="given up|^$"):
        run()
    timer.join()
    assert time.monotonic() - began < 10
    assert not trial._running


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


def test_what_a_computer_has_shown_is_not_asked_at_each_start(
    starter: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each bundle, computer and version of ONNX Runtime: the record is in the lab, not in the process."""
    asked: list[str] = []

    def counted(bundle: Bundle, _: trial.Inference) -> trial.Shown:
        asked.append(bundle.digest)
        return trial.Shown("CPUExecutionProvider", "full", "", 0.0)

    def start() -> int:
        monkeypatch.setattr(proof, "_shown_here", {})  # as another process
        before = len(asked)
        proof.prove(starter, tmp_path, trial.Inference())
        return len(asked) - before

    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(proof, "tried", counted)
    assert [start(), start()] == [1, 0]
    monkeypatch.setattr(proof.onnxruntime, "__version__", "99.0")
    assert [start(), start()] == [1, 0]
    monkeypatch.setattr(proof.platform, "node", lambda: "another")
    assert [start(), start()] == [1, 0]
    record = tmp_path / "logs" / "proven.json"
    # the list is what labref wrote before
    for broken in (
        "[3]",
        "[" * 100_000,
        '["' + "0" * 64 + '"]',
        '{"a": 1}',
        '{"a": {"provider": 1, "precision": "x"}}',
    ):
        record.write_text(broken)
        assert [start(), start()] == [1, 0]
    record.unlink()
    assert start() == 1


@pytest.mark.usefixtures("trusted")
def test_a_computer_that_computes_wrongly_by_now_answers_nothing(
    starter: Bundle, tmp_path: Path, drawn_cells: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did not when the bundle was installed: that is remembered, and not believed."""
    lab = Lab.create(tmp_path / "lab", [drawn_cells], starter.folder)
    cell = next(drawn_cells.rglob("*.jpg"))
    right, ran = Embedder.embed, []

    def wrong(self: Embedder, crops: np.ndarray[Any, Any]) -> Embeddings:
        ran.append(len(crops))
        made = right(self, crops)
        return Embeddings(made.probabilities, made.latents + np.float32(0.5))

    monkeypatch.setattr(Embedder, "embed", wrong)
    for ask in (lambda: run(lab, once=True), lambda: list(desk.run(lab, "query", data=cell.read_bytes()))):
        with pytest.raises(
            LabrefError, match=r"does not give its golden outputs on this computer: they differ by 0\.5"
        ):
            ask()
    assert ran == [2, 2], "two golden cells each time, and no other"
    assert next(desk.run(lab, "status"))["cells"] == 0
    monkeypatch.setattr(Embedder, "embed", right)
    assert run(lab, once=True).stored > 0


@pytest.mark.usefixtures("trusted")
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


@pytest.mark.usefixtures("trusted")
def test_two_bundles_of_one_name_are_told_apart(starter: Bundle, remade: Remade, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    lab = Lab.create(tmp_path / "lab", [tmp_path / "export"], starter.folder)
    second, third = (remade(f"starter-{number}", figures={"n": number}) for number in (2, 3))
    row = next(desk.run(lab, "bundle.install", file=str(second), unsigned=True))
    with pytest.raises(LabrefError, match="names several bundles") as told:
        next(desk.run(lab, "bundle.show", bundle="starter"))
    for words in (starter.short, row["digest"][:12], "active since 20", "installed 20", "beginning of its digest"):
        assert words in str(told.value)
    shown = CliRunner().invoke(app, ["bundle", "show", row["digest"][:6], "--lab", str(lab.folder)])
    assert shown.exit_code == 0 and "# Model card" in shown.output
    *_, change = desk.run(lab, "bundle.activate", bundle="starter")  # one of the two is active already
    assert change["bundle"]["digest"] == row["digest"] and change["state"] == "ready"
    next(desk.run(lab, "bundle.install", file=str(third), unsigned=True))
    with pytest.raises(LabrefError, match="names several bundles"):
        list(desk.run(lab, "bundle.activate", bundle="starter"))


def test_a_bundle_that_runs_wrongly_is_not_installed_nor_changed_to(
    starter: Bundle, remade: Remade, tmp_path: Path
) -> None:
    (tmp_path / "export").mkdir()
    lab = Lab.create(tmp_path / "lab", [tmp_path / "export"], starter.folder)
    wrong = remade("wrong", name="wrong", files={"encoder.onnx": off_by(starter, 18.7)})
    with pytest.raises(BundleError, match="bundle wrong/.* does not give its golden outputs"):
        next(desk.run(lab, "bundle.install", file=str(wrong), unsigned=True))
    assert [folder.name for folder in lab.bundles.iterdir()] == [starter.short]
    install(wrong, lab.bundles)  # as a labref before this one did
    with pytest.raises(BundleError, match="labref did not take it in"):
        list(desk.run(lab, "bundle.activate", bundle="wrong"))
    with lab.open_store() as store:
        store.keys.change(lambda _: [Admission(Bundle.open(wrong).digest, How.BEFORE)])
    with pytest.raises(BundleError, match="does not give its golden outputs"):
        list(desk.run(lab, "bundle.activate", bundle="wrong"))
    with lab.open_store() as store:
        assert store.changes.pending() is None


def damaged(lab: Lab, starter: Bundle, *_: Any) -> str:
    (lab.bundles / starter.short / "encoder.onnx").write_bytes(b"damaged")
    return "encoder.onnx does not have its digest"


def gone(lab: Lab, starter: Bundle, *_: Any) -> str:
    shutil.rmtree(lab.bundles / starter.short)
    return "No such file or directory"


def crashing(lab: Lab, starter: Bundle, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its first run with another ONNX Runtime ends the process."""

    def tried(bundle: Bundle, _: trial.Inference) -> trial.Shown:
        if bundle.digest == starter.digest:
            raise BundleError("it ends the process that runs it.")
        return trial.Shown("CPUExecutionProvider", "full", "", 0.0)

    monkeypatch.setattr(proof, "tried", tried)
    monkeypatch.setattr(proof, "_shown_here", {})
    (lab.folder / "logs" / "proven.json").unlink()
    return "ends the process"


@pytest.mark.slow
@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("fault", [damaged, gone, crashing])
def test_a_lab_whose_bundle_cannot_be_used_says_the_ways_out_and_they_work(
    starter: Bundle, remade: Remade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., str]
) -> None:
    (tmp_path / "export").mkdir()
    lab = Lab.create(tmp_path / "lab", [tmp_path / "export"], remade("other", name="other", figures={}), unsigned=True)

    def command(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*words, "--lab", str(lab.folder)])
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    command("bundle", "install", str(starter.folder))
    command("bundle", "activate", "starter", "--yes")
    says = fault(lab, starter, monkeypatch)
    for said in (command("agent", code=1), *([] if fault is crashing else [command("status", code=1)])):
        assert f"the active bundle starter/c76fb5ffe2c2 ({starter.short}) cannot be used" in said and says in said
        assert (
            "`labref bundle install FILE`" in said
            and "go back to other/" in said
            and "`labref bundle rollback`" in said
        )
    command("ledger")
    command("bundle", "list")
    if fault is damaged:
        command("bundle", "install", str(starter.folder))
        command("bundle", "show")
        fault(lab, starter, monkeypatch)
    if fault is gone:
        command("bundle", "activate", "other", "--yes")
    else:
        assert "other/c76fb5ffe2c2" in command("bundle", "rollback")
    assert "other" in command("status")


@pytest.mark.usefixtures("trusted")
def test_a_name_that_a_terminal_would_obey_is_shown_as_its_code(starter: Bundle, tmp_path: Path) -> None:
    """Such a bundle is refused, but a lab may have had one."""
    (tmp_path / "export").mkdir()
    lab = Lab.create(tmp_path / "lab", [tmp_path / "export"], starter.folder)
    with lab.open_store() as store:
        store.add_bundle("0" * 64, name="evil\x1b[2J", version="1\n2", latent_size=3, labels=["a", "b"])
        store.changes.wish("0" * 64, switch=False)
    for words in (
        ["bundle", "list"],
        ["bundle", "show", "nothing"],
        ["bundle", "rollback"],
    ):
        said = CliRunner().invoke(app, [*words, "--lab", str(lab.folder)]).output
        assert r"evil\x1b[2J/1\n2" in said and "\x1b" not in said, words
