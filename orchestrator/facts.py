"""What the store and the schedulers know of stages, gathered once for a plan."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.contract import JobHandle, JobState, Phase, SchedulerError
from cluster.patience import Patience
from orchestrator.plan import StageFacts
from orchestrator.store import StageDir, Store, Submission
from recipes.config import PARTS

_MOMENT_SECONDS = 10.0


class StoreFacts:
    """Answers `StageFacts` for (kind, key); asks each scheduler once for all stages together.

    `numbers` are what the next submission of each stage is called. They are read before anything
    else: whoever decides on these facts and finds the number taken knows that somebody was faster.
    `jobs` are the newest jobs of the stages without a result, and what the scheduler says of them.

    Who is about to submit gives `say`, which tells a person what is waited for: other submitters of
    this host that are at work, and cancelled jobs that still save. Without it nothing is waited for
    beyond a moment, and a stage that was cancelled counts as one without a job.
    """

    def __init__(
        self,
        store: Store,
        stages: Sequence[tuple[str, str]],
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._facts: dict[tuple[str, str], StageFacts] = {}
        folders = {stage: store.stage_dir(*stage) for stage in stages}
        self.numbers = {stage: folder.next_number() for stage, folder in folders.items()}
        open_ones = {s: f for s, f in folders.items() if f.result() is None}
        until = time.monotonic() + (_MOMENT_SECONDS if say is None else Patience().seconds)
        handles = {s: live_handle(f, until, say) for s, f in open_ones.items()}
        cancelled = {s for s, f in open_ones.items() if f.cancelled()}
        if say is not None:
            _await_cancelled([h for s in cancelled if (h := handles[s]) is not None], say)
        states = query_all([handle for handle in handles.values() if handle])
        self.jobs = {stage: (handle, states[handle]) for stage, handle in handles.items() if handle}
        for stage, folder in folders.items():
            handle = handles.get(stage)
            running = handle is not None and states[handle].phase is not Phase.GONE
            running = running and not (say is None and stage in cancelled)
            self._facts[stage] = StageFacts(
                result=stage not in open_ones,
                running=running,
                has_checkpoint=stage in open_ones and folder.has_committed(),
                merges=_merged(folder) if running else frozenset(),
                detail=f"job {handle.job_id}" if handle is not None and running else "",
            )

    def __call__(self, kind: str, key: str) -> StageFacts:
        """The facts of one stage."""
        return self._facts[kind, key]


def _merged(folder: StageDir) -> frozenset[str]:
    parts = ((folder.stage() or {}).get("inputs") or {}).get(PARTS, ())
    return frozenset(str(part["key"]) for part in parts)


def _await_cancelled(
    handles: Sequence[JobHandle], say: Callable[[str], None], patience_seconds: float = 90.0
) -> None:
    """Wait for cancelled jobs to end: one that still saves must be neither joined nor doubled."""
    deadline = time.monotonic() + patience_seconds
    pause = 1.0
    while handles and time.monotonic() < deadline:
        left = [one for one, state in query_all(handles).items() if state.phase is not Phase.GONE]
        if not left:
            return
        if pause == 1.0:
            jobs = ", ".join(handle.job_id for handle in left)
            say(f"waiting for cancelled jobs to end: {jobs} (at most {patience_seconds:.0f} s)")
        time.sleep(pause)
        pause = min(2 * pause, 4.0)


def to_stderr(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


def query_all(handles: Sequence[JobHandle]) -> dict[JobHandle, JobState]:
    """State of jobs of any executor; one call to each scheduler."""
    from cluster.executors import make

    by_executor: dict[str, list[JobHandle]] = defaultdict(list)
    for handle in handles:
        by_executor[handle.executor].append(handle)
    states: dict[JobHandle, JobState] = {}
    for name, group in by_executor.items():
        states.update(make(name).query(group))
    return states


def live_handle(
    stage: StageDir, until: float | None = None, say: Callable[[str], None] | None = None
) -> JobHandle | None:
    """The handle of a stage's newest submission, adopting a job whose submitter died.

    A claim without a record means that the submitter is at work or was killed in between. While its
    process lives on this host it is waited for; otherwise the scheduler is asked by job name.

    Args:
        stage: its folder.
        until: how long to wait, on the monotonic clock; without, a moment.
        say: tells the person who waits.
    """
    until = time.monotonic() + _MOMENT_SECONDS if until is None else until
    intent, submission = stage.latest_intent(), stage.latest_submission()
    if intent is None or (submission is not None and submission.n >= intent["n"]):
        return submission.handle if submission else None
    moment = time.monotonic() + 1.0
    while (recorded := stage.submission(intent["n"])) is None:
        now = time.monotonic()
        if now > until or not _alive_here(intent):
            return _adopt(stage, intent)
        if say is not None and now > moment:
            say(f"waiting for process {intent.get('pid')}, which is submitting {stage.path.name}")
            say = None
        time.sleep(0.1)
    return recorded.handle


def _adopt(stage: StageDir, intent: dict[str, object]) -> JobHandle | None:
    from cluster.executors import make

    try:
        handle = make("slurm").find(str(intent["job_name"]), _task(intent))
    except SchedulerError:
        if shutil.which("squeue") is None:  # then it was no job of SLURM
            return None
        raise  # to go on without knowing could submit it twice
    if handle is not None:
        fields = ("n", "run_id", "stage", "job_name", "resources", "tracking", "code")
        values = {name: intent[name] for name in fields}
        stage.record_submission(Submission(handle=handle, dependencies=(), **values))  # type: ignore[arg-type]
    return handle


def _task(claim: dict[str, object]) -> int | None:
    """The number in an array of the job a claim was for."""
    task = claim.get("task")
    return None if task is None else int(str(task))


def _alive_here(intent: dict[str, object]) -> bool:
    pid = intent.get("pid")
    return (
        intent.get("host") == socket.gethostname()
        and pid != os.getpid()
        and Path(f"/proc/{pid}").exists()
    )
