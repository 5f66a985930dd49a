"""What `doctor --job` runs on compute nodes: looks at each node and rank, and judges nothing."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import fsio, node_looks
from cluster.preemption import StopFlag
from cluster.ranks import RankEnv, rank_environment, restart_count

SCHEMA_VERSION = 1
_SIGNAL_SECONDS = 15.0  # from its sending on
_OTHERS_SECONDS = 180.0  # for the slowest rank to be ready for it


class Report:
    """What one rank has found so far; written after every look, so that one that hangs is seen."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        self._found: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **about, "at_work_on": ""}

    def look(self, name: str, function: Callable[[], dict[str, Any]]) -> None:
        """Keep what a look finds; its error is a finding as well."""
        self.say(at_work_on=name)
        begun = time.monotonic()
        try:
            found = function()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {str(error).strip()}"[:500]}
        self.say(**{name: {**found, "seconds": round(time.monotonic() - begun, 3)}})

    def say(self, **values: Any) -> None:
        """Keep and write."""
        self._found |= values
        fsio.write_json(self._path, self._found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank, or with `--batch` the look from the batch script behind all of them."""
    os.umask(0o077)
    stop = StopFlag()
    stop.install()
    parser = argparse.ArgumentParser(prog="python -m cluster.probe_job")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", action="store_true")
    parser.add_argument("--exit-code", type=int, default=0)
    parser.add_argument("--signalled", action="store_true")
    parser.add_argument("--interrupted", action="store_true")
    options = parser.parse_args(argv)
    folder = fsio.make_dir(options.folder / f"r{restart_count(os.environ):03d}")
    if options.batch:
        host = os.environ.get("SLURMD_NODENAME", socket.gethostname())
        report = Report(folder / "batch.json", {"host": host, "exit_code": options.exit_code})
        report.look("scheduler", node_looks.scheduler)
        report.say(done=True)
        return int(options.exit_code)
    _run_rank(folder, fsio.read_json(options.folder / "ask.json"), stop)
    return 0


def _run_rank(folder: Path, ask: Mapping[str, Any], stop: StopFlag) -> None:
    place = rank_environment(os.environ)
    host = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    about = {"rank": place.rank, "local_rank": place.local_rank, "host": host}
    report = Report(folder / f"rank-{place.rank}.json", about)
    report.look("cpus", node_looks.cpus)
    if place.local_rank == 0:
        for name, look in _looks_at_node(folder, ask, place):
            report.look(name, look)
    # A port of its own: a stage that starts on the same node must not meet these ranks.
    os.environ.update({**place.export(), "MASTER_PORT": str(ask["port"])})
    report.look("gpus", lambda: node_looks.gpus(ask))
    report.look("collective", lambda: node_looks.collective(ask, place))
    # Behind what all ranks do together, so that they race.
    report.look("claims", lambda: node_looks.claims(folder, place.rank))
    if place.local_rank == 0:
        report.look("imports", lambda: node_looks.imports(ask["modules"]))
    if ask["signals"]:
        report.say(waits_for_signal=True)
        report.look("signal", lambda: _await_signal(stop, folder / "signalled.json"))
    report.say(done=True, at_work_on="")


def _looks_at_node(
    folder: Path, ask: Mapping[str, Any], place: RankEnv
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    yield "python", node_looks.python
    yield "shared", lambda: node_looks.shared(folder, place.rank)
    yield "lock", lambda: node_looks.lock(folder / f"lock-{place.rank}")
    yield "scratch", node_looks.scratch
    yield "limits", node_looks.limits
    yield "scheduler", node_looks.scheduler
    if ask["tracking_uri"]:
        yield "mlflow", lambda: node_looks.mlflow(ask["tracking_uri"])
    yield "internet", node_looks.internet


def _await_signal(stop: StopFlag, sent: Path) -> dict[str, Any]:
    """Wait for the signal that comes when all ranks wait for it; `sent` tells that it was sent."""
    deadline, known = time.monotonic() + _OTHERS_SECONDS, False
    while not stop.requested() and time.monotonic() < deadline:
        if not known and sent.exists():
            deadline, known = time.monotonic() + _SIGNAL_SECONDS, True
        time.sleep(0.1)
    return {"received": stop.signal_name}


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Communication libraries may wait for peers in their destructors; all is on disk by now.
    os._exit(code)
