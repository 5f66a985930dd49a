"""What a recipe says of a stage that is a script; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from recipes.config import StageConfig
from recipes.contract import ArtifactKind, InputSlot


class ScriptConfig(StageConfig):
    """Runs `script NAME OUT [IN]`."""

    INPUTS: ClassVar[Mapping[str, InputSlot]] = {
        "upstream": InputSlot(("features",), required=False)
    }
    OUTPUTS: ClassVar[Mapping[str, ArtifactKind]] = {"file": "features"}
    DEVICE: ClassVar[Literal["auto", "cpu"]] = "auto"

    script: str
    label: str
