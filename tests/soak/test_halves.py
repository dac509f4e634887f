"""What a killed worker had begun to write is gone when its end has been seen; what others write stays."""

from __future__ import annotations

from pathlib import Path

from core.home import Home, write_json
from core.jobs.leftovers import sweep_run


def test_what_a_dead_worker_began_is_swept_and_what_is_whole_stays(tmp_path: Path) -> None:
    folder = Home.open(tmp_path).run("run-1").create()
    write_json(folder.checkpoints / "step-8" / "manifest.json", {"step": 8})
    write_json(folder.jobs / "train-1.json", {})
    for half in (".train-1.json.ab12", ".adapter-xy/adapter_config.json"):
        write_json(folder.root / half, {})
    write_json(folder.checkpoints / ".writing-1" / "manifest.json", {})
    (folder.jobs / ".train-2.json.cd34").write_text("{")
    whole = {path for path in folder.root.rglob("*") if path.is_file() and "/." not in str(path.relative_to(tmp_path))}
    sweep_run(folder)
    assert {path for path in folder.root.rglob("*") if path.is_file()} == whole
    assert folder.checkpoints.is_dir() and folder.predictions.is_dir()
