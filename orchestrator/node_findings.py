"""Pure: each thing that `doctor --job` looked at on nodes, as a check with advice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.contract import Resources
from cluster.node_looks import NUM_CLAIMS
from orchestrator.checkup import Check, State

_SLOW_FILES = 20.0  # seconds; a stage waits 60 for what another node has written
_CLOCKS_APART = 5.0  # seconds; ages of progress and heartbeats are told from clocks
_SMALL_SHM_GB = 1.0  # a few clips of each data worker
_SMALL_SCRATCH_GB = 2.0
_FEW_FILES = 1024  # soft limit; data workers pass every batch as open files
_FEW_PROCESSES = 1024
_SLOW_IMPORTS = 60.0

Rank = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A job and what it left.

    Attributes:
        waited_seconds: from its submission to its first sign of life; None where there was none.
        ranks: what each rank reported, in order; those that never began are missing.
        batch: what the batch script's look found.
        versions: of the packages on the machine that submitted it.
        logs: where its output lies.
    """

    executor: str
    cluster: str
    job_id: str
    resources: Resources
    waited_seconds: float | None
    ranks: tuple[Rank, ...]
    batch: Rank | None
    versions: Mapping[str, str]
    logs: str

    @property
    def nodes(self) -> tuple[Rank, ...]:
        """The first rank of each node, which looked at what all ranks of it share."""
        return tuple(rank for rank in self.ranks if rank["local_rank"] == 0)


def works(seen: Seen, program: str) -> bool | None:
    """Whether a program of SLURM works wherever the batch script may run."""
    looks = [
        rank["scheduler"] for rank in (*seen.nodes, seen.batch) if rank and "scheduler" in rank
    ]
    return every(look.get(program) for look in looks)


def every(values: Iterator[bool | None]) -> bool | None:
    """Whether all that is known is true; None where nothing is."""
    known = [value for value in values if value is not None]
    return all(known) if known else None


def _python(seen: Seen) -> Iterator[Check]:
    def tell(look: Rank) -> str:
        return f"{look['version']} ({look['executable']}), Linux {look['kernel']}"

    yield from _simple(seen, "node python", "python", tell)


def _packages(seen: Seen) -> Iterator[Check]:
    def tell(look: Rank) -> str:
        words = []
        for name, package in look["packages"].items():
            here = seen.versions.get(name)
            other = f" (here {here})" if package.get("version") != here else ""
            words.append(f"{name} {package.get('error') or package['version'] + other}")
        return ", ".join(words)

    def state(look: Rank) -> State:
        packages = look["packages"]
        if any("error" in package for package in packages.values()):
            return "failed"
        same = all(one["version"] == seen.versions.get(name) for name, one in packages.items())
        return "ok" if same else "warning"

    advice = (
        "the nodes must see the environment that submits: keep it on the shared file system, and "
        "load its modules in the cluster's `setup` lines"
    )
    yield from _simple(seen, "node packages", "imports", tell, state, advice)
    slowest = max(
        (rank["imports"]["seconds"] for rank in seen.nodes if "imports" in rank), default=0
    )
    if slowest > _SLOW_IMPORTS:
        advice = "every start of a rank pays this: move the environment to a faster file system"
        found = f"{slowest:.0f} s until all were imported"
        yield Check(name="node imports", state="warning", found=found, advice=advice)


def _gpus(seen: Seen) -> Iterator[Check]:
    asked = seen.resources.gpus_per_node
    if not asked:
        return

    def tell(look: Rank) -> str:
        names = ", ".join(sorted(set(look["names"]))) or "none"
        return f"{look['seen']} of {asked} a node visible ({names})"

    own = seen.resources.gpu_request == "gpus-per-task"  # then a task sees its own alone

    def state(look: Rank) -> State:
        if look["seen"] == asked or (own and look["seen"] == 1):
            return "ok"
        return "warning" if look["seen"] == 1 else "failed"

    advice = (
        f"asked for with {seen.resources.gpu_request}; try "
        "`cluster.resources.gpu_request=gres`, a partition with GPUs, and `module load cuda` in "
        "`setup` if the driver is too old for this torch"
    )
    yield from _simple(seen, "node gpus", "gpus", tell, state, advice, ranks=True)


def _all_reduce(seen: Seen) -> Iterator[Check]:
    def tell(look: Rank) -> str:
        speed = f", {look['gb_per_second']:.2g} GB/s" if look["world_size"] > 1 else ""
        wrong = "" if look["right"] else ", the sum is WRONG"
        return f"{look['backend']}, {many(look['world_size'], 'rank')}{speed}{wrong}"

    def state(look: Rank) -> State:
        return "ok" if look["right"] else "failed"

    advice = (
        "ranks must reach each other: name the interface in NCCL_SOCKET_IFNAME and "
        "GLOO_SOCKET_IFNAME of the shell that submits; NCCL_DEBUG=INFO tells more"
    )
    first = seen.ranks[:1]
    failed = [rank for rank in seen.ranks if "error" in rank.get("collective", {})]
    for rank in failed[:1] or first:
        yield from _look(rank, "all-reduce", "collective", tell, state, advice)


def _files(seen: Seen) -> Iterator[Check]:
    def tell(look: Rank) -> str:
        return f"a file and its answer took {look['answered_after']:.1f} s"

    def state(look: Rank) -> State:
        return "ok" if look["answered_after"] < _SLOW_FILES else "warning"

    advice = (
        "files of one machine must be seen by the others within a minute: choose another place "
        "with --store, or ask for a mount with short attribute caching (actimeo)"
    )
    yield from _simple(seen, "shared files", "shared", tell, state, advice)


def _clocks(seen: Seen) -> Iterator[Check]:
    def tell(look: Rank) -> str:
        apart = look["clock_differs"]
        return f"at least {apart:.1f} s apart" if apart else "no difference seen"

    def state(look: Rank) -> State:
        return "ok" if look["clock_differs"] < _CLOCKS_APART else "warning"

    if any("clock_differs" in rank.get("shared", {}) for rank in seen.nodes):
        advice = "ages of progress and logs will look wrong: tell the site that NTP is off"
        yield from _simple(seen, "clocks", "shared", tell, state, advice)


def _claims(seen: Seen) -> Iterator[Check]:
    won = [n for rank in seen.ranks for n in rank.get("claims", {}).get("won", ())]
    advice = "two submitters could both start one stage: choose another place with --store"
    looks = [rank["claims"] for rank in seen.ranks if "claims" in rank]
    error = next((look["error"] for look in looks if "error" in look), None)
    if error is not None:
        yield Check(name="exclusive files", state="failed", found=error, advice=advice)
    elif len(looks) == seen.resources.world_size:
        right = sorted(won) == list(range(NUM_CLAIMS))
        found = f"{NUM_CLAIMS} claims by {many(len(looks), 'rank')}, {len(won)} won"
        state: State = "ok" if right else "failed"
        yield Check(
            name="exclusive files", state=state, found=found, advice="" if right else advice
        )


def _lock(seen: Seen) -> Iterator[Check]:
    advice = (
        "caches of compiled code use locks: keep them on a local disk (TRITON_CACHE_DIR, "
        "TORCH_EXTENSIONS_DIR)"
    )
    yield from _simple(
        seen, "node locks", "lock", lambda look: "work", advice=advice, broken="warning"
    )


def _scratch(seen: Seen) -> Iterator[Check]:
    def tell(look: Rank) -> str:
        return f"{look['folder']} {look['free_gb']:.0f} GB free, /dev/shm {look['shm_gb']:.1f} GB"

    def state(look: Rank) -> State:
        small = look["free_gb"] < _SMALL_SCRATCH_GB or look["shm_gb"] < _SMALL_SHM_GB
        return "warning" if small else "ok"

    advice = (
        "data workers pass clips through /dev/shm and libraries unpack into TMPDIR: ask for more "
        "(containers: a larger --shm-size), or use fewer workers"
    )
    yield from _simple(seen, "node scratch", "scratch", tell, state, advice)


def _cpus(seen: Seen) -> Iterator[Check]:
    asked = seen.resources.cpus_per_task

    def tell(look: Rank) -> str:
        return f"{look['allowed']} usable by a task that asked for {asked}"

    def state(look: Rank) -> State:
        return "ok" if look["allowed"] >= asked else "warning"

    advice = "data workers share them: srun does not hand on --cpus-per-task here; tell the site"
    yield from _simple(seen, "node cpus", "cpus", tell, state, advice, ranks=True)


def _limits(seen: Seen) -> Iterator[Check]:
    def tell(look: Rank) -> str:
        locked, memory = look["locked_bytes"][0], look["memory_bytes"]
        words = [
            f"{_count(look['files'][0])} open files",
            f"{_count(look['processes'][0])} processes",
            f"locked memory {'unlimited' if locked < 0 else f'{locked / 1e6:.0f} MB'}",
            f"memory {'not limited' if memory is None else f'{memory / 1e9:.1f} GB'}",
        ]
        return ", ".join(words)

    def state(look: Rank) -> State:
        few = 0 <= look["files"][0] < _FEW_FILES or 0 <= look["processes"][0] < _FEW_PROCESSES
        pinned = bool(seen.resources.gpus_per_node) and look["locked_bytes"][0] >= 0
        return "warning" if few or pinned else "ok"

    advice = (
        "data workers need open files and processes, NCCL over InfiniBand needs unlimited locked "
        "memory: `ulimit -n 4096` in `setup`, or ask the site"
    )
    yield from _simple(seen, "node limits", "limits", tell, state, advice)


def _count(limit: int) -> str:
    return "unlimited" if limit < 0 else str(limit)


def _commands(seen: Seen) -> Iterator[Check]:
    """scontrol and sbatch, on the nodes and in the batch script, where they are needed."""
    advice = {
        "scontrol": "a job cannot ask for its own requeue: where nodes may run sbatch, another job "
        "takes its place; else `orchestrate resume` continues it",
        "sbatch": "only needed where jobs cannot be requeued in place",
    }
    for program, words in advice.items():
        answer = works(seen, program)
        if answer is None:
            continue
        looks = [rank for rank in (*seen.nodes, seen.batch) if rank and "scheduler" in rank]
        says = {
            str(rank["host"]): str(rank["scheduler"].get(f"{program}_says", ""))
            for rank in looks
            if not rank["scheduler"].get(program)
        }
        found = "; ".join(f"{host}: {text}" for host, text in says.items()) or "works"
        state: State = "ok" if answer else "warning"
        advised = "" if answer else words
        yield Check(name=f"node {program}", state=state, found=found, advice=advised)


def _mlflow(seen: Seen) -> Iterator[Check]:
    def tell(look: Rank) -> str:
        return "answers" if look["status"] == 200 else f"{look['status']}: {look['says']}"

    def state(look: Rank) -> State:
        return "ok" if look["status"] == 200 else "warning"

    advice = (
        "records stay in the store and `orchestrate sync` delivers them; for delivery from jobs "
        "start the server with --allowed-hosts and let the nodes through (403: the host's name, "
        "401: a login is missing)"
    )
    if any("mlflow" in rank for rank in seen.nodes):
        yield from _simple(seen, "node mlflow", "mlflow", tell, state, advice, broken="warning")


def _internet(seen: Seen) -> Iterator[Check]:
    def tell(look: Rank) -> str:
        return "reached" if look["reached"] else "not reached; nothing needs it"

    yield from _simple(seen, "node internet", "internet", tell)


def _signals(seen: Seen) -> Iterator[Check]:
    def tell(look: Rank) -> str:
        return f"{look['received']} arrived" if look["received"] else "USR2 did not arrive"

    def state(look: Rank) -> State:
        return "ok" if look["received"] else "failed"

    advice = (
        "ranks are not told before the time limit and lose the work since their last checkpoint: "
        "something between srun and python keeps signals back (a wrapper, a container)"
    )
    if any("signal" in rank for rank in seen.ranks):
        yield from _simple(seen, "signals", "signal", tell, state, advice, ranks=True)


LOOKS: tuple[Callable[[Seen], Iterator[Check]], ...] = (
    _python,
    _packages,
    _gpus,
    _all_reduce,
    _files,
    _clocks,
    _claims,
    _lock,
    _scratch,
    _cpus,
    _limits,
    _commands,
    _mlflow,
    _internet,
    _signals,
)


def many(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _look(
    rank: Rank,
    name: str,
    key: str,
    tell: Callable[[Rank], str],
    state: Callable[[Rank], State] = lambda look: "ok",
    advice: str = "",
    broken: State = "failed",
) -> Iterator[Check]:
    """What one rank found at `key`; nothing where it never came to that."""
    look = rank.get(key)
    if look is None:
        return
    error = look.get("error")
    verdict = broken if error else state(look)
    found = str(error) if error else tell(look)
    yield Check(name=name, state=verdict, found=found, advice="" if verdict == "ok" else advice)


def _simple(
    seen: Seen,
    name: str,
    key: str,
    tell: Callable[[Rank], str],
    state: Callable[[Rank], State] = lambda look: "ok",
    advice: str = "",
    *,
    broken: State = "failed",
    ranks: bool = False,
) -> Iterator[Check]:
    """One check of all nodes (or ranks): the worst state, and who found what if they differ."""
    found: dict[str, list[str]] = defaultdict(list)
    worst: State = "ok"
    for rank in seen.ranks if ranks else seen.nodes:
        for check in _look(rank, name, key, tell, state, advice, broken):
            host = str(rank["host"])
            if host not in found[check.found]:
                found[check.found].append(host)
            worst = max(worst, check.state, key=("ok", "warning", "failed").index)
    if not found:
        return
    several = "; ".join(f"{', '.join(hosts)}: {text}" for text, hosts in found.items())
    text = several if len(found) > 1 else next(iter(found))
    yield Check(name=name, state=worst, found=text, advice="" if worst == "ok" else advice)
