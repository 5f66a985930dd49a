"""The chain in NeMo-Run; the experiments' folder has to be the tunnel's `job_dir`."""

from __future__ import annotations

import os
from pathlib import Path

import nemo_run as run

HERE = Path.cwd()


def executor() -> run.SlurmExecutor:
    """One task on one node."""
    return run.SlurmExecutor(
        account="none",
        partition="main",
        nodes=1,
        ntasks_per_node=1,
        time="00:05:00",
        tunnel=run.LocalTunnel(job_dir=os.environ["NEMORUN_HOME"] + "/experiments"),
        packager=run.Packager(),
        mem=None,
    )


def script(name: str, *inputs: str) -> run.Script:
    """One stage."""
    words = ["python3", "stage.py", name, f"{name}.json", *inputs]
    return run.Script(inline=f"cd {HERE} && " + " ".join(words))


with run.Experiment("chain") as experiment:
    parent = experiment.add(script("pretrain"), executor=executor(), name="pretrain")
    for leaf in ("probe", "finetune", "retrieval"):
        experiment.add(
            script(leaf, "pretrain.json"), executor=executor(), name=leaf, dependencies=[parent]
        )
    experiment.run(detach=True)
