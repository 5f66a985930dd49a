"""A private PostgreSQL for tests: a cluster of its own in a temporary folder, gone at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin")


def find_binaries() -> Path | None:
    """The folder of `initdb` and `pg_ctl`, which Debian keeps off the PATH; the newest of many."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    found = [one for place in _PLACES for one in Path("/").glob(place.lstrip("/"))]
    return max((one for one in found if (one / "initdb").exists()), default=None)


class Postgres:
    """A server that listens on a socket in its folder alone."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        self._binaries = binaries
        self._databases = 0
        # PostgreSQL refuses to run as root; the package brings a user for it.
        self._user = "postgres" if os.getuid() == 0 else None

    def start(self) -> None:
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self.folder.chmod(0o711)
        data = self.folder / "data"
        self._run("initdb", "-D", data, "-U", "orchestrate", "-A", "trust", "-N", "-E", "UTF8")
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=50"
        log = self.folder / "log"
        self._run("pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.folder / "data", "-w", "-m", "immediate", "stop")

    def uri(self, database: str) -> str:
        return f"postgresql:///{database}?host={self.folder}&user=orchestrate"

    def create(self, template: str | None = None) -> str:
        """The URI of a new database, a copy of `template`."""
        self._databases += 1
        name = f"mlflow{self._databases}"
        copied = ["-T", template] if template else []
        self._run("createdb", "-h", self.folder, "-U", "orchestrate", *copied, name)
        return self.uri(name)

    def _run(self, program: str, *words: str | Path) -> None:
        command: Sequence[str | Path] = (self._binaries / program, *words)
        done = subprocess.run(
            command,
            user=self._user,
            cwd="/",
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if program != "pg_ctl" else subprocess.DEVNULL,
            text=True,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}"


@contextmanager
def running(prepare: Callable[[str], None]) -> Iterator[Callable[[], str]]:
    """A function that makes databases, each a copy of one that `prepare` has filled."""
    binaries = find_binaries()
    assert binaries is not None
    # Not in pytest's folder, which another user may not enter; a socket's path must be short.
    with TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        server = Postgres(Path(folder), binaries)
        server.start()
        try:
            prepare(server.create())
            yield lambda: server.create("mlflow1")
        finally:
            server.stop()
