"""Which part of the picture a clip shows, and reading just that part at its final size."""

from __future__ import annotations

from pathlib import Path

from recipes.contract import InputError
from recipes.data.boxes import Box, centre_box, random_box
from recipes.data.decode import Frames, read_frames
from recipes.data.samplers import Indices
from recipes.data.table import VideoTable

__all__ = ["Box", "centre_box", "random_box", "read_box", "read_part"]

_CLOCK_SLACK_NS = 2_000_000_000  # file systems keep time stamps with different precision


def read_box(table: VideoTable, row: int, indices: Indices, box: Box, size: int) -> Frames:
    """Frames of one video, cut to `box` and scaled to `size` x `size` pixels.

    Returns:
        (F, size, size, 3) RGB.

    Raises:
        InputError: as `read_part`.
    """
    return read_part(table, row, indices, box, (size, size))


def read_part(
    table: VideoTable, row: int, indices: Indices, box: Box, shape: tuple[int, int]
) -> Frames:
    """Frames of one video, cut to `box` and scaled to the height and width `shape`.

    The decoder scales the whole picture so that the box comes out at its final size; cutting is
    then a view and pixels are interpolated once.

    Args:
        table: what the index knows of the video.
        row: which one.
        indices: (F,) frames of the recording, in any order; the video is opened once.
        box: in pixels of the upright picture.
        shape: height and width of the result.

    Returns:
        (F, *shape, 3) RGB.

    Raises:
        InputError: the file is gone, changed since it was indexed, or cannot be decoded.
    """
    (part_height, part_width), height = shape, int(table.heights[row])
    width = int(table.widths[row])
    full_height = max(part_height, round(height * part_height / box.height))
    full_width = max(part_width, round(width * part_width / box.width))
    frames = read_frames(
        _unchanged(table, row),
        indices if table.starts is None else indices + table.starts[row],
        height=full_height,
        width=full_width,
        verdict=table.verdicts[row],
        gop=int(table.gops[row]),
        decoder=table.decoder,
        rotation=int(table.rotations[row]),
    )
    top = min(round(box.top * full_height / height), full_height - part_height)
    left = min(round(box.left * full_width / width), full_width - part_width)
    return frames[:, top : top + part_height, left : left + part_width]


def _unchanged(table: VideoTable, row: int) -> Path:
    path = table.file(row)
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    late = abs(found.st_mtime_ns - int(table.mtimes_ns[row])) > _CLOCK_SLACK_NS
    if found.st_size != int(table.bytes[row]) or late:
        raise InputError(
            f"{path}: changed since it was indexed; raise `version` of this data set in the recipe"
        )
    return path
