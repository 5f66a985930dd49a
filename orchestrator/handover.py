"""Hands stages over to an executor: claimed first, then written, then submitted, parts together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster import fsio, limits
from cluster.batch import RequestError
from cluster.contract import (
    ArrayRequest,
    Executor,
    JobHandle,
    JobRequest,
    Resources,
    SchedulerError,
)
from cluster.patience import UnknownOutcome
from orchestrator.errors import Refused
from orchestrator.facts import live_handle
from orchestrator.jobs import array_name, job_name, job_request
from orchestrator.policy import avoiding
from orchestrator.rollback import Made, refusal, take_back
from orchestrator.store import StageDir, Store, Submission

_SUBMITTED = ("run", "resume")


@dataclass(frozen=True, kw_only=True)
class Order:
    """One stage to see to, from a fresh plan or from the plan.json of a run.

    `spec` is what its stage.json is to say, None where it stays as it is; `n` the number its next
    submission takes; `number` its place among the parts of one stage.
    """

    name: str
    key: str
    stage: StageDir
    upstream: tuple[str, ...]
    resources: Resources
    action: str
    reason: str
    policy: Mapping[str, Any]
    n: int
    spec: Mapping[str, Any] | None = None
    part_of: str | None = None
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class SubmittedStage:
    """What was done about one stage; `after` are the stages its job waits for."""

    name: str
    action: str
    job_id: str
    reason: str
    key: str
    after: tuple[str, ...]
    part_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class SubmittedRun:
    """One submission of a run: its stages in order and the handles of the jobs that are in."""

    run_id: str
    stages: tuple[SubmittedStage, ...]
    handles: Mapping[str, JobHandle]


def hand_over(
    orders: Sequence[Order],
    run: Mapping[str, Any],
    store: Store,
    executor: Executor,
    begin: Callable[[], None] = lambda: None,
) -> SubmittedRun:
    """See to all orders, upstream first; parts of one stage are handed over together.

    All or nothing: what is known to be impossible is refused before anything is submitted, and
    when a job is refused all the same, those made before it are taken back.

    Args:
        orders: of the whole run.
        run: its run.json.
        store: where it lies.
        executor: who gets the jobs.
        begin: called once nothing is known to be impossible, before the first job.

    Raises:
        Refused: a job that this site will never start.
        RequestError: a value that no script may hold.
        SchedulerError: a job was refused, or nobody answered; the message says what was done.
    """
    walk = _Walk(run=run, store=store, executor=executor)
    resources = avoiding(run["run_id"], store, [order.resources for order in orders])
    orders = [_avoiding(one, own) for one, own in zip(orders, resources, strict=True)]
    walk.check([order for order in orders if order.action in _SUBMITTED])
    parts: dict[str, list[Order]] = {}
    for order in orders:
        parts.setdefault(order.part_of or "", []).append(order)
    begin()
    try:
        for order in orders:
            if order.name not in walk.done:
                # Parts of one stage have the same upstream: where one may be handed over, all may.
                walk.see_to(parts[order.part_of] if order.part_of else [order])
    except (SchedulerError, RequestError) as error:
        raise take_back(walk.made, error, executor, run["run_id"], store) from error
    stages = tuple(walk.done[order.name] for order in orders)
    return SubmittedRun(run_id=run["run_id"], stages=stages, handles=walk.handles)


def _avoiding(order: Order, resources: Resources) -> Order:
    """The order with what its job is to do without, and with words about that."""
    if order.action not in _SUBMITTED or resources == order.resources:
        return order
    reason = f"without {resources.exclude}; {order.reason}".removesuffix("; ")
    return replace(order, resources=resources, reason=reason)


@dataclass(kw_only=True)
class _Walk:
    """One walk over the orders: what was done so far, and the jobs that dependents wait for."""

    run: Mapping[str, Any]
    store: Store
    executor: Executor
    done: dict[str, SubmittedStage] = field(default_factory=dict)
    handles: dict[str, JobHandle] = field(default_factory=dict)
    made: list[Made] = field(default_factory=list)
    succeeded_by_others: set[str] = field(default_factory=set)

    def check(self, orders: Sequence[Order]) -> None:
        """Refuse what cannot be submitted, or would wait for ever, before anything is written."""
        requests = {order.name: self._request(order, "check") for order in orders}
        for request in requests.values():
            self.executor.render(request)
        for chunk in self._arrays([order for order in orders if order.part_of]):
            tasks = tuple(self._request(one, "check", task) for task, one in chunk.items())
            self.executor.render(ArrayRequest(folder=self.store.array_dir("check"), tasks=tasks))
        found = limits.problems(self.executor.name, requests)
        if found:
            lines = "\n".join(f"  {one}" for one in found)
            raise Refused(f"this site cannot run it; nothing was submitted\n{lines}")

    def see_to(self, group: Sequence[Order]) -> None:
        """One stage, or all parts of one."""
        wanted = [self._carried(order) for order in group if order.action in _SUBMITTED]
        for order in group:
            if order.action == "attach":
                self._note(order, "attach", live_handle(order.stage))
            elif order.action not in _SUBMITTED:
                self._note(order, order.action, None)
        if len(group) > 1 and wanted:
            for chunk in self._arrays(wanted):
                self._submit_array(chunk)
        else:
            for order in wanted:
                self._submit(order)

    def _arrays(self, parts: Sequence[Order]) -> Iterator[dict[int, Order]]:
        """Parts that may be one array: of one stage, asking for the same resources.

        They begin alike, but one that ran out of memory asks for more when it is submitted again.
        """
        alike: dict[tuple[str | None, str], list[Order]] = {}
        for part in parts:
            alike.setdefault((part.part_of, repr(part.resources)), []).append(part)
        for group in alike.values():
            yield from chunks(group, self.executor.array_limit())

    def _carried(self, order: Order) -> Order:
        """The order as its upstream asks for: a job that is replaced by another one has failed.

        To wait for its success would end the dependent, so that goes by what its prologue finds.
        """
        if not self.succeeded_by_others & set(order.upstream):
            return order
        return replace(order, resources=replace(order.resources, requeue=False))

    def _submit(self, order: Order) -> None:
        name = job_name(order.name, order.stage, order.n)
        if not self._claim(order, name):
            self._attach(order)
            return
        try:
            handle = self.executor.submit(self._request(order, name))
        except UnknownOutcome:
            raise  # the claim stays open: the next submission looks for the job by its name
        except SchedulerError as error:
            self._record(order, name, None)
            raise refusal(order.name, order.resources, error) from error
        self._record(order, name, handle)

    def _submit_array(self, chunk: Mapping[int, Order]) -> None:
        """Claim the parts, submit as one array those that nobody else has claimed."""
        first = next(iter(chunk.values()))
        if len(chunk) == 1:
            return self._submit(first)
        name = array_name(str(first.part_of), first.stage, first.n)
        mine = {task: order for task, order in chunk.items() if self._claim(order, name, task)}
        if mine:
            self._submit_claimed(mine, name)
        for task, order in chunk.items():
            if task not in mine:
                self._attach(order)
        return None

    def _submit_claimed(self, mine: Mapping[int, Order], name: str) -> None:
        tasks = tuple(self._request(order, name, task) for task, order in mine.items())
        array = ArrayRequest(folder=self.store.array_dir(name), tasks=tasks)
        try:
            handles = self.executor.submit_array(array)
        except UnknownOutcome:
            raise
        except SchedulerError as error:
            for order in mine.values():
                self._record(order, name, None)
            first = next(iter(mine.values()))
            raise refusal(str(first.part_of), first.resources, error) from error
        for order, handle in zip(mine.values(), handles, strict=True):
            self._record(order, name, handle)

    def _request(self, order: Order, name: str, task: int | None = None) -> JobRequest:
        return job_request(
            name,
            order.stage,
            order.n,
            order.resources,
            self.run["code"]["path"],
            self._after(order),
            task=task,
            part_of=order.part_of,
        )

    def _claim(self, order: Order, name: str, task: int | None = None) -> bool:
        """Whether the stage is ours to submit; then all its job reads is written."""
        details = {**self._details(order), "policy": dict(order.policy), "task": task}
        if not order.stage.claim(order.n, name, details):
            return False
        if order.spec is not None:
            order.stage.write_spec(order.spec)
        order.stage.cancel_file.unlink(missing_ok=True)
        fsio.make_dir(order.stage.logs)
        return True

    def _details(self, order: Order) -> dict[str, Any]:
        return {
            "run_id": self.run["run_id"],
            "stage": order.name,
            "resources": asdict(order.resources),
            "tracking": _tracking(self.run, order, self.store),
            "code": self.run["code"]["path"],
        }

    def _record(self, order: Order, name: str, handle: JobHandle | None) -> None:
        """What came of the claim; a handle of None says that there is no job."""
        order.stage.record_submission(
            Submission(
                n=order.n,
                job_name=name,
                handle=handle,
                dependencies=tuple(one.job_id for one in self._after(order)),
                **self._details(order),
            )
        )
        if handle is None:
            return
        newest = order.stage.latest_intent() or {}
        if newest.get("n", order.n) > order.n:  # taken for a claim whose submitter was killed
            with contextlib.suppress(SchedulerError):  # it would leave by itself
                self.executor.cancel([handle])
            self._attach(replace(order, n=newest["n"]))
            return
        self.made.append((order.name, order.stage, handle))
        self._note(order, order.action, handle)

    def _attach(self, order: Order) -> None:
        self._note(order, "attach", _await_handle(order, self.executor))

    def _after(self, order: Order) -> tuple[JobHandle, ...]:
        return tuple(self.handles[name] for name in order.upstream if name in self.handles)

    def _note(self, order: Order, action: str, handle: JobHandle | None) -> None:
        if handle is not None:
            self.handles[order.name] = handle
            claimed = (order.stage.latest_intent() or {}).get("resources", {})
            if not claimed.get("requeue", True):
                self.succeeded_by_others.add(order.name)
        self.done[order.name] = SubmittedStage(
            name=order.name,
            action=action,
            job_id=handle.job_id if handle else "",
            reason=order.reason,
            key=order.key,
            after=tuple(name for name in order.upstream if name in self.handles),
            part_of=order.part_of,
        )


def chunks(parts: Sequence[Order], limit: int) -> Iterator[dict[int, Order]]:
    """The parts by their numbers in an array, as many arrays as the scheduler's limit asks for.

    Where it can be, the number in the array is that of the part, as people then find it in squeue.
    """
    if all(part.number < limit for part in parts):
        yield {part.number: part for part in parts}
        return
    for start in range(0, len(parts), limit):
        yield dict(enumerate(parts[start : start + limit]))


def _await_handle(
    order: Order, executor: Executor, patience_seconds: float = 60.0
) -> JobHandle | None:
    """The job of another submitter, who records it a moment after the claim or was killed there.

    Raises:
        SchedulerError: it came to no job, so what depends on it must not be submitted.
    """
    begun = asked = time.monotonic()
    while (now := time.monotonic()) < begun + patience_seconds:
        submission = order.stage.submission(order.n)
        if submission is not None and submission.handle is not None:
            return submission.handle
        if submission is not None:
            raise SchedulerError(
                f"stage {order.name}: somebody else submitted it at the same time and was refused"
            )
        if now - asked > 2.0:
            asked = now
            intent = order.stage.intent(order.n) or {}
            with contextlib.suppress(SchedulerError):
                handle = executor.find(str(intent["job_name"]), intent.get("task"))
                if handle is not None:
                    return handle
        time.sleep(0.1)
    raise SchedulerError(
        f"stage {order.name}: somebody else began to submit it and has no job yet: try again later"
    )


def _tracking(run: Mapping[str, Any], order: Order, store: Store) -> dict[str, Any] | None:
    """Where the job's records go; of parts, which are no results, none are kept in MLflow."""
    tracking = run["tracking"]
    if not tracking["enabled"] or order.part_of is not None:
        return None
    return {
        "uri": tracking["uri"],
        "mode": tracking.get("mode", "online"),
        "experiment": tracking["experiment"],
        "registered_model": tracking.get("registered_model"),
        "system_metrics": tracking.get("system_metrics", False),
        "run_id": run["run_id"],
        "run_name": run["run_id"],
        "stage": order.name,
        "store_run_dir": str(store.run_dir(run["run_id"])),
        "code_version": run["code"]["version"],
    }
