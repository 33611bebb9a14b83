"""Running the demo: a new lab, a real agent beside a simulated analyser, queries over HTTP, and a summary."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import webbrowser
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import typer

from labref.cli._shared import program, quoted
from labref.cli.query import draw_grid
from labref.demo.analyser import LAYOUT, FolderSource, Source, Specimen, SyntheticSource, exports, put
from labref.demo.central import CENTRAL_CELLS, with_drawn_atlas
from labref.errors import AgentError, LabrefError
from labref.lab import Lab, absolute
from labref.web.client import AgentClient
from labref.web.desk import ask, ledger_rows, run, status

__all__ = ["Account", "show"]

_START_SECONDS_MOST: Final = 160.0  # for the agent to start
_STILL_SECONDS_MOST: Final = 180.0  # without one more file taken in: a computer with other work is slow, and not stuck
_TELL_SECONDS: Final = 10.0
_EXPORT_SECONDS_MOST: Final = 100.0  # after this the analyser stops, even with files left to export
_PACE_SECONDS: Final = 0.125  # seconds between two cells; fewer where there are many cells
_PACED_SECONDS_MOST: Final = 20.0
_QUERIES: Final = 8

Say = Callable[[str], None]


@dataclass
class Account:
    """The results of a demo.

    written : number of files that the analyser wrote, by kind.  outcomes : number of files by outcome.  rejected :
    (file name, reason).  alike : share (0 to 1) of the queries' references that have the query's class; None where
    classes are unknown.  central : of these references, how many are cells of the bundle's atlas.  grids : pictures of
    the answers.
    """

    folder: Path
    written: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    alike: float | None = None
    central: int = 0
    grids: list[Path] = field(default_factory=list)


def show(
    *, images: Path | None, keep: Path | None, cells: int, seed: int, pages: bool = False, say: Say = typer.echo
) -> Account:
    """Run the whole demo, and report it line by line through `say`.

    images : folder of real images, or None for drawn cells.  keep : new or empty folder for the demo's files; None for
    a temporary one.  cells : number of cells that the analyser exports.  pages : open the lab's pages in the browser at
    the end, and serve them until Ctrl-C.

    Raises `LabrefError` where a step fails, or a file of the analyser does not have exactly one outcome at the end.
    """
    with _no_settings_from_outside(), _ended_in_order_when_killed():
        return _show(images, keep, cells, seed, pages, say)


def _show(images: Path | None, keep: Path | None, cells: int, seed: int, pages: bool, say: Say) -> Account:
    started = time.monotonic()
    source: Source = SyntheticSource(seed=seed) if images is None else FolderSource(images, seed=seed)
    folder = _folder(keep)
    account = Account(folder)
    export = folder / "export"
    export.mkdir()
    say(f"A lab and an export folder of their own, in {folder}")
    bundle = None
    if images is None:
        say(
            f"Its bundle also brings {CENTRAL_CELLS} cells of each class from elsewhere, drawn as a third microscope shows them."
        )
        bundle = with_drawn_atlas(folder / "bundle", seed=seed)
    lab = Lab.create(folder / "lab", [export], bundle, unsigned=bundle is not None)
    with lab.config_file.open("a", encoding="utf-8") as config:
        config.write(LAYOUT)
    lab = Lab.open(lab.folder)

    unseen = list(source.take(_QUERIES))
    with _agent(lab, folder / "agent.txt") as agent:
        found = status(lab)
        say(f"The agent runs (process {agent.pid}): {found['provider_line']}")
        what = "drawn cells" if images is None else f"real cells from {images}"
        say(f"\nThe analyser exports {cells} {what}, a few copies, and files that are no use ...")
        files = _export(source, unseen, lab, export, account, cells, seed, say)
        say("The analyser is done; the agent takes in the last files ...")
        _wait_for_outcomes(lab, files, lambda: _still_running(agent, folder / "agent.txt"), say)
        _tell_outcomes(lab, files, account, say)
        _ask(lab, unseen, account, say)
        if pages:
            _open_pages(lab, agent, folder / "agent.txt", say)
    say(f"\nThe agent was asked to end, and did. All of it took {time.monotonic() - started:.0f} s.")
    _next_steps(lab, account, say)
    return account


@contextmanager
def _no_settings_from_outside() -> Iterator[None]:
    """The environment without the LABREF_ variables of a real lab: the demo must watch only its own folder."""
    set_aside = {name: os.environ.pop(name) for name in list(os.environ) if name.upper().startswith("LABREF_")}
    try:
        yield
    finally:
        os.environ.update(set_aside)


@contextmanager
def _ended_in_order_when_killed() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does, so that its agent does not stay running."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _folder(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="labref-demo-"))
    folder = absolute(keep)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise LabrefError(
                f"{folder} is not empty. Remove it, or give --keep another folder: the demo makes its own."
            )
    except OSError as error:
        raise LabrefError(f"{folder} cannot be used: {error.strerror or error}. Give --keep another folder.") from None
    return folder


@contextmanager
def _agent(lab: Lab, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real agent in its own process. It answers when the block begins, and is shut down after the block."""
    deadline = time.monotonic() + _START_SECONDS_MOST
    flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    command = [sys.executable, "-m", "labref", "agent", "--lab", str(lab.folder)]
    with output.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, creationflags=flags)
    try:
        while not lab.agent_file.exists():
            _still_running(process, output)
            if time.monotonic() > deadline:
                raise AgentError(f"the agent did not start in time; what it said is in {output}")
            time.sleep(0.1)
        yield process
        _still_running(process, output)
        # Windows has no SIGTERM that a process could act on; Ctrl-Break reaches a process group of its own
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
        code = process.wait(timeout=60)
        if code != 0:
            raise AgentError(f"the agent ended with exit code {code}; what it said is in {output}")
    finally:
        if process.poll() is None:  # the shutdown failed: no process may stay behind
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _still_running(process: subprocess.Popen[bytes], output: Path) -> None:
    code = process.poll()
    if code is not None:
        said = output.read_text(encoding="utf-8", errors="replace").strip()[-500:]
        raise AgentError(f"the agent ended by itself with exit code {code}: {said or 'it said nothing'}")


def _export(
    source: Source,
    unseen: list[Specimen],
    lab: Lab,
    export: Path,
    account: Account,
    cells: int,
    seed: int,
    say: Say,
) -> dict[str, str]:
    """Write the export files at the speed of an analyser, and ask two queries meanwhile. Returns the kind of each
    path."""
    files: dict[str, str] = {}
    pause_s = min(_PACE_SECONDS, _PACED_SECONDS_MOST / cells)
    asked = 0
    began = time.monotonic()
    for exported in exports(source.take(cells), seed=seed):
        path = put(exported, export)
        files[str(path)] = exported.kind
        account.written[exported.kind] += 1
        behind = began + pause_s * len(files) - time.monotonic()
        if behind > 0:
            time.sleep(behind)
        if time.monotonic() - began > _EXPORT_SECONDS_MOST:
            say(f"  The analyser stops after {len(files)} files, for this computer would take too long for more.")
            break
        if unseen and len(files) in (cells // 2, cells * 7 // 8):
            specimen = unseen[asked]
            asked += 1
            before = time.monotonic()
            answer = ask(lab, specimen.data, name="a new cell", k=8, by="latent")
            took_ms = (time.monotonic() - before) * 1000
            say(f"  {len(files)} files out; asked meanwhile, in {took_ms:.0f} ms: {_in_words(answer, specimen)}")
    return files


def _wait_for_outcomes(lab: Lab, files: Mapping[str, str], require_agent: Callable[[], None], say: Say) -> None:
    """Wait as long as files are taken in, and say how far it is. require_agent : raises where the agent has ended."""
    taken, moved_at = -1, time.monotonic()
    told_at = moved_at
    while True:
        require_agent()
        done = len(files.keys() & {row["path"] for row in ledger_rows(lab)})
        if done == len(files):
            return
        now = time.monotonic()
        if done > taken:
            taken, moved_at = done, now
        if now - moved_at > _STILL_SECONDS_MOST:
            raise AgentError(
                f"{len(files) - done} of {len(files)} files have no outcome yet, and for {_STILL_SECONDS_MOST:.0f} s none got "
                f"one; see `labref ledger --lab {lab.folder}`"
            )
        if now - told_at > _TELL_SECONDS:
            told_at = now
            say(f"  {done} of {len(files)} files are taken in ...")
        time.sleep(0.5)


def _tell_outcomes(lab: Lab, files: Mapping[str, str], account: Account, say: Say) -> None:
    """Count the outcomes, and check that every file has exactly one."""
    rows = list(ledger_rows(lab))
    seen = Counter(row["path"] for row in rows)
    if set(seen) != set(files) or max(seen.values()) > 1:
        odd = len(set(seen) ^ set(files)) + sum(n > 1 for n in seen.values())
        raise AgentError(f"{odd} files have not exactly one outcome. This is a fault in labref; please report it.")
    account.outcomes.update(row["outcome"] for row in rows)
    account.rejected = [(Path(row["path"]).name, row["reason"]) for row in rows if row["outcome"] == "rejected"]
    kinds = account.written
    say(
        f"\nOf {len(files)} files ({kinds['copy']} byte-identical copies, {kinds['recapture']} cells captured twice, "
        f"{kinds['slow']} written slowly, {kinds['truncated']} truncated, {kinds['text']} no image):"
    )
    for outcome in ("stored", "duplicate", "possible_duplicate", "rejected"):
        say(f"  {account.outcomes[outcome]:5d}  {outcome.replace('_', ' ')}")
    for name, reason in account.rejected:
        say(f"         {name}: {reason}")


def _ask(lab: Lab, unseen: list[Specimen], account: Account, say: Say) -> None:
    """Ask for the references of cells that were never exported, and draw the answers."""
    say(f"\nEight references each for {len(unseen)} cells the lab has never seen:")
    pictures = account.folder / "pictures"
    pictures.mkdir()
    queries = account.folder / "queries"
    queries.mkdir()
    shares, novel, central = [], [], 0
    for number, specimen in enumerate(unseen, 1):
        path = queries / f"{number}-{_safe(specimen.label or 'cell')}{specimen.suffix}"
        path.write_bytes(specimen.data)
        try:
            answer = ask(lab, specimen.data, name=path.name, k=8, by="latent")
        except LabrefError as error:
            say(f"  {path.name}: {error}")
            continue
        picture = pictures / f"{path.stem}.png"
        draw_grid(lab, answer, specimen.data, picture)
        account.grids.append(picture)
        novel.append(answer["novelty"]["is_novel"])
        central += _central(answer)
        if specimen.label is not None and answer["references"]:
            shares.append(_same_class(answer, specimen.label))
        say(f"  {_in_words(answer, specimen)}")
    if any(novel):
        say("(A young lab holds few cells, so for some the nearest is still far: that is what the warning says.)")
    if central:
        say(
            f"{central} of these references are central: the bundle brought them, as the lab has few cells of their class."
        )
    account.central = central
    if shares:
        account.alike = sum(shares) / len(shares)
        say(f"On average {account.alike:.0%} of a cell's references are of its own class.")


def _in_words(answer: Mapping[str, Any], specimen: Specimen) -> str:
    labels = Counter(reference["label"] for reference in answer["references"])
    among = ", ".join(f"{n} {label}" for label, n in labels.most_common()) or "none yet"
    if central := _central(answer):
        among += f" ({central} of them central)"
    nearest = f", nearest at {answer['references'][0]['distance']:.3g}" if answer["references"] else ""
    novel = "; unlike anything here" if answer["novelty"]["is_novel"] else ""
    return f"{specimen.label or 'a cell'} -> {among}{nearest}{novel}"


def _central(answer: Mapping[str, Any]) -> int:
    """How many references are cells of the bundle's atlas."""
    return sum(reference["origin"] == "central" for reference in answer["references"])


def _same_class(answer: Mapping[str, Any], label: str) -> float:
    references = answer["references"]
    same = sum(bool(r["label"].casefold() == label.casefold()) for r in references)
    return same / len(references)


def _open_pages(lab: Lab, agent: subprocess.Popen[bytes], output: Path, say: Say) -> None:
    """Make a map, let somebody in, open the browser, and wait for Ctrl-C."""
    say("\nA map of the lab is made ...")
    try:
        for _ in run(lab, "map.train"):
            pass
    except LabrefError as error:  # too few cells
        say(f"  no map: {error}")
    (person,) = run(lab, "user.add", name="Demo", role="admin")
    client = AgentClient.find(lab)
    if client is None:
        raise AgentError(f"the demo's agent does not answer any more; {output} says why")
    say("The lab's pages are open in the browser. If they are not, open this link on this computer:")
    say(f"  {client.link(person['code'])}")
    say("Ctrl-C ends the demo.")
    webbrowser.open(client.link(person["code"]))
    try:
        while True:
            _still_running(agent, output)
            time.sleep(0.5)
    except KeyboardInterrupt:
        say("")


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_ " else "_" for c in name)[:60]


def _next_steps(lab: Lab, account: Account, say: Say) -> None:
    labref = program()
    where = f"--lab {quoted(lab.folder)}"
    query = next(iter(sorted((account.folder / "queries").iterdir())))
    say("\nWhat to do next")
    say("  Look at the answers, one picture each:")
    say(f"    {account.folder / 'pictures'}")
    say("  Ask again, now without an agent (the answer is the same):")
    say(f"    {labref} query {quoted(query)} {where}")
    say("  See what became of every file, and how the lab is:")
    say(f"    {labref} ledger {where}")
    say(f"    {labref} status {where}")
    say("  Look at the lab in the browser, as a technologist does:")
    say(f"    {labref} demo --open")
    say("  Make your own lab, with your analyser's export folder:")
    say(f"    {labref} init my-lab --watch EXPORT-FOLDER")
    say(f"    {labref} agent --lab my-lab")
    say(f"  All of the demo is in {account.folder}; delete it when you are done.")
