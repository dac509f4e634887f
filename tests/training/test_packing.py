"""Samples packed into rows train as they do one by one, for every method; the layout and the choice to pack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from core.adapters.attach import tape_of
from core.adapters.packed import Pack
from core.data import packing
from core.data.batches import as_item
from core.data.store import DatasetInfo, DatasetStore
from core.data.templates import Encoded
from core.errors import ConfigurationError
from core.home import RunFolder
from core.jobs.sinks import ListSink
from core.routing.recorder import RoutingRecorder
from core.training import run
from core.training.loss import AnswerCollator, AnswerHead
from core.training.packing import obstacle
from core.training.run import train_adapter
from tests.adapters.adapters_support import (
    HEADS,
    MATRIX,
    PEFT_ROWS,
    SIZES,
    TASKS,
    Row,
    gradients,
    made,
    tiny,
    tiny_gpt2,
    tiny_qwen,
)
from tests.support.training import points, toy_spec

LENGTHS = (
    (2, 3),
    (11, 2),
    (4, 1),
    (14, 3),
    (1, 4),
    (7, 7),
    (3, 2),
)  # prompt, answer: 64 tokens in all


@pytest.fixture(autouse=True)
def _short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these few tokens make several rows."""
    monkeypatch.setattr(packing, "ROW", 24)
    monkeypatch.setattr(packing, "STEP", 8)


def samples(seed: int = 3) -> list[dict]:
    draw = np.random.default_rng(seed)
    texts = [(draw.integers(3, 64, prompt).tolist(), draw.integers(3, 64, own).tolist()) for prompt, own in LENGTHS]
    return [as_item(Encoded(*text), index % len(TASKS)) for index, text in enumerate(texts)]


def train_pass(row: Row, packed: bool, base: nn.Module | None = None) -> tuple[nn.Module, dict, Tensor, dict]:
    """A model after one pass in training mode without dropout: its batch, its losses and its auxiliary losses."""
    torch.manual_seed(0)
    model = made(row, base, warm=True).double().train()
    for module in model.modules():
        for name in ("dropout", "input_dropout", "weight_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = AnswerCollator(0, packed)(samples())
    assert ("place" in batch) == packed and len(batch.get("back", ())) in (0, 3)
    torch.manual_seed(1)  # what a random gate draws
    losses = AnswerHead(model).losses(batch)
    auxiliary = tape_of(model).auxiliary_losses()
    (losses.mean() + sum(auxiliary.values())).backward()
    return model, batch, losses, auxiliary


def assert_same(row: Row, base: nn.Module | None = None) -> None:
    own, batch, losses, auxiliary = train_pass(row, False, base and base())
    packed, other, found, also = train_pass(row, True, base and base())
    assert torch.equal(batch["targets"], other["targets"]) and torch.equal(batch["target_task"], other["target_task"])
    torch.testing.assert_close(found, losses, rtol=1e-9, atol=1e-9)
    assert auxiliary.keys() == also.keys()
    for name, value in auxiliary.items():
        torch.testing.assert_close(also[name], value, rtol=1e-9, atol=1e-9)
    wanted, got = gradients(own), gradients(packed)
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-7, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("row", [*MATRIX, PEFT_ROWS[0]], ids=lambda row: row.id)
def test_every_method_trains_on_packs_as_on_samples(row: Row):
    assert_same(row)


def eager() -> nn.Module:
    return tiny(attn_implementation="eager")


@pytest.mark.parametrize("base", [eager, tiny_qwen, tiny_gpt2], ids=lambda base: base.__name__)
@pytest.mark.parametrize("name", ["mosld", "moa"])
def test_other_attention_and_other_bases(name: str, base):
    assert_same(Row(name, name, {"rank": 4, "modules": "all-linear"}), base)


def test_routing_is_recorded_by_task_and_role_from_packs_too():
    found = []
    for packed in (False, True):
        model, *_ = train_pass(Row("mosld", "mosld", {"rank": 4, "modules": "all-linear"}), packed)
        recorder = RoutingRecorder(tape_of(model), TASKS)
        recorder.update()
        found.append(recorder.snapshot())
    alone, together = found
    assert alone.sites == together.sites
    np.testing.assert_allclose(alone.count, together.count)
    np.testing.assert_allclose(alone.mean_gate, together.mean_gate, rtol=1e-5)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40), st.booleans())
def test_every_token_has_one_place(lengths: list[int], coarse: bool):
    place, back = packing.places(lengths, coarse)
    length, rows = packing.shape(lengths, coarse)
    assert back.shape == (len(rows), length) and length % packing.STEP == 0
    assert (place < back.size).sum() == (back < place.size).sum() == sum(lengths)
    real = place < back.size
    assert (real == (np.arange(place.shape[1]) < np.array(lengths)[:, None])).all()
    assert (back.reshape(-1)[place[real]] == np.flatnonzero(real)).all()
    filled = max(sum(lengths[sample] for sample in row) for row in rows)
    assert filled <= max(lengths) + max(packing.ROW, max(lengths))
    assert length < filled + max(packing.STEP * (4 if coarse else 1), filled / 4 * coarse + 1)


def test_coarse_shapes_are_few(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    draw = np.random.default_rng(0)
    shapes = {
        coarse: {
            tuple(part.shape for part in packing.places(draw.integers(10, 60, 16).tolist(), coarse)) for _ in range(300)
        }
        for coarse in (False, True)
    }
    assert len(shapes[True]) <= 4 < len(shapes[False])


def test_samples_of_one_length_stay_as_they_are():
    items = [as_item(Encoded(list(range(3, 13)), [5, 6]), 0) for _ in range(4)]
    batch = AnswerCollator(0, packing=True)(items)
    assert "place" not in batch and batch["input_ids"].shape == (4, 12) and batch["tokens"] == 48


def test_a_projection_that_hides_its_samples_is_named():
    batch = AnswerCollator(0, packing=True)(samples())
    pack = Pack(batch["place"], batch["back"])
    with pytest.raises(ConfigurationError, match="cannot be told apart"):
        pack.apart(torch.zeros(pack.back.numel(), 5))


def windowed(window: int) -> nn.Module:
    settings = {**SIZES, **HEADS, "sliding_window": window, "head_dim": 8}
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**settings))


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4))


def alibi() -> nn.Module:
    torch.manual_seed(0)
    return BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))


def two_texts() -> nn.Module:
    return T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4))


POOLS = Row("pools", "mixlora", {"rank": 2, "modules": "all-linear", "experts": 3, "pool_over": "all"})
LORA = Row("lora", "lora", {"rank": 2, "modules": "all-linear"})


@pytest.mark.parametrize(
    ("base", "row", "reason"),
    [
        (tiny, LORA, ""),
        (tiny_gpt2, LORA, ""),
        (eager, LORA, ""),
        (tiny, PEFT_ROWS[0], ""),
        (tiny, PEFT_ROWS[1], "by row"),
        (tiny, POOLS, "counts padding"),
        (lambda: windowed(64), LORA, ""),
        (lambda: windowed(16), LORA, "reaches 16 tokens back"),
        (recurrent, LORA, "."),
        (alibi, LORA, "."),
        (two_texts, LORA, "encoder"),
    ],
    ids=[
        "llama",
        "gpt2",
        "eager",
        "dora",
        "poly",
        "pools-all",
        "wide-window",
        "narrow-window",
        "recurrent",
        "alibi",
        "two-texts",
    ],
)
def test_a_base_that_cannot_be_packed_says_why(base, row: Row, reason: str):
    model = made(row, base(), warm=True).train()
    kept = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    found = obstacle(model, 64)
    assert (found == "") if not reason else (reason in found or (reason == "." and found))
    assert kept == {name: parameter.requires_grad for name, parameter in model.named_parameters()} and model.training


def trained(base: Path, store: DatasetStore, folder: Path, **train: object) -> ListSink:
    """A short run of samples of very different lengths, from its settings on."""
    sink = ListSink()
    spec = toy_spec(base, {"name": "moa", "options": {"rank": 2}}, steps=4, batch_size=8, **train)
    train_adapter(spec, RunFolder(folder).create(), store, sink, device="cpu", resume=False)
    return sink


def ragged_store(root: Path) -> DatasetStore:
    store = DatasetStore(root)
    rows = [{"input": "word " * (1 + i * i % 23), "output": "yes" if i % 3 else "no"} for i in range(40)]
    splits = {split: {"first": rows, "second": rows[::-1]} for split in ("train", "validation", "test")}
    store.add(DatasetInfo(name="toy"), splits)
    return store


def test_a_run_has_the_same_curves_packed_or_padded(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    packs = []
    honest = Pack.mask
    monkeypatch.setattr(Pack, "mask", lambda pack, dtype: packs.append(pack) or honest(pack, dtype))
    store = ragged_store(tmp_path / "datasets")
    packed, padded = (
        points(trained(base, store, tmp_path / str(packing), packing=packing).events) for packing in (True, False)
    )
    assert len(packs) >= 4, "the base was tried, and steps were packed"
    assert packed.keys() == padded.keys()
    for point, value in padded.items():
        assert packed[point] == pytest.approx(value, rel=2e-4, abs=1e-6), point


def test_a_run_that_is_padded_says_so(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = ragged_store(tmp_path / "datasets")
    monkeypatch.setattr(run, "obstacle", lambda model, length: "its samples would see each other")
    said = [event["message"] for event in trained(base, store, tmp_path / "run").of("log")]
    assert "Samples are padded, not packed (train.packing): its samples would see each other." in said
