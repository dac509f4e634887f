"""MoA (arXiv 2403.03432): experts trained alone, routers per block that are taught the task labels."""

from __future__ import annotations

import math

import pytest
import torch
from adapters_support import TASKS, batch, gradients, layers_of, loss_of, tiny, warm_up

from core.adapters.attach import attach, load, mixture_layers, save, tape_of
from core.adapters.cells import Linear, plan
from core.adapters.experts import add_expert, fill_experts, read_expert, remove_expert, replace_expert
from core.adapters.methods import resolve
from core.errors import ConfigurationError
from core.schema import MethodSpec

MODULES = ["q_proj", "v_proj", "up_proj"]
LORA = MethodSpec(name="lora", options={"rank": 4, "modules": MODULES})


def moa(**options) -> MethodSpec:
    return MethodSpec(name="moa", options={"rank": 4, "modules": MODULES, **options})


def lora_folder(folder, seed: int, method: MethodSpec = LORA):
    model = attach(tiny(), method, tasks=["alone"])
    warm_up(model, seed=seed)
    return save(model, folder)


@pytest.fixture
def folders(tmp_path):
    return [lora_folder(tmp_path / str(seed), seed) for seed in (1, 2)]


def joined(folders, seed: int = 0, **options):
    """A mixture of the folders' LoRA; its routers are random."""
    model = attach(tiny(), moa(**options), tasks=TASKS[: len(folders)], seed=seed)
    fill_experts(model, [read_expert(folder) for folder in folders])
    return model.eval()


def set_routers(model, bias: list[float] | None = None, weight: float | None = None) -> None:
    with torch.no_grad():
        for layer in layers_of(model):
            gate = layer.tessera_gate["default"]
            if hasattr(gate, "bias"):
                if weight is not None:
                    gate.weight.fill_(weight)
                if bias is not None:
                    gate.bias.copy_(torch.tensor(bias))


def unlabelled(data):
    return {key: value for key, value in data.items() if key != "labels"}


def test_label_mode_equals_each_lora_alone_in_a_mixed_batch(folders):
    data = unlabelled(batch())
    mixed = joined(folders, decide="label")(**data).logits
    for task, folder in enumerate(folders):
        alone = load(tiny(), folder, name="x").eval()(**data).logits
        mine = data["task_index"] == task
        assert torch.allclose(mixed[mine], alone[mine], atol=1e-5)


def test_one_expert_is_that_lora_with_no_routing_loss(folders):
    data = batch() | {"task_index": torch.zeros(4, dtype=torch.long)}
    model = joined(folders[:1]).train()
    alone = load(tiny(), folders[0], name="x").eval()(**unlabelled(data)).logits
    assert torch.allclose(model.eval()(**unlabelled(data)).logits, alone, atol=1e-5)
    model.train()
    loss_of(model, data)
    assert tape_of(model).auxiliary_losses()["supervision"].item() == pytest.approx(0, abs=1e-6)
    assert all((slot.probs == 1).all() for slot in tape_of(model).slots)


@pytest.mark.parametrize("decide", ["per_layer", "vote", "soft", "label"])
def test_zero_up_matrices_give_the_base_in_every_mode(decide):
    data = unlabelled(batch())
    model = attach(tiny(), moa(decide=decide), tasks=TASKS).eval()
    plain = {key: data[key] for key in ("input_ids", "attention_mask")}
    assert torch.equal(model(**data).logits, tiny().eval()(**plain).logits)


def test_count_of_experts_and_routers():
    linears = [Linear(f"layers.{layer}.proj", 16, 24) for layer in range(2)]
    method = MethodSpec(name="moa", options={"rank": 4, "modules": "all-linear"})
    sites = plan(resolve(method), linears, tasks=3)
    assert sum(site.down.parameters(site) + site.up.parameters(site) for site in sites) == 960
    assert sum(site.gate.parameters(site) for site in sites) == 102
    assert sum(site.parameters() for site in sites) == 1062


def _llama(hidden: int, blocks: int, wide: int, key: int, names: list[str]) -> list[Linear]:
    widths = {
        "q_proj": (hidden, hidden), "k_proj": (hidden, key), "v_proj": (hidden, key),
        "gate_proj": (hidden, wide), "up_proj": (hidden, wide), "down_proj": (wide, hidden),
    }  # fmt: skip
    return [Linear(f"layers.{block}.{name}", *widths[name]) for block in range(blocks) for name in names]


SIX = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("base", "names", "tasks", "experts", "routers"),
    [
        ((4096, 32, 11008, 4096), ["q_proj", "v_proj"], 8, 33_554_432, 1_048_832),
        ((4096, 32, 11008, 4096), SIX, 8, 143_130_624, 1_048_832),
        ((896, 24, 4864, 128), SIX, 5, 20_275_200, 107_640),
    ],
    ids=["llama2-7b-qv", "llama2-7b-six", "qwen2-0.5b"],
)
def test_counts_of_published_bases(base, names, tasks, experts, routers):
    hidden, blocks, wide, key = base
    linears = _llama(hidden, blocks, wide, key, names)
    sites = plan(resolve(MethodSpec(name="moa", options={"rank": 8, "modules": names})), linears, tasks)
    assert sum(site.down.parameters(site) + site.up.parameters(site) for site in sites) == experts
    assert sum(site.gate.parameters(site) for site in sites) == routers


@pytest.mark.parametrize("tasks", [2, 5])
def test_untrained_routers_cost_the_logarithm_of_the_number_of_experts(tasks):
    names = [f"task{number}" for number in range(tasks)]
    model = attach(tiny(), moa(), tasks=names).train()
    set_routers(model, weight=0.0)
    loss_of(model, batch())
    assert tape_of(model).auxiliary_losses()["supervision"].item() == pytest.approx(math.log(tasks), abs=1e-5)


def test_routers_that_are_sure_and_right_cost_nothing():
    model = attach(tiny(), moa(), tasks=TASKS).train()
    set_routers(model, weight=0.0, bias=[100.0, 0.0])
    loss_of(model, batch() | {"task_index": torch.zeros(4, dtype=torch.long)})
    assert tape_of(model).auxiliary_losses()["supervision"].item() == pytest.approx(0, abs=1e-6)


def _gradients(folders, tasks, **options):
    model = joined(folders, **options).train()
    loss_of(model, batch() | {"task_index": tasks}).backward()
    return model, gradients(model)


def _of(found, part: str):
    return {name: value for name, value in found.items() if part in name}


def test_without_supervision_only_the_experts_of_the_tasks_present_train(folders):
    _, found = _gradients(folders, torch.zeros(4, dtype=torch.long), supervision=0.0)
    assert all(value.abs().max() == 0 for value in _of(found, "tessera_gate").values())
    experts = [*_of(found, "tessera_down").values(), *_of(found, "tessera_up").values()]
    assert all(value[0].abs().max() > 0 and value[1].abs().max() == 0 for value in experts)


def test_detached_routers_leave_the_experts_gradients_as_they_were(folders):
    tasks = torch.arange(4) % 2
    _, without = _gradients(folders, tasks, supervision=0.0)
    _, detached = _gradients(folders, tasks, supervision=1.0, detach=True)
    for name, value in without.items():
        if "tessera_gate" in name:
            assert detached[name].abs().max() > 0
        else:
            assert torch.allclose(value, detached[name], atol=1e-7), name


def test_the_routing_loss_reaches_experts_below_a_router_and_no_others(folders):
    tasks = torch.arange(4) % 2
    _, without = _gradients(folders, tasks, supervision=0.0)
    _, joint = _gradients(folders, tasks, supervision=1.0)
    moved = {}
    for name, value in without.items():
        if "tessera_gate" not in name:
            block = int(name.split("layers.")[1].split(".")[0])
            moved[block] = max(moved.get(block, 0.0), (value - joint[name]).abs().max().item())
    assert moved[0] > 1e-6
    assert moved[1] > 1e-6
    assert moved[2] < 1e-7  # no router stands after the last block


def _decisions(model, **data):
    model(**data)
    return torch.stack([slot.weights.argmax(-1) for slot in tape_of(model).slots])


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_answers_and_padding_do_not_change_the_decision(folders, pool):
    model = joined(folders, pool=pool)
    data = unlabelled(batch(rows=3))
    chosen = _decisions(model, **data)
    other = dict(data)
    answers = data["token_role"] == 2
    other["input_ids"] = torch.where(answers, (data["input_ids"] + 7) % 60 + 3, data["input_ids"])
    assert torch.equal(_decisions(model, **other), chosen)
    padded = {key: data[key] for key in ("task_index",)}
    for key in ("input_ids", "attention_mask", "token_role"):
        padded[key] = torch.cat([torch.zeros(3, 5, dtype=data[key].dtype), data[key]], 1)
    padded["position_ids"] = (padded["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    assert torch.equal(_decisions(model, **padded), chosen)


@pytest.mark.parametrize("decide", ["per_layer", "vote"])
def test_the_decision_holds_while_generating_and_the_cache_changes_nothing(folders, decide):
    model, data = joined(folders, decide=decide), batch()
    prompt = {key: data[key][:, :6] for key in ("input_ids", "attention_mask")}
    chosen = _decisions(model, **prompt)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    text = model.generate(**prompt, **settings)
    after = torch.stack([slot.weights.argmax(-1) for slot in tape_of(model).slots])
    assert torch.equal(after, chosen)
    assert torch.equal(model.generate(**prompt, **settings, use_cache=False), text)


@pytest.mark.parametrize("decide", ["per_layer", "vote", "soft", "label"])
def test_a_sample_does_not_depend_on_its_batch(folders, decide):
    model, data = joined(folders, decide=decide), unlabelled(batch())
    together = model(**data).logits
    for row in range(4):
        alone = model(**{key: value[row : row + 1] for key, value in data.items()}).logits
        tokens = int(data["attention_mask"][row].sum())
        assert torch.allclose(together[row, :tokens], alone[0, :tokens], atol=1e-5)


def test_a_vote_is_one_expert_for_all_blocks_and_merges(folders):
    model, data = joined(folders, decide="vote", seed=3), unlabelled(batch())
    chosen = _decisions(model, **data)
    assert (chosen == chosen[0]).all()
    logits = model(**data).logits
    for expert in chosen[0].unique().tolist():
        merged = joined(folders)
        for _, layer in mixture_layers(merged):
            layer.add_to_base(layer.delta_weight("default", torch.eye(2)[expert]))
        rows = (chosen[0] == expert).squeeze(-1)
        with merged.disable_adapter():
            assert torch.allclose(merged(**data).logits[rows], logits[rows], atol=1e-4)


def test_soft_with_a_sure_router_is_the_labels_choice(folders):
    data = unlabelled(batch()) | {"task_index": torch.ones(4, dtype=torch.long)}
    soft = joined(folders, decide="soft")
    set_routers(soft, weight=0.0, bias=[0.0, 1e4])
    assert torch.allclose(soft(**data).logits, joined(folders, decide="label")(**data).logits, atol=1e-5)


def test_removing_an_expert_leaves_the_samples_of_the_others(folders, tmp_path):
    three = [*folders, lora_folder(tmp_path / "3", 3)]
    names = ["alpha", "beta", "gamma"]
    model = attach(tiny(), moa(), tasks=names, seed=5)
    fill_experts(model, [read_expert(folder) for folder in three])
    set_routers(model.eval(), bias=[3.0, 2.0, -1.0], weight=0.0)
    data = unlabelled(batch()) | {"task_index": torch.zeros(4, dtype=torch.long)}
    expected = model(**data).logits
    folder = save(model, tmp_path / "mixture")
    fewer = load(tiny(), remove_expert(folder, "gamma", tmp_path / "fewer"), name="x").eval()
    assert fewer.peft_config["x"].tasks == ["alpha", "beta"]
    assert torch.allclose(fewer(**data).logits, expected, atol=1e-6)
    second = load(tiny(), remove_expert(folder, "alpha", tmp_path / "second"), name="x").eval()
    alone = load(tiny(), three[1], name="x").eval()
    assert torch.allclose(second(**data).logits, alone(**data).logits, atol=1e-5)


def test_adding_an_expert_that_no_router_knows_changes_nothing(folders, tmp_path):
    model, data = joined(folders), unlabelled(batch())
    expected = model(**data).logits
    folder = save(model, tmp_path / "mixture")
    expert = read_expert(lora_folder(tmp_path / "3", 3))
    grown = load(tiny(), add_expert(folder, "gamma", expert, tmp_path / "grown"), name="x").eval()
    assert grown.peft_config["x"].tasks == [*TASKS, "gamma"]
    assert torch.allclose(grown(**data).logits, expected, atol=1e-6)
    with pytest.raises(ConfigurationError, match="already has an expert for alpha"):
        add_expert(folder, "alpha", expert, tmp_path / "again")


def test_replacing_an_expert_exchanges_what_its_task_gets(folders, tmp_path):
    model, data = joined(folders, decide="label"), unlabelled(batch())
    other = lora_folder(tmp_path / "3", 3)
    folder = save(model, tmp_path / "mixture")
    changed = load(tiny(), replace_expert(folder, "beta", read_expert(other), tmp_path / "new"), name="x").eval()
    logits, first = changed(**data).logits, data["task_index"] == 0
    assert torch.allclose(logits[first], model(**data).logits[first], atol=1e-6)
    alone = load(tiny(), other, name="x").eval()(**data).logits
    assert torch.allclose(logits[~first], alone[~first], atol=1e-5)


def test_an_expert_is_read_back_out_of_a_mixture(folders, tmp_path):
    folder = save(joined(folders), tmp_path / "mixture")
    again, alone = read_expert(folder, "beta"), read_expert(folders[1])
    for path in alone.down:
        assert torch.allclose(again.up[path] @ again.down[path], alone.up[path] @ alone.down[path], atol=1e-6)
    with pytest.raises(ConfigurationError, match="no expert for gamma.*alpha, beta"):
        read_expert(folder, "gamma")
    with pytest.raises(ConfigurationError, match="no single LoRA"):
        read_expert(folder)


def test_experts_of_smaller_rank_and_fewer_projections_compute_what_they_did(tmp_path):
    small = lora_folder(
        tmp_path / "s", 1, MethodSpec(name="lora", options={"rank": 2, "alpha": 3, "modules": ["q_proj"]})
    )
    large = lora_folder(tmp_path / "l", 2, MethodSpec(name="lora", options={"rank": 8, "modules": ["q_proj"]}))
    data = unlabelled(batch()) | {"task_index": torch.zeros(4, dtype=torch.long)}
    model = joined([small, lora_folder(tmp_path / "o", 3)], decide="label")
    assert torch.allclose(model(**data).logits, load(tiny(), small, name="x").eval()(**data).logits, atol=1e-5)
    with pytest.raises(ConfigurationError, match="rank 8.*rank 4"):
        joined([large, small])
    everywhere = lora_folder(tmp_path / "e", 4, MethodSpec(name="lora", options={"rank": 4, "modules": ["o_proj"]}))
    with pytest.raises(ConfigurationError, match="o_proj.*mixture does not"):
        joined([everywhere, small])
    with pytest.raises(ConfigurationError, match="1 experts for 2 tasks"):
        fill_experts(attach(tiny(), moa(), tasks=TASKS), [read_expert(small)])


def test_swapping_two_experts_with_their_routers_and_labels_changes_nothing(folders):
    data = batch()
    model, swapped = joined(folders).train(), joined(folders[::-1]).train()
    with torch.no_grad():
        for mine, theirs in zip(layers_of(model), layers_of(swapped), strict=True):
            if hasattr(mine.tessera_gate["default"], "bias"):
                theirs.tessera_gate["default"].weight.copy_(mine.tessera_gate["default"].weight.flip(0))
    other = data | {"task_index": 1 - data["task_index"]}
    assert loss_of(model, data).item() == pytest.approx(loss_of(swapped, other).item(), abs=1e-6)
    first, second = model.eval()(**unlabelled(data)).logits, swapped.eval()(**unlabelled(other)).logits
    assert torch.allclose(first, second, atol=1e-6)


def test_a_wrong_forced_label_changes_the_output(folders):
    data = unlabelled(batch())
    model = joined(folders, decide="label")
    wrong = data | {"task_index": 1 - data["task_index"]}
    assert (model(**data).logits - model(**wrong).logits).abs().max() > 1e-2


def test_a_forced_label_needs_a_task(folders):
    with pytest.raises(ConfigurationError, match="does not say which task each sample belongs to"):
        joined(folders, decide="label")(input_ids=batch()["input_ids"])


def test_frozen_experts_stay_and_are_saved(folders, tmp_path):
    model = joined(folders, train_experts=False).train()
    assert all("tessera_gate" in name for name, value in model.named_parameters() if value.requires_grad)
    loss_of(model, batch()).backward()
    again = load(tiny(), save(model, tmp_path / "mixture"), name="x").eval()
    data = unlabelled(batch())
    assert torch.equal(again(**data).logits, model.eval()(**data).logits)


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_mean_pooling_lets_the_first_router_see_what_the_last_token_hides(pool):
    """Four domains told apart by their first token alone, with equal last tokens."""
    domains = 4
    base = tiny(hidden_size=256, initializer_range=0.05)  # wide enough that attention carries the token's name
    model = attach(base, moa(pool=pool, train_experts=False), tasks=[f"domain{number}" for number in range(domains)])
    warm_up(model.train())
    optimiser = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(20, 60, (rows, 8), generator=generator)
        task = torch.arange(rows) % domains
        ids[:, 0], ids[:, -1] = 4 + task, 3
        return {"input_ids": ids, "task_index": task, "token_role": torch.ones(rows, 8, dtype=torch.int8)}

    for _ in range(400):
        model(**draw(32))
        tape_of(model).auxiliary_loss().backward()
        optimiser.step()
        optimiser.zero_grad()
    data = draw(400)
    data["labels"] = data["input_ids"]
    forced = model.train()(**data).loss.item()  # the task's own expert: there is no dropout here
    routed = model.eval()(**data).loss.item()
    right = [
        (slot.probs.argmax(-1).squeeze(1) == data["task_index"]).float().mean().item() for slot in tape_of(model).slots
    ]
    assert min(right[1:]) > 0.99
    if pool == "mean":
        assert right[0] > 0.99
        assert routed == pytest.approx(forced, rel=0.01)
    else:
        assert right[0] == pytest.approx(1 / domains, abs=0.01)
