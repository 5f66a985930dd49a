"""Boxes, shifts, angles and flips: their scope, their ranges, and the pixels they show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor
from torch.nn import functional

from recipes.data.augment import quarter_turns
from recipes.data.augment_presets import AUGMENT_PRESETS
from recipes.data.boxes import (
    Box,
    Crops,
    centre_box,
    draw_crops,
    draw_flips,
    random_box,
    random_square,
    random_window,
)
from recipes.data.clip_config import AugmentConfig, Scope
from recipes.data.crop_resize import crop_resize, flip

PICTURE = (96, 128)
WHOLE = Box(0, 0, *PICTURE)
SHAPES = {"per_clip": (1, 1), "per_block": (3, 1), "per_frame": (3, 4)}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def crops_of(config: AugmentConfig, seed: int = 0, size: int = 32) -> Crops:
    return draw_crops(*PICTURE, config, (3, 4), size, rng(seed))


def one_crop(box: Box, angle: float = 0.0) -> Crops:
    return Crops(boxes=np.array([[box]], dtype=np.float64), angles=np.array([[angle]]))


def static_video(height: int = PICTURE[0], width: int = PICTURE[1]) -> Tensor:
    """(N=3, T=4, H, W, C) of one smooth coloured picture."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture = torch.stack([2 * y, x, 255 - y - x], dim=-1).to(torch.uint8)
    return picture.expand(3, 4, -1, -1, -1)


@pytest.mark.parametrize("scope", SHAPES)
def test_boxes_are_drawn_for_the_scope(scope: Scope) -> None:
    crops = crops_of(AugmentConfig(crop_area=(0.2, 1.0), crop_scope=scope))
    assert crops.boxes.shape == (*SHAPES[scope], 4)
    assert len(np.unique(crops.boxes[..., 2])) == np.prod(SHAPES[scope])
    assert (crops.single is None) == (scope != "per_clip")


@pytest.mark.parametrize("scope", SHAPES)
def test_flips_are_drawn_for_the_scope(scope: Scope) -> None:
    config = AugmentConfig(flip=0.3, flip_scope=scope)
    generator = rng()
    drawn = np.array([draw_flips(config, (3, 4), generator) for _ in range(2000)])
    assert drawn.shape == (2000, *SHAPES[scope])
    shares = drawn.mean(axis=0)
    assert (np.abs(shares - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 2000)).all()


def test_boxes_and_flips_once_a_clip_are_drawn_as_they_always_were() -> None:
    config = AugmentConfig(crop_area=(0.5, 1.0), flip=0.5)
    for seed in range(20):
        new, old = rng(seed), rng(seed)
        assert draw_flips(config, (3, 4), new)[0, 0] == (old.random() < 0.5)
        box = random_box(*PICTURE, (0.5, 1.0), (3 / 4, 4 / 3), old)
        assert draw_crops(*PICTURE, config, (3, 4), 32, new).single == box
        assert new.random() == old.random()
    new, old = rng(), rng()
    assert draw_crops(*PICTURE, AugmentConfig(), (3, 4), 32, new).single == centre_box(*PICTURE)
    assert new.random() == old.random()


def test_squares_and_windows_have_their_share_and_uniform_places() -> None:
    generator = rng(1)
    squares = [random_square(*PICTURE, (0.5, 0.75), generator) for _ in range(1000)]
    sides = [box.height for box in squares]
    assert all(box.height == box.width for box in squares)
    assert stats.kstest(sides, "uniform", (48, 24)).pvalue > 1e-4
    lefts = [box.left / (128 - box.width) for box in squares]
    assert stats.kstest(lefts, "uniform").pvalue > 1e-4
    windows = [random_window(128, 171, (112 / 128, 112 / 171), generator) for _ in range(1000)]
    assert all(box[2:] == pytest.approx((112, 112)) for box in windows)
    assert stats.kstest([box.top for box in windows], "uniform", (0, 16)).pvalue > 1e-4


def test_a_crop_may_be_confined_to_the_middle() -> None:
    config = AugmentConfig(crop_within=0.5, crop_side=(0.5, 1.0))
    for seed in range(100):
        box = crops_of(config, seed).single
        assert box is not None
        assert 24 <= box.height <= 48
        assert 24 <= box.top <= box.top + box.height <= 72 + 1e-9
        assert 40 <= box.left <= box.left + box.width <= 88 + 1e-9


def test_every_frame_shifts_by_whole_pixels_of_the_clip_inside_the_picture() -> None:
    config = AugmentConfig(crop_side=(0.5, 0.5), crop_shift=5)
    steps: list[int] = []
    for seed in range(200):
        boxes = crops_of(config, seed, size=32).boxes
        assert boxes.shape == (3, 4, 4)
        assert boxes[..., 0].min() >= 0
        assert (boxes[..., 0] + boxes[..., 2]).max() <= 96 + 1e-9
        assert (boxes[..., 2:] == 48).all()
        unshifted = rng(seed).random(3)[1] * 48
        if 7.5 < unshifted < 40.5:  # far from the border: nothing is cut off
            steps += np.round((boxes[..., 0] - unshifted).ravel() / 1.5, 6).tolist()
    assert set(steps) <= set(range(-5, 6))
    assert len(set(steps)) == 11


@pytest.mark.parametrize("scope", SHAPES)
def test_angles_are_uniform_and_happen_with_their_probability(scope: Scope) -> None:
    config = AugmentConfig(rotate=10.0, rotate_p=0.4, crop_scope=scope)
    angles = np.concatenate([crops_of(config, seed).angles.ravel() for seed in range(800)])
    assert len(angles) == 800 * np.prod(SHAPES[scope])
    turned = angles[angles != 0]
    share = len(turned) / len(angles)
    assert abs(share - 0.4) < 5 * np.sqrt(0.24 / len(angles))
    assert stats.kstest(turned, "uniform", (-10, 20)).pvalue > 1e-4


def test_the_outer_box_holds_all_boxes_and_reading_it_makes_equal_boxes_final() -> None:
    boxes = np.array([[[10.0, 20, 40, 40]], [[30.0, 0, 40, 40]]])
    crops = Crops(boxes=boxes, angles=np.zeros((1, 1)))
    outer = crops.outer(*PICTURE)
    assert outer == (10, 0, 60, 60)
    assert crops.reading_size(outer, 20) == (30, 30)
    assert crops.reading_size(outer, 80) == (120, 120)


def test_the_smallest_box_decides_the_reading_size_unless_it_would_be_enlarged() -> None:
    boxes = np.array([[[0.0, 0, 96, 96]], [[0.0, 0, 32, 32]]])
    crops = Crops(boxes=boxes, angles=np.zeros((1, 1)))
    outer = crops.outer(*PICTURE)
    assert crops.reading_size(outer, 16) == (48, 48)
    assert crops.reading_size(outer, 48) == (96, 96)
    assert crops.reading_size(outer, 192) == (192, 192)


def test_a_turned_box_needs_its_surroundings() -> None:
    outer = one_crop(Box(30, 40, 30, 30), angle=45).outer(*PICTURE)
    reach = 15 * np.sqrt(2)
    assert outer == pytest.approx((45 - reach, 55 - reach, 2 * reach, 2 * reach))
    assert one_crop(Box(0, 0, 96, 96), angle=45).outer(*PICTURE)[:2] == (0, 0)


def test_a_box_of_the_final_size_is_only_cut() -> None:
    video = static_video()
    shown = crop_resize(video, WHOLE, one_crop(Box(10, 20, 32, 32)), 32)
    assert shown.dtype == torch.uint8
    assert torch.equal(shown, video[:, :, 10:42, 20:52].permute(0, 4, 1, 2, 3))


def test_a_box_is_scaled_with_an_antialiased_filter() -> None:
    noise = torch.randint(0, 256, (3, 4, 96, 128, 3), dtype=torch.uint8)
    shown = crop_resize(noise, WHOLE, one_crop(Box(8, 16, 64, 80)), 24)
    source = noise[:, :, 8:72, 16:96].flatten(0, 1).permute(0, 3, 1, 2).float()
    expected = functional.interpolate(source, (24, 24), mode="bilinear", antialias=True)
    expected = expected.unflatten(0, (3, 4)).transpose(1, 2)  # type: ignore[no-untyped-call]
    assert (shown.float() - expected).abs().max() <= 1.5


def test_boxes_refer_to_the_file_whatever_part_was_read_at_which_scale() -> None:
    video = static_video()
    box = Box(20, 30, 40, 60)
    direct = crop_resize(video, WHOLE, one_crop(box), 20)
    outer = Box(10, 20, 80, 100)
    part = video[:, :, 10:90, 20:120].flatten(0, 1).permute(0, 3, 1, 2)
    scaled = functional.interpolate(part, (40, 50), mode="bilinear", antialias=True)
    half = scaled.permute(0, 2, 3, 1).view(3, 4, 40, 50, 3)
    shown = crop_resize(half, outer, one_crop(box), 20)
    assert (shown.int() - direct.int()).abs().max() <= 3


@pytest.mark.parametrize("scope", SHAPES)
def test_a_static_video_stays_static_within_its_scope(scope: Scope) -> None:
    config = AugmentConfig(
        crop_area=(0.2, 0.8),
        crop_scope=scope,
        rotate=10.0,
        rotate_p=0.5,
        flip=0.5,
        flip_scope=scope,
    )
    crops, flips = crops_of(config, 3), draw_flips(config, (3, 4), rng(3))
    shown = crop_resize(static_video(), WHOLE, crops, 32, flips)
    assert shown.shape == (3, 3, 4, 32, 32)
    over_frames = bool((shown == shown[:, :, :1]).all())
    over_clips = bool((shown == shown[:1]).all())
    assert (over_clips, over_frames) == {
        "per_clip": (True, True),
        "per_block": (False, True),
        "per_frame": (False, False),
    }[scope]
    if scope == "per_frame":
        frames = shown.transpose(1, 2).flatten(0, 1).flatten(1)
        assert len(torch.unique(frames, dim=0)) == 12


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_a_box_turned_by_a_right_angle_is_exact(quarters: int) -> None:
    noise = torch.randint(0, 256, (3, 4, 96, 128, 3), dtype=torch.uint8)
    box = Box(30, 40, 32, 32)
    straight = crop_resize(noise, WHOLE, one_crop(box), 32)
    turned = crop_resize(noise, WHOLE, one_crop(box, angle=90 * quarters), 32)
    expected = torch.rot90(straight, quarters, dims=(-2, -1))
    assert (turned.int() - expected.int()).abs().max() <= 1


def test_a_turned_box_shows_what_lies_around_it_and_black_outside_the_picture() -> None:
    white = torch.full((1, 1, 96, 128, 3), 255, dtype=torch.uint8)
    inside = crop_resize(white, WHOLE, one_crop(Box(30, 40, 30, 30), angle=30), 32)
    assert (inside == 255).all()
    corner = crop_resize(white, WHOLE, one_crop(Box(0, 0, 96, 96), angle=30), 32)[0, 0, 0]
    assert corner[0, 0] == corner[-1, 0] == 0
    assert corner[16, 16] == corner[0, -1] == 255  # the picture goes on to the right


def test_turning_a_slope_turns_its_direction() -> None:
    slope = torch.arange(128, dtype=torch.uint8)
    video = slope[None, None, None, :, None].expand(1, 1, 96, 128, 3)
    shown = crop_resize(video, WHOLE, one_crop(Box(32, 48, 32, 32), angle=30), 32)[0, 0, 0].float()
    # Counter-clockwise by 30 degrees: brightness rises to the right and upwards.
    across = shown[:, 1:].mean() - shown[:, :-1].mean()
    down = shown[1:].mean() - shown[:-1].mean()
    assert float(across) == pytest.approx(np.cos(np.pi / 6), abs=0.03)
    assert float(down) == pytest.approx(-np.sin(np.pi / 6), abs=0.03)


@pytest.mark.parametrize("scope", SHAPES)
def test_flipping_twice_is_the_identity(scope: Scope) -> None:
    clips = torch.randint(0, 256, (3, 3, 4, 8, 8), dtype=torch.uint8)
    flips = rng(5).random(SHAPES[scope]) < 0.5
    flips.flat[0] = True
    once = flip(clips, flips)
    assert not torch.equal(once, clips)
    assert torch.equal(flip(once, flips), clips)
    assert torch.equal(flip(clips, np.zeros((1, 1), dtype=bool)), clips)


def test_only_the_chosen_frames_are_mirrored() -> None:
    clips = torch.randint(0, 256, (2, 3, 2, 8, 8), dtype=torch.uint8)
    shown = flip(clips, np.array([[True, False], [False, False]]))
    assert torch.equal(shown[0, :, 0], clips[0, :, 0].flip(-1))
    assert torch.equal(shown[0, :, 1], clips[0, :, 1])
    assert torch.equal(shown[1], clips[1])


def test_quarter_turns_are_those_of_rot90_for_each_scope() -> None:
    clips = torch.randint(0, 256, (2, 2, 3, 2, 6, 6), dtype=torch.uint8)
    turns = torch.arange(8).view(2, 2, 2) + 1
    shown = quarter_turns(clips, turns)
    for b, n, t in np.ndindex(2, 2, 2):
        expected = torch.rot90(clips[b, n, :, t], int(turns[b, n, t]), dims=(-2, -1))
        assert torch.equal(shown[b, n, :, t], expected)
    per_sample = quarter_turns(clips, torch.tensor([1, 0]))
    assert torch.equal(per_sample[0], torch.rot90(clips[0], 1, dims=(-2, -1)))
    assert torch.equal(per_sample[1], clips[1])
    back = quarter_turns(quarter_turns(clips, turns[:, :, 0]), -turns[:, :, 0])
    assert torch.equal(back, clips)
    with pytest.raises(ValueError, match="square"):
        quarter_turns(clips[..., :5], turns)


@pytest.mark.parametrize("name", AUGMENT_PRESETS)
def test_every_preset_draws_boxes_inside_the_picture(name: Any) -> None:
    config = AUGMENT_PRESETS[name]
    for seed, (height, width) in enumerate([(240, 320), (320, 240), (128, 128), (1080, 1920)] * 5):
        crops = draw_crops(height, width, config, (2, 3), 64, rng(seed))
        top, left, tall, wide = np.moveaxis(crops.boxes, -1, 0)
        assert top.min() >= 0
        assert left.min() >= 0
        assert (top + tall).max() <= height + 1e-6
        assert (left + wide).max() <= width + 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_area": [0.2, 1], "crop_side": [0.5, 1]}, "crop_area and crop_side are different"),
        ({"crop_side": [0.5, 1.5]}, "0 < smallest <= largest <= 1"),
        ({"crop_area": [0, 1]}, "0 < smallest <= largest <= 1"),
        ({"crop_window": [0.5, 1.1]}, "shares of height and width"),
        ({"crop_aspect": [2, 1]}, "smallest first"),
        ({"crop_within": 0.0}, "greater than 0"),
        ({"rotate": 200}, "less than or equal to 180"),
        ({"crop_scope": "per_view"}, "per_block"),
    ],
)
def test_a_crop_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentConfig.model_validate(changes)
