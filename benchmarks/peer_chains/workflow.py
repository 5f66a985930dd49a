"""The chain in gwf."""

from __future__ import annotations

from gwf import Workflow

gwf = Workflow(
    defaults={
        "cores": 1,
        "memory": "500m",
        "walltime": "00:05:00",
        "queue": "main",
        "gres": "gpu:1",
    }
)
gwf.target("pretrain", inputs=[], outputs=["pretrain.json"]) << (
    "python3 stage.py pretrain pretrain.json"
)
for leaf in ("probe", "finetune", "retrieval"):
    gwf.target(leaf, inputs=["pretrain.json"], outputs=[f"{leaf}.json"]) << (
        f"python3 stage.py {leaf} {leaf}.json pretrain.json"
    )
