"""labref killed, or with a full or broken disk, or without power, at every place where it writes.

    python -m tests.benchmarks.crash --rounds 2000 --json
    python -m tests.benchmarks.crash --rounds 10000 --state rounds.json --json

Each round has its own seed and does one thing that writes: a pass of the agent, a migration, a backup, a restore, an
export, retention, a change of bundle, a new map, an installation, or a repair. It runs in a process that is killed, or
whose disk fails, when it reaches one of its failpoints for the n-th time. Where this system lets it mount one, the lab
lies on a small ext4 file system of its own: in a quarter of the rounds that is really full but for a few bytes, and in
another quarter the power is cut as the process is killed, so that what was never flushed to the disk is lost, also a
part of a write (`tests.benchmarks.small_disks`). Then a new process finishes the work, and the agent makes a pass. At
the end the lab is checked: the store opens; every file has one outcome; every image is one cell with its bytes and its
numbers; nothing is lost or stored twice; the earlier backup is whole; and the new backup restores the same lab.

A lab is used for several rounds. Before each round it gets new files: cells, copies, cells that move from unsigned to
signed, and files that are no image. Pictures are small (--side), and are decoded in the process itself. Some rounds do
the same to the `labref` command with its networks (--agent-rounds).

--state : file that counts are kept in, from which the next run goes on with the rounds that follow.
--seconds : ends after so many.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import io
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from PIL import Image

from labref import failpoints
from labref.bundles.bundle import starter_bundle
from labref.files import replace_file
from labref.lab import Lab
from labref.lab.trust import bring_in
from tests.benchmarks import crash_lab
from tests.benchmarks.exports import REPOSITORY, choose_source, labref_process, tell
from tests.benchmarks.small_disks import SmallDisk, mount_for_oneself
from tests.fork_server import import_labref

__all__ = ["crash", "main"]

_LIFE_ROUNDS: Final = 25
_ENOUGH_FAULTS: Final = 20  # then it stops
_NEW_FILES: Final = 6
_LEAST_CELLS: Final = 12  # of a new lab
_SECONDS: Final = 300.0
_UNEXPECTED: Final = 3
_DISK_MEGABYTES: Final = 256
_DISK_SHARE: Final = 0.25  # of the rounds each: a disk that is full in truth, a power cut
_MOST_LEFT: Final = 4 << 20  # bytes, on a full disk
_SAVE_EVERY: Final = 20  # rounds


@dataclass
class Ended:
    """How a process ended. code : 0 done, 1 failed and said why, `failpoints.KILLED`, else a fault; said : what it
    told."""

    code: int
    said: Any


@dataclass
class Tally:
    """What has happened so far. number : of the round that is next.  harm : how often each kind of it was done."""

    rounds: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)
    harm: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    number: int = 0
    seconds: float = 0.0


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def crash(
    folder: Path,
    *,
    rounds: int,
    agent_rounds: int,
    seed: int,
    cells: int = 160,
    images: Path | None = None,
    side: int | None = None,
    state: Path | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Run it in `folder`, an empty folder; returns the figures, `faults` empty where all is well.

    rounds : with those that `state` says were done.  cells : different images, `side` pixels wide and high where that
    is given.  seconds : no further round is begun after so many. Raises ValueError where `state` is of another seed.
    """
    started = time.monotonic()
    tally = Tally()
    if state is not None and state.exists():
        kept = json.loads(state.read_text(encoding="utf-8"))
        if kept.pop("seed") != seed:
            raise ValueError(f"{state} is of another seed")
        tally = Tally(**kept)
    source, what = choose_source(images, seed)
    pool = folder / "images"
    pool.mkdir()
    pictures = (_small(specimen.data, side) for specimen in source.take(cells))
    files = list(dict.fromkeys(_put(pool, data) for data in pictures if crash_lab.is_taken_in(data)))
    _prepare(folder)
    if hasattr(os, "fork"):
        import_labref()  # here, once: each forked process has it
        gc.freeze()
    why_not = mount_for_oneself()
    points: dict[str, Counter[str]] = {}
    rng = random.Random(f"{seed} {tally.number}")
    life = _Life(folder, files, rng, disk=why_not is None)
    names = list(crash_lab.SCENARIOS)
    weights = [crash_lab.SCENARIOS[name].weight for name in names]
    before_seconds = tally.seconds
    for number in range(tally.number, rounds):
        before = len(tally.faults)
        if life.rounds >= _LIFE_ROUNDS:
            life.end()
            life = _Life(folder, files, rng, disk=why_not is None)
        # each at least once, as far as the rounds go; then by weight
        scenario = names[number] if number < len(names) else rng.choices(names, weights)[0]
        try:
            _round(life, scenario, points, rng, tally)
        except Exception as error:  # listed as a fault, with the arguments that repeat the round
            tally.faults.append(f"round {number} ({scenario}): {type(error).__name__}: {error}")
        tally.number = number + 1
        tally.seconds = round(before_seconds + time.monotonic() - started, 1)
        if len(tally.faults) > before:  # a lab with a fault would give the same one again
            print(f"round {number + 1}: {tally.faults[-1]}", file=sys.stderr, flush=True)
            life.end()
            life = _Life(folder, files, rng, disk=why_not is None)
        late = seconds is not None and time.monotonic() - started > seconds
        if (number + 1) % _SAVE_EVERY == 0 or late:
            print(f"{number + 1} of {rounds} rounds, {tally.seconds:.0f} s", file=sys.stderr, flush=True)
            if state is not None:
                replace_file(state, json.dumps(asdict(tally) | {"seed": seed}))
        if late or len(tally.faults) >= _ENOUGH_FAULTS:
            break
    life.end()
    whole = _agent_rounds(folder, files, rng, agent_rounds, tally) if not tally.faults else 0
    return {
        "rounds": sum(tally.rounds.values()),
        "by_what": tally.rounds,
        "ended": tally.ended,
        "harm": tally.harm,
        "disks": "ext4" if why_not is None else f"none of its own: {why_not}",
        "failpoints_hit": len(tally.points),
        "hits": dict(sorted(tally.points.items())),
        "agent_rounds": whole,
        "source": what,
        "images": len(files),
        "seed": seed,
        "seconds": tally.seconds,
        "faults": tally.faults,
        "ok": not tally.faults,
    }


def _small(data: bytes, side: int | None) -> bytes:
    """The picture with at most `side` pixels a side."""
    if side is None:
        return data
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def _put(pool: Path, data: bytes) -> str:
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
    """One lab, from its making to its deletion, with the files that its analyser exports.

    folder : the lab is in it; where `disk` says so, a small disk is mounted there.  beside : the export, and what the
    processes tell, which outlive the disk.
    """

    def __init__(self, folder: Path, files: list[str], rng: random.Random, *, disk: bool = False) -> None:
        self.pool, self.rng = folder / "images", rng
        self.folder = Path(tempfile.mkdtemp(prefix="life-", dir=folder))
        self.export = crash_lab.export_of(self.folder)
        self.export.mkdir()
        self.beside = self.folder.with_suffix(".beside")
        self.beside.mkdir()
        self.rounds = 0
        self.disk = SmallDisk(self.beside / "disk", self.folder, megabytes=_DISK_MEGABYTES) if disk else None
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
        if self.disk is not None:
            self.disk.remove()
        for folder in (self.folder, self.export, self.beside):
            shutil.rmtree(folder, ignore_errors=True)


def _round(life: _Life, scenario: str, points: dict[str, Counter[str]], rng: random.Random, tally: Tally) -> None:
    if life.rounds == 0 and scenario != "ingest":  # there is nothing in the lab yet
        _expect(_process(life, "work", "ingest"), 0)
    life.rounds += 1
    life.export_some()  # a pass meets these, whatever happened before it
    if crash_lab.SCENARIOS[scenario].before is not None:
        _expect(_process(life, "before", scenario), 0)
    log = life.beside / "points.log"
    log.unlink(missing_ok=True)
    reached = points.setdefault(scenario, Counter())
    harm = rng.random() if life.disk is not None else 1.0
    is_full, is_cut = harm < _DISK_SHARE, _DISK_SHARE <= harm < 2 * _DISK_SHARE
    action = "kill" if is_cut else _action(rng)
    if is_full:
        plan = ""
    elif reached and rng.random() < 0.9:
        point = rng.choice(sorted(reached))
        # an early or a late time, but at most as often as the failpoint has been reached
        plan = f"{point}={action}@{rng.randint(1, reached[point])}"
    else:
        plan = f"*={action}@{rng.randint(1, max(8, sum(reached.values())))}"
    bytes_left = int(math.exp(rng.uniform(0, math.log(_MOST_LEFT)))) if is_full else 0
    with _on_disk(life, bytes_left if is_full else None):
        ended = _process(life, "work", scenario, plan, log)
    if is_cut and life.disk is not None:
        if rng.random() < 0.5:
            life.disk.write_out_some(rng)
        life.disk.cut_power()
    done = f"{bytes_left} bytes left" if is_full else plan + " and the power cut" * is_cut
    met = Counter(log.read_text(encoding="ascii").split()) if log.exists() else Counter[str]()
    for name, times in met.items():
        reached[name] = max(reached[name], times)
    if ended.code not in (0, 1, failpoints.KILLED):
        raise RuntimeError(f"{done}: the process ended with {ended.code}: {ended.said}")
    how = {0: "not met, or borne", 1: "failed and said so"}.get(ended.code, "killed")
    finish = _process(life, "finish", scenario)
    if finish.code != 0:
        raise RuntimeError(f"after {done} ({how}): {finish.said}")
    tally.faults += [f"after {scenario}, {done} ({how}): {fault}" for fault in finish.said]
    _count(tally.rounds, scenario)
    _count(tally.ended, how)
    _count(tally.harm, "disk full in truth" if is_full else "power cut" if is_cut else action)
    if ended.code != 0 and not is_full:
        _count(tally.points, plan.split("=")[0] if not plan.startswith("*") else log.read_text("ascii").split()[-1])


@contextmanager
def _on_disk(life: _Life, bytes_left: int | None) -> Iterator[None]:
    """What is on the lab's disk before is flushed to it; it takes `bytes_left` more, where that is given."""
    if life.disk is None:
        yield
        return
    life.disk.flush()
    with contextlib.nullcontext() if bytes_left is None else life.disk.full(bytes_left):
        yield


def _action(rng: random.Random) -> str:
    return rng.choice(("kill", "kill", "enospc", "eio"))


def _expect(ended: Ended, code: int) -> None:
    if ended.code != code:
        raise RuntimeError(f"undisturbed work ended with {ended.code}: {ended.said}")


def _process(life: _Life, what: str, scenario: str, plan: str = "", log: Path | None = None) -> Ended:
    """Do one thing in its own process. The process is forked where the system can fork, in a tenth of the time."""
    out = life.beside / "told.json"
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
    log = life.beside / "points.log"
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
    parser.add_argument("--side", type=int, default=180, help="pixels of a picture's side (default 180)")
    parser.add_argument("--state", type=Path, help="file of the counts, to go on from")
    parser.add_argument("--seconds", type=float, help="begin no round after so many")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labref-crash-", ignore_cleanup_errors=True) as folder:
        result = crash(
            Path(folder),
            rounds=options.rounds,
            agent_rounds=options.agent_rounds,
            seed=options.seed,
            cells=options.cells,
            images=options.images,
            side=options.side,
            state=options.state,
            seconds=options.seconds,
        )
    tell(result, as_json=options.json)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
