"""What a rank holds of every parameter and of its optimizer state, under any ZeRO stage.

DeepSpeed's optimizer updates tensors of its own making: under ZeRO 1 and 2 this rank's slice of a
group of parameters laid end to end, under ZeRO 3 slices of each parameter laid end to end, else the
parameters themselves. A `Slot` says which elements of which parameter lie where in them, so that
weights and optimizer state are read and written here without DeepSpeed's help or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

Scalars = Mapping[str, Mapping[str, Any]]
Fetch = Callable[["Slot", str], Tensor]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Elements [start, start + length) of a parameter, at `offset` of the tensor `owner`.

    `owner` is what the optimizer updates and keeps state for. `replicated` slots are the same on
    all ranks.
    """

    name: str
    start: int
    length: int
    owner: Tensor
    offset: int
    replicated: bool = False

    def read(self, tensor: Tensor) -> Tensor:
        """(length,) of the owner, or of a state tensor of its shape; a view where possible."""
        return tensor.detach().reshape(-1)[self.offset : self.offset + self.length]

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Set what `read` gives to `values`, (length,)."""
        whole = self.length == tensor.numel()
        flat = tensor.detach() if whole else tensor.detach().view(-1)
        # Whole parameters may have another memory format than contiguous.
        place = flat if whole else flat[self.offset : self.offset + self.length]
        place.copy_(values.view(place.shape))


def slots(raw: Any, model: nn.Module) -> list[Slot]:
    """All that this rank holds of the parameters of a model in a DeepSpeed engine, frozen ones too.

    Args:
        raw: the DeepSpeed engine.
        model: a part of the engine's module; gives the names.
    """
    stage = raw.zero_optimization_stage()
    place = {0: _plain, 1: _zero_2, 2: _zero_2, 3: _zero_3}[stage]
    found = [place(raw.optimizer, name, parameter) for name, parameter in model.named_parameters()]
    return [slot for slot in found if slot is not None and slot.length > 0]


def shapes(model: nn.Module) -> dict[str, list[int]]:
    """Shape of every parameter, also where ZeRO 3 has taken it away."""
    return {name: list(_shape(parameter)) for name, parameter in model.named_parameters()}


def _shape(parameter: nn.Parameter) -> torch.Size:
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _plain(optimizer: Any, name: str, parameter: nn.Parameter) -> Slot:
    length = parameter.numel()
    return Slot(name=name, start=0, length=length, owner=parameter, offset=0, replicated=True)


def _zero_2(optimizer: Any, name: str, parameter: nn.Parameter) -> Slot | None:
    if not parameter.requires_grad:
        return _plain(optimizer, name, parameter)
    mapping: Any = getattr(parameter, "_hp_mapping", None)
    if mapping is None:  # all of it lies on other ranks
        return None
    return Slot(
        name=name,
        start=mapping.lp_fragment_address.start,
        length=mapping.lp_fragment_address.numel,
        owner=optimizer.single_partition_of_fp32_groups[mapping.param_group_index],
        offset=mapping.hp_fragment_address.start,
    )


def _zero_3(optimizer: Any, name: str, parameter: Any) -> Slot:
    share = parameter.partition_numel()
    start = share * optimizer._get_param_partition_rank(parameter)
    length = min(share, parameter.ds_numel - start)  # the last ranks' shares are padded
    owner, offset = parameter.ds_tensor, 0
    if parameter.requires_grad:
        group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
        owner = optimizer.fp32_partitioned_groups_flat[group]
    return Slot(name=name, start=start, length=length, owner=owner, offset=offset)


def share_out(held: Sequence[Slot], rank: int, world_size: int) -> list[Slot]:
    """What this rank saves: what only it has, and an equal share of what all have."""
    own = [slot for slot in held if not slot.replicated]
    shared = [slot for slot in held if slot.replicated]
    total, at = sum(slot.length for slot in shared), 0
    first, last = total * rank // world_size, total * (rank + 1) // world_size
    for slot in shared:
        low, high = max(first - at, 0), min(last - at, slot.length)
        if low < high:
            begin = slot.start + low
            own.append(replace(slot, start=begin, offset=slot.offset + low, length=high - low))
        at += slot.length
    return own


def optimizer_of(raw: Any) -> torch.optim.Optimizer:
    """PyTorch's optimizer below DeepSpeed's."""
    inner: torch.optim.Optimizer = raw.optimizer
    return inner.optimizer if raw.zero_optimization_stage() else inner  # type: ignore[attr-defined]


def tensors(slot: Slot, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The slot's weights and what of its optimizer state has their shape, by kind; (length,) each.

    Raises:
        TypeError: the state is something that a checkpoint cannot hold.
    """
    state = _state(slot.owner, optimizer)
    kept = {kind: value for kind, value in state.items() if _has_shape(kind, value, slot.owner)}
    return {"weight": slot.read(slot.owner)} | {k: slot.read(value) for k, value in kept.items()}


def scalars(slot: Slot, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What of the slot's optimizer state is a number: a number, or [number, dtype] of a tensor."""
    found: dict[str, Any] = {}
    for kind, value in _state(slot.owner, optimizer).items():
        if _has_shape(kind, value, slot.owner):
            continue
        if isinstance(value, Tensor) and value.numel() == 1:
            found[kind] = [value.item(), str(value.dtype).removeprefix("torch.")]
        elif isinstance(value, int | float):
            found[kind] = value
        elif value is not None:
            kept = (
                f"{type(optimizer).__name__} keeps {kind} of {slot.name} as {type(value).__name__}"
            )
            raise TypeError(f"{kept}: neither a number nor a tensor of the parameter's shape")
    return found


def _state(owner: Tensor, optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
    state: Mapping[str, Any] = optimizer.state.get(owner, {})
    return state


def _has_shape(kind: str, value: Any, owner: Tensor) -> bool:
    return isinstance(value, Tensor) and kind != "step" and value.shape == owner.shape


def load(
    held: Sequence[Slot],
    raw: Any,
    kinds: Callable[[str], Sequence[str]],
    fetch: Fetch,
    numbers: Scalars,
) -> None:
    """Write weights and optimizer state; a collective of all ranks where ZeRO splits them.

    Args:
        held: all slots of this rank.
        raw: the DeepSpeed engine.
        kinds: of tensors that were saved of a parameter.
        fetch: (length,) of one kind for a slot.
        numbers: by parameter name, what `scalars` gave.
    """
    optimizer = optimizer_of(raw)
    before_writing(raw)
    for slot in held:
        slot.write(slot.owner, fetch(slot, "weight"))
        for kind in kinds(slot.name):
            if kind != "weight":
                state = optimizer.state[slot.owner]
                if state.get(kind) is None:
                    state[kind] = torch.zeros_like(slot.owner, requires_grad=False)
                slot.write(state[kind], fetch(slot, kind))
        for kind, value in numbers.get(slot.name, {}).items():
            _set_number(optimizer, slot.owner, kind, value)
    _after_writing(raw)


def _set_number(optimizer: torch.optim.Optimizer, owner: Tensor, kind: str, value: Any) -> None:
    """Of parameters that share an owner under ZeRO, the largest count is that of the group."""
    state = optimizer.state[owner]
    number, dtype = value if isinstance(value, list) else (value, None)
    number = max(number, float(state[kind])) if state.get(kind) is not None else number
    if dtype is not None:
        # Where the fused kernels want their step count; see Optimizer.load_state_dict.
        beside = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
        device = owner.device if beside else "cpu"
        state[kind] = torch.tensor(number, dtype=getattr(torch, dtype), device=device)
    else:
        state[kind] = type(value)(number)


def before_writing(raw: Any) -> None:
    """Under ZeRO 3, give back the parameters that are kept whole: their slices will change."""
    if raw.zero_optimization_stage() == 3:
        raw.optimizer.checkpoint_event_prologue()


@torch.no_grad()
def _after_writing(raw: Any) -> None:
    """Bring the optimizer's weights into the model, from all ranks."""
    stage = raw.zero_optimization_stage()
    if stage in (1, 2):
        raw.optimizer.update_lp_params()
    elif stage == 3:
        masters = raw.optimizer.fp32_partitioned_groups_flat
        for master, used in zip(masters, raw.optimizer.fp16_partitioned_groups_flat, strict=True):
            used.copy_(master)
        raw.optimizer.checkpoint_event_epilogue()
