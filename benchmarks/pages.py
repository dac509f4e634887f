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
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, median of {arguments.repeats} visits\n")
        print("| page | studio | first visit, s | next visits, s | layout shift | requests |")
        print("|---|---|---:|---:|---:|---:|")
        for state in ("empty", "full"):
            home = Path(folder) / state
            if state == "full":
                seed.many(home, arguments.runs)
            with served(home) as address:
                visit(browser.new_context(viewport=WIDE), address, "Experiment", state)  # warms the server
                for name in arguments.pages:
                    line(browser, address, name, state, arguments)
        browser.close()
    return 0


def line(browser: Any, address: str, name: str, state: str, arguments: argparse.Namespace) -> None:
    visit(browser.new_context(viewport=WIDE), address, name, state)
    context = browser.new_context(viewport=WIDE)
    first = visit(context, address, name, state)
    again = [visit(context, address, name, state) for _ in range(arguments.repeats)]
    context.close()
    seconds = statistics.median(one["seconds"] for one in again)
    shifted = max(one["shifted"] for one in (first, *again))
    size = "nothing in it" if state == "empty" else f"{arguments.runs} runs"
    shown = f"| {name} | {size} | {first['seconds']:.2f} | {seconds:.2f} | {shifted:.3f} | {first['requests']} |"
    print(shown, flush=True)
    if arguments.movers:
        print(*max((first, *again), key=lambda one: one["shifted"])["movers"], sep="\n")


def visit(context: Any, address: str, name: str, state: str) -> dict[str, Any]:
    """Seconds until the page shows what it is for, how far things moved, and requests until then."""
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.add_init_script(SHIFTS)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    began = time.monotonic()
    page.goto(address + VIEWS[name].path, wait_until="commit")
    page.locator(getattr(VIEWS[name], state)).first.wait_for()
    seconds, count = time.monotonic() - began, len(requests)
    page.wait_for_timeout(CALM)
    found = {"seconds": seconds, "requests": count, "shifted": page.evaluate("window.shifted")}
    found["movers"] = page.evaluate("window.movers")
    page.close()
    return found


@contextmanager
def served(home: Path) -> Iterator[str]:
    """``python app.py serve`` on a free port."""
    command = [sys.executable, "app.py", "serve", "--port", "0", "--home", str(home)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            told = server.stdout.readline() if server.stdout else ""
            address = re.search(r"http://[\w.]+:\d+", told)
            if address is None:
                raise SystemExit(f"The studio did not start: {told}")
            yield address[0]
        finally:
            server.terminate()


def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("There is no Chromium on this machine.")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
