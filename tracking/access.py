"""Who may reach the MLflow UI: this machine alone, or others with passwords over TLS."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import ipaddress
import os
import secrets
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path

from cluster import fsio
from tracking.backend import AskedWrongly, TrackingError

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_USERS = """\
# Who may use this MLflow server; read at its start. Permissions: READ, USE, EDIT, MANAGE,
# NO_PERMISSIONS; see https://mlflow.org/docs/latest/self-hosting/security/basic-http-auth
[mlflow]
default_permission = READ
database_uri = sqlite:///{database}
admin_username = admin
"""


@dataclass(frozen=True, kw_only=True)
class Access:
    """How the UI is reached.

    Attributes:
        host: the address it listens on.
        auth: whether it asks for a user and a password.
        cert: certificate file (PEM) for https, with its chain; None for plain http.
        key: private key of `cert`, where it is not in that file.
        hosts: names of this machine in addition to those it knows itself, with a port where it is
            not that of the server; MLflow answers 403 to requests for another one.
    """

    host: str = "127.0.0.1"
    auth: bool = False
    cert: Path | None = None
    key: Path | None = None
    hosts: tuple[str, ...] = ()

    @property
    def scheme(self) -> str:
        """`https` with a certificate, else `http`."""
        return "https" if self.cert else "http"

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        with contextlib.suppress(ValueError):
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        return False

    @property
    def near(self) -> str:
        """The address as it is reached from this machine, as a URL shows it."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (compared, not bound)
        host = everywhere.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host

    def options(self) -> list[str]:
        """What `mlflow server` is told of it."""
        names = [*_LOOPBACK_NAMES, *self.hosts]
        if not self.loopback:
            names += dict.fromkeys([socket.gethostname(), socket.getfqdn(), self.near])
        hosts = [*names, *(f"{name}:*" for name in names if not _has_port(name))]
        options = ["--host", self.host, "--allowed-hosts", ",".join(hosts)]
        if self.auth:
            options += ["--app-name", "basic-auth"]
        if self.cert:
            pair = ["--ssl-certfile", str(self.cert), "--ssl-keyfile", str(self.key or self.cert)]
            options += ["--uvicorn-opts", shlex.join(pair)]
        return options


LOOPBACK = Access()


def _has_port(name: str) -> bool:
    return not name.endswith("]") and ":" in name


def check(access: Access) -> None:
    """Check that nobody reaches the UI who should not.

    Raises:
        AskedWrongly: an address that others reach without passwords or without TLS, or a
            certificate that is not there.
        TrackingError: passwords asked for that this environment cannot check.
    """
    for path in (access.cert, access.key):
        if path is not None and not path.is_file():
            raise AskedWrongly(f"{path} is not a file: --cert and --key take PEM files")
    if access.key and not access.cert:
        raise AskedWrongly("--key belongs to a certificate: add --cert FILE")
    if not access.loopback and not access.auth:
        raise AskedWrongly(
            f"host {access.host!r} is not this machine's loopback address: without passwords, "
            f"whoever reaches it can read and delete every run. Keep 127.0.0.1 and use a tunnel "
            f"({tunnel(5000)}), or add --auth --cert FILE --key FILE, which start MLflow with "
            f"--app-name basic-auth behind TLS"
        )
    if not access.loopback and not access.cert:
        raise AskedWrongly(
            f"host {access.host!r} is not this machine's loopback address: over plain http, "
            f"passwords can be read on the way. Add --cert FILE --key FILE, or keep 127.0.0.1 and "
            f"let a web server on this machine that has a certificate pass requests on to it"
        )
    if access.auth and importlib.util.find_spec("flask_wtf") is None:
        raise TrackingError("--auth needs MLflow's user management: pip install 'mlflow[auth]'")


def tunnel(port: int) -> str:
    """The command that brings the UI of this machine to a browser elsewhere."""
    host = f"{getpass.getuser()}@{socket.gethostname()}"
    return f"ssh -N -L {port}:127.0.0.1:{port} {host}"


def prepare_users(folder: Path) -> dict[str, str]:
    """The environment of a server that asks for passwords; makes what it needs at the first start.

    Everything lies in `folder`, for this user alone: `basic_auth.ini` (yours to change), the
    database of users, the key that signs forms, and the first password of `admin`, which
    MLFLOW_AUTH_ADMIN_PASSWORD replaces.
    """
    fsio.make_dir(folder)
    settings = folder / "basic_auth.ini"
    if not settings.exists():
        fsio.write_text(settings, _USERS.format(database=folder / "users.db"))
    with contextlib.suppress(FileExistsError):
        os.close(os.open(folder / "users.db", os.O_CREAT | os.O_EXCL, fsio.PRIVATE_FILE))
    password = os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD") or _kept(admin_password(folder))
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": _kept(folder / "form_key"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
    }


def admin_password(folder: Path) -> Path:
    """The file with the first password of `admin`."""
    return folder / "admin_password"


def _kept(path: Path) -> str:
    """The random text in a file, made where there is none."""
    if not path.exists():
        fsio.write_text(path, secrets.token_urlsafe(18))
    return path.read_text(encoding="utf-8").strip()
