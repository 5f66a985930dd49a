"""decord and PyAV give the same frames of the same file, however it is stored.

The verdict of each row is the most that decord can do: `random`, or `sequential` where its random
access is known to give other frames without an error, or None where even reading in order does;
the index finds that out (test_corpus.py). PyAV is exact by random access everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.data.decode import read_frames
from tests.recipes import corpus_edits as edits
from tests.recipes.corpus import draw, read_numbers, write

COUNT = 40
CLIPS = [3, 5, 7, 9, 30, 31, 33]  # two clips of one video, at another stride each


@dataclass(frozen=True)
class File:
    """A video of frames 0, 1, ... or those of `shown`, and how decord can read it."""

    name: str
    verdict: str | None = "random"
    codec: str = "libx264"
    size: tuple[int, int] = (48, 64)
    count: int = COUNT
    shown: range = field(default_factory=lambda: range(COUNT))
    settings: dict[str, Any] = field(default_factory=dict)


def _file(
    name: str,
    verdict: str | None = "random",
    codec: str = "libx264",
    size: tuple[int, int] = (48, 64),
    count: int = COUNT,
    shown: range | None = None,
    **settings: Any,
) -> File:
    return File(name, verdict, codec, size, count, shown or range(count), settings)


_VARIABLE = np.cumsum([40, 80, 120, 500, 40] * (COUNT // 5)).tolist()
_QUIET = {"x265-params": "log-level=0"}

FILES = [
    _file("h264.mp4"),
    _file("h264_b.mp4", b_frames=3),
    _file("h264_open_gop.mp4", "sequential", b_frames=3, options={"x264-params": "open-gop=1"}),
    _file("hevc_b.mp4", "sequential", "libx265", b_frames=3, options=_QUIET),
    _file("mpeg4.mp4", codec="mpeg4"),
    _file("mpeg4_b.mp4", "sequential", "mpeg4", b_frames=2),
    _file("edit_list.mp4", "sequential", b_frames=2, shown=range(17, 40), edit=edits.shift(-17)),
    _file("variable_rate.mp4", times=_VARIABLE, b_frames=2),
    _file("ten_bit.mp4", pix_fmt="yuv420p10le"),
    _file("odd.mp4", size=(51, 67), pix_fmt="yuv444p"),
    _file("one_frame.mp4", count=1),
    _file("h264_b.mkv", b_frames=3),
    _file("mjpeg.mkv", codec="mjpeg", pix_fmt="yuvj420p"),
    _file("vp8.webm", codec="libvpx"),
    _file("vp8_hidden.webm", codec="libvpx", gop=30, options=edits.HIDDEN_FRAMES),
    _file("vp9.webm", codec="libvpx-vp9"),
    _file("av1.webm", None, "libsvtav1", size=(64, 64), options={"preset": "12"}),
    _file("h264.ts"),
    _file("h264_b.ts", None, b_frames=2),
    _file("mpeg2_b.mpg", "sequential", "mpeg2video", b_frames=2),
    _file("mpeg4.avi", codec="mpeg4"),
    _file("mpeg4_b.avi", "sequential", "mpeg4", b_frames=2),
    _file("packed.avi", "sequential", "mpeg4", b_frames=1, edit=edits.pack_b_frames),
    _file("h264_b.avi", "sequential", b_frames=2),
    _file("mjpeg.avi", codec="mjpeg", pix_fmt="yuvj420p"),
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_both_decoders_give_every_frame_in_any_reading(file: File, tmp_path: Path) -> None:
    path, gop = tmp_path / file.name, file.settings.get("gop", 12)
    write(path, draw(file.count, *file.size), file.codec, **file.settings)
    shown, last = list(file.shown), len(file.shown) - 1
    asked = [range(len(shown)), [last], [last, 0, last // 2, 0], [min(n, last) for n in CLIPS]]
    for numbers in asked:
        pictures = []
        for decoder, verdict in _readings(file):
            frames = read_frames(path, numbers, verdict=verdict, decoder=decoder, gop=gop)
            assert read_numbers(frames) == [shown[number] for number in numbers], (decoder, verdict)
            pictures.append(frames.astype(np.int16))
        assert all(np.abs(pictures[0] - other).mean() < 2 for other in pictures[1:])


def _readings(file: File) -> list[tuple[str, str]]:
    """The second entry of FILES, spelt out: decord at random is trusted with sequential as well."""
    decord = {"random": ["random", "sequential"], "sequential": ["sequential"], None: []}
    return [
        ("pyav", "random"),
        ("pyav", "sequential"),
        *(("decord", verdict) for verdict in decord[file.verdict]),
    ]
