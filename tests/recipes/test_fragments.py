"""Ranks share the saving out evenly, whatever memory format, and a misfit is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recipes.contract import InputError
from recipes.engine import fragments, shards
from recipes.engine.fragments import Slot
from recipes.engine.reader import Reader
from recipes.engine.writer import Snapshot


def net() -> nn.Sequential:
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 5, 3).to(memory_format=torch.channels_last_3d)
    return nn.Sequential(convolution, nn.BatchNorm3d(5), nn.Flatten(), nn.Linear(5, 2))


def whole_slots(model: nn.Module) -> list[Slot]:
    return [
        Slot(name=name, start=0, length=p.numel(), owner=p, offset=0, replicated=True)
        for name, p in model.named_parameters()
    ]


def stepped(optimizer_class: Any, **options: Any) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = net()
    optimizer = optimizer_class(model.parameters(), lr=0.1, **options)
    for _ in range(3):
        model(torch.randn(4, 3, 3, 3, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: int) -> Reader:
    """As so many ranks do that hold the same."""
    for rank in range(ranks):
        tensors, scalars = {}, {}
        for slot in fragments.share_out(whole_slots(model), rank, ranks):
            for kind, values in fragments.tensors(slot, optimizer).items():
                tensors[shards.fragment_key(kind, slot.start, slot.name)] = values
            scalars[slot.name] = fragments.scalars(slot, optimizer)
        tensors |= {f"buffer/{name}": value for name, value in model.named_buffers()}
        snapshot = Snapshot(torch.device("cpu"))
        layout = snapshot.take(tensors)
        state = {"parameters": fragments.shapes(model), "scalars": scalars}
        shards.write(folder / shards.file_name(rank), layout, snapshot.data(), state)
    return Reader(folder, ranks)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 500])
def test_ranks_write_equal_shares_that_make_up_the_whole(ranks):
    held = whole_slots(net())
    shares = [fragments.share_out(held, rank, ranks) for rank in range(ranks)]
    total = sum(slot.length for slot in held)
    sizes = [sum(slot.length for slot in share) for share in shares]
    assert sum(sizes) == total
    assert max(sizes) - min(sizes) <= 1
    pieces = shards.Pieces(
        (rank, shards.fragment_key("weight", slot.start, slot.name), slot.length)
        for rank, share in enumerate(shares)
        for slot in share
    )
    pieces.check({slot.name: slot.length for slot in held})


def test_what_only_one_rank_has_it_writes_alone():
    own = Slot(name="a", start=4, length=3, owner=torch.zeros(9), offset=2)
    assert [fragments.share_out([own], rank, 4) for rank in range(4)] == [[own]] * 4


@pytest.mark.parametrize(
    ("kind", "options", "kinds"),
    [
        (torch.optim.Adam, {"fused": True}, ["weight", "exp_avg", "exp_avg_sq"]),
        (torch.optim.AdamW, {}, ["weight", "exp_avg", "exp_avg_sq"]),
        (torch.optim.SGD, {"momentum": 0.9}, ["weight", "momentum_buffer"]),
        (torch.optim.SGD, {}, ["weight"]),
    ],
)
def test_weights_and_optimizer_state_come_back_from_the_files_of_three_ranks(
    tmp_path, kind, options, kinds
):
    model, optimizer = stepped(kind, **options)
    reader = save(tmp_path, model, optimizer, 3)
    for slot in whole_slots(model):
        assert reader.kinds(slot.name) == kinds
        for name, values in fragments.tensors(slot, optimizer).items():
            assert torch.equal(reader.fetch(slot, name), values)
            middle = Slot(name=slot.name, start=1, length=1, owner=slot.owner, offset=1)
            assert torch.equal(reader.fetch(middle, name), values[1:2])
        numbers = reader.numbers()[slot.name]
        assert numbers == ({"step": [3.0, "float32"]} if "exp_avg" in kinds else {})


def test_a_slot_keeps_the_order_of_elements_in_any_memory_format():
    spread = torch.zeros(2, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d)
    values = torch.arange(48.0)
    slot = Slot(name="a", start=0, length=48, owner=spread, offset=0)
    slot.write(spread, values)
    assert torch.equal(spread.contiguous().flatten(), values)
    assert torch.equal(slot.read(spread), values)
    assert not spread.is_contiguous()


def test_state_that_a_checkpoint_cannot_hold_is_named():
    model, optimizer = stepped(torch.optim.Adam)
    (slot, *_) = whole_slots(model)
    optimizer.state[slot.owner]["history"] = [1, 2]
    with pytest.raises(TypeError, match=r"Adam keeps history of 0\.weight as list"):
        fragments.scalars(slot, optimizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"3.bias": None}, r"the model has no parameter 3\.bias"),
        ({"4.weight": [2]}, r"the checkpoint has no parameter 4\.weight"),
        ({"3.weight": [2, 6]}, r"3\.weight has shape \[2, 5\] in the checkpoint and \[2, 6\] in"),
    ],
)
def test_parameters_that_do_not_fit_are_named(tmp_path, change, message):
    model, optimizer = stepped(torch.optim.SGD)
    reader = save(tmp_path, model, optimizer, 1)
    shapes = {**fragments.shapes(model), **change}
    with pytest.raises(InputError, match=message):
        reader.refuse_misfit({name: shape for name, shape in shapes.items() if shape is not None})


def test_buffers_are_the_rank_s_own_and_those_of_rank_0_for_one_that_was_added(tmp_path):
    model, optimizer = stepped(torch.optim.SGD)
    reader = save(tmp_path, model, optimizer, 1)
    fresh = net()
    reader.fill_buffers(fresh, 3)
    for name, value in model.named_buffers():
        assert torch.equal(fresh.get_buffer(name), value)
    fresh.register_buffer("more", torch.zeros(2))
    with pytest.raises(InputError, match="the checkpoint has no buffer more"):
        reader.fill_buffers(fresh, 0)


def test_without_the_file_of_one_rank_the_rest_is_refused(tmp_path):
    model, optimizer = stepped(torch.optim.Adam)
    save(tmp_path, model, optimizer, 3)
    with pytest.raises(InputError, match=r"has no weight of 0\.bias"):
        Reader(tmp_path, 2)
