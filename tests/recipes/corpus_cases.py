"""The files of the corpus: what users have, and what decoders are known or likely to get wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.recipes import corpus_edits as edits
from tests.recipes.corpus import HEIGHT, WIDTH, draw, write
from tests.recipes.corpus_edits import COUNT

BOTH = frozenset({"decord", "pyav"})
PYAV = frozenset({"pyav"})
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file and what is right for it.

    `shown` are the numbers of its frames in presentation order; None where no standard says what a
    player shows, and whatever is read has only to agree with a decode of the whole file.
    `usable` are the decoders that must accept it after a full look, as sequential at the worst; the
    others may refuse it. `alone` are frames known to come out wrong when asked for singly.
    """

    name: str
    make: Callable[[Path], object]
    shown: tuple[int, ...] | None
    usable: frozenset[str] = BOTH
    alone: tuple[int, ...] = ()


def _file(
    name: str,
    codec: str = "libx264",
    *,
    count: int = COUNT,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    turned: int = 0,
    mirrored: bool = False,
    shown: range | tuple[int, ...] | str | None = "all",
    usable: frozenset[str] = BOTH,
    alone: tuple[int, ...] = (),
    then: Callable[[Path], None] = lambda path: None,
    **settings: Any,
) -> Case:
    """A case written by one call; `turned` quarter turns clockwise make the stored picture."""

    def make(path: Path) -> None:
        frames = np.rot90(draw(count, *size), -turned, axes=(1, 2))
        frames = frames[:, :, ::-1] if mirrored else frames
        write(path, np.ascontiguousarray(frames), codec, **settings)
        then(path)

    numbers = range(count) if shown == "all" else shown
    expected = None if numbers is None else tuple(int(number) for number in numbers)
    return Case(name=name, make=make, shown=expected, usable=usable, alone=alone)


def _joined(name: str, **settings: Any) -> Case:
    """Two recordings, the bytes of one behind those of the other."""

    def make(path: Path) -> None:
        parts = []
        for half in range(2):
            write(path, draw(COUNT // 2, first=half * COUNT // 2), **settings)
            parts.append(path.read_bytes())
        path.write_bytes(b"".join(parts))

    return Case(name=name, make=make, shown=tuple(range(COUNT)), usable=NONE)


def _copied(name: str, codec: str = "libx264", **settings: Any) -> Case:
    """Packets of an AVI in a container that has times of presentation, which an AVI has not."""

    def make(path: Path) -> None:
        source = path.with_suffix(".source.avi")
        write(source, draw(COUNT), codec, **settings)
        edits.copy_streams(source, path)
        source.unlink()

    return Case(name=name, make=make, shown=None, usable=NONE)


_FRAGMENTS = "frag_keyframe+empty_moov+default_base_moof"
_X264_PYRAMID = {"b-pyramid": "normal", "refs": "4"}
_FULL = "yuvj420p"
_OPEN = {"x264-params": "open-gop=1"}
_X265_CLOSED = {"x265-params": "log-level=0:open-gop=0"}
_X265_OPEN = {"x265-params": "log-level=0:open-gop=1"}


def _irregular(count: int, step: int = 40) -> list[int]:
    """Milliseconds: slow, fast, a gap of two seconds, fast."""
    steps = [step * (1 + place % 3) for place in range(count)]
    steps[count // 2] = 2000
    return [sum(steps[:place]) for place in range(count)]


MP4 = [
    _file("plain.mp4"),
    _file("b_frames.mp4", b_frames=3),
    _file("b_pyramid.mp4", b_frames=5, gop=60, options=_X264_PYRAMID),
    _file("open_gop.mp4", b_frames=3, gop=15, options=_OPEN),
    _file("one_gop.mp4", count=120, gop=250),
    _file("one_gop_b.mp4", count=120, gop=250, b_frames=3),
    _file("all_intra.mp4", gop=1),
    _file("ends_in_b.mp4", count=59, b_frames=2, gop=30, options={"b_strategy": "0"}),
    _file("hevc.mp4", codec="libx265", b_frames=3, gop=20, options=_X265_CLOSED),
    _file(
        "hevc_open_gop.mp4",
        codec="libx265",
        b_frames=4,
        gop=15,
        options=_X265_OPEN,
    ),
    _file("mpeg4.mp4", codec="mpeg4"),
    _file("mpeg4_b.mp4", codec="mpeg4", b_frames=2),
    _file("mpeg2_b.mp4", codec="mpeg2video", b_frames=2),
    _file("vp9.mp4", codec="libvpx-vp9"),
    _file("av1.mp4", codec="libsvtav1", size=(64, 64), options={"preset": "12"}, usable=PYAV),
    _file("late.mp4", edit=edits.shift(130)),
    _file("late_b.mp4", b_frames=2, edit=edits.shift(131)),
    _file("cut_at_key.mp4", edit=edits.shift(-12), shown=range(12, COUNT), usable=PYAV),
    _file("cut_in_gop.mp4", edit=edits.shift(-17), shown=range(17, COUNT), usable=PYAV),
    _file(
        "cut_in_gop_b.mp4", b_frames=2, edit=edits.shift(-17), shown=range(17, COUNT), usable=PYAV
    ),
    _file("no_edit_list_b.mp4", b_frames=2, container={"use_editlist": "0"}),
    _file("edit_end.mp4", then=edits.edit_list((1600, 0, 1)), shown=range(40), usable=NONE),
    _file(
        "edit_two_parts.mp4",
        then=edits.edit_list((800, 0, 1), (800, 40 * 512, 1)),
        shown=None,
        usable=NONE,
    ),
    _file(
        "edit_swapped.mp4",
        gop=10,
        then=edits.edit_list((800, 40 * 512, 1), (800, 0, 1)),
        shown=None,
        usable=NONE,
    ),
    _file(
        "edit_repeated.mp4",
        gop=10,
        then=edits.edit_list((800, 0, 1), (800, 0, 1)),
        shown=None,
        usable=NONE,
    ),
    _file(
        "edit_pause.mp4",
        then=edits.edit_list((400, 0, 1), (1000, -1, 1), (2000, 5120, 1)),
        shown=None,
        usable=NONE,
    ),
    _file("edit_speed.mp4", then=edits.edit_list((1200, 0, 2)), shown=None, usable=NONE),
    _file("variable_rate.mp4", times=_irregular(COUNT)),
    _file("variable_rate_b.mp4", times=_irregular(COUNT), b_frames=3),
    _file("fast.mp4", edit=edits.faster(3000)),
    _file("slow.mp4", edit=edits.faster(1)),
    _file("gap_in_time.mp4", edit=edits.jump(30, 10_000)),
    _file("same_time.mp4", edit=edits.same_time(31), b_frames=2, shown=None, usable=NONE),
    _file("lost_b.mp4", b_frames=2, gop=30, edit=edits.without(14), shown=None, usable=NONE),
    _file("front_index.mp4", container={"movflags": "faststart"}, b_frames=2),
    _file("fragments.mp4", container={"movflags": _FRAGMENTS}),
    _file("fragments_b.mp4", container={"movflags": _FRAGMENTS}, b_frames=2),
    _file("fragment_a_frame.mp4", container={"movflags": "frag_every_frame+empty_moov"}),
    _file("fragments_indexed.mp4", container={"movflags": f"{_FRAGMENTS}+global_sidx"}, b_frames=2),
    _file("one_frame.mp4", count=1),
    _file("two_frames.mp4", count=2),
    _file("two_frames_b.mp4", count=2, b_frames=2),
    _file("three_frames_b.mp4", count=3, b_frames=2),
    _file("all_flagged_key.mp4", edit=edits.flag_all_as_key, gop=30),
    _file("one_flagged_key.mp4", edit=edits.flag_some_as_key, gop=30, count=120),
    _file(
        "false_key_b.mp4",
        edit=edits.flag_some_as_key,
        b_frames=1,
        count=200,
        size=(96, 128),
        alone=(103, 105),
    ),
    _file("one_known_key.mp4", edit=edits.flag_first_as_key),
    _file("intra_refresh.mp4", gop=12, count=120, options={"intra-refresh": "1"}),
    _file("no_first_key.mp4", edit=edits.drop(5), b_frames=2, shown=range(12, COUNT), usable=NONE),
    _file("no_known_key.mp4", edit=edits.flag_none_as_key, usable=NONE),
    _file(
        "cut_open_gop.mp4",
        b_frames=3,
        gop=15,
        options=_OPEN,
        edit=edits.drop_first_group,
        shown=None,
        usable=NONE,
    ),
    _file(
        "cut_open_gop_hevc.mp4",
        codec="libx265",
        b_frames=4,
        gop=15,
        options=_X265_OPEN,
        edit=edits.drop_first_group,
        shown=None,
        usable=NONE,
    ),
    _file("negative_offsets.mp4", b_frames=2, container={"movflags": "negative_cts_offsets"}),
    _file(
        "fragments_late.mp4",
        b_frames=2,
        container={"movflags": "frag_keyframe+delay_moov"},
        edit=edits.shift(-17),
        shown=None,
        usable=NONE,
    ),
    _file("cmaf.mp4", b_frames=2, container={"movflags": "cmaf+frag_keyframe"}),
    _file("shown_as_stored.mp4", b_frames=2, edit=edits.shown_as_stored, shown=None, usable=NONE),
    _file(
        "shown_as_stored_mpeg4.mp4",
        codec="mpeg4",
        b_frames=2,
        edit=edits.shown_as_stored,
        shown=None,
        usable=NONE,
    ),
    _copied("packed.mp4", codec="mpeg4", b_frames=1, edit=edits.pack_b_frames),
    _copied("copied_b.mp4", codec="mpeg4", b_frames=2),
    _copied("copied_h264_b.mp4", b_frames=2),
    _file("not_coded.mp4", codec="mpeg4", edit=edits.repeat_by_nothing, shown=None, usable=NONE),
    _file("small.mp4", size=(16, 32), b_frames=2),
    _file("-per%03d cent #1.mp4", b_frames=2),
    _file("colon: comma, été 漢字.mp4", b_frames=2),
    _file("10_bit.mp4", pix_fmt="yuv420p10le", b_frames=2),
    _file("422.mp4", pix_fmt="yuv422p"),
    _file("444.mp4", pix_fmt="yuv444p", b_frames=2),
    _file("gray.mp4", pix_fmt="gray"),
    _file("rgb.mp4", codec="libx264rgb", pix_fmt="rgb24", usable=NONE),
    _file("full_range.mp4", pix_fmt=_FULL),
    _file("odd_444.mp4", size=(51, 67), pix_fmt="yuv444p"),
    _file("odd_crop.mp4", size=(50, 70), b_frames=2),
    _file("interlaced.mp4", options={"flags": "+ildct+ilme", "x264-params": "tff=1"}, b_frames=2),
    _file("wide_pixels.mp4", setup=edits.widen),
    _file("sound_longer.mp4", sound=6.0),
    _file("sound_shorter.mp4", sound=0.5),
    _file("rotated_90.mp4", turned=1, rotation=90),
    _file("rotated_180.mp4", turned=2, rotation=180),
    _file("rotated_270.mp4", turned=3, rotation=270, b_frames=2),
    _file("rotated_90_odd.mov", size=(50, 70), turned=1, rotation=90),
]

MOV = [
    _file("plain.mov", b_frames=2),
    _file("mjpeg.mov", codec="mjpeg", pix_fmt=_FULL),
    _file("prores.mov", codec="prores_ks", pix_fmt="yuv422p10le", usable=NONE),
    _file("mirrored.mov", mirrored=True, setup=edits.mirror, usable=NONE),
    _file("tilted.mov", setup=edits.tilt, shown=None, usable=NONE),
    _file("rotated_in_header.mov", turned=1, then=edits.turn_in_header(0, -1, 1, 0)),
    _file("h263.3gp", codec="h263", size=(96, 128)),
]

MATROSKA = [
    _file("plain.mkv"),
    _file("b_frames.mkv", b_frames=3, options={"b_strategy": "0"}),
    _file("open_gop.mkv", b_frames=3, gop=15, options=_OPEN),
    _file("hevc.mkv", codec="libx265", b_frames=3, gop=20, options=_X265_CLOSED),
    _file("mpeg4_b.mkv", codec="mpeg4", b_frames=2),
    _file("msmpeg4.mkv", codec="msmpeg4", setup=edits.coarse),
    _file("mjpeg.mkv", codec="mjpeg", pix_fmt=_FULL),
    _file("mpeg2_b.mkv", codec="mpeg2video", b_frames=2),
    _file("ffv1.mkv", codec="ffv1", usable=NONE),
    _file("av1.mkv", codec="libsvtav1", size=(64, 64), options={"preset": "12"}, usable=PYAV),
    _file("no_cues.mkv", container={"live": "1"}, b_frames=2, usable=PYAV),
    _file("late.mkv", edit=edits.shift(90_000), b_frames=2),
    _file("same_times.mkv", edit=edits.faster(3000), usable=NONE),
    _file("same_times_b.mkv", edit=edits.faster(3000), b_frames=2, usable=NONE),
    _file("variable_rate.mkv", times=_irregular(COUNT), b_frames=2),
    _file("all_flagged_key.mkv", edit=edits.flag_all_as_key, gop=30, b_frames=2),
    _file("intra_refresh.mkv", gop=12, count=120, options={"intra-refresh": "1"}),
    _file("no_first_key.mkv", edit=edits.drop(5), b_frames=2, shown=range(12, COUNT), usable=NONE),
    _file("rotated_90.mkv", turned=1, rotation=90),
    _file("sound_longer.mkv", sound=6.0, b_frames=2),
    _file("no_known_key.mkv", edit=edits.flag_none_as_key, usable=NONE),
    _file(
        "cut_open_gop.mkv",
        b_frames=3,
        gop=15,
        options=_OPEN,
        edit=edits.drop_first_group,
        shown=None,
        usable=NONE,
    ),
    _file("shown_as_stored.mkv", b_frames=2, edit=edits.shown_as_stored, shown=None, usable=NONE),
    _copied("packed.mkv", codec="mpeg4", b_frames=1, edit=edits.pack_b_frames),
    _copied("copied_b.mkv", codec="mpeg4", b_frames=2),
    _file("not_coded.mkv", codec="mpeg4", edit=edits.repeat_by_nothing, shown=None, usable=NONE),
    _file(
        "larger.mkv", count=30, edit=edits.append("libx264", 96, 128), shown=range(60), usable=NONE
    ),
    _file(
        "other_coder.mkv",
        count=30,
        edit=edits.append("libx264", HEIGHT, WIDTH, b_frames=2),
        shown=range(60),
        usable=NONE,
    ),
]

WEBM = [
    _file("vp8.webm", codec="libvpx", gop=30),
    _file("vp8_hidden.webm", codec="libvpx", gop=60, options=edits.HIDDEN_FRAMES),
    _file("vp9.webm", codec="libvpx-vp9", gop=30),
    _file("vp9_hidden.webm", codec="libvpx-vp9", gop=60, options=edits.HIDDEN_FRAMES),
    _file("vp9_444.webm", codec="libvpx-vp9", pix_fmt="yuv444p"),
    _file("vp9_odd.webm", codec="libvpx-vp9", size=(51, 67)),
    _file("vp8_odd.webm", codec="libvpx", size=(51, 67)),
    _file("vp9_alpha.webm", codec="libvpx-vp9", pix_fmt="yuva420p"),
    _file("av1.webm", codec="libsvtav1", size=(64, 64), options={"preset": "12"}, usable=PYAV),
    _file(
        "av1_one_gop.webm",
        codec="libsvtav1",
        size=(64, 64),
        gop=250,
        count=120,
        options={"preset": "10"},
        usable=PYAV,
    ),
    _file(
        "smaller.webm",
        codec="libvpx",
        count=30,
        edit=edits.append("libvpx", 24, 32),
        shown=range(60),
        usable=NONE,
    ),
    _file("sound_longer.webm", codec="libvpx", sound=6.0),
]

MPEG = [
    _file("h264_b.ts", b_frames=2, usable=PYAV),
    _file("h264.ts"),
    _file("h264_open_gop.ts", b_frames=3, gop=15, options=_OPEN, usable=PYAV),
    _file(
        "cut_open_gop.ts",
        b_frames=3,
        gop=15,
        options=_OPEN,
        edit=edits.drop_first_group,
        shown=None,
        usable=NONE,
    ),
    _file("hevc.ts", codec="libx265", b_frames=3, gop=20, options=_X265_CLOSED, usable=PYAV),
    _file("mpeg2_b.ts", codec="mpeg2video", b_frames=2, usable=PYAV),
    _file(
        "late.ts",
        edit=edits.shift(25 * 3600),
        b_frames=2,
        container={"mpegts_copyts": "1"},
        usable=PYAV,
    ),
    _file(
        "wraps.ts",
        edit=edits.shift(25 * 95443 - 10),
        b_frames=2,
        container={"mpegts_copyts": "1"},
        usable=PYAV,
    ),
    _file(
        "wraps_late.ts",
        edit=edits.shift(25 * 95442),
        b_frames=2,
        container={"mpegts_copyts": "1"},
        usable=PYAV,
    ),
    _file("jump_ahead.ts", edit=edits.jump(30, 25 * 600), b_frames=0, usable=NONE),
    _joined("joined.ts"),
    _joined("joined_b.ts", b_frames=2),
    _joined("joined_b.mpg", codec="mpeg2video", b_frames=2),
    _file("no_first_key.ts", edit=edits.drop(5), b_frames=2, shown=range(12, COUNT), usable=NONE),
    _file("intra_refresh.ts", gop=12, count=120, options={"intra-refresh": "1"}, usable=PYAV),
    _file(
        "turned_in_stream.ts",
        turned=1,
        filters="h264_metadata=display_orientation=insert:rotate=90",
        usable=NONE,
    ),
    _file("sound_longer.ts", sound=6.0, b_frames=2, usable=PYAV),
    _file(
        "larger.ts", count=30, edit=edits.append("libx264", 96, 128), shown=range(60), usable=NONE
    ),
    _file("one_frame.ts", count=1, usable=PYAV),
    _file(
        "interlaced.ts",
        codec="mpeg2video",
        options={"flags": "+ildct+ilme"},
        b_frames=2,
        usable=PYAV,
    ),
    _file(
        "blu_ray.m2ts", b_frames=2, container={"mpegts_m2ts_mode": "1"}, form="mpegts", usable=PYAV
    ),
    _file("mpeg1.mpg", codec="mpeg1video"),
    _file("mpeg1_b.mpg", codec="mpeg1video", b_frames=2),
    _file("mpeg2_b.mpg", codec="mpeg2video", b_frames=2),
    _file("mpeg2_b.vob", codec="mpeg2video", b_frames=2),
    _file("sound_longer.mpg", codec="mpeg2video", sound=6.0, b_frames=2),
    _file("bare_b.m2v", codec="mpeg2video", b_frames=2, usable=NONE),
    _file("bare_b.h264", b_frames=2, usable=NONE),
]

AVI = [
    _file("mpeg4.avi", codec="mpeg4"),
    _file("mpeg4_one_gop.avi", codec="mpeg4", gop=250, count=120),
    _file("mpeg4_b1.avi", codec="mpeg4", b_frames=1),
    _file("mpeg4_b2.avi", codec="mpeg4", b_frames=2),
    _file("mpeg4_b2_gop_100.avi", codec="mpeg4", b_frames=2, gop=100, count=240),
    _file("packed.avi", codec="mpeg4", b_frames=1, edit=edits.pack_b_frames),
    _file(
        "packed_one_gop.avi",
        codec="mpeg4",
        b_frames=1,
        gop=250,
        count=120,
        edit=edits.pack_b_frames,
    ),
    _file("not_coded.avi", codec="mpeg4", edit=edits.repeat_by_nothing, shown=None, usable=NONE),
    _file("mpeg2.avi", codec="mpeg2video", count=5, gop=250),
    _file("mpeg2_two_frames.avi", codec="mpeg2video", count=2, gop=1, b_frames=1),
    _file("h264_intra_slots.avi", count=5, gop=1, edit=edits.jump(2, 20)),
    _file("h264.avi"),
    _file("h264_b.avi", b_frames=2),
    _file("h264_pyramid.avi", b_frames=5, gop=60, options=_X264_PYRAMID),
    _file("msmpeg4.avi", codec="msmpeg4", setup=edits.coarse),
    _file("msmpeg4v2.avi", codec="msmpeg4v2", setup=edits.coarse),
    _file("mjpeg.avi", codec="mjpeg", pix_fmt=_FULL),
    _file("wmv2.avi", codec="wmv2", usable=NONE),
    _file("bare.avi", codec="rawvideo", usable=NONE),
    _file("huffyuv.avi", codec="huffyuv", pix_fmt="yuv422p", usable=NONE),
    _file("skipped_slots.avi", codec="mpeg4", times=_irregular(COUNT)),
    _file("skipped_slots_b.avi", codec="mpeg4", times=_irregular(COUNT), b_frames=2),
    _file("h264_skipped_slots.avi", times=_irregular(COUNT)),
    _file("no_index.avi", codec="mpeg4", then=edits.without_index),
    _file("no_index_b.avi", codec="mpeg4", b_frames=2, then=edits.without_index),
    _file("all_flagged_key.avi", codec="mpeg4", gop=30, then=edits.index_says_key),
    _file("no_first_key.avi", codec="mpeg4", edit=edits.drop(5), shown=None, usable=NONE),
    _file("one_frame.avi", codec="mpeg4", count=1),
    _file("two_frames_b.avi", codec="mpeg4", count=2, b_frames=2),
    _file("odd.avi", codec="mpeg4", size=(51, 67)),
    _file("sound_longer.avi", codec="mpeg4", sound=6.0),
    _file(
        "larger.avi",
        codec="mpeg4",
        count=30,
        edit=edits.append("mpeg4", 96, 128),
        shown=range(60),
        usable=NONE,
    ),
]

OTHERS = [
    _file("flv1.flv", codec="flv"),
    _file("h264_b.flv", b_frames=2),
    _file("wmv1.wmv", codec="wmv1"),
    _file("wmv2.wmv", codec="wmv2"),
    _file("msmpeg4.asf", codec="msmpeg4", setup=edits.coarse),
    _file("vp8.ogv", codec="libvpx", usable=NONE),
    _file("plain.mxf", codec="mpeg2video", usable=NONE),
    _file("plain.nut", b_frames=2, usable=NONE),
    _file("animated.gif", codec="gif", pix_fmt="rgb8", usable=NONE),
    _file("animated.apng", codec="apng", pix_fmt="rgb24", usable=NONE),
    _file("wrong_ending.avi", form="mp4"),
    _file("wrong_ending_b.mp4", codec="mpeg4", form="avi", b_frames=2),
]


def _streams(name: str, make: Callable[..., object], shown: range | None, **settings: Any) -> Case:
    return Case(
        name=name,
        make=partial(make, **settings),
        shown=None if shown is None else tuple(shown),
        usable=NONE,
    )


STREAMS = [_streams("chapters.mov", edits.with_chapters, range(COUNT))]
STREAMS += [
    _streams(f"two_{order}.{ending}", edits.two_videos, None, large_second=order == "rising")
    for ending in ("mp4", "mkv")
    for order in ("rising", "falling")
]
STREAMS += [
    _streams(
        f"cover_{place}.{ending}", edits.with_cover, range(COUNT), cover_first=place == "first"
    )
    for ending in ("mp4", "mkv")
    for place in ("first", "last")
]

CASES = [*MP4, *MOV, *MATROSKA, *WEBM, *MPEG, *AVI, *OTHERS, *STREAMS]
