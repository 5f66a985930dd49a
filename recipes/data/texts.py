"""A column of strings in two arrays, which load, travel and share memory as numbers do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Texts(Sequence[str]):
    """Strings that become Python objects one by one, when asked for.

    A million paths as a tuple take 100 MB in every process that reads videos, and a second to send
    there.
    """

    __hash__ = None  # type: ignore[assignment]  # equal to any sequence of the same strings

    def __init__(self, data: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        """String i is the UTF-8 in `data` from `ends[i]` to `ends[i + 1]`."""
        self._data, self._ends = data, ends

    @classmethod
    def of(cls, values: Iterable[str]) -> Texts:
        """Pack strings."""
        return cls._join([value.encode() for value in values])

    @classmethod
    def from_arrow(cls, column: Any) -> Texts:
        """The strings of a pyarrow column, without copying them."""
        import pyarrow as pa

        column = column.fill_null("").cast(pa.large_string())
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        _, ends, data = array.buffers()
        first, past = array.offset, array.offset + len(array) + 1
        return cls(
            np.frombuffer(data or b"", dtype=np.uint8),
            np.frombuffer(ends, dtype=np.int64)[first:past]
            if len(array)
            else np.zeros(1, np.int64),
        )

    @classmethod
    def _join(cls, values: Sequence[bytes]) -> Texts:
        ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(values), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Texts: ...
    def __getitem__(self, place: int | slice) -> str | Texts:
        if isinstance(place, slice):
            return self.take(range(len(self))[place])
        number = range(len(self))[place]  # as a list does: negative from the end, or IndexError
        return self._data[self._ends[number] : self._ends[number + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        data = self._data.tobytes()
        return (data[start:end].decode() for start, end in pairwise(self._ends.tolist()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        shown = ", ".join(repr(text) for text in self[:3])
        return f"Texts({shown}{', ...' if len(self) > 3 else ''}; {len(self)})"

    def take(self, places: ArrayLike | range) -> Texts:
        """The strings at these places, in this order."""
        data, ends = self._data.tobytes(), self._ends.tolist()
        return self._join([data[ends[i] : ends[i + 1]] for i in np.asarray(places).tolist()])
