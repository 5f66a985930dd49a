"""`doctor --job`: a short job on compute nodes, submitted as stages are, answered and read here."""

from __future__ import annotations

import contextlib
import importlib.metadata
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster import fsio
from cluster.contract import (
    Executor,
    GpuRequest,
    JobHandle,
    JobRequest,
    JobState,
    Phase,
    Resources,
    SchedulerError,
)
from cluster.probe_job import SCHEMA_VERSION
from cluster.processes import free_port
from cluster.site import write_profile
from orchestrator.checkup import MODULES, PACKAGES, Check
from orchestrator.job_findings import judge, profile_of
from orchestrator.node_findings import Rank, Seen
from orchestrator.store import StageDir, Store

_MINUTES = 10  # for the job; it takes one
_SETTLE_SECONDS = 15.0  # until the last files of a job are seen here
# What sbatch says of resources that a cluster does not have, or calls by another name.
_NOT_HERE = ("generic resource", "node configuration", "Node count", "gres", "gpus")
_RECIPE = "quickstart"  # for what no recipe was named: any that says nothing of a cluster
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What kind of job to send; None takes what the recipe or the site says.

    Attributes:
        recipe: whose cluster settings, resources and MLflow server to use.
        overrides: of that recipe, in Hydra's grammar.
        patience_minutes: how long it may wait in the queue before it is taken back.
    """

    recipe: Path | None = None
    overrides: Sequence[str] = ()
    partition: str | None = None
    nodes: int | None = None
    gpus: int | None = None
    patience_minutes: float = 15.0


def examine(wish: Wish, store: Store, say: Say) -> list[Check]:
    """Send the job, wait for it, judge what it found and keep the site's profile.

    The job is cancelled when this ends early, however it does.

    Args:
        say: told now and then, in a few words, how far it is.

    Raises:
        RecipeErrors: the recipe or an override is wrong.
        SchedulerError: the job was refused, or did not start in time.
    """
    from cluster.snapshot import take

    executor, resources, uri = _choose(wish, store)
    folder = fsio.make_dir(store.root / "doctor" / f"{int(time.time())}-{secrets.token_hex(3)}")
    fsio.write_json(folder / "ask.json", _ask(resources, uri, signals=executor.name == "slurm"))
    job_name = f"orchestrate-doctor-{secrets.token_hex(3)}"
    code = str(take(store.code, exclude=(store.root,)).path)
    try:
        others = _others(resources, one_will_do=wish.nodes is None)
        requests = [_request(job_name, one, folder, code) for one in (resources, *others)]
        handle, resources = _submit(executor, requests)
        visit = _Visit(
            executor=executor,
            handle=handle,
            folder=folder,
            world_size=resources.world_size,
            patience_seconds=60 * wish.patience_minutes,
            say=say,
        )
        executor.wait([handle], visit.tick)
    except BaseException:
        # Ctrl-C, also in the middle of sbatch, must not leave a job that nobody waits for.
        with contextlib.suppress(SchedulerError):
            left = executor.find(job_name)
            executor.cancel([left] if left else [])
        raise
    seen = _read(visit, resources)
    checks = judge(seen)
    if executor.name == "slurm" and seen.ranks:
        write_profile(store.root, profile_of(seen, time.time()))
    if not any(check.state == "failed" for check in checks):
        shutil.rmtree(folder, ignore_errors=True)
    return checks


def _choose(wish: Wish, store: Store) -> tuple[Executor, Resources, str | None]:
    """Whom to give the job, what it asks for, and the MLflow server to try.

    Of a recipe the stage with the most ranks is taken, because that is the one that has to work.
    """
    from cluster.doctor import has_gpus
    from cluster.executors import make
    from orchestrator.external import external_stages
    from orchestrator.naming import find_recipe
    from orchestrator.plan import StageFacts, load_recipe, make_plan
    from orchestrator.site_checks import check_files, gpu_request

    # On a machine without SLURM the processes of a `local` recipe are looked at in the same way.
    local = shutil.which("sbatch") is None
    cluster = [] if wish.recipe else [f"cluster={'local' if local else 'slurm'}"]
    recipe = load_recipe(wish.recipe or find_recipe(_RECIPE), [*cluster, *wish.overrides])
    check_files(recipe)
    executor = make(recipe.cluster.executor)
    plan = make_plan(
        recipe,
        lambda kind, key: StageFacts(),
        has_gpus=has_gpus(executor.name),
        gpu_request=gpu_request(executor, store.root),
        external=external_stages(store),
    )
    asked = max((stage.resources for stage in plan.stages), key=_size)
    return executor, _resources(wish, asked, executor.name), recipe.tracking.uri


def _resources(wish: Wish, asked: Resources, executor: str) -> Resources:
    """What a stage asks for, on few nodes and for a few minutes."""
    gpus = wish.gpus
    if gpus is None:
        gpus = asked.gpus_per_node if wish.recipe else min(1, asked.gpus_per_node)
    tasks = max(1, gpus) if gpus or executor == "slurm" else 2
    partition = wish.partition or asked.partition
    few = executor != "slurm" or _has_one_node(partition)
    return replace(
        asked,
        nodes=wish.nodes or (1 if few else 2),
        tasks_per_node=tasks,
        device="cuda" if gpus else "cpu",
        gpus_per_node=gpus,
        hours=_MINUTES / 60,
        partition=partition,
    )


def _has_one_node(partition: str | None) -> bool:
    """Whether a job of two nodes would wait there for ever."""
    from cluster.doctor import slurm_facts

    chosen = slurm_facts(partition).partitions
    return bool(chosen) and all(1 in (one.num_nodes, one.max_nodes) for one in chosen)


def _others(resources: Resources, *, one_will_do: bool) -> list[Resources]:
    """What to ask for where that is refused: GPUs in the other spelling, then one node."""
    spellings = [resources]
    if resources.gpus_per_node:
        other: GpuRequest = "gpus-per-node" if resources.gpu_request == "gres" else "gres"
        spellings.append(replace(resources, gpu_request=other))
    alone = [replace(one, nodes=1) for one in spellings] if one_will_do else []
    return [*spellings[1:], *(one for one in alone if resources.nodes > 1)]


def _size(resources: Resources) -> tuple[int, int]:
    return resources.gpus_per_node * resources.nodes, resources.world_size


def _ask(resources: Resources, uri: str | None, *, signals: bool) -> dict[str, Any]:
    modules = {package: MODULES.get(package, package) for package in PACKAGES}
    return {
        "schema_version": SCHEMA_VERSION,
        "gpus_per_node": resources.gpus_per_node,
        "tracking_uri": uri,
        "modules": modules,
        "signals": signals,
        "port": free_port(),
    }


def _submit(executor: Executor, requests: Sequence[JobRequest]) -> tuple[JobHandle, Resources]:
    """Submit the first that is taken; where none is, what was said to the one that was wanted."""
    refused: SchedulerError | None = None
    for request in requests:
        try:
            return executor.submit(request), request.resources
        except SchedulerError as error:
            refused = refused or error
            if not any(word in str(error) for word in _NOT_HERE):
                break
    raise refused or SchedulerError("nothing was asked for")


def _request(name: str, resources: Resources, folder: Path, code: str) -> JobRequest:
    """A job like that of a stage, with the look in place of the stage."""
    from orchestrator.jobs import job_request

    request = job_request(name, StageDir(folder), 1, resources, code, ())
    return replace(
        request,
        argv=(*request.argv[:-1], "cluster.probe_job"),
        epilogue=(*request.epilogue[:-1], "cluster.probe_job", "--batch"),
        prologue=(),
        target=(str(folder),),
        comment=resources.comment or "orchestrate doctor",
    )


@dataclass(kw_only=True)
class _Visit:
    """One job while it is waited for: its files are answered, its queue time is bounded."""

    executor: Executor
    handle: JobHandle
    folder: Path
    world_size: int
    patience_seconds: float
    say: Say
    begun: float = field(default_factory=time.monotonic)
    first_sign: float | None = None
    signalled: bool = False

    def tick(self, states: Mapping[JobHandle, JobState]) -> None:
        """Do what the job waits for. Raises SchedulerError where it has not begun in time."""
        state, waited = states[self.handle], time.monotonic() - self.begun
        _answer(self.folder)
        ranks = read_ranks(self.folder)
        if ranks and self.first_sign is None:
            self.first_sign = waited
        if len(ranks) == self.world_size and all(one.get("waits_for_signal") for one in ranks):
            self._signal()
        if state.phase is Phase.PENDING and waited > self.patience_seconds:
            raise SchedulerError(
                f"job {self.handle.job_id} was cancelled: after {waited / 60:.0f} minutes it still"
                f" waited ({state.reason or 'no reason given'}). Ask for less (--nodes 1), for"
                " another --partition, or wait longer (--patience MINUTES)"
            )
        at = ", ".join(f"rank {one['rank']}: {one['at_work_on'] or 'done'}" for one in ranks)
        why = f" ({state.reason})" if state.phase is Phase.PENDING and state.reason else ""
        self.say(f"job {self.handle.job_id} {state.phase}{why} for {waited:.0f} s  {at}")

    def _signal(self) -> None:
        if not self.signalled:
            from cluster.doctor import send_signal

            self.signalled = True
            send_signal(self.handle.job_id, "USR2")
            fsio.write_json(newest_start(self.folder) / "signalled.json", {"at": time.time()})


def _answer(folder: Path) -> None:
    """Answer each file that a node has written, with the time here."""
    for hello in folder.glob("r*/hello-*.json"):
        answer = hello.with_name(hello.name.replace("hello", "answer"))
        if not answer.exists():
            fsio.write_json(answer, {"at": time.time()})


def newest_start(folder: Path) -> Path:
    """The folder of the newest start of the job: one that is preempted starts again."""
    return max(folder.glob("r[0-9]*"), default=folder / "r000")


def read_ranks(folder: Path) -> tuple[Rank, ...]:
    """The reports of the newest start of the job, by rank."""
    found = [fsio.read_json(path) for path in newest_start(folder).glob("rank-*.json")]
    return tuple(sorted(found, key=lambda rank: int(rank["rank"])))


def _read(visit: _Visit, resources: Resources) -> Seen:
    """What the job left, as soon as all of it is seen here."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        ranks = read_ranks(visit.folder)
        batch = fsio.read_json_or_none(newest_start(visit.folder) / "batch.json")
        whole = len(ranks) == visit.world_size and all(rank.get("done") for rank in ranks)
        if (whole and batch) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return Seen(
        executor=visit.executor.name,
        cluster=visit.handle.cluster,
        job_id=visit.handle.job_id,
        resources=resources,
        waited_seconds=visit.first_sign,
        ranks=ranks,
        batch=batch,
        versions=dict(_versions()),
        logs=str(visit.folder / "logs"),
    )


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield package, importlib.metadata.version(package)
