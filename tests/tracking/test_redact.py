"""What must never reach a tracking server."""

from __future__ import annotations

import pytest

from cluster.credentials import HIDDEN
from tracking.redact import flatten, redacted, redacted_words, scrub


def test_secret_text_is_hidden_at_any_depth_and_numbers_stay() -> None:
    config = {
        "model": {"num_tokens": 196, "use_cls_token": True},
        "hub": [{"token": "hf_x"}, {"access_keys": {"key": ["one", "two"]}}],
        "db": {"password": 123456},
    }
    assert redacted(config) == {
        "model": {"num_tokens": 196, "use_cls_token": True},
        "hub": [{"token": HIDDEN}, {"access_keys": {"key": [HIDDEN, HIDDEN]}}],
        "db": {"password": HIDDEN},
    }


def test_credentials_in_urls_are_hidden_anywhere() -> None:
    text = "see https://ada:hunter2@mlflow.example.org/x and postgresql://u:p@db/mlflow"
    assert scrub(text) == (
        f"see https://{HIDDEN}@mlflow.example.org/x and postgresql://{HIDDEN}@db/mlflow"
    )
    text = "postgresql://h/x?user=ada&password=geheim&sslmode=require"
    assert scrub(text) == f"postgresql://h/x?user=ada&password={HIDDEN}&sslmode=require"
    assert "geheim" not in redacted_words([f"tracking.uri={text}"])[0]


def test_values_of_secret_environment_variables_are_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEMO_API_TOKEN", "canary-0123456789")
    assert scrub("403 for canary-0123456789!") == f"403 for {HIDDEN}!"


def test_a_configuration_becomes_flat_text() -> None:
    config = {
        "optimizer": {"lr": 1e-3, "betas": [0.9, 0.999], "name": "adam"},
        "stages": [{"epochs": 2}, {"epochs": 3}],
        "split": None,
        "empty": {},
    }
    assert dict(flatten(config)) == {
        "optimizer.lr": "0.001",
        "optimizer.betas": "[0.9, 0.999]",
        "optimizer.name": "adam",
        "stages.0.epochs": "2",
        "stages.1.epochs": "3",
        "split": "null",
        "empty": "{}",
    }


def test_secrets_in_the_words_of_a_command_are_hidden_and_numbers_stay() -> None:
    words = [
        "submit",
        "+vars.hub_token=abc123",
        "+vars.hub={api_key: 'a b', name: x}",
        "stages.pretrain.method.num_tokens=196",
        "stages.pretrain.optimizer.lr=3e-4",
    ]
    assert redacted_words(words) == [
        "submit",
        f"+vars.hub_token={HIDDEN}",
        f"+vars.hub={{api_key: {HIDDEN}, name: x}}",
        *words[3:],
    ]
