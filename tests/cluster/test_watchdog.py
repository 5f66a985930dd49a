"""Ranks that hang, die or are only slow, each with a real watchdog; and how limits are learned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster import fsio, procfs
from cluster.contract import Resources
from cluster.hang import Limits, RankState, StepTimes, limit, verdict
from cluster.heartbeat import Heart, Monitor, Pulse
from cluster.processes import RankGroup
from tests.cluster.bench import PYTHON, REPOSITORY, Bench, Job
from tests.cluster.memory_group import memory_group

SECONDS = 4.0  # of silence that are a hang, once a step time is known
LIMITS = Limits.of(60)
STATE = RankState(
    rank=0, host="n1", pid=1, phase="agree", step=41, beats=80, silent_seconds=75.0,
    limit_seconds=60.0, hangs=True, state="S",
)  # fmt: skip


# -- limits --------------------------------------------------------------------------------------


def pulse(step: int, at: float, phase: str = "data", beats: int = 1) -> Pulse:
    return Pulse(beats=beats, phase=phase, step=step, started=step > 0, at=at, leaving=False)


def learned(*seconds: float) -> StepTimes:
    """What is known after steps of these durations, the warm-up of five left out."""
    times, now = StepTimes(), 0.0
    for step, duration in enumerate([9.0, 9.0, 9.0, 9.0, 9.0, *seconds]):
        times.observe(pulse(step, now))
        now += duration
    times.observe(pulse(5 + len(seconds), now))
    return times


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((1.0, 1.0, 1.0), 60.0),
        ((30.0, 30.0, 30.0), 90.0),
        ((90.0, 90.0, 90.0), 270.0),
        ((150.0, 150.0, 150.0), 300.0),
        ((250.0, 250.0, 250.0), 375.0),
        ((1.0, 1.0, 70.0, 1.0, 1.0), 105.0),
    ],
)
def test_the_limit_is_three_steps_between_one_and_five_minutes_and_never_below_the_longest(
    steps: tuple[float, ...], expected: float
) -> None:
    assert limit(pulse(99, 0.0), learned(*steps), LIMITS) == expected


def test_before_a_step_time_is_known_five_minutes_are_granted_and_more_for_the_first() -> None:
    assert limit(pulse(1, 0.0), StepTimes(), LIMITS) == 300
    assert limit(pulse(0, 0.0), StepTimes(), LIMITS) == 1200


def test_saving_and_evaluating_have_more_time_and_teach_nothing() -> None:
    times = learned(1.0, 1.0)
    assert limit(pulse(9, 0.0, "save"), times, LIMITS) == 540
    assert limit(pulse(9, 0.0, "evaluate"), times, LIMITS) == 540
    for phase in ("save", "evaluate"):
        times.observe(pulse(8, 100.0, phase))
        times.observe(pulse(9, 700.0))
        times.observe(pulse(10, 701.0))
    assert times.usual == 1.0 and times.longest < 60


def test_steps_too_short_to_be_seen_one_by_one_are_learned_from_their_number() -> None:
    times = StepTimes()
    for second in range(10):
        times.observe(pulse(20 * second, float(second)))
    assert times.usual == pytest.approx(0.05)


# -- who it is -----------------------------------------------------------------------------------


def test_the_rank_with_the_fewest_beats_is_the_one_that_hangs() -> None:
    behind = replace(STATE, rank=2, phase="data", beats=79)
    states = [STATE, replace(STATE, rank=1), behind, replace(STATE, rank=3)]
    found = verdict(states, 4, waited=False)
    assert found is not None and (found.rank, found.host) == (2, "n1")
    assert found.message == "rank 2 on n1 hangs: step 41, waiting for data for 75 s"


def test_nobody_is_named_while_the_rank_that_is_waited_for_may_take_its_time() -> None:
    saving = replace(STATE, rank=1, phase="save", beats=79, hangs=False, limit_seconds=600.0)
    assert verdict([STATE, saving], 2, waited=True) is None
    assert verdict([replace(STATE, hangs=False), saving], 2, waited=True) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": "T"}, "stopped by a signal for 75 s, before that waiting for the other ranks"),
        ({"phase": "data"}, "waiting for data for 75 s"),
        ({"cpu_share": 0.99}, "waiting for the other ranks for 75 s"),
    ],
)
def test_among_equals_it_is_the_stopped_one_or_waits_for_data_or_computes(
    change: dict[str, Any], words: str
) -> None:
    states = [STATE, replace(STATE, rank=1, **change), replace(STATE, rank=2)]
    found = verdict(states, 3, waited=False)
    assert found is not None and found.rank == 1
    assert found.message.startswith("rank 1 on n1 hangs:") and words in found.message


def test_ranks_that_all_stand_at_the_same_place_are_said_to_do_so() -> None:
    found = verdict([STATE, replace(STATE, rank=1)], 2, waited=False)
    assert found is not None
    assert found.message.startswith("all 2 ranks hang at the same place, rank 0 on n1 among them:")


def test_a_rank_whose_watchdog_is_silent_too_is_waited_for_and_then_named() -> None:
    assert verdict([STATE], 2, waited=False) is None
    found = verdict([STATE], 2, waited=True)
    assert found is not None and found.rank == 1 and "watchdog are silent" in found.message


def test_a_rank_that_never_began_holds_up_the_others() -> None:
    late = replace(STATE, rank=1, beats=0, phase="idle", hangs=False, silent_seconds=0.0)
    found = verdict([STATE, late], 2, waited=True)
    assert found is not None and found.rank == 1 and "has not begun to train" in found.message


# -- signs of life -------------------------------------------------------------------------------


def test_another_process_reads_the_beats() -> None:
    heart = Heart()
    monitor = Monitor(heart.descriptor)
    assert monitor.read().beats == 0 and monitor.read().phase == "idle"
    heart.beat("data", 40)
    assert not monitor.read().started
    heart.beat("forward", 41)
    seen = monitor.read()
    assert (seen.beats, seen.phase, seen.step, seen.started) == (2, "forward", 41, True)
    heart.sign()
    assert monitor.read() == seen
    heart.beat("evaluate", 41)
    before = monitor.read()
    heart.sign()
    after = monitor.read()
    assert after.at > before.at and after.beats == before.beats == 3
    heart.leave()
    assert monitor.read().leaving


def test_the_kernel_tells_state_and_end_of_a_process() -> None:
    child = subprocess.Popen(["sleep", "60"])
    descriptor = os.pidfd_open(child.pid)
    assert child.pid in {one["pid"] for one in procfs.children(os.getpid())}
    os.kill(child.pid, signal.SIGSTOP)
    while procfs.state(child.pid) != "T":
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert procfs.state(child.pid) == ""
    assert procfs.exit_code(descriptor) in (137, None)  # None before Linux 6.15
    os.close(descriptor)


# -- real ranks ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """A group of ranks that went wrong in one way, and what it left."""

    attempt: Path
    code: int

    def read(self, name: str) -> dict[str, Any]:
        return fsio.read_json(self.attempt / name)


FAULTS = {
    "stop": ("stop:30", 1, 2),
    "spin": ("spin:30", 0, 2),
    "gil": ("gil:30", 1, 3),
    "kill": ("kill:30", 1, 2),
    "crash": ("crash:30", 1, 2),
    "save": ("save:30", 0, 2),
    "suspended": ("", 0, 2),
    "eat": ("eat:30", 1, 2),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    """All faults at once, each in ranks of its own."""
    with memory_group() as memory:
        yield from _run_all(tmp_path_factory.mktemp("watched"), memory)


def _run_all(root: Path, memory: Path | None) -> Iterator[dict[str, Case]]:
    """Only `eat` runs in the control group `memory`, and not without one."""
    groups: dict[str, tuple[RankGroup, Path]] = {}
    for name, (fault, rank, world_size) in FAULTS.items():
        if name == "eat" and memory is None:
            continue
        stage = fsio.make_dir(root / name)
        fsio.write_json(stage / "stage.json", {"key": name})
        env = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "ORCHESTRATE_HANG_SECONDS": str(SECONDS),
            "ORCHESTRATE_FAULT": fault,
            "ORCHESTRATE_FAULT_RANK": str(rank),
        }
        argv = [sys.executable, "-m", "tests.cluster.watched_stage", str(stage)]
        if name == "eat" and memory:
            argv = ["sh", "-c", f'echo $$ > {memory}/cgroup.procs; exec "$@"', "sh", *argv]
        # The executor's own patience is longer than the test: the watchdogs have to act.
        group = RankGroup(argv, env, world_size, stage, kill_seconds=600)
        groups[name] = (group, stage / "attempts" / "s001r000")
    try:
        _suspend(groups["suspended"][1])
        yield {
            name: Case(attempt=attempt, code=_end_of(group))
            for name, (group, attempt) in groups.items()
        }
    finally:
        for group, _ in groups.values():
            group.kill()


def _suspend(attempt: Path) -> None:
    """What `scontrol suspend` does: every process of the job stops, for longer than any limit."""
    while len(list(attempt.glob("step-10-*"))) < 2:
        time.sleep(0.05)
    pids = [pid for rank in (0, 1) for pid in fsio.read_json(attempt / f"pids-{rank}").values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(6 * SECONDS)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def _end_of(group: RankGroup, seconds: float = 120) -> int:
    deadline = time.monotonic() + seconds
    while (code := group.poll()) is None:
        assert time.monotonic() < deadline, "no watchdog has ended the ranks"
        time.sleep(0.05)
    return code


@pytest.mark.parametrize(
    ("name", "rank", "doing", "where"),
    [
        ("stop", 1, "stopped by a signal for", "in _stop"),
        ("spin", 0, "waiting for data for", "in _spin"),
        ("gil", 1, "waiting for data for", "in _hold_interpreter"),
    ],
)
def test_a_rank_that_hangs_is_named_with_the_stacks_of_all(
    cases: dict[str, Case], name: str, rank: int, doing: str, where: str
) -> None:
    case = cases[name]
    assert case.code == 137
    end, failure = case.read("end.json"), case.read(f"failure-rank{rank}.json")
    assert (end["outcome"], end["exit_code"], end["cause"]) == ("failed", 73, "hang")
    assert (failure["rank"], failure["exit_code"], failure["cause"]) == (rank, 73, "hang")
    assert failure["message"] == end["message"]
    assert end["message"].startswith(f"rank {rank} on {failure['host']} hangs: step 30, {doing}")
    assert end["message"].endswith(f"stacks of all ranks in {case.attempt}")
    for number in range(FAULTS[name][2]):
        text = (case.attempt / f"stacks-rank{number}.txt").read_text(encoding="utf-8")
        assert where in text if number == rank else "in _meet" in text
        state = case.read(f"hang-rank{number}.json")
        assert (state["step"], state["phase"]) == (30, "data" if number == rank else "agree")
    others = list(case.attempt.glob("failure-rank*.json"))
    assert [path.name for path in others] == [f"failure-rank{rank}.json"]


def test_a_stopped_rank_is_recorded_as_such_and_a_busy_one_too(cases: dict[str, Case]) -> None:
    stopped = cases["stop"]
    assert stopped.read("hang-rank1.json")["state"] == "T"
    assert "continued (SIGCONT)" in (stopped.attempt / "stacks-rank1.txt").read_text()
    assert cases["gil"].read("hang-rank1.json")["cpu_share"] > 0


@pytest.mark.parametrize(
    ("name", "cause", "code"), [("kill", "killed", 137), ("crash", "user_code", 70)]
)
def test_a_rank_that_dies_takes_down_those_that_wait_for_it_and_stays_the_cause(
    cases: dict[str, Case], name: str, cause: str, code: int
) -> None:
    case = cases[name]
    assert case.code != 0
    first, other = case.read("failure-rank1.json"), case.read("failure-rank0.json")
    assert (first["cause"], first["exit_code"]) == (cause, code)
    assert (other["cause"], other["exit_code"]) == ("communication", 74)
    assert first["at"] < other["at"]


def test_a_rank_killed_for_want_of_memory_is_recorded_so(cases: dict[str, Case]) -> None:
    if "eat" not in cases:
        pytest.skip("no right to make a control group with a limit of memory")
    failure = cases["eat"].read("failure-rank1.json")
    assert (failure["exit_code"], failure["cause"]) == (71, "out_of_host_memory")
    assert "resources.mem_gb" in failure["message"] and "workers" in failure["message"]


@pytest.mark.parametrize("name", ["save", "suspended"])
def test_who_saves_for_long_or_was_suspended_with_its_job_is_left_alone(
    cases: dict[str, Case], name: str
) -> None:
    case = cases[name]
    assert case.code == 0
    assert not list(case.attempt.glob("failure-*")) and not (case.attempt / "hang.json").exists()
    assert (case.attempt.parents[1] / "result.json").exists()


# -- with an executor ----------------------------------------------------------------------------


def test_a_hang_and_a_death_are_requeued_with_their_cause(bench: Bench) -> None:
    hang = _submit(bench, "hang", "stop:30", rank=2, tasks_per_node=2)
    # Alone on its node: with it ends all that SLURM started there.
    death = _submit(bench, "death", "kill:30", rank=1, tasks_per_node=1)
    states = bench.wait(hang, death, seconds=120)
    assert [state.exit_code for state in states] == [0, 0]
    assert hang.ended(0)["decision"] == death.ended(0)["decision"] == "requeue"
    assert (hang.ended(0)["exit_code"], death.ended(0)["exit_code"]) == (73, 137)
    assert hang.ended(0)["reason"].startswith("a rank made no progress")
    records = hang.stage / "attempts" / "s001r000"
    assert fsio.read_json(records / "end.json")["message"].startswith("rank 2 on ")
    assert len(list(records.glob("stacks-rank*.txt"))) == 4
    record = fsio.read_json(death.stage / "attempts" / "s001r000" / "failure-rank1.json")
    assert record["cause"] == "killed"
    assert hang.ended(1)["decision"] == death.ended(1)["decision"] == "finished"


def _submit(bench: Bench, name: str, fault: str, *, rank: int, tasks_per_node: int) -> Job:
    env = {
        "ORCHESTRATE_HANG_SECONDS": str(SECONDS),
        "ORCHESTRATE_FAULT": fault,
        "ORCHESTRATE_FAULT_RANK": str(rank),
    }
    resources = Resources(nodes=2, tasks_per_node=tasks_per_node)
    request = bench.request(name, env=env, resources=resources)
    return bench.submit_request(
        replace(request, argv=(PYTHON, "-m", "tests.cluster.watched_stage"))
    )
