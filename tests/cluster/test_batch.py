"""The sbatch script: a golden copy, and values that try to become commands."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import batch
from cluster.batch import RequestError, parameters
from cluster.contract import JobHandle, JobRequest, Resources
from cluster.slurm import SlurmExecutor
from tests.slurm_cluster import PrivateSlurm

GOLDEN = Path(__file__).parent / "golden"
CANARY = "executed-canary"


def request(**changes: Any) -> JobRequest:
    base = JobRequest(
        name="dpc.pretrain-0123456789ab-s1",
        argv=(
            "/env/bin/python",
            "-P",
            "-m",
            "orchestrator.entry",
            "/store/s1",
            "--submission",
            "1",
        ),
        epilogue=("/env/bin/python", "-P", "-m", "cluster.epilogue", "/store/s1"),
        resources=Resources(),
        log_dir=Path("/store/s1/logs"),
        env={"PYTHONPATH": "/store/code/0123"},
    )
    return replace(base, **changes)


def handle(job_id: str) -> JobHandle:
    return JobHandle(executor="slurm", cluster="c", job_id=job_id, submitted_at=0.0)


FULL = Resources(
    nodes=2,
    tasks_per_node=8,
    device="cuda",
    gpus_per_node=8,
    cpus_per_task=12,
    mem_gb=200.5,
    hours=24.0,
    partition="gpu",
    account="vision",
    qos="long",
    constraint="h200&ib",
    exclude="n[07-08]",
    signal_seconds=600,
    setup=("source /etc/profile", "module load cuda"),
    nodelist="n[01-02]",
    reservation="school",
    licenses="scratch:1",
    exclusive=True,
    cpu_bind="cores",
    extra={"mail_user": "ann@example.org", "nice": 10, "contiguous": False, "gres": "nvme:1"},
)
CASES = {
    "minimal": request(),
    "full": request(
        resources=FULL,
        comment="orchestrate pretrain-0123456789ab",
        after=(handle("11"), handle("12")),
    ),
    "gres": request(
        resources=Resources(device="cuda", gpus_per_node=4, tasks_per_node=4, gpu_request="gres"),
        log_dir=Path("/my store/it's/logs"),
    ),
    "gres_of_a_type": request(
        resources=Resources(
            device="cuda",
            gpus_per_node=4,
            tasks_per_node=4,
            gpu_request="gres",
            gpu_type="a100",
            mem_gb=0,
            exclusive="user",
            extra={"gres": "nvme:1"},
        ),
    ),
    "gpus_per_task": request(
        resources=Resources(
            nodes=2,
            device="cuda",
            gpus_per_node=4,
            tasks_per_node=4,
            gpu_request="gpus-per-task",
            gpu_type="h100",
            cpu_bind="threads",
        ),
    ),
}


@pytest.fixture
def plain_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A submitting shell with two variables that are passed on and one that is not."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")


@pytest.mark.parametrize("case", sorted(CASES))
def test_scripts_are_as_agreed(case: str, plain_shell: None) -> None:
    """To renew after a wanted change: write what `render` gives into tests/cluster/golden."""
    text = SlurmExecutor().render(CASES[case])
    assert text == (GOLDEN / f"{case}.sh").read_text(encoding="utf-8")
    assert "secret" not in text


def test_scripts_are_valid_bash(plain_shell: None) -> None:
    for case in CASES.values():
        text = SlurmExecutor().render(case)
        done = subprocess.run(["/bin/bash", "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "code"), [("exit 3", "3"), ("set -e; false", "1"), ("set -eu; trap - TERM", "70")]
)
def test_no_setup_of_a_site_keeps_the_epilogue_from_deciding(
    line: str, code: str, plain_shell: None, tmp_path: Path
) -> None:
    """Setup that ends the script leads to the epilogue and queues nothing."""
    told = tmp_path / "told"
    tool = tmp_path / "tool"
    tool.write_text(f'#!/bin/bash\necho "$@" >> {told}\n')
    tool.chmod(0o755)
    job = request(
        resources=Resources(setup=(line,)),
        epilogue=(str(tool), "epilogue"),
        prologue=(str(tool), "prologue"),
    )
    script = "srun() { return 70; }\n" + SlurmExecutor().render(job)
    subprocess.run(["/bin/bash"], input=script, capture_output=True, text=True)
    calls = told.read_text().splitlines()
    assert calls[-1].startswith("epilogue") and calls[-1].endswith(f"--exit-code {code}")
    assert len(calls) == (2 if code == "70" else 1)


@pytest.mark.parametrize(("answer", "sent"), [(0, 300), (75, 10)])
def test_a_second_term_is_acted_on_only_where_nobody_had_ended_the_job(
    answer: int, sent: int, plain_shell: None, tmp_path: Path
) -> None:
    told, tool = tmp_path / "told", tmp_path / "tool"
    tool.write_text(f'#!/bin/bash\necho "$@" >> {told}\nexit {answer}\n')
    tool.chmod(0o755)
    enough = f'[ "$(grep -c signalled {told})" -lt 2 ] || break'
    again = f"for n in {{1..{sent}}}; do kill -TERM $$; sleep 0.1; {enough}; done"
    script = SlurmExecutor().render(request(epilogue=(str(tool), "epilogue")))
    script = f"srun() {{ {again}; }}\n{script}"
    subprocess.run(["/bin/bash"], input=script, capture_output=True, text=True)
    assert (told.read_text().count("--signalled") > 1) is (answer == 0)


def test_no_partition_or_account_is_written_unless_given(plain_shell: None) -> None:
    text = SlurmExecutor().render(request())
    for option in ("partition", "account", "qos", "mem", "gpus", "gres", "wckey", "dependency"):
        assert f"--{option}" not in text


def test_a_signal_variable_of_submitit_changes_nothing(
    plain_shell: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    assert "#SBATCH --signal=USR2@300" in SlurmExecutor().render(request())


@pytest.mark.slurm
@pytest.mark.parametrize("case", ["minimal", "gres"])
def test_slurm_accepts_the_scripts(slurm: PrivateSlurm, case: str, plain_shell: None) -> None:
    text = SlurmExecutor().render(CASES[case])
    done = slurm.sbatch_test_only(text)
    assert done.returncode == 0, done.stderr


@pytest.mark.slurm
def test_a_cluster_of_two_times_eight_gpus_accepts_the_full_script(plain_shell: None) -> None:
    names = ("partition", "account", "qos", "constraint", "exclude")
    absent = dict.fromkeys((*names, "nodelist", "reservation", "licenses"))
    resources = replace(FULL, extra={"nice": 10}, **absent)
    text = SlurmExecutor().render(request(resources=resources))
    with PrivateSlurm(num_nodes=2, cpus=96, gpus=8) as cluster:
        cluster.run("scontrol", "update", "nodename=n1,n2", "comment=x", check=False)
        done = cluster.sbatch_test_only(text.replace("--mem=205312M", "--mem=60000M"))
        assert done.returncode == 0, done.stderr
        assert re.search(r"to start at .* using 192 processors on nodes n\[1-2\]", done.stderr)


# -- hostile values --------------------------------------------------------------------------------

PAYLOADS = [
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f"; touch {CANARY};",
    f"' ; touch {CANARY} ; '",
    f'" ; touch {CANARY} ; "',
    f"'\"'\"' ; touch {CANARY} #",
    f"a & touch {CANARY} &",
    f"a || touch {CANARY}",
    f"a | touch {CANARY}",
    f"> {CANARY}",
    f"${{IFS}}touch${{IFS}}{CANARY}",
    f"$'\\ntouch {CANARY}\\n'",
    f"\\'; touch {CANARY}",
    f"a\\\n touch {CANARY}",
    f"a\ntouch {CANARY}\n#",
    f"a\r\ntouch {CANARY}\r\n",
    f"a\x0btouch {CANARY}",
    f"a\x00touch {CANARY}",
    f"a\x1b]0;touch {CANARY}\x07",
    f"a\u2028touch {CANARY}\u2028",
    f"a\u2029touch {CANARY}",
    f"a\x85touch {CANARY}",
    f"\u202etouch {CANARY}",
    f"--wrap=touch {CANARY}",
    f"#SBATCH --wrap=touch {CANARY}",
    f"!touch {CANARY}",
    f"~/../{CANARY}",
    f"*?[a]{{1..9}} {CANARY}",
    f"é 漢字 🙂 {CANARY}",
]
PLACES: dict[str, Callable[[str, JobRequest], JobRequest]] = {
    "name": lambda v, r: replace(r, name=v),
    "comment": lambda v, r: replace(r, comment=v),
    "argv": lambda v, r: replace(r, argv=("/bin/true", v)),
    "epilogue": lambda v, r: replace(r, epilogue=("/bin/true", v)),
    "env value": lambda v, r: replace(r, env={"OURS": v}),
    "env name": lambda v, r: replace(r, env={v: "1"}),
    "after": lambda v, r: replace(r, after=(handle(v),)),
    "target": lambda v, r: replace(r, target=(v,)),
    "log_dir": lambda v, r: replace(r, log_dir=r.log_dir / v.replace("/", "_")),
    "partition": lambda v, r: replace(r, resources=replace(r.resources, partition=v)),
    "account": lambda v, r: replace(r, resources=replace(r.resources, account=v)),
    "qos": lambda v, r: replace(r, resources=replace(r.resources, qos=v)),
    "constraint": lambda v, r: replace(r, resources=replace(r.resources, constraint=v)),
    "exclude": lambda v, r: replace(r, resources=replace(r.resources, exclude=v)),
    "extra value": lambda v, r: replace(r, resources=replace(r.resources, extra={"wckey": v})),
    "extra key": lambda v, r: replace(r, resources=replace(r.resources, extra={v: "1"})),
}
HOSTILE = [(place, payload) for place in PLACES for payload in PAYLOADS]


def test_there_are_enough_hostile_values() -> None:
    assert len(HOSTILE) >= 200


@pytest.mark.parametrize("place", sorted(PLACES))
def test_no_hostile_value_is_executed(place: str, tmp_path: Path) -> None:
    """Each script that is not refused runs in bash with srun as a function, in an empty folder."""
    refused = 0
    home = tmp_path / "home"
    home.mkdir()
    base = request(argv=("/bin/true",), epilogue=("/bin/true",), log_dir=tmp_path / "logs", env={})
    for number, payload in enumerate(PAYLOADS):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            text = SlurmExecutor().render(PLACES[place](payload, base))
        except RequestError as error:
            assert str(error).isprintable()
            refused += 1
            continue
        script = "srun() { printf '%s\\n' \"$@\" > arguments; }\n" + text
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(home)}
        done = subprocess.run(
            ["/bin/bash", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.stderr == ""
        assert [path.name for path in folder.iterdir()] == ["arguments"], (place, payload)
        assert not list(home.iterdir())
        if place == "argv":
            assert payload in (folder / "arguments").read_text()
    if place in ("name", "env name", "extra key"):
        assert refused == len(PAYLOADS)
    else:
        assert 8 <= refused < len(PAYLOADS)


@pytest.mark.parametrize("payload", [p for p in PAYLOADS if p.isprintable()])
def test_no_hostile_value_adds_a_line_or_an_option(payload: str) -> None:
    plain = SlurmExecutor().render(request(comment="plain"))
    text = SlurmExecutor().render(request(comment=payload))
    assert text.count("\n") == plain.count("\n")
    assert text.count("#SBATCH --") - payload.count("#SBATCH --") == plain.count("#SBATCH --")


@pytest.mark.slurm
def test_slurm_itself_reads_hostile_values_as_text(
    slurm_here: PrivateSlurm, slurm_shared: Path
) -> None:
    payloads = [p for p in PAYLOADS if p.isprintable() and "\\" not in p]
    executor = SlurmExecutor()
    for number, payload in enumerate(payloads):
        log_dir = slurm_shared / str(number) / payload.replace("/", "_")
        job = executor.submit(
            request(
                name=f"hostile{number}",
                comment=payload,
                argv=("/bin/echo", payload),
                epilogue=("/bin/echo",),
                log_dir=log_dir,
                resources=Resources(extra={"begin": "now+1hour"}),
            )
        )
        shown = slurm_here.run("scontrol", "-o", "show", "job", job.job_id).stdout
        assert f" Comment={payload} " in shown
        assert f" WorkDir={log_dir}" in shown
        assert f" StdOut={log_dir}/{job.job_id}_0_log.out" in shown
        slurm_here.run("scancel", job.job_id)
    assert not list(slurm_shared.rglob(CANARY))


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("a", True),
        ("dpc_k400.pretrain-0123456789ab-s12", True),
        ("A" * 64, True),
        ("A" * 65, False),
        ("", False),
        ("-a", False),
        (".hidden", False),
        ("a/b", False),
        ("a b", False),
        ("a,b", False),
        ("a%j", False),
        ("é", False),
        ("a\n", False),
    ],
)
def test_job_names_are_plain(name: str, fits: bool) -> None:
    if fits:
        assert batch.check_job_name(name) == name
    else:
        with pytest.raises(RequestError, match="job name"):
            batch.check_job_name(name)


FORBIDDEN_KEYS = [
    "output",
    "error",
    "input",
    "wrap",
    "export",
    "chdir",
    "job-name",
    "uid",
    "open-mode",
    "array",
    "signal",
    "requeue",
    "no-requeue",
    "dependency",
    "get-user-env",
    "propagate",
    "kill-on-invalid-dep",
    "--nice",
    "Nice",
]


@pytest.mark.parametrize("key", [*FORBIDDEN_KEYS, ""])
def test_only_options_of_the_list_can_be_added(key: str) -> None:
    resources = Resources(extra={key: "x"})
    with pytest.raises(RequestError, match="not an sbatch option that can be added"):
        parameters(request(resources=resources), {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 0}, "nodes"),
        ({"tasks_per_node": 0}, "tasks_per_node"),
        ({"cpus_per_task": -1}, "cpus_per_task"),
        ({"gpus_per_node": -1}, "gpus_per_node"),
        ({"hours": 0.0}, "hours"),
        ({"hours": float("nan")}, "hours"),
        ({"mem_gb": float("inf")}, "mem_gb"),
        ({"partition": " "}, "partition: empty"),
        ({"reservation": ""}, "reservation: empty"),
        ({"nodelist": "a\nb"}, "nodelist"),
        (
            {"gpus_per_node": 4, "tasks_per_node": 2, "gpu_request": "gpus-per-task"},
            "are not one each",
        ),
        ({"setup": ("echo a\necho b",)}, r"setup\[0\]"),
        ({"exclude": "x" * 40_000}, "40000 characters"),
    ],
)
def test_impossible_resources_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parameters(request(resources=replace(Resources(), **changes)), {})


@pytest.mark.parametrize("folder", ["relative/logs", "/store/50%job/logs", "/store/a\\b/logs"])
def test_log_folders_slurm_would_misread_are_refused(folder: str) -> None:
    with pytest.raises(RequestError, match="log_dir"):
        parameters(request(log_dir=Path(folder)), {})


def test_the_warning_takes_no_more_than_a_third_of_a_short_job() -> None:
    def signal(hours: float) -> object:
        values = parameters(request(resources=Resources(hours=hours)), {})
        return values["additional_parameters"]["signal"]

    assert [signal(h) for h in (1 / 60, 0.1, 0.25, 24)] == [
        "USR2@20",
        "USR2@120",
        "USR2@300",
        "USR2@300",
    ]


def test_ranks_are_bound_where_they_share_a_node_and_no_hint_does_it() -> None:
    def bound(**asked: Any) -> bool:
        resources = Resources(cpu_bind="cores", **asked)
        values = parameters(request(resources=resources), {})
        return "--cpu-bind=cores" in values["srun_args"]

    assert bound(tasks_per_node=2)
    assert not bound(tasks_per_node=1, nodes=2)
    assert not bound(tasks_per_node=2, extra={"hint": "nomultithread"})


@pytest.mark.parametrize("spelling", ["gpus-per-node", "gpus-per-task", "gres"])
def test_gpus_are_not_asked_for_twice(spelling: Any) -> None:
    asked = Resources(device="cuda", gpus_per_node=1, gpu_request=spelling)
    with pytest.raises(RequestError, match=r"extra.gres: asks for GPUs again"):
        parameters(request(resources=replace(asked, extra={"gres": "nvme:1,gpu:1"})), {})
    beside = parameters(request(resources=replace(asked, extra={"gres": "nvme:1"})), {})
    alone = parameters(request(resources=Resources(extra={"gres": "nvme:1"})), {})
    assert "nvme:1" in beside["additional_parameters"]["gres"]
    assert alone["additional_parameters"]["gres"] == "nvme:1"


def test_short_jobs_get_at_least_a_minute_and_limits_are_rounded_up() -> None:
    def minutes(hours: float) -> int:
        return int(parameters(request(resources=Resources(hours=hours)), {})["time"])

    assert [minutes(h) for h in (0.001, 1 / 60, 0.5, 1.009, 24)] == [1, 1, 30, 61, 1440]
