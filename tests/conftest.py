"""Fixtures shared by all tests: a private SLURM cluster, started once a test process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is loaded by any test: results must not depend on the number of cores, and threads
# that spin would starve the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tests.slurm_cluster import PrivateSlurm, missing_programs


def _require_slurm() -> None:
    missing = missing_programs()
    if missing:
        pytest.skip(
            f"a private SLURM needs {', '.join(missing)}: apt-get install slurm-wlm munge",
            allow_module_level=True,
        )


@pytest.fixture(scope="session")
def slurm() -> Iterator[PrivateSlurm]:
    """A running private cluster of two nodes with 8 CPUs and 4 fake GPUs each.

    Nodes do not see this machine's /tmp (nor `tmp_path`): keep the store below `slurm_shared`.
    Subprocesses need `env=slurm.env`; for code in this process ask for `slurm_here`.
    """
    _require_slurm()
    with PrivateSlurm() as cluster:
        yield cluster


@pytest.fixture
def slurm_shared(slurm: PrivateSlurm, request: pytest.FixtureRequest) -> Path:
    """A fresh folder that the test and all nodes see."""
    folder = slurm.shared / f"{request.node.name[:40]}-{os.urandom(3).hex()}"
    folder.mkdir()
    return folder


@pytest.fixture
def slurm_here(slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateSlurm]:
    """The private cluster, also for code of this process; ends with an idle, empty cluster."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    monkeypatch.setenv("PATH", slurm.env["PATH"])
    yield slurm
    slurm.heal()


@pytest.fixture
def slurm_without_gpus() -> Iterator[PrivateSlurm]:
    """A cluster nobody has configured for us: one partition's worth of CPUs, no GPUs, no GRES."""
    _require_slurm()
    with PrivateSlurm(gpus=0) as cluster:
        yield cluster
