"""Accounting for a private SLURM: a MariaDB and a slurmdbd of its own, gone with the cluster."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tests.slurm_settings import Place, slurmdbd_conf

PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb")
_PLUGIN = "accounting_storage_mysql.so"


class Daemons(Protocol):
    """What starts daemons and waits for them: the private cluster."""

    def spawn(self, name: str, argv: list[str]) -> int: ...

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None: ...


def missing(search_path: str) -> list[str]:
    """What accounting needs and this machine lacks; names of Debian packages to install."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=search_path) is None]
    packages = {"slurmdbd": "slurmdbd"}
    names = {packages.get(name, "mariadb-server") for name in absent}
    if not any(Path("/usr").glob(f"lib*/**/slurm*/{_PLUGIN}")):
        names.add("slurm-wlm-mysql-plugin")
    return sorted(names)


def start(daemons: Daemons, place: Place, search_path: str) -> None:
    """Bring up database and slurmdbd until both answer. Raises RuntimeError, TimeoutError."""
    data, socket = place.root / "database", place.root / "database.socket"
    tool = shutil.which("mariadb-install-db", path=search_path) or "mariadb-install-db"
    options = [f"--datadir={data}", f"--tmpdir={place.root}", f"--user={place.user}"]
    made = subprocess.run(
        [tool, "--no-defaults", *options, "--skip-test-db"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise RuntimeError(f"{tool}: exit {made.returncode}\n{made.stdout}{made.stderr}")
    first = place.root / "first.sql"
    first.write_text(
        textwrap.dedent("""\
        CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
        GRANT ALL ON accounting.* TO 'slurm'@'127.0.0.1';
        """),
        encoding="utf-8",
    )
    network = [f"--socket={socket}", "--bind-address=127.0.0.1", f"--port={place.ports[-1]}"]
    small = ["--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0"]
    daemons.spawn(
        "database",
        ["mariadbd", "--no-defaults", *options, *network, *small, f"--init-file={first}"],
    )
    daemons.wait_for(socket.exists, 30)
    conf = place.root / "slurmdbd.conf"
    conf.write_text(slurmdbd_conf(place), encoding="utf-8")
    conf.chmod(0o600)
    daemons.spawn("slurmdbd", ["slurmdbd", "-D"])
    log = place.root / "slurmdbd.log"
    daemons.wait_for(lambda: "started" in log.read_text(encoding="utf-8"), 30)
