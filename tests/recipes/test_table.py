"""The table of videos: columns of an index, strings in few bytes, one copy for all processes."""

from __future__ import annotations

import mmap
import pickle
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.contract import Artifact, InputError
from recipes.data.shared import Parcel
from recipes.data.table import VideoTable, load_table
from recipes.data.texts import Texts


def index_of(folder: Path, rows: int = 6, **columns: Any) -> Artifact:
    """An index as its stage writes it; only what a table needs."""
    content: dict[str, Any] = {
        "path": [f"класс {number % 2}/{number}.mp4" for number in range(rows)],
        "label": [f"class {number % 2}" for number in range(rows)],
        "label_id": [number % 2 for number in range(rows)],
        "split": ["train"] * rows,
        "group": [f"scene {number}" for number in range(rows)],
        "frames": range(10, 10 + rows),
        "width": 64,
        "height": 48,
        "rotation": 0,
        "gop": 12,
        "bytes": range(1000, 1000 + rows),
        "mtime_ns": [2**60 + number for number in range(rows)],
        "verdict": "random",
        **columns,
    }
    path = folder / "index.parquet"
    pd.DataFrame(content).to_parquet(path, index=False, compression="zstd")
    meta = {"name": "small", "root": "/videos", "classes": ["class 0", "class 1"]}
    return Artifact(name="dataset", kind="dataset", path=path, sha256="", bytes=1, meta=meta)


def with_meta(artifact: Artifact, **meta: Any) -> Artifact:
    return Artifact(**{**vars(artifact), "meta": {**artifact.meta, **meta}})


def test_each_column_arrives_in_its_row(tmp_path: Path) -> None:
    rotations, verdicts = [0, 90, 180, 270, 0, 0], ["random", "sequential"] * 3
    artifact = index_of(tmp_path, rotation=rotations, verdict=verdicts)
    table = load_table(with_meta(artifact, decoder="pyav"), "train")
    assert (len(table), table.total, table.decoder) == (6, 6, "pyav")
    assert table.file(3) == Path("/videos/класс 1/3.mp4")
    assert table.rotations.tolist() == rotations
    assert table.verdicts == tuple(verdicts)
    assert table.mtimes_ns.tolist() == [2**60 + number for number in range(6)]
    assert table.instances is table.cameras is table.offsets is table.starts is None


def test_prepared_files_lie_below_a_root_of_their_own(tmp_path: Path) -> None:
    artifact = index_of(tmp_path, prepared=[False, True] * 3)
    table = load_table(with_meta(artifact, prepared_root="/prepared"), "train")
    assert str(table.file(0)) == "/videos/класс 0/0.mp4"
    assert str(table.file(1)) == "/prepared/класс 1/1.mp4"
    assert table.select([5, 0]).file(0) == Path("/prepared/класс 1/5.mp4")


def test_cameras_keep_their_instances_and_count_from_their_start(tmp_path: Path) -> None:
    artifact = index_of(
        tmp_path,
        instance=[f"i{number // 2}" for number in range(6)],
        camera=["a", "b"] * 3,
        start=[0, 3] * 3,
        length=[9, 8] * 3,
        offset=[0, -2] * 3,
    )
    table = load_table(artifact, "train", min_frames=8).select([1, 4])
    assert table.instances == ("i0", "i2")
    assert table.cameras == ("b", "a")
    assert table.frames.tolist() == [8, 9]
    assert table.starts is not None
    assert table.offsets is not None
    assert (table.starts.tolist(), table.offsets.tolist()) == ([3, 0], [-2, 0])
    with pytest.raises(InputError, match=r"no usable video .* longest 9 frames, needed 10"):
        load_table(artifact, "train", min_frames=10)


def test_what_is_no_index_is_refused_by_name(tmp_path: Path) -> None:
    artifact = index_of(tmp_path)
    pd.read_parquet(artifact.path).drop(columns="gop").to_parquet(artifact.path)
    with pytest.raises(InputError, match=r"index.parquet: not a readable index \(no column gop\)"):
        load_table(artifact, "train")
    artifact.path.unlink()
    with pytest.raises(InputError, match=r"index.parquet: not a readable index"):
        load_table(artifact, "train")


def test_a_row_of_a_large_table_takes_few_bytes_and_is_sent_in_few_pieces(tmp_path: Path) -> None:
    table = load_table(index_of(tmp_path, rows=20_000), "train")
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(table, protocol=5, buffer_callback=buffers.append)
    assert len(head) < 4000
    assert len(buffers) < 20
    assert sum(buffer.raw().nbytes for buffer in buffers) < 200 * len(table)


def _arrays(table: VideoTable) -> Iterable[np.ndarray[Any, Any]]:
    values = [getattr(table, field.name) for field in fields(table)]
    texts = [value for value in values if isinstance(value, Texts)]
    yield from (value for value in values if isinstance(value, np.ndarray))
    yield from (array for text in texts for array in vars(text).values())


def _base(array: Any) -> Any:
    while isinstance(array, np.ndarray | memoryview | pickle.PickleBuffer):
        array = array.base if isinstance(array, np.ndarray) else array.obj  # type: ignore[union-attr]
    return array


def test_unpacked_tables_share_the_memory_of_the_parcel(tmp_path: Path) -> None:
    table = load_table(index_of(tmp_path), "train")
    parcel = Parcel(table)
    one, other = parcel.unpack(), parcel.unpack()
    assert one.paths == other.paths == table.paths
    assert one.frames.tolist() == table.frames.tolist()
    places = [[array.ctypes.data for array in _arrays(copy)] for copy in (one, other)]
    assert places[0] == places[1]
    assert all(isinstance(_base(array), mmap.mmap) for array in _arrays(one))
    with pytest.raises(ValueError, match="read-only"):
        one.frames[0] = 0


@given(st.lists(st.text()), st.data())
def test_texts_are_a_sequence_of_the_strings_put_in(values: list[str], data: Any) -> None:
    values = [value.encode(errors="replace").decode() for value in values]
    texts = Texts.of(values)
    assert len(texts) == len(values)
    assert list(texts) == values
    assert texts == values
    assert texts == tuple(values)
    assert texts != [*values, "more"]
    if values:
        places = data.draw(st.lists(st.integers(0, len(values) - 1)))
        assert list(texts.take(places)) == [values[place] for place in places]
        assert [texts[place] for place in places] == [values[place] for place in places]
        assert texts[-1] == values[-1]
    assert list(texts[1:]) == values[1:]
    with pytest.raises(IndexError):
        texts[len(values)]


def test_texts_from_arrow_are_those_of_the_column() -> None:
    import pyarrow as pa

    column = pa.chunked_array([["a", None, "ü"], [], ["long" * 9]])
    assert Texts.from_arrow(column) == ["a", "", "ü", "long" * 9]
    assert Texts.from_arrow(column.slice(2)) == ["ü", "long" * 9]
    assert Texts.from_arrow(column.slice(4)) == []
    assert Texts.from_arrow(column.dictionary_encode()) == ["a", "", "ü", "long" * 9]
