"""Rows as a page of markdown, as csv and as bars; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from recipes.evaluation.figures import BLUE, GRAY, GREEN, ORANGE, Bar
from recipes.stages.report.config import CompareKey
from recipes.stages.report.overview import overview
from recipes.stages.report.published import differences, matching
from recipes.stages.report.rows import (
    BASELINES,
    MEAN_OF_SPLITS,
    Group,
    Other,
    Row,
    but_for_split,
    gain,
    metric_names,
    sort_rows,
)
from recipes.stages.report.text import (
    METHODS,
    PROTOCOLS,
    method_name,
    metric_title,
    percent,
    plain_cell,
    table_line,
)

# What stands beside a method, by protocol, and how a recipe asks for it.
_NEEDED = {
    "linear": ("random",),
    "finetune": ("supervised",),
    "retrieval": ("random", "mean_color"),
}
_ASKED = {
    "random": "`encoder: random`",
    "supervised": "`kind: finetune` with `encoder: random`",
    "mean_color": "`encoder: mean_color`",
}
CSV_COLUMNS = (
    "protocol",
    "data",
    "split",
    "method",
    "backbone",
    "pretrain_data",
    "clip",
    "size",
    "feature",
    "seed",
    "metric",
    "value",
    "low",
    "high",
    "chance",
    "num_test",
    "coverage",
    "stage",
    "source",
    "note",
)


def group_rows(rows: Iterable[Row], keys: Sequence[CompareKey]) -> list[tuple[str, list[Row]]]:
    """Comparable rows together: (title, rows) by protocol, then in the order of appearance."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(str(getattr(row, key)) for key in keys), []).append(row)
    order = list(PROTOCOLS)
    titled = [(group, _title(group[0], keys)) for group in groups.values()]
    titled.sort(
        key=lambda pair: (
            order.index(pair[0][0].protocol) if pair[0][0].protocol in order else len(order)
        )
    )
    return [(title, group) for group, title in titled]


def markdown(
    title: str,
    groups: Sequence[Group],
    others: Sequence[Other],
) -> str:
    """The page.

    Args:
        title: heading of the page.
        groups: heading, our rows, matching published rows.
        others: stages without a test result.
    """
    lines = [f"# {plain_cell(title)}", ""]
    if not groups:
        lines += ["No stage with a test result was given.", ""]
    if groups:
        lines += ["## Overview", "", *overview(groups), ""]
    for heading, ours, published in groups:
        lines += [f"## {plain_cell(heading)}", "", *_facts(ours), "", *_table(ours, published), ""]
        lines += _protocol_differences(ours, published)
    if groups:
        lines += _legend()
    if others:
        lines += ["## Other stages", "", *_other_table(others), ""]
    return "\n".join(lines).rstrip() + "\n"


def csv_rows(rows: Iterable[Row]) -> list[tuple[Any, ...]]:
    """One line a metric under `CSV_COLUMNS`; values are shares in [0, 1]."""
    lines = []
    for row in rows:
        for name in metric_names([row]):
            low, high = (
                row.interval if row.interval is not None and name == row.headline else ("", "")
            )
            cells: dict[str, Any] = {
                **{column: getattr(row, column, "") for column in CSV_COLUMNS},
                "metric": name,
                "value": f"{row.metrics[name]:.6g}",
                "low": f"{low:.6g}" if low != "" else "",
                "high": f"{high:.6g}" if high != "" else "",
                "chance": f"{row.chance:.6g}"
                if row.chance is not None and name == row.headline
                else "",
            }
            lines.append(
                tuple("" if cells[column] is None else cells[column] for column in CSV_COLUMNS)
            )
    return lines


def bars(groups: Sequence[Group]) -> list[Bar]:
    """A bar a row: baselines orange, ours blue, means over splits green, published gray."""
    result = []
    for heading, ours, published in groups:
        for row in [*sort_rows(ours), *published]:
            if row.value is None:
                continue
            text = f"{heading}: {method_name(row)}"
            split = f"split {row.split}" if row.split.isdigit() else row.split
            extra = [part for part in (split, row.feature, "published" * bool(row.source)) if part]
            result.append(
                Bar(
                    label=text + (f" ({', '.join(extra)})" if extra else ""),
                    value=row.value,
                    interval=row.interval,
                    chance=row.chance,
                    color=_color(row),
                )
            )
    return result


def _color(row: Row) -> str:
    if row.source:
        return GRAY
    if row.method in ("random", "mean_color", "supervised"):
        return ORANGE
    return GREEN if row.num_test is None else BLUE


def _title(row: Row, keys: Sequence[CompareKey]) -> str:
    title = PROTOCOLS.get(row.protocol, row.protocol) if "protocol" in keys else "Results"
    if "data" in keys:
        title += f" on {row.data}"
    extra = {"split": f"split {row.split}", "clip": row.clip, "size": f"{row.size} px"}
    parts = [extra[key] for key in keys if key in extra and getattr(row, key)]
    return title + (f" ({', '.join(parts)})" if parts else "")


def _facts(rows: Sequence[Row]) -> list[str]:
    lines = []
    tested = sorted({row.num_test for row in rows if row.num_test})
    chances = sorted({round(100 * row.chance, 1) for row in rows if row.chance is not None})
    if tested:
        lines.append(f"Test videos: {', '.join(map(str, tested))}.")
    if chances:
        lines.append(f"Chance: {', '.join(f'{value:.1f}' for value in chances)} %.")
    present = {row.method for row in rows}
    for protocol in dict.fromkeys(row.protocol for row in rows):
        missing = [name for name in _NEEDED.get(protocol, ()) if name not in present]
        for name in missing:
            lines.append(
                f"**No {METHODS[name]} beside these results**: without it they say little; "
                f"add a stage with {_ASKED[name]}."
            )
    return [" ".join(lines)] if lines else []


def _table(ours: Sequence[Row], published: Sequence[Row]) -> list[str]:
    metrics = metric_names([*ours, *published])
    headline = ours[0].headline
    header = ["method", "backbone", "pretrained on", "split", "clip", "feature"]
    for name in metrics:
        header.append(f"{metric_title(name)} %")
        if name == headline:
            header += ["95 % interval", "gain"]
    header += ["test videos", "coverage", "from"]
    lines = [table_line(header), table_line(["---"] * 6 + ["---:"] * (len(header) - 7) + ["---"])]
    for row in [*sort_rows(ours), *published]:
        cells = [method_name(row), row.backbone or "–", row.pretrain_data or "–", row.split or "–"]
        cells += [_clip(row), row.feature or "–"]
        for name in metrics:
            cells.append(percent(row.metrics.get(name)))
            if name == headline:
                cells += [_interval(row), _gain(row, ours)]
        cells += ["–" if row.num_test is None else str(row.num_test)]
        cells += [percent(row.coverage), row.source or row.stage]
        lines.append(
            table_line([f"*{plain_cell(text)}*" if row.source else text for text in cells])
        )
    return lines


def _protocol_differences(ours: Sequence[Row], published: Sequence[Row]) -> list[str]:
    lines = []
    averaged = {but_for_split(row) for row in ours if row.split == MEAN_OF_SPLITS}
    for row in sort_rows(ours):
        if row.split != MEAN_OF_SPLITS and but_for_split(row) in averaged:
            continue
        for other in matching([row], published):
            found = differences(row, other)
            if found:
                name = f"{method_name(row)}, {row.stage}, against {other.source}"
                lines.append(f"- {plain_cell(name)}: {plain_cell('; '.join(found))}.")
    if not lines:
        return []
    return ["Where the protocol differs from the published one:", "", *lines, ""]


def _legend() -> list[str]:
    return [
        "Intervals are Wilson's for the test videos alone; they hold neither the spread over seeds "
        "nor the choice of hyperparameters. *Gain* is points above the same network without "
        f"pretraining ({', '.join(f'{p}: {METHODS[m]}' for p, m in BASELINES.items())}). "
        "*At chance* means that guessing reaches the figure in 95 of 100 cases. Coverage is the "
        "share of the split's videos that could be used. Rows in italics are published figures.",
        "",
    ]


def _other_table(others: Sequence[Other]) -> list[str]:
    lines = [table_line(["stage", "kind", "steps", "last metrics"]), table_line(["---"] * 4)]
    for other in others:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(other.metrics.items()))
        lines.append(table_line([other.stage, other.kind, str(other.steps), shown or "–"]))
    return lines


def _clip(row: Row) -> str:
    parts = [row.clip, f"{row.size} px" if row.size else ""]
    return ", ".join(part for part in parts if part) or "–"


def _interval(row: Row) -> str:
    if row.interval is None:
        return "–"
    low, high = row.interval
    return f"{100 * low:.1f} to {100 * high:.1f}" + (", at chance" if row.at_chance else "")


def _gain(row: Row, rows: Sequence[Row]) -> str:
    value = gain(row, rows)
    return "–" if value is None else f"{100 * value:+.1f}"
