"""A throw-away SLURM cluster for tests: own munge, controller and nodes with fake CPUs and GPUs.

Every daemon is a child of a small supervisor process (`slurm_processes.py` run as a script), which
is the subreaper of all it starts. When the test process ends, however it ends, the supervisor's
standard input closes and it kills everything below itself and removes the folder.

Each node runs in a mount namespace of its own: `/tmp`, `/var/tmp` and `/dev/shm` are private and
empty there, and only `PrivateSlurm.shared`, the source tree and the Python environment are shared,
so that a job which relies on the submitter's local disk fails here as it does on a real cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import slurm_accounting
from tests.slurm_processes import alive, all_pids, command_name, environment, namespace, parent_of
from tests.slurm_settings import Place, Settings, slurm_conf

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
REPOSITORY = Path(__file__).resolve().parents[1]
PRIVATE_FOLDERS = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))  # noqa: S108
_SBIN = "/usr/sbin:/usr/local/sbin:/sbin"
_given: set[int] = set()

# Positional: hosts file, number of private folders, the folders, number of shared folders, the
# folders, then the command. The shared folders are set aside before the private ones cover them.
_ENTER_NODE = r"""
set -e
mount --make-rprivate /
mount --bind "$1" /etc/hosts; shift
n=$1; shift; hidden=("${@:1:n}"); shift "$n"
n=$1; shift; kept=("${@:1:n}"); shift "$n"
mount -t tmpfs tmpfs /mnt
i=0; for folder in "${kept[@]}"; do
  mkdir "/mnt/$i"; mount --rbind "$folder" "/mnt/$i"; i=$((i+1))
done
for folder in "${hidden[@]}"; do mount -t tmpfs -o mode=1777 tmpfs "$folder"; done
i=0; for folder in "${kept[@]}"; do
  mkdir -p "$folder"; mount --rbind "/mnt/$i" "$folder"; i=$((i+1))
done
cd /
exec "$@"
"""


def missing_programs() -> list[str]:
    """Which of the programs a private cluster needs are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]


def missing_for_accounting() -> list[str]:
    """Which Debian packages `accounting=True` needs beyond those; empty where it can start."""
    return slurm_accounting.missing(_search_path())


def _search_path() -> str:
    return os.environ.get("PATH", "/usr/bin:/bin") + ":" + _SBIN


def _free_ports(count: int) -> list[int]:
    """Ports below the kernel's ephemeral range, so that no outgoing connection takes them first."""
    found: list[int] = []
    port = 12000 + (os.getpid() * 37 + time.monotonic_ns() // 1000) % 7000
    while len(found) < count:
        port = port + 1 if port < 19999 else 12000
        if port in _given:  # to a cluster of this process that may not listen yet
            continue
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    _given.update(found)
    return found


def can_unshare() -> bool:
    """Whether this user may give each node a mount namespace of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class PrivateSlurm:
    """One private cluster; a context manager.

    Args:
        settings: fields of `slurm_settings.Settings`.

    Attributes:
        env: environment for subprocesses that talk to this cluster.
        shared: the only folder of this machine's `/tmp` that nodes see; keep the store there.
        isolated: whether nodes have mount namespaces of their own.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.nodes = self.settings.nodes
        self.isolated = can_unshare()
        self.root = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.shared = self.root / "shared"
        self.conf = self.root / "slurm.conf"
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))},
            "PATH": _search_path(),
            "SLURM_CONF": str(self.conf),
        }
        self._supervisor: subprocess.Popen[str] | None = None
        self._place = Place(
            root=self.root,
            host=socket.gethostname().split(".")[0],
            name=f"private{os.getpid()}",
            ports=_free_ports(3 + len(self.nodes)),
        )
        self._pids: dict[str, int] = {}
        self._namespaces: dict[str, str] = {}

    # -- life ------------------------------------------------------------------------------------

    def __enter__(self) -> PrivateSlurm:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Bring everything up and wait until all nodes are idle.

        Raises:
            RuntimeError: the cluster did not come up; the message ends with the daemons' logs.
        """
        self.root.chmod(0o755)
        self.shared.mkdir()
        for name in ("state", "munge", "dev"):
            (self.root / name).mkdir(mode=0o755)
        self._write_configuration()
        self._supervisor = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("slurm_processes.py")), str(self.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self._start_munge()
            if self.settings.accounting:
                slurm_accounting.start(self, self._place, self.env["PATH"])
            self.start_controller()
            for node in self.nodes:
                self.start_node(node)
            self.wait_for(lambda: all(s == "idle" for s in self.node_states().values()), 20)
        except BaseException as error:
            logs = "\n".join(
                f"--- {p.name}\n{p.read_text()[-2000:]}" for p in self.root.glob("*.log")
            )
            self.stop()
            if isinstance(error, RuntimeError | TimeoutError):
                raise RuntimeError(f"the private SLURM did not start: {error}\n{logs}") from error
            raise

    def stop(self) -> None:
        """Kill all daemons, steps and tasks, and remove the folder."""
        if self._supervisor is not None and self._supervisor.stdin is not None:
            self._supervisor.stdin.close()
            self._supervisor.wait(timeout=30)
            if self._supervisor.stdout is not None:
                self._supervisor.stdout.close()
            self._supervisor = None
        shutil.rmtree(self.root, ignore_errors=True)

    # -- daemons ---------------------------------------------------------------------------------

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        argv = ["slurmctld", "-D", "-f", str(self.conf)]
        self.spawn("slurmctld", argv)
        self.wait_for(lambda: self.run("scontrol", "ping", check=False).returncode == 0, 20)

    def signal_controller(self, number: int) -> None:
        """Send slurmctld a signal: KILL for a crash, STOP and CONT for a hang."""
        os.kill(self._pids["slurmctld"], number)

    def stop_controller(self) -> None:
        """End slurmctld as an administrator does and wait until it has saved its state."""
        pid = self._pids["slurmctld"]
        os.kill(pid, signal.SIGTERM)
        self.wait_for(lambda: not alive(pid), 60)

    def start_node(self, node: str) -> None:
        """Start the slurmd of one node."""
        argv = ["slurmd", "-D", "-N", node, "-f", str(self.conf)]
        if self.isolated:
            hidden = [str(folder) for folder in PRIVATE_FOLDERS if folder.is_dir()]
            kept = [str(folder) for folder in self._shared_folders()]
            argv = [
                *("unshare", "--mount", "bash", "-c", _ENTER_NODE, "node"),
                str(self.root / "hosts"),
                *(str(len(hidden)), *hidden),
                *(str(len(kept)), *kept),
                *argv,
            ]
        self.spawn(node, argv)

    def kill_slurmd(self, node: str) -> None:
        """SIGKILL the node's slurmd; its tasks live on."""
        self._namespaces[node] = namespace(self._pids[node])
        os.kill(self._pids[node], signal.SIGKILL)

    def kill_node(self, node: str) -> None:
        """SIGKILL the node's slurmd, step daemons and tasks, as if the power were cut."""
        for pid in self._processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def set_node(self, node: str, state: str) -> None:
        """`down`, `drain` or `resume` one node as an administrator does.

        A node that is up again by itself (ReturnToService=2) refuses to be resumed.
        """
        order = ("scontrol", "update", f"nodename={node}", f"state={state}")
        if state == "resume":
            self.run(*order, check=False)
        else:
            self.run(*order, "reason=test")

    def heal(self) -> None:
        """Cancel all jobs and bring every node back to idle, for the next test."""
        self.run("scancel", "--full", "--signal=KILL", "--user", str(os.geteuid()), check=False)
        self.run("scancel", "--user", str(os.geteuid()), check=False)
        for node in self.nodes:
            if not alive(self._pids[node]):
                self.start_node(node)
        for node, state in self.node_states().items():
            if state.rstrip("*") in ("down", "drained", "draining", "drng", "drain"):
                self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self.wait_for(lambda: all(s == "idle" for s in self.node_states().values()), 60)

    # -- asking ----------------------------------------------------------------------------------

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a SLURM command against this cluster."""
        done = subprocess.run(
            argv, env=self.env, capture_output=True, text=True, check=False, cwd=self.shared
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stderr}")
        return done

    def sbatch(self, *arguments: str) -> str:
        """Submit with plain sbatch; the job id."""
        return self.run("sbatch", "--parsable", *arguments).stdout.strip().split(";")[0]

    def sbatch_test_only(self, script: str) -> subprocess.CompletedProcess[str]:
        """Whether this cluster would accept the script's text; nothing is queued."""
        path = self.root / "test_only.sh"
        path.write_text(script, encoding="utf-8")
        return self.run("sbatch", "--test-only", str(path), check=False)

    def squeue(self) -> list[dict[str, str]]:
        """All jobs the controller knows, ended ones included."""
        fields = ("JobID", "Name", "State", "Reason", "RestartCnt", "Partition", "NodeList")
        wanted = ",".join(f"{name}:|" for name in fields)
        lines = self.run("squeue", "-h", "-t", "all", "-O", wanted).stdout.splitlines()
        return [dict(zip(fields, line.split("|"), strict=False)) for line in lines]

    def live(self) -> set[str]:
        """Ids of the jobs that wait, run or end."""
        states = ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED")
        return {job["JobID"] for job in self.squeue() if job["State"] in states}

    def job(self, job_id: str) -> dict[str, str]:
        """`scontrol show job` as a mapping; empty where the job is not known."""
        text = self.run("scontrol", "-o", "show", "job", job_id, check=False).stdout
        return dict(pair.split("=", 1) for pair in text.split() if "=" in pair)

    def node_states(self) -> dict[str, str]:
        """State of every node as sinfo prints it; `*` marks one that does not answer."""
        lines = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t", check=False).stdout
        return dict(line.split() for line in lines.splitlines())

    def preempt(self, seconds: int = 3) -> str:
        """Take all nodes for a job of the partition `high`, which preempts the others; its id."""
        everything = ("-N", str(len(self.nodes)), "--exclusive", "--output=/dev/null")
        return self.sbatch("-p", "high", *everything, "-J", "preemptor", f"--wrap=sleep {seconds}")

    def wait_for(self, condition: Callable[[], bool], seconds: float, every: float = 0.1) -> None:
        """Poll `condition` every so many seconds. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"condition not met within {seconds} s; queue: {self._describe()}"
                )
            time.sleep(every)

    # -- inside ----------------------------------------------------------------------------------

    def _describe(self) -> str:
        with contextlib.suppress(RuntimeError):
            return f"{self.squeue()} nodes: {self.node_states()}"
        return "the controller does not answer"

    def _processes(self, node: str) -> list[int]:
        """The node's slurmd, step daemons and tasks; the first dies first.

        A namespace of its own tells them; without, what SLURM sets in the environment of tasks,
        and the step daemons are their parents.
        """
        if self.isolated:
            inside = namespace(self._pids[node]) or self._namespaces.get(node)
            return [pid for pid in all_pids() if inside and namespace(pid) == inside]
        marks = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.conf}".encode()}
        tasks = [pid for pid in all_pids() if marks <= environment(pid)]
        daemons = {parent_of(pid) for pid in tasks}
        steps = [pid for pid in daemons if command_name(pid).startswith("slurmstepd")]
        return [self._pids[node], *steps, *tasks]

    def _shared_folders(self) -> list[Path]:
        """What of the covered folders a node must see all the same."""
        wanted = [self.root, REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)]
        wanted += self.settings.shares
        covered = [p for p in wanted if any(p.is_relative_to(f) for f in PRIVATE_FOLDERS)]
        return [p for p in covered if not any(p != o and p.is_relative_to(o) for o in covered)]

    def spawn(self, name: str, argv: list[str]) -> int:
        """Start a daemon below the supervisor, its output in `<name>.log`; its process id."""
        if self._supervisor is None or self._supervisor.stdin is None:
            raise RuntimeError("the cluster is not started")
        order = {
            "argv": argv,
            "log": str(self.root / f"{name}.log"),
            "env": self.env,
        }
        self._supervisor.stdin.write(json.dumps(order) + "\n")
        self._supervisor.stdin.flush()
        if self._supervisor.stdout is None:
            raise RuntimeError("the supervisor has no output")
        self._pids[name] = int(self._supervisor.stdout.readline())
        return self._pids[name]

    def _start_munge(self) -> None:
        folder = self.root / "munge"
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        options = {
            "key-file": key,
            "socket": folder / "socket",
            "pid-file": folder / "pid",
            "log-file": folder / "log",
            "seed-file": folder / "seed",
        }
        argv = ["munged", "--foreground", "--force", "--num-threads=2"]
        self.spawn("munged", [*argv, *(f"--{k}={v}" for k, v in options.items())])
        self.wait_for((folder / "socket").exists, 10)

    def _write_configuration(self) -> None:
        self.conf.write_text(slurm_conf(self.settings, self._place), encoding="utf-8")
        hosts = Path("/etc/hosts").read_text(encoding="utf-8")
        ours = "127.0.0.1 " + " ".join(self.nodes) + "\n"
        (self.root / "hosts").write_text(ours + hosts, encoding="utf-8")
        if not self.isolated:
            self._resolve_everywhere(hosts)
        (self.root / "gres.conf").write_text(self._gres_conf(), encoding="utf-8")

    def _resolve_everywhere(self, hosts: str) -> None:
        missing = [node for node in self.nodes if node not in hosts.split()]
        if missing and os.geteuid() == 0:
            with Path("/etc/hosts").open("a", encoding="utf-8") as stream:
                stream.write("127.0.0.1 " + " ".join(missing) + "\n")

    def _gres_conf(self) -> str:
        """Fake GPUs must be character devices: plain files give an empty CUDA_VISIBLE_DEVICES."""
        if not self.settings.gpus:
            return ""
        for i in range(self.settings.gpus):
            with contextlib.suppress(PermissionError):
                os.mknod(self.root / "dev" / f"gpu{i}", 0o20666, os.makedev(1, 3))
        made = (self.root / "dev" / "gpu0").exists()
        prefix = str(self.root / "dev" / "gpu") if made else "/dev/tty"
        return f"AutoDetect=off\nName=gpu File={prefix}[0-{self.settings.gpus - 1}]\n"
