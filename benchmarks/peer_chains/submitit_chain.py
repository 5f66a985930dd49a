"""The chain as people write it by hand with submitit; an argument resubmits one child alone."""

from __future__ import annotations

import subprocess
import sys

import submitit


def work(name: str, inputs: list[str]) -> None:
    """Run the stage; a failure is that of the job."""
    subprocess.run([sys.executable, "stage.py", name, f"{name}.json", *inputs], check=True)


def queue(name: str, inputs: list[str], after: str | None) -> str:
    """Submit one stage; its job id."""
    executor = submitit.AutoExecutor(folder="logs/%j", cluster="slurm")
    executor.update_parameters(
        name=name, timeout_min=5, gpus_per_node=1, cpus_per_task=1, slurm_partition="main"
    )
    if after:
        executor.update_parameters(slurm_dependency=f"afterok:{after}")
    return str(executor.submit(work, name, inputs).job_id)


if len(sys.argv) == 3:
    queue(sys.argv[1], ["pretrain.json"], sys.argv[2])
else:
    parent = queue("pretrain", [], None)
    for leaf in ("probe", "finetune", "retrieval"):
        queue(leaf, ["pretrain.json"], parent)
