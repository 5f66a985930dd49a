"""Training fields for tests."""

from __future__ import annotations

from recipes.engine.config import TrainFields


def fields(**changes) -> TrainFields:
    """Two epochs of batches of 8 clips, 2 at a time."""
    return TrainFields.model_validate({"epochs": 2, "batch_size": 8, "micro_batch": 2, **changes})
