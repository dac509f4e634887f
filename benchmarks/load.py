"""A hundred people look at the studio while it trains: ``python -m benchmarks.load HOME --seconds 600``.

Server, dispatcher and browsers share one core, the training worker has another for itself. A home without runs is first
filled with five hundred of them. Prints a table; ends with 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks import load_fixture
from benchmarks.load_browser import Tab, browser, finished
from benchmarks.load_worker import Training, replayed
from benchmarks.pages import served
from core.studio import Studio
from core.units import MIB

PAGE_SECONDS = 1.0  # 95th percentile, from the request to the filled page, and of a tick
EVENTS_SHARE = 0.01  # of a step's time
BROWSERS = 100
STAY = (20.0, 120.0)  # seconds until somebody goes on to another page
ALONE = 0.15  # share of the time in which the worker trains before anybody looks
# Where people are, by weight; {run} is the run that trains, {done} some finished ones.
MIX = {
    "/runs?run={run}": 30, "/runs": 10, "/": 15, "/compare?runs={done}": 10, "/routing": 10, "/fusion": 7, "/chat": 8,
    "/data": 4, "/methods": 3, "/experiment": 3,
}  # fmt: skip


@dataclass
class Seen:
    """What all browsers together met with."""

    times: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)

    def told(self, page: str, what: str, seconds: float) -> None:
        self.times.setdefault((page, what), []).append(seconds)

    def all(self, what: str) -> list[float]:
        return [one for (_, kind), own in self.times.items() if kind == what for one in own]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--browsers", type=int, default=BROWSERS)
    arguments = parser.parse_args()
    found = soak(arguments.home, arguments.seconds, browsers=arguments.browsers)
    print(found["text"])
    return 1 if found["broken"] else 0


def soak(home_root: str | Path, seconds: float, *, browsers: int = BROWSERS) -> dict[str, Any]:
    """Figures by name; ``text`` says them as tables, ``broken`` lists the promises that were not kept."""
    root = Path(home_root)
    if not (root / "tessera.db").is_file():
        load_fixture.build(root)
    cores = sorted(os.sched_getaffinity(0))
    with pinned(set(cores[:1])), served(root) as (address, server):
        studio = Studio(root)
        training = Training(studio, set(cores[1:2] or cores))
        try:
            found = _measure(studio, training, address, server, seconds, browsers)
        finally:
            training.stop()
            studio.close()
    found["cores"] = len(cores)
    found["broken"] = broken(found)
    return found | {"text": text(found)}


def _measure(
    studio: Studio, training: Training, address: str, server: psutil.Process, seconds: float, browsers: int
) -> dict[str, Any]:
    worker, dispatcher = training.wait(), psutil.Process(studio.dispatcher()["pid"])
    done = [run["id"] for run in studio.runs(state="done", limit=3)]
    names = {"run": training.run, "done": ",".join(done)}
    finished(warm(address, names))
    began = time.time()
    time.sleep(max(2.0, ALONE * seconds))
    looked = time.time()
    spent = {name: sum(one.cpu_times()[:2]) for name, one in _processes(server, dispatcher).items()}
    before, seen = server.memory_info().rss, Seen()
    finished(crowd(address, seconds, browsers, names, seen))
    ended = time.time()
    took = ended - looked
    cpu = {n: (sum(p.cpu_times()[:2]) - spent[n]) / took for n, p in _processes(server, dispatcher).items()}
    step = training.step(looked, ended)
    costs = replayed(training)
    return {
        "browsers": browsers,
        "seconds": round(took, 1),
        "requests": sum(map(len, seen.times.values())),
        "errors": sum(seen.errors.values()),
        "kinds_of_errors": dict(seen.errors.most_common(5)),
        "pages": {f"{page} {what}": summary(own) for (page, what), own in sorted(seen.times.items())},
        **{f"{what}_p95": percentile(seen.all(what), 95) for what in ("page", "load", "tick", "filled")},
        "step_alone": training.step(began, looked),
        "step_looked_at": step,
        "steps": len(training.times(looked, ended)),
        "saying": costs["say_s"] / step,
        "storing": costs["store_s"] / step,
        **{f"{name}_cpu": share for name, share in cpu.items()},
        "web_mib": [round(size / MIB) for size in (before, server.memory_info().rss)],
        "worker_mib": round(worker.memory_info().rss / MIB),
    }


def _processes(server: psutil.Process, dispatcher: psutil.Process) -> dict[str, psutil.Process]:
    return {"web": server, "dispatcher": dispatcher, "browsers": psutil.Process()}


async def warm(address: str, names: dict[str, str]) -> None:
    """Every page once: what the server imports when it is first asked is no part of the figures."""
    async with browser(address) as client:
        for path in MIX:
            tab = Tab(client, path.format(**names))
            await tab.open()
            await tab.close()


async def crowd(address: str, seconds: float, browsers: int, names: dict[str, str], seen: Seen) -> None:
    """Many browsers, each on one page for a while, then on another; they come within the first tenth of the time."""
    end = time.perf_counter() + seconds
    await asyncio.gather(*(_person(address, end, seconds, names, seen, number) for number in range(browsers)))


async def _person(address: str, end: float, seconds: float, names: dict[str, str], seen: Seen, number: int) -> None:
    """With connections of its own, as a browser has them."""
    async with browser(address) as client:
        await _look_around(client, end, seconds, names, seen, number)


async def _look_around(
    client: httpx.AsyncClient, end: float, seconds: float, names: dict[str, str], seen: Seen, number: int
) -> None:
    chance = random.Random(number)
    await asyncio.sleep(chance.uniform(0, min(20.0, seconds / 10)))
    while (left := end - time.perf_counter()) > 0:
        path = chance.choices([*MIX], [*MIX.values()])[0].format(**names)
        tab = Tab(client, path, seen.told)
        try:
            began = time.perf_counter()
            await tab.open()
            seen.told(tab.page, "filled", time.perf_counter() - began)
            await tab.live(min(left, chance.uniform(*STAY)))
            if not tab.events["tick"]:
                await asyncio.sleep(min(left, 10.0))
        except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
            seen.errors[f"{tab.page}: {type(error).__name__} {error}"[:200]] += 1
            await asyncio.sleep(1.0)
        finally:
            await tab.close()


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """This process, and whatever it starts meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share)) if values else 0.0


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"count": len(values), "p50": statistics.median(values), "p95": percentile(values, 95), "max": max(values)}


def broken(found: dict[str, Any]) -> list[str]:
    """What was promised and not kept, in words."""
    told = []
    if found["errors"]:
        told.append(f"{found['errors']} errors in the browsers: {found['kinds_of_errors']}")
    for what in ("filled", "tick"):
        if found[f"{what}_p95"] > PAGE_SECONDS:
            told.append(f"the 95th percentile of {what} is {found[f'{what}_p95']:.2f} s")
    if (events := found["saying"] + found["storing"]) > EVENTS_SHARE:
        told.append(f"writing and storing events takes {events:.2%} of a step")
    return told


def text(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = "\n".join(
        f"| {name} | {one['count']:,} | {1e3 * one['p50']:.0f} | {1e3 * one['p95']:.0f} | {1e3 * one['max']:.0f} |"
        for name, one in found["pages"].items()
    )
    slower = found["step_looked_at"] / found["step_alone"] - 1
    told = (
        f"{found['browsers']} browsers for {found['seconds']} s: {found['requests']:,} requests, "
        f"{found['errors']} errors; filled within {1e3 * found['filled_p95']:.0f} ms, ticks answered within "
        f"{1e3 * found['tick_p95']:.0f} ms (95th percentiles).",
        f"Training beside it: {found['steps']:,} steps of {1e3 * found['step_looked_at']:.1f} ms "
        f"({1e3 * found['step_alone']:.1f} ms while nobody looked, {slower:+.1%}); writing events takes "
        f"{found['saying']:.2%} of a step, storing them {found['storing']:.2%}.",
        f"One core is shared by the web process ({found['web_cpu']:.0%}), the dispatcher "
        f"({found['dispatcher_cpu']:.1%}) and the browsers ({found['browsers_cpu']:.0%}). "
        f"The web process held {found['web_mib'][0]} MiB before and {found['web_mib'][1]} MiB after.",
    )
    head = "| page, event | count | median, ms | 95 %, ms | longest, ms |\n|---|---:|---:|---:|---:|"
    wrong = "".join(f"\n\nNot kept: {one}." for one in found["broken"])
    return "\n\n".join(told) + f"\n\n{head}\n{rows}{wrong}"


if __name__ == "__main__":
    sys.exit(main())
