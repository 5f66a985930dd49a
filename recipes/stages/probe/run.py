"""The probe stage: how far classes can be told apart linearly in frozen features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from cluster import fsio
from recipes.contract import Output, Progress, StageContext, StageResult
from recipes.data.table import VideoTable
from recipes.engine import distributed
from recipes.evaluation.classification import classification_metrics, write_classification
from recipes.evaluation.features import Extraction, extract_features, save_features
from recipes.evaluation.frozen import check_frozen, digest
from recipes.evaluation.linear import LinearClassifier, best_strength, fit, hold_out, select
from recipes.evaluation.subject import Subject, calibrate, labelled_videos, open_subject, summary
from recipes.stages.probe.config import ProbeConfig


def run(ctx: StageContext, config: ProbeConfig) -> StageResult:
    """Take features of all training and test videos, fit a linear classifier, test it.

    Raises:
        Preempted: a stop was requested; nothing is kept, the stage starts again.
        StageError: the encoder changed while its features were taken.
    """
    distributed.init(ctx)
    subject = open_subject(ctx, config)
    train = labelled_videos(ctx, config, "train", subject.clip)
    test = labelled_videos(ctx, config, "test", subject.clip)
    if config.calibrates:
        calibrate(ctx, subject, train, config.workers, config.read_seconds)
    before = digest(subject.encoder)
    features = {
        name: extract_features(
            ctx,
            subject.encoder,
            config.feature,
            table,
            subject.clip,
            Extraction(
                windows=config.windows,
                batch_size=config.batch_size,
                workers=config.workers,
                read_seconds=config.read_seconds,
                phase=f"{name} features",
            ),
        )
        for name, table in (("train", train), ("test", test))
    }
    check_frozen(subject.encoder, before)
    if not distributed.is_main():
        return StageResult()
    return _result(ctx, config, subject, train, test, features)


def _result(
    ctx: StageContext,
    config: ProbeConfig,
    subject: Subject,
    train: VideoTable,
    test: VideoTable,
    features: dict[str, Tensor],
) -> StageResult:
    labels = {"train": torch.tensor(train.labels), "test": torch.tensor(test.labels)}
    ctx.report_progress(Progress(phase="classifier", step=0, steps=1))
    device = distributed.device(ctx)
    model, held_out = _classifier(config, train, features["train"], labels["train"], device)
    scores = model.scores(features["test"])
    train_scores = model.scores(features["train"])
    metrics = classification_metrics(scores, labels["test"])
    metrics |= {
        "train_top1": float((train_scores.argmax(1) == labels["train"]).double().mean()),
        "num_train": float(len(train)),
        "C": model.inverse_strength,
        "objective": model.objective,
        "frozen": 1.0,
        "coverage": test.coverage,
    }
    metrics |= {f"holdout_top1/C_{strength:g}": share for strength, share in held_out.items()}
    ctx.log_metrics(0, metrics)
    facts = summary(
        config,
        subject.clip,
        test,
        protocol="linear",
        method=subject.description.method,
        backbone=subject.description.backbone.name,
        pretrain_data=subject.description.pretrain_data,
        feature=config.feature,
        note=_note(config),
    )
    write_classification(ctx.output_dir, scores.softmax(1), test)
    return StageResult(
        outputs=_write(ctx.output_dir, model, test.classes, features, labels, facts),
        metrics=metrics,
        summary=facts,
    )


def _classifier(
    config: ProbeConfig,
    train: VideoTable,
    features: Tensor,
    labels: Tensor,
    device: torch.device,
) -> tuple[LinearClassifier, dict[float, float]]:
    """The classifier fitted to all training videos, and the held-out accuracy of each C tried."""
    num_classes = len(train.classes)
    held_out: dict[float, float] = {}
    strength = config.strengths[0]
    if len(config.strengths) > 1:
        parts = hold_out(train.labels, train.groups, config.holdout, config.seed)
        held_out = select(
            features, labels, num_classes, config.strengths, parts, config.max_iterations, device
        )
        strength = best_strength(held_out)
    model = fit(features, labels, num_classes, strength, config.max_iterations, device)
    return model, held_out


def _note(config: ProbeConfig) -> str:
    how = "C chosen on held-out groups" if len(config.strengths) > 1 else f"C={config.strengths[0]}"
    notes = [f"logistic regression, {how}", f"mean of {config.windows} windows"]
    if config.feature == "context":
        notes.append("context feature")
    if config.calibrates:
        notes.append("batch-norm statistics calibrated")
    return "; ".join(notes)


def _write(
    folder: Path,
    model: LinearClassifier,
    classes: tuple[str, ...],
    features: dict[str, Tensor],
    labels: dict[str, Tensor],
    facts: dict[str, Any],
) -> dict[str, Output]:
    path = folder / "classifier.safetensors"
    tensors = {
        "weight": model.weight,
        "bias": model.bias,
        "mean": model.mean,
        "scale": model.scale,
    }
    about = {"schema_version": 1, "classes": classes, "inverse_strength": model.inverse_strength}
    description = json.dumps({**about, "of": facts}, sort_keys=True)
    whole = {name: value.contiguous() for name, value in tensors.items()}
    fsio.write_bytes(path, save(whole, metadata={"classifier": description}))
    named = {f"{name}.features": value for name, value in features.items()}
    named |= {f"{name}.labels": value for name, value in labels.items()}
    stored = save_features(folder / "features.safetensors", named, facts)
    return {
        "classifier": Output(kind="classifier", path=path, meta={"classes": list(classes)}),
        "features": Output(kind="features", path=stored, meta=facts),
    }
