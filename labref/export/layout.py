"""What a file's path in the export folder says about its cell: slide, label, source of the label, analyser."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import regex

from labref.config import LabelSourceName, LayoutPattern, WatchConfig
from labref.errors import LayoutError
from labref.printing import unprintable
from labref.words import name_key

__all__ = ["BUILT_IN", "ClassNames", "Layout", "PathMeaning", "name_key"]

_CLASS_FOLDERS: Final = LayoutPattern(pattern=r"(?:(?P<slide>.+)/)?(?P<label>[^/\d]+)/[^/]+", label_source="analyser")
"""Words for class folders. A folder that is not a class is a slide: its name may be a patient's."""

BUILT_IN: Final = (
    # CellaVision: <patient>/[<order>/]Signed slides/<class name>/<CODE>_<number>.jpg, seen by a person
    LayoutPattern(pattern=r"(?:(?P<slide>.+)/)?Signed slides/(?P<label>[^/]+)/[^/]+", label_source="reviewed"),
    # CellaVision: <patient>/[<order>/]Unsigned slides/<slide>_<nnn>.jpg, seen by nobody yet
    LayoutPattern(pattern=r"(?:.+/)?Unsigned slides/(?:.+/)?(?P<slide>[^/]+)_\d+\.[^./]+", label_source="predicted"),
    LayoutPattern(pattern=r"(?:(?P<slide>.+)/)?Unsigned slides/.+", label_source="predicted"),
    _CLASS_FOLDERS,
    # flat, or one folder a slide
    LayoutPattern(pattern=r"(?:(?P<slide>.+)/)?[^/]+", label_source="predicted"),
)
"""The built-in layouts, tried in this order after the lab's own ones."""

_MOST_SECONDS: Final = 1.0  # of processor time for one pattern and one path; microseconds are usual
_SLOW_SECONDS: Final = 0.1  # the same, for a pattern that took too long a few times
_FEW: Final = 3
_MOST_REMEMBERED: Final = 100_000

# CellaVision's class names and codes, each with the wider classes that a bundle may know instead, narrowest first
_CELLAVISION: Final[tuple[tuple[str, ...], ...]] = (
    ("segmented neutrophil", "sne", ">", "neutrophil"),
    ("band neutrophil", "bne", ">", "neutrophil"),
    ("eosinophil", "eo"),
    ("basophil", "ba"),
    ("lymphocyte", "ly"),
    ("lymphocyte variant", "variant lymphocyte", "reactive lymphocyte", "vly", ">", "lymphocyte"),
    ("monocyte", "mo"),
    ("promonocyte", "pmo"),
    ("promyelocyte", "pmy", ">", "immature granulocyte", "ig"),
    ("myelocyte", "my", ">", "immature granulocyte", "ig"),
    ("metamyelocyte", "mmy", ">", "immature granulocyte", "ig"),
    ("immature granulocyte", "ig"),
    ("blast no lineage spec", "blast", "bl"),
    ("prolymphocyte", "ply"),
    ("plasma cell", "pc"),
    ("erythroblast", "normoblast", "nrbc", "erb"),
    ("smudge cell", "smu"),
    ("platelet", "thrombocyte"),
    ("giant thrombocyte", "giant platelet", "gt", ">", "platelet", "thrombocyte"),
    ("thrombocyte aggregation", "platelet clump", "erc"),
    ("arifact", "artifact", "artefact", "art"),
    ("unidentified", "ui"),
)


@dataclass(frozen=True)
class PathMeaning:
    """What a path says of its cell.

    slide : name of the slide, or of the folders that stand for it; None where the path has none.
    label : the class that a person or the analyser gave; None leaves the label to the bundle's prediction.
    label_source : the source of the label.  analyser : name of the analyser.
    """

    slide: str | None
    label: str | None
    label_source: LabelSourceName
    analyser: str | None


class ClassNames:
    """Translates the name of a class folder to a label: by the lab's own table, then by the bundle's labels and
    CellaVision's names.

    An unknown name is kept as it is. A class narrower than the bundle's classes (band neutrophil) becomes the bundle's
    class that contains it.
    """

    def __init__(self, bundle_labels: Sequence[str], own: Mapping[str, str]) -> None:
        self._own = {name_key(name): label for name, label in own.items()}
        labels = {name_key(label): label for label in bundle_labels}
        self._known = dict(labels)
        self._classes = {*labels, *self._own, *map(name_key, own.values()), *(n for e in _CELLAVISION for n in e)} - {
            ">"
        }
        for entry in _CELLAVISION:
            split = entry.index(">") if ">" in entry else len(entry)
            names, wider = entry[:split], entry[split + 1 :]
            label = next((labels[name] for name in (*names, *wider) if name in labels), None)
            if label is not None:
                for name in names:
                    self._known.setdefault(name, label)

    def label(self, folder_name: str) -> str:
        """The label that the class folder `folder_name` stands for."""
        key = name_key(folder_name)
        return self._own.get(key) or self._known.get(key) or folder_name

    def is_class(self, name: str) -> bool:
        """Whether a name is that of a class: the bundle's, one of `[watch.labels]`, or CellaVision's."""
        return name_key(name) in self._classes

    def known(self) -> Mapping[str, str]:
        """{key (`name_key`): label} of every name in the tables."""
        return self._known | self._own


@dataclass(eq=False)
class _Pattern:
    """A pattern, and how it has done. declared_only : it says only classes that are known.  name, remedy : for
    people.  late : how often it took too long.  refused : paths on which it did."""

    expression: regex.Pattern[str]
    source: LabelSourceName
    declared_only: bool
    name: str
    remedy: str
    late: int = 0
    refused: set[str] = field(default_factory=set)

    def match(self, path: str) -> regex.Match[str] | None:
        """Its match with the whole path. Raises `LayoutError` where that takes too long: a second, but once it did so a
        few times only a tenth of that, and none for the same path again."""
        if path not in self.refused:
            limit = _SLOW_SECONDS if self.late >= _FEW else _MOST_SECONDS
            try:
                # the other threads, and a signal, need not wait for it
                return self.expression.fullmatch(path, timeout=limit, concurrent=True)
            except TimeoutError:
                self.late += 1
                if len(self.refused) < _MOST_REMEMBERED:
                    self.refused.add(path)
        raise LayoutError(f"{self.name} takes too long on this path. {self.remedy}, and start the agent again.")


class Layout:
    """The patterns of one lab, and its class names."""

    def __init__(
        self,
        watch: WatchConfig,
        bundle_labels: Sequence[str],
        analysers: Mapping[str, str] | None = None,
        given: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """analysers : of watched folders that have one of their own, by absolute path.  given : classes that people or
        the analyser gave to cells of the lab; folders so called are class folders as well."""
        self._given = given
        self._analysers = analysers or {}
        self._patterns = [
            _Pattern(
                regex.compile(layout.pattern, regex.IGNORECASE | regex.DOTALL),
                layout.label_source,
                layout is _CLASS_FOLDERS,
                f"the pattern {layout.pattern!r} of [[watch.layout]]"
                if layout in watch.layout
                else f"labref's own pattern {layout.pattern!r}",
                "Write it with fewer repeats and references back to groups"
                if layout in watch.layout
                else "Give the path shorter names, or this layout a pattern of its own in [[watch.layout]]",
            )
            for layout in (*watch.layout, *BUILT_IN)
        ]
        self._names = ClassNames(bundle_labels, watch.labels)
        self._tables = self._names.known().keys()
        self._spelt: dict[str, str] = {}  # classes that no table has, as they were written first
        self._analyser = watch.analyser

    @property
    def slow(self) -> list[str]:
        """The patterns that took too long on some paths, each with how many these are and what to do, for people."""
        return [
            f"{pattern.name} takes too long on {pattern.late} paths, whose files are not taken in. {pattern.remedy}, and start "
            "the agent again"
            for pattern in self._patterns
            if pattern.late
        ]

    def place(self, relative: str, root: str = "") -> PathMeaning:
        """What `relative`, a path below its watched folder `root` with `/` between folders, says of its cell.

        Raises `LayoutError` where a pattern takes too long on this path.
        """
        analyser = self._analysers.get(root, self._analyser)
        for pattern in self._patterns:
            match = pattern.match(relative)
            if match is None:
                continue
            source = pattern.source
            groups = match.groupdict()
            label, slide, own = (_composed(groups.get(part)) for part in ("label", "slide", "analyser"))
            if pattern.declared_only and label is not None and not self._names.is_class(label):
                label = self._given_class(label)
                if label is None:
                    continue
            # a name that a terminal would obey instead of showing it is no class
            named = label is not None and source != "predicted" and unprintable(label) is None
            return PathMeaning(
                slide=slide,
                label=self._class(label) if label is not None and named else None,
                label_source=source if named else "predicted",
                analyser=own or analyser,
            )
        return PathMeaning(None, None, "predicted", analyser)

    def _class(self, name: str) -> str:
        """The class that a folder's name stands for; one that no table has is spelt as the lab's cells have it, or as
        it was met first."""
        key = name_key(name)
        if key in self._tables:
            return self._names.label(name)
        if key not in self._spelt:
            self._spelt.setdefault(key, self._given_class(name) or name)
        return self._spelt[key]

    def _given_class(self, name: str) -> str | None:
        """The class of the lab's cells that has this name."""
        given = self._given()
        return name if name in given else next((g for g in sorted(given) if name_key(g) == name_key(name)), None)


def _composed(name: str | None) -> str | None:
    """`name` in one of the two forms that Unicode has of an accented letter: NFC. None for an empty one."""
    return unicodedata.normalize("NFC", name) if name else None
