"""Which rows of an index are prepared, and what the table says of them afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.contract import InputError
from recipes.data.config import PrepareOptions
from recipes.stages.prepare.one import Done

if TYPE_CHECKING:
    import pandas as pd

_CONTAINER = "mov,mp4,m4a,3gp,3g2,mj2"  # what FFmpeg calls MP4
_SAME_FOR_ALL: Mapping[str, Any] = {
    "rotation": 0,
    "codec": "h264",
    "container": _CONTAINER,
    "pix_fmt": "yuv420p",
    "b_frames": False,
    "edit_list": False,
    "checked": "full",
    "verdict": "random",
    "reason": "",
    "mendable": False,
    "prepared": True,
}
_UNPREPARED: Mapping[str, Any] = {
    "prepared": False,
    "source_path": "",
    "source_sha256": "",
    "source_bytes": 0,
}


def read_table(path: Path) -> pd.DataFrame:
    """The rows of an index or of a part.

    Raises:
        InputError: it is not readable, or was written before there was a preparation.
    """
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable table of videos ({error})") from error
    if lacking := {"checked", "mendable", "sha256"} - set(table.columns):
        lacks = ", ".join(sorted(lacking))
        raise InputError(f"{path}: lacks {lacks}: index the data again: raise data.version")
    return table


def wanted(rows: pd.DataFrame, files: str) -> pd.Series[bool]:
    """The rows to prepare: `all` that can be decoded, or those that are `needed`.

    Needed are files whose random access is not exact, and rejected ones that re-encoding mends.
    """
    mendable = (rows["verdict"] == "reject") & rows["mendable"].astype(bool)
    passing = ("random", "sequential") if files == "all" else ("sequential",)
    return rows["verdict"].isin(passing) | mendable


def target_names(paths: Iterable[str]) -> dict[str, str]:
    """For each path of the whole index the name of its prepared file: ends in .mp4 and is unique.

    Parts of one index agree on the names, because each knows all paths.
    """
    ordered = sorted(set(paths))
    taken = set(ordered)
    names = {}
    for path in ordered:
        name = path
        while not name.endswith(".mp4") or (name != path and name in taken):
            name += ".mp4"
        taken.add(name)
        names[path] = name
    return names


def updated(
    rows: pd.DataFrame, done: Mapping[str, Done], names: Mapping[str, str], options: PrepareOptions
) -> pd.DataFrame:
    """The rows after preparing; those without a task stay as they are, with `prepared` False."""
    import pandas as pd

    records = [
        _after(row, done.get(row["path"]), names, options) for row in rows.to_dict("records")
    ]
    types: dict[Any, Any] = rows.dtypes.to_dict()
    types |= {name: type(value) for name, value in _UNPREPARED.items()}
    return pd.DataFrame(records, columns=[*types]).astype(types)


def _after(
    row: Mapping[Any, Any], done: Done | None, names: Mapping[str, str], options: PrepareOptions
) -> dict[Any, Any]:
    """One row.

    A file that could not be prepared is rejected if it is damaged or was rejected before; one that
    can be read as it is stays, with the reason noted.
    """
    if done is None:
        return {**row, **_UNPREPARED}
    if done.file is None:
        lost = done.damaged or row["verdict"] == "reject"
        return {
            **row,
            **_UNPREPARED,
            "verdict": "reject" if lost else row["verdict"],
            "reason": f"was not prepared: {done.problem}",
            "mendable": False,
        }
    file = done.file
    return {
        **row,
        **_SAME_FOR_ALL,
        "path": names[done.path],
        "frames": file.frames,
        "fps": row["fps"] if row["fps"] > 0 else file.fps,
        "duration": row["duration"] if row["duration"] > 0 else file.frames / file.fps,
        "width": file.width,
        "height": file.height,
        "gop": min(options.gop, file.frames),
        "bytes": file.bytes,
        "mtime_ns": file.mtime_ns,
        "sha256": file.sha256,
        "source_path": done.path,
        "source_sha256": done.sha256,
        "source_bytes": done.bytes,
    }
