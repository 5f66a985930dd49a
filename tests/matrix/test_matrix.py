"""Sixteen cells of the matrix on real private SLURMs: the pipeline finishes, whatever hits it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.matrix.cells import PAIRWISE, Cell
from tests.matrix.pipeline import Verdict
from tests.matrix.run import CELLS_AT_ONCE, run_cells
from tests.slurm_cluster import missing_for_accounting, missing_programs

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.e2e,
    pytest.mark.slurm,
    pytest.mark.xdist_group("matrix"),
    pytest.mark.timeout(3 * 3600),
]


@pytest.fixture(scope="module")
def verdicts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Cell, Verdict]]:
    """The cells that were asked for, run side by side; one takes about a minute."""
    if missing := missing_programs():
        pytest.skip(f"a private SLURM needs {', '.join(missing)}: apt-get install slurm-wlm munge")
    chosen = {item.name for item in request.session.items}
    cells = [cell for cell in PAIRWISE if any(f"[{cell.name}]" in name for name in chosen)]
    if missing_for_accounting():
        cells = [cell for cell in cells if not cell.accounting]
    found: dict[Cell, Verdict] = {}
    folder: Path = tmp_path_factory.mktemp("matrix")
    run_cells(cells, folder, lambda verdict: found.update({verdict.cell: verdict}), CELLS_AT_ONCE)
    yield found


@pytest.mark.parametrize("cell", PAIRWISE, ids=[cell.name for cell in PAIRWISE])
def test_the_pipeline_finishes_as_if_nothing_had_happened(
    verdicts: dict[Cell, Verdict], cell: Cell
) -> None:
    if cell.accounting and (missing := missing_for_accounting()):
        pytest.skip(f"accounting needs: apt-get install {' '.join(missing)}")
    verdict = verdicts[cell]
    assert not verdict.problems, verdict
