"""A login shell for tests: counts the commands sent to the scheduler, and may kill who sends them.

Each command line runs in a fork of this process, which has everything imported already: twenty of
them start at once in a second.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.slurm_cluster import PrivateSlurm

COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sacct", "sinfo", "sacctmgr", "srun")

_SHIM = """\
#!/bin/bash
echo {name} >> "$SHIM_LOG"
"""
_SBATCH = """\
{real} "$@"
code=$?
if [ "$SHIM_KILL_AFTER" = "$(grep -c '^sbatch$' "$SHIM_LOG")" ]; then kill -9 $PPID; fi
exit $code
"""

# Nothing of it begins before the test is over: parts in one array, the stage they are parts of, a
# stage that takes from it, and one that takes from both.
RECIPE = """\
name: chain
cluster:
  executor: slurm
  resources: {device: cpu, cpus_per_task: 1, hours: 0.1, extra: {begin: now+1hour}}
tracking: {enabled: false}
data:
  home: {format: folder, name: home, root: /videos, index: {shards: 3}, prepare: null}
stages:
  pretrain:
    kind: pretrain
    data: ${data.home}
    method: {name: dpc, pred_steps: 2, augment: none}
    backbone: {name: r2d3d_tiny}
    clip: {blocks: 4, frames: 5, stride: 1, size: 32}
    max_steps: 4
    batch_size: 8
    micro_batch: 4
  probe:
    kind: probe
    data: ${data.home}
    inputs: {encoder: pretrain.encoder}
"""
NUM_SBATCH = 4
NUM_JOBS = 6


@dataclass
class LoginShell:
    """A folder with a store, and the commands of `slurm` behind shims."""

    slurm: PrivateSlurm
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shims = self.folder / "bin"
        shims.mkdir(parents=True)
        path = self.slurm.env["PATH"]
        for name in COMMANDS:
            real = shutil.which(name, path=path)
            if real is None:
                continue
            end = _SBATCH.format(real=real) if name == "sbatch" else f'exec {real} "$@"\n'
            (shims / name).write_text(_SHIM.format(name=name) + end)
            (shims / name).chmod(0o755)
        self.environment = {
            **self.slurm.env,
            "PATH": f"{shims}:{path}",
            "SHIM_LOG": str(self.folder / "commands"),
            "ORCHESTRATE_STORE": str(self.folder / "store"),
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
        }
        (self.folder / "chain.yaml").write_text(RECIPE)

    @property
    def recipe(self) -> str:
        return str(self.folder / "chain.yaml")

    def start(self, *words: str, log: str = "out", **variables: str) -> int:
        """Begin a command line in a process of its own; its process id."""
        _preload()
        pid = os.fork()
        if pid:
            return pid
        code = 99
        try:
            code = _be_the_program(self.folder, log, {**self.environment, **variables}, words)
        finally:
            os._exit(code)

    def run(self, *words: str, **variables: str) -> tuple[int, str]:
        """Exit code and all output of a command line; minus the signal that killed it."""
        code = self.wait(self.start(*words, **variables))
        return code, (self.folder / "out").read_text()

    def wait(self, pid: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def sent(self) -> Counter[str]:
        """The commands sent to the scheduler since this was asked last."""
        log = self.folder / "commands"
        found = Counter(log.read_text().split()) if log.exists() else Counter[str]()
        log.unlink(missing_ok=True)
        return found

    def jobs(self) -> list[str]:
        """Stage folders or arrays of all jobs that wait or run, as their comments name them."""
        waits = ("--states=PENDING,RUNNING", "--array", "--format=%k %K")
        return sorted(self.slurm.run("squeue", "--noheader", *waits).stdout.splitlines())


def _preload() -> None:
    """All that a command needs, before the fork."""
    import hydra  # noqa: F401
    import submitit  # noqa: F401
    import yaml  # noqa: F401

    import cluster.limits_read
    import cluster.snapshot  # noqa: F401
    import orchestrator.answers
    import orchestrator.cli
    import orchestrator.submit
    import orchestrator.view  # noqa: F401


def _be_the_program(folder: Path, log: str, env: Mapping[str, str], words: tuple[str, ...]) -> int:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    stream = os.open(folder / log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number in (1, 2):
        os.dup2(stream, number)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), line_buffering=True)
    sys.argv = ["orchestrate", *words]
    from orchestrator.cli import main

    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
