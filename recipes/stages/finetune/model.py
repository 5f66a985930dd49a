"""An encoder with a classifier on top, trained on labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.data.augment import augment, normalize
from recipes.data.clip_config import AugmentConfig
from recipes.data.loader import Batch
from recipes.engine.contract import LossOutput
from recipes.models.encoder import VideoEncoder

# Names of parameters that learn at the encoder's rate begin with it.
ENCODER_PREFIX = "encoder."


class VideoClassifier(nn.Module):
    """Encoder, batch norm, dropout and one linear layer (TengdaHan/DPC, eval/model_3d_lc.py).

    With a context network: backbone, ReLU, mean over a block's time, ConvGRU over all blocks, mean
    of the last state over space. Without: the encoder's pooled feature. The linear layer starts
    orthogonal with zero bias, as there.
    """

    def __init__(
        self, encoder: VideoEncoder, num_classes: int, dropout: float, augmentation: AugmentConfig
    ) -> None:
        super().__init__()
        dim = encoder.feature_dims["pooled"]
        self.encoder = encoder
        self.norm = nn.BatchNorm1d(dim)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self._augmentation = augmentation

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, K) of normalized clips (B, N, C, T, H, W)."""
        logits: Tensor = self.linear(self.dropout(self.norm(self._features(clips))))
        return logits

    def loss(self, batch: Batch) -> LossOutput:
        """Cross-entropy of one micro-batch, and its accuracy."""
        with torch.autocast(batch.clips.device.type, enabled=False):
            clips = normalize(augment(batch.clips, batch.seeds, self._augmentation))
        logits = self(clips).float()
        right = logits.detach().argmax(1) == batch.labels
        loss = functional.cross_entropy(logits, batch.labels)
        return LossOutput(loss=loss, metrics={"top1": right.float().mean()})

    def probabilities(self, clips: Tensor) -> Tensor:
        """Softmax (B, K) of uint8 clips (B, N, C, T, H, W); for testing."""
        return self(normalize(clips.float().div_(255.0))).softmax(1)  # type: ignore[no-any-return]

    def _features(self, clips: Tensor) -> Tensor:
        if self.encoder.context is None:
            pooled: Tensor = self.encoder(clips)["pooled"]
            return pooled
        # ReLU before the mean over time, unlike in pretraining: that is how DPC's head does it.
        blocks = torch.relu(self.encoder.backbone(clips.flatten(0, 1))).mean(dim=2)
        state: Tensor = self.encoder.context(blocks.view(*clips.shape[:2], *blocks.shape[1:]))
        return state.mean(dim=(2, 3))
