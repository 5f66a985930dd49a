"""The report stage: all results of a recipe side by side, as a page, a table and a figure."""

from __future__ import annotations

from cluster import fsio
from recipes.contract import InputError, Output, StageContext, StageResult
from recipes.evaluation.figures import save_bars
from recipes.evaluation.tables import write_csv
from recipes.stages.report.config import ReportConfig
from recipes.stages.report.published import matching, read_published
from recipes.stages.report.render import CSV_COLUMNS, bars, csv_rows, group_rows, markdown
from recipes.stages.report.rows import read_rows, with_split_means


def run(ctx: StageContext, config: ReportConfig) -> StageResult:
    """Write `report.md`, `report.csv` and `figures/results.png` from the results given.

    Raises:
        InputError: no result was given.
    """
    results = ctx.inputs.get("results", ())
    if not results:
        raise InputError('a report needs results: `inputs: {results: ["<stage>.result"]}`')
    if ctx.rank:
        return StageResult()
    rows, others = read_rows(results)
    published = read_published() if config.published else []
    groups = [
        (title, ours, matching(ours, published))
        for title, ours in group_rows(with_split_means(rows), config.compare)
    ]
    page, table = ctx.output_dir / "report.md", ctx.output_dir / "report.csv"
    fsio.write_text(page, markdown(config.title, groups, others))
    every = [row for _, ours, found in groups for row in (*ours, *found)]
    write_csv(table, CSV_COLUMNS, csv_rows(every))
    chart = bars(groups)
    if chart:
        save_bars(ctx.output_dir / "figures" / "results.png", chart, config.title)
    outputs = {
        "report": Output(kind="report", path=page, meta={"format": "markdown"}),
        "table": Output(kind="report", path=table, meta={"format": "csv"}),
    }
    num_published = sum(len(found) for _, _, found in groups)
    metrics = {"num_results": float(len(rows)), "num_published": float(num_published)}
    return StageResult(outputs=outputs, metrics=metrics, summary={"title": config.title})
