"""Submitting: a chain of four stages, and a hundred stages, beside sbatch by itself.

    python benchmarks/submit.py --out benchmarks/results

Needs `slurm-wlm` and `munge`: a private SLURM is started. Each submission is a fresh process of the
command line on new stages; the code is snapshotted before. The jobs wait for an hour that never
comes. `sbatch itself` submits the very scripts again, one after the other.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from data_videos import Line, at_most, benchmark  # noqa: E402

from tests.slurm_cluster import PrivateSlurm  # noqa: E402

RECIPE = """\
name: {name}
seed: 0
cluster:
  executor: slurm
  resources: {{device: cpu, cpus_per_task: 1, hours: 0.1, extra: {{begin: now+1hour}}}}
tracking: {{enabled: false}}
data:
  home: {{format: folder, name: home, root: /videos, prepare: null}}
stages:
  pretrain:
    kind: pretrain
    data: ${{data.home}}
    method: {{name: dpc, pred_steps: 2, augment: none}}
    backbone: {{name: r2d3d_tiny}}
    clip: {{blocks: 4, frames: 5, stride: 1, size: 32}}
    max_steps: 4
    batch_size: 8
    micro_batch: 4
"""
CHAIN = """\
  probe: {kind: probe, data: "${data.home}", inputs: {encoder: pretrain.encoder}}
  retrieval: {kind: retrieval, data: "${data.home}", inputs: {encoder: pretrain.encoder}}
"""
MANY = """\
  probe:
    kind: probe
    data: ${{data.home}}
    inputs: {{encoder: pretrain.encoder}}
    matrix: {{seed: [{seeds}]}}
    seed: ${{matrix.seed}}
"""


def main_table(folder: Path, small: bool) -> list[tuple[str, list[Line]]]:
    """Both recipes, submitted in turns."""
    rounds, many = (1, 4) if small else (3, 98)
    with PrivateSlurm() as slurm:
        four = Recipe(slurm, "chain", CHAIN)
        hundred = Recipe(slurm, "many", MANY.format(seeds=", ".join(map(str, range(many)))))
        four.round(0)
        for number in range(1, rounds + 1):
            four.round(number)
            hundred.round(number)
    return [("Four stages in a chain", four.lines()), (f"{many + 2} stages", hundred.lines())]


class Recipe:
    """One recipe, its times in seconds, and how many calls of sbatch it takes."""

    def __init__(self, slurm: PrivateSlurm, name: str, stages: str) -> None:
        self.slurm = slurm
        self.file = slurm.shared / f"{name}.yaml"
        self.file.write_text(RECIPE.format(name=name) + stages)
        store = {"ORCHESTRATE_STORE": str(slurm.shared / "store"), "PYTHONPATH": str(REPOSITORY)}
        self.env = {**slurm.env, **store}
        self.plan: list[float] = []
        self.submit: list[float] = []
        self.again: list[float] = []
        self.sbatch: list[float] = []
        self.work_plan: list[float] = []
        self.work_submit: list[float] = []
        self.jobs = 0

    def round(self, number: int) -> None:
        """One submission of stages that no round before had; the first is not counted."""
        logs = self.slurm.shared / "store" / "stages"
        before = set(logs.glob("*/logs/*_submission.sh"))
        spent = [processor_seconds()]
        timed = []
        for verb in ("plan", "submit", "submit"):
            timed.append(seconds(lambda verb=verb: self.orchestrate(verb, number)))
            spent.append(processor_seconds())
        scripts = sorted(set(logs.glob("*/logs/*_submission.sh")) - before, key=_job)
        self.slurm.run("scancel", "--user", str(os.geteuid()))
        timed.append(seconds(lambda: self.resubmit(scripts)))
        self.slurm.run("scancel", "--user", str(os.geteuid()))
        if number:
            self.jobs = len(scripts)
            all_times = (self.plan, self.submit, self.again, self.sbatch)
            for times, one in zip(all_times, timed, strict=True):
                times.append(one)
            self.work_plan.append(spent[1] - spent[0])
            self.work_submit.append(spent[2] - spent[1])

    def orchestrate(self, verb: str, number: int) -> None:
        """One command line in a process of its own."""
        words = [verb, str(self.file), f"seed={number}"]
        command = [sys.executable, "-m", "orchestrator.cli", *words]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"orchestrate {' '.join(words)}: {done.stderr}")

    def resubmit(self, scripts: list[Path]) -> None:
        """Plain sbatch."""
        for script in scripts:
            subprocess.run(["sbatch", script], env=self.env, check=True, capture_output=True)

    def lines(self) -> list[Line]:
        """What was measured; a short chain has a bound in seconds, a long one for each stage."""
        times = zip(self.submit, self.sbatch, self.plan, strict=True)
        beyond = [(submit - sbatch, submit - sbatch - plan) for submit, sbatch, plan in times]
        whole = median(one for one, _ in beyond)
        each = median(one for _, one in beyond) / self.jobs * 1000
        works = zip(self.work_submit, self.work_plan, strict=True)
        work = median(submit - plan for submit, plan in works) / self.jobs * 1000
        records = "claim, spec, script and record, each on disk before it goes on"
        return [
            Line(
                what="submit, whole process",
                figure=median(self.submit),
                unit="s",
                detail=f"{self.jobs} calls of sbatch",
            ),
            Line(what="sbatch itself", figure=median(self.sbatch), unit="s"),
            Line(what="plan, whole process", figure=median(self.plan), unit="s"),
            Line(
                what="submit, processor time",
                figure=median(self.work_submit),
                unit="s",
                detail="which other users of the machine change less",
            ),
            Line(
                what="a stage beyond plan, processor time",
                figure=work,
                unit="ms",
                detail="sbatch included",
            ),
            Line(what="submit again", figure=median(self.again), unit="s", detail="attaches"),
            at_most("submit beyond sbatch", whole, 1.0, "s")
            if self.jobs < 10
            else at_most("a stage beyond sbatch and plan", each, 30.0, "ms", records),
        ]


def _job(script: Path) -> int:
    return int(script.name.partition("_")[0])


def seconds(work: Callable[[], None]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def processor_seconds() -> float:
    """User and system time of all programs that were run and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    benchmark(__doc__ or "", main_table, "submit")
