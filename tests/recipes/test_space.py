"""Whether checkpoints have room is known before training, and said with needed and free."""

from __future__ import annotations

import errno
import logging
import os
import shutil

import pytest
import torch
from torch import nn

from recipes.engine import space
from recipes.engine.config import OptimizerConfig

MORE_THAN_ANY_DISK = 1 << 60


def net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(300, 400), nn.BatchNorm1d(400), nn.Linear(400, 10))
    model[2].requires_grad_(False)
    return model


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_size_is_known_before_the_optimizer_has_any_state(name):
    model = net()
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    options = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = kinds[name]([p for p in model.parameters() if p.requires_grad], **options)
    model(torch.randn(4, 300)).sum().backward()
    optimizer.step()
    state = [v for kept in optimizer.state.values() for k, v in kept.items() if k != "step"]
    ranks = 3
    tensors = [*model.parameters(), *state, *[*model.buffers()] * ranks]
    real = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert space.estimated_bytes(model, OptimizerConfig(name=name), ranks) == pytest.approx(
        real, rel=0.02
    )


def test_too_little_for_one_is_an_error_and_too_little_for_all_a_warning(tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    assert not space.is_too_little(folder, 1000, 3000)
    assert not caplog.records
    assert not space.is_too_little(folder, 1000, MORE_THAN_ANY_DISK)
    assert caplog.records[-1].levelno == logging.WARNING
    assert space.is_too_little(folder, MORE_THAN_ANY_DISK, MORE_THAN_ANY_DISK)
    assert caplog.records[-1].levelno == logging.ERROR
    assert f"{folder}: the checkpoints to be kept there need 1152921504.61 GB" in caplog.text
    assert "GB are free" in caplog.text


def test_a_save_that_does_not_fit_is_not_begun(tmp_path):
    space.require(tmp_path, 1000)
    with pytest.raises(OSError, match=r"needed are \d+\.\d+ GB, free \d") as caught:
        space.require(tmp_path, MORE_THAN_ANY_DISK)
    assert caught.value.errno == errno.ENOSPC


def test_what_is_free_where_nobody_can_look_is_unknown_and_no_error(tmp_path, monkeypatch):
    assert space.free(tmp_path).endswith(" GB free")

    def away(path: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(shutil, "disk_usage", away)
    assert space.free(tmp_path) == "free space unknown"
