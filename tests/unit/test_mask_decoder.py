"""The folded mask decoder against sam2's own, on the same weights: seeded random ones, small frames."""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.modeling.sam2_base import SAM2Base
from torch.utils.flop_counter import FlopCounterMode

from deployments.model.checkpoints import DEMO
from deployments.model.mask_decoder import DecodedObjects, Features, FoldedMaskDecoder
from harness.weights import sam2_package

SIDE = 128
"""Of the model's frame: a sixty-fourth of the places at 1024."""

TOLERANCE = 1e-5
"""Of logits of up to 4; the budget is 1e-3 of a trained model's, of up to 32."""

CONFIGS = {
    "SAM 2": sam2_package() / "configs" / "sam2" / "sam2_hiera_t.yaml",
    "SAM 2.1": sam2_package() / "configs" / "sam2.1" / "sam2.1_hiera_t.yaml",
    "demo": DEMO / "sam2_demo.yaml",
}


def model_of(config: Any) -> SAM2Base:
    tree = OmegaConf.load(config)
    OmegaConf.update(tree, "model.image_size", SIDE)
    torch.manual_seed(7)
    model: SAM2Base = instantiate(tree.model, _recursive_=True).eval()
    for parameter in model.sam_mask_decoder.parameters():
        # Untrained biases and scales are zeros and ones, which would hide that one is forgotten.
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return model


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> SAM2Base:
    return model_of(CONFIGS[request.param])


@pytest.fixture(scope="module")
def sam21() -> SAM2Base:
    return model_of(CONFIGS["SAM 2.1"])


def features(model: SAM2Base, seed: int = 0, dtype: torch.dtype = torch.float32) -> Features:
    torch.manual_seed(seed)
    width, side = model.hidden_dim, SIDE // 16
    tensors = (
        torch.randn(1, channels, scale * side, scale * side).to(dtype, memory_format=torch.channels_last)
        for channels, scale in ((width, 1), (width // 8, 4), (width // 4, 2))
    )
    image_embed, *high_res_feats = tensors
    return Features(image_embed, tuple(high_res_feats))


def prompts(
    model: SAM2Base, objects: int = 1, points: int = 1, box: bool = False, mask: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the prompt encoder makes of made-up prompts."""
    torch.manual_seed(100 * objects + points)
    labels = torch.randint(0, 2, (objects, points), dtype=torch.int32)
    boxes = SIDE * torch.rand(objects, 4) if box else None
    masks = 6 * torch.randn(objects, 1, SIDE // 4, SIDE // 4) if mask else None
    of_points = (SIDE * torch.rand(objects, points, 2), labels) if points else None
    with torch.inference_mode():
        sparse, dense = model.sam_prompt_encoder(points=of_points, boxes=boxes, masks=masks)
    return sparse, dense if mask else None


def theirs(
    model: SAM2Base,
    objects: Sequence[Features],
    sparse: torch.Tensor,
    dense: torch.Tensor | None,
    multimask_output: bool,
    offset: torch.Tensor | None = None,
) -> DecodedObjects:
    encoder = model.sam_prompt_encoder
    no_mask = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(len(objects), -1, *encoder.image_embedding_size)
    embeds = torch.cat([one.image_embed for one in objects]).float().contiguous()
    levels = zip(*(one.high_res_feats for one in objects), strict=True)
    with torch.inference_mode():
        found = model.sam_mask_decoder(
            image_embeddings=embeds if offset is None else embeds + offset.reshape(1, -1, 1, 1),
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=no_mask if dense is None else dense,
            multimask_output=multimask_output,
            repeat_image=False,
            high_res_features=[torch.cat(level).float().contiguous() for level in levels],
        )
    return DecodedObjects(*found)


def check(
    model: SAM2Base,
    objects: Sequence[Features],
    of_prompts: tuple[torch.Tensor, torch.Tensor | None],
    multimask_output: bool = True,
    offset: torch.Tensor | None = None,
    together: bool = False,
) -> DecodedObjects:
    decoder = FoldedMaskDecoder(model)
    if together:
        decoder._at_once = None
    with torch.inference_mode():
        found = decoder.decode(objects, *of_prompts, multimask_output, offset)
    expected = theirs(model, objects, *of_prompts, multimask_output, offset)
    for ours, wanted in zip(astuple(found), astuple(expected), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, wanted, atol=TOLERANCE, rtol=TOLERANCE)
    return found


PROMPTS: dict[str, dict[str, Any]] = {
    "nothing": {"points": 0},
    "a point": {},
    "a box": {"points": 0, "box": True},
    "points and a box": {"points": 3, "box": True},
    "a mask": {"points": 0, "mask": True},
    "a point and a mask": {"mask": True},
    "as many points as are folded": {"points": 16},
    "more points than are folded": {"points": 40},
    "16 objects": {"objects": 16},
    "3 objects with a mask each": {"objects": 3, "mask": True},
    "3 objects of many points": {"objects": 3, "points": 40},
}


@pytest.mark.parametrize("multimask_output", [True, False], ids=["three masks", "one mask"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_every_prompt_gives_what_sam2s_decoder_gives(model: SAM2Base, kind: str, multimask_output: bool) -> None:
    of_prompts = prompts(model, **PROMPTS[kind])
    if kind == "nothing":
        of_prompts = of_prompts[0].expand(1, -1, -1), None
    check(model, [features(model)] * len(of_prompts[0]), of_prompts, multimask_output)


@pytest.mark.parametrize("together", [False, True], ids=["one at a time, as on a CPU", "together, as on a GPU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [{}, {"mask": True}, {"points": 40}], ids=["points", "masks", "many points"])
def test_objects_of_several_images(sam21: SAM2Base, together: bool, dtype: torch.dtype, kind: dict[str, Any]) -> None:
    one, other = (features(sam21, seed, dtype) for seed in (1, 2))
    check(sam21, [one, other, one, one], prompts(sam21, 4, **kind), together=together)
    check(sam21, [one] * 4, prompts(sam21, 4, **kind), together=together)


def test_objects_may_share_the_finer_features_alone(sam21: SAM2Base) -> None:
    """As the objects of a video's frame do: each has the frame's features with its own memory."""
    frame = features(sam21)
    objects = [frame._replace(image_embed=features(sam21, seed).image_embed) for seed in (1, 2)]
    for together in (False, True):
        check(sam21, objects, prompts(sam21, 2), together=together)


def test_features_may_lie_in_memory_in_any_order(sam21: SAM2Base) -> None:
    embed, finer = features(sam21)
    plain = Features(embed.contiguous(), tuple(level.contiguous() for level in finer))
    check(sam21, [plain] * 2, prompts(sam21, 2))


def test_an_offset_is_added_to_every_place(sam21: SAM2Base) -> None:
    offset = torch.randn(sam21.hidden_dim)
    check(sam21, [features(sam21)], prompts(sam21), offset=offset)
    check(sam21, [features(sam21)], prompts(sam21, mask=True), offset=offset)


@pytest.mark.parametrize("together", [False, True])
def test_a_mask_that_is_not_stable_gives_way_to_the_best_of_three(sam21: SAM2Base, together: bool) -> None:
    decoder, objects = sam21.sam_mask_decoder, [features(sam21)] * 16
    of_prompts = prompts(sam21, 16)
    first = theirs(sam21, objects, *of_prompts, False).logits
    stability = decoder._get_stability_scores(first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "dynamic_multimask_via_stability", True)
        # Half of these objects' masks are stable.
        patch.setattr(decoder, "dynamic_multimask_stability_thresh", float(stability.median()) + 1e-6)
        found = check(sam21, objects, of_prompts, False, together=together)
        check(sam21, objects, of_prompts, True, together=together)
    kept = (found.logits - first).abs().amax((1, 2, 3)) < TOLERANCE
    assert 4 <= kept.sum() <= 12


def test_a_model_without_finer_features() -> None:
    tree = OmegaConf.load(CONFIGS["SAM 2"])
    OmegaConf.update(tree, "model.image_size", SIDE)
    OmegaConf.update(tree, "model.use_high_res_features_in_sam", False)
    torch.manual_seed(7)
    model = instantiate(tree.model, _recursive_=True).eval()
    objects = [features(model)._replace(high_res_feats=())] * 3
    check(model, objects, prompts(model, 3))


def test_decoding_changes_no_features(sam21: SAM2Base) -> None:
    objects = [features(sam21)]
    before = [tensor.clone() for tensor in (objects[0].image_embed, *objects[0].high_res_feats)]
    first, again = (check(sam21, objects, prompts(sam21)) for _ in range(2))
    assert torch.equal(first.logits, again.logits)
    for tensor, copy in zip((objects[0].image_embed, *objects[0].high_res_feats), before, strict=True):
        assert torch.equal(tensor, copy)


def test_a_click_takes_less_than_three_quarters_of_the_arithmetic(sam21: SAM2Base) -> None:
    objects, of_prompts = [features(sam21)], prompts(sam21)
    decoder = FoldedMaskDecoder(sam21)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        decoder.decode(objects, *of_prompts, True)
    with FlopCounterMode(display=False) as their_counter:
        theirs(sam21, objects, *of_prompts, True)
    assert counter.get_total_flops() < 0.72 * their_counter.get_total_flops()
