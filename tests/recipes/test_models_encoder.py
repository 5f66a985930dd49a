"""The encoder: its features, its file format, untrained ones and their calibration."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recipes.contract import ConfigurationError, InputError, Preempted
from recipes.data.augment import normalize
from recipes.data.clip_config import ClipConfig
from recipes.models.calibrate import calibrate_batchnorm
from recipes.models.config import (
    ContextConfig,
    EncoderConfig,
    R2D3D18Config,
    R2D3D34Config,
    R2D3DTinyConfig,
)
from recipes.models.conv_gru import ConvGRU
from recipes.models.encoder import (
    block_features,
    load_encoder,
    random_encoder,
    save_encoder,
)
from tests.recipes.engine_worker import make_context

CONFIG = EncoderConfig(
    backbone=R2D3DTinyConfig(),
    context=ContextConfig(),
    clip=ClipConfig(blocks=3, frames=4, stride=1, size=16),
    method="dpc",
    pretrain_data="toy",
)


def clips(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def test_the_conv_gru_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in ConvGRU(256).parameters()) == 393_984


def test_the_conv_gru_starts_with_orthogonal_weights_and_zero_biases():
    gru = ConvGRU(8)
    for gate in (gru.reset_gate, gru.update_gate, gru.out_gate):
        weight = gate.weight.flatten(1)
        torch.testing.assert_close(weight @ weight.t(), torch.eye(8))
        assert gate.bias is not None
        assert not gate.bias.any()


def test_the_conv_gru_is_a_gru_at_every_place():
    gru = ConvGRU(6, dropout=0.1).eval()
    for parameter in gru.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    # nn.GRUCell: h' = (1 - z) n + z h with n = tanh(W x + r (U h)); ours puts r before U and
    # swaps the role of the update gate, so it is written out for one place.
    sequence = torch.randn(2, 3, 6, 2, 2)

    def gate(module, x):
        return module.weight[:, :, 0, 0] @ x + module.bias

    for b, i, j in ((0, 0, 0), (1, 1, 0)):
        hidden = torch.zeros(6)
        for x in sequence[b, :, :, i, j]:
            both = torch.cat([x, hidden])
            update = torch.sigmoid(gate(gru.update_gate, both))
            reset = torch.sigmoid(gate(gru.reset_gate, both))
            new = torch.tanh(gate(gru.out_gate, torch.cat([x, reset * hidden])))
            hidden = (1 - update) * hidden + update * new
        torch.testing.assert_close(gru(sequence)[b, :, i, j], hidden)


def test_dropout_falls_on_the_hidden_state_of_every_step():
    torch.manual_seed(0)
    gru = ConvGRU(512, dropout=0.1)
    once = gru.step(torch.randn(4, 512, 2, 2), torch.randn(4, 512, 2, 2))
    assert 0.08 < (once == 0).float().mean() < 0.12
    assert not (gru.eval().step(torch.randn(1, 512, 1, 1), torch.randn(1, 512, 1, 1)) == 0).any()


def test_features_are_means_over_blocks_time_and_space():
    encoder = random_encoder(CONFIG, seed=0).eval()
    features = encoder(clips())
    each = [encoder.backbone(clips()[:, n]) for n in range(3)]
    pooled = torch.stack([block.mean(dim=(2, 3, 4)) for block in each]).mean(dim=0)
    torch.testing.assert_close(features["pooled"], pooled)
    hidden = torch.zeros(2, 64, 2, 2)
    for block in each:
        hidden = encoder.context.step(torch.relu(block.mean(dim=2)), hidden)
    torch.testing.assert_close(features["context"], hidden.mean(dim=(2, 3)))
    assert {name: value.shape[1] for name, value in features.items()} == encoder.feature_dims


def test_the_context_depends_on_the_order_of_blocks_and_the_pooled_feature_does_not():
    encoder = random_encoder(CONFIG, seed=0).eval()
    forth, back = encoder(clips()), encoder(clips().flip(1))
    torch.testing.assert_close(forth["pooled"], back["pooled"])
    assert not torch.allclose(forth["context"], back["context"], atol=1e-3)


def test_an_encoder_without_context_has_pooled_features_only():
    encoder = random_encoder(CONFIG.model_copy(update={"context": None}), seed=0).eval()
    assert set(encoder(clips())) == set(encoder.feature_dims) == {"pooled"}


def test_a_saved_encoder_comes_back_bit_by_bit_with_its_config(tmp_path):
    encoder = random_encoder(CONFIG, seed=5)
    encoder(clips())  # moves the batch-norm statistics
    path = tmp_path / "encoder.safetensors"
    save_encoder(encoder, CONFIG, path)
    loaded, config = load_encoder(path)
    assert config == CONFIG
    assert not loaded.training
    expected = encoder.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name
    torch.testing.assert_close(loaded(clips()), encoder.eval()(clips()), rtol=0, atol=0)


def test_the_sidecar_says_the_same_for_people(tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_encoder(random_encoder(CONFIG, seed=0), CONFIG, path)
    sidecar = json.loads((tmp_path / "encoder.json").read_text())
    assert sidecar == CONFIG.model_dump(mode="json")
    assert sidecar["backbone"] == {"name": "r2d3d_tiny"}


def test_equal_encoders_make_equal_files(tmp_path):
    for name in ("a", "b"):
        save_encoder(random_encoder(CONFIG, seed=1), CONFIG, tmp_path / f"{name}.safetensors")
    first, second = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_pickle_under_the_name_of_an_encoder_is_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path = tmp_path / "encoder.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"encoder\.safetensors: cannot be read"):
        load_encoder(path)
    torch.save({"x": Bomb()}, path)
    with pytest.raises(InputError, match="cannot be read"):
        load_encoder(path)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_not_ours_are_refused_with_the_reason(tmp_path):
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        load_encoder(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="no 'encoder' description"):
        load_encoder(path)
    save_encoder(random_encoder(CONFIG, seed=0), CONFIG, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        load_encoder(path)


def test_weights_that_do_not_fit_their_description_are_refused(tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_encoder(random_encoder(CONFIG, seed=0), CONFIG, path)
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(path)
    lost = {name: value for name, value in tensors.items() if name != "backbone.conv1.weight"}
    save_file(lost, path, metadata=metadata)
    with pytest.raises(InputError, match=r"backbone\.conv1\.weight"):
        load_encoder(path)
    save_file(tensors, path, metadata={"encoder": '{"backbone": {"name": "nope"}}'})
    with pytest.raises(InputError, match="do not fit"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("backbone", "total"),
    [(R2D3D18Config(), 14_057_536 + 393_984), (R2D3D34Config(), 32_422_208 + 393_984)],
)
def test_an_encoder_is_backbone_and_aggregator(backbone, total):
    with torch.device("meta"):
        encoder = random_encoder(CONFIG.model_copy(update={"backbone": backbone}), seed=0)
    assert sum(p.numel() for p in encoder.parameters()) == total
    assert encoder.feature_dims == {"pooled": 256, "context": 256}


def test_a_random_encoder_is_a_function_of_its_seed_and_leaves_the_generator_alone():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    first = random_encoder(CONFIG, seed=1)
    assert torch.equal(torch.rand(3), expected)
    second, third = random_encoder(CONFIG, seed=1), random_encoder(CONFIG, seed=2)
    assert torch.equal(first.backbone.conv1.weight, second.backbone.conv1.weight)
    assert not torch.equal(first.backbone.conv1.weight, third.backbone.conv1.weight)


def given_clips(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    shape = (2, 3, 3, 4, 16, 16)
    return [
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(count)
    ]


def test_calibration_averages_the_statistics_of_all_batches_equally(tmp_path):
    encoder = random_encoder(CONFIG, seed=0).eval()
    batches = given_clips(3)
    means, variances = [], []
    for batch in batches:
        flat = normalize(batch.float() / 255).flatten(0, 1)
        response = encoder.backbone.conv1(flat)
        means.append(response.mean(dim=(0, 2, 3, 4)))
        variances.append(response.var(dim=(0, 2, 3, 4)))
    calibrate_batchnorm(encoder, batches, make_context(tmp_path))
    norm = encoder.backbone.bn1
    torch.testing.assert_close(
        norm.running_mean, torch.stack(means).mean(dim=0), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        norm.running_var, torch.stack(variances).mean(dim=0), rtol=1e-4, atol=1e-5
    )


def test_calibration_changes_statistics_only_and_restores_the_mode(tmp_path):
    encoder = random_encoder(CONFIG, seed=0).eval()
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    calibrate_batchnorm(encoder, given_clips(2), make_context(tmp_path))
    assert all(torch.equal(p, before[name]) for name, p in encoder.named_parameters())
    assert not any(module.training for module in encoder.modules())
    assert encoder.backbone.bn1.momentum == 0.1


def test_calibration_brings_features_to_unit_scale(tmp_path):
    encoder = random_encoder(CONFIG, seed=0).eval()
    batches = given_clips(4)
    images = normalize(torch.cat(batches).float() / 255)
    calibrate_batchnorm(encoder, batches, make_context(tmp_path))
    with torch.no_grad():
        # The residual branch and the projected shortcut each have variance 1.
        features = block_features(encoder.backbone, images)
        spread = encoder.backbone(images.flatten(0, 1)).std().item()
    assert features.shape == (8, 3, 64, 2, 2)
    assert spread == pytest.approx(2**0.5, rel=0.1)


def test_calibration_without_clips_and_with_a_stop_says_so(tmp_path):
    encoder = random_encoder(CONFIG, seed=0)
    with pytest.raises(ConfigurationError, match="no clips"):
        calibrate_batchnorm(encoder, [], make_context(tmp_path))
    with pytest.raises(Preempted):
        calibrate_batchnorm(
            encoder, given_clips(1), make_context(tmp_path, stop_requested=lambda: True)
        )
