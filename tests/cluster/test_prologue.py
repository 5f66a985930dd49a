"""What a job that is started does before its ranks, by what the jobs before it have recorded."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import fsio, prologue
from cluster.contract import ExitCode, JobHandle
from cluster.evidence import attempts_before
from cluster.inside import Changes, Origin, origin_of
from cluster.patience import Patience
from cluster.successor import queue, replace_by, successors
from orchestrator.store import StageDir, Submission

REPOSITORY = Path(prologue.__file__).parents[1]
SCHEDULER = """\
#!/bin/sh
case "$0 $*" in
  *sbatch*) echo "$@" >> {log}; echo 70 ;;
  *scontrol*show*) echo "JobId=5 JobState={state} PreemptTime=None" ;;
  *squeue*) exit 1 ;;
esac
"""


class Site:
    """A stage, and commands of SLURM that note what they are told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stage = fsio.make_dir(folder / "store" / "stages" / "train-0")
        self.log = folder / "sbatch.log"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.answer("COMPLETED")
        fsio.write_json(self.stage / "stage.json", {"key": "k", "inputs": {}})
        fsio.write_json(self.stage / "submission-1.intent.json", {"n": 1})
        handle = {"executor": "slurm", "job_id": "5"}
        fsio.write_json(self.stage / "submission-1.json", {"n": 1, "handle": handle})
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")
        script = folder / "slurm_script"
        script.write_text("#!/bin/bash\n")
        monkeypatch.setenv("ORCHESTRATE_SCRIPT", str(script))
        self.patch = monkeypatch

    def answer(self, state: str) -> None:
        """What scontrol says of the first job."""
        for name in ("sbatch", "scontrol", "squeue", "scancel"):
            text = SCHEDULER.format(log=self.log, state=state)
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def start(self, job_id: str, base: int = 0) -> int:
        """The prologue of a job; its exit code."""
        self.patch.setenv("SLURM_JOB_ID", job_id)
        self.patch.setenv("ORCHESTRATE_RESTART_BASE", str(base))
        return prologue.main([str(self.stage), "--submission", "1"], patience=Patience(seconds=1.5))

    def command(self, name: str, script: str) -> None:
        """Replace a command of SLURM."""
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")

    def ended(self, decision: str) -> None:
        """The record of the first attempt."""
        folder = fsio.make_dir(self.stage / "attempts" / "s001r000")
        fsio.write_json(folder / "exit.json", {"decision": decision, "reason": "diverged"})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_each_attempt_queues_the_next_one_first(site: Site) -> None:
    assert site.start("5") == ExitCode.SUCCESS
    assert [(s.number, s.job_id) for s in successors(site.stage, 1)] == [(1, "70")]
    told = site.log.read_text().split()
    assert "--dependency=afternotok:5" in told and "--export=ORCHESTRATE_RESTART_BASE=1" in told
    assert site.start("70", base=1) == ExitCode.SUCCESS
    assert [s.number for s in successors(site.stage, 1)] == [1, 2]


def test_without_slurm_nothing_is_queued(site: Site) -> None:
    site.patch.delenv("SLURM_JOB_ID", raising=False)
    assert prologue.main([str(site.stage), "--submission", "1"]) == ExitCode.SUCCESS
    assert not site.log.exists()


def _leaves(site: Site, capsys: pytest.CaptureFixture[str], reason: str, base: int = 1) -> None:
    site.log.unlink(missing_ok=True)
    assert site.start("70" if base else "5", base=base) == ExitCode.SUPERSEDED
    assert reason in capsys.readouterr().out
    assert not site.log.exists()


def test_a_successor_leaves_where_nothing_is_to_be_continued(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever should have taken it back was killed before."""
    site.start("5")
    site.answer("CANCELLED")
    _leaves(site, capsys, "job 5 was cancelled through the scheduler")
    site.ended("stop")
    _leaves(site, capsys, "the attempt before it stopped: diverged")
    site.ended("requeue")
    assert site.start("70", base=1) == ExitCode.SUCCESS
    fsio.write_json(site.stage / "cancel.json", {"user": "ann"})
    _leaves(site, capsys, "the stage was cancelled")
    fsio.write_json(site.stage / "submission-2.intent.json", {"n": 2})
    _leaves(site, capsys, "submission 2 owns the stage now")


def test_a_job_that_is_requeued_although_it_has_a_successor_leaves(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.start("5")
    site.patch.setenv("SLURM_RESTART_COUNT", "1")
    _leaves(site, capsys, "job 70 goes on with the stage", base=0)


def test_a_job_that_leaves_for_another_one_ends_no_attempt_of_that(site: Site) -> None:
    """Where the answer to a requeue was lost there are both: a job that came back, a successor."""
    site.start("5")
    site.patch.setenv("SLURM_RESTART_COUNT", "1")
    words = [str(site.stage), "--submission", "1", "--exit-code", str(int(ExitCode.SUPERSEDED))]
    command = [sys.executable, "-m", "cluster.epilogue", *words]
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == ExitCode.SUPERSEDED
    assert not (site.stage / "attempts" / "s001r001").exists()


def test_a_successor_that_cannot_be_queued_does_not_keep_the_attempt_from_working(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    (site.bin / "sbatch").write_text("#!/bin/sh\necho 'Access denied' >&2; exit 1\n")
    assert site.start("5") == ExitCode.SUCCESS
    assert "no successor is queued: Access denied" in capsys.readouterr().out
    assert successors(site.stage, 1) == []


AWAY = "Unable to contact slurm controller (connect failure)"


def _origin(site: Site, **environ: str) -> Origin:
    script = str(site.log.parent / "slurm_script")
    given = {"SLURM_JOB_NAME": "train", "ORCHESTRATE_SCRIPT": script, **environ}
    given["PATH"] = f"{site.bin}:/usr/bin:/bin"
    origin = origin_of(site.stage, 1, given)
    assert origin is not None
    return origin


def _queued(job_id: str) -> str:
    return f"echo '{job_id}|PENDING|Dependency|0|1000|N/A|0|train|'"


def test_the_only_successor_is_kept_where_another_one_is_refused(site: Site) -> None:
    """Neither what waits already nor the job of another task is one that sbatch has just made."""
    cancelled = site.log.parent / "cancelled"
    site.command("scancel", f"echo $@ >> {cancelled}")
    site.command("squeue", _queued("70"))
    origin = _origin(site, SLURM_JOB_ID="5")
    assert queue(origin, why="goes on") is None
    queued = successors(site.stage, 1)
    for refusal in ("Requested node configuration is not available", AWAY):
        site.command("sbatch", f"echo '{refusal}' >&2; exit 1")
        replace_by(origin, queued[0], Changes(exclude=("n1",)))
        assert successors(site.stage, 1) == queued and not cancelled.exists()
    task = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "1"}
    site.command("squeue", _queued("71_0"))
    assert queue(_origin(site, **task), why="goes on") == AWAY
    site.command("squeue", _queued("72_[0-1]"))
    replace_by(_origin(site, **task), queued[0], Changes(exclude=("n1",)))
    assert [one.job_id for one in successors(site.stage, 1)] == ["72_1"]


def test_the_time_of_a_job_that_nobody_tells_of_is_known_to_lie_within_the_call(
    site: Site,
) -> None:
    site.command("sbatch", "sleep 1; echo 70")
    before = time.time()
    assert queue(_origin(site, SLURM_JOB_ID="5"), why="goes on") is None
    made = successors(site.stage, 1)[0]
    assert made.submitted_at - made.margin_seconds < before
    assert time.time() < made.submitted_at + made.margin_seconds
    first = JobHandle(executor="slurm", cluster="c", job_id="5", submitted_at=0.0)
    submission = Submission(
        n=1,
        run_id="r",
        stage="train",
        job_name="train",
        handle=first,
        dependencies=(),
        resources={},
        tracking=None,
        code=None,
    )
    StageDir(site.stage).record_submission(submission)
    recorded = StageDir(site.stage).submission(1)
    assert recorded is not None and recorded.handle is not None
    assert recorded.handle.margin_seconds == made.margin_seconds


def test_the_ranks_never_start_without_the_input_that_still_may_come(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where squeue does not answer, or no job may wait for that of the input, another looks."""
    upstream = fsio.make_dir(site.stage.parent / "prepare-0")
    fsio.write_json(upstream / "submission-1.intent.json", {"n": 1})
    handle = {"executor": "slurm", "job_id": "3"}
    fsio.write_json(upstream / "submission-1.json", {"n": 1, "handle": handle})
    inputs = {"in": [{"stage": upstream.name, "key": "u"}]}
    fsio.write_json(site.stage / "stage.json", {"key": "k", "inputs": inputs})
    site.command("squeue", f"echo '{AWAY}' >&2; exit 1")
    assert site.start("5") == ExitCode.SUPERSEDED
    assert "another job looks for the input again" in capsys.readouterr().out
    site.command("squeue", f'case "$*" in *"--jobs 3"*) {_queued("3")} ;; *) exit 1 ;; esac')
    assert site.start("70", base=1) == ExitCode.SUPERSEDED
    assert "waits again, for 3" in capsys.readouterr().out
    site.command("sbatch", "echo 'Access denied' >&2; exit 1")
    assert site.start("70", base=2) == ExitCode.SUPERSEDED
    assert "`orchestrate resume` goes on" in capsys.readouterr().out
    fsio.write_json(upstream / "result.json", {"key": "u"})
    assert site.start("70", base=2) == ExitCode.SUCCESS


def test_a_successor_of_a_job_that_nobody_remembers_asks_accounting(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.start("5")
    site.command("scontrol", "exit 1")
    site.command("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert site.start("70", base=1) == ExitCode.SUCCESS
    assert "how job 5 ended is not known any more" in capsys.readouterr().out
    site.command("sacct", "echo '5|CANCELLED by 1000||n1|0:15|0|1|2'")
    (site.bin / "sacct").chmod(0o755)
    _leaves(site, capsys, "job 5 was cancelled through the scheduler")
    site.command("sacct", "echo '5|NODE_FAIL||n1|0:0|0|1|2'")
    assert site.start("70", base=1) == ExitCode.SUCCESS


def test_a_row_of_jobs_that_end_before_they_can_record_it_comes_to_an_end(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.answer("FAILED")
    assert site.start("5") == ExitCode.SUCCESS
    for base in (1, 2, 3):
        assert site.start("70", base=base) == ExitCode.SUCCESS
    site.answer("PREEMPTED")
    assert site.start("70", base=4) == ExitCode.SUCCESS
    site.answer("FAILED")
    _leaves(site, capsys, "4 jobs in a row ended before their scripts could record it", base=4)
    stopped = fsio.read_json(site.stage / "attempts" / "s001r004" / "exit.json")
    assert (stopped["decision"], stopped["policy"]) == ("stop", "stop")


def test_attempts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("s001r1000", "s001r999", "s002r000", "s1000r000"):
        fsio.make_dir(tmp_path / "attempts" / name)
    before = [number for number, _ in attempts_before(tmp_path, 2, 0)]
    assert before == [(1, 999), (1, 1000)]
    names = [one["id"] for one in StageDir(tmp_path).attempt_records()]
    assert names == ["s001r999", "s001r1000", "s002r000", "s1000r000"]
