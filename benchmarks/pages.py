"""How fast and how calmly every page opens on a warm server: ``python -m benchmarks.pages``.

A studio without anything and one with 300 finished runs, each served by a process of its own and opened in Chromium:
once with an empty browser cache, then again as a person comes back. Needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from core.home import PROJECT
from tests.support import seed
from tests.support.views import SHIFTS, VIEWS

CALM = 1500  # milliseconds after the first view in which something may still move
WIDE = {"width": 1440, "height": 900}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="visits of each page; the median is told")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--pages", nargs="*", default=list(VIEWS), choices=list(VIEWS))
    parser.add_argument("--movers", action="store_true", help="name what moved")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        print(f"{os.cpu_count()} cores, {load()} at the beginning, median of {arguments.repeats} visits\n")
        print("| page | studio | first visit, s | next, s | page CPU, s | server CPU, s | layout shift | requests |")
        print("|---|---|---:|---:|---:|---:|---:|---:|")
        for state in ("empty", "full"):
            home = Path(folder) / state
            if state == "full":
                seed.many(home, arguments.runs)
            with served(home) as (address, server):
                for name in arguments.pages:
                    line(browser, address, server, name, state, arguments)
        browser.close()
        print(f"\n{load()} at the end")
    return 0


def load() -> str:
    """How many processes want a core, this benchmark's own among them."""
    return "load {:.1f} (1 minute), {:.1f} (15 minutes)".format(*os.getloadavg()[::2])


def line(
    browser: Any, address: str, server: psutil.Process, name: str, state: str, arguments: argparse.Namespace
) -> None:
    warming, context = browser.new_context(viewport=WIDE), browser.new_context(viewport=WIDE)
    visit(warming, address, server, name, state)
    warming.close()
    first = visit(context, address, server, name, state)
    again = [visit(context, address, server, name, state) for _ in range(arguments.repeats)]
    context.close()
    seconds, page, web = (statistics.median(one[key] for one in again) for key in ("seconds", "page", "server"))
    shifted = max(one["shifted"] for one in (first, *again))
    size = "nothing in it" if state == "empty" else f"{arguments.runs} runs"
    times = f"{first['seconds']:.2f} | {seconds:.2f} | {page:.2f} | {web:.2f}"
    print(f"| {name} | {size} | {times} | {shifted:.3f} | {first['requests']} |", flush=True)
    if arguments.movers:
        print(*max((first, *again), key=lambda one: one["shifted"])["movers"], sep="\n")


def visit(context: Any, address: str, server: psutil.Process, name: str, state: str) -> dict[str, Any]:
    """Until the page shows what it is for: seconds, processor time of page and server, requests; then what moved."""
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.add_init_script(SHIFTS)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    metrics = context.new_cdp_session(page)
    metrics.send("Performance.enable", {"timeDomain": "threadTicks"})  # of the page's main thread alone
    began, before = time.monotonic(), sum(server.cpu_times()[:2])
    page.goto(address + VIEWS[name].path, wait_until="commit")
    page.locator(getattr(VIEWS[name], state)).first.wait_for()
    found: dict[str, Any] = {"seconds": time.monotonic() - began, "requests": len(requests)}
    found["server"] = sum(server.cpu_times()[:2]) - before
    told = {one["name"]: one["value"] for one in metrics.send("Performance.getMetrics")["metrics"]}
    found["page"] = told["TaskDuration"]
    page.wait_for_timeout(CALM)
    found |= {"shifted": page.evaluate("window.shifted"), "movers": page.evaluate("window.movers")}
    page.close()
    return found


@contextmanager
def served(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of ``python app.py serve`` on a free port."""
    command = [sys.executable, "app.py", "serve", "--port", "0", "--home", str(home)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            told = server.stdout.readline() if server.stdout else ""
            address = re.search(r"http://[\w.]+:\d+", told)
            if address is None:
                raise SystemExit(f"The studio did not start: {told}")
            yield address[0], psutil.Process(server.pid)
        finally:
            server.terminate()


def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("There is no Chromium on this machine.")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
