"""What only the local executor does: Ctrl-C, processes that die with it, other processes' jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import local_record
from cluster.contract import JobState, Phase, Resources, SchedulerError
from cluster.environment import passed_on
from cluster.local import LocalExecutor
from cluster.local_record import Owner, this_process
from cluster.processes import RankGroup, free_port, log_path
from tests.cluster.bench import PYTHON, REPOSITORY, Bench

DRIVER = """
import sys
from pathlib import Path
from cluster.contract import JobRequest, Resources
from cluster.local import LocalExecutor
stage = Path(sys.argv[1])
target = (str(stage), "--submission", "1")
request = JobRequest(
    name="driven",
    argv=(sys.executable, "-m", "tests.cluster.stage", *target, *sys.argv[2:]),
    epilogue=(sys.executable, "-m", "cluster.epilogue", *target),
    resources=Resources(nodes=1, tasks_per_node=2),
    log_dir=stage / "logs",
    env={"PYTHONPATH": %r},
)
executor = LocalExecutor(stop_seconds=20)
try:
    print(executor.wait([executor.submit(request)]))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


class Driven:
    """A process that runs one stage through a local executor, as the command line does."""

    def __init__(self, bench: Bench, *arguments: str) -> None:
        self.request = bench.request("driven", *arguments)
        self.stage = self.request.log_dir.parent
        command = [PYTHON, "-c", DRIVER % str(REPOSITORY), str(self.stage), *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": str(bench.root.parent / "tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: len(list(self.stage.glob("attempts/s001r000/rank*.json"))) == 2)

    def pids(self) -> list[int]:
        from tests.cluster.bench import Job

        job = Job(stage=self.stage, handle=None)  # type: ignore[arg-type]
        return [job.rank(0, rank)["pid"] for rank in range(2)]

    def ended(self) -> dict[str, object]:
        from cluster import fsio

        return fsio.read_json(self.stage / "attempts/s001r000/exit.json")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_saves_records_and_leaves_nothing_running(
    local_bench: Bench, number: signal.Signals
) -> None:
    driven = Driven(local_bench, "--steps", "100000")
    pids = driven.pids()
    driven.process.send_signal(number)
    out, err = driven.process.communicate(timeout=20)
    assert (driven.process.returncode, out) == (130, "interrupted\n")
    assert "it saves a checkpoint" in err
    assert not any(alive(pid) for pid in pids)
    ended = driven.ended()
    assert (ended["decision"], ended["reason"]) == ("stop", "interrupted")
    assert isinstance(ended["step"], int) and ended["step"] > 0
    assert not (driven.stage / "attempts" / "s001r001").exists()


def test_a_second_ctrl_c_kills_and_still_records(local_bench: Bench) -> None:
    driven = Driven(local_bench, "--steps", "100000", "--save-seconds", "60")
    pids = driven.pids()
    driven.process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    assert driven.process.poll() is None
    driven.process.send_signal(signal.SIGINT)
    out, _ = driven.process.communicate(timeout=10)
    assert out == "interrupted\n"
    assert not any(alive(pid) for pid in pids)
    assert (driven.ended()["exit_code"], driven.ended()["reason"]) == (137, "interrupted")


def test_ranks_die_with_a_killed_executor(local_bench: Bench) -> None:
    driven = Driven(local_bench, "--steps", "100000", "--deaf-to", "SIGTERM")
    pids = driven.pids()
    assert all(alive(pid) for pid in pids)
    driven.process.kill()
    driven.process.communicate(timeout=10)
    wait_until(lambda: not any(alive(pid) for pid in pids), 5)


def test_another_process_sees_finds_and_cancels_the_job(local_bench: Bench) -> None:
    driven = Driven(local_bench, "--steps", "100000")
    other = LocalExecutor()
    handle = other.find("driven")
    assert handle is not None
    assert other.query([handle])[handle].phase is Phase.RUNNING
    other.cancel([handle])
    out, _ = driven.process.communicate(timeout=20)
    assert "cancelled" in out
    assert other.query([handle])[handle] == JobState(
        phase=Phase.GONE, reason="the process that ran it is gone"
    )
    assert other.find("driven") is None


def test_a_killed_executor_is_gone_for_others_and_its_records_are_swept(
    local_bench: Bench,
) -> None:
    driven = Driven(local_bench, "--steps", "100000")
    other = LocalExecutor()
    handle = other.find("driven")
    assert handle is not None
    driven.process.kill()
    driven.process.communicate(timeout=10)
    assert other.query([handle])[handle].phase is Phase.GONE
    folder = local_record.records_folder() / handle.job_id.rpartition(".")[0]
    assert folder.is_dir()
    local_bench.submit("next")
    assert not folder.exists()


def test_a_pid_used_again_is_not_taken_for_the_job() -> None:
    me = this_process()
    assert me.alive() and Owner.parse(str(me)) == me
    assert not replace(me, started=me.started + 1).alive()
    assert not replace(me, boot="0" * 8).alive()


def test_a_job_of_another_machine_is_not_guessed_about(
    local_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = local_bench.submit("here")
    foreign = replace(job.handle, job_id="00000000-1-1.1", cluster="other-host")
    with pytest.raises(SchedulerError, match="started on other-host"):
        local_bench.executor.query([foreign])
    monkeypatch.setenv("ORCHESTRATE_GONE_HOSTS", "x,other-host")
    assert local_bench.executor.query([foreign])[foreign].phase is Phase.GONE
    earlier_boot = replace(job.handle, job_id="00000000-1-1.1")
    assert local_bench.executor.query([earlier_boot])[earlier_boot].phase is Phase.GONE
    slurm = replace(job.handle, executor="slurm", job_id="17")
    with pytest.raises(SchedulerError, match="not a local job"):
        local_bench.executor.query([slurm])


def test_three_crashes_without_progress_stop_the_job(local_bench: Bench) -> None:
    job = local_bench.submit("crash", "--exit", "*:*:139")
    (state,) = local_bench.wait(job)
    assert (state.exit_code, state.restarts) == (139, 2)
    assert job.attempts() == ["s001r000", "s001r001", "s001r002"]
    last = job.ended(2)
    assert "3 attempts in a row without a new checkpoint" in last["reason"]


def test_a_killed_rank_is_replaced_by_a_new_attempt_on_another_port(local_bench: Bench) -> None:
    job = local_bench.submit("killed", "--steps", "40", resources=Resources(tasks_per_node=2))
    local_bench.until(lambda: job.started(0, 2))
    os.kill(job.rank(0, 1)["pid"], signal.SIGKILL)
    (state,) = local_bench.wait(job)
    assert (state.exit_code, state.restarts) == (0, 1)
    first = job.ended(0)
    assert first["exit_code"] == 137


def test_a_rank_that_ignores_everything_is_killed_within_seconds(local_bench: Bench) -> None:
    arguments = ("--steps", "100000", "--deaf-to", "SIGTERM", "--exit", "0:1:70")
    job = local_bench.submit("deaf", *arguments, resources=Resources(tasks_per_node=2))
    begun = time.monotonic()
    (state,) = local_bench.wait(job, seconds=20)
    assert state.phase is Phase.GONE and state.exit_code == 70
    assert time.monotonic() - begun < 8


def test_what_a_rank_leaves_behind_is_killed_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print(p.pid, flush=True)"
    )
    group = RankGroup([PYTHON, "-c", code], dict(os.environ), 1, tmp_path, kill_seconds=1)
    wait_until(lambda: group.poll() is not None)
    child = int(log_path(tmp_path, 0).read_text())
    wait_until(lambda: not alive(child), 5)


def test_a_program_that_is_missing_fails_the_job_and_not_the_executor(local_bench: Bench) -> None:
    request = replace(local_bench.request("absent"), argv=("/nonexistent/python",))
    handle = local_bench.executor.submit(request)
    child = local_bench.submit("child")
    states = local_bench.executor.wait([handle, child.handle], timeout=20)
    assert states[handle].exit_code == 127 and "cannot start" in states[handle].reason
    assert states[child.handle].exit_code == 0


def test_a_wait_that_timed_out_can_be_taken_up_again(local_bench: Bench) -> None:
    job = local_bench.submit("long", "--steps", "20")
    assert local_bench.wait(job, seconds=0.3)[0].phase is Phase.RUNNING
    assert local_bench.wait(job)[0].exit_code == 0
    assert job.attempts() == ["s001r000"]


def test_wait_works_outside_the_main_thread(local_bench: Bench) -> None:
    job = local_bench.submit("threaded")
    done: list[JobState] = []
    thread = threading.Thread(target=lambda: done.extend(local_bench.wait(job)))
    thread.start()
    thread.join(20)
    assert done and done[0].exit_code == 0


def test_signal_handlers_are_put_back(local_bench: Bench) -> None:
    before = signal.getsignal(signal.SIGTERM)
    local_bench.wait(local_bench.submit("short"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_records_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = local_record.records_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(SchedulerError, match="not a private folder"):
        local_record.records_folder()


def test_ports_are_free_and_below_the_ephemeral_range() -> None:
    assert all(20000 <= free_port() < 32000 for _ in range(20))


def test_only_harmless_variables_are_passed_on() -> None:
    shell = {
        "PATH": "/bin",
        "HOME": "/home/ann",
        "LC_ALL": "C",
        "NCCL_SOCKET_IFNAME": "ib0",
        "CUDA_VISIBLE_DEVICES": "0",
        "LANG": "x\ny",
        "MLFLOW_TRACKING_TOKEN": "t",
        "AWS_SECRET_ACCESS_KEY": "k",
        "HF_TOKEN": "h",
        "http_proxy": "http://user:password@host",
        "SLURM_JOB_ID": "1",
        "PYTHONPATH": "/editable",
    }
    assert sorted(passed_on(shell)) == ["HOME", "LC_ALL", "NCCL_SOCKET_IFNAME", "PATH"]
    assert "CUDA_VISIBLE_DEVICES" in passed_on(shell, same_machine=True)


def test_the_driver_of_these_tests_runs_to_the_end(local_bench: Bench) -> None:
    driven = Driven(local_bench, "--steps", "5")
    out, _ = driven.process.communicate(timeout=20)
    assert driven.process.returncode == 0 and "exit_code=0" in out
    assert sys.executable == PYTHON
