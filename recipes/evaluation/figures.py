"""Pictures of results: confusion matrix, bars with intervals, queries with their neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers as well.
BLUE, ORANGE, GREEN, RED, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"

# Names of more classes than this would run into each other.
NAMED_CLASSES = 60


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a chart: shares in [0, 1], an interval and the level of chance where known."""

    label: str
    value: float
    interval: tuple[float, float] | None = None
    chance: float | None = None
    color: str = BLUE


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A frame (H, W, 3) uint8 with what is written under it; `right` is None for a query."""

    frame: NDArray[np.uint8]
    caption: str
    right: bool | None = None


def save_confusion(path: Path, confusion: NDArray[np.int64], classes: Sequence[str]) -> Path:
    """Row-normalized confusion matrix (K, K); counts are written in where they fit."""
    count = len(classes)
    side = min(12.0, 3.0 + 0.28 * count)
    figure, axes = _figure(side + 1.0, side)
    totals = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    picture = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(picture, ax=axes, label="% of the true class", fraction=0.046)
    axes.set(xlabel="predicted", ylabel="true")
    if count <= NAMED_CLASSES:
        axes.set_xticks(range(count), [_short(name) for name in classes], rotation=90)
        axes.set_yticks(range(count), [_short(name) for name in classes])
        axes.tick_params(labelsize=8 if count <= 20 else 5)
    if count <= 15:
        for row, column in np.ndindex(count, count):
            color = "white" if shares[row, column] > 0.5 else "black"
            text = str(confusion[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    return _save(figure, path)


def save_bars(path: Path, bars: Sequence[Bar], title: str, axis: str = "%") -> Path:
    """Horizontal bars from top to bottom, intervals as whiskers, chance as a dashed line each."""
    figure, axes = _figure(8.0, min(40.0, 1.4 + 0.34 * len(bars)))
    places = np.arange(len(bars))
    values = [0.0 if math.isnan(bar.value) else 100 * bar.value for bar in bars]
    axes.barh(places, values, color=[bar.color for bar in bars], height=0.7)
    for place, value, bar in zip(places, values, bars, strict=True):
        end = value
        if bar.interval is not None:
            low, high = (100 * limit for limit in bar.interval)
            end = max(value, high)
            axes.plot([low, high], [place, place], color="black", linewidth=1)
        if bar.chance is not None:
            mark = [100 * bar.chance] * 2
            axes.plot(mark, [place - 0.45, place + 0.45], color=RED, linestyle="--", linewidth=1.2)
        text = "no video" if math.isnan(bar.value) else f"{value:.1f}"
        axes.text(end + 1, place, text, va="center", fontsize=8)
    axes.set_yticks(places, [_short(bar.label, 80) for bar in bars], fontsize=8)
    axes.set(xlim=(0, 108), xlabel=axis, title=title)
    axes.invert_yaxis()
    if any(bar.chance is not None for bar in bars):
        axes.plot([], [], color=RED, linestyle="--", label="chance")
        axes.legend(loc="lower right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def save_neighbours(path: Path, rows: Sequence[Sequence[Tile]], title: str) -> Path:
    """A row a query: the query's frame, then its neighbours; green frame = right class, red not."""
    columns = max(len(row) for row in rows)
    figure, grid = _grid(len(rows), columns)
    figure.suptitle(title, fontsize=10)
    for number, row in enumerate(rows):
        for column in range(columns):
            axes = grid[number][column]
            axes.set_xticks([])
            axes.set_yticks([])
            if column >= len(row):
                axes.set_visible(False)
                continue
            _draw_tile(axes, row[column])
            if number == 0:
                axes.set_title("query" if column == 0 else f"{column}", fontsize=9)
    return _save(figure, path)


def _draw_tile(axes: Any, tile: Tile) -> None:
    axes.imshow(tile.frame)
    color = GRAY if tile.right is None else GREEN if tile.right else RED
    mark = "" if tile.right is None else "✓ " if tile.right else "✗ "
    axes.set_xlabel(mark + _short(tile.caption, 18), fontsize=7, color=color, labelpad=3)
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=3)


def _short(name: str, length: int = 22) -> str:
    """Class names as they are: no mathematical text from a `$`, and not endless."""
    cut = name if len(name) <= length else name[: length - 1] + "…"
    return cut.replace("$", r"\$")


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure, grid = _grid(1, 1, (width, height))
    return figure, grid[0][0]


def _grid(rows: int, columns: int, size: tuple[float, float] | None = None) -> tuple[Figure, Any]:
    # The object interface keeps no global list of figures and needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size or (1.35 * columns, 1.55 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
