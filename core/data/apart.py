"""Large files are read by a process of their own: who serves pages stays small, and answers meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from core import access, children
from core.data.prepare import silent
from core.data.preview import Preview
from core.data.store import DatasetInfo, DatasetStore
from core.data.templates import PromptTemplate, TextEncoder
from core.data.upload import preview, upload
from core.models import resolve_base
from core.schema import ModelSpec

LARGE = 2**25  # bytes
LONGEST = 6 * 3600.0  # seconds

Sources = str | Path | Sequence[str | Path]
Told = Callable[[str], None] | None


def large(source: Sources) -> bool:
    """Whether the files that ``source`` names are worth a process; what is not on this disk is not known to be."""
    total = 0
    with suppress(OSError, ValueError):  # reading them says what is wrong
        for path in map(Path, [source] if isinstance(source, str | Path) else source):
            place = path.expanduser()
            for file in place.rglob("*") if place.is_dir() else [place]:
                total += file.stat().st_size if file.is_file() else 0
                if total > LARGE:
                    return True
    return False


def upload_apart(store: DatasetStore, source: Sources, told: Told, **options: Any) -> DatasetInfo:
    """As ``core.data.upload.upload``."""
    access.need("researcher")
    arguments = {"root": str(store.root), "source": _plain(source), "options": options}
    found = children.call(__name__, "_upload", timeout=LONGEST, told=told, **arguments)
    return DatasetInfo.model_validate(found)


def preview_apart(store: DatasetStore, source: Sources, told: Told, *, base: str, **options: Any) -> Preview:
    """As ``core.data.upload.preview``, with the tokenizer of ``base``."""
    if template := options.pop("template", None):
        options["template"] = template.model_dump(mode="json")
    arguments = {"root": str(store.root), "source": _plain(source), "base": base, "options": options}
    found = children.call(__name__, "_preview", timeout=LONGEST, told=told, **arguments)
    return Preview.model_validate(found)


def _plain(source: Sources) -> list[str]:
    return [str(path) for path in ([source] if isinstance(source, str | Path) else source)]


def _upload(root: str, source: list[str], options: dict[str, Any], told: Told = None) -> dict[str, Any]:
    return upload(DatasetStore(root), source, told=told or silent, **options).model_dump(mode="json")


def _preview(root: str, source: list[str], base: str, options: dict[str, Any], told: Told = None) -> dict[str, Any]:
    if template := options.pop("template", None):
        options["template"] = PromptTemplate(**template)
    encoder = TextEncoder(resolve_base(ModelSpec(base=base)))
    return preview(source, encoder=encoder, room=Path(root), told=told or silent, **options).model_dump(mode="json")
