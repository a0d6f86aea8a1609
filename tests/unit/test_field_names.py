"""Names that are nearly ours are refused, others are ignored."""

import pytest

from deployments.errors import InvalidRequest
from deployments.parsing.http.field_names import check_names, meant_by

SEGMENT = {
    "image",
    "image_id",
    "video_id",
    "frame_index",
    "model_id",
    "point_coords",
    "point_labels",
    "box",
    "mask_input",
    "multimask_output",
    "return_logits",
    "normalize_coords",
    "response_format",
    "tolerance",
    "mask_index",
}
EVERYTHING = {"image", "image_id", "model_id", "response_format", "points_per_side", "pred_iou_thresh"}

MEANT = {
    "point_coords[0][]": "point_coords",
    "point_coords[]": "point_coords",
    "point_coords.0": "point_coords",
    "pointCoords": "point_coords",
    "point-coords": "point_coords",
    "point_coord": "point_coords",
    "points": "point_coords",
    "points[]": "point_coords",
    "point_label": "point_labels",
    "labels": "point_labels",
    "boxes": "box",
    "box[]": "box",
    "Box": "box",
    "bbox": "box",
    "Image": "image",
    "image[]": "image",
    "images": "image",
    "imageId": "image_id",
    "mask": "mask_input",
    "maskinput": "mask_input",
    "normalise_coords": "normalize_coords",
    "response-format": "response_format",
    "ResponseFormat": "response_format",
    "multimask": "multimask_output",
    "model": "model_id",
}


@pytest.mark.parametrize(("name", "meant"), MEANT.items(), ids=MEANT)
def test_a_name_that_is_nearly_ours_is_refused_with_the_one_that_is(name: str, meant: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_names(["image", name], [], SEGMENT)
    assert refused.value.message == f"{name}: is not a field; did you mean {meant}?"


@pytest.mark.parametrize(
    "name",
    [
        "safety_check",
        "seed",
        "user",
        "user_id",
        "session_id",
        "request_id",
        "timeout",
        "width",
        "extra",
        "file",
        "id",
        "x",
        "",
        "[]",
        "é",
        "num_inference_steps",
        "csrf_token",
    ],
)
def test_other_names_are_ignored(name: str) -> None:
    check_names([name], [name], SEGMENT)
    check_names([name], [name], EVERYTHING)


def test_our_own_names_are_never_taken_for_each_other() -> None:
    for name in SEGMENT:
        assert meant_by(name, SEGMENT) == name
    check_names(SEGMENT, [], SEGMENT)


@pytest.mark.parametrize("name", ["point_coords", "box", "points", "mask_input"])
def test_a_prompt_is_refused_where_masks_would_come_without_it(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a field of this route, whose prompts are none"):
        check_names([name], [], EVERYTHING)
    # Embedding takes no prompt, and answers with no mask.
    check_names([name], [], {"image", "model_id"})


def test_prompts_of_a_video_are_refused_for_an_image() -> None:
    with pytest.raises(InvalidRequest, match=r"^prompts: .* point_coords, point_labels, box, mask_input$"):
        check_names(["prompts"], [], SEGMENT)


@pytest.mark.parametrize(
    ("name", "meant"), [("response_format", "response_format"), ("model", "model_id"), ("box[]", "box")]
)
def test_a_field_in_the_url_is_refused(name: str, meant: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_names([], [name], SEGMENT)
    assert refused.value.message == f"{name}: is in the URL; send {meant} in the body"


def test_a_very_long_name_is_not_compared_in_full() -> None:
    check_names(["x" * 2_000_000], [], SEGMENT)


def test_of_a_url_with_very_many_names_some_are_compared() -> None:
    names = (f"x{index}" for index in range(10**6))
    check_names([], names, SEGMENT)
    assert next(names) == "x64"
