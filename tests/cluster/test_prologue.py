"""What a job that is started does before its ranks, by what the jobs before it have recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import fsio, prologue
from cluster.contract import ExitCode
from cluster.successor import successors

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
        return prologue.main([str(self.stage), "--submission", "1"])

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


def test_a_successor_that_cannot_be_queued_does_not_keep_the_attempt_from_working(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    (site.bin / "sbatch").write_text("#!/bin/sh\necho 'Access denied' >&2; exit 1\n")
    assert site.start("5") == ExitCode.SUCCESS
    assert "no successor is queued: Access denied" in capsys.readouterr().out
    assert successors(site.stage, 1) == []
