"""The pipeline that is hit, and what must be true of it at the end."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.e2e.conftest import CommandLine, make_command_line
from tests.matrix.cells import Cell
from tests.matrix.faults import FAULTS, Fault
from tests.slurm_cluster import PrivateSlurm

STEPS = 24
SAVED_EVERY = 8
STAGES = ("pretrain", "probe", "finetune", "retrieval")
RECIPE = (
    "tiny.yaml",
    "cluster=slurm",
    "cluster.resources.device=cpu",
    "cluster.resources.cpus_per_task=1",
    "~stages.probe_random",
    "~stages.report",
    "stages.pretrain.micro_batch=2",
    f"stages.pretrain.max_steps={STEPS}",
    f"stages.pretrain.checkpoint.steps={SAVED_EVERY}",
    "stages.pretrain.log_every=1",
    "stages.finetune.max_steps=2",
)
_PATIENCE_SECONDS = 900
_LONG_MINUTES = 30
_EARLIEST_SECONDS = 50  # ahead of the limit: 20 of warning, and SLURM sends it up to 30 early


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The same pipeline without a fault: what it found, and the data it read.

    `start_seconds` is what its pretraining took to the first step.
    """

    index: Path
    start_seconds: float
    metrics: Mapping[str, Mapping[str, float]]
    encoder: bytes


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of one cell.

    Attributes:
        problems: empty where all held.
        attempts: of the stage that was hit.
        steps: of the pretraining, the last one that each attempt logged.
        lost_seconds: from the last step whose work was kept to the first one behind it, summed
            over the attempts: work done twice, waiting in the queue, starting.
        seconds: of the whole pipeline, submission included.
    """

    cell: Cell
    problems: Sequence[str]
    attempts: int
    steps: Sequence[int]
    lost_seconds: float
    seconds: float


def make_reference(folder: Path) -> Reference:
    """Run the pipeline undisturbed, and keep its videos where all clusters see them."""
    with PrivateSlurm(num_nodes=3, gpus=0, first_job_id=50, shares=(folder,)) as cluster:
        run = make_command_line(folder / "reference", cluster.env)
        run("submit", *RECIPE, _resources(_LONG_MINUTES))
        cluster.wait_for(lambda: not cluster.live(), _PATIENCE_SECONDS, every=1)
        stages = run.status()
        if any(stages[name]["status"] != "succeeded" for name in STAGES):
            raise RuntimeError(f"the undisturbed run failed: {json.dumps(stages, indent=1)}")
        return Reference(
            index=run.stage_dir("index"),
            start_seconds=_start_seconds(run),
            metrics={name: stages[name]["metrics"] for name in STAGES},
            encoder=_encoder(run),
        )


def run_cell(cell: Cell, reference: Reference, folder: Path) -> Verdict:
    """Bring a cluster up, submit, hit, wait, judge; the store stays below `folder`."""
    fault = FAULTS[cell.fault]
    began = time.monotonic()
    with PrivateSlurm(**cell.settings, shares=(folder,)) as cluster:
        run = make_command_line(folder / cell.name.replace(" ", "_").replace(",", ""), cluster.env)
        shutil.copytree(reference.index, run.store / "stages" / reference.index.name)
        began = time.monotonic()
        problems = _live(run, cluster, cell, fault, reference)
        seconds = time.monotonic() - began
        problems += _left_behind(run, cluster)
        return _judge(run, cell, fault, reference, problems, seconds)


def _live(
    run: CommandLine, cluster: PrivateSlurm, cell: Cell, fault: Fault, reference: Reference
) -> list[str]:
    """Submit, hit and wait until no job is left; what went wrong on the way."""
    minutes, step_seconds = _lengths(fault, reference)
    words = [*RECIPE, _resources(minutes)]
    if cell.transport != "auto":
        words.append(f"cluster.transport={cell.transport}")
    run("submit", *words, ORCHESTRATE_FAULT=f"slow:{int(step_seconds * 1000)}")
    try:
        # Asked ahead: on a busy machine the pretraining is over before `status` has answered.
        job_id = run.status()[fault.stage]["job_id"]
        _wait_for_step(run, cluster, fault)
        fault.hit(cluster, cell, job_id)
        cluster.wait_for(lambda: not cluster.live(), _PATIENCE_SECONDS, every=1)
    except (TimeoutError, RuntimeError, ValueError) as error:
        return [f"{type(error).__name__}: {error}"]
    return []


def _wait_for_step(run: CommandLine, cluster: PrivateSlurm, fault: Fault) -> None:
    """Until the stage is where the fault is to hit it. Raises ValueError, TimeoutError."""

    def there() -> bool:
        return _step(run, fault.stage) >= fault.at_step

    cluster.wait_for(lambda: there() or not cluster.live(), _PATIENCE_SECONDS, every=0.2)
    if not there():
        raise ValueError(f"{fault.stage} ended before it could be hit")


def _lengths(fault: Fault, reference: Reference) -> tuple[int, float]:
    """Minutes of the limit and seconds a step, in the first attempt.

    A limit that is to be met must leave time to start in, on a slow machine too; an attempt that
    is warned before its first step would have come to nothing.
    """
    if not fault.by_limit:
        return _LONG_MINUTES, fault.step_seconds
    minutes = math.ceil((_EARLIEST_SECONDS + 1.5 * reference.start_seconds) / 60)
    return minutes, 60 * minutes / STEPS


def _start_seconds(run: CommandLine) -> float:
    (start,) = run.stage_dir("pretrain").glob("attempts/*/start.json")
    return float(_points(run)[0]["time"]) - float(_read(start)["started_at"])


def _resources(minutes: int) -> str:
    # A little less than whole minutes, which are rounded up.
    hours = round(minutes / 60 - 0.0001, 5)
    sizes = f"nodes: 2, tasks_per_node: 2, hours: {hours}, signal_seconds: 20"
    return f"+stages.pretrain.resources={{{sizes}}}"


def _step(run: CommandLine, stage: str) -> int:
    for path in run.store.glob(f"stages/{stage}-*/progress.json"):
        return int(json.loads(path.read_text(encoding="utf-8")).get("step") or 0)
    return 0


def _encoder(run: CommandLine) -> bytes:
    return (run.stage_dir("pretrain") / "outputs" / "encoder.safetensors").read_bytes()


# -- judging -----------------------------------------------------------------------------------


def _judge(
    run: CommandLine,
    cell: Cell,
    fault: Fault,
    reference: Reference,
    problems: list[str],
    seconds: float,
) -> Verdict:
    points = _points(run)
    logged = sorted({point["attempt"] for point in points})
    begun = list(run.stage_dir(fault.stage).glob("attempts/*/start.json"))
    if len(begun) < fault.attempts:
        problems.append(f"{len(begun)} attempts: the fault did not hit")
    problems += _not_cancelled(run) if fault.cancels else _not_finished(run, reference)
    return Verdict(
        cell=cell,
        problems=problems + steps_repeated(run.stage_dir("pretrain"), points, logged),
        attempts=len(begun),
        steps=[max(p["step"] for p in points if p["attempt"] == one) for one in logged],
        lost_seconds=round(lost_seconds(points, logged), 1),
        seconds=round(seconds, 1),
    )


def _not_cancelled(run: CommandLine) -> list[str]:
    """A user's own cancel ends the stage and all that waits for it.

    `status` calls it lost, as nobody has told it who cancelled: `orchestrate cancel` does.
    """
    return [
        f"{name} is {stage['status']} after a cancel: {stage['reason']}"
        for name, stage in run.status().items()
        if name in STAGES and stage["status"] not in ("cancelled", "lost", "blocked")
    ]


def _not_finished(run: CommandLine, reference: Reference) -> list[str]:
    """What differs from the undisturbed run."""
    return _wrong_results(run, reference) + _computed_twice(run)


def _wrong_results(run: CommandLine, reference: Reference) -> list[str]:
    stages = run.status()
    problems = [
        f"{name} is {stages[name]['status']}: {stages[name]['reason']}"
        for name in STAGES
        if stages[name]["status"] != "succeeded"
    ]
    if problems:
        return problems
    problems += [
        f"{name}: {stages[name]['metrics']} instead of {reference.metrics[name]}"
        for name in STAGES
        if stages[name]["metrics"] != reference.metrics[name]
    ]
    if _encoder(run) != reference.encoder:
        problems.append("the weights differ from those of the undisturbed run")
    return problems


def _computed_twice(run: CommandLine) -> list[str]:
    """Each stage has one attempt that succeeded; only the one that was hit has more."""
    problems = []
    for kind in STAGES:
        for stage in run.store.glob(f"stages/{kind}-*"):
            ends = [_read(path) for path in stage.glob("attempts/*/end.json")]
            succeeded = sum(end.get("outcome") == "succeeded" for end in ends)
            if succeeded != 1:
                problems.append(f"{kind}: {succeeded} attempts succeeded instead of one")
    return problems


def steps_repeated(
    stage: Path, points: Sequence[Mapping[str, Any]], attempts: Sequence[str]
) -> list[str]:
    """An attempt goes on behind the last step that the one before it had committed."""
    problems = []
    for before, after in pairwise(attempts):
        first = min(p["step"] for p in points if p["attempt"] == after)
        last = max(p["step"] for p in points if p["attempt"] == before)
        ended = _read(stage / "attempts" / before / "exit.json")
        # Without a record, whose node was lost: the newest commit but one may be all there was.
        periodic = last // SAVED_EVERY * SAVED_EVERY
        kept = ended.get("step", max(0, periodic - SAVED_EVERY))
        if first <= kept or first > last + 1:
            problems.append(
                f"{after} begins with step {first}, though {before} reached {last} and kept {kept}"
            )
    return problems


def lost_seconds(points: Sequence[Mapping[str, Any]], attempts: Sequence[str]) -> float:
    """Summed over the attempts; a first attempt that kept nothing is lost as a whole."""
    lost = 0.0
    for before, after in pairwise(attempts):
        begun = min((p for p in points if p["attempt"] == after), key=lambda p: p["step"])
        earlier = [p for p in points if p["attempt"] == before]
        kept = [p["time"] for p in earlier if p["step"] < begun["step"]]
        lost += begun["time"] - max(kept, default=min(p["time"] for p in earlier))
    return lost


def _left_behind(run: CommandLine, cluster: PrivateSlurm) -> list[str]:
    """Jobs that wait for ever, and processes of this store."""
    problems = [f"job {job} is left" for job in sorted(_live_or_unknown(cluster))]
    try:
        cluster.wait_for(lambda: not _processes(run), 120, every=1)
    except TimeoutError:
        problems += [f"a process is left: {line}" for line in _processes(run)]
    return problems


def _live_or_unknown(cluster: PrivateSlurm) -> set[str]:
    try:
        return cluster.live()
    except RuntimeError as error:
        return {str(error)}


def _processes(run: CommandLine) -> list[str]:
    mark = str(run.store).encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if mark in line:
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def _points(run: CommandLine) -> list[dict[str, Any]]:
    """All lines that the pretraining has logged, in order."""
    paths = run.store.glob("stages/pretrain-*/metrics.jsonl")
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    points = [json.loads(line) for line in lines]
    return [point for point in points if "train/loss" in point["metrics"]]


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
