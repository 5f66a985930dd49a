"""Reads a site's limits from SLURM: its partitions, nodes, accounts and QOS; pure parsers."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace

from cluster.contract import SchedulerError
from cluster.limits import Account, Limits, Nodes, Quota, minutes_of
from cluster.queue import parse_scontrol_config, parse_scontrol_job

_SECONDS = 15
_ACCOUNTING_SECONDS = 5
_ASSOC = "format=Account,DefaultAccount,Partition,QOS,DefaultQOS,MaxSubmitJobs,MaxWall,MaxTRES"
_QOS = "format=Name,Flags,MaxSubmitJobsPerUser,MaxWall,MaxTRES"


def read_limits() -> Limits:
    """Ask for the configuration, partitions and nodes, and for quotas where they are enforced.

    Raises:
        SchedulerError: the controller does not answer. A database that does not is passed over.
    """
    config = parse_scontrol_config(_ask("scontrol", "show", "config"))
    partitions = parse_partitions(_ask("scontrol", "--oneliner", "show", "partition"))
    nodes = parse_nodes(_ask("sinfo", "--noheader", "--exact", "--format=%R|%D|%c|%m|%G"))
    enforced = set(config.get("AccountingStorageEnforce", "none").split(","))
    if not enforced & {"associations", "limits", "qos", "safe", "wckeys", "all"}:
        return Limits(config=config, partitions=partitions, nodes=nodes)
    try:
        accounts, default = parse_accounts(_sacctmgr("user", f"user={_me()}", "withassoc", _ASSOC))
        quotas = parse_qos(_sacctmgr("qos", _QOS))
    except SchedulerError:
        return Limits(config=config, partitions=partitions, nodes=nodes)
    if not enforced & {"limits", "safe", "all"}:  # then accounts and QOS are only names
        accounts = [replace(one, quota=Quota(where=one.quota.where)) for one in accounts]
        quotas = {name: Quota(where=one.where, flags=one.flags) for name, one in quotas.items()}
    if not enforced & {"qos", "all"}:
        accounts = [replace(one, qos=()) for one in accounts]
    known = [one.quota for one in accounts] + list(quotas.values())
    counted = any(one.max_submit is not None for one in known)
    return Limits(
        config=config,
        partitions=partitions,
        nodes=nodes,
        accounts=accounts,
        qos=quotas,
        in_queue=_in_queue() if counted else (),
        default_account=default,
    )


def _me() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def _in_queue() -> list[tuple[str, str, str]]:
    mine = ("--user", str(os.geteuid()), "--states=PENDING,RUNNING,SUSPENDED,COMPLETING")
    text = _ask("squeue", "--noheader", "--array", "--format=%a|%q|%P", *mine)
    return parse_queue(text)


def _sacctmgr(*words: str) -> str:
    return _ask("sacctmgr", "-nP", "show", *words, seconds=_ACCOUNTING_SECONDS)


def _ask(*command: str, seconds: float = _SECONDS) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SINFO_"))}
    try:
        done = subprocess.run(
            command,
            env={**kept, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SchedulerError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise SchedulerError(f"{command[0]}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


# -- parsing, pure ---------------------------------------------------------------------------------


def parse_partitions(text: str) -> dict[str, dict[str, str]]:
    """Read `scontrol -o show partition`: a line a partition, by name."""
    rows = [parse_scontrol_job(line) for line in text.splitlines() if line.strip()]
    return {row["PartitionName"]: row for row in rows if "PartitionName" in row}


def parse_nodes(text: str) -> list[Nodes]:
    """Read `sinfo --noheader --exact --format=%R|%D|%c|%m|%G`."""
    found = []
    for line in text.splitlines():
        partition, count, cpus, mem_mb, gres = line.split("|", 4)
        found.append(
            Nodes(
                partition=partition.strip(),
                count=int(count),
                cpus=int(cpus),
                mem_mb=int(mem_mb),
                gres=gres.strip(),
            )
        )
    return found


def parse_queue(text: str) -> list[tuple[str, str, str]]:
    """Read `squeue --noheader --array --format=%a|%q|%P`: account, QOS and partition of a job."""
    rows = [line.split("|") for line in text.splitlines() if line.strip()]
    return [(account, qos, partition) for account, qos, partition in rows]


def parse_accounts(text: str) -> tuple[list[Account], str]:
    """Read the associations of a user; with the account that is taken where none is named."""
    found, default = [], ""
    for line in text.splitlines():
        name, default, partition, qos, default_qos, submit, wall, tres = line.split("|")
        quota = Quota(
            where=f"account {name}",
            max_submit=int(submit) if submit else None,
            max_minutes=minutes_of(wall),
            max_tres=_tres(tres),
        )
        names = tuple(one for one in qos.split(",") if one)
        found.append(
            Account(name=name, partition=partition, qos=names, default_qos=default_qos, quota=quota)
        )
    return found, default


def parse_qos(text: str) -> dict[str, Quota]:
    """Read all QOS."""
    rows = [line.split("|") for line in text.splitlines() if line.strip()]
    return {
        name: Quota(
            where=f"QOS {name}",
            max_submit=int(submit) if submit else None,
            max_minutes=minutes_of(wall),
            max_tres=_tres(tres),
            flags=frozenset(flags.split(",")) - {""},
        )
        for name, flags, submit, wall, tres in rows
    }


def _tres(text: str) -> dict[str, float]:
    """`cpu=4,gres/gpu=2,mem=1G`: numbers; those with a unit are left out."""
    pairs = (one.split("=", 1) for one in text.split(",") if "=" in one)
    return {name: float(value) for name, value in pairs if re.fullmatch(r"[\d.]+", value)}
