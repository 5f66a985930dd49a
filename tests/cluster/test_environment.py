"""Which variables reach a job, and how those of a private file do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cluster.credentials import HIDDEN
from cluster.environment import EnvFileError, passed_on, read_env_file
from tracking.redact import redacted, redacted_words

SHELL = {
    "PATH": "/bin",
    "NCCL_SOCKET_IFNAME": "ib0",
    "SITE_SCRATCH": "/scratch",
    "SITE_API_KEY": "k",
    "SITE_PROXY": "http://ann:pw@proxy:3128",
    "SITE_URL": "http://ann@host:80/a:b",
    "SITE_LINES": "a\nb",
    "MODULEPATH": "/m",
    "SITE_F%%": "() { :; }",
    "HF_TOKEN": "t",
    "OTHER": "1",
}


def test_a_job_gets_what_is_asked_for_by_name_or_prefix_and_no_credential() -> None:
    found = passed_on(SHELL, also=("MODULEPATH", "SITE_*", "HF_TOKEN", "ABSENT"))
    assert sorted(found) == ["MODULEPATH", "NCCL_SOCKET_IFNAME", "PATH", "SITE_SCRATCH", "SITE_URL"]
    assert sorted(passed_on(SHELL)) == ["NCCL_SOCKET_IFNAME", "PATH"]


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("MLFLOW_TRACKING_PASSWORD", True),
        ("MLFLOW_TRACKING_TOKEN", True),
        ("MLFLOW_TRACKING_USERNAME", False),
        ("WANDB_API_KEY", True),
        ("AWS_ACCESS_KEY_ID", True),
        ("aws_secret_access_key", True),
        ("PGPASSWORD", True),
        ("GITHUB_PAT", True),
        ("PATH", False),
        ("XDG_DATA_DIRS", False),
        ("MONKEY_BUSINESS", False),
        ("KEYBOARD", False),
        ("AUTHOR", False),
        ("KEYCLOAK_URL", False),
        ("SLURM_JWT", True),
        ("GH_PAT", True),
        ("PASSPHRASE", True),
        ("COOKIE", True),
        ("DB_DSN", True),
        ("DB_PASS", True),
        ("BEARER", True),
        ("AUTHORIZATION", True),
        ("SIGNING_KEY_PEM", True),
        ("hf_token", True),
        ("key", True),
        ("PWD", False),
        ("stage_key", False),
        ("orchestrate.stage_key", False),
        ("keyframe", False),
        ("key_momentum", False),
        ("pass_env", False),
        ("patience", False),
        ("lr", False),
    ],
)
def test_jobs_and_records_agree_on_what_a_credential_is(name: str, secret: bool) -> None:
    if re.fullmatch(r"\w+", name):
        assert passed_on({name: "geheim"}, also=[name]) == ({} if secret else {name: "geheim"})
    shown = HIDDEN if secret else "geheim"
    assert redacted({name: "geheim"}) == {name: shown}
    assert redacted_words([f"+vars.{name}=geheim"]) == [f"+vars.{name}={shown}"]


def _private(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "variables"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_a_private_file_is_read_and_nothing_in_it_is_executed(tmp_path: Path) -> None:
    text = (
        "# of the tracking server\n\nMLFLOW_TRACKING_USERNAME=ann\n"
        "export MLFLOW_TRACKING_PASSWORD = 'a b#$(touch canary)=\"'\nEMPTY=\nQ=\"\nT=é\n"
    )
    assert read_env_file(_private(tmp_path, text)) == {
        "MLFLOW_TRACKING_USERNAME": "ann",
        "MLFLOW_TRACKING_PASSWORD": 'a b#$(touch canary)="',
        "EMPTY": "",
        "Q": '"',
        "T": "é",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A\n", ":1: a line NAME=VALUE"),
        ("A=1\nB C=2\n", ":2: a line NAME=VALUE"),
        ("SLURM_JOB_ID=1\n", ":1: SLURM_JOB_ID is set for each job"),
        ("LD_PRELOAD=/x\n", "LD_PRELOAD is set for each job"),
        ("PYTHONPATH=/x\n", "PYTHONPATH"),
        ("RANK=0\n", "RANK"),
        ("A=s3cret\x07\n", ":1: the value of A has a control character"),
    ],
)
def test_a_file_of_another_form_is_refused_without_quoting_it(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(EnvFileError) as raised:
        read_env_file(_private(tmp_path, text))
    assert words in str(raised.value)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o602])
def test_a_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(EnvFileError, match="chmod 600"):
        read_env_file(_private(tmp_path, "A=1\n", mode))


def test_only_a_plain_file_of_ones_own_is_read(tmp_path: Path) -> None:
    with pytest.raises(EnvFileError, match="No such file"):
        read_env_file(tmp_path / "absent")
    (tmp_path / "link").symlink_to(_private(tmp_path, "A=1\n"))
    with pytest.raises(EnvFileError, match="symbolic links"):
        read_env_file(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(EnvFileError, match="a plain file of your own"):
        read_env_file(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"A=\xff\n")
    (tmp_path / "bytes").chmod(0o600)
    with pytest.raises(EnvFileError, match="UTF-8"):
        read_env_file(tmp_path / "bytes")
    if os.geteuid() == 0:
        os.chown(tmp_path / "variables", 1234, 1234)
        with pytest.raises(EnvFileError, match="a plain file of your own"):
            read_env_file(tmp_path / "variables")
