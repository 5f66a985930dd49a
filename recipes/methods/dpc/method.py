"""Dense Predictive Coding: network, rollout and the dense contrastive loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.data.augment import augment, normalize
from recipes.data.clip_config import ClipConfig
from recipes.data.loader import Batch
from recipes.engine.contract import LossOutput
from recipes.methods.dpc.config import DPCConfig
from recipes.models.config import BackboneConfig, ContextConfig, EncoderConfig
from recipes.models.conv_gru import ConvGRU
from recipes.models.encoder import VideoEncoder, block_features, build_backbone

_TOP_K = (1, 3, 5)


class DPC(nn.Module):
    """Backbone f, aggregator g and predictor phi (TengdaHan/DPC, dpc/model_3d.py).

    Targets are the features before ReLU, the aggregator sees them after it. Predictions are rolled
    out: each enters the aggregator as the next block.
    """

    def __init__(self, config: DPCConfig, backbone: BackboneConfig, clip: ClipConfig) -> None:
        super().__init__()
        config.check_clip(clip)
        self.config, self.backbone_config, self.clip = config, backbone, clip
        self.backbone = build_backbone(backbone)
        dim = int(self.backbone.feature_dim)  # type: ignore[arg-type]
        self.context = ConvGRU(dim, config.dropout)
        self.predictor = _predictor(dim)
        self.steps = config.steps_at(0)

    def set_epoch(self, epoch: int) -> None:
        """Follow the horizon schedule."""
        self.steps = self.config.steps_at(epoch)

    def loss(self, batch: Batch) -> LossOutput:
        """Dense loss of one micro-batch; negatives come from this micro-batch alone."""
        with torch.autocast(batch.clips.device.type, enabled=False):
            augmentation = self.config.augmentation
            clips = normalize(augment(batch.clips, batch.seeds, augmentation))
        features = block_features(self.backbone, clips)
        observed = features.shape[1] - self.config.pred_steps
        predicted = self.predict(features[:, :observed], self.steps)
        targets = features[:, observed : observed + self.steps]
        with torch.autocast(batch.clips.device.type, enabled=False):
            predicted, targets = predicted.float(), targets.float()
            loss, metrics = dense_loss(predicted, targets)
        return LossOutput(loss=loss, metrics=metrics)

    def predict(self, observed: Tensor, steps: int) -> Tensor:
        """Features of the observed blocks (B, N, D, h, w) to those of the next (B, P, D, h, w)."""
        hidden = self.context(torch.relu(observed))
        predictions: list[Tensor] = []
        for step in range(steps):
            if step:
                hidden = self.context.step(torch.relu(predictions[-1]), hidden)
            predictions.append(self.predictor(hidden))
        return torch.stack(predictions, dim=1)

    def export_encoder(self) -> tuple[VideoEncoder, EncoderConfig]:
        """Backbone and aggregator, which is what DPC's downstream head is put on."""
        config = EncoderConfig(
            backbone=self.backbone_config,
            context=ContextConfig(dropout=self.config.dropout),
            clip=self.clip,
            method=self.config.name,
        )
        return VideoEncoder(self.backbone, self.context), config


def _predictor(dim: int) -> nn.Sequential:
    """1x1 convolution, ReLU, 1x1 convolution; orthogonal weights, zero biases."""
    layers = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.ReLU(inplace=True), nn.Conv2d(dim, dim, 1))
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return layers


def dense_loss(predicted: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of every predicted location over all target locations of the batch.

    L = -mean_{b,i,k} log( exp(p_bik . z_bik) / sum_{b',j,k'} exp(p_bik . z_b'jk') ), dot products
    without temperature or normalization. Negatives are other videos, other places of the same
    block and other blocks of the same video. A prediction that says nothing gives
    ln(B * P * h * w).

    Args:
        predicted: (B, P, D, h, w).
        targets: (B, P, D, h, w), before ReLU; gradient flows through them too.

    Returns:
        The loss, and detached: share of locations whose positive is among the best 1, 3 and 5
        scores, cosine of positive pairs, and standard deviation of the normalized targets over
        locations, times sqrt(D): near 1 when healthy, 0 when all features are equal.
    """
    queries, keys = _locations(predicted), _locations(targets)
    scores = queries @ keys.t()
    labels = torch.arange(len(scores), device=scores.device)
    loss = functional.cross_entropy(scores, labels)
    with torch.no_grad():
        # Ties count against the positive: features that are all equal must not look right.
        rank = (scores >= scores.diagonal()[:, None]).sum(dim=1)
        metrics = {f"top{k}": (rank <= k).float().mean() for k in _TOP_K}
        metrics["positive_similarity"] = functional.cosine_similarity(queries, keys).mean()
        spread = functional.normalize(keys, dim=1).std(dim=0, correction=0)
        metrics["feature_std"] = spread.mean() * keys.shape[1] ** 0.5
    return loss, metrics


def _locations(features: Tensor) -> Tensor:
    """(B, P, D, h, w) to (B * P * h * w, D)."""
    return features.movedim(2, -1).flatten(0, -2)
