"""Files that break behind the index: training ends, says what it replaced, resumes bit-equal."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import CommandLine, make_command_line
from tests.recipes.data_files import real_data

pytestmark = pytest.mark.e2e

CLIPS, DAMAGED, EPOCHS, BATCH = 80, 8, 2, 8
STEPS = EPOCHS * (CLIPS // BATCH)
RECIPE = """\
defaults: [cluster: local, tracking: disabled, _self_]
name: damaged
seed: 5
data:
  tennis: {{format: csv, name: tennis, file: {file}, prepare: null}}
stages:
  look:
    kind: index
    data: ${{data.tennis}}
  pretrain:
    kind: pretrain
    data: ${{data.tennis}}
    method: {{name: dpc, pred_steps: 2, augment: dpc}}
    backbone: {{name: r2d3d_tiny}}
    clip: {{blocks: 4, frames: 5, stride: 1, size: 32}}
    epochs: {epochs}
    batch_size: {batch}
    micro_batch: 4
    optimizer: {{name: adam, lr: 1.0e-3}}
    checkpoint: {{steps: 5}}
    workers: 1
    log_every: 5
"""


@dataclass(frozen=True)
class Clips:
    """A copy of real clips, those that will break, and how they break."""

    list_file: Path
    damaged: dict[str, str]


def _zero_bytes(path: Path) -> None:
    path.write_bytes(b"")


def _half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _text(path: Path) -> None:
    path.write_text("<html>404 Not Found</html>", encoding="utf-8")


def _gone(path: Path) -> None:
    path.unlink()


def _other_video(path: Path) -> None:
    """Exchanged for a sound video of another length: not what was indexed."""
    other = next(
        p for p in sorted(path.parent.iterdir()) if p.stat().st_size != path.stat().st_size
    )
    shutil.copyfile(other, path)


def _payload(path: Path) -> None:
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, 4000, np.uint8).tobytes()
    middle = len(data) // 2
    data[middle : middle + len(noise)] = noise
    path.write_bytes(data)


def _unseen(path: Path) -> None:
    """The disk has lost the header: size and time are as before, only the decoder can tell."""
    before, size = path.stat(), path.stat().st_size
    path.write_bytes(bytes(size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


WAYS: tuple[Callable[[Path], None], ...] = (
    _zero_bytes, _half, _text, _gone, _other_video, _payload, _unseen, _folder,
)  # fmt: skip


def _copy(folder: Path) -> Path:
    """A tenth of the real clips and their list, all for training."""
    source = real_data("tennis7.csv")
    with source.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))[::4][:CLIPS]
    for row in rows:
        target = folder / row["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source.parent / row["path"], target)
        target.chmod(0o600)
        target.parent.chmod(0o700)
    listing = folder / "clips.csv"
    lines = ["path,label,split", *(f"{row['path']},{row['label']},train" for row in rows)]
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return listing


def _damage(listing: Path) -> dict[str, str]:
    with listing.open(encoding="utf-8") as stream:
        paths = [row["path"] for row in csv.DictReader(stream)]
    chosen = paths[3 :: CLIPS // DAMAGED][:DAMAGED]
    for way, name in zip(WAYS, chosen, strict=True):
        way(listing.parent / name)
    return {name: way.__name__ for way, name in zip(WAYS, chosen, strict=True)}


def _command_line(folder: Path, listing: Path) -> CommandLine:
    run = make_command_line(folder)
    recipe = RECIPE.format(file=listing, epochs=EPOCHS, batch=BATCH)
    (folder / "damaged.yaml").write_text(recipe, encoding="utf-8")
    return run


@dataclass(frozen=True)
class Runs:
    """A store that indexed clips, which then broke, and a copy of it; training runs in both."""

    whole: CommandLine
    broken_off: CommandLine
    damaged: dict[str, str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("damaged")
    listing = _copy(folder / "clips")
    whole = _command_line(folder / "whole", listing)
    broken_off = _command_line(folder / "broken_off", listing)
    whole("submit", "damaged.yaml", "~stages.pretrain")
    shutil.copytree(whole.store, broken_off.store, symlinks=True)
    damaged = _damage(listing)
    whole("submit", "damaged.yaml")
    return Runs(whole=whole, broken_off=broken_off, damaged=damaged)


def _log(run: CommandLine) -> str:
    logs = sorted((run.stage_dir("pretrain") / "logs").rglob("*"))
    return "".join(path.read_text(errors="replace") for path in logs if path.is_file())


def test_training_finishes_both_epochs_with_a_tenth_of_the_files_broken(runs: Runs) -> None:
    result = json.loads((runs.whole.stage_dir("pretrain") / "result.json").read_text())
    assert result["steps"] == STEPS


def test_the_log_names_each_broken_file_that_was_replaced(runs: Runs) -> None:
    lines = [line for line in _log(runs.whole).splitlines() if "replaced" in line]
    for name, way in runs.damaged.items():
        named = [line for line in lines if name in line]
        assert len(named) >= EPOCHS, f"{name} ({way}): {named}"


def _wait_for_a_checkpoint(run: CommandLine, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(run.store.glob("stages/pretrain-*/checkpoints/step_*/manifest.json")):
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no checkpoint: {process.communicate()[0]}")


def test_broken_off_and_continued_it_ends_with_the_same_weights(runs: Runs) -> None:
    run = runs.broken_off
    process = run.start("submit", "damaged.yaml", ORCHESTRATE_FAULT="slow:500")
    _wait_for_a_checkpoint(run, process)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    manifests = sorted(run.stage_dir("pretrain").glob("checkpoints/step_*/manifest.json"))
    assert 0 < json.loads(manifests[-1].read_text())["step"] < STEPS
    run("submit", "damaged.yaml")
    assert len(list(run.stage_dir("pretrain").glob("attempts/*/start.json"))) == 2
    encoder = Path("outputs") / "encoder.safetensors"
    expected = (runs.whole.stage_dir("pretrain") / encoder).read_bytes()
    assert (run.stage_dir("pretrain") / encoder).read_bytes() == expected
