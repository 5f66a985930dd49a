"""A rank of a real pretraining hangs or dies: it is named, and the training ends with its weights.

All runs go side by side, each with a store of its own that has the reference's index: jobs that
share a node. One is started by torchrun.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import CommandLine, make_command_line

pytestmark = pytest.mark.e2e

PRETRAIN = (
    "tiny.yaml",
    "~stages.probe",
    "~stages.probe_random",
    "~stages.finetune",
    "~stages.retrieval",
    "~stages.report",
    "+stages.pretrain.resources={tasks_per_node: 2}",
)
STEP = 14  # behind the first checkpoint, ahead of the second
SECONDS = "10"  # of silence that are a hang once a step time is known; five times that before
FAULTS = {"stop": 1, "spin": 0, "gil": 1, "step": 1}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One pretraining with its fault, and what `submit` said of it."""

    command_line: CommandLine
    code: int
    output: str

    @property
    def stage(self) -> Path:
        return self.command_line.stage_dir("pretrain")

    def read(self, name: str, attempt: int = 0) -> dict[str, Any]:
        path = self.stage / "attempts" / f"s001r{attempt:03d}" / name
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value

    def encoder(self) -> bytes:
        return (self.stage / "outputs" / "encoder.safetensors").read_bytes()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """The unbroken run under `""`, and one for each fault."""
    root = tmp_path_factory.mktemp("hang")
    reference = make_command_line(root / "reference")
    output = reference("submit", *PRETRAIN)
    found = {"": Run(command_line=reference, code=0, output=output)}
    index = reference.stage_dir("index")
    started: dict[str, tuple[CommandLine, subprocess.Popen[str]]] = {}
    for kind, rank in FAULTS.items():
        run = make_command_line(root / kind)
        shutil.copytree(index, run.store / "stages" / index.name)
        fault = {"ORCHESTRATE_FAULT": f"{kind}:{STEP}", "ORCHESTRATE_FAULT_RANK": str(rank)}
        started[kind] = (
            run,
            run.start("submit", *PRETRAIN, **fault, ORCHESTRATE_HANG_SECONDS=SECONDS),
        )
    started["torchrun"] = _start_torchrun(found[""], make_command_line(root / "torchrun"))
    try:
        for kind, (run, process) in started.items():
            output, _ = process.communicate(timeout=570)
            found[kind] = Run(command_line=run, code=process.returncode, output=output)
        yield found
    finally:
        for _, process in started.values():
            process.kill()


def _start_torchrun(reference: Run, run: CommandLine) -> tuple[CommandLine, subprocess.Popen[str]]:
    """The reference's stage as it was submitted, in a store where it has not run."""
    stages = run.store / "stages"
    index = reference.command_line.stage_dir("index")
    shutil.copytree(index, stages / index.name)
    stage = stages / reference.stage.name
    stage.mkdir()
    for name in ("stage.json", "submission-1.intent.json"):
        shutil.copy(reference.stage / name, stage / name)
    claim = json.loads((stage / "submission-1.intent.json").read_text(encoding="utf-8"))
    # Sums depend on the number of threads; torchrun would choose one.
    threads = {"OMP_NUM_THREADS": str(claim["resources"]["cpus_per_task"])}
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*argv, "-m", "orchestrator.entry", str(stage), "--submission", "1"],
        cwd=run.folder,
        env={**run.env, **threads, "PYTHONPATH": claim["code"]},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return run, process


@pytest.mark.parametrize("kind", ["stop", "spin", "gil"])
def test_a_hang_is_found_named_and_requeued_and_changes_nothing(
    runs: dict[str, Run], kind: str
) -> None:
    run, rank = runs[kind], FAULTS[kind]
    assert run.code == 0, run.output
    end, ended = run.read("end.json"), run.read("exit.json")
    failure = run.read(f"failure-rank{rank}.json")
    assert (end["cause"], end["exit_code"], ended["exit_code"]) == ("hang", 73, 73)
    assert (ended["decision"], ended["step"]) == ("requeue", 10)
    assert failure["message"] == end["message"]
    assert end["message"].startswith(f"rank {rank} on {failure['host']} hangs: step {STEP}, ")
    stacks = [run.stage / "attempts" / "s001r000" / f"stacks-rank{n}.txt" for n in (0, 1)]
    texts = [path.read_text(encoding="utf-8") for path in stacks]
    assert "hangs.py" in texts[rank] and "hangs.py" not in texts[1 - rank]
    assert "loop.py" in texts[1 - rank]
    assert run.read("exit.json", attempt=1)["decision"] == "finished"
    assert run.encoder() == runs[""].encoder()


def test_a_killed_rank_is_the_one_named_not_those_who_lost_it(runs: dict[str, Run]) -> None:
    run = runs["step"]
    assert run.code == 0, run.output
    failure, ended = run.read("failure-rank1.json"), run.read("exit.json")
    assert (failure["cause"], ended["exit_code"], ended["decision"]) == ("killed", 137, "requeue")
    assert "killed on" in run.output and "rank 1" in run.output
    assert run.encoder() == runs[""].encoder()


def test_nobody_is_suspected_in_an_unbroken_run(runs: dict[str, Run]) -> None:
    names = {path.name for path in (runs[""].stage / "attempts" / "s001r000").iterdir()}
    assert names == {"start.json", "end.json", "exit.json"}


def test_the_same_stage_runs_under_torchrun(runs: dict[str, Run]) -> None:
    run = runs["torchrun"]
    assert run.code == 0, run.output
    assert "rank 1 of 2 on" in run.output
    assert run.encoder() == runs[""].encoder()
