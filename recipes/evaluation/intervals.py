"""How certain a share of successes is, and what guessing reaches; torch-free."""

from __future__ import annotations

import math


def wilson_interval(share: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a binomial share (Wilson 1927); 95 % by default.

    Args:
        share: observed share of successes, in [0, 1].
        trials: number of independent trials, at least 1.
        z: normal quantile of the confidence.

    Raises:
        ValueError: a share outside [0, 1] or no trial.
    """
    if not 0.0 <= share <= 1.0 or trials < 1:
        raise ValueError(f"no interval for a share of {share} in {trials} trials")
    scale = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def chance_interval(chance: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Shares that a guesser with success probability `chance` reaches (exact binomial).

    The smallest and largest share of successes in `trials` outside of which lies at most
    (1 - confidence) / 2 on each side.

    Raises:
        ValueError: a probability outside [0, 1] or no trial.
    """
    if not 0.0 <= chance <= 1.0 or trials < 1:
        raise ValueError(f"no interval for chance {chance} in {trials} trials")
    if chance in (0.0, 1.0):
        return chance, chance
    tail = (1 - confidence) / 2
    logs = [_log_binomial(k, trials, chance) for k in range(trials + 1)]
    below, low = 0.0, 0
    while below + math.exp(logs[low]) <= tail:
        below += math.exp(logs[low])
        low += 1
    above, high = 0.0, trials
    while above + math.exp(logs[high]) <= tail:
        above += math.exp(logs[high])
        high -= 1
    return low / trials, high / trials


def _log_binomial(k: int, n: int, p: float) -> float:
    choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return choose + k * math.log(p) + (n - k) * math.log1p(-p)
