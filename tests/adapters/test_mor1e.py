"""The thirteen checks of Intuition-MoR1E (arXiv 2404.08985), and how gates are told of the prompts."""

from __future__ import annotations

from typing import Any

import one_layer
import pytest
import torch
from adapters_support import TASKS, batch, layers_of, made, tiny, tiny_gpt2, warm_up
from adapters_support import Row as MatrixRow
from one_layer import parts
from torch import Tensor, nn
from torch.nn import functional

from core.adapters.attach import attach, load, save, tape_of
from core.adapters.cells import Cell, Linear, Site, plan
from core.adapters.layer import MixtureLayer
from core.adapters.prelude import centroids_of, guided_slots
from core.adapters.tape import Addressing
from core.errors import ConfigurationError
from core.evaluation.view import select
from core.schema import MethodSpec
from tests.support.bases import DECODERS, Base
from tests.support.shapes import LLAMA2_7B, LLAMA2_13B, MISTRAL_7B, count

ROW = MatrixRow("mor1e", "mor1e", {"modules": "all-linear", "down_vectors": 2, "up_vectors": 3})
TINY = 1e-10


def site_of(d: int = 6, o: int = 5, v1: int = 2, v2: int = 3, paired: bool = True, **gate: Any) -> Site:
    down, up = ({"word": "pool", "vectors": v} for v in (v1, v2))
    parts = {"down": down, "up": up} if paired else {"down": "unique", "up": "unique"}
    gate = {"word": "intuition", "width": 4, **gate}
    cell = Cell(experts=v1 * v2, rank=1, alpha=1, gate=gate, **parts)
    return plan([cell], [Linear("layer.0.proj", d, o)])[0]


def layer_of(site: Site, warm: bool = True, seed: int = 0) -> MixtureLayer:
    """One adapted linear layer in float64, every tensor away from its start."""
    built = one_layer.layer_of(site, seed)
    if warm:
        with torch.no_grad():
            for name, parameter in built.named_parameters():
                if "tessera_" in name and not name.endswith(("mix", "gain")):
                    parameter.normal_()
    return built


def told(built: MixtureLayer, c: Tensor) -> MixtureLayer:
    built.slots["default"].prior = c
    return built


def delta(built: MixtureLayer, x: Tensor) -> Tensor:
    return built(x) - built.base_layer(x)


@torch.no_grad()
def scalars(built: MixtureLayer, mix: float, gain: float) -> None:
    gate = parts(built)[1]
    gate.mix.fill_(mix)
    gate.gain.fill_(gain)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def c() -> Tensor:
    return torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_01_counts():
    assert site_of(64, 48, 4, 8).parameters() == 2_690
    assert site_of(6, 5, 2, 3).parameters() == 65
    built = layer_of(site_of())
    assert sum(p.numel() for n, p in built.named_parameters() if "tessera_" in n) == 65
    assert count("mor1e", LLAMA2_7B) == 51_872_192
    assert count("mor1e", LLAMA2_13B) == 81_183_280
    assert count("mor1e", MISTRAL_7B) == 55_837_120
    assert count("mor1e", LLAMA2_7B, pairing="one-to-one") == 116_392_384


def test_01_counts_beside_other_methods():
    everywhere = {"modules": "all-linear"}
    mine, lora = count("mor1e", LLAMA2_7B), count("lora", LLAMA2_7B, rank=32, **everywhere)
    experts = count("molora", LLAMA2_7B, rank=4, experts=8, **everywhere)
    assert (lora, experts) == (79_953_920, 89_063_424)
    assert (1 - mine / lora, 1 - mine / experts) == pytest.approx((0.351, 0.418), abs=5e-4)
    assert mine / LLAMA2_7B.parameters == pytest.approx(0.00770, abs=5e-6)
    router = mine - count("mor1e", LLAMA2_7B, router=False)
    assert router == 36_438_016 and router / mine == pytest.approx(0.702, abs=5e-4)


def test_02_zero_start_for_any_c(x: Tensor, c: Tensor):
    built = layer_of(site_of(), warm=False)
    for prior in (c, 100 * c, 0 * c):
        assert torch.equal(told(built, prior)(x), built.base_layer(x))


def test_03_start_values():
    site = site_of(16, 12, 4, 8)
    built = layer_of(site, warm=False)
    share, factor = parts(built)[1].shares()
    assert share.item() == factor.item() == 0.5
    c = torch.randn(2, 32, dtype=torch.float64)
    told(built, c)(torch.randn(2, 3, 16, dtype=torch.float64))
    routing = built.slots["default"].routing
    assert torch.allclose(routing.probs, torch.full_like(routing.probs, 1 / 32), atol=TINY)
    assert torch.allclose(routing.weights / factor, (0.5 + 2 * c).unsqueeze(1).expand(2, 3, 32), atol=TINY)


def test_04_sum_over_pairs_equals_the_folded_form(x: Tensor, c: Tensor):
    built = told(layer_of(site_of()), c)
    scalars(built, 0.003, -0.004)
    down, gate, up = parts(built)
    update = delta(built, x)
    share, factor = (torch.sigmoid(torch.tensor(100 * v, dtype=torch.float64)) for v in (0.003, -0.004))
    probs = functional.linear(x, gate.weight).softmax(-1)
    weights = 6 * share * probs + 4 * (1 - share) * c.unsqueeze(1)
    expected = torch.zeros_like(update)
    for i in range(2):
        for j in range(3):
            hidden = x @ down.weight[i]
            expected += (weights[..., i * 3 + j] * hidden).unsqueeze(-1) * up.weight[:, j]
    assert (update - factor * expected).abs().max() <= TINY


def test_05_uniform_router_alone_is_sums_of_factors(x: Tensor, c: Tensor):
    built = told(layer_of(site_of()), c)
    scalars(built, 10, 10)
    down, gate, up = parts(built)
    with torch.no_grad():
        gate.weight.zero_()
    outer = torch.outer(up.weight.sum(1), down.weight.sum(0))
    assert (delta(built, x) - x @ outer.t()).abs().max() <= TINY


def test_06_one_to_one_with_a_uniform_router_is_lora(x: Tensor, c: Tensor):
    built = told(layer_of(site_of(paired=False)), c)
    scalars(built, 10, 10)
    down, gate, up = parts(built)
    with torch.no_grad():
        gate.weight.zero_()
    lora = up.weight.squeeze(-1).t() @ down.weight.squeeze(1)
    assert (delta(built, x) - x @ lora.t()).abs().max() <= TINY


def test_07_intuition_alone_is_one_update_per_prompt(x: Tensor, c: Tensor):
    built = told(layer_of(site_of()), c)
    scalars(built, -10, 0.001)
    gate = parts(built)[1]
    update = delta(built, x)
    update.square().sum().backward()
    assert not gate.weight.grad.any()
    with torch.no_grad():
        gate.weight.normal_()
        assert torch.equal(delta(built, x), update)
    weights = built.slots["default"].weights
    assert torch.equal(weights, weights[:, :1].expand_as(weights))
    for row in range(3):  # the merge of one prompt; it is made in float32
        merged = built.delta_weight("default", weights[row, 0])
        assert torch.allclose(x[row] @ merged.double().t(), update[row], atol=1e-5)


def test_08_router_alone_does_not_see_c(x: Tensor, c: Tensor):
    built = layer_of(site_of())
    scalars(built, 10, 0.001)
    assert torch.equal(told(built, c)(x), told(built, -3 * c)(x))


@pytest.mark.parametrize("side", ["down", "up"])
def test_09_the_order_of_factors_means_nothing(side: str, x: Tensor, c: Tensor):
    built = told(layer_of(site_of()), c)
    scalars(built, 0.002, 0.001)
    expected = delta(built, x)
    down, gate, up = parts(built)
    router, prior = gate.weight.data.view(2, 3, 6), c.view(3, 2, 3)
    with torch.no_grad():
        if side == "down":
            down.weight.copy_(down.weight[[1, 0]])
            router, prior = router[[1, 0]], prior[:, [1, 0]]
        else:
            up.weight.copy_(up.weight[:, [2, 0, 1]])
            router, prior = router[:, [2, 0, 1]], prior[:, :, [2, 0, 1]]
        gate.weight.copy_(router.reshape(6, 6))
    assert (delta(told(built, prior.reshape(3, 6)), x) - expected).abs().max() <= TINY


def test_10_first_step_moves_only_the_up_factors(x: Tensor, c: Tensor):
    built = told(layer_of(site_of(), warm=False), c)
    delta(built, x).sum().backward()
    down, gate, up = parts(built)
    assert up.weight.grad.abs().min() > 0
    assert not any(p.grad.any() for p in (down.weight, gate.weight, gate.mix, gate.gain))


def columns(built: MixtureLayer, c: Tensor | None) -> float:
    """The largest difference between up factors after 60 steps of Adam."""
    if c is not None:
        told(built, c)
    optimiser = torch.optim.Adam([p for n, p in built.named_parameters() if "tessera_" in n], lr=0.01)
    chance = torch.Generator().manual_seed(3)
    for _ in range(60):
        x = torch.randn(3, 4, 6, dtype=torch.float64, generator=chance)
        target = torch.randn(3, 4, 5, dtype=torch.float64, generator=chance)
        (built(x) - target).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    up = parts(built)[2].weight
    assert up.abs().max() > 0
    return (up - up[:, :1]).abs().max().item()


def test_11_symmetry_trap_and_its_ways_out(c: Tensor):
    off = {"intuition": False}
    assert columns(layer_of(site_of(**off), warm=False), None) == 0.0
    assert columns(layer_of(site_of(), warm=False), torch.zeros(3, 6, dtype=torch.float64)) == 0.0
    assert columns(layer_of(site_of(), warm=False), c) > 1e-3
    assert columns(layer_of(site_of(**off, init="normal"), warm=False), None) > 1e-6


def prior_of(model: nn.Module, name: str = "default") -> Tensor:
    return guided_slots(model.base_model, name)[0].prior


def test_12_c_does_not_see_padding_or_the_answer():
    model, data = made(ROW, warm=True).eval(), batch(rows=2, prompt=7)
    data = {key: value[:1] for key, value in data.items() if key != "labels"}
    model(**data)
    expected = prior_of(model)
    assert expected.shape == (1, 6)
    changed = {**data, "input_ids": data["input_ids"].clone()}
    changed["input_ids"][:, 7:] = 5
    model(**changed)
    assert torch.allclose(prior_of(model), expected, atol=1e-6)
    model(**{key: value[:, :7] if value.dim() == 2 else value for key, value in data.items()})
    assert torch.allclose(prior_of(model), expected, atol=1e-6)
    for left in (True, False):
        padded = dict(data)
        for key in ("input_ids", "attention_mask", "token_role"):
            pad = torch.zeros(1, 5, dtype=data[key].dtype)
            padded[key] = torch.cat([pad, data[key]] if left else [data[key], pad], 1)
        model(**padded)
        assert torch.allclose(prior_of(model), expected, atol=1e-6)


def test_12_a_centroid_is_nearest_to_itself():
    model, data = made(ROW).eval(), batch(rows=6)
    slot = guided_slots(model.base_model, "default")[0]
    prompts = data["token_role"] == 1
    embeddings = model.base_model.prelude.embed(model.base_model, data["input_ids"], prompts)
    centroids_of(model.base_model, slot).copy_(embeddings)
    model(**data)
    assert slot.prior.argmax(-1).tolist() == list(range(6))
    assert torch.allclose(slot.prior.diagonal(), torch.ones(6), atol=1e-5)


def test_13_no_gradient_reaches_the_centroids_or_the_base():
    model = made(ROW, warm=True).train()
    model(**batch()).loss.backward()
    slot = guided_slots(model.base_model, "default")[0]
    centroids = centroids_of(model.base_model, slot)
    assert not centroids.requires_grad and centroids.grad is None and not slot.prior.requires_grad
    assert all(p.grad is None for name, p in model.named_parameters() if "tessera_" not in name)
    assert all(p.grad is not None for name, p in model.named_parameters() if "tessera_" in name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_13_centroids_come_back_bit_by_bit(dtype: torch.dtype, tmp_path):
    model = made(ROW, tiny().to(dtype))
    slots = guided_slots(model.base_model, "default")
    assert len(slots) == 1 and sum("centroids" in name for name in model.state_dict()) == 1
    centroids = centroids_of(model.base_model, slots[0])
    centroids.copy_(torch.randn(6, 32))
    save(model, tmp_path)
    loaded = load(tiny().to(dtype), tmp_path, name="again")
    again = centroids_of(loaded.base_model, guided_slots(loaded.base_model, "again")[0])
    assert again.dtype == torch.float32 and torch.equal(again, centroids)
    gate = layers_of(loaded)[0].tessera_gate["again"]
    assert gate.mix.dtype == gate.gain.dtype == torch.float32


def test_scalars_stay_in_float32_in_a_half_precision_model():
    built = layer_of(site_of()).to(torch.bfloat16)
    gate = parts(built)[1]
    assert gate.weight.dtype == torch.bfloat16
    assert gate.mix.dtype == gate.gain.dtype == gate.centroids.dtype == torch.float32


def test_the_router_can_be_off(x: Tensor, c: Tensor):
    site = site_of(router=False)
    built = told(layer_of(site), c)
    assert site.parameters() == 65 - 36 and site.gate.unit == "sample"
    update, weights = delta(built, x), built.slots["default"].weights
    assert weights.shape == (3, 1, 6) and torch.allclose(weights[:, 0], 0.5 * 2 * c)
    merged = built.delta_weight("default", weights[0, 0])
    assert torch.allclose(x[0] @ merged.double().t(), update[0], atol=1e-5)


def test_both_cannot_be_off():
    with pytest.raises(ConfigurationError, match="cannot both be off"):
        attach(tiny(), MethodSpec(name="mor1e", options={"router": False, "intuition": False}), tasks=TASKS)


def test_a_mapper_takes_other_clusters_to_the_experts(x: Tensor):
    site = site_of(clusters=4)
    assert site.parameters() == 65 + 6 * 4
    built = told(layer_of(site), torch.randn(3, 4, dtype=torch.float64))
    gate = parts(built)[1]
    delta(built, x).sum().backward()
    assert gate.mapper.shape == (6, 4) and gate.mapper.grad.any()
    share, factor = gate.shares()
    probs = built.slots["default"].probs
    expected = 6 * share * probs + 4 * (1 - share) * (built.slots["default"].prior @ gate.mapper.t()).unsqueeze(1)
    assert torch.allclose(built.slots["default"].weights, factor * expected)


def test_nothing_saved_is_larger_than_tokens_times_experts(x: Tensor, c: Tensor):
    built = told(layer_of(site_of()), c)
    own = {p.data_ptr() for p in built.parameters()}
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel() * (t.data_ptr() not in own)), t)[1],
                                                  lambda t: t):  # fmt: skip
        built(x)
    assert 0 < max(sizes) <= 12 * max(5, 6)


def test_merging_is_refused():
    model = made(ROW, warm=True)
    with pytest.raises(ConfigurationError, match="weighs its experts anew"):
        model.merge_adapter()
    single = made(MatrixRow("one", "mor1e", {"down_vectors": 1, "up_vectors": 1}))
    with pytest.raises(ConfigurationError, match="weighs its experts anew"):
        single.merge_adapter()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"down": "pool", "up": "unique"}, "needs a pool on the other side"),
        ({"down": {"word": "pool", "vectors": 2}, "up": {"word": "pool", "vectors": 2}}, "make 4 experts, not 6"),
        ({"down": {"word": "pool", "vectors": 2}, "up": {"word": "pool", "vectors": 3}, "rank": 2}, "the rank is 2"),
    ],
)
def test_pools_that_do_not_go_together_are_explained(cell: dict, message: str):
    with pytest.raises(ConfigurationError, match=message):
        plan([Cell(**{"experts": 6, "rank": 1, "gate": "token", **cell})], [Linear("layer.0.proj", 6, 5)])


def test_the_base_embeds_without_dropout_and_without_its_adapters():
    """GPT-2 drops activations while it trains; what it says of a prompt must not change by that."""
    model, data = made(ROW, tiny_gpt2(), warm=True), batch()
    priors = []
    for training in (True, False, True):
        model.train(training)
        model(**data)
        priors.append(prior_of(model))
    assert torch.equal(priors[0], priors[1]) and torch.equal(priors[0], priors[2])
    assert all(m.training for m in model.base_model.model.modules())
    fresh = made(ROW, tiny_gpt2()).eval()
    fresh(**data)
    assert torch.equal(prior_of(fresh), priors[0])


class Calls:
    """How often the base's blocks run, with adapters and silently."""

    def __init__(self, model: nn.Module) -> None:
        self.loud = self.silent = 0
        tape = tape_of(model)

        def count(*_: Any) -> None:
            if tape.silent:
                self.silent += 1
            else:
                self.loud += 1

        model.base_model.model.model.layers[0].register_forward_pre_hook(count)


def test_one_extra_pass_a_prompt_and_none_where_it_is_told():
    model, data = made(ROW, warm=True).eval(), batch()
    calls = Calls(model)
    model(**data)
    assert (calls.loud, calls.silent) == (1, 1)
    expected = model(**data).logits
    assert torch.equal(model(**data, side_inputs={"intuition": prior_of(model)}).logits, expected)
    assert (calls.loud, calls.silent) == (3, 2)
    prompt = {key: data[key] for key in ("input_ids", "task_index")}
    for use_cache in (True, False):
        before = calls.silent
        model.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=use_cache)
        assert calls.silent == before + 1
    before = calls.silent
    with model.disable_adapter():
        model(**data)
    assert calls.silent == before


def test_a_wrong_width_of_what_is_told_is_explained():
    with pytest.raises(ConfigurationError, match="have 6 clusters"):
        made(ROW)(**batch(), side_inputs={"intuition": torch.zeros(4, 5)})


def test_what_was_read_travels_with_the_cache():
    model, data = made(ROW, warm=True).eval(), batch(prompt=12)
    data["attention_mask"][:] = 1
    prompt = {"input_ids": data["input_ids"][:, :8]}
    with torch.no_grad():
        out = model(**prompt, use_cache=True)
        rows = torch.tensor([2, 0, 0])
        cache = select(out.past_key_values, rows)
        role = torch.full((3, 4), 2, dtype=torch.int8)
        going = model(input_ids=data["input_ids"][rows, 8:], past_key_values=cache, token_role=role).logits
        full = model(input_ids=data["input_ids"], token_role=torch.tensor([1] * 8 + [2] * 4).expand(4, -1)).logits
    assert torch.allclose(going, full[rows, 8:], atol=1e-5)
    del out.past_key_values.tessera_priors
    with pytest.raises(ConfigurationError, match="from the middle of a text"):
        model(input_ids=data["input_ids"][:, 8:], past_key_values=out.past_key_values)


def test_two_adapters_are_told_by_their_own_centroids():
    model, data = made(ROW, warm=True), batch()
    attach(model, MethodSpec(name="mor1e", options={"down_vectors": 1, "up_vectors": 2}), tasks=TASKS, name="second")
    warm_up(model, "second", seed=9)
    model.eval()
    mixed = model(**data, adapter_names=["second", "default", "__base__", "second"]).logits
    for name, rows in (("default", [1]), ("second", [0, 3])):
        model.set_adapter(name)
        assert torch.allclose(mixed[rows], model(**data).logits[rows], atol=1e-5)
        assert prior_of(model, name).shape == (4, 6 if name == "default" else 2)
    model.base_model.set_adapter(["default", "second"])
    model(**data)
    assert prior_of(model).shape == (4, 6) and prior_of(model, "second").shape == (4, 2)


def test_two_cells_have_centroids_each():
    gate = {"word": "intuition"}
    cells = [
        {"modules": ["q_proj"], "experts": 2, "rank": 1, "gate": gate},
        {"modules": ["v_proj"], "experts": 3, "rank": 1, "gate": gate},
    ]
    model = made(MatrixRow("two", "split", cells=tuple(cells)), warm=True).eval()
    data = batch()
    expected = model(**data).logits
    slots = guided_slots(model.base_model, "default")
    assert [slot.prior.shape[1] for slot in slots] == [2, 3]
    both = torch.cat([slot.prior for slot in slots], 1)
    assert torch.equal(model(**data, side_inputs={"intuition": both}).logits, expected)


def test_an_encoder_decoder_is_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    with pytest.raises(ConfigurationError, match="encoder"):
        attach(T5ForConditionalGeneration(T5Config(**sizes)), MethodSpec(name="mor1e"), tasks=TASKS)


def test_addressing_of_a_flat_batch_is_not_read_as_samples(c: Tensor):
    """A projection that sees tokens without samples cannot be told of samples."""
    built = told(layer_of(site_of()), c)
    built.tape.addressing = Addressing()
    with pytest.raises(ConfigurationError, match="sees 2 axes"):
        built(torch.randn(4, 6, dtype=torch.float64))


@pytest.mark.parametrize("base", DECODERS, ids=lambda base: base.id)
def test_every_base_embeds_its_prompts(base: Base):
    """The same prompt with padding on either side and another answer; another prompt is told apart."""
    model = attach(base.made(), MethodSpec(name="mor1e", options={"down_vectors": 2, "up_vectors": 2}), tasks=TASKS)
    model.eval()
    prompt, other = torch.tensor([[5, 9, 11, 4]]), torch.tensor([[30, 9, 21, 8]])
    pad, answer = torch.zeros(1, 3, dtype=torch.long), torch.tensor([[7, 8, 9]])
    found = []
    for pieces in ((prompt,), (pad, prompt), (prompt, answer, pad), (other,)):
        ids = torch.cat(pieces, 1)
        role = torch.cat([torch.full_like(p, {id(pad): 0, id(answer): 2}.get(id(p), 1)) for p in pieces], 1)
        with torch.no_grad():
            model(input_ids=ids, attention_mask=(role > 0).long(), token_role=role.to(torch.int8))
        found.append(prior_of(model))
    assert torch.allclose(found[0], found[1], atol=1e-5) and torch.allclose(found[0], found[2], atol=1e-5)
    assert not torch.allclose(found[0], found[3], atol=1e-3)
