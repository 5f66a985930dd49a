"""An index goes on where it was stopped, reads nothing twice, and may be made in parts."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recipes.contract import Artifact, InputError, Preempted, Progress, StageContext, StageResult
from recipes.stages.index.config import IndexConfig
from recipes.stages.index.run import run
from recipes.stages.index_part.config import IndexPartConfig
from recipes.stages.index_part.run import run as run_part
from tests.recipes.data_files import context, numbered, write_set, write_video

COUNT = 8


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A csv of eight small videos."""
    (tmp_path / "clips").mkdir()
    return write_set(tmp_path / "clips", COUNT, frames=8)


def config(file: Path, **changes: Any) -> dict[str, Any]:
    data = {"format": "csv", "name": "clips", "file": str(file), "max_bad_share": 0.5}
    return {"data": {**data, **changes.pop("data", {})}, "workers": 1, **changes}


def stage(folder: Path, **changes: Any) -> StageContext:
    """A context of one stage of a store: its cache lies beside the folders of the stages."""
    for name in ("outputs", "checkpoints"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    given = {"checkpoint_dir": folder / "checkpoints", "cache_dir": folder.parent / "cache"}
    return replace(context(folder / "outputs"), **{**given, **changes})


def index(folder: Path, file: Path, **changes: Any) -> StageResult:
    return run(stage(folder), IndexConfig(**config(file, **changes)))


def content(result: StageResult) -> bytes:
    return result.outputs["dataset"].path.read_bytes()


def stop_after(videos: int) -> dict[str, Any]:
    """A stop request that comes when so many videos are done."""
    reports: list[Progress] = []
    calls = iter(range(10_000))
    return {
        "report_progress": reports.append,
        "stop_requested": lambda: next(calls) >= 2 * videos,
    }


def test_the_next_attempt_reads_only_what_the_stopped_one_had_not(
    clips: Path, tmp_path: Path
) -> None:
    with pytest.raises(Preempted):
        run(stage(tmp_path / "a", **stop_after(3)), IndexConfig(**config(clips)))
    lines = (tmp_path / "a" / "checkpoints" / "index.jsonl").read_text().splitlines()
    done = len(lines)
    assert 0 < done < COUNT
    resumed = index(tmp_path / "a", clips)
    assert resumed.metrics["files_from_journal"] == done
    assert resumed.metrics["files_read"] == COUNT - done
    undisturbed = index(tmp_path / "elsewhere" / "b", clips)
    assert undisturbed.metrics["files_read"] == COUNT
    assert content(resumed) == content(undisturbed)


def test_a_torn_last_line_of_the_journal_costs_one_file(clips: Path, tmp_path: Path) -> None:
    index(tmp_path / "a", clips)
    journal = tmp_path / "a" / "checkpoints" / "index.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40])
    again = run(stage(tmp_path / "a", cache_dir=tmp_path / "none"), IndexConfig(**config(clips)))
    assert (again.metrics["files_from_journal"], again.metrics["files_read"]) == (COUNT - 1, 1)


def test_another_index_of_the_store_reads_only_files_that_changed(
    clips: Path, tmp_path: Path
) -> None:
    first = index(tmp_path / "a", clips)
    same = index(tmp_path / "b", clips, data={"version": 2})
    assert (same.metrics["files_from_cache"], same.metrics["files_read"]) == (COUNT, 0)
    assert content(first) == content(same)
    changed = sorted(clips.parent.rglob("*.mp4"))[0]
    write_video(changed, numbered(11), "libx264")
    os.utime(changed, ns=(1, 1))
    other = index(tmp_path / "c", clips)
    assert (other.metrics["files_from_cache"], other.metrics["files_read"]) == (COUNT - 1, 1)
    frames = pd.read_parquet(other.outputs["dataset"].path).set_index("path")["frames"]
    assert frames[str(changed.relative_to(clips.parent))] == 11


def test_a_look_of_another_mode_or_decoder_does_not_count(clips: Path, tmp_path: Path) -> None:
    index(tmp_path / "a", clips)
    for number, data in enumerate([{"decoder": "pyav"}, {"index": {"mode": "demux"}}]):
        other = index(tmp_path / f"b{number}", clips, data=data)
        assert other.metrics["files_read"] == COUNT


def test_a_damaged_cache_is_as_good_as_none(clips: Path, tmp_path: Path) -> None:
    first = index(tmp_path / "a", clips)
    (file,) = (tmp_path / "cache").rglob("*.parquet")
    file.write_bytes(b"no table")
    second = index(tmp_path / "b", clips)
    assert second.metrics["files_read"] == COUNT
    assert content(first) == content(second)


def parts_of(folder: Path, file: Path, count: int) -> tuple[Artifact, ...]:
    made = []
    for part in range(count):
        given = IndexPartConfig(**config(file), part=part, parts=count)
        output = run_part(stage(folder / f"part-{part}"), given).outputs["part"]
        made.append(
            Artifact(
                name="part",
                kind="part",
                path=output.path,
                sha256="",
                bytes=output.path.stat().st_size,
                meta=json.loads(json.dumps(output.meta)),
            )
        )
    return tuple(made)


def test_parts_give_the_bytes_of_the_undivided_index(clips: Path, tmp_path: Path) -> None:
    (clips.parent / "torn.mp4").write_bytes(b"\0" * 100)
    with clips.open("a", encoding="utf-8") as stream:
        stream.write("torn.mp4,odd,train,\nabsent.mp4,odd,train,\n")
    parts = parts_of(tmp_path / "divided", clips, 3)
    merging = stage(tmp_path / "merged", inputs={"parts": parts[::-1]})
    merged = run(merging, IndexConfig(**config(clips)))
    whole = index(tmp_path / "elsewhere" / "whole", clips)
    assert content(merged) == content(whole)
    assert merged.metrics["excluded"] == 2


def test_parts_of_other_files_or_too_few_of_them_are_refused(clips: Path, tmp_path: Path) -> None:
    parts = parts_of(tmp_path / "divided", clips, 2)
    with pytest.raises(InputError, match="all parts are needed"):
        run(stage(tmp_path / "few", inputs={"parts": parts[:1]}), IndexConfig(**config(clips)))
    with clips.open("a", encoding="utf-8") as stream:
        stream.write("new.mp4,odd,train,\n")
    with pytest.raises(InputError, match="files were added or removed"):
        run(stage(tmp_path / "more", inputs={"parts": parts}), IndexConfig(**config(clips)))


def test_a_look_at_packets_alone_says_what_was_not_checked(clips: Path, tmp_path: Path) -> None:
    result = index(tmp_path / "a", clips, data={"index": {"mode": "demux"}})
    rows = pd.read_parquet(result.outputs["dataset"].path)
    assert set(rows["checked"]) == {"demux"}
    assert set(rows["sha256"]) == {""}
    page = (tmp_path / "a" / "outputs" / "report.md").read_text(encoding="utf-8")
    assert "Not checked: damage inside the packets" in page


def test_what_preparing_will_mend_is_not_counted_as_bad(clips: Path, tmp_path: Path) -> None:
    # decord loses the first frames of such a file, whichever way it is read
    write_video(clips.parent / "b.ts", numbered(20), "libx264", b_frames=2)
    with clips.open("a", encoding="utf-8") as stream:
        stream.write("b.ts,odd,train,\n")
    limits = {"data": {"max_bad_share": 0.01}}
    with pytest.raises(InputError, match=r"1 of 9 videos cannot be used .*b.ts"):
        index(tmp_path / "a", clips, **limits)
    page = (tmp_path / "a" / "outputs" / "report.md").read_text(encoding="utf-8")
    assert "| 1 | yes | " in page
    kept = index(tmp_path / "b", clips, mendable_ok=True, **limits)
    assert (kept.metrics["excluded"], kept.metrics["mendable"]) == (1, 1)


def test_the_page_says_what_can_be_used_by_split_and_class_and_with_which_decoders(
    clips: Path, tmp_path: Path
) -> None:
    write_video(clips.parent / "b.avi", numbered(20), "mpeg4", b_frames=2)
    with clips.open("a", encoding="utf-8") as stream:
        stream.write("b.avi,odd,train,\nabsent.mp4,even,test,\n")
    index(tmp_path / "a", clips)
    page = (tmp_path / "a" / "outputs" / "report.md").read_text(encoding="utf-8")
    for words in (
        "10 videos are listed, 9 can be used",
        "1 files are read from their first frame",
        "`data.prepare={files: needed}`",
        "| 1 | no | missing |",
        "## Classes",
        "**decord 0.6.0** (FFmpeg 4.1",
        "Warning: decord 0.6.0 carries FFmpeg 4.1",
    ):
        assert words in page, words
