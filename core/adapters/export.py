"""Self-contained adapter folders: weights, config and the code that loads them, for machines without this studio."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigurationError
from .cells import Cell
from .folders import CONFIG, WEIGHTS, read_config
from .words import WORDS

if TYPE_CHECKING:
    from peft import PeftModel

PACKAGE = "tessera_adapter"
LEFT_OUT = ("methods", "__pycache__")  # presets are for making adapters, not for loading them

LOADER = '''"""Loads the adapter that lies beside this package, or any other one.

Needs torch, transformers, peft and pydantic.
"""

from pathlib import Path

from .adapters.attach import load as load_adapter
from .adapters.attach import tape_of

__all__ = ["load", "load_adapter", "tape_of"]


def load(base=None, folder=None, name="default", trainable=False, **options):
    """The base (a model, a folder or a Hub id; by default the one it was trained on) with the adapter on it.

    ``options`` go to ``AutoModelForCausalLM.from_pretrained``.
    """
    folder = Path(folder) if folder is not None else Path(__file__).resolve().parent.parent
    if base is None or isinstance(base, str | Path):
        import json

        from transformers import AutoModelForCausalLM

        if base is None:
            base = json.loads((folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
        base = AutoModelForCausalLM.from_pretrained(base, **{"use_safetensors": True, **options})
    return load_adapter(base, folder, name=name, trainable=trainable)
'''

README = """# {title}

An adapter ({method}), {made} with Tessera for the base model {base}{tasks}.

The folder holds its own loader. With torch, transformers, peft and pydantic installed:

```python
import sys
sys.path.insert(0, "path/to/this/folder")
from {package} import load

model = load("{source}").eval()   # the base: a folder, a Hub id, or a model that is loaded already
output = model.generate(**tokenizer("...", return_tensors="pt"), max_new_tokens=64)
```
{hint}"""


def export(source: PeftModel | str | Path, target: str | Path, name: str = "default", base: str = "") -> Path:
    """Write a folder that loads without this checkout: adapter, loader package, and a README that shows how.

    ``source`` is a model with adapters (``name`` says which one) or an adapter folder; ``base`` replaces the name of
    the base model in the config, which may be a folder of this machine.
    """
    target = Path(target)
    if target.exists() and any(target.iterdir()):
        raise ConfigurationError(f"{target} is not empty.", "Export into a folder that does not exist yet.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as made:
        made = Path(made) / "folder"
        made.mkdir()
        if isinstance(source, str | Path):
            read_config(source)
            for file in (WEIGHTS, CONFIG):
                shutil.copyfile(Path(source) / file, made / file)
        else:
            from .attach import save

            save(source, made, name)
        config = read_config(made)
        if base:
            config["base_model_name_or_path"] = base
            (made / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        _check_words(config.get("cells", []))
        _copy_package(made / PACKAGE)
        (made / "README.md").write_text(_readme(config, target.name), "utf-8")
        if target.exists():
            target.rmdir()
        made.replace(target)
    return target


def _copy_package(target: Path) -> None:
    here = Path(__file__).resolve().parent
    shutil.copytree(here, target / "adapters", ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copyfile(Path(sys.modules[ConfigurationError.__module__].__file__), target / "errors.py")
    (target / "__init__.py").write_text(LOADER, "utf-8")


def _check_words(cells: list[dict]) -> None:
    """Words that live elsewhere would be missing in the exported package."""
    own = __name__.rpartition(".")[0]
    for cell in cells:
        for part, known in WORDS.items():
            word = known.get(cell.get(part, {}).get("word"))
            if word is not None and not word.__module__.startswith(f"{own}."):
                raise ConfigurationError(
                    f"The word {word.model_fields['word'].default!r} comes from {word.__module__}, which the exported "
                    "folder would not contain.",
                    f"Move the module into {own}.words, where every word of this studio lives.",
                )


def _readme(config: dict, title: str) -> str:
    base = config.get("base_model_name_or_path") or ""
    on_hub = base.count("/") == 1 and not base.startswith(("/", ".", "~"))
    base = base if on_hub else Path(base).name  # folders of this machine mean nothing on another one
    tasks = config.get("tasks") or []
    by_task = any(Cell.model_validate(cell).needs_task for cell in config.get("cells", []))
    by_task = by_task or config["peft_type"] == "POLY"
    order = ", ".join(f"{index} {task}" for index, task in enumerate(tasks))
    hint = f"\nIt depends on the task: pass `task_index`, one number a row ({order}).\n" if by_task else ""
    sources = (config.get("options") or {}).get("sources")
    return README.format(
        title=title,
        made=f"fused of {', '.join(sources)}" if sources else "trained",
        method=config.get("method") or config["peft_type"],
        base=f"`{base}`" if base else "that it was trained on",
        source=base if on_hub else f"path/to/{base or 'the-base'}",
        tasks=f" on {', '.join(tasks)}" if tasks else "",
        package=PACKAGE,
        hint=hint,
    )
