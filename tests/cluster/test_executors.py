"""The conformance suite: what every executor promises, on this machine and on a real SLURM."""

from __future__ import annotations

import pytest

from cluster.contract import JobHandle, Phase, Resources
from cluster.executors import EXECUTORS, make
from tests.cluster.bench import Bench

TWO_BY_TWO = Resources(nodes=2, tasks_per_node=2)


def test_a_chain_runs_in_order_and_succeeds(bench: Bench) -> None:
    first = bench.submit("first")
    second = bench.submit("second", after=(first,))
    third = bench.submit("third", after=(first, second))
    states = bench.wait(first, second, third)
    assert [(s.phase, s.exit_code) for s in states] == [(Phase.GONE, 0)] * 3
    ends = [job.ended(0)["finished_at"] for job in (first, second, third)]
    assert ends == sorted(ends)
    assert all(job.ended(0)["decision"] == "finished" for job in (first, second, third))


def test_submit_returns_before_the_job_is_done(bench: Bench) -> None:
    job = bench.submit("slow", "--steps", "40")
    assert bench.executor.query([job.handle])[job.handle].phase is not Phase.GONE
    assert job.result() is None


def test_children_of_a_failed_job_never_run_and_are_gone(bench: Bench) -> None:
    parent = bench.submit("parent", "--exit", "0:*:70")
    child = bench.submit("child", after=(parent,))
    grandchild = bench.submit("grandchild", after=(child,))
    states = bench.wait(parent, child, grandchild)
    assert states[0].exit_code == 70
    assert [s.phase for s in states] == [Phase.GONE] * 3
    assert not child.attempts() and not grandchild.attempts()
    assert parent.attempts() == ["s001r000"]


def test_a_job_that_exits_75_goes_on_with_restart_1_and_its_logs_are_appended(
    bench: Bench,
) -> None:
    job = bench.submit("again", "--exit", "0:*:75", resources=TWO_BY_TWO)
    child = bench.submit("child", after=(job,))
    states = bench.wait(job, child)
    assert [s.exit_code for s in states] == [0, 0]
    assert states[0].restarts == 1
    assert job.ended(0)["decision"] == "requeue" and job.ended(1)["decision"] == "finished"
    for rank in range(4):
        assert "restart 0" in job.log(rank) and "restart 1" in job.log(rank)
    assert "ended with exit code 75 at step 0: requeue" in job.log()


def test_ranks_of_two_nodes_know_their_place(bench: Bench) -> None:
    job = bench.submit("places", resources=TWO_BY_TWO)
    assert bench.wait(job)[0].exit_code == 0
    places = [job.rank(0, rank)["ranks"] for rank in range(4)]
    assert [p["RANK"] for p in places] == ["0", "1", "2", "3"]
    assert {p["WORLD_SIZE"] for p in places} == {"4"}
    assert len({(p["MASTER_ADDR"], p["MASTER_PORT"]) for p in places}) == 1
    if bench.executor.name == "slurm":
        assert [p["LOCAL_RANK"] for p in places] == ["0", "1", "0", "1"]
        assert [p["HOST"] for p in places] == ["n1", "n1", "n2", "n2"]
        assert places[0]["MASTER_ADDR"] == "n1"
        assert {p["LOCAL_WORLD_SIZE"] for p in places} == {"2"}
    else:
        assert [p["LOCAL_RANK"] for p in places] == ["0", "1", "2", "3"]


def test_the_jobs_own_variables_arrive_and_a_secret_of_the_shell_does_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_TOKEN", "canary-9f31")
    monkeypatch.setenv("SLURM_CANARY", "canary-9f31")
    monkeypatch.setenv("SBATCH_EXPORT", "ALL")
    value = "two words, 'quotes' \"double\" $HOME `id` \\ * ! é"
    resources = Resources(nodes=2, tasks_per_node=1)
    job = bench.submit("env", env={"OURS": value}, resources=resources)
    assert bench.wait(job)[0].exit_code == 0
    for rank in range(2):
        seen = job.rank(0, rank)["env"]
        assert seen["OURS"] == value
        assert seen["HOME"] and seen["PATH"] and seen["PYTHONPATH"]
        assert "CANARY_TOKEN" not in seen and "SLURM_CANARY" not in seen
    everything = [p.read_bytes() for p in job.stage.rglob("*") if p.is_file()]
    assert len(everything) > 4
    assert not any(b"canary-9f31" in content for content in everything)


def test_cancelling_stops_a_running_job_for_good(bench: Bench) -> None:
    job = bench.submit("endless", "--steps", "100000")
    child = bench.submit("child", after=(job,))
    bench.until(lambda: job.started(0, 1))
    (job.stage / "cancel.json").write_text('{"user": "ann", "host": "login1", "at": 0}')
    bench.executor.cancel([job.handle])
    states = bench.wait(job, child, seconds=30)
    assert [s.phase for s in states] == [Phase.GONE] * 2
    assert states[0].exit_code != 0
    assert job.attempts() == ["s001r000"] and not child.attempts()
    assert job.ended(0)["decision"] == "stop"
    assert job.ended(0)["reason"] == "cancelled by ann on login1"


def test_cancelling_a_queued_job_keeps_it_from_starting(bench: Bench) -> None:
    first = bench.submit("first", "--steps", "30")
    second = bench.submit("second", after=(first,))
    bench.executor.cancel([second.handle])
    states = bench.wait(first, second)
    assert states[0].exit_code == 0
    assert states[1].phase is Phase.GONE and not second.attempts()


def test_a_job_is_found_by_name_only_while_it_waits_or_runs(bench: Bench) -> None:
    job = bench.submit("named", "--steps", "30")
    name = f"{bench.prefix}.named"
    found = bench.executor.find(name)
    assert found is not None
    assert (found.executor, found.job_id) == (job.handle.executor, job.handle.job_id)
    margin = job.handle.margin_seconds + found.margin_seconds
    assert abs(found.submitted_at - job.handle.submitted_at) <= margin
    assert bench.executor.find(name + "x") is None
    bench.wait(job)
    assert bench.executor.find(name) is None


def test_the_jobs_of_an_array_are_jobs_of_their_own_and_a_dependent_waits_for_all(
    bench: Bench,
) -> None:
    tasks = bench.submit_array("parts", [0, 2, 3])
    child = bench.submit("child", after=tuple(tasks))
    states = bench.wait(*tasks, child)
    assert [state.exit_code for state in states] == [0] * 4
    assert len({job.handle for job in tasks}) == 3
    ends = [job.ended(0)["finished_at"] for job in (*tasks, child)]
    assert max(ends) == ends[-1]
    for job in tasks:
        assert "rank 0 of 1 starts" in job.log()
        assert job.ended(0)["decision"] == "finished"


def test_one_job_of_an_array_is_found_by_its_number_and_cancelled_alone(bench: Bench) -> None:
    tasks = bench.submit_array("parts", [0, 1], "--steps", "40")
    name = f"{bench.prefix}.parts"
    for number, job in enumerate(tasks):
        found = bench.executor.find(name, task=number)
        assert found is not None and found.job_id == job.handle.job_id
    assert bench.executor.find(name) is None
    assert bench.executor.find(name, task=7) is None
    bench.executor.cancel([tasks[1].handle])
    states = bench.wait(*tasks)
    assert states[0].exit_code == 0 and tasks[0].result() is not None
    assert states[1].phase is Phase.GONE and tasks[1].result() is None


def test_a_dependent_of_an_array_never_runs_when_one_of_its_jobs_failed(bench: Bench) -> None:
    failing = bench.submit_array("parts", [0, 1], "--exit", "0:*:70")
    child = bench.submit("child", after=tuple(failing))
    states = bench.wait(*failing, child)
    assert [state.exit_code for state in states[:2]] == [70, 70]
    assert states[2].phase is Phase.GONE and not child.attempts()


def test_one_failing_rank_ends_all_ranks_within_seconds(bench: Bench) -> None:
    arguments = ("--steps", "100000", "--exit", "0:1:65", "--record-failure")
    job = bench.submit("broken", *arguments, resources=TWO_BY_TWO)
    (state,) = bench.wait(job, seconds=40)
    assert state.phase is Phase.GONE and state.exit_code == 65
    assert job.ended(0)["decision"] == "stop"


def test_success_without_a_result_is_a_failure(bench: Bench) -> None:
    job = bench.submit("forgetful", "--no-result")
    (state,) = bench.wait(job)
    assert state.exit_code == 1
    assert "there is no result" in job.ended(0)["reason"]


def test_wait_calls_back_and_respects_its_timeout(bench: Bench) -> None:
    job = bench.submit("slow", "--steps", "100000")
    phases = []
    states = bench.executor.wait(
        [job.handle], on_tick=lambda now: phases.append(now[job.handle].phase), timeout=1.5
    )
    assert states[job.handle].phase is not Phase.GONE
    assert 2 <= len(phases) <= 6


def test_rendering_shows_the_command_and_submits_nothing(bench: Bench) -> None:
    text = bench.executor.render(bench.request("shown", "--steps", "7"))
    assert "-m tests.cluster.stage" in text and "--steps 7" in text
    array = bench.executor.render(bench.array_request("shown", [0, 5], "--steps", "7"))
    assert "shown-0" in array and "shown-5" in array
    assert bench.executor.find(f"{bench.prefix}.shown") is None


def test_a_job_of_long_ago_is_gone(bench: Bench) -> None:
    job = bench.submit("now")
    number = job.handle.job_id.rpartition(".")
    old = JobHandle(
        executor=bench.executor.name,
        cluster=job.handle.cluster,
        job_id=f"{number[0]}{number[1]}999",
        submitted_at=1.0,
    )
    states = bench.executor.query([old, job.handle])
    assert states[job.handle].phase is not Phase.GONE
    if bench.executor.name == "slurm":
        assert states[old].phase is Phase.GONE
    bench.executor.cancel([old])


@pytest.mark.parametrize("name", sorted(EXECUTORS))
def test_every_executor_of_the_table_can_be_made(name: str) -> None:
    assert make(name).name == name


def test_an_unknown_executor_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown executor 'pbs'; known: local, slurm"):
        make("pbs")
