"""Tests of reading YAML files with guards and line marks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import RecipeError, RecipeErrors
from orchestrator.source import read_source


def _fault(path: Path) -> RecipeError:
    with pytest.raises(RecipeErrors) as caught:
        read_source(path)
    (fault,) = caught.value.errors
    return fault


def _write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def test_each_dotted_path_has_the_line_of_its_key(tmp_path: Path) -> None:
    text = "name: a\nstages:\n  # comment\n  one:\n    kind: x\n    list: [1,\n      {deep: 2}]\n"
    assert read_source(_write(tmp_path, text)).lines == {
        "name": 1,
        "stages": 2,
        "stages.one": 4,
        "stages.one.kind": 5,
        "stages.one.list": 6,
        "stages.one.list.0": 6,
        "stages.one.list.1": 7,
        "stages.one.list.1.deep": 7,
    }


def test_a_merged_key_has_the_line_of_its_anchor_and_an_own_key_its_own(tmp_path: Path) -> None:
    text = "base: &base\n  a: 1\n  b: 2\nuse:\n  <<: *base\n  b: 3\n"
    lines = read_source(_write(tmp_path, text)).lines
    assert (lines["use.a"], lines["use.b"]) == (2, 6)


def test_a_directory_is_refused_with_the_files_in_it(tmp_path: Path) -> None:
    _write(tmp_path, "name: a\n")
    fault = _fault(tmp_path)
    assert fault.value == "a directory"
    assert "recipe.yaml" in fault.hint


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    _write(tmp_path, "name: a\n")
    assert "recipe.yaml" in _fault(tmp_path / "recpie.yaml").hint
    assert "does not exist" in _fault(tmp_path / "nowhere" / "a.yaml").hint


def test_a_device_and_a_pipe_are_refused_without_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (Path("/dev/zero"), tmp_path / "pipe.yaml"):
        assert _fault(path).value == "neither a file nor a directory"


def test_a_file_above_one_megabyte_is_refused(tmp_path: Path) -> None:
    file = _write(tmp_path, "a: 1\n" + "# " + "x" * 2_000_000)
    fault = _fault(file)
    assert fault.value == "a file of 2.0 MB"
    assert fault.expected == "a YAML file of at most 1 MB"


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    assert _fault(_write(tmp_path, text)).value == "an empty file"


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"name: \xff\xfe\n")
    assert _fault(file).expected == "text in UTF-8"


@pytest.mark.parametrize(
    ("text", "line", "value"),
    [
        ("a:\n\tb: 1\n", 2, "a tab"),
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", 5, "`c` again, first in line 3"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "the tag"),
        ("a: !!binary aGVsbG8=\n", 1, "the tag"),
        ("a: !custom 1\n", 1, "the tag"),
        ("1: a\n", 1, "the key 1"),
        ("a: 1\nyes: 2\n", 2, "the key yes"),
        ("? {a: 1}\n: 2\n", 1, "the key"),
        ("- a\n- b\n", 1, "a list"),
        ("just text\n", 1, "a single value"),
        ("a: &x\n  b: *x\n", 2, "*x contains itself"),
        ("a: *nowhere\n", 1, "undefined alias"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: {b: 1\nc: 2\n", 2, "did not find expected"),
        ("a: b: c\n", 1, "mapping values are not allowed"),
    ],
)
def test_each_wrong_text_has_one_message_with_its_line(
    tmp_path: Path, text: str, line: int, value: str
) -> None:
    fault = _fault(_write(tmp_path, text))
    assert fault.line == line
    assert value in str(fault.value)


def test_an_alias_bomb_is_refused_at_once_and_counted_without_expanding(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    # Expanded, these are 10^12 values: a reader that does so does not come back.
    fault = _fault(_write(tmp_path, "\n".join(levels)))
    assert fault.value == "more than 10,000 values"
    assert fault.line == 4


def test_many_aliases_of_a_small_value_are_fine(tmp_path: Path) -> None:
    text = "a: &a [1, 2]\n" + "".join(f"b{n}: *a\n" for n in range(500))
    assert read_source(_write(tmp_path, text)).lines["b499.1"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 51 + "]" * 51,
        "[" * 400_000,
        "{a: " * 60 + "1" + "}" * 60,
        "a: &a " + "[" * 30 + "]" * 30 + "\nb: " + "[" * 30 + "*a" + "]" * 30,
    ],
)
def test_nesting_beyond_fifty_levels_is_refused_also_through_aliases(
    tmp_path: Path, text: str
) -> None:
    assert _fault(_write(tmp_path, text)).value == "more than 50 levels"


def test_more_than_ten_thousand_plain_values_are_refused(tmp_path: Path) -> None:
    assert _fault(_write(tmp_path, "a: [" + "1," * 10_001 + "]")).value == "more than 10,000 values"


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_is_read_or_refused_with_a_place(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("any") / "recipe.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    try:
        read_source(file)
    except RecipeErrors as errors:
        assert len(errors.errors) == 1
        assert errors.errors[0].file.endswith("recipe.yaml")
