"""A whole pipeline small enough for tests, and the command line as users call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TINY = """\
defaults: [cluster: local, data: synthetic, _self_]
name: tiny
seed: 3
data:
  synthetic: {train: 32, test: 16, size: 32, frames: 20, classes: 4}
stages:
  pretrain:
    kind: pretrain
    data: ${data.synthetic}
    method: {name: dpc, pred_steps: 2, augment: none}
    backbone: {name: r2d3d_tiny}
    clip: {blocks: 4, frames: 5, stride: 1, size: 32}
    max_steps: 24
    batch_size: 8
    micro_batch: 4
    optimizer: {name: adam, lr: 1.0e-3, warmup_steps: 4, schedule: cosine}
    checkpoint: {steps: 10}
    workers: 1
    log_every: 2
  probe:
    kind: probe
    data: ${data.synthetic}
    inputs: {encoder: pretrain.encoder}
    windows: 1
    workers: 0
  probe_random:
    kind: probe
    data: ${data.synthetic}
    encoder: random
    backbone: ${stages.pretrain.backbone}
    clip: ${stages.pretrain.clip}
    windows: 1
    workers: 0
  finetune:
    kind: finetune
    data: ${data.synthetic}
    inputs: {encoder: pretrain.encoder}
    max_steps: 4
    batch_size: 8
    micro_batch: 4
    augment: none
    windows: 1
    workers: 0
  retrieval:
    kind: retrieval
    data: ${data.synthetic}
    inputs: {encoder: pretrain.encoder}
    windows: 1
    workers: 0
    num_queries: 2
  report:
    kind: report
    inputs: {results: [probe.result, probe_random.result, finetune.result, retrieval.result]}
"""


@dataclass(frozen=True)
class CommandLine:
    """Runs `orchestrate` on one store, in an environment of its own."""

    store: Path
    folder: Path
    env: Mapping[str, str]

    def start(self, *words: str, **extra: str) -> subprocess.Popen[str]:
        """Start a command and leave it running."""
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *words],
            cwd=self.folder,
            env={**self.env, **extra},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def __call__(self, *words: str, code: int = 0, timeout: float = 400, **extra: str) -> str:
        """Run a command to its end; its output, after its exit code was checked."""
        process = self.start(*words, **extra)
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == code, f"{words}: {process.returncode}\n{output}"
        return output

    def status(self, run: str = "latest") -> dict[str, dict[str, Any]]:
        """`status --json`, its stages by name."""
        value = json.loads(self("status", run, "--json"))
        return {stage["name"]: stage for stage in value["stages"]}

    def stage_dir(self, kind: str) -> Path:
        """The only stage of that kind in the store."""
        (found,) = (self.store / "stages").glob(f"{kind}-*")
        return found


def make_command_line(folder: Path, env: Mapping[str, str] | None = None) -> CommandLine:
    """A command line with a store in `folder` and the tiny recipe beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    store = folder / "store"
    clean = {k: v for k, v in (env or os.environ).items() if not k.startswith("ORCHESTRATE_")}
    clean |= {"ORCHESTRATE_STORE": str(store), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    clean["PYTHONPATH"] = str(Path(__file__).parents[2])
    return CommandLine(store=store, folder=folder, env=clean)


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    """A command line on a fresh store."""
    return make_command_line(tmp_path)
