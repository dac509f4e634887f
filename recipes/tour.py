"""The pictures of ``docs/tour.md``: every page of a studio that holds finished runs, light and dark.

    python -m recipes.tour --home H [--out docs/figures/tour] [--only routing,chat]

Needs chromium and the packages of requirements-dev.txt. Shown is the newest finished run with routing, beside the runs
of other methods and seeds on the same tasks; the data of these runs should be stored in the same home. Chat asks the
models one row of their own test data, so the home gets one conversation for each set of pictures.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from core.data.prompts import Prompt
from core.errors import ConfigurationError
from core.home import ASSETS, PROJECT
from core.studio import Studio

OUT = PROJECT / "docs" / "figures" / "tour"
WIDTH = 1440
COLOURS = 256
SECONDS = 120.0
ROW = 3
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A run with routing, one task of it and a prompt; one run of each method, all seeds, and what they differ from."""

    run: str
    task: str
    asked: Prompt  # a test row of the task
    models: list[str]
    family: list[str]
    baseline: str


@dataclass(frozen=True)
class Scene:
    """One picture: where it is taken, what is done there first, and how high it is at most."""

    name: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    act: Callable[[Any, Subject], None] = lambda page, subject: None
    height: int = 1000


def subject(studio: Studio, run: str | None, task: str | None) -> Subject:
    """The newest finished run with routing, or ``run``, and those trained on the same tasks."""
    chosen = run or studio.overview()["routed"]
    if chosen is None:
        raise ConfigurationError("No finished run of this studio has routing.", "Train one: python app.py demo")
    known = studio.run(chosen)
    alike = [one for one in studio.runs(state="done", limit=200) if one["tasks"] == known["tasks"]]
    newest = {one["method"]: one["id"] for one in reversed(alike)} | {known["method"]: chosen}
    models = [chosen, *(run for method, run in newest.items() if method != known["method"])][:3]
    task = task or known["tasks"][0]
    return Subject(
        run=chosen,
        task=task,
        asked=studio.prompts(chosen, task, ROW, 1)[0],
        models=models,
        family=[one["id"] for one in alike][:12],
        baseline=newest.get("lora", "base"),
    )


def scenes(shown: Subject) -> list[Scene]:
    return [
        Scene("home", "/", act=_home),
        Scene("data", "/data", act=_data, height=1400),
        Scene("experiment", "/experiment", {"clone": shown.run}, _experiment, 1640),
        Scene("runs", "/runs", {"run": shown.run, "curve": "tasks"}, _runs, 1260),
        Scene("compare", "/compare", {"runs": ",".join(shown.family), "baseline": shown.baseline}, _compare, 1640),
        Scene("routing", "/routing", {"run": shown.run}, _routing, 1400),
        Scene("tokens", "/routing", _inspected(shown), _tokens, 1300),
        Scene("chat", "/chat", {"runs": ",".join(shown.models)}, _chat, 900),
    ]


def _inspected(shown: Subject) -> dict[str, str]:
    """The address of a test row in the inspector, followed by its true answer."""
    asked = shown.asked
    row = {"text": asked.text, "answer": "true", "said": asked.answer, "acts": shown.task, "row": str(ROW)}
    return {"run": shown.run, "tab": "tokens", **row, **({"raw": "1"} if asked.raw else {})}


def _home(page: Any, shown: Subject) -> None:
    page.locator("#home-machine .meter").first.wait_for()
    page.locator("#home-runs tbody tr").first.wait_for()
    page.locator("#home-disk tbody tr").first.wait_for()


def _data(page: Any, shown: Subject) -> None:
    """A file on its way in: how it was understood, and its rows as the model sees them."""
    page.locator("#files input[type=file]").set_input_files(ASSETS / "demo" / "opinion" / "train.jsonl")
    page.locator("#mend [data-name]").first.wait_for()
    page.locator("#seen table, #seen article, #seen pre").first.wait_for()


def _experiment(page: Any, shown: Subject) -> None:
    page.locator("#grid td button").first.wait_for()
    page.locator("#figure svg").first.wait_for()


def _runs(page: Any, shown: Subject) -> None:
    page.locator("#runs-curve path.smooth").first.wait_for()


def _compare(page: Any, shown: Subject) -> None:
    page.locator(".compared td.best").first.wait_for()
    page.locator("#compare-curves path.smooth").first.wait_for()


def _routing(page: Any, shown: Subject) -> None:
    """Choose the cell of the first projection that one task uses most beyond what the tasks use on average."""
    page.locator("#routing-heat rect[data-at]").first.wait_for()
    page.locator("#routing-matrix svg, #routing-matrix table").first.wait_for()
    cell = page.evaluate("""() => {
        const shades = {}, sums = {};
        for (const one of document.querySelectorAll('#routing-heat rect[data-at]')) {
            const at = one.dataset.at, place = at.slice(at.indexOf(',') + 1);
            shades[at] = Number((one.style.fill.match(/-(\\d+)\\)/) || [0, 0])[1]);
            (sums[place] ??= []).push(shades[at]);
        }
        const mean = list => list.reduce((a, b) => a + b, 0) / list.length;
        const beyond = at => shades[at] - mean(sums[at.slice(at.indexOf(',') + 1)]);
        const mine = Object.keys(shades).filter(at => at.split(',')[1] === '0');
        return mine.sort((a, b) => beyond(b) - beyond(a))[0]; }""")
    page.locator(f'#routing-heat rect[data-at="{cell}"]').click()
    page.wait_for_function("location.search.includes('layer=')")
    page.locator("h1").first.hover()  # away from the cell: its hover would hide others


def _tokens(page: Any, shown: Subject) -> None:
    page.locator("#inspect-strip span[data-i]").first.wait_for()
    page.locator("#inspect-ribbon svg").first.wait_for()
    page.locator("#inspect-route rect[data-at]").first.wait_for()


def _chat(page: Any, shown: Subject) -> None:
    page.locator(f"#chat-pane-{len(shown.models)} header").wait_for()
    page.get_by_text("Sampling and system message").click()
    page.get_by_label("Longest answer, tokens").fill("24")
    page.get_by_label("number input for Temperature").fill("0")
    page.keyboard.press("Tab")
    page.get_by_text("Sampling and system message").click()
    page.locator("#chat-box textarea").fill(shown.asked.text)
    page.locator("#chat-send").click()
    for number in range(len(shown.models)):
        page.locator(f"#chat-pane-{number + 1} article footer:not(.growing)").first.wait_for()


@contextmanager
def served(home: Path) -> Iterator[str]:
    """The studio's own server on a free port; ends with the pictures."""
    command = [sys.executable, "app.py", "--home", str(home), "serve", "--port", "0"]
    server = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        if "http://" not in line:
            raise ConfigurationError("The studio did not start.", "Try it: python app.py serve")
        yield line.split("http://")[1].split()[0].rstrip("/")
    finally:
        server.terminate()
        server.wait(timeout=SECONDS)


def take(page: Any, address: str, scene: Scene, shown: Subject, mode: str, target: Path) -> None:
    """Open, act, wait until nothing moves, and keep the picture."""
    page.emulate_media(color_scheme=mode, reduced_motion="reduce")
    page.set_viewport_size({"width": WIDTH, "height": scene.height})
    page.goto(f"http://{address}{scene.path}{'?' + urlencode(scene.query, safe=',') if scene.query else ''}")
    scene.act(page, shown)
    page.wait_for_timeout(2500)
    tall = page.evaluate("document.querySelector('.gradio-container').getBoundingClientRect().bottom + scrollY")
    picture = page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": min(scene.height, round(tall))})
    target.write_bytes(small(picture))
    print(f"{target.name}: {target.stat().st_size / 1e3:.0f} kB", flush=True)


def small(picture: bytes) -> bytes:
    """The same picture with a palette, in which also what is small keeps its colour."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    kept = io.BytesIO()
    image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(kept, "PNG", optimize=True)
    return kept.getvalue()


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, required=True, help="a studio with finished runs")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--run", help="whose routing is shown; otherwise the newest")
    parser.add_argument("--task", help="of that run; otherwise its first")
    parser.add_argument("--only", default="", help="names of pictures, with commas between")
    given = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    studio = Studio(given.home)
    shown = subject(studio, given.run, given.task)
    studio.close()
    given.out.mkdir(parents=True, exist_ok=True)
    only = set(filter(None, given.only.split(",")))
    with served(given.home) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for scene in scenes(shown):
            for mode in ("light", "dark"):
                if only and scene.name not in only:
                    continue
                page = browser.new_context().new_page()
                page.set_default_timeout(SECONDS * 1000)
                take(page, address, scene, shown, mode, given.out / f"{scene.name}-{mode}.png")
                page.context.close()
        browser.close()


if __name__ == "__main__":
    main()
