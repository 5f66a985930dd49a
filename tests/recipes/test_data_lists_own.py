"""Folders of classes, csv files and other lists of people's own."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from recipes.contract import InputError
from recipes.data import csvlist, folder
from recipes.data.config import CsvData, FolderData
from recipes.data.listing import VideoRow, find_files, make_listing, read_csv, read_list
from tests.recipes.data_files import real_data, touch


def rows_of(text: str, split: str = "train", **options: Any) -> list[VideoRow]:
    return csvlist.parse(text, "list.csv", CsvData(name="own", file="list.csv", **options), split)


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
        ("a.mp4,b\n", "must name the columns, path among them.* set `columns`"),
        ("path;label\na;b\n", "for another delimiter `delimiter`"),
        ("", "an empty file"),
        ("path,label\n", "lists no videos"),
        ("file,label\na,b\n", "the column 'file' is unknown; if it is meant as 'path'"),
        ("path,class\na,b\n", "the column 'class' is unknown; if it is meant as 'label'"),
        ("path,lable\na,b\n", "if it is meant as 'label', call it so"),
        ("Path,Label\na,b\n", "if it is meant as"),
        ("path,path\na,b\n", "a column is named twice"),
        ('path,label\na,"b\nc,d\n', "are all quotes closed"),
        ("path,split\na,train\nb,dev\n", r"list.csv, line 3: .* train, test, val, unused"),
        ("path,label\na,b,c\n", "line 2"),
        ("path,label\n,b\n", "line 2"),
    ],
)
def test_a_wrong_csv_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rows_of(text)


def test_columns_that_are_not_ours_are_read_over(caplog: pytest.LogCaptureFixture) -> None:
    (row,) = rows_of("path,fps,label,n_frames\na.mp4,25,jump,100\n")
    assert (row.path, row.label) == ("a.mp4", "jump")
    assert "columns not used: fps" in caplog.text


@pytest.mark.parametrize(
    ("line", "columns", "delimiter", "path", "label"),
    [
        ("a/x y.mp4 3", ["path", "label"], " ", "a/x y.mp4", "3"),
        ("a/x  y.mp4  3 ", ["path", "label"], " ", "a/x  y.mp4", "3"),
        ("a/x.mp4,250", ["path", "n_frames"], ",", "a/x.mp4", ""),
        ("a b/x.mp4 a_b 250", ["path", "label", "n_frames"], " ", "a b/x.mp4", "a_b"),
        ("7 250 a b/x.mp4", ["label", "-", "path"], " ", "a b/x.mp4", "7"),
        ("a/x.mp4,3", ["path", "label"], ",", "a/x.mp4", "3"),
        ('"a/x, y.mp4",3', ["path", "label"], ",", "a/x, y.mp4", "3"),
        ("a/x.mp4\tplaying chess", ["path", "label"], "\t", "a/x.mp4", "playing chess"),
        ("./a//x.mp4,3", ["path", "label"], ",", "a/x.mp4", "3"),
        ("x.mp4,3,x.mp4,3", ["path", "label", "-", "-"], ",", "x.mp4", "3"),
    ],
)
def test_lists_without_a_header_are_read_by_their_columns(
    line: str, columns: list[str], delimiter: str, path: str, label: str
) -> None:
    (row,) = rows_of(f"{line}\r\n\r\n", columns=columns, delimiter=delimiter)
    assert (row.path, row.label, row.split) == (path, label, "train")


def test_a_list_by_blanks_may_have_a_header_and_leave_out_the_ending() -> None:
    rows = rows_of("path label n_frames\na/v_1 2 164\n", delimiter=" ", suffix=".avi")
    assert [(row.path, row.label) for row in rows] == [("a/v_1.avi", "2")]


def test_a_line_with_too_few_cells_is_refused_with_its_number() -> None:
    with pytest.raises(InputError, match=r"line 3: expected path label, found 'b.mp4'"):
        rows_of("a.mp4 1\n\nb.mp4\n", columns=["path", "label"], delimiter=" ")


def test_two_lists_stand_for_training_and_testing(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a.mp4 0\nb.mp4 10\n")
    (tmp_path / "val.txt").write_text("c.mp4 9\n")
    config = CsvData(
        name="own",
        file=str(tmp_path / "train.txt"),
        test_file="val.txt",
        delimiter=" ",
        columns=("path", "label"),
    )
    listing = csvlist.scan(config, tmp_path)
    assert [(row.path, row.split) for row in listing.rows] == [
        ("a.mp4", "train"),
        ("b.mp4", "train"),
        ("c.mp4", "test"),
    ]
    assert listing.classes == ("0", "9", "10")  # by value, so that ids follow the list's numbers
    assert config.identity_files() == [tmp_path / "train.txt", tmp_path / "val.txt"]
    (tmp_path / "val.txt").write_text("a.mp4 0\n")
    with pytest.raises(InputError, match=r"a.mp4 is listed twice \(as 0, train and 0, test\)"):
        csvlist.scan(config, tmp_path)


def test_lists_of_yaml_are_taken_where_validation_is_strict() -> None:
    given = {"name": "x", "root": "/x", "extensions": [".mp4"]}
    assert FolderData.model_validate(given, strict=True).extensions == (".mp4",)
    given = {"name": "x", "file": "x", "columns": ["path", "label"]}
    assert CsvData.model_validate(given, strict=True).columns == ("path", "label")
    with pytest.raises(ValidationError, match="extensions"):
        FolderData(name="x", root="/x", extensions=("mp4",))


def test_a_delimiter_is_one_character_that_paths_are_not_made_of() -> None:
    for given in (",", ";", "|", " ", "\t"):
        assert CsvData(name="x", file="x", delimiter=given).delimiter == given
    assert CsvData(name="x", file="x", delimiter="\\t").delimiter == "\t"
    for given in ("", ";;", "a", "1", "_", ".", "/", '"', "\n"):
        with pytest.raises(ValidationError, match="one character that paths are not made of"):
            CsvData(name="x", file="x", delimiter=given)


def test_columns_must_name_the_path_once() -> None:
    for columns in (["label"], ["path", "path"], ["path", "label", "label"], ["path", "class"]):
        with pytest.raises(ValidationError, match=r"path|label"):
            CsvData(name="own", file="x.csv", columns=columns)


def test_lists_that_are_not_utf8_say_how_to_convert_them(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("path,label\na.mp4,b\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"is UTF-16, not UTF-8; convert it: `iconv -f UTF-16"):
        read_list(file)
    file.write_bytes("path,label\na.mp4,Über\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"list.csv, line 2: is not UTF-8 \(b'\\xdc'\)"):
        read_list(file)
    with pytest.raises(InputError, match="Is a directory"):
        read_list(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read_list(tmp_path / "gone.csv")


def test_short_lines_are_filled_and_blank_ones_left_out() -> None:
    lines = list(read_csv("a,b\n1\n , \n\n2,3\n", "x", ["a"]))
    assert lines == [
        ("x, line 2", {"a": "1", "b": ""}),
        ("x, line 5", {"a": "2", "b": "3"}),
    ]


def test_the_csv_of_the_real_clips_is_read() -> None:
    listing = csvlist.scan(CsvData(name="t", file=str(real_data("tennis7.csv"))), Path())
    assert Counter(row.split for row in listing.rows) == {"train": 273, "test": 98}
    assert len(listing.classes) == 7


def test_a_video_listed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.mp4 is listed twice"):
        make_listing(tmp_path, [VideoRow(path="a.mp4"), VideoRow(path="a.mp4", label="x")])


def test_labels_that_are_numbers_are_ordered_by_value_only_if_all_are(tmp_path: Path) -> None:
    def classes(*labels: str) -> tuple[str, ...]:
        rows = [VideoRow(path=f"{n}.mp4", label=label) for n, label in enumerate(labels)]
        return make_listing(tmp_path, rows).classes

    assert classes("10", "9", "0") == ("0", "9", "10")
    assert classes("10", "9", "b") == ("10", "9", "b")


def test_names_that_are_not_utf8_are_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xfcber.mp4")).touch()
    with pytest.raises(InputError, match=r"1 file names are not UTF-8 .*convmv"):
        folder.scan(FolderData(name="own", root=str(tmp_path)), tmp_path)


def test_a_folder_without_videos_says_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "a/readme")
    with pytest.raises(InputError, match=r"there are 2x .jpg, 1x no ending.*set `extensions`"):
        folder.scan(FolderData(name="own", root=str(tmp_path)), tmp_path)
    touch(tmp_path, "b/1.ts", "b/2.M4V")
    rows = folder.scan(FolderData(name="own", root=str(tmp_path)), tmp_path).rows
    assert [row.path for row in rows] == ["b/1.ts", "b/2.M4V"]


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "videos")
    with pytest.raises(InputError, match=r"videos: is a file, not a folder; is `root`"):
        folder.scan(FolderData(name="own", root=str(tmp_path / "videos")), tmp_path)


def test_a_linked_class_folder_is_never_left_out_silently(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.mp4")
    root = touch(tmp_path / "root", "a/1.mp4")
    (root / "alias").symlink_to(root / "a")  # within the root: its videos are listed where they lie
    config = FolderData(name="own", root=str(root))
    assert [row.path for row in folder.scan(config, tmp_path).rows] == ["a/1.mp4"]
    (root / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"the folder b is a link .*follow_links: true"):
        folder.scan(config, tmp_path)
    config = config.model_copy(update={"follow_links": True})
    paths = [row.path for row in folder.scan(config, tmp_path).rows]
    assert paths == ["a/1.mp4", "alias/1.mp4", "b/1.mp4"]


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.mp4", "y/2.mp4")
    (tmp_path / "x" / "up").symlink_to(tmp_path)
    (tmp_path / "x" / "to_y").symlink_to(tmp_path / "y")
    (tmp_path / "y" / "to_x").symlink_to(tmp_path / "x")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    found = find_files(tmp_path, lambda name: name.endswith(".mp4"), follow_links=True)
    assert {"x/1.mp4", "y/2.mp4", "x/to_y/2.mp4"} <= set(found)
    assert len(found) < 10
    found = find_files(tmp_path, lambda name: name.endswith(".mp4"), follow_links=False)
    assert found == ["x/1.mp4", "y/2.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.mp4", "b/2.mp4")
    (tmp_path / "b").chmod(0)
    with pytest.raises(InputError, match=r"b: cannot be listed \(Permission denied\)"):
        folder.scan(FolderData(name="own", root=str(tmp_path)), tmp_path)
    (tmp_path / "b").chmod(0o700)
