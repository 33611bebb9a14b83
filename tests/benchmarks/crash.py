"""labref killed, or with a full or broken disk, at every place where it writes.

    python -m tests.benchmarks.crash --rounds 2000 --json

Each round has its own seed and does one thing that writes: a pass of the agent, a migration, a backup, a restore, an
export, retention, a change of bundle, a new map, an installation, or a repair. It runs in a process that is killed, or
whose disk fails, when it reaches one of its failpoints for the n-th time. Then a new process finishes the work, and the
agent makes a pass. At the end the lab is checked: the store opens; every file has one outcome; every image is one cell
with its bytes and its numbers; nothing is lost or stored twice; the earlier backup is whole; and the new backup
restores the same lab.

A lab is used for several rounds. Before each round it gets new files: cells, copies, cells that move from unsigned to
signed, and files that are no image. Some rounds do the same to the `labref` command with its networks (--agent-rounds).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from labref import failpoints
from labref.bundles.bundle import starter_bundle
from labref.lab import Lab
from labref.lab.trust import bring_in
from tests.benchmarks import crash_lab
from tests.benchmarks.exports import REPOSITORY, choose_source, labref_process

__all__ = ["crash", "main"]

_LIFE_ROUNDS: Final = 25
_ENOUGH_FAULTS: Final = 20  # then it stops
_NEW_FILES: Final = 6
_LEAST_CELLS: Final = 12  # of a new lab
_SECONDS: Final = 300.0
_UNEXPECTED: Final = 3


@dataclass
class Ended:
    """How a process ended. code : 0 done, 1 failed and said why, `failpoints.KILLED`, else a fault; said : what it
    told."""

    code: int
    said: Any


@dataclass
class Tally:
    """What has happened so far."""

    rounds: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def crash(
    folder: Path, *, rounds: int, agent_rounds: int, seed: int, cells: int = 160, images: Path | None = None
) -> dict[str, Any]:
    """Run it in `folder`, an empty folder; returns the figures, `faults` empty where all is well. cells : different
    images."""
    started = time.monotonic()
    rng = random.Random(seed)
    source, what = choose_source(images, seed)
    pool = folder / "images"
    pool.mkdir()
    files = list(dict.fromkeys(_put(pool, specimen.data) for specimen in source.take(cells)))
    _prepare(folder)
    tally = Tally()
    points: dict[str, Counter[str]] = {}
    life = _Life(folder, files, rng)
    names = list(crash_lab.SCENARIOS)
    weights = [crash_lab.SCENARIOS[name].weight for name in names]
    for number in range(rounds):
        before = len(tally.faults)
        if life.rounds >= _LIFE_ROUNDS:
            life.end()
            life = _Life(folder, files, rng)
        # each at least once, as far as the rounds go; then by weight
        scenario = names[number] if number < len(names) else rng.choices(names, weights)[0]
        try:
            _round(life, scenario, points, rng, tally)
        except Exception as error:  # listed as a fault, with the arguments that repeat the round
            tally.faults.append(f"round {number} ({scenario}): {type(error).__name__}: {error}")
        if len(tally.faults) >= _ENOUGH_FAULTS:
            break
        if len(tally.faults) > before:  # a lab with a fault would give the same one again
            print(f"round {number + 1}: {tally.faults[-1]}", file=sys.stderr, flush=True)
            life.end()
            life = _Life(folder, files, rng)
        if (number + 1) % 20 == 0:
            print(f"{number + 1} of {rounds} rounds, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    life.end()
    whole = _agent_rounds(folder, files, rng, agent_rounds, tally) if not tally.faults else 0
    return {
        "rounds": sum(tally.rounds.values()),
        "by_what": dict(tally.rounds),
        "ended": dict(tally.ended),
        "failpoints_hit": len(tally.points),
        "hits": dict(sorted(tally.points.items())),
        "agent_rounds": whole,
        "source": what,
        "images": len(files),
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "faults": tally.faults,
        "ok": not tally.faults,
    }


def _put(pool: Path, data: bytes) -> str:
    import hashlib

    name = hashlib.sha256(data).hexdigest()
    (pool / name).write_bytes(data)
    return name


def _prepare(folder: Path) -> None:
    """Two bundles and their numbers, in a process of its own: this one must stay without networks, so that it can be
    forked."""
    code = (
        "import sys; from pathlib import Path; from labref.bundles.bundle import install, starter_bundle, pack\n"
        "from tests.bundles import another; from tests.benchmarks.crash_lab import prepare_numbers\n"
        "folder = Path(sys.argv[1]); starter = install(starter_bundle(), folder / 'installed')\n"
        "other = another(starter, folder)\n"
        "files = folder / 'files'; files.mkdir(); (folder / 'numbers').mkdir()\n"
        "for file in (starter_bundle(), other):\n"
        "    bundle = install(file, folder / 'installed'); (files / f'{bundle.short}.labref').write_bytes(Path(file).read_bytes())\n"
        "prepare_numbers(folder / 'images', sorted(files.iterdir()), folder / 'numbers')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, check=True)


class _Life:
    """One lab, from its making to its deletion, with the files that its analyser exports."""

    def __init__(self, folder: Path, files: list[str], rng: random.Random) -> None:
        self.pool, self.rng = folder / "images", rng
        self.folder = Path(tempfile.mkdtemp(prefix="life-", dir=folder))
        self.export = self.folder / "export"
        self.export.mkdir()
        self.rounds = 0
        self._fresh = rng.sample(files, len(files))
        self._unsigned: list[Path] = []
        self._written = 0
        lab = Lab.create(self.folder / "lab", [self.export], starter_bundle())
        with lab.open_store() as store:
            for file in (folder / "files").iterdir():
                bring_in(store, file, lab.bundles, unsigned=True, check=lambda _: None)
        text = lab.config_file.read_text(encoding="utf-8")
        quick = "[watch]\nstable_seconds = 0.0\ncomplete_seconds = 0.0\nsettle_limit_seconds = 1.0\n"
        lab.config_file.write_text(text.replace("[watch]\n", quick), encoding="utf-8")
        for _ in range(_LEAST_CELLS):
            self.cell()

    def cell(self) -> None:
        """A new cell, signed with a class, or unsigned."""
        data = (self.pool / self._fresh.pop()).read_bytes() if self._fresh else b"no image at all"
        if self.rng.random() < 0.4:
            self._unsigned.append(self._write("Unsigned slides", data))
        else:
            self._write(f"Signed slides/{self.rng.choice(('Monocyte', 'Basophil', 'Lymphocyte'))}", data)

    def export_some(self) -> None:
        """Write the files of an analyser before the agent's next pass; and change labref.toml, as a person might."""
        with (self.folder / "lab" / "labref.toml").open("a", encoding="utf-8") as file:
            file.write(f"# thought {self.rounds}\n")
        for _ in range(self.rng.randint(1, _NEW_FILES)):
            what = self.rng.random()
            if what < 0.6:
                self.cell()
            elif what < 0.7 and self._unsigned:
                self._write("Unsigned slides", self.rng.choice(self._unsigned).read_bytes())
            elif what < 0.85 and self._unsigned:
                moved = self._unsigned.pop(self.rng.randrange(len(self._unsigned)))
                self._write("Signed slides/Monocyte", moved.read_bytes())
                moved.unlink()
            else:
                self._write(
                    "Signed slides/Basophil", self.rng.choice((b"", b"no image at all", b"\xff\xd8\xff\xe0 cut off"))
                )

    def _write(self, where: str, data: bytes) -> Path:
        self._written += 1
        path = self.export / "patient" / where / f"{self._written:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def end(self) -> None:
        """Delete the lab and all its files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _round(life: _Life, scenario: str, points: dict[str, Counter[str]], rng: random.Random, tally: Tally) -> None:
    if life.rounds == 0 and scenario != "ingest":  # there is nothing in the lab yet
        _expect(_process(life, "work", "ingest"), 0)
    life.rounds += 1
    life.export_some()  # a pass meets these, whatever happened before it
    if crash_lab.SCENARIOS[scenario].before is not None:
        _expect(_process(life, "before", scenario), 0)
    log = life.folder / "points.log"
    log.unlink(missing_ok=True)
    reached = points.setdefault(scenario, Counter())
    if reached and rng.random() < 0.9:
        point = rng.choice(sorted(reached))
        # an early or a late time, but at most as often as the failpoint has been reached
        plan = f"{point}={_action(rng)}@{rng.randint(1, reached[point])}"
    else:
        plan = f"*={_action(rng)}@{rng.randint(1, max(8, sum(reached.values())))}"
    ended = _process(life, "work", scenario, plan, log)
    met = Counter(log.read_text(encoding="ascii").split()) if log.exists() else Counter[str]()
    for name, times in met.items():
        reached[name] = max(reached[name], times)
    if ended.code not in (0, 1, failpoints.KILLED):
        raise RuntimeError(f"{plan}: the process ended with {ended.code}: {ended.said}")
    how = {0: "not met, or borne", 1: "failed and said so"}.get(ended.code, "killed")
    finish = _process(life, "finish", scenario)
    if finish.code != 0:
        raise RuntimeError(f"after {plan} ({how}): {finish.said}")
    tally.faults += [f"after {scenario}, {plan} ({how}): {fault}" for fault in finish.said]
    tally.rounds[scenario] += 1
    tally.ended[how] += 1
    if ended.code != 0:
        tally.points[plan.split("=")[0] if not plan.startswith("*") else log.read_text("ascii").split()[-1]] += 1


def _action(rng: random.Random) -> str:
    return rng.choice(("kill", "kill", "enospc", "eio"))


def _expect(ended: Ended, code: int) -> None:
    if ended.code != code:
        raise RuntimeError(f"undisturbed work ended with {ended.code}: {ended.said}")


def _process(life: _Life, what: str, scenario: str, plan: str = "", log: Path | None = None) -> Ended:
    """Do one thing in its own process. The process is forked where the system can fork, in a tenth of the time."""
    out = life.folder / "told.json"
    out.unlink(missing_ok=True)
    if hasattr(os, "fork"):
        child = os.fork()
        if child == 0:
            os._exit(_child(life.folder, what, scenario, plan, log, out))
        deadline = time.monotonic() + _SECONDS
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                break
            if time.monotonic() > deadline:
                os.kill(child, 9)
                os.waitpid(child, 0)
                return Ended(-9, "it did not end")
            time.sleep(0.002)
    else:
        arguments = [str(life.folder), what, scenario, plan, "" if log is None else str(log), str(out)]
        command = [sys.executable, "-m", "tests.benchmarks.crash", "--child", *arguments]
        code = subprocess.run(command, cwd=REPOSITORY, timeout=_SECONDS, check=False).returncode
    return Ended(code, json.loads(out.read_text(encoding="utf-8")) if out.exists() else None)


def _child(life: Path, what: str, scenario: str, plan: str, log: Path | None, out: Path) -> int:
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)  # what the agent prints
        failpoints.arm(plan, None if log is None else str(log))
        code, said = crash_lab.main(life, what, scenario)
        failpoints.disarm()
    except BaseException:
        code, said = _UNEXPECTED, traceback.format_exc()
    out.write_text(crash_lab.told(said), encoding="utf-8")
    return code


def _agent_rounds(folder: Path, files: list[str], rng: random.Random, rounds: int, tally: Tally) -> int:
    """The whole command, networks and all: `labref agent --once`, ended at one of its failpoints."""
    if not rounds:
        return 0
    life = _Life(folder, files, rng)
    log = life.folder / "points.log"
    known: Counter[str] = Counter()
    for number in range(rounds):
        life.export_some()
        log.unlink(missing_ok=True)
        plan = f"{rng.choice(sorted(known))}={_action(rng)}@1" if known else f"*=kill@{rng.randint(1, 30)}"
        killed = _command(life, "agent", "--once", "--json", plan=plan, log=log)
        known.update(log.read_text(encoding="ascii").split() if log.exists() else [])
        whole = _command(life, "agent", "--once", "--json")
        checked = _command(life, "ledger", "--check", "--json")
        if killed[0] not in (0, 1, failpoints.KILLED) or whole[0] != 0 or checked[0] != 0:
            tally.faults.append(f"agent round {number}, {plan}: {killed}, {whole}, {checked}")
            break
    else:
        number = rounds
    life.end()
    return number


def _command(life: _Life, *arguments: str, plan: str = "", log: Path | None = None) -> tuple[int, str]:
    os.environ["LABREF_FAILPOINTS"], os.environ["LABREF_FAILPOINTS_LOG"] = plan, "" if log is None else str(log)
    process = labref_process(
        *arguments, "--lab", life.folder / "lab", passed=("LABREF_FAILPOINTS", "LABREF_FAILPOINTS_LOG")
    )
    out, err = process.communicate(timeout=_SECONDS)
    return process.returncode, (err or out).strip()[-500:]


def main() -> int:
    """Run the benchmark. Returns 1 where something was lost, was stored twice, or did not open."""
    if "--child" in sys.argv:
        life, what, scenario, plan, log, out = sys.argv[sys.argv.index("--child") + 1 :]
        return _child(Path(life), what, scenario, plan, Path(log) if log else None, Path(out))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="rounds (default 200)")
    parser.add_argument("--agent-rounds", type=int, default=0, help="rounds with the whole command (default 0)")
    parser.add_argument("--cells", type=int, default=160, help="different images (default 160)")
    parser.add_argument("--seed", type=int, default=1, help="of everything (default 1)")
    parser.add_argument("--images", type=Path, help="folder of images (default ../shared/data/pbc, else drawn cells)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labref-crash-") as folder:
        result = crash(
            Path(folder),
            rounds=options.rounds,
            agent_rounds=options.agent_rounds,
            seed=options.seed,
            cells=options.cells,
            images=options.images,
        )
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
