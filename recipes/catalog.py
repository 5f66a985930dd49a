"""Literal tables of everything a recipe can name: config class and target of each; torch-free."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """Dotted targets, `module:attribute`: the pydantic config and what it configures."""

    config: str
    target: str


STAGES: dict[str, Entry] = {
    "index": Entry("recipes.stages.index.config:IndexConfig", "recipes.stages.index.run:run"),
    "index_part": Entry(
        "recipes.stages.index_part.config:IndexPartConfig", "recipes.stages.index_part.run:run"
    ),
    "prepare": Entry(
        "recipes.stages.prepare.config:PrepareConfig", "recipes.stages.prepare.run:run"
    ),
    "prepare_part": Entry(
        "recipes.stages.prepare_part.config:PreparePartConfig",
        "recipes.stages.prepare_part.run:run",
    ),
    "pretrain": Entry(
        "recipes.stages.pretrain.config:PretrainConfig", "recipes.stages.pretrain.run:run"
    ),
    "probe": Entry("recipes.stages.probe.config:ProbeConfig", "recipes.stages.probe.run:run"),
    "finetune": Entry(
        "recipes.stages.finetune.config:FinetuneConfig", "recipes.stages.finetune.run:run"
    ),
    "retrieval": Entry(
        "recipes.stages.retrieval.config:RetrievalConfig", "recipes.stages.retrieval.run:run"
    ),
    "report": Entry("recipes.stages.report.config:ReportConfig", "recipes.stages.report.run:run"),
}

METHODS: dict[str, Entry] = {
    "dpc": Entry("recipes.methods.dpc.config:DPCConfig", "recipes.methods.dpc.method:DPC"),
}

BACKBONES: dict[str, Entry] = {
    "r2d3d18": Entry("recipes.models.config:R2D3D18Config", "recipes.models.r2d3d:build"),
    "r2d3d34": Entry("recipes.models.config:R2D3D34Config", "recipes.models.r2d3d:build"),
    "r2d3d_tiny": Entry("recipes.models.config:R2D3DTinyConfig", "recipes.models.r2d3d:build"),
}

DATASETS: dict[str, Entry] = {
    "synthetic": Entry("recipes.data.config:SyntheticData", "recipes.data.synthetic:scan"),
    "folder": Entry("recipes.data.config:FolderData", "recipes.data.folder:scan"),
    "csv": Entry("recipes.data.config:CsvData", "recipes.data.csvlist:scan"),
    "multicamera": Entry("recipes.data.config:MultiCameraData", "recipes.data.multicamera:scan"),
    "ucf101": Entry("recipes.data.config:UCF101Data", "recipes.data.ucf101:scan"),
    "hmdb51": Entry("recipes.data.config:HMDB51Data", "recipes.data.hmdb51:scan"),
    "kinetics": Entry("recipes.data.config:KineticsData", "recipes.data.kinetics:scan"),
}


def load(target: str) -> Any:
    """Import `module:attribute`.

    Raises:
        ImportError: the module or attribute is missing; the message names the target.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError as error:
        raise ImportError(f"{target}: the module has no {attribute!r}") from error
