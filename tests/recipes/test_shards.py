"""The file of a rank is plain safetensors, and every range of every parameter is accounted for."""

from __future__ import annotations

import json
import os
import threading

import pytest
import torch
from safetensors import safe_open

from cluster import fsio
from recipes.contract import InputError
from recipes.engine import shards
from recipes.engine.shards import Part, Piece, Pieces
from recipes.engine.writer import Background, Snapshot, pin

TENSORS = {
    "weight/0/layer": torch.randn(7),
    "weight/3/half": torch.randn(5).bfloat16(),
    "buffer/mask": torch.tensor([[True, False, True]]),
    "buffer/count": torch.tensor(12, dtype=torch.int64),
    "buffer/empty": torch.empty(0, 3),
    "random/torch": torch.arange(9, dtype=torch.uint8),
    "weight/0/spread": torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d),
}


def test_safetensors_reads_what_a_snapshot_holds_and_the_digest_is_that_of_the_file(tmp_path):
    snapshot = Snapshot(torch.device("cpu"))
    layout = snapshot.take(TENSORS)
    state = {"step": 3, "loss": 0.1 + 0.2, "name": "größe"}
    path = tmp_path / shards.file_name(2)
    written = shards.write(path, layout, snapshot.data(), state)
    assert written.name == "shard_00002.safetensors"
    assert (written.bytes, written.sha256) == (path.stat().st_size, fsio.sha256_file(path))
    assert path.stat().st_mode & 0o777 == 0o600
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["state"]) == state
        assert sorted(file.keys()) == sorted(TENSORS)
        for name, tensor in TENSORS.items():
            read = file.get_tensor(name)
            assert read.dtype == tensor.dtype
            assert torch.equal(read, tensor)


def test_a_snapshot_does_not_change_with_the_tensors_and_its_memory_is_used_again():
    snapshot, weight = Snapshot(torch.device("cpu")), torch.ones(4)
    snapshot.take({"weight": weight})
    first = snapshot.data()
    weight.zero_()
    assert bytes(first) == torch.ones(4).numpy().tobytes()
    snapshot.take({"weight": weight})
    assert bytes(first) == bytes(16)


def test_a_tensor_that_safetensors_cannot_hold_is_named():
    with pytest.raises(TypeError, match=r"buffer/phase is of torch\.complex64"):
        Snapshot(torch.device("cpu")).take({"buffer/phase": torch.ones(2, dtype=torch.complex64)})


def test_a_file_is_never_written_over(tmp_path):
    path = tmp_path / shards.file_name(0)
    path.write_bytes(b"before")
    with pytest.raises(FileExistsError):
        shards.write(path, {}, memoryview(b""), {})
    assert path.read_bytes() == b"before"


def test_a_large_file_is_flushed_by_parts_and_every_part_is_heard_of(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_CHUNK", 1000)
    monkeypatch.setattr(shards, "_FLUSHED", 4000)
    heard, flushes = [], []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (flushes.append(len(heard)), real(file)))
    data = memoryview(bytes(10_000))
    layout = {"weight/0/a": shards.Stored("U8", (len(data),), 0, len(data))}
    written = shards.write(tmp_path / "file", layout, data, {}, lambda: heard.append(1))
    assert written.sha256 == fsio.sha256_file(tmp_path / "file")
    assert len(heard) == 11, "the header and ten parts"
    assert flushes == [4, 8, 11]


def test_a_parameter_without_elements_needs_no_piece():
    Pieces(PIECES).check({**NUMELS, "none": 0})


def test_work_that_got_on_since_the_last_look_is_told_from_work_that_stands_still():
    background, go_on = Background(), threading.Event()
    background.moved()

    def work() -> None:
        go_on.wait()
        background.moved()

    background.start(work)
    assert background.rest(0.0)
    assert not background.rest(0.01)
    assert background.running
    go_on.set()
    assert background.rest(60.0)
    assert not background.running
    assert not background.rest(0.0)


class _Runtime:
    """A CUDA runtime that does not let memory be locked."""

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        return 2


def test_where_memory_cannot_be_pinned_ordinary_memory_is_used_with_a_warning(monkeypatch, caplog):
    def refuse(code: int) -> None:
        if code:
            raise RuntimeError(f"error {code}")

    def blamed(*size: int, device: str) -> None:
        raise RuntimeError("error 2, which was another's")

    monkeypatch.setattr(torch.cuda, "cudart", _Runtime)
    monkeypatch.setattr(torch, "ones", blamed)
    monkeypatch.setattr(torch.cuda, "check_error", refuse)
    assert not pin(torch.empty(10, dtype=torch.uint8))
    assert "cannot pin 0.00 GB for checkpoints (error 2)" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_a_snapshot_of_a_gpu_is_pinned_and_as_large_as_what_it_holds():
    device = torch.device("cuda", 0)
    snapshot = Snapshot(device)
    for numel in (1000, 3000):
        values = torch.arange(numel, device=device)
        snapshot.take({"weight/0/a": values})
        assert bytes(snapshot.data()) == values.cpu().numpy().tobytes()
        assert snapshot._block.is_pinned()
        assert snapshot._block.untyped_storage().nbytes() == 8 * numel


def test_what_the_background_raised_is_told_once():
    background = Background()

    def fail() -> None:
        raise OSError("full")

    background.start(fail)
    assert str(background.wait()) == "full"
    assert background.wait() is None
    assert not background.running


PIECES = [
    (0, "weight/0/a", 4),
    (1, "weight/4/a", 3),
    (2, "weight/7/a", 5),
    (0, "exp_avg/0/a", 12),
    (1, "weight/0/b", 1),
]
NUMELS = {"a": 12, "b": 1}


def test_a_range_is_put_together_from_the_files_that_have_it():
    pieces = Pieces(PIECES)
    pieces.check(NUMELS)
    assert pieces.kinds("a") == ["weight", "exp_avg"]
    assert pieces.kinds("b") == ["weight"]
    assert pieces.parts("weight", "a", 3, 6) == [
        Part(Piece(0, 4, 0), 3, 4, 0),
        Part(Piece(4, 3, 1), 0, 3, 1),
        Part(Piece(7, 5, 2), 0, 2, 4),
    ]
    assert pieces.parts("exp_avg", "a", 3, 6) == [Part(Piece(0, 12, 0), 3, 9, 0)]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([p for p in PIECES if p[0] != 1 or "a" not in p[1]], "weight of a, elements 4 to 6, is m"),
        (PIECES[1:], "weight of a, elements 0 to 3, is missing"),
        ([p for p in PIECES if p[0] != 2], "weight of a, elements 7 to 11, is missing"),
        ([*PIECES, (3, "weight/5/a", 7)], "weight of a, elements 5 to 6, is there twice"),
        ([*PIECES, (3, "weight/4/a", 3)], "weight of a, elements 4 to 6, is there twice"),
        ([*PIECES, (3, "weight/12/a", 2)], "weight of a, elements 12 to 13, is too much"),
        (PIECES[:4], "no weight of b"),
        ([*PIECES, (3, "exp_avg_sq/1/a", 11)], "exp_avg_sq of a, elements 0 to 0, is missing"),
    ],
)
def test_what_is_missing_or_there_twice_is_named_with_its_range(pieces, message):
    with pytest.raises(InputError, match=message):
        Pieces(pieces).check(NUMELS)
