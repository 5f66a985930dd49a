"""Does DPC learn motion here? Three seeds against random weights, with the controls beside them.

usage: learn_check.py [--store DIR]

Runs recipes/learn_check.yaml on the moving set and on the static one, on which DPC fails although
its loss is about as low. Exits 1 unless every seed on the moving set is at least 10 points above
the same network with random weights and calibrated batch-norm statistics, and every control is at
chance.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MARGIN = 0.10
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "learn_check.yaml"
SETS = {"motion": "synthetic", "static": "synthetic_static"}


def main() -> int:
    """Run both sets, print one table each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("runs/learn-check"))
    store = parser.parse_args().store.absolute()
    good = True
    for name, group in SETS.items():
        started = time.monotonic()
        stages = _run(store, group)
        good &= _print_set(store, name, stages, required=name == "motion")
        print(f"({time.monotonic() - started:.0f} s on {os.cpu_count()} cores)\n", flush=True)
    return 0 if good else 1


def _run(store: Path, group: str) -> dict[str, dict[str, Any]]:
    """Submit and wait; results by stage name."""
    command = [sys.executable, "-m", "orchestrator.cli"]
    words = ["submit", str(RECIPE), f"data@data.set={group}", "--store", str(store), "--json"]
    done = subprocess.run([*command, *words], stdout=subprocess.PIPE, text=True, check=True)
    run_id = json.loads(done.stdout)["run"]["id"]
    plan = json.loads((store / "runs" / run_id / "plan.json").read_text(encoding="utf-8"))
    return {
        entry["name"]: json.loads(
            (store / "stages" / entry["stage"] / "result.json").read_text(encoding="utf-8")
        )
        for entry in plan["stages"]
    } | {"folders": {entry["name"]: entry["stage"] for entry in plan["stages"]}}


def _print_set(store: Path, name: str, stages: dict[str, Any], *, required: bool) -> bool:
    seeds = sorted(stage.partition("/")[2] for stage in stages if stage.startswith("probe/"))
    print(f"\n{name}: linear probe, top-1 %, chance 25")
    print(f"{'seed':>6} {'DPC':>7} {'random':>7} {'margin':>7} {'DPC loss':>9}")
    margins = []
    for seed in seeds:
        trained = stages[f"probe/{seed}"]["metrics"]["top1"]
        random = stages[f"probe_random/{seed}"]["metrics"]["top1"]
        loss = stages[f"pretrain/{seed}"]["metrics"]["train/loss"]
        margins.append(trained - random)
        row = f"{100 * trained:7.1f} {100 * random:7.1f} {100 * margins[-1]:+7.1f} {loss:9.2f}"
        print(f"{seed:>6} {row}")
    fair = _print_controls(store, stages)
    if not required:
        print("not required: a low loss here is no evidence of motion features")
        return fair
    print(f"required: every margin at least {100 * MARGIN:.0f}, every control at chance")
    return fair and min(margins) >= MARGIN


def _print_controls(store: Path, stages: dict[str, Any]) -> bool:
    """Shortcuts that would tell the class without motion, measured on the decoded files."""
    from recipes.contract import Artifact
    from recipes.data.controls import measure_controls
    from recipes.data.table import load_table

    (index,) = (stage for stage in stages if stage.startswith("index-"))
    record = stages[index]["artifacts"]["dataset"]
    artifact = Artifact(
        name="dataset",
        kind="dataset",
        path=store / "stages" / stages["folders"][index] / record["path"],
        sha256=record["sha256"],
        bytes=record["bytes"],
        meta=record["meta"],
    )
    controls = measure_controls(load_table(artifact, "train"), load_table(artifact, "test"))
    for control in controls:
        verdict = "at chance" if control.at_chance else "NOT at chance"
        interval = f"{100 * control.low:.1f} to {100 * control.high:.1f}"
        what = f"{control.shortcut}, {control.classifier}"
        print(f"{what:<45} {100 * control.accuracy:5.1f}  ({interval}) {verdict}")
    return all(control.at_chance for control in controls)


if __name__ == "__main__":
    sys.exit(main())
