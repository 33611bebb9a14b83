"""The report as one HTML page that needs nothing beside it: tables with intervals, pictures inside, the command of
each."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labref.asking.agreement import Figure
from labref.asking.report import WIDEST
from training.measure.compare import compare_runs, format_estimate
from training.measure.sweep import SWEEPS
from training.report.blocks import TEMPLATES, Block, MadeBy, Missing, More, Picture, Section, Table, Text
from training.report.charts import Axis, Line, forest
from training.report.pictures import pyplot

__all__ = ["write_comparison", "write_page"]


@dataclass(frozen=True)
class _Run:
    """name : of the run's folder."""

    name: str
    sections: Sequence[Section]


def write_page(reports: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Write the page for one or more `training.report.collect.collect` results; returns `out`."""
    names = [str(report["run"]) for report in reports]
    runs = [_run(report, f"r{number}") for number, report in enumerate(reports)]
    comparison = _comparison(compare_runs(reports, names)) if len(reports) > 1 else []
    page = TEMPLATES.get_template("report.html").render(names=", ".join(names), runs=runs, comparison=comparison)
    out.write_text(page, encoding="utf-8")
    return out


def write_comparison(table: Mapping[str, Any], out: Path) -> Path:
    """Write `training.measure.compare.compare_runs`' table as a page; returns `out`."""
    page = TEMPLATES.get_template("comparison.html").render(comparison=_comparison(table))
    out.write_text(page, encoding="utf-8")
    return out


def _picture(figure: Any, alt: str, caption: str) -> Picture:
    file = io.BytesIO()
    figure.savefig(file, dpi=100, format="png")
    pyplot().close(figure)
    return Picture(base64.b64encode(file.getvalue()).decode(), alt, caption)


def _percent(estimate: Mapping[str, Any] | None) -> str:
    return format_estimate(estimate, 100.0, ".1f")


def _comparison(table: Mapping[str, Any]) -> list[Block]:
    figures = [
        (row["name"], *(format_estimate(v, row["factor"], row["format"]) for v in row["values"]))
        for row in table["figures"]
    ]
    parts: list[Block] = [Table("Figures", ["figure", *table["runs"]], figures)]
    if table["settings"]:
        rows = [(row["name"], *row["values"]) for row in table["settings"]]
        parts.append(Table("Settings that differ", ["setting", *table["runs"]], rows))
    if not table["same_split"]:
        parts.append(Text("The runs were measured on different splits: their figures do not compare.", "warning"))
    return parts


def _run(report: Mapping[str, Any], anchor: str) -> _Run:
    parts, split, command = report["parts"], report["split"], report["command"]
    sections: list[tuple[str, list[Block]]] = [
        ("Classifier", _classifier(parts["classifier"])),
        ("Classes and their imbalance", _classes(parts)),
        ("References: group, class and fine class; what experts see", _references(parts)),
        ("Invariance (ROTMES, table 6)", _rotmes(parts["rotmes"])),
        ("Principal components (section 4.4)", _pca(parts["pca"])),
        ("The latent space in two dimensions (figure 41)", _plane(parts["plane"])),
        ("References by latent and by map (table 10)", _map(parts)),
    ]
    for _, content in sections:
        content.append(MadeBy(command, split))
    for name, (title, _) in SWEEPS.items():
        sections.append((title, _sweep(name, parts["sweeps"].get(name, []), report)))
    sections.append(
        ("Settings by cross-validation: class against what experts see", _folds(parts.get("folds", []), report))
    )
    sections.append(("Optics never trained on", _unseen(parts.get("unseen", []), report)))
    if parts.get("labs"):
        sections.append(("Labs never trained on", _labs(parts["labs"])))
    if parts.get("shipped"):
        sections.append(("The shipped bundle", _shipped(parts["shipped"])))
    return _Run(
        str(report["run"]),
        [Section(f"{anchor}-{number}", title, blocks) for number, (title, blocks) in enumerate(sections)],
    )


def _curves(
    history: Sequence[Mapping[str, float]], panels: Sequence[tuple[str, str]], alt: str, caption: str
) -> Picture:
    figure, axes = pyplot().subplots(1, len(panels), figsize=(4.6 * len(panels), 3.2), layout="constrained")
    for axis, (key, title) in zip(axes, panels, strict=True):
        for column, label, style in ((key, "training", "-"), (f"validation_{key}", "validation", "--")):
            axis.plot([row["epoch"] for row in history], [row[column] for row in history], style, label=label)
        axis.set(xlabel="epoch", ylabel=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    return _picture(figure, alt, caption)


def _confusion(confusion: Mapping[str, Any], caption: str) -> Picture:
    counts, labels = np.array(confusion["counts"]), confusion["labels"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.4 + 0.55 * len(labels)
    figure, axis = pyplot().subplots(figsize=(side + 0.6, side), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axis.set_yticks(range(len(labels)), labels)
    axis.set(xlabel="predicted", ylabel="class given by people")
    for i, j in zip(*np.nonzero(counts), strict=True):
        axis.text(j, i, str(counts[i, j]), ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    worst = [
        f"{labels[i]} taken for {labels[j]} {counts[i, j]} times"
        for i, j in sorted(zip(*np.nonzero(counts - np.diag(np.diag(counts))), strict=True), key=lambda p: -counts[p])[
            :3
        ]
    ]
    alt = "Confusion matrix; " + ("; ".join(worst) if worst else "no cell was mistaken")
    return _picture(figure, alt, caption)


def _classifier(found: Mapping[str, Any]) -> list[Block]:
    rows = [
        ("accuracy (table 7: 0.937 on 19 classes)", format_estimate(found["accuracy"])),
        ("mean recall over classes", f"{found['balanced_accuracy']:.4f}"),
        ("images", found["accuracy"]["n"]),
    ]
    lines: list[Block] = [
        Table(f"Held-out cells ({found['part']})", ["figure", "value"], rows),
        _confusion(found["confusion"], "Confusion matrix, images (figures 53 to 55)"),
    ]
    if found["history"]:
        last = found["history"][-1]
        alt = f"Loss and accuracy by epoch; at the last, training loss {last['loss']:.3f}, validation loss {last['validation_loss']:.3f}"
        panels = (("loss", "loss"), ("accuracy", "accuracy"))
        lines.insert(1, _curves(found["history"], panels, alt, "Classifier (figures 39 and 40)"))
    if found["vae"]:
        last = found["vae"][-1]
        alt = f"VAE loss by epoch; at the last, training {last['loss']:.0f}, validation {last['validation_loss']:.0f}"
        panels = (("loss", "loss"), ("divergence", "KL divergence, nats"))
        lines.append(_curves(found["vae"], panels, alt, "VAE (figure 42)"))
    return lines


def _classes(parts: Mapping[str, Any]) -> list[Block]:
    counts = parts["classes"]["counts"]
    per_class = parts["space"]["precision_at_8"]["class"]["per_class"]
    rows = [
        (
            label,
            *(counts[part][label] for part in counts),
            f"{per_class[label]['precision']:.4f}" if label in per_class else "–",
        )
        for label in counts["train"]
    ]
    level = parts["space"]["precision_at_8"]["class"]
    return [
        Table("Images of each class", ["class", *counts, "precision@8"], rows),
        Text(
            f"The largest class has {parts['classes']['largest_to_smallest']:.1f} times the images of the smallest. Precision@8 is "
            f"{format_estimate(level['macro'])} as the mean over classes and {format_estimate(level['micro'])} over cells."
        ),
    ]


def _references(parts: Mapping[str, Any]) -> list[Block]:
    space = parts["space"]
    rows = [
        (level, format_estimate(found["macro"]), format_estimate(found["micro"]), len(found["per_class"]))
        for level, found in space["precision_at_8"].items()
        if found["macro"]
    ]
    body: list[Block] = [Table("Precision@8", ["level", "mean over its classes", "mean over cells", "classes"], rows)]
    if space.get("by_optics"):
        body.append(
            Table(
                "Class precision@8 of each optics, mean over its classes",
                ["optics", "queries", "references", "among all references", "among those of the same optics"],
                [
                    (
                        name,
                        f["n_queries"],
                        f["n_references"],
                        format_estimate(f["from_all"]),
                        format_estimate(f["from_own"]),
                    )
                    for name, f in space["by_optics"].items()
                ],
            )
        )
    fine = space["precision_at_8"]["fine"]["per_class"]
    body.append(
        Table(
            "Fine classes",
            ["class", "precision@8", "queries", "references"],
            [(name, f"{f['precision']:.4f}", f["n_queries"], f["n_references"]) for name, f in fine.items()],
        )
    )
    beyond = [("accuracy of the weighted vote of eight", format_estimate(space["knn_accuracy"]))]
    agreement = space.get("attribute_agreement_at_8")
    if agreement:
        beyond += [
            ("attribute agreement@8", format_estimate(agreement["references"])),
            ("… of random cells of the class", format_estimate(agreement["random_same_class"])),
            (
                "… share of the way to two experts’ agreement (0.961)",
                format_estimate(agreement["share_of_the_way"], 1, ".3f"),
            ),
        ]
    body.append(Table("Beyond the class", ["figure", "value"], beyond))
    if space.get("svomen"):
        body.append(_svomen(space["svomen"]))
    return body


def _svomen(found: Mapping[str, Any]) -> Table:
    named = found["set"]
    rows = [("all", found["svomen"]["triplets"], _percent(found["svomen"]))]
    rows += [(draw, e["triplets"], _percent(e)) for draw, e in found["by_draw"].items()]
    rows.append(
        ("both alternatives of the reference’s class", found["same_class"]["triplets"], _percent(found["same_class"]))
    )
    told = (
        f"Automatic SVOMEN (tables 8 and 9): set {named['digest'][:12]} of format {named['format_version']}, the right alternative "
        f"shares at least {named['margin']} of {named['of']} attributes more"
    )
    return Table(told, ["triplets", "n", "SVOMEN %"], rows)


def _rotmes(found: Mapping[str, Any] | None) -> list[Block]:
    if found is None:
        return [Text("Not measured: it needs whole pictures, and the run’s pool holds crops of them.")]
    rows = [
        (
            where,
            format_estimate(found[key]["rotmes"], 1, ".4g"),
            format_estimate(found[key]["per_random_pair"], 1, ".2g"),
        )
        for key, where in (("latents", "in the latents"), ("features", "at the break"))
    ]
    changes = found["overlap_at_8"]
    return [
        Table(f"ROTMES of {found['n']} images", ["where", "raw", "divided by that of random pairs"], rows),
        Table(
            "Each change alone",
            ["change", "latents, per random pair", "at the break, per random pair", "of eight references stay"],
            [
                (
                    name,
                    format_estimate(found["latents"]["by_change"][name], 1, ".2g"),
                    format_estimate(found["features"]["by_change"][name], 1, ".2g"),
                    format_estimate(changes[name], 1, ".2f"),
                )
                for name in changes
            ],
        ),
    ]


def _pca(found: Mapping[str, Any]) -> list[Block]:
    figure, axis = pyplot().subplots(figsize=(5, 3.2), layout="constrained")
    axis.plot(range(1, len(found["curve"]) + 1), found["curve"])
    axis.set(xlabel="components", ylabel="share of the variance kept", ylim=(0, 1))
    axis.grid(alpha=0.3)
    level = found["precision_at_8"]["class"]
    return [
        Text(
            f"{found['size']} components keep {found['kept']:.1%} of the variance and lose {1 - found['kept']:.1%} (the thesis’ lost "
            f"44 %). Class precision@8 by them: {format_estimate(level['macro'])}."
        ),
        _picture(figure, f"Variance kept rises to {found['kept']:.1%} at {found['size']} components", "Variance kept"),
    ]


def _plane(found: Mapping[str, Any]) -> list[Block]:
    points, labels = np.array(found["points"]), np.array(found["labels"])
    figure, axis = pyplot().subplots(figsize=(7.5, 5.2), layout="constrained")
    markers = "osD^vP*Xphd<>8"
    for number, label in enumerate(sorted(set(labels.tolist()))):
        chosen = labels == label
        style = {"marker": markers[number % len(markers)], "color": pyplot().cm.tab20(number % 20)}
        axis.scatter(points[chosen, 0], points[chosen, 1], s=12, label=label, linewidths=0, **style)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    axis.set(xlabel="first", ylabel="second")
    alt = f"{len(points)} held-out cells of {len(set(labels.tolist()))} classes in the plane, a marker and colour for each class"
    return [_picture(figure, alt, f"Held-out cells; {found['how']}")]


def _space_row(name: str, found: Mapping[str, Any]) -> tuple[Any, ...]:
    agreement, svomen = found.get("attribute_agreement_at_8", {}), found.get("svomen", {})
    return (
        name,
        format_estimate(found["precision_at_8"]["class"]["macro"]),
        format_estimate(found["precision_at_8"]["fine"]["macro"]),
        format_estimate(agreement.get("references")),
        _percent(svomen.get("svomen")),
        _percent(svomen.get("same_class")),
    )


_SPACE_HEAD = ("class precision@8", "fine precision@8", "attribute agreement@8", "SVOMEN %", "… within the class %")


def _map(parts: Mapping[str, Any]) -> list[Block]:
    found = parts["map"]
    quality = found["quality"]
    rows = [
        _space_row("by latent", parts["space"]),
        _space_row(f"by map, {found['rows']}×{found['columns']}", found),
        _space_row("by 50 principal components", parts["pca"]),
    ]
    return [
        Text(
            "The thesis let two people classify cells by their references: 48 and 51 of 100 right by latent, 35 and 39 by map. Here "
            "the references’ own labels are counted."
        ),
        Table("References by latent and by map", ["references", *_SPACE_HEAD], rows),
        Text(
            f"The map’s quantisation error is {quality['qe']:.3f}, its topographic error {quality['te']:.3f}, its trustworthiness "
            f"{quality['trustworthiness']:.3f}. In one node of the map alternatives are equally near and earn no point."
        ),
    ]


def _sweep(name: str, rows: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> list[Block]:
    wanted = SWEEPS[name][1]
    body: list[Block] = []
    if len(rows) < len(wanted):
        missing = [row.name for row in wanted if row.name not in {done["row"] for done in rows}]
        command = f"python -m training sweep {name} {report['folder']}"
        body.append(Missing(command, missing))
    if not rows:
        return body
    if "accuracy" in rows[0]:
        body.append(
            Table(
                "The classifier",
                [
                    "row",
                    "accuracy",
                    "mean recall",
                    "ROTMES of latents",
                    "… per random pair",
                    "… at the break, per random pair",
                ],
                [
                    (
                        f"{row['row']}: {row['what']}",
                        format_estimate(row["accuracy"]),
                        f"{row['balanced_accuracy']:.4f}",
                        format_estimate(row["rotmes"]["latents"]["rotmes"], 1, ".3g"),
                        format_estimate(row["rotmes"]["latents"]["per_random_pair"], 1, ".2g"),
                        format_estimate(row["rotmes"]["features"]["per_random_pair"], 1, ".2g"),
                    )
                    for row in rows
                ],
            )
        )
    head = ["row", *_SPACE_HEAD]
    lines = [list(_space_row(f"{row['row']}: {row['what']}", row)) for row in rows]
    if any("vae" in row for row in rows):
        head += ["validation loss", "reconstruction", "KL, nats"]
        for line, row in zip(lines, rows, strict=True):
            vae = row.get("vae", {})
            line += [
                f"{vae[key]:.1f}" if vae else "–"
                for key in ("validation_loss", "validation_reconstruction", "validation_divergence")
            ]
    body.append(Table("The latent space", head, lines))
    for row in rows:
        if "history" in row:
            last = row["history"][-1]
            alt = f"Row {row['row']}: loss and accuracy by epoch, validation accuracy {last['validation_accuracy']:.3f} at the last"
            body.append(Text(f"{row['row']}: {row['what']}", "heading"))
            body.append(
                _curves(row["history"], (("loss", "loss"), ("accuracy", "accuracy")), alt, f"{row['row']}, curves")
            )
            body.append(_confusion(row["confusion"], f"{row['row']}, confusion matrix"))
        if "variance_kept" in row:
            body.append(Text(f"{row['row']} keeps {row['variance_kept']:.1%} of the variance."))
    commands = dict.fromkeys(row["command"].split(" --row")[0] for row in rows)
    sizes = ", ".join(dict.fromkeys(row["size"] for row in rows))
    body.append(Text(f"Size: {sizes}.", "small"))
    body += [MadeBy(command, rows[0]["split"]) for command in commands]
    return body


def _folds(found: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> list[Block]:
    if not found:
        return [Missing(f"python -m training folds {report['folder']}")]
    body: list[Block] = [
        Text(
            "Each fold is asked about with networks trained on the others; the cells that the run holds out take no part. Attributes: the "
            "share of the way from random cells of the class to two experts. Won: minus the run’s own settings, over the same cells."
        )
    ]
    head = [
        "settings",
        "class precision@8",
        "… mean over cells",
        "attributes",
        "classifier",
        "won: precision",
        "won: attributes",
    ]
    for one in found:
        lines = [
            (
                row["row"] if row["done"] == one["folds"] else f"{row['row']} (only {row['done']} folds)",
                format_estimate(row["precision_at_8"]["macro"]),
                format_estimate(row["precision_at_8"]["micro"]),
                format_estimate(row["share_of_the_way"], 1, ".3f"),
                format_estimate(row["accuracy"]),
                format_estimate(row["won"].get("micro"), 1, "+.4f"),
                format_estimate(row["won"].get("share_of_the_way"), 1, "+.3f"),
            )
            for row in one["rows"]
        ]
        body.append(Table(f"{one['folds']} folds of {one['rows'][0]['cells']} cells", head, lines))
        body += _front(one["rows"])
        body.append(Text(f"Size: {one['size']}.", "small"))
        body.append(MadeBy(one["command"], one["split"]))
    return body


def _front(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Class precision against attributes of each row: where the two pull apart, no row lies above and to the right of a
    good one."""
    told = [row for row in rows if row["share_of_the_way"] is not None]
    if not told:
        return []
    points = [(row["precision_at_8"]["macro"], row["share_of_the_way"]) for row in told]
    figure, axis = pyplot().subplots(figsize=(8.5, 4.4 + 0.22 * len(told)), layout="constrained")
    best = [
        row["row"]
        for row, (x, y) in zip(told, points, strict=True)
        if not any(
            (a["value"] >= x["value"] and b["value"] > y["value"])
            or (a["value"] > x["value"] and b["value"] >= y["value"])
            for a, b in points
        )
    ]
    for number, (row, (x, y)) in enumerate(zip(told, points, strict=True), start=1):
        axis.errorbar(
            x["value"],
            y["value"],
            xerr=[[x["value"] - x["low"]], [x["high"] - x["value"]]],
            yerr=[[y["value"] - y["low"]], [y["high"] - y["value"]]],
            fmt="o" if row["row"] in best else "x",
            color=f"C{(number - 1) % 10}",
            elinewidth=0.6,
            label=f"{number} {row['row']}",
        )
        axis.annotate(str(number), (x["value"], y["value"]), xytext=(4, 4), textcoords="offset points")
    axis.set(xlabel="class precision@8, mean over classes", ylabel="attributes, share of the way to two experts")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower left", fontsize=8)
    alt = f"Class precision against attributes of {len(told)} settings; on the front: {', '.join(best)}"
    return [_picture(figure, alt, "Dots lie on the front: no other row is better in both. Bars: 95 % intervals.")]


def _unseen(rows: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> list[Block]:
    if not rows:
        return [Missing(f"python -m training unseen {report['folder']}")]
    lines = [
        (
            row["left"],
            f"{row['variant']}: {row['what']}",
            format_estimate(row["own_store"]["micro"]),
            format_estimate(row["own_store"]["macro"]),
            format_estimate(row["central_store"]["micro"]),
            format_estimate(row["won"]),
            format_estimate(row["accuracy"]),
        )
        for row in rows
    ]
    head = [
        "left out",
        "variant",
        "own store",
        "… mean over classes",
        "central store",
        "own cells win by",
        "classifier",
    ]
    sizes = ", ".join(dict.fromkeys(row["size"] for row in rows))
    body: list[Block] = [
        Text(
            "Networks trained on every other domain; class precision@8 of the cells of the one that was left out, with references "
            "from its own store (leave-one-out) and from the cells trained on. Classes of fewer than nine cells are not in the mean "
            "over classes."
        ),
        Table("Leave one optics out", head, lines),
        Text(f"Size: {sizes}.", "small"),
    ]
    splits = {(row["command"], row["split"]): None for row in rows}
    return body + [MadeBy(command, split) for command, split in splits]


def _labs(found: Mapping[str, Any]) -> list[Block]:
    variants = list(dict.fromkeys(row["variant"] for row in found["labs"]))
    letters = {variant: (chr(ord("A") + number), number) for number, variant in enumerate(variants)}
    lines, rows = [], []
    for row in found["labs"]:
        own = row["own_store"]["macro"] or row["own_store"]["micro"]
        figure = Figure(own["value"], own["low"], own["high"], own["n"])
        seeds = f", {len(row['seeds'])} seeds" if len(row["seeds"]) > 1 else ""
        few = figure.high is not None and figure.low is not None and figure.high - figure.low > WIDEST
        lines.append(
            Line(
                row["left"],
                letters[row["variant"]],
                figure,
                f"{format_estimate(own, 1, '.3f')}, n = {own['n']}{seeds}",
                few,
            )
        )
        for kind in ("by_optics", "by_class"):
            for name, one in row["own_store"][kind].items():
                estimate = one["micro"] if kind == "by_optics" else one
                central = row["central_store"][kind][name]
                unknown = " (never trained on)" if name in row["not_trained_on"] else ""
                rows.append(
                    (
                        f"{row['left'][:8]}: {name}{unknown}",
                        row["variant"],
                        format_estimate(estimate, 1, ".3f"),
                        format_estimate(central["micro"] if kind == "by_optics" else central, 1, ".3f"),
                        estimate["n"],
                    )
                )
    means = [
        (
            f"{letters[row['variant']][0]} {row['variant']}",
            row["labs"],
            *(format_estimate(row[key]) for key in ("own_store", "central_store", "won", "accuracy")),
        )
        for row in found["means"]
    ]
    axis = Axis(0.0, 1.0, [(value, f"{value:.2f}") for value in (0.0, 0.25, 0.5, 0.75, 1.0)])
    told = "; ".join(f"{line.label}: {line.said}" for line in lines)
    return [
        Text(
            "Networks trained on all other labs; each cell of the lab that was left out is asked once, with its own store as references. "
            "Class precision@8, mean over classes of at least nine cells; grey: too few cells to trust it."
        ),
        forest("Leave one lab out, own store", told, lines, axis),
        Table(
            "Mean over labs, each alike",
            ["variant", "labs", "own store", "central store", "own cells win by", "classifier"],
            means,
        ),
        More(
            "by optics and by class",
            [Table("By optics and by class", ["", "variant", "own store", "central store", "n"], rows)],
        ),
        *(Text(f"The lab {lab} is not judged: {why}.", "warning") for lab, why in found["not_judged"].items()),
        Text(f"Size: {found['size']}. Made by {found['command']}.", "small"),
    ]


def _shipped(found: Mapping[str, Any]) -> list[Block]:
    rows = [
        ("class precision@8, mean over classes", f"{found['precision_at_8']['macro']:.4f}"),
        ("class precision@8, mean over cells", f"{found['precision_at_8']['micro']:.4f}"),
        *((f"of eight stay, {name}", f"{value:.2f}") for name, value in found.get("rotation_overlap_at_8", {}).items()),
        *(
            (f"attribute agreement, {name}", f"{value:.4g}")
            for name, value in found.get("attribute_agreement_at_8", {}).items()
        ),
    ]
    return [
        Text(
            f"Model {found['model_version']}, {found['n_queries']} queries against {found['n_references']} references, through "
            "the code that a lab runs."
        ),
        Table("Shipped bundle", ["figure", "value"], rows),
        MadeBy(found["command"], found["queries_digest"]),
    ]
