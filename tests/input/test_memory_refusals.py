"""What certainly fits no device, no memory and no disk is refused before anything is allocated or queued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from app.cli import main
from app.pages import experiment_state as state
from core import capacity, catalog, fitting, memory, room
from core.adapters.methods import presets
from core.data.sampling import MixtureSampler
from core.errors import ConfigurationError, DiskError, OutOfMemoryError, StudioError
from core.fusion.methods import fusion_methods
from core.home import ASSETS, BUNDLED_BASE_FOLDER
from core.jobs.devices import Device
from core.known_shapes import LLAMA2_7B, LLAMA2_13B
from core.schema import MethodSpec, ModelSpec, RunSpec, TrainSpec
from core.units import GIB
from tests.support.seed import QuietStudio

CPU = Device("cpu", "CPU", "")
HUGE = {
    "name": "molora",
    "options": {"rank": 256, "experts": 256, "modules": "all-linear"},
}  # 40 GiB on the bundled base
MOST = 32 * GIB  # of the machine, as these tests see it


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuietStudio]:
    made = QuietStudio(tmp_path_factory.mktemp("memory") / "home")
    made.upload(ASSETS / "demo", name="demo")
    yield made
    made.close()


@pytest.fixture
def studio(home: QuietStudio, monkeypatch: pytest.MonkeyPatch) -> QuietStudio:
    real = capacity.psutil.virtual_memory().total
    monkeypatch.setattr(capacity.psutil, "virtual_memory", lambda: SimpleNamespace(total=min(real, MOST)))
    monkeypatch.setattr(capacity.psutil, "swap_memory", lambda: SimpleNamespace(total=0))
    return home


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this a machine with these GPUs (GiB; None: it does not tell) and so much memory."""

    def make(*gpus: float | None, memory: float = 16) -> None:
        found = [Device(f"cuda:{n}", f"GPU {n}", str(n), memory_gib=size) for n, size in enumerate(gpus)]
        monkeypatch.setattr(capacity, "devices", lambda: [*found, CPU])
        monkeypatch.setattr(capacity, "host_memory", lambda swap=0: int(memory * GIB))

    return make


def run(**changes: Any) -> RunSpec:
    return RunSpec.parse({"tasks": [{"dataset": "demo"}], **changes})


# What there is


def groups(folder: Path, monkeypatch: pytest.MonkeyPatch, membership: str, **files: str) -> None:
    """Control groups below ``folder``, by files in whose names ``__`` is a slash and ``DOT`` a point."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (folder / "membership").write_text(membership)
    monkeypatch.setattr(capacity, "CGROUPS", folder)
    monkeypatch.setattr(capacity, "MEMBERSHIP", folder / "membership")
    monkeypatch.setattr(capacity.psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB))


def test_a_container_has_what_its_control_group_allows(tmp_path, monkeypatch):
    limits = {"memoryDOTmax": str(8 * GIB), "memoryDOTswapDOTmax": str(GIB)}
    groups(tmp_path, monkeypatch, "0::/\n", **limits)
    assert capacity.host_memory() == 8 * GIB and capacity.host_memory(4 * GIB) == 9 * GIB
    groups(tmp_path, monkeypatch, "0::/\n", memoryDOTswapDOTmax="max")
    assert capacity.host_memory(4 * GIB) == 12 * GIB
    groups(tmp_path, monkeypatch, "0::/\n", memoryDOTmax="max")
    assert capacity.host_memory(4 * GIB) == 68 * GIB


def test_a_group_has_no_more_than_those_above_it(tmp_path, monkeypatch):
    groups(tmp_path, monkeypatch, "0::/a/b\n", a__memoryDOTmax=str(2 * GIB), a__b__memoryDOTmax=str(4 * GIB))
    assert capacity.host_memory() == 2 * GIB
    groups(tmp_path, monkeypatch, "0::/../other\n")
    assert capacity.host_memory() == 64 * GIB


def test_control_groups_of_the_first_version_count_too(tmp_path, monkeypatch):
    unlimited = "9223372036854771712"
    files = {"memory__memoryDOTlimit_in_bytes": unlimited, "memory__x__memoryDOTlimit_in_bytes": str(3 * GIB)}
    groups(tmp_path, monkeypatch, "8:pids:/\n4:cpu,memory:/x\n", **files)
    assert capacity.host_memory() == 3 * GIB and capacity.host_memory(GIB) == 4 * GIB
    groups(tmp_path, monkeypatch, "4:memory:/x\n", memory__x__memoryDOTmemswDOTlimit_in_bytes=str(3 * GIB))
    assert capacity.host_memory(GIB) == 3 * GIB


def test_the_largest_device_that_a_wish_can_get_counts(machine):
    machine(24, 80, memory=16)
    assert [capacity.largest(wish)[0].name for wish in ("auto", "cuda", "cuda:0", "cpu")] == [
        "cuda:1", "cuda:1", "cuda:0", "cpu",
    ]  # fmt: skip
    assert capacity.largest("auto")[1] == 80 * GIB and capacity.largest("cuda:9") is None
    machine(24, None)
    assert capacity.largest("auto") is None, "nobody knows how large the other is"
    assert capacity.largest("cuda:0")[1] == 24 * GIB
    machine()
    assert capacity.largest("auto")[0].name == "cpu"


# What is held


@pytest.mark.parametrize("method", [name for name in presets() if name != "split"])
def test_what_is_held_is_never_more_than_the_estimate(method):
    base = catalog.shapes(ModelSpec(), Path("unused"))
    sites = [] if method == "base" else catalog.sites(MethodSpec(name=method), base, 3)
    batch = memory.Batch.of(TrainSpec(), base.positions)
    for cuda, bits in ((True, "none"), (False, "none"), (True, "4bit"), (True, "8bit")):
        model = ModelSpec(quantization=bits)
        parts = memory.estimate(sites, model, base, TrainSpec(), batch, cuda).parts()
        held = memory.held(sites, model, base, cuda)
        assert all(number <= parts[name] for name, number in held.items())
        assert bits != "none" or all(number == parts[name] for name, number in held.items())


def test_tied_weights_and_those_saved_in_few_bits_are_counted_once_and_low():
    base = catalog.shapes(ModelSpec(), Path("unused"))
    stored = sum(path.stat().st_size for path in BUNDLED_BASE_FOLDER.glob("*.safetensors"))  # bfloat16, and headers
    assert base.tied and memory.least_weights(ModelSpec(), base, cuda=True) <= stored
    few = catalog.BaseShapes(**{**vars(base), "few_bits": True})
    assert memory.least_weights(ModelSpec(), few, cuda=True) * 16 == 2 * base.parameters


def test_a_base_too_large_for_a_gpu_comes_with_what_would_help(machine):
    machine(8, memory=64)
    refused = fitting.refusal([], ModelSpec(base="b"), LLAMA2_7B, "auto")
    assert "12.6 GiB" in refused.message and "GPU 0 (cuda:0) has 8.0 GiB" in refused.message
    assert "model.quantization 4bit" in refused.hint and "device cpu" in refused.hint
    assert fitting.refusal([], ModelSpec(base="b", quantization="4bit"), LLAMA2_7B, "auto") is None
    machine(8, memory=16)
    refused = fitting.refusal([], ModelSpec(base="b"), LLAMA2_7B, "auto")
    assert "device cpu" not in refused.hint, "there it would be float32"
    assert "bfloat16" in fitting.refusal([], ModelSpec(base="b"), LLAMA2_7B, "cpu").hint
    machine(8, 16)
    assert fitting.refusal([], ModelSpec(base="b"), LLAMA2_7B, "auto") is None, "another GPU is large enough"
    assert "device cuda:1" in fitting.refusal([], ModelSpec(base="b"), LLAMA2_7B, "cuda:0").hint
    machine(8, None)
    assert fitting.refusal([], ModelSpec(base="b"), LLAMA2_7B, "auto") is None, "one does not tell its memory"


def test_a_bound_is_not_broken_by_how_a_gpu_tells_its_memory(machine):
    held = memory.least_weights(ModelSpec(base="b"), LLAMA2_13B, cuda=True) / GIB
    assert round(held, 1) < held
    machine(round(held, 1))
    assert fitting.refusal([], ModelSpec(base="b"), LLAMA2_13B, "auto") is None
    machine(round(held, 1) - 0.1)
    assert fitting.refusal([], ModelSpec(base="b"), LLAMA2_13B, "auto") is not None


# Where it is refused


def test_a_run_that_cannot_fit_is_refused_wherever_it_is_started(studio, tmp_path, capsys):
    with pytest.raises(OutOfMemoryError, match="With any batch size the run takes at least 40.*optimiser 20") as caught:
        studio.submit(run(method=HUGE))
    assert caught.value.kind == "memory" and "a lower rank, fewer experts" in caught.value.hint
    with pytest.raises(OutOfMemoryError):
        studio.train_here(run(method=HUGE), out=tmp_path / "out")
    (tmp_path / "run.yaml").write_text(run(method=HUGE).to_yaml())
    assert main(["--home", str(studio.home.root), "train", str(tmp_path / "run.yaml")]) == 1
    assert "With any batch size" in capsys.readouterr().err
    assert studio.runs() == [] and list(studio.home.runs.iterdir()) == [] and not (tmp_path / "out").exists()


def test_the_page_says_it_beside_the_numbers_and_start_queues_nothing(studio):
    desk = state.Desk(studio)
    figure, said, text, _, _ = desk.view({"tasks": [{"dataset": "demo"}], "method": HUGE}, [0], {}, 1)
    assert "With any batch size" in said and "a lower rank" in said and yaml.safe_load(text)["method"] == HUGE
    assert "Memory: about" in figure["html"] and "It cannot fit, whatever the batch size" in figure["html"]
    figure, said, *_ = desk.view({"tasks": [{"dataset": "demo"}], "method": {"name": "lora"}}, [0], {}, 1)
    assert "fit" not in said and "cannot fit" not in figure["html"]


def test_preflight_answers_with_the_numbers_and_the_refusal(studio, tmp_path, capsys):
    found = studio.preflight(run(method=HUGE)).memory
    assert "40.0 GiB" in found.problem or "40.1 GiB" in found.problem
    assert found.remedy and found.parts["optimiser"] > 20 * GIB
    (tmp_path / "run.yaml").write_text(run(method=HUGE).to_yaml())
    assert main(["--home", str(studio.home.root), "preflight", str(tmp_path / "run.yaml")]) == 0
    assert "Refused: With any batch size" in capsys.readouterr().out


def test_where_not_even_one_row_fits_that_is_said(studio, machine):
    machine(memory=0.7)
    [note] = [one for one in studio.check(run(method={"name": "lora"})).notes if "does not fit" in one]
    assert "Even one row of" not in note
    machine(memory=0.6)
    [note] = [one for one in studio.check(run(method={"name": "lora"})).notes if "does not fit" in one]
    assert "Even one row of" in note and "train.max_length" in note


def test_scoring_and_chat_refuse_a_base_that_nothing_holds(studio, machine, monkeypatch):
    queued = studio.submit(run(method={"name": "base"}))
    machine(memory=0.01)
    with pytest.raises(OutOfMemoryError, match=f"Scoring {queued} takes at least 34 MiB"):
        studio.score(queued)
    with pytest.raises(OutOfMemoryError, match="tessera-base takes at least 34 MiB"):
        studio.chats.inference._place(ModelSpec(), "auto")
    small = Device("cuda:0", "Small", "0", memory_gib=0.0)
    monkeypatch.setattr("core.jobs.holds.gpus", lambda: [small])
    monkeypatch.setattr(memory, "least_weights", lambda model, base, cuda: GIB if cuda else 1)
    place = studio.chats.inference._place(ModelSpec(), "auto")
    assert place.device == "cpu" and "Small (cuda:0) has 0 MiB in all" in place.note
    with pytest.raises(
        ConfigurationError, match="Nothing can be answered on cuda: tessera-base takes at least 1.0 GiB"
    ):
        studio.chats.inference._place(ModelSpec(), "cuda")
    studio.cancel(queued)
    studio.delete(queued)


def adapter(folder: Path, rank: int | None) -> Path:
    """A run's adapter on two projections of the bundled base: factors, or whole matrices."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    tensors, cell = {}, {"modules": ["q_proj"], "rank": rank or 1, "experts": 1}
    for layer in (0, 1):
        path = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{path}.tessera_up.weight"] = np.zeros((1, 256, rank or 256), np.float32)
        if rank:
            tensors[f"{path}.tessera_down.weight"] = np.zeros((1, rank, 256), np.float32)
    cells = [{**cell, "layers": ["0-1"], "down": "unique" if rank else "identity"}]
    config = {"peft_type": "TESSERA", "method": "split", "cells": cells, "tasks": []}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("method", "rank", "mib", "what"),
    [
        ("task_arithmetic", 4, 0, ""),
        ("ties", 4, 0.4, "the fused updates 0 MiB"),
        ("task_arithmetic", None, 0.9, "full fine-tunes 1 MiB"),
        ("adamerging", 4, 34, "weights 34 MiB"),
        ("adamerging_pp", 4, 34.9, "whole updates 1 MiB"),
        ("concrete_task_arithmetic", 4, 35.9, "whole updates 2 MiB"),
    ],
)
def test_a_fusion_holds_what_its_method_makes_whole(studio, machine, tmp_path, monkeypatch, method, rank, mib, what):
    monkeypatch.setenv("TESSERA_DATA", str(tmp_path))
    names = [str(adapter(tmp_path / name, rank)) for name in ("a", "b")]
    learns = fusion_methods()[method].learns
    tasks = [{"dataset": "demo"}] if learns else []
    asked = RunSpec.parse({"sources": names, "method": {"name": method}, "tasks": tasks})
    machine(memory=(mib - 0.2) / 1024 if mib else 0.0)
    if not mib:
        assert studio.check(asked)
        return
    with pytest.raises(OutOfMemoryError, match=f"Fusing 2 runs takes .*{what}") as caught:
        studio.check(asked)
    assert caught.value.hint
    machine(memory=(mib + 0.3) / 1024)
    assert studio.check(asked)


def test_whole_matrices_of_a_fusion_need_room_on_the_disk(studio, tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_DATA", str(tmp_path))
    names = [str(adapter(tmp_path / name, 4)) for name in ("a", "b")]
    method = {"name": "task_arithmetic", "options": {"form": "dense"}}
    asked = RunSpec.parse({"sources": names, "method": method})
    assert studio.check(asked)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 500_000))
    with pytest.raises(DiskError, match="whole matrices of the fused model take up to 0 MiB"):
        studio.check(asked)


# The disk


def test_no_more_checkpoints_are_counted_than_a_run_writes(tmp_path, monkeypatch):
    one = room.checkpoint_bytes(1000, TrainSpec())

    def checkpoints(**settings: Any) -> int:
        return (room.needed(1000, TrainSpec(**settings)) - 4000) // one

    assert checkpoints(checkpoints_kept=10_000) == 5 and checkpoints(checkpoints_kept=2) == 4
    assert checkpoints(checkpoints_kept=100, checkpoint_every=10, steps=95) == 10
    assert checkpoints(checkpoints_kept=100, checkpoint_every=10) == 102
    need = room.needed(1000, TrainSpec())
    for free, told in ((need + room.RESERVE, False), (need + room.RESERVE - 1, True)):
        usage = shutil._ntuple_diskusage(10**12, 0, free)
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _, usage=usage: usage)
        assert bool(room.require(1000, TrainSpec(), tmp_path)) is told


# Absurd numbers

ABSURD = {
    "max_length": ("train: {max_length: 1000000000}", "train.max_length is 1000000000: should be less"),
    "batch": ("train: {batch_size: 1000000000}", "train.batch_size is 1000000000: should be less"),
    "scoring": ("evaluation: {batch_size: 1000000000}", "evaluation.batch_size is 1000000000: should be less"),
    "steps": ("train: {steps: 10000000000}", "train.steps is 10000000000: should be less"),
    "kept": ("train: {checkpoints_kept: 1000000000}", "train.checkpoints_kept is 1000000000"),
    "experts": ("method: {name: mosld, options: {experts: 1000000}}", "experts is 1000000: every number.* 1..256"),
    "both": (
        "method: {name: molora, options: {rank: 8192, experts: 512}}",
        "options.rank is 8192: should be less than or equal to 1024; method.options.experts is 512",
    ),
    "factors": (
        "method: {name: mor1e, options: {down_vectors: 256, up_vectors: 256}}",
        "options of mor1e come to experts 65536: every number of experts lies in 1..256",
    ),
    "grown": ("method: {name: malora, options: {rank: 1000}}", "options of malora come to rank 1500: should be less"),
    "layers": ("method: {name: lora, options: {layers: ['0-999999999']}}", "layers.*beyond 10,000 layers"),
    "digits": (f"method: {{name: lora, options: {{layers: ['0-{'9' * 50}']}}}}", "neither a layer nor a range"),
    "tokens": ("tasks: [{dataset: demo, max_new_tokens: 1000000}]", "tasks.0.max_new_tokens is 1000000"),
    "seed": ("seed: 1000000000000", "seed is 1000000000000: should be less"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_numbers_are_refused_in_python_and_on_the_page(studio, name):
    more, message = ABSURD[name]
    text = more if more.startswith("tasks:") else f"tasks: [{{dataset: demo}}]\n{more}"
    with pytest.raises(StudioError, match=message) as caught:
        studio.submit(text)
    assert caught.value.hint
    said = state.Desk(studio).view(yaml.safe_load(text), [yaml.safe_load(text).get("seed", 0)], {}, 1)[1]
    assert 'class="problem"' in said and "Traceback" not in said
    assert studio.runs() == []


def test_what_is_long_beyond_the_base_is_said(studio):
    notes = studio.check(run(train={"max_length": 2**20}, method={"name": "lora"})).notes
    assert any("reads 1,024 tokens at most" in note for note in notes)


def test_a_million_seeds_and_a_sweep_without_end_are_refused_with_their_number(studio):
    with pytest.raises(ConfigurationError, match="1,000,000 seeds would be as many runs; at most 1,000"):
        studio.read_spec("tasks: [{dataset: demo}]", seeds=",".join(map(str, range(10**6))))
    options = fusion_methods()["r_mtllmf"].options
    with pytest.raises(ConfigurationError, match="the sweep has 1,800,006 points"):
        options.parse({"sweep_snr": [n / 100 for n in range(1000)], "sweep_seeds": 100}, "method.options")
    assert options.parse({"sweep_snr": [30, 20, 10, 5, 0, -5]}).sweep_seeds == 5


def test_samples_are_put_in_order_without_holding_those_of_the_whole_run():
    import numpy as np

    from core.training.plan import LengthOrder

    mixture = MixtureSampler([40, 60], seed=1)
    order = iter(LengthOrder(mixture, 10**13, np.arange(100), 10))
    assert {next(order) for _ in range(200)} <= set(range(100))
