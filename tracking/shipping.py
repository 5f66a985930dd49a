"""Delivers one stage to MLflow: opens its run and sends the points that will stay.

What is delivered is noted in the stage's tracking.json, of which the holder of the stage's lease is
the only writer. Everything may be repeated after a crash: MLflow stores an equal point once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import fsio
from tracking import artifacts, backend, recorder, usage
from tracking.delivery import Delivery
from tracking.lease import Lease
from tracking.pipeline import Parent, ensure_parent
from tracking.points import Extents, Point, mark, points_of, select
from tracking.stagefiles import Attempt, StageFiles, State, Target

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEASE = ".tracking-lease"
_BATCH = 1000
_SHOWN_RESOURCES = ("nodes", "tasks_per_node", "device", "gpus_per_node", "partition")
_CONTEXTS = {"pretrain": "training", "finetune": "training", "probe": "training"}


class LeaseLostError(RuntimeError):
    """Another process delivers this stage now; this one must stop."""


class Shipment:
    """One process's turn at delivering a stage, under the stage's lease."""

    def __init__(self, files: StageFiles, target: Target, lease: Lease) -> None:
        self.files = files
        self.target = target
        self._lease = lease
        self._path = files.path / "tracking.json"
        self.delivery = Delivery.load(self._path, target.uri)
        self._client: MlflowClient | None = None
        self._extents = Extents()
        self._read_to = self.delivery.offset
        self._pending: tuple[Point, ...] = ()
        self._ready: deque[Point] = deque()

    @property
    def client(self) -> MlflowClient:
        """The client of an opened shipment."""
        if self._client is None:
            self._client = backend.connect(self.target.uri)
        return self._client

    @property
    def run_id(self) -> str:
        """The stage's MLflow run."""
        return self.delivery.mlflow_run_id

    def open(self, status: recorder.RunStatus | None) -> None:
        """Find or create the parent and the stage's run; log what is known before the stage runs.

        Args:
            status: to set at once; None leaves the run as it is.
        """
        parent = ensure_parent(self.client, self.target)
        if self.run_id and not recorder.is_active(self.client, self.run_id):
            # Deleted by somebody, or the database is new: deliver everything from the store again.
            self.forget()
        if not self.run_id:
            self._create(parent)
        tags = {**self._fixed_tags(), **self.attempt_tags()}
        recorder.set_tags(self.client, self.run_id, tags)
        self._log_params()
        artifacts.log_datasets(self.client, self.run_id, self.datasets())
        self._link_upstream()
        if status is not None:
            self.set_status(status)
            recorder.set_tags(self.client, self.run_id, {"orchestrate.state": status.lower()})
            recorder.set_status(self.client, parent.run_id, status)

    def forget(self) -> None:
        """Deliver everything from the store again; what is there already is found and left."""
        self.delivery = self.delivery.anew()
        self._read_to = 0

    def _create(self, parent: Parent) -> None:
        stage = self.files.stage()
        starts = [one.start.get("started_at") for one in self.files.attempts()]
        self.delivery.mlflow_run_id = recorder.ensure_run(
            self.client,
            parent.experiment_id,
            name=self.target.stage,
            identity={
                recorder.TAG_KEY: stage["key"],
                recorder.TAG_ROLE: "stage",
                recorder.TAG_ORIGIN: recorder.origin(self.files.path),
            },
            tags={**self._fixed_tags(), "mlflow.parentRunId": parent.run_id},
            started_at=recorder.seconds(next((at for at in starts if at), None)),
        )
        self.delivery.experiment_id = parent.experiment_id
        self.delivery.parent_run_id = parent.run_id
        self.save()

    def _log_params(self) -> None:
        """Log the configuration; what is not in the key may have changed since it was first."""
        now = recorder.flat_params(self.files.stage().get("config", {}))
        recorder.log_params(self.client, self.run_id, {**now, **self.delivery.params})
        if not now.keys() <= self.delivery.params.keys():
            self.delivery.params = {**now, **self.delivery.params}
            self.save()

    def _fixed_tags(self) -> dict[str, str]:
        stage = self.files.stage()
        run = fsio.read_json_or_none(self.target.run_dir / "run.json") or {}
        return {
            "mlflow.user": run.get("user", ""),
            "mlflow.source.name": "orchestrate",
            "mlflow.source.type": "JOB",
            recorder.TAG_RUN: self.target.run_id,
            "orchestrate.stage": self.target.stage,
            "orchestrate.kind": stage["kind"],
            "orchestrate.stage_dir": str(self.files.path),
        }

    def attempt_tags(self) -> dict[str, str]:
        """What changes from attempt to attempt."""
        submission = self.files.submission()
        handle = submission.get("handle") or {}
        attempts = self.files.attempts()
        last = attempts[-1] if attempts else Attempt(id="")
        return {
            "orchestrate.job_id": str(last.start.get("job_id") or handle.get("job_id") or ""),
            "orchestrate.executor": str(handle.get("executor", "")),
            "orchestrate.hosts": str(last.start.get("hosts", "")),
            "orchestrate.attempt": last.id,
            "orchestrate.attempts": str(len(attempts)),
            "orchestrate.code_version": self.target.code_version,
            **{
                f"resources.{name}": str(submission.get("resources", {}).get(name) or "")
                for name in _SHOWN_RESOURCES
            },
        }

    def datasets(self) -> list[artifacts.DatasetRef]:
        """Datasets among the inputs; for an index stage, the one it made."""
        kind = self.files.stage().get("kind", "")
        context = _CONTEXTS.get(kind, "evaluation")
        found = [
            _dataset(one.record, one.folder, context)
            for one in self.files.upstream()
            if one.kind == "dataset" and one.record
        ]
        own = (self.files.result() or {}).get("artifacts", {})
        for record in own.values():
            if record["kind"] == "dataset":
                found.append(_dataset(record, self.files.path, "index"))
        return found

    def _link_upstream(self) -> None:
        """Tag the runs of upstream stages; mark their encoders as inputs, as far as delivered."""
        runs: dict[str, list[str]] = {}
        for one in self.files.upstream():
            run_id = one.mlflow_run_id(self.target.uri)
            if run_id is not None:
                runs.setdefault(one.slot, []).append(run_id)
        tags = {f"orchestrate.upstream.{slot}": ",".join(ids) for slot, ids in runs.items()}
        recorder.set_tags(self.client, self.run_id, tags)
        artifacts.link_models(self.client, self.run_id, self.known_models())

    def known_models(self) -> list[str]:
        """Those of `upstream_models` that the server has; after a loss, some may come later."""
        found = self.upstream_models()
        return [model_id for model_id in found if artifacts.model_exists(self.client, model_id)]

    def upstream_models(self) -> list[str]:
        """Logged models of the encoders this stage takes in, as their stages have noted them."""
        found = (one.model_id(self.target.uri) for one in self.files.upstream())
        made = [model_id for model_id in found if model_id is not None]
        return [*made, *self.files.fetched_models()]

    def deliver(
        self,
        *,
        current: str,
        committed: float = math.inf,
        resumed_at: float = math.inf,
        final: bool = False,
    ) -> int:
        """Send the points of metrics.jsonl that will stay (`points.select`); returns how many."""
        self._read_lines()
        selection = select(
            self._pending,
            self._extents,
            self.delivery.shipped,
            current=current,
            committed=committed,
            resumed_at=resumed_at,
            final=final,
            earlier=self.delivery.earlier,
        )
        self._pending = selection.keep
        self._ready.extend(selection.ship)
        count = len(self._ready)
        while self._ready:
            batch = [self._ready[n] for n in range(min(_BATCH, len(self._ready)))]
            recorder.log_points(self.client, self.run_id, batch)
            for point in batch:
                self._ready.popleft()
                self.delivery.shipped_step = max(self.delivery.shipped_step, point.step)
            mark(self.delivery.shipped, batch)
            self.save()
        self._deliver_usage()
        return count

    def _deliver_usage(self) -> None:
        """Send what system.jsonl has more; none of it is ever repeated or superseded."""
        batch: list[Point] = []
        end = self.delivery.system_offset
        for after, line in fsio.read_json_lines(self.files.path / usage.FILE, end):
            batch.extend(points_of(end, line))
            end = after
        if batch:
            recorder.log_points(self.client, self.run_id, batch)
            self.delivery.system_offset = end
            self.save()

    def _read_lines(self) -> None:
        start = self._read_to
        found: list[Point] = []
        for end, line in fsio.read_json_lines(self.files.path / "metrics.jsonl", start):
            found.extend(points_of(start, line))
            start = end
        for point in found:
            self._extents.add(point)
        self._pending = (*self._pending, *found)
        self._read_to = start

    def tag_progress(self) -> None:
        """Show how far a running stage is, also where its curve waits for the next checkpoint."""
        progress = fsio.read_json_or_none(self.files.path / "progress.json") or {}
        if progress.get("steps"):
            text = f"{progress.get('phase', '')} step {progress['step']} of {progress['steps']}"
            recorder.set_tags(self.client, self.run_id, {"orchestrate.progress": text.strip()})

    def fingerprint(self, state: State) -> str:
        """Changes when there is something new to close the run with."""
        parts: dict[str, Any] = {
            "state": asdict(state),
            "attempts": [(one.id, dict(one.end), dict(one.exit)) for one in self.files.attempts()],
            "result": self.files.result(),
            "models": self.upstream_models(),
            "upstream": [one.mlflow_run_id(self.target.uri) for one in self.files.upstream()],
            "metrics": [_size(self.files.path / one) for one in ("metrics.jsonl", usage.FILE)],
        }
        return fsio.sha256_text(fsio.to_json(parts))

    def set_status(self, status: recorder.RunStatus, ended_at: float | None = None) -> None:
        """Set the run's status where it is another one or has got its end."""
        if status != self.delivery.status or ended_at is not None:
            recorder.set_status(self.client, self.run_id, status, ended_at)
            self.delivery.status = status
            self.save()

    def save(self) -> None:
        """Write tracking.json. Raises LeaseLostError where it is not ours any more."""
        settled = min((one.start for one in (*self._pending, *self._ready)), default=self._read_to)
        self.delivery.offset = settled
        if not self._lease.held():
            raise LeaseLostError(f"{self.files.path}: another process delivers this stage now")
        fsio.write_json(self._path, {"schema_version": 1, **asdict(self.delivery)})


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _dataset(record: Mapping[str, Any], folder: Path, context: str) -> artifacts.DatasetRef:
    meta = record.get("meta", {})
    profile = {key: meta[key] for key in ("videos", "counts", "version", "root") if key in meta}
    profile["classes"] = len(meta.get("classes", ()))
    return artifacts.DatasetRef(
        name=str(meta.get("name") or folder.name),
        sha256=str(record["sha256"]),
        path=str(folder / str(record["path"])),
        context=context,
        profile=profile,
    )
