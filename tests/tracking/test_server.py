"""The MLflow UI is reachable from this machine alone, and says so."""

from __future__ import annotations

import base64
import importlib.util
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.tracking.conftest import Invoke
from tests.tracking.fabricate import make_pipeline
from tracking import access, filesystem, server
from tracking.access import Access
from tracking.backend import TrackingError, check_uri, connect, sqlite_path
from tracking.server import Server


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "login01.example.org"])  # noqa: S104
def test_an_address_that_others_reach_is_refused_with_the_way_out(
    host: str, tmp_path: Path, sqlite_uri: str
) -> None:
    with pytest.raises(TrackingError, match=r"ssh -N -L .* --auth --cert .* basic-auth"):
        server.serve(sqlite_uri, tmp_path, Access(host=host))
    with pytest.raises(TrackingError, match=r"over plain http, passwords can be read"):
        server.serve(sqlite_uri, tmp_path, Access(host=host, auth=True))


def test_a_certificate_that_is_not_there_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"cert\.pem is not a file"):
        access.check(Access(auth=True, cert=tmp_path / "cert.pem"))
    (tmp_path / "key.pem").touch()
    with pytest.raises(TrackingError, match="add --cert FILE"):
        access.check(Access(key=tmp_path / "key.pem"))


def test_options_that_do_not_fit_are_invalid_input_and_none_is_passed_over(
    tmp_path: Path, orchestrate: Invoke
) -> None:
    make_pipeline(tmp_path / "store", "demo", "http://127.0.0.1:1")
    for options, words in {
        ("--key", "x.pem"): "is not a file",
        ("--host", "0.0.0.0"): "--auth --cert FILE",  # noqa: S104
        ("--auth",): "http://127.0.0.1:1 keeps these records",
        ("--port", "5001"): "http://127.0.0.1:1 keeps these records",
    }.items():
        result = orchestrate("ui", *options)
        assert (result.exit_code, result.stdout) == (2, ""), options
        assert words in result.stderr


def test_passwords_without_what_checks_them_are_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrackingError, match=r"pip install 'mlflow\[auth\]'"):
        access.check(Access(auth=True))


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("postgresql+psycopg://db/mlflow", r"'psycopg'.*orchestrate-video-ssl\[postgres\]"),
        ("mysql+pymysql://db/mlflow", r"'pymysql'.*install a driver"),
        ("postgresql+unheard://db/mlflow", "unheard"),
    ],
)
def test_a_database_whose_driver_is_not_installed_is_said_with_what_to_install(
    uri: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("psycopg", "pymysql"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TrackingError, match=advice):
        connect(uri)


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that this machine signs for itself."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", f"/CN={socket.gethostname()}", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_with_passwords_and_tls_others_reach_it_who_have_a_password(
    tmp_path: Path, sqlite_uri: str
) -> None:
    pytest.importorskip("flask_wtf", reason="needs MLflow's passwords: pip install mlflow[auth]")
    cert, key = _certificate(tmp_path)
    names = ("node17.example.org",)
    guarded = Access(host="0.0.0.0", auth=True, cert=cert, key=key, hosts=names)  # noqa: S104
    users = tmp_path / "store" / "mlflow-users"
    with server.running(sqlite_uri, tmp_path / "store", guarded, server.free_port()) as running:
        page = f"{running.url}/api/2.0/mlflow/experiments/get?experiment_id=0"
        password = (users / "admin_password").read_text()
        admin = "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()
        assert running.url.startswith("https://127.0.0.1:")
        assert _status(page) == 401
        assert _status(page, Authorization="Basic YWRtaW46YWRtaW4=") == 401
        assert _status(page, Authorization=admin) == 200
        here = f"{socket.gethostname()}:{running.port}"
        for name in (here, "node17.example.org", f"node17.example.org:{running.port}"):
            assert _status(page, Authorization=admin, Host=name) == 200, name
        assert _status(page, Authorization=admin, Host="other.example.org") == 403
        listed = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True).stdout
        assert password not in listed
    for path in [users, *users.iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_for_a_server_elsewhere_its_address_is_said_without_its_password(tmp_path: Path) -> None:
    said: list[str] = []
    assert server.serve("https://ada:pw@mlflow.example.org", tmp_path, say=said.append) == 0
    assert said == ["MLflow UI: https://[hidden]@mlflow.example.org"]


def test_the_default_store_lies_in_the_store(tmp_path: Path) -> None:
    assert server.default_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert sqlite_path(server.default_uri(tmp_path)) == tmp_path / "mlflow.db"


def _status(url: str, **headers: str) -> int:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  (our own server)
    try:
        context = ssl._create_unverified_context()  # noqa: S323  (our own certificate)
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_answers_to_this_machine_and_through_a_tunnel_only(
    mlflow_server: Server,
) -> None:
    page = f"{mlflow_server.url}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert _status(page) == 200
    assert _status(page, Host="localhost:8123") == 200
    assert _status(page, Host="login01.example.org:5000") == 403
    addresses = {str(one[4][0]) for one in socket.getaddrinfo(socket.gethostname(), None)}
    for address in (one for one in addresses if not one.startswith("127.")):
        with pytest.raises(OSError, match=r"refused|unreachable|timed out"):
            socket.create_connection((address, mlflow_server.port), timeout=2)


def test_the_server_is_two_processes_with_no_uri_in_their_arguments(
    mlflow_server: Server,
) -> None:
    listed = subprocess.run(
        ["ps", "-o", "args=", "-g", str(mlflow_server.process.pid)], capture_output=True, text=True
    ).stdout
    assert "mlflow" in listed
    assert "mlflow.db" not in listed
    assert len(listed.splitlines()) <= 4


def test_a_taken_port_is_an_error_and_without_one_a_free_port_is_found() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        with pytest.raises(TrackingError, match=f"port {taken} is taken"):
            server.free_port(port=taken)
        assert server.free_port() != taken


def test_a_server_that_dies_shows_its_last_words(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(b"this is no database" * 100)
    with (
        pytest.raises(TrackingError, match=r"(?s)died.*file is not a database"),
        server.running(f"sqlite:///{database}", tmp_path, port=server.free_port()),
    ):
        pass


def test_ending_the_command_ends_the_server(tmp_path: Path, sqlite_uri: str) -> None:
    code = (
        "import sys; from pathlib import Path; from tracking import server;"
        "server.serve(sys.argv[1], Path(sys.argv[2]), port=int(sys.argv[3]))"
    )
    words = [sqlite_uri, str(tmp_path / "store"), str(server.free_port())]
    command = subprocess.Popen(
        [sys.executable, "-u", "-c", code, *words], stdout=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    said = [command.stdout.readline() for _ in range(4)]
    url = said[0].split()[-1]
    assert url.startswith("http://127.0.0.1:")
    assert "mlflow.db" in said[1]
    assert "ssh -N -L" in said[2]
    assert _status(url) == 200
    command.send_signal(signal.SIGTERM)
    assert command.wait(20) == 0
    with pytest.raises(urllib.error.URLError):
        _status(url)


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///tmp/mlruns", ""])
def test_mlflows_file_store_is_refused_with_the_alternatives(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"sqlite:///.*http://"):
        connect(uri)


def test_an_unknown_kind_of_uri_is_refused() -> None:
    with pytest.raises(TrackingError, match="expected http"):
        check_uri("ftp://example.org")


_MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw,relatime shared:2 - nfs4 server:/home rw
31 30 8:2 / /home/local\\040disk rw,relatime - xfs /dev/sdb1 rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/var/lib", None), ("/home/ada/runs", "nfs4"), ("/home/local disk/runs", None)],
)
def test_network_file_systems_are_known_by_their_mount(
    tmp_path: Path, path: str, kind: str | None
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(_MOUNTS)
    assert filesystem.network_file_system(Path(path), mounts) == kind


def test_sqlite_on_a_network_file_system_and_for_everybody_to_read_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "mlflow.db"
    database.touch(mode=0o644)
    database.chmod(0o644)
    assert [line for line in server.warnings(f"sqlite:///{database}") if "chmod 600" in line]
    monkeypatch.setattr(server, "network_file_system", lambda path: "nfs4")
    database.chmod(0o600)
    (warning,) = server.warnings(f"sqlite:///{database}")
    assert "nfs4" in warning
    assert "tracking.uri" in warning
