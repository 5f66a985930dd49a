"""What a site will not run, found before anything is submitted: partitions, nodes, accounts, QOS.

SLURM accepts most of it: with `EnforcePartLimits=NO`, the default, a job beyond a partition's limit
waits for ever, and a limit on the number of jobs shows at the k-th sbatch. `sbatch --test-only` is
as cheap as sbatch itself (5 ms) and finds neither: it accepts too long a job, an account that the
partition does not allow and any number of jobs (22.05.8, measured), so it is not used.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.contract import JobRequest, Resources, SchedulerError

UNLIMITED = ("", "UNLIMITED", "NONE", "N/A", "(null)")


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Nodes of one partition that are alike; `mem_mb` is memory a node."""

    partition: str
    count: int
    cpus: int
    mem_mb: int
    gres: str = ""


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What accounting allows one user in one place: an association or a QOS; None is no limit.

    Attributes:
        where: as a person knows it, such as `account video` or `QOS normal`.
        max_submit: jobs that may wait or run at a time.
        max_minutes: time limit of one job.
        max_tres: such as `node` and `gres/gpu`, for one job.
        flags: of a QOS; some lift limits of the partition.
    """

    where: str
    max_submit: int | None = None
    max_minutes: int | None = None
    max_tres: Mapping[str, float] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Account:
    """An association of the user: account, partition it is for (empty: all) and QOS it may use."""

    name: str
    partition: str
    qos: tuple[str, ...]
    default_qos: str
    quota: Quota


@dataclass(frozen=True, kw_only=True)
class Limits:
    """All that is known of a site; what could not be read limits nothing.

    Attributes:
        config: `scontrol show config`.
        partitions: `scontrol show partition`, by name.
        nodes: of all partitions.
        accounts: of this user, empty where accounting does not enforce them.
        qos: quotas by name of the QOS.
        in_queue: account, QOS and partition of each job of this user that waits or runs.
    """

    config: Mapping[str, str]
    partitions: Mapping[str, Mapping[str, str]]
    nodes: Sequence[Nodes] = ()
    accounts: Sequence[Account] = ()
    qos: Mapping[str, Quota] = field(default_factory=dict)
    in_queue: Sequence[tuple[str, str, str]] = ()
    default_account: str = ""


def problems(executor: str, requests: Mapping[str, JobRequest]) -> list[str]:
    """Why jobs, given by stage, can never start or not be submitted together; empty where they can.

    Each line names the stage, the key of the recipe, what is asked and what is allowed. Where SLURM
    is not installed or does not answer nothing is known, and the submission itself shows it.
    """
    if executor != "slurm" or not requests or shutil.which("scontrol") is None:
        return []
    from cluster.limits_read import read_limits

    try:
        limits = read_limits()
    except (SchedulerError, ValueError):  # nobody answered, or in words of another SLURM
        return []
    return check(requests, limits, os.environ)


# -- judging, pure ---------------------------------------------------------------------------------


def check(
    requests: Mapping[str, JobRequest], limits: Limits, shell: Mapping[str, str]
) -> list[str]:
    """All that stands against the jobs; `shell` holds the site's SBATCH_ defaults."""
    found = [_too_many(requests, limits, shell)]
    for stage, request in requests.items():
        wanted = request.resources
        named = wanted.partition or shell.get("SBATCH_PARTITION") or _default(limits.partitions)
        account = wanted.account or shell.get("SBATCH_ACCOUNT") or limits.default_account
        qos = wanted.qos or shell.get("SBATCH_QOS") or ""
        accounting = _against_accounting(wanted, account, qos, named, limits)
        found += [f"{stage}: {one}" for one in accounting]
        # Of several partitions one is enough.
        tries = [
            _against_partition(wanted, partition, account, qos, limits)
            for partition in named.split(",")
        ]
        if named and all(tries):
            found += [f"{stage}: {one}" for one in tries[0]]
    return [one for one in found if one]


def _default(partitions: Mapping[str, Mapping[str, str]]) -> str:
    return next((name for name, one in partitions.items() if one.get("Default") == "YES"), "")


def _against_partition(
    wanted: Resources, name: str, account: str, qos: str, limits: Limits
) -> list[str]:
    partition = limits.partitions.get(name)
    if partition is None:
        known = ", ".join(limits.partitions)
        return [f"resources.partition is {name!r}, which does not exist; there are: {known}"]
    found = [
        *_state(name, partition),
        *_rights(name, partition, account, qos, limits),
        *_size(wanted, name, partition, _lifted(partition, account, qos, limits)),
    ]
    return found or _nodes_that_never_come(wanted, name, limits.nodes)


def _state(name: str, partition: Mapping[str, str]) -> list[str]:
    """A partition that is down takes jobs, which wait until somebody brings it up again."""
    state = partition.get("State", "UP")
    if state == "UP":
        return []
    return [f"resources.partition: {name} is {state}; choose another, or wait until it is UP"]


def _rights(
    name: str, partition: Mapping[str, str], account: str, qos: str, limits: Limits
) -> list[str]:
    """What is sure: from 23.02 on accounts are allowed with all below them, which is not known."""
    found = []
    listed = re.match(r"2[0-2]\.", limits.config.get("SLURM_VERSION", ""))
    for key, kind, value in (("account", "Accounts", account), ("qos", "Qos", qos)):
        if not value:
            continue
        allowed = _names(partition.get(f"Allow{kind}", "ALL"))
        denied = _names(partition.get(f"Deny{kind}", "")) or set()
        sure = key == "qos" or listed
        if allowed is not None and sure and value.lower() not in allowed:
            names = ", ".join(sorted(allowed))
            found.append(f"resources.{key} is {value!r}; partition {name} allows {names}")
        elif value.lower() in denied:
            found.append(f"resources.{key} is {value!r}, which partition {name} denies")
    return found


def _lifted(partition: Mapping[str, str], account: str, qos: str, limits: Limits) -> frozenset[str]:
    """Flags of the QOS in force, of which some lift limits of the partition; all, where unknown."""
    mine = [one for one in limits.accounts if one.name == account]
    used = {qos or next((one.default_qos for one in mine), ""), partition.get("QoS", "")}
    named = used - set(UNLIMITED)
    if named - set(limits.qos):
        return frozenset({"PartitionTimeLimit", "PartitionMaxNodes", "PartitionMinNodes"})
    return frozenset().union(*(limits.qos[one].flags for one in named))


def _names(text: str) -> set[str] | None:
    """None where everything is meant."""
    if text in (*UNLIMITED, "ALL"):
        return None
    return {name.lower() for name in text.split(",")}


def _size(
    wanted: Resources, name: str, partition: Mapping[str, str], lifted: frozenset[str]
) -> list[str]:
    found = []
    minutes, asked = minutes_of(partition.get("MaxTime", "")), math.ceil(wanted.hours * 60)
    if minutes is not None and asked > minutes and "PartitionTimeLimit" not in lifted:
        found.append(
            f"resources.hours is {wanted.hours:g}; partition {name} allows"
            f" {minutes / 60:g} (MaxTime)"
        )
    for key, least in (("MaxNodes", False), ("MinNodes", True)):
        value = "" if f"Partition{key}" in lifted else partition.get(key, "")
        if value.isdigit() and (wanted.nodes < int(value) if least else wanted.nodes > int(value)):
            word = "asks for at least" if least else "allows"
            found.append(
                f"resources.nodes is {wanted.nodes}; partition {name} {word} {value} ({key})"
            )
    return found


def _nodes_that_never_come(wanted: Resources, name: str, nodes: Iterable[Nodes]) -> list[str]:
    """Whether the partition has nodes enough that are large enough, busy or not."""
    here = [one for one in nodes if one.partition == name]
    if not here:
        return []
    cpus = wanted.tasks_per_node * wanted.cpus_per_task
    needs: list[tuple[str, float, dict[int, float]]] = [
        ("nodes", 0, {}),
        (f"cpus: tasks_per_node x cpus_per_task is {cpus}", cpus, _of(here, "cpus")),
        (f"mem_gb is {wanted.mem_gb or 0:g}", (wanted.mem_gb or 0) * 1024, _of(here, "mem_mb")),
        (f"gpus_per_node is {wanted.gpus_per_node}", wanted.gpus_per_node, _of(here, "gpus")),
    ]
    fit = set(range(len(here)))
    for what, least, has in needs:
        fit -= {n for n, value in has.items() if value < least}
        have = sum(here[n].count for n in fit)
        if have >= wanted.nodes:
            continue
        if what == "nodes":
            return [f"resources.nodes is {wanted.nodes}; partition {name} has {have}"]
        most = max(has.values())
        unit = f"{most / 1024:.0f}" if what.startswith("mem") else f"{most:.0f}"
        return [
            f"resources.{what}; partition {name} has {have} such nodes, {wanted.nodes} are needed"
            f" (the largest has {unit})"
        ]
    return []


def _of(nodes: Sequence[Nodes], what: str) -> dict[int, float]:
    if what == "gpus":
        return {n: gpus_of(one.gres) for n, one in enumerate(nodes)}
    return {n: float(getattr(one, what)) for n, one in enumerate(nodes)}


def _against_accounting(
    wanted: Resources, account: str, qos: str, partition: str, limits: Limits
) -> Iterable[str]:
    if not limits.accounts:
        return
    mine = [one for one in limits.accounts if one.name == account]
    if not mine:
        known = ", ".join(sorted({one.name for one in limits.accounts}))
        yield f"resources.account is {account!r}; yours are: {known}"
        return
    allowed = {name for one in mine for name in one.qos}
    if qos and allowed and qos not in allowed:
        yield f"resources.qos is {qos!r}; account {account} may use {', '.join(sorted(allowed))}"
        return
    yield from _beyond(wanted, _quotas(account, qos, partition, limits))


def _quotas(account: str, qos: str, partition: str, limits: Limits) -> list[Quota]:
    """What limits a job, in the order of precedence: each limit holds where it is first set.

    That of the partition's QOS, then of the job's, or the other way round where the job's says so,
    then of the association. Which of several partitions a job gets is not known beforehand.
    """
    mine = [one for one in limits.accounts if one.name == account and not one.partition]
    default = "normal" if "normal" in limits.qos else ""
    used = qos or next((one.default_qos for one in mine if one.default_qos), default)
    own = [limits.qos[used]] if used in limits.qos else []
    if (used and not own) or "," in partition:
        return []
    name = limits.partitions.get(partition, {}).get("QoS", "")
    of_partition = [limits.qos[name]] if name in limits.qos else []
    first = own and "OverPartQOS" in own[0].flags
    both = [*own, *of_partition] if first else [*of_partition, *own]
    return [*both, *(one.quota for one in mine)]


def _beyond(wanted: Resources, quotas: Sequence[Quota]) -> Iterable[str]:
    minutes = math.ceil(wanted.hours * 60)
    quota = next((one for one in quotas if one.max_minutes is not None), None)
    if quota is not None and quota.max_minutes is not None and minutes > quota.max_minutes:
        allowed = f"{quota.max_minutes / 60:g}"
        yield f"resources.hours is {wanted.hours:g}; {quota.where} allows {allowed} (MaxWall)"
    asked = {"node": wanted.nodes, "gres/gpu": wanted.nodes * wanted.gpus_per_node}
    keys = {"node": "resources.nodes", "gres/gpu": "resources.nodes x gpus_per_node"}
    for name, value in asked.items():
        quota = next((one for one in quotas if name in one.max_tres), None)
        if quota is not None and value > quota.max_tres[name]:
            most = f"{quota.max_tres[name]:g}"
            yield f"{keys[name]} is {value}; {quota.where} allows {most} a job (MaxTRES)"


def _too_many(requests: Mapping[str, JobRequest], limits: Limits, shell: Mapping[str, str]) -> str:
    """Jobs that may be in the queue together: of all users, and of this one by account and QOS."""
    most = limits.config.get("MaxJobCount", "")
    if most.isdigit() and len(requests) > int(most):
        return f"{len(requests)} jobs are to be submitted; the cluster holds {most} (MaxJobCount)"
    jobs = [
        (
            one.resources.account or shell.get("SBATCH_ACCOUNT") or limits.default_account,
            one.resources.qos or shell.get("SBATCH_QOS") or "",
            one.resources.partition or shell.get("SBATCH_PARTITION") or _default(limits.partitions),
        )
        for one in requests.values()
    ]
    new, old = (Counter(_counted(job, limits) for job in some) for some in (jobs, limits.in_queue))
    for place, count in new.items():
        if place is not None and count + old[place] > place[1]:
            return (
                f"{count} jobs are to be submitted and {old[place]} of yours are in the queue;"
                f" {place[0]} allows {place[1]} (MaxSubmitJobs): submit a part of the recipe, or"
                " wait"
            )
    return ""


def _counted(job: tuple[str, str, str], limits: Limits) -> tuple[str, int] | None:
    """Where a job of this account, QOS and partition is counted, and how many may be there."""
    quotas = ((one.where, one.max_submit) for one in _quotas(*job, limits))
    return next(((where, most) for where, most in quotas if most is not None), None)


def minutes_of(text: str) -> int | None:
    """Read `[days-]hours:minutes:seconds` as SLURM prints time limits; None is no limit."""
    if text.strip() in UNLIMITED:
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(one or 0) for one in match.groups())
    return (days * 24 + hours) * 60 + minutes + (1 if seconds else 0)


def gpus_of(gres: str) -> int:
    """GPUs of a node by sinfo's GRES: `gpu:4`, `gpu:a100:4(S:0-1),tmp:1T`, `(null)`."""
    return sum(int(n) for n in re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres))
