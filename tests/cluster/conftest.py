"""Benches for the executor tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local import LocalExecutor
from cluster.slurm import SlurmExecutor
from tests.cluster.bench import Bench


@pytest.fixture
def local_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Jobs as processes of this machine, their records kept apart from the user's own."""
    records = tmp_path / "tmp"
    records.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(records))
    executor = LocalExecutor(kill_seconds=3, stop_seconds=10, notify=lambda text: None)
    return Bench(executor=executor, root=tmp_path / "store", prefix="t" + os.urandom(3).hex())


@pytest.fixture
def slurm_bench(request: pytest.FixtureRequest) -> Bench:
    """Jobs on the private cluster."""
    request.getfixturevalue("slurm_here")
    root: Path = request.getfixturevalue("slurm_shared")
    return Bench(executor=SlurmExecutor(), root=root, prefix="t" + os.urandom(3).hex())


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Every executor in turn: the conformance suite runs over all of them."""
    bench: Bench = request.getfixturevalue(f"{request.param}_bench")
    yield bench
    bench.executor.cancel(bench.handles)
