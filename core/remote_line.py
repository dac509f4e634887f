"""HTTP to one studio elsewhere: which addresses are spoken to, how long to wait, and its errors as errors of here."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from core.errors import ConfigurationError, DataError, NotAllowedError, NotFoundError, OutOfMemoryError, StudioError
from core.home import RESERVE
from core.texts import tame
from core.units import GIB, MIB

ROOT = "/api/v1"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
AWAY = (502, 503, 504)  # what a proxy says while the studio starts anew
QUICK, SLOW = 60.0, 1800.0  # seconds until an answer has to begin
PATIENCE = 20.0  # seconds in which a read is tried again
BLOCK = MIB
MOST_ANSWER, MOST_FILE = 256 * MIB, 64 * GIB  # bytes, unpacked

Say = Callable[[str], None]


def to_stderr(text: str) -> None:
    print(tame(text), file=sys.stderr, flush=True)


class LostError(ConfigurationError):
    """The studio did not answer, or the connection broke before it did."""


class Line:
    """Calls to ``url`` with a token. ``patience`` holds for what may be asked twice, once the studio has answered."""

    def __init__(self, url: str, token: str | None = None, *, insecure: bool = False, say: Say = to_stderr) -> None:
        address = checked(url, insecure)
        self.url = str(address).rstrip("/")
        self.say, self.patience = say, PATIENCE
        self._met = False
        headers = {"x-tessera": "1", "user-agent": "tessera"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        # Proxies that the environment names lead out of this machine, so they are no way to its own studio.
        self._client = httpx.Client(
            base_url=self.url + ROOT, headers=headers, trust_env=address.host not in LOOPBACK, follow_redirects=False
        )

    def ask(self, verb: str, path: str, *, again: bool, slow: bool = False, **sent: Any) -> Any:
        """The JSON of an answer; ``again``: it may be asked twice, so a broken connection is tried again."""
        answer = self._tried(lambda: self._once(verb, path, slow, sent), again)
        try:
            return answer.json()
        except (ValueError, RecursionError) as error:
            raise self._strange(answer) from error

    def fetch(self, path: str, target: Path, **sent: Any) -> Path:
        """Write the file that answers a GET to ``target``."""

        def once() -> httpx.Response:
            with self._client.stream("GET", path, timeout=_timeout(True), **sent) as answer:
                if answer.status_code != 200:
                    return self._whole(answer)
                room = min(MOST_FILE, shutil.disk_usage(target.parent).free - RESERVE)
                with target.open("wb") as file:
                    for block in self._blocks(answer, room):
                        file.write(block)
                return answer

        self._tried(once, True)
        return target

    @contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """While entered, wait so long for a studio that went away."""
        before, self.patience = self.patience, seconds
        try:
            yield
        finally:
            self.patience = before

    def close(self) -> None:
        self._client.close()

    def _once(self, verb: str, path: str, slow: bool, sent: dict[str, Any]) -> httpx.Response:
        with self._client.stream(verb, path, timeout=_timeout(slow), **sent) as answer:
            return self._whole(answer)

    def _whole(self, answer: httpx.Response) -> httpx.Response:
        """An answer with all that it says, which has to be little enough to be held."""
        content = b"".join(self._blocks(answer, MOST_ANSWER))
        kept = [pair for pair in answer.headers.multi_items() if pair[0] == "location"]
        return httpx.Response(answer.status_code, headers=kept, content=content)

    def _blocks(self, answer: httpx.Response, room: int) -> Iterator[bytes]:
        """What an answer says, unpacked, as far as there is room."""
        for block in answer.iter_bytes(BLOCK):
            room -= len(block)
            if room < 0:
                raise ConfigurationError(
                    f"{self.url} sends more than fits here.", "Check --url (TESSERA_URL), or free space on the disk."
                )
            yield block

    def _tried(self, once: Callable[[], httpx.Response], again: bool) -> httpx.Response:
        """An answer that is right, or the StudioError that it tells."""
        deadline, pause, told = time.monotonic() + self.patience, 0.3, False
        while True:
            try:
                answer = once()
            except httpx.TransportError as error:
                if not again or not self._met or time.monotonic() > deadline:
                    raise self._lost(error, again) from error
            else:
                if answer.status_code not in AWAY or not again or not self._met or time.monotonic() > deadline:
                    self._met = True
                    return self._right(answer)
            if not told and pause > 0.5:  # not at the first try: a proxy closes idle connections
                told = True
                self.say(f"{self.url} does not answer now; waiting for it.")
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _right(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        told: Any = None
        with suppress(ValueError):
            told = answer.json().get("error") if isinstance(answer.json(), dict) else None
        if isinstance(told, str):  # a check around the whole application
            raise ConfigurationError(f"{self.url}: {told}", "Use the name that the studio answers to: docs/serving.md.")
        if not isinstance(told, dict) or not told.get("message"):
            raise self._strange(answer)
        raise _error(answer.status_code, str(told["message"]), str(told.get("hint") or ""), str(told.get("kind")))

    def _strange(self, answer: httpx.Response) -> StudioError:
        if answer.is_redirect:
            return ConfigurationError(
                f"{self.url} leads on to {answer.headers.get('location')}.", "Give that address as --url."
            )
        return ConfigurationError(
            f"{self.url} answered with {answer.status_code} and not as a studio does.", "Check --url (TESSERA_URL)."
        )

    def _lost(self, error: httpx.TransportError, again: bool) -> LostError:
        why = str(error) or type(error).__name__
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) or again:
            return LostError(f"{self.url} does not answer: {why}.", "Is the studio being served there?")
        return LostError(
            f"The connection to {self.url} broke before it answered: {why}.",
            "It may have done what it was asked. Look first (python app.py runs), then ask again.",
        )


def checked(url: str, insecure: bool) -> httpx.URL:
    """An address that a token may be sent to: https, or plain http that stays on this machine."""
    try:
        address = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise ConfigurationError(
            f"{url!r} is not an address: {error}.", "For example: https://studio.lab.org"
        ) from error
    if address.scheme not in ("http", "https") or not address.host or address.query or address.fragment:
        raise ConfigurationError(f"{url!r} is not the address of a studio.", "For example: https://studio.lab.org")
    if address.userinfo:
        raise ConfigurationError(
            "The address holds a name or password.", "Tokens belong into TESSERA_TOKEN or a file: docs/api.md."
        )
    if address.scheme == "http" and address.host not in LOOPBACK and not insecure:
        raise ConfigurationError(
            f"{url} is plain http: everybody on the way could read the token.",
            "Use https, or a tunnel (ssh -L 7860:127.0.0.1:7860 HOST) with --url http://127.0.0.1:7860; --insecure "
            "sends it nevertheless.",
        )
    return address


def _timeout(slow: bool) -> httpx.Timeout:
    return httpx.Timeout(connect=10.0, read=SLOW if slow else QUICK, write=QUICK, pool=10.0)


def _error(status: int, message: str, hint: str, kind: str) -> StudioError:
    by_status = {403: NotAllowedError, 404: NotFoundError}
    by_kind = {"data": DataError, "memory": OutOfMemoryError, "internal": StudioError}
    return by_status.get(status, by_kind.get(kind, ConfigurationError))(message, hint)
