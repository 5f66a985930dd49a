"""When to save: often where it is cheap, never rarer than the work that may be lost."""

from __future__ import annotations

import pytest

from recipes.engine.interval import Cost, seconds_between

CHEAP = Cost(stall_seconds=0.05, write_seconds=1.0)


def test_the_first_save_comes_early_and_tells_what_saves_cost():
    assert seconds_between(10, []) == 60


def test_a_cheap_save_is_made_every_minute():
    assert seconds_between(10, [CHEAP]) == 60


@pytest.mark.parametrize(
    ("stall", "seconds"), [(0.5, 60), (1.0, 100), (2.0, 200), (5.0, 500), (9.0, 599), (500.0, 599)]
)
def test_stalls_take_one_percent_of_the_time_until_too_much_work_could_be_lost(stall, seconds):
    cost = Cost(stall_seconds=stall, write_seconds=1.0)
    assert seconds_between(10, [cost]) == pytest.approx(seconds)


def test_the_storage_is_busy_with_us_a_tenth_of_the_time():
    assert seconds_between(10, [Cost(stall_seconds=0.1, write_seconds=20.0)]) == 200


def test_what_is_being_written_counts_as_lost_too():
    assert seconds_between(10, [Cost(stall_seconds=0.1, write_seconds=100.0)]) == 500
    assert seconds_between(10, [Cost(stall_seconds=0.1, write_seconds=900.0)]) == 300


def test_a_recipe_that_allows_less_than_a_minute_gets_it():
    assert seconds_between(0.1, []) == pytest.approx(6)
    assert seconds_between(0.1, [CHEAP]) == pytest.approx(5)


def test_the_dearest_of_the_last_five_counts_and_old_ones_are_forgotten():
    dear = Cost(stall_seconds=3.0, write_seconds=1.0)
    assert seconds_between(10, [dear, *[CHEAP] * 4]) == 300
    assert seconds_between(10, [dear, *[CHEAP] * 5]) == 60
