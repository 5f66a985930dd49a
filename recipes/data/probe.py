"""Looks at one video as closely as training will rely on it: decodes it all and tries access."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.fsio import sha256_file
from recipes.contract import InputError
from recipes.data.decode import CONTAINERS, last_line, read_frames
from recipes.data.demux import LATE_KEY, is_indexed
from recipes.data.probe_access import Film, try_access, words_of
from recipes.data.reel import decoded, demuxed
from recipes.data.scan import Scan, UnusableError

VERSION = 3  # raise it when the same file may be described in another way

# decord 0.6.0 carries FFmpeg 4.1
_NOT_IN_DECORD = frozenset({"av1"})
_NOT_FOR_DECORD = frozenset({"mpegvideo", "ogg"})
_AT_TIMES_NOT_FOR_DECORD = frozenset({"mpeg", "asf", "flv"})  # it depends on length and codec

_MEND = "data.prepare can re-encode it"
_ANOTHER = ", or set data.decoder: pyav"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was found. `verdict` is `random`, `sequential` or `reject`, the latter with a reason.

    Attributes:
        verdict: how the decoder can read the file.
        reason: why not at random.
        mendable: re-encoding it would make the verdict `random`.
        frames: that can be decoded, in presentation order.
        fps: average.
        duration: seconds.
        width: of the upright picture.
        height: of the upright picture.
        rotation: degrees clockwise from the stored to the upright picture.
        codec: FFmpeg's name.
        container: FFmpeg's name.
        pix_fmt: FFmpeg's name; "" in mode `demux`.
        gop: largest distance of key frames.
        b_frames: frames are stored in another order than they are shown.
        edit_list: the container plays its frames in parts, or leaves some out.
        checked: `full` or `demux`.
        sha256: of the file; "" in mode `demux` and of files that cannot be opened.
        bytes: of the file.
        mtime_ns: of the file.
    """

    verdict: str
    reason: str = ""
    mendable: bool = False
    frames: int = 0
    fps: float = 0.0
    duration: float = 0.0
    width: int = 0
    height: int = 0
    rotation: int = 0
    codec: str = ""
    container: str = ""
    pix_fmt: str = ""
    gop: int = 0
    b_frames: bool = False
    edit_list: bool = False
    checked: str = ""
    sha256: str = ""
    bytes: int = 0
    mtime_ns: int = 0


def reject(reason: str) -> Probe:
    """The verdict on a video that cannot be used."""
    return Probe(verdict="reject", reason=" ".join(reason.split()))


def probe(path: Path, decoder: str = "decord", mode: str = "full") -> Probe:
    """Look at a file for the decoder that will read it.

    `full` decodes it once in order, with damage as an error, and then tries whether the decoder
    finds the same frames; `demux` looks at the packets only, and calls `random` only what leaves no
    doubt.

    Raises:
        ConfigurationError: the decoder is not installed.
    """
    try:
        before = path.stat()
        found = _look(path, decoder, mode)
        after = path.stat()
    except FileNotFoundError:
        return reject("missing")
    except OSError as error:
        return reject(f"cannot be read ({error.strerror or error})")
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        found = reject("changed while it was looked at; index again when it is complete")
    return replace(found, checked=mode, bytes=before.st_size, mtime_ns=before.st_mtime_ns)


def _look(path: Path, decoder: str, mode: str) -> Probe:
    import av

    try:
        return _decoded(path, decoder) if mode == "full" else _demuxed(path, decoder)
    except UnusableError as error:
        return reject(str(error))
    except av.ArgumentError:
        return reject(f"is not a video of a known container ({CONTAINERS}); convert it")
    except av.FFmpegError as error:
        log: Any = error.log  # level, part of FFmpeg, message
        said = log[2].strip() if log else error.strerror
        return reject(f"is damaged ({said}); download or copy it again")
    except (OSError, ValueError, IndexError, InputError) as error:
        return reject(f"is damaged ({last_line(error)}); download or copy it again")


def _decoded(path: Path, decoder: str) -> Probe:
    with decoded(path) as reel:
        verdict, reason = try_access(Film(reel=reel, decoder=decoder))
    if verdict == "reject":
        reason = f"{reason}; {_MEND}{'' if decoder == 'pyav' else _ANOTHER}"
    found = _described(reel.scan, verdict, reason)
    return replace(found, sha256=sha256_file(path))


def _demuxed(path: Path, decoder: str) -> Probe:
    scan = demuxed(path)
    trouble = (_known_trouble(scan) or _cannot_begin(path, scan)) if decoder == "decord" else ""
    if trouble:
        return _described(scan, "reject", f"decord {trouble}; {_MEND}{_ANOTHER}")
    if scan.order.doubt == LATE_KEY:
        return _described(scan, "reject", f"{LATE_KEY}; {_MEND}, or index again in mode full")
    if doubt := scan.order.doubt or _demux_doubt(scan):
        reason = f"read from its first frame each time: {doubt}; mode full tries more"
        return _described(scan, "sequential", reason)
    return _described(scan, "random", "")


def _known_trouble(scan: Scan) -> str:
    """What makes decord 0.6.0 fail or show other frames even when it reads in order."""
    containers = scan.container.split(",")
    if scan.codec in _NOT_IN_DECORD:
        return f"has no {scan.codec}"
    reordered = scan.order.b_frames or scan.reorders
    if "mpegts" in containers and (reordered or scan.order.frames == 1):
        return "loses the first frames of MPEG-TS with B-frames"
    if not _NOT_FOR_DECORD.isdisjoint(containers):
        return f"cannot open such a container ({scan.container})"
    if "matroska" in containers and not (scan.has_index and scan.has_duration):
        return "fails without an index and a duration"
    if scan.films > 1:
        return "may take the other film in the file"
    if scan.layout.edit_list:
        return "does not follow its edit list"
    return ""


def _cannot_begin(path: Path, scan: Scan) -> str:
    """Why decord does not open a file or read its first frame, tried where nothing else tells."""
    if _AT_TIMES_NOT_FOR_DECORD.isdisjoint(scan.container.split(",")):
        return ""
    try:
        read_frames(path, [0], verdict="sequential", decoder="decord")
    except InputError as error:
        return f"fails ({words_of(error, path)})"
    return ""


def _demux_doubt(scan: Scan) -> str:
    """Why random access cannot be promised without trying it, or ""."""
    if not is_indexed(scan.container):
        return "its container has no index of presentation times"
    if scan.layout.all_keys and scan.order.gop > 1:
        return "its container names no key frames"
    if scan.packets.dependent or scan.order.early or scan.packets.hidden:
        return "its key frames do not start afresh"
    if scan.reorders and not scan.order.b_frames:
        return "its time stamps do not tell the order of its B-frames"
    return "it has an edit list" if scan.layout.edit_list else ""


def _described(scan: Scan, verdict: str, reason: str) -> Probe:
    order, upright = scan.order, scan.rotation % 180 == 0
    seconds, rate = scan.duration_and_rate()
    return Probe(
        verdict=verdict,
        reason=" ".join(reason.split()),
        mendable=verdict != "random",
        frames=order.frames,
        fps=rate,
        duration=seconds,
        width=scan.width if upright else scan.height,
        height=scan.height if upright else scan.width,
        rotation=scan.rotation,
        codec=scan.codec,
        container=scan.container,
        pix_fmt=scan.pix_fmt,
        gop=order.gop,
        b_frames=order.b_frames or scan.b_frames,
        edit_list=scan.layout.edit_list or order.left_out > 0,
    )
