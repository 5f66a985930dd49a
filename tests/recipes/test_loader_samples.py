"""What the samples of a training batch show: samplers, scopes, cameras, files that fail."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.contract import ConfigurationError, InputError
from recipes.data import crop
from recipes.data.batch import Batch, copied
from recipes.data.clip_config import NO_AUGMENT, AugmentConfig, ClipConfig
from recipes.data.clips import ClipReader, Sample, TrainClips
from recipes.data.loader import TrainBatches, epoch_order
from recipes.data.sampler_config import (
    CameraPair,
    ConstantRate,
    RandomConsecutive,
    TemporalReverse,
)
from recipes.data.table import VideoTable, load_table
from recipes.data.texts import Texts
from tests.recipes.data_files import index, numbered, numbers_of, small_table, write_video

VIEWS = ClipConfig(blocks=2, frames=4, size=24, sampler=RandomConsecutive())


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> VideoTable:
    """Nine training videos of 40 to 42 frames."""
    return small_table(tmp_path_factory.mktemp("samples"))


def batches(
    table: VideoTable, clip: ClipConfig, augment: AugmentConfig = NO_AUGMENT, **changes: Any
) -> TrainBatches:
    settings: dict[str, Any] = {"seed": 5, "batch_size": 4, "micro_batch": 4, "epochs": 2}
    return TrainBatches(table, clip, augment, **(settings | changes))


def halves(clips: torch.Tensor) -> np.ndarray[Any, Any]:
    """Half the numbers of the frames of (N, C, T, H, W): the centre crop cuts off bits 0 and 7."""
    frames = clips.permute(0, 2, 3, 4, 1)
    return np.array([numbers_of(clip.numpy(), range(1, 7)) for clip in frames]) // 2


def same(one: Batch, other: Batch) -> bool:
    names = ("clips", "labels", "seeds", "videos")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names) and all(
        torch.equal(one.extra[name], other.extra[name]) for name in {*one.extra, *other.extra}
    )


def all_same(some: Sequence[Batch], others: Sequence[Batch]) -> bool:
    return all(same(one, other) for one, other in zip(some, others, strict=True))


def test_the_answers_of_a_pretext_come_with_the_clips(table: VideoTable) -> None:
    rates = ConstantRate(rates=(1, 2, 3))
    clip = ClipConfig(blocks=2, frames=4, stride=2, size=24, short="drop", sampler=rates)
    for batch in batches(table, clip, workers=1):
        assert batch.extra["label"].shape == batch.extra["rate"].shape == (4, 2)
        for clips, own in zip(batch.clips, batch.extra["rate"].tolist(), strict=True):
            assert (np.diff(halves(clips)) == np.array(own)[:, None]).all()


def test_a_reversed_view_is_the_other_one_backwards(table: VideoTable) -> None:
    clip = ClipConfig(blocks=2, frames=4, size=24, sampler=TemporalReverse())
    for batch in batches(table, clip):
        assert torch.equal(batch.clips[:, 0], batch.clips[:, 1].flip(2))
        assert (batch.extra["reversed"].sum(1) == 1).all()


@pytest.mark.parametrize("kind", [{"crop_area": (0.3, 0.8)}, {"rotate": 20.0}])
def test_a_crop_is_shared_or_not_as_its_scope_says(table: VideoTable, kind: dict[str, Any]) -> None:
    def clips(scope: str) -> torch.Tensor:
        augment = AugmentConfig(crop_scope=scope, **kind)  # type: ignore[arg-type]
        return next(iter(batches(table, VIEWS, augment))).clips

    shared, own, each = clips("per_clip"), clips("per_block"), clips("per_frame")
    assert shared.shape == own.shape == each.shape == (4, 2, 3, 4, 24, 24)
    assert torch.equal(shared[:, 0], shared[:, 1])
    assert all(not torch.equal(one, other) for one, other in own)
    assert all(not torch.equal(one, other) for one, other in each)


def test_views_are_mirrored_one_by_one_and_frames_likewise(table: VideoTable) -> None:
    straight = next(iter(batches(table, VIEWS)))
    for scope, shape in (("per_block", (4, 2, 1)), ("per_frame", (4, 2, 4))):
        augment = AugmentConfig(flip=0.5, flip_scope=scope)  # type: ignore[arg-type]
        mirrored = next(iter(batches(table, VIEWS, augment)))
        flipped = torch.zeros(shape, dtype=torch.bool)
        for place in np.ndindex(*shape):
            frames = place[2] if shape[2] > 1 else slice(None)
            found, plain = (b.clips[place[0], place[1], :, frames] for b in (mirrored, straight))
            flipped[place] = not torch.equal(found, plain)
            assert torch.equal(found, plain.flip(-1)) or torch.equal(found, plain)
        assert 0 < flipped.sum() < flipped.numel()


def test_workers_change_nothing_of_what_is_drawn(table: VideoTable) -> None:
    augment = AugmentConfig(
        crop_area=(0.3, 0.9), crop_scope="per_frame", flip=0.5, flip_scope="per_block"
    )
    assert all_same(
        list(batches(table, VIEWS, augment)), list(batches(table, VIEWS, augment, workers=2))
    )


def test_all_clips_of_a_video_are_read_in_one_go(
    table: VideoTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = crop.read_frames, []
    monkeypatch.setattr(crop, "read_frames", lambda *a, **k: calls.append(a) or read(*a, **k))
    augment = AugmentConfig(crop_area=(0.3, 0.9), crop_scope="per_frame")
    list(batches(table, VIEWS, augment, max_steps=2))
    assert len(calls) == 8


def test_a_training_goes_on_anywhere_in_a_million_videos_by_arithmetic(
    table: VideoTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    million = table.select(np.arange(1_000_000) % len(table))
    read, calls = crop.read_frames, []
    monkeypatch.setattr(crop, "read_frames", lambda *a, **k: calls.append(a) or read(*a, **k))
    step = 3 * 250_000 + 249_998
    batch = next(iter(batches(million, VIEWS, epochs=5, start_step=step)))
    assert len(calls) == len(batch) == 4
    assert batch.videos.tolist() == epoch_order(5, 3, 1_000_000)[-8:-4].tolist()


def test_a_copy_is_made_ahead_and_in_order_and_an_error_arrives(table: VideoTable) -> None:
    def three(fail: bool) -> Any:
        yield from list(batches(table, VIEWS))[:3]
        if fail:
            raise InputError("torn")

    def marked(batch: Batch) -> Batch:
        return replace(batch, seeds=batch.seeds + 1)

    plain = list(three(False))
    found = list(copied(three(False), marked))
    assert [b.seeds.tolist() for b in found] == [(b.seeds + 1).tolist() for b in plain]
    with pytest.raises(InputError, match="torn"):
        list(copied(three(True), marked))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches_are_the_same_batches(table: VideoTable) -> None:
    pinned = list(batches(table, VIEWS, workers=2, pin_memory=True))
    assert all(batch.clips.is_pinned() for batch in pinned)
    assert all_same(pinned, list(batches(table, VIEWS)))


def without_files(table: VideoTable, *rows: int) -> VideoTable:
    paths = [f"gone/{row}" if row in rows else path for row, path in enumerate(table.paths)]
    return replace(table, paths=Texts.of(paths))


def test_a_tenth_of_the_files_may_be_lost_with_the_default(
    table: VideoTable, caplog: pytest.LogCaptureFixture
) -> None:
    broken = without_files(table.select(np.arange(90) % 9), *range(0, 90, 10))
    videos = [video for batch in batches(broken, VIEWS, epochs=4) for video in batch.videos]
    assert len(videos) == 4 * 88
    assert sum("; replaced by " in line for line in caplog.messages) > 30
    assert all(video % 10 for video in videos)


def test_many_neighbours_may_be_lost_at_once(table: VideoTable) -> None:
    broken = without_files(table.select(np.arange(90) % 9), *range(20, 70))
    videos = {
        int(video)
        for batch in batches(broken, VIEWS, max_replaced_share=1.0)
        for video in batch.videos
    }
    assert videos <= {*range(20), *range(70, 90)}


def test_no_replacement_may_be_allowed(table: VideoTable) -> None:
    with pytest.raises(
        InputError, match=r"1 of \d+ samples .* more than max_replaced_share 0 allows"
    ):
        list(batches(without_files(table, 3), VIEWS, max_replaced_share=0.0))


def test_where_nothing_can_be_read_training_ends(table: VideoTable) -> None:
    with pytest.raises(InputError, match=r"gone/\d: No such file.*; nor can the 15 tried"):
        list(batches(without_files(table, *range(9)), VIEWS, max_replaced_share=1.0))


def test_a_file_that_ends_its_readers_is_replaced_as_one_that_is_gone(table: VideoTable) -> None:
    def read(videos: VideoTable, refused: dict[int, str]) -> Any:
        reader = ClipReader(TrainClips(videos, VIEWS, NO_AUGMENT, 5), 20.0)
        samples = [Sample(unit, 0, number) for number, unit in enumerate((2, 5, 7))]
        out = np.zeros(reader.shape(samples), np.uint8)
        return out, reader.read(samples, out, lambda row, seconds: None, refused)

    refused, facts = read(table, {5: "5.mp4: each process that read it was ended by SIGSEGV"})
    gone, other = read(without_files(table, 5), {})
    assert (refused == gone).all()
    assert [fact.row for fact in facts] == [fact.row for fact in other] == [2, 6, 7]
    assert "SIGSEGV; replaced by" in facts[1].problem


def test_killed_workers_leave_the_batches_of_an_epoch_as_they_were(
    table: VideoTable, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for number, batch in enumerate(batches(table, VIEWS, workers=2, epochs=6)):
        found.append(batch)
        if number in (1, 5):
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
    assert all_same(found, list(batches(table, VIEWS, epochs=6)))
    assert not any(batch.problems for batch in found)


@pytest.fixture(scope="module")
def cameras(tmp_path_factory: pytest.TempPathFactory) -> VideoTable:
    """Three instances; the second camera runs six frames ahead, its files begin ten earlier."""
    folder = tmp_path_factory.mktemp("cameras")
    lines = ["instance,camera,path,class,split,start_frame,n_frames,offset_frames"]
    for number in range(3):
        write_video(folder / f"{number}a.mp4", numbered(50))
        write_video(folder / f"{number}b.mp4", numbered(66, height=72, width=96))
        lines.append(f"i{number},a,{number}a.mp4,throw,train,0,50,0")
        lines.append(f"i{number},b,{number}b.mp4,throw,train,10,56,6")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    given = {"format": "multicamera", "name": "judo", "file": str(folder / "manifest.csv")}
    return load_table(index(folder / "index", **given), "train")


@pytest.mark.parametrize("pick", ["chunk", "frames"])
def test_two_cameras_show_the_same_moments(cameras: VideoTable, pick: Any) -> None:
    sampler = CameraPair(pick=pick)
    clip = ClipConfig(blocks=2, frames=4, size=24, short="drop", sampler=sampler)
    seen = set()
    for batch in batches(cameras, clip, batch_size=3, micro_batch=3, epochs=8, workers=1):
        assert batch.videos.tolist() == batch.extra["video"][:, 0].tolist()
        for clips, rows in zip(batch.clips, batch.extra["video"].tolist(), strict=True):
            names = [cameras.paths[row] for row in rows]
            assert names[0][0] == names[1][0], "one instance"
            later, earlier = halves(clips) if names[0].endswith("b.mp4") else halves(clips)[::-1]
            assert (later - earlier == 8).all(), "start 10, offset 6"
            seen.add("".join(name[1] for name in names))
        assert len({names[:2] for names in map(str, batch.videos.tolist())}) == 3
    assert seen == {"ab", "ba"}


def test_other_samplers_stay_inside_the_recording(cameras: VideoTable) -> None:
    clip = ClipConfig(frames=40, size=24, sampler=RandomConsecutive())
    for batch in batches(cameras, clip, batch_size=6, micro_batch=6):
        for clips, row in zip(batch.clips, batch.videos.tolist(), strict=True):
            if cameras.paths[row].endswith("b.mp4"):
                assert halves(clips).min() >= 5


def test_pairs_need_a_data_set_of_several_cameras(table: VideoTable) -> None:
    clip = ClipConfig(blocks=2, frames=4, size=24, sampler=CameraPair())
    with pytest.raises(ConfigurationError, match=r"camera_pair needs .* \(format: multicamera\)"):
        batches(table, clip)


def test_too_few_instances_for_a_batch_are_refused(cameras: VideoTable) -> None:
    clip = ClipConfig(blocks=2, frames=4, size=24, sampler=CameraPair())
    with pytest.raises(ConfigurationError, match="3 filmed instances do not fill one batch of 4"):
        batches(cameras, clip)


def test_a_prepared_or_turned_video_is_read_from_its_place_upright(tmp_path: Path) -> None:
    table = small_table(tmp_path, count=4)
    moved = tmp_path / "prepared"
    for path in table.paths:
        (moved / path).parent.mkdir(parents=True, exist_ok=True)
    table.file(1).rename(moved / table.paths[1])
    mixed = replace(table, prepared_root=moved, prepared=np.array([False, True, False]))
    clip = ClipConfig(frames=4, size=24)
    plain = list(batches(mixed, clip, batch_size=3, micro_batch=3, epochs=1))
    assert sorted(plain[0].videos.tolist()) == [0, 1, 2]
    assert plain[0].problems == ()
    turned = replace(
        mixed,
        rotations=np.full(3, 180),
        decoder="pyav",
    )
    upside_down = list(batches(turned, clip, batch_size=3, micro_batch=3, epochs=1))
    difference = upside_down[0].clips.flip(-1, -2).int() - plain[0].clips.int()
    assert difference.abs().float().mean() < 4
