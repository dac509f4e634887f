"""Realignment: what it may read, what it trains, and that it stops and starts as it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.data.store import DatasetInfo, DatasetStore
from core.data.tasks import load_tasks
from core.data.templates import TextEncoder
from core.errors import DataError
from core.fusion.candidate import Candidate
from core.fusion.delta import Delta
from core.fusion.resilient.realign import (
    Recipe,
    Shots,
    answer_loss,
    draw_shots,
    identity,
    mean_loss,
    realign,
)
from core.models import load_base
from tests.fusion.resilient_support import EMBEDDING, TASKS, small_spec, small_store
from tests.support.tiny import tiny_base

PATHS = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_base(tmp_path_factory.mktemp("realign") / "base")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DatasetStore:
    return small_store(tmp_path_factory.mktemp("rows"))


def shots_of(base: Path, store: DatasetStore, **changes: int):
    settings = {"shots": 8, "seed": 0} | changes
    return draw_shots(
        load_tasks(store, small_spec(base).tasks), TextEncoder(base), split="test", max_length=96, **settings
    )


def fused(low_rank: bool, embedding: bool = False) -> dict[str, Delta]:
    chance = torch.Generator().manual_seed(1)
    found = {}
    for path, (rows, columns) in zip(PATHS, ((32, 32), (64, 32)), strict=True):
        delta = Delta(torch.randn(rows, 2, generator=chance) * 0.1, torch.randn(2, columns, generator=chance) * 0.1)
        found[path] = delta if low_rank else Delta(delta.dense())
    return found | ({EMBEDDING: Delta(torch.randn(32, 320, generator=chance) * 0.01)} if embedding else {})


def run(base: Path, store: DatasetStore, deltas: dict[str, Delta], recipe: Recipe, **rest):
    candidate = Candidate(load_base(small_spec(base).model, "cpu"), list(deltas))
    encoder = TextEncoder(base)
    found = {"frozen": frozenset([EMBEDDING]), "seed": 0, "pad_id": encoder.pad_id} | rest
    shots = found.pop("shots", None) or shots_of(base, store)
    return candidate, realign(candidate, deltas, shots, recipe, **found)


def test_check_12_shots_are_never_rows_that_are_scored(base: Path, tmp_path: Path):
    """A training split that repeats most of the test rows gives only those that are not scored."""
    rows = [{"instruction": "Say it.", "input": f"item {i}", "output": "yes"} for i in range(40)]
    store = DatasetStore(tmp_path)
    splits = {"train": {task: rows for task in TASKS}, "test": {task: rows[:34] for task in TASKS}}
    store.add(DatasetInfo(name="small"), splits)
    encoder, tasks = TextEncoder(base), load_tasks(store, small_spec(base).tasks)
    shots = draw_shots(tasks, encoder, shots=16, seed=0, split="test", max_length=None)
    scored = {identity(row) for task in tasks for row in task.rows("test")}
    unseen = [row for row in tasks[0].rows("train") if identity(row) not in scored]
    prompts = {tuple(encoder.encode(row, tasks[0].template).ids) for row in unseen}
    assert len(prompts) == 6
    for items in shots.all:
        assert len(items) == 6 and {tuple(item["input_ids"]) for item in items} == prompts


def test_check_12_without_rows_of_their_own_shots_are_refused(base: Path, store: DatasetStore):
    tasks = load_tasks(store, small_spec(base).tasks)
    with pytest.raises(DataError, match="mood has no training rows apart from those that are scored"):
        draw_shots(tasks, TextEncoder(base), shots=4, seed=0, split="train", max_length=96)


def test_shots_are_drawn_by_seed_and_a_quarter_is_held_out(base: Path, store: DatasetStore):
    one, same, other = (shots_of(base, store, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert [len(items) for items in one.train] == [6] * 3 and [len(items) for items in one.held_out] == [2] * 3
    for train, held_out in zip(one.train, one.held_out, strict=True):
        assert not {tuple(item["input_ids"]) for item in train} & {tuple(item["input_ids"]) for item in held_out}
    single = shots_of(base, store, shots=1)
    assert [len(items) for items in single.train] == [1] * 3 and not any(single.held_out)


def test_the_loss_is_that_of_the_answer_tokens_alone(base: Path, store: DatasetStore):
    model, encoder = load_base(small_spec(base).model, "cpu"), TextEncoder(base)
    items = shots_of(base, store).train[0][:3]
    losses, tokens = 0.0, 0
    for item in items:
        ids = torch.tensor([item["input_ids"]])
        scores = model(input_ids=ids).logits[0].log_softmax(-1)
        for place, label in enumerate(item["labels"]):
            if label != -100:
                losses, tokens = losses - scores[place - 1, label].item(), tokens + 1
    assert answer_loss(model, items, encoder.pad_id).item() == pytest.approx(losses / tokens, rel=1e-5)


@pytest.mark.parametrize("form", ["adapter", "whole"])
@pytest.mark.parametrize("low_rank", [True, False])
def test_realigning_lowers_the_loss_on_the_shots(base: Path, store: DatasetStore, form: str, low_rank: bool):
    recipe = Recipe(form, rank=4, steps=15, batch_size=4, learning_rate=1e-2)
    deltas, shots = fused(low_rank), shots_of(base, store)
    candidate, done = run(base, store, deltas, recipe, shots=shots)
    pad = TextEncoder(base).pad_id
    with candidate.using(deltas) as model:
        before = mean_loss(model, shots.train, pad)
    with candidate.using(done.deltas) as model:
        after, held_out = mean_loss(model, shots.train, pad), mean_loss(model, shots.held_out, pad)
    assert after < before - 0.1
    assert held_out == pytest.approx(done.after, abs=1e-5) and done.after < done.before
    assert all(not matrix.requires_grad for delta in done.deltas.values() for matrix in (delta.up,))


def test_an_adapter_on_factors_stands_beside_them_exactly(base: Path, store: DatasetStore):
    deltas = fused(low_rank=True)
    _, done = run(base, store, deltas, Recipe("adapter", rank=8, steps=5, learning_rate=1e-2))
    for path, delta in deltas.items():
        found = done.deltas[path]
        assert found.low_rank and found.up.shape[1] == 2 + 8
        assert torch.equal(found.up[:, :2], delta.up) and torch.equal(found.down[:2], delta.down)
        assert found.up[:, 2:].abs().max() > 0


def test_embeddings_stay_frozen(base: Path, store: DatasetStore):
    deltas = fused(low_rank=False, embedding=True)
    _, done = run(base, store, deltas, Recipe("whole", steps=5, learning_rate=1e-2))
    assert torch.equal(done.deltas[EMBEDDING].up, deltas[EMBEDDING].up)
    assert all(not torch.equal(done.deltas[path].up, deltas[path].up) for path in PATHS)


def test_the_base_itself_is_untouched(base: Path, store: DatasetStore):
    before = {name: value.clone() for name, value in load_base(small_spec(base).model, "cpu").state_dict().items()}
    candidate, _ = run(base, store, fused(low_rank=True), Recipe("adapter", steps=3, learning_rate=1e-2))
    after = {name.replace(".base.", "."): value for name, value in candidate.model.state_dict().items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not candidate.deltas


def test_it_stops_when_held_out_shots_no_longer_gain_and_keeps_the_best(base: Path, store: DatasetStore):
    """Held-out shots that want what the others never say: it ends three evaluations after the best."""
    deltas, shots = fused(low_rank=True), shots_of(base, store)
    never = [
        [item | {"labels": [-100 if x == -100 else 7 for x in item["labels"]]} for item in items]
        for items in shots.train
    ]
    said: list[tuple[int, dict[str, float]]] = []
    recipe = Recipe("adapter", steps=50, learning_rate=0.05)
    shots = Shots(shots.train, never)
    candidate, done = run(
        base, store, deltas, recipe, shots=shots, tell=lambda step, values: said.append((step, values))
    )
    held_out = dict.fromkeys([0], done.before) | {step: values["validation"] for step, values in said}
    assert done.steps == done.kept + 15 < 50 and list(held_out) == list(range(0, done.steps + 1, 5))
    assert done.after == min(held_out.values()) == held_out[done.kept]
    with candidate.using(done.deltas) as model:
        assert mean_loss(model, shots.held_out, TextEncoder(base).pad_id) == pytest.approx(done.after, rel=1e-4)


def test_the_same_seed_gives_the_same_model(base: Path, store: DatasetStore):
    recipe = replace(Recipe("adapter", steps=6), learning_rate=1e-2)
    first, second, other = (run(base, store, fused(True), recipe, seed=seed)[1] for seed in (3, 3, 4))
    for path in PATHS:
        assert torch.equal(first.deltas[path].up, second.deltas[path].up)
        assert not torch.equal(first.deltas[path].up, other.deltas[path].up)


def test_every_batch_has_the_tasks_in_equal_numbers(base: Path, store: DatasetStore):
    from core.fusion.resilient.realign import _batches

    batches = _batches(shots_of(base, store).train, 4, seed=0)
    seen: list[tuple[int, ...]] = []
    for _ in range(3):
        batch = next(batches)
        assert [item["task_index"] for item in batch] == [0] * 4 + [1] * 4 + [2] * 4
        seen += [tuple(item["input_ids"]) for item in batch if item["task_index"] == 0]
    assert len(set(seen[:6])) == 6  # every row once before one comes again
