"""Rows of trees: options in one row score as each alone does, for every method; what cannot bear them is found out."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.evaluation.options import score_options
from core.evaluation.prefix import Prefix, reads_trees
from core.evaluation.trees import OptionSample, common_prefix, tree_of
from core.evaluation.view import ModelView
from tests.adapters.adapters_support import MATRIX, PEFT_ROWS, Row, made, tiny, tiny_gpt2, tiny_qwen

END = 2
ENCODER = SimpleNamespace(pad_id=0, eos_id=END)
START = [5, 6, 7, 8, 9, 10, 11, 12]
SAMPLES = [
    OptionSample([*START, 20], [[30, END], [31, 32, END], [30, 33, END]]),
    OptionSample([*START, 21, 22, 23, 24, 25], [[40, 41, 42, 43, 44, 45, 46, 47, END], [40, END]]),
    OptionSample([*START, 26, 27], [[END], [30, 31, END], [30, 31, END], [30, 31, 32, END]]),
    OptionSample([*START, 20, 28], [[30, 31, END]]),
]


@torch.no_grad()
def alone(model, sample):
    """An unpadded pass for each option."""
    sums = []
    for option in sample.options:
        ids = torch.tensor([sample.prompt + option])
        given = {}
        if hasattr(model, "peft_config"):
            role = torch.tensor([[1] * len(sample.prompt) + [2] * len(option)], dtype=torch.int8)
            given = {"task_index": torch.tensor([sample.task_index]), "token_role": role}
        logits = model(input_ids=ids, **given).logits[0].log_softmax(dim=-1)
        sums.append(float(logits[torch.arange(ids.shape[1] - 1), ids[0, 1:]][len(sample.prompt) - 1 :].sum()))
    return sums


def bears_trees(view, samples=SAMPLES):
    with view.active():
        return reads_trees(view, samples)


def prefix_length(view, samples=SAMPLES):
    with view.active():
        return Prefix.of(view, samples).length


def check(view, samples=SAMPLES, way="tree"):
    found = score_options(view, samples, way=way)
    for sample, scores in zip(samples, found, strict=True):
        assert scores.sums == pytest.approx(alone(view.model, sample), abs=2e-5)


@pytest.fixture
def eager_prefix(monkeypatch):
    """Share a beginning however little it saves."""
    monkeypatch.setattr("core.evaluation.prefix.WORTH", 1)


@pytest.mark.parametrize("row", [*MATRIX, *PEFT_ROWS], ids=lambda row: row.id)
def test_every_method_scores_options_in_one_row_as_each_alone(row, eager_prefix):
    view = ModelView(made(row, warm=True).eval(), ENCODER)
    assert bears_trees(view)
    for way in ("tree", "cache", "repeat"):
        check(view, way=way)


@pytest.mark.parametrize("base", [tiny, tiny_qwen, tiny_gpt2], ids=["llama", "qwen", "gpt2"])
def test_bases_with_rotary_and_learnt_positions(base, eager_prefix):
    view = ModelView(base().eval(), ENCODER)
    assert prefix_length(view) == len(START)
    check(view)


def test_eager_attention_keeps_to_the_mask_too():
    check(ModelView(tiny(attn_implementation="eager").eval(), ENCODER))


def test_the_beginning_is_shared_only_where_it_is_the_same_for_every_sample(eager_prefix):
    def length(row, samples=SAMPLES):
        return prefix_length(ModelView(made(row).eval(), ENCODER), samples)

    by_token, by_task, by_sample = (
        Row(word, "split", cells=({"rank": 2, "modules": "all-linear", "experts": 2, "gate": word},))
        for word in ("token", "task", "sequence")
    )
    other_task = [*SAMPLES, OptionSample(START, [[30, END]], 1)]
    assert (length(by_token), length(by_task), length(by_sample)) == (8, 8, 0)
    assert length(by_task, other_task) == 0  # each task has weights of its own
    off = ModelView(made(by_sample).eval(), ENCODER, adapter=False)
    assert prefix_length(off, other_task) == 7  # one sample is nothing but the beginning: a token stays its own


def test_a_gate_that_reads_answers_is_asked_option_by_option():
    row = Row("all", "mixlora", {"rank": 2, "modules": "all-linear", "experts": 3, "pool_over": "all"})
    view = ModelView(made(row, warm=True).eval(), ENCODER)
    assert not bears_trees(view)


def test_a_base_that_looks_back_over_a_window_takes_rows_within_it():
    view = ModelView(tiny().eval(), ENCODER)
    view.model.config.sliding_window = 16
    assert bears_trees(view, SAMPLES[:1]) and not bears_trees(view)


def test_a_recurrent_base_reads_no_trees_and_is_scored_all_the_same():
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0)
    view = ModelView(MambaForCausalLM(config).eval(), ENCODER)
    assert not bears_trees(view)
    check(view)


def test_a_base_without_positions_of_its_own_choice_is_scored_from_the_cache():
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    base = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0))
    assert not bears_trees(ModelView(base.eval(), ENCODER))


def test_no_samples_give_no_scores():
    assert score_options(ModelView(tiny().eval(), ENCODER), []) == []


def test_equal_beginnings_of_options_are_computed_once():
    tree = tree_of(((4, 5, 6, END), (4, 5, 7, END), (4, END), (8, END)))
    assert sorted(tree.ids.tolist()) == [4, 5, 6, 7, 8]
    assert tree.target.tolist() == [4, 5, 6, END, 4, 5, 7, END, 4, END, 8, END]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(3, 6), max_size=5), min_size=1, max_size=7))
def test_in_a_tree_every_option_sees_its_own_tokens_and_no_other(options):
    options = tuple((*option, END) for option in options)
    tree, start = tree_of(options), 0
    for option, length in zip(options, tree.lengths.tolist(), strict=True):
        nodes = [place - 1 for place in tree.source[start : start + length].tolist()[1:]]
        assert [int(tree.ids[node]) for node in nodes] == list(option[:-1])
        for depth, node in enumerate(nodes):
            seen = [k for k in range(len(tree.ids)) if k <= node < tree.end[k]]
            assert seen == nodes[: depth + 1] and tree.depth[node] == depth
        start += length


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_common_beginning_leaves_every_prompt_a_token(prompts):
    length = common_prefix(prompts)
    assert all(prompt[:length] == prompts[0][:length] and len(prompt) > length for prompt in prompts)
    assert any(len(prompt) == length + 1 or prompt[length] != prompts[0][length] for prompt in prompts)
