"""The program as it is started: what it imports, and a real run on this machine from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.orchestrator.fabricated import FabricatedRun

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "mlflow", "pandas", "numpy", "deepspeed", "decord", "av", "sklearn", "matplotlib")
RECIPE = """\
name: tiny
tracking: {{enabled: false}}
stages:
  videos:
    kind: index
    workers: 1
    data: {{format: synthetic, size: 32, frames: 20, train: {train}, test: 8}}
"""
PROBE = """
import json, sys
from orchestrator.cli import main
sys.argv = ["orchestrate", *sys.argv[1:]]
try:
    main()
except SystemExit as left:
    code = left.code or 0
print("MODULES", json.dumps([code, sorted(sys.modules)]))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTR")}
    return {
        **kept,
        "ORCHESTRATE_STORE": str(tmp_path / "store"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "80",
    }


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[int], Path]:
    def write(train: int) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(RECIPE.format(train=train))
        return path

    return write


def start(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *words],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def orchestrate(environment: dict[str, str], *words: str) -> tuple[int, str, str]:
    process = start(environment, *words)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def imported(environment: dict[str, str], *words: str) -> tuple[int, set[str]]:
    run = subprocess.run(
        [sys.executable, "-c", PROBE, *words],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    code, modules = json.loads(run.stdout.rpartition("MODULES ")[2])
    return code, {name.partition(".")[0] for name in modules}


def test_help_imports_nothing_heavy_and_not_even_hydra(environment: dict[str, str]) -> None:
    code, modules = imported(environment, "--help")
    assert code == 0
    assert not modules & {*HEAVY, "hydra", "omegaconf", "rich", "submitit", "yaml"}


def test_lineage_imports_nothing_heavy(environment: dict[str, str]) -> None:
    run = FabricatedRun(Path(environment["ORCHESTRATE_STORE"]))
    run.submitted("pretrain")
    run.succeeded("pretrain")
    code, modules = imported(environment, "lineage", "demo")
    assert code == 0
    assert not modules & {*HEAVY, "hydra", "omegaconf", "submitit"}


def test_plan_imports_nothing_heavy(
    environment: dict[str, str], write_recipe: Callable[[int], Path]
) -> None:
    code, modules = imported(environment, "plan", str(write_recipe(8)))
    assert code == 0
    assert "hydra" in modules
    assert not modules & {*HEAVY, "submitit"}


def test_commands_about_a_run_need_neither_hydra_nor_anything_heavy(
    environment: dict[str, str], write_recipe: Callable[[int], Path]
) -> None:
    for train in (8, 9):
        assert orchestrate(environment, "submit", str(write_recipe(train)))[0] == 0
    for words in (("status",), ("why", "latest:videos"), ("cancel", "latest"), ("resume",)):
        code, modules = imported(environment, *words)
        assert code == 0, words
        assert not modules & {*HEAVY, "hydra", "omegaconf", "submitit"}, words


def test_a_run_on_this_machine_goes_from_submit_to_result_and_is_reused(
    environment: dict[str, str], write_recipe: Callable[[int], Path]
) -> None:
    recipe = str(write_recipe(8))
    code, out, err = orchestrate(environment, "submit", recipe)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "videos: succeeded" in out
    status = json.loads(orchestrate(environment, "status", "--json")[1])
    assert (status["run"]["status"], status["run"]["done"]) == ("succeeded", True)
    (stage,) = status["stages"]
    assert (stage["status"], stage["attempts"], stage["metrics"]["listed"]) == ("succeeded", 1, 16)
    assert "succeeded" in orchestrate(environment, "logs", "latest:videos")[1]
    again = json.loads(orchestrate(environment, "submit", recipe, "--json")[1])
    assert [stage["action"] for stage in again["stages"]] == ["reuse"]
    assert "nothing" in orchestrate(environment, "cancel", "tiny")[1]


def test_ctrl_c_on_this_machine_stops_and_a_second_submit_continues(
    environment: dict[str, str], write_recipe: Callable[[int], Path]
) -> None:
    recipe = str(write_recipe(600))
    process = start(environment, "submit", recipe)
    assert process.stdout is not None
    while "videos: running" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "submitting the recipe again, or `orchestrate resume tiny-" in err
    status = json.loads(orchestrate(environment, "status", "--json")[1])
    (stage,) = status["stages"]
    assert (stage["status"], status["run"]["done"]) == ("cancelled", True)
    assert stage["next"].startswith("orchestrate resume tiny-")
    assert orchestrate(environment, "submit", recipe)[0] == 0


def test_a_reader_that_leaves_early_gets_no_traceback(
    environment: dict[str, str], write_recipe: Callable[[int], Path]
) -> None:
    process = start(environment, "plan", str(write_recipe(8)), "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.wait(timeout=60)


def test_a_closed_stream_is_no_error(environment: dict[str, str]) -> None:
    words = [sys.executable, "-m", "orchestrator.cli", "list", "recipes"]
    closed = ["bash", "-c", 'exec "$@" >&-', "bash", *words]
    done = subprocess.run(closed, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


def test_debug_may_stand_behind_the_command(environment: dict[str, str]) -> None:
    code, _, err = orchestrate(environment, "status", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert "Traceback" not in orchestrate(environment, "status")[2]


def test_the_ui_answers_until_ctrl_c(
    environment: dict[str, str], write_recipe: Callable[[int], Path]
) -> None:
    assert orchestrate(environment, "submit", str(write_recipe(8)))[0] == 0
    process = start(environment, "ui")
    assert process.stdout is not None
    line = process.stdout.readline()
    address = line.split()[2].partition("/#")[0]
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{address}/health", timeout=10) as answer:  # noqa: S310
        assert answer.status == 200
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in err


def test_a_run_in_mode_offline_connects_to_nothing_and_sync_says_that_nobody_answers(
    environment: dict[str, str], write_recipe: Callable[[int], Path]
) -> None:
    recipe = str(write_recipe(8))
    server = "http://127.0.0.1:9"  # the discard port: nobody listens
    words = ("tracking.enabled=true", "+tracking.mode=offline", f"+tracking.uri={server}")
    assert orchestrate(environment, "submit", recipe, *words)[::2] == (0, "")
    (folder,) = (Path(environment["ORCHESTRATE_STORE"]) / "stages").iterdir()
    assert (folder / "outbox.log").read_text() == ""
    assert not (folder / "tracking.json").exists()
    code, out, err = orchestrate(environment, "sync")
    assert (code, len(err.splitlines())) == (3, 1)
    assert server.removeprefix("http://").partition(":")[0] in err
    assert out.endswith(f"{server}\n")


def test_a_stage_that_fails_ends_with_its_cause_its_log_and_the_next_command(
    environment: dict[str, str], tmp_path: Path
) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_text(
        "name: broken\ntracking: {enabled: false}\nstages:\n  videos:\n    kind: index\n"
        f"    data: {{format: folder, name: mine, root: {tmp_path / 'nothing'}}}\n"
    )
    code, out, _ = orchestrate(environment, "submit", str(recipe))
    assert code == 1
    cause, evidence, policy, following = out.splitlines()[-4:]
    assert cause.startswith("videos failed: an input is missing or damaged on ")
    assert str(tmp_path / "nothing") in cause
    log = Path(evidence.split()[1])
    assert str(tmp_path / "nothing") in log.read_text()
    assert policy.startswith("  policy: not tried again")
    assert following.startswith("  next: orchestrate resume broken-")
    assert following.endswith(" --stage videos")
