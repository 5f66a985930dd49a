"""One small table of all headline figures: methods as rows, kinds of result as columns; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from recipes.stages.report.rows import MEAN_OF_SPLITS, Group, Row, but_for_split, sort_rows
from recipes.stages.report.text import method_name, metric_title, percent, table_line

_Name = tuple[str, str, str, str]


def overview(groups: Sequence[Group]) -> list[str]:
    """Lines of markdown: what guessing gives, baselines, methods, published figures.

    A cell holds the headline with its 95 % interval; where there is a mean over splits, that. Of
    several results of one kind each says its feature or split.
    """
    header = ["method", "backbone", "pretrained on"]
    header += [f"{heading}, {metric_title(own[0].headline)} %" for heading, own, _ in groups]
    guessing = ["guessing", "–", "–", *(_chance(own) for _, own, _ in groups)]
    lines = [table_line(header), table_line(["---"] * 3 + ["---:"] * len(groups))]
    lines.append(table_line(guessing))
    every = [row for _, own, published in groups for row in (*own, *published)]
    for name in dict.fromkeys(_name(row) for row in sort_rows(every)):
        columns = [
            [row for row in (*own, *published) if _name(row) == name]
            for _, own, published in groups
        ]
        first = next(row for column in columns for row in column)
        cells = [method_name(first), first.backbone or "–", first.pretrain_data or "–"]
        cells += [_cell(column) for column in columns]
        lines.append(table_line([f"*{cell}*" for cell in cells] if first.source else cells))
    return lines


def _name(row: Row) -> _Name:
    return row.method, row.backbone, row.pretrain_data, "published" if row.source else ""


def _chance(rows: Iterable[Row]) -> str:
    known = sorted({percent(row.chance) for row in rows if row.chance is not None})
    return " or ".join(known) or "–"


def _cell(rows: Sequence[Row]) -> str:
    averaged = {but_for_split(row) for row in rows if row.split == MEAN_OF_SPLITS}
    shown = [
        row for row in rows if row.split == MEAN_OF_SPLITS or but_for_split(row) not in averaged
    ]
    several = len(shown) > 1
    return "; ".join(_figure(row, several) for row in shown) or "–"


def _figure(row: Row, several: bool) -> str:
    text = percent(row.value)
    if row.interval is not None:
        text += f" ({percent(row.interval[0])} to {percent(row.interval[1])})"
    detail = [row.feature, f"split {row.split}" if row.split.isdigit() else row.split]
    names = ", ".join(part for part in detail if part)
    return f"{text} {names}" if names and (several or row.split) else text
