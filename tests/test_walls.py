"""Who may import whom, and what the documentation must mention."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel

from core.data.templates import PromptTemplate
from core.schema import EvaluationSpec, MethodSpec, ModelSpec, RunSpec, TaskSpec, TrainSpec

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {".venv", ".venv-audit", ".git", "out", "__pycache__", "tessera-home", "build", "node_modules"}
TORCH = {"torch", "transformers", "peft", "accelerate", "bitsandbytes"}
WEB = {"gradio", "fastapi", "uvicorn", "starlette"}
DATABASE = {"storage", "sqlalchemy", "alembic"}
TORCH_ROOMS = ("core/adapters", "core/routing", "core/training", "core/evaluation", "core/chat", "core/fusion")
STUDIO_ROOM = ("core.studio", "core.schema", "core.figures", "core.errors", "core.home", "core.access", "core.paths")
STUDIO_ROOM += ("core.sheets", "core.units", "core.texts", "core.room")
STUDIO_ROOM += ("core.calls", "core.received", "core.remote", "core.wire")  # the studio as others reach it


@cache
def sources() -> tuple[Path, ...]:
    found = [p.relative_to(ROOT) for p in ROOT.rglob("*.py") if not SKIPPED & set(p.relative_to(ROOT).parts)]
    return tuple(sorted(found))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text("utf-8"), filename=str(path))


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    """The trees of all files are millions of objects; other tests need none of them."""
    yield
    tree.cache_clear()
    for_types.cache_clear()


def imports(path: Path, types: bool = True) -> Iterator[str]:
    """Every module that a file names in an import, inside functions too; ``types``: in type-checking blocks as well."""
    for node in ast.walk(tree(path)):
        if not types and node in for_types(path):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = path.parent.parts[: len(path.parent.parts) - node.level + 1] if node.level else ()
            module = ".".join([*here, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@cache
def for_types(path: Path) -> frozenset[ast.AST]:
    """What stands under ``if TYPE_CHECKING``: names of types, which nothing runs."""
    blocks = [n for n in ast.walk(tree(path)) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return frozenset(inner for block in blocks for inner in ast.walk(block))


def below(*rooms: str) -> list[Path]:
    return [p for p in sources() if any(p.as_posix() == r or p.as_posix().startswith(r + "/") for r in rooms)]


def crossings(paths: list[Path], forbidden: set[str]) -> list[str]:
    """``file imports module`` for every import of a forbidden module or of something inside one."""
    return [
        f"{path} imports {name}"
        for path in paths
        for name in imports(path)
        if any(name == wall or name.startswith(wall + ".") for wall in forbidden)
    ]


def test_every_file_parses():
    assert len(sources()) > 20
    for path in sources():
        tree(path)


def test_torch_rooms_know_no_database_and_no_pages():
    paths = below(*TORCH_ROOMS, "core/models.py", "core/data", "core/jobs/worker.py", "core/jobs/sinks.py")
    assert crossings(paths, DATABASE | WEB | {"app", "core.studio"}) == []


def test_storage_knows_only_the_database():
    assert crossings(below("storage"), TORCH | WEB | {"core", "app", "pandas"}) == []


def test_core_knows_no_pages():
    assert crossings(below("core"), WEB | {"app"}) == []


def test_the_studio_and_its_helpers_name_no_torch():
    paths = [p for p in sources() if p.parent.as_posix() == "core" and p.name not in ("models.py", "catalog_shapes.py")]
    assert crossings(paths, TORCH) == []
    assert crossings(below("core/jobs"), TORCH) == [] or all(
        crossing.startswith("core/jobs/worker.py") for crossing in crossings(below("core/jobs"), TORCH)
    )


def test_pages_and_commands_go_through_the_studio():
    paths = below("app", "app.py")
    outside = [
        f"{path} imports {name}"
        for path in paths
        for name in imports(path, types=False)
        if name.split(".")[0] in ("core", "storage", *TORCH)
        and not any(name == room or name.startswith(room + ".") or room == f"core.{name}" for room in STUDIO_ROOM)
        and name != "core"
    ]
    assert outside == []


def test_nothing_is_imported_by_star():
    stars = [
        f"{path}:{node.lineno}"
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert stars == []


def test_files_stay_readable():
    long = {str(p): n for p in below("app", "core", "storage") if (n := len((ROOT / p).read_text().splitlines())) > 450}
    assert long == {}


def test_errors_that_people_see_derive_from_studio_error():
    """A class whose name ends in Error is a StudioError, so that no page and no command shows a traceback for it."""
    known = {"StudioError", "DataError", "ConfigurationError", "OutOfMemoryError", "NotFoundError", "NotAllowedError"}
    known |= {"StorageError"}  # storage imports nothing of core; core.records translates what it raises
    strays = [
        f"{path}:{node.lineno} {node.name}"
        for path in below("app", "core", "storage")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
        and node.name.endswith("Error")
        and node.name not in known
        and not any(isinstance(base, ast.Name) and base.id in known for base in node.bases)
    ]
    assert strays == []


def test_every_failure_class_of_a_job_has_its_error():
    from core.errors import ConfigurationError, DataError, OutOfMemoryError, StudioError

    kinds = {error.kind for error in (DataError, ConfigurationError, OutOfMemoryError, StudioError)}
    assert kinds == {"data", "configuration", "memory", "internal"}


@pytest.mark.parametrize("module", ["app.server", "app.cli", "core.studio", "storage", "core.jobs.dispatcher"])
def test_importing_the_web_side_loads_no_torch(module: str):
    code = f"import sys, {module}; print([m for m in {sorted(TORCH)} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_importing_the_commands_loads_no_database_and_no_pages():
    code = (
        "import sys, app.cli, core.studio; print([m for m in ('sqlalchemy', 'alembic', 'gradio') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "[]", result.stderr


def documents() -> dict[str, str]:
    return {str(p.relative_to(ROOT)): p.read_text("utf-8") for p in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}


def test_commands_in_the_documents_exist():
    from app.cli import command_names

    pattern = re.compile(r"python app\.py ((?:--\w[\w-]* \S+ )*)([a-z][a-z-]*)")
    wrong = [
        f"{name}: {match.group(0)}"
        for name, text in documents().items()
        for match in pattern.finditer(text)
        if match.group(2) not in command_names()
    ]
    assert wrong == []


def setting_lines(spec: type[BaseModel]) -> list[str]:
    """The lines of ``docs/cli.md`` about one part of a run, from its schema."""
    lines = []
    for name, field in spec.model_fields.items():
        nested = isinstance(field.default, BaseModel) or field.default_factory is not None
        default = "" if nested or field.is_required() or field.default in (None, "") else f"`{field.default}`"
        meaning = (field.description or "").replace("|", "\\|").replace("\n", "\\n")
        lines.append(f"| `{name}` | {default} | {meaning} |".replace("|  |", "| |"))
    return lines


def test_the_command_page_mentions_every_command_and_option():
    from app.cli import command_parameters

    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    missing = [name for name in command_parameters() if f"app.py {name}" not in text]
    missing += [
        f"{name} {option}"
        for name, options in command_parameters().items()
        for option in options
        if option not in ("--home", "--json", "--help") and f"`{option}" not in text
    ]
    assert missing == []


def test_the_command_page_describes_every_setting_as_the_schema_does():
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    specs = (RunSpec, ModelSpec, TaskSpec, PromptTemplate, MethodSpec, TrainSpec, EvaluationSpec)
    missing = [line for spec in specs for line in setting_lines(spec) if line not in text]
    assert missing == [], "\n".join(["docs/cli.md lacks these lines:", *missing])


def test_make_targets_in_the_documents_exist():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    named = {m for text in documents().values() for m in re.findall(r"`make ([a-z-]+)", text)}
    assert named <= targets
