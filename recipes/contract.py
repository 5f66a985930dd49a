"""What a stage is given and gives back; torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

ArtifactKind = Literal["dataset", "part", "encoder", "features", "classifier", "report", "result"]


class InputSlot(NamedTuple):
    """One named input of a stage kind: the artifact kinds it takes, needed or not, one or many."""

    kinds: tuple[ArtifactKind, ...]
    required: bool = True
    many: bool = False


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file a stage left, with its digest and a description of itself in `meta` (plain JSON).

    `ref` says where it came from as the recipe writes it, `stage.artifact`; empty for a new one.
    For kind `result`, `path` is the upstream's result.json and `meta` its content.
    """

    name: str
    kind: ArtifactKind
    path: Path
    sha256: str
    bytes: int
    meta: Mapping[str, Any] = field(default_factory=dict)
    ref: str = ""


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file a stage wrote below `output_dir` and wants recorded as an artifact."""

    kind: ArtifactKind
    path: Path
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a stage is, for `status` and the log."""

    phase: str
    step: int
    steps: int
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    clips_per_second: float | None = None
    seconds_left: float | None = None
    data_wait_share: float | None = None


# What a rank does next. `idle` is not watched; a `save` may take longer than the others.
Phase = Literal["idle", "data", "forward", "backward", "agree", "optimize", "save", "evaluate"]


def _nobody_watches(phase: Phase, step: int) -> None:
    """Stands in where no watchdog runs."""


def _alone() -> None:
    """Stands in where there is no other attempt."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a stage is part of, for results that tell people; empty where it was run by hand.

    `recipe` is its name, `run` the id under which the store has the resolved recipe, `stage` the
    name in it, `key` the stage's identity, `code` the digest of the snapshot it runs, `version`
    what people call that.
    """

    recipe: str = ""
    run: str = ""
    stage: str = ""
    key: str = ""
    code: str = ""
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """All a stage may touch. The rank environment (RANK, MASTER_ADDR, ...) is already set.

    `inputs` maps a slot to its verified artifacts, a tuple of one unless the slot takes many.
    `cache_dir` is shared by all stages of the store: what lies there is found by its content and
    may vanish at any time. `stop_requested` is this rank's flag; loops agree on it over all ranks
    before they act. `log_metrics` and `report_progress` do something on rank 0 only and never block
    on a server. `beat` tells the watchdog of this rank that it is alive and what it does next: a
    phase and the optimizer step; see `Phase`. `fence` ends this process where a later attempt works
    on the stage by now; rank 0 calls it before it commits.
    """

    inputs: Mapping[str, tuple[Artifact, ...]]
    output_dir: Path
    checkpoint_dir: Path
    scratch_dir: Path
    cache_dir: Path
    rank: int
    local_rank: int
    world_size: int
    device: Literal["cuda", "cpu"]
    attempt: str
    seed: int
    stop_requested: Callable[[], bool]
    log_metrics: Callable[[int, Mapping[str, float]], None]
    report_progress: Callable[[Progress], None]
    beat: Callable[[Phase, int], None] = _nobody_watches
    fence: Callable[[], None] = _alone
    origin: Origin = Origin()

    def one(self, slot: str) -> Artifact:
        """The single artifact of a slot."""
        (artifact,) = self.inputs[slot]
        return artifact


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What came out: `metrics` are the numbers, `summary` is what a table needs to name them.

    Keys of `summary` that the report knows: protocol, method, backbone, pretrain_data, data, split,
    clip, size, coverage, note; `shortage` is what held a training up. `listed_apart` names folders
    below `output_dir` whose files an output lists with their digests already (prepared videos):
    they are not read once more.
    """

    outputs: Mapping[str, Output] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    listed_apart: frozenset[str] = frozenset()


class StageError(Exception):
    """A stage cannot go on for a reason the user can act on; `exit_code` says which kind."""

    exit_code = 70


class ConfigurationError(StageError):
    """The configuration asks for something impossible; found only on the node."""

    exit_code = 65


class InputError(StageError):
    """An input is missing, damaged or not what was promised."""

    exit_code = 66


class OutOfMemoryError(StageError):
    """The device or the host has no memory left; the message says which and what to change."""

    exit_code = 71


class DivergedError(StageError):
    """The loss or a gradient is not finite."""

    exit_code = 72


class Preempted(Exception):
    """Not an error: all ranks agreed to stop and saved; `step` is the committed step, or 0."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step
