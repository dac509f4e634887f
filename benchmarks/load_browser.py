"""A browser without a screen: opens pages and keeps them as Gradio's own scripts do, so that a hundred fit on one core.

A tab asks for the page, keeps the heartbeat's stream open, posts the page's load events, then every timer's tick at
its period with the values that the page would send; ``live`` mirrors what the page does before a tick.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import secrets
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

import httpx

CONFIG = re.compile(r"window\.gradio_config = (\{.*?\});</script>", re.S)
PATHS = ("/", "/data", "/methods", "/experiment", "/runs", "/compare", "/fusion", "/routing", "/chat")
Told = Callable[[str, str, float], None]  # page, what (page, load, tick), seconds
T = TypeVar("T")


def finished(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns, in a thread of its own: this one may have a loop of events already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def browser(address: str) -> httpx.AsyncClient:
    """Connections to a studio; it speaks plain http, so no certificates are read."""
    return httpx.AsyncClient(base_url=address, timeout=60, trust_env=False, verify=False)


class Tab:
    """One page of a studio in one browser; use ``open``, then ``live``, then ``close``."""

    def __init__(self, client: httpx.AsyncClient, path: str, told: Told | None = None) -> None:
        self.client, self.path = client, path
        self.session = secrets.token_hex(6)
        self.query = path.partition("?")[2]
        self.values: dict[int, Any] = {}
        self.events: dict[str, list[dict[str, Any]]] = {"load": [], "tick": []}
        self.timers: dict[int, float] = {}
        self._told = told or (lambda page, what, seconds: None)
        self._open = AsyncExitStack()

    @property
    def page(self) -> str:
        return self.path.partition("?")[0]

    async def open(self) -> None:
        """Everything until the page is filled."""
        began = time.perf_counter()
        answer = await self.client.get(self.path)
        answer.raise_for_status()
        self._told(self.page, "page", time.perf_counter() - began)
        self._read(json.loads(CONFIG.search(answer.text)[1]))  # type: ignore[index]
        beat = self.client.stream("GET", f"/gradio_api/heartbeat/{self.session}")
        stream = await self._open.enter_async_context(beat)
        stream.raise_for_status()
        for event in self.events["load"]:
            await self.post(event, "load")

    async def live(self, seconds: float) -> None:
        """Tick for some seconds; every timer for itself, and no tick before the answer to the one before."""
        await asyncio.gather(*(self._tick(event, seconds) for event in self.events["tick"]))

    async def post(self, event: dict[str, Any], what: str) -> list[Any]:
        """One event to the server; what it answers becomes what the tab shows."""
        trigger = event["targets"][0][0]
        body = {"data": [self.values.get(one) for one in event["inputs"]], "fn_index": event["id"]}
        body |= {"event_data": None, "trigger_id": trigger, "session_hash": self.session}
        began = time.perf_counter()
        address = "/gradio_api/run/predict" + (f"?{self.query}" if self.query else "")
        answer = await self.client.post(address, json=body)
        self._told(self.page, what, time.perf_counter() - began)
        answer.raise_for_status()
        data = answer.json()["data"]
        for one, value in zip(event["outputs"], data, strict=False):
            if not isinstance(value, dict) or value.get("__type__") != "update":
                self.values[one] = value
            elif "value" in value:
                self.values[one] = value["value"]
        return data

    async def close(self) -> None:
        """As when a tab is closed: the heartbeat's stream breaks off."""
        with suppress(httpx.HTTPError):
            await self._open.aclose()

    def _read(self, config: dict[str, Any]) -> None:
        kinds = {one["id"]: one for one in config["components"]}
        self.values = {number: one["props"].get("value") for number, one in kinds.items() if one["type"] != "state"}
        self.timers = {number: one["props"]["value"] for number, one in kinds.items() if one["type"] == "timer"}
        for event in config["dependencies"]:
            for kind in {name for _, name in event["targets"]} & set(self.events):
                if event["backend_fn"]:
                    self.events[kind].append(event)

    async def _tick(self, event: dict[str, Any], seconds: float) -> None:
        period = self.timers[event["targets"][0][0]]
        end = time.perf_counter() + seconds
        await asyncio.sleep(random.uniform(0, period))
        while (now := time.perf_counter()) < end:
            await self.post(event, "tick")
            await asyncio.sleep(max(0.0, period - (time.perf_counter() - now)))
