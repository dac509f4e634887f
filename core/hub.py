"""The Hugging Face Hub without torch: is it there, does an id exist, and adapters by id."""

from __future__ import annotations

import io
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError, NotFoundError, StudioError
from core.secrets import masked

ADAPTER_FILES = ("adapter_config.json", "*.safetensors", "README.md")


def endpoint() -> str:
    """The address that is asked: ``HF_ENDPOINT`` or the public Hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_path(name: str) -> bool:
    """Whether a name can only mean a folder: Hub ids are ``name`` or ``owner/name``."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def reachable(timeout: float = 3.0) -> bool:
    """Whether the Hub answers at all within ``timeout`` seconds."""
    if offline():
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint(), method="HEAD"), timeout=timeout):
            return True
    except urllib.error.HTTPError:
        return True  # an answer, whatever it says
    except (OSError, ValueError):
        return False


def is_connection_error(error: Exception) -> bool:
    """Whether a request got no answer at all."""
    http_client = type(error).__module__.split(".")[0] in ("httpx", "httpcore", "httpx2", "httpcore2")
    return http_client or isinstance(error, ConnectionError | TimeoutError)


@contextmanager
def quiet() -> Iterator[None]:
    """The client's own warnings about retries stay away from people: what a failure means is said once, at the end."""
    log = logging.getLogger("huggingface_hub")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def progress_bar(tell: Callable[[int, int], None], pause: float = 1.0) -> type:
    """A progress bar class for ``snapshot_download`` that shows nothing and tells bytes, every ``pause`` seconds."""
    from tqdm import tqdm

    class Bar(tqdm):
        told, most = 0.0, 0  # several bars may count the same bytes

        def __init__(self, *args: Any, **options: Any) -> None:
            self.counts = options.get("unit") == "B"  # another bar counts whole files
            options.pop("name", None)
            super().__init__(*args, **(options | {"disable": False, "file": io.StringIO(), "mininterval": 3600}))

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            now = time.monotonic()
            if self.counts and self.total and self.n > Bar.most and (now - Bar.told >= pause or self.n >= self.total):
                Bar.told, Bar.most = now, self.n
                tell(int(self.n), int(self.total))
            return shown

    return Bar


def require_model(name: str, revision: str | None = None, timeout: float = 10.0) -> bool:
    """True when the Hub has this model, False when the Hub cannot be asked; raises for wrong and gated ids."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if not reachable():  # the client itself would try for half a minute
        return False
    try:  # a file's header, since a gated repository tells everyone that it exists but gives files to few
        with quiet():
            get_hf_file_metadata(
                hf_hub_url(name, "config.json", revision=revision, endpoint=endpoint()),
                timeout=timeout,
                endpoint=endpoint(),
            )
    except (ConnectionError, TimeoutError, OfflineModeIsEnabled):
        return False
    except EntryNotFoundError as error:
        raise ConfigurationError(
            f"{name} on the Hub has no config.json, so it is not a model in the transformers format.",
            "Name a whole model; an adapter alone is brought in with: python app.py import ID",
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise refusal(error, name, revision) from error
    except OSError:
        return False
    except Exception as error:  # the HTTP client's own connection errors derive from no common class
        if is_connection_error(error):
            return False
        raise refusal(error, name, revision) from error
    return True


def adapter_folder(name: str, revision: str | None = None) -> Path:
    """Download an adapter's configuration and safetensors from the Hub once; the local folder."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    source: dict[str, Any] = {"repo_id": name, "revision": revision, "endpoint": endpoint()}
    source["local_files_only"] = not reachable()
    try:
        with quiet():
            hf_hub_download(filename="adapter_config.json", **source)  # first, since a whole model may be gigabytes
            return Path(snapshot_download(allow_patterns=list(ADAPTER_FILES), **source))
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise ConfigurationError(
                f"{name} on the Hub holds no adapter_config.json, so it is not a PEFT adapter.",
                "To train on a whole model, name it as the base of a run instead.",
            ) from error
        raise refusal(error, name, revision) from error


def refusal(error: Exception, name: str, revision: str | None = None) -> StudioError:
    """What a failed request to the Hub means to people."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = getattr(getattr(error, "response", None), "status_code", None)
    cause = getattr(getattr(error.__cause__, "response", None), "status_code", None)
    if isinstance(error, HFValidationError):
        return NotFoundError(f"{name} is neither a local folder nor a Hub id.", "Hub ids look like owner/name.")
    if isinstance(error, GatedRepoError) or 403 in (status, cause):
        return ConfigurationError(
            f"Access to {name} is restricted.",
            "Accept its licence on its Hub page, then set HF_TOKEN to a token of that account.",
        )
    if isinstance(error, RevisionNotFoundError):
        return NotFoundError(f"{name} has no revision {revision}.", "Give a branch, tag or commit of its Hub page.")
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return NotFoundError(
            f"The Hub knows no repository {name}.", "Check the spelling; for a private repository set HF_TOKEN."
        )
    if isinstance(error, LocalEntryNotFoundError) and status is None and cause is None:
        return NotFoundError(
            f"{name} is not in the local cache and the Hub ({masked(endpoint())}) cannot be reached.",
            "Go online (and unset HF_HUB_OFFLINE), or copy the files here and give their folder.",
        )
    if status or cause:
        return NotFoundError(f"The Hub answered {status or cause} for {name}.", "Try again later.")
    return NotFoundError(masked(f"{name} could not be fetched from {endpoint()}: {error}."), "Check the connection.")
