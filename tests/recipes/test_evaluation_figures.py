"""Figures of awkward content are drawn all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.evaluation.figures import Bar, Tile, save_bars, save_confusion, save_neighbours


@pytest.mark.parametrize("count", [2, 16, 101])
def test_confusions_of_few_and_of_many_classes(tmp_path: Path, count: int) -> None:
    confusion = np.random.default_rng(0).integers(0, 9, (count, count))
    confusion[0] = 0  # a class without test videos
    names = [f"$class_{number} with a name that goes on and on" for number in range(count)]
    with Image.open(save_confusion(tmp_path / "figures" / "c.png", confusion, names)) as image:
        assert min(image.size) > 300
        assert max(image.size) < 2000


def test_bars_show_values_intervals_and_missing_values(tmp_path: Path) -> None:
    bars = [
        Bar(label="a $x$ b", value=0.5, interval=(0.4, 0.6), chance=0.25),
        Bar(label="none", value=float("nan")),
        Bar(label="full", value=1.0, interval=(0.9, 1.0)),
    ]
    few = save_bars(tmp_path / "few.png", bars, "title with 100 %")
    many = save_bars(tmp_path / "many.png", bars * 30, "many")
    with Image.open(few) as first, Image.open(many) as second:
        assert second.height > 3 * first.height


def test_the_frames_of_neighbours_are_marked_by_color(tmp_path: Path) -> None:
    frame = np.full((32, 32, 3), 250, dtype=np.uint8)
    rows = [
        [Tile(frame=frame, caption="q"), Tile(frame=frame, caption="r", right=True)],
        [Tile(frame=frame, caption="q"), Tile(frame=frame, caption="w", right=False)],
        [Tile(frame=frame, caption="alone")],
    ]
    with Image.open(save_neighbours(tmp_path / "n.png", rows, "title")) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    found = {tuple(color) for color in pixels.tolist()}
    assert {(0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00), (0x99, 0x99, 0x99)} <= found
