"""Whether a tab that was closed leaves something behind: ``python -m benchmarks.load_sessions HOME --tabs 1000``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from benchmarks import load_fixture
from benchmarks.load_browser import PATHS, Tab, browser, finished
from benchmarks.pages import served
from core.units import MIB

SETTLED = 200  # tabs after which nothing may grow any more
GROWTH_MIB = 8.0
EVERY = 50
AT_ONCE = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--tabs", type=int, default=1000)
    arguments = parser.parse_args()
    if not (arguments.home / "tessera.db").is_file():
        load_fixture.build(arguments.home)
    curve = opened_and_closed(arguments.home, arguments.tabs)
    print("| tabs opened and closed | web process, MiB |\n|---:|---:|")
    print("\n".join(f"| {tabs} | {mib:.1f} |" for tabs, mib in curve))
    grown = growth(curve)
    print(f"\nAfter the first {SETTLED}: {grown:+.1f} MiB.")
    return int(grown > GROWTH_MIB)


def growth(curve: list[tuple[int, float]], settled: int = SETTLED) -> float:
    """MiB by which the end (the lowest of its last fifth) lies above the lowest figure once settled."""
    later = [mib for tabs, mib in curve if tabs >= settled]
    return min(later[-max(1, len(later) // 5) :]) - later[0]


def opened_and_closed(home: Path, tabs: int, *, every: int = EVERY) -> list[tuple[int, float]]:
    """Tabs so far and the memory of the web process, as pages of all kinds are opened, ticked once and closed."""
    with served(home) as (address, server):
        return finished(_all(address, tabs, every, lambda: server.memory_info().rss / MIB))


async def _all(address: str, tabs: int, every: int, memory: Any) -> list[tuple[int, float]]:
    curve = []
    async with browser(address) as client:
        for place in range(0, tabs, AT_ONCE):
            await asyncio.gather(*(_one(client, PATHS[n % len(PATHS)]) for n in range(place, place + AT_ONCE)))
            if (place + AT_ONCE) % every < AT_ONCE:
                await asyncio.sleep(0.2)  # the server notices closed streams
                curve.append((place + AT_ONCE, memory()))
    return curve


async def _one(client: Any, path: str) -> None:
    tab = Tab(client, path)
    try:
        await tab.open()
        for event in tab.events["tick"]:
            await tab.post(event, "tick")
    finally:
        await tab.close()


if __name__ == "__main__":
    sys.exit(main())
