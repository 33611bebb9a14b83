"""The settings with their allowed values, read from their declarations, and one message that lists all wrong settings.

Settings are frozen pydantic dataclasses (`training.config`). A setting is named by its path, as `classifier.epochs`.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

__all__ = ["Setting", "SettingsError", "override_settings", "read_settings", "settings_of", "show_value", "value_at"]

T = TypeVar("T")
_LIMITS = ("ge", "gt", "le", "lt", "multiple_of", "min_length")
_SPELLINGS = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}


class SettingsError(ValueError):
    """Settings that cannot be used. problems : one line for each: the setting, what was given, what is allowed."""

    def __init__(self, problems: Iterable[str], where: str = "") -> None:
        self.problems = tuple(dict.fromkeys(problems))
        count = "1 setting" if len(self.problems) == 1 else f"{len(self.problems)} settings"
        lines = "".join(f"  {problem}\n" for problem in self.problems)
        prefix = f"{where}: " if where else ""
        super().__init__(
            f"{prefix}{count} cannot be used\n{lines}"
            "`python -m training settings` lists every setting and what it may be"
        )


@dataclass(frozen=True)
class Setting:
    """One setting.

    name : with dots.  type : its type in JSON.  allowed : what it may be, for people.  description : what it does, one
    line.  choices : the values of an enumeration, else none.  limits : of a number or a text, by their pydantic names
    (`ge`, `gt`, `le`, `lt`, `multiple_of`, `min_length`).
    """

    name: str
    type: str
    allowed: str
    description: str
    choices: tuple[Any, ...]
    limits: Mapping[str, float]

    def nearest(self, given: Any) -> str | None:
        """The allowed value that is closest to `given`, as text; None where there is no such value."""
        if self.type == "boolean":
            word = _SPELLINGS.get(str(given).lower(), str(given).lower())
            return next(iter(difflib.get_close_matches(word, ["true", "false"], n=1)), None)
        if self.type == "string":
            choices = [str(choice) for choice in self.choices]
            return next(iter(difflib.get_close_matches(str(given).lower(), choices, n=1)), None)
        number = isinstance(given, int | float) and not isinstance(given, bool) and given == given  # NaN has no nearest
        return self._nearest_number(given) if number else None

    def _nearest_number(self, given: float) -> str | None:
        if self.choices:
            return str(min(self.choices, key=lambda choice: abs(choice - given)))
        limits = self.limits
        if ("gt" in limits and given <= limits["gt"]) or ("lt" in limits and given >= limits["lt"]):
            return None  # a limit that is itself not allowed has no nearest allowed number
        low, high = limits.get("ge", -math.inf), limits.get("le", math.inf)
        value = min(max(given, low), high)
        if value in (-math.inf, math.inf) or (self.type == "number" and value == given):  # refused for other reasons
            return None
        if self.type == "number":
            return f"{value}"
        step = int(limits.get("multiple_of", 1))
        return f"{min(max(round(value / step) * step, low), high)}"


def settings_of(config: type) -> dict[str, Setting]:
    """Every setting of the pydantic dataclass `config` and of those within it, by name, in the order declared."""
    return {name: _setting(name, field) for name, field in _fields(config) if not _is_group(field)}


def _groups_of(config: type) -> list[str]:
    return [name for name, field in _fields(config) if _is_group(field)]


def _is_group(field: FieldInfo) -> bool:
    return is_dataclass(field.annotation)


def _fields(config: Any, prefix: str = "") -> Iterable[tuple[str, FieldInfo]]:
    for name, field in config.__pydantic_fields__.items():
        yield prefix + name, field
        if _is_group(field):
            yield from _fields(field.annotation, f"{prefix}{name}.")


def _setting(name: str, field: FieldInfo) -> Setting:
    limits = {
        key: found for part in field.metadata for key in _LIMITS if (found := getattr(part, key, None)) is not None
    }
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    plain = type(choices[0]) if choices else get_origin(field.annotation) or field.annotation
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", tuple: "array", dict: "object"}
    kind = kinds[plain]  # type: ignore[index]
    allowed = _allowed(kind, choices, limits, (field.examples or [None])[0])
    return Setting(name, kind, allowed, field.description or "", choices, limits)


def _allowed(kind: str, choices: Sequence[Any], limits: Mapping[str, float], example: Any) -> str:
    if choices:
        *others, last = [str(choice) for choice in choices]
        return f"{', '.join(others)} or {last}"
    if kind == "boolean":
        return "true or false"
    if kind == "string":
        return "text, not empty" if limits.get("min_length") else "text"
    if kind in ("array", "object"):
        return f"{'a list' if kind == 'array' else 'pairs'} of names, as {show_value(example)}"
    number = "a number" if kind == "number" else "a whole number"
    if "multiple_of" in limits:
        number = f"a multiple of {limits['multiple_of']}"
    high = f"{limits['le']}" if "le" in limits else f"below {limits['lt']}" if "lt" in limits else ""
    if "gt" in limits:
        return f"{number} above {limits['gt']}{f' and up to {high}' if high else ''}"
    return f"{number} from {limits['ge']} to {high}" if high else f"{number} of {limits['ge']} or more"


def show_value(value: Any) -> str:
    """A value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def value_at(values: Any, name: str) -> Any:
    """The value of the setting `name` in nested settings. Raises KeyError where there is none."""
    for part in name.split("."):
        if not isinstance(values, Mapping):
            raise KeyError(name)
        values = values[part]
    return values


def read_settings(config: type[T], values: Any) -> T:
    """`config` made of `values`, plain JSON values. A missing setting has its default; a missing group is an error.

    Raises `SettingsError` that lists all problems.
    """
    return _read(config, values, [], {})


def override_settings(config: type[T], values: dict[str, Any], settings: Sequence[str]) -> T:
    """`config` made of `values`, in which the `key=value` settings have replaced the earlier ones; `values` is changed.

    The value of a text setting is taken as it is written, that of any other setting as JSON. Raises `SettingsError`
    that lists all problems.
    """
    known, groups = settings_of(config), _groups_of(config)
    problems, given = [], {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if key in groups:
            first = next(name for name in known if name.startswith(f"{key}."))
            problems.append(f"{_short(setting)}: {key} is a group of settings; name one of them, as {first}")
        elif key not in known:
            problems.append(f"{_short(setting)}: no such setting{_similar(key, known)}")
        elif not equals:
            problems.append(f"{setting}: no value; write {key}=VALUE, and VALUE is {known[key].allowed}")
        else:
            group, _, last = key.rpartition(".")
            place = value_at(values, group) if group else values
            place[last] = _value(text, known[key].type, place.get(last))
            given[key] = text
    return _read(config, values, problems, given, "--set")


def _value(text: str, kind: str, old: Any) -> Any:
    """`text` read as JSON, or the text itself where it is no JSON: the check then says what the setting takes."""
    if kind == "string":
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return value


def _read(config: type[T], values: Any, problems: list[str], given: Mapping[str, str], where: str = "") -> T:
    """problems : the problems found so far.  given : values as they were written.  where : where they come from."""
    made = None
    try:
        made = TypeAdapter(config).validate_json(json.dumps(values))
    except ValidationError as error:
        known = settings_of(config)
        problems += [_problem(one, known, values, given) for one in error.errors(include_url=False)]
    for group in _groups_of(config):
        outer, _, name = group.rpartition(".")
        with contextlib.suppress(KeyError):  # the outer group is missing, and is reported itself
            inside = value_at(values, outer) if outer else values
            if isinstance(inside, Mapping) and name not in inside:
                problems.append(f"{group}: missing; it holds a group of settings")
    if made is None or problems:
        raise SettingsError(problems, where)
    return made


def _problem(error: Mapping[str, Any], known: Mapping[str, Setting], values: Any, given: Mapping[str, str]) -> str:
    path = [str(part) for part in error["loc"]]
    whole = ".".join(path)
    if error["type"] == "unexpected_keyword_argument":
        return f"{whole}: no such setting{_similar(whole, known)}"
    of_others = error["type"] == "value_error"
    # within a list or pairs the location goes on below the setting
    name = next((name for n in range(len(path), 0, -1) if (name := ".".join(path[:n])) in known), None)
    if name is None:
        said = str(error["ctx"]["error"]) if of_others else error["msg"]
        return f"{whole or 'settings'}: {'must be a group of settings' if error['type'] == 'dataclass_type' else said}"
    setting = known[name]
    try:
        value = value_at(values, name)
    except KeyError:  # it has its default, which another setting forbids
        value = error["input"]
    shown = _short(f"{name}={given.get(name) or show_value(value)}")
    if of_others:
        return f"{shown}: {error['ctx']['error']}"
    near = setting.nearest(value)
    hint = "did you mean {}?" if setting.type in ("boolean", "string") else "the nearest is {}"
    return f"{shown}: must be {setting.allowed}{'' if near is None else f'; {hint.format(near)}'}"


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:119]}…"


def _similar(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, with the settings whose last part is most like that of `name`, or the nearest one of them
    where `name` has a group; empty where none is like it."""
    last = name.rpartition(".")[2]
    parts = {full: full.rpartition(".")[2] for full in known}
    alike = difflib.get_close_matches(last, sorted(set(parts.values())), n=1)
    candidates = [full for full, part in parts.items() if part in alike]
    chosen = difflib.get_close_matches(name, candidates, n=1, cutoff=0.0) if "." in name else candidates
    return f"; did you mean {' or '.join(chosen)}?" if chosen else ""
