"""Original lists of UCF101, HMDB51 and Kinetics, read as they are, and the files they name."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from recipes.catalog import DATASETS, load
from recipes.contract import InputError
from recipes.data import hmdb51, kinetics, ucf101
from recipes.data.config import (
    DataConfig,
    HMDB51Data,
    KineticsData,
    UCF101Data,
    _Files,
    expand,
)
from recipes.data.listing import VideoRow, locate
from tests.recipes.data_files import real_data, touch


def test_the_original_lists_of_ucf101_have_the_published_counts() -> None:
    classes, rows = ucf101.parse(real_data("annotations/ucfTrainTestlist"))
    assert len(classes) == 101
    assert (classes[0], classes[-1]) == ("ApplyEyeMakeup", "YoYo")
    assert len(rows) == 13320
    expected = [(9537, 3783), (9586, 3734), (9624, 3696)]
    for fold, (train, test) in enumerate(expected):
        assert Counter(row.folds[fold] for row in rows if row.folds) == {
            "train": train,
            "test": test,
        }
    assert len({row.group for row in rows}) == 101 * 25


def test_groups_of_ucf101_and_hmdb51_never_cross_a_split() -> None:
    _, of_ucf = ucf101.parse(real_data("annotations/ucfTrainTestlist"))
    of_hmdb = hmdb51.parse(real_data("annotations/testTrainMulti_7030_splits"))
    for rows in (of_ucf, of_hmdb):
        for fold in range(3):
            sides = defaultdict(set)
            for row in rows:
                assert row.folds is not None
                sides[row.group].add(row.folds[fold])
            crossing = [group for group, marks in sides.items() if {"train", "test"} <= marks]
            assert crossing == []


def test_the_label_of_handstand_pushups_is_its_folder() -> None:
    classes, rows = ucf101.parse(real_data("annotations/ucfTrainTestlist"))
    labels = {row.label for row in rows if "HandStandPushups" in row.path}
    assert labels == {"HandstandPushups"} <= set(classes)


def test_ucf101_lists_with_crlf_and_trailing_blanks_are_read(tmp_path: Path) -> None:
    (tmp_path / "classInd.txt").write_bytes(b"1 Archery\r\n2 HandstandPushups \r\n\r\n")
    train = (
        b"Archery/v_Archery_g08_c01.avi 1 \r\nHandstandPushups/v_HandStandPushups_g02_c03.avi 2\r\n"
    )
    test = b"Archery/v_Archery_g01_c01.avi \r\n"
    for fold in (1, 2, 3):
        (tmp_path / f"trainlist0{fold}.txt").write_bytes(train)
        (tmp_path / f"testlist0{fold}.txt").write_bytes(test)
    config = UCF101Data(root=str(tmp_path), lists=".")
    touch(tmp_path / "UCF-101", "YoYo/v_YoYo_g01_c01.avi")
    with pytest.raises(InputError, match=r"none of the 3 listed .* 1 others, such as YoYo/v_Yo"):
        ucf101.scan(config, tmp_path)
    touch(tmp_path / "UCF-101", "Archery/v_Archery_g08_c01.avi")
    listing = ucf101.scan(config, tmp_path)
    assert listing.root == tmp_path / "UCF-101"
    assert [(row.label, row.split, row.group) for row in listing.rows] == [
        ("Archery", "test", "Archery_g01"),
        ("Archery", "train", "Archery_g08"),
        ("HandstandPushups", "train", "HandstandPushups_g02"),
    ]


def test_ucf101_files_are_found_whatever_their_case_folder_and_ending(tmp_path: Path) -> None:
    name = "v_HandStandPushups_g02_c0"
    lists = touch(tmp_path / "lists")
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 HandstandPushups\n2 YoYo\n")
    listed = [f"HandstandPushups/{name}{number}.avi" for number in range(6)]
    for fold in (1, 2, 3):
        (lists / f"trainlist0{fold}.txt").write_text("\n".join(f"{path} 1" for path in listed))
        (lists / f"testlist0{fold}.txt").write_text("YoYo/v_YoYo_g01_c01.avi\n")
    files = (
        f"HandstandPushups/{name}0.avi",
        f"HandStandPushups/{name}1.avi",
        "HandstandPushups/v_HandstandPushups_g02_c02.avi",
        f"HandStandPushups/{name}3.mp4",
        f"{name}4.mkv",
        "YoYo/v_YoYo_g01_c01.avi",
        "YoYo/v_YoYo_g01_c01.mp4",
    )
    touch(tmp_path / "videos", *files)
    config = UCF101Data(root=str(tmp_path), lists="lists", videos="videos")
    listing = ucf101.scan(config, tmp_path)
    assert {row.path for row in listing.rows} == {*files[:6], listed[5]}  # the last is missing
    assert {row.label for row in listing.rows if "andstand" in row.path.lower()} == {
        "HandstandPushups"
    }
    with pytest.raises(InputError, match=r"UCF-101: no such folder; is `root`"):
        ucf101.scan(UCF101Data(root=str(tmp_path), lists="lists"), tmp_path)


def test_an_exact_name_goes_before_a_similar_one_and_the_listed_folder_before_others() -> None:
    rows = [VideoRow(path="a/X.avi"), VideoRow(path="b/y.avi")]
    files = ["a/x.avi", "a/X.avi", "a/y.mp4", "B/y.mkv", "B/y.mov"]
    assert [row.path for row in locate(rows, files, Path())] == ["a/X.avi", "B/y.mkv"]


def test_a_ucf101_list_that_contradicts_the_class_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classInd.txt").write_text("1 Archery\n2 Basketball\n")
    (tmp_path / "trainlist01.txt").write_text("Archery/v_Archery_g08_c01.avi 2\n")
    with pytest.raises(InputError, match="does not agree with classInd"):
        ucf101.parse(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        ucf101.parse(tmp_path / "elsewhere")
    for text in ("1\n", "1 Archery bow\n", "Archery 1\n", "2 Archery\n"):
        (tmp_path / "classInd.txt").write_text(text)
        with pytest.raises(InputError, match="expected lines `1 Name`"):
            ucf101.parse(tmp_path)
    (tmp_path / "classInd.txt").write_text("\r\n")
    with pytest.raises(InputError, match=r"classInd.txt: is empty"):
        ucf101.parse(tmp_path)


def test_the_original_lists_of_hmdb51_have_the_published_counts() -> None:
    rows = hmdb51.parse(real_data("annotations/testTrainMulti_7030_splits"))
    assert len({row.label for row in rows}) == 51
    for fold in range(3):
        counts = Counter(row.folds[fold] for row in rows if row.folds)
        assert (counts["train"], counts["test"]) == (3570, 1530)
    per_class = Counter((row.label, row.split) for row in rows if row.split != "unused")
    assert set(per_class.values()) == {70, 30}
    assert any(set("[]();&#!") & set(row.path) for row in rows)


def test_hmdb51_names_are_opaque(tmp_path: Path) -> None:
    name = "Best_Of_[Skype]_(1)_&_#2;!_brush_hair_f_cm_np2_le_goo_0.avi"
    for fold, mark in ((1, "0"), (2, "1"), (3, "2")):
        (tmp_path / f"brush_hair_test_split{fold}.txt").write_text(f"{name} {mark} \n")
    touch(tmp_path, f"brush_hair/{name}")
    (row,) = hmdb51.scan(HMDB51Data(root=str(tmp_path), lists="."), tmp_path).rows
    assert row.path == f"brush_hair/{name}"
    assert row.folds == ("unused", "train", "test")
    assert row.group == "brush_hair/Best_Of_[Skype]_(1)_&_#2;!"
    (tmp_path / "brush_hair_test_split1.txt").write_text(f"{name} 3\n")
    with pytest.raises(InputError, match=r"expected `name\.avi 0`, 1 or 2"):
        hmdb51.parse(tmp_path)
    (tmp_path / "brush_hair_test_split1.txt").write_text(f"{name} 1\n{name} 2\n")
    with pytest.raises(InputError, match="is listed twice, with different marks"):
        hmdb51.parse(tmp_path)
    (tmp_path / "brush_hair_test_split1.txt").unlink()
    with pytest.raises(InputError, match=r"brush_hair_test_split1.txt: cannot be read"):
        hmdb51.parse(tmp_path)
    with pytest.raises(InputError, match=r"no files <class>_test_split1.txt"):
        hmdb51.parse(touch(tmp_path / "lists", "readme.txt"))


def test_the_original_kinetics_list_is_read() -> None:
    file = real_data("annotations/kinetics/kinetics-400_val.csv")
    segments = kinetics.parse(file.read_text(encoding="utf-8"), str(file))
    labels = real_data("annotations/kinetics/label_map_k400.txt").read_text(encoding="utf-8")
    assert len(segments) == 19906
    assert sorted({segment.label for segment in segments}) == labels.split("\n")[:400]
    assert segments[0] == ("abseiling", "0wR5jVB-WPk", 417, 427, "val")


def test_kinetics_files_are_found_whatever_the_layout(tmp_path: Path) -> None:
    touch(
        tmp_path / "videos",
        "train/playing chess/-a_b_000010_000020.mp4",  # an id with a leading dash and a blank label
        "train/playing_chess/C-d_000000_000010.mkv",
        "val/E_f_9_000100_000110.webm",  # no class folder, an id that looks like a time
        "val/plain.mp4",
    )
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        '"playing chess",-a_b,10,20,train,0\n'
        "playing chess,C-d,0,10,train,0\n"
        '"petting animal (not cat), or so",gone,5,15,train,1\n'
    )
    (tmp_path / "val.csv").write_text(
        "youtube_id,time_start,time_end,split\nE_f_9,100,110,val\nplain,3,13,val\n"
    )
    config = KineticsData(
        root=str(tmp_path), videos="videos", train_list="train.csv", test_list="val.csv"
    )
    listing = kinetics.scan(config, tmp_path)
    assert [(row.path, row.label, row.split, row.group) for row in listing.rows] == [
        ("train/petting animal (not cat), or so/gone_000005_000015.mp4",
         "petting animal (not cat), or so", "train", "gone"),
        ("train/playing chess/-a_b_000010_000020.mp4", "playing chess", "train", "-a_b"),
        ("train/playing_chess/C-d_000000_000010.mkv", "playing chess", "train", "C-d"),
        ("val/E_f_9_000100_000110.webm", "", "test", "E_f_9"),
        ("val/plain.mp4", "", "test", "plain"),
    ]  # fmt: skip
    assert listing.classes == ("petting animal (not cat), or so", "playing chess")


KINETICS = "label,youtube_id,time_start,time_end,split\n"


def kinetics_rows(root: Path, train: str, test: str = "", **options: Any) -> dict[str, str]:
    """Paths and splits of a copy below `root`/videos."""
    (root / "videos").mkdir(parents=True, exist_ok=True)
    (root / "train.csv").write_text(KINETICS + train, encoding="utf-8")
    (root / "val.csv").write_text(KINETICS + test, encoding="utf-8")
    config = KineticsData(
        root=str(root),
        videos="videos",
        train_list="train.csv",
        test_list="val.csv" if test else None,
        **options,
    )
    return {row.path: row.split for row in kinetics.scan(config, root).rows}


def test_a_bare_id_stands_for_the_only_segment_of_its_video(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "once.mp4", "twice.mp4", "a_01_22.mp4")
    text = "x,once,1,11,train\nx,twice,1,11,train\nx,twice,50,60,train\nx,a_01_22,3,13,train\n"
    assert list(kinetics_rows(tmp_path, text)) == [
        "a_01_22.mp4",
        "once.mp4",
        "train/x/twice_000001_000011.mp4",  # missing: nobody knows which of the two it is
        "train/x/twice_000050_000060.mp4",
    ]


def test_of_several_files_of_a_segment_the_one_in_its_folders_is_taken(tmp_path: Path) -> None:
    name = "id_000001_000011.mp4"
    touch(tmp_path / "videos", f"corrupt/{name}", f"train/play_it/{name}", f"zzz/play_it/{name}")
    assert list(kinetics_rows(tmp_path, "play it,id,1,11,train\n")) == [f"train/play_it/{name}"]


def test_a_segment_in_both_lists_is_kept_for_testing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "videos", "id_000001_000011.mp4", "b_000001_000011.mp4")
    train = "x,id,1,11,train\nx,b,1,11,train\ny,b,1.0,11.0,train\n"
    found = kinetics_rows(tmp_path, train, "x,id,1,11,val\n")
    assert found == {"id_000001_000011.mp4": "test", "b_000001_000011.mp4": "train"}
    assert "train.csv: 2 segments are listed before and left out" in caplog.text


def test_endings_of_kinetics_files_are_an_option_and_their_case_does_not_matter(
    tmp_path: Path,
) -> None:
    touch(tmp_path / "videos", "a_000001_000011.MP4", "b_000001_000011.avi")
    text = "x,a,1,11,train\nx,b,1,11,train\n"
    assert list(kinetics_rows(tmp_path, text)) == [
        "a_000001_000011.MP4",
        "train/x/b_000001_000011.mp4",
    ]
    found = kinetics_rows(tmp_path, text, extensions=(".mp4", ".avi"))
    assert list(found) == ["a_000001_000011.MP4", "b_000001_000011.avi"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,youtube_id\nx,y\n", "missing: time_start, time_end"),
        ("youtube_id,time_start,time_end\nx,one,2\n", r"line 2: times must be seconds"),
        ("youtube_id,time_start,time_end\nx,inf,2\n", r"line 2: times must be seconds"),
        ("youtube_id,time_start,time_end\nx\n", r"line 2: times must be seconds"),
        ("youtube_id,time_start,time_end\n,1,2\n", r"line 2: the youtube_id is empty"),
        (KINETICS + "petting (not cat), or so,id,1,11,train\n", r"line 2: 6 cells for the columns"),
        ("", "an empty file"),
    ],
)
def test_a_wrong_kinetics_list_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kinetics.parse(text, "list.csv")


def test_a_kinetics_root_without_any_listed_video_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of the 1 listed .*train/x/a_000001.*no videos at"):
        kinetics_rows(tmp_path, "x,a,1,11,train\n")


def test_an_empty_kinetics_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train.csv: lists no videos"):
        kinetics_rows(tmp_path, "")


def test_every_format_is_chosen_by_its_name_and_needs_no_files() -> None:
    adapter: TypeAdapter[DataConfig] = TypeAdapter(DataConfig)
    given = [
        {"format": "synthetic"},
        {"format": "folder", "name": "own", "root": "~/videos"},
        {"format": "csv", "name": "own", "file": "relative/list.csv"},
        {"format": "multicamera", "name": "own", "file": "manifest.csv"},
        {"format": "ucf101", "root": "/nowhere"},
        {"format": "hmdb51", "root": "/nowhere"},
        {"format": "kinetics", "root": "/nowhere"},
    ]
    configs = [adapter.validate_python(value) for value in given]
    files = [config.identity_files() for config in configs]
    assert [len(found) for found in files] == [0, 0, 1, 1, 7, 1, 2]
    assert files[2] == [Path.cwd() / "relative/list.csv"]
    assert expand("~/x") == Path.home() / "x"
    with pytest.raises(ValidationError, match="Extra inputs"):
        adapter.validate_python({"format": "ucf101", "root": "/x", "folder": "/y"})
    with pytest.raises(ValidationError, match="regular expression"):
        adapter.validate_python({"format": "folder", "name": "x", "root": "/x", "group": "("})
    with pytest.raises(ValidationError, match="one group in parentheses"):
        adapter.validate_python({"format": "folder", "name": "x", "root": "/x", "group": "x"})


def test_the_lists_that_exist_belong_to_the_identity() -> None:
    root = real_data("annotations")
    ucf = UCF101Data(root=str(root))
    hmdb = HMDB51Data(root=str(root))
    assert all(file.is_file() for file in ucf.identity_files())
    assert len(hmdb.identity_files()) == 153


def test_the_catalog_names_a_config_and_a_scanner_for_every_format() -> None:
    for name, entry in DATASETS.items():
        assert load(entry.config).model_fields["format"].default == name
        assert callable(load(entry.target))


def test_avi_is_prepared_by_default_and_kinetics_is_not() -> None:
    adapter: TypeAdapter[DataConfig] = TypeAdapter(DataConfig)
    needed = {"name": "own", "root": "/x", "file": "/x.csv"}
    for kind, prepared in {
        "folder": True,
        "csv": True,
        "multicamera": True,
        "ucf101": True,
        "hmdb51": True,
        "kinetics": False,
    }.items():
        model = load(DATASETS[kind].config)
        given = {name: value for name, value in needed.items() if name in model.model_fields}
        config = adapter.validate_python({"format": kind, **given})
        assert isinstance(config, _Files)
        assert (config.prepare is not None) == prepared
        off = adapter.validate_python({"format": kind, **given, "prepare": None})
        assert isinstance(off, _Files)
        assert off.prepare is None
