"""What happens before the first step: prompts are embedded and clustered, and rows carry what their gates are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.adapters.attach import attach, load
from core.adapters.prelude import SIDE, centroids_of, guided_slots
from core.data.batches import TaskDataset
from core.data.store import DatasetStore
from core.data.tasks import load_tasks
from core.data.templates import TextEncoder
from core.evaluation.run import score
from core.home import RunFolder
from core.jobs.sinks import Cancelled, ListSink
from core.models import load_base
from core.schema import ModelSpec
from core.training import checkpoints
from core.training.clusters import k_means
from core.training.loss import AnswerCollator, AnswerHead
from core.training.prepare import PHASE, Setting, embed_prompts, prepare
from core.training.run import train_adapter
from tests.support.training import points, toy_spec

MOR1E = {"name": "mor1e", "options": {"down_vectors": 2, "up_vectors": 2}}


def setting(base: Path, store: DatasetStore, method: dict = MOR1E, **changes) -> Setting:
    spec = toy_spec(base, method)
    tasks = load_tasks(store, spec.tasks, 0)
    encoder = TextEncoder(base)
    model = attach(load_base(ModelSpec(base=str(base)), "cpu"), spec.method, tasks=[task.name for task in tasks])
    dataset = TaskDataset(tasks, encoder, "train", 512)
    chosen = {"sink": ListSink(), "seed": 0, "batch_size": 8, "pad_id": encoder.pad_id} | changes
    return Setting(model, dataset, **chosen)


def prompts_of(given: Setting) -> list[list[int]]:
    items = (given.dataset[index] for index in range(len(given.dataset)))
    return [[t for t, role in zip(i["input_ids"], i["token_role"], strict=True) if role == 1] for i in items]


def test_rows_carry_what_the_model_would_find_itself(base: Path, store: DatasetStore):
    given = setting(base, store)
    prepare(given)
    items = [given.dataset[index] for index in (0, 50, 7)]
    batch = AnswerCollator(given.pad_id)(items)
    assert batch["side_intuition"].shape == (3, 4)
    model = given.model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        told = AnswerHead(model).logits(batch)
        slot = guided_slots(model.base_model, "default")[0]
        assert torch.equal(slot.prior, batch["side_intuition"])
        found = AnswerHead(model).logits({k: v for k, v in batch.items() if not k.startswith("side_")})
    assert torch.allclose(slot.prior, batch["side_intuition"], atol=1e-6)
    assert torch.allclose(told, found, atol=1e-5)


def test_centroids_are_the_means_of_their_prompts(base: Path, store: DatasetStore):
    given = setting(base, store)
    prepare(given)
    tuner = given.model.base_model
    embeddings = embed_prompts(given, prompts_of(given), "base")
    assert torch.allclose(embeddings.norm(dim=-1), torch.ones(len(embeddings)), atol=1e-5)
    centroids = centroids_of(tuner, guided_slots(tuner, "default")[0])
    owner = torch.cdist(embeddings.double(), centroids.double()).argmin(-1)
    assert sorted(set(owner.tolist())) == [0, 1, 2, 3]
    for cluster in range(4):
        assert torch.allclose(centroids[cluster], embeddings[owner == cluster].mean(0), atol=1e-5)
    assert torch.allclose(given.dataset.side[SIDE], embeddings @ centroids.t(), atol=1e-6)


def test_centroids_of_length_one_make_the_similarity_a_cosine(base: Path, store: DatasetStore):
    given = setting(base, store, MOR1E | {"options": MOR1E["options"] | {"cosine": True}})
    prepare(given)
    tuner = given.model.base_model
    centroids = centroids_of(tuner, guided_slots(tuner, "default")[0])
    assert torch.allclose(centroids.norm(dim=-1), torch.ones(4), atol=1e-6)
    assert given.dataset.side[SIDE].abs().max() <= 1 + 1e-5


def test_other_methods_need_no_preparation(base: Path, store: DatasetStore):
    given = setting(base, store, {"name": "lora", "options": {"rank": 2}})
    prepare(given)
    assert given.dataset.side == {} and given.sink.events == []


def test_fewer_prompts_than_clusters_are_told(base: Path, store: DatasetStore):
    given = setting(base, store, MOR1E | {"options": {"down_vectors": 10, "up_vectors": 10}})
    prepare(given)
    (warning,) = given.sink.of("log")
    assert warning["level"] == "warning" and "96 different prompts for 100 clusters" in warning["message"]
    tuner = given.model.base_model
    centroids = centroids_of(tuner, guided_slots(tuner, "default")[0])
    assert (centroids.norm(dim=-1) == 0).sum() == 4 and torch.isfinite(given.dataset.side[SIDE]).all()


def test_progress_is_told_and_a_stop_is_heard(base: Path, store: DatasetStore):
    given = setting(base, store)
    prepare(given)
    seen = given.sink.of("progress")
    assert [event["phase"] for event in seen] == [PHASE] * len(seen) and seen[-1]["step"] == seen[-1]["total"] == 96

    class Stopped(ListSink):
        def cancelled(self) -> bool:
            return True

    with pytest.raises(Cancelled):
        prepare(setting(base, store, sink=Stopped()))


def test_a_sentence_encoder_embeds_the_prompts_text(base: Path, store: DatasetStore, encoder_folder: Path):
    options = MOR1E["options"] | {"embedder": str(encoder_folder)}
    given = setting(base, store, {"name": "mor1e", "options": options})
    prepare(given)
    tuner = given.model.base_model
    assert centroids_of(tuner, guided_slots(tuner, "default")[0]).shape == (4, 16)
    assert given.model.peft_config["default"].cells[0]["gate"]["width"] == 16
    batch = AnswerCollator(given.pad_id)([given.dataset[3], given.dataset[60]])
    told = batch.pop("side_intuition")
    AnswerHead(given.model.eval()).logits(batch)
    assert torch.allclose(guided_slots(tuner, "default")[0].prior, told, atol=1e-6)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A tiny BERT with a tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


def test_a_run_trains_saves_scores_and_goes_on_as_if_uninterrupted(base: Path, store: DatasetStore, tmp_path: Path):
    spec = toy_spec(base, MOR1E, steps=12, checkpoint_every=3, checkpoints_kept=9, routing_moments=2)
    folder, whole, again = RunFolder(tmp_path / "run").create(), ListSink(), ListSink()
    train_adapter(spec, folder, store, whole, device="cpu", resume=False)
    assert {event["phase"] for event in whole.of("progress")} == {PHASE, "training"}
    assert whole.of("routing")
    stored = load_file(folder.adapter / "adapter_model.safetensors")
    (name,) = [name for name in stored if name.endswith("centroids")]
    score(spec, folder, store, whole, models=("adapter",), device="cpu")
    assert {event["task"] for event in whole.of("score")} == {"colour", "count"}

    loaded = load(load_base(ModelSpec(base=str(base)), "cpu"), folder.adapter, name="again")
    tuner = loaded.base_model
    assert torch.equal(centroids_of(tuner, guided_slots(tuner, "again")[0]), stored[name])

    for step, path in checkpoints.found(folder.checkpoints):
        if step > 6:
            (path / checkpoints.MANIFEST).unlink()
    first = (folder.adapter / "adapter_model.safetensors").read_bytes()
    train_adapter(spec, folder, store, again, device="cpu", resume=True)
    assert again.of("started")[0]["step"] == 6
    trained = [event for event in whole.events if event["kind"] in ("started", "metrics")]
    assert points([*trained, *again.events]) == points(trained)
    assert (folder.adapter / "adapter_model.safetensors").read_bytes() == first


def test_k_means_finds_the_groups_and_the_same_ones_again():
    torch.manual_seed(0)
    groups = torch.arange(200) % 5
    data = 4 * torch.eye(5, 8)[groups] + 0.3 * torch.randn(200, 8)
    found, clusters = k_means(data, 5, seed=1)
    assert clusters == 5
    means = torch.stack([data[groups == group].mean(0) for group in range(5)])
    nearest = torch.cdist(found, means)
    assert nearest.min(-1).values.max() < 1e-5 and sorted(nearest.argmin(-1).tolist()) == list(range(5))
    assert torch.equal(k_means(data, 5, seed=1)[0], found)


def test_k_means_of_equal_points_leaves_clusters_empty():
    found, clusters = k_means(torch.ones(6, 3), 4, seed=0)
    assert clusters == 1 and torch.equal(found[0], torch.ones(3)) and not found[1:].any()


def test_auxiliary_losses_have_curves_of_their_own_from_their_step_on(base: Path, store: DatasetStore, tmp_path: Path):
    spec = toy_spec(base, {"name": "moelora", "options": {"after": 2}}, steps=4)
    sink = ListSink()
    train_adapter(spec, RunFolder(tmp_path).create(), store, sink, device="cpu", resume=False)
    found = points(sink.events)
    steps = {step for step, name in found if name == "auxiliary_loss/contrastive"}
    assert steps == {3, 4} and {step for step, name in found if name == "auxiliary_loss/balance"} == {1, 2, 3, 4}
    parts = [found[4, f"auxiliary_loss/{name}"] for name in ("balance", "contrastive")]
    assert found[4, "auxiliary_loss"] == pytest.approx(sum(parts)) and parts[1] > 0.01
