"""The stop flag: set by either signal, first one remembered, children deaf when told so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from cluster.preemption import STOP_SIGNALS, StopFlag, ignore_stop_signals
from tests.cluster.bench import REPOSITORY


@pytest.fixture
def restored_signals() -> object:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield None
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_either_signal_sets_the_flag(restored_signals: object, number: signal.Signals) -> None:
    stop = StopFlag()
    stop.install()
    assert not stop.requested() and stop.signal_name is None
    os.kill(os.getpid(), number)
    assert stop.requested()
    assert stop.signal_name == number.name
    assert stop.at == pytest.approx(time.time(), abs=5)


def test_the_first_signal_is_remembered(restored_signals: object) -> None:
    stop = StopFlag()
    stop.install()
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal_name == "SIGUSR2"


def test_a_blocked_sleep_goes_on_after_the_signal(restored_signals: object) -> None:
    stop = StopFlag()
    stop.install()
    signal.setitimer(signal.ITIMER_REAL, 0)
    child = subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -USR2 {os.getpid()}"])
    begun = time.monotonic()
    time.sleep(0.4)
    assert time.monotonic() - begun >= 0.39
    child.wait()
    assert stop.requested()


def test_children_that_ignore_the_signals_outlive_them() -> None:
    code = (
        "import sys; from cluster.preemption import ignore_stop_signals;"
        "ignore_stop_signals(); print('ready', flush=True); sys.stdin.read(); print('alive')"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for number in STOP_SIGNALS:
        child.send_signal(number)
    rest, _ = child.communicate(timeout=10)
    assert rest == "alive\n" and child.returncode == 0


def test_ignoring_is_for_children_and_not_done_at_import() -> None:
    assert signal.getsignal(signal.SIGUSR2) is not signal.SIG_IGN
    assert callable(ignore_stop_signals)
