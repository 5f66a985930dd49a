"""Follows a stage from a rehearsed fault on until it goes on, and reports what that cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.contract import Executor, Phase, SchedulerError
from orchestrator.drill import Fault, Target, stage_record
from orchestrator.record import StageRecord
from orchestrator.store import Store

_POLL_SECONDS = 2.0
_LOST_SECONDS = 60.0  # without job and without attempt, until nobody waits any longer
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of it; seconds are from the fault on, None where it did not come to that.

    Attributes:
        did: the command or signal.
        step: what the attempt had reached in the end.
        saved: step from which the next attempt went on.
        ended_after: until the attempt had ended.
        began_after: until the next attempt began.
        lost: until the stage was past `step` again.
    """

    run_id: str
    stage: str
    fault: Fault
    did: str
    job: str
    attempt: str
    step: int
    saved: int | None = None
    next_attempt: str | None = None
    next_job: str | None = None
    decision: str = ""
    reason: str = ""
    cause: str | None = None
    ended_after: float | None = None
    began_after: float | None = None
    lost: float | None = None
    came_back: bool = False
    verdict: str = ""

    @property
    def steps_repeated(self) -> int | None:
        """Steps that were done twice."""
        return None if self.saved is None else max(0, self.step - self.saved)

    def lines(self) -> list[str]:
        """As a person reads it."""
        told = [f"{self.run_id}:{self.stage}, job {self.job}: {self.did}"]
        if self.ended_after is not None:
            why = f"{self.decision}: {self.reason}"
            told.append(f"  {self.attempt} ended after {self.ended_after:.0f} s ({why})")
        if self.began_after is not None:
            other = f" as job {self.next_job}" if self.next_job != self.job else ""
            told.append(f"  {self.next_attempt} began after {self.began_after:.0f} s{other}")
        if not self.came_back:
            return [*told, f"  did not come back: {self.verdict}"]
        count = "1 step was" if self.steps_repeated == 1 else f"{self.steps_repeated} steps were"
        repeated = f"{count} done twice ({self.saved} to {self.step})"
        nothing = f"no step was done twice (saved at {self.saved})"
        told.append(f"  {self.verdict} after {self.lost:.0f} s, so much was lost")
        return [*told, f"  {repeated if self.steps_repeated else nothing}"]

    def record(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self), "steps_repeated": self.steps_repeated}


def follow(
    fault: Fault,
    did: str,
    target: Target,
    store: Store,
    executor: Executor,
    say: Say,
    *,
    patience_seconds: float,
) -> Report:
    """Wait until the stage is past where it was, has ended for good, or patience is over."""
    watch = _Watch(fault=fault, did=did, target=target)
    while True:
        watch.look(stage_record(target.run_id, target.stage, store), executor)
        say(watch.words())
        if watch.verdict:
            return watch.report()
        if time.time() - watch.since > patience_seconds:
            watch.verdict = f"not past step {watch.step} after {patience_seconds / 60:.0f} minutes"
            return watch.report()
        time.sleep(_POLL_SECONDS)


class _Watch:
    """A stage from the fault on."""

    def __init__(self, *, fault: Fault, did: str, target: Target) -> None:
        self._fault, self._did, self._target = fault, did, target
        self.since = time.time()
        self.step = target.step
        self.verdict = ""
        self._back: float | None = None
        self._gone_since: float | None = None
        self._phase = ""
        self._old: Mapping[str, Any] = {}
        self._new: Mapping[str, Any] = {}
        self._new_job: str | None = None
        self._saved: int | None = None

    def look(self, record: StageRecord, executor: Executor) -> None:
        """Take in what the files and the scheduler say; sets `verdict` when that is the end."""
        target = self._target
        for one in record.attempts:
            if one["id"] == target.attempt:
                self._old = one
        progress = record.progress or {}
        at = int(progress.get("step", 0))
        if progress.get("attempt") == target.attempt:
            self.step = max(self.step, at)
        current = record.current
        if current is not None and current["id"] > target.attempt and current["start"]:
            if not self._new:
                self._saved = self._step_saved(record)
            self._new, self._new_job = current, record.job_id(None)
        self._judge(record, executor, at if progress.get("attempt") == self._new.get("id") else -1)

    def _step_saved(self, record: StageRecord) -> int:
        """Where the old attempt left off; the new one may have saved since."""
        ended = self._old.get("exit") or {}
        return int(ended["step"]) if "step" in ended else record.folder.committed_step()

    def _judge(self, record: StageRecord, executor: Executor, step: int) -> None:
        ended = self._old.get("exit") or {}
        if record.result is not None:
            self._back = time.time() if self._new else None
            self.verdict = "finished" if self._new else "it had finished before this hit it"
        elif self._new and step > self.step:
            self._back, self.verdict = time.time(), "goes on"
        elif record.handle is None:
            self.verdict = "it has no job any more"
        else:
            try:
                state = executor.query([record.handle])[record.handle]
            except SchedulerError:  # a controller that starts anew; the files go on telling
                self._phase, self._gone_since = "not known, the scheduler does not answer", None
                return
            self._phase = f"{state.phase} {state.reason}".strip()
            if state.phase is not Phase.GONE:
                self._gone_since = None
                return
            self._gone_since = self._gone_since or time.time()
            if ended.get("decision") == "stop" or time.time() - self._gone_since > _LOST_SECONDS:
                self.verdict = str(ended.get("reason") or "its job is gone and nothing follows it")

    def words(self) -> str:
        """How far it is, in one line."""
        seconds = time.time() - self.since
        ended = self._old.get("exit")
        if self._new:
            what = f"attempt {self._new['id']} runs, on the way to step {self.step}"
        elif ended:
            what = f"ended at step {ended.get('step')} ({ended.get('reason')}), job {self._phase}"
        else:
            what = f"still at step {self.step}, job {self._phase}"
        return f"{self._target.stage} {seconds:.0f} s after `{self._did}`: {what}"

    def report(self) -> Report:
        """All that was seen."""
        target, ended, start = self._target, self._old.get("exit") or {}, self._new.get("start")
        report = Report(
            run_id=target.run_id,
            stage=target.stage,
            fault=self._fault,
            did=self._did,
            job=target.job,
            attempt=target.attempt,
            step=self.step,
            decision=str(ended.get("decision", "")),
            reason=str(ended.get("reason", "")),
            cause=ended.get("cause"),
            ended_after=self._after(ended.get("finished_at")),
            verdict=self.verdict,
        )
        if not start:
            return report
        return replace(
            report,
            saved=self._saved,
            next_attempt=str(self._new["id"]),
            next_job=self._new_job,
            began_after=self._after(start["started_at"]),
            lost=self._after(self._back),
            came_back=self._back is not None,
        )

    def _after(self, at: float | None) -> float | None:
        return None if at is None else round(max(0.0, float(at) - self.since), 1)
