"""What a file's path in the export folder says about its cell: slide, label, source of the label, analyser."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import regex

from labref.config import LabelSourceName, LayoutPattern, WatchConfig
from labref.errors import LayoutError
from labref.printing import printable

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

_MOST_SECONDS: Final = 1.0  # of processor time for one pattern and one path; milliseconds are usual

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
            (
                regex.compile(layout.pattern, regex.IGNORECASE | regex.DOTALL),
                layout.label_source,
                layout is _CLASS_FOLDERS,
            )
            for layout in (*watch.layout, *BUILT_IN)
        ]
        self._names = ClassNames(bundle_labels, watch.labels)
        self._analyser = watch.analyser

    def place(self, relative: str, root: str = "") -> PathMeaning:
        """What `relative`, a path below its watched folder `root` with `/` between folders, says of its cell.

        Raises `LayoutError` where a pattern of the lab's own takes too long on this path.
        """
        analyser = self._analysers.get(root, self._analyser)
        for pattern, source, declared_only in self._patterns:
            try:
                # the other threads, and a signal, need not wait for it
                match = pattern.fullmatch(relative, timeout=_MOST_SECONDS, concurrent=True)
            except TimeoutError:
                raise LayoutError(
                    f"the pattern {pattern.pattern!r} of [[watch.layout]] takes longer than {_MOST_SECONDS:.0f} s on this "
                    "path. Write it with fewer repeats and references back to groups, and start the agent again."
                ) from None
            if match is None:
                continue
            groups = match.groupdict()
            label, slide, own = (_composed(groups.get(part)) for part in ("label", "slide", "analyser"))
            if declared_only and label is not None and not self._names.is_class(label):
                label = self._given_class(label)
                if label is None:
                    continue
            # a name that a terminal would obey instead of showing it is no class
            named = label is not None and source != "predicted" and printable(label) == label
            return PathMeaning(
                slide=slide,
                label=self._names.label(label) if label is not None and named else None,
                label_source=source if named else "predicted",
                analyser=own or analyser,
            )
        return PathMeaning(None, None, "predicted", analyser)

    def _given_class(self, name: str) -> str | None:
        """The class of the lab's cells that has this name."""
        given = self._given()
        return name if name in given else next((g for g in sorted(given) if name_key(g) == name_key(name)), None)


def _composed(name: str | None) -> str | None:
    """`name` in one of the two forms that Unicode has of an accented letter: NFC. None for an empty one."""
    return unicodedata.normalize("NFC", name) if name else None


def name_key(name: str) -> str:
    """`name` without the differences between spellings of one class: case, punctuation, the plural."""
    words = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", name)).casefold().split()
    return " ".join(
        word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
        for word in words
    )
