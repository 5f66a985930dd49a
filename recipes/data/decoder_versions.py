"""Which decoders can be used here, and the FFmpeg each of them carries."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

UNKNOWN = "unknown"

# First release of each branch without CVE-2026-8461 (a heap overflow by a crafted AVI, MKV or MOV,
# disclosed in June 2026); the list is that of the release notes of Mastodon 4.6.2. Other branches
# got no fix.
_SAFE = {5: (5, 1, 10), 6: (6, 1, 6), 7: (7, 1, 5)}
_SAFE_ELSE = (8, 1, 2)

ADVICE = (
    "lacks fixes for published vulnerabilities: let it read only videos you trust, or prepare them "
    "(`data.prepare: {files: all}`)"
)

_DECORD_PACKAGES = ("decord", "eva-decord", "decord2")  # all of them install a module `decord`


@dataclass(frozen=True, kw_only=True)
class DecoderVersion:
    """A decoder that is installed.

    Attributes:
        version: of the Python package.
        ffmpeg: version of its FFmpeg, or `unknown`.
        known_old: that FFmpeg lacks fixes for published vulnerabilities.
    """

    version: str
    ffmpeg: str
    known_old: bool


def decoder_versions() -> dict[str, DecoderVersion]:
    """Versions of decord, pyav and torchcodec, as far as they are installed.

    torchcodec is imported for it, which takes seconds.
    """
    found = {"decord": _decord(), "pyav": _pyav(), "torchcodec": _torchcodec()}
    return {
        name: DecoderVersion(version=of[0], ffmpeg=of[1], known_old=known_old(of[1]))
        for name, of in found.items()
        if of is not None
    }


def known_old(ffmpeg: str) -> bool:
    """Whether an FFmpeg is known to lack fixes, by its version.

    A suffix marks the package of a distribution, which is repaired under the old number.
    """
    numbers = re.fullmatch(r"n?(\d+)\.(\d+)(?:\.(\d+))?", ffmpeg)
    if numbers is None:
        return False
    version = tuple(int(number or 0) for number in numbers.groups())
    return version < _SAFE.get(version[0], _SAFE_ELSE)


def _decord() -> tuple[str, str] | None:
    spec = importlib.util.find_spec("decord")
    if spec is None or spec.origin is None:
        return None
    version = next(filter(None, map(_package_version, _DECORD_PACKAGES)), UNKNOWN)
    packages = Path(spec.origin).parents[1]
    for library in sorted(packages.glob("*decord*.libs/libavutil*.so*")):
        return version, _version_of(library)
    return version, UNKNOWN


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version_of(libavutil: Path) -> str:
    try:
        call = ctypes.CDLL(str(libavutil)).av_version_info
    except (OSError, AttributeError):
        return UNKNOWN
    call.restype = ctypes.c_char_p
    return str(call().decode())


def _pyav() -> tuple[str, str]:
    import av

    return av.__version__, str(av.ffmpeg_version_info)


def _torchcodec() -> tuple[str, str] | None:
    if importlib.util.find_spec("torchcodec") is None:
        return None
    try:
        core = importlib.import_module("torchcodec._core")
    except (ImportError, OSError, RuntimeError):
        return None
    versions = core.get_ffmpeg_library_versions()
    return importlib.metadata.version("torchcodec"), str(versions.get("ffmpeg_version", UNKNOWN))
