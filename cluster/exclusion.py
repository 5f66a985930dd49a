"""Pure: which node an attempt was lost to, and how many a run may leave out."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cluster.causes import Cause, RankFailure, Root

# A run that left out more would rather have found what is wrong with itself than with the nodes.
MAX_EXCLUDED = 8
_SHARE = 4  # of the partition: one node in so many


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the ranks of an attempt were.

    Attributes:
        nodes: names of the job's nodes as the scheduler spells them, in the order of the ranks.
        world_size: number of ranks; 0 where that is not known.
        in_blocks: whether ranks fill the nodes one after the other, as srun does by default.
    """

    nodes: tuple[str, ...] = ()
    world_size: int = 0
    in_blocks: bool = True

    def node_of(self, rank: int, host: str = "") -> str | None:
        """The node of a rank: by the name of its host, else by its number; None if not known.

        A host may call itself otherwise than the scheduler does, with its domain for example.
        """
        short = host.partition(".")[0]
        found = [node for node in self.nodes if node in (host, short)]
        if len(found) == 1:
            return found[0]
        even = bool(self.nodes) and self.world_size % len(self.nodes) == 0
        if not (even and self.in_blocks and 0 <= rank < self.world_size):
            return None
        return self.nodes[rank * len(self.nodes) // self.world_size]


def culprits(
    cause: Cause,
    root: Root,
    failures: Sequence[RankFailure],
    placement: Placement,
    lost: Sequence[str] = (),
) -> tuple[str, ...]:
    """Names of the nodes that an attempt was lost to; empty where none can be named.

    Args:
        cause: what is decided on.
        root: where that comes from.
        failures: what all ranks recorded.
        placement: where the ranks were.
        lost: nodes of the job that the scheduler calls down or out of reach.
    """
    if lost and cause in ("node_failure", "communication", "killed"):
        return tuple(lost)
    if root.failure is not None:
        node = placement.node_of(root.failure.rank, root.failure.host)
        return (node,) if node else ()
    if cause == "communication":
        node = silent_node(failures, placement) or _named(failures, placement)
        return (node,) if node else ()
    return ()


def silent_node(failures: Sequence[RankFailure], placement: Placement) -> str | None:
    """The one node of which no rank left a word, not even by its watchdog, while all others did."""
    spoke = {placement.node_of(failure.rank, failure.host) for failure in failures}
    silent = [node for node in placement.nodes if node not in spoke]
    return silent[0] if spoke and None not in spoke and len(silent) == 1 else None


def _named(failures: Sequence[RankFailure], placement: Placement) -> str | None:
    """The one node that the ranks of others complain of, if it is the same for all of them."""
    named = set()
    for failure in failures:
        own = placement.node_of(failure.rank, failure.host)
        named |= {n for n in placement.nodes if n != own and _mentions(failure.message, n)}
    return named.pop() if len(named) == 1 else None


def _mentions(message: str, node: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(node)}(?![\w-])", message) is not None


def admit(
    wanted: Sequence[str],
    *,
    excluded: Collection[str],
    by_recipe: Collection[str] = (),
    partition_nodes: int | None,
    job_nodes: int,
) -> tuple[tuple[str, ...], str]:
    """Which of the wanted nodes may be left out as well, and why the others may not.

    A run leaves out at most a quarter of its partition (one node of a small one) and never more
    than 8, and always keeps as many nodes as the job needs.

    Args:
        wanted: nodes that an attempt was lost to.
        excluded: nodes that the job does without already.
        by_recipe: those of them that a person left out, which do not count towards the quarter.
        partition_nodes: how many there are where the job may run; None where nobody said.
        job_nodes: how many the job asks for.
    """
    fresh = [node for node in dict.fromkeys(wanted) if node not in excluded]
    if not fresh:
        return (), ""
    if partition_nodes is None:
        return (), f"{', '.join(fresh)} stays in use: the size of the partition is not known"
    most = min(MAX_EXCLUDED, max(1, partition_nodes // _SHARE))
    spare = partition_nodes - job_nodes - len(excluded)
    room = max(0, min(most - len(set(excluded) - set(by_recipe)), spare))
    refused = fresh[room:]
    why = (
        f"{', '.join(refused)} stays in use: of the partition's {partition_nodes} nodes the job"
        f" needs {job_nodes}, and at most {most} are left out in a run"
    )
    return tuple(fresh[:room]), why if refused else ""
