"""The prepare stage: what it encodes, reuses, refuses, and how it goes on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cluster import fsio
from recipes.contract import Artifact, InputError, Preempted, Progress, StageContext, StageResult
from recipes.data.decode import read_frames
from recipes.data.probe import probe
from recipes.data.table import load_table
from recipes.stages.prepare.config import PrepareConfig
from recipes.stages.prepare.disk import DiskEstimate, num_trials, work_of
from recipes.stages.prepare.journal import Journal
from recipes.stages.prepare.one import Done, crashed
from recipes.stages.prepare.rows import target_names
from recipes.stages.prepare.run import run
from recipes.stages.prepare_part.config import PreparePartConfig
from recipes.stages.prepare_part.run import run as run_part
from tests.recipes.corpus import draw, read_numbers, write
from tests.recipes.data_files import context, warm_workers

FRAMES = 24


def listed(root: Path, paths: Sequence[str], mode: str = "full", times: int = 1) -> Artifact:
    """What an index leaves of these files, each listed `times` times."""
    rows = [
        {"path": path, "label": "a", "label_id": 0, "split": "train", "group": path, "start": start}
        | asdict(probe(root / path, mode=mode))
        for path in sorted(paths)
        for start in range(times)
    ]
    table = root / f"index-{mode}-{len(rows)}.parquet"
    pd.DataFrame(rows).to_parquet(table)
    return Artifact(
        name="dataset",
        kind="dataset",
        path=table,
        sha256=fsio.sha256_file(table),
        bytes=table.stat().st_size,
        meta={"name": "mixed", "root": str(root), "classes": ["a"], "decoder": "decord"},
        ref="index.dataset",
    )


def config(kind: type[PrepareConfig] = PrepareConfig, **changes: Any) -> Any:
    options = {"short_side": 128, **changes.pop("prepare", {})}
    data = {"format": "folder", "name": "mixed", "root": "/unused", "prepare": options}
    data |= {"max_bad_share": 0.9, **changes.pop("data", {})}
    return kind.model_validate({"data": data, "workers": 1, **changes})


def stage(folder: Path, index: Artifact, **changes: Any) -> StageContext:
    warm_workers()
    shared = {"cache_dir": folder.parent / "cache", "inputs": {"dataset": (index,)}}
    return context(folder, **{**shared, **changes})


def rows_of(result: StageResult) -> pd.DataFrame:
    return pd.read_parquet(result.outputs["dataset"].path)


def damage(source: Path, target: Path) -> None:
    content = bytearray(source.read_bytes())
    place = content.index(b"movi") + 3000
    content[place : place + 300] = bytes(300)
    target.write_bytes(content)


def artifact_of(result: StageResult) -> Artifact:
    output = result.outputs["dataset"]
    return Artifact(
        name="dataset",
        kind="dataset",
        path=output.path,
        sha256=fsio.sha256_file(output.path),
        bytes=output.path.stat().st_size,
        meta=json.loads(json.dumps(output.meta)),
        ref="prepare.dataset",
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files read at random, from the first frame only, and not at all."""
    root = tmp_path_factory.mktemp("mixed")
    write(root / "a/plain.mp4", draw(FRAMES))
    write(root / "a/xvid.avi", draw(FRAMES), "mpeg4", b_frames=2)
    write(root / "b/h264.avi", draw(FRAMES + 3), b_frames=2)
    write(root / "b/one.ts", draw(1))
    (root / "b/torn.mp4").write_bytes((root / "a/plain.mp4").read_bytes()[:3000])
    return root


@pytest.fixture(scope="module")
def index(mixed: Path) -> Artifact:
    paths = ["a/plain.mp4", "a/xvid.avi", "b/h264.avi", "b/one.ts", "b/torn.mp4", "absent.mp4"]
    return listed(mixed, paths)


@pytest.fixture(scope="module")
def avis(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Six files that need preparation."""
    root = tmp_path_factory.mktemp("avis")
    for number in range(6):
        write(root / f"{number}.avi", draw(FRAMES, first=number), "mpeg4", b_frames=2)
    return listed(root, [f"{number}.avi" for number in range(6)])


@pytest.fixture(scope="module")
def prepared(
    index: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageContext, StageResult]:
    ctx = stage(tmp_path_factory.mktemp("stages") / "first", index)
    return ctx, run(ctx, config())


def test_what_needs_it_is_prepared_and_the_rest_stays(
    prepared: tuple[StageContext, StageResult], mixed: Path
) -> None:
    _, result = prepared
    table = rows_of(result).set_index("source_path")
    done = table.loc[["a/xvid.avi", "b/h264.avi", "b/one.ts"]]
    assert done["prepared"].all()
    assert set(done["verdict"]) == {"random"}
    assert done["path"].tolist() == ["a/xvid.avi.mp4", "b/h264.avi.mp4", "b/one.ts.mp4"]
    assert done["frames"].tolist() == [FRAMES, FRAMES + 3, 1]
    rest = rows_of(result).query("not prepared").set_index("path")
    assert rest["verdict"].to_dict() == {
        "a/plain.mp4": "random", "absent.mp4": "reject", "b/torn.mp4": "reject",
    }  # fmt: skip
    metrics = result.metrics
    assert (metrics["listed"], metrics["videos"], metrics["prepared"]) == (6, 4, 3)
    assert (metrics["encoded"], metrics["reused"], metrics["failed"]) == (3, 0, 0)
    assert metrics["hours"] * 3600 * 25 == pytest.approx(2 * FRAMES + 4)


def test_training_reads_prepared_and_other_videos_by_their_numbers(
    prepared: tuple[StageContext, StageResult],
) -> None:
    table = load_table(artifact_of(prepared[1]), "train", min_frames=2)
    assert table.prepared.tolist() == [False, True, True]
    assert (table.total, len(table)) == (6, 3)
    for row in range(len(table)):
        read = read_frames(
            table.file(row),
            [23, 2, 2, 13],
            verdict=table.verdicts[row],
            gop=int(table.gops[row]),
            decoder=table.decoder,
            rotation=int(table.rotations[row]),
        )
        assert read_numbers(read) == [23, 2, 2, 13], table.paths[row]


def test_a_row_says_what_the_new_file_is(
    prepared: tuple[StageContext, StageResult], index: Artifact, mixed: Path
) -> None:
    ctx, result = prepared
    row = rows_of(result).set_index("source_path").loc["a/xvid.avi"]
    path = ctx.output_dir / "videos" / row["path"]
    assert (row["bytes"], row["mtime_ns"]) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert row["sha256"] == fsio.sha256_file(path)
    assert row["source_sha256"] == fsio.sha256_file(mixed / "a/xvid.avi")
    assert (row["codec"], row["pix_fmt"], row["gop"]) == ("h264", "yuv420p", 12)
    assert (row["b_frames"], row["edit_list"], row["rotation"]) == (False, False, 0)
    assert (row["fps"], row["duration"]) == (25, pytest.approx(FRAMES / 25, abs=0.05))
    before = pd.read_parquet(index.path)
    kept = ["label", "label_id", "split", "group", "start"]
    assert rows_of(result)[kept].equals(before[kept])
    assert dict(before.dtypes) == {name: rows_of(result).dtypes[name] for name in before}


def test_the_index_would_describe_the_new_file_alike(
    prepared: tuple[StageContext, StageResult],
) -> None:
    ctx, result = prepared
    for row in rows_of(result).query("prepared").to_dict("records"):
        found = asdict(probe(ctx.output_dir / "videos" / row["path"]))
        for name in found.keys() - {"fps", "duration", "gop"}:
            assert found[name] == row[name], (row["path"], name)


def test_manifest_report_and_list_of_the_excluded_are_left(
    prepared: tuple[StageContext, StageResult],
) -> None:
    ctx, result = prepared
    lines = (ctx.output_dir / "prepared.jsonl").read_text().splitlines()
    manifest = {line["source"]: line for line in map(json.loads, lines)}
    assert set(manifest) == {"a/xvid.avi", "b/h264.avi", "b/one.ts"}
    assert len({line["settings"] for line in manifest.values()}) == 1
    for row in rows_of(result).query("prepared").to_dict("records"):
        line = manifest[row["source_path"]]
        for name in ("path", "sha256", "bytes", "frames", "source_sha256", "source_bytes"):
            assert line[name] == row[name]
    excluded = pd.read_csv(ctx.output_dir / "excluded.csv")
    assert excluded["path"].tolist() == ["absent.mp4", "b/torn.mp4"]
    report = (ctx.output_dir / "report.md").read_text()
    for words in ("crf 23", "| encoded | 3 |", "reject: missing", "B-frames"):
        assert words in report
    meta = result.outputs["dataset"].meta
    assert (meta["videos"], meta["listed"], meta["counts"]) == (4, 6, {"train": 4})
    assert meta["prepared_root"] == str((ctx.output_dir / "videos").resolve())
    assert not (ctx.output_dir / "partial").exists()


def test_all_can_be_asked_for(index: Artifact, tmp_path: Path) -> None:
    result = run(stage(tmp_path / "all", index), config(prepare={"files": "all"}))
    assert rows_of(result).query("prepared")["path"].tolist() == [
        "a/plain.mp4", "a/xvid.avi.mp4", "b/h264.avi.mp4", "b/one.ts.mp4",
    ]  # fmt: skip


def test_a_second_stage_links_what_the_first_made(avis: Artifact, tmp_path: Path) -> None:
    first, second = stage(tmp_path / "one", avis), stage(tmp_path / "two", avis)
    made = run(first, config())
    shared = run(second, config(data={"max_bad_share": 0.5}))
    assert (shared.metrics["encoded"], shared.metrics["reused"]) == (0, 6)
    for path in rows_of(made)["path"]:
        file = first.output_dir / "videos" / path
        assert file.samefile(second.output_dir / "videos" / path)
        assert file.stat().st_mode & 0o777 == 0o600
    assert rows_of(shared).equals(rows_of(made))
    other = run(stage(tmp_path / "three", avis), config(prepare={"crf": 30}))
    assert other.metrics["reused"] == 0


def test_an_emptied_cache_loses_nothing(avis: Artifact, tmp_path: Path) -> None:
    ctx = stage(tmp_path / "one", avis)
    result = run(ctx, config())
    shutil.rmtree(ctx.cache_dir)
    table = load_table(artifact_of(result), "train")
    assert read_numbers(read_frames(table.file(3), [20, 0], gop=12)) == [23, 3]
    again = run(stage(tmp_path / "two", avis), config())
    assert again.metrics["encoded"] == 6


def test_a_damaged_file_in_the_cache_is_made_anew(avis: Artifact, tmp_path: Path) -> None:
    first = stage(tmp_path / "one", avis)
    result = run(first, config())
    shutil.copytree(first.output_dir, tmp_path / "copy")  # a write into a link reaches both
    (cached,) = first.cache_dir.rglob(f"{rows_of(result)['source_sha256'][0]}-*.mp4")
    content = bytearray(cached.read_bytes())
    content[-300:] = bytes(300)
    cached.write_bytes(content)
    again = run(stage(tmp_path / "two", avis), config())
    assert (again.metrics["encoded"], again.metrics["reused"]) == (1, 5)
    assert rows_of(again)["sha256"].equals(rows_of(result)["sha256"])
    third = run(stage(tmp_path / "three", avis), config())
    assert third.metrics["reused"] == 6


def test_a_stage_that_was_killed_goes_on_where_it_was(avis: Artifact, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.recipes import test_prepare as t\n"
        "t.warm_workers = lambda: None\n"
        "index = t.listed(Path(sys.argv[1]), [f'{n}.avi' for n in range(6)])\n"
        "t.run(t.stage(Path(sys.argv[2]), index), t.config(prepare={'crf': 5}))\n"
    )
    folder = tmp_path / "stage"
    command = [sys.executable, "-c", script, str(avis.path.parent), str(folder)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, start_new_session=True)
    journal = folder / "checkpoints" / "prepared.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not journal.exists() or not journal.read_bytes().count(b"\n"):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = [line for _, line in fsio.read_json_lines(journal)]
    assert 0 < len(lines) < 6
    before = {line["path"]: line["file"]["mtime_ns"] for line in lines}
    (folder / "partial" / "torn").write_bytes(b"half a video")
    result = run(stage(folder, avis), config(prepare={"crf": 5}))
    after = rows_of(result).set_index("source_path")["mtime_ns"].to_dict()
    assert {path: after[path] for path in before} == before
    assert len(journal.read_text().splitlines()) >= 6
    assert not (folder / "partial").exists()


def test_a_stop_request_ends_the_stage_and_the_next_attempt_goes_on(
    avis: Artifact, tmp_path: Path
) -> None:
    journal = tmp_path / "stage" / "checkpoints" / "prepared.jsonl"
    asked: Callable[[], bool] = journal.exists
    with pytest.raises(Preempted) as stop:
        run(stage(tmp_path / "stage", avis, stop_requested=asked), config())
    assert 0 < stop.value.step < 6
    kept = [line["file"]["mtime_ns"] for _, line in fsio.read_json_lines(journal)]
    reports: list[Progress] = []
    result = run(stage(tmp_path / "stage", avis, report_progress=reports.append), config())
    assert set(kept) <= set(rows_of(result)["mtime_ns"])
    assert (reports[0].step, reports[-1].step, reports[-1].steps) == (len(kept), 6, 6)


def test_too_little_space_ends_the_stage_early_and_keeps_what_is_done(
    avis: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(InputError, match=r"not enough disk space in .*stage: 0.0 MB are free"):
            run(stage(tmp_path / "stage", avis), config())
    journal = tmp_path / "stage" / "checkpoints" / "prepared.jsonl"
    kept = [line["file"]["mtime_ns"] for _, line in fsio.read_json_lines(journal)]
    assert 0 < len(kept) < 6
    result = run(stage(tmp_path / "stage", avis), config())
    assert set(kept) <= set(rows_of(result)["mtime_ns"])


def test_a_disk_that_is_really_full_ends_the_stage_with_advice(
    avis: Artifact, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.recipes import test_prepare as t\n"
        "t.warm_workers = lambda: None\n"
        "index = t.listed(Path(sys.argv[1]), [f'{n}.avi' for n in range(6)])\n"
        "try: t.run(t.stage(Path(sys.argv[2]), index), t.config(prepare={'crf': 0}))\n"
        "except t.InputError as error: print(error); print(sorted(Path(sys.argv[2]).rglob('*')))\n"
    )
    target = tmp_path / "full" / "stage"
    target.parent.mkdir()
    mount = f'mount -t tmpfs -o size=8k none {target.parent} && exec "$@"'
    command = ["unshare", "-Urm", "sh", "-c", mount, "sh", sys.executable, "-c", script]
    command += [str(avis.path.parent), str(target)]
    if not shutil.which("unshare") or subprocess.run([*command[:4], "true"]).returncode:
        pytest.skip("unshare cannot make a mount namespace here")
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert "not enough disk space" in done.stdout, done.stderr
    assert "No space left on device" in done.stdout
    assert "submit again" in done.stdout
    assert "partial" not in done.stdout


def test_estimates_count_pixels_of_what_was_tried(tmp_path: Path) -> None:
    assert work_of(480, 640, 10, 256) == 256 * 342 * 10
    assert work_of(0, 0, 0, 256) == 240 * 320 * 250
    assert [num_trials(videos) for videos in (0, 1, 9, 100, 240_000)] == [0, 1, 2, 13, 16]
    estimate = DiskEstimate(folder=tmp_path, work_left=1000, videos_left=4)
    file = asdict(Done(path="", bytes=1, mtime_ns=1)) | {"file": _encoded(5000)}
    estimate.add(Done(**file), 250)
    assert estimate.bytes_left == pytest.approx(1.1 * 750 * 20, abs=1)
    estimate.add(replace(Done(**file), reused=True), 250)
    assert estimate.bytes_left == pytest.approx(1.1 * 500 * 10, abs=1)
    estimate.check()


def _encoded(size: int) -> Any:
    from recipes.data.encode_check import Encoded

    return Encoded(frames=1, fps=1, width=2, height=2, bytes=size, mtime_ns=1, sha256="0")


def test_a_source_that_changed_since_the_index_is_rejected(mixed: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a.avi", "b.avi"):
        root.mkdir(exist_ok=True)
        shutil.copy(mixed / "a/xvid.avi", root / name)
    index = listed(root, ["a.avi", "b.avi"])
    os.utime(root / "b.avi", ns=(1, 1))
    result = run(stage(tmp_path / "stage", index), config())
    row = rows_of(result).set_index("path").loc["b.avi"]
    assert (row["verdict"], row["prepared"]) == ("reject", False)
    assert "changed since it was indexed" in row["reason"]


def test_files_whose_packets_alone_were_read_are_looked_at_now(mixed: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(mixed, root)
    damage(root / "a/xvid.avi", root / "a/bad.avi")
    index = listed(root, ["a/bad.avi", "a/xvid.avi"], mode="demux")
    assert pd.read_parquet(index.path)["verdict"].tolist() == ["sequential", "sequential"]
    table = rows_of(run(stage(tmp_path / "stage", index), config()))
    assert table["verdict"].tolist() == ["reject", "random"]
    assert table["checked"].tolist() == ["demux", "full"]
    assert table["source_sha256"][1] == fsio.sha256_file(root / "a/xvid.avi")
    assert table["reason"][0].startswith("was not prepared: is damaged")


def test_more_bad_videos_than_allowed_end_the_stage_and_say_why(
    index: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"mixed: 2 of 6 videos cannot be used even after .*0.3"):
        run(stage(tmp_path / "stage", index), config(data={"max_bad_share": 0.3}))
    assert "b/torn.mp4" in (tmp_path / "stage" / "excluded.csv").read_text()
    assert not (tmp_path / "stage" / "prepared.parquet").exists()


def parts_of(folder: Path, index: Artifact, count: int) -> tuple[Artifact, ...]:
    parts = []
    for number in range(count):
        ctx = stage(folder / f"part{number}", index, cache_dir=folder / f"cache{number}")
        output = run_part(ctx, config(PreparePartConfig, part=number, parts=count)).outputs["part"]
        parts.append(
            Artifact(
                name="part",
                kind="part",
                path=output.path,
                sha256=fsio.sha256_file(output.path),
                bytes=output.path.stat().st_size,
                meta=json.loads(json.dumps(output.meta)),
            )
        )
    return tuple(reversed(parts))


def test_parts_come_together_as_if_one_job_had_done_it(
    mixed: Path, index: Artifact, prepared: tuple[StageContext, StageResult], tmp_path: Path
) -> None:
    parts = parts_of(tmp_path, index, 4)
    merged = run(
        stage(tmp_path / "whole", index, inputs={"dataset": (index,), "parts": parts}), config()
    )
    alone = prepared[1]
    names = ["mtime_ns"]
    assert rows_of(merged).drop(columns=names).equals(rows_of(alone).drop(columns=names))
    for name in ("listed", "videos", "encoded", "hours", "bytes_before", "bytes_after"):
        assert merged.metrics[name] == alone.metrics[name]
    for row in rows_of(merged).query("prepared").to_dict("records"):
        file = tmp_path / "whole" / "videos" / row["path"]
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (row["bytes"], row["mtime_ns"])
        assert file.stat().st_nlink == 3  # of the part, its cache, the whole
    with pytest.raises(InputError, match="all parts are needed"):
        run(
            stage(tmp_path / "whole", index, inputs={"dataset": (index,), "parts": parts[1:]}),
            config(),
        )


def test_a_file_that_is_listed_twice_is_prepared_once(mixed: Path, tmp_path: Path) -> None:
    twice = listed(mixed, ["a/xvid.avi"], times=2)
    alone = run(stage(tmp_path / "alone", twice), config())
    assert rows_of(alone)["path"].tolist() == ["a/xvid.avi.mp4"] * 2
    assert (alone.metrics["encoded"], alone.metrics["prepared"]) == (1, 2)
    parts = parts_of(tmp_path, twice, 2)
    merged = run(
        stage(tmp_path / "whole", twice, inputs={"dataset": (twice,), "parts": parts}), config()
    )
    file = tmp_path / "whole" / "videos" / "a/xvid.avi.mp4"
    assert set(rows_of(merged)["mtime_ns"]) == {file.stat().st_mtime_ns}


def test_a_video_whose_other_camera_is_lost_is_rejected(mixed: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(mixed, root)
    damage(root / "a/xvid.avi", root / "a/bad.avi")
    shutil.copy(root / "a/xvid.avi", root / "a/good.avi")
    shutil.copy(root / "a/xvid.avi", root / "a/alone.avi")
    paths = ["a/alone.avi", "a/bad.avi", "a/good.avi", "a/xvid.avi"]
    index = listed(root, paths, mode="demux")
    table = pd.read_parquet(index.path)
    table = table.assign(instance=["lost", "lost", "kept", "kept"], camera=["1", "2", "1", "2"])
    table.assign(offset=[0, 0, -2, 0], length=[24, 24, 22, 24]).to_parquet(index.path)
    result = run(stage(tmp_path / "stage", index), config())
    found = rows_of(result)
    assert found["verdict"].tolist() == ["reject", "reject", "random", "random"]
    assert found["reason"][0] == "no other camera of its instance can be used"
    assert found["offset"].tolist() == [0, 0, -2, 0]


def test_new_names_are_unique_and_end_in_mp4() -> None:
    names = target_names(["b.avi", "a.mp4", "a.avi", "a.avi.mp4", "a.MP4", "a.mp4"])
    assert names == {
        "a.mp4": "a.mp4",
        "a.avi.mp4": "a.avi.mp4",
        "a.avi": "a.avi.mp4.mp4",
        "b.avi": "b.avi.mp4",
        "a.MP4": "a.MP4.mp4",
    }


def test_a_journal_forgets_crashes_other_settings_and_lost_results(
    avis: Artifact, tmp_path: Path
) -> None:
    ctx = stage(tmp_path / "stage", avis)
    result = run(ctx, config())
    path = ctx.checkpoint_dir / "prepared.jsonl"
    settings = next(line["settings"] for _, line in fsio.read_json_lines(path))
    from recipes.stages.prepare.share import _tasks

    table = pd.read_parquet(avis.path)
    tasks = _tasks(ctx, config(), table, target_names(table["path"]))
    journal = Journal(path, settings)
    journal.append(crashed(tasks[1]))
    assert len(journal.load(tasks)) == 6
    assert Journal(path, "others").load(tasks) == {}
    tasks[0].target.unlink()
    assert set(journal.load(tasks)) == set(table["path"][1:])
    changed = [replace(tasks[2], mtime_ns=7), *tasks[3:]]
    assert set(journal.load(changed)) == set(table["path"][3:])
    assert len(rows_of(result)) == 6


def test_only_data_to_be_prepared_make_a_stage() -> None:
    with pytest.raises(ValueError, match="mixed has no `prepare`"):
        config(data={"prepare": None})
    with pytest.raises(ValueError, match="parts are numbered from 0"):
        config(PreparePartConfig, part=2, parts=2)


def test_other_ranks_have_nothing_to_do(index: Artifact, tmp_path: Path) -> None:
    ctx = stage(tmp_path / "stage", index, rank=1, world_size=2)
    assert run(ctx, config()) == StageResult()
    assert run_part(ctx, config(PreparePartConfig, part=0, parts=1)) == StageResult()


def test_configurations_import_nothing_heavy() -> None:
    script = (
        "import sys, recipes.stages.prepare.config, recipes.stages.prepare_part.config\n"
        "heavy = {'torch', 'numpy', 'pandas', 'av', 'decord', 'mlflow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
