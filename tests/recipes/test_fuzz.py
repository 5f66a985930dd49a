"""Damaged and mutated files: all damage is reported, nothing crashes, nothing reads wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recipes.data.workers import map_expendable
from tests.recipes.data_files import index, warm_workers
from tests.recipes.fuzzed import (
    Looked,
    crashed,
    damaged,
    frames_of,
    look,
    mutated,
    originals,
)

KINDS = ("bytes", "values", "payload")
MUTATED = ("mp4", "front", "mkv", "avi")
EACH = 100


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return originals(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_the_index_reports_every_damaged_file_and_no_sound_one(
    sound: dict[str, Path], tmp_path: Path, decoder: str
) -> None:
    names = [path.name for path in damaged(tmp_path, sound)]
    usable = [name for name in sound if name != "ts"]  # decord cannot read it
    for name in usable:
        (tmp_path / f"whole_{sound[name].name}").write_bytes(sound[name].read_bytes())
    files = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "all.csv").write_text("\n".join(["path", *files]), encoding="utf-8")
    listing = str(tmp_path / "all.csv")
    found = index(
        tmp_path / "index",
        format="csv",
        name="all",
        file=listing,
        max_bad_share=0.99,
        decoder=decoder,
        prepare=None,
    )
    table = pd.read_parquet(found.path).set_index("path")
    rejected = table[table["verdict"] == "reject"]
    assert set(rejected.index) == set(names)
    assert rejected["reason"].str.len().gt(10).all()


@pytest.fixture(scope="module")
def looked(
    sound: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Looked]]:
    """What became of 300 mutated files, by kind of mutation."""
    folder, rng = tmp_path_factory.mktemp("mutated"), np.random.default_rng(3)
    before = {name: frames_of(sound[name]) for name in MUTATED}
    jobs = []
    for number in range(len(KINDS) * EACH):
        name, kind = MUTATED[number % len(MUTATED)], KINDS[number // EACH]
        path = folder / f"{number}{sound[name].suffix}"
        path.write_bytes(mutated(sound[name].read_bytes(), kind, rng))
        jobs.append((path, before[name]))
    warm_workers()
    results = map_expendable(look, jobs, workers=2, seconds=60, crashed=crashed)
    return {kind: results[n * EACH : (n + 1) * EACH] for n, kind in enumerate(KINDS)}


def test_no_mutated_file_crashes_or_reads_wrong(looked: dict[str, list[Looked]]) -> None:
    assert {kind: len(results) for kind, results in looked.items()} == dict.fromkeys(KINDS, EACH)
    everything = [one for results in looked.values() for one in results]
    assert [one for one in everything if one.reason == "crashed"] == []
    assert [one for one in everything if one.wrong] == []


def test_changed_pictures_are_reported_unless_the_file_is_another_sound_one(
    looked: dict[str, list[Looked]],
) -> None:
    """An edit list or time stamps may change into others; a few changed bits decode as well."""
    for results in looked.values():
        changed = [one for one in results if one.changed]
        missed = [one for one in changed if one.verdict != "reject"]
        assert len(changed) > 20
        assert len(missed) <= 0.05 * len(changed), missed
