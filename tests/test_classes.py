"""The hierarchy: every class of the public data and of an export has its code and group, and fine classes come from
names."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.classes import at_level, class_group, class_id, fine_id
from training.data.images import Item
from training.measure.evaluate import precision_by_level

EXPORT = {
    "Segmented neutrophils": "SNE",
    "Band neutrophils": "BNE",
    "Eosinophils": "EO",
    "Basophil": "BA",
    "Lymphocyte": "LY",
    "Lymphocyte, variant": "VLY",
    "Monocyte": "MO",
    "Promonocyte": "PMO",
    "Promyelocyte": "PMY",
    "Myelocyte": "MY",
    "Metamyelocyte": "MMY",
    "Blast, no lineage spec": "BL",
    "Prolymphocyte": "PLY",
    "Plasma cells": "PC",
    "Erythroblast": "ERB",
    "Smudge cells": "SMU",
    "Giant thrombocyte": "GT",
    "Thrombocyte aggregation": "ERC",
    "Arifact": "ART",
    "Unidentified": "UI",
}


@pytest.mark.parametrize(("name", "code"), EXPORT.items())
def test_the_classes_of_an_export_are_known(name: str, code: str) -> None:
    assert class_id(name) == code
    assert (class_group(name) == "other") == (code in ("SMU", "ART", "UI"))


def test_groups_are_those_of_the_appendix() -> None:
    of = {label: class_group(label) for label in ("neutrophil", "ig", "lymphocyte", "monocyte", "erythroblast")}
    assert list(of.values()) == ["myelopoiesis", "myelopoiesis", "lymphopoiesis", "monopoiesis", "erythropoiesis"]
    assert (class_id("something else"), class_group("something else")) == ("something else", "other")


def test_names_tell_the_fine_class() -> None:
    told = {
        ("neutrophil", "SNE_1.jpg"): "SNE",
        ("neutrophil", "BNE_1.jpg"): "BNE",
        ("neutrophil", "NEUTROPHIL_1.jpg"): None,
        ("neutrophil", "LY_1.jpg"): None,
        ("ig", "PMY_1.jpg"): "PMY",
        ("ig", "IG_1.jpg"): None,
        ("Band neutrophils", "BNE_7.jpg"): "BNE",
        ("lymphocyte", "LY_1.jpg"): "LY",
        ("unheard of", "X_1.jpg"): "unheard of",
    }
    assert {(label, name): fine_id(label, name) for label, name in told} == told
    assert at_level("ig", "PMY_1.jpg", "group") == "myelopoiesis" and at_level("ig", "PMY_1.jpg", "class") == "ig"


def test_precision_by_level_by_hand() -> None:
    references = [
        Item(f"{p}", p.split("/")[0]) for p in ("ig/MY_1", "ig/PMY_1", "ig/IG_1", "eosinophil/EO_1", "monocyte/MO_1")
    ]
    queries = [Item("ig/MY_9", "ig"), Item("monocyte/MO_9", "monocyte"), Item("ig/IG_9", "ig")]
    found = precision_by_level(queries, references, np.array([[0, 1, 2, 3], [4, 4, 0, 1], [2, 2, 2, 2]]))
    assert found["group"]["per_class"]["myelopoiesis"]["precision"] == 1.0
    assert found["class"]["per_class"]["ig"] == {"precision": 0.875, "n_queries": 2, "n_references": 3}
    assert found["class"]["macro"]["value"] == pytest.approx((0.875 + 0.5) / 2)
    # the unspecific IG_ is neither asked for nor counted among the references
    assert found["fine"]["per_class"]["MY"]["precision"] == pytest.approx(1 / 3)
    assert found["fine"]["micro"]["value"] == pytest.approx((1 / 3 + 1 / 2) / 2)
