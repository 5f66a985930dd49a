"""What `doctor` looks at on this machine: packages, decoders, store, scheduler."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cluster import fsio
from orchestrator.store import Store

if TYPE_CHECKING:
    from cluster.doctor import SlurmFacts
    from cluster.site import SiteProfile

State = Literal["ok", "warning", "failed"]

PACKAGES = ("torch", "deepspeed", "mlflow", "hydra-core", "submitit", "decord", "av")
MODULES = {"hydra-core": "hydra"}
_FULL_GB = 20.0  # less than a few checkpoints and a small prepared data set take
_SHORT_KILL_WAIT = 30  # SLURM's default; a stop must fit a checkpoint into it
_LONG_SLURMD_TIMEOUT = 600  # twice SLURM's default
_CLOCKS_APART = 5.0  # seconds
_LOCK_ADVICE = (
    "libraries that cache compiled code need locks: keep those caches on a local disk"
    " (TRITON_CACHE_DIR, TORCH_EXTENSIONS_DIR)"
)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at; `advice` says what to do unless it is fine."""

    name: str
    state: State
    found: str
    advice: str = ""


def check_up(store: Store, partition: str | None = None) -> list[Check]:
    """Look at everything, in the order in which it is told; nothing is changed or submitted.

    `partition` is where jobs shall go, as sbatch takes it; without, where they go by themselves.
    """
    here = [*_python(), *_decoders(), *_store(store.root)]
    return [*here, *_scheduler(store.root, partition)]


def _python() -> Iterator[Check]:
    yield Check(name="python", state="ok", found=f"{platform.python_version()} ({sys.executable})")
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        there = importlib.util.find_spec(MODULES.get(package, package)) is not None
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
    yield from _use_of_store(there)
    yield _tracking(network)


def _tracking(network: str | None) -> Check:
    found = "without tracking.uri an SQLite file in the store"
    if network is None:
        return Check(name="tracking", state="ok", found=found)
    advice = f"SQLite must not lie on {network}: run an MLflow server and set tracking.uri"
    return Check(name="tracking", state="warning", found=found, advice=advice)


def _use_of_store(folder: Path) -> Iterator[Check]:
    """Whether files lock there, and whether its server's clock is ours."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as place:
        path = Path(place) / "file"
        try:
            with path.open("w") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            won = [fsio.create_json(path.with_name("claim"), {}) for _ in range(2)]
        except OSError as error:
            yield Check(name="locks", state="warning", found=str(error), advice=_LOCK_ADVICE)
            return
        os.utime(path)
        ahead = path.stat().st_mtime - time.time()
    once = won == [True, False]
    found = "files lock, one of two claims won" if once else "a claim was won twice"
    advice = "" if once else "two submitters could start one stage: choose another place"
    yield Check(name="locks", state="ok" if once else "failed", found=found, advice=advice)
    apart = abs(ahead) > _CLOCKS_APART
    found = f"{abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}" if apart else "as here"
    advice = "ages of files will look wrong: tell the site that NTP is off" if apart else ""
    yield Check(name="store clock", state="warning" if apart else "ok", found=found, advice=advice)


def _scheduler(store: Path, partition: str | None) -> Iterator[Check]:
    from cluster.contract import SchedulerError
    from cluster.doctor import has_gpus, slurm_facts
    from cluster.site import read_profile
    from cluster.transport import choose_transport

    if shutil.which("sbatch") is None:
        yield Check(name="slurm", state="ok", found="none here: recipes run with cluster=local")
        gpus = "visible" if has_gpus("local") else "none: recipes run with device cpu"
        yield Check(name="gpus", state="ok", found=gpus)
        return
    try:
        facts = slurm_facts(partition)
        gpus = "offered" if has_gpus("slurm") else "none offered"
    except SchedulerError as error:
        advice = "recipes run with cluster=local until it answers"
        yield Check(name="slurm", state="warning", found=str(error).splitlines()[0], advice=advice)
        return
    yield Check(name="slurm", state="ok", found=f"{facts.version} ({facts.cluster})")
    yield from scheduler_checks(facts, partition)
    yield Check(name="gpus", state="ok", found=gpus)
    profile = read_profile(store, facts.cluster)
    found = str(choose_transport(facts, profile))
    yield Check(name="next attempt", state="ok", found=found)
    yield _profile(profile)


def scheduler_checks(facts: SlurmFacts, partition: str | None = None) -> Iterator[Check]:
    """The settings that decide whether a stopped stage goes on, and what they mean; pure."""
    yield from _partitions(facts, partition)
    yield _preemption(facts)
    yield _time_to_save(facts)
    wait = facts.requeue_wait_seconds
    requeue = {True: "on", False: "off by default, ours ask for it", None: "unknown"}
    found = f"JobRequeue {requeue[facts.job_requeue]}; a requeued job waits {wait} s at least"
    yield Check(name="requeue", state="ok", found=found)
    lost = facts.slurmd_timeout_seconds
    if lost is not None:
        slow = lost > _LONG_SLURMD_TIMEOUT
        advice = "a dead node keeps the others of its job that long; ask for less" if slow else ""
        state: State = "warning" if slow else "ok"
        found = f"noticed after {lost} s (SlurmdTimeout)"
        yield Check(name="dead nodes", state=state, found=found, advice=advice)
    removed = "by the site" if facts.kill_invalid_depend else "because ours ask for it"
    age = facts.min_job_age_seconds
    found = f"dead branches are removed {removed}; ended jobs are forgotten after {age} s"
    yield Check(name="dependencies", state="ok", found=found)
    size = facts.max_array_size
    arrays = f"up to {size} tasks" if size is None or size > 1 else "none: parts are single jobs"
    yield Check(name="job arrays", state="ok", found=arrays)
    accounting = "there is" if facts.accounting else "none, and none is needed"
    yield Check(name="accounting", state="ok", found=accounting)


def _partitions(facts: SlurmFacts, named: str | None) -> Iterator[Check]:
    known = {one.name for one in facts.partitions}
    missing = [name for name in (named or "").split(",") if name and name not in known]
    if missing:
        advice = "see `sinfo --summarize` for what there is"
        found = f"there is no {', '.join(missing)}"
        yield Check(name="partition", state="failed", found=found, advice=advice)
    elif not known:
        advice = "name one: cluster.resources.partition=NAME"
        found = "the cluster has no default partition"
        yield Check(name="partition", state="warning", found=found, advice=advice)
    for one in facts.partitions:
        words = [f"{one.name}: {one.num_nodes} nodes"]
        words += [f"at most {one.max_hours:g} h"] if one.max_hours is not None else []
        words += [f"at most {one.max_nodes} nodes a job"] if one.max_nodes is not None else []
        words += [] if one.up else ["its jobs do not start now"]
        advice = "" if one.up else "choose another: cluster.resources.partition=NAME"
        state: State = "ok" if one.up else "warning"
        yield Check(name="partition", state=state, found=", ".join(words), advice=advice)


def _preemption(facts: SlurmFacts) -> Check:
    modes = facts.preempt_modes
    found = (
        f"PreemptMode {', '.join(sorted(modes))} ({facts.preempt_type.removeprefix('preempt/')})"
    )
    if facts.grace_seconds:
        signal = "USR2" if facts.user_signal else "TERM"
        found += f", {facts.grace_seconds} s of grace, told by {signal}"
    cancels = any("CANCEL" in mode for mode in modes)
    advice = (
        "a preempted job is cancelled; ours have themselves requeued or leave a successor: "
        "rehearse it with `orchestrate drill RUN:STAGE --preempt`"
    )
    return Check(
        name="preemption",
        state="warning" if cancels else "ok",
        found=found,
        advice=advice if cancels else "",
    )


def _time_to_save(facts: SlurmFacts) -> Check:
    """What a preempted job has to save: its grace time, and KillWait between TERM and KILL."""
    if facts.kill_wait_seconds is None:
        return Check(name="time to save", state="ok", found="unknown (KillWait)")
    seconds = facts.grace_seconds + facts.kill_wait_seconds
    short = seconds < _SHORT_KILL_WAIT
    grace = f"GraceTime {facts.grace_seconds} s + " if facts.grace_seconds else ""
    advice = f"a preempted job has {seconds} s to save: keep checkpoint.minutes small"
    return Check(
        name="time to save",
        state="warning" if short else "ok",
        found=f"{seconds} s ({grace}KillWait {facts.kill_wait_seconds} s)",
        advice=advice if short else "",
    )


def _profile(profile: SiteProfile | None) -> Check:
    """What a job on the nodes found earlier."""
    if profile is None:
        found = "not looked at yet: `orchestrate doctor --job` does, in a minute"
        return Check(name="nodes", state="ok", found=found)
    words = {True: "works", False: "does not work", None: "not known"}
    days = (time.time() - profile.checked_at) / 86400
    found = (
        f"looked at {days:.0f} days ago on {', '.join(profile.nodes)}: scontrol"
        f" {words[profile.scontrol_on_nodes]}, sbatch {words[profile.sbatch_on_nodes]}"
    )
    return Check(name="nodes", state="ok", found=found)
