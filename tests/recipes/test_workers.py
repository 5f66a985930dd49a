"""Processes that open videos may die, hang, take too much memory: only their file is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.contract import InputError
from recipes.data.pool import Beat, Bytes, Refused, Shape, load_in_order
from tests.recipes.data_files import warm_workers

pytestmark = pytest.mark.usefixtures("server")

BATCHES = [list(range(first, first + 4)) for first in range(0, 40, 4)]


@pytest.fixture(scope="module")
def server() -> None:
    """Start the fork server with what workers import."""
    warm_workers()


@dataclass(frozen=True)
class Numbers:
    """A reader whose batches are the numbers of their items, and which fails as it is told to.

    `faults` maps an item to what happens on it; with a `mark` it happens only the first time.
    """

    faults: dict[int, str]
    mark: Path | None = None
    seconds: float = 20.0

    def start(self) -> None:
        if "start" in self.faults.values():
            sys.exit(3)

    def shape(self, items: Sequence[int]) -> Shape:
        return len(items), 1000

    def name(self, row: int) -> str:
        return f"video {row}"

    def read(self, items: Sequence[int], out: Bytes, beat: Beat, refused: Refused) -> list[str]:
        for place, item in enumerate(items):
            if item in refused:
                out[place] = 255
                continue
            beat(item, self.seconds)
            self._fail(self.faults.get(item, ""))
            out[place] = item
        return [refused.get(item, "") for item in items]

    def _fail(self, fault: str) -> None:
        if fault and self.mark is not None:
            if self.mark.exists():
                return
            self.mark.touch()
        if fault == "hang":
            time.sleep(1000)
        elif fault == "memory":
            np.empty(9 << 30, np.uint8)
        elif fault == "input":
            raise InputError("video 5: is torn")
        elif fault == "bug":
            raise ZeroDivisionError("a mistake")
        elif fault:
            os.kill(os.getpid(), getattr(signal, fault))


def read(faults: dict[int, str], workers: int = 2, **changes: Any) -> list[tuple[Bytes, list[str]]]:
    reader = Numbers(faults, **changes)
    return list(load_in_order(reader, BATCHES, workers, seconds=20.0))


def numbers(batches: Sequence[tuple[Bytes, list[str]]]) -> list[int]:
    for batch, _ in batches:
        assert (batch == batch[:, :1]).all()
    return [int(number) for batch, _ in batches for number in batch[:, 0]]


def processes() -> list[int]:
    return [child.pid or 0 for child in multiprocessing.active_children()]


@pytest.mark.parametrize("workers", [0, 3])
def test_batches_come_in_order(workers: int) -> None:
    assert numbers(read({}, workers)) == list(range(40))
    assert processes() == []


@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP", "memory"])
def test_what_ends_a_process_only_once_changes_nothing_and_is_named(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = 0.5 if fault == "SIGSTOP" else 20.0
    batches = read({13: fault}, mark=tmp_path / "mark", seconds=seconds)
    assert numbers(batches) == list(range(40))
    assert not any(problem for _, problems in batches for problem in problems)
    reasons = {
        "SIGKILL": "was ended by SIGKILL",
        "SIGSTOP": "was not done in 0.5 s",
        "memory": "ran out of memory",
    }
    assert f"video 13: the process that read it {reasons[fault]}" in caplog.text


@pytest.mark.parametrize(("fault", "workers"), [("SIGSEGV", 1), ("hang", 2), ("memory", 2)])
def test_what_ends_each_process_that_reads_it_is_refused(
    fault: str, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    faults = {13: fault, 14: "SIGABRT", 38: fault}
    batches = read(faults, workers, seconds=0.5 if fault == "hang" else 20.0)
    expected = [255 if item in faults else item for item in range(40)]
    assert numbers(batches) == expected
    problems = [problem for _, problems in batches for problem in problems]
    assert problems[13].startswith("video 13: each process that read it ")
    assert sum(bool(problem) for problem in problems) == len(faults)
    assert caplog.text.count("another goes on") == 2 * len(faults)


def test_a_process_killed_while_it_has_nothing_to_do_is_replaced() -> None:
    with closing(load_in_order(Numbers({}), BATCHES, 2, seconds=20.0)) as batches:
        first = [next(batches)]
        time.sleep(0.3)  # all that may be read ahead is read
        before = processes()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert numbers([*first, *batches]) == list(range(40))
        assert len(before) == 2


def test_processes_that_cannot_start_are_an_error_and_not_an_endless_loop() -> None:
    with pytest.raises(RuntimeError, match=r"before they did anything; .* ended with code 3"):
        read({0: "start"})
    assert processes() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_as_it_is_when_its_turn_has_come(workers: int) -> None:
    seen = []
    with pytest.raises(InputError, match=r"^video 5: is torn$"):
        for batch, _ in load_in_order(Numbers({5: "input"}), BATCHES, workers, seconds=20.0):
            seen.append(batch)
    assert len(seen) == 1
    assert processes() == []


def test_a_mistake_in_a_process_says_where_it_was_made() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        read({5: "bug"})
    assert "test_workers.py" in error.value.__notes__[0]


def test_memory_is_used_again_only_when_nobody_has_the_batch() -> None:
    batches = load_in_order(Numbers({}), BATCHES * 5, 1, seconds=20.0)
    held, places, total = [], set(), 0
    for number, (batch, _) in enumerate(batches):
        places.add(batch.ctypes.data)
        total += 1
        if number % 10 == 3:
            held.append((number, batch[1:]))
    assert total == 50
    assert len(places) <= len(held) + 5
    for number, rest in held:
        assert (rest == np.array(BATCHES[number % 10][1:])[:, None]).all()


def test_no_more_than_two_batches_a_process_are_read_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[list[int]]:
        for number, batch in enumerate(BATCHES):
            taken.append(number)
            yield batch

    with closing(load_in_order(Numbers({}), items(), 2, seconds=20.0)) as batches:
        for number, _ in enumerate(batches):
            assert len(taken) <= number + 4


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, signal\n"
        "from recipes.data.pool import load_in_order\n"
        "from tests.recipes.test_workers import BATCHES, Numbers\n"
        "if __name__ == '__main__':\n"
        "    faults = {4: 'hang'}\n"
        "    batches = load_in_order(Numbers(faults, seconds=600.0), BATCHES, 2, seconds=20.0)\n"
        "    next(batches)\n"
        "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
