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
    wait = float(os.environ.get("ORCHESTRATE_INPUT_WAIT_SECONDS", "60"))
    deadline = time.monotonic() + wait
    return {
        slot: tuple(_verify(stage, slot, entry, digests, deadline) for entry in entries)
        for slot, entries in spec["inputs"].items()
    }


def _verify(
    stage: StageDir, slot: str, entry: Mapping[str, Any], digests: bool, deadline: float
) -> Artifact:
    where = f"input {slot!r} ({entry['ref']})"
    if "file" in entry:
        return _verify_file(where, entry, digests, deadline)
    upstream = StageDir(stage.path.parent / entry["stage"])
    result = _await_result(where, upstream, deadline)
    if result["key"] != entry["key"]:
        raise InputError(
            f"{where}: {upstream.result_file} is of another upstream: its key is"
            f" {str(result['key'])[:12]}, expected {entry['key'][:12]}: submit the recipe again"
        )
    if entry["artifact"] == "result":
        return _result_artifact(upstream, result, str(entry["ref"]))
    record = result["artifacts"].get(entry["artifact"])
    if record is None:
        raise InputError(
            f"{where}: the upstream left {', '.join(result['artifacts']) or 'no artifact'}, "
            f"not {entry['artifact']!r}"
        )
    remedy = f"restore it, or make it anew: {_command('retry', upstream.latest_intent())}"
    path = upstream.path / record["path"]
    _check(f"{where}: {path}", path, record, remedy, digests, deadline)
    return _artifact(path, record, str(entry["ref"]))


def _await_result(where: str, upstream: StageDir, deadline: float) -> dict[str, Any]:
    """The upstream's result.

    What is not there yet may only not be seen yet: a client of a shared file system remembers for
    up to a minute that a file did not exist. What says that none will come is believed at once.
    """
    while True:
        result = fsio.read_json_or_none(upstream.result_file)
        if result is not None:
            return result
        over = time.monotonic() > deadline
        refusal = _no_result(upstream, over=over)
        if refusal:
            raise InputError(f"{where}: {refusal}")
        time.sleep(0.5)


def _no_result(upstream: StageDir, *, over: bool) -> str | None:
    """Why there is no result, in a line with evidence and the next command.

    Until the wait is over only what is final is told, else None.
    """
    name = upstream.path.name
    intent = upstream.latest_intent()
    again = _command("resume", intent)
    if upstream.cancelled():
        who = upstream.cancelled() or {}
        by = f"by {who.get('user', '?')} on {who.get('host', '?')}"
        return f"the upstream {name} was cancelled {by} ({upstream.cancel_file}): {again}"
    if intent is None:
        missing = upstream.path if not upstream.path.is_dir() else upstream.stage_file
        found = f"the upstream {name} was never submitted ({missing} is not there)"
        return f"{found}: submit the recipe again" if over else None
    records = upstream.attempt_records()
    newest = [one for one in records if str(one["id"]).startswith(f"s{int(intent['n']):03d}r")]
    if not newest:
        job = _job(upstream, int(intent["n"]))
        found = f"the upstream {name} has not begun{job}: it waits, or its job is gone"
        return f"{found}; {_command('why', intent)}" if over else None
    return _ended(upstream, newest[-1], intent, over=over)


def _ended(
    upstream: StageDir, attempt: Mapping[str, Any], intent: Mapping[str, Any], *, over: bool
) -> str | None:
    """What the newest attempt of an upstream without a result says of itself."""
    end, ended = attempt["end"] or {}, attempt["exit"] or {}
    folder = upstream.attempts / str(attempt["id"])
    name = upstream.path.name
    # An attempt that is followed by another one is no end, wherever its records are seen first.
    final = ended.get("decision") == "stop"
    if end.get("outcome") == "failed" and (final or over):
        why = str(end["message"]).partition("\n")[0]
        return f"the upstream {name} failed: {why} ({folder}/end.json); {_command('why', intent)}"
    if final:
        why = ended.get("reason", "it gave up")
        return f"the upstream {name} was stopped: {why} ({folder}/exit.json); " + _command(
            "why", intent
        )
    if not over:
        return None
    job = _job(upstream, int(intent["n"]))
    if end.get("outcome") == "preempted" or ended.get("decision") == "requeue":
        step = end.get("step", "?")
        found = f"the upstream {name} was interrupted at step {step} and has not gone on{job}"
        return f"{found} ({folder}); {_command('resume', intent)}"
    return (
        f"the upstream {name} has no result: its newest attempt runs or left no record of its"
        f" end{job} ({folder}); {_command('why', intent)}"
    )


def _job(upstream: StageDir, n: int) -> str:
    submission = upstream.submission(n)
    handle = submission.handle if submission else None
    return f" (job {handle.job_id})" if handle else ""


def _command(verb: str, intent: Mapping[str, Any] | None) -> str:
    """What a person runs next; the run and the stage are those of the upstream's newest claim."""
    if intent is None or "run_id" not in intent:
        return "submit the recipe again"
    stage = f":{intent['stage']}" if verb != "resume" and "stage" in intent else ""
    clear = " --clear" if verb == "retry" else ""
    return f"`orchestrate {verb} {intent['run_id']}{stage}{clear}`"


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


def _verify_file(where: str, entry: Mapping[str, Any], digests: bool, deadline: float) -> Artifact:
    path = Path(entry["file"])
    record = {"kind": entry["kind"], "sha256": entry["sha256"], "meta": {}}
    remedy = "restore it, or submit the recipe again to take it as it is"
    size = _check(f"{where}: {path}", path, record, remedy, digests, deadline)
    return _artifact(path, {**record, "bytes": size}, str(entry["ref"]))


def _check(
    what: str,
    path: Path,
    record: Mapping[str, Any],
    remedy: str,
    digests: bool,
    deadline: float,
) -> int:
    """Compare a file with its record; its size in bytes. Raises InputError."""
    expected = record.get("bytes")
    size = _await_size(path, expected or 0, deadline)
    if size is None:
        raise InputError(f"{what} is missing: {remedy}")
    if expected is not None and size != expected:
        raise InputError(f"{what} has {size} bytes, recorded were {expected}: {remedy}")
    if digests and (found := fsio.sha256_file(path)) != record["sha256"]:
        recorded = str(record["sha256"])[:12]
        raise InputError(
            f"{what} has another content than its stage left: SHA-256 {found[:12]}, recorded was"
            f" {recorded}: {remedy}"
        )
    return size


def _await_size(path: Path, expected: int, deadline: float) -> int | None:
    """Bytes of a file; one that is missing or too short may be seen late, as its result may be."""
    while True:
        size = path.stat().st_size if path.is_file() else None
        late = size is None or size < expected
        if not late or time.monotonic() > deadline:
            return size
        time.sleep(0.5)


def _artifact(path: Path, record: Mapping[str, Any], ref: str) -> Artifact:
    return Artifact(
        name=path.stem,
        kind=record["kind"],
        path=path,
        sha256=record["sha256"],
        bytes=record["bytes"],
        meta=record["meta"],
        ref=ref,
    )
