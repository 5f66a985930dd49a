"""Remembers which videos are done, so that an attempt goes on where the last one ended."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cluster import fsio
from recipes.stages.prepare.one import Done, Task


class Journal:
    """One JSON line a finished video, appended at once; lines of other settings do not count."""

    def __init__(self, path: Path, settings: str) -> None:
        self._path = path
        self._settings = settings
        fsio.make_dir(path.parent)

    def append(self, done: Done) -> None:
        """Remember a video; a crash is not remembered, the next attempt tries again."""
        if not done.crashed:
            fsio.append_json_line(self._path, {"settings": self._settings, **done.to_json()})

    def load(self, tasks: Iterable[Task]) -> dict[str, Done]:
        """What is done of `tasks`, by path: the source is the same and the result still there."""
        by_path = {task.path: task for task in tasks}
        found: dict[str, Done] = {}
        for _, line in fsio.read_json_lines(self._path):
            if line.pop("settings", None) == self._settings and line.get("path") in by_path:
                done = Done.from_json(line)
                found[done.path] = done
        return {path: done for path, done in found.items() if _holds(by_path[path], done)}


def _holds(task: Task, done: Done) -> bool:
    if (task.bytes, task.mtime_ns) != (done.bytes, done.mtime_ns):
        return False
    if done.file is None:
        return True
    try:
        found = task.target.stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (done.file.bytes, done.file.mtime_ns)
