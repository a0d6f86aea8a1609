"""Prompts as objects: who can be decoded with whom."""

from typing import Any

import numpy as np
import pytest
import torch
from sam2.utils.transforms import SAM2Transforms

from deployments.messages.prompt import Prompt
from deployments.model.prompt_batches import PromptedObject, decodable_together, prompted_objects

MASK = np.zeros((1, 256, 256), np.float32)
CLICK: dict[str, Any] = {"point_coords": [[1, 2]], "point_labels": [1]}
TWO_CLICKS: dict[str, Any] = {"point_coords": [[1, 2], [3, 4]], "point_labels": [1, 0]}


def objects_of(*prompts: dict[str, Any]) -> list[PromptedObject]:
    return [
        one for item, fields in enumerate(prompts) for one in prompted_objects(item, Prompt(**fields), (90, 160), 1024)
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CLICK, {"point_coords": [[8, 9]], "point_labels": [0]}),
        (CLICK, {"point_coords": [[0.5, 0.5]], "point_labels": [1], "normalize_coords": False}),
        (TWO_CLICKS, {"box": [1, 2, 3, 4]}),
        ({}, {}),
        ({"mask_input": MASK}, {"mask_input": MASK + 1}),
    ],
)
def test_what_is_alike_is_decoded_together(one: dict[str, Any], other: dict[str, Any]) -> None:
    [together] = decodable_together(objects_of(one, other), at_most=2)

    assert [which.item for which in together] == [0, 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CLICK, TWO_CLICKS),
        (CLICK, {}),
        (CLICK, {**CLICK, "mask_input": MASK}),
        (CLICK, {**CLICK, "multimask_output": False}),
        ({}, {"mask_input": MASK}),
    ],
)
def test_what_differs_is_not(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert [len(together) for together in decodable_together(objects_of(one, other), at_most=2)] == [1, 1]


def test_no_run_has_more_objects_than_allowed() -> None:
    boxes = {"box": [[0, 0, 1, 1]] * 3}

    runs = list(decodable_together(objects_of(boxes, TWO_CLICKS, boxes, CLICK), at_most=4))

    assert [[one.item for one in run] for run in runs] == [[0, 0, 0, 1], [2, 2, 2], [3]]


def test_an_object_has_its_box_its_points_and_the_mask_that_serves_all() -> None:
    fields: dict[str, Any] = {
        "box": [[0, 0, 16, 9], [16, 9, 32, 18]],
        "point_coords": [[[8, 9]], [[160, 90]]],
        "point_labels": [[1], [0]],
        "mask_input": MASK,
    }

    _, second = objects_of(fields)

    assert second.coords is not None
    assert second.labels is not None
    assert second.mask is not None
    expected = np.array([[102.4, 102.4], [204.8, 204.8], [1024, 1024]], np.float32)
    np.testing.assert_allclose(second.coords, expected, rtol=1e-6)
    assert second.labels.tolist() == [2, 3, 0]
    assert second.mask.shape == (1, 256, 256)


@pytest.mark.parametrize("normalize", [True, False])
def test_coordinates_are_bit_for_bit_those_of_sam2s_transforms(normalize: bool) -> None:
    coords = np.random.default_rng(0).uniform(-50, 5000 if normalize else 1.5, (1000, 2)).astype(np.float32)
    prompt = Prompt(point_coords=coords, point_labels=np.ones(1000), normalize_coords=normalize)

    [one] = prompted_objects(0, prompt, (1367, 911), 1024)

    transforms = SAM2Transforms(resolution=1024, mask_threshold=0.0)
    expected = transforms.transform_coords(torch.tensor(coords), normalize=normalize, orig_hw=(1367, 911))
    np.testing.assert_array_equal(one.coords, expected.numpy())
