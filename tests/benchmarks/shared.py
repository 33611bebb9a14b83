"""The shared store: how long a question takes among a million cells, and whether publishing survives kills and cuts.

    python -m tests.benchmarks.shared ask --cells 1000000 --labs 10 --questions 200
    python -m tests.benchmarks.shared breaks --rounds 50

`ask`: made-up latents, drawn about 20 centres, of some labs with some optics each, in one bundle; a server of its own
with 1 GB of shared buffers; the questions are other draws. Each way to ask is measured by itself, after some
questions that warm it up: all labs, one optics, and one lab. p50, p90, p99 and the largest, milliseconds, of
`labref.shared.asking`, whole: the cells that come back have their distances in float64. Every tenth answer of all
labs is compared with brute force over all cells.

`breaks`: a lab of made-up cells publishes through a proxy while cells and labels go on coming. In each round the
server is killed (SIGKILL) and started again, or the connection is cut after a random number of bytes. In the end
every cell is there once, as the lab has it. fsync is on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labref.bundles.bundle import Bundle, install, starter_bundle
from labref.errors import SharedError
from labref.lab.log import open_log
from labref.shared.asking import Asking, Wanted
from labref.shared.check import check
from labref.store.duckdb.reviews import Review
from labref.store.memory import distances
from labref.tasks.publishing import Publisher
from labref.words import cell_id_of
from tests.postgres import Database, database, server
from tests.stores import LABELS, digest_of
from tests.test_shared import Proxy, cells_for, in_store, lab_of, published

BUNDLE = "ab" * 32
SIZE = 50
_PART = 20_000


def draw(rng: np.random.Generator, number: int, centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Made-up latents float32[number, L] about centres float32[c, L]."""
    about = centres[rng.integers(0, len(centres), number)]
    made: NDArray[np.float32] = about + rng.standard_normal((number, SIZE)).astype(np.float32)
    return made


def fill(shared: Database, cells: int, labs: int, optics: int) -> NDArray[np.float32]:
    """Fill a shared store, past the labs' own way; returns the latents in the order of the cells' numbers."""
    rng = np.random.default_rng(17)
    centres = (2 * rng.standard_normal((20, SIZE))).astype(np.float32)
    for number in range(labs):
        shared.lab(f"lab {number}")
    latents = draw(rng, cells, centres)
    with shared.server.connect(shared.name) as connection:
        connection.execute("SET search_path = labref, public")
        connection.execute("SELECT add_bundle(%s, 'made up', '1', %s)", [BUNDLE, SIZE])
        for start in range(0, cells, _PART):
            with (
                connection.cursor() as cursor,
                cursor.copy(
                    "COPY cell (bundle, lab, withheld, optics, latent, cell_id, generation, digest, label, label_source, "
                    "analyser, place, across, down, stored_at) FROM STDIN"
                ) as copy,
            ):
                for i in range(start, min(start + _PART, cells)):
                    digest = digest_of(i)
                    cell_id = cell_id_of(digest)
                    lab = i % labs + 1
                    kind = f"optics {lab % optics}"
                    vector = f"[{','.join(map(repr, latents[i].tolist()))}]"
                    hashes = [int(digest[at : at + 16], 16) - 2**63 for at in (16, 32)]
                    row = (
                        1,
                        lab,
                        False,
                        kind,
                        vector,
                        cell_id,
                        1,
                        bytes.fromhex(digest),
                        LABELS[i % 5],
                        "analyser",
                        kind,
                    )
                    copy.write_row((*row, cell_id, *hashes, "2026-01-01"))
        connection.execute("VACUUM ANALYZE cell")
    return latents


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """p50, p90, p99 and the largest."""
    found = {f"p{p}": round(float(np.percentile(milliseconds, p)), 1) for p in (50, 90, 99)}
    return found | {"most": round(max(milliseconds), 1)}


def ask(cells: int, labs: int, optics: int, questions: int, buffers: str) -> dict[str, Any]:
    """How long a question takes."""
    rng = np.random.default_rng(18)
    with server(shared_buffers=buffers, max_wal_size="4GB") as running:
        shared = database(running)
        began = time.perf_counter()
        latents = fill(shared, cells, labs, optics)
        filled = time.perf_counter() - began
        (size,) = shared.rows(
            "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c WHERE relname ~ '^cell_'"
        )[0]
        centres = latents[rng.integers(0, cells, questions)]
        asked = (centres + 0.5 * rng.standard_normal((questions, SIZE))).astype(np.float32)
        ways = {"all": Wanted(), "optics": Wanted(optics="optics 1"), "one lab": Wanted(labs=("lab 3",))}
        address, secret = shared.lab("asker")
        found: dict[str, Any] = {"cells": cells, "bytes": size, "fill_seconds": round(filled, 1), "labs": labs}
        ids = np.array([int(cell_id_of(digest_of(i)), 16) for i in range(cells)], np.uint64)
        with closing(Asking(address, lambda: secret, 60.0)) as asking:
            for way, wanted in ways.items():
                took = []
                for number, latent in enumerate([*asked[:10], *asked]):
                    began = time.perf_counter()
                    reply = asking.put(BUNDLE, latent, wanted, 72).reply()
                    took.append(1e3 * (time.perf_counter() - began))
                    assert reply.problem is None and len(reply.cells) >= 72, reply.problem
                    if way == "all" and number % 10 == 0:
                        away = distances.exact(latents, latent)
                        nearest = distances.order(away, ids, 72)
                        assert [(one.cell_id, one.distance) for one in reply.cells[:72]] == [
                            (cell_id_of(digest_of(int(i))), float(away[i])) for i in nearest
                        ], "it is not exact"
                found[way] = percentiles(took[10:])
    return found


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
    parser.add_argument("what", choices=("ask", "breaks"))
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--labs", type=int, default=10)
    parser.add_argument("--optics", type=int, default=3)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--buffers", default="1GB")
    parser.add_argument("--rounds", type=int, default=50)
    given = parser.parse_args()
    if given.what == "ask":
        found = ask(given.cells, given.labs, given.optics, given.questions, given.buffers)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = breaks(given.rounds, install(starter_bundle(), Path(folder)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
