"""How long every page's load handler and timer take through the real server: ``python -m benchmarks.load_pages HOME``.

A home without runs is first filled with five hundred of them. Times are of one request on a warm server, without the
browser's work (``benchmarks.pages`` measures that); ends with 1 where a load's 95th percentile is above 300 ms.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import load_fixture
from benchmarks.load_browser import PATHS, Tab, browser, finished
from benchmarks.pages import served
from core.studio import Studio

BOUND = 0.3  # seconds, 95th percentile of a warm load
LOADS = 20
# Each page with something chosen; {new} and {old} are finished runs, {routed} one with routing.
CHOSEN = (
    "/runs?run={old}", "/runs?seeds=true", "/compare?runs={new},{old}", "/chat?conversation=1", "/routing?run={routed}",
    "/experiment?clone={new}", "/fusion?runs={new},{old}",
)  # fmt: skip
Times = dict[str, dict[str, list[float]]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--loads", type=int, default=LOADS)
    arguments = parser.parse_args()
    if not (arguments.home / "tessera.db").is_file():
        load_fixture.build(arguments.home)
    times = measured(arguments.home, paths(arguments.home), arguments.loads)
    print(f"load of the machine {os.getloadavg()[0]:.1f}; milliseconds, warm\n")
    print("| page | load, median | load, 95 % | tick, median | tick, 95 % |\n|---|---:|---:|---:|---:|")
    for path, own in times.items():
        figures = [f"{1e3 * at:.0f}" for what in ("load", "tick") for at in _percentiles(own.get(what))]
        print(f"| {path} | {' | '.join(figures or ['–'])} |")
    return int(any(_percentiles(own["load"])[1] > BOUND for own in times.values()))


def paths(home: Path) -> list[str]:
    """Every page plain and with something chosen."""
    studio = Studio(home)
    done = [run["id"] for run in studio.runs(state="done", limit=500)]
    routed = next(run for run in done if run in studio.routed(done))
    studio.close()
    return [path.format(new=done[0], old=done[-1], routed=routed) for path in (*PATHS, *CHOSEN)]


def measured(home: Path, asked: Sequence[str], loads: int) -> Times:
    """Path -> load or tick -> seconds; the first visit of each path warms it and is not counted."""
    times: Times = {path: {} for path in asked}

    async def visit(address: str) -> None:
        async with browser(address) as client:
            for path in asked:
                for turn in range(loads + 1):
                    tab = Tab(client, path, partial(_noted, times[path] if turn else {}))
                    await tab.open()
                    for event in tab.events["tick"]:
                        await tab.post(event, "tick")
                    await tab.close()

    with served(home) as (address, _):
        finished(visit(address))
    return times


def _noted(own: dict[str, list[float]], page: str, what: str, seconds: float) -> None:
    own.setdefault(what, []).append(seconds)


def _percentiles(values: Sequence[float] | None) -> tuple[float, float]:
    return (float(np.percentile(values, 50)), float(np.percentile(values, 95))) if values else (0.0, 0.0)


if __name__ == "__main__":
    sys.exit(main())
