"""One MLflow server for all tests of tracking, and embedded stores copied from a prepared one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracking import recorder, server


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with MLflow's tables, whose creation takes two seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    recorder.connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def sqlite_uri(tmp_path: Path, empty_database: Path) -> str:
    """An embedded store of this test's own, in `tmp_path/store`."""
    (tmp_path / "store").mkdir(mode=0o700)
    shutil.copy(empty_database, tmp_path / "store" / "mlflow.db")
    return server.default_uri(tmp_path / "store")


@pytest.fixture(scope="session")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[server.Server]:
    """A real MLflow server over HTTP."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    with server.running(server.default_uri(folder), port=server.free_port()) as running:
        yield running
