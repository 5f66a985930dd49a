"""The augmentations of published systems, by name; torch-free.

Tables and evidence are in the papers and codes named with each. "Per clip" of a system with several
clips or views is `per_block` here. None includes normalization, which belongs to the encoder.
"""

from __future__ import annotations

from typing import Literal

from recipes.data.clip_config import NO_AUGMENT, AugmentConfig, JitterConfig

PresetName = Literal[
    "none",
    "dpc",
    "dpc_ucf101",
    "memdpc",
    "finetune",
    "video_simclr",
    "video_moco_v1",
    "video_moco_v2",
    "oad",
    "oad_frames",
    "pace",
    "rotnet3d",
    "vcop",
    "opn",
    "videomoco",
    "cvrl",
    "rho_views",
    "tce",
]

# DPC on Kinetics-400 (TengdaHan/DPC, dpc/main.py). Its crop draws the ratio of the sides uniformly,
# ours logarithmically.
DPC = AugmentConfig(
    crop_area=(0.5, 1.0),
    flip=0.5,
    jitter=JitterConfig(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, p=1.0),
    gray_split=0.5,
    colour_scope="per_frame",
)

# The same on UCF101: 224 px of frames stored with a short side of 240 to 256 px.
DPC_UCF101 = DPC.model_copy(update={"crop_area": None, "crop_side": (224 / 256, 224 / 240)})

# TengdaHan/MemDPC, memdpc/main.py.
MEMDPC = DPC.model_copy(update={"gray_split": 0.25})

# DPC's fine-tuning (TengdaHan/DPC, eval/test.py).
FINETUNE = AugmentConfig(
    crop_area=(0.5, 1.0),
    flip=0.5,
    jitter=JitterConfig(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, p=0.3),
    colour_scope="per_clip",
)

# simionAndrei/MScThesis, data_transform.py with strength 0.5; the ranges of torchvision's
# RandomResizedCrop. The system does not normalize.
VIDEO_SIMCLR = AugmentConfig(
    crop_area=(0.08, 1.0),
    crop_scope="per_block",
    flip=0.5,
    flip_scope="per_block",
    jitter=JitterConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
    gray=0.2,
    colour_scope="per_block",
    blur=0.5,
    blur_scope="per_block",
)

# MoCo v1 and v2 on clips (simionAndrei/MScThesis, videoMOCO_scripts/main_moco.py). There gray comes
# before the jitter, which is the same: the jitter is linear and its saturation and hue keep luma.
VIDEO_MOCO_V2 = VIDEO_SIMCLR.model_copy(update={"crop_area": (0.2, 1.0)})
VIDEO_MOCO_V1 = VIDEO_MOCO_V2.model_copy(
    update={
        "jitter": JitterConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4, p=1.0),
        "blur": 0.0,
    }
)

# Online action detection (seed 002) on chunks: of 1080 lines the middle 1000 scaled to 500, 350 to
# 450 of these at random. How strong jitter and erasing are is not stated: MoCo v2 and torchvision.
OAD = AugmentConfig(
    crop_within=1000 / 1080,
    crop_side=(350 / 500, 450 / 500),
    crop_scope="per_block",
    rotate=10.0,
    rotate_p=0.3,
    flip=0.5,
    flip_scope="per_block",
    jitter=JitterConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.6),
    gray=0.2,
    colour_scope="per_block",
    erase=0.5,
    erase_scope="per_block",
)

# The same on single random frames (2D backbone), each with changes of its own.
OAD_FRAMES = OAD.model_copy(
    update={
        "crop_scope": "per_frame",
        "flip_scope": "per_frame",
        "colour_scope": "per_frame",
        "erase_scope": "per_frame",
    }
)

_RESIZED_128_171 = (112 / 128, 112 / 171)  # resize to 128 x 171, crop 112 x 112

# laura-wang/video-pace, datasets/ucf101.py and train.py.
PACE = AugmentConfig(
    crop_window=_RESIZED_128_171,
    crop_scope="per_block",
    flip=0.5,
    flip_scope="per_block",
    jitter=JitterConfig(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, p=0.8),
    colour_scope="per_frame",
)

# LongLong-Jing/3DRotNet, Video_dataloader.py: crop 112 of larger frames. How large they are is not
# in the code; 136 x 136 is the paper's. The quarter turns are the question, not an augmentation.
ROTNET3D = AugmentConfig(
    crop_window=(112 / 136, 112 / 136),
    crop_scope="per_block",
    rotate=10.0,
    flip=0.5,
    flip_scope="per_block",
)

# xudejing/video-clip-order-prediction, train_vcop.py: a crop for each clip of the tuple, no flip.
VCOP = AugmentConfig(crop_window=_RESIZED_128_171, crop_scope="per_block")

# HsinYingLee/OPN, UCF_datalayers.py: 80 of 240 lines, moved by up to 5 px a frame. The released
# lists choose the place by motion; here it is uniform.
OPN = AugmentConfig(
    crop_side=(80 / 240, 80 / 240),
    crop_shift=5,
    flip=0.5,
    gray_split=1.0,
    colour_scope="per_frame",
)

# tinapan-pt/VideoMoCo, train.py and moco/loader.py (MoCoAugment): the crop is drawn once a view,
# everything else, the flip too, once a frame.
VIDEOMOCO = AugmentConfig(
    crop_area=(0.2, 1.0),
    crop_scope="per_block",
    flip=0.5,
    flip_scope="per_frame",
    jitter=JitterConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4, p=1.0),
    gray=0.2,
    colour_scope="per_frame",
)

# tensorflow/models, official/projects/video_ssl (dataloaders/video_ssl_input.py and
# ops/video_ssl_preprocess_ops.py), strength 1: the second view is blurred rarely and solarized.
CVRL = AugmentConfig(
    crop_area=(0.3, 1.0),
    crop_aspect=(0.5, 2.0),
    crop_scope="per_block",
    flip=0.5,
    flip_scope="per_block",
    jitter=JitterConfig(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, p=0.8),
    gray=0.2,
    solarize=(0.0, 0.2),
    colour_scope="per_block",
    blur=(1.0, 0.1),
    blur_scope="per_block",
)

# facebookresearch/SlowFast, configs/contrastive_ssl/*.yaml.
RHO_VIEWS = VIDEO_SIMCLR.model_copy(
    update={
        "crop_area": (0.2, 0.766),
        "crop_aspect": (0.75, 1.3333),
        "jitter": JitterConfig(brightness=0.6, contrast=0.6, saturation=0.6, hue=0.15, p=0.8),
    }
)

# csiro-robotics/TCE, datasets/pretraining/__init__.py with config/default.py: the whole picture is
# squeezed to 224 x 224, so its random crop of 224 leaves nothing out.
TCE = AugmentConfig(
    crop_window=(1.0, 1.0),
    flip=0.5,
    jitter=JitterConfig(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, p=1.0),
    gray_split=0.5,
    colour_scope="per_frame",
)

AUGMENT_PRESETS: dict[PresetName, AugmentConfig] = {
    "none": NO_AUGMENT,
    "dpc": DPC,
    "dpc_ucf101": DPC_UCF101,
    "memdpc": MEMDPC,
    "finetune": FINETUNE,
    "video_simclr": VIDEO_SIMCLR,
    "video_moco_v1": VIDEO_MOCO_V1,
    "video_moco_v2": VIDEO_MOCO_V2,
    "oad": OAD,
    "oad_frames": OAD_FRAMES,
    "pace": PACE,
    "rotnet3d": ROTNET3D,
    "vcop": VCOP,
    "opn": OPN,
    "videomoco": VIDEOMOCO,
    "cvrl": CVRL,
    "rho_views": RHO_VIEWS,
    "tce": TCE,
}
