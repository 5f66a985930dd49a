"""Dense Predictive Coding: sizes, loss against a naive loop, negatives, rollout, learning."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from recipes.data.augment import augment, normalize
from recipes.data.augment_presets import DPC as DPC_AUGMENT
from recipes.data.clip_config import NO_AUGMENT, ClipConfig
from recipes.methods.dpc.config import DPCConfig
from recipes.methods.dpc.method import DPC, dense_loss
from recipes.models.config import R2D3D18Config, R2D3D34Config, R2D3DTinyConfig
from recipes.models.encoder import block_features
from tests.recipes.engine_worker import make_batch

CLIP = ClipConfig(blocks=4, frames=2, stride=1, size=16)


def tiny(**changes) -> DPC:
    torch.manual_seed(0)
    return DPC(DPCConfig.model_validate({"pred_steps": 2, **changes}), R2D3DTinyConfig(), CLIP)


def batch_of(count: int):
    return make_batch(torch.arange(count), torch.arange(count), CLIP)


def random_pair(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize(
    ("backbone", "total", "without_context"),
    [
        (R2D3D18Config(), 14_583_104, 14_189_120),
        (R2D3D34Config(), 32_947_776, 32_553_792),
    ],
)
def test_the_whole_network_has_the_published_number_of_parameters(backbone, total, without_context):
    with torch.device("meta"):
        method = DPC(DPCConfig(), backbone, ClipConfig(blocks=8, frames=5, stride=3, size=128))
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in method.named_children()}
    assert count["context"] == 393_984
    assert count["predictor"] == 131_584
    assert sum(count.values()) == total
    assert count["backbone"] + count["predictor"] == without_context


def test_the_loss_equals_a_naive_loop_over_every_location():
    predicted, targets = random_pair((3, 2, 5, 2, 2))
    batch, steps, _, height, width = predicted.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    losses, right = [], {1: 0, 3: 0, 5: 0}
    for b in range(batch):
        for step in range(steps):
            for i, j in places:
                query = predicted[b, step, :, i, j]
                positive = query @ targets[b, step, :, i, j]
                scores = [
                    query @ targets[b2, s2, :, i2, j2]
                    for b2 in range(batch)
                    for s2 in range(steps)
                    for i2, j2 in places
                ]
                losses.append(torch.logsumexp(torch.stack(scores), 0) - positive)
                above = sum(bool(score > positive) for score in scores)
                for k in right:
                    right[k] += above < k
    loss, metrics = dense_loss(predicted, targets)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    for k, count in right.items():
        assert metrics[f"top{k}"].item() == pytest.approx(count / len(losses))


def test_each_row_has_one_positive_and_easy_spatial_and_temporal_negatives():
    batch, steps, side = 3, 2, 2
    predicted, targets = (
        tensor.requires_grad_() for tensor in random_pair((batch, steps, 4, side, side))
    )
    loss, _ = dense_loss(predicted, targets)
    b, step, i, j = 1, 0, 1, 0
    # What pulls a target to one prediction: d L_query / d target = p_target * query, minus the
    # positive's query. Only the positive has a coefficient below zero, and no location is left out.
    (gradient,) = torch.autograd.grad(loss, targets, retain_graph=True)
    assert bool((gradient.abs().sum(dim=2) > 0).all())
    query = predicted[b, step, :, i, j]
    scores = torch.einsum("d,bsdij->bsij", query, targets)
    own = torch.logsumexp(scores.flatten(), 0) - scores[b, step, i, j]
    (coefficient,) = torch.autograd.grad(own, scores)
    assert (coefficient < 0).nonzero().tolist() == [[b, step, i, j]]
    easy = coefficient[[n for n in range(batch) if n != b]]
    spatial, temporal = coefficient[b, step].flatten(), coefficient[b, 1 - step, i, j]
    assert bool((easy > 0).all())
    assert int((spatial > 0).sum()) == side * side - 1
    assert temporal > 0
    assert coefficient.sum().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("batch", "expected"), [(16, 6.64), (64, 8.03)])
def test_a_prediction_that_says_nothing_costs_the_logarithm_of_all_locations(batch, expected):
    # 128 px give 4 x 4 places of 3 predicted blocks.
    _, targets = random_pair((batch, 3, 8, 4, 4))
    loss, _ = dense_loss(torch.zeros_like(targets), targets)
    assert loss.item() == pytest.approx(math.log(batch * 3 * 16), rel=1e-6)
    assert loss.item() == pytest.approx(expected, abs=0.01)


def test_a_new_network_starts_at_that_value_plus_what_the_scale_of_its_scores_adds():
    # Scores are dot products without normalization: random ones of variance v add up to v / 2.
    torch.manual_seed(0)
    clip = ClipConfig(blocks=4, frames=5, stride=1, size=64)
    method = DPC(DPCConfig(pred_steps=3), R2D3D18Config(), clip)
    rows = torch.arange(4)
    with torch.no_grad():
        batch = make_batch(rows, rows, clip)
        images = normalize(augment(batch.clips, batch.seeds, DPC_AUGMENT))
        features = block_features(method.backbone, images)
        pairs = [method.predict(features[:, :1], 3), features[:, 1:]]
        queries, keys = (pair.movedim(2, -1).flatten(0, -2) for pair in pairs)
        loss, _ = dense_loss(*pairs)
    chance = math.log(4 * 3 * 4)
    assert len(queries) == 4 * 3 * 4
    assert chance < loss.item() < chance + (queries @ keys.t()).var().item() / 2 + 0.3


def test_features_that_are_all_equal_do_not_count_as_right():
    predicted = torch.ones(2, 2, 4, 2, 2)
    loss, metrics = dense_loss(predicted, predicted)
    assert loss.item() == pytest.approx(math.log(16))
    assert metrics["top1"] == metrics["top5"] == 0
    assert metrics["feature_std"].item() == pytest.approx(0, abs=1e-6)


def test_random_features_have_a_spread_near_one():
    _, targets = random_pair((8, 3, 64, 4, 4))
    _, metrics = dense_loss(targets, targets)
    assert metrics["feature_std"].item() == pytest.approx(1, abs=0.05)
    assert metrics["positive_similarity"].item() == pytest.approx(1)
    assert metrics["top1"] == 1


def test_the_last_blocks_are_targets_only_and_the_first_are_observed_only():
    method = tiny().eval()
    images = torch.randn(2, 4, 3, 2, 16, 16)
    features = block_features(method.backbone, images)
    predicted = method.predict(features[:, :2], 2)
    changed = features.clone()
    changed[:, 2:] += 1
    assert torch.equal(method.predict(changed[:, :2], 2), predicted)
    assert predicted.shape == features[:, 2:].shape


def test_predictions_are_rolled_out_through_the_aggregator():
    method = tiny().eval()
    observed = torch.randn(2, 2, 64, 2, 2)
    hidden = torch.zeros(2, 64, 2, 2)
    for block in observed.unbind(1):
        hidden = method.context.step(torch.relu(block), hidden)
    first = method.predictor(hidden)
    second = method.predictor(method.context.step(torch.relu(first), hidden))
    torch.testing.assert_close(method.predict(observed, 2), torch.stack([first, second], dim=1))
    torch.testing.assert_close(method.predict(observed, 1), first[:, None])


def test_the_loss_of_a_batch_is_that_of_its_augmented_clips():
    method = tiny(dropout=0.0)
    batch = batch_of(3)
    images = normalize(augment(batch.clips, batch.seeds, DPC_AUGMENT))
    features = block_features(method.backbone, images)
    expected, _ = dense_loss(method.predict(features[:, :2], 2), features[:, 2:])
    torch.testing.assert_close(method.loss(batch).loss, expected)
    assert tiny(augment="none").config.augmentation == NO_AUGMENT


def test_gradient_reaches_every_parameter():
    method = tiny()
    method.loss(batch_of(2)).loss.backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


def test_running_statistics_are_tracked_in_training():
    method = tiny()
    before = method.backbone.bn1.running_mean.clone()
    method.loss(batch_of(2))
    assert not torch.equal(method.backbone.bn1.running_mean, before)


def test_autocast_does_not_touch_augmentation_and_loss():
    batch, seen = batch_of(2), []
    method = tiny(dropout=0.0)
    method.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    exact = method.loss(batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method.loss(batch).loss
    assert seen == [torch.float32, torch.float32]
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)
    assert rough.item() != exact.item()


def test_the_horizon_follows_the_epoch_alone():
    horizon = [{"epoch": 0, "steps": 1}, {"epoch": 10, "steps": 2}]
    method = tiny(horizon=horizon)
    predicted = {}
    for epoch in (0, 9, 10, 25, 3):
        method.set_epoch(epoch)
        predicted[epoch] = method.steps
    assert predicted == {0: 1, 9: 1, 10: 2, 25: 2, 3: 1}
    assert tiny().steps == 2


def test_a_short_horizon_observes_the_same_blocks_and_scores_fewer_targets():
    method = tiny(horizon=[{"epoch": 0, "steps": 1}], dropout=0.0)
    batch = batch_of(3)
    features = block_features(
        method.backbone, normalize(augment(batch.clips, batch.seeds, DPC_AUGMENT))
    )
    expected, _ = dense_loss(method.predict(features[:, :2], 1), features[:, 2:3])
    torch.testing.assert_close(method.loss(batch).loss, expected)


@pytest.mark.parametrize(
    ("horizon", "problem"),
    [
        ([{"epoch": 1, "steps": 1}], "begin at epoch 0"),
        ([{"epoch": 0, "steps": 1}, {"epoch": 0, "steps": 2}], "must rise"),
        ([{"epoch": 0, "steps": 3}], "pred_steps is 2"),
    ],
)
def test_an_impossible_horizon_is_refused(horizon, problem):
    with pytest.raises(ValidationError, match=problem):
        DPCConfig.model_validate({"pred_steps": 2, "horizon": horizon})


def test_a_clip_without_a_block_to_predict_from_is_refused():
    with pytest.raises(ValueError, match=r"clip\.blocks = 3.*raise clip\.blocks"):
        DPC(DPCConfig(), R2D3DTinyConfig(), ClipConfig(blocks=3, frames=2, size=16))


def test_the_exported_encoder_is_backbone_and_aggregator_and_names_the_method():
    method = tiny(dropout=0.25)
    encoder, config = method.export_encoder()
    assert encoder.backbone is method.backbone
    assert encoder.context is method.context
    assert (config.method, config.backbone, config.clip) == ("dpc", R2D3DTinyConfig(), CLIP)
    assert config.context is not None
    assert config.context.dropout == 0.25


def test_eight_videos_are_learned():
    method = tiny(dropout=0.0, augment="none")
    batch = batch_of(8)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    first = method.loss(batch).metrics["top1"].item()
    for _ in range(150):
        output = method.loss(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert first < 0.2
    assert output.metrics["top1"].item() > 0.95
