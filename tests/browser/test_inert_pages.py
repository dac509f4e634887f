"""Stored text stays text: scripts in every field that people, files and models fill, looked at on every page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

from core.chat.trace import Trace
from core.chats import Chats
from core.data.store import DatasetInfo, DatasetStore
from core.home import Home
from core.routing.snapshot import SiteInfo
from core.studio import Studio
from storage.queries import chats
from storage.queries import runs as stored_runs
from tests.support import seed

ELSEWHERE = "http://elsewhere.example"


def short(field: str) -> str:
    """For names: no slash, and not much room."""
    return f"<img src=x onerror=ran('{field}')><svg onload=ran('{field}')>${{ran('{field}')}}{{{{ran('{field}')}}}}"


def long(field: str) -> str:
    """Everything that has ever been markup somewhere."""
    run = f"ran('{field}')"
    return "".join(
        [
            f'{short(field)}<script>{run}</script><iframe srcdoc="<script>parent.{run}</script>"></iframe>',
            f'<a href="javascript:{run}">x</a> [x](javascript:{run}) ![x]({ELSEWHERE}/md.png) ',
            f"<img src={ELSEWHERE}/img.png><link rel=stylesheet href={ELSEWHERE}/x.css><base href={ELSEWHERE}/>",
            f'<form action={ELSEWHERE}><button autofocus onfocus={run}>x</button></form>"><img src=x onerror={run}>',
            f"'); {run}; ('</textarea></title></style><svg onload={run}><details open ontoggle={run}>",
            f"`${{{run}}}` {{% raw %}} $$\\href{{javascript:{run}}}{{x}}$$",
        ]
    )


@pytest.fixture
def evil(tmp_path: Path, monkeypatch) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The runs of ``seed.few`` with a payload in every field that somebody could fill."""
    named = {task: short(f"task-{task}") for task in seed.OPTIONS}
    monkeypatch.setattr(seed, "TASKS", (*named.values(), "words"))  # what is generated is known by that name
    monkeypatch.setattr(seed, "OPTIONS", {name: (long("label-a"), long("label-b")) for name in named.values()})
    plain, texts = seed._row, {"instruction": long("instruction"), "input": long("input"), "system": long("system")}
    monkeypatch.setattr(seed, "_row", lambda task, index: plain(task, index) | texts)
    found = seed.few(tmp_path / "home")
    studio = seed.QuietStudio(found.home)
    whole = [*found.done, found.failed, found.cancelled, found.running, *found.queued]
    for run in whole:
        studio.annotate(run, name=short("run"), notes=long("notes"), tags=[short("tag")[:60]])
    fused = seed.fused(studio, found.dataset, found.mosld[:2])
    rest = store(studio, found)
    yield found.home, {"runs": found, "fused": fused, **rest}
    studio.close()


def store(studio: Studio, found: seed.Seeded) -> dict[str, Any]:
    """Data set, events, conversation and study with payloads; what a page is to be asked for."""
    rows = [{"instruction": long("row"), "input": long("row"), "output": "a", "history": []} for _ in range(12)]
    info = DatasetInfo(
        name=short("dataset"),
        source=long("file name"),
        notes=[long("data note")],
        mapping={short("file"): {short("column"): short("role")}},
    )
    stored = DatasetStore(Home.open(found.home).datasets).add(info, {"train": {short("task"): rows}})
    folder = studio.home.run(found.failed)
    with seed._events(folder, attempt=2) as say:
        say("started", step=0, device=short("device"), versions={short("package"): long("version")}, trainable=1)
        say("log", level="warning", message=long("log line"))
        say("alarm", name=short("alarm"), step=1, message=long("alarm"))
        say("metrics", step=2, values={"loss": 1.0, short("curve"): 2.0})
        say("progress", step=2, total=9, phase=long("phase"), seconds_left=1.0)
        say("failed", failure="data", message=long("error"), hint=long("hint"), tail=[long("tail")] * 3)
    (folder.logs / "train-2.log").write_text(long("output") + "\n", "utf-8")
    seed.ingest_events(studio.records.database, folder)
    with studio.records.write() as session:
        row = stored_runs.row(session, run=found.cancelled)
        method = row.spec["method"] | {"options": {**row.spec["method"]["options"], "modules": long("option")}}
        row.spec = row.spec | {"method": method, "model": row.spec["model"] | {"base": long("base")}}
        models = [found.lora, found.molora]
        talk = chats.start(session, title=long("title")[:80], models=models, system=long("system"), settings={})
        asked = chats.ask(session, conversation=talk.id, text=long("prompt"), models=models, system="", settings={})
        for model in models:
            chats.answer(
                session, question=asked.id, model=model, text=long("model output"), tokens=3, seconds=1.0,
                ended="failed", problem=long("problem"),
            )  # fmt: skip
    return {"conversation": talk.id, "dataset": stored.id}


def traced(self: Chats, run: str, text: str, **chosen: Any) -> Trace:
    """What the inspector shows, with tokens as a hostile text has them."""
    sites = [SiteInfo(f"m.{layer}.q_proj", layer, "q_proj", 4, 2, "token", "token") for layer in range(2)]
    tokens = [long("token"), "<img src=x onerror=ran('token')>", "</span>", "${ran('token')}", short("token")]
    weights = np.full((2, len(tokens), 4), 0.25, np.float32)
    tasks = list(seed.TASKS)
    return Trace(run, tokens, ["prompt"] * 3 + ["answer"] * 2, sites, weights, tasks[0], tasks, ended="end")


@pytest.fixture
def watched(page: Any) -> dict[str, list[str]]:
    """Payloads that ran, and requests that left the studio."""
    seen: dict[str, list[str]] = {"ran": [], "left": []}
    page.expose_function("ran", lambda field: seen["ran"].append(field))
    page.on("dialog", lambda dialog: (seen["ran"].append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda asked: seen["left"].append(asked.url) if leaves(asked.url) else None)
    return seen


def leaves(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob", "about") and parts.hostname != "127.0.0.1"


POKE = """() => { for (const node of document.querySelectorAll('summary, [title], svg *, [data-i], tr, a'))
  for (const kind of ['mouseover', 'mouseenter', 'mousemove', 'focus', 'pointermove'])
    node.dispatchEvent(new MouseEvent(kind, { bubbles: true, clientX: 300, clientY: 300 }));
  for (const node of document.querySelectorAll('details')) node.open = true; }"""


def addresses(made: dict[str, Any]) -> dict[str, str]:
    """Every page in every state that shows stored text, and what it shows when it is there."""
    runs, done = made["runs"], ",".join(made["runs"].done)
    return {
        f"/runs?run={runs.failed}": ".runline",
        f"/data?dataset={made['dataset']}": "text=all data sets",
        f"/chat?conversation={made['conversation']}": "#chat-pane-1 header",
        "/": "#home-runs tbody tr",
        "/data": "#stored a[href*='dataset=']",
        f"/data?dataset={runs.dataset}": "text=all data sets",
        "/methods": "#method-head h2",
        f"/experiment?clone={runs.cancelled}": "#told",
        f"/experiment?datasets={made['dataset']}": "#told",
        "/runs": ".runline",
        f"/runs?run={runs.cancelled}": ".runline",
        f"/runs?run={runs.running}": ".runline",
        f"/runs?runs={done}": ".runline",
        f"/compare?runs={done}&baseline={runs.lora}": "#compare-table table",
        "/fusion": "#fusion-runs .pickline",
        f"/fusion?run={made['fused']}": "h1",
        f"/routing?run={runs.molora}": "#routing-heat svg",
        f"/routing?run={runs.molora}&beside=run:{runs.mosld[0]}": "#routing-heat-beside svg",
        f"/runs?run={quote(long('query'))}": "h1",
        f"/chat?runs={quote(short('query'))}": "h1",
    }


EXPOSED = 3  # of them, and the token inspector, are looked at in every test run


@pytest.mark.slow
@pytest.mark.parametrize("count", [EXPOSED, pytest.param(None, marks=pytest.mark.long)], ids=["exposed", "every"])
def test_no_stored_text_runs_or_reaches_out(
    page: Any, serve: Callable[..., str], evil: tuple[Path, dict[str, Any]], watched: dict[str, Any], monkeypatch, count
):
    home, made = evil
    monkeypatch.setattr(Chats, "trace", traced)
    address, runs = serve(home), made["runs"]
    bare = ("/methods", f"/fusion?run={made['fused']}", f"/experiment?clone={runs.cancelled}")
    for path, shows in list(addresses(made).items())[:count]:
        page.goto(address + path)
        page.wait_for_selector(shows, state="attached")
        page.wait_for_timeout(400)
        page.evaluate(POKE)
        page.wait_for_timeout(100)
        assert watched == {"ran": [], "left": []}, path
        assert path in bare or "onerror" in page.locator("body").inner_text(), f"{path} shows no payload"
        page.picture(f"inert-{path.strip('/').replace('/', '-')[:40] or 'home'}")
    page.goto(f"{address}/routing?run={runs.molora}&tab=tokens")
    page.locator("#inspect-text textarea").fill(long("typed"))
    page.click("#inspect")
    page.wait_for_selector("#inspect-strip span[data-i]")
    page.locator("#inspect-strip span[data-i='1']").click()
    page.evaluate(POKE)
    page.wait_for_timeout(400)
    assert watched == {"ran": [], "left": []}
    assert "onerror" in page.locator("#inspect-strip").inner_text()


def test_the_watch_sees_what_runs_and_the_policy_keeps_requests_here(
    page: Any, serve: Callable[..., str], tmp_path: Path, watched: dict[str, list[str]]
):
    """The proof that the test above could fail, and the second line of defence where markup came through."""
    page.goto(serve(tmp_path / "home"))
    page.wait_for_selector("#run-demo")
    refused = page.evaluate(
        """async there => { const told = []; document.addEventListener('securitypolicyviolation',
          event => told.push(event.effectiveDirective));
        document.body.insertAdjacentHTML('beforeend', `<img src=x onerror=ran('planted')><img src=${there}/a.png>
          <object data=${there}/b></object><iframe src=${there}/c></iframe><base href=${there}/>
          <form id=out action=${there}/d target=_self></form>`);
        await fetch(there + '/e').catch(() => 0);
        document.querySelector('#out').submit();
        navigator.sendBeacon(there + '/f');
        await new Promise(go => setTimeout(go, 700)); return told; }""",
        ELSEWHERE,
    )
    assert watched["ran"] == ["planted"]
    assert {"img-src", "object-src", "frame-src", "connect-src", "form-action"} <= set(refused)
    assert page.url.startswith("http://127.0.0.1")
