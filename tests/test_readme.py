"""Every command of the README and of docs/extending.md runs, in order, on a copy of the project.

What the pages promise to this test:
- a line of a `sh` block is one command; no shell is needed: words as in a shell, `$NAME` from the
  environment, a comment at the end. `export NAME=value` and `source .venv/bin/activate` hold for
  the lines after;
- a command marked `# until Ctrl-C` stays until it is interrupted;
- a `yaml` or `python` block that begins with the name of a file in a comment is that file.

The user's environment is this one, `$SCRATCH` is the shared folder of a private SLURM of two nodes
with eight fake GPUs each. Two lines are not run as they stand: `make test` would run this test, so
make is only asked what it would do; and `make quickstart` is made shorter by the `ARGS` that its
Makefile offers, because the whole of it takes minutes.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.slurm_cluster import PrivateSlurm, missing_programs

pytestmark = [pytest.mark.slurm, pytest.mark.e2e, pytest.mark.xdist_group("slurm")]

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
EXTENDING = REPOSITORY / "docs" / "extending.md"
PAGES = sorted([README, *(REPOSITORY / "docs").glob("*.md")])

UNTIL_CTRL_C = "until Ctrl-C"
INTERRUPTED = 130
# Few videos, few steps, and of the stages those that have one another as inputs.
SHORT = (
    "data.synthetic.train=48 data.synthetic.test=16 stages.pretrain.max_steps=8"
    " ~stages.finetune ~stages.supervised ~stages.retrieval_random ~stages.mean_color"
    " 'stages.report.inputs.results=[probe.result,probe_random.result,retrieval.result]'"
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its lines."""

    language: str
    lines: tuple[str, ...]

    @property
    def file(self) -> str | None:
        """The file that the block shows, where its first line names one."""
        named = re.fullmatch(r"# ([\w./-]+\.(?:yaml|py))", self.lines[0]) if self.lines else None
        return named.group(1) if named else None


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, tuple(text.splitlines())) for language, text in found]


def commands(page: Path) -> list[str]:
    lines = (line for block in blocks(page) if block.language == "sh" for line in block.lines)
    return [line for line in lines if line.strip()]


@dataclass
class Terminal:
    """A shell as the pages assume it: a folder, and an environment that `export` changes."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def type(self, line: str) -> str:
        """Run one line to its end; what it printed. It must succeed."""
        words = [string.Template(word).substitute(self.env) for word in shlex.split(line, True)]
        if words[0] == "export":
            self.env.update((word.partition("=")[0], word.partition("=")[2]) for word in words[1:])
            return ""
        if words == ["source", ".venv/bin/activate"]:
            self.env["PATH"] = f"{self.folder / '.venv' / 'bin'}:{self.env['PATH']}"
            return ""
        if UNTIL_CTRL_C in line:
            return self._interrupt(words)
        if words == ["make", "test"]:
            words = ["make", "-n", "test"]
        extra = {"ARGS": SHORT} if words == ["make", "quickstart"] else {}
        return self._run(words, **extra)

    def _run(self, words: list[str], **extra: str) -> str:
        done = subprocess.run(
            self._found(words),
            cwd=self.folder,
            env={**self.env, **extra},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=400,
        )
        assert done.returncode == 0, f"{shlex.join(words)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def _interrupt(self, words: list[str]) -> str:
        """Start, wait until it says that Ctrl-C stops it, and press it."""
        process = subprocess.Popen(
            self._found(words),
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Where the tests run in the background, children would inherit a deaf ear.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout is not None
        output = ""
        try:
            for line in process.stdout:
                output += line
                if "Ctrl-C" in line:
                    break
            process.send_signal(signal.SIGINT)
            output += process.stdout.read()
            assert process.wait(60) in (0, INTERRUPTED), output
        finally:
            process.kill()
            process.stdout.close()
        return output

    def _found(self, words: list[str]) -> list[str]:
        program = shutil.which(words[0], path=self.env["PATH"])
        assert program, f"{words[0]} is not on the path of a user who did what the page says"
        return [program, *words[1:]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[PrivateSlurm]:
    """Two nodes of eight GPUs, as recipes/dpc_k400.yaml asks for."""
    if missing := missing_programs():
        pytest.skip(f"needs {', '.join(missing)}: apt-get install slurm-wlm munge")
    with PrivateSlurm(cpus=64, gpus=8) as slurm:
        yield slurm


@pytest.fixture(scope="module")
def terminal(cluster: PrivateSlurm) -> Terminal:
    """A user's terminal in a copy of the project, installed as `make install` leaves it."""
    if shutil.which("make") is None:
        pytest.skip("needs make: apt-get install make")
    folder = cluster.shared / "checkout"
    ignored = (REPOSITORY / ".gitignore").read_text().split()
    leave_out = shutil.ignore_patterns(".git", *(name.strip("/") for name in ignored))
    shutil.copytree(REPOSITORY, folder, ignore=leave_out)
    for page in (README, EXTENDING):
        _write_files(page, folder)
    _install(folder / ".venv")
    clean = {
        name: value
        for name, value in cluster.env.items()
        if not name.startswith(("ORCHESTRATE_", "MLFLOW_", "MAKE", "PYTEST_"))
    }
    search = clean["PATH"].replace(f"{Path(sys.executable).parent}:", "")
    # The environment's own copy of the packages is the working tree; this is the copy's.
    env = {"PATH": search, "SCRATCH": str(cluster.shared), "PYTHONPATH": str(folder)}
    return Terminal(folder, {**clean, **env, "NO_COLOR": "1"})


def _write_files(page: Path, folder: Path) -> None:
    for block in blocks(page):
        if block.file is not None:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(block.lines) + "\n")


def _install(venv: Path) -> None:
    """A virtual environment with this one's content, marked as up to date for make."""
    venv.mkdir()
    prefix = Path(sys.prefix)
    for name in ("bin", "lib", "lib64"):
        if (prefix / name).exists():
            (venv / name).symlink_to((prefix / name).resolve())
    if (prefix / "pyvenv.cfg").exists():
        shutil.copy(prefix / "pyvenv.cfg", venv)
    for stamp in (".installed", ".installed-dev"):
        (venv / stamp).touch()


def test_every_command_of_the_readme_works(terminal: Terminal, cluster: PrivateSlurm) -> None:
    said: dict[str, str] = {}
    for line in commands(README):
        if line.startswith("orchestrate submit recipes/dpc_k400.yaml"):
            # There are no such data here: the first jobs would fail before `cancel` is typed.
            cluster.sbatch("-N2", "--exclusive", "-Jbusy", "--wrap=sleep 600")
        said[line.partition("#")[0].strip()] = terminal.type(line)
        if line.startswith("orchestrate submit recipes/dpc_k400.yaml"):
            _check_jobs(cluster)
    assert "# DPC on synthetic motion" in said["make quickstart"]
    assert "| random weights |" in said["make quickstart"]
    assert re.search(r"^bash \.ci/apt\.sh .*slurm-wlm", said["make test"], re.MULTILINE)
    assert re.search(r"^\S*/pytest\b", said["make test"], re.MULTILINE)
    assert said["orchestrate status"].startswith("dpc_k400-")
    assert "http://127.0.0.1:" in said["orchestrate ui"]
    assert "mine.yaml: valid" in said["orchestrate validate mine.yaml"]
    scripts = next(text for line, text in said.items() if "--sbatch" in line)
    assert scripts.count("#SBATCH --partition=gpu\n") == scripts.count("#SBATCH --time=") > 4
    assert scripts.count("#SBATCH --account=vision\n") == scripts.count("#SBATCH --time=")
    assert "pretrain" in said["orchestrate cancel latest"]
    assert json.loads((terminal.folder / "recipe.schema.json").read_text())["properties"]


def _check_jobs(cluster: PrivateSlurm) -> None:
    """All stages of recipes/dpc_k400.yaml are in the queue; the pretraining on 2 x 8 GPUs."""
    jobs = [job for job in cluster.squeue() if job["Name"] != "busy"]
    assert len(jobs) == 23, jobs
    (pretrain,) = (job for job in jobs if job["Name"].startswith("pretrain-"))
    found = cluster.job(pretrain["JobID"])
    assert found["NumNodes"].startswith("2")
    assert found["TresPerNode"].endswith("gpu:8")


def test_the_method_of_the_page_on_extending_trains(terminal: Terminal) -> None:
    catalog = terminal.folder / "recipes" / "catalog.py"
    (entry,) = (line for block in blocks(EXTENDING) for line in block.lines if "Entry(" in line)
    name = "METHODS: dict[str, Entry] = {\n"
    text = catalog.read_text()
    assert name in text
    catalog.write_text(text.replace(name, f"{name}{entry}\n"))
    (terminal.folder / "recipes" / "methods" / "rotation" / "__init__.py").touch()
    here = Terminal(terminal.folder, dict(terminal.env))
    here.type("source .venv/bin/activate")
    here.env["ORCHESTRATE_STORE"] = str(terminal.folder / "rotation")
    listed, submitted = (here.type(line) for line in commands(EXTENDING))
    assert "rotation  Clips are turned" in listed
    assert "pretrain: succeeded" in submitted
    (encoder,) = Path(here.env["ORCHESTRATE_STORE"]).glob("stages/pretrain-*/outputs/encoder.json")
    assert json.loads(encoder.read_text())["method"] == "rotation"


def test_the_readme_is_short_and_its_example_has_a_dozen_lines() -> None:
    assert len(README.read_text().splitlines()) < 250
    (example,) = (block for block in blocks(README) if block.file == "mine.yaml")
    assert len(example.lines) <= 13


def test_shown_output_belongs_to_commands_that_exist() -> None:
    from orchestrator.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    shown = [
        line.split()[2]
        for page in PAGES
        for block in blocks(page)
        for line in block.lines
        if block.language == "console" and line.startswith("$ orchestrate ")
    ]
    assert shown
    assert set(shown) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_of_this_project(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
