"""A fused model as an adapter folder like any other run's, written without a base in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from core.adapters.cells import Cell
from core.adapters.config import MixtureConfig
from core.adapters.folders import PREFIX, WEIGHTS
from core.errors import ConfigurationError
from core.fusion.delta import Delta, TaskVector, paths_of
from core.fusion.methods.base import FusionOptions
from core.fusion.read import bare_base
from core.fusion.setting import Fused, Setting
from core.models import resolve_base
from core.schema import RunSpec

MOST = 1024  # the largest rank that a cell may have


@dataclass(frozen=True)
class FormRow:
    """How a projection was saved. ``rank`` is None for a whole matrix; ``relative_error`` is in Frobenius norm."""

    path: str
    rank: int | None
    relative_error: float


def save(fused: Fused, setting: Setting, options: FusionOptions) -> list[FormRow]:
    """Replace the run's adapter as a whole by one that adds the fused deltas; says and returns what saving lost.

    Where runs are full fine-tunes, ``auto`` keeps whole matrices. Tables of tokens are saved whole always.

    Raises:
        ConfigurationError: factors were asked for where the fused model has none.
    """
    ranks, whole = ranks_of(setting.vectors), has_dense(setting.vectors)
    tables = _tables(setting.spec) if options.form != "dense" else ()
    kept, rows = {}, []
    with torch.no_grad():
        for path, delta in fused.deltas.items():
            form = "dense" if path in tables else _form(path, delta, options, whole)
            delta = delta.to(setting.device, torch.float32)
            kept[path] = _formed(delta, form, options.rank or ranks[path])
            rows.append(FormRow(path, _rank(kept[path]), _error(delta, kept[path], form)))
            kept[path] = kept[path].to("cpu")
    _write(setting.folder.adapter, kept, _config(fused, setting, options, kept))
    setting.table("form", [field.name for field in fields(FormRow)], [astuple(row) for row in rows], fused.step)
    return rows


def ranks_of(vectors: Sequence[TaskVector]) -> dict[str, int]:
    """The ranks of the runs together at every projection, at most what the matrix can have."""
    found = {}
    for path in paths_of(vectors):
        deltas = [vector.deltas[path] for vector in vectors if path in vector.deltas]
        widest = min(deltas[0].shape)
        found[path] = min(widest, sum(delta.up.shape[1] if delta.low_rank else widest for delta in deltas))
    return found


def has_dense(vectors: Sequence[TaskVector]) -> bool:
    """Whether a run is a full fine-tune."""
    return any(not delta.low_rank for vector in vectors for delta in vector.deltas.values())


def truncated(delta: Delta, rank: int) -> Delta:
    """The nearest delta of that rank in Frobenius norm, the roots of the singular values in both factors.

    Of factors only their small cores are decomposed, in float64: ``up = Q_u R_u`` and ``down^T = Q_d R_d`` leave
    ``R_u R_d^T``, whose singular values are the product's.
    """
    if delta.low_rank:
        left, up = torch.linalg.qr(delta.up.double())
        right, down = torch.linalg.qr(delta.down.double().T)
        u, s, v = torch.linalg.svd(up @ down.T, full_matrices=False)
        u, v = left @ u, v @ right.T
    else:
        u, s, v = torch.linalg.svd(delta.up, full_matrices=False)
    roots = s[:rank].sqrt()
    return Delta((u[:, :rank] * roots).float(), (roots[:, None] * v[:rank]).float())


def _form(path: str, delta: Delta, options: FusionOptions, dense_sources: bool) -> str:
    rank, (rows, columns) = delta.up.shape[1], delta.shape
    if options.form == "concatenated" and not delta.low_rank:
        raise ConfigurationError(
            f"The fused update of {path} is one whole matrix, no sum of the runs' factors.",
            "Choose the form svd or dense, or leave it at auto.",
        )
    if options.form == "concatenated" and rank > MOST:
        raise ConfigurationError(
            f"The runs' factors at {path} together have rank {rank}, and an adapter has at most {MOST}.",
            "Choose the form svd or dense, or leave it at auto.",
        )
    if options.form != "auto":
        return options.form
    if delta.low_rank:  # factors that hold more numbers than their product are no gain
        return "concatenated" if rank <= MOST and rank * (rows + columns) <= rows * columns else "dense"
    return "dense" if dense_sources else "svd"


def _formed(delta: Delta, form: str, rank: int) -> Delta:
    if form == "concatenated":
        return delta
    if form == "dense":
        return Delta(delta.dense())
    return truncated(delta, min(rank, MOST, *delta.shape))


def _rank(delta: Delta) -> int | None:
    return delta.up.shape[1] if delta.low_rank else None


def _tables(spec: RunSpec) -> set[str]:
    return {name for name, module in bare_base(spec.model).named_modules() if isinstance(module, nn.Embedding)}


def _error(delta: Delta, kept: Delta, form: str) -> float:
    """Of what was kept against the whole update, measured; the exact forms lose nothing."""
    if form != "svd":
        return 0.0
    whole = delta.dense()
    norm = whole.norm().item()
    return (kept.dense() - whole).norm().item() / norm if norm else 0.0


def _config(fused: Fused, setting: Setting, options: FusionOptions, kept: Mapping[str, Delta]) -> MixtureConfig:
    """One cell for every rank and one for the whole matrices, each scaled by 1."""
    groups: dict[int | None, list[str]] = {}
    for path, delta in kept.items():
        groups.setdefault(_rank(delta), []).append(path)
    cells = [
        Cell(modules=paths, experts=1, rank=rank or 1, alpha=rank or 1, down="unique" if rank else "identity")
        for rank, paths in groups.items()
    ]
    said: dict[str, Any] = options.model_dump(mode="json") | fused.facts | {"sources": list(setting.spec.sources)}
    config = MixtureConfig(
        task_type="CAUSAL_LM",
        method=setting.spec.method.name,
        options=said,
        cells=[cell.model_dump(mode="json") for cell in cells],
        tasks=[task.name for task in setting.tasks],
        inference_mode=True,
    )
    config.base_model_name_or_path = str(resolve_base(setting.spec.model))
    return config


def _write(folder: Path, kept: Mapping[str, Delta], config: MixtureConfig) -> None:
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".adapter-"))
    try:
        save_file(_tensors(kept), temporary / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(temporary))
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tensors(kept: Mapping[str, Delta]) -> dict[str, Tensor]:
    """Under the names of an adapter's words, each with its axis of one expert; no two share memory."""
    found = {}
    for path, delta in kept.items():
        found[f"{PREFIX}{path}.tessera_up.weight"] = delta.up.detach().unsqueeze(0).clone().contiguous()
        if delta.down is not None:
            found[f"{PREFIX}{path}.tessera_down.weight"] = delta.down.detach().unsqueeze(0).clone().contiguous()
    return found
