"""Whether pages stay fast in a large lab while cells come in: `python -m tests.benchmarks.web --json`.

A lab is made with the starter bundle, --cells made-up cells (200 a slide) and a map of --side × --side nodes that they
lie on; --lab FOLDER keeps it there, and uses it where it is. Made-up cells have no pictures; --pictures further cells
have, which the agent took in: real ones of ../shared/data/pbc, or drawn ones where that is not there. A real
`labref agent` serves the pages, and takes in more of them, --rate a second, each embedded by the real networks. Then,
in this order:

first           milliseconds of the first page of each kind, while nobody else asks
ingest_alone    cells come in, nobody looks: stored a second, and seconds from the written file to the stored cell; and
                how many a second are stored of a pile of files
people          --viewers people look, each with a connection of their own, one request after the other, as people do:
                a page, what it loads, then --think seconds of thought at the mean (half to one and a half of that). Two
                in ten of them keep the live page open too, which asks for what is new at each event. They keep nothing
                that they were sent, as if each picture was new to their browsers; and they share this computer with the
                agent, whose processors they use too
flat_out        the same people without a thought between two pages, as load tools do; and a pile of files again
without_ingest  the people with their thoughts, while no cell comes in

Each kind of request has p50, p95, p99 and the longest in milliseconds, as its asker waited, and its number `n`.
`/health`, a bare route of the same server, is asked four times a second in each part: `ratio` is p95 over its p95.
`cpu` : share of one CPU that the agent and its children took.  `cpu_ms` : of their CPU for each request, ingest's share
of it included.  Pictures are asked of the cells that have some; the agent keeps those that it made.  `requirements` are
those of the technologist's screen, read off `people`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import platform
import re
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from labref.demo.analyser import Specimen
from labref.lab import Lab
from labref.pictures import tiles
from labref.web.client import AgentClient
from tests.benchmarks.exports import choose_source
from tests.benchmarks.query import note
from tests.benchmarks.web_lab import deliver, make_lab, running_agent
from tests.pages import Browser, let_in

__all__ = ["main", "measure"]

_REQUIRED: Final = {"cell page": 150.0, "map tile": 50.0, "slide page": 200.0}  # p95, milliseconds
_MIX: Final = {"cell": 0.4, "slide": 0.2, "map": 0.15, "live": 0.15, "slides": 0.1}
_VIEWPORT: Final = 4, 3  # tiles
_FILE: Final = "lab.json"


@dataclass
class _Times:
    """Milliseconds of each kind of request, and what failed."""

    by_kind: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, milliseconds: float) -> None:
        with self.lock:
            self.by_kind[kind].append(milliseconds)

    def figures(self) -> dict[str, dict[str, float]]:
        bare = np.percentile(self.by_kind["/health"], 95) if self.by_kind["/health"] else float("nan")
        return {kind: _figures(found, float(bare)) for kind, found in sorted(self.by_kind.items()) if found}


@dataclass
class _Place:
    """What there is to look at. cells : number of made-up ones.  pictured : ids of cells with pictures.  slides : keys.
    tiles : address of the map's tiles.  styles : of the classes on it."""

    cells: int
    side: int
    pictured: list[str]
    slides: list[str]
    styles: list[str]


class _Asker:
    """One connection of somebody who is signed in."""

    def __init__(self, browser: Browser, times: _Times) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", browser.port, timeout=120)
        self._headers = {
            "Cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items()),
            "Accept": "text/html",
            "Origin": f"http://127.0.0.1:{browser.port}",
        }
        self.times = times

    def ask(self, kind: str, path: str, body: bytes | None = None) -> bytes:
        """The body of what is there; what fails is counted, and empty."""
        sent = self._headers if body is None else self._headers | {"Content-Type": "application/json"}
        begun = time.perf_counter()
        try:
            self._connection.request("GET" if body is None else "POST", path, body, sent)
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            with self.times.lock:
                self.times.errors[f"{kind}: {type(error).__name__}"] += 1
            return b""
        if response.status != 200:
            with self.times.lock:
                self.times.errors[f"{kind}: {response.status}"] += 1
            return b""
        self.times.add(kind, 1000 * (time.perf_counter() - begun))
        return data

    def lines(self, path: str, ended: threading.Event) -> Iterator[bytes]:
        """The lines of a stream of events, until it ends."""
        self._connection.request("GET", path, headers=self._headers)
        response = self._connection.getresponse()
        while not ended.is_set() and (line := response.readline()):
            yield line

    def close(self) -> None:
        self._connection.close()


class _Viewer(_Asker):
    """Somebody who goes from page to page."""

    def __init__(self, browser: Browser, times: _Times, place: _Place, seed: int) -> None:
        super().__init__(browser, times)
        self._place = place
        self._rng = np.random.default_rng([seed, 0x7E])

    def look(self, ended: threading.Event, think: float) -> None:
        """Look about until it ends. think : seconds between two pages, at the mean."""
        names, shares = list(_MIX), list(_MIX.values())
        ended.wait(think * float(self._rng.random()))
        while not ended.is_set():
            getattr(self, f"{self._rng.choice(names, p=shares)}_")()
            if think:
                ended.wait(think * float(self._rng.uniform(0.5, 1.5)))

    def cell_(self) -> None:
        number = int(self._rng.integers(self._place.cells))
        cell = hashlib.sha256(str(number).encode()).hexdigest()[:16]
        self.ask("cell page", f"/cell/{cell}" + ("?by=map" if self._rng.random() < 0.1 else ""))
        for one in self._rng.choice(self._place.pictured, 9).tolist():
            self.ask("picture", f"/cell/{one}/picture?view=cell")

    def slide_(self) -> None:
        self.ask("slide page", f"/slide/{self._rng.choice(self._place.slides)}")
        self._thumbnails()

    def slides_(self) -> None:
        self.ask("list of slides", f"/slides?page={int(self._rng.integers(1, 20))}")

    def live_(self) -> None:
        self.ask("live page", "/")
        self._thumbnails()

    def map_(self) -> None:
        asked, kind = "", "map page"
        if self._rng.random() < 0.3:
            day = datetime.fromtimestamp(time.time() - float(self._rng.uniform(1, 700)) * 86_400).date()
            asked, kind = f"?class={self._rng.choice(self._place.styles)}&since={day}", "map page, a new filter"
        address = re.search(rb'data-light="([^"]+)"', self.ask(kind, f"/map{asked}"))
        if address is None:
            return
        side = self._place.side
        first, last = tiles.levels(side, side)
        level = int(self._rng.integers(first, last + 1))
        across = max(1, -(-side * tiles.NODE // (1 << (last - level)) // tiles.TILE))
        left, top = (int(self._rng.integers(max(1, across - size + 1))) for size in _VIEWPORT)
        for x in range(left, min(across, left + _VIEWPORT[0])):
            for y in range(top, min(across, top + _VIEWPORT[1])):
                self.ask("map tile", f"{address[1].decode()}/{level}/{x}_{y}.png")

    def _thumbnails(self) -> None:
        for one in self._rng.choice(self._place.pictured, 12).tolist():
            self.ask("thumbnail", f"/cell/{one}/picture?view=thumb")


class _Ingest:
    """Files of drawn cells, written one after the other; and when each was there."""

    def __init__(self, export: Path, specimens: Sequence[Specimen], rate: float) -> None:
        """rate : files a second."""
        self._export, self._rate = export, rate
        self._specimens = iter(enumerate(specimens))
        self._run = f"{time.time():.0f}"
        self.written: dict[str, float] = {}

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Files come until the block ends."""
        ended = threading.Event()
        thread = threading.Thread(target=self._write, args=(ended,))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def pile(self, most: int) -> None:
        """Write so many at once."""
        for _ in range(most):
            self._one()

    def _write(self, ended: threading.Event) -> None:
        due = time.monotonic()
        while not ended.wait(max(0.0, due - time.monotonic())):
            self._one()
            due += 1 / self._rate

    def _one(self) -> None:
        number, specimen = next(self._specimens)
        path = deliver(self._export, number, specimen, slide=f"came {self._run} {number // 100}")
        self.written[str(path)] = time.time()


def measure(
    folder: Path,
    *,
    cells: int,
    side: int = 248,
    viewers: int = 10,
    rate: float = 2.0,
    think: float = 1.0,
    seconds: float = 40.0,
    pictures: int = 300,
    pile: int = 40,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure in `folder`, where a lab that was made before is used again; returns the fields described above.
    seconds : of the part `people`; the others are shorter. pile : files written at once."""
    result: dict[str, Any] = {
        "cells": cells,
        "nodes": f"{side}x{side}",
        "viewers": viewers,
        "rate": rate,
        "think": think,
    }
    made = folder / _FILE
    if made.is_file():
        known = json.loads(made.read_text())
        if (known["cells"], known["side"]) != (cells, side):
            raise SystemExit(f"{folder} holds a lab of {known['cells']} cells and {known['side']}² nodes; name another")
        lab = Lab.open(folder / "lab")
    else:
        begun = time.perf_counter()
        lab = make_lab(folder, cells=cells, side=side, pictures=pictures, seed=seed)
        result["lab_seconds"] = round(time.perf_counter() - begun, 1)
    parts = seconds / 3 + seconds + 2 * seconds / 2
    source, result["images"] = choose_source(None, int(time.time()))
    ingest = _Ingest(folder / "export", list(source.take(int(rate * parts * 1.5) + 2 * pile + 20)), rate)
    begun = time.perf_counter()
    with running_agent(lab) as process:
        result["agent_ready_seconds"] = round(time.perf_counter() - begun, 1)
        agent = psutil.Process(process)
        client = AgentClient.find(lab)
        assert client is not None
        if not made.is_file():
            _stored(client, {str(path): 0.0 for path in (folder / "export").glob("pictured*/*/*")}, set(), 300.0)
            made.write_text(json.dumps({"cells": cells, "side": side}))
        browsers = [let_in(lab, f"Viewer {seed} {time.time():.0f} {number}", "view") for number in range(viewers)]
        note("first pages")
        result["first"], place = _first(browsers[0], client, cells, side)

        def part(
            length: float, people: int, *, pause: float = think, feed: bool = True, piled: int = 0
        ) -> dict[str, Any]:
            return _part(
                browsers[:people], place, ingest, client, agent, seconds=length, think=pause, feed=feed, pile=piled
            )

        part(min(5.0, seconds / 4), viewers)  # what is made once is made
        note("ingest alone")
        result["ingest_alone"] = part(seconds / 3, 0, piled=pile)
        note("people")
        result["people"] = part(seconds, viewers)
        note("flat out")
        result["flat_out"] = part(seconds / 2, viewers, pause=0.0, piled=pile)
        note("without ingest")
        result["without_ingest"] = part(seconds / 2, viewers, feed=False)
        result["rss_mb"] = round(agent.memory_info().rss / 1e6)
    requests = result["people"]["requests"]
    result["requirements"] = {
        kind: {"p95_ms": requests[kind]["p95_ms"], "at_most_ms": most, "met": requests[kind]["p95_ms"] <= most}
        for kind, most in _REQUIRED.items()
        if kind in requests
    }
    result["machine"] = f"{psutil.cpu_count()} cores, {platform.machine()}, load {psutil.getloadavg()[0]:.1f}"
    return result


def _first(browser: Browser, client: AgentClient, cells: int, side: int) -> tuple[dict[str, float], _Place]:
    """Milliseconds of the first page of each kind, and what there is to look at."""
    times = _Times()
    asker = _Asker(browser, times)
    asker.ask("live page", "/")
    keys: dict[str, None] = {}
    for number in np.linspace(2, max(2, cells // 200 // 50), 8).astype(int).tolist():
        listed = asker.ask("list of slides", f"/slides?page={number}").decode()
        keys |= dict.fromkeys(re.findall(r"/slide/([0-9a-f]{20})", listed))
    asker.ask("slide page", f"/slide/{next(iter(keys))}")
    asker.ask("cell page", f"/cell/{hashlib.sha256(b'0').hexdigest()[:16]}")
    page = asker.ask("map page", "/map").decode()
    styles = sorted(set(re.findall(r'name="class" value="([0-9a-f]{8})"', page)))
    asker.ask("suspect labels", "/map/suspects?part=1")
    asker.ask("map page, a new filter", f"/map?class={styles[0]}")
    address = re.search(r'data-light="([^"]+)"', page)
    assert address is not None, page
    asker.ask("map tile", f"{address[1]}/{tiles.levels(side, side)[0]}/0_0.png")
    pictured: list[str] = []
    before: dict[str, Any] = {}
    while len(pictured) < 300:
        rows = [
            row
            for row in client.perform("live.cells", {"limit": 100, **before})
            if not row["slide_name"].startswith("slide ")
        ]
        if not rows and pictured:
            break
        pictured += [row["cell_id"] for row in rows]
        found = rows or list(client.perform("live.cells", {"limit": 100, **before}))
        before = {"before": found[-1]["number"]}
    asker.ask("picture", f"/cell/{pictured[0]}/picture?view=cell")
    asker.ask("thumbnail", f"/cell/{pictured[0]}/picture?view=thumb")
    asker.close()
    assert not times.errors, times.errors
    first = {kind: round(found[0], 1) for kind, found in times.by_kind.items()}
    return first, _Place(cells, side, pictured, list(keys), styles)


def _part(
    browsers: Sequence[Browser],
    place: _Place,
    ingest: _Ingest,
    client: AgentClient,
    agent: psutil.Process,
    *,
    seconds: float,
    think: float,
    feed: bool,
    pile: int,
) -> dict[str, Any]:
    """Let these people look for so long. think : seconds between two pages.  feed : whether cells come in.  pile : so
    many files are written at once in the middle of it."""
    times, ended, before = _Times(), threading.Event(), set(ingest.written)
    people = [_Viewer(browser, times, place, number) for number, browser in enumerate(browsers)]
    work: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(_bare, (client.record.port, times, ended))]
    work += [(one.look, (ended, think)) for one in people]
    watching = [_Asker(browser, times) for browser in browsers[: len(browsers) // 5]]
    work += [(_watch, (one, browser, ended)) for one, browser in zip(watching, browsers, strict=False)]
    threads = [threading.Thread(target=function, args=given, daemon=True) for function, given in work]
    spent, begun = _cpu(agent), time.perf_counter()
    with ingest.coming() if feed else contextlib.nullcontext():
        for thread in threads:
            thread.start()
        time.sleep(seconds / 2)
        piled = set(ingest.written)
        if pile:
            ingest.pile(pile)
            piled = set(ingest.written) - piled
        else:
            piled = set()
        time.sleep(seconds / 2)
    took, used = time.perf_counter() - begun, _cpu(agent) - spent
    ended.set()
    for thread in threads[: 1 + len(people)]:
        thread.join()
    for one in [*people, *watching]:
        one.close()
    asked = sum(len(found) for found in times.by_kind.values())
    result: dict[str, Any] = {
        "seconds": round(took, 1),
        "requests": times.figures(),
        "requests_a_second": round(asked / took, 1),
        "errors": dict(times.errors),
        "cpu": round(used / took, 2),
        "cpu_ms": round(1000 * used / max(asked, 1), 2),
    }
    if feed:
        result["ingest"] = _stored(
            client, {path: at for path, at in ingest.written.items() if path not in before}, piled
        )
    return result


def _bare(port: int, times: _Times, ended: threading.Event) -> None:
    asker = _Asker(Browser(port), times)
    while not ended.wait(0.25):
        asker.ask("/health", "/health")
    asker.close()


def _watch(asker: _Asker, browser: Browser, ended: threading.Event) -> None:
    """The script of the live page."""
    stream = _Asker(browser, asker.times)
    latest = 0
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):  # closed meanwhile
        for line in stream.lines("/events", ended):
            if not line.startswith(b"data:") or int(line[5:]) <= latest:
                continue
            piece = asker.ask("what is new", f"/live/new?after={latest}") if latest else b""
            latest = int(line[5:])
            cells = list(dict.fromkeys(re.findall(rb'data-cell="([0-9a-f]{16})"', piece)))[:12]
            if cells:
                body = json.dumps({"cells": [cell.decode() for cell in cells]}).encode()
                asker.ask("marks", "/api/v1/live/marks", body)
    stream.close()


def _stored(client: AgentClient, written: dict[str, float], piled: set[str], longest: float = 60.0) -> dict[str, Any]:
    """When the files were stored. piled : those of the pile.  longest : seconds to wait for them."""
    deadline = time.monotonic() + longest
    while True:
        rows = client.perform("ledger", {"limit": len(written) + 10})
        at = {row["path"]: datetime.fromisoformat(row["at"]).timestamp() for row in rows if row["path"] in written}
        if len(at) == len(written) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    single = [at[path] - written[path] for path in at if path not in piled]
    found: dict[str, Any] = {"written": len(written), "stored": len(at)}
    if single:
        p50, p95 = np.percentile(single, [50, 95])
        found |= {"delay_p50_s": round(float(p50), 2), "delay_p95_s": round(float(p95), 2)}
    of_pile = sorted(at[path] for path in piled if path in at)
    if of_pile:
        since = min(written[path] for path in piled)
        found["pile_cells_a_second"] = round(len(of_pile) / (of_pile[-1] - since), 1)
    return found


def _cpu(process: psutil.Process) -> float:
    """CPU seconds of a process and its children."""
    spent = 0.0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            found = one.cpu_times()
            spent += found.user + found.system
    return spent


def _figures(found: Sequence[float], bare: float) -> dict[str, float]:
    p50, p95, p99 = np.percentile(found, [50, 95, 99]).tolist()
    return {
        "p50_ms": round(p50, 1),
        "p95_ms": round(p95, 1),
        "p99_ms": round(p99, 1),
        "longest_ms": round(max(found), 1),
        "ratio": round(p95 / bare, 1),
        "n": len(found),
    }


def main() -> int:
    """Measure, and print the figures; 1 where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000, help="made-up cells in the lab (default: 1,000,000)")
    parser.add_argument("--side", type=int, default=248, help="rows and columns of the map (default: 248)")
    parser.add_argument("--viewers", type=int, default=10, help="people who look (default: 10)")
    parser.add_argument("--rate", type=float, default=2.0, help="cells that come in, a second (default: 2)")
    parser.add_argument("--think", type=float, default=1.0, help="seconds between two pages of a person (default: 1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="that people look (default: 60)")
    parser.add_argument("--pictures", type=int, default=300, help="cells with pictures (default: 300)")
    parser.add_argument("--lab", type=Path, help="folder of the lab: kept there, and used again where it is")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on standard output")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labref-web-", ignore_cleanup_errors=True) as folder:
        result = measure(
            given.lab or Path(folder),
            cells=given.cells,
            side=given.side,
            viewers=given.viewers,
            rate=given.rate,
            think=given.think,
            seconds=given.seconds,
            pictures=given.pictures,
        )
    print(json.dumps(result) if given.json else json.dumps(result, indent=2))
    return 1 if any(result[part]["errors"] for part in ("people", "flat_out", "without_ingest")) else 0


if __name__ == "__main__":
    sys.exit(main())
