"""The forms of the Experiment page and the settings of a run, each made from the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app import forms
from app.pages import data_names
from app.pages import experiment_grid as grids
from app.pages.experiment_words import Words, options_in_use
from core.errors import ConfigurationError
from core.schema import BUNDLED_BASE, RunSpec

COMMON = ("steps", "epochs", "learning_rate", "batch_size", "max_length", "sampling")
LONG = ("instruction", "user", "system", "notes")
ABOUT = ("name", "seeds", "device", "tags", "notes")
EVERY = "*"  # the group of settings for all tasks
TAB = "\t"  # between data set, task and setting: in no name
MOST_SEEDS = 20
MOST_TASKS = 30  # groups of settings that are shown

Settings = Mapping[str, Sequence[Mapping[str, Any]]]


def _fields(options: Iterable[Mapping[str, Any]], prefix: str, **more: Any) -> list[forms.Field]:
    """Fields of a part of the schema; what is left empty is the default, which stands there faintly."""
    found = []
    for option in options:
        long = {"type": "long", "wide": True} if option["name"] in LONG else {}
        default = option["default"]
        shown = "" if default in (None, [], {}) or isinstance(default, bool) else str(default)
        found.append(forms.field(option, prefix, **{"empty": shown, **long, **more}))
    return found


# The base model


def model_groups(settings: Settings) -> list[dict[str, Any]]:
    fields = _fields(settings["model"], "model.", lazy=True)
    fields[0] |= {"suggestions": [BUNDLED_BASE], "wide": True, "label": "base model"}
    return [forms.group("", fields[:1]), forms.group("Precision, revision, code", fields[1:], fold=True)]


def model_data(settings: Settings, raw: Any) -> dict[str, Any]:
    return _nested(forms.read(forms.fields_of(model_groups(settings)), forms.values_in(raw))).get("model", {})


def flat(part: str, data: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The values of one part of a run by the names of its fields, defaults filled in."""
    given = data.get(part) if isinstance(data.get(part), Mapping) else {}
    return {f"{part}.{o['name']}": given.get(o["name"], o["default"]) for o in settings[part]}


# Training, scoring, and what people write about a run


def train_groups(settings: Settings) -> list[dict[str, Any]]:
    by_name = {option["name"]: option for option in settings["train"]}
    first = _fields([by_name[name] for name in COMMON], "train.")
    rest = _fields([option for name, option in by_name.items() if name not in COMMON], "train.")
    run = {option["name"]: option for option in settings["run"]}
    seeds = {**run["seed"], "name": "seeds", "type": "integers", "help": "One run for each, such as 0, 1, 2."}
    about = {**run, "seeds": seeds, "tags": {**run["tags"], "type": "names"}}
    fields = _fields([about[name] for name in ABOUT], "run.")
    fields[3] |= {"reads": "several"}
    fields[0] |= {"empty": "made from method and tasks"}
    return [
        forms.group("Training", first),
        forms.group("More training settings", rest, fold=True),
        forms.group("Scoring", _fields(settings["evaluation"], "evaluation."), fold=True),
        forms.group("This run", fields),
    ]


def train_values(data: Mapping[str, Any], seeds: Sequence[int], settings: Settings) -> dict[str, Any]:
    defaults = {option["name"]: option["default"] for option in settings["run"]}
    about = {f"run.{name}": data.get(name, defaults.get(name)) for name in ABOUT if name != "seeds"}
    values = {**flat("train", data, settings), **flat("evaluation", data, settings), **about}
    return values | {"run.seeds": list(seeds)}


def train_data(settings: Settings, raw: Any) -> tuple[dict[str, Any], list[int]]:
    """Settings of the run, and its seeds."""
    found = _nested(forms.read(forms.fields_of(train_groups(settings)), forms.values_in(raw)))
    about = found.pop("run", {})
    seeds = about.pop("seeds", None)
    return {**about, **found}, seeds_of(0 if seeds is None else seeds)


def seeds_of(value: Any) -> list[int]:
    seeds = list(dict.fromkeys(value if isinstance(value, list) else [value]))
    if len(seeds) > MOST_SEEDS or any(not isinstance(seed, int) or not 0 <= seed < 2**31 for seed in seeds):
        raise ConfigurationError(
            f"Seeds are 1 to {MOST_SEEDS} whole numbers, zero or larger.", "Write for example 0, 1, 2."
        )
    return seeds


# Tasks


def task_choices(datasets: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(label, value) of every stored task, and of all tasks of a set with several."""
    found, known = [], data_names.meant(datasets)
    for data in datasets:
        key = data_names.shown(data, known)
        title = data["name"] if key == data["name"] else f"{data['name']}, earlier version {key[:6]}"
        if len(data["tasks"]) > 1:
            found.append((f"{title}: all {len(data['tasks'])} tasks", f"{key}{TAB}{EVERY}"))
        found += [
            (f"{title}: {name} ({task['kind']}, {_rows(task)})", f"{key}{TAB}{name}")
            for name, task in data["tasks"].items()
        ]
    return found


def _rows(task: Mapping[str, Any]) -> str:
    return f"{task['counts'].get('train', 0):,} rows"


def expanded(chosen: Sequence[str], datasets: Sequence[Mapping[str, Any]]) -> list[str]:
    """The chosen tasks one by one, without those that are not stored."""
    known = data_names.meant(datasets)
    found: dict[str, None] = {}
    for value in chosen or ():
        name, _, task = str(value).partition(TAB)
        for one in known[name]["tasks"] if name in known else ():
            if task in (one, EVERY):
                found[f"{name}{TAB}{one}"] = None
    return list(found)


def task_fields(settings: Settings, key: str) -> list[forms.Field]:
    options = [option for option in settings["task"] if option["name"] not in ("dataset", "task", "template")]
    template = [{**option, "name": f"template.{option['name']}"} for option in settings["template"]]
    own = key != EVERY
    fields = _fields([*options, *template], f"{key}{TAB}", optional=True)
    for field in fields:
        plain = field["name"].rpartition(TAB)[2]
        field["label"] = plain.removeprefix("template.").replace("_", " ")
        if plain in ("template.user", "template.system"):
            field |= {"type": "long", "wide": True, "rows": 2}
        if own:
            field |= {"empty": "as for all tasks"}
    return fields


def task_groups(settings: Settings, chosen: Sequence[str]) -> list[dict[str, Any]]:
    """A group for all tasks, and one for each."""
    found = [forms.group("All tasks: prompt, metric, rows", task_fields(settings, EVERY), fold=True)]
    if len(chosen) > 1:
        found += [
            forms.group(key.replace(TAB, ": "), task_fields(settings, key), fold=True, inside="Task by task")
            for key in chosen[:MOST_TASKS]
        ]
    return found


def task_data(settings: Settings, chosen: Sequence[str], raw: Any, datasets: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The tasks of a run; a set whose tasks are all chosen with equal settings is named once."""
    values = forms.values_in(raw)
    common = _task_settings(settings, EVERY, values)
    rows = []
    for key in chosen:
        dataset, _, task = key.partition(TAB)
        own = _merged(common, _task_settings(settings, key, values)) if len(chosen) > 1 else common
        rows.append({"dataset": dataset, "task": task, **own})
    for name, data in data_names.meant(datasets).items():
        mine = [row for row in rows if row["dataset"] == name]
        rest = [{k: v for k, v in row.items() if k != "task"} for row in mine]
        if mine and [row["task"] for row in mine] == list(data["tasks"]) and all(r == rest[0] for r in rest):
            first = rows.index(mine[0])
            rows = [row for row in rows if row not in mine]
            rows.insert(first, rest[0])
    return rows


def _task_settings(settings: Settings, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    found = forms.read(task_fields(settings, key), values)
    given = {name.rpartition(TAB)[2]: value for name, value in found.items() if value not in (None, "")}
    template = {name.partition(".")[2]: value for name, value in given.items() if name.startswith("template.")}
    plain = {name: value for name, value in given.items() if not name.startswith("template.")}
    return plain | ({"template": template} if template else {})


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    template = {**common.get("template", {}), **own.get("template", {})}
    return {**common, **own, **({"template": template} if template else {})}


def task_values(
    tasks: Sequence[Mapping[str, Any]], datasets: Sequence[Mapping[str, Any]]
) -> tuple[list[str], dict[str, Any]]:
    """The chosen tasks and the form's values of a run's tasks; what all share stands in the group for all."""
    known = data_names.meant(datasets)
    chosen, own = [], {}
    for row in tasks:
        data = known.get(row.get("dataset"))
        if data is None:
            missing = str(row.get("dataset"))
            raise ConfigurationError(f"There is no data set {missing!r}.", "Store it on the Data page first.")
        for task in [row["task"]] if row.get("task") else list(data["tasks"]):
            key = f"{data_names.shown(data, known)}{TAB}{task}"
            chosen.append(key)
            own[key] = _flat_task(row)
    keys = dict.fromkeys(name for values in own.values() for name in values)
    values: dict[str, Any] = {}
    for name in keys:
        said = [values_of.get(name) for values_of in own.values()]
        if all(one == said[0] for one in said):
            values[f"{EVERY}{TAB}{name}"] = said[0]
        else:
            values |= {f"{key}{TAB}{name}": mine[name] for key, mine in own.items() if name in mine}
    return chosen, values


def _flat_task(row: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: v for name, v in row.items() if name not in ("dataset", "task", "template") and v is not None}
    return plain | {f"template.{name}": value for name, value in (row.get("template") or {}).items()}


# The method


def method_groups(
    method: Mapping[str, Any],
    settings: Settings,
    words: Words,
    projections: Sequence[str],
    used: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """The options of a preset, or the controls of the split designer for the words that its grid has."""
    if method["name"] == "split":
        return split_groups(settings, words, used)
    fields = _fields([option for option in method["options"] if option["type"] != "cells"], "option.")
    for field in fields:
        if field["reads"] == "names":
            field |= {"suggestions": ["all-linear", ", ".join(projections)]}
    return [forms.group("", fields)]


def split_groups(
    settings: Settings, words: Words, used: Mapping[str, Sequence[str]] | None = None, title: str = ""
) -> list[dict[str, Any]]:
    """Experts, rank, alpha, and the options of the words in use (of all words where none are named)."""
    cell = [option for option in settings["cell"] if option["name"] in ("experts", "rank", "alpha")]
    groups = [forms.group(title, _fields(cell, "split."))]
    for part in grids.PARTS:
        names = used[part] if used is not None else [word["name"] for word in words[part]]
        options = options_in_use(words, part, names)
        if options:
            fields = _fields(options, f"split.{part}.")
            for field, option in zip(fields, options, strict=True):
                field["label"] = option["label"].replace("_", " ")
            groups.append(forms.group(f"Options of {part}: {', '.join(names)}", fields, fold=part != "gate"))
    return groups


def controls(settings: Settings, words: Words, raw: Any) -> dict[str, Any]:
    """The controls of the designer, or the settings of one cell, as ``experiment_grid`` takes them."""
    found = forms.read(forms.fields_of(split_groups(settings, words)), forms.values_in(raw))
    return {name.removeprefix("split."): value for name, value in found.items()}


def split_values(settings: Settings, words: Words, controls: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the designer's form; what the controls do not say is the default."""
    found = {f"split.{o['name']}": o["default"] for o in settings["cell"] if o["name"] in grids.SIZES}
    for part in grids.PARTS:
        for option in options_in_use(words, part, [word["name"] for word in words[part]]):
            found[f"split.{part}.{option['name']}"] = option["default"]
    return found | {f"split.{name}": value for name, value in controls.items()}


def option_values(method: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {f"option.{o['name']}": given.get(o["name"], o["default"]) for o in method["options"]}


def option_data(method: Mapping[str, Any], raw: Any) -> dict[str, Any]:
    """The options of a preset that differ from its defaults."""
    fields = _fields([option for option in method["options"] if option["type"] != "cells"], "option.")
    found = {name.removeprefix("option."): value for name, value in forms.read(fields, forms.values_in(raw)).items()}
    defaults = {option["name"]: option["default"] for option in method["options"]}
    optional = {option["name"] for option in method["options"] if option["optional"]}
    return {n: v for n, v in found.items() if v != defaults[n] and (v not in (None, "") or n in optional)}


def carried(before: Mapping[str, Any], after: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were changed and that the next method has too."""
    known = {option["name"] for option in after["options"]}
    return {name: value for name, value in given.items() if name in known and before["name"] != "split"}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(setting, before, after) of two runs; seeds and what people wrote aside."""
    flat_first, flat_second = dict(_flat(first)), dict(_flat(second))
    names = [
        n
        for n in dict.fromkeys([*flat_first, *flat_second])
        if n.split(".")[0] not in ("name", "notes", "tags", "seed")
    ]
    return [(n, flat_first.get(n), flat_second.get(n)) for n in names if flat_first.get(n) != flat_second.get(n)]


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for index, item in enumerate(value):
            yield from _flat(item, f"{prefix}.{index}")
    else:
        yield prefix, value


def _nested(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``{"train.steps": 3}`` as ``{"train": {"steps": 3}}``; what was left empty and has a default is left out."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        part, _, plain = name.partition(".")
        own = found.setdefault(part, {})
        if value is not None and (value != "" or plain in ("name", "notes")):
            own[plain] = value
    return found


def plain_data(spec: RunSpec) -> dict[str, Any]:
    """A run's settings that differ from the defaults, as plain data without its seed."""
    data = spec.model_dump(mode="json", exclude_defaults=True)
    data.pop("seed", None)
    return data
