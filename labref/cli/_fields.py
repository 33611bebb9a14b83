"""What `--json` prints, field by field, for the help: from the models of the answers, which describe it once."""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from labref.operations.models import Answer

__all__ = ["described", "fields"]

_STEP = "  "  # what a field of an object within an object is indented by


def described(path: str) -> tuple[str, list[tuple[str, str]]]:
    """What a model stands for, and its fields. path : module and class below `labref.operations`, like
    `ledger.LedgerEntry`."""
    module, _, name = path.partition(".")
    model = getattr(importlib.import_module(f"labref.operations.{module}"), name)
    return _first_sentence(model), list(fields(model))


def fields(model: type[Answer], *, indent: str = "") -> Iterator[tuple[str, str]]:
    """(name, description) of every field; those of an object within it follow it, indented."""
    for name, field in model.model_fields.items():
        inner, marks, values, nullable = _taken_apart(field.annotation)
        text = field.description or (_first_sentence(inner) if inner is not None else "")
        if values and not all(str(value) in text for value in values):
            text += f" One of {', '.join(map(str, values))}." if len(values) > 1 else f" {values[0]}."
        if nullable and "null" not in text:
            text += " Or null."
        yield f"{indent}{field.alias or name}{marks}", text.strip()
        if inner is not None:
            yield from fields(inner, indent=indent + _STEP)


def _taken_apart(annotation: Any) -> tuple[type[Answer] | None, str, list[Any], bool]:
    """The model within a type, what holds it (`[]` a list, `{}` an object by name), its values where they are few, and
    whether it can be null."""
    from labref.operations.models import Answer

    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _taken_apart(inner[0])
    if origin in (Union, types.UnionType):
        some = [_taken_apart(one) for one in inner if one is not type(None)]
        found = next((part for part in some if part[0] is not None), some[0])
        return found[0], found[1], found[2], type(None) in inner or any(part[3] for part in some)
    if origin in (list, tuple):
        model, marks, values, _ = _taken_apart(inner[0])
        return model, f"[]{marks}", values, False
    if origin is dict:
        model, marks, values, _ = _taken_apart(inner[1])
        return model, f"{{}}{marks}", values, False
    if origin is Literal:
        return None, "", [value.value if isinstance(value, Enum) else value for value in inner], False
    if isinstance(annotation, type) and issubclass(annotation, Answer):
        return annotation, "", [], False
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return None, "", [member.value for member in annotation], False
    return None, "", [], False


def _first_sentence(model: type) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())
