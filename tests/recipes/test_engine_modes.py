"""The engine in every mode: ZeRO, offload, precision, memory formats, recomputing, batch norms.

All ranks are started once; see `engine_modes_worker`.
"""

from __future__ import annotations

import copy
import errno
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from recipes.contract import ConfigurationError, OutOfMemoryError
from recipes.engine import deepspeed_engine, distributed, modes, optim, out_of_memory, roll_call
from recipes.engine.config import LossScaleConfig
from recipes.engine.contract import LossOutput
from recipes.engine.loss_scale import LossScale
from recipes.engine.sync_batch_norm import SyncBatchNorm
from recipes.models.recompute import recomputed
from tests.recipes import engine_modes_worker as worker
from tests.recipes.engine_modes_worker import (
    LR,
    SOME_STAGES,
    STAGES,
    STEPS,
    Net,
    groups,
    numbers,
    settings,
)
from tests.recipes.engine_worker import make_context, run_jobs

RANKS = (1, 2, 4)
Found = Mapping[int, Sequence[Mapping[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Found:
    """Number of ranks to what each of them found, by case."""
    root = tmp_path_factory.mktemp("modes")
    jobs = []
    for ranks in RANKS:
        (root / str(ranks)).mkdir()
        jobs.append({"folder": str(root / str(ranks)), "world_size": ranks})
    codes = run_jobs(root, jobs, worker.__file__)
    assert codes == [[0] * ranks for ranks in RANKS]
    return {
        ranks: [torch.load(root / str(ranks) / f"found-{rank}.pt") for rank in range(ranks)]
        for ranks in RANKS
    }


def plainly(
    optimizer: str,
    *,
    clip: float | None = None,
    skipped: Sequence[int] = (),
    steps: int = STEPS,
    norm: type[nn.Module] | None = None,
) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and gradient norms of plain PyTorch on the whole batch at once."""
    model = Net(norm)
    parts = [
        {
            "params": list(group.params),
            "lr": LR * group.lr_ratio,
            "weight_decay": group.weight_decay,
        }
        for group in groups(model, settings(1))
    ]
    kind: Any = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    own = kind(parts, lr=LR, **({"momentum": 0.9} if optimizer == "sgd" else {}))
    norms = []
    for step in range(steps):
        if step in skipped:
            continue
        own.zero_grad()
        model.loss(numbers(step)).loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)))
        own.step()
    return model.state_dict(), norms


def assert_same(
    own: Mapping[str, Tensor], other: Mapping[str, Tensor], rtol: float = 1e-4, atol: float = 2e-6
) -> None:
    assert list(own) == list(other)
    for name, value in own.items():
        torch.testing.assert_close(value, other[name], rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(("stage", "offload"), STAGES)
def test_every_stage_and_rank_count_does_what_plain_pytorch_does(found, ranks, stage, offload):
    for optimizer in worker.optimizers_tried(ranks, stage, offload):
        weights, norms = plainly(optimizer, clip=0.5)
        assert max(norms) > 0.5  # so that something is clipped
        for got in found[ranks]:
            case = got[f"trains {stage} {offload} {optimizer}"]
            assert case["norms"] == pytest.approx(norms, rel=1e-4)
            assert case["finite"]
            assert_same(case["weights"], weights)


@pytest.mark.parametrize(("stage", "offload"), SOME_STAGES)
def test_a_skipped_step_leaves_no_trace(found, stage, offload):
    weights, _ = plainly("adamw", skipped=[1])
    for got in found[2]:
        assert_same(got[f"skips {stage} {offload}"]["weights"], weights)


@pytest.mark.parametrize(("stage", "offload"), SOME_STAGES)
def test_a_gradient_that_is_not_finite_on_one_rank_changes_no_weight_on_any(found, stage, offload):
    weights, _ = plainly("adamw", skipped=[1])
    for got in found[2]:
        case = got[f"breaks {stage} {offload}"]
        assert not math.isfinite(case["norms"][0])
        assert_same(case["weights"], weights)
        assert case["finite"] == [True, False]


@pytest.mark.parametrize(("stage", "offload"), SOME_STAGES)
def test_an_overflow_in_fp16_halves_the_scale_and_leaves_the_step_out(found, stage, offload):
    for got in found[2]:
        case = got[f"fp16 {stage} {offload}"]
        # Doubled after two clean steps, halved by the overflow of the third.
        assert case["scales"] == [1024.0, 1024.0, 2048.0, 1024.0, 1024.0]
        assert [norm is None for norm in case["norms"]] == [False, False, True, False, False]
        assert case["state"] == {"scale": 2048.0, "clean_steps": 0.0}
        assert case["loaded"] == case["state"]
        assert all(math.isfinite(loss) for loss in case["losses"])


@pytest.mark.parametrize(("stage", "offload"), SOME_STAGES)
def test_norm_and_clipping_in_fp16_are_those_of_the_gradient_not_scaled(found, stage, offload):
    weights, norms = plainly("sgd", clip=0.5, skipped=[2], steps=5)
    for got in found[2]:
        case = got[f"fp16 {stage} {offload}"]
        assert [n for n in case["norms"] if n is not None] == pytest.approx(norms, rel=5e-3)
        assert_same(case["weights"], weights, rtol=2e-3, atol=1e-3)
    assert max(norms) > 0.5


@pytest.mark.parametrize(("stage", "offload"), SOME_STAGES)
def test_bf16_comes_near_fp32_and_has_no_scale(found, stage, offload):
    weights, norms = plainly("sgd", clip=0.5, steps=5)
    for got in found[2]:
        case = got[f"bf16 {stage} {offload}"]
        assert case["scales"] == [None] * 5
        assert case["state"] == {}
        assert case["norms"] == pytest.approx(norms, rel=3e-2)
        assert_same(case["weights"], weights, rtol=2e-2, atol=5e-3)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("dpc r2d3d_tiny 3", "dpc r2d3d_tiny 0"),
        ("dpc r2d3d18 3", "dpc r2d3d18 0"),
        ("dpc 3 some whole", "dpc r2d3d_tiny 0"),
        ("dpc 3 offload", "dpc r2d3d_tiny 0"),
        ("recompute 0", "dpc r2d3d_tiny 0"),
        ("recompute 2", "dpc r2d3d_tiny 0"),
        ("recompute 3", "dpc r2d3d_tiny 0"),
        ("channels last 0", "dpc r2d3d_tiny 0"),
        ("channels last 3", "dpc r2d3d_tiny 0"),
        ("sync recompute", "sync"),
    ],
)
def test_the_method_learns_the_same_in_every_mode(found, name, reference):
    for got in found[2]:
        case, other = got[name], got[reference]
        assert case["losses"] == pytest.approx(other["losses"], rel=1e-3)
        assert_same(case["weights"], other["weights"], rtol=1e-2, atol=1e-4)


def test_a_parameter_that_only_one_rank_uses_gets_its_share_of_the_gradient(found):
    first, last = (got["branches"] for got in found[2])
    assert first["idle.weight"] is None
    assert last["idle.weight"] is None
    alone = worker.Branching()
    parts = [worker.part_of(worker.numbers(0), part, 1, 2) for part in range(worker.ACCUMULATION)]
    for batch in parts:
        (alone.loss(batch).loss / (2 * worker.ACCUMULATION)).backward()
    for got in (first, last):
        torch.testing.assert_close(got["aside.weight"], alone.aside.weight.grad)
        torch.testing.assert_close(got["body.weight"], first["body.weight"], rtol=0, atol=0)


def test_gradients_may_travel_as_half_numbers_in_stage_0(found):
    for got in found[2]:
        whole, half = got["branches"]["body.weight"], got["branches bf16"]["body.weight"]
        assert not torch.equal(whole, half)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, whole, rtol=2e-2, atol=1e-3)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_method_in_pieces_learns_the_same(found):
    for got in found[2]:
        case, other = got["compile 3"], got["dpc r2d3d_tiny 0"]
        assert case["names"]
        assert case["losses"] == pytest.approx(other["losses"], rel=1e-3)
        assert_same(case["weights"], other["weights"], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", ["dpc r2d3d_tiny 3", "dpc r2d3d18 3", "recompute 3"])
def test_a_model_in_pieces_is_whole_for_evaluation_and_ordinary_afterwards(found, name):
    for got in found[2]:
        case = got[name]
        assert case["names"]
        assert case["hooks"] == 0
        assert case["left"] == []
        # Looked at in between and after it was made whole, it gives the same.
        torch.testing.assert_close(case["features"][-1:], case["exported"][None][0][None])
        stage_0 = got[name.replace("3", "0")] if name == "recompute 3" else got[name[:-1] + "0"]
        torch.testing.assert_close(case["features"], stage_0["features"], rtol=1e-2, atol=1e-3)
        assert not torch.equal(case["features"][0], case["features"][-1])


def test_recomputed_activations_count_no_batch_twice(found):
    for got in found[2]:
        own, other = got["recompute 0"]["weights"], got["dpc r2d3d_tiny 0"]["weights"]
        counts = {name: int(v) for name, v in own.items() if name.endswith("num_batches_tracked")}
        assert set(counts.values()) == {3 * worker.ACCUMULATION}
        assert_same(own, other, rtol=0, atol=0)


def test_the_classifier_of_finetuning_trains_in_pieces(found):
    for got in found[2]:
        case, other = got["classifier 3"], got["classifier 0"]
        assert case["losses"] == pytest.approx(other["losses"], rel=1e-3)
        assert_same(case["weights"], other["weights"], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("ranks", RANKS)
def test_batch_norms_over_all_ranks_are_one_over_the_whole_batch(found, ranks):
    weights, _ = plainly("sgd", steps=2, norm=nn.BatchNorm3d)
    for got in found[ranks]:
        for stage in (0, 3) if ranks == 2 else (0,):
            case = got[f"synchronized {stage}"]
            assert case["kind"] == ("BatchNorm3d" if ranks == 1 else "SyncBatchNorm")
            assert case["spans"]
            assert_same(case["weights"], weights)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 4, 4)])
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_over_one_rank_is_the_plain_one(shape, affine):
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}[len(shape)]
    plain = kind(3, affine=affine, momentum=0.3)
    own = SyncBatchNorm(3, affine=affine, momentum=0.3)
    x = (torch.randn(shape, dtype=torch.float64) * 3 + 100).float()
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    weight = torch.randn(shape)
    outputs = [norm(value) for norm, value in zip((plain, own), inputs, strict=True)]
    for out in outputs:
        (out * weight).sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-3, atol=1e-4)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(
            own.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-3
        )
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(own.get_buffer(name), buffer, msg=name)
    torch.testing.assert_close(own.eval()(x), plain.eval()(x))


class Block(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Blocks(nn.Module):
    """The smallest thing that is a backbone: stages, a width, and activations to recompute."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_dim, self.recompute_activations = 4, False
        self.stages = nn.Sequential(nn.Sequential(Block(1)), nn.Sequential(Block(4)))

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = recomputed(stage, x) if self.recompute_activations else stage(x)
        return x


class WithBackbone(nn.Module):
    """A model whose loss can be told to fail."""

    def __init__(self, failure: BaseException | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.backbone = Blocks()
        self.failure = failure

    def loss(self, batch: Any) -> LossOutput:
        if self.failure is not None:
            raise self.failure
        features = self.backbone(batch.clips[:, :, 0])
        return LossOutput(loss=(features.mean(dim=(1, 2, 3)) - batch.labels).square().mean())


def one_rank(folder: Path, model: nn.Module, **changes: Any) -> deepspeed_engine.Engine:
    device = distributed.init(make_context(folder))
    config = settings(1, micro_batch=worker.BATCH, **changes)
    parameters = optim.param_groups(model, config.optimizer)
    return deepspeed_engine.start(model, parameters, config, device)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("recompute", [False, True])
def test_a_compiled_backbone_has_the_same_gradients_and_names(tmp_path, recompute):
    torch.compiler.reset()
    counters.clear()
    results = []
    for compiled in (False, True):
        model = WithBackbone()
        names = list(model.state_dict())
        engine = one_rank(
            tmp_path, model, compile=compiled, activation_checkpointing=recompute and compiled
        )
        engine.train_mode()
        engine.backward(numbers(0))
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        results.append({**gradients, **dict(copy.deepcopy(model).named_buffers())})
        assert list(model.state_dict()) == names
    assert counters["stats"]["unique_graphs"] == (2 if recompute else 1)
    assert_same(results[1], results[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mode", ["activation_checkpointing", "compile"])
def test_a_mode_that_a_model_does_not_have_is_refused(mode):
    with pytest.raises(ConfigurationError, match=f"{mode}: no part of this model"):
        modes.prepare(Net(), settings(1, **{mode: True}), 1)


def test_channels_last_reaches_every_convolution():
    model = nn.Sequential(nn.Conv3d(2, 3, 1), nn.Conv3d(3, 2, 1))
    modes.prepare(model, settings(1, channels_last=True), 1)
    formats = []
    for layer in model:
        layer.register_forward_pre_hook(
            lambda module, inputs: formats.append(
                inputs[0].is_contiguous(memory_format=torch.channels_last_3d)
            )
        )
    model(torch.randn(2, 2, 3, 4, 5))
    assert formats == [True, True]
    assert model[0].weight.is_contiguous()


def test_the_scale_of_a_loss_follows_the_rule_of_pytorch():
    own = LossScale(LossScaleConfig(initial=8.0, growth_interval=2))
    theirs = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    theirs.scale(torch.ones(()))  # it starts at its first use
    for overflow in (False, False, True, False, True, False, False, False):
        if overflow:
            assert own.overflowed()
        else:
            own.stepped()
        parameter = nn.Parameter(torch.ones(()))
        parameter.grad = torch.full((), math.inf if overflow else 1.0)
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        theirs.unscale_(optimizer)
        theirs.step(optimizer)
        theirs.update()
        assert own.value == theirs.get_scale()


def test_an_overflow_at_the_scale_of_one_is_not_the_scales_fault():
    scale = LossScale(LossScaleConfig(initial=2.0))
    assert [scale.overflowed() for _ in range(3)] == [True, False, False]
    assert scale.value == 1.0


def test_a_gpu_without_memory_is_told_with_what_would_help(tmp_path):
    failure = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    engine = one_rank(tmp_path, WithBackbone(failure), precision="fp32")
    with pytest.raises(OutOfMemoryError) as raised:
        engine.backward(numbers(0))
    message = str(raised.value)
    assert raised.value.exit_code == 71
    assert "the GPU's memory ran out (CUDA out of memory. Tried to allocate 2.00 GiB.)" in message
    for advice in (
        "precision: bf16",
        "activation_checkpointing: true",
        "micro_batch: 8 with 2 acc",
    ):
        assert advice in message
    assert "zero_stage" not in message  # one rank has nobody to share with
    config = settings(2, precision="bf16", activation_checkpointing=True)
    with pytest.raises(OutOfMemoryError, match="zero_stage: 1"), out_of_memory.explained(config, 2):
        raise failure


@pytest.mark.parametrize(
    "fail",
    [
        pytest.param(lambda: torch.empty(1 << 60, dtype=torch.uint8), id="torch"),
        pytest.param(lambda: bytearray(1 << 62), id="python"),
        pytest.param(lambda: (_ for _ in ()).throw(OSError(errno.ENOMEM, "x")).__next__(), id="os"),
    ],
)
def test_a_host_without_memory_is_told_apart(fail):
    config = settings(1, workers=4)
    with pytest.raises(OutOfMemoryError) as raised, out_of_memory.explained(config, 1):
        fail()
    message = str(raised.value)
    assert "the memory of the host, not of a GPU" in message
    assert "resources.mem_gb" in message
    assert "workers: fewer than 4" in message
    assert "GB without its decoding processes" in message


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shape"), out_of_memory.explained(settings(1), 1):
        raise RuntimeError("shape '[2]' is invalid")


def rank_at(rank: int, **changes: Any) -> roll_call.Present:
    given = {"host": "a", "device": "NVIDIA H200", "uuid": f"GPU-{rank}", "cpus": 8}
    return roll_call.Present(rank=rank, **{**given, "cpus_asked": 8, "threads": 8, **changes})


def test_two_ranks_on_one_gpu_are_found_by_its_uuid():
    ranks = [rank_at(0), rank_at(1), rank_at(2, uuid="GPU-0"), rank_at(3, host="b", uuid="GPU-0")]
    (problem,) = roll_call.shared_gpus(ranks)
    assert problem.startswith("ranks 0, 2 on a have one GPU, GPU-0")
    assert roll_call.shared_gpus([rank_at(0, uuid=""), rank_at(1, uuid="")]) == []


def test_a_rank_with_fewer_cpus_than_asked_is_named():
    (problem,) = roll_call.short_of_cpus([rank_at(0), rank_at(5, host="b", cpus=1)])
    assert problem.startswith("rank 5 on b may run on 1 CPUs, 8 were asked for")


@pytest.mark.parametrize(
    ("environ", "wrong"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, True),
        ({"SLURM_NTASKS": "2"}, False),  # a batch script that is no step
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "TORCHELASTIC_RUN_ID": "x"}, False),
    ],
)
def test_a_rank_count_that_slurm_does_not_share_is_found(environ, wrong):
    problem = roll_call.other_world_size(4, environ)
    assert (problem is not None) == wrong
    if problem:
        assert "SLURM started 2 tasks" in problem


def test_the_ranks_are_described_by_host():
    ranks = [rank_at(0), rank_at(1), rank_at(2, host="b", cpus=4)]
    assert list(roll_call.description(ranks, "nccl")) == [
        "3 ranks over nccl",
        "  a: ranks 0-1, NVIDIA H200, 8 CPUs and 8 threads a rank",
        "  b: rank 2, NVIDIA H200, 4 CPUs and 8 threads a rank",
    ]


@pytest.fixture(scope="module")
def found_on_cuda(tmp_path_factory) -> Mapping[str, Any]:
    """What one rank on a GPU found, by case."""
    folder = tmp_path_factory.mktemp("cuda")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    environment.pop("DS_ACCELERATOR", None)
    command = [sys.executable, worker.__file__, "cuda", str(folder)]
    subprocess.run(command, env=environment, check=True, timeout=600)
    found: Mapping[str, Any] = torch.load(folder / "found-0.pt")
    return found


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
@pytest.mark.parametrize(("stage", "offload"), STAGES)
def test_a_gpu_does_what_plain_pytorch_does(found_on_cuda, stage, offload):
    for optimizer in ("sgd", "adamw"):
        weights, norms = plainly(optimizer, clip=0.5)
        case = found_on_cuda[f"trains {stage} {offload} {optimizer}"]
        assert case["norms"] == pytest.approx(norms, rel=1e-2)
        assert_same(case["weights"], weights, rtol=1e-2, atol=1e-3)


@needs_cuda
@pytest.mark.parametrize(("stage", "offload"), STAGES)
def test_a_gpu_scales_the_loss_of_fp16_and_leaves_an_overflow_out(found_on_cuda, stage, offload):
    weights, norms = plainly("sgd", clip=0.5, skipped=[2], steps=5)
    case = found_on_cuda[f"fp16 {stage} {offload}"]
    assert case["scales"] == [1024.0, 1024.0, 2048.0, 1024.0, 1024.0]
    assert [n for n in case["norms"] if n is not None] == pytest.approx(norms, rel=1e-2)
    assert_same(case["weights"], weights, rtol=5e-3, atol=2e-3)


@needs_cuda
def test_a_gpu_whose_memory_runs_out_is_named_with_its_peak(found_on_cuda):
    message = found_on_cuda["out of memory"]["message"]
    assert "the GPU's memory ran out" in message
    assert "The peak was" in message
