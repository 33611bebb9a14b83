"""What a lab can be asked: named operations, done by the running agent, or here while none runs.

May import tasks and below.

The agent alone opens the store while it runs, so a command names an operation and its parameters, and gets JSON rows
back; it does not know who did the work. An operation `group.verb` is a function of `labref.operations.<group>`:

    @operation("label.set", LabelSet, role=Role.REVIEW)
    def set_label(context: Context, *, cell: Annotated[Text, Field(description="...")]) -> Iterator[Row]: ...

Its keyword parameters, with their types, descriptions and defaults, are its request; the fields of a parameter that is
itself a `Request`, which several operations can share, stand in the request beside the others. The models named with it
are the rows of its answer; its docstring is its description. The HTTP routes, their OpenAPI document and the rows that
`--json` prints all come from here.

Rows are yielded as they come. An operation that takes long yields `progress(done, total, text)` every few seconds, at
least: a connection that is silent for two minutes counts as dead, and an operation whose asker has gone ends at its
next row.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, ValidationError, create_model

from labref.errors import LabrefError
from labref.operations.models import Answer, Request
from labref.progress import Row
from labref.roles import Role
from labref.tasks.context import Context

__all__ = ["PREFIX", "Operation", "every_operation", "explain", "find_operation", "operation", "perform"]

PREFIX: Final = "/api/v1"
"""Where the operations are, over HTTP."""

_Function = TypeVar("_Function", bound=Callable[..., Iterator[Row]])


@dataclass(frozen=True)
class Operation:
    """One thing that a lab can be asked.

    function : (context, parameters by keyword) → rows; one that `takes_bytes` has them before the parameters.
    answers : models of its rows.  method : of HTTP.  single : the answer is one JSON object, not JSON lines.
    hurried : each row is sent as soon as it is there; else some hundred together, for operations with many rows.
    role : what somebody who is signed in to the pages has to be at least; the lab's token may do everything.
    """

    name: str
    function: Callable[..., Iterator[Row]]
    answers: tuple[type[Answer], ...]
    method: Literal["GET", "POST"] = "POST"
    single: bool = False
    hurried: bool = True
    takes_bytes: bool = False
    role: Role = Role.ADMIN

    @property
    def path(self) -> str:
        """Path of the operation over HTTP."""
        return f"{PREFIX}/{self.name.replace('.', '/')}"

    @property
    def group(self) -> str:
        """The first part of its name, and its module in `labref.operations`."""
        return self.name.partition(".")[0]

    @property
    def summary(self) -> str:
        """The first sentence of its description, without the full stop."""
        return " ".join(self.description.split("\n\n")[0].split()).partition(". ")[0].rstrip(".")

    @property
    def description(self) -> str:
        """What it does, for people."""
        return inspect.getdoc(self.function) or ""

    @cached_property
    def _hints(self) -> dict[str, Any]:
        return get_type_hints(self.function, include_extras=True)

    @cached_property
    def _shared(self) -> dict[str, type[Request]]:
        """The parameters that are requests themselves."""
        return {
            name: hint for name, hint in self._hints.items() if isinstance(hint, type) and issubclass(hint, Request)
        }

    @cached_property
    def request(self) -> type[Request]:
        """Model of its parameters, made from the function's signature."""
        fields: dict[str, Any] = {
            name: (self._hints[name], ... if parameter.default is parameter.empty else parameter.default)
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in self._shared
        }
        title = "".join(part.capitalize() for part in self.name.split(".")) + "Request"
        model: type[Request] = create_model(
            title,
            __base__=tuple(self._shared.values()) or Request,
            __module__=self.function.__module__,
            __doc__=f"Parameters of `{self.name}`.",
            **fields,
        )
        return model

    def parameters(self, given: Mapping[str, Any] | BaseModel) -> dict[str, Any]:
        """The parameters as the function takes them. Raises `LabrefError` where they are not what the request says."""
        try:
            asked = self.request.model_validate(given)
        except ValidationError as error:
            raise LabrefError(explain(error.errors(include_url=False), self.request)) from None
        shared = {field for model in self._shared.values() for field in model.model_fields}
        own = {name: getattr(asked, name) for name in self.request.model_fields if name not in shared}
        return own | dict.fromkeys(self._shared, asked)  # which is one of each


_REGISTRY: dict[str, Operation] = {}


def operation(
    name: str,
    *answers: type[Answer],
    method: Literal["GET", "POST"] = "POST",
    single: bool = False,
    hurried: bool = True,
    takes_bytes: bool = False,
    role: Role = Role.ADMIN,
) -> Callable[[_Function], _Function]:
    """Register a function as the operation `group.verb`, or `group`, in the module `labref.operations.<group>`.

    The parameter `who` of a function is who asks: for somebody who is signed in it is their name, whatever they say.
    """

    def register(function: _Function) -> _Function:
        if name in _REGISTRY:
            raise ValueError(f"operation {name} is there already")
        _REGISTRY[name] = Operation(name, function, answers, method, single, hurried, takes_bytes, role)
        return function

    return register


def perform(
    context: Context, name: str, parameters: Mapping[str, Any] | BaseModel, data: bytes | None = None
) -> Iterator[Row]:
    """Do an operation here. data : the bytes that it takes, where it takes some.

    Raises `LabrefError` where the operation is unknown or the parameters are not its own, before the first row; and
    where the operating system fails it, such as by a full disk.
    """
    found = find_operation(name)
    asked = found.parameters(parameters)
    before = (data or b"",) if found.takes_bytes else ()
    return _in_words(context, found.function(context, *before, **asked))


def find_operation(name: str) -> Operation:
    """The operation of that name; only its own module is imported. Raises `LabrefError` where there is none."""
    group = name.partition(".")[0]
    if name not in _REGISTRY and group.isidentifier() and importlib.util.find_spec(f"{__name__}.{group}"):
        importlib.import_module(f"{__name__}.{group}")
    if name not in _REGISTRY:
        raise LabrefError(f"this labref has no operation {name!r}; the command and the agent are of different versions")
    return _REGISTRY[name]


def every_operation() -> list[Operation]:
    """All operations, by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return [_REGISTRY[name] for name in sorted(_REGISTRY)]


_PLAIN: Final = {
    "missing": "has to be given",
    "int_type": "has to be a whole number",
    "int_parsing": "has to be a whole number",
    "int_from_float": "has to be a whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "has to be a number",
    "float_parsing": "has to be a number",
    "finite_number": "has to be a finite number",
    "bool_type": "has to be true or false",
    "bool_parsing": "has to be true or false",
    "string_type": "has to be a text",
    "string_unicode": "has to be valid Unicode",
    "string_pattern_mismatch": "must not hold the character NUL",
    "string_too_short": "must not be empty",
    "string_too_long": "has to have at most {max_length} characters",
    "list_type": "has to be a list",
    "too_long": "has to have at most {max_length} entries, not {actual_length}",
    "dict_type": "has to be a JSON object",
    "model_type": "has to be a JSON object",
    "model_attributes_type": "has to be a JSON object",
    "json_invalid": "is no JSON",
    "greater_than_equal": "has to be at least {ge}",
    "less_than_equal": "has to be at most {le}",
    "literal_error": "has to be {expected}",
    "enum": "has to be {expected}",
}


def explain(errors: Sequence[Mapping[str, Any]], request: type[BaseModel] | None = None) -> str:
    """pydantic's errors in plain English, on one line. request : the model that was not met."""
    known = {} if request is None else request.model_fields
    told = []
    for error in errors:
        where = ".".join(str(part) for part in error["loc"]) or "the request"
        if error["type"] == "extra_forbidden":
            names = f"there are {', '.join(known)}" if known else "there are none"
            told.append(f"{where} is no parameter here; {names}. Perhaps another version of labref asked")
            continue
        plain = _PLAIN.get(error["type"])
        if error["type"] == "string_pattern_mismatch" and "\\x00" not in error["ctx"]["pattern"] and where in known:
            told.append(f"{where} cannot be {error['input']!r}. {known[where].description}")
            continue
        if error["type"] in ("greater_than_equal", "less_than_equal") and where in known:
            metadata = known[where].metadata
            least = next((limit.ge for limit in metadata if hasattr(limit, "ge")), None)
            most = next((limit.le for limit in metadata if hasattr(limit, "le")), None)
            if least is not None and most is not None:
                plain = f"has to be {least} to {most}"
        told.append(f"{where} {plain.format(**error.get('ctx', {}))}" if plain else f"{where}: {error['msg']}")
    return "; ".join(told)


def _in_words(context: Context, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except OSError as error:  # its file name could name a patient
        raise LabrefError(
            f"{error.strerror or type(error).__name__}: what was begun in {context.lab.folder} is not finished. Look at "
            "the free disk space and the rights of the folder, and do it again."
        ) from error
