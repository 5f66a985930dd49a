"""Manifests of videos that several cameras took of the same instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recipes.contract import InputError
from recipes.data import multicamera
from recipes.data.config import MultiCameraData
from recipes.data.listing import VideoRow
from recipes.data.multicamera import align, parse
from recipes.data.table import load_table
from tests.recipes.data_files import index, numbered, write_video

HEADER = "instance,camera,path,class,split,start_frame,n_frames,offset_frames\n"
GOOD = HEADER + (
    "throw1,front,cam1/a.mp4,throw,train,0,100,0\n"
    "throw1,side,cam2/a.mp4,throw,train,0,105,5\n"
    "throw1,back,cam3/a.mp4,throw,train,40,97,-3\n"
    "fall1,front,cam1/a.mp4,fall,test,100,50,0\n"
    "fall1,side,cam2/b.mp4,fall,test,,51,\n"
)


def test_a_manifest_is_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(GOOD)
    config = MultiCameraData(name="judo", file=str(tmp_path / "manifest.csv"))
    listing = multicamera.scan(config, tmp_path)
    assert listing.root == tmp_path
    assert listing.classes == ("fall", "throw")
    assert [
        (row.path, row.instance, row.camera, row.start, row.length, row.offset)
        for row in listing.rows
    ] == [
        ("cam1/a.mp4", "throw1", "front", 0, 100, 0),
        ("cam1/a.mp4", "fall1", "front", 100, 50, 0),  # one file may hold several instances
        ("cam2/a.mp4", "throw1", "side", 0, 105, 5),
        ("cam2/b.mp4", "fall1", "side", 0, 51, 0),
        ("cam3/a.mp4", "throw1", "back", 40, 97, -3),
    ]
    assert {(row.group, row.split) for row in listing.rows} == {
        ("throw1", "train"),
        ("fall1", "test"),
    }
    assert config.identity_files() == [tmp_path / "manifest.csv"]


def test_other_names_of_the_columns_and_seconds_are_understood() -> None:
    text = "instance_id;camera_id;path;label;offset_seconds\none;1;a.mp4;x;-0.5\none;2;./b.mp4;x;\n"
    first, second = parse(text, "m.csv", ";")
    assert (first.offset, first.offset_seconds, first.start, first.length) == (None, -0.5, 0, None)
    assert (second.offset, second.offset_seconds, second.path) == (0, None, "b.mp4")
    assert (first.split, first.label, first.group) == ("train", "x", "one")


def test_all_contradictions_are_told_together() -> None:
    text = HEADER + (
        "alone,1,a.mp4,x,train,,,\n"
        "same,1,b.mp4,x,train,,,\nsame,1,c.mp4,x,train,,,\nsame,2,d.mp4,x,train,,,\n"
        "classes,1,e.mp4,x,train,,,\nclasses,2,f.mp4,,train,,,\n"
        "splits,1,g.mp4,x,train,,,\nsplits,2,h.mp4,x,test,,,\n"
        "ends,1,i.mp4,x,train,0,100,0\nends,2,j.mp4,x,train,0,100,2\n"
        "fine,1,k.mp4,x,train,0,100,0\nfine,2,l.mp4,x,train,0,100,1\n"
    )
    with pytest.raises(InputError) as error:
        parse(text, "m.csv")
    assert str(error.value).split("; ") == [
        "m.csv: the manifest contradicts itself: instance alone: needs two cameras or more, has 1 "
        "only",
        "instance same: a camera is listed twice (1, 1, 2)",
        "instance classes: has more than one class (none, x)",
        "instance splits: is in more than one split (test, train), so what is trained on would be "
        "tested on",
        "instance ends: its cameras end 2 frames apart (n_frames - offset_frames: 98 to 100)",
    ]


def test_many_contradictions_are_counted() -> None:
    text = HEADER + "".join(f"i{number},1,{number}.mp4,x,train,,,\n" for number in range(30))
    with pytest.raises(InputError, match=r"and 25 more$"):
        parse(text, "m.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file|lists no videos"),
        (HEADER, "lists no videos"),
        ("camera,path,cls\n1,a,x\n", r"missing: instance; unknown: cls"),
        ("instance,camera,path,offset,offset_seconds\ni,1,a,0,0\n", "a column is given twice"),
        ("instance,camera,path,class,label\ni,1,a,x,x\n", "a column is given twice"),
        (HEADER + "i,,a.mp4,x,train,0,1,0\n", r"m.csv, line 2: camera must not be empty"),
        (HEADER + "i,1,a.mp4,x,dev,0,1,0\n", r"line 2: the split is 'dev', not one of train"),
        (HEADER + "i,1,a.mp4,x,train,-1,1,0\n", "start_frame must be a whole number of at least 0"),
        (HEADER + "i,1,a.mp4,x,train,0,0,0\n", "n_frames must be a whole number of at least 1"),
        (HEADER + "i,1,a.mp4,x,train,0,1,0.5\n", "offset_frames must be a whole number, not '0.5'"),
        (HEADER + "i,1,a.mp4,x,train,0,1,soon\n", "offset_frames must be a number, not 'soon'"),
        ("instance,camera,path,offset_seconds\ni,1,a,nan\n", "offset_seconds must be a number"),
    ],
)
def test_a_wrong_manifest_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text, "m.csv")


def test_whole_numbers_may_be_written_as_tables_write_them() -> None:
    rows = parse(HEADER + "i,1,a.mp4,,,0.0,12.0,-3.0\ni,2,b.mp4,,,,9,-6\n", "m.csv")
    assert [(row.start, row.length, row.offset) for row in rows] == [(0, 12, -3), (0, 9, -6)]


def cameras(*given: dict[str, Any]) -> list[VideoRow]:
    return [
        VideoRow(path=f"{n}.mp4", instance="i", camera=str(n), **{"start": 0, "offset": 0, **row})
        for n, row in enumerate(given)
    ]


def test_seconds_become_frames_of_the_file_itself() -> None:
    rows = cameras({"offset": None, "offset_seconds": 0.5}, {"offset": None, "offset_seconds": -1})
    found = align(rows, [115, 70], [30.0, 30.0])
    assert found.offsets == [15, -30]
    assert found.lengths == [115, 70]
    assert found.problems == ["", ""]


def test_lengths_that_the_manifest_leaves_out_are_those_of_the_files() -> None:
    rows = cameras({"start": 10}, {"length": 90})
    assert align(rows, [101, 200], [25.0, 25.0]) == ([0, 0], [91, 90], ["", ""])
    rows = cameras({"start": 10}, {"length": 80})
    assert (
        align(rows, [101, 200], [25.0, 25.0]).problems
        == ["the cameras of its instance end 11 frames apart; correct the offsets or n_frames"] * 2
    )


def test_a_file_shorter_than_the_manifest_says_takes_its_instance_along() -> None:
    rows = cameras({"start": 10, "length": 100}, {"length": 100})
    assert align(rows, [109, 100], [25.0, 25.0]).problems == [
        "the manifest wants frames 10 to 109, there are 109",
        "no other camera of its instance can be used",
    ]
    rows = cameras({"start": 10}, {})
    assert align(rows, [10, 100], [25.0, 25.0]).problems[0].startswith("the manifest wants")


def test_two_usable_cameras_of_three_are_enough() -> None:
    rows = cameras({}, {}, {})
    assert align(rows, [50, 0, 51], [25.0, 0.0, 25.0]).problems == [
        "",
        "the file cannot be used",
        "",
    ]


def test_cameras_of_different_frame_rates_share_no_clock_of_frames() -> None:
    assert align(cameras({}, {}), [50, 50], [29.97, 30.0]).problems == ["", ""]
    assert (
        align(cameras({}, {}), [50, 50], [25.0, 30.0]).problems
        == ["the cameras of its instance run at 25 to 30 frames a second"] * 2
    )


def test_the_index_puts_cameras_on_one_clock_and_rejects_what_has_no_partner(
    tmp_path: Path,
) -> None:
    for camera, frames in (("c1", 60), ("c2", 50), ("c3", 40)):
        write_video(tmp_path / camera / "long.mp4", numbered(frames))
    (tmp_path / "manifest.csv").write_text(
        "instance,camera,path,class,split,start_frame,n_frames,offset_seconds\n"
        "a,1,c1/long.mp4,x,train,0,20,0.2\n"
        "a,2,c2/long.mp4,x,train,30,15,0\n"
        "b,1,c1/long.mp4,y,train,30,30,\n"
        "b,2,gone.mp4,y,train,,,\n"
        "c,2,c2/long.mp4,y,test,0,,\n"
        "c,3,c3/long.mp4,y,test,0,,\n"
    )
    output = index(
        tmp_path / "out",
        format="multicamera",
        name="judo",
        file=str(tmp_path / "manifest.csv"),
        max_bad_share=1.0,
    )
    table = pd.read_parquet(output.path)
    found = table[["instance", "camera", "start", "length", "offset", "verdict"]]
    assert [tuple(row) for row in found.itertuples(index=False)] == [
        ("a", "1", 0, 20, 5, "random"),
        ("b", "1", 30, 30, 0, "reject"),
        ("c", "2", 0, 50, 0, "reject"),
        ("a", "2", 30, 15, 0, "random"),
        ("c", "3", 0, 40, 0, "reject"),
        ("b", "2", 0, 0, 0, "reject"),
    ]
    reasons = table.set_index(["instance", "camera"])["reason"]
    assert reasons["b", "1"] == "no other camera of its instance can be used"
    assert reasons["b", "2"] == "missing"
    assert reasons["c", "3"].startswith("the cameras of its instance end 10 frames apart")
    assert "offset_seconds" not in table
    usable = load_table(output, "train")
    assert (usable.frames.tolist(), usable.total) == ([20, 15], 4)
    assert usable.starts is not None
    assert usable.offsets is not None
    assert (usable.starts.tolist(), usable.offsets.tolist()) == ([0, 30], [5, 0])
