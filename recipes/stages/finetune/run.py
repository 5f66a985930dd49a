"""The fine-tuning stage: train encoder and classifier on labels, test the last weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from cluster import fsio
from recipes.contract import Output, StageContext, StageResult
from recipes.data.loader import TrainBatches
from recipes.data.table import VideoTable
from recipes.engine import distributed, optim
from recipes.engine.batches import training_batches
from recipes.engine.contract import TrainOutcome
from recipes.engine.loop import train
from recipes.evaluation.classification import classification_metrics, write_classification
from recipes.evaluation.features import Extraction, average_over_windows
from recipes.evaluation.subject import Subject, labelled_videos, open_subject, summary
from recipes.models.config import EncoderConfig
from recipes.stages.finetune.config import FinetuneConfig
from recipes.stages.finetune.model import ENCODER_PREFIX, VideoClassifier


def run(ctx: StageContext, config: FinetuneConfig) -> StageResult:
    """Train to the end of the schedule, then test with class probabilities averaged over windows.

    Raises:
        Preempted: a stop was requested; training goes on from its checkpoint, testing starts again.
        DivergedError: loss or gradient are not finite.
    """
    distributed.init(ctx)
    subject = open_subject(ctx, config)
    train_table = labelled_videos(ctx, config, "train", subject.clip)
    test_table = labelled_videos(ctx, config, "test", subject.clip)
    model = build_classifier(subject, len(train_table.classes), config)
    outcome = _train(ctx, config, subject, model, train_table)
    probabilities = _test(ctx, config, subject, model, test_table, outcome.steps)
    if not distributed.is_main():
        return StageResult(steps=outcome.steps)
    labels = torch.tensor(test_table.labels)
    metrics = classification_metrics(probabilities, labels)
    metrics |= {"num_train": float(len(train_table)), "coverage": test_table.coverage}
    ctx.log_metrics(outcome.steps, metrics)
    facts = _facts(config, subject, test_table)
    write_classification(ctx.output_dir, probabilities, test_table)
    path = ctx.output_dir / "classifier.safetensors"
    save_classifier(path, model, subject.description, test_table.classes, facts)
    output = Output(kind="classifier", path=path, meta={"classes": list(test_table.classes)})
    return StageResult(
        outputs={"classifier": output},
        metrics={**outcome.metrics, **metrics},
        summary={**facts, **outcome.remarks},
        steps=outcome.steps,
    )


def build_classifier(subject: Subject, num_classes: int, config: FinetuneConfig) -> VideoClassifier:
    """The network to train; its new layers are a pure function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return VideoClassifier(subject.encoder, num_classes, config.dropout, config.augmentation)


def save_classifier(
    path: Path,
    model: VideoClassifier,
    encoder: EncoderConfig,
    classes: tuple[str, ...],
    facts: dict[str, Any],
) -> None:
    """Write weights, the encoder's description and the class names as one safetensors file."""
    about = {
        "schema_version": 1,
        "encoder": encoder.model_dump(mode="json"),
        "classes": classes,
        "of": facts,
    }
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    metadata = {"classifier": json.dumps(about, sort_keys=True)}
    fsio.write_bytes(path, save(tensors, metadata=metadata))


def _train(
    ctx: StageContext,
    config: FinetuneConfig,
    subject: Subject,
    model: VideoClassifier,
    table: VideoTable,
) -> TrainOutcome:
    def batches(start_step: int) -> TrainBatches:
        return training_batches(
            ctx,
            config,
            table,
            subject.clip,
            config.augmentation,
            seed=config.seed,
            start_step=start_step,
        )

    groups = optim.param_groups(model, config.optimizer, {ENCODER_PREFIX: config.lr_ratio})
    return train(ctx, model, batches, config, param_groups=groups)


def _test(
    ctx: StageContext,
    config: FinetuneConfig,
    subject: Subject,
    model: VideoClassifier,
    table: VideoTable,
    steps: int,
) -> Tensor:
    """Class probabilities (V, K) of every test video, the mean over its windows."""
    extraction = Extraction(
        windows=config.windows,
        batch_size=config.micro_batch,
        workers=config.workers,
        read_seconds=config.read_seconds,
        phase="test",
        committed_step=steps,
    )
    model.eval()
    return average_over_windows(ctx, model.probabilities, table, subject.clip, extraction)


def _facts(config: FinetuneConfig, subject: Subject, test: VideoTable) -> dict[str, Any]:
    description = subject.description
    scratch = config.encoder == "random"
    length = f"{config.epochs} epochs" if config.epochs else f"{config.max_steps} steps"
    head = "ConvGRU state" if description.context is not None else "pooled feature"
    rate = "one learning rate" if config.lr_ratio == 1 else f"encoder's rate x {config.lr_ratio:g}"
    return summary(
        config,
        subject.clip,
        test,
        protocol="finetune",
        method="supervised" if scratch else description.method,
        backbone=description.backbone.name,
        pretrain_data=description.pretrain_data,
        note=f"{length}, {rate}, {head}; last weights; mean of {config.windows} windows",
    )
