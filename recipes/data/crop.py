"""Which part of the picture a clip shows, and reading just that part at its final size."""

from __future__ import annotations

from recipes.contract import InputError
from recipes.data.boxes import Box, centre_box, random_box
from recipes.data.decode import Frames, read_frames
from recipes.data.samplers import Indices
from recipes.data.table import VideoTable

__all__ = ["Box", "centre_box", "random_box", "read_box"]

_CLOCK_SLACK_NS = 2_000_000_000  # file systems keep time stamps with different precision


def read_box(table: VideoTable, row: int, indices: Indices, box: Box, size: int) -> Frames:
    """Frames of one video, cut to `box` and scaled to `size` x `size` pixels.

    The decoder scales the whole picture so that the box comes out at the final size; cutting is
    then a view and pixels are interpolated once.

    Returns:
        (F, size, size, 3) RGB.

    Raises:
        InputError: the file is gone, changed since it was indexed, or cannot be decoded.
    """
    path = table.root / table.paths[row]
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    late = abs(found.st_mtime_ns - int(table.mtimes_ns[row])) > _CLOCK_SLACK_NS
    if found.st_size != int(table.bytes[row]) or late:
        raise InputError(f"{path}: changed since it was indexed")
    height, width = int(table.heights[row]), int(table.widths[row])
    full_height = max(size, round(height * size / box.height))
    full_width = max(size, round(width * size / box.width))
    frames = read_frames(
        path,
        indices,
        height=full_height,
        width=full_width,
        verdict=table.verdicts[row],
        gop=int(table.gops[row]),
    )
    top = min(round(box.top * full_height / height), full_height - size)
    left = min(round(box.left * full_width / width), full_width - size)
    return frames[:, top : top + size, left : left + size]
