"""Feature extraction: windows, ranks, order, stopping, and that nothing changes the encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from recipes.contract import Artifact, ConfigurationError, InputError, Preempted, StageError
from recipes.data.augment import normalize
from recipes.data.crop import centre_box, read_box
from recipes.data.samplers import uniform_windows
from recipes.data.table import VideoTable, load_table
from recipes.engine import distributed
from recipes.evaluation.features import Extraction, extract_features, mean_colors
from recipes.evaluation.frozen import check_frozen, digest
from recipes.evaluation.subject import calibrate, labelled_videos, open_subject
from recipes.models.encoder import VideoEncoder, load_encoder
from recipes.stages.probe.config import ProbeConfig
from tests.recipes.evaluation_support import (
    BUILT,
    CLIP,
    Recorder,
    context,
    copies,
    encoder_file,
    on_ranks,
    synthetic,
)

EXTRACTION = Extraction(windows=3, batch_size=5)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return synthetic(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return encoder_file(tmp_path_factory.mktemp("encoder"))


def _clips(table: VideoTable, row: int, windows: int) -> torch.Tensor:
    """Windows of one video by the plain way: (K, N, C, T, H, W) uint8."""
    indices = uniform_windows(int(table.frames[row]), CLIP, windows)
    box = centre_box(int(table.heights[row]), int(table.widths[row]))
    frames = read_box(table, row, indices.ravel(), box, CLIP.size)
    blocks = frames.reshape(*indices.shape, *frames.shape[1:])
    return torch.from_numpy(np.ascontiguousarray(blocks.transpose(0, 1, 5, 2, 3, 4)))


def _extract(
    folder: Path, data: Artifact, encoder: VideoEncoder, rank: int = 0, world_size: int = 1
) -> torch.Tensor:
    ctx = context(folder, {"data": data}, rank=rank, world_size=world_size)
    distributed.init(ctx)
    table = load_table(data, "test")
    return extract_features(ctx, encoder, "pooled", table, CLIP, EXTRACTION)


def test_a_feature_is_the_mean_over_the_windows_of_its_video(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    encoder, _ = load_encoder(trained.path)
    found = _extract(tmp_path, drawn, encoder)
    table = load_table(drawn, "test")
    assert found.shape == (10, 64)
    for row in (0, 9):
        with torch.no_grad():
            values = encoder(normalize(_clips(table, row, 3).float() / 255))["pooled"]
        torch.testing.assert_close(found[row], values.mean(0), rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_batch_size_or_workers(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    encoder, _ = load_encoder(trained.path)
    ctx = context(tmp_path, {})
    table = load_table(drawn, "test")
    found = [
        extract_features(
            ctx,
            encoder,
            "context",
            table,
            CLIP,
            Extraction(windows=3, batch_size=size, workers=workers),
        )
        for size, workers in ((1, 0), (7, 0), (64, 1))
    ]
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-5)


def _extract_on_rank(
    rank: int, world_size: int, folder: Path, data: Artifact, path: Path
) -> np.ndarray:
    encoder, _ = load_encoder(path)
    return _extract(folder, data, encoder, rank, world_size).numpy()


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_rank_gets_the_features_one_rank_would_compute(
    tmp_path: Path, drawn: Artifact, trained: Artifact, world_size: int
) -> None:
    encoder, _ = load_encoder(trained.path)
    alone = _extract(tmp_path, drawn, encoder).numpy()
    for found in on_ranks(world_size, _extract_on_rank, tmp_path, drawn, trained.path):
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)


def _more_ranks_than_videos(rank: int, world_size: int, folder: Path, data: Artifact) -> np.ndarray:
    ctx = context(folder, {"data": data}, rank=rank, world_size=world_size)
    distributed.init(ctx)
    table = load_table(data, "test").select([4])
    return mean_colors(ctx, table, CLIP, EXTRACTION).numpy()


def test_a_rank_without_a_video_takes_part(tmp_path: Path, drawn: Artifact) -> None:
    table = load_table(drawn, "test")
    expected = _clips(table, 4, 3).float().mean(dim=(0, 1, 3, 4, 5)).numpy() / 255
    for found in on_ranks(2, _more_ranks_than_videos, tmp_path, drawn):
        np.testing.assert_allclose(found, expected[None], rtol=1e-5)


def _stopped_on_rank_1(rank: int, world_size: int, folder: Path, data: Artifact, path: Path) -> int:
    encoder, _ = load_encoder(path)
    recorder = Recorder(stop_after=1 if rank == 1 else None)
    ctx = context(folder, {"data": data}, recorder, rank=rank, world_size=world_size)
    distributed.init(ctx)
    table = load_table(data, "test")
    try:
        extract_features(ctx, encoder, "pooled", table, CLIP, EXTRACTION)
    except Preempted as stop:
        assert stop.step == 0
        return recorder.asked
    return -1


def test_all_ranks_stop_together_when_one_is_asked_to(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    asked = on_ranks(2, _stopped_on_rank_1, tmp_path, drawn, trained.path)
    assert asked == [2, 2]


def test_a_stop_reports_the_step_that_was_saved_before(tmp_path: Path, drawn: Artifact) -> None:
    ctx = context(tmp_path, {}, Recorder(stop_after=0))
    extraction = Extraction(windows=1, batch_size=4, committed_step=17)
    with pytest.raises(Preempted) as stop:
        mean_colors(ctx, load_table(drawn, "test"), CLIP, extraction)
    assert stop.value.step == 17


def test_progress_ends_at_the_last_clip(tmp_path: Path, drawn: Artifact) -> None:
    recorder = Recorder()
    ctx = context(tmp_path, {}, recorder)
    mean_colors(ctx, load_table(drawn, "test"), CLIP, Extraction(windows=3, batch_size=4))
    last = recorder.progress[-1]
    assert (last.step, last.steps, last.phase) == (30, 30, "features")
    assert last.seconds_left == 0.0
    assert last.clips_per_second is not None
    assert last.clips_per_second > 0


def test_extraction_leaves_parameters_and_buffers_as_they_were(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    encoder, _ = load_encoder(trained.path)
    encoder.train()
    before = digest(encoder)
    _extract(tmp_path, drawn, encoder)
    assert digest(encoder) == before
    assert not any(module.training for module in encoder.modules())


def test_one_forward_in_training_mode_is_noticed(trained: Artifact) -> None:
    encoder, _ = load_encoder(trained.path)
    before = digest(encoder)
    check_frozen(encoder, before)
    encoder.train()
    encoder(torch.zeros(2, 2, 3, 4, 32, 32))
    with pytest.raises(StageError, match="encoder changed"):
        check_frozen(encoder, before)


def test_buffers_that_are_not_saved_count_as_well() -> None:
    module = nn.Module()
    module.register_buffer("count", torch.zeros(1), persistent=False)
    before = digest(module)
    module.get_buffer("count").add_(1)
    assert digest(module) != before


def test_a_feature_that_is_no_number_is_refused(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    encoder, _ = load_encoder(trained.path)
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="10 of 10 videos"):
        _extract(tmp_path, drawn, encoder)


def test_calibration_gives_a_random_encoder_the_statistics_of_the_videos(
    tmp_path: Path, drawn: Artifact
) -> None:
    config = ProbeConfig(data={"format": "synthetic"}, **BUILT)
    ctx = context(tmp_path, {"data": drawn})
    subject = open_subject(ctx, config)
    table = labelled_videos(ctx, config, "train", subject.clip)
    weights = {name: value.clone() for name, value in subject.encoder.named_parameters()}
    calibrate(ctx, subject, table, workers=0)
    norm = subject.encoder.get_submodule("backbone.bn1")
    assert float(norm.get_buffer("running_var").sub(1).abs().min()) > 1e-3
    clips = torch.cat([_clips(table, row, 1) for row in range(len(table))])
    hidden = subject.encoder.backbone.conv1(normalize(clips.float() / 255).flatten(0, 1))
    torch.testing.assert_close(
        norm.get_buffer("running_mean"), hidden.mean(dim=(0, 2, 3, 4)), rtol=1e-3, atol=1e-4
    )
    for name, value in subject.encoder.named_parameters():
        assert torch.equal(value, weights[name])


def _calibrated(rank: int, world_size: int, folder: Path, data: Artifact) -> list[float]:
    config = ProbeConfig(data={"format": "synthetic"}, **BUILT)
    ctx = context(folder, {"data": data}, rank=rank, world_size=world_size)
    distributed.init(ctx)
    subject = open_subject(ctx, config)
    calibrate(ctx, subject, labelled_videos(ctx, config, "train", subject.clip), workers=0)
    last = [value for name, value in subject.encoder.named_buffers() if "running_var" in name][-1]
    return [float(value) for value in last]


def test_calibration_does_not_depend_on_the_number_of_ranks(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = synthetic(tmp_path_factory.mktemp("more"), train=24)
    first, second = on_ranks(2, _calibrated, tmp_path, data)
    assert first == second
    assert first == pytest.approx(_calibrated(0, 1, tmp_path, data), rel=1e-4)


def test_an_encoder_is_read_or_built_as_the_recipe_says(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    data = {"format": "synthetic"}
    both = context(tmp_path, {"data": drawn, "encoder": trained})
    none = context(tmp_path, {"data": drawn})
    assert open_subject(both, ProbeConfig(data=data)).description.method == "dpc"
    assert open_subject(none, ProbeConfig(data=data, **BUILT)).description.method == "random"
    with pytest.raises(ConfigurationError, match="encoder: input needs"):
        open_subject(none, ProbeConfig(data=data))
    with pytest.raises(ConfigurationError, match="uses no input"):
        open_subject(both, ProbeConfig(data=data, **BUILT))


def test_the_clip_of_the_encoder_is_the_default(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    ctx = context(tmp_path, {"data": drawn, "encoder": trained})
    data = {"format": "synthetic"}
    assert open_subject(ctx, ProbeConfig(data=data)).clip == CLIP
    other = {"blocks": 1, "frames": 8, "size": 24}
    assert open_subject(ctx, ProbeConfig(data=data, clip=other)).clip.size == 24


def test_a_context_feature_needs_a_context_network(tmp_path: Path, drawn: Artifact) -> None:
    plain = encoder_file(tmp_path / "plain", context_network=False)
    ctx = context(tmp_path, {"data": drawn, "encoder": plain})
    with pytest.raises(ConfigurationError, match="it has pooled"):
        open_subject(ctx, ProbeConfig(data={"format": "synthetic"}, feature="context"))


def test_videos_without_labels_are_left_out_and_none_left_is_an_error(
    tmp_path: Path, drawn: Artifact
) -> None:
    unlabelled = copies(tmp_path / "copies", drawn, 3, label=None)
    ctx = context(tmp_path, {"data": unlabelled})
    config = ProbeConfig(data={"format": "synthetic"}, **BUILT)
    with pytest.raises(InputError, match="none of the 3 train videos has a label"):
        labelled_videos(ctx, config, "train", CLIP)
