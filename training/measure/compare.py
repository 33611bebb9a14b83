"""Runs side by side: figures with their intervals, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["FIGURES", "compare_runs", "format_estimate", "show"]

FIGURES: tuple[tuple[str, str, tuple[str, ...], float, str], ...] = (
    ("classifier accuracy, held out", "higher", ("classifier", "accuracy"), 1.0, ".4f"),
    ("class precision@8, mean over classes", "higher", ("space", "precision_at_8", "class", "macro"), 1.0, ".4f"),
    ("class precision@8, mean over cells", "higher", ("space", "precision_at_8", "class", "micro"), 1.0, ".4f"),
    ("group precision@8, mean over groups", "higher", ("space", "precision_at_8", "group", "macro"), 1.0, ".4f"),
    ("fine-class precision@8, mean over classes", "higher", ("space", "precision_at_8", "fine", "macro"), 1.0, ".4f"),
    ("accuracy of the weighted vote of eight", "higher", ("space", "knn_accuracy"), 1.0, ".4f"),
    ("attribute agreement@8", "higher", ("space", "attribute_agreement_at_8", "references"), 1.0, ".4f"),
    (
        "… as a share of the way to two experts",
        "higher",
        ("space", "attribute_agreement_at_8", "share_of_the_way"),
        1.0,
        ".3f",
    ),
    ("automatic SVOMEN, %", "higher", ("space", "svomen", "svomen"), 100.0, ".1f"),
    ("… both alternatives of the class, %", "higher", ("space", "svomen", "same_class"), 100.0, ".1f"),
    ("ROTMES of latents, per random pair", "lower", ("rotmes", "latents", "per_random_pair"), 1.0, ".2g"),
    ("of eight stay, turned 37°", "higher", ("rotmes", "overlap_at_8", "turned 37°"), 1.0, ".2f"),
    ("class precision@8 by map", "higher", ("map", "precision_at_8", "class", "macro"), 1.0, ".4f"),
    ("class precision@8 by PCA", "higher", ("pca", "precision_at_8", "class", "macro"), 1.0, ".4f"),
)
"""Name, which way is better, where it lies in a report's parts, factor and format, of the figures that runs are
compared by."""


def find(parts: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any] | None:
    """The estimate at `path` of a report's parts, or None."""
    place: Any = parts
    for key in path:
        place = place.get(key) if isinstance(place, Mapping) else None
    return place if isinstance(place, dict) and "value" in place else None


def format_estimate(estimate: Mapping[str, Any] | None, factor: float = 1.0, form: str = ".4f") -> str:
    """`0.9860 (0.9800 to 0.9910)`; a dash where there is none."""
    if estimate is None:
        return "–"
    value, low, high = (format(factor * estimate[key], form) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def compare_runs(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The table as plain JSON values: `runs`, `figures`, `settings` (only those that differ), `same_split`."""
    flat = [_flatten(report["config"]) for report in reports]
    keys = sorted({key for config in flat for key in config})
    figures: list[dict[str, Any]] = [
        {
            "name": name,
            "better": better,
            "factor": factor,
            "format": form,
            "values": [find(report["parts"], path) for report in reports],
        }
        for name, better, path, factor, form in FIGURES
    ]
    return {
        "runs": list(names),
        "splits": [report["split"] for report in reports],
        "same_split": len({report["split"] for report in reports}) == 1,
        "figures": [row for row in figures if any(value is not None for value in row["values"])],
        "settings": [
            {"name": key, "values": [config.get(key) for config in flat]}
            for key in keys
            if len({repr(config.get(key)) for config in flat}) > 1
        ],
    }


def _flatten(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flatten(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


def show(table: Mapping[str, Any]) -> None:
    """Print the table."""
    lines = Table("figure, 95 %", *table["runs"])
    for row in table["figures"]:
        lines.add_row(row["name"], *(format_estimate(v, row["factor"], row["format"]) for v in row["values"]))
    lines.add_section()
    for row in table["settings"]:
        lines.add_row(row["name"], *(str(value) for value in row["values"]))
    console = Console()
    console.print(lines)
    if not table["same_split"]:
        console.print("The runs were measured on different splits: their figures do not compare.")
