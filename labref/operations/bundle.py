"""`labref bundle`: install, verify, activate, roll back and drop bundles."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from labref.asking.answer import open_embedder, withheld
from labref.asking.change import describe
from labref.bundles.bundle import Bundle, remove, starter_bundle, unpacked
from labref.bundles.proof import prove
from labref.bundles.trial import tried
from labref.errors import BundleError, LabrefError
from labref.lab import Lab
from labref.lab.trust import Standing, bring_in, forget, holds_still, require_usable, standing, trust_of
from labref.operations import operation
from labref.operations.models import Answer, BundleName, BundleSignature, FilePath, Progress, Text
from labref.operations.naming import NoSuchNameError
from labref.progress import Row, progress
from labref.roles import Role
from labref.store import Store
from labref.tasks.context import Context
from labref.tasks.jobs import Job, Jobs, Running
from labref.tasks.reembedding import catch_up, compare, embed_left, installed, switch
from labref.times import local, utc

__all__ = [
    "JOB",
    "BundleCancelled",
    "BundleCard",
    "BundleChange",
    "BundleDropped",
    "BundleFaulty",
    "BundleRow",
    "BundleSound",
    "BundleSwitched",
    "CellNotEmbedded",
    "ChangeReport",
    "ClassChange",
    "due",
]

JOB: Final = "bundle"
"""Name of the agent's job that embeds cells again."""
_STARTER: Final = "starter"
"""Stands for the bundle that comes with labref, where a file is asked for."""
_LEAST_WAITING: Final = 64  # so many new cells have to come before an agent opens the networks of a bundle that waits
_AFTER_FAILURE: Final = timedelta(seconds=60)
_LEAST_SLICE_SECONDS: Final = 30.0
_FRESH_SECONDS: Final = 10.0  # a batch may still be recorded in the space of the bundle before
_LEAST_DIGEST: Final = 4  # characters


class BundleRow(Answer):
    """A bundle that is installed, or has latents in the store."""

    digest: str = Field(description="SHA-256 of its manifest, 64 hexadecimal characters.")
    name: str = Field(description="Its name.")
    version: str = Field(description="Its version.")
    state: Literal["active", "changing", "kept", "installed"] = Field(
        description="`active`: it answers; `changing`: a change to it is under way; `kept`: it has latents; `installed`: "
        "it has none."
    )
    installed: bool = Field(description="False where its files are gone or cannot be used.")
    cells: int | None = Field(description="Cells with a latent in its space; null where it has no space yet.")
    failed: int = Field(description="Cells that cannot be embedded by it.")
    active_since: str | None = Field(description="When it became active, ISO 8601, UTC; null where it is not active.")
    latent_size: int = Field(description="Numbers in a latent.")
    labels: list[str] = Field(description="Its classes.")
    signature: BundleSignature = Field(description="Why it is in the lab.")


class BundleSound(Answer):
    """A bundle that passed the check."""

    bundle: BundleName
    provider_line: str = Field(description="Where the networks were run, and why.")
    difference: float = Field(description="Largest difference from the golden outputs.")
    allowed: float = Field(description="The largest difference that is allowed.")
    signature: BundleSignature = Field(description="Who signed it; of an installed one, why it is in the lab.")


class BundleFaulty(Answer):
    """A bundle that failed the check: `bundle`, or `folder` where the folder holds no readable bundle."""

    bundle: BundleName | None = None
    folder: str | None = Field(None, description="Name of the folder.")
    problem: str = Field(description="What is wrong.")


class BundleCard(Answer):
    """What a bundle says of itself."""

    bundle: BundleName
    card: str = Field(description="Its model card, Markdown, without characters that a terminal would obey.")


class CellNotEmbedded(Answer):
    """A cell that a bundle cannot embed."""

    cell_id: str = Field(description="The cell.")
    reason: str = Field(description="Why.")


class ClassChange(Answer):
    """How the references of one class change."""

    cells: int = Field(description="Cells of the class.")
    sampled: int = Field(description="Cells whose references were compared.")
    changed: float = Field(description="How many of a cell's eight references change, mean over its cells.")
    same_class_before: float = Field(
        description="Share of the eight references that have the cell's own class, before."
    )
    same_class_after: float = Field(description="The same share, after.")


class ChangeReport(Answer):
    """How the references of the lab's own cells change with another bundle."""

    cells: int = Field(description="Cells of the lab.")
    sampled: int = Field(description="Cells whose references were compared.")
    changed: float | None = Field(
        None, description="How many of eight references change: mean over all cells, classes weighted by their size."
    )
    same_class_before: float | None = Field(
        None, description="Share of the eight references that have the cell's own class, before."
    )
    same_class_after: float | None = Field(None, description="The same share, after.")
    classes: dict[str, ClassChange] = Field(description="The same of each class.")
    problem: str | None = Field(
        None, description="Why nothing could be compared: the bundle in use cannot be opened. Else absent."
    )


class BundleChange(Answer):
    """How the change to a bundle stands."""

    bundle: BundleName = Field(description="The bundle.")
    state: Literal["active", "re-embedding", "comparing", "held", "ready", "none"] = Field(
        description="`held`: some cells cannot be embedded; `ready`: to be switched; `none`: no change is under way."
    )
    cells: int = Field(description="Cells of the lab.")
    embedded: int = Field(description="Those with a latent in the bundle's space.")
    failed: int = Field(description="Those that cannot be embedded.")
    failures: list[CellNotEmbedded] = Field(description="The first of these.")
    switch: bool = Field(description="Whether it switches by itself once all cells are embedded.")
    report: ChangeReport | None = Field(description="How references change; null until all cells are embedded.")


class BundleCancelled(Answer):
    """A change that was given up."""

    cancelled: BundleChange


class BundleSwitched(Answer):
    """The bundle that answers from now on."""

    switched: BundleChange


class BundleDropped(Answer):
    """A bundle whose latents were deleted."""

    dropped: BundleName
    cells: int = Field(description="Latents deleted.")


_Wait = Annotated[bool, Field(description="Wait until it is done. Without an agent the operation always waits.")]
_Unsigned = Annotated[
    bool,
    Field(description="Take it in although nobody signed it. A signature that does not hold is refused all the same."),
]
_Bundle = Annotated[
    Text, Field(description="Name, name/version, digest, or the beginning of a digest, 4 characters or more.")
]


@operation("bundle.install", BundleRow)
def install_bundle(
    context: Context,
    *,
    file: Annotated[
        FilePath,
        Field(description="The bundle file, its absolute path; `starter` for the one that comes with this labref."),
    ],
    unsigned: _Unsigned = False,
) -> Iterator[Row]:
    """Verify a bundle file and who signed it, run its golden cells on this computer, and install it in the lab. It is
    not used until it is activated.

    It has to be signed by a key that the lab trusts (`key.list`), or by one that such a key says took over from it; and
    no bundle of its name with a larger number may have come in.
    """
    lab = context.lab
    bundle = bring_in(
        context.store,
        starter_bundle() if file == _STARTER else Path(file),
        lab.bundles,
        unsigned=unsigned,
        check=lambda made: prove(made, lab.folder, lab.inference),
    )
    yield _row(context, bundle.digest, bundle)


@operation("bundle.verify", BundleSound, BundleFaulty)
def verify(
    context: Context,
    *,
    file: Annotated[
        FilePath | None, Field(description="A bundle file, its absolute path; without it, all installed bundles.")
    ] = None,
    unsigned: _Unsigned = False,
) -> Iterator[Row]:
    """Verify a bundle file, or every installed bundle. Somebody whom the lab trusts signed it, every file has its
    digest, and the networks give their golden outputs.

    The networks are run on this computer. There is a row for each bundle; a bundle that fails has a `problem`, and so
    has the active one where it is not installed any more.
    """
    if file is not None:
        with unpacked(Path(file), trust_of(context.store, unsigned=unsigned)) as (bundle, verdict):
            signed = verdict.signature
            found = Standing("unsigned") if signed is None else Standing("signed", verdict.key, signed.number)
            yield _verified(context, bundle, found)
        return
    folders = _folders(context.lab)
    active = context.store.active_bundle()
    if active is not None and active[:12] not in {folder.name for folder in folders}:
        folders.append(context.lab.bundles / active[:12])
    for folder in folders:
        try:
            bundle = Bundle.in_its_folder(folder)
            require_usable(context.store, bundle)
            holds_still(context.store, bundle)
            yield _verified(context, bundle, standing(context.store, bundle.digest))
        except BundleError as error:
            yield {"folder": folder.name, "problem": str(error)}


@operation("bundle.list", BundleRow, role=Role.VIEW)
def list_bundles(context: Context) -> Iterator[Row]:
    """List every bundle that is installed, or has latents in the store."""
    bundles: dict[str, Bundle | None] = {}
    for folder in _folders(context.lab):
        with contextlib.suppress(BundleError):
            found = Bundle.in_its_folder(folder)
            bundles[found.digest] = found
    for stored in context.store.bundles():
        bundles.setdefault(stored.digest, None)
    for digest, bundle in bundles.items():
        yield _row(context, digest, bundle)


@operation("bundle.show", BundleCard, role=Role.VIEW)
def show(
    context: Context,
    *,
    bundle: Annotated[
        Text | None,
        Field(
            description="Name, name/version, or the beginning of a digest, 4 characters or more; null: the active one."
        ),
    ] = None,
) -> Iterator[Row]:
    """Show the model card of an installed bundle: what it is for, what it was trained on, how it was measured."""
    chosen = context.lab.bundle(context.store) if bundle is None else find(context, bundle)
    named = {"name": chosen.manifest.name, "version": chosen.manifest.version, "digest": chosen.digest}
    yield {"bundle": named, "card": chosen.model_card()}


@operation("bundle.activate", Progress, BundleChange)
def activate(
    context: Context,
    *,
    bundle: _Bundle,
    yes: Annotated[bool, Field(description="Switch as soon as all cells are embedded.")] = False,
    switch_now: Annotated[
        bool,
        Field(description="Switch: the report was read. It is an error where no change to the bundle is under way."),
    ] = False,
    leave_out: Annotated[bool, Field(description="Switch although some cells cannot be embedded.")] = False,
    wait: _Wait = False,
) -> Iterator[Row]:
    """Change to a bundle. Every cell is embedded in its space, a report says how references change, and the lab
    switches to it where that is asked for.

    The last row says how the change stands.
    """
    store = context.store
    chosen = find(context, bundle, other=True)
    pending = store.changes.pending()
    if store.active_bundle() == chosen.digest:
        if pending is not None:
            raise LabrefError(
                f"bundle {chosen.short} is the active one, and a change to {pending.digest[:12]} is under way; "
                "`labref bundle rollback` gives that up."
            )
        if store.changes.coverage(chosen.digest).failed:
            store.changes.retry(chosen.digest)
        yield from _work(context, wait=wait)
        yield describe(context.store, chosen.digest)
        return
    if switch_now:
        require_usable(store, chosen)
        store.changes.want_switch(chosen.digest, leave_out=leave_out)
    else:
        require_usable(store, chosen)
        prove(chosen, context.lab.folder, context.lab.inference)  # else nothing is begun
        manifest = chosen.manifest
        store.add_bundle(
            chosen.digest,
            name=manifest.name,
            version=manifest.version,
            latent_size=manifest.latent_size,
            labels=manifest.labels,
        )
        by_itself = yes or context.lab.config.bundles.switch_when_ready
        store.changes.wish(chosen.digest, switch=by_itself)
        if leave_out:
            store.changes.want_switch(chosen.digest, leave_out=True)
    yield from _work(context, wait=wait or switch_now)
    yield describe(context.store, chosen.digest)


@operation("bundle.rollback", BundleCancelled, BundleSwitched, Progress, BundleChange)
def rollback(context: Context, *, wait: _Wait = False) -> Iterator[Row]:
    """Give up the change that is under way; where none is, go back to the bundle that was active before, at once.

    Cells that came since the switch have no latent in the old space yet; they are embedded there afterwards. The first
    row says what was done. The last row says how the change stands.
    """
    store = context.store
    pending = store.changes.pending()
    if pending is not None:
        store.changes.cancel()
        yield {"cancelled": describe(context.store, pending.digest)}
        yield describe(context.store, pending.digest)
        return
    active = store.active_bundle()
    kept = {bundle.digest for bundle in store.bundles()}
    before = [digest for digest, _ in store.changes.activations() if digest != active and digest in kept]
    if not before:
        raise LabrefError("there is no bundle to go back to: none was active before, or its latents were dropped.")
    chosen = installed(context.lab, before[-1])
    store.changes.retry(chosen.digest)
    switch(context, chosen, complete=False)
    yield {"switched": describe(context.store, chosen.digest)}
    yield from _work(context, wait=wait)
    yield describe(context.store, chosen.digest)


@operation("bundle.drop", BundleDropped)
def drop(context: Context, *, bundle: _Bundle) -> Iterator[Row]:
    """Delete the latents of a bundle that is not active, and its installed files."""
    store = context.store
    digest, name, version = _named(context, bundle)
    if store.changes.seconds_since_switch() < _FRESH_SECONDS and context.jobs is not None:
        raise LabrefError(f"the bundle was switched just now; drop in {_FRESH_SECONDS:.0f} seconds.")
    cells = 0
    if any(stored.digest == digest for stored in store.bundles()):
        cells = store.changes.coverage(digest).embedded
        store.drop_index(digest)
        store.changes.drop(digest)
    elif digest == store.active_bundle():
        raise LabrefError(f"bundle {digest[:12]} is the active one and cannot be dropped.")
    remove(context.lab.bundles, digest)
    forget(store, digest)
    yield {"dropped": {"name": name, "version": version, "digest": digest}, "cells": cells}


def find(context: Context, wanted: str, *, other: bool = False) -> Bundle:
    """The installed bundle of that name, name/version, digest or beginning of one (4 characters or more), verified.

    other : where two bundles fit and one is active, the other one is returned.
    """
    digest, _, _ = _named(context, wanted, other=other)
    return installed(context.lab, digest)


def due(context: Context) -> Job | None:
    """The agent's job where cells have to be embedded again, or a switch was asked for; else None."""
    assert context.jobs is not None
    if context.jobs.has(JOB) or context.jobs.failed_within(JOB, _AFTER_FAILURE):
        return None
    return Job(JOB, lambda running: _job(context, running)) if _wanted(context.store) else None


def _wanted(store: Store) -> bool:
    active = store.active_bundle()
    if active is not None and store.changes.coverage(active).missing:
        return True
    pending = store.changes.pending()
    if pending is None:
        return False
    coverage = store.changes.coverage(pending.digest)
    if pending.report is None or coverage.missing >= _LEAST_WAITING:
        return True
    return pending.switch and (not coverage.failed or pending.leave_out)


def _job(context: Context, running: Running) -> None:
    with context.turns.changing():
        for row in _steps(context, running, shared=context.jobs):
            said = row["progress"]
            running.report(said["done"], said["total"], said["text"])


def _work(context: Context, *, wait: bool) -> Iterator[Row]:
    """Let the agent do what is due, or do it here where no agent runs. wait : return only when it is done."""
    if context.jobs is None:
        yield from _steps(context, None, shared=None)
        return
    context.jobs.submit(Job(JOB, lambda running: _job(context, running)))
    while wait:
        state = context.jobs.status()
        running = state["running"]
        if running is not None and running["name"] == JOB:
            yield progress(running["done"], running["total"], running["text"])
        elif not context.jobs.has(JOB):
            ended = state["ended"].get(JOB)
            if ended is not None and ended["outcome"] == "failed":
                raise LabrefError(ended["message"])
            if not _wanted(context.store) or (ended is not None and ended["outcome"] == "stopped"):
                return
            context.jobs.submit(Job(JOB, lambda running: _job(context, running)))
        else:
            yield progress(0, 0, "waiting for other work of the agent")
        time.sleep(0.5)


def _steps(context: Context, running: Running | None, *, shared: Jobs | None) -> Iterator[Row]:
    """Do what is due, as far as possible, and yield progress. shared : stop when other jobs wait; a later job
    continues."""
    lab, store = context.lab, context.store
    started = time.monotonic()

    def ended() -> bool:
        return running is not None and running.stopped

    def stopped() -> bool:
        busy = shared is not None and shared.status()["waiting"]
        return ended() or (bool(busy) and time.monotonic() - started > _LEAST_SLICE_SECONDS)

    def given_up() -> bool:
        now = store.changes.pending()
        return ended() or now is None or now.digest != digest

    def embed_again() -> Generator[Row, None, bool]:
        yield progress(0, 0, "opening the networks")
        with open_embedder(lab, bundle) as embedder:
            embedder.golden_difference()  # raises before hours of work on a computer that runs the networks wrongly
            return (yield from catch_up(context, embedder, stopped=lambda: stopped() or given_up()))

    active = store.active_bundle()
    assert active is not None
    # a bundle that cannot be used does not hinder the change to another
    yield from embed_left(context, stopped=stopped)
    pending = store.changes.pending()
    if pending is None or stopped():
        return
    digest = pending.digest
    bundle = installed(lab, digest)
    require_usable(store, bundle)  # its key may have been revoked since
    if store.changes.coverage(digest).missing and not (yield from embed_again()):
        return
    if pending.report is None:
        yield progress(0, 0, "building the index of the new space")
        store.build_index(active)
        store.build_index(digest)
        left_out = withheld(lab, store)
        report: Row | None
        try:
            before = installed(lab, active)
        except BundleError as error:  # this labref may not know its preparation, or its files may be gone
            report = {"cells": store.changes.coverage(digest).cells, "sampled": 0, "classes": {}, "problem": str(error)}
        else:
            # to its end, though other jobs wait: nothing is kept of half a comparison
            report = yield from compare(store, before, bundle, stopped=given_up, withheld=left_out)
        if report is None:
            return
        store.changes.report(digest, report)
    pending = store.changes.pending()
    if pending is None or pending.digest != digest or not pending.switch:
        return
    # those that came meanwhile: nothing new is stored while the last few are embedded
    if store.changes.coverage(digest).missing >= _LEAST_WAITING and not (yield from embed_again()):
        return
    if pending.leave_out or not store.changes.coverage(digest).failed:
        yield progress(0, 0, "switching")
        switch(context, bundle, complete=True)


def _row(context: Context, digest: str, bundle: Bundle | None) -> Row:
    store = context.store
    stored = next((known for known in store.bundles() if known.digest == digest), None)
    coverage = None if stored is None else store.changes.coverage(digest)
    pending = store.changes.pending()
    state = "installed" if stored is None else "kept"
    if digest == store.active_bundle():
        state = "active"
    elif pending is not None and pending.digest == digest:
        state = "changing"
    since = [at for activated, at in store.changes.activations() if activated == digest]
    known = bundle.manifest if bundle is not None else stored
    assert known is not None
    return {
        "digest": digest,
        "name": known.name,
        "version": known.version,
        "state": state,
        "installed": bundle is not None,
        "cells": None if coverage is None else coverage.embedded,
        "failed": 0 if coverage is None else coverage.failed,
        "active_since": utc(since[-1], timespec="seconds") if state == "active" else None,
        "latent_size": known.latent_size,
        "labels": list(known.labels),
        "signature": standing(store, digest).to_json(),
    }


def _verified(context: Context, bundle: Bundle, found: Standing) -> Row:
    row: Row = {
        "bundle": {"name": bundle.manifest.name, "version": bundle.manifest.version, "digest": bundle.digest},
    }
    try:
        shown = tried(bundle, context.lab.inference)
    except BundleError as error:
        return row | {"problem": str(error)}
    row |= {"provider_line": shown.provider_line, "difference": shown.difference}
    return row | {"allowed": bundle.manifest.golden_tolerance, "signature": found.to_json()}


def _folders(lab: Lab) -> list[Path]:
    if not lab.bundles.exists():  # each bundle of the store is then said to be missing, with the ways out
        return []
    return sorted(folder for folder in lab.bundles.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _named(context: Context, wanted: str, *, other: bool = False) -> tuple[str, str, str]:
    """Digest, name and version of the one bundle that `wanted` names. other : where two bundles fit and one of them is
    active, the other one is returned. Raises `LabrefError` where no bundle fits, or several do."""
    known: dict[str, tuple[str, str]] = {}
    for folder in _folders(context.lab):
        with contextlib.suppress(BundleError):
            bundle = Bundle.in_its_folder(folder)
            known[bundle.digest] = (bundle.manifest.name, bundle.manifest.version)
    for stored in context.store.bundles():
        known.setdefault(stored.digest, (stored.name, stored.version))
    matching = [
        (digest, name, version)
        for digest, (name, version) in known.items()
        if wanted in (name, f"{name}/{version}") or (len(wanted) >= _LEAST_DIGEST and digest.startswith(wanted.lower()))
    ]
    active = context.store.active_bundle()
    if other and len(matching) == 2 and any(digest == active for digest, _, _ in matching):
        matching = [one for one in matching if one[0] != active]
    if len(matching) == 1:
        return matching[0]
    if matching:
        listed = "; ".join(
            f"{digest[:12]} ({name}/{version}, {_dated(context, digest)})" for digest, name, version in matching
        )
        raise LabrefError(
            f"{wanted!r} names several bundles; name the one you mean by the beginning of its digest, as "
            f"{matching[0][0][:12]}: {listed}. `labref bundle show DIGEST` says what each is."
        )
    listed = ", ".join(f"{name}/{version} ({digest[:12]})" for digest, (name, version) in known.items())
    raise NoSuchNameError(
        f"{wanted!r} names no bundle of this lab; name one of {listed}, or bring one in with `labref bundle install FILE`."
    )


def _dated(context: Context, digest: str) -> str:
    """When a bundle was installed or became active, as words for people."""
    parts = []
    with contextlib.suppress(OSError):
        seconds = (context.lab.bundles / digest[:12]).stat().st_mtime
        parts.append(f"installed {local(utc(datetime.fromtimestamp(seconds, UTC)), day=True)}")
    since = [at for activated, at in context.store.changes.activations() if activated == digest]
    if since:
        how = "active since" if digest == context.store.active_bundle() else "last activated"
        parts.append(f"{how} {local(utc(since[-1]), day=True)}")
    return ", ".join(parts) or "its files are gone"
