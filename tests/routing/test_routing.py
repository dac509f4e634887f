"""Routing figures against values worked out by hand; snapshots on disk; statistics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from core.adapters.cells import Cell, Linear, plan
from core.adapters.tape import Addressing, Routing, RoutingTape
from core.errors import ConfigurationError, DataError, NotFoundError
from core.routing.recorder import RoutingRecorder
from core.routing.snapshot import RoutingSnapshot, SiteInfo
from core.routing.statistics import against_even, over_roles, site_distances

TASKS = ["a", "b"]


def tape_with(gate: dict, *experts: int) -> RoutingTape:
    tape = RoutingTape()
    for layer, count in enumerate(experts):
        cell = Cell(experts=count, down="shared", gate=gate)
        tape.add("default", plan([cell], [Linear(f"layers.{layer}.q_proj", 8, 8)], tasks=2)[0])
    return tape


def write(tape: RoutingTape, probs: list[torch.Tensor], weights: list[torch.Tensor], **addressing) -> None:
    tape.begin(Addressing(**addressing))
    for slot, p, w in zip(tape.slots, probs, weights, strict=True):
        slot.write(Routing(p, w), None, {})
    tape.end()


def hand_made() -> RoutingSnapshot:
    """Two rows, tasks b and a; three tokens each: the last of row 0 is an answer, the last of row 1 padding."""
    tape = tape_with({"word": "token", "top_k": 1}, 2)
    probs = torch.tensor([[[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]], [[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]])
    weights = torch.tensor([[[1.0, 0], [1, 0], [1, 0]], [[0, 1], [1, 0], [1, 0]]])
    recorder = RoutingRecorder(tape, TASKS)
    role = torch.tensor([[1, 1, 2], [1, 1, 0]], dtype=torch.int8)
    write(tape, [probs], [weights], task_index=torch.tensor([1, 0]), token_role=role)
    recorder.update()
    return recorder.snapshot()


def test_figures_are_those_of_the_definitions():
    shot = hand_made()
    prompt, answer, a, b = 0, 1, 0, 1
    assert shot.count[:, :, 0].tolist() == [[2, 2], [0, 1]]
    assert shot.mean_gate[prompt, a, 0].tolist() == [0.5, 0.5]
    assert shot.mean_gate[prompt, b, 0].tolist() == [1.0, 0.0]
    assert shot.selection_share[prompt, a, 0].tolist() == [0.5, 0.5]
    assert shot.top1_share[prompt, a, 0].tolist() == [0.5, 0.5]
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert shot.entropy[prompt, :, 0] == pytest.approx([(quarter + 1) / 2, (quarter + 1) / 2])
    assert shot.entropy[answer, b, 0] == pytest.approx(0)
    assert shot.load_cv[prompt, :, 0] == pytest.approx([0, 1])
    assert np.isnan(shot.mean_gate[answer, a, 0]).all() and np.isnan(shot.entropy[answer, a, 0])


def test_updates_add_up_and_a_snapshot_starts_anew():
    tape = tape_with({"word": "token"}, 3, 2)
    recorder = RoutingRecorder(tape, TASKS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        probs = [torch.rand(4, 5, e, generator=generator).softmax(-1) for e in (3, 2)]
        write(tape, probs, probs, task_index=torch.tensor([0, 1, 1, 1]))
        recorder.update()
    kept, shot = recorder.snapshot(reset=False), recorder.snapshot()
    assert np.array_equal(kept.mean_gate, shot.mean_gate, equal_nan=True)
    assert shot.count[0, :, 0].tolist() == [15, 45]
    assert np.isnan(shot.mean_gate[..., 1, 2]).all() and np.isfinite(shot.mean_gate[0, :, 0]).all()
    assert recorder.snapshot().count.sum() == 0


def test_sample_gates_count_samples_under_both_roles():
    tape = tape_with({"word": "task"}, 2)
    recorder = RoutingRecorder(tape, TASKS)
    probs = torch.tensor([[[0.2, 0.8]], [[0.6, 0.4]], [[0.4, 0.6]]])
    role = torch.ones(3, 7, dtype=torch.int8)
    write(tape, [probs], [probs], task_index=torch.tensor([0, 1, 1]), token_role=role)
    recorder.update()
    shot = recorder.snapshot()
    assert shot.sites[0].unit == "sample" and shot.sites[0].gate == "task"
    assert shot.count[:, :, 0].tolist() == [[1, 2], [1, 2]]
    assert shot.mean_gate[1, 1, 0] == pytest.approx([0.5, 0.5])
    assert over_roles(shot, "count")[:, 0].tolist() == [1, 2]


def test_a_batch_without_tasks_is_refused_where_there_are_several():
    tape = tape_with({"word": "token"}, 2)
    recorder = RoutingRecorder(tape, TASKS)
    write(tape, [torch.rand(2, 3, 2)], [torch.rand(2, 3, 2)])
    with pytest.raises(ConfigurationError, match="task_index"):
        recorder.update()
    single = RoutingRecorder(tape, [])
    single.update()
    assert single.snapshot().tasks == ["all"]


def test_decisions_beside_each_other_are_sites_of_their_own():
    """Two rows of three tokens, two blocks of ranks: recording them together is recording each by itself."""
    gate = {"word": "rank", "expert_rank": 4, "top_k": 2, "renormalise": False}
    tape = tape_with(gate, 3, 3)
    assert [slot.site.gate.groups(slot.site) for slot in tape.slots] == [2, 2]
    generator = torch.Generator().manual_seed(0)
    probs = [torch.rand(2, 3, 2, 3, generator=generator).softmax(-1) for _ in range(2)]
    weights = [p * (p > p.min(-1, keepdim=True).values) for p in probs]
    addressing = {
        "task_index": torch.tensor([1, 0]),
        "token_role": torch.tensor([[1, 1, 2], [1, 0, 0]], dtype=torch.int8),
    }
    recorder = RoutingRecorder(tape, TASKS)
    write(tape, probs, weights, **addressing)
    recorder.update()
    shot = recorder.snapshot()
    places = [(site.layer, site.place) for site in shot.sites]
    assert places == [(layer, f"q_proj rank {ranks}") for layer in (0, 1) for ranks in ("0-3", "4-7")]
    assert not any(site.sums_to_one for site in shot.sites) and shot.sites[0].selected == 2
    plain = tape_with({"word": "token", "top_k": 2, "renormalise": False}, 3, 3)
    for part in range(2):
        recorder = RoutingRecorder(plain, TASKS)
        write(plain, [p[:, :, part] for p in probs], [w[:, :, part] for w in weights], **addressing)
        recorder.update()
        alone = recorder.snapshot()
        for name in ("mean_gate", "selection_share", "top1_share", "entropy", "load_cv", "count"):
            expected = getattr(alone, name)
            assert np.allclose(getattr(shot, name)[:, :, part::2], expected, equal_nan=True), name
    frame = shot.to_frame()
    assert set(frame["part"]) == {"rank 0-3", "rank 4-7"} and not frame["shares"].any()


def test_parts_stay_in_order_where_only_some_gates_were_run():
    tape = tape_with({"word": "rank", "expert_rank": 4}, 2, 2, 2)
    recorder = RoutingRecorder(tape, [])
    probs = torch.tensor([[[[0.9, 0.1], [0.2, 0.8]]]])
    tape.begin(Addressing(token_role=torch.ones(1, 1, dtype=torch.int8)))
    for slot in (tape.slots[0], tape.slots[2]):  # such as a block that was skipped
        slot.write(Routing(probs, probs), None, {})
    tape.end()
    recorder.update()
    found = recorder.snapshot().mean_gate[0, 0, :, 0]
    assert found == pytest.approx([0.9, 0.2, np.nan, np.nan, 0.9, 0.2], nan_ok=True)


def test_negative_weights_are_selected_and_have_a_spread():
    tape = tape_with({"word": "token"}, 2)
    recorder = RoutingRecorder(tape, [])
    probs = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]])
    write(tape, [probs], [torch.tensor([[[3.0, -1.0], [1.0, -1.0]]])], token_role=torch.ones(1, 2, dtype=torch.int8))
    recorder.update()
    shot = recorder.snapshot()
    assert shot.mean_gate[0, 0, 0].tolist() == [2.0, -1.0]
    assert shot.selection_share[0, 0, 0].tolist() == [1.0, 1.0]
    assert shot.load_cv[0, 0, 0] == pytest.approx(1.5 / 1.5)


def test_a_gate_for_a_whole_block_says_so():
    cell = Cell(modules=["q_proj", "v_proj"], down="unique", gate="label")
    tape = RoutingTape()
    for site in plan([cell], [Linear(f"layers.{n}.{name}", 8, 8) for n in (0, 1) for name in ("q_proj", "v_proj")], 2):
        tape.add("default", site)
    shot = RoutingRecorder(tape, TASKS).snapshot()
    assert [(site.layer, site.place) for site in shot.sites] == [
        (0, "q_proj for its block"),
        (1, "q_proj for its block"),
    ]


def test_several_adapters_must_be_told_apart():
    tape = tape_with({"word": "token"}, 2)
    tape.add("other", tape.slots[0].site)
    with pytest.raises(ConfigurationError, match="default, other"):
        RoutingRecorder(tape, TASKS)


def test_a_method_without_gates_has_an_empty_snapshot(tmp_path):
    shot = RoutingRecorder(RoutingTape(), TASKS).snapshot()
    assert shot.sites == [] and shot.mean_gate.shape == (2, 2, 0, 0)
    assert RoutingSnapshot.load(shot.save(tmp_path / "empty.npz")).to_frame().empty


def test_snapshots_come_back_from_disk(tmp_path):
    shot = hand_made()
    path = shot.save(tmp_path / "deep" / "end.npz")
    again = RoutingSnapshot.load(path)
    assert again.tasks == shot.tasks and again.sites == shot.sites and again.roles == ("prompt", "answer")
    for name in ("mean_gate", "selection_share", "top1_share", "entropy", "load_cv", "count"):
        assert np.array_equal(getattr(again, name), getattr(shot, name), equal_nan=True)
    assert [item.name for item in path.parent.iterdir()] == ["end.npz"]
    with pytest.raises(NotFoundError):
        RoutingSnapshot.load(tmp_path / "none.npz")
    with_head(path, lambda head: head | {"version": 99})
    with pytest.raises(DataError, match="newer version"):
        RoutingSnapshot.load(path)
    (tmp_path / "bad.npz").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="no routing snapshot"):
        RoutingSnapshot.load(tmp_path / "bad.npz")


def with_head(path, change) -> None:
    """Write a snapshot's file again with another head."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["head"] = np.array(json.dumps(change(json.loads(str(arrays["head"])))))
    np.savez_compressed(path, **arrays)


def test_files_from_before_parts_of_projections_are_read(tmp_path):
    shot = hand_made()
    path = shot.save(tmp_path / "old.npz")

    def older(head):
        del head["version"]
        for site in head["sites"]:
            for name in ("part", "sums_to_one", "signed"):
                del site[name]
        return head

    with_head(path, older)
    again = RoutingSnapshot.load(path)
    assert again.sites == shot.sites and again.sites[0].place == "q_proj"
    assert np.array_equal(again.mean_gate, shot.mean_gate, equal_nan=True)


def test_the_frame_has_a_row_for_each_role_task_site_and_expert():
    frame = hand_made().to_frame()
    assert len(frame) == 2 * 2 * 2
    row = frame.query("role == 'prompt' and task == 'b' and expert == 0").iloc[0]
    assert (row["layer"], row["projection"], row["mean_gate"], row["count"]) == (0, "q_proj", 1.0, 2)


def snapshot_of(gates: list[list[float]], **kind: bool) -> RoutingSnapshot:
    """One site, prompt tokens only, a row of mean gates per task."""
    experts = len(gates[0])
    site = SiteInfo("layers.1.q_proj", 1, "q_proj", experts, experts, "token", "token", **kind)
    sums = np.zeros((2, len(gates), 3 * experts + 2))
    sums[0, :, :experts] = gates
    sums[0, :, -1] = 1
    return RoutingSnapshot.from_sums([str(t) for t in range(len(gates))], [site], [sums])


def test_distances_of_shares():
    apart, halves = snapshot_of([[1, 0], [0, 1]]), snapshot_of([[1, 0], [0.5, 0.5]])
    assert site_distances(apart)[0] == pytest.approx(1 - np.eye(2))
    assert site_distances(halves)[0, 0, 1] ** 2 == pytest.approx(0.811278 - 0.5, abs=1e-5)


def test_weights_that_are_no_shares_are_compared_by_their_proportions():
    halved = snapshot_of([[0.5, 0], [0, 0.25]], sums_to_one=False)
    assert site_distances(halved)[0] == pytest.approx(1 - np.eye(2))
    alike = snapshot_of([[0.2, 0.4], [0.1, 0.2]], sums_to_one=False)
    assert site_distances(alike)[0] == pytest.approx(np.zeros((2, 2)), abs=1e-6)
    assert against_even(alike.mean_gate[0], alike.sites)[:, 0] == pytest.approx(np.array([[2, 4], [2, 4]]) / 3)
    shares = snapshot_of([[0.2, 0.8]])
    assert against_even(shares.mean_gate[0], shares.sites)[0, 0] == pytest.approx([0.4, 1.6])


def test_negative_weights_are_compared_by_their_direction():
    shot = snapshot_of([[3.0, -1.0], [-3.0, 1.0], [6.0, -2.0], [1.0, 3.0]], sums_to_one=False, signed=True)
    found = site_distances(shot)[0, 0]
    assert found == pytest.approx([0, 1, 0, math.sqrt(0.5)], abs=1e-6)
    assert np.isnan(against_even(shot.mean_gate[0], shot.sites)).all()
