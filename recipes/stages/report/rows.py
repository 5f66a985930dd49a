"""Results of upstream stages as rows of a table; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recipes.contract import Artifact
from recipes.evaluation.intervals import chance_interval, wilson_interval

MEAN_OF_SPLITS = "mean of 3"

# The number that stands for a result, by protocol.
HEADLINES = {"linear": "top1", "finetune": "top1", "retrieval": "R@1"}

# What a method has to beat, by protocol: the same network without pretraining.
BASELINES = {"linear": "random", "finetune": "supervised", "retrieval": "random"}

_RESULT = re.compile(r"^(top|R@)")

# In a table, what was not pretrained comes first.
_ORDER = ("mean_color", "random", "supervised")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One result, ours or a published one.

    `metrics` are shares in [0, 1]: top-k accuracies or R@k. `num_test` is None where videos were
    not counted once each, as in a mean over splits. `source` is empty for our own results.
    """

    protocol: str
    method: str
    data: str
    metrics: Mapping[str, float]
    backbone: str = ""
    pretrain_data: str = ""
    split: str = ""
    clip: str = ""
    size: str = ""
    feature: str = ""
    seed: str = ""
    num_test: int | None = None
    coverage: float | None = None
    chance: float | None = None
    note: str = ""
    stage: str = ""
    source: str = ""

    @property
    def headline(self) -> str:
        """Name of the metric that stands for this result."""
        known = HEADLINES.get(self.protocol, "")
        return known if known in self.metrics else next(iter(self.metrics), "")

    @property
    def value(self) -> float | None:
        """The headline metric."""
        return self.metrics.get(self.headline)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the headline: the sampling of test videos, nothing else."""
        if self.value is None or not self.num_test:
            return None
        return wilson_interval(self.value, self.num_test)

    @property
    def at_chance(self) -> bool:
        """Whether a guesser reaches this headline in 95 of 100 cases."""
        if self.value is None or self.chance is None or not self.num_test:
            return False
        low, high = chance_interval(self.chance, self.num_test)
        return low <= self.value <= high


# Heading, our comparable rows, published rows that match them.
Group = tuple[str, Sequence[Row], Sequence[Row]]


@dataclass(frozen=True, kw_only=True)
class Other:
    """A stage without test result, such as a pretraining."""

    stage: str
    kind: str
    steps: int
    metrics: Mapping[str, float]


def read_rows(results: Iterable[Artifact]) -> tuple[list[Row], list[Other]]:
    """Split upstream results into those with a protocol and the others, in the given order."""
    rows, others = [], []
    for artifact in results:
        stage = artifact.ref.removesuffix(".result") or artifact.path.parent.name
        summary = artifact.meta.get("summary") or {}
        metrics = artifact.meta.get("metrics") or {}
        if summary.get("protocol"):
            rows.append(_row(stage, summary, metrics))
        else:
            others.append(
                Other(
                    stage=stage,
                    kind=str(artifact.meta.get("kind", "")),
                    steps=int(artifact.meta.get("steps") or 0),
                    metrics=metrics,
                )
            )
    return rows, others


def with_split_means(rows: Sequence[Row]) -> list[Row]:
    """Add, behind the last of splits 1 to 3 of one experiment, the mean that papers report.

    Where a split occurs twice it is not clear which results belong together: no mean then.
    """
    parts: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        parts.setdefault(but_for_split(row), []).append(row)
    result: list[Row] = []
    for row in rows:
        result.append(row)
        same = parts[but_for_split(row)]
        if row is same[-1] and sorted(part.split for part in same) == ["1", "2", "3"]:
            result.append(_mean(same))
    return result


def but_for_split(row: Row) -> tuple[str, ...]:
    """What the splits of one experiment have in common."""
    cells_of = row.stage.partition("/")[0]
    shared = (row.protocol, row.method, row.data, row.backbone, row.pretrain_data, row.clip)
    return (*shared, row.size, row.feature, row.seed, row.note, row.source, cells_of)


def sort_rows(rows: Iterable[Row]) -> list[Row]:
    """Baselines first, then methods in the order given; our rows before published ones."""

    def place(row: Row) -> tuple[bool, int]:
        order = _ORDER.index(row.method) if row.method in _ORDER else len(_ORDER)
        return bool(row.source), order

    return sorted(rows, key=place)


def gain(row: Row, rows: Sequence[Row]) -> float | None:
    """Headline above that of the baseline with the same network, videos and clips; None without.

    Of several such baselines, with other seeds, the mean counts.
    """
    baseline = BASELINES.get(row.protocol)
    if row.value is None or row.source or baseline is None or row.method in _ORDER:
        return None
    same = [
        other.value
        for other in rows
        if other.method == baseline
        and not other.source
        and other.value is not None
        and _experiment(other) == _experiment(row)
    ]
    return row.value - sum(same) / len(same) if same else None


def is_result(name: str) -> bool:
    """Whether a metric is a top-k accuracy or an R@k."""
    return _RESULT.sub("", name).isdigit() and _RESULT.match(name) is not None


def metric_names(rows: Iterable[Row]) -> list[str]:
    """Metrics of some rows: top-k and R@k, each by rising k."""
    names = {name for row in rows for name in row.metrics}
    return sorted(names, key=lambda name: (name.startswith("R@"), int(_RESULT.sub("", name))))


def _experiment(row: Row) -> tuple[str, ...]:
    return (
        row.protocol,
        row.backbone,
        row.data,
        row.split,
        row.clip,
        row.size,
        row.feature,
    )


def _row(stage: str, summary: Mapping[str, Any], metrics: Mapping[str, float]) -> Row:
    def text(key: str) -> str:
        value = summary.get(key)
        return "" if value is None else str(value)

    count = metrics.get("num_test")
    coverage = summary.get("coverage")
    return Row(
        protocol=text("protocol"),
        method=text("method"),
        data=text("data"),
        metrics={name: value for name, value in metrics.items() if is_result(name)},
        backbone=text("backbone"),
        pretrain_data=text("pretrain_data"),
        split=text("split"),
        clip=text("clip"),
        size=text("size"),
        feature=text("feature"),
        seed=text("seed"),
        num_test=None if count is None else int(count),
        coverage=None if coverage is None else float(coverage),
        chance=metrics.get("chance"),
        note=text("note"),
        stage=stage,
    )


def _mean(parts: Sequence[Row]) -> Row:
    shared = [name for name in parts[0].metrics if all(name in part.metrics for part in parts)]
    return replace(
        parts[0],
        split=MEAN_OF_SPLITS,
        stage=", ".join(part.stage for part in parts),
        metrics={name: sum(part.metrics[name] for part in parts) / len(parts) for name in shared},
        num_test=None,
        coverage=_average([part.coverage for part in parts]),
        chance=_average([part.chance for part in parts]),
    )


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
