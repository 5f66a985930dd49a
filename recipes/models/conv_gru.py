"""A gated recurrent unit over feature maps, the aggregator of DPC."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvGRU(nn.Module):
    """One layer, hidden as wide as its input, kernels 1x1, zero first state.

    Weights start orthogonal and biases at zero; dropout falls on the hidden state after every step
    (TengdaHan/DPC, backbone/convrnn.py).
    """

    def __init__(self, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dim = dim
        self.reset_gate = _gate(dim)
        self.update_gate = _gate(dim)
        self.out_gate = _gate(dim)
        self.dropout = nn.Dropout(dropout)

    def step(self, x: Tensor, hidden: Tensor) -> Tensor:
        """One step: input and hidden (B, D, h, w) to the next hidden.

        u = sigmoid(W_u [x, h]), r = sigmoid(W_r [x, h]), n = tanh(W_n [x, r h]),
        h' = dropout((1 - u) h + u n).
        """
        both = torch.cat([x, hidden], dim=1)
        update = torch.sigmoid(self.update_gate(both))
        reset = torch.sigmoid(self.reset_gate(both))
        new = torch.tanh(self.out_gate(torch.cat([x, hidden * reset], dim=1)))
        out: Tensor = self.dropout(hidden * (1 - update) + new * update)
        return out

    def forward(self, sequence: Tensor) -> Tensor:
        """(B, N, D, h, w) to the hidden state after the last of N steps, (B, D, h, w)."""
        hidden = torch.zeros_like(sequence[:, 0])
        for x in sequence.unbind(dim=1):
            hidden = self.step(x, hidden)
        return hidden


def _gate(dim: int) -> nn.Conv2d:
    gate = nn.Conv2d(2 * dim, dim, kernel_size=1)
    nn.init.orthogonal_(gate.weight)
    if gate.bias is not None:
        nn.init.zeros_(gate.bias)
    return gate
