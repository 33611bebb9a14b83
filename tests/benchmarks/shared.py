"""The shared store: how long a question takes among a million cells, how three labs publish at once, what publishing
costs ingest, and whether it survives kills and cuts.

    python -m tests.benchmarks.shared ask --cells 1000000 --questions 200 --json
    python -m tests.benchmarks.shared labs --json
    python -m tests.benchmarks.shared ingest --json
    python -m tests.benchmarks.shared rebuild --json
    python -m tests.benchmarks.shared breaks --rounds 50 --json

`ask`: made-up cells in one bundle: latents of the starter for `--sample` pictures of each class of ../shared/data/pbc
(or `--images`), each moved by half of its class's standard deviation. Twelve labs; `lab 1` has 1 % of the cells,
`lab 2` 5 %, and an optics of its own. A server of its own with `--buffers`; the questions are other draws, of a
thirteenth lab. Each way to ask is measured by itself, after 20 questions that warm it up: all labs, one optics, one
lab; first with all cells compared, then with the index (`labref shared index`), which the smaller ways take only where
they mean more cells than are compared one by one. Milliseconds of `labref.shared.asking`, whole: the cells that come
back have their distances in float64; `server_cpu`: of the server's processes. recall@8 against brute force over all
cells, with the lowest of the questions.

`labs`: three agents watch class-balanced thirds of pbc, the second also chula, the third also bccd, and take them in at
once. Each cell has to be there once. Then labels are changed in one lab, and asked for in another until they are seen.

`ingest`: a new lab takes in the same cells, with a shared store on this very computer and without one, in turn. Cells
per second from the first batch that is stored to the last, asked for once in a second meanwhile; the ratio of each
pair, and the median of them. `agent_cpu`: seconds of the agent and its processes until all is taken in and told.

`rebuild`: a lab that took in pictures publishes all of its cells, and then all anew: the first time with the small
pictures, which are there the second time. Cells per second, milliseconds of CPU a cell, and the bytes that the shared
store's tables and indexes take for each.

`breaks`: a lab of made-up cells publishes through a proxy while cells and labels go on coming. In each round the
server is killed (SIGKILL) and started again, or the connection is cut after a random number of bytes. In the end
every cell is there once, as the lab has it. fsync is on.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from labref.bundles.bundle import Bundle, install, starter_bundle
from labref.bundles.inference import Embedder
from labref.cells.image import prepare
from labref.errors import SharedError
from labref.lab import Lab
from labref.lab.log import open_log
from labref.shared.asking import Asking, Wanted
from labref.shared.check import check
from labref.shared.connection import connect
from labref.shared.indexing import index, partitions
from labref.store.duckdb.reviews import Review
from labref.store.memory import distances
from labref.tasks.publishing import Publisher
from labref.web.desk import Desk
from labref.words import cell_id_of
from tests.benchmarks.exports import tell
from tests.labs import make_lab, once, running_agent, wait_until
from tests.postgres import Database, Server, database, fill, server
from tests.stores import BUNDLE, digest_of
from tests.test_shared import Proxy, cells_for, in_store, lab_of, published

DATA = Path(__file__).parents[3] / "shared" / "data"
SIZE = 50
LABS = 12
SHARES = (0.01, 0.05, *(0.94 / (LABS - 2) for _ in range(LABS - 2)))
WARM = 20
SEEN_SECONDS = 60


def pictures(folder: Path, number: int | None, rng: np.random.Generator) -> dict[str, list[Path]]:
    """By class, so many of its pictures, in random order; all where there are fewer, or `number` is None."""
    found = {}
    for of_class in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(of_class.glob("*.jpg"))
        found[of_class.name] = [files[i] for i in rng.permutation(len(files))[:number]]
    return found


def drawn(bundle: Bundle, images: Path, sample: int, rng: np.random.Generator, cells: int) -> NDArray[np.float32]:
    """Made-up latents float32[cells, L] about those of real pictures."""
    about, moved = [], []
    with Embedder.open(bundle, device="cpu") as embedder:
        for files in pictures(images, sample, rng).values():
            latents = embedder.embed(np.stack([prepare(file.read_bytes()).crop for file in files])).latents
            about.append(latents)
            moved.append(np.broadcast_to(latents.std(0), latents.shape))
    chosen = rng.integers(0, sum(map(len, about)), cells)
    made, spread = np.concatenate(about)[chosen], 0.5 * np.concatenate(moved)
    for at in range(0, cells, 10**6):  # in parts: ten million take memory
        part = made[at : at + 10**6]
        part += spread[chosen[at : at + 10**6]] * rng.standard_normal(part.shape, np.float32)
    return made


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and the largest."""
    found = {f"p{p}": round(float(np.percentile(milliseconds, p)), 1) for p in (50, 90, 99)}
    return found | {"most": round(max(milliseconds), 1)}


class Questions:
    """What is asked, and what is right. asked : float32[q, L].  labs, optics : of each cell."""

    def __init__(
        self,
        latents: NDArray[np.float32],
        labs: NDArray[np.int64],
        optics: NDArray[np.str_],
        asked: NDArray[np.float32],
    ) -> None:
        self.asked = asked
        self._ids = np.array([int(cell_id_of(digest_of(i)), 16) for i in range(len(latents))], np.uint64)
        self.ways = {"all": Wanted(), "optics of 5 %": Wanted(optics="optics 2"), "lab of 1 %": Wanted(labs=("lab 1",))}
        meant = {"all": slice(None), "optics of 5 %": optics == "optics 2", "lab of 1 %": labs == 1}
        self._right = {
            way: [self._nearest(latents[which], self._ids[which], latent) for latent in asked]
            for way, which in meant.items()
        }

    @staticmethod
    def _nearest(latents: NDArray[np.float32], ids: NDArray[np.uint64], latent: NDArray[np.float32]) -> list[str]:
        away = np.concatenate(
            [distances.exact(part, latent) for part in np.array_split(latents, len(latents) // 10**6 + 1)]
        )
        near = np.flatnonzero(away <= np.partition(away, 8)[8])
        return [f"{ids[near[i]]:016x}" for i in distances.order(away[near], ids[near], 8)]

    def put(self, asking: Asking, running: Server) -> dict[str, Any]:
        """How long each way takes, what it costs the server, and how much of what is right it finds."""
        found, warm = {}, min(WARM, len(self.asked))
        for way, wanted in self.ways.items():
            took, recall, exact = [], [], 0
            spent = 0.0
            for number, latent in enumerate([*self.asked[:warm], *self.asked]):
                if number == warm:
                    spent = running.cpu_seconds()
                began = time.perf_counter()
                reply = asking.put(BUNDLE, latent, wanted, 72).reply()
                took.append(1e3 * (time.perf_counter() - began))
                assert reply.problem is None and len(reply.cells) >= 72, reply.problem
                if number >= warm:
                    right = self._right[way][number - warm]
                    recall.append(len(set(right) & {one.cell_id for one in reply.cells[:8]}) / 8)
                    exact += reply.exact
                    assert not reply.exact or [one.cell_id for one in reply.cells[:8]] == right, "it is not exact"
            spent = running.cpu_seconds() - spent
            found[way] = percentiles(took[warm:]) | {
                "server_cpu": round(1e3 * spent / len(self.asked), 1),
                "recall": round(statistics.mean(recall), 4),
                "lowest recall": min(recall),
                "exact": exact,
            }
        return found


def ask(
    bundle: Bundle, cells: int, questions: int, buffers: str, images: Path, sample: int, indexed: bool
) -> dict[str, Any]:
    """How long a question takes. indexed : whether the index is made and asked as well."""
    rng = np.random.default_rng(18)
    made = drawn(bundle, images, sample, rng, cells + questions)
    latents, asked = made[:cells], made[cells:]
    labs = rng.choice(LABS, cells, p=SHARES) + 1
    optics = np.array(["optics 2" if lab == 2 else f"optics {3 + lab % 4}" for lab in range(LABS + 1)])[labs]
    with server(shared_buffers=buffers, max_wal_size="4GB") as running:
        shared = database(running)
        for number in range(1, LABS + 1):
            shared.lab(f"lab {number}")
        began = time.perf_counter()
        fill(shared, latents, labs.tolist(), optics.tolist())
        filled = time.perf_counter() - began
        address, secret = shared.lab("asker")
        expected = Questions(latents, labs, optics, asked)
        found: dict[str, Any] = {"cells": cells, "fill_seconds": round(filled, 1)}
        with closing(Asking(address, lambda: secret, 60.0)) as asking:
            found["all compared"] = expected.put(asking, running)
            with connect(shared.owner, shared.secret) as connection:
                (partition,) = partitions(connection)
            found["bytes"] = partition.bytes
            if not indexed:
                return found
            began = time.perf_counter()
            steps = index(shared.owner, shared.secret, above=0)
            while True:
                try:
                    next(steps)
                except StopIteration as ended:
                    (partition,) = ended.value
                    break
            found["index_seconds"] = round(time.perf_counter() - began, 1)
            found["index_bytes"] = partition.index_bytes
            found["index"] = expected.put(asking, running)
        with closing(Asking(address, lambda: secret, 60.0, compares_at_most=0)) as asking:
            found["index, whatever is meant"] = expected.put(asking, running)
    return found


def publishing(shared: Database, lab: Lab, name: str) -> None:
    """Let a lab publish to a shared store."""
    address, secret = shared.lab(name)
    with lab.config_file.open("a", encoding="utf-8") as file:
        file.write(f"\n[shared]\nurl = '{shared.url(address.user)}'\npassword_file = 'password'\nwait_seconds = 20\n")
    (lab.folder / "password").write_text(secret, encoding="utf-8")


def labs(bundle: Bundle, per_class: int | None, changes: int) -> dict[str, Any]:
    """Three labs at once."""
    rng = np.random.default_rng(20)
    names = ("A", "B", "C")
    given: dict[str, list[Path]] = defaultdict(list)
    for files in pictures(DATA / "pbc", per_class and 3 * per_class, rng).values():
        for number, name in enumerate(names):
            given[name] += files[number::3]
    for name, data in (("B", "chula"), ("C", "bccd")):
        for files in pictures(DATA / data, per_class, rng).values():
            given[name] += files
    with tempfile.TemporaryDirectory() as scratch, server(fsync="on") as running, ExitStack() as stack:
        shared, made = database(running), []
        for name in names:
            export = Path(scratch) / f"export {name}"
            for file in given[name]:
                target = export / file.parts[-3] / file.parts[-2] / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
            lab = make_lab(Path(scratch) / f"lab {name}", export, bundle, analyser=f"DC {name}")
            publishing(shared, lab, name)
            made.append(lab)
        began = time.perf_counter()
        for lab in made:
            stack.enter_context(running_agent(lab))

        def settled() -> bool:
            with ExitStack() as desks:
                told = [next(desks.enter_context(Desk.open(lab)).run("status")) for lab in made]
            return all(
                sum(one["outcomes"].values()) == len(given[name]) and one["shared"]["waiting"] == 0
                for name, one in zip(names, told, strict=True)
            )

        wait_until(settled, 3600)
        took = time.perf_counter() - began
        with Desk.open(made[0]) as first, Desk.open(made[1]) as second:
            seen = list(_until_seen(first, second, given["A"], rng, changes))
        stack.close()
        own = {}
        for name, lab in zip(names, made, strict=True):
            with closing(lab.open_store()) as store:
                own[name] = in_store(store)
        theirs = {name: published(shared, name) for name in names}
        return {
            "files": {name: len(files) for name, files in given.items()},
            "cells": {name: len(cells) for name, cells in own.items()},
            "seconds": round(took, 1),
            "lost": sum(len(own[name].keys() - theirs[name].keys()) for name in names),
            "too many": sum(len(theirs[name].keys() - own[name].keys()) for name in names),
            "other labels": sum(own[name] != theirs[name] for name in names),
            "faults": check(shared.owner, shared.secret).faults,
            "label_changes": len(seen),
            "seen_seconds": {"p50": round(statistics.median(seen), 2), "most": round(max(seen), 2)},
        }


def _until_seen(
    first: Desk, second: Desk, files: Sequence[Path], rng: np.random.Generator, changes: int
) -> Iterator[float]:
    """Seconds from a label that one lab changes to an answer of another lab that has it."""
    for number in range(changes):
        data = files[int(rng.integers(len(files)))].read_bytes()

        def told(data: bytes = data) -> dict[str, str]:
            row = second.ask(data, name="", k=8, shared="A")
            assert row["shared"]["problem"] is None, row["shared"]
            return {one["cell_id"]: one["label"] for one in row["references"] if one["lab"] == "A"}

        there = told()
        if not there:
            continue
        chosen, label = next(iter(there)), f"seen elsewhere {number}"
        began = time.monotonic()
        list(first.run("label.set", cell=chosen, label=label, new=True, who="a person"))
        while told().get(chosen) != label:
            if time.monotonic() - began > SEEN_SECONDS:
                raise SharedError("a label did not reach the other lab")
            time.sleep(0.1)
        yield time.monotonic() - began


def ingest(bundle: Bundle, cells: int, pairs: int) -> dict[str, Any]:
    """What publishing costs ingest."""
    rng = np.random.default_rng(21)
    files = [file for of_class in pictures(DATA / "pbc", math.ceil(cells / 8), rng).values() for file in of_class][
        :cells
    ]
    rates: dict[str, list[float]] = {"alone": [], "shared": []}
    spent: dict[str, list[float]] = {"alone": [], "shared": []}
    with tempfile.TemporaryDirectory() as scratch, server(fsync="on") as running:
        shared, export = database(running), Path(scratch) / "export"
        for file in files:
            target = export / file.parts[-2] / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
        for pair in range(pairs):
            for way in sorted(rates, reverse=bool(pair % 2)):
                lab = make_lab(Path(scratch) / f"{way} {pair}", export, bundle)
                if way == "shared":
                    publishing(shared, lab, f"lab {pair}")
                with running_agent(lab) as agent, Desk.open(lab) as desk:
                    # every look takes the agent's time
                    while sum(next(desk.run("status"))["outcomes"].values()) < cells:
                        time.sleep(1)
                    if way == "shared":
                        wait_until(lambda desk=desk: next(desk.run("status"))["shared"]["waiting"] == 0, 60)
                    process = psutil.Process(agent.pid)
                    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
                    spent[way].append(sum(one.user + one.system for one in times))
                with closing(lab.open_store()) as store:
                    moments = sorted(row.at for row in store.ledger())
                later = [moment for moment in moments if moment > moments[0]]
                rates[way].append(len(later) / (moments[-1] - moments[0]).total_seconds())
                shutil.rmtree(lab.folder)
    ratios = [one / other for one, other in zip(rates["shared"], rates["alone"], strict=True)]
    return {
        "cells": cells,
        **{f"{way}_cells_per_second": [round(rate, 2) for rate in found] for way, found in rates.items()},
        "agent_cpu": {way: [round(seconds, 1) for seconds in found] for way, found in spent.items()},
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 3),
    }


def rebuild(bundle: Bundle, cells: int, images: Path) -> dict[str, Any]:
    """How long it takes to publish a lab anew, and what a cell takes there."""
    rng = np.random.default_rng(22)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, server(fsync="on") as running:
        shared, export = database(running), Path(scratch) / "export"
        empty = shared.size()
        for files in pictures(images, math.ceil(cells / 8), rng).values():
            for file in files:
                target = export / file.parts[-2] / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
        lab = make_lab(Path(scratch) / "lab", export, bundle)
        publishing(shared, lab, "Lund")
        once(lab)
        lab = Lab.open(lab.folder)
        for way in ("first", "again"):  # the second time the pictures are there
            with Desk.open(lab) as desk:
                began, spent = time.perf_counter(), running.cpu_seconds()
                own = time.process_time()
                (*_, row) = desk.run("shared.publish", rebuild=True)
                found[way] = {
                    "cells_per_second": round(row["cells"] / (time.perf_counter() - began), 1),
                    "own_cpu_ms": round(1e3 * (time.process_time() - own) / row["cells"], 2),
                    "server_cpu_ms": round(1e3 * (running.cpu_seconds() - spent) / row["cells"], 2),
                }
            if way == "first":
                found["bytes_per_cell"] = round((shared.size() - empty) / row["cells"])
        return {"cells": row["cells"], **found}


def breaks(rounds: int, bundle: Bundle) -> dict[str, Any]:
    """Whether anything is lost or twice."""
    rng = np.random.default_rng(19)
    cuts = kills = made = 0
    with tempfile.TemporaryDirectory() as scratch, server(fsync="on") as running:
        shared = database(running)
        access = shared.lab("Lund")
        with (
            closing(Proxy(running.port)) as proxy,
            lab_of(Path(scratch) / "lab", bundle, access, shared.url(access[0].user, port=proxy.port)) as (lab, store),
            open_log(lab) as log,
            closing(Publisher(lab, store, log)) as publisher,
        ):
            for turn in range(rounds):
                store.record(cells_for(bundle, range(made, made + 60)), bundle=bundle.digest)
                ids = list(in_store(store))
                chosen = rng.choice(len(ids), 20, replace=False)
                store.reviews.give([Review(ids[i], f"class {turn}", "a person", None) for i in chosen])
                made += 60
                if turn % 2:
                    proxy.passed, proxy.cut_after = 0, int(rng.integers(1, 60_000))
                    cuts += 1
                    time.sleep(float(rng.uniform(0, 2)))
                else:
                    time.sleep(float(rng.uniform(0, 2)))
                    running.kill()
                    kills += 1
                    time.sleep(float(rng.uniform(0, 1)))
                    running.start()
            proxy.cut_after = None
            deadline = time.monotonic() + 180
            while publisher.problem is not None or publisher.waiting()[0]:
                if time.monotonic() > deadline:
                    raise SharedError("publishing did not catch up")
                time.sleep(0.5)
            own, theirs = in_store(store), published(shared, "Lund")
            return {
                "rounds": rounds,
                "kills": kills,
                "cuts": cuts,
                "cells": len(own),
                "lost": len(own.keys() - theirs.keys()),
                "too many": len(theirs.keys() - own.keys()),
                "other labels": sum(own[one] != theirs[one] for one in own.keys() & theirs.keys()),
                "faults": check(shared.owner, shared.secret).faults,
            }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ask", "labs", "ingest", "rebuild", "breaks"))
    parser.add_argument("--cells", type=int, help="ask: 1000000; ingest: 480; rebuild: 400")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--without-index", action="store_true", help="ask: only with all cells compared")
    parser.add_argument("--images", type=Path, default=DATA / "pbc")
    parser.add_argument("--sample", type=int, default=60)
    parser.add_argument("--buffers", default="1GB")
    parser.add_argument("--per-class", type=int, help="labs: pictures of each class in each lab; all without it")
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = install(starter_bundle(), Path(folder))
        found = (
            ask(
                bundle,
                given.cells or 1_000_000,
                given.questions,
                given.buffers,
                given.images,
                given.sample,
                not given.without_index,
            )
            if given.what == "ask"
            else labs(bundle, given.per_class, given.changes)
            if given.what == "labs"
            else ingest(bundle, given.cells or 480, given.pairs)
            if given.what == "ingest"
            else rebuild(bundle, given.cells or 400, given.images)
            if given.what == "rebuild"
            else breaks(given.rounds, bundle)
        )
    tell(found, as_json=given.json)


if __name__ == "__main__":
    main()
