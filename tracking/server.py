"""Starts the MLflow UI over a database: for this machine alone unless passwords guard it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import fsio
from tracking.access import LOOPBACK, Access, admin_password, check, prepare_users, tunnel
from tracking.backend import (
    TrackingError,
    artifact_root,
    check_driver,
    check_uri,
    is_server,
    prepare_sqlite,
    sqlite_path,
)
from tracking.filesystem import network_file_system
from tracking.redact import scrub

DEFAULT_PORT = 5000
# Without the mode, the UI opens with its pages for language models.
RUNS_PAGE = "#/experiments?workflowType=machine_learning"
_START_SECONDS = 180.0
_STOP_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """An MLflow server that answers at `url`; `log` is what it has printed."""

    url: str
    port: int
    log: Path
    process: subprocess.Popen[bytes]


def default_uri(store_root: Path) -> str:
    """The embedded default: `<store>/mlflow.db` in SQLite, artifacts in `<store>/mlartifacts`."""
    return f"sqlite:///{store_root.absolute() / 'mlflow.db'}"


def serve(
    uri: str,
    folder: Path,
    access: Access = LOOPBACK,
    port: int | None = None,
    *,
    say: Callable[[str], None] = print,
) -> int:
    """Show the MLflow UI until Ctrl-C; for an `http://` server only says where it is.

    Args:
        uri: what `tracking.uri` names.
        folder: the store: takes the server's own output, its users and, unless the database is an
            SQLite file with its artifacts beside it, the artifacts.
        access: who may reach it.
        port: the port, by default 5000, or any free one where that is taken.
        say: prints a line for the user.

    Raises:
        TrackingError: others would reach it without passwords and TLS, the port is taken, the
            database cannot be opened or the server dies.
    """
    if is_server(check_uri(uri)):
        say(f"MLflow UI: {scrub(uri)}")
        return 0
    for warning in warnings(uri):
        say(f"warning: {warning}")
    with _terminated_as_interrupted(), running(uri, folder, access, port) as server:
        say(f"MLflow UI: {server.url}/{RUNS_PAGE}")
        say(f"  store: {scrub(uri)}")
        if access.auth:
            say(f"  user admin, first password in {_first_password(folder)}")
        if access.loopback:
            where = "on your own computer" if os.environ.get("SSH_CONNECTION") else "from elsewhere"
            say(f"  {where}: {tunnel(server.port)}, then open the same address there")
        if not access.auth:
            say("  whoever is logged in on this machine can open it; --auth asks for a password")
        say("  Ctrl-C stops it")
        try:
            server.process.wait()
        except KeyboardInterrupt:
            return 0
        raise TrackingError(f"the MLflow server ended by itself:\n{_tail(server.log)}")


def _first_password(folder: Path) -> str:
    given = "MLFLOW_AUTH_ADMIN_PASSWORD"
    return given if os.environ.get(given) else str(admin_password(_users(folder)))


def _users(folder: Path) -> Path:
    return folder / "mlflow-users"


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM and a closed terminal stop the server too, which would else live on."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    earlier = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, earlier, strict=True):
            signal.signal(number, handler)


def warnings(uri: str) -> list[str]:
    """What speaks against the way this store is kept."""
    database = sqlite_path(uri)
    if database is None:
        return []
    found = []
    kind = network_file_system(database.parent)
    if kind is not None:
        found.append(
            f"{database} lies on a network file system ({kind}), where SQLite is slow and may "
            f"break when several machines write; a cluster wants an MLflow server (tracking.uri)"
        )
    if database.exists() and database.stat().st_mode & 0o007:
        found.append(f"{database} can be read by everybody on this machine: chmod 600 {database}")
    return found


@contextlib.contextmanager
def running(
    uri: str,
    folder: Path,
    access: Access = LOOPBACK,
    port: int | None = None,
) -> Iterator[Server]:
    """An MLflow server over a database, stopped at the end.

    Raises:
        TrackingError: see `serve`.
    """
    check(access)
    check_driver(uri)
    port = free_port(access.host, port)
    database = sqlite_path(uri)
    if database is not None:
        prepare_sqlite(database)
    log = fsio.make_dir(folder) / "mlflow-server.log"
    with log.open("ab") as stream:
        process = subprocess.Popen(
            _argv(uri, folder, access, port),
            env={**_environment(uri), **(prepare_users(_users(folder)) if access.auth else {})},
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            # Workers are stopped as a group, and Ctrl-C reaches us alone.
            start_new_session=True,
        )
    url = f"{access.scheme}://{access.near}:{port}"
    server = Server(url=url, port=port, log=log, process=process)
    try:
        _await(server)
        yield server
    finally:
        _stop(process)


def _argv(uri: str, folder: Path, access: Access, port: int) -> list[str]:
    root = fsio.make_dir(artifact_root(uri, folder) or folder)
    return [
        *(sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"),
        *access.options(),
        *("--artifacts-destination", root.as_uri()),
    ]


def _environment(uri: str) -> dict[str, str]:
    """The URI goes by the environment: `ps` shows a password in an argument to everybody."""
    return {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,
        # Nine processes and 2 GB for jobs that a UI for training runs does not have.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true"),
    }


def free_port(host: str = "127.0.0.1", port: int | None = None) -> int:
    """The port asked for, else 5000, else one that the system picks."""
    for candidate in (port,) if port is not None else (DEFAULT_PORT, 0):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            # Else a server that was just stopped keeps its port from us for a minute.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, candidate))
            return int(probe.getsockname()[1])
    raise TrackingError(f"port {port} is taken on {host}: choose another one or leave it out")


def _await(server: Server) -> None:
    import ssl
    import urllib.error
    import urllib.request

    own = ssl.create_default_context()
    own.check_hostname, own.verify_mode = False, ssl.CERT_NONE  # its name is not that of loopback
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{server.url}/health", timeout=2, context=own),  # noqa: S310
        ):
            return
        time.sleep(0.1)
    how = "died" if server.process.poll() is not None else f"not ready in {_START_SECONDS:.0f} s"
    raise TrackingError(f"MLflow server {how}; the end of {server.log}:\n{_tail(server.log)}")


def _tail(log: Path, lines: int = 20) -> str:
    return scrub("\n".join(log.read_text(errors="replace").splitlines()[-lines:]))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, which are in a process group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
            return
