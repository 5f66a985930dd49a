"""Verification of a stage's inputs at its start: a SLURM dependency is a hint, never a proof."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import fsio
from orchestrator.store import StageDir
from recipes.contract import Artifact, InputError


def verify_inputs(
    stage: StageDir, spec: Mapping[str, Any], *, digests: bool
) -> dict[str, tuple[Artifact, ...]]:
    """Find every input of a stage and check that it is what was promised at submission.

    `digests` says whether file contents are read and compared, which one rank does for all.

    Raises:
        InputError: an input is missing, failed, has another key or another digest; names which.
    """
    return {
        slot: tuple(_verify(stage, slot, entry, digests) for entry in entries)
        for slot, entries in spec["inputs"].items()
    }


def _verify(stage: StageDir, slot: str, entry: Mapping[str, Any], digests: bool) -> Artifact:
    where = f"input {slot!r} ({entry['ref']})"
    if "file" in entry:
        return _verify_file(where, entry, digests)
    upstream = StageDir(stage.path.parent / entry["stage"])
    result = _await_result(where, upstream)
    if result["key"] != entry["key"]:
        raise InputError(
            f"{where}: {upstream.path} holds a result with key {result['key'][:12]}, "
            f"expected {entry['key'][:12]}: submit the recipe again"
        )
    if entry["artifact"] == "result":
        return _result_artifact(upstream, result, str(entry["ref"]))
    record = result["artifacts"].get(entry["artifact"])
    if record is None:
        raise InputError(
            f"{where}: the upstream left {', '.join(result['artifacts']) or 'no artifact'}, "
            f"not {entry['artifact']!r}"
        )
    return _check(where, upstream.path / record["path"], record, str(entry["ref"]), digests)


def _await_result(where: str, upstream: StageDir) -> dict[str, Any]:
    """The upstream's result; waits a minute for a shared file system that shows it late."""
    deadline = time.monotonic() + float(os.environ.get("ORCHESTRATE_INPUT_WAIT_SECONDS", "60"))
    while True:
        result = fsio.read_json_or_none(upstream.result_file)
        if result is not None:
            return result
        ended = _failure(upstream)
        if ended:
            raise InputError(f"{where}: the upstream stage {upstream.path.name} {ended}")
        if time.monotonic() > deadline:
            raise InputError(
                f"{where}: {upstream.result_file} is missing: the upstream has not finished. "
                "Run `orchestrate status` to see why, then `orchestrate resume`"
            )
        time.sleep(0.5)


def _failure(upstream: StageDir) -> str | None:
    if not upstream.path.is_dir():
        return f"was never submitted: {upstream.path} does not exist"
    if upstream.cancelled():
        return "was cancelled"
    records = upstream.attempt_records()
    end = records[-1]["end"] if records else None
    if end and end["outcome"] == "failed":
        return f"failed: {end['message']}"
    return None


def _result_artifact(upstream: StageDir, result: dict[str, Any], ref: str) -> Artifact:
    path = upstream.result_file
    return Artifact(
        name="result",
        kind="result",
        path=path,
        sha256=fsio.sha256_file(path),
        bytes=path.stat().st_size,
        meta=result,
        ref=ref,
    )


def _verify_file(where: str, entry: Mapping[str, Any], digests: bool) -> Artifact:
    path = Path(entry["file"])
    if not path.is_file():
        raise InputError(f"{where}: {path} is not a file")
    record = {
        "kind": entry["kind"],
        "sha256": entry["sha256"],
        "bytes": path.stat().st_size,
        "meta": {},
    }
    return _check(where, path, record, str(entry["ref"]), digests)


def _check(where: str, path: Path, record: Mapping[str, Any], ref: str, digests: bool) -> Artifact:
    if not path.is_file():
        raise InputError(f"{where}: {path} is missing although its stage succeeded")
    size = path.stat().st_size
    if size != record["bytes"]:
        raise InputError(f"{where}: {path} has {size} bytes, recorded were {record['bytes']}")
    if digests and fsio.sha256_file(path) != record["sha256"]:
        raise InputError(f"{where}: the content of {path} changed since its stage finished")
    return Artifact(
        name=path.stem,
        kind=record["kind"],
        path=path,
        sha256=record["sha256"],
        bytes=size,
        meta=record["meta"],
        ref=ref,
    )
