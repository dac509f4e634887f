"""A run's tasks, the order in which they are visited and the batches that they become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader

from core.data.batches import Collator, TaskDataset
from core.data.sampling import MixtureSampler, mixture_weights
from core.data.store import DatasetInfo, DatasetStore
from core.data.tasks import load_tasks
from core.data.templates import TextEncoder
from core.errors import ConfigurationError, NotFoundError
from core.schema import TaskSpec

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "do", "it", "yes", "no", "red", "green", "blue", "one", "two", "three"]


@pytest.fixture
def encoder(tmp_path) -> TextEncoder:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = '{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}'
    (folder / "tokenizer_config.json").write_text(config)
    return TextEncoder(folder)


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    store = DatasetStore(tmp_path / "datasets")
    colours = [{"input": "red", "output": "yes", "choices": ["yes", "no"]}] * 6
    sentences = [{"output": t, "choices": ["one two", "two one"]} for t in ("one two", "two one")] * 2
    sentences += [{"output": "three one", "choices": ["three one", "one three"]}]
    texts = [{"instruction": "do it", "input": f"{w} {w}", "output": "three"} for w in ("red", "green")]
    info = store.add(DatasetInfo(name="first"), {"train": {"c": colours, "g": texts}, "test": {"c": colours[:4]}})
    told = {n: t.model_copy(update={"instruction": "do"}) for n, t in info.tasks.items()}
    store.delete(info.id)
    store.add(DatasetInfo(name="first", tasks=told), {"train": {"c": colours, "g": texts}, "test": {"c": colours[:4]}})
    store.add(DatasetInfo(name="second"), {"train": {"c": sentences}})
    second = store.find("second")
    as_sentence = {"c": second.tasks["c"].model_copy(update={"kind": "sentence"})}
    store.add(DatasetInfo(name="third", tasks=as_sentence), {"train": {"c": sentences}})
    return store


def test_a_spec_without_a_task_stands_for_all_of_them(store):
    tasks = load_tasks(store, [TaskSpec(dataset="first")])
    assert [(task.index, task.name) for task in tasks] == [(0, "c"), (1, "g")]


def test_equal_names_get_their_data_set_in_front(store):
    tasks = load_tasks(store, [TaskSpec(dataset="first"), TaskSpec(dataset="third")])
    assert [task.name for task in tasks] == ["first/c", "g", "third/c"]
    assert tasks[2].rows("train")[0]["task"] == "third/c"
    with pytest.raises(ConfigurationError, match="listed twice"):
        load_tasks(store, [TaskSpec(dataset="first", task="c")] * 2)


def test_an_unknown_task_is_refused_with_the_nearest(store):
    with pytest.raises(NotFoundError, match="no task 'cc'") as caught:
        load_tasks(store, [TaskSpec(dataset="first", task="cc")])
    assert "'c'" in caught.value.hint


def test_instructions_row_first_then_run_then_data_set(store):
    c, g = load_tasks(store, [TaskSpec(dataset="first")])
    assert c.rows("train")[0]["instruction"] == "do" and g.rows("train")[0]["instruction"] == "do it"
    c, g = load_tasks(store, [TaskSpec(dataset="first", instruction="it")])
    assert c.rows("train")[0]["instruction"] == "it" and g.rows("train")[0]["instruction"] == "do it"


def test_limits_draw_training_rows_by_seed_and_take_the_first_test_rows(store, tmp_path):
    rows = [{"input": str(i), "output": f"word {i}"} for i in range(50)]
    store.add(DatasetInfo(name="many"), {"train": {"t": rows}, "test": {"t": rows}})
    spec = [TaskSpec(dataset="many", train_rows=10, test_rows=3)]
    drawn = [[row["input"] for row in load_tasks(store, spec, seed)[0].rows("train")] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] == sorted(drawn[0], key=int) and len(drawn[0]) == 10
    task = load_tasks(store, spec)[0]
    assert [row["input"] for row in task.rows("test")] == ["0", "1", "2"]
    assert (task.size("train"), task.size("test"), task.size("validation")) == (10, 3, 0)


@pytest.mark.parametrize(
    ("task", "metric", "words"), [("g", "accuracy", "needs choices"), ("c", "rouge_l", "option"), ("c", "acc", "not a")]
)
def test_a_metric_that_does_not_fit_is_refused(store, task, metric, words):
    with pytest.raises(ConfigurationError, match=words):
        load_tasks(store, [TaskSpec(dataset="first", task=task, metric=metric)])


def test_items_have_loss_on_the_answer_alone(store, encoder):
    data = TaskDataset(load_tasks(store, [TaskSpec(dataset="first")]), encoder, "train", 32)
    assert data.sizes == [6, 2] and len(data) == 8
    item = data[6]
    assert encoder.decode(item["input_ids"], keep_special=True).split() == [*"do it red red three </s>".split()]  # noqa: SIM905
    assert item["labels"] == [-100] * 4 + item["input_ids"][4:]
    assert item["token_role"] == [1] * 4 + [2] * 2 and item["task_index"] == 1
    with pytest.raises(IndexError):
        data[8]


def test_whole_sentences_have_no_prompt(store, encoder):
    data = TaskDataset(load_tasks(store, [TaskSpec(dataset="third")]), encoder, "train", 32)
    assert encoder.decode(data[0]["input_ids"], keep_special=True).split() == ["<s>", "one", "two", "</s>"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_carries_no_attention_loss_or_role(side):
    items = [
        {"input_ids": [5], "labels": [5], "token_role": [2], "task_index": 3},
        {"input_ids": [6, 7, 8], "labels": [-100, 7, 8], "token_role": [1, 2, 2], "task_index": 1},
    ]
    batch = Collator(0, side=side, multiple_of=4)(items)
    assert batch["input_ids"].shape == (2, 4) and batch["task_index"].tolist() == [3, 1]
    place = -1 if side == "left" else 0
    assert batch["input_ids"][0, place] == 5 and batch["attention_mask"][0].sum() == 1
    padded = batch["attention_mask"] == 0
    assert (batch["labels"][padded] == -100).all() and (batch["token_role"][padded] == 0).all()
    assert batch["token_role"].dtype == torch.int8 and batch["labels"].dtype == torch.long


def test_a_loader_visits_every_row_once_an_epoch(store, encoder):
    data = TaskDataset(load_tasks(store, [TaskSpec(dataset="first")]), encoder, "train", 32)
    loader = DataLoader(data, batch_size=3, sampler=MixtureSampler(data.sizes), collate_fn=Collator(encoder.pad_id))
    tasks = torch.cat([batch["task_index"] for batch in loader])
    assert torch.bincount(tasks).tolist() == [6, 2]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    strategy=st.sampled_from(["proportional", "temperature", "uniform"]),
    seed=st.integers(0, 5),
)
def test_epochs_have_exact_quotas_and_fair_rows(sizes, strategy, seed):
    sampler = MixtureSampler(sizes, strategy, temperature=2.0, seed=seed)
    assert sampler.quotas.sum() == len(sampler) == sum(sizes)
    assert (sampler.quotas >= 1).all()
    seen = [np.zeros(size, dtype=int) for size in sizes]
    for epoch in range(3):
        order = sampler.order(epoch)
        assert np.bincount(order[:, 0], minlength=len(sizes)).tolist() == sampler.quotas.tolist()
        for task, row in order:
            seen[task][row] += 1
    assert all(counts.max() - counts.min() <= 1 for counts in seen)


def test_weights_by_strategy():
    assert mixture_weights([100, 400], "proportional").tolist() == pytest.approx([0.2, 0.8])
    assert mixture_weights([100, 400], "temperature", 2.0).tolist() == pytest.approx([1 / 3, 2 / 3])
    assert mixture_weights([100, 400, 0], "uniform").tolist() == [0.5, 0.5, 0.0]
    with pytest.raises(ConfigurationError, match="No task has training rows"):
        mixture_weights([0, 0], "uniform")


def test_the_order_depends_on_seed_and_epoch_and_resumes_at_a_position():
    whole = list(MixtureSampler([30, 10], "uniform", seed=3, epoch=2))
    assert list(MixtureSampler([30, 10], "uniform", seed=3, epoch=2, position=17)) == whole[17:]
    assert list(MixtureSampler([30, 10], "uniform", seed=4, epoch=2)) != whole
    sampler = MixtureSampler([30, 10], "uniform", seed=3)
    assert list(sampler) != whole
    sampler.set_epoch(2)
    assert list(sampler) == whole


def test_tasks_are_spread_evenly():
    order = MixtureSampler([900, 100], seed=0).order(0)[:, 0]
    per_window = order.reshape(10, 100).sum(axis=1)
    assert per_window.min() >= 8 and per_window.max() <= 12
