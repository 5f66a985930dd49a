"""A control group with little memory, for tests of what happens when it is used up."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT_BYTES = 128 << 20


@contextlib.contextmanager
def memory_group() -> Iterator[Path | None]:
    """An empty group below this process's own; None where that needs more rights."""
    group = _make()
    try:
        yield group
    finally:
        if group is not None:
            _remove(group)


def _make() -> Path | None:
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, name = line.split(":", 2)
        first = "memory" in controllers.split(",")
        root = Path("/sys/fs/cgroup/memory" if first else "/sys/fs/cgroup") / name.lstrip("/")
        counter = root / ("memory.oom_control" if first else "memory.events")
        if (first or not controllers) and counter.exists():
            return _limited(root, "memory.limit_in_bytes" if first else "memory.max")
    return None


def _limited(root: Path, limit: str) -> Path | None:
    group = root / f"orchestrate-{os.getpid()}-{os.urandom(3).hex()}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        (group / limit).write_text(str(LIMIT_BYTES))
    except OSError:
        group.rmdir()
        return None
    return group


def _remove(group: Path) -> None:
    """Processes that were killed leave their group a moment later."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.05)
