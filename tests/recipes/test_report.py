"""The report: rows from results, means over splits, published figures, and the page itself."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from recipes.contract import Artifact, InputError, StageContext
from recipes.stages.report.config import ReportConfig
from recipes.stages.report.published import COLUMNS, differences, matching, read_published
from recipes.stages.report.render import CSV_COLUMNS, csv_rows, group_rows, markdown
from recipes.stages.report.rows import Row, gain, metric_names, read_rows, with_split_means
from recipes.stages.report.run import run

GOLDEN = Path(__file__).with_name("test_report_golden.md")
CLIP = {"clip": "8 x 5 frames, stride 3", "size": 128}


def _artifact(
    ref: str, summary: dict[str, Any], metrics: dict[str, float], **meta: Any
) -> Artifact:
    content = {"kind": "x", "summary": summary, "metrics": metrics, "steps": 0, **meta}
    path = Path("/store/stages") / ref.replace("/", "-") / "result.json"
    name = ref.partition(".")[0]
    return Artifact(
        name=name, kind="result", path=path, sha256="0" * 64, bytes=1, meta=content, ref=ref
    )


def _finetune(method: str, split: int, top1: float, **summary: Any) -> Artifact:
    facts = {
        "protocol": "finetune",
        "method": method,
        "backbone": "r2d3d18",
        "pretrain_data": "Kinetics-400" if method == "dpc" else None,
        "data": "UCF101",
        "split": split,
        "coverage": 1.0,
        "seed": 0,
        "note": "last weights",
        **CLIP,
        **summary,
    }
    metrics = {
        "top1": top1,
        "top5": top1 + 0.2,
        "chance": 0.013,
        "num_test": 3783.0,
        "train/loss": 0.1,
    }
    stage = "supervised" if method == "supervised" else "finetune"
    return _artifact(f"{stage}/ucf101-{split}.result", facts, metrics)


def _probe(method: str, top1: float, feature: str = "pooled", **summary: Any) -> Artifact:
    facts = {
        "protocol": "linear",
        "method": method,
        "backbone": "r2d3d_tiny",
        "pretrain_data": "synthetic" if method == "dpc" else None,
        "data": "synthetic",
        "split": None,
        "clip": "4 x 5 frames, stride 1",
        "size": 32,
        "coverage": 1.0,
        "feature": feature,
        "seed": 0,
        "note": "",
        **summary,
    }
    return _artifact(
        f"probe_{method}_{feature}.result", facts, {"top1": top1, "chance": 0.25, "num_test": 600.0}
    )


def _retrieval(method: str, recall: float) -> Artifact:
    facts = {
        "protocol": "retrieval",
        "method": method,
        "backbone": None if method == "mean_color" else "r2d3d_tiny",
        "pretrain_data": None,
        "data": "synthetic",
        "split": None,
        "clip": "4 x 5 frames, stride 1",
        "size": 32,
        "coverage": 0.95,
        "feature": "color" if method == "mean_color" else "pooled",
        "seed": 0,
        "note": "",
    }
    metrics = {"R@1": recall, "R@5": 0.7, "R@10": 0.8, "chance": 0.25, "num_test": 570.0}
    return _artifact(f"retrieval_{method}.result", facts, metrics)


def _everything() -> tuple[Artifact, ...]:
    pretrain = _artifact("pretrain.result", {}, {"train/loss": 2.5}, kind="pretrain", steps=800)
    return (
        _probe("dpc", 0.81),
        _probe("random", 0.26),
        *(_finetune("dpc", split, 0.66 + 0.01 * split) for split in (1, 2, 3)),
        _finetune("supervised", 1, 0.46),
        _retrieval("dpc", 0.6),
        _retrieval("mean_color", 0.27),
        _retrieval("random", 0.3),
        pretrain,
    )


def _context(tmp_path: Path, results: tuple[Artifact, ...], rank: int = 0) -> StageContext:
    return StageContext(
        inputs={"results": results},
        output_dir=tmp_path,
        checkpoint_dir=tmp_path,
        scratch_dir=tmp_path,
        cache_dir=tmp_path,
        rank=rank,
        local_rank=rank,
        world_size=1,
        device="cpu",
        attempt="s000r000",
        seed=0,
        stop_requested=lambda: False,
        log_metrics=lambda step, values: None,
        report_progress=lambda progress: None,
    )


def test_the_page_is_the_golden_one(tmp_path: Path) -> None:
    run(_context(tmp_path, _everything()), ReportConfig(title="DPC on two sets"))
    assert (tmp_path / "report.md").read_text() == GOLDEN.read_text()


def test_a_report_leaves_page_table_and_figure(tmp_path: Path) -> None:
    result = run(_context(tmp_path, _everything()), ReportConfig())
    assert {name: output.kind for name, output in result.outputs.items()} == {
        "report": "report",
        "table": "report",
    }
    assert result.metrics == {"num_results": 9.0, "num_published": 2.0}
    with (tmp_path / "report.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    top1 = [line for line in lines if line["metric"] == "top1" and line["method"] == "dpc"]
    assert {line["value"] for line in top1} == {"0.81", "0.67", "0.68", "0.69", "0.682"}
    assert (tmp_path / "figures" / "results.png").stat().st_size > 5000


def test_only_rank_0_writes(tmp_path: Path) -> None:
    assert run(_context(tmp_path, _everything(), rank=1), ReportConfig()).outputs == {}
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs results"):
        run(_context(tmp_path, ()), ReportConfig())


def test_published_figures_can_be_left_out(tmp_path: Path) -> None:
    result = run(_context(tmp_path, _everything()), ReportConfig(published=False))
    assert result.metrics["num_published"] == 0.0
    assert "Han et al." not in (tmp_path / "report.md").read_text()


def test_results_that_are_not_comparable_stand_in_different_tables() -> None:
    other = _probe("random", 0.3, size=64)
    rows, _ = read_rows([_probe("dpc", 0.8), other, _retrieval("random", 0.3)])
    titles = [title for title, _ in group_rows(rows, ("protocol", "data"))]
    assert titles == ["Linear probe on synthetic", "Retrieval on synthetic"]
    split = [title for title, _ in group_rows(rows, ("protocol", "data", "size"))]
    assert split[:2] == ["Linear probe on synthetic (32 px)", "Linear probe on synthetic (64 px)"]


def test_three_splits_get_their_mean_and_two_do_not() -> None:
    rows, _ = read_rows([_finetune("dpc", split, 0.6 + 0.03 * split) for split in (1, 2, 3)])
    mean = with_split_means(rows)[-1]
    assert mean.split == "mean of 3"
    assert mean.value == pytest.approx(0.66)
    assert mean.interval is None
    assert with_split_means(rows[:2]) == rows[:2]


def test_a_split_that_occurs_twice_gets_no_mean() -> None:
    rows, _ = read_rows([_finetune("dpc", split, 0.6) for split in (1, 2, 3, 3)])
    assert with_split_means(rows) == rows


def test_different_experiments_are_not_averaged() -> None:
    first = [_finetune("dpc", split, 0.6) for split in (1, 2)]
    rows, _ = read_rows([*first, _finetune("dpc", 3, 0.6, size=224)])
    assert with_split_means(rows) == rows


def test_the_gain_is_over_the_same_network_without_pretraining() -> None:
    rows, _ = read_rows(
        [
            _probe("dpc", 0.8),
            _probe("random", 0.3),
            _probe("random", 0.2),
            _probe("random", 0.9, feature="context"),
            _probe("random", 0.9, backbone="r2d3d18"),
        ]
    )
    assert gain(rows[0], rows) == pytest.approx(0.55)
    assert gain(rows[1], rows) is None
    assert gain(rows[0], rows[:1]) is None


def test_a_figure_within_guessing_is_called_at_chance() -> None:
    rows, _ = read_rows([_probe("dpc", 0.26), _probe("dpc", 0.32)])
    assert [row.at_chance for row in rows] == [True, False]


def test_missing_baselines_are_named() -> None:
    rows, _ = read_rows([_probe("dpc", 0.8), _retrieval("dpc", 0.5), _finetune("dpc", 1, 0.6)])
    groups = [(title, own, []) for title, own in group_rows(rows, ("protocol", "data"))]
    page = markdown("t", groups, [])
    assert page.count("without it they say little") == 4
    assert "`encoder: mean_color`" in page


def test_names_match_whatever_their_spelling() -> None:
    rows, _ = read_rows([_finetune("dpc", 1, 0.6)])
    found = matching(rows, read_published())
    assert [(row.backbone, row.pretrain_data, row.value) for row in found] == [
        ("R2D3D-18", "Kinetics-400", pytest.approx(0.682))
    ]


def test_other_pretraining_data_match_where_there_is_nothing_better() -> None:
    rows, _ = read_rows([_finetune("dpc", 1, 0.6, pretrain_data="my clips")])
    found = matching(rows, read_published())
    assert sorted(row.pretrain_data for row in found) == ["Kinetics-400", "UCF101"]
    assert "pretrained on my clips, published on UCF101" in differences(rows[0], found[0])


def test_another_backbone_or_protocol_does_not_match() -> None:
    rows, _ = read_rows([_finetune("dpc", 1, 0.6)])
    assert matching([replace(rows[0], backbone="r2d3d_tiny")], read_published()) == []
    assert matching([replace(rows[0], protocol="linear")], read_published()) == []
    assert matching([replace(rows[0], method="random")], read_published()) == []


def test_every_difference_of_protocol_is_told() -> None:
    rows, _ = read_rows([_finetune("dpc", 2, 0.6, size=112, clip="1 x 16 frames, stride 1")])
    (published,) = matching(rows, read_published())
    found = "; ".join(differences(replace(rows[0], coverage=0.7), published))
    for part in ("split 2", "mean of 3 splits", "112 px, published 128", "70.0% of the test"):
        assert part in found
    assert "clips of 1 x 16 frames" in found
    assert "120 frames" in found


def test_the_published_table_has_the_figures_of_the_paper() -> None:
    rows = read_published()
    found = {
        (row.backbone, row.pretrain_data, row.data): round(100 * row.metrics["top1"], 1)
        for row in rows
        if row.protocol == "finetune" and row.backbone.startswith("R2D3D")
    }
    assert found == {
        ("R2D3D-18", "UCF101", "UCF101"): 60.6,
        ("R2D3D-18", "Kinetics-400", "UCF101"): 68.2,
        ("R2D3D-18", "Kinetics-400", "HMDB51"): 34.5,
        ("R2D3D-34", "Kinetics-400", "UCF101"): 75.7,
        ("R2D3D-34", "Kinetics-400", "HMDB51"): 35.7,
        ("R2D3D-18", "", "UCF101"): 46.5,
        ("R2D3D-18", "", "HMDB51"): 17.1,
    }
    retrieval = [row for row in rows if row.protocol == "retrieval"]
    assert [metric_names([row]) for row in retrieval] == [["R@1", "R@5", "R@10", "R@20", "R@50"]]
    assert all(row.source and 0 < value < 1 for row in rows for value in row.metrics.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method,value\n", "expected the columns"),
        (",".join(COLUMNS) + "\ndpc,R2D3D-18\n", "line 2"),
        (",".join(COLUMNS) + "\nm,b,p,d,linear,1,mAP,3,s,c,1,n\n", "unknown metric 'mAP'"),
    ],
)
def test_a_damaged_published_table_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_published(text)


def test_names_cannot_break_the_table() -> None:
    row = Row(protocol="linear", method="a|b\nc", data="x", metrics={"top1": 0.5}, stage="s")
    page = markdown("title\n# not a heading", [("h", [row], [])], [])
    lines = page.splitlines()
    hits = [number for number, line in enumerate(lines) if "a\\|b c" in line]
    assert len(hits) == 2  # the overview and the table of its group
    for number in hits:
        header = max(n for n in range(number) if lines[n].startswith("| ---")) - 1
        assert lines[number].count(" | ") == lines[header].count(" | ")
    assert "\n# not" not in page


def test_the_table_holds_shares_with_intervals_for_the_headline_only() -> None:
    rows, _ = read_rows([_retrieval("dpc", 0.6)])
    lines = [dict(zip(CSV_COLUMNS, line, strict=True)) for line in csv_rows(rows)]
    assert [(line["metric"], line["value"], line["low"]) for line in lines] == [
        ("R@1", "0.6", "0.559242"),
        ("R@5", "0.7", ""),
        ("R@10", "0.8", ""),
    ]


def test_the_configuration_refuses_what_cannot_be_compared_by() -> None:
    with pytest.raises(ValidationError, match="each key once"):
        ReportConfig(compare=("data", "data"))
    with pytest.raises(ValidationError):
        ReportConfig.model_validate({"compare": ["colour"]})


def test_a_report_needs_no_torch() -> None:
    code = "import sys, recipes.stages.report.run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
