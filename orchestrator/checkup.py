"""What `doctor` looks at on this machine: packages, decoders, store, scheduler."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.store import Store

State = Literal["ok", "warning", "failed"]

_PACKAGES = ("torch", "deepspeed", "mlflow", "hydra-core", "submitit", "decord", "av")
_MODULES = {"hydra-core": "hydra"}
_FULL_GB = 20.0  # less than a few checkpoints and a small prepared data set take
_SHORT_KILL_WAIT = 30  # SLURM's default; a stop must fit a checkpoint into it


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at; `advice` says what to do unless it is fine."""

    name: str
    state: State
    found: str
    advice: str = ""


def check_up(store: Store) -> list[Check]:
    """Look at everything, in the order in which it is told; nothing is changed or submitted."""
    return [*_python(), *_decoders(), *_store(store.root), *_scheduler()]


def _python() -> Iterator[Check]:
    yield Check(name="python", state="ok", found=f"{platform.python_version()} ({sys.executable})")
    for package in _PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        there = importlib.util.find_spec(_MODULES.get(package, package)) is not None
        if version and there:
            yield Check(name=package, state="ok", found=version)
        else:
            advice = "install the project again into an environment of its own (make install)"
            yield Check(name=package, state="failed", found="not installed", advice=advice)


def _decoders() -> Iterator[Check]:
    from recipes.data.decoder_versions import ADVICE, decoder_versions

    for name, of in decoder_versions().items():
        found = f"{of.version}, FFmpeg {of.ffmpeg}"
        if not of.known_old:
            yield Check(name=f"decoder {name}", state="ok", found=found)
            continue
        yield Check(name=f"decoder {name}", state="warning", found=found, advice=ADVICE)


def _store(path: Path) -> Iterator[Check]:
    from tracking.filesystem import network_file_system

    there = path
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        advice = "choose another with --store or ORCHESTRATE_STORE"
        yield Check(
            name="store", state="failed", found=f"{path}: cannot write to {there}", advice=advice
        )
        return
    network = network_file_system(path)
    free = shutil.disk_usage(there).free / 1e9
    found = f"{path}, {network or 'local'} file system, {free:.0f} GB free"
    advice = "" if free > _FULL_GB else "free some space: checkpoints and prepared videos need it"
    yield Check(name="store", state="warning" if advice else "ok", found=found, advice=advice)
    yield _tracking(network)


def _tracking(network: str | None) -> Check:
    found = "without tracking.uri an SQLite file in the store"
    if network is None:
        return Check(name="tracking", state="ok", found=found)
    advice = f"SQLite must not lie on {network}: run an MLflow server and set tracking.uri"
    return Check(name="tracking", state="warning", found=found, advice=advice)


def _scheduler() -> Iterator[Check]:
    from cluster.contract import SchedulerError
    from cluster.doctor import has_gpus, slurm_facts

    if shutil.which("sbatch") is None:
        yield Check(name="slurm", state="ok", found="none here: recipes run with cluster=local")
        gpus = "visible" if has_gpus("local") else "none: recipes run with device cpu"
        yield Check(name="gpus", state="ok", found=gpus)
        return
    try:
        facts, gpus = slurm_facts(), "offered" if has_gpus("slurm") else "none offered"
    except SchedulerError as error:
        advice = "recipes run with cluster=local until it answers"
        yield Check(name="slurm", state="warning", found=str(error).splitlines()[0], advice=advice)
        return
    requeue = {True: "on", False: "off by default, ours ask for it", None: "unknown"}
    found = (
        f"{facts.version} ({facts.cluster}), PreemptMode {facts.preempt_mode}, JobRequeue "
        f"{requeue[facts.job_requeue]}, KillWait {facts.kill_wait_seconds} s"
    )
    short = facts.kill_wait_seconds is not None and facts.kill_wait_seconds < _SHORT_KILL_WAIT
    advice = (
        f"a preempted job has {facts.kill_wait_seconds} s to save: keep checkpoint.minutes small"
        if short
        else ""
    )
    yield Check(name="slurm", state="warning" if short else "ok", found=found, advice=advice)
    yield Check(name="gpus", state="ok", found=gpus)
