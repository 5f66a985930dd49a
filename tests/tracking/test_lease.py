"""One holder at a time, taken over only from the dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import fsio
from tests.tracking.fabricate import wait_until
from tracking import lease as module
from tracking.lease import Lease, describe_holder

_HOLD = """
import sys, time
from pathlib import Path
from tracking.lease import Lease
lease = Lease.acquire(Path(sys.argv[1]))
print("held" if lease else "refused", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease in `tmp_path/lease`."""
    argv = [sys.executable, "-c", _HOLD, str(tmp_path / "lease")]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_lease_held_by_a_living_process_is_refused(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert Lease.acquire(tmp_path / "lease", patience_seconds=0.5) is None
    assert f"process {holder.pid} on " in describe_holder(tmp_path / "lease")


def test_a_lease_of_a_killed_process_is_taken_over_at_once(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lease = Lease.acquire(tmp_path / "lease", patience_seconds=5)
    assert lease is not None
    lease.release()


def test_a_lease_of_a_stopped_but_unreaped_process_is_taken_over(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.send_signal(signal.SIGKILL)  # and not waited for: a zombie keeps its number
    with_zombie = Lease.acquire(tmp_path / "lease", patience_seconds=5)
    assert with_zombie is not None
    with_zombie.release()


def test_waiting_ends_when_the_caller_gives_up(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert holder.poll() is None
    assert Lease.acquire(tmp_path / "lease", patience_seconds=60, give_up=lambda: True) is None


def test_a_released_lease_is_free_and_the_old_holder_knows_it_lost(tmp_path: Path) -> None:
    first = Lease.acquire(tmp_path)
    assert first is not None
    assert first.held()
    first.release()
    second = Lease.acquire(tmp_path)
    assert second is not None
    assert second.held()
    assert not first.held()
    second.release()


def test_of_many_who_want_a_dead_holders_lease_one_gets_it(tmp_path: Path) -> None:
    fsio.write_json(
        tmp_path / "000007.json",
        {"machine": module._machine(), "pid": 2**22 - 3, "started": "1", "token": "", "beat": 0},
    )
    won: list[Lease] = []
    barrier = threading.Barrier(8)

    def race() -> None:
        barrier.wait()
        lease = Lease.acquire(tmp_path, patience_seconds=0.5)
        if lease is not None:
            won.append(lease)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert [path.name for path in tmp_path.glob("*.json")] == ["000008.json"]
    won[0].release()


def test_a_holder_on_another_machine_is_dead_only_when_its_counter_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.6)
    record = {"machine": "another", "host": "n7", "pid": os.getpid(), "started": "", "token": "t"}
    beating = True

    def beat() -> None:
        count = 0
        while beating:
            count += 1
            fsio.write_json(tmp_path / "000001.json", {**record, "beat": count})
            time.sleep(0.1)

    thread = threading.Thread(target=beat)
    thread.start()
    wait_until((tmp_path / "000001.json").exists)
    assert Lease.acquire(tmp_path, patience_seconds=1.5) is None
    beating = False
    thread.join()
    lease = Lease.acquire(tmp_path, patience_seconds=5)
    assert lease is not None
    lease.release()


def test_a_held_lease_keeps_beating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    lease = Lease.acquire(tmp_path)
    assert lease is not None
    wait_until(lambda: fsio.read_json(tmp_path / "000001.json")["beat"] >= 2)
    lease.release()
