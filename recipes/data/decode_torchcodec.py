"""Reads frames with torchcodec, which is optional: it decodes with the FFmpeg of the machine."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from recipes.contract import ConfigurationError, InputError
from recipes.data.decode import Frames, Request, last_line


def read(request: Request) -> Frames:
    """Upright frames, (F, H, W, 3): torchcodec (from 0.11) turns pictures by itself.

    It has no reading without jumps. A sequential read asks for every frame in turn, which jumps
    only at key frames; the index refuses files for which that is not exact.

    Raises:
        InputError: the file cannot be opened or read, or has no such frame.
        ConfigurationError: torchcodec cannot be imported.
    """
    decoders, transforms = _import()
    try:
        decoder = decoders.VideoDecoder(
            str(request.path),
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            transforms=_resizing(decoders, transforms, request),
        )
        count, last = len(decoder), int(request.numbers[-1])
        if last >= count:
            raise InputError(f"{request.path}: has {count} frames, frame {last} was asked for")
        if request.sequential:
            return _read_in_order(decoder, request)
        frames: Frames = decoder.get_frames_at(request.numbers.tolist()).data.numpy()
        return frames
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        reason = last_line(error)
        raise InputError(f"{request.path}: cannot be decoded by torchcodec ({reason})") from error


def _import() -> tuple[Any, Any]:
    try:
        decoders = importlib.import_module("torchcodec.decoders")
        return decoders, importlib.import_module("torchcodec.transforms")
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigurationError(
            f"decoder torchcodec: cannot be imported ({last_line(error)}); install a version that"
            " fits torch and FFmpeg 4 to 8, or set decoder to pyav"
        ) from error


def _resizing(decoders: Any, transforms: Any, request: Request) -> list[Any]:
    target = request.target
    if target.height is None or target.width is None:
        found = decoders.VideoDecoder(str(request.path), num_ffmpeg_threads=1).metadata
        return [transforms.Resize(target.size(found.height, found.width))]
    return [transforms.Resize((target.height, target.width))]


def _read_in_order(decoder: Any, request: Request) -> Frames:
    wanted, kept = set(request.numbers.tolist()), []
    for number in range(int(request.numbers[-1]) + 1):
        frame = decoder.get_frame_at(number)
        if number in wanted:
            kept.append(frame.data.numpy())
    return np.stack(kept)
