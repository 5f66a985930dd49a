"""Writes stores as the orchestrator and the jobs leave them, without running anything."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import fsio

T0 = 1_750_000_000.0


@dataclass(frozen=True)
class Stage:
    """A stage's folder and what writes into it."""

    path: Path
    name: str
    kind: str
    key: str

    def submission(self, number: int, tracking: Mapping[str, Any] | None) -> None:
        handle = {
            "executor": "local",
            "cluster": "here",
            "job_id": f"4{number}",
            "submitted_at": T0,
        }
        fsio.write_json(
            self.path / f"submission-{number}.json",
            {
                "schema_version": 1,
                "n": number,
                "run_id": (tracking or {}).get("run_id", ""),
                "stage": self.name,
                "job_name": f"{self.name}-{number}",
                "handle": handle,
                "dependencies": [],
                "resources": {"nodes": 2, "tasks_per_node": 8, "partition": None},
                "tracking": tracking,
                "code": None,
            },
        )

    def start(self, attempt: str, at: float = T0) -> None:
        fsio.make_dir(self.path / "attempts" / attempt)
        fsio.write_json(
            self.path / "attempts" / attempt / "start.json",
            {"job_id": "41", "hosts": "n[1-2]", "restart": 0, "pid": 1, "started_at": at},
        )

    def end(self, attempt: str, outcome: str, step: int, code: int = 0, **more: Any) -> None:
        fsio.write_json(
            self.path / "attempts" / attempt / "end.json",
            {
                "outcome": outcome,
                "exit_code": code,
                "cause": more.get("cause", ""),
                "message": more.get("message", ""),
                "step": step,
                "finished_at": T0 + 500,
            },
        )

    def exit(self, attempt: str, decision: str, code: int) -> None:
        fsio.make_dir(self.path / "attempts" / attempt)
        fsio.write_json(
            self.path / "attempts" / attempt / "exit.json",
            {"exit_code": code, "decision": decision, "reason": f"exit code {code}"},
        )

    def failure(self, attempt: str, message: str, traceback: str) -> None:
        fsio.write_json(
            self.path / "attempts" / attempt / "failure-rank0.json",
            {
                "rank": 0,
                "host": "n1",
                "exit_code": 72,
                "cause": "diverged",
                "message": message,
                "traceback": traceback,
                "at": T0,
            },
        )

    def metrics(self, attempt: str, steps: Sequence[int], late: float = 0.0, **names: Any) -> None:
        """Append a line a step; a value in `names` is a number or a function of the step."""
        for step in steps:
            values = {
                name.replace("__", "/"): value(step) if callable(value) else value
                for name, value in (names or {"train__loss": lambda s: 10.0 / (s + 1)}).items()
            }
            line = {"step": step, "time": T0 + late + step, "attempt": attempt, "metrics": values}
            fsio.append_json_line(self.path / "metrics.jsonl", line)

    def checkpoint(self, step: int) -> None:
        folder = fsio.make_dir(self.path / "checkpoints" / f"step_{step:09d}")
        fsio.write_json(folder / "manifest.json", {"schema_version": 1, "step": step, "files": {}})

    def result(
        self,
        attempt: str,
        metrics: Mapping[str, float],
        artifacts: Mapping[str, Mapping[str, Any]],
        steps: int,
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        records = {}
        for name, artifact in artifacts.items():
            path = self.path / "outputs" / artifact["file"]
            fsio.make_dir(path.parent)
            path.write_bytes(artifact["content"])
            records[name] = {
                "kind": artifact["kind"],
                "path": str(path.relative_to(self.path)),
                "sha256": fsio.sha256_file(path),
                "bytes": path.stat().st_size,
                "meta": artifact.get("meta", {}),
            }
        fsio.write_json(
            self.path / "result.json",
            {
                "schema_version": 1,
                "key": self.key,
                "kind": self.kind,
                "artifacts": records,
                "metrics": dict(metrics),
                "summary": dict(summary or {}),
                "steps": steps,
                "attempt": attempt,
                "finished_at": "2025-06-15T15:20:00+00:00",
                "inputs": {},
            },
        )

    def tracking(self) -> dict[str, Any]:
        return fsio.read_json(self.path / "tracking.json")

    def lines(self) -> list[dict[str, Any]]:
        return [line for _, line in fsio.read_json_lines(self.path / "metrics.jsonl")]


@dataclass(frozen=True)
class Pipeline:
    """A run in a store: index -> pretrain -> probe -> report."""

    store: Path
    run_id: str
    uri: str | None
    experiment: str
    stages: Mapping[str, Stage]
    mode: str = "online"

    @property
    def run_dir(self) -> Path:
        return self.store / "runs" / self.run_id

    def tracking(self, stage: str, uri: str | None = None) -> dict[str, Any]:
        return {
            "uri": uri or self.uri,
            "mode": self.mode,
            "experiment": self.experiment,
            "run_id": self.run_id,
            "run_name": self.run_id,
            "stage": stage,
            "store_run_dir": str(self.run_dir),
            "code_version": "0123abc",
        }


_GRAPH: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    # stage: (slot, upstream stage, artifact)
    "data-ucf101": (),
    "pretrain": (("data", "data-ucf101", "dataset"),),
    "probe": (("data", "data-ucf101", "dataset"), ("encoder", "pretrain", "encoder")),
    "report": (("results", "probe", "result"),),
}
_KINDS = {"data-ucf101": "index", "pretrain": "pretrain", "probe": "probe", "report": "report"}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "data-ucf101": {"root": "/data/ucf101", "seed": 0},
    "pretrain": {
        "seed": 0,
        "method": {"name": "dpc", "pred_steps": 3, "num_tokens": 196},
        "optimizer": {"name": "adam", "lr": 0.0028, "betas": [0.9, 0.999]},
        "checkpoint": {"minutes": 10},
        "hub": {"token": "hf_canary_token_0123", "stage_key": "kept"},
    },
    "probe": {"seed": 0, "optimizer": {"lr": 0.1}},
    "report": {"seed": 0, "title": "x" * 3000},
}


def make_pipeline(
    store: Path,
    run_id: str,
    uri: str | None,
    names: Sequence[str] = tuple(_GRAPH),
    mode: str = "online",
) -> Pipeline:
    """The folders of a run whose stages are submitted and have not started."""
    keys = {name: fsio.sha256_text(f"{run_id}/{name}") for name in names}
    stages = {
        name: Stage(
            path=store / "stages" / f"{_KINDS[name]}-{keys[name][:12]}",
            name=name,
            kind=_KINDS[name],
            key=keys[name],
        )
        for name in names
    }
    pipeline = Pipeline(store, run_id, uri, f"recipe-{run_id}", stages, mode)
    for name, stage in stages.items():
        inputs: dict[str, list[dict[str, str]]] = {}
        for slot, upstream, artifact in _GRAPH[name]:
            if upstream not in stages:
                continue
            item = {
                "ref": f"{upstream}.{artifact}",
                "stage": stages[upstream].path.name,
                "key": keys[upstream],
                "artifact": artifact,
                "kind": artifact,
            }
            inputs.setdefault(slot, []).append(item)
        fsio.make_dir(stage.path)
        record = {"key": stage.key, "kind": stage.kind, "name": name, "config": CONFIGS[name]}
        fsio.write_json(
            stage.path / "stage.json", {"schema_version": 1, **record, "inputs": inputs}
        )
        stage.submission(1, pipeline.tracking(name))
    _write_run(pipeline)
    return pipeline


def _write_run(pipeline: Pipeline) -> None:
    fsio.make_dir(pipeline.run_dir)
    entries = [
        {
            "name": name,
            "kind": stage.kind,
            "key": stage.key,
            "stage": stage.path.name,
            "inputs": {slot: [f"{up}.{artifact}"] for slot, up, artifact in _GRAPH[name]},
            "upstream": [up for _, up, _ in _GRAPH[name] if up in pipeline.stages],
            "action": "run",
        }
        for name, stage in pipeline.stages.items()
    ]
    fsio.write_json(
        pipeline.run_dir / "plan.json",
        {"schema_version": 1, "run_id": pipeline.run_id, "stages": entries},
    )
    fsio.write_json(
        pipeline.run_dir / "run.json",
        {
            "schema_version": 1,
            "run_id": pipeline.run_id,
            "created_at": T0,
            "recipe": pipeline.experiment,
            "argv": ["orchestrate", "submit"],
            "user": "ada",
            "host": "login01",
            "versions": {"torch": "2.10"},
            "executor": "local",
            "tracking": {
                "enabled": True,
                "mode": pipeline.mode,
                "uri": pipeline.uri,
                "experiment": pipeline.experiment,
            },
            "code": {"digest": "d", "version": "0123abc", "dirty": False, "path": None},
        },
    )
    fsio.write_text(
        pipeline.run_dir / "recipe.yaml", "name: demo\nhub:\n  token: hf_canary_token_0123\n"
    )


def finish_all(pipeline: Pipeline, picture: bytes = b"\x89PNG") -> None:
    """Let every stage of the pipeline have run to its end."""
    index, pretrain = pipeline.stages["data-ucf101"], pipeline.stages["pretrain"]
    probe, report = pipeline.stages["probe"], pipeline.stages["report"]
    meta = {"name": "ucf101", "root": "/data/ucf101", "classes": ["a", "b"], "videos": 13320}
    for stage in pipeline.stages.values():
        stage.start("s001r000")
    dataset = {"kind": "dataset", "file": "index.parquet", "content": b"table", "meta": meta}
    index.result("s001r000", {"videos": 13320}, {"dataset": dataset}, 0)
    pretrain.metrics("s001r000", range(0, 200, 5))
    encoder = {
        "kind": "encoder",
        "file": "encoder.safetensors",
        "content": b"weights of " + pipeline.run_id.encode(),
        "meta": {"backbone": {"name": "r2d3d18"}, "method": "dpc"},
    }
    pretrain.result("s001r000", {"train/loss": 10.0 / 196}, {"encoder": encoder}, 195)
    for name in ("encoder.py", "encoder.json", "README.md"):
        (pretrain.path / "outputs" / name).write_text(f"{name} of {pipeline.run_id}")
    probe.metrics("s001r000", range(10), accuracy=lambda step: step / 20)
    summary = {"protocol": "linear probe", "data": "ucf101", "split": 1}
    probe.result("s001r000", {"top1": 0.54, "R@10": 0.81}, {}, 10, summary)
    for stage in (pretrain, probe):
        fsio.make_dir(stage.path / "outputs" / "figures")
        (stage.path / "outputs" / "figures" / f"{stage.name}.png").write_bytes(picture)
    table = {"kind": "report", "file": "report.md", "content": b"| method | top1 |\n|---|---|\n"}
    report.result("s001r000", {}, {"report": table}, 0)
    for stage in pipeline.stages.values():
        stage.end("s001r000", "succeeded", 10)
        stage.exit("s001r000", "finished", 0)


def record_inputs(pipeline: Pipeline) -> None:
    """Note in every result what it read, and give the report its table, as the real ones do."""
    report = pipeline.stages["report"]
    table = report.path / "outputs" / "report.csv"
    table.write_text(
        "protocol,data,split,method,stage,source,metric,value\n"
        "linear,ucf101,1,dpc,probe,,top1,0.54\n"
        "linear,ucf101,1,dpc,,a paper,top1,0.7\n"
    )
    for stage in pipeline.stages.values():
        result = fsio.read_json(stage.path / "result.json")
        if stage is report:
            digest = fsio.sha256_file(table)
            made = {"kind": "report", "path": "outputs/report.csv", "sha256": digest}
            result["artifacts"]["table"] = {**made, "bytes": table.stat().st_size, "meta": {}}
        slots = fsio.read_json(stage.path / "stage.json")["inputs"]
        result["inputs"] = {
            slot: [{**_read(pipeline, item), "key": item["key"]} for item in items]
            for slot, items in slots.items()
        }
        fsio.write_json(stage.path / "result.json", result)


def _read(pipeline: Pipeline, item: Mapping[str, str]) -> dict[str, str]:
    path = pipeline.store / "stages" / item["stage"] / "result.json"
    if item["artifact"] == "result":
        return {"ref": item["ref"], "sha256": fsio.sha256_file(path)}
    record = fsio.read_json(path)["artifacts"][item["artifact"]]
    return {"ref": item["ref"], "sha256": record["sha256"]}


def wait_until(condition: Any, seconds: float = 240.0) -> None:
    """Wait for a condition that another process brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
