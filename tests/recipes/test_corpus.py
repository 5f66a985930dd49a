"""Every file of the corpus, with every decoder: the right frames, or a refusal that says why."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from recipes.data.config import PrepareOptions
from recipes.data.decode import read_frames, video_stream
from recipes.data.encode import encode
from recipes.data.probe import Probe, probe
from tests.recipes.corpus import Frames, draw, read_numbers, write
from tests.recipes.corpus_cases import AVI, CASES, MPEG, Case
from tests.recipes.data_files import TEST_DATA, real_data

DECODERS = ("decord", "pyav")
MODES = ("full", "demux")
LARGEST_BYTES = 300_000  # of the real files read in every run; the larger ones were tried by hand
NASTY = [path for path in TEST_DATA.glob("nasty/*") if path.stat().st_size <= LARGEST_BYTES]
REFUSED = {"decord_corrupted.mp4", "tc_animated.gif", "tc_audio_only.mp3"} | {
    "tc_gif_frame_exceeds_screen.gif"
}
ADVICE = "re-encode|convert|download|decoder: pyav|index again"


def index_sets(count: int, seed: int) -> list[list[int]]:
    """What training asks for: single frames, clips, two far clips, repeats, any order."""
    rng = np.random.default_rng(seed)
    last, start, stride = count - 1, int(rng.integers(0, count)), int(rng.integers(1, 6))
    clip = [min(start + stride * place, last) for place in range(8)]
    scattered = rng.integers(0, count, 7).tolist()
    return [
        [last],
        [start],
        clip,
        clip[::-1],
        [*range(min(4, count)), *range(max(0, count - 4), count)],
        sorted(scattered),
        [*scattered, scattered[0]],
        list(range(count)),
    ]


def decode_all(path: Path) -> list[int]:
    """Numbers of the frames as FFmpeg's player shows them, turned upright where need be."""
    with av.open(str(path)) as container:
        frames = [
            np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            for frame in container.decode(video_stream(container))
        ]
    return [read_numbers(frame[None])[0] for frame in frames]


def read(path: Path, found: Probe, indices: list[int], decoder: str, **size: int) -> Frames:
    return read_frames(
        path,
        indices,
        **size,
        verdict=found.verdict,
        gop=found.gop,
        decoder=decoder,
        rotation=found.rotation,
    )


def wrong_frames(
    path: Path, truth: list[int], found: Probe, decoder: str, alone: tuple[int, ...] = ()
) -> list[str]:
    """What reading a file gives that it should not."""
    wrong = []
    sets = [*index_sets(found.frames, seed=len(path.name)), *([frame] for frame in alone)]
    for number, indices in enumerate(sets):
        expected = [truth[index] for index in indices if index < len(truth)]
        given = read_numbers(read(path, found, indices, decoder))
        if given != expected:
            wrong.append(f"set {number}, {indices}: {given} instead of {expected}")
    return wrong


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_gives_the_right_frames_or_a_refusal_that_says_what_to_do(
    case: Case, tmp_path: Path
) -> None:
    path = tmp_path / case.name
    case.make(path)
    for decoder, mode in product(DECODERS, MODES):
        found, what = probe(path, decoder, mode), f"{decoder}, {mode}"
        if found.verdict == "reject":
            assert mode == "demux" or decoder not in case.usable, f"{what}: {found.reason}"
            assert any(word in found.reason for word in ADVICE.split("|")), found.reason
            continue
        truth = list(case.shown or decode_all(path))
        if mode == "full":
            assert found.frames == len(truth), what
        assert wrong_frames(path, truth, found, decoder, case.alone) == [], f"{what}: {found}"


def all_thumbnails(path: Path) -> NDArray[np.int16]:
    """(T, 24, 24, 3) of a decode in order, upright."""
    with av.open(str(path)) as container:
        small = [
            np.rot90(frame.reformat(24, 24, "rgb24").to_ndarray(), frame.rotation // 90)
            for frame in container.decode(video_stream(container))
        ]
    return np.stack(small).astype(np.int16)


@pytest.mark.parametrize("case", [*AVI, *MPEG], ids=lambda case: case.name)
def test_what_re_encoding_mends_has_the_frames_of_its_source_at_random(
    case: Case, tmp_path: Path
) -> None:
    path, target = tmp_path / case.name, tmp_path / "prepared.mp4"
    case.make(path)
    found = probe(path)
    if not found.mendable:
        return
    encode(path, target, PrepareOptions(short_side=128), "decord", found.fps)
    truth, prepared = list(case.shown or decode_all(path)), probe(target)
    assert (prepared.verdict, prepared.frames) == ("random", len(truth))
    assert wrong_frames(target, truth, prepared, "decord") == []


@pytest.mark.parametrize("name", sorted(path.name for path in NASTY) or ["absent"])
def test_a_real_file_that_breaks_decoders_gives_the_frames_of_a_decode_in_order(name: str) -> None:
    path = real_data("nasty") / name
    for decoder in DECODERS:
        found = probe(path, decoder)
        if found.verdict == "reject":
            assert any(word in found.reason for word in ADVICE.split("|")), found.reason
            assert name in REFUSED or (name, decoder) == ("tc_av1.mkv", "decord"), found.reason
            continue
        truth = all_thumbnails(path)
        assert found.frames == len(truth)
        for indices in index_sets(found.frames, seed=len(name)):
            given = read(path, found, indices, decoder, height=24, width=24)
            for number, picture in zip(indices, given.astype(np.int16), strict=True):
                distances = np.abs(truth - picture).mean(axis=(1, 2, 3))
                # Other scalers, ranges and matrices cost some grey levels, neighbours may be alike.
                assert distances[number] < distances.min() + 1.5, (decoder, number)
                assert distances[number] < 24, (decoder, number)


def test_writing_a_file_leaves_the_process_its_priority(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    write(tmp_path / "av1.webm", draw(4, 64, 64), "libsvtav1", options={"preset": "11"})
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before
