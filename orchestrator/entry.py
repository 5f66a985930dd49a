"""What runs on the node, once a rank: verify, run the stage, record what came of it.

A composition root: it joins the stage implementations, the executors' rank environment and the
tracking, and everything heavy is imported inside functions, after the stop signals are taken.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster import fsio, hang, hang_records, memory
from cluster.contract import ExitCode
from cluster.environment import EnvFileError, read_env_file
from cluster.heartbeat import Heart
from cluster.preemption import StopFlag
from cluster.ranks import (
    RankError,
    check_world_size,
    cpus_of_task,
    placement,
    rank_environment,
    restart_count,
)
from cluster.successor import superseded
from cluster.unrecorded import record_lost
from orchestrator.attempt import (
    Attempt,
    leave_if_overtaken,
    print_outcome,
    record_end,
    record_start,
)
from orchestrator.inputs import verify_inputs
from orchestrator.notes import Notes
from orchestrator.origin import origin_of
from orchestrator.outcome import Outcome, classify, write_result
from orchestrator.store import SCHEMA_VERSION, StageDir
from recipes.contract import Phase, Progress, StageContext, StageResult
from tracking.plain import aim_at_run


def main(argv: list[str] | None = None) -> int:
    """Run one rank of a stage; returns its exit code (cluster.contract.ExitCode)."""
    os.umask(0o077)
    stop = StopFlag()
    stop.install()
    parser = argparse.ArgumentParser(prog="python -m orchestrator.entry")
    parser.add_argument("stage_dir", type=Path)
    parser.add_argument("--submission", type=int, required=True)
    options = parser.parse_args(argv)
    stage = StageDir(options.stage_dir.absolute())
    left = _reason_to_leave(stage, options.submission)
    if left is not None:
        print(left[1], flush=True)
        return left[0]
    try:
        attempt = _open_attempt(stage, options.submission)
    except (RankError, EnvFileError) as error:
        print(f"orchestrate: {error}", file=sys.stderr, flush=True)
        return ExitCode.CONFIGURATION
    except OSError as error:  # a full disk, a file server that is away: may be over next time
        print(f"orchestrate: cannot begin: {error}", file=sys.stderr, flush=True)
        return ExitCode.COMMUNICATION
    return _run_attempt(attempt, stop)


def _reason_to_leave(stage: StageDir, submission: int) -> tuple[int, str] | None:
    if stage.stage() is None:
        return ExitCode.CONFIGURATION, f"orchestrate: {stage.stage_file} is missing: nothing to run"
    newest = (stage.latest_intent() or {"n": submission})["n"]
    if newest > submission:
        return (
            ExitCode.SUPERSEDED,
            f"orchestrate: submission {newest} owns {stage.path.name} now; {submission} leaves",
        )
    other = superseded(stage.path, submission, os.environ)
    if other is not None:
        return ExitCode.SUPERSEDED, f"orchestrate: job {other} goes on with {stage.path.name}"
    if stage.result() is not None:
        return ExitCode.SUCCESS, f"orchestrate: {stage.path.name} has its result already"
    cancel = stage.cancelled()
    if cancel is not None:  # a new submission would have removed it: the scheduler started this one
        who = f"{cancel.get('user')} on {cancel.get('host')}"
        return (
            ExitCode.CANCELLED,
            f"orchestrate: {stage.path.name} was cancelled by {who}; `orchestrate resume` goes on",
        )
    return None


def _open_attempt(stage: StageDir, submission: int) -> Attempt:
    intent = stage.intent(submission) or {}
    resources = intent.get("resources", {})
    if resources.get("env_file"):
        os.environ.update(read_env_file(Path(resources["env_file"])))
    ranks = rank_environment(os.environ)
    check_world_size(ranks, resources)
    os.environ.update(ranks.export())
    os.environ.setdefault("OMP_NUM_THREADS", str(cpus_of_task(os.environ, resources)))
    attempt = Attempt(
        stage=stage,
        submission=submission,
        restart=restart_count(os.environ),
        ranks=ranks,
        resources=resources,
        tracking=intent.get("tracking"),
        oom_kills=memory.oom_kills() or 0,
    )
    # `logs --attempt` finds by this line where an attempt begins.
    print(f"orchestrate: attempt {attempt.id}: {placement(ranks, os.environ)}", flush=True)
    fsio.make_dir(attempt.folder)
    hang_records.forget(attempt.folder, ranks.rank)
    attempt = replace(attempt, heart=_start_watchdog(attempt))
    if attempt.main:
        for folder in (stage.outputs, stage.checkpoints, stage.scratch):
            fsio.make_dir(folder)
        record_lost(stage.path, submission, attempt.restart)
        record_start(attempt)
    return attempt


def _start_watchdog(attempt: Attempt) -> Heart | None:
    """The process that watches this rank; only Linux has what it needs."""
    seconds = float(os.environ.get("ORCHESTRATE_HANG_SECONDS") or hang.DEFAULT_SECONDS)
    if sys.platform != "linux" or not seconds:
        return None
    from cluster import watchdog

    heart = Heart()
    place = attempt.ranks
    watchdog.start(heart, attempt.folder, place.rank, place.world_size, seconds)
    return heart


def _run_attempt(attempt: Attempt, stop: StopFlag) -> int:
    """Run the stage and record the outcome; the one broad except on the compute node."""
    outbox = _start_outbox(attempt)
    aim_at_run(attempt.stage.path, attempt.ranks.rank, _tracking_uri(attempt), outbox)
    _show_messages(attempt)
    try:
        spec = fsio.read_json(attempt.stage.stage_file)
        inputs = verify_inputs(attempt.stage, spec, digests=attempt.main)
        result = _run_stage(attempt, spec, inputs, stop)
        if attempt.main:
            leave_if_overtaken(attempt)
            write_result(attempt.stage, spec, inputs, result, attempt.id)
        outcome = Outcome.succeeded(result.steps)
    except BaseException as error:
        killed = (memory.oom_kills() or 0) > attempt.oom_kills
        outcome = classify(error, attempt.stage.committed_step(), oom_killed=killed)
        record_end(attempt, outcome, error)
    else:
        record_end(attempt, outcome)
    if attempt.heart is not None:
        attempt.heart.leave()
    if attempt.main or outcome.outcome == "failed":
        print_outcome(attempt, outcome)
    if outbox is not None:
        outbox.finish(patience_seconds=5.0 if outcome.outcome == "preempted" else 90.0)
    return outcome.exit_code


def _run_stage(
    attempt: Attempt, spec: Mapping[str, Any], inputs: Mapping[str, Any], stop: StopFlag
) -> StageResult:
    from recipes.catalog import STAGES, load

    entry = STAGES[spec["kind"]]
    config = load(entry.config).model_validate(spec["config"])
    result = load(entry.target)(_context(attempt, spec, inputs, stop), config)
    if not isinstance(result, StageResult):
        raise TypeError(f"{entry.target} returned {type(result).__name__}, expected StageResult")
    return result


def _context(
    attempt: Attempt, spec: Mapping[str, Any], inputs: Mapping[str, Any], stop: StopFlag
) -> StageContext:
    stage = attempt.stage
    notes = Notes(stage)

    def log_metrics(step: int, values: Mapping[str, float]) -> None:
        if attempt.main:
            line = {"step": step, "time": time.time(), "attempt": attempt.id}
            notes.metrics({**line, "metrics": dict(values)})

    def report_progress(progress: Progress) -> None:
        if attempt.main:
            value = {**asdict(progress), "attempt": attempt.id, "updated_at": time.time()}
            notes.progress({"schema_version": SCHEMA_VERSION, **value})

    def stop_requested() -> bool:
        if attempt.heart is not None:
            attempt.heart.sign()
        return stop.requested()

    return StageContext(
        inputs=inputs,
        output_dir=stage.outputs,
        checkpoint_dir=stage.checkpoints,
        scratch_dir=stage.scratch,
        cache_dir=stage.cache,
        rank=attempt.ranks.rank,
        local_rank=attempt.ranks.local_rank,
        world_size=attempt.ranks.world_size,
        device=attempt.resources.get("device", "cpu"),
        attempt=attempt.id,
        seed=int(spec["config"].get("seed", 0)),
        stop_requested=stop_requested,
        log_metrics=log_metrics,
        report_progress=report_progress,
        origin=origin_of(stage, attempt.submission, spec),
        beat=_beat(attempt),
        fence=partial(leave_if_overtaken, attempt),
    )


def _beat(attempt: Attempt) -> Callable[[Phase, int], None]:
    from recipes.engine import hangs

    heart = attempt.heart
    return hangs.behind(heart.beat if heart is not None else lambda phase, step: None)


def _show_messages(attempt: Attempt) -> None:
    """What our own modules say goes to the log of the rank; what all say alike, rank 0 says."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("recipes", "cluster", "tracking"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if attempt.main else logging.WARNING)
        logger.propagate = False


def _start_outbox(attempt: Attempt) -> Any:
    """The subprocess that ships to MLflow; started by rank 0 before anything heavy is imported."""
    if not attempt.main or not _tracking_uri(attempt):
        return None
    from tracking.outbox import start

    return start(attempt.stage.path, attempt.submission)


def _tracking_uri(attempt: Attempt) -> str:
    return str((attempt.tracking or {}).get("uri") or "")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Communication libraries may wait for peers in their destructors; all is on disk by now.
    os._exit(code)
