"""The pictures of ``docs/tour.md``: every page of a studio that holds finished runs, light and dark.

    python -m recipes.tour --home H [--out docs/figures/tour] [--only routing,chat]

Needs chromium and the packages of requirements-dev.txt. Shown is the newest finished run with routing, beside the runs
of other methods and seeds on the same tasks; the data of these runs should be stored in the same home. The token
inspector and Chat compute: their runs need their adapters, not only what was recorded of them. Chat asks the models one
row of their own test data, so the home gets one conversation for each of its pictures.
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

import numpy as np

from core.data.prompts import Prompt
from core.errors import ConfigurationError, StudioError
from core.home import ASSETS, PROJECT
from core.studio import Studio

OUT = PROJECT / "docs" / "figures" / "tour"
WIDTH = 1440
COLOURS, COMMON = 256, 64
SECONDS = 120.0
ROW = 3
COMPUTED = ("tokens", "chat")  # pictures for which adapters are loaded
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A run with routing, one task of it and a prompt; one run of each method, all seeds, and what they differ from.

    ``fused``: the newest finished fused run that learned coefficients, or "" where there is none.
    """

    run: str
    task: str
    asked: Prompt  # a test row of the task
    models: list[str]
    family: list[str]
    baseline: str
    fused: str


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
    learns = {method["name"] for method in studio.fusion_methods() if method["learns"]}
    return Subject(
        run=chosen,
        task=task,
        asked=studio.prompts(chosen, task, ROW, 1)[0],
        models=models,
        family=[one["id"] for one in alike][:12],
        baseline=newest.get("lora", "base"),
        fused=next((one["id"] for one in studio.fused(limit=200) if one["method"] in learns), ""),
    )


def chosen(shown: Subject, only: str) -> list[Scene]:
    """The pictures that are asked for by name, or all."""
    every = scenes(shown)
    names = set(filter(None, (name.strip() for name in only.split(","))))
    if unknown := names - {scene.name for scene in every}:
        known = ", ".join(scene.name for scene in every)
        raise ConfigurationError(f"There is no picture {', '.join(sorted(unknown))}.", f"There are {known}.")
    return [scene for scene in every if not names or scene.name in names]


def check_adapters(studio: Studio, shown: Subject, wanted: list[Scene]) -> None:
    """Raise ConfigurationError where a picture needs an adapter that this home does not hold."""
    needed = {"tokens": [shown.run], "chat": shown.models}
    runs = dict.fromkeys(run for scene in wanted if scene.name in COMPUTED for run in needed[scene.name])
    lacking = [run for run in runs if not (studio.home.run(run).adapter / "adapter_config.json").is_file()]
    if lacking:
        rest = ",".join(scene.name for scene in scenes(shown) if scene.name not in COMPUTED)
        raise ConfigurationError(
            f"This home lacks the adapters of {', '.join(lacking)}, which {' and '.join(COMPUTED)} compute with.",
            f"Copy them there, choose another --run, or leave the two out: --only {rest}",
        )


def scenes(shown: Subject) -> list[Scene]:
    fusion = [Scene("fusion", "/fusion", {"run": shown.fused}, _fusion, 1500)] if shown.fused else []
    return [
        Scene("home", "/", act=_home),
        Scene("data", "/data", act=_data, height=1400),
        Scene("methods", "/methods", {"method": "malora", "base": "LLaMA2-7B"}, _methods, 1300),
        Scene("experiment", "/experiment", {"clone": shown.run}, _experiment, 1640),
        Scene("runs", "/runs", {"run": shown.run, "curve": "tasks"}, _runs, 1260),
        Scene("compare", "/compare", {"runs": ",".join(shown.family), "baseline": shown.baseline}, _compare, 1640),
        Scene("routing", "/routing", {"run": shown.run}, _routing, 1400),
        Scene("tokens", "/routing", _inspected(shown), _tokens, 1880),
        *fusion,
        Scene("chat", "/chat", {"runs": ",".join([*shown.models, "base"])}, _chat),
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


def _methods(page: Any, shown: Subject) -> None:
    page.locator("#method-head h2").wait_for()
    page.locator("#method-figure svg").wait_for()


def _experiment(page: Any, shown: Subject) -> None:
    page.locator("#grid td button").first.wait_for()
    page.locator("#figure svg").first.wait_for()


def _runs(page: Any, shown: Subject) -> None:
    page.locator("#runs-curve path.smooth").first.wait_for()


def _compare(page: Any, shown: Subject) -> None:
    page.locator(".compared td.best").first.wait_for()
    page.locator("#compare-curves path.smooth").first.wait_for()


def _fusion(page: Any, shown: Subject) -> None:
    page.locator("#fusion-watching table").first.wait_for()
    page.locator("#fusion-watching .curve path").first.wait_for()


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
    page.wait_for_function("window.tesseraChat")
    panes = range(1, len(shown.models) + 2)
    page.locator(f"#chat-pane-{panes[-1]} header").wait_for()
    page.get_by_text("Sampling and system message").click()
    page.get_by_label("Longest answer, tokens").fill("24")
    page.get_by_label("number input for Temperature").fill("0")
    page.keyboard.press("Tab")
    page.get_by_text("Sampling and system message").click()
    page.locator("#chat-box textarea").fill(shown.asked.text)
    page.locator("#chat-send").click()
    for pane in panes:
        page.locator(f"#chat-pane-{pane} article footer:not(.growing)").first.wait_for()
    page.locator("#chat-send:enabled").wait_for()


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
    """The same picture with a palette: its commonest colours as they are, and some for all that is small."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    codes = np.asarray(image).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    colours, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
    parts = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1)
    common = parts[np.argsort(-counts, kind="stable")[:COMMON]]
    spread = image.quantize(COLOURS - len(common), Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).getpalette()
    palette = np.concatenate([common, np.array(spread).reshape(-1, 3)])[:COLOURS]
    nearest = np.concatenate([((some[:, None] - palette) ** 2).sum(2).argmin(1) for some in np.array_split(parts, 64)])
    kept, mapped = io.BytesIO(), Image.fromarray(nearest[places].reshape(codes.shape).astype(np.uint8), "P")
    mapped.putpalette(palette.astype(np.uint8).tobytes())
    mapped.save(kept, "PNG", optimize=True)
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
    try:
        shown = subject(studio, given.run, given.task)
        wanted = chosen(shown, given.only)
        check_adapters(studio, shown, wanted)
    except StudioError as error:
        raise SystemExit(f"{error.message} {error.hint}") from None
    finally:
        studio.close()
    given.out.mkdir(parents=True, exist_ok=True)
    with served(given.home) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for scene in wanted:
            for mode in ("light", "dark"):
                page = browser.new_context().new_page()
                page.set_default_timeout(SECONDS * 1000)
                take(page, address, scene, shown, mode, given.out / f"{scene.name}-{mode}.png")
                page.context.close()
        browser.close()


if __name__ == "__main__":
    main()
