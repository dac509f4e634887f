"""The form that corrects how files are read, and what it says as options of an upload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from app import forms
from core.errors import ConfigurationError
from core.schema import BUNDLED_BASE, ModelSpec, PromptTemplate, TaskKind, TrainSpec

HEADER = (("yes", "the first line names the columns"), ("no", "there is no header"))
SPLITS = ("train", "validation", "test")
SHARES = {"validation": 0.1, "test": 0.2}
ROLE = "column."
SPLIT = "split."
COMMON = ("input", "output", "label", "choices")  # shown first, in this order
TEMPLATE = ("style", "user", "system")


def groups(roles: Sequence[Mapping[str, Any]], columns: Sequence[str], files: Sequence[str]) -> list[dict[str, Any]]:
    """The form's groups; ``roles`` describe what a column may be, ``columns`` and ``files`` are what was found."""
    first = [_role(role, columns) for name in COMMON for role in roles if role["name"] == name]
    rest = [_role(role, columns) for role in roles if role["name"] not in COMMON]
    found = [
        forms.group("Which column plays which role", first),
        forms.group("More roles", rest, fold=True),
        forms.group("Kind, instruction and splits", _reading(), fold=True),
        forms.group("As the model sees it", _seen(), fold=True, note="For the preview alone; a run has its own."),
    ]
    if len(files) > 1:
        named = [
            forms.plain(SPLIT + file, file, "choice", choices=SPLITS, optional=True, empty="found out")
            for file in files
        ]
        found.insert(3, forms.group("Splits of the files", named[:60], fold=True))
    return found


def _role(role: Mapping[str, Any], columns: Sequence[str]) -> forms.Field:
    name = role["name"]
    if name == "label_names":
        return forms.field(role, ROLE, type="text", reads="several", empty="negative, positive")
    if name == "first_choice":
        return forms.field(role, ROLE, label="first choice", optional=True, empty="found out")
    if role["type"] == "several":
        return forms.field(role, ROLE, type="several", reads="several", choices=list(columns), help=role["help"])
    return forms.field(role, ROLE, type="choice", reads="choice", choices=list(columns), optional=True)


def _reading() -> list[forms.Field]:
    shares = [
        forms.plain(name, f"{name} share", "number", optional=True, help="Drawn from train where no file gives it.",
                    empty=f"{share:g}", bounds={"minimum": 0})
        for name, share in SHARES.items()
    ]  # fmt: skip
    return [
        forms.plain("kind", "kind", "choice", choices=get_args(TaskKind), optional=True, empty="found out"),
        forms.plain(
            "task", "task name", optional=True, empty="found out", help="All rows become one task of this name."
        ),
        forms.plain("metric", "metric", optional=True, empty="found out"),
        forms.plain(
            "header", "header", "choice", choices=HEADER, optional=True, empty="found out", help="Of csv and tsv."
        ),
        *shares,
        forms.plain("seed", "seed", "integer", optional=True, empty="0", help="Draws the splits."),
        forms.plain("drop_overlap", "drop overlap", "boolean", help="Leave out training rows that are also scored."),
        forms.plain("instruction", "instruction", "long", wide=True, optional=True, empty="found out"),
    ]


def _seen() -> list[forms.Field]:
    length = TrainSpec.model_fields["max_length"]
    template = {name: PromptTemplate.model_fields[name] for name in TEMPLATE}
    return [
        forms.plain("base", "base", empty=BUNDLED_BASE, optional=True, help=ModelSpec.model_fields["base"].description),
        forms.plain("max_length", "max length", "integer", optional=True, empty=str(length.default),
                    help=length.description),
        forms.plain("style", "style", "choice", choices=get_args(template["style"].annotation), optional=True,
                    empty=template["style"].default, help=template["style"].description),
        forms.plain("user", "user", "long", wide=True, optional=True, empty=template["user"].default,
                    help=template["user"].description),
        forms.plain("system", "system", "long", wide=True, optional=True, help=template["system"].description),
    ]  # fmt: skip


def empty(roles: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The form before anything was read."""
    return forms.form(groups(roles, [], []), {}, {}, given={})


def filled(
    roles: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    files: Sequence[str],
    mapping: Mapping[str, Any],
    before: Any,
) -> dict[str, Any]:
    """The form with the mapping that was found; what a person said in ``before`` stays."""
    said = before if isinstance(before, Mapping) else {}
    kept = {name: value for name, value in dict(said.get("values") or {}).items() if not name.startswith(ROLE)}
    given = given_roles(roles, before)
    found = {ROLE + role: value for role, value in {**mapping, **given}.items()}
    return forms.form(
        groups(roles, columns, files), {**kept, **found}, {ROLE + r: v for r, v in mapping.items()}, given=given
    )


def given_roles(roles: Sequence[Mapping[str, Any]], value: Any) -> dict[str, Any]:
    """The roles that a person chose: earlier ones, and those that differ from what was found."""
    if not isinstance(value, Mapping):
        return {}
    known = [role["name"] for role in roles]
    given = {role: v for role, v in dict(value.get("given") or {}).items() if role in known}
    values, base = dict(value.get("values") or {}), dict(value.get("base") or {})
    for role in known:
        name = ROLE + role
        if name in values and _plain(values[name]) != _plain(base.get(name)):
            given[role] = values[name] if values[name] is not None else ""
    return {role: v for role, v in given.items() if role != "first_choice" or v not in (None, "")}


def _plain(value: Any) -> Any:
    return "" if value in (None, [], "") else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def upload_options(roles: Sequence[Mapping[str, Any]], value: Any) -> dict[str, Any]:
    """What the form says, as options of ``Studio.upload``; left out where it says nothing."""
    said = _read(value)
    options = {
        name: said[name]
        for name in ("kind", "task", "metric", "instruction", "seed")
        if said.get(name) not in (None, "")
    }
    for name in SHARES:
        if said.get(name) is not None:
            if not 0 <= said[name] < 1:
                raise ConfigurationError(f"The {name} share is {said[name]:g}.", "Choose a share from 0 to below 1.")
            options[name] = said[name]
    if (both := sum(options.get(name, share) for name, share in SHARES.items())) >= 1:
        raise ConfigurationError(
            f"The shares of validation and test are {both:g} together.", "Leave some rows for training."
        )
    if said.get("header"):
        options["header"] = said["header"] == "yes"
    if said.get("drop_overlap"):
        options["drop_overlap"] = True
    splits = {
        name.removeprefix(SPLIT): v for name, v in _values(value).items() if name.startswith(SPLIT) and v in SPLITS
    }
    mapping = given_roles(roles, value)
    return options | ({"splits": splits} if splits else {}) | ({"mapping": mapping} if mapping else {})


def preview_options(value: Any) -> dict[str, Any]:
    """What the form says about prompts, as further options of ``Studio.preview``."""
    said = _read(value)
    options: dict[str, Any] = {}
    if said.get("base"):
        options["base"] = said["base"]
    if said.get("max_length") is not None:
        options["max_length"] = TrainSpec.parse({"max_length": said["max_length"]}).max_length
    template = {name: said[name] for name in TEMPLATE if said.get(name)}
    if template:
        try:
            options["template"] = PromptTemplate(**template)
        except ValueError as error:
            first = str(error.errors()[0]["msg"]) if hasattr(error, "errors") else str(error)
            raise ConfigurationError(f"The prompt template: {first.removeprefix('Value error, ')}.") from error
    return options


_values = forms.values_in


def _read(value: Any) -> dict[str, Any]:
    return forms.read([*_reading(), *_seen()], _values(value))
