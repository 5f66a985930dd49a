"""The chain in dawgz."""

from __future__ import annotations

import subprocess
import sys

import dawgz


@dawgz.job(cpus=1, gpus=1, time="00:05:00", partition="main")
def stage(name: str, inputs: list[str]) -> None:
    """One stage."""
    subprocess.run([sys.executable, "stage.py", name, f"{name}.json", *inputs], check=True)


parent = stage("pretrain", [])
leaves = [stage(name, ["pretrain.json"]) for name in ("probe", "finetune", "retrieval")]
for leaf in leaves:
    leaf.after(parent)
dawgz.schedule(*leaves, name="chain", backend="slurm")
