"""Tests of composition: groups, overrides, the origin of each value, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from orchestrator.compose import SHIPPED_GROUPS, compose_recipe
from orchestrator.errors import RecipeErrors
from orchestrator.interpolate import Unresolved, expansion, resolve
from orchestrator.load import load_recipe
from tests.orchestrator.recipes_for_tests import SHIPPED

RECIPE = """\
defaults:
  - cluster: local
  - data: [one, two]
  - _self_
name: small
stages:
  first: {lr: 1e-3, data: "${data.one}", steps: [1, 2]}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        file = tmp_path / "conf" / "data" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# @package data.{name}\nroot: /{name}\n")
    (tmp_path / "my recipe=1.yml").write_text(RECIPE)
    return tmp_path / "my recipe=1.yml"


def _refused(recipe: Path, *overrides: str) -> str:
    with pytest.raises(RecipeErrors) as caught:
        compose_recipe(recipe, overrides)
    return str(caught.value)


def test_groups_beside_the_recipe_and_shipped_ones_are_composed(recipe: Path) -> None:
    raw = compose_recipe(recipe).raw
    assert raw["data"] == {"one": {"root": "/one"}, "two": {"root": "/two"}}
    assert raw["cluster"]["executor"] == "local"
    assert raw["stages"]["first"] == {"lr": 1e-3, "data": "${data.one}", "steps": [1, 2]}
    assert "defaults" not in raw


def test_a_group_beside_the_recipe_wins_over_the_shipped_one(recipe: Path) -> None:
    own = recipe.parent / "conf" / "cluster" / "local.yaml"
    own.parent.mkdir()
    own.write_text("executor: local\nsetup: [mine]\n")
    assert compose_recipe(recipe).raw["cluster"] == {"executor": "local", "setup": ["mine"]}


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("stages.first.lr=3e-4", "stages.first.lr", 3e-4),
        ("stages.first.steps=[3,4,5]", "stages.first.steps", [3, 4, 5]),
        ("+stages.first.new.deep=true", "stages.first.new.deep", True),
        ("++stages.first.lr=2", "stages.first.lr", 2),
        ("name='a,b'", "name", "a,b"),
        ("name=null", "name", None),
        ("cluster=slurm", "cluster.executor", "slurm"),
        ("data=two", "data", {"two": {"root": "/two"}}),
        ("data@data.mine=one", None, "data@data.mine"),
        ("+data@data.mine=one", "data.mine", {"root": "/one"}),
    ],
)
def test_overrides_follow_the_grammar_of_hydra(
    recipe: Path, override: str, path: str | None, value: Any
) -> None:
    if path is None:
        assert "a group of the recipe's defaults list" in _refused(recipe, override)
        return
    raw = OmegaConf.create(dict(compose_recipe(recipe, [override]).raw))
    found = OmegaConf.select(raw, path)
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value


def test_a_key_and_a_group_can_be_removed(recipe: Path) -> None:
    raw = compose_recipe(recipe, ["~stages.first.lr", "~cluster"]).raw
    assert "lr" not in raw["stages"]["first"]
    assert "cluster" not in raw


def test_the_result_is_that_of_hydras_own_compose() -> None:
    """Holds the loader we use, an internal of Hydra, against its public function."""
    import hydra

    overrides = ["seed=3", "cluster=slurm", "+cluster.resources.extra.licenses=a"]
    for file in SHIPPED:
        search = f"hydra.searchpath=[file://{SHIPPED_GROUPS}]"
        with hydra.initialize_config_dir(str(file.parent), version_base="1.3"):
            expected = hydra.compose(file.stem, overrides=[search, *overrides])
        assert compose_recipe(file, overrides).raw == OmegaConf.to_container(expected)


def test_global_state_of_hydra_and_omegaconf_is_left_as_it_was(recipe: Path) -> None:
    from hydra.core.global_hydra import GlobalHydra

    OmegaConf.register_new_resolver("ours", lambda: "kept", replace=True)
    load_recipe(SHIPPED[0])
    _refused(recipe, "data=three")
    assert not GlobalHydra().is_initialized()
    assert OmegaConf.create({"a": "${ours:}", "b": "${oc.decode:'1'}"}).a == "kept"
    OmegaConf.clear_resolver("ours")


def test_each_value_knows_its_file_and_line_or_the_command_line(recipe: Path) -> None:
    found = compose_recipe(recipe, ["stages.first.lr=1", "+seed=2"])
    origins = {path: (origin.file, origin.line) for path, origin in found.origins.items()}
    assert origins["data.two.root"] == (str(recipe.parent / "conf" / "data" / "two.yaml"), 2)
    assert origins["stages.first.data"] == (str(recipe), 7)
    assert origins["stages.first.lr"] == ("command line", None)
    assert origins["seed"] == ("command line", None)
    executor = Path(origins["cluster.executor"][0])
    assert executor.resolve() == (SHIPPED_GROUPS / "cluster" / "local.yaml").resolve()


def test_a_reference_leads_to_the_line_of_its_target(recipe: Path) -> None:
    found = compose_recipe(recipe)
    path, origin = found.locate(("stages", "first", "data", "root"))
    assert path == "data.one.root"
    assert origin.line == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("cluster=slrum", "did you mean `slurm`?"),
        ("data=[one,tow]", "did you mean `two`?"),
        ("clustr=slurm", "did you mean `cluster`?"),
        ("stages.first.lrr=1", "in stages.first: did you mean `lr`?"),
        ("stages.frist.lr=1", "in stages: did you mean `first`?"),
        ("stages.first.new=1", "to add it write +stages.first.new=1"),
        ("+stages.first.lr=1", "write stages.first.lr=1"),
        ("~stages.second", "something that is there"),
        ("lr=1,2", "one value; a list is written key=[a,b]"),
        ("seed=choice(1,2)", "one value; a list is written key=[a,b]"),
        ("seed", "an override such as `seed=1`"),
        ("seed=[1", "an override such as `seed=1`"),
        ("=1", "a key before the `=`"),
        ("hydra.run.dir=/tmp", "settings of Hydra itself are not used here"),
        ("hydra/launcher=submitit_slurm", "settings of Hydra itself are not used here"),
        ("name='${'", "no viable alternative"),
    ],
)
def test_a_wrong_override_is_named_with_a_remedy(recipe: Path, override: str, words: str) -> None:
    message = _refused(recipe, override)
    assert "command line" in message
    assert words in message


def test_all_overrides_that_cannot_be_read_are_reported_together(recipe: Path) -> None:
    assert _refused(recipe, "seed", "name=[", "a=1,2").count("error:") == 3


@pytest.mark.parametrize(
    ("defaults", "words"),
    [
        ("[data: sinthetic, _self_]", "did you mean `synthetic`?"),
        ("[clutser: local]", "did you mean `cluster`?"),
        ("[nothing, _self_]", "a config beside the recipe or a group"),
        ("{data: one}", "a defaults list such as"),
        ("[data: 3]", "a defaults list such as"),
        ("[_self_, _self_]", "a defaults list such as"),
        ("[itself]", "a defaults list that ends"),
        ("['../outside']", "a file of group `..`"),
        ("[data: '../../../outside']", "a file of group"),
    ],
)
def test_a_wrong_defaults_list_is_named_with_its_file(
    tmp_path: Path, recipe: Path, defaults: str, words: str
) -> None:
    (tmp_path.parent / "outside.yaml").write_text("name: outside\n")
    file = tmp_path / "itself.yaml"
    file.write_text(f"defaults: {defaults}\nname: a\n")
    message = _refused(file)
    assert words in message
    assert "itself.yaml" in message


def test_the_guards_hold_for_group_files_too(recipe: Path) -> None:
    file = recipe.parent / "conf" / "data" / "one.yaml"
    file.write_text("# @package data.one\nroot: 1\nroot: 2\n")
    message = _refused(recipe)
    assert f"{file}:3" in message
    assert "`root` again" in message


def test_a_recipe_may_build_on_another_beside_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\nseed: 1\n")
    (tmp_path / "child.yaml").write_text("defaults: [base, _self_]\nname: child\n")
    composed = compose_recipe(tmp_path / "child.yaml")
    assert composed.raw == {"name": "child", "seed": 1}
    assert composed.origins["seed"].file == str(tmp_path / "base.yaml")


def _resolved(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[Unresolved]]:
    faults: list[Unresolved] = []
    root = OmegaConf.create(dict(raw))
    return {key: resolve(root, (key,), faults) for key in raw}, faults


def test_references_resolve_through_the_matrix_and_relative_to_their_place() -> None:
    values, faults = _resolved(
        {
            "data": {"ucf101": {"root": "/data/ucf101"}},
            "matrix": {"target": "ucf101", "split": 2},
            "stage": {
                "data": "${data.${matrix.target}}",
                "split": "${matrix.split}",
                "same": "${.split}",
                "text": "split ${matrix.split} of ${..data.ucf101.root}",
                "list": ["${matrix.split}", {"deep": "${stage.same}"}],
                "select": "${oc.select:missing.key,7}",
                "none": None,
            },
        }
    )
    assert faults == []
    assert values["stage"] == {
        "data": {"root": "/data/ucf101"},
        "split": 2,
        "same": 2,
        "text": "split 2 of /data/ucf101",
        "list": [2, {"deep": 2}],
        "select": 7,
        "none": None,
    }


def test_named_variables_of_the_environment_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_DATA", "/data")
    monkeypatch.delenv("ORCHESTRATE_NOWHERE", raising=False)
    values, faults = _resolved(
        {
            "a": "${oc.env:ORCHESTRATE_DATA}/ucf101",
            "b": "${oc.env:ORCHESTRATE_NOWHERE,here}",
            "c": "${oc.env:HOME}",
        }
    )
    assert faults == []
    assert values == {"a": "/data/ucf101", "b": "here", "c": os.environ["HOME"]}


ESCAPES = [
    "${oc.env:SECRET_CANARY}",
    "${oc.env:PATH}",
    "${oc.env:ORCHESTRATE_TOKEN}",
    "${oc.env:ORCHESTRATE_MLFLOW_PASSWORD}",
    "${oc.env:ORCHESTRATE_API_KEY,none}",
    "${oc.env:ORCHESTRATE_NOT_SET}",
    "${oc.env:${name}}",
    "${oc.${part}:SECRET_CANARY}",
    "${${whole}:SECRET_CANARY}",
    "prefix ${oc.env:SECRET_CANARY} suffix",
    "${oc.select:x,${oc.env:SECRET_CANARY}}",
    "${oc.env:ORCHESTRATE_NOT_SET,${oc.env:SECRET_CANARY}}",
    "${oc.decode:'{a: 1}'}",
    "${oc.create:{a: 1}}",
    "${oc.deprecated:name}",
    "${oc.dict.keys:data}",
    "${oc.dict.values:data}",
    "${hydra:runtime.cwd}",
    "${now:%Y}",
    "${python_version:}",
    "${env:SECRET_CANARY}",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_no_reference_reads_a_secret_or_calls_another_resolver(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_CANARY", "canary-value")
    monkeypatch.setenv("ORCHESTRATE_TOKEN", "canary-value")
    monkeypatch.setenv("ORCHESTRATE_MLFLOW_PASSWORD", "canary-value")
    values, faults = _resolved(
        {"x": text, "name": "SECRET_CANARY", "part": "env", "whole": "oc.env", "data": {"a": 1}}
    )
    assert values["x"] is None
    assert len(faults) == 1
    assert "canary-value" not in repr(faults) + repr(values)


def test_a_defaults_list_reads_no_secret_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_CANARY", "canary-value")
    file = tmp_path / "recipe.yaml"
    file.write_text("defaults: [cluster: '${oc.env:SECRET_CANARY}', _self_]\nname: a\n")
    assert "canary-value" not in _refused(file)


@pytest.mark.parametrize(
    "raw",
    [
        {"a": "${b}", "b": "${a}"},
        {"a": "${a}"},
        {"a": {"x": "${a}"}},
        {"a": "x ${b}", "b": "y ${a}"},
    ],
)
def test_references_in_a_circle_are_named(raw: dict[str, Any]) -> None:
    _, faults = _resolved(raw)
    assert faults
    assert all("references" in fault.expected for fault in faults)


def test_every_unresolved_value_is_reported_with_the_nearest_name() -> None:
    _, faults = _resolved({"data": {"ucf101": 1}, "s": {"a": "${data.ucf11}", "b": ["???"]}})
    assert [(fault.path, fault.value) for fault in faults] == [
        (("a",), "${data.ucf11}"),
        (("b", 0), "???"),
    ]
    assert "did you mean `ucf101`?" in faults[0].hint


def test_the_size_of_a_reference_bomb_is_known_without_resolving_it() -> None:
    raw: dict[str, Any] = {"l0": ["x"] * 10, "s0": "x"}
    for n in range(1, 30):
        raw[f"l{n}"] = [f"${{l{n - 1}}}"] * 10
        raw[f"s{n}"] = f"${{s{n - 1}}}${{s{n - 1}}}"
    size = expansion(raw)
    assert size("l0") == 11
    assert size("l1") == 1 + 10 * (1 + 11)
    assert size("l29") == size("s29") == 10_001


def test_the_size_of_a_nested_reference_is_the_largest_it_could_mean() -> None:
    raw = {"data": {"a": [1] * 5, "b": [1] * 50}, "x": "${data.${matrix.t}}"}
    itself, matrix_value, largest = 1, 1, 1 + 50
    assert expansion(raw)("x") == itself + matrix_value + largest
