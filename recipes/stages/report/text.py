"""Words and cells of the report; pure."""

from __future__ import annotations

from collections.abc import Iterable

from recipes.stages.report.rows import Row

METHODS = {
    "random": "random weights",
    "mean_color": "mean colour, no network",
    "supervised": "supervised from scratch",
    "dpc": "DPC",
}
PROTOCOLS = {
    "linear": "Linear probe",
    "finetune": "Fine-tuning",
    "retrieval": "Retrieval",
}


def method_name(row: Row) -> str:
    """A method as readers know it."""
    return METHODS.get(row.method, row.method)


def metric_title(name: str) -> str:
    """`top-1` for `top1`; R@k as it is."""
    return name if name.startswith("R@") else f"top-{name[3:]}"


def percent(value: float | None) -> str:
    """A share in percent with one decimal, a dash for none."""
    return "–" if value is None else f"{100 * value:.1f}"


def table_line(cells: Iterable[str]) -> str:
    """One line of a markdown table."""
    return f"| {' | '.join(plain_cell(cell) for cell in cells)} |"


def plain_cell(text: str) -> str:
    """Text that cannot break out of its cell or line."""
    return " ".join(text.replace("\\|", "|").replace("|", "\\|").split())
