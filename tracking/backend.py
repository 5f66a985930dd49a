"""Which servers and databases records may go to, and how one is reached."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from cluster import fsio
from tracking.filesystem import network_file_system
from tracking.redact import scrub

if TYPE_CHECKING:
    from mlflow import MlflowClient

TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"
# One retry of 5 s: at its defaults, the client blocks for four minutes on a server that is gone.
CLIENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    TIMEOUT_VARIABLE: "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow reports its use to its makers; a compute node has no business on the internet.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# A person who waits at a terminal for a server that answers in half a minute.
_SLOW_SECONDS = "40"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_EXTRA = {"psycopg": "pip install 'orchestrate-video-ssl[postgres]'"}


class TrackingError(RuntimeError):
    """The tracking server cannot be used as asked; the message says what to change."""


class AskedWrongly(TrackingError):
    """What was asked for does not exist or does not fit together, whatever the site is like."""


def delivery_errors() -> tuple[type[Exception], ...]:
    """What MLflow raises when a server is away, slow or refuses; anything else is our fault."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return (TrackingError, MlflowException, RequestException, SQLAlchemyError, OSError)


def is_server(uri: str) -> bool:
    """Whether an MLflow server answers there, not a database that is opened directly."""
    return urlsplit(uri).scheme in ("http", "https")


def check_uri(uri: str) -> str:
    """The URI if it names a server or a database.

    Raises:
        TrackingError: it names a folder (MLflow's file store) or something unknown.
    """
    scheme = urlsplit(uri).scheme
    if is_server(uri) or scheme.partition("+")[0] in _DATABASES:
        return uri
    shown = scrub(uri)
    if scheme in ("", "file"):
        raise TrackingError(
            f"tracking uri {shown!r} is a folder: MLflow has given its file store up and it loses "
            f"data when several jobs write; use sqlite:///<folder>/mlflow.db on one machine or "
            f"http://<host>:<port> of an MLflow server"
        )
    raise TrackingError(
        f"tracking uri {shown!r}: expected http://, https://, sqlite:/// or postgresql://"
    )


def check_driver(uri: str) -> None:
    """Check that Python can talk to the database of a URI; which module does is SQLAlchemy's say.

    Raises:
        TrackingError: the module is not installed; says what to install.
    """
    if is_server(uri):
        return
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        module = error.name or str(error)
        raise TrackingError(
            f"tracking uri {scrub(uri)!r} needs the Python module {module!r}, which is not "
            f"installed here: {_EXTRA.get(module, 'install a driver of that database')}"
        ) from error
    except ArgumentError as error:
        raise TrackingError(f"tracking uri {scrub(uri)!r}: {error}") from error


def sqlite_path(uri: str) -> Path | None:
    """The file of a `sqlite:///` URI, None for every other kind."""
    if not urlsplit(uri).scheme.startswith("sqlite"):
        return None
    return Path(unquote(uri.partition(":///")[2]).partition("?")[0]).absolute()


def artifact_root(uri: str, store_root: Path) -> Path | None:
    """Where clients of a database put artifacts: beside an SQLite file, else in the store.

    None for a server, which has a place of its own.
    """
    if is_server(uri):
        return None
    database = sqlite_path(uri)
    return (database.parent if database else store_root.absolute()) / "mlartifacts"


def connect(uri: str) -> MlflowClient:
    """A client for that server; an SQLite file is created private.

    Raises:
        TrackingError: the URI cannot be used.
    """
    check_driver(check_uri(uri))
    for name, value in CLIENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    database = sqlite_path(uri)
    if database is not None:
        prepare_sqlite(database)
    from mlflow import MlflowClient

    # Schema creation and retries are announced at INFO, in the middle of our own output.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def connect_to_ask(uri: str) -> MlflowClient:
    """A client for a question, which makes no database where there is none.

    Raises:
        AskedWrongly: the file of an embedded store is not there.
        TrackingError: the URI cannot be used.
    """
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        raise AskedWrongly(
            f"no run has delivered anything to MLflow yet: {database} is not there; "
            f"`orchestrate sync` delivers, and tracking.uri names a server elsewhere"
        )
    return connect(uri)


def knock(uri: str) -> None:
    """Ask a server for as little as possible; one that only is slow gets more time from then on.

    Raises:
        One of `delivery_errors`: it is away, refuses, or needs more than 40 seconds.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    try:
        client.search_experiments(max_results=1)
    except MlflowException as error:
        default = CLIENT_DEFAULTS[TIMEOUT_VARIABLE]
        if "Read timed out" not in str(error) or os.environ[TIMEOUT_VARIABLE] != default:
            raise
        os.environ[TIMEOUT_VARIABLE] = _SLOW_SECONDS
        client.search_experiments(max_results=1)


@contextlib.contextmanager
def spoken_to(uri: str) -> Iterator[None]:
    """Let MLflow's own look-ups go to that server, as those of `models:/` do behind any client."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def prepare_sqlite(database: Path) -> None:
    """Create the file of an embedded store, for this user alone."""
    kind = network_file_system(database.parent)
    if kind is not None:
        logging.getLogger(__name__).warning(
            "%s lies on a network file system (%s), where SQLite loses data when several machines "
            "write: use an MLflow server (http://) or a store on a local disk",
            database,
            kind,
        )
    fsio.make_dir(database.parent)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(database, os.O_CREAT | os.O_EXCL, fsio.PRIVATE_FILE))
