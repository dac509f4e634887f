"""What people point at (a file, several, a folder, a folder of folders) to the files of tasks and splits."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.data.metadata import FILE, TaskMetadata, folder_metadata
from core.data.names import SPLIT_NAMES, split_of, task_name
from core.data.textfile import FORMATS
from core.errors import DataError, NotFoundError
from core.paths import allowed, link_root, real

_NOT_DATA = ("dataset_info", "dataset_infos", "dataset_dict", "state", "package", "config", "tasks", "metadata")


@dataclass(frozen=True)
class PlannedFile:
    """A file with the task and split that its place names; rows may say otherwise. Split None: to be drawn from."""

    path: Path
    task: str
    split: str | None = None


@dataclass
class Plan:
    name: str
    files: list[PlannedFile]
    metadata: dict[str, TaskMetadata] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def plan(paths: Sequence[Path], splits: Mapping[str, str] | None = None) -> Plan:
    """The files to read. ``splits`` names the split of single files by file name or path."""
    splits = dict(splits or {})
    for path in paths:
        if not path.exists():
            raise NotFoundError(f"There is no file or folder {path}.", _near(path))
    if len(paths) == 1 and paths[0].is_dir():
        found = _folder(paths[0])
    else:
        found = Plan(_common_name(paths), [])
        for path in paths:
            if path.is_dir():
                part = _folder(path)
                found.files += part.files
                found.metadata |= part.metadata
                found.notes += part.notes
            else:
                found.files.append(_single(path))
                found.metadata |= folder_metadata(path.parent)
    found.files = _with_given_splits(found.files, splits)
    _check_links(found.files, paths)
    return found


def _check_links(files: Sequence[PlannedFile], paths: Sequence[Path]) -> None:
    """Links in a folder lead people who signed in no further than its name would."""
    roots = [link_root(path) for path in paths]
    for file in files:
        target = real(file.path)
        if not any(root == target or root in target.parents for root in roots):
            allowed(target)


def _folder(folder: Path) -> Plan:
    """A folder of split files, of task files, or of such folders (also ``data/`` inside)."""
    result = Plan(task_name(folder.resolve().name), [], folder_metadata(folder))
    result.files, whole = _files_here(folder, result.name)
    if whole:  # train.*, test.*: the folder is one task
        names = {file.path.name for file in result.files}
        other = [p.name for p in sorted(folder.iterdir()) if p.is_file() and is_data_file(p) and p.name not in names]
        if other:
            result.notes.append(f"Left out, because their names name no split: {', '.join(other)}.")
        return result
    listed = (folder / FILE).is_file()
    left_out = []
    order = {name: place for place, name in enumerate(result.metadata)}
    children = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))
    for child in sorted(children, key=lambda p: order.get(p.name, len(order))):
        if listed and child.name not in result.metadata and child.name != "data":
            left_out.append(child.name)
            continue
        name = _task_of(child, result.name)
        files, _ = _files_here(child, name)
        if not files:  # one level deeper, as Hub repositories have it: data/<config>/train-00000-of-00001.parquet
            inner = sorted(p for p in child.iterdir() if p.is_dir())
            files = [file for deeper in inner for file in _files_here(deeper, _task_of(deeper, name))[0]]
        result.files += files
    if left_out:
        result.notes.append(f"Left out, because {FILE} does not name them: {', '.join(left_out)}.")
    if not result.files:
        raise DataError(
            f"The folder {folder} holds no data files.",
            f"Supported are {', '.join(FORMATS)}, each also with .gz, also in folders named by task.",
        )
    return result


def _task_of(folder: Path, outer: str) -> str:
    """A folder's task: its name, unless that is ``data`` or a split's."""
    return outer if folder.name.lower() in {"data", *SPLIT_NAMES} else task_name(folder.name)


def _files_here(folder: Path, name: str) -> tuple[list[PlannedFile], bool]:
    """The data files directly in a folder, and whether they are the splits of one task rather than a task each."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and is_data_file(path)]
    found = [(path, *split_of(stem(path))) for path in paths]
    bare = [PlannedFile(path, name, split) for path, split, rest in found if split and not rest]
    if bare:
        return bare, True
    if folder.name.lower() in SPLIT_NAMES:
        return [PlannedFile(path, name, SPLIT_NAMES[folder.name.lower()]) for path in paths], False
    return [PlannedFile(path, task_name(rest), split) for path, split, rest in found], False


def _single(path: Path) -> PlannedFile:
    """A file named by hand: ``train.csv`` belongs to the task that its folder names."""
    split, rest = split_of(stem(path))
    return PlannedFile(path, task_name(rest or path.resolve().parent.name), split)


def _with_given_splits(files: list[PlannedFile], splits: Mapping[str, str]) -> list[PlannedFile]:
    left = dict(splits)
    result = []
    for file in files:
        key = next((k for k in (str(file.path), file.path.name, stem(file.path)) if k in splits), None)
        split = file.split
        if key is not None:
            left.pop(key, None)
            split = SPLIT_NAMES.get(splits[key].lower())
            if split is None:
                raise DataError(
                    f"{splits[key]!r} (given for {key}) is not a split.", "The splits are train, validation, test."
                )
        result.append(PlannedFile(file.path, file.task, split))
    if left:
        names = [file.path.name for file in files]
        near = difflib.get_close_matches(next(iter(left)), names, n=1) or names[:1]
        raise DataError(f"A split is given for {next(iter(left))}, which is not uploaded.", f"Did you mean {near[0]}?")
    return result


def is_data_file(path: Path) -> bool:
    packed = path.suffix.lower() == ".gz"
    suffix = Path(path.stem).suffix if packed else path.suffix
    return suffix.lower() in FORMATS and stem(path).lower() not in _NOT_DATA and not path.name.startswith(".")


def stem(path: Path) -> str:
    """The file name without its format and compression."""
    name = path.name[: -len(".gz")] if path.name.lower().endswith(".gz") else path.name
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in FORMATS else name


def _common_name(paths: Sequence[Path]) -> str:
    names = dict.fromkeys(_single(path).task for path in paths)
    return "_".join(list(names)[:3]) or "data"


def _near(path: Path) -> str:
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
        if near:
            return f"Did you mean {near[0]}?"
    return "Check the path; it is read on the machine of the studio. A Hub data set is named owner/name."
