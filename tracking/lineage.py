"""The graph of a pipeline run, read from its folder: as SVG and as a table for MLflow."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import fsio
from tracking.stagefiles import StageFiles, State

# Fill and border of a box; the state is also written in it, for people who do not see the colours.
_COLOURS: Mapping[str, tuple[str, str]] = {
    "succeeded": ("#dcf5e3", "#1a7f37"),
    "running": ("#ddeafc", "#0b5fce"),
    "requeued": ("#fff3cd", "#9a6700"),
    "failed": ("#ffe0de", "#c62a2a"),
    "lost": ("#ffe0de", "#c62a2a"),
    "blocked": ("#f3e3fb", "#7a3ba3"),
    "cancelled": ("#e9e9ec", "#57606a"),
}
_PLAIN = ("#f6f8fa", "#8c959f")
_BOX = (224, 58)
_GAP = (64, 22)
_MARGIN = 16
_BOW = 44
_SHOWN_METRICS = 3
_SHOWN_UPSTREAM = 3
# What stages are run for, the most telling first. R@k comes with intervals, which are not shown.
_KEY_METRICS = re.compile(r"top1|R@1|top5|R@\d+|mean_class_accuracy|loss|train/loss|videos")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One stage of a pipeline as it stands now."""

    name: str
    kind: str
    key: str
    folder: Path
    state: State
    upstream: tuple[str, ...] = ()
    attempts: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    tracking: Mapping[str, Any] = field(default_factory=dict)

    def run_url(self, uri: str) -> str | None:
        """Link to the stage's MLflow run, relative to the UI's root, if that server has it."""
        if self.tracking.get("uri") != uri or not self.tracking.get("mlflow_run_id"):
            return None
        return run_url(self.tracking["experiment_id"], self.tracking["mlflow_run_id"])


def run_url(experiment_id: str, run_id: str) -> str:
    """Link to a run inside the MLflow UI."""
    return f"#/experiments/{experiment_id}/runs/{run_id}"


def read_pipeline(run_dir: Path, states: Mapping[str, State] | None = None) -> tuple[Node, ...]:
    """The stages of a run in the order of its plan.

    Args:
        run_dir: `<store>/runs/<run_id>`.
        states: what the scheduler adds, by stage name; the rest is read from the stage folders.
    """
    entries = fsio.read_json(run_dir / "plan.json")["stages"]
    stages = [entry for entry in entries if not entry.get("part_of")]  # parts show as their whole
    names = {entry["name"] for entry in stages}
    root = run_dir.parent.parent / "stages"
    return tuple(_node(entry, names, root, states or {}) for entry in stages)


def _node(
    entry: Mapping[str, Any], names: set[str], root: Path, states: Mapping[str, State]
) -> Node:
    files = StageFiles(root / entry["stage"])
    references = [ref for refs in entry.get("inputs", {}).values() for ref in refs]
    upstream = dict.fromkeys(ref.rpartition(".")[0] for ref in references)
    result = files.result() or {}
    return Node(
        name=entry["name"],
        kind=entry["kind"],
        key=entry["key"],
        folder=files.path,
        state=states.get(entry["name"]) or files.state(),
        upstream=tuple(name for name in upstream if name in names),
        attempts=len(files.attempts()),
        metrics=result.get("metrics", {}),
        tracking=fsio.read_json_or_none(files.path / "tracking.json") or {},
    )


def figure(value: float) -> str:
    """A metric as people read it: a count in full, everything else with four significant digits."""
    whole = float(value).is_integer() and abs(value) < 1e9
    return f"{value:.0f}" if whole else f"{value:.4g}"


def key_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The numbers a stage was run for, the most telling first; all of them where none is known."""
    order = ["top1", "R@1", "top5"]
    known = [name for name in metrics if _KEY_METRICS.fullmatch(name)]
    names = sorted(known or metrics, key=lambda name: (*_rank(name, order), name))
    return {name: metrics[name] for name in names}


def _rank(name: str, order: Sequence[str]) -> tuple[int, int]:
    """Place of a metric: the given ones, then by the number in its name (R@5 before R@10)."""
    digits = re.search(r"\d+", name)
    first = order.index(name) if name in order else len(order)
    return first, int(digits[0]) if digits else 0


def headline(metrics: Mapping[str, float]) -> str:
    """The one number that says most, with its name; empty where there is none."""
    return next((f"{name} {figure(value)}" for name, value in key_metrics(metrics).items()), "")


def as_markdown(nodes: Sequence[Node], uri: str) -> str:
    """A table of the stages with links to their MLflow runs."""
    lines = ["| stage | state | results | takes from | attempts |", "|---|---|---|---|---|"]
    for node in nodes:
        url = node.run_url(uri)
        name = f"[{node.name}]({url})" if url else node.name
        state = node.state.name + (f": {node.state.reason}" if node.state.reason else "")
        shown = [f"{key} {figure(value)}" for key, value in key_metrics(node.metrics).items()]
        results = ", ".join(shown[:_SHOWN_METRICS]) + (" …" if len(shown) > _SHOWN_METRICS else "")
        source = ", ".join(node.upstream[:_SHOWN_UPSTREAM])
        if len(node.upstream) > _SHOWN_UPSTREAM:
            source += f" and {len(node.upstream) - _SHOWN_UPSTREAM} more"
        cells = [name, cell(state), results, source, str(node.attempts or "")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(text: str, length: int = 160) -> str:
    """Text that stays in its cell of a markdown table."""
    line = " ".join(text.replace("|", "\\|").split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _columns(nodes: Sequence[Node]) -> dict[str, int]:
    """Column of each stage: as far to the right as the stages that take from it allow.

    Nodes are in topological order, so that the consumers of each have been placed before it.
    """
    distance: dict[str, int] = {}  # steps to the end of the longest way from here
    for node in reversed(nodes):
        after = [distance[other.name] for other in nodes if node.name in other.upstream]
        distance[node.name] = 1 + max(after, default=-1)
    last = max(distance.values(), default=0)
    return {node.name: last - distance[node.name] for node in nodes}


def as_svg(nodes: Sequence[Node]) -> str:
    """The graph from left to right, boxes coloured by state."""
    places = _places(nodes)
    width = max((x + _BOX[0] for x, _ in places.values()), default=0) + _MARGIN
    height = max((y + _BOX[1] for _, y in places.values()), default=0) + _MARGIN + _BOW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for node in nodes:
        for name in node.upstream:
            parts.append(_edge(places[name], places[node.name]))
    parts.extend(_box(node, *places[node.name]) for node in nodes)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _places(nodes: Sequence[Node]) -> dict[str, tuple[int, int]]:
    """Upper left corner of each box, every column centred on the tallest one."""
    rows: dict[int, list[str]] = {}
    for name, column in _columns(nodes).items():
        rows.setdefault(column, []).append(name)
    step_x, step_y = _BOX[0] + _GAP[0], _BOX[1] + _GAP[1]
    tallest = max((len(names) for names in rows.values()), default=0)
    return {
        name: (
            _MARGIN + column * step_x,
            _MARGIN + row * step_y + (tallest - len(names)) * step_y // 2,
        )
        for column, names in rows.items()
        for row, name in enumerate(names)
    }


def _edge(source: tuple[int, int], target: tuple[int, int]) -> str:
    x1, y1 = source[0] + _BOX[0], source[1] + _BOX[1] // 2
    x2, y2 = target[0], target[1] + _BOX[1] // 2
    middle = (x1 + x2) // 2
    # A line past other boxes of its row goes below them.
    bow = 2 * _BOW if y1 == y2 and x2 - x1 > _GAP[0] else 0
    return (
        f'<path d="M {x1} {y1} C {middle} {y1 + bow}, {middle} {y2 + bow}, {x2} {y2}" '
        f'fill="none" stroke="#8c959f" stroke-width="1.5"/>'
    )


def _box(node: Node, x: int, y: int) -> str:
    fill, border = _COLOURS.get(node.state.name, _PLAIN)
    name = cell(node.name, 25)
    below = cell(" · ".join(filter(None, [node.state.name, headline(node.metrics)])), 30)
    title = f"{node.name} ({node.kind}): {node.state.name} {node.state.reason}".strip()
    return (
        f"<g><title>{html.escape(title)}</title>"
        f'<rect x="{x}" y="{y}" width="{_BOX[0]}" height="{_BOX[1]}" rx="8" '
        f'fill="{fill}" stroke="{border}" stroke-width="1.5"/>'
        f'<text x="{x + 12}" y="{y + 24}" font-weight="600">{html.escape(name)}</text>'
        f'<text x="{x + 12}" y="{y + 43}" fill="{border}">{html.escape(below)}</text></g>'
    )
