"""A rank that waits for a save gives signs of life, and waits for none that is worthless."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recipes.contract import InputError
from recipes.data.loader import Batch
from recipes.engine import checkpoint, faults, resume, shards
from recipes.engine.contract import LossOutput
from recipes.engine.profile import Profile
from tests.recipes.test_engine_loop import Regression, config, go

EVERY_STEP = {"minutes": None, "steps": 3}


class Watch:
    """What a watchdog is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.signs: list[str] = []

    def beat(self, phase: str, step: int) -> None:
        self.phases.append(phase)

    def stop_requested(self) -> bool:
        self.signs.append(self.phases[-1])
        return False

    @property
    def ctx(self) -> dict[str, Callable[..., object]]:
        return {"beat": self.beat, "stop_requested": self.stop_requested}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(shards, "_CHUNK", 64)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Every write waits for it."""
    event = threading.Event()
    monkeypatch.setattr(faults, "passage", lambda point: event.wait() and None)
    yield event
    event.set()


def test_a_save_that_is_slow_but_gets_on_gives_signs_of_life(tmp_path, monkeypatch):
    watch = Watch()
    monkeypatch.setattr(faults, "passage", lambda point: time.sleep(0.01))
    go(tmp_path, Regression(), config(max_steps=1), ctx=watch.ctx)
    assert watch.signs.count("save") > 3


def test_a_save_that_stands_still_gives_none(tmp_path, held):
    watch = Watch()
    threading.Timer(0.5, held.set).start()
    go(tmp_path, Regression(), config(max_steps=1), ctx=watch.ctx)
    assert watch.signs.count("save") <= 1


class Failing(Regression):
    """Raises in step 5, with the save of step 3 under way."""

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if len(self.epochs) == 5:
            raise InputError("what went wrong")


def test_an_error_does_not_wait_for_a_save_that_nobody_will_commit(tmp_path, held):
    settings = config(checkpoint=EVERY_STEP)
    with pytest.raises(InputError, match="what went wrong"):
        go(tmp_path, Failing(), settings)
    assert not held.is_set()


def test_an_error_waits_for_a_commit_that_has_begun_and_says_so(tmp_path, monkeypatch):
    watch, begun = Watch(), threading.Event()
    real = checkpoint.commit

    def commit(*args: object, **options: object) -> Path:
        begun.set()
        time.sleep(0.2)
        return real(*args, **options)  # type: ignore[arg-type]

    class Late(Failing):
        def loss(self, batch: Batch) -> LossOutput:
            if len(self.epochs) > 3:
                time.sleep(0.1)  # by now the file is written
            return super().loss(batch)

        def set_epoch(self, epoch: int) -> None:
            if len(self.epochs) == 4:
                assert begun.wait(60)
            super().set_epoch(epoch)

    monkeypatch.setattr(checkpoint, "commit", commit)
    with pytest.raises(InputError, match="what went wrong"):
        go(tmp_path, Late(), config(checkpoint=EVERY_STEP), ctx=watch.ctx)
    assert checkpoint.steps(tmp_path / "checkpoints") == [3]
    assert watch.phases[-2:] == ["save", "idle"]


def test_a_trace_that_cannot_be_written_does_not_stand_for_the_error(tmp_path, monkeypatch, caplog):
    def full(self: Profile, running: object, name: str) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Profile, "_write", full)
    with pytest.raises(InputError, match="what went wrong"):
        go(tmp_path, Failing(), config(profile={"first": 4, "last": 7}))
    assert "no trace of the last steps: no space left" in caplog.text
