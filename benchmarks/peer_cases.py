"""The cases of the comparison of tools: what is done to a chain, and what came of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.slurm_cluster import PrivateSlurm

STAGES = ("pretrain", "probe", "finetune", "retrieval")
PATIENCE_SECONDS = 240
# A job that can never run is left this long before it is called pending for ever.
FOR_EVER_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one case.

    Attributes:
        ended: whether the command did.
        submit_seconds, done_seconds: from the start of the command to its end, and to the last
            stage's; None where that never came.
        starts: how often each stage was started.
        finished: how often each stage ended well.
        blind: children that were started without their parent's output.
        pending: reasons of the jobs that wait for ever.
        commands: the scheduler commands.
        said: the last line of the command, where it refused.
    """

    ended: bool
    submit_seconds: float | None
    done_seconds: float | None
    starts: Mapping[str, int]
    finished: Mapping[str, int]
    blind: int
    pending: Sequence[str]
    commands: Sequence[str]
    said: str = ""

    def told(self) -> str:
        """In words."""
        done = [name for name in STAGES if self.finished.get(name)]
        words = [f"{len(done)} of 4 stages finished"]
        again = [f"{name} {n} times" for name, n in self.starts.items() if n > 1]
        words += ["started " + ", ".join(again)] if again else []
        twice = [name for name in STAGES if self.finished.get(name, 0) > 1]
        words += ["computed twice: " + ", ".join(twice)] if twice else []
        words += [f"{self.blind} children run without their input"] if self.blind else []
        if self.pending:
            reasons = ", ".join(sorted(set(self.pending)))
            words.append(f"{len(self.pending)} jobs stay pending ({reasons})")
        if not self.ended:
            words.append("the command did not end")
        words += [f"`{self.said}`"] if self.said else []
        return "; ".join(words)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One tool in its folder on its cluster."""

    cluster: PrivateSlurm
    folder: Path
    env: Mapping[str, str]
    submit: Sequence[str]
    child: Sequence[str]
    blocks: bool

    def set(self, *, seconds: float, fails: str = "") -> None:
        """How long each stage takes, and which one fails."""
        value = json.dumps({"seconds": seconds, "fails": fails})
        (self.folder / "settings.json").write_text(value, encoding="utf-8")

    def start(self, words: Sequence[str] | None = None) -> subprocess.Popen[str]:
        """Start the tool's command, in a process group of its own."""
        log = (self.folder / "output").open("a", encoding="utf-8")
        return subprocess.Popen(
            list(words or self.submit),
            cwd=self.folder,
            env=dict(self.env),
            text=True,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def events(self) -> list[dict[str, Any]]:
        """What the stages told, oldest first."""
        paths = sorted((self.folder / "events").glob("*.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def seen(self, stage: str, what: str) -> int:
        """How often a stage told something."""
        return sum(e["stage"] == stage and e["what"] == what for e in self.events())

    def commands(self) -> list[str]:
        """All scheduler commands so far."""
        path = self.folder / "commands"
        return path.read_text(encoding="utf-8").split() if path.exists() else []

    def pending_for_ever(self) -> list[str]:
        """Reasons of the jobs that can never run, where nothing else is left."""
        live = [job for job in self.cluster.squeue() if job["JobID"] in self.cluster.live()]
        reasons = [job["Reason"] for job in live if job["State"] == "PENDING"]
        return reasons if len(reasons) == len(live) else []

    def settle(self, commands: Sequence[subprocess.Popen[str]]) -> bool:
        """Wait until nothing moves any more; whether all commands have ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        quiet: float | None = None
        while time.monotonic() < deadline:
            ended = all(command.poll() is not None for command in commands)
            if ended and not self.cluster.live():
                return True
            stuck = self.pending_for_ever() and "BeginTime" not in self.pending_for_ever()
            quiet = (quiet or time.monotonic()) if stuck else None
            if quiet and time.monotonic() - quiet > FOR_EVER_SECONDS:
                break
            time.sleep(0.2)
        return all(command.poll() is not None for command in commands)

    def outcome(
        self,
        began: float,
        commands: Sequence[subprocess.Popen[str]],
        submit_seconds: float | None = None,
    ) -> Outcome:
        """Wait until all has settled, end what is left, and tell what came of it."""
        ended = self.settle(commands)
        for command in commands:
            if command.poll() is None:
                os.killpg(command.pid, signal.SIGKILL)
                command.wait()
        events = self.events()
        done = [e["at"] for e in events if e["what"] == "done"]
        failed = any(command.returncode not in (0, None) for command in commands) and ended
        lines = (self.folder / "output").read_text(encoding="utf-8").strip().splitlines()
        return Outcome(
            ended=ended,
            submit_seconds=submit_seconds,
            done_seconds=max(done) - began if len(done) >= len(STAGES) else None,
            starts=dict(Counter(e["stage"] for e in events if e["what"] == "start")),
            finished=dict(Counter(e["stage"] for e in events if e["what"] == "done")),
            blind=sum(e["what"] == "no input" for e in events),
            pending=self.pending_for_ever(),
            commands=self.commands(),
            said=lines[-1][:160].replace("`", "'") if failed and lines else "",
        )


def happy(setting: Setting) -> Outcome:
    """Nothing happens."""
    began = time.time()
    command = setting.start()
    if setting.blocks:
        return setting.outcome(began, [command], submit_seconds=0.0)
    command.wait(timeout=PATIENCE_SECONDS)
    return setting.outcome(began, [command], submit_seconds=time.time() - began)


def parent_fails(setting: Setting) -> Outcome:
    """The first stage ends with exit code 1."""
    setting.set(seconds=3.0, fails="pretrain")
    return happy(setting)


def parent_forgotten(setting: Setting) -> Outcome:
    """The failed parent is no longer known to SLURM when its child is submitted again."""
    setting.set(seconds=3.0, fails="pretrain")
    first = setting.start()
    setting.cluster.wait_for(lambda: setting.seen("pretrain", "fail") > 0, PATIENCE_SECONDS)
    jobs = setting.cluster.squeue()
    parent = min((int(job["JobID"]) for job in jobs if job["JobID"].isdigit()), default=1)
    setting.settle([first])
    if first.poll() is None:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    setting.cluster.run("scancel", "--user", str(os.geteuid()), check=False)
    setting.cluster.wait_for(lambda: not setting.cluster.squeue(), PATIENCE_SECONDS)
    words = [word.format(parent=parent) for word in setting.child or setting.submit]
    return setting.outcome(time.time(), [setting.start(words)])


def preempted(setting: Setting) -> Outcome:
    """The parent is preempted in the middle."""
    setting.set(seconds=8.0)
    began = time.time()
    command = setting.start()
    setting.cluster.wait_for(lambda: setting.seen("pretrain", "start") > 0, PATIENCE_SECONDS)
    time.sleep(2)
    setting.cluster.preempt(2)
    return setting.outcome(began, [command])


def twice(setting: Setting) -> Outcome:
    """The same command, twice at the same time."""
    began = time.time()
    return setting.outcome(began, [setting.start(), setting.start()])


def killed(setting: Setting) -> Outcome:
    """The command is killed once it has submitted something, and given again."""
    first = setting.start()
    setting.cluster.wait_for(lambda: "sbatch" in setting.commands(), PATIENCE_SECONDS)
    time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    return setting.outcome(time.time(), [setting.start()])


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case: on which cluster, and what is done."""

    title: str
    text: str
    run: Callable[[Setting], Outcome]
    settings: Mapping[str, Any] = field(default_factory=lambda: {"accounting": True})


CASES: Mapping[str, Case] = {
    "happy": Case(title="Nothing happens", text="With accounting.", run=happy),
    "fails": Case(title="The parent fails", text="Exit code 1 after 3 s.", run=parent_fails),
    "forgotten": Case(
        title="The parent has failed and is forgotten, the child is submitted again",
        text="`MinJobAge=2`; what was left in the queue is cancelled first. By the tool's own"
        " means: where it can only submit the whole chain, that is done.",
        run=parent_forgotten,
        settings={"accounting": True, "min_job_age": 2},
    ),
    "requeue": Case(
        title="The parent is preempted, `PreemptMode=REQUEUE`",
        text="After 2 of 8 s, for 2 s.",
        run=preempted,
    ),
    "cancel": Case(
        title="The parent is preempted, `PreemptMode=CANCEL`",
        text="After 2 of 8 s, for 2 s.",
        run=preempted,
        settings={"accounting": True, "preempt_mode": "CANCEL"},
    ),
    "twice": Case(title="Submitted twice at the same time", text="Two shells.", run=twice),
    "killed": Case(
        title="The submitter is killed behind its first sbatch, and called again",
        text="SIGKILL.",
        run=killed,
    ),
    "no accounting": Case(
        title="Without accounting", text="Nothing else happens.", run=happy, settings={}
    ),
}
