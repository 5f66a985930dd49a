"""The table of an index: one row a listed video, made at once or out of parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from recipes.contract import Artifact, InputError
from recipes.data.listing import Listing
from recipes.data.multicamera import manifest_columns
from recipes.data.probe import Probe

if TYPE_CHECKING:
    import pandas as pd

FOUND = tuple(field.name for field in fields(Probe))


def to_table(listing: Listing, found: Sequence[Probe]) -> pd.DataFrame:
    """One row a listed video, sorted by path; the columns consumers rely on."""
    import pandas as pd

    ids = {label: number for number, label in enumerate(listing.classes)}
    columns: dict[str, list[Any]] = {
        "path": [row.path for row in listing.rows],
        "label": [row.label for row in listing.rows],
        "label_id": [ids.get(row.label, -1) for row in listing.rows],
        "split": [row.split for row in listing.rows],
        "group": [row.group for row in listing.rows],
    }
    if listing.rows and listing.rows[0].folds is not None:
        for fold in range(3):
            columns[f"split_{fold + 1}"] = [row.folds[fold] for row in listing.rows if row.folds]
    columns |= manifest_columns(listing.rows)
    probes = [asdict(one) for one in found]
    for name in FOUND:
        columns[name] = [one[name] for one in probes]
    return pd.DataFrame(columns)


def from_parts(listing: Listing, parts: Sequence[Artifact]) -> list[Probe]:
    """What several jobs found, in the order of the listing: part k of n has rows k, k + n, ...

    Raises:
        InputError: parts are missing, or the data set is not the one they looked at.
    """
    import pandas as pd

    ordered = sorted(parts, key=lambda part: int(part.meta["part"]))
    numbers = [int(part.meta["part"]) for part in ordered]
    counts = {int(part.meta["parts"]) for part in ordered}
    if counts != {len(parts)} or numbers != list(range(len(parts))):
        raise InputError(f"parts {numbers} of {sorted(counts)} were given: all parts are needed")
    found: list[Probe | None] = [None] * len(listing.rows)
    for number, part in enumerate(ordered):
        rows = pd.read_parquet(part.path)
        share = [row.path for row in listing.rows[number :: len(parts)]]
        if list(rows["path"]) != share:
            raise InputError(
                f"{listing.root}: files were added or removed while its parts were looked at "
                f"({len(rows)} rows in part {number}, {len(share)} now); raise data.version to "
                "index it anew, unchanged files are not read again"
            )
        found[number :: len(parts)] = _probes(rows)
    return [one for one in found if one is not None]


def _probes(rows: pd.DataFrame) -> list[Probe]:
    records = rows[[*FOUND]].to_dict("records")
    return [Probe(**{str(name): value for name, value in one.items()}) for one in records]
