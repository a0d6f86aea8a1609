"""SAM 2's own video predictor, handed the frames that the service gives its tracker."""

from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from sam2 import sam2_video_predictor
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor

from deployments.model.checkpoints import POSTPROCESSING


def video_predictor(
    config: DictConfig | ListConfig, weights: Mapping[str, torch.Tensor], **options: bool
) -> SAM2VideoPredictor:
    """The predictor as `build_sam2_video_predictor` builds it, but without filled holes: those need a GPU.

    Args:
        config: of the model, which is left as it is.
        weights: the model's state dict.
        options: more arguments of SAM2VideoPredictor.
    """
    config = config.copy()
    OmegaConf.update(config, "model.sam_mask_decoder_extra_args", POSTPROCESSING, merge=True, force_add=True)
    target = {"_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor", "binarize_mask_from_pts_for_mem_enc": True}
    for name, value in {**target, **options}.items():
        OmegaConf.update(config, f"model.{name}", value, force_add=True)
    predictor: SAM2VideoPredictor = instantiate(config.model, _recursive_=True).eval()
    predictor.load_state_dict(dict(weights))
    return predictor


def initial_state(predictor: SAM2Base, images: torch.Tensor, height: int, width: int) -> Any:
    """The predictor's state for frames that are resized and normalised already, since its own readers resize otherwise.

    Args:
        predictor: a SAM2VideoPredictor.
        images: `N×3×S×S` float32.
        height: of the video, in pixels.
        width: of the video, in pixels.
    """
    with patch.object(sam2_video_predictor, "load_video_frames", lambda **_: (images, height, width)):
        return predictor.init_state("ours")
