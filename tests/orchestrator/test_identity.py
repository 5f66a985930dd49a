"""Tests of stage keys: what changes them, what does not, and the digest of code."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import identity
from orchestrator.identity import (
    canonical_json,
    code_digest,
    code_modules,
    normalize_code,
    stage_key,
    without,
)
from orchestrator.plan import make_plan
from recipes.catalog import STAGES
from tests.orchestrator.recipes_for_tests import SMALL, keys, load_text, nothing_exists

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
CONFIGS = st.dictionaries(st.text(max_size=6), JSON, max_size=6)


def _shuffled(value: Any, rng: random.Random) -> Any:
    """The same value with the keys of every mapping in another order."""
    if isinstance(value, Mapping):
        pairs = [(key, _shuffled(item, rng)) for key, item in value.items()]
        rng.shuffle(pairs)
        return dict(pairs)
    return [_shuffled(item, rng) for item in value] if isinstance(value, list) else value


def _key(config: Mapping[str, Any], **changes: Any) -> str:
    fields: dict[str, Any] = {
        "kind": "pretrain",
        "version": 1,
        "code": "c" * 64,
        "inputs": {"data": [("dataset", "d" * 64)]},
    }
    return stage_key(config=config, **{**fields, **changes})


@settings(max_examples=100, deadline=None)
@given(config=CONFIGS, seed=st.integers(0, 1000))
def test_a_key_does_not_depend_on_the_order_of_mappings(config: dict[str, Any], seed: int) -> None:
    assert _key(config) == _key(_shuffled(config, random.Random(seed)))


@settings(max_examples=100, deadline=None)
@given(config=CONFIGS, name=st.text(max_size=6), value=JSON)
def test_a_key_changes_exactly_when_the_canonical_config_does(
    config: dict[str, Any], name: str, value: Any
) -> None:
    changed = {**config, name: value}
    same = canonical_json(config) == canonical_json(changed)
    assert (_key(config) == _key(changed)) is same


@settings(max_examples=100, deadline=None)
@given(config=CONFIGS, name=st.text(alphabet="abc", min_size=1, max_size=3), one=JSON, other=JSON)
def test_a_transient_field_never_changes_a_key(
    config: dict[str, Any], name: str, one: Any, other: Any
) -> None:
    transient = frozenset({name})
    assert _key({**config, name: one}, outside=transient) == _key(
        {**config, name: other}, outside=transient
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "probe"},
        {"version": 2},
        {"code": "x" * 64},
        {"inputs": {"data": [("dataset", "e" * 64)]}},
        {"inputs": {"data": [("result", "d" * 64)]}},
        {"inputs": {"init": [("dataset", "d" * 64)]}},
        {"files": {"/list.csv": "f" * 64}},
        {"files": {"/list.csv": None}},
    ],
)
def test_each_part_of_the_identity_changes_the_key(changes: dict[str, Any]) -> None:
    assert _key({"lr": 0.1}, **changes) != _key({"lr": 0.1})


def test_the_order_of_many_inputs_does_not_count() -> None:
    refs = [("result", "a" * 64), ("result", "b" * 64)]
    assert _key({}, inputs={"results": refs}) == _key({}, inputs={"results": refs[::-1]})


def test_nested_transient_fields_are_left_out_and_the_rest_stays() -> None:
    config = {"a": {"b": 1, "c": {"d": 2, "e": 3}}, "f": 4}
    assert without(config, ["a.c.d", "f", "g.h"]) == {"a": {"b": 1, "c": {"e": 3}}}
    assert config["f"] == 4


def test_a_number_that_is_none_has_no_identity() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"lr": float("nan")})


def _plan_keys(folder: Path, text: str = SMALL, *overrides: str) -> dict[str, str]:
    return keys(make_plan(load_text(folder, text, overrides), nothing_exists, has_gpus=False))


@pytest.mark.parametrize(
    "override",
    [
        "+stages.pretrain.seed=1",
        "+seed=1",
        "stages.pretrain.batch_size=32",
        "stages.pretrain.micro_batch=8",
        "stages.pretrain.clip.size=64",
        "+stages.pretrain.optimizer={lr:0.01}",
        "stages.pretrain.method.pred_steps=1",
        "stages.pretrain.backbone.name=r2d3d18",
        "+stages.pretrain.precision=bf16",
        "data.motion.name=other",
        "+data.motion.version=2",
    ],
)
def test_a_scientific_field_changes_the_key_of_its_stage_and_of_all_below(
    tmp_path: Path, override: str
) -> None:
    before, after = _plan_keys(tmp_path), _plan_keys(tmp_path, SMALL, override)
    assert before["pretrain"] != after["pretrain"]
    assert before["probe"] != after["probe"]


@pytest.mark.parametrize(
    "override",
    [
        "+stages.pretrain.workers=7",
        "+stages.pretrain.log_every=1",
        "+stages.pretrain.checkpoint={minutes:1}",
        "+stages.pretrain.resources={nodes:4}",
        "+stages.pretrain.resources={hours:9,partition:big,cpus_per_task:3}",
        "+stages.pretrain.policy={max_restarts_without_progress:9}",
        "+cluster={executor:slurm,resources:{gpus_per_node:1},setup:['module load x']}",
        "+tracking={enabled:false}",
        "+description=other",
        "name=another",
        "+vars={x:1}",
    ],
)
def test_resources_tracking_and_transient_fields_leave_every_key_alone(
    tmp_path: Path, override: str
) -> None:
    assert _plan_keys(tmp_path) == _plan_keys(tmp_path, SMALL, override)


def test_renaming_a_stage_leaves_its_key_alone(tmp_path: Path) -> None:
    renamed = SMALL.replace("  pretrain:\n", "  first:\n").replace(
        "pretrain.encoder", "first.encoder"
    )
    before, after = _plan_keys(tmp_path), _plan_keys(tmp_path, renamed)
    assert (before["pretrain"], before["probe"]) == (after["first"], after["probe"])


def test_the_key_of_an_index_covers_its_list_files_where_they_exist(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    text = SMALL.replace("format: synthetic", f"format: csv, file: {file}")
    found = [_plan_keys(tmp_path, text)]
    for content in ("path,label\na.mp4,x\n", "path,label\nb.mp4,x\n", "path,label\na.mp4,x\n"):
        file.write_text(content)
        found.append(_plan_keys(tmp_path, text))
    absent, first, second, first_again = (plan["index-motion"] for plan in found)
    assert len({absent, first, second}) == 3
    assert first == first_again
    assert found[1]["probe"] != found[2]["probe"]


def test_code_is_compared_without_comments_docstrings_and_blank_lines() -> None:
    code = (
        '"""Module."""\nimport os  # for paths\n\n\ndef f(x):  # comment\n'
        '    """Docstring\n    of two lines.\n    """\n    return "# no comment" + x\n'
    )
    assert normalize_code(code) == 'import os\ndef f(x):\n    return "# no comment" + x'


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1\n", "x = 2\n"),
        ('x = "a # b"\n', 'x = "a # c"\n'),
        ('x = """\ntext\n"""\n', 'x = """\nother\n"""\n'),
        ("if a:\n    b()\n", "if a:\n    pass\nb()\n"),
        ("x = '''it's \"quoted\"''' # c\n", "x = '''it's 'quoted' ''' # c\n"),
    ],
)
def test_code_that_does_something_else_is_never_taken_for_the_same(one: str, other: str) -> None:
    assert normalize_code(one) != normalize_code(other)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the shape of `recipes` in which files can be changed."""
    root = tmp_path / "recipes"
    files = {
        "__init__.py": "",
        "catalog.py": "TABLE = {}\n",
        "stages/__init__.py": "",
        "stages/run.py": (
            "from recipes.catalog import TABLE\n"
            "from recipes.data import (\n    table,\n    missing,\n)\n"
            "def run():\n    import recipes.lazy\n    return load('recipes.named:attribute')\n"
        ),
        "data/__init__.py": "",
        "data/table.py": "from recipes.deep import x\nCOUNTS = 'counts.csv'\n",
        "data/counts.csv": "1,2\n",
        "deep.py": "x = 1\n",
        "lazy.py": "y = 1\n",
        "named.py": "z = 1\n",
        "unrelated.py": "w = 1\n",
    }
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(identity, "_ROOT", root)
    identity._scan.cache_clear()
    yield root
    identity._scan.cache_clear()


def _digest_after(package: Path, name: str, text: str) -> tuple[str, str]:
    before = code_digest(["recipes.stages.run"])
    (package / name).write_text(text)
    identity._scan.cache_clear()
    return before, code_digest(["recipes.stages.run"])


@pytest.mark.parametrize(
    "name", ["stages/run.py", "data/table.py", "deep.py", "lazy.py", "named.py", "data/__init__.py"]
)
def test_a_change_of_any_module_in_the_closure_changes_the_digest(package: Path, name: str) -> None:
    text = (package / name).read_text() + "changed = True\n"
    before, after = _digest_after(package, name, text)
    assert before != after


def test_a_change_of_a_data_file_that_code_names_changes_the_digest(package: Path) -> None:
    before, after = _digest_after(package, "data/counts.csv", "1,3\n")
    assert before != after


@pytest.mark.parametrize("name", ["unrelated.py", "catalog.py"])
def test_a_change_outside_the_closure_or_in_the_frame_leaves_the_digest_alone(
    package: Path, name: str
) -> None:
    before, after = _digest_after(package, name, "changed = True\n")
    assert before == after


def test_a_changed_comment_or_docstring_leaves_the_digest_alone(package: Path) -> None:
    before, after = _digest_after(package, "deep.py", '"""About x."""\n\n# why\nx = 1  # one\n')
    assert before == after


def test_the_modules_of_a_stage_are_those_its_config_names() -> None:
    config = {
        "data": {"format": "ucf101"},
        "method": {"name": "dpc"},
        "backbone": {"name": "r2d3d18"},
    }
    modules = code_modules("pretrain", config, reads_data=False)
    assert modules[0] == STAGES["pretrain"].target.partition(":")[0]
    assert "recipes.methods.dpc.method" in modules
    assert "recipes.models.r2d3d" in modules
    assert "recipes.data.ucf101" not in modules
    assert "recipes.data.ucf101" in code_modules("index", config, reads_data=True)


@pytest.mark.parametrize("kind", STAGES)
def test_the_closure_of_every_kind_reaches_its_run_module(kind: str) -> None:
    module = STAGES[kind].target.partition(":")[0]
    assert identity._file_of(module, identity._ROOT) is not None
    assert code_digest([module]) != code_digest([])
