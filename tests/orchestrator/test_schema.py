"""Tests of the models of a recipe, of the resources of jobs and of the JSON schema for editors."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cluster.contract import Resources, resources_from
from orchestrator.editor_schema import json_schema
from orchestrator.job_schema import ClusterSpec, ResourcesSpec, job_resources
from orchestrator.load import load_recipe
from orchestrator.schema import RecipeHeader, TrackingSpec, config_class, stage_class
from orchestrator.shards import RECIPE_KINDS
from recipes.catalog import STAGES
from tests.orchestrator.recipes_for_tests import GOLDEN, SHIPPED, SMALL, faults_of, load_text


def _resources(own: dict[str, Any], cluster: dict[str, Any], **facts: bool) -> Resources:
    return job_resources(
        ResourcesSpec(**own),
        ClusterSpec(executor="slurm", resources=ResourcesSpec(**cluster)),
        has_gpus=facts.get("has_gpus", False),
        cpu_only=facts.get("cpu_only", False),
    )


def test_a_stage_overrides_the_resources_of_the_cluster_and_keeps_the_rest() -> None:
    found = _resources(
        {"nodes": 2, "gpus_per_node": 8, "hours": 24, "extra": {"nice": 2}},
        {"partition": "gpu", "hours": 4, "cpus_per_task": 8, "extra": {"begin": 1, "nice": 1}},
    )
    assert (found.nodes, found.gpus_per_node, found.tasks_per_node) == (2, 8, 8)
    assert (found.partition, found.hours, found.cpus_per_task) == ("gpu", 24, 8)
    assert found.extra == {"begin": 1, "nice": 2}
    assert found.world_size == 16


@pytest.mark.parametrize(
    ("own", "has_gpus", "device", "gpus", "ranks"),
    [
        ({}, True, "cuda", 1, 1),
        ({}, False, "cpu", 0, 1),
        ({"gpus_per_node": 4}, False, "cuda", 4, 4),
        ({"gpus_per_node": 0}, True, "cpu", 0, 1),
        ({"device": "cuda"}, False, "cuda", 1, 1),
        ({"device": "cpu", "gpus_per_node": 8}, True, "cpu", 0, 1),
        ({"device": "cpu", "tasks_per_node": 4}, True, "cpu", 0, 4),
        ({"gpus_per_node": 4, "tasks_per_node": 2}, True, "cuda", 4, 2),
    ],
)
def test_the_device_follows_what_was_asked_for_and_what_there_is(
    own: dict[str, Any], has_gpus: bool, device: str, gpus: int, ranks: int
) -> None:
    found = _resources(own, {}, has_gpus=has_gpus)
    assert (found.device, found.gpus_per_node, found.tasks_per_node) == (device, gpus, ranks)


def test_a_kind_without_use_for_gpus_takes_one_process_of_the_clusters_defaults() -> None:
    cluster = {"nodes": 4, "gpus_per_node": 8, "tasks_per_node": 8, "partition": "p", "hours": 3}
    found = _resources({}, cluster, has_gpus=True, cpu_only=True)
    assert (found.nodes, found.tasks_per_node, found.gpus_per_node) == (1, 1, 0)
    assert (found.device, found.partition, found.hours) == ("cpu", "p", 3)
    assert _resources({"nodes": 2}, cluster, cpu_only=True).nodes == 2


def test_cuda_without_gpus_is_refused() -> None:
    with pytest.raises(ValidationError, match="gpus_per_node of at least 1"):
        ResourcesSpec(device="cuda", gpus_per_node=0)


HOSTILE = ["a\nb", "a\rb", "a\u2028b", "a\u2029b", "a\x00b", "a\x1b[0m", "a\tb", "x" * 257, "\x85"]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "field",
    ["partition", "account", "qos", "constraint", "exclude", "setup", "extra", "experiment"],
)
def test_no_value_of_a_job_can_begin_a_new_line_of_its_script(field: str, text: str) -> None:
    with pytest.raises(ValidationError):
        if field == "setup":
            ClusterSpec(setup=(text,))
        elif field == "experiment":
            TrackingSpec(experiment=text)
        else:
            value: Any = {"wckey": text} if field == "extra" else text
            ResourcesSpec.model_validate({field: value})


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "a b", "a/b", "a\n", "ä", "$(x)", "a" * 65, "a;b"]
)
def test_a_recipe_name_that_is_no_plain_word_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        RecipeHeader(name=name)


@pytest.mark.parametrize("key", ["--wrap", "a b", "a=b", "A", "a\nb"])
def test_an_option_of_the_scheduler_must_be_a_plain_word(key: str) -> None:
    with pytest.raises(ValidationError):
        ResourcesSpec(extra={key: 1})


def test_an_address_with_a_password_is_refused() -> None:
    with pytest.raises(ValidationError, match="MLFLOW_TRACKING_USERNAME"):
        TrackingSpec(uri="https://user:password@mlflow.example.org")
    assert TrackingSpec(uri="http://mlflow.example.org:5000").uri is not None


@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_model_joins_the_common_part_with_the_fields_of_its_kind(kind: str) -> None:
    model = stage_class(kind)
    assert issubclass(model, config_class(kind))
    assert {"kind", "inputs", "resources", "policy"} <= set(model.model_fields)
    assert set(config_class(kind).model_fields) <= set(model.model_fields)


def test_the_config_of_a_stage_has_all_fields_of_its_kind_and_no_common_one(tmp_path: Path) -> None:
    recipe = load_text(tmp_path, SMALL)
    config = recipe.stages["pretrain"].config()
    assert set(config) == set(config_class("pretrain").model_fields)
    assert config["optimizer"]["schedule"] == "constant"
    assert config_class("pretrain").model_validate(json.loads(json.dumps(config)))


def test_a_stage_takes_the_seed_of_the_recipe_unless_it_has_its_own(tmp_path: Path) -> None:
    recipe = load_text(tmp_path, SMALL, ["+seed=7", "+stages.probe.seed=3"])
    assert recipe.stages["pretrain"].config()["seed"] == 7
    assert recipe.stages["probe"].config()["seed"] == 3


@pytest.mark.parametrize("text", ["'10'", "10.0", "true", "null", "[10]"])
def test_text_and_other_types_are_never_taken_for_a_whole_number(tmp_path: Path, text: str) -> None:
    faults = faults_of(tmp_path, SMALL.replace("batch_size: 16", f"batch_size: {text}"))
    assert [fault.path for fault in faults.errors] == ["stages.pretrain.batch_size"]


def test_paths_of_data_become_absolute_because_a_job_starts_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (
        "name: a\nstages:\n  index: {kind: index, data: {format: folder, name: f, root: videos}}\n"
    )
    recipe = load_text(tmp_path, text)
    assert recipe.stages["index"].config()["data"]["root"] == str(tmp_path / "videos")


def test_the_resolved_recipe_is_plain_and_has_every_cell_and_default(tmp_path: Path) -> None:
    text = SMALL.replace("  probe:\n", "  probe:\n    matrix: {windows: [1, 2]}\n")
    text = text.replace("pretrain.encoder}", "pretrain.encoder}\n    windows: ${matrix.windows}")
    resolved = load_text(tmp_path, text).resolved()
    assert list(resolved["stages"]) == ["index-motion", "pretrain", "probe/1", "probe/2"]
    assert resolved["stages"]["probe/2"]["windows"] == 2
    assert resolved["cluster"]["executor"] == "local"
    assert yaml.safe_load(yaml.safe_dump(resolved)) == resolved
    assert "${" not in yaml.safe_dump(resolved)


# A validator of the part of JSON Schema that the schema uses.


def _problems(value: Any, schema: Any, root: dict[str, Any], path: str = "") -> list[str]:
    if schema in (True, {}):
        return []
    if "$ref" in schema:
        return _problems(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, path)
    found = [f"{path}: type" for _ in [0] if not _has_type(value, schema.get("type"))]
    if "const" in schema and value != schema["const"]:
        found.append(f"{path}: const")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: enum")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        found.append(f"{path}: pattern")
    if isinstance(value, int | float):
        if value < schema.get("minimum", value):
            found.append(f"{path}: minimum")
        if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
            found.append(f"{path}: exclusiveMinimum")
    if "anyOf" in schema and all(_problems(value, s, root, path) for s in schema["anyOf"]):
        found.append(f"{path}: anyOf")
    for part in schema.get("allOf", []):
        if "if" not in part:
            found += _problems(value, part, root, path)
        elif not _problems(value, part["if"], root, path):
            found += _problems(value, part["then"], root, path)
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            found += _problems(item, schema["items"], root, f"{path}.{index}")
    if isinstance(value, dict):
        found += _object_problems(value, schema, root, path)
    return found


def _object_problems(
    value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], path: str
) -> list[str]:
    found = [f"{path}.{key}: required" for key in schema.get("required", []) if key not in value]
    for key, item in value.items():
        inner = schema.get("properties", {}).get(key)
        if inner is None:
            inner = schema.get("additionalProperties", True)
            found += _problems(key, schema.get("propertyNames", True), root, f"{path}.{key}")
        if inner is False:
            found.append(f"{path}.{key}: unknown")
        else:
            found += _problems(item, inner, root, f"{path}.{key}")
    return found


def _has_type(value: Any, names: str | list[str] | None) -> bool:
    kinds: dict[str, Any] = {
        "string": str,
        "object": dict,
        "array": list,
        "boolean": bool,
        "null": type(None),
    }
    for name in [names] if isinstance(names, str) else names or []:
        if name in ("number", "integer"):
            number = int if name == "integer" else int | float
            if isinstance(value, number) and not isinstance(value, bool):
                return True
        elif isinstance(value, kinds[name]):
            return True
    return names is None


def _loaded(text: str) -> Any:
    from omegaconf import OmegaConf

    # As recipes are read: 1e-3 is a number there, which plain YAML 1.1 takes for text.
    return OmegaConf.to_container(OmegaConf.create(text), resolve=False)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_editor_schema_accepts_every_shipped_recipe_as_written(file: Path) -> None:
    schema = json_schema()
    assert _problems(_loaded(file.read_text()), schema, schema) == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("unknown_key", ".stages.pretrain.lr: unknown"),
        ("unknown_key", ".tracing: unknown"),
        ("wrong_type", ".stages.pretrain.max_steps: anyOf"),
        ("names", ".stages.index.kind: enum"),
        ("names", ".stages.-probe: pattern"),
        ("names", ".stages.report: type"),
    ],
)
def test_the_editor_schema_refuses_what_validate_refuses(name: str, problem: str) -> None:
    schema = json_schema()
    text = (GOLDEN / "bad" / f"{name}.yaml").read_text()
    assert problem in _problems(_loaded(text), schema, schema)


def test_the_editor_schema_lists_every_kind_and_is_plain_json() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$defs"]["Stage"]["properties"]["kind"]["enum"] == list(RECIPE_KINDS)
    refs = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema)))
    assert refs <= set(schema["$defs"])


def test_every_shipped_recipe_is_valid_and_says_what_it_needs() -> None:
    for file in SHIPPED:
        recipe = load_recipe(file)
        assert recipe.name == file.stem
        head = file.read_text().partition("defaults:")[0]
        assert f"# orchestrate submit recipes/{file.name}" in head
        for word in ("# Needs:", "# Costs:", "# Compared with"):
            assert word in head, (file.name, word)


# Sites: what goes together, and what is told of what does not.

CLUSTER = "cluster:\n  executor: slurm\n  resources: {{{resources}}}\n{more}"


def _site(tmp_path: Path, resources: str = "", more: str = "", stage: str = "") -> Any:
    text = SMALL + CLUSTER.format(resources=resources, more=more)
    if stage:
        text = text.replace("    kind: pretrain\n", f"    kind: pretrain\n    resources: {stage}\n")
    return faults_of(tmp_path, text).errors


@pytest.mark.parametrize(
    ("resources", "path", "words"),
    [
        ("gpu_type: a100, gpus_per_node: 0", "gpu_type", "where none is asked for"),
        ("gpu_type: a100, device: cpu", "gpu_type", "where none is asked for"),
        ("gpu_type: 'a100:4'", "gpu_type", "a name of letters"),
        ("gpu_request: gpu", "gpu_request", "`gpus-per-task` or `gres`"),
        ("tasks_per_node: 8, gpus_per_node: 4", "gpus_per_node", "two ranks cannot share a GPU"),
        (
            "tasks_per_node: 2, gpus_per_node: 4, gpu_request: gpus-per-task",
            "gpu_request",
            "4 GPUs for 2 ranks are not one each",
        ),
        ("mem_gb: 100, mem_per_gpu_gb: 50", "mem_per_gpu_gb", "either mem_gb or mem_per_gpu_gb"),
        ("device: cpu, mem_per_gpu_gb: 50", "mem_per_gpu_gb", "where no GPU is asked for"),
        ("exclusive: all", "exclusive", "true or false or `user`"),
        ("extra: {exclusive: true}", "extra", "`resources.exclusive` instead"),
        ("extra: {mail_typ: END}", "extra", "did you mean `mail-type`?"),
        ("extra: {output: x}", "extra", "output is none of them"),
    ],
)
def test_resources_that_do_not_go_together_are_told_with_their_line(
    tmp_path: Path, resources: str, path: str, words: str
) -> None:
    (fault,) = _site(tmp_path, resources)
    assert fault.path == f"cluster.resources.{path}"
    assert words in fault.expected
    assert fault.file.endswith(".yaml") and fault.line == SMALL.count("\n") + 3


@pytest.mark.parametrize(
    ("env", "path", "words"),
    [
        ("{kind: docker, image: x}", "env", "one of `venv`, `conda`"),
        ("{kind: venv}", "env.path", "required"),
        ("{kind: venv, path: /x, image: /y.sif}", "env.image", "no such key here"),
        ("{kind: conda}", "env", "either name or prefix"),
        ("{kind: conda, name: a, prefix: /b}", "env", "either name or prefix"),
        ("{kind: conda, name: a}", "env", "with a name also sh"),
        ("{kind: modules, load: []}", "env.load", "at least one module"),
        ("{kind: modules, load: ['cuda; rm']}", "env.load.0", "the name of a module"),
        ("{kind: apptainer, image: /x.sif, bind: ['data:/x']}", "env.bind.0", "absolute paths"),
        ("{kind: apptainer, image: /x.sif, bind: ['/a,/b']}", "env.bind.0", "absolute paths"),
        ("{kind: apptainer, image: /x.sif, args: [exec]}", "env.args.0", "an option in one word"),
        ("{kind: pyxis, image: a, mounts: ['/a:b']}", "env.mounts.0", "an absolute path"),
    ],
)
def test_environments_that_cannot_be_are_told_with_their_line(
    tmp_path: Path, env: str, path: str, words: str
) -> None:
    (fault,) = _site(tmp_path, more=f"  env: {env}\n")
    assert fault.path == f"cluster.{path}"
    assert words in fault.expected
    assert fault.line == SMALL.count("\n") + 4


def test_an_environment_is_none_of_the_local_executors_business(tmp_path: Path) -> None:
    text = SMALL + "cluster: {executor: local, env: {kind: venv, path: /x}}\n"
    (fault,) = faults_of(tmp_path, text).errors
    assert (fault.path, "executor local" in fault.expected) == ("cluster.env", True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("WANDB_API_KEY", "cluster.env_file"),
        ("HF_TOKEN", "cluster.env_file"),
        ("MLFLOW_TRACKING_PASSWORD", "cluster.env_file"),
        ("AWS_SECRET_ACCESS_KEY", "cluster.env_file"),
        ("*", "PREFIX_*"),
        ("A B", "PREFIX_*"),
        ("A=1", "PREFIX_*"),
    ],
)
def test_a_credential_is_not_passed_on_to_jobs(tmp_path: Path, name: str, words: str) -> None:
    (fault,) = _site(tmp_path, more=f"  pass_env: [SITE_SCRATCH, AB_*, '{name}']\n")
    assert fault.path == "cluster.pass_env.2"
    assert words in fault.expected


@pytest.mark.parametrize(
    ("resources", "stage", "words"),
    [
        ("gpus_per_node: 4", "{tasks_per_node: 8}", "two ranks cannot share a GPU"),
        ("gpus_per_node: 0", "{device: cuda}", "at least 1"),
    ],
)
def test_a_stage_that_does_not_fit_its_cluster_is_told(
    tmp_path: Path, resources: str, stage: str, words: str
) -> None:
    faults = _site(tmp_path, resources, stage=stage)
    assert ("stages.pretrain.resources", True) in [
        (fault.path, words in fault.expected) for fault in faults
    ]


def test_what_belongs_to_gpus_falls_where_a_stage_takes_none() -> None:
    cluster = {"gpus_per_node": 4, "gpu_type": "a100", "mem_per_gpu_gb": 60, "reservation": "r"}
    gpus = _resources({}, cluster, has_gpus=True)
    assert (gpus.gpu_type, gpus.mem_gb, gpus.reservation) == ("a100", 240, "r")
    assert _resources({"mem_gb": 100}, cluster, has_gpus=True).mem_gb == 100
    assert _resources({"gpus_per_node": 2}, cluster, has_gpus=True).mem_gb == 120
    for found in (
        _resources({"device": "cpu"}, cluster, has_gpus=True),
        _resources({}, cluster, has_gpus=True, cpu_only=True),
    ):
        assert (found.gpu_type, found.mem_gb, found.gpus_per_node) == (None, None, 0)


@pytest.mark.parametrize("asked", ["auto", "gres"])
def test_auto_is_what_the_site_takes(asked: str) -> None:
    found = job_resources(
        ResourcesSpec.model_validate({"gpu_request": asked}),
        ClusterSpec(),
        has_gpus=True,
        gpu_request="gpus-per-task",
    )
    assert found.gpu_request == ("gres" if asked == "gres" else "gpus-per-task")
    few = ResourcesSpec.model_validate({"gpus_per_node": 4, "tasks_per_node": 2})
    each = job_resources(few, ClusterSpec(), has_gpus=True, gpu_request="gpus-per-task")
    assert each.gpu_request == "gpus-per-node"


def test_resources_survive_the_record_of_a_run(tmp_path: Path) -> None:
    env = {"kind": "apptainer", "image": "~/i.sif", "load": ["apptainer"], "bind": ["~/a:/b:ro"]}
    cluster = {"executor": "slurm", "env": env, "pass_env": ["A_*"], "env_file": "~/f"}
    spec = ClusterSpec.model_validate(cluster)
    found = job_resources(ResourcesSpec(exclusive="user"), spec, has_gpus=True, data=["/videos"])
    assert resources_from(json.loads(json.dumps(asdict(found)))) == found
    home = str(Path.home())
    assert found.environment is not None and found.env_file == f"{home}/f"
    assert found.environment.place == f"{home}/i.sif"
    assert found.environment.binds == (f"{home}/a:/b:ro", "/videos", f"{home}/f")
