"""Delivers from the store what no job will deliver any more, and closes the runs of dead jobs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import fsio
from tracking import backend, recorder
from tracking.closing import close
from tracking.lease import Lease, describe_holder
from tracking.pipeline import refresh_parent
from tracking.redact import scrub
from tracking.shipping import LEASE, LeaseLostError, Shipment
from tracking.stagefiles import StageFiles, State, Target

_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class StageSync:
    """What became of one stage.

    `delivered` is whether anything was new, `state` what the stage is doing, `status` its run's
    status in MLflow, `held_by` names another process that delivers it just now, and `problem` says
    why something is missing, if it is.
    """

    stage: str
    mlflow_run_id: str = ""
    delivered: bool = False
    points: int = 0
    state: str = ""
    status: str = ""
    held_by: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class RunSync:
    """What became of a pipeline run; `url` is its page below the root of the MLflow UI.

    `tracked` is False where the recipe turned tracking off; `away` says that the server does not
    answer, so that nothing was tried.
    """

    run_id: str
    uri: str = ""
    tracked: bool = True
    away: bool = False
    stages: tuple[StageSync, ...] = ()
    status: str = ""
    url: str = ""
    problem: str = ""

    @property
    def page(self) -> str:
        """Its page on an MLflow server; of a database, which has no pages by itself, its name."""
        has_page = self.url and self.uri.startswith("http")
        return f"{self.uri.rstrip('/')}/{self.url}" if has_page else self.uri

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that is still missing, one line each."""
        found = [f"{one.stage}: {one.problem}" for one in self.stages if one.problem]
        return (*found, *([self.problem] if self.problem else []))


def sync_stage(
    stage_dir: Path,
    submission: int | None = None,
    *,
    state: State | None = None,
    uri: str | None = None,
    anew: bool = False,
    patience_seconds: float = _PATIENCE_SECONDS,
) -> StageSync:
    """Deliver one stage and set the status of its run; nothing is done twice.

    Args:
        stage_dir: `<store>/stages/<kind>-<key12>`.
        submission: the submission whose tracking settings count, the newest without one.
        state: what the stage is doing if the scheduler was asked, else the files decide.
        uri: a server for a submission that names none.
        anew: send everything, whatever was delivered before.
        patience_seconds: how long to wait for another process that delivers this stage.
    """
    files = StageFiles(stage_dir.absolute())
    target = files.target(submission, uri)
    if target is None:
        return StageSync(stage=stage_dir.name)
    state = state or files.state()
    if not files.attempts() and files.result() is None:  # it has never run: nothing to tell
        return StageSync(stage=target.stage, state=state.name)
    lease = Lease.acquire(files.path / LEASE, patience_seconds=patience_seconds)
    if lease is None:
        holder = describe_holder(files.path / LEASE)
        return StageSync(stage=target.stage, state=state.name, held_by=holder)
    with lease:
        shipment = Shipment(files, target, lease)
        if anew:
            shipment.forget()
        points: int | None = None
        problem = list[str]()
        with _problems(problem):
            points = _deliver(shipment, state)
    return StageSync(
        stage=target.stage,
        mlflow_run_id=shipment.run_id,
        delivered=points is not None,
        points=points or 0,
        state=state.name,
        status=shipment.delivery.status,
        problem="".join(problem),
    )


def _deliver(shipment: Shipment, state: State) -> int | None:
    """Deliver and close; the number of new points, or None where nothing at all is new."""
    files, run_id = shipment.files, shipment.run_id
    if shipment.delivery.closed == shipment.fingerprint(state) and recorder.is_active(
        shipment.client, run_id
    ):
        return None
    shipment.open(None)
    attempts = files.attempts()
    points = shipment.deliver(
        current=attempts[-1].id if attempts else "",
        committed=files.committed_step(),
        final=state.final,
    )
    close(shipment, state)
    return points


@contextlib.contextmanager
def _problems(found: list[str]) -> Iterator[None]:
    """Turn what a server or another process does to us into a line for the user."""
    try:
        yield
    except LeaseLostError as error:
        found.append(str(error))
    except backend.delivery_errors() as error:
        line = scrub(str(error)).partition("\n")[0][:300]
        found.append(f"not delivered: {line}; `orchestrate sync` tries again")


def sync_run(
    store_root: Path,
    run_id: str,
    *,
    states: Mapping[str, State] | None = None,
    uri: str | None = None,
    anew: bool = False,
    pages: Mapping[str, str] | None = None,
) -> RunSync:
    """Deliver every stage of a pipeline run in order, then bring its parent run up to date.

    A stage that another pipeline ran first stays a child of that one and is linked from here.

    Args:
        store_root: the store.
        run_id: the pipeline run.
        states: what the stages are doing, by name, if the scheduler was asked.
        uri: a server for submissions that name none.
        anew: send everything, whatever was delivered before.
        pages: texts to keep with the parent run, by the name of their file.

    Raises:
        FileNotFoundError: there is no such run.
    """
    run_dir = store_root.absolute() / "runs" / run_id
    run, plan = fsio.read_json(run_dir / "run.json"), fsio.read_json(run_dir / "plan.json")
    target = _target(run, run_dir, uri)
    if target is None:
        return RunSync(run_id=run_id, tracked=False)
    away = list[str]()
    with _problems(away):
        backend.knock(target.uri)
    if away:  # said once, without a wait for each stage
        return RunSync(run_id=run_id, uri=scrub(target.uri), away=True, problem=away[0])
    known = states or {}
    stages = tuple(
        sync_stage(
            store_root.absolute() / "stages" / entry["stage"],
            state=known.get(entry["name"]),
            uri=target.uri,
            anew=anew,
        )
        for entry in plan["stages"]
        if not entry.get("part_of")
    )
    status, url, problem = "", "", list[str]()
    with _problems(problem):
        client = backend.connect(target.uri)
        status = refresh_parent(client, target, states, pages)
        url = _url(run_dir)
    return RunSync(
        run_id=run_id,
        uri=scrub(target.uri),
        stages=stages,
        status=status,
        url=url,
        problem="".join(problem),
    )


def _target(run: Mapping[str, Any], run_dir: Path, uri: str | None) -> Target | None:
    tracking = run.get("tracking") or {}
    uri = tracking.get("uri") or uri
    if not uri or tracking.get("enabled") is False:
        return None
    return Target(
        uri=uri,
        experiment=tracking.get("experiment") or run["recipe"],
        run_id=run_dir.name,
        run_name=run_dir.name,
        stage="",
        run_dir=run_dir,
    )


def _url(run_dir: Path) -> str:
    from tracking.lineage import run_url

    record = fsio.read_json(run_dir / "mlflow.json")
    return run_url(record["experiment_id"], record["parent_run_id"])
