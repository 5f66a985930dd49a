"""Steps a bare engine in every mode, in processes of their own; see `engine_worker.main`.

A job is one process group, in which many small trainings are made one after the other; what they
came to is written to `found-RANK.pt` of the job's folder.
"""

from __future__ import annotations

import copy
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.contract import OutOfMemoryError, StageContext
from recipes.data.clip_config import AugmentConfig, ClipConfig
from recipes.data.loader import Batch
from recipes.engine import deepspeed_engine, distributed, fragments, optim, out_of_memory
from recipes.engine.contract import LossOutput
from recipes.methods.dpc.config import DPCConfig
from recipes.methods.dpc.method import DPC
from recipes.models.config import R2D3D18Config, R2D3DTinyConfig
from recipes.models.encoder import VideoEncoder
from recipes.stages.finetune.model import VideoClassifier
from tests.recipes.engine_worker import TrainConfig, main, make_batch, make_context

BATCH, STEPS, ACCUMULATION, LR = 16, 4, 2, 0.05
CONTEXTS: list[StageContext] = []  # of this process
CLIP = ClipConfig(blocks=4, frames=2, stride=1, size=32)
# Every way ZeRO and offload go together.
STAGES = [
    (0, "none"),
    (1, "none"),
    (1, "optimizer"),
    (2, "none"),
    (2, "optimizer"),
    (3, "none"),
    (3, "optimizer"),
    (3, "all"),
]
# One of each kind.
SOME_STAGES = [(0, "none"), (1, "none"), (2, "optimizer"), (3, "none"), (3, "all")]
# Without it ZeRO 3 would leave tensors as small as these whole.
ALL_IN_PIECES = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}


class Net(nn.Module):
    """A convolution, a norm and a head, of sizes that no rank count divides."""

    def __init__(self, norm: type[nn.Module] | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.body = nn.Conv3d(1, 7, 3, padding=1)
            self.norm = nn.BatchNorm3d(7) if norm is nn.BatchNorm3d else nn.GroupNorm(1, 7)
            self.relu = nn.ReLU(inplace=True)
            self.head = nn.Linear(7, 3)
        self.broken = 1.0

    def loss(self, batch: Batch) -> LossOutput:
        """Squared distance of three outputs from the label."""
        features = self.relu(self.norm(self.body(batch.clips))).mean(dim=(2, 3, 4))
        out = self.head(features).float()
        loss = (out - batch.labels[:, None]).square().mean()
        return LossOutput(loss=loss * self.broken, metrics={"size": out.detach().abs().mean()})


class Branching(Net):
    """Some parameters have a part in the loss of the last rank only, others in none."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            self.aside = nn.Linear(3, 3)
            self.idle = nn.Linear(3, 3)

    def loss(self, batch: Batch) -> LossOutput:
        """As without, and with one term more."""
        output = super().loss(batch)
        if distributed.rank() < distributed.world_size() - 1:
            return output
        term = self.aside(batch.labels[:, None].repeat(1, 3)).square().mean()
        return LossOutput(loss=output.loss + term, metrics=output.metrics)


def numbers(step: int) -> Batch:
    """The global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    return Batch(
        clips=torch.randn(BATCH, 1, 2, 4, 4, generator=generator),
        labels=torch.randn(BATCH, generator=generator),
        seeds=torch.zeros(BATCH, dtype=torch.int64),
        videos=torch.arange(BATCH),
    )


def videos(step: int) -> Batch:
    """A global batch of eight clips of CLIP, brightness of its own each."""
    rows = torch.arange(8) + 8 * step
    return make_batch(rows, rows, CLIP)


def settings(world_size: int, **changes: Any) -> TrainConfig:
    """Training fields for a batch in two micro-batches a rank."""
    batch = int(changes.pop("batch_size", BATCH))
    optimizer = {"name": "adamw", "lr": LR, "weight_decay": 0.1} | changes.pop("optimizer", {})
    given = {
        "max_steps": STEPS,
        "batch_size": batch,
        "micro_batch": batch // world_size // ACCUMULATION,
        "optimizer": optimizer,
        "deepspeed": ALL_IN_PIECES if changes.get("zero_stage") else {},
    }
    return TrainConfig.model_validate({**given, **changes})


def groups(model: nn.Module, config: TrainConfig) -> list[optim.ParamGroup]:
    """The body at a tenth of the rate where there is one, norms and biases without decay."""
    plain = config.optimizer.model_copy(update={"decay_norm_and_bias": False})
    ratios = {"body.": 0.1} if hasattr(model, "body") else {}
    return optim.param_groups(model, plain, ratios)


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some samples of a batch."""
    return Batch(
        clips=batch.clips[rows],
        labels=batch.labels[rows],
        seeds=batch.seeds[rows],
        videos=batch.videos[rows],
    )


def part_of(batch: Batch, part: int, rank: int, world_size: int) -> Batch:
    """This rank's share of a micro-batch, as the loader shares out."""
    size = len(batch) // world_size // ACCUMULATION
    first = (part * world_size + rank) * size
    rows = slice(first, first + size)
    return rows_of(batch, rows)


class Run:
    """One engine, stepped by hand as the loop does."""

    def __init__(self, model: nn.Module, config: TrainConfig, data: Callable[[int], Batch]) -> None:
        self.model, self._data = model, data
        self._device = distributed.init(CONTEXTS[-1])
        model.to(self._device)
        own_groups = groups(model, config)
        self.engine = deepspeed_engine.start(model, own_groups, config, self._device)
        self.losses: list[float] = []

    def gradient(self, step: int) -> None:
        """All micro-batches of a step."""
        self.engine.train_mode()
        for part in range(ACCUMULATION):
            if part:
                self.engine.end_micro_batch()
            rank, world_size = distributed.rank(), distributed.world_size()
            batch = part_of(self._data(step), part, rank, world_size)
            labels = batch.labels.to(self._device)
            batch = replace(batch, clips=batch.clips.to(self._device), labels=labels)
            torch.manual_seed(100 * step + part * world_size + rank)
            loss, _ = self.engine.backward(batch)
            self.losses.append(float(loss))

    def step(self, step: int, lr: float = LR) -> float | None:
        """A whole step; the gradient's norm, from wherever it is known."""
        self.gradient(step)
        norm = self.engine.gradient_norm()
        stepped = self.engine.step(lr)
        return stepped if norm is None else float(norm)

    def weights(self) -> dict[str, Tensor]:
        """Whole weights and buffers; the engine is of no use afterwards."""
        self.engine.gather_weights()
        return {name: value.cpu().clone() for name, value in self.model.state_dict().items()}


def trains(world_size: int, stage: int, offload: str, optimizer: str) -> dict[str, Any]:
    """Four steps with clipping."""
    config = settings(
        world_size,
        zero_stage=stage,
        offload=offload,
        optimizer={"name": optimizer},
        clip_grad=0.5,
    )
    run = Run(Net(), config, numbers)
    norms = [run.step(step) for step in range(STEPS)]
    finite = run.engine.weights_finite()
    return {"norms": norms, "finite": finite, "weights": run.weights()}


def branches(world_size: int, **keys: Any) -> dict[str, Any]:
    """Gradients of a step in which ranks use different parameters."""
    config = settings(world_size, optimizer={"name": "sgd"}, deepspeed=keys)
    run = Run(Branching(), config, numbers)
    run.gradient(0)
    gradients = {name: p.grad for name, p in run.model.named_parameters()}
    return {name: None if g is None else g.clone() for name, g in gradients.items()}


def skips(world_size: int, stage: int, offload: str) -> dict[str, Any]:
    """Four steps of which the second is left out."""
    run = Run(Net(), settings(world_size, zero_stage=stage, offload=offload), numbers)
    for step in range(STEPS):
        if step == 1:
            run.gradient(step)
            run.engine.skip()
        else:
            run.step(step)
    return {"weights": run.weights()}


def breaks(world_size: int, stage: int, offload: str) -> dict[str, Any]:
    """A gradient that is not finite on one rank, in fp32, and weights that are not on one."""
    net = Net()
    run = Run(net, settings(world_size, zero_stage=stage, offload=offload), numbers)
    run.step(0)
    net.broken = math.inf if distributed.rank() == world_size - 1 else 1.0
    run.gradient(1)
    norm = run.engine.gradient_norm()
    if norm is None:
        norms = [run.engine.step(LR)]
    else:
        norms = [float(norm)]
        run.engine.skip()
    net.broken = 1.0
    for step in (2, 3):
        run.step(step)
    with run.engine.full_weights():
        inside = copy.deepcopy(run.model.state_dict())
    before = run.engine.weights_finite()
    last = fragments.slots(run.engine.raw, net)[-1]
    last.read(last.owner).fill_(math.inf)
    return {"norms": norms, "finite": [before, run.engine.weights_finite()], "weights": inside}


def half(world_size: int, stage: int, offload: str, precision: str) -> dict[str, Any]:
    """fp16 or bf16: an overflow in the third of five steps, and the scale before each."""
    scale = {"loss_scale": {"initial": 1024.0, "growth_interval": 2}}
    config = settings(
        world_size,
        zero_stage=stage,
        offload=offload,
        precision=precision,
        clip_grad=0.5,
        optimizer={"name": "sgd"},  # Adam would hide a gradient of the wrong scale
        **(scale if precision == "fp16" else {}),
    )
    net = Net()
    run = Run(net, config, numbers)
    scales, norms = [], []
    for step in range(5):
        scales.append(run.engine.loss_scale())
        overflows = precision == "fp16" and step == 2 and distributed.rank() == world_size - 1
        # As a gradient that fp16 cannot hold, without a loss that is not finite itself.
        handle = None
        if overflows:
            handle = net.head.register_full_backward_hook(
                lambda module, inputs, outputs: tuple(value * math.inf for value in inputs)
            )
        norms.append(run.step(step))
        if handle is not None:
            handle.remove()
    state = run.engine.scaler_state()
    other = Run(Net(), config, numbers)
    other.engine.load_scaler_state(state)
    return {
        "scales": scales,
        "norms": norms,
        "state": state,
        "loaded": other.engine.scaler_state(),
        "losses": run.losses,
        "weights": run.weights(),
    }


def method(world_size: int, backbone: Any, **changes: Any) -> dict[str, Any]:
    """DPC itself, whose horizon grows on the way, looked at whole in between."""
    torch.manual_seed(7)
    horizon = [{"epoch": 0, "steps": 1}, {"epoch": 1, "steps": 2}]
    model = DPC(DPCConfig.model_validate({"pred_steps": 2, "horizon": horizon}), backbone(), CLIP)
    plain_names = list(model.state_dict())
    sgd = {"optimizer": {"name": "sgd"}, "clip_grad": 1.0}
    run = Run(model, settings(world_size, batch_size=8, **sgd, **changes), videos)
    features = []
    for step in range(3):
        model.set_epoch(step // 2)
        run.step(step)
        with run.engine.full_weights(), torch.no_grad():
            model.eval()
            features.append(model.export_encoder()[0](torch.ones(1, 4, 3, 2, 32, 32))["context"])
    weights = run.weights()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    encoder = copy.deepcopy(model.export_encoder()[0]).eval()
    with torch.no_grad():
        exported = encoder(torch.ones(1, 4, 3, 2, 32, 32))["context"]
    left = sorted({name for m in model.modules() for name in vars(m) if name.startswith("ds_")})
    return {
        "names": list(weights) == plain_names,
        # Those of r2d3d18 that are larger follow from the same code and would be 50 MB.
        "weights": {name: value for name, value in weights.items() if value.numel() < 200_000},
        "features": torch.stack(features),
        "exported": exported,
        "hooks": hooks,
        "left": left,
        "losses": run.losses,
    }


def classifier(world_size: int, **changes: Any) -> dict[str, Any]:
    """The finetuning stage's model on an encoder with a context network."""
    torch.manual_seed(7)
    encoder: VideoEncoder = DPC(
        DPCConfig.model_validate({"pred_steps": 2}), R2D3DTinyConfig(), CLIP
    ).export_encoder()[0]
    model = VideoClassifier(encoder, 4, 0.5, AugmentConfig())
    sgd = {"optimizer": {"name": "sgd"}, "clip_grad": 1.0}
    run = Run(model, settings(world_size, batch_size=8, **sgd, **changes), videos)
    for step in range(2):
        run.step(step)
    return {"weights": run.weights(), "losses": run.losses}


def synchronized(world_size: int, **changes: Any) -> dict[str, Any]:
    """Batch statistics over all ranks; the whole batch in one micro-batch a rank."""
    fields = {"micro_batch": BATCH // world_size, "sync_batch_norm": True, **changes}
    config = settings(world_size, optimizer={"name": "sgd"}, **fields)
    run = Run(Net(nn.BatchNorm3d), config, numbers)
    for step in range(2):
        run.engine.train_mode()
        size = BATCH // world_size
        rows = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
        run.engine.backward(rows_of(numbers(step), rows))
        run.engine.step(LR)
    kind = type(run.model.norm).__name__
    return {"weights": run.weights(), "kind": kind, "spans": run.engine.spans_ranks}


Cases = dict[str, Callable[[], dict[str, Any]]]


def cases(world_size: int) -> Cases:
    """What a process group of this size tries."""
    found: Cases = {"synchronized 0": lambda: synchronized(world_size)}
    if world_size == 2:
        found |= zero_cases(world_size) | model_cases(world_size)
    for stage, offload in STAGES:
        for optimizer in optimizers_tried(world_size, stage, offload):
            found[f"trains {stage} {offload} {optimizer}"] = partial(
                trains, world_size, stage, offload, optimizer
            )
    return found


def optimizers_tried(world_size: int, stage: int, offload: str) -> tuple[str, ...]:
    """Both on two ranks; on four, where there are most ways to share out, AdamW in some stages."""
    if world_size == 2:
        return "sgd", "adamw"
    return ("adamw",) if world_size == 1 or (stage, offload) in SOME_STAGES else ()


def zero_cases(world_size: int) -> Cases:
    """Small nets under every stage."""
    found: Cases = {
        "synchronized 3": lambda: synchronized(world_size, zero_stage=3),
        "branches": lambda: branches(world_size),
        "branches bf16": lambda: branches(world_size, communication_data_type="bf16"),
    }
    for stage, offload in SOME_STAGES:
        how = (world_size, stage, offload)
        found[f"skips {stage} {offload}"] = partial(skips, *how)
        found[f"breaks {stage} {offload}"] = partial(breaks, *how)
        found[f"fp16 {stage} {offload}"] = partial(half, *how, "fp16")
        found[f"bf16 {stage} {offload}"] = partial(half, *how, "bf16")
    return found


def model_cases(world_size: int) -> Cases:
    """The networks that recipes train."""
    found: Cases = {}

    def add(name: str, case: Callable[..., dict[str, Any]], *given: Any, **named: Any) -> None:
        found[name] = lambda: case(world_size, *given, **named)

    tiny = R2D3DTinyConfig
    for backbone in (tiny, R2D3D18Config):
        for stage in (0, 3):
            add(f"dpc {backbone().name} {stage}", method, backbone, zero_stage=stage)
    add("dpc 3 some whole", method, tiny, zero_stage=3, deepspeed={})
    add("dpc 3 offload", method, tiny, zero_stage=3, offload="all")
    for stage in (0, 2, 3):
        add(f"recompute {stage}", method, tiny, zero_stage=stage, activation_checkpointing=True)
    for stage in (0, 3):
        add(f"channels last {stage}", method, tiny, zero_stage=stage, channels_last=True)
        add(f"classifier {stage}", classifier, zero_stage=stage)
    if shutil.which("c++") is not None:
        add("compile 3", method, tiny, zero_stage=3, compile=True)
    sync = {"sync_batch_norm": True}
    add("sync", method, tiny, **sync)
    add("sync recompute", method, tiny, activation_checkpointing=True, **sync)
    return found


def cuda_cases() -> Cases:
    """What one GPU can show."""
    found: Cases = {"out of memory": out_of_memory_on_cuda}
    for stage, offload in STAGES:
        for optimizer in ("sgd", "adamw"):
            found[f"trains {stage} {offload} {optimizer}"] = partial(
                trains, 1, stage, offload, optimizer
            )
        for precision in ("fp16", "bf16"):
            found[f"{precision} {stage} {offload}"] = partial(half, 1, stage, offload, precision)
    return found


def out_of_memory_on_cuda() -> dict[str, Any]:
    """More than any GPU has."""
    try:
        with out_of_memory.explained(settings(1), 1):
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    except OutOfMemoryError as error:
        return {"message": str(error)}
    return {"message": ""}


def run(job: Mapping[str, Any], rank: int) -> int:
    """Try all cases of a process group and write down what they came to."""
    folder, device = Path(job["folder"]), job.get("device", "cpu")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=device == "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    CONTEXTS.append(make_context(folder, rank=rank, world_size=job["world_size"], device=device))
    distributed.init(CONTEXTS[-1])
    tried = cuda_cases() if device == "cuda" else cases(job["world_size"])
    found = {name: case() for name, case in tried.items()}
    torch.save(found, folder / f"found-{rank}.pt")
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "cuda":
        sys.exit(run({"folder": sys.argv[2], "world_size": 1, "device": "cuda"}, 0))
    main(run)
