"""What runs on the nodes for `doctor --job`, look by look."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import fsio, node_looks, probe_job


def test_a_look_that_breaks_is_a_finding_and_the_others_go_on(tmp_path: Path) -> None:
    report = probe_job.Report(tmp_path / "rank-0.json", {"rank": 0})
    report.look("lock", lambda: node_looks.lock(tmp_path / "none" / "lock"))
    report.look("cpus", node_looks.cpus)
    found = fsio.read_json(tmp_path / "rank-0.json")
    assert found["lock"]["error"].startswith("FileNotFoundError: ")
    assert found["cpus"]["allowed"] == len(os.sched_getaffinity(0))
    assert found["rank"] == 0


def test_what_a_rank_hangs_in_is_on_disk_before_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.json"
    seen: list[str] = []

    def look() -> dict[str, object]:
        seen.append(str(fsio.read_json(path)["at_work_on"]))
        return {}

    probe_job.Report(path, {}).look("collective", look)
    assert seen == ["collective"]


def test_each_claim_is_won_once_however_many_race_for_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        won = pool.map(lambda rank: node_looks.claims(tmp_path, rank)["won"], range(4))
    assert sorted(n for numbers in won for n in numbers) == list(range(node_looks.NUM_CLAIMS))


def test_the_least_memory_limit_of_all_groups_counts(tmp_path: Path) -> None:
    job = tmp_path / "slurm" / "job_7"
    (job / "step_0").mkdir(parents=True)
    (tmp_path / "slurm" / "memory.max").write_text("max\n")
    (job / "memory.max").write_text("4000000000\n")
    (job / "step_0" / "memory.max").write_text("max\n")
    assert node_looks.memory_limit("0::/slurm/job_7/step_0\n", tmp_path) == 4_000_000_000
    assert node_looks.memory_limit("0::/slurm\n", tmp_path) is None


def test_the_memory_limit_of_the_first_version_of_control_groups_is_read(tmp_path: Path) -> None:
    group = tmp_path / "memory" / "slurm"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("2000000000\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    text = "5:cpu,cpuacct:/slurm\n4:memory:/slurm\n0::/\n"
    assert node_looks.memory_limit(text, tmp_path) == 2_000_000_000


def test_the_answer_of_another_machine_bounds_the_difference_of_the_clocks(tmp_path: Path) -> None:
    fsio.write_json(tmp_path / "answer-0.json", {"at": 1.0})
    found = node_looks.shared(tmp_path, 0)
    sent = fsio.read_json(tmp_path / "hello-0.json")["at"]
    assert found["clock_differs"] == pytest.approx(sent - 1.0, abs=0.01)


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """Answers health probes and refuses work, as MLflow does to hosts it was not told of."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code = 200 if self.path == "/health" else 403
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"Invalid Host header")

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_tracking_server_is_asked_something_real(refusing_server: str) -> None:
    assert node_looks.mlflow(refusing_server) == {"status": 403, "says": "Invalid Host header"}


def test_a_tracking_server_that_is_a_file_cannot_serve_nodes() -> None:
    with pytest.raises(ValueError, match="no address of a server"):
        node_looks.mlflow("sqlite:////tmp/mlflow.db")


def test_outside_of_slurm_its_commands_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert node_looks.scheduler() == {"scontrol": None, "sbatch": None}


def test_a_command_that_a_node_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("PATH", "/nowhere")
    found = node_looks.scheduler()
    assert (found["scontrol"], found["sbatch"]) == (False, False)
    assert "scontrol" in found["scontrol_says"]


def test_a_package_that_does_not_import_is_told_with_its_error() -> None:
    found = node_looks.imports({"pydantic": "pydantic", "torch": "no_such_module"})["packages"]
    assert found["pydantic"]["version"]
    assert "no_such_module" in found["torch"]["error"]
    assert json.dumps(found)
