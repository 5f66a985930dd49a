"""Original lists of the data sets, read as they are; folders and csv files of people's own."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from recipes.catalog import DATASETS, load
from recipes.contract import InputError
from recipes.data import csvlist, folder, hmdb51, kinetics, ucf101
from recipes.data.config import (
    CsvData,
    DataConfig,
    FolderData,
    HMDB51Data,
    KineticsData,
    UCF101Data,
    expand,
)
from recipes.data.listing import VideoRow, make_listing, refusal
from tests.recipes.data_files import real_data


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


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
    listing = ucf101.scan(config, tmp_path)
    assert listing.root == tmp_path / "UCF-101"
    assert [(row.label, row.split, row.group) for row in listing.rows] == [
        ("Archery", "test", "Archery_g01"),
        ("Archery", "train", "Archery_g08"),
        ("HandstandPushups", "train", "HandstandPushups_g02"),
    ]


def test_a_ucf101_list_that_contradicts_the_class_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classInd.txt").write_text("1 Archery\n2 Basketball\n")
    (tmp_path / "trainlist01.txt").write_text("Archery/v_Archery_g08_c01.avi 2\n")
    with pytest.raises(InputError, match="does not agree with classInd"):
        ucf101.parse(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        ucf101.parse(tmp_path / "elsewhere")


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
    (row,) = hmdb51.scan(HMDB51Data(root=str(tmp_path), lists="."), tmp_path).rows
    assert row.path == f"brush_hair/{name}"
    assert row.folds == ("unused", "train", "test")
    assert row.group == "brush_hair/Best_Of_[Skype]_(1)_&_#2;!"
    (tmp_path / "brush_hair_test_split1.txt").write_text(f"{name} 3\n")
    with pytest.raises(InputError, match=r"expected `name\.avi 0`, 1 or 2"):
        hmdb51.parse(tmp_path)


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


def test_a_kinetics_list_without_times_is_refused() -> None:
    with pytest.raises(InputError, match="lacks time_start, time_end"):
        kinetics.parse("label,youtube_id\nx,y\n", "list.csv")
    with pytest.raises(InputError, match=r"list.csv, line 2"):
        kinetics.parse("youtube_id,time_start,time_end\nx,one,2\n", "list.csv")


def test_a_folder_of_classes_is_split_by_a_hash_of_the_group(tmp_path: Path) -> None:
    names = [f"{label}/scene{s}_take{t}.MP4" for label in "ab" for s in range(40) for t in (1, 2)]
    touch(tmp_path, *names, ".hidden/x.mp4", "a/notes.txt")
    config = FolderData(name="own", root=str(tmp_path), group=r"^(\w/scene\d+)", test_share=0.3)
    listing = folder.scan(config, tmp_path)
    assert [row.path for row in listing.rows] == sorted(names)
    assert listing.classes == ("a", "b")
    sides = defaultdict(set)
    for row in listing.rows:
        sides[row.group].add(row.split)
    assert len(sides) == 80
    assert all(len(side) == 1 for side in sides.values())
    assert 24 - 5 * 4.1 < sum(side == {"test"} for side in sides.values()) < 24 + 5 * 4.1


def test_the_split_of_a_file_does_not_depend_on_the_other_files(tmp_path: Path) -> None:
    config = FolderData(name="own", root=str(tmp_path), test_share=0.5)
    touch(tmp_path, *(f"a/{number}.mp4" for number in range(20)))
    before = {row.path: row.split for row in folder.scan(config, tmp_path).rows}
    touch(tmp_path, *(f"a/new{number}.mp4" for number in range(20)))
    after = {row.path: row.split for row in folder.scan(config, tmp_path).rows}
    assert before.items() <= after.items()
    assert set(before.values()) == {"train", "test"}


def test_given_subfolders_decide_the_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.mp4", "test/a/2.mp4", "val/b/deep/3.avi")
    config = FolderData(name="own", root=str(tmp_path), split="subfolders")
    assert [(row.label, row.split) for row in folder.scan(config, tmp_path).rows] == [
        ("a", "test"),
        ("a", "train"),
        ("b", "val"),
    ]
    touch(tmp_path, "stray.mp4")
    with pytest.raises(InputError, match=r"stray.mp4 is not below train/, test/ or val/"):
        folder.scan(config, tmp_path)


def test_an_empty_or_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no videos found"):
        folder.scan(FolderData(name="own", root=str(tmp_path)), tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        folder.scan(FolderData(name="own", root=str(tmp_path / "no")), tmp_path)


def test_a_csv_needs_only_paths(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes('\ufeffpath;label\r\n"a;b.mp4";Über\r\nc.mp4;\r\n'.encode())
    listing = csvlist.scan(CsvData(name="own", file=str(file), delimiter=";"), tmp_path)
    assert listing.root == tmp_path
    assert listing.classes == ("Über",)
    assert listing.rows == (
        VideoRow(path="a;b.mp4", label="Über", split="train", group="a;b.mp4"),
        VideoRow(path="c.mp4", label="", split="train", group="c.mp4"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,b\n", "needs a header with the column path"),
        ("", "found nothing"),
        ("path,split\na,train\nb,dev\n", r"list.csv, line 3: .* train, test, val, unused"),
        ("path,label\na,b,c\n", "line 2"),
        ("path,label\n,b\n", "line 2"),
    ],
)
def test_a_wrong_csv_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        csvlist.parse(text, "list.csv")


def test_a_video_listed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.mp4 is listed twice"):
        make_listing(tmp_path, [VideoRow(path="a.mp4"), VideoRow(path="a.mp4", label="x")])


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x.mp4", "a/../../x.mp4", "..", "a/..", "~/x.mp4", "~root/x.mp4",
     "http://host/x.mp4", "https://host/x.mp4", "HTTP://host/x", "ftp://host/x", "file:///etc/passwd",
     "file:x.mp4", "concat:a.mp4|b.mp4", "subfile,,start,0,end,9,,:a.mp4", "data:text/plain,x",
     "crypto:a.mp4", "rtmp://h/x", "rtsp://h/x", "tcp://h:1", "udp://h:1", "pipe:0", "unix:/x",
     "cache:http://h/x", "async:file:x", "tee:a", "hls+http://h/x.m3u8", "mmsh://h/x", "srt://h:1",
     "gopher://h/x", "lavfi:testsrc", "a\nb.mp4", "a\x00.mp4", "a\r.mp4", "link.mp4",
     "linked/x.mp4"],
)  # fmt: skip
def test_a_listed_path_cannot_reach_outside_its_root(tmp_path: Path, path: str) -> None:
    outside = touch(tmp_path / "outside", "x.mp4")
    root = touch(tmp_path / "root", "good.mp4")
    (root / "link.mp4").symlink_to(outside / "x.mp4")
    (root / "linked").symlink_to(outside)
    assert refusal(root, path, follow_links=False)
    assert refusal(root, "good.mp4", follow_links=False) == ""


def test_links_may_be_allowed_and_strange_names_are_no_urls(tmp_path: Path) -> None:
    outside = touch(tmp_path / "outside", "x.mp4")
    root = touch(tmp_path / "root")
    root.mkdir()
    (root / "link.mp4").symlink_to(outside / "x.mp4")
    assert refusal(root, "link.mp4", follow_links=True) == ""
    assert refusal(root, "../outside/x.mp4", follow_links=True)
    for name in ("Act 1: x/[a] (b) & #c;!.avi", "-a_b.mp4", "...mp4", "a..b/c.mp4"):
        assert refusal(root, name, follow_links=False) == ""


def test_every_format_is_chosen_by_its_name_and_needs_no_files() -> None:
    adapter: TypeAdapter[DataConfig] = TypeAdapter(DataConfig)
    given = [
        {"format": "synthetic"},
        {"format": "folder", "name": "own", "root": "~/videos"},
        {"format": "csv", "name": "own", "file": "relative/list.csv"},
        {"format": "ucf101", "root": "/nowhere"},
        {"format": "hmdb51", "root": "/nowhere"},
        {"format": "kinetics", "root": "/nowhere"},
    ]
    configs = [adapter.validate_python(value) for value in given]
    files = [config.identity_files() for config in configs]
    assert [len(found) for found in files] == [0, 0, 1, 7, 1, 2]
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
