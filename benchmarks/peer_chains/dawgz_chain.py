"""The chain in dawgz."""

from __future__ import annotations

import subprocess
import sys

import dawgz


def job(name: str, inputs: list[str]) -> dawgz.Job:
    """One stage."""

    @dawgz.job(name=name, cpus=1, gpus=1, time="00:05:00", partition="main")
    def stage() -> None:
        subprocess.run([sys.executable, "stage.py", name, f"{name}.json", *inputs], check=True)

    return stage


parent = job("pretrain", [])
leaves = [job(name, ["pretrain.json"]) for name in ("probe", "finetune", "retrieval")]
for leaf in leaves:
    leaf.after(parent)
dawgz.schedule(*leaves, name="chain", backend="slurm")
