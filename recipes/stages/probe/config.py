"""What a recipe says of a linear probe; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from recipes.contract import ArtifactKind
from recipes.evaluation.config import FrozenConfig

InverseStrength = Annotated[float, Field(gt=0.0)]


class ProbeConfig(FrozenConfig):
    """Logistic regression on the features of a frozen encoder.

    A video's feature is the mean over `windows` equally spaced clips, standardized with the
    statistics of the training videos. `regularization` is C of the L2 penalty, larger is weaker; of
    several values the one is taken that is best on `holdout` of the training videos, whole groups
    of which are held out, and the classifier is then fitted to all of them. One value, 1.0, is the
    form in which videoSimCLR was reported.
    """

    OUTPUTS: ClassVar[Mapping[str, ArtifactKind]] = {
        "classifier": "classifier",
        "features": "features",
    }

    encoder: Literal["input", "random"] = "input"
    regularization: (
        InverseStrength | Annotated[tuple[InverseStrength, ...], Field(min_length=1)]
    ) = (
        1e-4,
        1e-3,
        1e-2,
        1e-1,
        1.0,
        10.0,
    )
    holdout: float = Field(0.2, gt=0.0, lt=1.0, description="share of the training videos")
    max_iterations: int = Field(2000, ge=1, description="of L-BFGS")

    @property
    def strengths(self) -> tuple[float, ...]:
        """The values of C to choose from."""
        given = self.regularization
        return given if isinstance(given, tuple) else (given,)
