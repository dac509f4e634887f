"""Full fine-tuning with the token embedding: as if its weight trained itself, a tied output head included."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from adapters_support import (
    ALL,
    HEADS,
    MATRIX,
    PRESETS,
    SIZES,
    SPECIAL,
    TASKS,
    batch,
    gradients,
    layers_of,
    made,
    tiny,
    tiny_gpt2,
    trainable,
    warm_up,
)
from transformers import GemmaConfig, GemmaForCausalLM

from core import catalog, catalog_shapes
from core.adapters.attach import attach, load, mixture_layers, save
from core.adapters.cells import TOKEN_EMBEDDING, Cell, Linear, plan
from core.adapters.embedding import EmbeddingLayer
from core.adapters.methods import resolve
from core.adapters.model import linears_of
from core.adapters.peft_lora import export_peft_lora
from core.errors import ConfigurationError
from core.fusion.candidate import Candidate
from core.fusion.delta import Delta
from core.known_shapes import LLAMA2_7B, VL_BART
from core.schema import MethodSpec
from core.training.loss import AnswerCollator, AnswerHead

FULL = MethodSpec(name="full", options={"embeddings": True})
TABLE = "model.embed_tokens"
ROW = next(row for row in MATRIX if row.id == "full-embeddings")
LORA, MOSLD = (next(row for row in PRESETS if row.id == name) for name in ("lora", "mosld"))
ties = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def tiny_gemma() -> GemmaForCausalLM:
    """Its table is tied, and what enters the model is scaled by the root of its width."""
    torch.manual_seed(0)
    return GemmaForCausalLM(GemmaConfig(**{**SIZES, **HEADS, **SPECIAL}, head_dim=8))


def warmed(base: torch.nn.Module, method: MethodSpec = FULL):
    model = attach(base, method, tasks=TASKS)
    warm_up(model)
    return model.eval()


def plain(seed: int = 1) -> dict[str, torch.Tensor]:
    data = batch(seed)
    return {key: data[key] for key in ("input_ids", "attention_mask")}


def table_of(model) -> EmbeddingLayer:
    return next(layer for layer in layers_of(model) if isinstance(layer, EmbeddingLayer))


@pytest.mark.parametrize("make", [tiny, tiny_gpt2, tiny_gemma])
def test_counts_are_those_of_the_built_model(make, tmp_path):
    model = make()
    model.config.save_pretrained(tmp_path)
    data = catalog_shapes.read(str(tmp_path))
    shapes = catalog.BaseShapes(**{**data, "linears": tuple(Linear(*line) for line in data["linears"])})
    assert list(shapes.linears) == linears_of(model)
    assert shapes.tied is (make is not tiny)
    built = sum(parameter.numel() for parameter in trainable(attach(model, FULL, tasks=TASKS)).values())
    without = catalog.trainable_parameters(MethodSpec(name="full"), shapes)
    assert catalog.trainable_parameters(FULL, shapes) == built == without + 64 * 32


def test_the_embedding_of_a_known_base_counts_its_whole_table():
    without = catalog.trainable_parameters(MethodSpec(name="full"), LLAMA2_7B)
    assert catalog.trainable_parameters(FULL, LLAMA2_7B) - without == 32_000 * 4096


@ties
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
def test_losses_are_those_of_training_the_weights_themselves(tied: bool, optimiser):
    adapted = attach(tiny(tie_word_embeddings=tied), FULL, tasks=TASKS).train()
    real = tiny(tie_word_embeddings=tied).train().requires_grad_(False)
    for path, _ in mixture_layers(adapted):
        real.get_submodule(path).weight.requires_grad_(True)
    assert real.lm_head.weight.requires_grad is tied
    settings = {"lr": 0.1} if optimiser is torch.optim.SGD else {"lr": 1e-2, "weight_decay": 0.0}
    losses = []
    for model in (adapted, real):
        steps, found = optimiser(trainable(model).values(), **settings), []
        for step in range(6):
            data = batch(seed=step)
            loss = model(**{key: data[key] for key in ("input_ids", "attention_mask", "labels")}).loss
            loss.backward()
            steps.step()
            steps.zero_grad()
            found.append(loss.item())
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][-1] != pytest.approx(losses[0][0], abs=1e-2)
    start = tiny(tie_word_embeddings=tied).model.embed_tokens.weight
    change = real.model.embed_tokens.weight - start
    assert torch.allclose(table_of(adapted).delta_weight("default").T, change, atol=1e-5)


def test_the_gradient_comes_from_inputs_and_head():
    """A token that is never read moves through the head alone; untied, it does not move."""
    data = batch()
    unread = next(token for token in range(3, 64) if token not in data["input_ids"])
    reached = {}
    for tied in (True, False):
        model = attach(tiny(tie_word_embeddings=tied), FULL, tasks=TASKS).train()
        model(**data).loss.backward()
        (gradient,) = [g for name, g in gradients(model).items() if "embed_tokens" in name]
        reached[tied] = gradient[0, :, unread].abs().sum().item() > 0, gradient[0, :, data["input_ids"][0, 0]].any()
    assert reached == {True: (True, True), False: (False, True)}


@ties
def test_disabled_it_is_the_base_to_the_bit(tied: bool):
    model = warmed(tiny(tie_word_embeddings=tied))
    expected = tiny(tie_word_embeddings=tied).eval()(**plain()).logits
    with model.disable_adapter():
        assert torch.equal(model(**plain()).logits, expected)
    assert not torch.allclose(model(**plain()).logits, expected, atol=1e-2)


@pytest.mark.parametrize("make", [lambda: tiny(tie_word_embeddings=True), tiny, tiny_gpt2, tiny_gemma])
def test_merged_and_unmerged_logits_are_the_adapters(make):
    """The weight that two layers share gets the update once; what enters is scaled as the base scales it."""
    model, before = warmed(make()), make()
    expected = model(**plain()).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns where tied weights are merged apart
        model.merge_adapter()
    assert torch.allclose(model(**plain()).logits, expected, atol=1e-5)
    with model.disable_adapter():
        assert torch.allclose(model(**plain()).logits, before.eval()(**plain()).logits, atol=1e-5)
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.allclose(model(**plain()).logits, expected, atol=1e-5)
    merged = model.merge_and_unload()
    assert torch.allclose(merged(**plain()).logits, expected, atol=1e-5)
    assert merged.state_dict().keys() == before.state_dict().keys() and not merged.lm_head._forward_hooks
    tied = before.lm_head.weight is before.get_input_embeddings().weight
    assert (merged.lm_head.weight is merged.get_input_embeddings().weight) is tied


def test_unloaded_it_leaves_the_base_as_it_was():
    base = warmed(tiny(tie_word_embeddings=True)).unload()
    assert torch.equal(base(**plain()).logits, tiny(tie_word_embeddings=True).eval()(**plain()).logits)


def test_the_update_is_a_matrix_of_width_and_vocabulary():
    layer = table_of(warmed(tiny(tie_word_embeddings=True)))
    assert layer.delta_weight("default").shape == (32, 64)
    ids = torch.tensor([[5, 9]])
    assert torch.allclose(layer(ids) - layer.base_layer(ids), layer.delta_weight("default").T[ids], atol=1e-6)


@ties
def test_saved_and_loaded_logits_are_identical_and_deleting_leaves_the_base(tied: bool, tmp_path):
    model = warmed(tiny(tie_word_embeddings=tied))
    save(model, tmp_path)
    again = load(tiny(tie_word_embeddings=tied), tmp_path, name="again").eval()
    assert torch.equal(again(**plain()).logits, model(**plain()).logits)
    attach(again, LORA.spec, tasks=TASKS, name="fresh")
    again.set_adapter("fresh")
    again.delete_adapter("again")
    assert torch.equal(again(**plain()).logits, tiny(tie_word_embeddings=tied).eval()(**plain()).logits)


def test_every_row_of_a_mixed_batch_has_its_own_table():
    model = warmed(tiny(tie_word_embeddings=True))
    attach(model, FULL, tasks=TASKS, name="second")
    attach(model, MOSLD.spec, tasks=TASKS, name="mosld")
    attach(model, MethodSpec(name="lora", options={"modules": ["lm_head"]}), tasks=TASKS, name="head")
    names = ["second", "__base__", "default", "mosld", "head", "default"]
    for seed, name in enumerate(("second", "mosld", "head")):
        warm_up(model, name, seed=seed)
    data = {key: torch.cat([value, value[:2]]) for key, value in plain().items()}
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    mixed = model(**data, adapter_names=names).logits
    last = model(**data, adapter_names=names, logits_to_keep=2).logits
    written = model.generate(**data, adapter_names=names, **settings)
    assert torch.allclose(last, mixed[:, -2:], atol=1e-5)
    for row, name in enumerate(names):
        own = {key: value[row : row + 1] for key, value in data.items()}
        if name == "__base__":
            with model.disable_adapter():
                alone, text = model(**own).logits, model.generate(**own, **settings)
        else:
            model.set_adapter(name)
            alone, text = model(**own).logits, model.generate(**own, **settings)
        assert torch.allclose(mixed[row], alone[0], atol=1e-5), name
        assert torch.equal(written[row], text[0]), name
    model.base_model.set_adapter(["default", "head"])
    both = model(**data).logits
    model.set_adapter("default")
    assert not torch.allclose(model(**data).logits, both, atol=1e-2)


@ties
def test_generation_goes_on_as_the_merged_base_does(tied: bool):
    model = warmed(tiny(tie_word_embeddings=tied))
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    written = {cache: model.generate(**plain(), **settings, use_cache=cache) for cache in (True, False)}
    merged = copy.deepcopy(model).merge_and_unload()
    assert torch.equal(written[True], written[False])
    assert torch.equal(written[True], merged.generate(**plain(), **settings))


def test_the_head_of_a_copy_follows_the_copy():
    model = warmed(tiny(tie_word_embeddings=True))
    expected, twin = model(**plain()).logits, copy.deepcopy(model)
    with torch.no_grad():
        table_of(model).tessera_up["default"].weight.zero_()
    assert torch.equal(twin(**plain()).logits, expected)
    assert not torch.allclose(model(**plain()).logits, expected, atol=1e-2)


def test_the_loss_of_answers_alone_sees_the_followed_head():
    """The trainer gives the head the positions of answers and no others."""
    model, data = warmed(tiny(tie_word_embeddings=True)), batch()
    ids, labels = data["input_ids"], data["labels"]
    items = [
        {"input_ids": ids[row].tolist(), "labels": labels[row].tolist(), "task_index": 0, "token_role": [1] * 12}
        for row in (0, 2)
    ]
    collated = AnswerCollator(pad_id=0)(items)
    whole = model(input_ids=ids[[0, 2]], labels=labels[[0, 2]]).loss
    assert AnswerHead(model).losses(collated).mean().item() == pytest.approx(whole.item(), abs=1e-5)


@ties
def test_compiled_it_is_one_graph_with_equal_gradients(tied: bool):
    torch._dynamo.reset()
    data = {**batch(), "use_cache": False}
    model = warmed(tiny(tie_word_embeddings=tied)).train()
    model(**data).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.base_model.model.compile(backend="aot_eager", fullgraph=True)
    for _ in range(2):
        model.zero_grad()
        model(**data).loss.backward()
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-5), name


def test_activation_checkpointing_is_exact_with_a_tied_head():
    found = []
    for checkpointing in (False, True):
        model = warmed(tiny(tie_word_embeddings=True)).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**batch()).loss.backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-6), name


def test_autocast_over_a_bfloat16_base_keeps_the_table_in_float32():
    model = warmed(tiny(tie_word_embeddings=True).to(torch.bfloat16)).train()
    exact = warmed(tiny(tie_word_embeddings=True)).train()(**batch()).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch()).loss
    loss.backward()
    assert loss.item() == pytest.approx(exact, abs=0.2)
    assert table_of(model)(torch.tensor([[3]])).dtype == torch.bfloat16
    assert {p.grad.dtype for p in trainable(model).values()} == {torch.float32}


@pytest.mark.parametrize("make", [lambda: tiny(tie_word_embeddings=True), tiny, tiny_gemma])
def test_a_candidate_with_its_deltas_has_its_logits(make):
    model = warmed(make())
    deltas = {path: Delta(layer.delta_weight("default").detach()) for path, layer in mixture_layers(model)}
    candidate = Candidate(make(), list(deltas))
    candidate.deltas = deltas
    assert candidate.embeddings == [TABLE]
    with torch.no_grad():
        assert torch.allclose(candidate.model(**plain()).logits, model(**plain()).logits, atol=1e-5)
        candidate.deltas = {}
        assert torch.equal(candidate.model(**plain()).logits, make().eval()(**plain()).logits)


def test_the_embedding_is_named_or_left_alone():
    linears = linears_of(tiny())
    assert linears[0] == Linear(TABLE, 64, 32, kind="embedding")

    def paths(modules) -> list[str]:
        return [site.name for site in plan([Cell(modules=modules, down="identity")], linears)]

    assert paths(TOKEN_EMBEDDING) == paths(["embed_tokens"]) == paths([TABLE]) == [TABLE]
    assert TABLE not in paths(ALL) + paths(r".*") + paths(r"model\..*")


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ({"modules": ["embed_tokens"]}, "says down unique, gate none, experts 1"),
        ({"modules": TOKEN_EMBEDDING, "down": "identity", "experts": 2}, "experts 2"),
        ({"modules": TOKEN_EMBEDDING, "down": "identity", "experts": 2, "gate": "token"}, "gate token"),
        ({"modules": TOKEN_EMBEDDING, "down": "identity", "layers": [0]}, "lies in no layer"),
    ],
)
def test_what_an_embedding_cannot_be_is_said_at_its_cell(cell, said):
    with pytest.raises(ConfigurationError, match=said) as refused:
        attach(tiny(), MethodSpec(name="split", cells=[cell]), tasks=TASKS)
    assert refused.value.message.startswith("Cell 1") and refused.value.hint


def test_presets_that_name_the_embedding_are_told_what_it_takes():
    with pytest.raises(ConfigurationError, match="trains as a whole or not at all"):
        attach(tiny(), MethodSpec(name="lora", options={"modules": ["q_proj", "embed_tokens"]}), tasks=TASKS)


def test_a_base_of_two_texts_has_no_embedding_to_train():
    with pytest.raises(ConfigurationError, match="Cell 2 asks for the token embedding"):
        plan(resolve(FULL), VL_BART.linears)


def test_it_is_no_lora_folder_and_spoils_no_other_one(tmp_path):
    model = warmed(tiny())
    with pytest.raises(ConfigurationError, match="token embedding"):
        export_peft_lora(model, tmp_path / "full")
    attach(model, MethodSpec(name="lora", options={"rank": 2}), tasks=TASKS, name="lora")
    export_peft_lora(model, tmp_path / "lora", "lora")
    assert '"fan_in_fan_out": false' in (tmp_path / "lora" / "adapter_config.json").read_text()


def test_frozen_it_stays_and_the_rest_trains():
    cells = [{"modules": TOKEN_EMBEDDING, "frozen": True}, {"modules": ALL, "rank": 2}]
    model = made(LORA, tiny(), name="lora")
    attach(model, MethodSpec(name="split", cells=cells), tasks=TASKS, name="split")
    assert not any(isinstance(layer, EmbeddingLayer) for layer in layers_of(model))
