"""What MLflow has of a stage: the content of its tracking.json."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from cluster import fsio
from tracking.points import Shipped


@dataclass(kw_only=True)
class Delivery:
    """Content of tracking.json: what MLflow has of a stage, and where.

    `offset` is the byte in metrics.jsonl before which everything is settled, `system_offset` that
    in system.jsonl; `files` maps uploaded files to digests; `closed` is a digest of what the run
    was closed with; `params` are those that were logged, which MLflow never changes. When a
    database is gone and the run is made anew, `earlier` is what it had been sent, so that the same
    points are chosen again.
    """

    uri: str
    experiment_id: str = ""
    parent_run_id: str = ""
    mlflow_run_id: str = ""
    offset: int = 0
    system_offset: int = 0
    shipped_step: int = -1
    shipped: Shipped = field(default_factory=dict)
    earlier: Shipped = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    status: str = ""
    closed: str = ""

    @staticmethod
    def load(path: Path, uri: str) -> Delivery:
        """What was delivered to that server before; nothing where it was another one."""
        record = fsio.read_json_or_none(path) or {}
        if record.pop("schema_version", None) != 1 or record.get("uri") != uri:
            return Delivery(uri=uri)
        names = {one.name for one in fields(Delivery)}  # a job may run older or newer code
        return Delivery(**{name: value for name, value in record.items() if name in names})

    def anew(self) -> Delivery:
        """The same stage before anything was delivered, for a run that is made once more."""
        earlier = {attempt: dict(marks) for attempt, marks in self.earlier.items()}
        for attempt, marks in self.shipped.items():
            known = earlier.setdefault(attempt, {})
            known.update({name: max(step, known.get(name, -1)) for name, step in marks.items()})
        return Delivery(uri=self.uri, earlier=earlier, params=self.params)
