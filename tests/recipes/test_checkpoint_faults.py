"""A save that dies or fails at any call or moment costs nothing that was saved before."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from cluster import fsio
from recipes.engine import checkpoint, faults
from tests.recipes.checkpoint_files import newest_step, write

GAVE_UP = 7
CALLS = ("open", "write", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "chmod")


@pytest.fixture
def store() -> Iterator[Path]:
    """In memory where there is such a file system: a killed process takes no cache with it."""
    memory = Path("/dev/shm")  # noqa: S108
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield fsio.make_dir(Path(folder) / "checkpoints")


def in_child(action: Callable[[], Any]) -> int:
    """Run in a fork; returns its exit code, negative for the signal that killed it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def strike(n: int, blow: Callable[[], Any], action: Callable[[], Any]) -> int:
    """Run in a fork in which the n-th call that changes the disk is a blow instead."""

    def guarded() -> None:
        calls = {"count": 0}

        def watch(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                calls["count"] += 1
                if calls["count"] == n:
                    blow()
                return real(*args, **kwargs)

            return call

        for name in CALLS:
            setattr(os, name, watch(getattr(os, name)))
        action()

    return in_child(guarded)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def save_or_give_up(store: Path, step: int) -> None:
    """As a rank does: what fails is taken away again."""
    try:
        write(store, step)
    except OSError:
        checkpoint.abandon(store, step)
        os._exit(GAVE_UP)


def test_killed_before_any_call_of_a_save_the_old_or_the_new_one_is_whole(store):
    """F2: the n-th call, n = 1, 2, ... until the save gets through."""
    for step in (10, 20):
        write(store, step)
    outcomes, n, step = [], 1, 20
    while True:
        target = step + 1
        code = strike(n, die, lambda target=target: write(store, target))
        checkpoint.sweep(store)
        found = newest_step(store)
        assert found in (step, target), f"call {n}"
        assert len(checkpoint.steps(store)) >= 2, f"call {n}"
        assert not list(store.glob("*.tmp")) + list(store.glob("*.deleted"))
        outcomes.append(found == target)
        step = found
        if code == 0:
            break
        assert code == -signal.SIGKILL
        n += 1
    assert n > 20
    assert outcomes[0] is False
    assert outcomes[-1] is True
    assert outcomes.count(True) > 2, "some kills fall behind the rename"


def test_a_kill_in_the_first_save_of_all_leaves_nothing_to_resume_and_no_error(store):
    n, committed = 1, False
    while (code := strike(n, die, lambda: write(store, 5))) != 0:
        assert code == -signal.SIGKILL
        checkpoint.sweep(store)
        found = newest_step(store)
        assert found in (None, 5)
        committed = committed or found == 5
        for left in store.iterdir():
            os.rename(left, store.parent / f"{left.name}-{n}")  # noqa: PTH104
        n += 1
    assert committed


@pytest.mark.parametrize(
    ("point", "survivor"),
    [("before_manifest", 1), ("before_rename", 1), ("after_rename", 2)],
)
def test_the_named_fault_points_kill_in_the_save_they_name(store, monkeypatch, point, survivor):
    monkeypatch.setenv("ORCHESTRATE_FAULT", f"checkpoint.{point}:2")
    assert in_child(lambda: write(store, 1, save_number=1)) == 0
    assert in_child(lambda: write(store, 2, save_number=2)) == -signal.SIGKILL
    checkpoint.sweep(store)
    assert newest_step(store) == survivor


def test_faults_strike_one_rank_of_the_first_attempt_only(monkeypatch):
    def reach() -> int:
        return in_child(lambda: [faults.hit("step", n) for n in range(10)])

    assert reach() == 0
    monkeypatch.setenv("ORCHESTRATE_FAULT", "step:7")
    assert reach() == -signal.SIGKILL
    monkeypatch.setenv("RANK", "1")
    assert reach() == 0
    monkeypatch.setenv("ORCHESTRATE_FAULT_RANK", "1")
    assert reach() == -signal.SIGKILL
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert reach() == 0
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    monkeypatch.setenv("ORCHESTRATE_RESTART_COUNT", "2")
    assert reach() == 0


def test_any_call_of_a_save_may_fail_and_the_old_or_the_new_one_is_whole(store):
    """The n-th call, n = 1, 2, ... until the save gets through."""
    for step in (10, 20):
        write(store, step)
    n, failed, step = 1, 0, 20
    while True:
        target = step + 1
        code = strike(n, full_disk, lambda target=target: save_or_give_up(store, target))
        found = newest_step(store)
        assert found in (step, target), f"call {n}"
        assert len(checkpoint.steps(store)) >= 2, f"call {n}"
        assert not list(store.glob("*.tmp")), f"call {n}"
        failed += code == GAVE_UP
        if code == 0 and n > 30:
            break
        n, step = n + 1, found
    assert failed > 10
    checkpoint.sweep(store)
    assert write(store, found + 1).is_dir(), "and when there is room again, it works"


@pytest.mark.parametrize("point", ["write", "fsync", "rename"])
@pytest.mark.parametrize(("way", "code"), [("", -signal.SIGKILL), (":fail", GAVE_UP)])
def test_the_nth_write_fsync_or_rename_of_a_save_can_be_made_to_fail_or_kill(
    store, monkeypatch, point, way, code
):
    write(store, 1)
    n = 1
    while True:
        monkeypatch.setenv("ORCHESTRATE_FAULT", f"checkpoint.{point}:{n}{way}")
        ended = in_child(lambda: save_or_give_up(store, 2))
        checkpoint.sweep(store)
        assert newest_step(store) == (1 if ended else 2)
        if ended == 0:
            break
        assert ended == code
        n += 1
    assert n > {"write": 4, "fsync": 2, "rename": 1}[point]


def save_for_ever(store: Path, step: int) -> None:
    while True:
        step += 1
        write(store, step)


def test_950_kills_at_random_moments_of_a_writer_leave_every_time_a_whole_checkpoint(store):
    random = Random(950)
    write(store, 1)
    newest, advanced, torn = 1, 0, 0
    for number in range(950):
        child = os.fork()
        if child == 0:
            save_for_ever(store, newest)
        time.sleep(random.uniform(0.0, 0.012))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        torn += any(path.suffix in (".tmp", ".deleted") for path in store.iterdir())
        checkpoint.sweep(store)
        found = newest_step(store)
        assert found is not None, f"kill {number}"
        assert found >= newest, f"kill {number}: what was committed does not vanish"
        advanced += found > newest
        newest = found
    assert not list(store.glob("*.bad*"))
    assert torn > 300, "most kills fall into a save"
    assert advanced > 300
