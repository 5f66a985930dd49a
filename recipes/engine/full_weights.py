"""Whole weights of a model that ZeRO 3 keeps in pieces: for a while, or for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# What DeepSpeed leaves on a module besides hooks (zero/parameter_offload.py, zero/
# partition_parameters.py and zero/partitioned_param_coordinator.py).
_LEFTOVERS = frozenset(
    {
        "all_parameters",
        "applied_pre_backward_ref_cnt",
        "pre_bwd_fn",
        "post_bwd_fn",
        "_external_params",
        "_original_parameters",
    }
)


@contextmanager
def whole(model: nn.Module, zero3: Any) -> Iterator[None]:
    """Inside, the model is whole and runs without DeepSpeed; a collective at both ends.

    Its hooks must go meanwhile: they would take each module apart again right after it ran. They
    come back with the trace of modules invalid, so that the next step records it anew.

    Args:
        model: the model as the method built it.
        zero3: DeepSpeed's optimizer of stage 3.
    """
    parameters = _in_order(model)
    offload = zero3.parameter_offload
    parameters[0].all_gather(param_list=parameters)
    _remove_hooks(offload)
    try:
        yield
    finally:
        offload._register_deepspeed_module(offload.module)
        parameters[0].partition(param_list=parameters, has_been_updated=False)


def make_plain(model: nn.Module, zero3: Any) -> None:
    """Make the model an ordinary module with whole weights, for good; a collective."""
    parameters = _in_order(model)
    offload = zero3.parameter_offload
    parameters[0].all_gather(param_list=parameters)
    plain = {
        id(parameter): nn.Parameter(parameter.data.clone(), parameter.requires_grad)
        for parameter in parameters
    }
    _remove_hooks(offload)
    for module in model.modules():
        owned = {
            name: None if value is None else plain[id(value)]
            for name, value in module._parameters.items()
        }
        module._parameters = owned
        for name in [name for name in vars(module) if name.startswith("ds_") or name in _LEFTOVERS]:
            delattr(module, name)
    parameters[0].partition(param_list=parameters, has_been_updated=False)


def _in_order(model: nn.Module) -> list[Any]:
    """All parameters in an order that every rank agrees on."""
    return sorted(set(model.parameters()), key=lambda parameter: parameter.ds_id)


def _remove_hooks(offload: Any) -> None:
    for hook in (*offload.forward_hooks, *offload.backward_hooks):
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
