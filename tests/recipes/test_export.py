"""The encoder outside of this package: its code as one file, and the card beside it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import yaml
from safetensors.torch import load_file

from recipes.catalog import BACKBONES, load
from recipes.contract import Artifact, Origin
from recipes.data.augment import normalize
from recipes.data.clip_config import ClipConfig
from recipes.models import standalone
from recipes.models.card import Training, model_card
from recipes.models.config import ContextConfig, EncoderConfig, R2D3D18Config
from recipes.models.encoder import load_encoder, random_encoder, save_encoder
from recipes.models.standalone import NotStandaloneError, standalone_code

DOCS = Path(__file__).parents[2] / "docs" / "encoder.md"
# A Python that sees installed packages but no `.pth` file, through which this package is found.
ISOLATED = f"""
import sys
sys.path.append({str(Path(safetensors.__file__).parents[1])!r})
for name in ("orchestrator", "cluster", "tracking", "recipes", "tests"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{{name}} can be imported here")
import os, torch
from safetensors.torch import save_file
torch.manual_seed(0)
"""
SAVE = "save_file({**features, 'clips': clips}, 'features.safetensors')\n"


def described(backbone: Any, context: bool, **clip: int) -> EncoderConfig:
    sizes = {"blocks": 2, "frames": 4, "stride": 1, "size": 32, **clip}
    return EncoderConfig(
        backbone=backbone,
        context=ContextConfig() if context else None,
        clip=ClipConfig.model_validate(sizes),
        method="dpc",
        pretrain_data="toy",
        pretrain_steps=6,
    )


def export(folder: Path, config: EncoderConfig) -> Path:
    """An encoder whose batch-norm statistics have moved, as a stage leaves it."""
    folder.mkdir()
    encoder = random_encoder(config, seed=1)
    with torch.no_grad():
        encoder(torch.randn(2, 2, 3, 4, 32, 32))
    save_encoder(encoder, config, folder / "encoder.safetensors")
    (folder / "encoder.py").write_text(standalone_code(config))
    dims = encoder.feature_dims
    card = model_card(config, dims, 123_456, training(), standalone=True)
    (folder / "README.md").write_text(card)
    return folder


def training(**changes: Any) -> Training:
    data = Artifact(name="d", kind="dataset", path=Path("d"), sha256="ab" * 32, bytes=1, ref="i.d")
    given: dict[str, Any] = {
        "origin": Origin(recipe="quickstart", run="quickstart-1", key="k" * 64, code="c" * 64),
        "config": {
            "seed": 4,
            "data": {"format": "folder", "root": "/home/somebody/videos"},
            "epochs": 3,
            "batch_size": 8,
            "micro_batch": 2,
            "precision": "fp32",
            "ema_decay": None,
        },
        "data": data,
        "num_videos": 1234,
        "coverage": 0.5,
        "steps": 6,
        "metrics": {"train/loss": 2.5},
        "ranks": 2,
        "device": "cuda",
    }
    return Training(**{**given, **changes})


def lines_of(markdown: str) -> str:
    """The only block of Python in a page."""
    (block,) = re.findall(r"```python\n(.*?)```", markdown, re.DOTALL)
    return str(block)


def outside(jobs: list[tuple[Path, str]]) -> None:
    """Run lines of Python, each in its folder, where this package is not to be had."""
    script = ISOLATED + "".join(
        f"os.chdir({str(folder)!r})\n{code}{SAVE}sys.path.pop(0)\ndel sys.modules['encoder']\n"
        for folder, code in jobs
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def cases() -> Iterator[tuple[str, EncoderConfig]]:
    for name, entry in BACKBONES.items():
        for context in (False, True):
            yield f"{name}-{context}", described(load(entry.config)(), context)


CASES = dict(cases())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every backbone, with and without context, after the lines of its card were run on it; and a
    DPC encoder after those of the page."""
    root = tmp_path_factory.mktemp("exported")
    jobs = []
    for name, config in CASES.items():
        folder = export(root / name, config)
        jobs.append((folder, lines_of((folder / "README.md").read_text())))
    dpc = described(R2D3D18Config(), True, blocks=8, frames=5, stride=3, size=128)
    jobs.append((export(root / "page", dpc), lines_of(DOCS.read_text())))
    outside(jobs)
    return root


@pytest.mark.parametrize("name", [*CASES, "page"])
def test_features_without_this_package_are_those_with_it(exported, name):
    folder = exported / name
    features = load_file(folder / "features.safetensors")
    clips = features.pop("clips")
    encoder, _ = load_encoder(folder / "encoder.safetensors")
    with torch.inference_mode():
        expected = encoder(normalize(clips))
    assert features.keys() == expected.keys() == encoder.feature_dims.keys()
    for kind, value in expected.items():
        torch.testing.assert_close(features[kind], value, rtol=0, atol=1e-5)
        assert value.std() > 0


def test_the_page_shows_what_a_card_shows():
    dpc = described(R2D3D18Config(), True, blocks=8, frames=5, stride=3, size=128)
    card = model_card(dpc, {"pooled": 256, "context": 256}, 1, training(), standalone=True)
    assert lines_of(card) == lines_of(DOCS.read_text())
    code = [line for line in lines_of(card).splitlines() if line]
    assert len(code) <= 10


@pytest.mark.parametrize("name", list(CASES))
def test_the_code_is_that_of_the_sources_without_imports_of_ours(name):
    code = standalone_code(CASES[name])
    assert not re.search(r"^\s*(from|import) (recipes|cluster|orchestrator)", code, re.MULTILINE)
    assert "hidden * (1 - update) + new * update" in code
    assert "pydantic" not in code
    assert code == standalone_code(CASES[name])


def module(place: Path, name: str, text: str) -> str:
    """A module of the package `recipes.models`, by its path on disk."""
    (place / f"{name}.py").write_text(text)
    return f"recipes.models.{name}"


@pytest.fixture
def backbone_of(tmp_path, monkeypatch):
    """A backbone whose module has the given text, in the catalog under the name of the tiny one."""
    import recipes.models

    monkeypatch.setattr(recipes.models, "__path__", [*recipes.models.__path__, str(tmp_path)])
    standalone._read.cache_clear()

    def enter(text: str) -> EncoderConfig:
        place = module(tmp_path, "strange", text)
        entry = BACKBONES["r2d3d_tiny"]._replace(target=f"{place}:build")
        monkeypatch.setitem(standalone.BACKBONES, "r2d3d_tiny", entry)
        return CASES["r2d3d_tiny-False"]

    yield enter
    standalone._read.cache_clear()


def test_aliases_of_foreign_modules_decorators_and_comments_are_kept(backbone_of):
    text = (
        "import os.path\nimport torch.nn.functional as F\nfrom torch import nn as layers\n"
        "from functools import cache\nfrom recipes.models.config import BackboneConfig\n\n"
        "# Two.\n@cache\ndef two() -> int:\n    return 2\n\n\ndef unused():\n    pass\n\n\n"
        "def build(config: BackboneConfig):\n"
        "    return layers.Identity(), F, os.path.sep, two()\n"
    )
    code = standalone_code(backbone_of(text))
    for line in (
        "import os.path",
        "import torch.nn.functional as F",
        "from torch import Tensor, nn, nn as layers",
        "BackboneConfig = Any  # in annotations only",
        "# Two.\n@cache\ndef two() -> int:",
    ):
        assert line in code
    assert "unused" not in code
    compile(code, "encoder.py", "exec")


def test_what_cannot_be_collected_is_refused_by_name(backbone_of):
    config = backbone_of("def normalize(x):\n    return x\n\n\nbuild = normalize\n")
    with pytest.raises(
        NotStandaloneError, match=r"normalize is defined in recipes\.models\.strang"
    ):
        standalone_code(config)


def test_a_definition_of_ours_under_another_name_is_refused(backbone_of):
    config = backbone_of(
        "from recipes.models.conv_gru import ConvGRU as Memory\n\n\n"
        "def build(config):\n    return Memory(3)\n"
    )
    with pytest.raises(NotStandaloneError, match=r"imports recipes\.models\.conv_gru ConvGRU as"):
        standalone_code(config)


def card(standalone: bool = True, **changes: Any) -> str:
    config = CASES["r2d3d_tiny-True"]
    dims = {"pooled": 64, "context": 64}
    return model_card(config, dims, 123_456, training(**changes), standalone=standalone)


def test_the_card_opens_with_what_model_hubs_read():
    _, front, _ = card().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "unknown",
        "library_name": "pytorch",
        "pipeline_tag": "feature-extraction",
        "tags": ["video", "self-supervised-learning", "dpc", "r2d3d_tiny"],
        "datasets": ["toy"],
    }


def test_the_card_says_where_the_encoder_comes_from_and_no_paths():
    text = card()
    for fact in (
        "123,456 parameters",
        "| videos | 1,234 (50.00% of those listed) |",
        "| optimizer steps | 6 |",
        "| devices | 2 x cuda |",
        "| train/loss | 2.5 |",
        "| recipe | quickstart |",
        f"| stage key | {'k' * 64} |",
        f"| code | {'c' * 64} |",
        f"| SHA-256 of the index | {'ab' * 32} |",
    ):
        assert fact in text
    assert "/home/somebody" not in text
    assert "the last weights" in text


def test_the_card_has_the_recipe_but_for_the_data():
    text = card()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    expected = dict(training().config)
    expected.pop("data")
    assert yaml.safe_load(block) == json.loads(json.dumps(expected))


def test_the_card_says_if_weights_are_averaged_and_if_there_is_no_code():
    config = {**training().config, "ema_decay": 0.99}
    text = card(standalone=False, config=config)
    assert "a moving average of the weights (decay 0.99)" in text
    assert "With orchestrate installed" in text
    assert "```python" not in text
