"""Tests of the records of a recipe's faults, and of the messages for wrong recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import RecipeError, RecipeErrors, nearest
from orchestrator.load import load_recipe
from tests.orchestrator.recipes_for_tests import GOLDEN, SMALL, check_golden, faults_of

BAD = sorted((GOLDEN / "bad").glob("*.yaml"))


def test_a_fault_is_rendered_as_one_block_with_what_is_known() -> None:
    fault = RecipeError(
        path="a.lr", file="r.yaml", line=3, value='"x"', expected="a number", hint="no quotes"
    )
    assert fault.render() == (
        'error: a.lr (r.yaml:3)\n  found:    "x"\n  expected: a number\n  hint:     no quotes'
    )
    assert RecipeError(file="r.yaml", expected="a file").render() == (
        "error: r.yaml\n  expected: a file"
    )


def test_equal_faults_are_told_once_in_the_order_found() -> None:
    first, second = RecipeError(expected="b"), RecipeError(expected="a")
    assert RecipeErrors([first, second, first]).errors == (first, second)


def test_the_nearest_name_is_proposed_or_all_names_are_listed() -> None:
    assert nearest("prob", ["probe", "report"]) == "did you mean `probe`?"
    assert nearest("xyz", ["probe", "report"]) == "known: probe, report"
    assert nearest("xyz", []) == ""


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_bad_recipe_gets_its_clear_message(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(Path(file.name))
    check_golden(f"bad/{file.stem}.txt", f"{caught.value}\n")


def test_a_two_megabyte_file_and_a_directory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large.yaml").write_text(SMALL + "# filler\n" * 220_000)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(SMALL)
    messages = []
    for name in ("large.yaml", "recipes", "smal.yaml"):
        with pytest.raises(RecipeErrors) as caught:
            load_recipe(Path(name))
        messages.append(str(caught.value))
    check_golden("bad_files.txt", "\n".join(messages) + "\n")


def test_faults_of_all_parts_come_together_in_the_order_of_lines(tmp_path: Path) -> None:
    text = SMALL.replace("max_steps: 10", "max_steps: ten").replace("encoder}", "encodr}")
    errors = faults_of(tmp_path, text + "tracing: {}\n", ["+seed=-1"])
    assert [fault.path for fault in errors.errors] == [
        "stages.pretrain.max_steps",
        "stages.probe.inputs.encoder",
        "tracing",
        "seed",
    ]
    assert [fault.line for fault in errors.errors] == [11, 17, 18, None]
    assert errors.errors[-1].file == "command line"


def test_a_fault_of_shared_data_is_told_once_where_it_was_written(tmp_path: Path) -> None:
    text = SMALL.replace("format: synthetic,", "format: synthetic, frames: 1,")
    (fault,) = faults_of(tmp_path, text).errors
    assert (fault.path, fault.line) == ("data.motion.frames", 3)


def test_a_secret_is_never_part_of_a_message(tmp_path: Path) -> None:
    text = SMALL + "tracking: {uri: 'https://user:canary@host', api_token: canary}\n"
    errors = faults_of(tmp_path, text)
    assert len(errors.errors) == 2
    assert "canary" not in str(errors)
