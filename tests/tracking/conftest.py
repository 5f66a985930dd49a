"""One MLflow server for all tests of tracking, and embedded stores copied from a prepared one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.executors import EXECUTORS
from orchestrator.cli import app
from tests.orchestrator import fabricated
from tests.orchestrator.fabricated import FakeExecutor
from tests.tracking import postgres
from tracking import backend, server

Invoke = Callable[..., Result]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with MLflow's tables, whose creation takes two seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    backend.connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def sqlite_uri(tmp_path: Path, empty_database: Path) -> str:
    """An embedded store of this test's own, in `tmp_path/store`."""
    (tmp_path / "store").mkdir(mode=0o700)
    shutil.copy(empty_database, tmp_path / "store" / "mlflow.db")
    return server.default_uri(tmp_path / "store")


@pytest.fixture(scope="session")
def postgres_databases() -> Iterator[Callable[[], str]]:
    """Makes databases with MLflow's tables on a PostgreSQL of our own."""
    if postgres.find_binaries() is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="needs psycopg: the extra `postgres`")
    with postgres.running(_make_tables) as create:
        yield create


def _make_tables(uri: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    backend.connect(uri).search_experiments()
    SqlAlchemyStore._engine_map[uri].dispose()  # a database in use cannot be copied


@pytest.fixture(params=["sqlite", "postgresql"])
def database_uri(request: pytest.FixtureRequest) -> str:
    """An empty database of this test's own, of each kind in turn."""
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_uri"))
    return str(request.getfixturevalue("postgres_databases")())


@pytest.fixture(scope="session")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[server.Server]:
    """A real MLflow server over HTTP."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    with server.running(server.default_uri(folder), folder, port=server.free_port()) as running:
        yield running


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> FakeExecutor:
    """Who is asked for the jobs of fabricated runs, all of which are gone."""
    fake = FakeExecutor(name="local")
    monkeypatch.setitem(EXECUTORS, "local", f"{fabricated.__name__}:the_fake")
    monkeypatch.setattr(fabricated, "the_fake", lambda: fake, raising=False)
    return fake


@pytest.fixture
def orchestrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: FakeExecutor) -> Invoke:
    monkeypatch.setenv("ORCHESTRATE_STORE", str(tmp_path / "store"))

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), catch_exceptions=False)

    return invoke
