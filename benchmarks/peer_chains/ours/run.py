"""The stage that is a script: stops with it, goes on with it."""

from __future__ import annotations

import subprocess
import sys
import time

from recipes.contract import Output, Preempted, StageContext, StageResult
from recipes.stages.script.config import ScriptConfig


def run(ctx: StageContext, config: ScriptConfig) -> StageResult:
    """Run the script to its end, or as far as there is time."""
    out = ctx.output_dir / f"{config.label}.json"
    inputs = [str(artifact.path) for artifact in ctx.inputs.get("upstream", ())]
    child = subprocess.Popen([sys.executable, config.script, config.label, str(out), *inputs])
    while child.poll() is None and not ctx.stop_requested():
        time.sleep(0.05)
    if ctx.stop_requested():
        child.terminate()
        child.wait()
        raise Preempted(0)
    if child.returncode != 0:
        raise RuntimeError(f"{config.label} ended with {child.returncode}")
    return StageResult(outputs={"file": Output(kind="features", path=out)}, metrics={}, steps=1)
