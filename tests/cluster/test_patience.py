"""What is done about each way a client of SLURM fails; on a clock that only pauses move."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cluster import patience
from cluster.contract import SchedulerError
from cluster.patience import Patience, Trouble, UnknownOutcome, answered, insist, trouble_of

AWAY = SchedulerError("sbatch: exit code 1: sbatch: error: Socket timed out on send/recv operation")
BUSY = SchedulerError("sbatch: exit code 1: Rate limit exceeded, please retry momentarily")
REFUSED = SchedulerError("sbatch: exit code 1: Invalid account or account/partition combination")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made."""
    pauses: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    monkeypatch.setattr(patience.time, "monotonic", lambda: sum(pauses))
    return pauses


def _script(*steps: str | SchedulerError | None) -> Callable[[], str | None]:
    """What a call gives or raises, one after the other, the last one for ever."""
    left: Iterator[str | SchedulerError | None] = iter(steps)
    last = [steps[0]]

    def step() -> str | None:
        last[0] = next(left, last[0])
        if isinstance(last[0], SchedulerError):
            raise last[0]
        return last[0]

    return step


def _patience(said: list[str] | None = None) -> Patience:
    heard = [] if said is None else said
    return Patience(seconds=300, settle_seconds=10, say=heard.append)


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("Unable to contact slurm controller (connect failure)", Trouble.AWAY),
        ("Connection timed out reading", Trouble.AWAY),
        ("scontrol: no answer within 120 s", Trouble.AWAY),
        ("Rate limit exceeded, please retry later", Trouble.BUSY),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n", "busy"),
        ("Slurm backup controller in standby mode", Trouble.BUSY),
        ("Requested operation is presently disabled", Trouble.BUSY),
        ("Invalid account or account/partition combination specified", Trouble.REFUSED),
        ("Job violates accounting/QOS policy (job submit limit, ...)", Trouble.REFUSED),
        ("Job dependency problem", Trouble.REFUSED),
    ],
)
def test_texts_of_slurm_are_told_apart(text: str, trouble: Trouble) -> None:
    assert trouble_of(SchedulerError(text)) == trouble


def test_a_job_that_an_unanswered_sbatch_made_is_taken_and_not_made_again(
    clock: list[float],
) -> None:
    said: list[str] = []
    submit, find = _script(AWAY, "second"), _script(AWAY, None, None, "first")
    assert insist(submit, find, "job", _patience(said)) == "first"
    (line,) = said
    assert "Socket timed out" in line and "for up to 5 min" in line and "Ctrl-C is safe" in line


def test_a_job_is_submitted_again_only_once_the_queue_has_been_asked_for_a_while(
    clock: list[float],
) -> None:
    assert insist(_script(AWAY, "second"), _script(None), "job", _patience()) == "second"
    assert sum(clock) >= 10


def test_a_busy_scheduler_is_asked_again_with_ever_longer_pauses(clock: list[float]) -> None:
    submit = _script(*[BUSY] * 6, "made")
    assert insist(submit, _script(None), "job", _patience()) == "made"
    assert clock == [1, 2, 4, 8, 15, 15]


def test_a_refusal_is_final_and_nobody_waits_for_it(clock: list[float]) -> None:
    said: list[str] = []
    with pytest.raises(SchedulerError, match="Invalid account"):
        insist(_script(REFUSED), _script(None), "job", _patience(said))
    assert (clock, said) == ([], [])


def test_an_sbatch_that_failed_and_submitted_all_the_same_is_believed_by_the_queue(
    clock: list[float],
) -> None:
    assert insist(_script(REFUSED), _script("made"), "job", _patience()) == "made"


def test_who_gets_no_answer_to_the_end_says_that_nothing_is_known(clock: list[float]) -> None:
    with pytest.raises(UnknownOutcome, match="whether job 'mine' exists is not known"):
        insist(_script(AWAY), _script(AWAY), "mine", _patience())
    assert sum(clock) >= 300


def test_a_scheduler_that_never_has_time_is_given_up(clock: list[float]) -> None:
    with pytest.raises(SchedulerError, match="Rate limit"):
        insist(_script(BUSY), _script(None), "job", _patience())
    assert 200 <= sum(clock) <= 400


def test_a_question_is_repeated_until_it_is_answered(clock: list[float]) -> None:
    said: list[str] = []
    assert answered(_script(AWAY, BUSY, "yes"), _patience(said)) == "yes"
    assert len(said) == 1
    with pytest.raises(SchedulerError, match="Invalid"):
        answered(_script(REFUSED), _patience())
    with pytest.raises(SchedulerError, match="Socket"):
        answered(_script(AWAY), Patience(seconds=0))
