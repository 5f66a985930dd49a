"""One picture of a training: its loss and the shares it logged over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

_LOSS = "train/loss"
_SHARES = ("train/top1", "train/top3", "train/top5", "train/accuracy")
# Okabe and Ito's palette: told apart by colour-blind readers as well.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00")


def save_curves(path: Path, history: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    """Draw loss and, where a method logs them, shares right; steps go right in both.

    Args:
        path: the png to write; its folder is made.
        history: (step, logged metrics), oldest first, at least one.
    """
    # The object interface keeps no global list of figures and needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = [name for name in _SHARES if name in history[-1][1]]
    figure = Figure(figsize=(10.0 if shares else 5.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if shares else 1, squeeze=False)[0]
    groups = [[_LOSS], shares] if shares else [[_LOSS]]
    for axes, names in zip(panels, groups, strict=True):
        for name, color in zip(names, _COLORS, strict=False):
            points = [(step, values[name]) for step, values in history if name in values]
            axes.plot(*zip(*points, strict=True), color=color, label=name.removeprefix("train/"))
        axes.set_xlabel("optimizer step")
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    panels[0].set_title("training loss", fontsize=10)
    if shares:
        panels[1].set(title="share of right answers in training", ylim=(0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
