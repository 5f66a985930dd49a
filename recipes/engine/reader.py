"""A committed checkpoint opened for reading: any rank takes what its own layout needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from recipes.contract import InputError
from recipes.engine import shards, state
from recipes.engine.fragments import Slot

_NOT_FRAGMENTS = ("buffer/", "random/")


class Reader:
    """The files of all ranks that saved; nothing is read before it is asked for.

    `states` is what every rank saved that is no tensor.
    """

    def __init__(self, folder: Path, ranks: int) -> None:
        """Open and check that every element of every parameter is there once.

        Raises:
            InputError: it is not; names parameter and range.
        """
        self.folder = folder
        paths = [str(folder / shards.file_name(rank)) for rank in range(ranks)]
        self._files: list[Any] = [safe_open(path, framework="pt") for path in paths]
        texts = [file.metadata()["state"] for file in self._files]
        self.states: list[dict[str, Any]] = [json.loads(text) for text in texts]
        self._pieces = shards.Pieces(
            (rank, key, file.get_slice(key).get_shape()[0])
            for rank, file in enumerate(self._files)
            for key in _keys(file)
            if not key.startswith(_NOT_FRAGMENTS)
        )
        shapes = self.states[0]["parameters"]
        self._pieces.check({name: torch.Size(shape).numel() for name, shape in shapes.items()})

    def refuse_misfit(self, shapes: Mapping[str, list[int]]) -> None:
        """Compare with the parameters of the model that is to be filled.

        Raises:
            InputError: names what does not fit.
        """
        saved = self.states[0]["parameters"]
        for name in sorted(saved.keys() ^ shapes.keys()):
            where = "the model" if name in saved else "the checkpoint"
            raise InputError(f"{self.folder}: {where} has no parameter {name}")
        for name, shape in sorted(shapes.items()):
            if saved[name] != shape:
                raise InputError(
                    f"{self.folder}: parameter {name} has shape {saved[name]} in the checkpoint "
                    f"and {shape} in the model"
                )

    def kinds(self, parameter: str) -> list[str]:
        """Weight and optimizer state that was kept of a parameter."""
        return self._pieces.kinds(parameter)

    def fetch(self, slot: Slot, kind: str) -> Tensor:
        """(length,) of one kind for a slot, from however many files."""
        parts = [
            self._files[part.piece.rank].get_slice(
                shards.fragment_key(kind, part.piece.start, slot.name)
            )[part.begin : part.end]
            for part in self._pieces.parts(kind, slot.name, slot.start, slot.length)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def numbers(self) -> dict[str, dict[str, Any]]:
        """Scalars of the optimizer's state by parameter; ranks that share one agree."""
        found: dict[str, dict[str, Any]] = {}
        for one in self.states:
            found.update(one["scalars"])
        return found

    def own(self, prefix: str, rank: int) -> dict[str, Tensor]:
        """Tensors `buffer/...` or `random/...` of a rank; of rank 0 for one that was added."""
        file = self._files[rank if rank < len(self._files) else 0]
        start = f"{prefix}/"
        return {
            key[len(start) :]: file.get_tensor(key) for key in _keys(file) if key.startswith(start)
        }

    def fill_buffers(self, model: nn.Module, rank: int) -> None:
        """Set the model's buffers to this rank's, and to rank 0's where it keeps them for all.

        Raises:
            InputError: names and shapes do not fit.
        """
        present = dict(model.named_buffers())
        equal = state.equal_buffers(model)
        saved = {n: value for n, value in self.own("buffer", 0).items() if n in equal}
        saved |= self.own("buffer", rank)
        for name in sorted(saved.keys() ^ present.keys()):
            where = "the model" if name in saved else "the checkpoint"
            raise InputError(f"{self.folder}: {where} has no buffer {name}")
        for name, value in saved.items():
            if value.shape != present[name].shape:
                raise InputError(
                    f"{self.folder}: buffer {name} has shape {list(value.shape)} in the checkpoint "
                    f"and {list(present[name].shape)} in the model"
                )
            present[name].copy_(value)


def _keys(file: Any) -> list[str]:
    names: list[str] = file.keys()
    return names
