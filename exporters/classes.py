"""Class names → identifiers and groups of haematopoiesis (the thesis' appendix), for the manifest."""

from __future__ import annotations

__all__ = ["class_group", "class_id"]

_KNOWN: dict[str, tuple[str, str]] = {
    "basophil": ("BA", "myelopoiesis"),
    "blast": ("BL", "blasts"),
    "eosinophil": ("EO", "myelopoiesis"),
    "erythroblast": ("ERB", "erythropoiesis"),
    "ig": ("IG", "myelopoiesis"),
    "lymphocyte": ("LY", "lymphopoiesis"),
    "metamyelocyte": ("MMY", "myelopoiesis"),
    "monocyte": ("MO", "monopoiesis"),
    "myelocyte": ("MY", "myelopoiesis"),
    "neutrophil": ("NE", "myelopoiesis"),
    "platelet": ("PLT", "thrombopoiesis"),
    "promyelocyte": ("PMY", "myelopoiesis"),
    "segmented_neutrophil": ("SNE", "myelopoiesis"),
}


def class_id(label: str) -> str:
    """Short identifier of a class; the class's own name where none is customary."""
    return _KNOWN.get(label.lower(), (label, ""))[0]


def class_group(label: str) -> str:
    """Group of a class; "other" where none is known."""
    return _KNOWN.get(label.lower(), ("", "other"))[1]
