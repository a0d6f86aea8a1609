"""Prompt's rules and Segmentation's views."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deployments.errors import InvalidPrompt
from deployments.messages.arrays import FloatArray
from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import Segmentation, sorted_segmentation

BuildSegmentation = Callable[..., Segmentation]


def mask(*leading: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(0, 5, (*leading, 256, 256)).astype(np.float32)


POINTS: dict[str, Any] = {"point_coords": [[10, 20], [30, 40]], "point_labels": [1, 0]}

# ---- what is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        # points
        ({"point_coords": []}, "point_coords: is empty"),
        ({"point_coords": [[1, 2], [3]], "point_labels": [1, 1]}, "point_coords: the rows have different lengths"),
        ({"point_coords": [["a", "b"]], "point_labels": [1]}, "point_coords: must hold numbers only"),
        ({"point_coords": [["1", "2"]], "point_labels": [1]}, "point_coords: must hold numbers only"),
        ({"point_coords": [[None, 1]], "point_labels": [1]}, "point_coords: must hold numbers only"),
        ({"point_coords": [[True, False]], "point_labels": [1]}, "point_coords: must hold numbers only"),
        ({"point_coords": [[{}, {}]], "point_labels": [1]}, "point_coords: must hold numbers only"),
        ({"point_coords": [[1 + 2j, 0]], "point_labels": [1]}, "point_coords: must hold numbers only"),
        ({"point_coords": [[10**40, 1]], "point_labels": [1]}, "point_coords: must hold numbers only"),
        ({"point_coords": [[float("nan"), 1]], "point_labels": [1]}, "point_coords: must be finite"),
        ({"point_coords": [[float("inf"), 1]], "point_labels": [1]}, "point_coords: must be finite"),
        ({"point_coords": [[1e39, 1]], "point_labels": [1]}, "point_coords: must be finite"),
        ({"point_coords": [[-1e300, 1]], "point_labels": [1]}, "point_coords: must be finite"),
        ({"point_coords": 5, "point_labels": [1]}, "point_coords: must be N×2 or B×N×2, is a single number"),
        ({"point_coords": [1, 2], "point_labels": [1]}, "point_coords: must be N×2 or B×N×2, is 2"),
        ({"point_coords": [[1, 2, 3]], "point_labels": [1]}, "point_coords: must be N×2 or B×N×2, is 1×3"),
        ({"point_coords": [[[[1, 2]]]], "point_labels": [1]}, "point_coords: must be N×2 or B×N×2, is 1×1×1×2"),
        # labels
        ({"point_coords": [[1, 2]]}, "point_labels: must be given together with point_coords"),
        ({"point_labels": [1]}, "point_coords: must be given together with point_labels"),
        ({"point_coords": [[1, 2]], "point_labels": None}, "point_labels: must be given together with point_coords"),
        ({"point_coords": [[1, 2]], "point_labels": []}, "point_labels: is empty"),
        ({"point_coords": [[1, 2]], "point_labels": ["1"]}, "point_labels: must hold numbers only"),
        ({"point_coords": [[1, 2]], "point_labels": 1}, "point_labels: must be N or B×N, is a single number"),
        ({"point_coords": [[1, 2]], "point_labels": [[[1]]]}, "point_labels: must be N or B×N, is 1×1×1"),
        ({"point_coords": [[1, 2]], "point_labels": [4]}, "point_labels: unknown label 4; known labels are -1 padding"),
        ({"point_coords": [[1, 2]], "point_labels": [-2]}, "point_labels: unknown label -2"),
        ({"point_coords": [[1, 2]], "point_labels": [0.5]}, "point_labels: unknown label 0.5"),
        ({"point_coords": [[1, 2]], "point_labels": [float("nan")]}, "point_labels: must be finite"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 0]}, "point_labels: must be 1 to match point_coords, is 2"),
        (
            {"point_coords": [[1, 2], [3, 4]], "point_labels": [1]},
            "point_labels: must be 2 to match point_coords, is 1",
        ),
        ({"point_coords": [[1, 2]], "point_labels": [[1]]}, "point_labels: must be 1 to match point_coords, is 1×1"),
        ({"point_coords": [[[1, 2]]], "point_labels": [1]}, "point_labels: must be 1×1 to match point_coords, is 1"),
        # box
        ({"box": []}, "box: is empty"),
        ({"box": 7}, "box: must be [x0, y0, x1, y1] or B×4, is a single number"),
        ({"box": [1, 2, 3]}, "box: must be [x0, y0, x1, y1] or B×4, is 3"),
        ({"box": [1, 2, 3, 4, 5]}, "box: must be [x0, y0, x1, y1] or B×4, is 5"),
        ({"box": [[1, 2], [3, 4]]}, "box: must be [x0, y0, x1, y1] or B×4, is 2×2"),
        ({"box": [[1, 2, 3, 4, 5]]}, "box: must be [x0, y0, x1, y1] or B×4, is 1×5"),
        ({"box": [[[1, 2, 3, 4]]]}, "box: must be [x0, y0, x1, y1] or B×4, is 1×1×4"),
        ({"box": ["a", "b", "c", "d"]}, "box: must hold numbers only"),
        ({"box": [0, 0, float("inf"), 1]}, "box: must be finite"),
        ({"box": [5, 0, 4, 1]}, "box: must be [x0, y0, x1, y1] with x0 ≤ x1 and y0 ≤ y1"),
        ({"box": [0, 5, 1, 4]}, "box: must be [x0, y0, x1, y1] with x0 ≤ x1 and y0 ≤ y1"),
        ({"box": [[0, 0, 1, 1], [5, 0, 4, 1]]}, "box: must be [x0, y0, x1, y1] with x0 ≤ x1 and y0 ≤ y1"),
        # mask_input
        ({"mask_input": []}, "mask_input: is empty"),
        ({"mask_input": mask()}, "mask_input: must be 1×256×256 or B×1×256×256, is 256×256"),
        ({"mask_input": mask(2)}, "mask_input: must be 1×256×256 or B×1×256×256, is 2×256×256"),
        ({"mask_input": mask(2, 2)}, "mask_input: must be 1×256×256 or B×1×256×256, is 2×2×256×256"),
        ({"mask_input": mask(1, 1, 1)}, "mask_input: must be 1×256×256 or B×1×256×256, is 1×1×1×256×256"),
        ({"mask_input": np.zeros((1, 128, 128))}, "mask_input: must be 1×256×256 or B×1×256×256, is 1×128×128"),
        ({"mask_input": np.zeros((1, 256, 255))}, "mask_input: must be 1×256×256 or B×1×256×256, is 1×256×255"),
        ({"mask_input": [0]}, "mask_input: must be 1×256×256 or B×1×256×256, is 1"),
        ({"mask_input": np.zeros(256 * 256)}, "mask_input: must be 1×256×256 or B×1×256×256, is 65536"),
        ({"mask_input": np.full((1, 256, 256), np.nan)}, "mask_input: must be finite"),
        ({"mask_input": np.full((1, 256, 256), "0")}, "mask_input: must hold numbers only"),
        # objects that do not agree
        (
            {"point_coords": [[[1, 2]], [[3, 4]]], "point_labels": [[1], [1]], "box": [0, 0, 1, 1]},
            "box: the number of objects differs: point_coords has 2, box has 1",
        ),
        (
            {"point_coords": [[[1, 2]], [[3, 4]]], "point_labels": [[1], [1]], "box": [[0, 0, 1, 1]] * 3},
            "box: the number of objects differs: point_coords has 2, box has 3",
        ),
        (
            {"box": [[0, 0, 1, 1]] * 3, "mask_input": mask(2, 1)},
            "mask_input: the number of objects differs: box has 3, mask_input has 2",
        ),
        ({**POINTS, "mask_input": mask(2, 1)}, "mask_input: the number of objects differs"),
        ({**POINTS, "box": [[0, 0, 1, 1]] * 2}, "box: the number of objects differs: point_coords has 1, box has 2"),
    ],
)
def test_a_bad_prompt_is_refused_naming_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidPrompt) as refused:
        Prompt(**fields)

    assert refused.value.message.startswith(message)


# ---- what is accepted


def test_no_prompt_at_all_is_legal() -> None:
    prompt = Prompt()

    assert (prompt.num_objects, prompt.num_points, prompt.num_masks, prompt.has_object_axis) == (1, 0, 3, False)
    assert (prompt.batched_points(), prompt.batched_boxes(), prompt.batched_masks()) == (None, None, None)


@pytest.mark.parametrize("container", [list, tuple, np.array, lambda rows: np.asfortranarray(rows, np.float64)])
def test_any_array_like_is_kept_as_float32_and_int32(container: Callable[[Any], Any]) -> None:
    prompt = Prompt(point_coords=container([[10, 20], [30, 40]]), point_labels=container([1, 0]))

    assert prompt.point_coords is not None
    assert prompt.point_labels is not None
    assert prompt.point_coords.dtype == np.float32
    assert prompt.point_labels.dtype == np.int32
    assert prompt.point_coords.tolist() == [[10, 20], [30, 40]]
    assert prompt.point_labels.tolist() == [1, 0]


@pytest.mark.parametrize("label", [-1, 0, 1, 2, 3])
def test_every_label_that_sam2_defines_is_accepted(label: int) -> None:
    assert Prompt(point_coords=[[1, 2]], point_labels=[label]).num_points == 1


@pytest.mark.parametrize("box", [[5, 5, 5, 5], [-10, -10, 4000, 4000]])
def test_a_box_may_be_a_point_or_reach_beyond_the_image(box: list[int]) -> None:
    assert Prompt(box=box).box is not None


@pytest.mark.parametrize(
    ("fields", "num_objects", "has_object_axis"),
    [
        (POINTS, 1, False),
        ({"box": [0, 0, 1, 1]}, 1, False),
        ({"mask_input": mask(1)}, 1, False),
        ({**POINTS, "box": [0, 0, 1, 1], "mask_input": mask(1)}, 1, False),
        ({"point_coords": [[[1, 2]]], "point_labels": [[1]]}, 1, True),
        ({"box": [[0, 0, 1, 1]]}, 1, True),
        ({"mask_input": mask(1, 1)}, 1, True),
        ({**POINTS, "box": [[0, 0, 1, 1]]}, 1, True),
        ({"point_coords": [[[1, 2]]] * 4, "point_labels": [[1]] * 4}, 4, True),
        ({"box": [[0, 0, 1, 1]] * 3}, 3, True),
        ({"mask_input": mask(2, 1)}, 2, True),
        ({"box": [[0, 0, 1, 1]] * 3, "mask_input": mask(1)}, 3, True),
        ({"box": [[0, 0, 1, 1]] * 3, "mask_input": mask(1, 1)}, 3, True),
        ({"box": [[0, 0, 1, 1]] * 2, "mask_input": mask(2, 1)}, 2, True),
        ({"point_coords": [[[1, 2]]] * 2, "point_labels": [[1]] * 2, "box": [[0, 0, 1, 1]] * 2}, 2, True),
    ],
)
def test_the_object_axis(fields: dict[str, Any], num_objects: int, has_object_axis: bool) -> None:
    prompt = Prompt(**fields)

    assert (prompt.num_objects, prompt.has_object_axis) == (num_objects, has_object_axis)
    assert prompt.num_masks == 3 * num_objects
    assert Prompt(**fields, multimask_output=False).num_masks == num_objects


def test_the_batched_views_lead_with_the_object_axis() -> None:
    prompt = Prompt(**POINTS, box=[0, 0, 9, 9], mask_input=mask(1))

    points, boxes, masks = prompt.batched_points(), prompt.batched_boxes(), prompt.batched_masks()

    assert points is not None
    assert boxes is not None
    assert masks is not None
    assert [points[0].shape, points[1].shape, boxes.shape, masks.shape] == [
        (1, 2, 2),
        (1, 2),
        (1, 4),
        (1, 1, 256, 256),
    ]


def test_points_are_counted_over_all_objects() -> None:
    assert Prompt(point_coords=np.zeros((4, 3, 2)), point_labels=np.ones((4, 3))).num_points == 12


@pytest.mark.parametrize("objects", [(), (1,), (2,)])
def test_the_first_mask_of_a_three_mask_answer_is_used(objects: tuple[int, ...]) -> None:
    logits = mask(*objects, 3)

    prompt = Prompt(mask_input=logits)

    assert prompt.mask_input is not None
    np.testing.assert_array_equal(prompt.mask_input, logits[..., :1, :, :])


def test_three_objects_of_one_mask_each_stay_three_objects() -> None:
    logits = mask(3, 1)

    batched = Prompt(mask_input=logits).batched_masks()

    assert batched is not None
    np.testing.assert_array_equal(batched, logits)


def test_a_prompt_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Prompt().box = None  # type: ignore[misc]


def test_a_prompt_survives_pickling() -> None:
    points: dict[str, Any] = {"point_coords": [[0.25, 0.5], [1, 1]], "point_labels": [1, 0]}
    prompt = Prompt(**points, box=[0, 0, 1, 0.5], mask_input=mask(1), multimask_output=False, normalize_coords=False)

    copy = pickle.loads(pickle.dumps(prompt))

    assert vars(copy).keys() == vars(prompt).keys()
    for name, value in vars(prompt).items():
        np.testing.assert_array_equal(getattr(copy, name), value)


@pytest.mark.parametrize(
    ("field", "largest", "given"),
    [
        ("point_coords", "200", {"point_coords": [[0.5, 0.5], [200, 0.5]], "point_labels": [1, 0]}),
        ("point_coords", "1.75", {"point_coords": [[[0.5, 1.75]], [[0, 0]]], "point_labels": [[1], [1]]}),
        ("box", "30", {"box": [[0, 0, 1, 1], [0, 0, 1, 30]]}),
    ],
)
def test_pixels_are_not_taken_for_fractions(field: str, largest: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidPrompt, match=rf"{field}: has {largest}, but with normalize_coords=false"):
        Prompt(**given, normalize_coords=False)
    assert Prompt(**given).normalize_coords


def test_a_click_may_lie_a_little_outside_and_padding_anywhere() -> None:
    prompt = Prompt(
        [[-0.5, 1.5], [4000.0, 4000.0]],
        [1, -1],
        box=[-1, -1, 1.5, 1.5],
        mask_input=mask(1) + 30,
        normalize_coords=False,
    )
    assert not prompt.normalize_coords


# ---- Segmentation


def test_masks_are_sorted_by_score_within_each_object() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.8]], np.float32)
    logits = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1) * np.ones((1, 1, 256, 256), np.float32)

    segmentation = sorted_segmentation("image", "model", (10, 10), logits, scores, has_object_axis=True)

    np.testing.assert_array_equal(segmentation.scores, np.array([[0.9, 0.5, 0.1], [0.8, 0.7, 0.2]], np.float32))
    assert segmentation.low_res_logits[:, :, 0, 0].tolist() == [[1, 2, 0], [5, 3, 4]]


def test_equal_scores_keep_the_models_order() -> None:
    scores = np.array([[0.5, 0.5, 0.5]], np.float32)
    logits = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1) * np.ones((1, 1, 256, 256), np.float32)

    segmentation = sorted_segmentation("image", "model", (10, 10), logits, scores, has_object_axis=False)

    assert segmentation.logits[:, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("objects", "has_object_axis", "leading"), [(1, False, (3,)), (1, True, (1, 3)), (4, True, (4, 3))]
)
def test_the_object_axis_leads_exactly_when_the_prompt_had_one(
    segmentation_of: BuildSegmentation, objects: int, has_object_axis: bool, leading: tuple[int, ...]
) -> None:
    segmentation = segmentation_of((30, 40), objects=objects, has_object_axis=has_object_axis)

    assert segmentation.scores.shape == leading
    assert segmentation.logits.shape == (*leading, 256, 256)
    assert segmentation.masks().shape == (*leading, 30, 40)


def test_only_the_returned_logits_are_clamped(segmentation_of: BuildSegmentation) -> None:
    segmentation = segmentation_of((256, 256), scale=50.0)

    assert np.abs(segmentation.logits).max() == 32
    np.testing.assert_array_equal(segmentation.logits, segmentation.low_res_logits[0].clip(-32, 32))
    np.testing.assert_array_equal(segmentation.masks(return_logits=True), segmentation.low_res_logits[0])


def test_masks_are_true_where_their_logits_are_above_zero(segmentation_of: BuildSegmentation) -> None:
    segmentation = segmentation_of((70, 50))

    masks, logits = segmentation.masks(), segmentation.masks(return_logits=True)

    assert masks.dtype == np.bool_
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(masks, logits > 0)


def test_a_logit_of_exactly_zero_is_background() -> None:
    zero = np.zeros((1, 1, 256, 256), np.float32)

    assert not Segmentation("image", "model", (9, 9), zero, np.ones((1, 1), np.float32), False).masks().any()


def test_a_segmentation_survives_pickling(segmentation_of: BuildSegmentation) -> None:
    segmentation = segmentation_of((30, 40), objects=2, has_object_axis=True)

    copy = pickle.loads(pickle.dumps(segmentation))

    assert vars(copy).keys() == vars(segmentation).keys()
    for name, value in vars(segmentation).items():
        np.testing.assert_array_equal(getattr(copy, name), value)


def test_an_answers_logits_are_the_next_prompts_mask_input(segmentation_of: BuildSegmentation) -> None:
    answer = segmentation_of((30, 40), objects=2, has_object_axis=True)

    prompt = Prompt(box=[[0, 0, 9, 9], [5, 5, 20, 20]], mask_input=answer.logits)

    assert prompt.num_objects == 2
