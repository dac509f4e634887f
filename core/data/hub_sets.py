"""Data sets of the Hugging Face Hub: their data files are fetched and read like any folder.

Uses ``huggingface_hub`` alone: ``datasets`` would bring torch into the process that shows the pages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from core import hub as access
from core.data.sources import is_data_file
from core.errors import DataError, NotFoundError

PREFIX = "hub:"
LARGEST = 4 * 2**30  # bytes
_ID = re.compile(r"^[\w][\w.\-]*/[\w][\w.\-]*$")


@dataclass(frozen=True)
class HubSet:
    """``owner/name`` with an optional ``@revision`` and ``:folder`` (a configuration)."""

    repo: str
    revision: str | None = None
    folder: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}" + (f":{self.folder}" if self.folder else "")


def parse_hub(text: str | Path) -> HubSet | None:
    """The Hub data set that ``hub:owner/name[@revision][:folder]`` names; without ``hub:`` if no such path exists."""
    text = str(text)
    given = text.startswith(PREFIX)
    plain = text.removeprefix(PREFIX)
    head, _, folder = plain.partition(":")
    repo, _, revision = head.partition("@")
    if _ID.match(repo) and (given or not Path(text).exists() and Path(repo).suffix.lower() not in _suffixes()):
        if ".." in Path(folder).parts:  # it is looked for below the snapshot
            raise DataError(f"{text!r} leads out of the data set.", "Name a folder inside it.")
        return HubSet(repo, revision or None, folder.strip("/"))
    if given:
        raise DataError(f"{text!r} is not a Hub data set.", "Write hub:owner/name, with @revision if needed.")
    return None


def fetch(source: HubSet, cache: Path | None = None) -> Path:
    """Download the data files of a Hub data set (or find them in the cache) and return their folder."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import errors as hub

    endpoint = os.environ.get("HF_ENDPOINT") or None
    cache = cache or (Path(folder) if (folder := os.environ.get("HF_HUB_CACHE")) else None)
    try:
        there = access.reachable()
        with access.quiet():
            patterns = _wanted(HfApi(endpoint=endpoint), source) if there else [f"*{suffix}*" for suffix in _suffixes()]
            folder = snapshot_download(
                source.repo,
                repo_type="dataset",
                revision=source.revision,
                allow_patterns=patterns,
                endpoint=endpoint,
                cache_dir=cache,
                local_files_only=not there,
            )
    except hub.GatedRepoError as error:
        raise DataError(
            f"The Hub data set {source.repo} is gated.",
            "Ask for access on its page, then log in with `hf auth login` or set HF_TOKEN.",
        ) from error
    except hub.RevisionNotFoundError as error:
        raise NotFoundError(
            f"The Hub data set {source.repo} has no revision {source.revision!r}.", "Leave it out for the newest."
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise NotFoundError(
            f"There is no Hub data set {source.repo}, or it is private.",
            "Check the spelling; for a private one log in with `hf auth login` or set HF_TOKEN.",
        ) from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise NotFoundError(
            f"The Hub data set {source.repo} is not in the cache and the Hub cannot be reached.",
            "Connect to the network, unset HF_HUB_OFFLINE, or upload the files themselves.",
        ) from error
    except Exception as error:
        if not isinstance(error, hub.HfHubHTTPError | OSError) and not access.is_connection_error(error):
            raise
        raise DataError(
            f"The Hub data set {source.repo} could not be fetched: {type(error).__name__}: {_short(error)}",
            "Try again later, or upload the files themselves.",
        ) from error
    return Path(folder) / source.folder


def _wanted(api, source: HubSet) -> list[str]:
    """The data files to download: below the named folder, of one format if there are several."""
    entries = api.list_repo_tree(source.repo, recursive=True, revision=source.revision, repo_type="dataset")
    files = {e.path: e.size for e in entries if hasattr(e, "size")}
    inside = [p for p in files if p.startswith(f"{source.folder}/" if source.folder else "")]
    data = [path for path in inside if is_data_file(Path(path))]
    if not data:
        scripts = any(path.endswith(".py") for path in files)
        raise DataError(
            f"The Hub data set {source} holds no csv, tsv, json, jsonl or parquet files"
            + (", only a script" if scripts else "")
            + ".",
            "Use its branch refs/convert/parquet: hub:owner/name@refs/convert/parquet.",
        )
    size = sum(files[path] or 0 for path in data)
    if size > LARGEST:
        folders = sorted({path.split("/")[0] for path in data if "/" in path})
        raise DataError(
            f"The Hub data set {source} has {size / 2**30:.1f} GiB of data files, more than {LARGEST / 2**30:.0f}.",
            f"Name one folder: hub:{source.repo}:{folders[0] if folders else 'FOLDER'}.",
        )
    return data + [path for path in files if Path(path).name == "tasks.json"]


def _suffixes() -> Iterable[str]:
    from core.data.textfile import FORMATS

    return FORMATS


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or "no answer."
