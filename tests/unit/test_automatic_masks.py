"""Segment everything, against SAM 2's own generator on the same weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from torchvision.ops import nms

from deployments.encoding.records import bbox
from deployments.errors import InvalidPrompt, TooLarge
from deployments.messages.everything import AutomaticMasks, AutomaticPrompt
from deployments.model import automatic_masks
from deployments.model.automatic_masks import AutomaticMaskGenerator, non_maximum_suppression
from deployments.model.checkpoints import load_model
from deployments.model.engine import Engine, ImageEmbedding
from deployments.settings import ModelSettings
from harness.images import iou, picture

EXAMPLE = Path(__file__).parents[2] / "deployments" / "model" / "demo" / "example.png"

Options = Mapping[str, Any]

# The bundled model is not sure of itself: with Meta's thresholds little would be left to compare.
LENIENT: Options = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.7}


Pixels = np.ndarray[Any, Any]

EMBEDDINGS: dict[tuple[Any, ...], ImageEmbedding] = {}
"""Of the images that several tests search; by their shapes and bytes."""


def embedded(engine: Engine, pixels: Pixels) -> ImageEmbedding:
    key = (pixels.shape, pixels.tobytes())
    if key not in EMBEDDINGS:
        [EMBEDDINGS[key]] = engine.embed([pixels])
    return EMBEDDINGS[key]


def everything(engine: Engine, image: Pixels, prompt: AutomaticPrompt) -> AutomaticMasks:
    generator = AutomaticMaskGenerator(engine, prompt, image.shape[:2])
    for crop in generator.crops:
        for _ in generator.steps(embedded(engine, image[crop.pixels]), crop):
            pass
    return generator.finish("id", "model")


@pytest.fixture(scope="module")
def reference() -> Callable[..., list[dict[str, Any]]]:
    """Meta's generator, whose encoder runs once for each image."""
    # A model of its own: the engine takes parts off the one that it is given.
    model = load_model(ModelSettings(model_id="sam2-demo"), lambda *_: None).eval()
    states: dict[tuple[Any, ...], dict[str, Any]] = {}

    def generate(image: Pixels, **options: Any) -> list[dict[str, Any]]:
        generator = SAM2AutomaticMaskGenerator(model, **options)
        predictor = generator.predictor
        run_encoder = predictor.set_image

        def set_image(pixels: Pixels) -> None:
            key = (pixels.shape, pixels.tobytes())
            if key not in states:
                run_encoder(pixels)
                states[key] = {name: vars(predictor)[name] for name in ("_features", "_orig_hw", "_is_image_set")}
            vars(predictor).update(states[key])

        predictor.set_image = set_image
        found: list[dict[str, Any]] = generator.generate(image)
        return found

    return generate


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (None, {"points_per_side": 4, **LENIENT}),
        (None, {"points_per_side": 3, "points_per_batch": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.9}),
        (None, {"points_per_side": 4, "box_nms_thresh": 0.3, "stability_score_offset": 2.0, **LENIENT}),
        (
            (90, 61),
            {
                "points_per_side": 4,
                "crop_n_layers": 1,
                "crop_n_points_downscale_factor": 2,
                "crop_overlap_ratio": 0.5,
                **LENIENT,
            },
        ),
        (None, {"points_per_side": 2, "stability_score_thresh": 1.0}),
    ],
    ids=["grid", "batches", "duplicates", "crops", "nothing good enough"],
)
def test_the_same_masks_as_metas_generator(
    size: tuple[int, int] | None,
    options: Options,
    demo_engine: Engine,
    reference: Callable[..., list[dict[str, Any]]],
) -> None:
    image = np.array(picture(*size, seed=5) if size else Image.open(EXAMPLE).convert("RGB"))
    found = everything(demo_engine, image, AutomaticPrompt(**options))
    records = reference(image, **options)
    assert found.num_masks == len(records)
    assert bool(records) == (options["stability_score_thresh"] < 1)
    for index, record in enumerate(records):
        assert iou(found.mask(index), record["segmentation"]) > 0.99
        fields = found.facts(index)
        assert fields["predicted_iou"] == pytest.approx(record["predicted_iou"], abs=1e-3)
        assert fields["stability_score"] == pytest.approx(record["stability_score"], abs=2e-3)
        np.testing.assert_allclose(fields["point_coords"], record["point_coords"], atol=1e-3)
        assert fields["crop_box"] == record["crop_box"]
        # COCO's box is a pixel wider and higher than SAM 2's, which goes from the first pixel to the last.
        x, y, width, height = bbox(found.mask(index))
        np.testing.assert_allclose([x, y, width - 1, height - 1], record["bbox"], atol=1)


def test_small_holes_are_filled_and_small_islands_removed() -> None:
    import torch

    logits = np.full((1, 256, 256), -3, np.float32)
    logits[0, 50:150, 50:150] = 4
    logits[0, 80:83, 80:83] = -1
    logits[0, 100:120, 100:120] = -2
    logits[0, 200:203, 200:203] = 5
    cleaned = automatic_masks._without_small_regions(torch.from_numpy(logits), 9).numpy()
    assert (cleaned[0, 80:83, 80:83] == 10).all()
    assert (cleaned[0, 200:203, 200:203] == -10).all()
    assert (cleaned != logits).sum() == 18
    assert (automatic_masks._without_small_regions(torch.from_numpy(logits), 8).numpy() == logits).all()
    # An island in a hole: both are small, and each is turned.
    nested = np.full((1, 256, 256), 4, np.float32)
    nested[0, 60:66, 60:66] = -1
    nested[0, 62:64, 62:64] = 3
    cleaned = automatic_masks._without_small_regions(torch.from_numpy(nested), 40).numpy()
    assert (cleaned[0, 60:66, 60:66] == 10).sum() == 32
    assert (cleaned[0, 62:64, 62:64] == -10).all()
    # Regions hang together by corners.
    diagonal = np.where(np.eye(256, dtype=bool), 2, -2).astype(np.float32)[None]
    assert (automatic_masks._without_small_regions(torch.from_numpy(diagonal), 255).numpy() == diagonal).all()


def test_cleaning_is_part_of_the_search(demo_engine: Engine) -> None:
    image = np.asarray(Image.open(EXAMPLE).convert("RGB"))
    prompt = AutomaticPrompt(
        points_per_side=6, pred_iou_thresh=0.3, stability_score_thresh=0.5, min_mask_region_area=40
    )
    cleaned = everything(demo_engine, image, prompt).low_res_logits
    assert len(cleaned)
    assert (abs(cleaned) == automatic_masks.CLEANED_LOGIT).any()


def test_too_many_masks_are_refused(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.asarray(picture(90, 61))
    prompt = AutomaticPrompt(points_per_side=3, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1)
    found = everything(demo_engine, image, prompt).num_masks
    assert found > 12
    generator = AutomaticMaskGenerator(demo_engine, prompt, (61, 90))
    for _ in generator.steps(embedded(demo_engine, image), generator.crops[0]):
        continue
    numbers = found * (61 * 90 + 256 * 256)
    assert generator.finish("id", "model", numbers).num_masks == found
    with pytest.raises(TooLarge, match="raise the thresholds"):
        generator.finish("id", "model", numbers - 1)
    monkeypatch.setattr(automatic_masks, "MAX_CANDIDATES", found - 1)
    with pytest.raises(TooLarge, match=r"^pred_iou_thresh: "):
        everything(demo_engine, image, prompt)


def test_each_step_is_one_run_of_the_decoder_or_a_few_masks(
    demo_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_engine, "objects_at_once", 4)
    monkeypatch.setattr(automatic_masks, "PIXELS_PER_STEP", 2 * 90 * 61)
    runs: list[int] = []
    decode = demo_engine._run_decoder

    def counted(embeddings: Any, objects: Any) -> Any:
        runs.append(len(objects))
        return decode(embeddings, objects)

    monkeypatch.setattr(demo_engine, "_run_decoder", counted)
    image = np.asarray(picture(90, 61))
    generator = AutomaticMaskGenerator(demo_engine, AutomaticPrompt(points_per_side=3, pred_iou_thresh=0), (61, 90))
    steps = list(generator.steps(embedded(demo_engine, image), generator.crops[0]))
    assert runs == [4, 4, 1]
    # Nine points have three masks each; two are looked at in one step.
    assert len(steps) == 3 + 6 + 6 + 2


def test_too_many_crops_of_a_small_image_are_refused(demo_engine: Engine) -> None:
    with pytest.raises(InvalidPrompt, match=r"^crop_n_layers: "):
        AutomaticMaskGenerator(demo_engine, AutomaticPrompt(crop_n_layers=3, crop_overlap_ratio=0), (5, 5))
    AutomaticMaskGenerator(demo_engine, AutomaticPrompt(crop_n_layers=3), (64, 64))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"points_per_side": 0}, "points_per_side"),
        ({"points_per_side": 257}, "points_per_side"),
        ({"points_per_side": 3.5}, "points_per_side"),
        ({"points_per_side": "32"}, "points_per_side"),
        ({"points_per_side": None}, "points_per_side"),
        ({"points_per_batch": True}, "points_per_batch"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh"),
        ({"stability_score_thresh": 1.01}, "stability_score_thresh"),
        ({"crop_n_layers": 5}, "crop_n_layers"),
        ({"points_per_side": 3, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, "crop_n_points_downscale"),
        ({"min_mask_region_area": -1}, "min_mask_region_area"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidPrompt, match=f"^{named}"):
        AutomaticPrompt(**options)


def test_numbers_of_any_type_are_taken() -> None:
    prompt = AutomaticPrompt(points_per_side=np.int64(8), crop_n_layers=1.0, pred_iou_thresh=1)  # type: ignore[arg-type]
    assert (prompt.points_per_side, prompt.crop_n_layers, prompt.pred_iou_thresh) == (8, 1, 1.0)
    assert [type(value) for value in (prompt.points_per_side, prompt.crop_n_layers)] == [int, int]


def test_points_are_counted_over_all_crops() -> None:
    assert [AutomaticPrompt(crop_n_layers=layers).num_crops for layers in range(4)] == [1, 5, 21, 85]
    assert AutomaticPrompt().num_points == 1024
    assert AutomaticPrompt(points_per_side=8, crop_n_layers=2, crop_n_points_downscale_factor=2).num_points == (
        64 + 4 * 16 + 16 * 4
    )


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_non_maximum_suppression_keeps_what_torchvision_keeps(count: int, threshold: float) -> None:
    """On a coarse grid, so that boxes are alike, empty or exactly at the threshold, and scores equal."""
    rng = np.random.default_rng(count)
    corners, sides = rng.integers(0, 12, (count, 2)), rng.integers(0, 12, (count, 2))
    boxes = torch.from_numpy(np.concatenate([corners, corners + sides], 1)).float()
    scores = torch.from_numpy(rng.integers(0, 20, count) / 20).float()

    kept = non_maximum_suppression(boxes, scores, threshold)

    assert kept.tolist() == nms(boxes, scores, threshold).tolist()
