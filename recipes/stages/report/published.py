"""Published figures: our table of them, which of them match our results, and what differs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from importlib.resources import files
from io import StringIO

from recipes.stages.report.rows import MEAN_OF_SPLITS, Row, is_result

COLUMNS = (
    "method",
    "backbone",
    "pretrain_data",
    "data",
    "protocol",
    "split",
    "metric",
    "value",
    "source",
    "clip",
    "size",
    "note",
)


def read_published(text: str | None = None) -> list[Row]:
    """Rows of `recipes/published.csv`, or of `text` in its format; values there are in percent.

    Lines that differ in metric and value only become one row.

    Raises:
        ValueError: a line does not fit the columns; the message has its number.
    """
    if text is None:
        text = files("recipes").joinpath("published.csv").read_text(encoding="utf-8")
    reader = csv.DictReader(StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"published figures: expected the columns {', '.join(COLUMNS)}")
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for number, line in enumerate(reader, start=2):
        if None in line or None in line.values():
            raise ValueError(f"published figures: line {number} has another number of columns")
        if not is_result(line["metric"]):
            raise ValueError(f"published figures: line {number}: unknown metric {line['metric']!r}")
        key = tuple(line[name] for name in COLUMNS if name not in ("metric", "value"))
        found.setdefault(key, {})[line["metric"]] = float(line["value"]) / 100
    return [_row(key, metrics) for key, metrics in found.items()]


def matching(rows: Iterable[Row], published: Sequence[Row]) -> list[Row]:
    """Published rows that have method, backbone, data and protocol of one of ours.

    Where there are rows with the same pretraining data as well, the others are left out. For a
    single split the published mean over splits is offered too, never the reverse.
    """
    chosen: list[Row] = []
    for row in rows:
        alike = [other for other in published if _key(other) == _key(row)]
        exact = [other for other in alike if _same(other.pretrain_data, row.pretrain_data)]
        chosen.extend(other for other in exact or alike if other not in chosen)
    return chosen


def differences(row: Row, published: Row) -> list[str]:
    """How the protocol of our row differs from that of a published one, in words."""
    found = []
    if not _same(row.pretrain_data, published.pretrain_data):
        ours, theirs = row.pretrain_data or "nothing", published.pretrain_data or "nothing"
        found.append(f"pretrained on {ours}, published on {theirs}")
    if row.split != published.split:
        found.append(f"{_split(row.split)}, published {_split(published.split)}")
    if published.clip and row.clip != published.clip:
        found.append(f"clips of {row.clip}, published {published.clip}")
    if published.size and row.size != published.size:
        found.append(f"{row.size} px, published {published.size} px")
    if row.coverage is not None:
        found.append(f"{row.coverage:.1%} of the test videos are counted")
    if row.note:
        found.append(f"ours: {row.note}")
    if published.note:
        found.append(f"published: {published.note}")
    return found


def _row(key: tuple[str, ...], metrics: dict[str, float]) -> Row:
    method, backbone, pretrain_data, data, protocol, split, source, clip, size, note = key
    return Row(
        method=method,
        backbone=backbone,
        pretrain_data=pretrain_data,
        data=data,
        protocol=protocol,
        split=split,
        metrics=metrics,
        source=source,
        clip=clip,
        size=size,
        note=note,
    )


def _key(row: Row) -> tuple[str, ...]:
    return tuple(_plain(name) for name in (row.protocol, row.method, row.backbone, row.data))


def _same(first: str, second: str) -> bool:
    return _plain(first) == _plain(second)


def _plain(name: str) -> str:
    """R2D3D-18 and r2d3d18 are one name, Kinetics-400 and kinetics400 as well."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _split(split: str) -> str:
    if not split:
        return "split not named"
    return f"{MEAN_OF_SPLITS} splits" if split == MEAN_OF_SPLITS else f"split {split}"
