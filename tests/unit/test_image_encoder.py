"""HieraEncoder against `SAM2Base.forward_image` on the same weights."""

from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.modeling.sam2_base import SAM2Base

from deployments.model.engine import Engine
from deployments.model.image_encoder import HieraEncoder, fuses, is_hiera
from harness.weights import sam2_package

CPU = torch.device("cpu")


def small_hiera(**changes: Any) -> SAM2Base:
    """Meta's tiny model, less wide and for smaller images, with random weights in every parameter.

    At 256 pixels a side, its stages have 64, 32, 16 and 8 tokens a side: windows of 8 and 4 fill them, windows of 14
    and 7 do not.
    """
    config = OmegaConf.load(sam2_package() / "configs/sam2/sam2_hiera_t.yaml")
    OmegaConf.update(config, "model.image_size", 256)
    OmegaConf.update(config, "model.image_encoder.trunk.embed_dim", 16)
    OmegaConf.update(config, "model.image_encoder.neck.backbone_channel_list", [128, 64, 32, 16])
    for key, value in changes.items():
        OmegaConf.update(config, f"model.{key.replace('__', '.')}", value)
    torch.manual_seed(7)
    model: SAM2Base = instantiate(config.model, _recursive_=True)
    with torch.no_grad():
        # As they are built, position embeddings are zeros, and so are many biases.
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def pixels(batch: int = 1, side: int = 256) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


TRUNK, NECK = "image_encoder__trunk__", "image_encoder__neck__"

KINDS: dict[str, dict[str, Any]] = {
    "as Meta's": {},
    "the neck's top-down path reaches every level": {NECK + "fpn_top_down_levels": [0, 1, 2, 3]},
    "interpolated linearly": {NECK + "fpn_interp_model": "bilinear", NECK + "fpn_top_down_levels": [0, 2]},
    "global attention from the first stage on": {TRUNK + "global_att_blocks": [2, 4, 11]},
    "windows that fill every stage": {TRUNK + "window_spec": [8, 4, 8, 8]},
    "windows that fill no stage": {TRUNK + "window_spec": [8, 6, 10, 14]},
    "no features of high resolution": {"use_high_res_features_in_sam": False},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@torch.inference_mode()
def test_feature_maps_are_those_of_forward_image(kind: str, fused: bool) -> None:
    model = small_hiera(**KINDS[kind])
    assert is_hiera(model)
    images = pixels(2)
    expected = model.forward_image(images)["backbone_fpn"][-model.num_feature_levels :]

    found = HieraEncoder(model, fused).eval()(images)

    assert len(found) == model.num_feature_levels
    for one, other in zip(found, expected, strict=True):
        assert one.is_contiguous()
        torch.testing.assert_close(one, other, atol=2e-5 * float(other.abs().max()), rtol=0)


@torch.inference_mode()
def test_a_compiler_takes_it_in_one_piece() -> None:
    encoder = HieraEncoder(small_hiera(), fused=False).eval()
    # Only what torch.compile reads is tried here, without generating code.
    traced = torch.compile(encoder, fullgraph=True, dynamic=False, backend="eager")

    for one, other in zip(traced(pixels()), encoder(pixels()), strict=True):
        torch.testing.assert_close(one, other)


@torch.inference_mode()
def test_bfloat16_is_as_near_to_float32_as_forward_image_in_bfloat16() -> None:
    images = pixels()
    exact = small_hiera().forward_image(images)["backbone_fpn"]
    rounded = small_hiera().to(torch.bfloat16).forward_image(images.bfloat16())["backbone_fpn"]
    engine = Engine(small_hiera(), CPU, torch.bfloat16)

    found = engine._encode(images.bfloat16())

    for one, other, right in zip(found, rounded, exact[-3:], strict=True):
        error, usual = (one - right).norm() / right.norm(), (other - right).norm() / right.norm()
        assert error < 1.1 * usual


@torch.inference_mode()
def test_an_engine_shares_the_models_weights() -> None:
    model = small_hiera()
    engine = Engine(model, CPU)
    shared = {parameter.data_ptr() for parameter in model.parameters()}

    assert isinstance(engine._encode, HieraEncoder)
    assert {parameter.data_ptr() for parameter in engine._encode.parameters()} <= shared


@pytest.mark.parametrize(
    "changes",
    [
        {NECK + "fuse_type": "avg"},
        {NECK + "kernel_size": 3, NECK + "padding": 1},
        {TRUNK + "window_spec": [7, 4, 14, 7]},
        {TRUNK + "q_stride": [4, 4], TRUNK + "q_pool": 1},
    ],
    ids=["averages", "wide kernels", "odd windows that are pooled", "wide pools"],
)
def test_a_model_of_another_kind_keeps_forward_image(changes: dict[str, Any]) -> None:
    assert not is_hiera(small_hiera(**changes))


@torch.inference_mode()
def test_an_engine_runs_forward_image_where_it_must() -> None:
    model = small_hiera(**{NECK + "fuse_type": "avg"})
    expected = model.forward_image(pixels())["backbone_fpn"]

    found = Engine(model, CPU)._encode(pixels())

    for one, other in zip(found, expected[-3:], strict=True):
        torch.testing.assert_close(one, other)


def test_fused_layers_are_for_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fuses(CPU, torch.float32)
    assert not fuses(torch.device("cuda"), torch.float32)
    assert fuses(CPU, torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not fuses(CPU, torch.float32)
