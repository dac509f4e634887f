"""Every architecture that is supported: which projections are found, and that adapters on them are exact."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as hf
from adapters_support import ALL, TASKS, gradients, loss_of, trainable, warm_up

from core import catalog, catalog_shapes
from core.adapters.attach import attach, load, mixture_layers, save, tape_of
from core.adapters.cells import Linear, plan
from core.adapters.methods import resolve
from core.adapters.model import linears_of
from core.drafts import placed
from core.errors import ConfigurationError
from core.schema import MethodSpec, ModelSpec, TrainSpec
from tests.support.bases import DECODERS, ENCODER_DECODER, LLAMA, SPARSE, Base

LORA = MethodSpec(name="lora", options={"rank": 2, "modules": ALL})
MOSLD = MethodSpec(name="mosld", options={"rank": 2, "modules": ALL, "experts": 3, "balance": 0.1, "dropout": 0.0})
SEQUENCE = MethodSpec(name="split", cells=[{"rank": 2, "experts": 3, "gate": "sequence", "down": "shared"}])
METHODS = {"lora": LORA, "mosld": MOSLD, "sequence": SEQUENCE}

bases = pytest.mark.parametrize("base", DECODERS, ids=lambda base: base.id)
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def batch(seed: int = 1, rows: int = 3, tokens: int = 10, prompt: int = 6) -> dict[str, torch.Tensor]:
    """Right-padded rows with prompt and answer."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 64, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:2, -2:] = 0
    role = torch.where(torch.arange(tokens) < prompt, 1, 2) * mask
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": (ids * mask).masked_fill(role != 2, -100),
        "token_role": role.to(torch.int8),
        "task_index": torch.arange(rows) % len(TASKS),
    }


def plain(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: data[key] for key in ("input_ids", "attention_mask")}


def warmed(base: Base, method: MethodSpec):
    model = attach(base.made(), method, tasks=TASKS)
    warm_up(model)
    return model


def paths(base: Base, modules: list[str] | str) -> list[str]:
    model = attach(base.made(), MethodSpec(name="lora", options={"rank": 2, "modules": modules}), tasks=TASKS)
    return [path for path, _ in mixture_layers(model)]


@bases
def test_all_linear_names_and_a_pattern_find_their_projections(base: Base):
    every = paths(base, ALL)
    assert tuple(dict.fromkeys(path.rpartition(".")[2] for path in every)) == base.projections
    assert every == [line.name for line in linears_of(base.made()) if line.usual]
    named = paths(base, list(base.names))
    assert named == paths(base, base.pattern) == [p for p in every if p.endswith(tuple(f".{n}" for n in base.names))]
    assert {path.split(".")[-1] for path in named} == {name.split(".")[-1] for name in base.names}


@bases
@methods
def test_a_fresh_adapter_changes_nothing_and_training_moves_all_of_it(base: Base, method: MethodSpec):
    model, data = attach(base.made(), method, tasks=TASKS), batch()
    without = {key: value for key, value in data.items() if key != "labels"}
    assert torch.equal(model(**without).logits, base.made()(**plain(data)).logits)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    model.train()
    for step in range(3):
        loss_of(model, batch(seed=step)).backward()
        optimiser.step()
        optimiser.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) is not (".tessera_" in name), name


@bases
@methods
def test_saved_and_loaded_logits_are_identical(base: Base, method: MethodSpec, tmp_path):
    model, data = warmed(base, method).eval(), batch()
    save(model, tmp_path)
    assert torch.equal(load(base.made(), tmp_path, name="again").eval()(**data).logits, model(**data).logits)
    assert not torch.equal(base.made()(**plain(data)).logits, model(**data).logits)


@bases
@methods
def test_cached_decoding_equals_the_full_forward(base: Base, method: MethodSpec):
    model, prompt = warmed(base, method).eval(), 6
    inputs = {"input_ids": batch()["input_ids"][:, :prompt], "task_index": batch()["task_index"]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    out = model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    role = torch.tensor([1] * prompt + [2] * 4).expand(3, -1)
    full = model(input_ids=out.sequences, token_role=role, task_index=inputs["task_index"]).logits
    for step, logits in enumerate(out.logits):
        assert torch.allclose(full[:, prompt - 1 + step], logits, atol=1e-5)


@bases
@methods
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padding_changes_nothing(base: Base, method: MethodSpec, left: bool):
    model, data = warmed(base, method).eval(), batch(rows=1, tokens=8, prompt=5)
    data.pop("labels")
    expected = model(**data).logits
    for key in ("input_ids", "attention_mask", "token_role"):
        pad = torch.zeros(1, 4, dtype=data[key].dtype)
        data[key] = torch.cat([pad, data[key]] if left else [data[key], pad], 1)
    positions = (data["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    logits = model(**data, position_ids=positions).logits
    assert torch.allclose(logits[:, 4:] if left else logits[:, :8], expected, atol=1e-5)


@bases
@methods
def test_activation_checkpointing_is_exact(base: Base, method: MethodSpec):
    results = []
    for checkpointing in (False, True):
        model = warmed(base, method).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        loss = loss_of(model, batch())
        written = [slot.probs for slot in tape_of(model).slots]
        loss.backward()
        assert all(slot.probs is probs for slot, probs in zip(tape_of(model).slots, written, strict=True))
        results.append((loss.item(), gradients(model)))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    for name, gradient in results[0][1].items():
        assert torch.allclose(gradient, results[1][1][name], atol=1e-6), name


MIXED = {base.id: base for base in DECODERS if base.id in ("mixtral", "qwen3_moe")}


def on(*modules: str, **more) -> MethodSpec:
    return MethodSpec(name="split", cells=[{"modules": list(modules), "rank": 2, **more}])


@pytest.mark.parametrize("base", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("modules", [["gate_up_proj"], ["experts.down_proj"], r".*\.experts\..*"])
def test_fused_experts_are_no_linear_layers_and_that_is_said(base: Base, modules):
    with pytest.raises(
        ConfigurationError, match=r"mlp\.experts\.\w+ holds all experts .* no linear layer.*Leave the ex"
    ):
        attach(base.made(), MethodSpec(name="lora", options={"modules": modules}), tasks=TASKS)


def test_the_router_of_a_mixture_of_experts_is_no_projection():
    with pytest.raises(ConfigurationError, match=r"no projection of the base .*The base has k_proj, o_proj"):
        attach(MIXED["mixtral"].made(), MethodSpec(name="lora", options={"modules": ["gate"]}), tasks=TASKS)


def shared_expert_base() -> torch.nn.Module:
    torch.manual_seed(0)
    config = hf.Qwen2MoeConfig(**LLAMA, **SPARSE, shared_expert_intermediate_size=16)
    return hf.Qwen2MoeForCausalLM(config).eval()


def test_linear_parts_of_an_expert_block_are_adapted_where_they_are_named():
    kinds = {line.projection: line.kind for line in linears_of(shared_expert_base())}
    assert kinds["shared_expert_gate"] == kinds["gate_proj"] == "expert" and kinds["q_proj"] == "linear"
    model = attach(shared_expert_base(), LORA, tasks=TASKS)
    assert {path.split(".")[-1] for path, _ in mixture_layers(model)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    named = on("shared_expert.gate_proj", "q_proj", experts=2, gate="token")
    model = attach(shared_expert_base(), named, tasks=TASKS)
    warm_up(model)
    model.train()
    loss_of(model, batch()).backward()
    assert set(gradients(model)) == set(trainable(model))
    assert sum("shared_expert.gate_proj" in path for path, _ in mixture_layers(model)) == 2
    for gate in ("sequence", "task"):
        with pytest.raises(ConfigurationError, match="sees tokens without their samples"):
            attach(shared_expert_base(), on("shared_expert.gate_proj", experts=2, gate=gate), tasks=TASKS)


@pytest.mark.parametrize("base", DECODERS, ids=lambda base: base.id)
def test_counts_from_the_config_alone_are_those_of_the_built_model(base: Base, tmp_path):
    """In this process, since a child for each base would take seconds; ``test_catalog`` starts the child."""
    base.made().config.save_pretrained(tmp_path)
    data = catalog_shapes.read(str(tmp_path))
    linears = [Linear(*line) for line in json.loads(json.dumps(data["linears"]))]
    for method in METHODS.values():
        counted = sum(site.parameters() for site in plan(resolve(method), linears, len(TASKS)))
        built = sum(p.numel() for p in trainable(attach(base.made(), method, tasks=TASKS)).values())
        assert counted == built > 0, method.name


@pytest.mark.parametrize("base", MIXED.values(), ids=MIXED)
def test_fused_experts_keep_their_bits_and_are_no_rows_of_the_designer(base: Base, tmp_path):
    base.made().config.save_pretrained(tmp_path)
    data = catalog_shapes.read(str(tmp_path))
    shapes = catalog.BaseShapes(**{**data, "linears": tuple(Linear(*line) for line in data["linears"])})
    experts = sum(p.numel() for name, p in base.made().named_parameters() if ".experts." in name)
    spec = ModelSpec(base=str(tmp_path), quantization="4bit")
    assert catalog.memory(LORA, spec, shapes, TrainSpec(), len(TASKS)).weights > 2 * experts
    cells = resolve(LORA)
    rows = placed(shapes, cells, plan(cells, shapes.linears, len(TASKS)))
    assert list(dict.fromkeys(row.projection for row in rows)) == shapes.projections == list(base.projections)


def two_texts(rows: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    """Sources and answers for an encoder-decoder base; the second source is padded."""
    data = batch(seed, rows)
    answers = torch.randint(3, 64, (rows, 5), generator=torch.Generator().manual_seed(seed))
    return {**plain(data), "labels": answers, "task_index": data["task_index"]}


TASK = MethodSpec(name="split", cells=[{"rank": 2, "experts": 3, "gate": "task", "down": "shared"}])
t5_methods = pytest.mark.parametrize("method", [LORA, MOSLD, TASK], ids=["lora", "mosld", "task"])


def test_projections_of_an_encoder_decoder_base():
    every = paths(ENCODER_DECODER, ALL)
    assert {path.split(".")[0] for path in every} == {"encoder", "decoder"}
    assert set(ENCODER_DECODER.projections) == {path.split(".")[-1] for path in every}
    assert paths(ENCODER_DECODER, list(ENCODER_DECODER.names)) == paths(ENCODER_DECODER, ENCODER_DECODER.pattern)


@t5_methods
def test_adapters_on_an_encoder_decoder_base_train_save_and_load(method: MethodSpec, tmp_path):
    model, data = attach(ENCODER_DECODER.made(), method, tasks=TASKS), two_texts()
    without = {key: value for key, value in data.items() if key != "task_index"}
    # Its attention has a bias, with which PyTorch's kernel rounds by where its tensors lie in memory.
    assert torch.allclose(model(**data).logits, ENCODER_DECODER.made()(**without).logits, atol=1e-5)
    before = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    optimiser = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    model.train()
    for step in range(3):
        loss_of(model, two_texts(seed=step)).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert all(not torch.equal(before[name], parameter) for name, parameter in trainable(model).items())
    expected = model.eval()(**data).logits
    save(model, tmp_path)
    loaded = load(ENCODER_DECODER.made(), tmp_path, name="again").eval()
    assert torch.equal(loaded(**data).logits, expected)
    assert loaded.peft_config["again"].task_type == "SEQ_2_SEQ_LM"


@t5_methods
def test_an_encoder_decoder_base_generates_what_it_computes_in_full(method: MethodSpec):
    model, data = warmed(ENCODER_DECODER, method), two_texts()
    data.pop("labels")
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    out = model.generate(**data, **settings, return_dict_in_generate=True, output_logits=True)
    full = model(**data, decoder_input_ids=out.sequences).logits
    for step, logits in enumerate(out.logits):
        assert torch.allclose(full[:, step], logits, atol=1e-5)
    assert torch.equal(model.generate(**data, **settings, use_cache=False), out.sequences)
    beams = model.generate(**data, num_beams=2, max_new_tokens=3, do_sample=False)
    alone = {key: value[1:2] for key, value in data.items()}
    assert torch.equal(model.generate(**alone, num_beams=2, max_new_tokens=3, do_sample=False)[0], beams[1])


def test_a_gate_that_reads_the_prompt_is_refused_on_an_encoder_decoder_base():
    with pytest.raises(ConfigurationError, match="sequence gate .* encoder .* Use token or task gates"):
        attach(ENCODER_DECODER.made(), SEQUENCE, tasks=TASKS)


def test_mixed_adapters_on_a_base_that_flattens_its_batch():
    """OPT's feed-forward sees rows and tokens as one axis."""
    opt = next(base for base in DECODERS if base.id == "opt")
    model, data = warmed(opt, SEQUENCE).eval(), batch()
    attach(model, TASK, tasks=TASKS, name="task")
    warm_up(model, "task", seed=8)
    data.pop("labels")
    mixed = model(**data, adapter_names=["default", "task", "__base__"]).logits
    assert torch.allclose(mixed[0], model(**data).logits[0], atol=1e-5)
    model.set_adapter("task")
    assert torch.allclose(mixed[1], model(**data).logits[1], atol=1e-5)
    assert torch.allclose(mixed[2], opt.made()(**plain(data)).logits[2], atol=1e-5)
