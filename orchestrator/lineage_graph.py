"""Reads what came from what out of a store's own files; needs no MLflow and no scheduler."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster import fsio
from orchestrator.store import StageDir, Store
from tracking.ancestry import Ancestry, Item, Made, Number, Taken
from tracking.points import attempt_order
from tracking.stagefiles import StageFiles

RESULT = "result"


def read_ancestry(store: Store) -> Ancestry:
    """All stages of a store and the files from outside that they took."""
    names = _names(store)
    folders = {folder.path.name: folder for folder in store.iter_stage_dirs()}
    digests = {name: _digests(folder) for name, folder in folders.items()}
    items = [_item(store, folder, names, digests) for folder in folders.values()]
    outside = {
        taken.source: _file(taken.source)
        for item in items
        for taken in item.takes
        if taken.source not in folders
    }
    return Ancestry([*outside.values(), *items])


def _names(store: Store) -> dict[str, list[str]]:
    """`RUN:STAGE` by folder, of all runs, oldest first; parts are left out, as in MLflow."""
    found: dict[str, list[str]] = {}
    for run_id in store.run_ids():
        for entry in (fsio.read_json_or_none(store.run_dir(run_id) / "plan.json") or {}).get(
            "stages", ()
        ):
            found.setdefault(entry["stage"], []).append(f"{run_id}:{entry['name']}")
    return found


def _digests(folder: StageDir) -> dict[str, str]:
    """Digest of each artifact as it is now; of the result itself, that of its file."""
    result = folder.result()
    if result is None:
        return {}
    known = {name: str(one["sha256"]) for name, one in result.get("artifacts", {}).items()}
    return {**known, RESULT: fsio.sha256_file(folder.result_file)}


def _item(
    store: Store,
    folder: StageDir,
    names: Mapping[str, list[str]],
    digests: Mapping[str, Mapping[str, str]],
) -> Item:
    spec, result = folder.stage() or {}, folder.result() or {}
    named = names.get(folder.path.name, [])
    kind = str(spec.get("kind", ""))
    return Item(
        id=folder.path.name,
        name=named[0] if named else folder.path.name,
        kind=kind,
        state=StageFiles(folder.path).state().name,
        key=str(spec.get("key", "")),
        folder=str(folder.path),
        names=tuple(named),
        code=_code(store, folder, result),
        about=_about(folder, spec, result),
        takes=tuple(_takes(spec, result, digests)),
        makes=tuple(_makes(folder, result)),
        metrics=result.get("metrics", {}),
        numbers=tuple(_numbers(folder, result)) if kind == "report" else (),
    )


def _file(source: str) -> Item:
    path = Path(source.removeprefix("file:"))
    state = "there" if path.is_file() else "missing"
    return Item(id=source, name=str(path), kind="file", state=state, folder=str(path.parent))


def _takes(
    spec: Mapping[str, Any], result: Mapping[str, Any], digests: Mapping[str, Mapping[str, str]]
) -> Iterator[Taken]:
    for slot, entries in spec.get("inputs", {}).items():
        read = result.get("inputs", {}).get(slot, [])
        for number, entry in enumerate(entries):
            source = entry.get("stage") or f"file:{entry['file']}"
            used = str(read[number]["sha256"]) if number < len(read) else ""
            known = entry.get("sha256") or digests.get(source, {}).get(entry["artifact"], "")
            yield Taken(
                slot=slot,
                source=source,
                artifact=entry["artifact"],
                sha256=used or str(known if "file" in entry else ""),
                outdated=bool(used and known and used != known),
            )


def _makes(folder: StageDir, result: Mapping[str, Any]) -> Iterator[Made]:
    for name, record in result.get("artifacts", {}).items():
        yield Made(
            name=name,
            kind=record["kind"],
            path=str(folder.path / record["path"]),
            sha256=record["sha256"],
        )


def _code(store: Store, folder: StageDir, result: Mapping[str, Any]) -> str:
    """Version of the code of the attempt that made the result, else of the newest one."""
    submission = _submission(folder, result)
    version = (submission.get("tracking") or {}).get("code_version")
    if version:
        return str(version)
    run_id = submission.get("run_id")
    run = fsio.read_json_or_none(store.run_dir(run_id) / "run.json") if run_id else None
    return str(((run or {}).get("code") or {}).get("version") or "")


def _submission(folder: StageDir, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The submission whose attempt made the result, without one the newest."""
    files = StageFiles(folder.path)
    attempt = str(result.get("attempt") or "")
    return files.submission(attempt_order(attempt)[0] if attempt else None)


def _about(folder: StageDir, spec: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, str]:
    """What a person wants to know of a stage beside its numbers."""
    found: dict[str, str] = {}
    for record in result.get("artifacts", {}).values():
        meta = record.get("meta", {})
        if record["kind"] == "dataset":
            found |= {"dataset": str(meta.get("name", "")), "root": str(meta.get("root", ""))}
            found["version"] = str(meta.get("version") or "")
    config = spec.get("config", {})
    for name in ("method", "backbone"):
        value = config.get(name)
        found[name] = str(value.get("name", "")) if isinstance(value, Mapping) else ""
    checkpoint = folder.checkpoints / f"step_{int(result.get('steps') or 0):09d}"
    found["steps"] = str(result.get("steps") or "")
    found["checkpoint"] = str(checkpoint) if (checkpoint / "manifest.json").is_file() else ""
    found["attempt"] = str(result.get("attempt") or "")
    found["snapshot"] = str(_submission(folder, result).get("code") or "")
    return {name: text for name, text in found.items() if text}


def _numbers(folder: StageDir, result: Mapping[str, Any]) -> Iterator[Number]:
    """The rows of a report's table that are ours, one a metric, under the stage they are of."""
    table = result.get("artifacts", {}).get("table")
    path = folder.path / str(table["path"]) if table else None
    if path is None or not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row.get("source") or not row.get("stage"):
                continue
            facts = (row.get(name, "") for name in ("protocol", "data", "split", "method"))
            text = " ".join([*filter(None, facts), f"{row['metric']} {row['value']}"])
            for stage in row["stage"].split(", "):
                yield Number(stage=stage, text=text)
