"""The dynamic scale of an fp16 loss, the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping

from recipes.engine.config import LossScaleConfig

# An overflow at this scale is one of the gradient itself: scaling down further cannot help.
_SMALLEST = 1.0


class LossScale:
    """Halves where a gradient overflows, doubles after `growth_interval` steps in a row without.

    Micikevicius et al. 2018, section 3.2; `torch.amp.GradScaler` has the same rule. Every rank sees
    the same reduced gradient, so every rank comes to the same scale without talking.
    """

    def __init__(self, config: LossScaleConfig) -> None:
        self._config = config
        self.value = config.initial
        self._clean_steps = 0

    def overflowed(self) -> bool:
        """Halve it; False where it cannot help, because it was 1 already."""
        if self.value <= _SMALLEST:
            return False
        self.value = max(self.value / 2, _SMALLEST)
        self._clean_steps = 0
        return True

    def stepped(self) -> None:
        """Count a step whose gradient was finite."""
        self._clean_steps += 1
        if self._clean_steps >= self._config.growth_interval:
            self.value *= 2
            self._clean_steps = 0

    def state(self) -> dict[str, float]:
        """For the checkpoint."""
        return {"scale": self.value, "clean_steps": float(self._clean_steps)}

    def load(self, state: Mapping[str, float]) -> None:
        """Continue from `state`."""
        self.value = float(state["scale"])
        self._clean_steps = int(state["clean_steps"])
