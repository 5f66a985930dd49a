"""The order of samples is arithmetic: the same for any ranks and workers, from any step."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.contract import ConfigurationError, InputError
from recipes.data.clip_config import NO_AUGMENT, AugmentConfig, ClipConfig
from recipes.data.loader import Batch, TrainBatches, epoch_order, eval_batches
from recipes.data.table import VideoTable
from recipes.data.texts import Texts
from tests.recipes.data_files import numbers_of, small_table

CLIP = ClipConfig(blocks=2, frames=4, stride=2, size=24)
AUGMENT = AugmentConfig(crop_area=(0.5, 1.0), flip=0.5)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> VideoTable:
    """Nine training videos of 40 to 42 frames."""
    return small_table(tmp_path_factory.mktemp("loader"))


def batches(table: VideoTable, augment: AugmentConfig = AUGMENT, **changes: Any) -> TrainBatches:
    settings: dict[str, Any] = {"seed": 5, "batch_size": 4, "micro_batch": 2, "epochs": 2}
    return TrainBatches(table, CLIP, augment, **(settings | changes))


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("clips", "labels", "seeds", "videos")
    )


def test_batches_have_the_agreed_shapes_and_labels(table: VideoTable) -> None:
    batch = next(iter(batches(table)))
    assert batch.clips.shape == (2, 2, 3, 4, 24, 24)
    assert batch.clips.dtype == torch.uint8
    assert batch.labels.tolist() == table.labels[batch.videos].tolist()
    assert batch.seeds.dtype == batch.labels.dtype == batch.videos.dtype == torch.int64
    assert len(set(batch.seeds.tolist())) == len(batch) == 2
    assert batch.problems == ()


def test_frames_follow_each_other_at_the_stride_over_all_blocks(table: VideoTable) -> None:
    for batch in batches(table, NO_AUGMENT):
        for sample in batch.clips:
            frames = sample.permute(0, 2, 3, 4, 1).flatten(0, 1).numpy()  # N*T, H, W, C
            # The centre crop cuts off the bars of bit 0 and bit 7.
            halves = np.array(numbers_of(frames, range(1, 7))) // 2
            assert np.diff(halves).tolist() == [1] * 7


def test_an_epoch_visits_each_video_once_and_drops_the_last_incomplete_batch(
    table: VideoTable,
) -> None:
    loader = batches(table, max_steps=None)
    assert (loader.steps_per_epoch, loader.total_steps, len(loader)) == (2, 4, 8)
    videos = [video for batch in loader for video in batch.videos.tolist()]
    first, second = videos[:8], videos[8:]
    assert first == epoch_order(5, 0, 9)[:8].tolist()
    assert second == epoch_order(5, 1, 9)[:8].tolist()
    assert len(set(first)) == 8
    assert first != second


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_share_the_same_micro_batches(table: VideoTable, world_size: int) -> None:
    alone = list(batches(table, batch_size=8))
    assert batches(table, batch_size=8, world_size=world_size).accumulation == 4 // world_size
    ranks = [
        list(batches(table, batch_size=8, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    merged = [batch for together in zip(*ranks, strict=True) for batch in together]
    assert len(merged) == len(alone)
    assert all(same(one, other) for one, other in zip(merged, alone, strict=True))


@pytest.mark.parametrize("start_step", [1, 3])
def test_starting_at_a_step_equals_the_rest_of_the_whole(
    table: VideoTable, start_step: int
) -> None:
    whole = list(batches(table))
    rest = list(batches(table, start_step=start_step))
    assert len(rest) == len(whole) - 2 * start_step
    assert all(same(one, other) for one, other in zip(rest, whole[2 * start_step :], strict=True))


def test_workers_change_nothing_and_survive_the_stop_signals(table: VideoTable) -> None:
    alone = list(batches(table))
    read: list[Batch] = []
    for batch in batches(table, workers=2):
        if not read:
            server = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
            workers = [child.pid for child in multiprocessing.active_children()]
            assert len(workers) == 2
            for pid in (*workers, server):
                os.kill(pid or 0, signal.SIGTERM)
                os.kill(pid or 0, signal.SIGUSR2)
            time.sleep(0.5)
            assert os.waitpid(server, os.WNOHANG) == (0, 0)  # it lives
        read.append(batch)
    assert all(same(one, other) for one, other in zip(read, alone, strict=True))


def test_leaving_early_ends_the_workers(table: VideoTable) -> None:
    iterator: Iterator[Batch] = iter(batches(table, workers=1))
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_an_exception_in_the_consumer_does_not_leave_the_process_waiting_for_workers(
    table: VideoTable, tmp_path: Path
) -> None:
    (tmp_path / "table.pickle").write_bytes(pickle.dumps(table))
    (tmp_path / "consumer.py").write_text(
        "import pickle, sys\n"
        "from recipes.data.clip_config import NO_AUGMENT, ClipConfig\n"
        "from recipes.data.loader import TrainBatches\n"
        "if __name__ == '__main__':\n"
        "    table = pickle.load(open(sys.argv[1], 'rb'))\n"
        "    clip = ClipConfig(frames=4, size=24)\n"
        "    batches = TrainBatches(table, clip, NO_AUGMENT, seed=0, batch_size=4, micro_batch=2,\n"
        "                           workers=2, max_steps=100)\n"
        "    for batch in batches:\n"
        "        raise RuntimeError('the model failed')\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "consumer.py"), str(tmp_path / "table.pickle")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 1
    assert "RuntimeError: the model failed" in done.stderr


def test_another_seed_gives_another_order_and_other_clips(table: VideoTable) -> None:
    one, two = next(iter(batches(table))), next(iter(batches(table, seed=6)))
    assert not torch.equal(one.seeds, two.seeds)
    assert epoch_order(5, 0, 100).tolist() != epoch_order(6, 0, 100).tolist()


def test_a_flip_mirrors_whole_clips(table: VideoTable) -> None:
    straight = next(iter(batches(table, AugmentConfig(flip=0.0))))
    mirrored = next(iter(batches(table, AugmentConfig(flip=1.0))))
    assert torch.equal(mirrored.clips, straight.clips.flip(-1))


def test_max_steps_and_epochs_end_the_training_at_the_earlier(table: VideoTable) -> None:
    assert batches(table, epochs=100, max_steps=7).total_steps == 7
    assert batches(table, epochs=2, max_steps=70).total_steps == 4
    assert len(list(batches(table, epochs=None, max_steps=3))) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6, "micro_batch": 4}, "not a multiple of micro_batch 4"),
        ({"batch_size": 16}, "9 usable videos do not fill one batch of 16"),
        ({"epochs": None}, "epochs or max_steps"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    table: VideoTable, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        batches(table, **changes)


def without_files(table: VideoTable, *rows: int) -> VideoTable:
    paths = [f"gone/{row}" if row in rows else path for row, path in enumerate(table.paths)]
    return replace(table, paths=Texts.of(paths))


def test_an_unreadable_video_is_replaced_the_same_way_each_time(
    table: VideoTable, caplog: pytest.LogCaptureFixture
) -> None:
    broken = without_files(table, 2, 3)
    first, again = list(batches(broken)), list(batches(broken, workers=1))
    assert all(same(one, other) for one, other in zip(first, again, strict=True))
    sound = list(batches(table))
    for one, other in zip(first, sound, strict=True):
        expected = [4 if video in (2, 3) else video for video in other.videos.tolist()]
        assert one.videos.tolist() == expected
        assert one.labels.tolist() == table.labels[one.videos].tolist()
    assert "gone/2: No such file or directory; replaced by" in caplog.text


def test_many_unreadable_videos_end_the_training(table: VideoTable) -> None:
    broken = without_files(table, 0, 2, 4, 6, 8)
    with pytest.raises(
        InputError, match=r"33 of \d+ samples could not be read, more than max_replaced_share 0.2"
    ):
        list(batches(broken, epochs=50))


def test_a_file_that_changed_since_the_index_is_not_used(tmp_path: Path) -> None:
    table = small_table(tmp_path)
    changed = table.root / table.paths[0]
    changed.write_bytes(changed.read_bytes() + b"\0")
    with pytest.raises(InputError, match="changed since it was indexed"):
        list(eval_batches(table, CLIP, windows=1, batch_size=4))


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_covers_every_window_of_every_video_once(
    table: VideoTable, workers: int
) -> None:
    seen = []
    for rank in range(2):
        for batch, rows, numbers in eval_batches(
            table, CLIP, windows=3, batch_size=4, rank=rank, world_size=2, workers=workers
        ):
            assert len(batch) <= 4
            assert batch.videos.tolist() == rows.tolist()
            assert batch.labels.tolist() == table.labels[rows].tolist()
            assert all(row % 2 == rank for row in rows.tolist())
            seen += list(zip(rows.tolist(), numbers.tolist(), strict=True))
    assert sorted(seen) == [(row, window) for row in range(9) for window in range(3)]


def test_evaluation_does_not_depend_on_the_batch_size(table: VideoTable) -> None:
    def clips(batch_size: int) -> torch.Tensor:
        parts = eval_batches(table, CLIP, windows=3, batch_size=batch_size)
        return torch.cat([batch.clips for batch, _, _ in parts])

    assert torch.equal(clips(2), clips(7))


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_leaves_no_video_out(table: VideoTable, workers: int) -> None:
    with pytest.raises(InputError, match=r"^[^ ]*gone/4: No such file or directory$"):
        list(eval_batches(without_files(table, 4), CLIP, windows=2, batch_size=4, workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_rank_without_videos_gets_no_batches(table: VideoTable, workers: int) -> None:
    parts = eval_batches(
        table, CLIP, windows=1, batch_size=4, rank=10, world_size=12, workers=workers
    )
    assert list(parts) == []
