"""Momentum encoder, queue and shuffled batch norm, by themselves and through the real loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from recipes.contract import ConfigurationError
from recipes.engine.ema import decay_at
from recipes.engine.sync_batch_norm import synchronized
from recipes.models.encoder import load_encoder
from recipes.models.momentum import FeatureQueue, MomentumEncoder, encode_shuffled, momentum_at
from tests.recipes import momentum_worker
from tests.recipes.engine_worker import run_jobs
from tests.recipes.momentum_worker import LENGTH, STEPS

STOPPED, KILLED = 75, -9
WORLDS = (1, 2)


def test_the_copy_follows_by_the_momentum_and_has_no_parameters():
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    slow = MomentumEncoder(online)
    assert not list(slow.parameters())
    before = slow.network[0].weight.clone()
    assert torch.equal(before, online[0].weight)
    with torch.no_grad():
        online[0].weight.add_(1.0)
    slow.update(0.75)
    torch.testing.assert_close(slow.network[0].weight, before + 0.25)


def test_the_copy_encodes_with_its_own_weights_and_statistics_and_without_gradient():
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    slow = MomentumEncoder(online)
    inputs = torch.randn(5, 3)
    assert torch.equal(slow(inputs), online(inputs))
    assert not slow(inputs).requires_grad
    assert slow.network[1].num_batches_tracked == 2
    assert online[1].num_batches_tracked == 1


def test_the_copy_of_a_recurrent_network_follows_too():
    torch.manual_seed(0)
    online = nn.GRU(3, 4)
    slow = MomentumEncoder(nn.Sequential(online, _First()))
    with torch.no_grad():
        online.weight_ih_l0.add_(1.0)
    inputs = torch.randn(5, 2, 3)
    assert not torch.equal(slow(inputs), online(inputs)[0])
    slow.update(0.0)
    torch.testing.assert_close(slow(inputs), online(inputs)[0])


class _First(nn.Module):
    def forward(self, outputs):
        return outputs[0]


def test_weights_that_are_shared_stay_shared_in_the_copy():
    layer = nn.Linear(2, 2)
    slow = MomentumEncoder(nn.Sequential(layer, layer))
    assert slow.network[0].weight is slow.network[1].weight
    slow.update(0.5)


def test_batch_norms_of_the_copy_can_be_made_to_span_ranks():
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    slow, plain = MomentumEncoder(online), MomentumEncoder(online)
    synchronized(slow)
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(slow(inputs), plain(inputs))
    with torch.no_grad():
        online[1].weight.fill_(3.0)
    slow.update(0.0)
    assert slow.network[1].weight.tolist() == [3.0] * 4
    assert not list(slow.parameters())


def test_the_momentum_rises_by_half_a_cosine_from_its_first_value_to_one():
    assert momentum_at(0, 100, 0.994) == pytest.approx(0.994)
    assert momentum_at(50, 100, 0.994) == pytest.approx(0.997)
    assert momentum_at(25, 100, 0.994) == pytest.approx(1 - 0.006 * (1 + math.sqrt(0.5)) / 2)
    assert momentum_at(100, 100, 0.994) == 1.0


def test_the_queue_is_a_ring_that_starts_with_normalized_noise():
    torch.manual_seed(0)
    queue = FeatureQueue(6, 2)
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(6))
    first = queue.features.clone()
    for n in range(4):
        queue.hold(torch.full((2, 2), float(n)))
        queue.enqueue()
        if n == 1:
            assert torch.equal(queue.features[4:], first[4:])
    assert queue.features[:, 0].tolist() == [3, 3, 1, 1, 2, 2]
    assert queue.pointer == 2


def test_keys_of_a_step_enter_in_the_order_of_its_micro_batches():
    queue = FeatureQueue(8, 1)
    queue.hold(torch.tensor([[0.0], [1.0]]))
    queue.hold(torch.tensor([[2.0], [3.0]]))
    queue.enqueue()
    assert queue.features[:4, 0].tolist() == [0, 1, 2, 3]
    assert queue.pointer == 4


def test_a_key_that_is_not_finite_leaves_the_queue_as_it_was():
    queue = FeatureQueue(4, 1)
    before = queue.features.clone()
    queue.hold(torch.tensor([[1.0], [math.nan]]))
    queue.enqueue()
    assert torch.equal(queue.features, before)
    assert queue.pointer == 0
    queue.hold(torch.tensor([[1.0], [2.0]]))
    queue.enqueue()
    assert queue.features[:2, 0].tolist() == [1, 2]


def test_keys_held_for_a_step_that_was_left_out_are_forgotten():
    queue = FeatureQueue(4, 1)
    queue.hold(torch.tensor([[1.0], [2.0]]))
    queue.begin_step()
    queue.hold(torch.tensor([[3.0], [4.0]]))
    queue.enqueue()
    assert queue.features[:2, 0].tolist() == [3, 4]


def test_a_length_that_is_no_multiple_of_the_batch_is_refused():
    queue = FeatureQueue(6, 1)
    queue.hold(torch.zeros(4, 1))
    with pytest.raises(ConfigurationError, match="queue of 6 is no multiple of the 4 keys"):
        queue.enqueue()


def test_on_one_rank_nothing_is_shuffled():
    rows = torch.arange(4.0)
    assert torch.equal(encode_shuffled(lambda given: given.cumsum(0), rows), rows.cumsum(0))


class Runs(NamedTuple):
    folder: Path
    first: dict[str, list[int | None]]
    second: dict[str, list[int | None]]

    def end(self, name: str, rank: int) -> dict[str, Any]:
        loaded: dict[str, Any] = torch.load(self.folder / name / f"end-{rank}.pt")
        return loaded


def job(folder: Path, world_size: int, **changes: Any) -> dict[str, Any]:
    config = {
        "max_steps": STEPS,
        "batch_size": 8,
        "micro_batch": 2,
        "ema_decay": 0.5,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "checkpoint": {"minutes": None, "steps": 2},
        "log_every": 1,
        **changes.pop("config", {}),
    }
    return {"folder": str(folder), "world_size": world_size, "config": config, **changes}


def first_attempts(folder: Path) -> dict[str, dict[str, Any]]:
    jobs = {}
    for world in WORLDS:
        whole, stopped, killed = (f"{kind}-{world}" for kind in ("alone", "stopped", "killed"))
        jobs[whole] = job(folder / whole, world)
        jobs[stopped] = job(folder / stopped, world, stop_at=3)
        jobs[killed] = job(folder / killed, world, fault="step:5", fault_rank=world - 1)
    skips = {"skip_non_finite": 1}
    jobs["skipping"] = job(folder / "skipping", 2, poison_step=STEPS, config=skips)
    jobs["shuffle"] = job(folder / "shuffle", 2, shuffle=True)
    for name, stage in (("plain", 0), ("split", 3)):
        jobs[name] = job(folder / name, 2, dpc=True, config={"zero_stage": stage})
    return jobs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every training alone, and interrupted (stopped at a step, killed) and resumed."""
    folder = tmp_path_factory.mktemp("momentum")
    first = first_attempts(folder)
    second = {
        f"{kind}-{world}": job(folder / f"{kind}-{world}", world, restart=1)
        for kind in ("stopped", "killed")
        for world in WORLDS
    }
    for name in first:
        (folder / name).mkdir()
    codes = run_jobs(folder, [*first.values(), *second.values()], momentum_worker.__file__)
    return Runs(
        folder,
        dict(zip(first, codes[: len(first)], strict=True)),
        dict(zip(second, codes[len(first) :], strict=True)),
    )


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", ["stopped", "killed"])
def test_an_interrupted_training_ends_bit_by_bit_as_one_left_alone(runs, kind, world):
    name = f"{kind}-{world}"
    assert (STOPPED if kind == "stopped" else KILLED) in runs.first[name]
    assert runs.second[name] == [0] * world
    for rank in range(world):
        resumed, whole = (runs.end(one, rank) for one in (name, f"alone-{world}"))
        assert {"queue.features", "queue.pointer", "momentum.network.0.weight"} <= whole[
            "state"
        ].keys()
        assert resumed["state"].keys() == whole["state"].keys()
        for key, value in whole["state"].items():
            assert torch.equal(resumed["state"][key], value), key
        assert 0 < len(resumed["keys"]) < STEPS
        assert torch.equal(resumed["weights"][-1], whole["weights"][-1])


@pytest.mark.parametrize("world", WORLDS)
def test_the_queue_is_equal_on_all_ranks_and_has_the_last_keys_in_order(runs, world):
    assert runs.first[f"alone-{world}"] == [0] * world
    ends = [runs.end(f"alone-{world}", rank) for rank in range(world)]
    keys = in_order(ends, range(STEPS))
    assert len(keys) == STEPS * 8
    for end in ends:
        assert torch.equal(end["state"]["queue.features"], keys[-LENGTH:])
        assert end["state"]["queue.pointer"] == STEPS * 8 % LENGTH


def test_a_checkpoint_has_once_what_is_equal_on_all_ranks(runs):
    files = sorted((runs.folder / "alone-2" / "checkpoints").glob(f"step_*{STEPS}/*.safetensors"))
    assert len(files) == 2
    kept = []
    for file in files:
        with safe_open(file, framework="pt") as stream:
            kept.append({name.removeprefix("buffer/") for name in stream.keys()})  # noqa: SIM118
    once = {"queue.features", "queue.pointer", "momentum.network.0.weight", "ema.encoder/0/weight"}
    each = {"momentum.network.1.running_mean", "encoder.1.running_mean"}
    assert once | each <= kept[0]
    assert each <= kept[1] and not once & kept[1]


def in_order(ends: list[dict[str, Any]], steps: range) -> torch.Tensor:
    """Keys as ranks took the micro-batches of these steps in turn."""
    held = [[keys for step in steps for keys in end["keys"][step]] for end in ends]
    return torch.cat([keys for turn in zip(*held, strict=True) for keys in turn])


def test_the_keys_of_a_step_that_was_left_out_do_not_enter(runs):
    assert runs.first["skipping"] == [0, 0]
    ends = [runs.end("skipping", rank) for rank in range(2)]
    before = in_order(ends, range(STEPS - 1))
    for end in ends:
        assert len(end["keys"]) == STEPS
        assert torch.equal(end["state"]["queue.features"].roll(-8, 0), before[-LENGTH:])


@pytest.mark.parametrize("world", WORLDS)
def test_a_trained_model_has_the_average_of_the_weights_its_steps_left(runs, world):
    end = runs.end(f"alone-{world}", 0)
    first, *steps = end["weights"]
    average = first
    for step, weights in enumerate(steps, start=1):
        average = average.lerp(weights, 1 - decay_at(0.5, step))
    assert len(steps) == STEPS
    torch.testing.assert_close(end["state"]["encoder.0.weight"], average)
    assert not torch.equal(end["state"]["encoder.0.weight"], steps[-1])
    assert not any("ema" in name for name in end["state"])


def test_an_encoder_trained_with_split_weights_is_exported_whole_under_plain_names(runs):
    assert runs.first["plain"] == runs.first["split"] == [0, 0]
    paths = [runs.folder / name / "encoder.safetensors" for name in ("plain", "split")]
    plain, split = (load_file(path) for path in paths)
    assert plain.keys() == split.keys()
    for name, value in plain.items():
        torch.testing.assert_close(split[name], value, rtol=1e-3, atol=1e-4)
    load_encoder(paths[1])


def test_shuffled_encoding_mixes_the_ranks_and_gives_every_row_back_in_its_place(runs):
    assert runs.first["shuffle"] == [0, 0]
    ends = [torch.load(runs.folder / "shuffle" / f"{rank}.pt") for rank in range(2)]
    for rank, end in enumerate(ends):
        assert end["encoded"].flatten().tolist() == [30 * rank, 30 * rank + 10, 30 * rank + 20]
    given = [set(end["given"].flatten().tolist()) for end in ends]
    assert given[0] | given[1] == set(range(6))
    assert given[0] not in ({0, 1, 2}, {3, 4, 5})
