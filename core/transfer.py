"""Runs and adapters from elsewhere: into the home and the database. Only safetensors, never pickles."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import uuid
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from core import access, children, hub
from core.adapters.folders import shapes_in
from core.adapters.methods import resolve
from core.data.store import DatasetStore
from core.errors import ConfigurationError, DataError, NotFoundError
from core.home import Home, RunFolder, read_json, write_json
from core.paths import allowed, check_plain, copy_folder, real
from core.records import Records
from core.schema import MethodSpec, RunSpec

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def import_run(source: Path, home: Home, records: Records, store: DatasetStore, name: str | None = None) -> str:
    """A run folder of another machine; the same folder again brings what has been added since. Returns the run's id.

    Data sets are named by content hash and need not be here: scores and routing are shown without them.
    """
    from core.jobs.ingest import close_imported, ingest_events
    from storage.queries import runs

    access.need("researcher")
    refuse_archive(source)
    folder = RunFolder(allowed(source))
    if elsewhere := folder.root.resolve().parent != home.runs and folder.root.is_dir():
        check_plain(folder.root)
    spec = _read_spec(folder)
    identity = _identity(folder)
    known = {info.id for info in store.list()}
    with records.write() as session:
        row, _ = runs.add(
            session,
            spec=spec.model_dump(mode="json"),
            name=name or spec.name,
            datasets=[task.dataset for task in spec.tasks if task.dataset in known],
            imported_from=str(source),
            request_id=f"import-{identity}",
            owner=access.acting().name,
            above=_above(source, home),
        )
    target = home.run(row.id)
    if elsewhere:
        _copy(folder, target.create())
    ingest_events(records.database, target)
    close_imported(records.database, run=row.id)
    return row.id


def _above(source: Path, home: Home) -> int:
    """A run folder of this home keeps its number where the database has not come so far; others go past all folders."""
    number = source.name.removeprefix("run-")
    own = source.resolve().parent == home.runs.resolve() and number.isdecimal()
    return int(number) - 1 if own else home.last_run


def _read_spec(folder: RunFolder) -> RunSpec:
    if not folder.spec.is_file() or not folder.events.is_file():
        missing = folder.spec.name if not folder.spec.is_file() else folder.events.name
        raise NotFoundError(
            f"{folder.root} is not a run folder: it has no {missing}.",
            "Give the folder that `train --here` wrote, or a PEFT adapter folder with adapter_config.json.",
        )
    try:
        return RunSpec.parse(read_json(folder.spec))
    except ValueError as error:
        raise DataError(f"{folder.spec} is not valid JSON: {error}.", "Copy the run folder again.") from error


def _identity(folder: RunFolder) -> str:
    """What makes a run itself wherever its folder lies: its first event, which has its name and the time."""
    with folder.events.open("rb") as file:
        first = file.readline()
    if not first.endswith(b"\n"):
        raise DataError(f"{folder.events} holds no event.", "Import the run after it has started.")
    return hashlib.sha256(first).hexdigest()[:24]


def _copy(source: RunFolder, target: RunFolder) -> None:
    """Files go first, events last: what the events name is there when they are read."""
    if not target.spec.is_file():
        shutil.copyfile(source.spec, target.spec)
    parts = [source.adapter, source.routing, source.predictions, source.logs]
    if not source.adapter.is_dir():
        parts.append(source.checkpoints)  # a run that did not finish can be resumed here
    for part in parts:
        if part.is_dir():
            copy_folder(part, target.root / part.name, _no_pickle if part != source.checkpoints else None)
    _append_events(source.events, target.events)


def _append_events(source: Path, target: Path) -> None:
    """Add the whole lines that ``target`` does not have; what was scored here since the first import stays."""
    known = set(target.read_bytes().splitlines(keepends=True)) if target.is_file() else set()
    lines = source.read_bytes().splitlines(keepends=True)
    new = b"".join(line for line in lines if line.endswith(b"\n") and line not in known)
    with target.open("ab") as file:
        file.write(new)


def _no_pickle(name: str) -> bool:
    return not name.endswith(PICKLES)


def refuse_archive(source: str | Path) -> None:
    """Say what to do with an archive, which is never unpacked here: it may hold bombs, links and other folders."""
    if str(source).lower().endswith(ARCHIVES) and not real(source).is_dir():
        raise ConfigurationError(
            f"{Path(source).name} is an archive, and only folders are imported.",
            "Unpack it, then give the folder that holds spec.json or adapter_config.json.",
        )


def import_adapter(
    source: str,
    home: Home,
    records: Records,
    *,
    base: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    origin: str | None = None,
) -> str:
    """A PEFT adapter folder or the Hub id of one as a run of its own; returns the run's id.

    ``origin`` says where it comes from, where that is not ``source``.
    """
    from storage.queries import runs

    access.need("researcher")
    folder = adapter_source(source, revision)
    config = _config(folder)
    method = _method(config)
    resolve(method)  # refuses numbers that no adapter has
    spec = RunSpec.parse(
        {
            "name": name or Path(source).name,
            "origin": origin or (source if revision is None else f"{source}@{revision}"),
            "model": {"base": _base(config, base, source)},
            "method": method.model_dump(),
        }
    )
    with tempfile.TemporaryDirectory(dir=home.runs, prefix=".import-") as temporary:
        staged = Path(temporary) / "adapter"
        staged.mkdir()
        copy_folder(folder, staged, _of_adapter, deep=False)
        parameters = _parameters(staged)
        identity = _digest(staged)
        with records.write() as session:
            row, new = runs.add(
                session,
                spec=spec.model_dump(mode="json"),
                name=spec.name,
                imported_from=spec.origin,
                request_id=f"adapter-{identity}-{hashlib.sha256(spec.model.base.encode()).hexdigest()[:8]}",
                owner=access.acting().name,
                above=home.last_run,
            )
            if new:
                runs.set_parameters(session, run_id=row.number, trainable=parameters, total=None)
        target = home.run(row.id)
        if not target.adapter.is_dir():
            target.create()
            write_json(target.spec, spec.model_dump(mode="json"))
            staged.rename(target.adapter)
    return row.id


def export(folder: RunFolder, target: Path) -> Path:
    """A PEFT adapter folder with its own loader, made in a child process since it needs torch."""
    if not folder.adapter.is_dir():
        raise NotFoundError(
            f"{folder.root.name} has no adapter.", "Export a run that has finished training; the base alone has none."
        )
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise ConfigurationError(f"{target} exists and is not empty.", "Name a folder that does not exist yet.")
    base = RunSpec.parse(read_json(folder.spec)).model.base
    paths = {"source": str(folder.adapter), "target": str(target.resolve())}
    children.call("core.adapters.export", "export", **paths, base=base)
    return target.resolve()


def delete_run(run: str, home: Home, records: Records) -> None:
    """The database first: a folder without a row is only disk space, a row without a folder would break pages."""
    from storage.queries import runs

    with records.write() as session:
        name = runs.remove(session, run=run)
    folder = home.run(name).root
    if not folder.is_dir():
        return
    gone = folder.with_name(f".gone-{folder.name}-{uuid.uuid4().hex[:6]}")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def adapter_source(source: str, revision: str | None = None) -> Path:
    """The local folder of an adapter; a Hub id is downloaded once."""
    refuse_archive(source)
    folder = real(source)
    if folder.is_dir():
        folder = allowed(folder)
        if not (folder / "adapter_config.json").is_file():
            raise NotFoundError(
                f"{folder} is neither a run folder (spec.json) nor a PEFT adapter (adapter_config.json).",
                "Give the folder itself, not the one around it.",
            )
        return folder
    if hub.is_path(source):
        raise NotFoundError(f"The folder {source} does not exist.", "Check the path, or give a Hub id: owner/name.")
    return hub.adapter_folder(source, revision)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"adapter_config.json in {folder} is not valid JSON: {error}.", "Save it again.") from error
    if not isinstance(config, dict):
        raise DataError(f"adapter_config.json in {folder} holds no settings.", "Save it again.")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        found = f" Its weights are in {pickles[0]}; opening such a file can run any code." if pickles else ""
        raise ConfigurationError(
            f"{folder} has no safetensors.{found}", "Save the adapter with a current PEFT, which writes safetensors."
        )
    return config


def _base(config: dict[str, Any], given: str | None, source: str) -> str:
    base = given or config.get("base_model_name_or_path")
    if not base:
        raise ConfigurationError(f"{source} does not name its base model.", "Name it with --base.")
    return str(base)


def _method(config: dict[str, Any]) -> MethodSpec:
    """What kind of adapter it is."""
    kind = str(config.get("peft_type", "")).upper()
    if kind in ("LORA", "POLY"):
        return _baseline(kind, config)
    if "cells" in config:
        return _preset(config) or MethodSpec.parse({"name": "split", "cells": config["cells"]})
    raise ConfigurationError(
        f"The adapter is of the PEFT type {kind or 'unknown'}, which the studio cannot run.",
        "LoRA, DoRA and Poly adapters and mixtures that the studio trained can be imported.",
    )


def _baseline(kind: str, config: dict[str, Any]) -> MethodSpec:
    """A method of PEFT's by its preset; one that was trained here says its options itself."""
    rank = config.get("r", 8)
    if kind == "POLY":
        name, options = "poly", {"rank": rank, "experts": config.get("n_skills", 4)}
    else:
        name = "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
        options = {"rank": rank, "alpha": config.get("lora_alpha", 8)}
    return MethodSpec.parse(
        {"name": name, "options": (config.get("method") == name and config.get("options")) or options}
    )


def _preset(config: dict[str, Any]) -> MethodSpec | None:
    """The preset that an adapter's config names, where its options still mean the cells that are stored."""
    try:
        method = MethodSpec.parse({"name": config.get("method") or "split", "options": config.get("options") or {}})
        cells = [cell.model_dump(mode="json") for cell in resolve(method)]
    except (ConfigurationError, ValueError):
        return None
    return method if cells == config["cells"] else None


def _of_adapter(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in hub.ADAPTER_FILES)


def _parameters(folder: Path) -> int:
    """Numbers in all tensors, from the headers of the safetensors files."""
    found = [shapes_in(path) for path in sorted(folder.glob("*.safetensors"))]
    return sum(math.prod(shape) for one in found for shape in one.values())


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix != ".md":
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:24]
