"""Whether the kernel has killed for want of memory, by the counters of the control groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def oom_kills(membership: str | None = None, root: Path = _CGROUPS) -> int | None:
    """How often the kernel killed a process of this one's control group; None where nobody counts.

    Version 2 counts in `memory.events`, those of the groups below included; version 1 in
    `memory.oom_control` since Linux 4.13. SLURM counts only where `ConstrainRAMSpace` is set.

    Args:
        membership: content of /proc/<pid>/cgroup; default this process's.
        root: where the control groups are mounted.
    """
    if membership is None:
        membership = _read(Path("/proc/self/cgroup"))
    for path in _counters(membership, root):
        found = _COUNT.search(_read(path))
        if found:
            return int(found.group(1))
    return None


def _counters(membership: str, root: Path) -> Iterator[Path]:
    """Files that may hold the count, the nearest first; a group may leave memory to its parents."""
    for line in membership.splitlines():
        _, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield root / "memory" / group.lstrip("/") / "memory.oom_control"
        elif not controllers:
            folder = root / group.lstrip("/")
            while folder != root and folder.is_relative_to(root):
                yield folder / "memory.events"
                folder = folder.parent


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def killed_message() -> str:
    """What to tell somebody whose process the kernel killed for want of memory."""
    return (
        "the kernel killed a process of this rank because the job used more memory than it may:"
        " ask for more (resources.mem_gb), or use fewer workers"
    )
