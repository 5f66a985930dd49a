"""How well a data set's classes can be told without motion, to hold results against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recipes.data.decode import Frames, read_frames
from recipes.data.table import VideoTable

Features = NDArray[np.float64]

_SIDE = 32  # videos are read at most this large
_COMPONENTS = 40
_NEIGHBOURS = 5
_CONFIDENCE = 0.99


@dataclass(frozen=True, kw_only=True)
class Control:
    """Test accuracy of one shortcut with one classifier, beside what guessing would give.

    `low` and `high` bound 99 % of the accuracies of a guess on as many test videos.
    """

    shortcut: str
    classifier: str
    accuracy: float
    chance: float
    low: float
    high: float

    @property
    def at_chance(self) -> bool:
        """Whether a guess would do as well."""
        return self.low <= self.accuracy <= self.high


def measure_controls(train: VideoTable, test: VideoTable) -> list[Control]:
    """Accuracy of each shortcut, learnt from `train`, on the decoded files of `test`.

    Shortcuts: one frame (PCA), the series of mean colours, the size of the file. Each with nearest
    neighbours and with logistic regression.
    """
    kept = int(min(train.frames.min(), test.frames.min()))
    views = [_views(table, kept) for table in (train, test)]
    chance = 1 / len(test.classes)
    low, high = chance_interval(chance, len(test))
    return [
        Control(
            shortcut=shortcut,
            classifier=classifier,
            accuracy=_accuracy(classifier, views[0][shortcut], train, views[1][shortcut], test),
            chance=chance,
            low=low,
            high=high,
        )
        for shortcut in views[0]
        for classifier in ("nearest neighbours", "logistic regression")
    ]


def chance_interval(
    chance: float, count: int, confidence: float = _CONFIDENCE
) -> tuple[float, float]:
    """Shares of `count` guesses, each right with probability `chance`, that enclose `confidence`.

    Exact binomial quantiles at (1 - confidence)/2 on either side.
    """
    tail = (1 - confidence) / 2
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(chance) + (count - k) * math.log1p(-chance)
        for k in range(count + 1)
    ]  # fmt: skip
    cumulated = np.cumsum(np.exp(logs))
    low = int(np.searchsorted(cumulated, tail))
    high = int(np.searchsorted(cumulated, 1 - tail))
    return low / count, high / count


def direction_scores(frames: Frames, shift: int) -> Features:
    """Evidence for a motion to the left, right, up and down, with no learning.

    The circular correlation of each frame with the next, summed over the video, at a displacement
    of `shift` pixels against that in the opposite direction.

    Args:
        frames: (T, H, W, 3).
        shift: pixels a frame.

    Returns:
        (4,) scores in the order left, right, up, down.
    """
    gray = frames.astype(np.float64).mean(axis=-1)
    gray -= gray.mean(axis=(1, 2), keepdims=True)
    spectra = np.fft.rfft2(gray)
    correlation = np.fft.irfft2((spectra[:-1].conj() * spectra[1:]).sum(axis=0), gray.shape[1:])
    right = correlation[0, shift] - correlation[0, -shift]
    down = correlation[shift, 0] - correlation[-shift, 0]
    return np.array([-right, right, -down, down])


def motion_accuracy(table: VideoTable, shift: int = 2) -> float:
    """Share of videos whose class has the best of `direction_scores`, of the directions known."""
    names = ("left", "right", "up", "down")
    right = 0
    for row in range(len(table)):
        scores = dict(zip(names, direction_scores(_read(table, row), shift), strict=True))
        best = max(table.classes, key=lambda name: scores[name])
        right += best == table.classes[int(table.labels[row])]
    return right / len(table)


def _views(table: VideoTable, frames: int) -> Mapping[str, Features]:
    middles, colours = [], []
    for row in range(len(table)):
        video = _read(table, row)[:frames].astype(np.float64)
        middles.append(video[frames // 2].ravel())
        colours.append(video.mean(axis=(1, 2)).ravel())
    return {
        "one frame": np.stack(middles),
        "mean colours": np.stack(colours),
        "file size": table.bytes[:, None].astype(np.float64),
    }


def _read(table: VideoTable, row: int) -> Frames:
    height, width = (min(int(side[row]), _SIDE) for side in (table.heights, table.widths))
    indices = np.arange(int(table.frames[row]))
    verdict = table.verdicts[row]
    return read_frames(
        table.root / table.paths[row], indices, height=height, width=width, verdict=verdict
    )


def _accuracy(
    classifier: str, seen: Features, train: VideoTable, unseen: Features, test: VideoTable
) -> float:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    steps: list[object] = [StandardScaler()]
    if seen.shape[1] > _COMPONENTS:
        steps += [PCA(min(_COMPONENTS, len(seen)), random_state=0), StandardScaler()]
    if classifier == "nearest neighbours":
        steps.append(KNeighborsClassifier(_NEIGHBOURS))
    else:
        steps.append(LogisticRegression(max_iter=1000))
    model = make_pipeline(*steps).fit(seen, train.labels)
    return float((model.predict(unseen) == test.labels).mean())
