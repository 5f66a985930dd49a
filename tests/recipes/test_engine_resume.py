"""Training that is stopped, killed or damaged and goes on, against training that was left alone.

Equality is that of the final checkpoint's files, bit by bit: weights, optimizer, random states,
batch-norm statistics and running metrics of every rank are in there.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors import safe_open

from cluster import fsio
from recipes.engine import checkpoint, shards
from tests.recipes.engine_worker import run_jobs

STEPS = 8
KILL, STOPPED = -9, 75


class Case(NamedTuple):
    """One way to train."""

    world_size: int
    zero_stage: int
    precision: str
    optimizer: str = "adam"

    @property
    def name(self) -> str:
        return f"w{self.world_size}-zero{self.zero_stage}-{self.precision}-{self.optimizer}"

    def job(self, folder: Path, **changes: Any) -> dict[str, Any]:
        config = {
            "max_steps": STEPS,
            "batch_size": 8,
            "micro_batch": 2,
            "log_every": 3,
            "zero_stage": self.zero_stage,
            "precision": self.precision,
            "clip_grad": 5.0 if self.zero_stage == 2 else None,
            "optimizer": {"name": self.optimizer, "warmup_steps": 2, "schedule": "cosine"},
            "checkpoint": {
                "minutes": None,
                "steps": changes.pop("every", None),
                "asynchronous": changes.pop("asynchronous", False),
            },
        }
        return {
            "folder": str(folder),
            "world_size": self.world_size,
            "config": config,
            **changes,
        }


SINGLE = [Case(1, 0, "fp32"), Case(1, 1, "bf16"), Case(1, 2, "fp32", "sgd")]
DOUBLE = [Case(2, 0, "bf16"), Case(2, 1, "fp32", "adamw"), Case(2, 2, "bf16")]


def final(folder: Path) -> dict[str, Any]:
    """Size and digest of every file of the last checkpoint."""
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    assert newest.step == STEPS
    files: dict[str, Any] = newest.description["files"]
    return files


def trained(folder: Path) -> dict[int, dict[str, float]]:
    """What was logged of training by step; where attempts overlap, the last one counts."""
    logged = {}
    for _, line in fsio.read_json_lines(folder / "metrics.jsonl"):
        own = {name: value for name, value in line["metrics"].items() if name.startswith("train/")}
        logged[line["step"]] = own
    return logged


def assert_same(resumed: Path, whole: Path) -> None:
    assert final(resumed) == final(whole)
    assert trained(resumed) == trained(whole)
    assert sorted(trained(whole)) == [3, 6, 8]
    history = fsio.read_json(resumed / "outcome-0.json")["history"]
    assert [step for step, _ in history] == [3, 6, 8]


FAULTS = {  # the fault, the rank it strikes, the steps committed by then
    "step:5": (1, [2, 4]),
    "checkpoint.begun:1": (0, []),
    "checkpoint.half_written:2": (1, [2]),
    "checkpoint.before_rename:3": (0, [2, 4]),
    "checkpoint.after_rename:4": (0, [4, 6, 8]),
}
KILLED, DAMAGED, HOPELESS, POISONED = DOUBLE[1], SINGLE[0], DOUBLE[0], DOUBLE[0]
PLAIN, SPLIT = Case(2, 0, "fp32"), Case(2, 1, "fp32")


class Runs(NamedTuple):
    """Where everything was trained, and the exit codes of first and second attempts."""

    folder: Path
    first: dict[str, list[int | None]]
    committed: dict[str, list[int]]
    second: dict[str, list[int | None]]


def run_all(folder: Path, jobs: dict[str, dict[str, Any]]) -> dict[str, list[int | None]]:
    return dict(zip(jobs, run_jobs(folder, list(jobs.values())), strict=True))


def first_attempts(folder: Path) -> dict[str, dict[str, Any]]:
    jobs: dict[str, dict[str, Any]] = {}

    def add(name: str, case: Case, **changes: Any) -> None:
        jobs[name] = case.job(folder / name, **changes)

    for case in SINGLE + DOUBLE:
        add(f"alone-{case.name}", case)
        # 20 videos in batches of 8: two steps an epoch, so 5 is inside one, and between two logs.
        add(f"stopped-{case.name}", case, stop_at=5)
    for fault, (rank, _) in FAULTS.items():
        add(f"killed-{fault}", KILLED, every=2, fault=fault, fault_rank=rank)
    add("damaged", DAMAGED, every=2, stop_at=5)
    add("hopeless", HOPELESS, stop_at=3)
    add("away", HOPELESS, stop_at=3)
    poison = {"every": 2, "poison_step": 4, "poison_rank": 1}
    add("poisoned", POISONED, poison="loss", **poison)
    for case in (PLAIN, SPLIT):
        add(f"exploded-{case.name}", case, poison="gradient", **poison)
    add("full", DAMAGED, every=2, full_after=3)
    add("full-for-a-while", KILLED, every=2, full_after=3, room_after=5, asynchronous=True)
    add("killed-writing", KILLED, every=2, fault="checkpoint.half_written:2", asynchronous=True)
    add("two-ranks", PLAIN)
    for name, case in (("plain", PLAIN), ("split", SPLIT)):
        add(name, case, stop_at=4)
    return jobs


def second_attempts(folder: Path) -> dict[str, dict[str, Any]]:
    again = {f"stopped-{case.name}": case for case in SINGLE + DOUBLE}
    again |= {f"killed-{fault}": KILLED for fault in FAULTS}
    again |= {f"alone-{SINGLE[0].name}": SINGLE[0], "damaged": DAMAGED, "hopeless": HOPELESS}
    again |= {"away": HOPELESS}
    again |= {"full": DAMAGED, "killed-writing": KILLED}
    again |= {"plain": Case(1, *PLAIN[1:]), "split": Case(1, *SPLIT[1:])}
    return {name: case.job(folder / name, every=2, restart=1) for name, case in again.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Train everything, do the damage, and train again what is to go on."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = first_attempts(folder)
    first = run_all(folder, jobs)
    committed = {name: checkpoint.steps(folder / name / "checkpoints") for name in jobs}
    shard = folder / "damaged" / "checkpoints" / "step_000000005" / shards.file_name(0)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (folder / "hopeless" / "checkpoints" / "step_000000003" / shards.file_name(1)).unlink()
    # What can be opened by nobody: an error of the system, and not a damaged file.
    manifest = folder / "away" / "checkpoints" / "step_000000003" / checkpoint.MANIFEST
    manifest.unlink()
    manifest.mkdir(mode=0o700)
    outcome = folder / f"alone-{SINGLE[0].name}" / "outcome-0.json"
    shutil.copy(outcome, outcome.with_name("first-outcome.json"))
    second = run_all(folder, second_attempts(folder))
    return Runs(folder, first, committed, second)


@pytest.mark.parametrize("case", SINGLE + DOUBLE, ids=lambda case: case.name)
def test_a_stopped_training_ends_bit_equal_to_one_left_alone(runs, case):
    place = runs.folder / f"stopped-{case.name}"
    assert runs.first[f"alone-{case.name}"] == [0] * case.world_size
    assert runs.first[place.name] == [STOPPED] * case.world_size, "the last rank heard of it"
    for rank in range(case.world_size):
        assert (place / f"preempted-{rank}").read_text() == "5"
    assert runs.committed[place.name] == [5]
    assert runs.second[place.name] == [0] * case.world_size
    assert_same(place, runs.folder / f"alone-{case.name}")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_killed_training_goes_on_to_the_same_end(runs, fault):
    place = runs.folder / f"killed-{fault}"
    assert KILL in runs.first[place.name]
    assert 0 not in runs.first[place.name], "the other rank must not go on alone"
    assert runs.committed[place.name] == FAULTS[fault][1]
    assert runs.second[place.name] == [0, 0]
    assert_same(place, runs.folder / f"alone-{KILLED.name}")


def test_ranks_keep_batch_statistics_of_their_own(runs):
    place = runs.folder / f"alone-{DOUBLE[0].name}" / "checkpoints" / checkpoint.name_of(STEPS)
    statistics = []
    for rank in range(2):
        with safe_open(place / shards.file_name(rank), framework="pt") as file:
            (name, *_) = [key for key in file.keys() if key.endswith("running_mean")]  # noqa: SIM118
            statistics.append(file.get_tensor(name).tolist())
    assert statistics[0] != statistics[1]


def test_the_checkpoint_folder_holds_checkpoints_only(runs):
    for case in SINGLE + DOUBLE:
        folder = runs.folder / f"alone-{case.name}" / "checkpoints"
        assert [path.name for path in folder.iterdir()] == ["step_000000008"]


def test_a_finished_training_is_not_repeated(runs):
    place = runs.folder / f"alone-{SINGLE[0].name}"
    assert runs.second[place.name] == [0]
    before = fsio.read_json(place / "first-outcome.json")
    assert len(before["used"]) == STEPS * 4
    assert fsio.read_json(place / "outcome-0.json") == {**before, "used": []}


def test_a_damaged_newest_checkpoint_is_passed_over_and_the_end_is_the_same(runs):
    place = runs.folder / "damaged"
    assert runs.first["damaged"] == [STOPPED]
    assert runs.committed["damaged"] == [4, 5]
    assert runs.second["damaged"] == [0]
    assert (place / "checkpoints" / "step_000000005.bad1").is_dir()
    assert_same(place, runs.folder / f"alone-{DAMAGED.name}")


def test_all_ranks_refuse_when_every_checkpoint_is_damaged(runs):
    assert runs.first["hopeless"] == [STOPPED, STOPPED]
    assert runs.second["hopeless"] == [66, 66]
    assert "every checkpoint is damaged" in (runs.folder / "hopeless" / "error-0").read_text()
    assert 8 not in trained(runs.folder / "hopeless")


def test_a_checkpoint_that_cannot_be_read_now_is_no_damaged_one_and_the_attempt_is_repeated(runs):
    place = runs.folder / "away"
    assert runs.second["away"] == [74, 74]
    assert "cannot be read now" in (place / "error-0").read_text()
    assert "rank 0 refused the checkpoints" in (place / "error-1").read_text()
    assert [path.name for path in (place / "checkpoints").iterdir()] == ["step_000000003"]


@pytest.mark.parametrize("name", ["plain", "split"])
def test_another_rank_count_goes_on_with_the_same_batches_and_dropout(runs, name):
    assert runs.first[name] == [STOPPED, STOPPED]
    assert runs.second[name] == [0]
    changed, kept = (trained(runs.folder / place) for place in (name, "two-ranks"))
    assert changed[3] == pytest.approx(kept[3], rel=1e-5), "ZeRO adds up the norm in another way"
    for step in (6, 8):
        assert changed[step]["train/loss"] == pytest.approx(kept[step]["train/loss"], rel=1e-5)


def test_ranks_take_the_micro_batches_of_a_step_in_turn(runs):
    """Micro-batches of two make a step of eight: four on one rank, or two on each of two."""
    alone = fsio.read_json(runs.folder / f"alone-{SINGLE[0].name}" / "first-outcome.json")["used"]
    two = runs.folder / "two-ranks"
    pair = [fsio.read_json(two / f"outcome-{rank}.json")["used"] for rank in (0, 1)]
    assert [videos for turn in zip(*pair, strict=True) for videos in turn] == alone
    losses = [
        [metrics["train/loss"] for metrics in trained(folder).values()]
        for folder in (two, runs.folder / f"alone-{SINGLE[0].name}")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_a_loss_that_is_not_finite_stops_all_ranks_and_names_step_and_videos(runs):
    place = runs.folder / "poisoned"
    assert runs.first["poisoned"] == [72, 72]
    (message,) = {(place / f"error-{rank}").read_text() for rank in (0, 1)}
    assert "not finite at step 4 (epoch 1)" in message
    rows = message.split("training table: ")[1].split(".")[0].split(", ")
    assert len(rows) == 4, "the two micro-batches of the rank it happened on"
    assert all(0 <= int(row) < 20 for row in rows)
    assert runs.committed["poisoned"] == [2]


@pytest.mark.parametrize("case", [PLAIN, SPLIT], ids=lambda case: case.name)
def test_a_gradient_that_is_not_finite_stops_all_ranks_with_or_without_zero(runs, case):
    place = runs.folder / f"exploded-{case.name}"
    assert runs.first[place.name] == [72, 72]
    assert "not finite at step 4" in (place / "error-0").read_text()
    assert runs.committed[place.name] == [2]


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_no_training(runs):
    place = runs.folder / "full-for-a-while"
    assert runs.first[place.name] == [0, 0]
    assert runs.committed[place.name] == [6, 8], "the save of step 4 failed"
    assert_same(place, runs.folder / f"alone-{KILLED.name}")
    assert not list((place / "checkpoints").glob("*.tmp"))


def test_killed_while_it_writes_in_the_background_it_goes_on_from_the_one_before(runs):
    place = runs.folder / "killed-writing"
    assert KILL in runs.first[place.name]
    assert runs.committed[place.name] == [2]
    assert runs.second[place.name] == [0, 0]
    assert_same(place, runs.folder / f"alone-{KILLED.name}")


def test_a_full_disk_leaves_the_checkpoint_before_and_training_goes_on_when_there_is_room(runs):
    place = runs.folder / "full"
    assert runs.first["full"] == [70]
    assert runs.committed["full"] == [2]
    assert runs.second["full"] == [0]
    assert_same(place, runs.folder / f"alone-{DAMAGED.name}")
    assert not list((place / "checkpoints").glob("*.tmp"))


def test_collectives_agree_on_two_ranks(tmp_path):
    job = {"folder": str(tmp_path), "world_size": 2, "collectives": True}
    assert run_jobs(tmp_path, [job]) == [[0, 0]]
    seen = [fsio.read_json(tmp_path / f"collectives-{rank}.json") for rank in (0, 1)]
    assert [one.pop("rank") for one in seen] == [[0, 2, True], [1, 2, False]]
    assert seen[0] == seen[1]
    assert seen[0] == {
        "agree": [False, True],
        "any_of": [True, False, True],
        "from_main": [5, -1],
        "sum_ranks": [2.0, 1.0],
        "gather_rows": [[10, 10], [11, 11], [12, 12]],
    }
