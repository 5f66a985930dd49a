"""Where time goes, what a model costs, who is slow and what is short."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from recipes.data.clip_config import ClipConfig
from recipes.engine import flops, records, speed
from recipes.engine.shortage import Supply, shortage
from recipes.engine.stragglers import Stragglers
from recipes.methods.dpc.config import DPCConfig
from recipes.methods.dpc.method import DPC
from recipes.models.config import R2D3D18Config, R2D3DTinyConfig
from recipes.models.encoder import build_backbone
from tests.recipes.engine_worker import TrainConfig, make_batch

CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"now": 100.0}
    monkeypatch.setattr("recipes.engine.speed.time.monotonic", lambda: now["now"])
    monkeypatch.setattr("recipes.engine.speed.time.perf_counter", lambda: now["now"])
    return now


def run_steps(measured: speed.Speed, phases: speed.Clock, clock: dict[str, float], n: int) -> None:
    """Steps of 1 s data, 1 s forward, 2 s backward, 0.5 s of it reduction; a save of 50 s."""
    for _ in range(n):
        measured.begin_step()
        for phase, seconds in [("data", 1.0), ("forward", 1.0), ("backward", 1.5)]:
            phases.enter(phase)  # type: ignore[arg-type]
            clock["now"] += seconds
        before = phases.enter("communication")
        clock["now"] += 0.5
        phases.enter(before)
        phases.enter("idle")
        measured.end_step()
        phases.enter("checkpoint")
        clock["now"] += 50.0


def test_time_is_split_by_phase_without_the_first_step_and_saves_are_no_training(clock):
    phases = speed.Clock(CPU)
    measured = speed.Speed(clips_per_step=8, world_size=2, clock=phases)
    run_steps(measured, phases, clock, 1)
    measured.close_window()
    assert measured.split() == {}
    run_steps(measured, phases, clock, 3)
    measured.close_window()
    assert measured.split() == {
        "speed/clips_per_second": 2.0,
        "speed/clips_per_second_per_device": 1.0,
        "speed/step_seconds": 4.0,
        "speed/data_wait_seconds": 1.0,
        "speed/data_wait_share": 0.25,
        "speed/compute_seconds": 3.0,
        "speed/transfer_seconds": 0.0,
        "speed/forward_seconds": 1.0,
        "speed/backward_seconds": 1.5,
        "speed/communication_seconds": 0.5,
        "speed/optimizer_seconds": 0.0,
        "speed/logging_seconds": 0.0,
        "speed/checkpoint_seconds": 50.0,
    }
    assert measured.clips_per_second == 2.0
    assert measured.data_wait_share == 0.25
    assert measured.seconds_left(10) == 40.0


def test_what_a_rank_needs_by_itself_leaves_out_where_it_waits_for_others():
    window: dict[speed.Phase, float] = {
        "data": 1.0,
        "forward": 10.0,
        "backward": 100.0,
        "communication": 1000.0,
        "optimizer": 1000.0,
        "checkpoint": 1000.0,
        "logging": 0.5,
    }
    found = [speed.own_seconds(window, stage) for stage in range(4)]
    assert found == [111.5, 111.5, 11.5, 1.5]


def test_reports_to_a_slow_file_system_become_rare(clock):
    measured = speed.Speed(clips_per_step=8, world_size=1, clock=speed.Clock(CPU))
    clock["now"] += 1.0
    assert measured.report_due()
    measured.reported(seconds=0.05)
    clock["now"] += 9.0
    assert not measured.report_due()
    clock["now"] += 1.0
    assert measured.report_due()
    measured.reported(seconds=0.001)
    clock["now"] += 1.0
    assert measured.report_due()


def test_memory_counts_the_processes_that_read_and_forgets_those_that_ended():
    alone = speed.memory(CPU, [])["speed/memory_host_gb"]
    assert 0.05 < alone < 50
    both = speed.memory(CPU, [os.getppid(), 2**22 - 1])["speed/memory_host_gb"]
    assert both >= alone


@CUDA
def test_on_cuda_phases_last_as_long_as_the_device_works():
    device = torch.device("cuda")
    phases = speed.Clock(device)
    work = torch.randn(8192, 8192, device=device)
    work @ work
    torch.cuda.synchronize()
    phases.take()
    phases.enter("forward")
    for _ in range(20):
        work = work @ work
    phases.enter("optimizer")
    torch.cuda.synchronize()
    phases.enter("idle")
    torch.cuda.synchronize()
    taken = phases.take()
    assert taken["forward"] > 5 * taken.get("optimizer", 0.0)


def backbone_flops(frames: int, size: int, blocks: int) -> float:
    model = build_backbone(R2D3D18Config()).to("meta")
    with flops.Counter() as counter:
        model(torch.empty(blocks, 3, frames, size, size, device="meta"))
    return counter.flops


def test_the_backbone_of_dpc_costs_what_was_measured_elsewhere():
    # 24.3 and 27.0 G multiply-adds, 2 operations each, found with torch's own FlopCounterMode.
    assert backbone_flops(5, 128, 8) / 2 == pytest.approx(24.3e9, rel=0.01)
    assert backbone_flops(16, 224, 1) / 2 == pytest.approx(27.0e9, rel=0.01)


def test_a_convolution_and_a_product_cost_two_operations_a_multiplication():
    with flops.Counter() as counter:
        functional.conv3d(torch.zeros(2, 3, 4, 5, 5), torch.zeros(6, 3, 1, 3, 3))
    assert counter.flops == 2 * (2 * 6 * 4 * 3 * 3) * (3 * 3 * 3)
    with flops.Counter() as counter:
        functional.linear(torch.zeros(4, 8), torch.zeros(16, 8), torch.zeros(16))
    assert counter.flops == 2 * 4 * 8 * 16


def small_dpc() -> tuple[DPC, Any]:
    torch.manual_seed(0)
    clip = ClipConfig(blocks=4, frames=2, stride=1, size=16)
    model = DPC(DPCConfig(pred_steps=2), R2D3DTinyConfig(), clip)
    return model, make_batch(torch.arange(4), torch.arange(4), clip)


def one_step(count: bool) -> tuple[dict[str, torch.Tensor], list[torch.Tensor], torch.Tensor]:
    model, batch = small_dpc()
    counter = flops.Counter()
    torch.manual_seed(1)
    if count:
        counter.start()
    loss = model.loss(batch).loss
    counter.stop()
    loss.backward()
    assert (counter.flops > 0) == count
    return dict(model.named_buffers()), [p.grad for p in model.parameters()], torch.rand(3)  # type: ignore[misc]


def test_counting_changes_no_gradient_no_statistics_and_no_random_number():
    plain, counted = one_step(count=False), one_step(count=True)
    for name, value in plain[0].items():
        assert torch.equal(value, counted[0][name]), name
    for one, other in zip(plain[1], counted[1], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(plain[2], counted[2])


def test_a_rehearsal_leaves_no_trace():
    model, batch = small_dpc()
    before = {name: value.clone() for name, value in model.named_buffers()}
    random = torch.get_rng_state()
    with flops.rehearsal(model), flops.Counter() as counter:
        model.loss(batch)
        torch.rand(1)
    assert counter.flops > 0
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H200", "bf16", 989.5),
        ("NVIDIA H200 NVL", "bf16", 835.5),
        ("NVIDIA H100 80GB HBM3", "fp16", 989.5),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA GH200 480GB", "bf16", 989.5),
        ("NVIDIA A100-SXM4-80GB", "fp32", 156.0),
        ("Tesla V100-SXM2-32GB", "fp16", 125.0),
        ("Tesla V100-PCIE-16GB", "fp32", 14.0),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA A40", "bf16", 149.7),
        ("NVIDIA RTX A4000", "bf16", None),
        ("NVIDIA GeForce RTX 3090", "bf16", 71.0),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Something of next year", "bf16", None),
    ],
)
def test_peaks_are_those_of_the_device_named(name, precision, tflops):
    assert flops.peak_tflops(name, precision) == tflops


def test_achieved_operations_are_three_times_the_forward_pass():
    found = flops.achieved(2e9, 100.0, CPU, "fp32")
    assert found == {"speed/tflops_per_device": pytest.approx(0.6)}


def test_a_rank_slow_for_three_windows_is_named_once_with_its_host():
    stragglers = Stragglers(["n1", "n1", "n2", "n2"])
    slow, even = [1.0, 1.1, 1.4, 1.0], [1.0, 1.1, 1.2, 1.0]
    assert [stragglers.look(own) for own in (slow, slow, even, slow, slow)] == [[]] * 5
    (said,) = stragglers.look(slow)
    assert "rank 2 on n2 (ranks 3 run there too) is slow" in said
    assert "1.4 times as long" in said
    assert "resources.exclude" in said
    assert stragglers.look(slow) == []


def test_of_two_ranks_the_slower_one_is_named():
    stragglers = Stragglers(["n1", "n2"])
    said = [stragglers.look([0.1, 0.2]) for _ in range(3)][-1]
    assert said[0].startswith("rank 1 on n2")


def test_one_rank_alone_is_never_slow():
    stragglers = Stragglers(["n1"])
    assert all(stragglers.look([9.0]) == [] for _ in range(5))


def test_where_only_a_part_is_seen_the_excess_is_measured_by_the_step():
    stragglers = Stragglers(["n1", "n2"])
    assert all(stragglers.look([0.1, 0.3], step_seconds=1.0) == [] for _ in range(5))
    assert stragglers.look([0.1, 0.5], 1.0) == []
    assert stragglers.look([0.1, 0.5], 1.0) == []
    assert len(stragglers.look([0.1, 0.5], 1.0)) == 1


DECODING = Supply(
    wait_share=0.5, workers=4, cores=16, busy_share=1.0, computing_share=0.95, prepared_share=0.0
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["50% of the time", "decoding is short", "workers to 8;", "16 cores", "files: all"]),
        ({"prepared_share": 1.0}, ["decoding is short", "workers to 8;"]),
        ({"cores": 4}, ["workers to 8 and resources.cpus_per_task to 9", "files: all"]),
        ({"computing_share": 0.3}, ["wait for their files", "faster storage", "workers: 8"]),
        ({"computing_share": 0.3, "cores": 4}, ["cores are short", "cpus_per_task to 9"]),
        ({"computing_share": 0.3, "node_load": 2.0}, ["2.0 processes want each core", "what else"]),
        ({"busy_share": 0.4}, ["only 40% of the time", "takes batches over", "OMP_NUM_THREADS"]),
        ({"workers": 0, "busy_share": 0.0}, ["workers: 0", "Set workers", "up to 15"]),
        ({"wait_share": 0.06}, ["6% of the time", "workers to 5;"]),
        ({"wait_share": 0.01, "transfer_share": 0.2}, ["20% of the time", "device", "link"]),
    ],
)
def test_what_is_short_is_named_with_what_helps(changes, words):
    said = shortage(replace(DECODING, **changes))
    assert said is not None
    assert [word for word in words if word not in said] == []


def test_prepared_videos_are_not_prepared_again():
    assert "files: all" not in (shortage(replace(DECODING, prepared_share=1.0)) or "")


def test_nothing_is_said_where_nothing_is_short():
    assert shortage(replace(DECODING, wait_share=0.05)) is None


def test_what_runs_is_told_in_three_lines():
    config = TrainConfig.model_validate(
        {
            "epochs": 2,
            "batch_size": 64,
            "micro_batch": 8,
            "precision": "bf16",
            "zero_stage": 2,
            "offload": "optimizer",
        }
    )
    said = records.announcement(
        config, 4, parameters=14_100_000, flops_per_clip=48.6e9, steps=200, steps_per_epoch=100
    )
    assert said.splitlines() == [
        "training 14.1 M parameters, 48.60 GFLOP a clip forward, 145.80 to train on it",
        "batch 64 = 4 ranks x micro-batch 8 x 2 accumulated; bf16, ZeRO 2, offload optimizer; "
        "adam, lr 0.001",
        "200 steps, 100 an epoch: 2 epochs",
    ]


def test_the_rate_that_is_announced_is_the_one_scaled_to_the_batch():
    fields = {"max_steps": 1, "batch_size": 64, "micro_batch": 8}
    config = TrainConfig.model_validate({**fields, "optimizer": {"lr": 0.1, "lr_batch": 256}})
    said = records.announcement(
        config, 1, parameters=1, flops_per_clip=1.0, steps=1, steps_per_epoch=1
    )
    assert "adam, lr 0.025" in said


def test_parameters_that_zero_3_split_are_counted_whole():
    model = nn.Linear(4, 3)
    model.weight.ds_numel = 1000  # type: ignore[attr-defined]
    assert flops.parameters(model) == 1003
