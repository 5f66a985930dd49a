"""The choice of cells: few, but every two values meet."""

from __future__ import annotations

from tests.matrix import faults
from tests.matrix.cells import EXTRA_FAULTS, FAULTS, PAIRWISE, all_cells, extra_cells, pairs


def test_sixteen_cells_bring_every_two_values_of_the_matrix_together() -> None:
    assert len(PAIRWISE) == len(set(PAIRWISE)) == 16
    wanted = {pair for cell in all_cells() for pair in pairs(cell)}
    assert {pair for cell in PAIRWISE for pair in pairs(cell)} == wanted


def test_the_matrix_has_all_combinations_and_names_tell_them_apart() -> None:
    cells = [*all_cells(), *extra_cells()]
    assert len(all_cells()) == 64
    assert len({cell.name for cell in cells}) == len(cells)


def test_each_fault_can_be_done() -> None:
    assert set(faults.FAULTS) == {*FAULTS, *EXTRA_FAULTS}
