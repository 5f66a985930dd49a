"""The commit protocol: killed at every system call it stays resumable; every damage is found."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import fsio
from recipes.contract import InputError
from recipes.engine import checkpoint, faults

CALLS = ("open", "write", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "chmod")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    folder.mkdir(mode=0o700)
    return folder


def content(step: int, rank: int) -> bytes:
    return f"weights of step {step}, rank {rank}. ".encode() * 500


def write(store: Path, step: int, keep: int = 2, save_number: int = 0) -> Path:
    folder = checkpoint.begin(store, step)
    for rank in range(2):
        with (folder / f"shard_{rank}.pt").open("wb", buffering=0) as stream:
            os.write(stream.fileno(), content(step, rank))
    return checkpoint.commit(store, step, {"world_size": 2}, keep=keep, save_number=save_number)


def newest_step(store: Path) -> int | None:
    found = checkpoint.newest(store)
    if found is None:
        return None
    for rank in range(2):
        assert (found.path / f"shard_{rank}.pt").read_bytes() == content(found.step, rank)
    return found.step


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


def kill_before_call(n: int, action: Callable[[], Any]) -> int:
    """Run in a fork that kills itself instead of its n-th call that changes the disk."""

    def guarded() -> None:
        calls = {"count": 0}

        def watch(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                calls["count"] += 1
                if calls["count"] == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        for name in CALLS:
            setattr(os, name, watch(getattr(os, name)))
        action()

    return in_child(guarded)


def test_a_committed_checkpoint_names_size_and_digest_of_every_file(store):
    path = write(store, 12)
    manifest = fsio.read_json(path / "manifest.json")
    assert path.name == "step_000000012"
    assert (manifest["schema_version"], manifest["step"], manifest["world_size"]) == (1, 12, 2)
    assert len(manifest["digest"]) == 64
    assert manifest["files"] == {
        f"shard_{rank}.pt": {
            "bytes": len(content(12, rank)),
            "sha256": fsio.sha256_file(path / f"shard_{rank}.pt"),
        }
        for rank in range(2)
    }
    assert {p.stat().st_mode & 0o777 for p in path.iterdir()} == {0o600}
    assert path.stat().st_mode & 0o777 == 0o700


def test_killed_before_any_call_of_a_save_the_old_or_the_new_one_is_whole(store):
    """F2: the n-th call, n = 1, 2, ... until the save gets through."""
    for step in (10, 20):
        write(store, step)
    outcomes, n, step = [], 1, 20
    while True:
        target = step + 1
        code = kill_before_call(n, lambda target=target: write(store, target))
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
    while (code := kill_before_call(n, lambda: write(store, 5))) != 0:
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


def truncate(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, max(0, int(path.stat().st_size * share) - 1))


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(path: Path) -> None:
    older = path.parent.parent / checkpoint.name_of(1) / path.name
    path.write_bytes(older.read_bytes().ljust(path.stat().st_size)[: path.stat().st_size])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated to nothing": truncate(0),
    "truncated to 10 %": truncate(0.1),
    "truncated to half": truncate(0.5),
    "truncated to 99.9 %": truncate(0.999),
    "one bit flipped": flip_bit,
    "missing": Path.unlink,
    "of another step": swap,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["shard_0.pt", "shard_1.pt", "manifest.json"])
def test_damage_to_any_file_is_found_named_set_aside_and_the_one_before_used(
    store, caplog, file, damage
):
    for step in (1, 2):
        write(store, step)
    DAMAGES[damage](store / "step_000000002" / file)
    assert newest_step(store) == 1
    assert file in caplog.text
    assert (store / "step_000000002.bad1").is_dir()
    assert newest_step(store) == 1, "and again, without it"


def test_a_file_that_does_not_belong_is_refused(store, caplog):
    for step in (1, 2):
        write(store, step)
    (store / "step_000000002" / "zero_pp_rank_9.pt").write_bytes(b"x")
    assert newest_step(store) == 1
    assert "zero_pp_rank_9.pt does not belong" in caplog.text


def test_a_checkpoint_under_the_name_of_another_step_is_refused(store, caplog):
    for step in (1, 2):
        write(store, step)
    (store / "step_000000002").rename(store / "step_000000009")
    assert newest_step(store) == 1
    assert "is of step 2" in caplog.text


def test_when_all_are_damaged_it_is_an_error_and_stays_one(store):
    for step in (1, 2):
        write(store, step)
        flip_bit(store / checkpoint.name_of(step) / "shard_0.pt")
    for _ in range(2):
        with pytest.raises(InputError, match=r"every checkpoint is damaged.*start again"):
            checkpoint.newest(store)


def test_nothing_saved_yet_is_no_error(store):
    assert checkpoint.newest(store) is None
    assert checkpoint.newest(store / "absent") is None
    checkpoint.sweep(store / "absent")


def test_the_newest_is_by_step_and_pointers_and_times_mean_nothing(store):
    write(store, 7, keep=9)
    write(store, 100, keep=9)
    write(store, 30, keep=9)
    (store / "latest").write_text("step_000000030")
    os.utime(store / "step_000000100", (0, 0))
    assert newest_step(store) == 100


def test_only_the_newest_are_kept(store):
    for step in range(1, 6):
        write(store, step, keep=2)
    assert checkpoint.steps(store) == [4, 5]
    assert sorted(path.name for path in store.iterdir()) == ["step_000000004", "step_000000005"]


def test_damaged_ones_set_aside_are_kept_for_people(store):
    for step in (1, 2):
        write(store, step)
    flip_bit(store / "step_000000002" / "shard_0.pt")
    checkpoint.newest(store)
    write(store, 2)
    flip_bit(store / "step_000000002" / "shard_0.pt")
    checkpoint.newest(store)
    assert sorted(path.name for path in store.glob("*.bad*")) == [
        "step_000000002.bad1",
        "step_000000002.bad2",
    ]


@pytest.mark.parametrize("where", ["", "step_000000001", "step_000000001/shard_0.pt"])
def test_what_others_could_have_written_is_not_loaded(store, where):
    write(store, 1)
    path = store / where
    for mode in (0o720, 0o702):
        path.chmod(mode)
        with pytest.raises(InputError, match=r"can be written by others.*chmod go-w"):
            checkpoint.newest(store)
    path.chmod(0o700)
    assert newest_step(store) == 1


def test_a_symbolic_link_is_not_followed(store, tmp_path):
    write(store, 1)
    shard = store / "step_000000001" / "shard_0.pt"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        checkpoint.newest(store)


def test_what_another_user_wrote_is_not_loaded(store, monkeypatch):
    write(store, 1)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(InputError, match=r"belongs to user id \d+, not to you \(4711\)"):
        checkpoint.newest(store)
