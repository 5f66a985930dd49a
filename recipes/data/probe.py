"""Looks at one video as closely as training will rely on it: decodes it all and tests access."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.contract import InputError
from recipes.data.decode import read_frames

# What a container and codec may be. FFmpeg also "plays" lists of URLs and scripts; the decoder used
# in training (decord 0.6, FFmpeg 4.1) has no AV1.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegts,mpegvideo,asf,flv,ogg"
CODECS = frozenset(
    {"h264", "hevc", "mpeg4", "vp8", "vp9", "mjpeg", "mpeg1video", "mpeg2video", "theora", "flv1"}
    | {"msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "h263", "h263p", "wmv1", "wmv2", "wmv3", "vc1"}
)

_THUMBNAIL = (16, 32)  # height and width of the pictures compared between the decoders
_TOLERANCE = 1.0  # mean grey levels by which a frame may match another frame better
_REENCODE = "re-encode it, for instance `ffmpeg -i IN -c:v libx264 OUT.mp4`"

Thumbnails = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was found. `verdict` is `random`, `sequential` or `reject`, the latter with a reason.

    `frames` can be decoded, in presentation order; `gop` is the largest distance of key frames.
    """

    verdict: str
    reason: str = ""
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""
    gop: int = 0
    b_frames: bool = False
    bytes: int = 0
    mtime_ns: int = 0


def reject(reason: str) -> Probe:
    """The verdict on a video that cannot be used."""
    return Probe(verdict="reject", reason=" ".join(reason.split()))


def probe(path: Path) -> Probe:
    """Decode a file once in order, then check that the training decoder finds the same frames.

    Damage in the data passes every decoder by default; here it is an error (`err_detect=explode`
    and the corrupt flag). Random access is tested because some files answer with other frames than
    those asked for and say nothing: AVI with B-frames is `sequential` in any case.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return reject("missing")
    except OSError as error:
        return reject(f"cannot be read ({error.strerror or error})")
    return replace(_probe(path), bytes=found.st_size, mtime_ns=found.st_mtime_ns)


def _probe(path: Path) -> Probe:
    import av

    try:
        scan = _decode(path)
    except av.ArgumentError:
        return reject(f"is not a video of a known container ({CONTAINERS})")
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        return reject(f"cannot be decoded ({_last_line(error)})")
    if scan.problem:
        return reject(scan.problem)
    verdict, reason = _access(path, scan)
    return Probe(
        verdict=verdict,
        reason=reason,
        frames=len(scan.thumbnails),
        fps=scan.fps,
        width=scan.width,
        height=scan.height,
        codec=scan.codec,
        gop=scan.gop,
        b_frames=scan.b_frames,
    )


@dataclass
class _Scan:
    """Filled while a file is decoded."""

    container: str
    codec: str
    fps: float
    width: int = 0
    height: int = 0
    gop: int = 0
    b_frames: bool = False
    problem: str = ""
    thumbnails: list[Thumbnails] = field(default_factory=list)


def _decode(path: Path) -> _Scan:
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    with av.open(f"file:{path}", options=options, metadata_errors="replace") as container:
        if not container.streams.video:
            return _Scan("", "", 0.0, problem="has no video stream")
        stream = container.streams.video[0]
        scan = _Scan(
            container.format.name,
            stream.codec_context.codec.canonical_name,
            float(stream.average_rate or 0),
        )
        if scan.codec not in CODECS:
            scan.problem = f"codec {scan.codec} is not supported: {_REENCODE}"
            return scan
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"err_detect": "explode"}
        _look_at_frames(container.decode(stream), scan)
    return scan


def _look_at_frames(frames: Any, scan: _Scan) -> None:
    from av.video.frame import PictureType
    from av.video.reformatter import VideoReformatter

    scaler, (height, width) = VideoReformatter(), _THUMBNAIL
    last_key = number = 0
    for number, frame in enumerate(frames):
        scan.problem = scan.problem or _trouble(frame, scan)
        if scan.problem:
            return
        scan.width, scan.height = frame.width, frame.height
        scan.b_frames = scan.b_frames or frame.pict_type == PictureType.B
        if frame.key_frame:
            scan.gop, last_key = max(scan.gop, number - last_key), number
        small = scaler.reformat(frame, width, height, "rgb24")
        scan.thumbnails.append(np.asarray(small.to_ndarray(), dtype=np.uint8))
    scan.gop = max(scan.gop, number + 1 - last_key)
    if not scan.thumbnails:
        scan.problem = "has no frames"


def _trouble(frame: Any, scan: _Scan) -> str:
    if frame.is_corrupt:
        return f"frame {len(scan.thumbnails)} is damaged"
    if frame.rotation:
        return f"is stored rotated by {frame.rotation} degrees: {_REENCODE}"
    if scan.width and (frame.width, frame.height) != (scan.width, scan.height):
        return f"changes its picture size at frame {len(scan.thumbnails)}"
    return ""


def _access(path: Path, scan: _Scan) -> tuple[str, str]:
    """Verdict and reason from a few frames, read as training would read them."""
    count = len(scan.thumbnails)
    picks = [count - 1, count // 7, count // 2]
    avi_with_b_frames = "avi" in scan.container and scan.b_frames
    try:
        if not avi_with_b_frames and _matches(path, scan, picks, "random"):
            return "random", ""
        if _matches(path, scan, picks, "sequential"):
            return "sequential", "random access is not reliable: read from the first frame"
    except InputError as error:
        return "reject", f"the training decoder fails ({_last_line(error)}): {_REENCODE}"
    return "reject", f"decoders disagree which frames it has (an edit list?): {_REENCODE}"


def _matches(path: Path, scan: _Scan, picks: list[int], verdict: str) -> bool:
    """Whether each frame read resembles the frame of its number at least as well as any other."""
    truth = np.stack(scan.thumbnails).astype(np.int16)
    height, width = _THUMBNAIL
    for part in (picks, picks[-1:]):
        read = read_frames(path, part, height=height, width=width, verdict=verdict)
        for number, picture in zip(part, read.astype(np.int16), strict=True):
            distances = np.abs(truth - picture).mean(axis=(1, 2, 3))
            if distances[number] > distances.min() + _TOLERANCE:
                return False
    return True


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
