"""Prompts of a video: the JSON and the short form, times that stand for frames, masks as run lengths."""

import json
import tracemalloc
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from deployments.encoding.rle import segmentation
from deployments.errors import InvalidPrompt, TooLarge
from deployments.messages.prompt import Prompt
from deployments.messages.rle import decode_rle
from deployments.messages.track import TrackPrompt
from deployments.messages.video import VideoFacts
from deployments.parsing.video import prompts as prompts_module
from deployments.parsing.video.prompts import (
    MAX_NUMBERS,
    MAX_OBJECT_ID,
    TimedPrompt,
    checked_prompts,
    parse_prompts,
    resolve,
    short_form,
)
from deployments.settings import Limits

BOX = [1, 2, 30, 40]
POINTS = {"point_coords": [[3, 4]], "point_labels": [1]}
TIMES = np.arange(10) / 10
FACTS = VideoFacts(width=6, height=4, num_frames=10, fps=10.0, times=TIMES)


def parse(*values: Any, limits: Limits | None = None) -> list[TimedPrompt]:
    return parse_prompts(json.dumps(values), limits or Limits())


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# ---- the JSON


IN_FRAME: dict[str, Any] = {"point_coords": [[0.5, 0.25]], "point_labels": [1], "box": [0, 0, 1, 1]}


def test_each_prompt_becomes_one_with_its_object_and_frame() -> None:
    first, second, third = parse(
        {"object_id": 7, "frame_index": 3, **IN_FRAME, "normalize_coords": False},
        {"time_s": 0.5, "mask": {"size": [2, 3], "counts": [1, 2, 3]}, "box": None, "remove": False},
        {"object_id": 7, "frame_index": 5, "remove": True},
    )
    assert (first.object_id, first.frame_index, first.time_s, first.removes) == (7, 3, None, False)
    assert first.prompt is not None
    assert first.prompt.box is not None
    assert first.prompt.point_coords is not None
    assert (first.prompt.box.tolist(), first.prompt.point_coords.tolist()) == ([0, 0, 1, 1], [[0.5, 0.25]])
    assert not first.prompt.normalize_coords
    assert (second.object_id, second.frame_index, second.time_s, second.prompt) == (1, None, 0.5, None)
    assert second.mask is not None
    assert second.mask.tolist() == [[False, True, False], [True, False, False]]
    assert (third.removes, third.prompt, third.mask) == (True, None, None)


def test_the_largest_numbers_are_accepted_and_fields_may_be_null() -> None:
    [one] = parse({"object_id": MAX_OBJECT_ID, "frame_index": 2**31 - 1, "time_s": None, "mask": None, "box": BOX})
    assert (one.object_id, one.frame_index) == (MAX_OBJECT_ID, 2**31 - 1)
    [one] = parse({"box": BOX})
    assert (one.object_id, one.frame_index) == (1, 0)


BAD_TEXTS = {
    "nothing": ("", "prompts: is not valid JSON"),
    "words": ("left of the tree", "prompts: is not valid JSON"),
    "unclosed": ('[{"box": [1, 2, 3, 4]}', "prompts: is not valid JSON"),
    "deep": ("[" * 2000 + "]" * 2000, "prompts: is not valid JSON"),
    "NaN": ('[{"box": [1, 2, 3, NaN]}]', "prompts: is not valid JSON"),
    "Infinity": ('[{"time_s": Infinity, "box": [1, 2, 3, 4]}]', "prompts: is not valid JSON"),
    "a number beyond float64": ('[{"box": [1, 2, 3, 1e400]}]', "prompts: is not valid JSON"),
    "half a character": ('[{"\\ud800": 1}]', "prompts: is not valid JSON"),
    "null": ("null", "prompts: must be a JSON array of objects"),
    "an object": ('{"box": [1, 2, 3, 4]}', "prompts: must be a JSON array of objects"),
    "a number": ("7", "prompts: must be a JSON array of objects"),
    "a string": ('"box"', "prompts: must be a JSON array of objects"),
    "no prompts": ("[]", "prompts: must be a JSON array of objects, with at least one"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_text_that_is_no_list_of_prompts(case: str) -> None:
    text, message = BAD_TEXTS[case]
    with pytest.raises(InvalidPrompt) as error:
        parse_prompts(text, Limits())
    assert error.value.message.startswith(message)


MASK = {"size": [2, 3], "counts": [6]}
BAD_PROMPTS: dict[str, tuple[Any, str, str]] = {
    "a number": (3, "", "must be a JSON object, is int"),
    "null": (None, "", "must be a JSON object, is NoneType"),
    "a list": ([BOX], "", "must be a JSON object, is list"),
    "nothing": ({}, "point_coords", "is missing"),
    "only nulls": ({"box": None, "mask": None}, "point_coords", "is missing"),
    "only an object": ({"object_id": 4, "frame_index": 2}, "point_coords", "is missing"),
    "an unknown field": ({"bbox": BOX}, "bbox", "is not a field; there are box, frame_index, "),
    "an unknown field beside a good one": ({"box": BOX, "labels": [1]}, "labels", "is not a field"),
    "a field of images only": ({"box": BOX, "multimask_output": True}, "multimask_output", "is not a field"),
    "a long unknown field": ({"x" * 5000: 1}, "x" * 100, "is not a field"),
    "object_id: text": ({"object_id": "1", "box": BOX}, "object_id", "must be a whole number from 0 to"),
    "object_id: true": ({"object_id": True, "box": BOX}, "object_id", "is True"),
    "object_id: a fraction": ({"object_id": 1.5, "box": BOX}, "object_id", "is 1.5"),
    "object_id: a float": ({"object_id": 1.0, "box": BOX}, "object_id", "is 1.0"),
    "object_id: negative": ({"object_id": -1, "box": BOX}, "object_id", "is -1"),
    "object_id: huge": ({"object_id": 2**31, "box": BOX}, "object_id", "is 2147483648"),
    "object_id: beyond 64 bits": ({"object_id": 10**30, "box": BOX}, "object_id", "is 1e+30"),
    "object_id: a list": ({"object_id": [1], "box": BOX}, "object_id", "is list"),
    "frame_index: text": ({"frame_index": "0", "box": BOX}, "frame_index", "is str"),
    "frame_index: false": ({"frame_index": False, "box": BOX}, "frame_index", "is False"),
    "frame_index: a fraction": ({"frame_index": 0.5, "box": BOX}, "frame_index", "is 0.5"),
    "frame_index: negative": ({"frame_index": -1, "box": BOX}, "frame_index", "is -1"),
    "frame_index: huge": ({"frame_index": 10**18, "box": BOX}, "frame_index", "is 1000000000000000000"),
    "time_s: text": ({"time_s": "0.5", "box": BOX}, "time_s", "must be a number of seconds from 0, is str"),
    "time_s: true": ({"time_s": True, "box": BOX}, "time_s", "is True"),
    "time_s: negative": ({"time_s": -0.1, "box": BOX}, "time_s", "is -0.1"),
    "time_s: with frame_index": ({"time_s": 0, "frame_index": 0, "box": BOX}, "time_s", "as well as frame_index"),
    "box: an object": ({"box": {"x": 1}}, "box", "must be a JSON array, is dict"),
    "box: a number": ({"box": 7}, "box", "must be a JSON array, is int"),
    "box: text": ({"box": "1,2,3,4"}, "box", "must be a JSON array, is str"),
    "box: empty": ({"box": []}, "box", "is empty"),
    "box: three numbers": ({"box": [1, 2, 3]}, "box", "must be [x0, y0, x1, y1]"),
    "box: inside out": ({"box": [5, 2, 3, 4]}, "box", "x0 ≤ x1"),
    "box: a string in it": ({"box": [1, 2, 3, "4"]}, "box", "must hold numbers only"),
    "box: null in it": ({"box": [1, 2, 3, None]}, "box", "must hold numbers only"),
    "box: booleans": ({"box": [False, False, True, True]}, "box", "must hold numbers only"),
    "box: objects in it": ({"box": [{}, {}, {}, {}]}, "box", "must hold numbers only"),
    "box: beyond float32": ({"box": [0, 0, 1, 1e300]}, "box", "must be finite"),
    "box: deeper than arrays go": ({"box": nested(70)}, "box", "its rows are of different lengths"),
    "box: very deep": ({"box": nested(900)}, "box", "must hold numbers only"),
    "box: of two objects": ({"box": [BOX, BOX]}, "object_id", "each prompt is for one object; this one has 2"),
    "point_coords: without labels": ({"point_coords": [[1, 2]]}, "point_labels", "must be given together"),
    "point_coords: three columns": ({**POINTS, "point_coords": [[1, 2, 3]]}, "point_coords", "must be N×2"),
    "point_coords: ragged": ({**POINTS, "point_coords": [[1, 2], [3]]}, "point_coords", "of different lengths"),
    "point_coords: one number": ({**POINTS, "point_coords": 5}, "point_coords", "must be a JSON array, is int"),
    "point_labels: without coordinates": ({"point_labels": [1]}, "point_coords", "must be given together"),
    "point_labels: too many": ({**POINTS, "point_labels": [1, 0]}, "point_labels", "to match point_coords"),
    "point_labels: unknown": ({**POINTS, "point_labels": [9]}, "point_labels", "unknown label 9"),
    "point_labels: a fraction": ({**POINTS, "point_labels": [0.5]}, "point_labels", "unknown label 0.5"),
    "points: of two objects": (
        {"point_coords": [[[1, 2]], [[3, 4]]], "point_labels": [[1], [1]]},
        "object_id",
        "this one has 2",
    ),
    "mask_input: small": ({"mask_input": [[[0.5]]]}, "mask_input", "must be 1×256×256"),
    "mask_input: a mask": ({"mask_input": MASK}, "mask_input", "must be a JSON array, is dict"),
    "mask: with a box": ({"mask": MASK, "box": BOX}, "mask", "is given as well as box"),
    "mask: text": ({"mask": "05"}, "mask", "must be run lengths as COCO writes them"),
    "mask: rows": ({"mask": [[0, 1]]}, "mask", "must be run lengths as COCO writes them"),
    "mask: too few pixels": ({"mask": {"size": [2, 3], "counts": [5]}}, "mask", "counts cover 5 pixels, and 3×2 are 6"),
    "remove: a number": ({"remove": 1}, "remove", "must be true or false, is int"),
    "remove: text": ({"remove": "true"}, "remove", "must be true or false, is str"),
    "remove: with points": ({"remove": True, **POINTS}, "remove", "is given as well as point_coords"),
    "remove: with a mask": ({"remove": True, "mask": MASK}, "remove", "is given as well as mask"),
    "normalize_coords: a number": ({"box": BOX, "normalize_coords": 0}, "normalize_coords", "must be true or false"),
}


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_a_bad_prompt_is_named_with_its_field(case: str) -> None:
    value, field, message = BAD_PROMPTS[case]
    with pytest.raises(InvalidPrompt) as error:
        parse({"box": BOX}, value)
    where = f"prompts[1].{field}: " if field else "prompts[1]: "
    assert error.value.message.startswith(where)
    assert message in error.value.message
    assert len(error.value.message) < 400


def test_a_string_among_numbers_takes_no_more_memory_than_its_text() -> None:
    text = json.dumps([{"box": [*range(2000), "x" * 10_000]}])
    tracemalloc.start()
    try:
        with pytest.raises(InvalidPrompt, match=r"^prompts\[0\]\.box: must hold numbers only"):
            parse_prompts(text, Limits())
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("values", "limits", "message"),
    [
        ([{"box": BOX}] * 4, {"max_video_prompts": 3}, "prompts: has 4 prompts, more than the 3 "),
        (
            [{"object_id": one, "box": BOX} for one in range(4)],
            {"max_video_objects": 3},
            "prompts: has 4 objects, more than the 3 ",
        ),
        (
            [{"frame_index": one, **POINTS} for one in range(4)],
            {"max_points": 3},
            "prompts: has 4 points, more than the 3 ",
        ),
        ([{"mask": {"size": [2, 4], "counts": [8]}}], {"max_pixels": 7}, "prompts[0].mask: has 4×2 pixels"),
        ([{"mask": {"size": [10**12, 10**12], "counts": [10**24]}}], {}, "prompts[0].mask: has "),
    ],
)
def test_there_can_be_too_many_of_each(values: list[Any], limits: dict[str, int], message: str) -> None:
    assert parse(*values[:1] if len(values) > 1 else [{"box": BOX}], limits=Limits(**limits))
    with pytest.raises(TooLarge) as error:
        parse(*values, limits=Limits(**limits))
    assert error.value.message.startswith(message)


def test_too_many_numbers_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(TooLarge, match=rf"^prompts: has more than the {MAX_NUMBERS} numbers"):
        parse_prompts("," * (MAX_NUMBERS + 1), Limits())


def test_masks_are_decoded_only_until_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts_module, "MAX_MASK_PIXELS", 250)
    values = [{"frame_index": one, "mask": {"size": [10, 10], "counts": [100]}} for one in range(3)]
    assert len(parse(*values[:2])) == 2
    decoded: list[Any] = []

    def noted(*each: Any) -> NDArray[np.bool_]:
        decoded.append(each)
        return decode_rle(*each)

    monkeypatch.setattr(prompts_module, "decode_rle", noted)
    with pytest.raises(TooLarge, match=r"^prompts: masks have 300 pixels together, more than the 250 "):
        parse(*values, *values)
    assert len(decoded) == 3


# ---- the short form


def test_an_images_prompt_is_one_prompt_for_each_object() -> None:
    mask = np.zeros((1, 1, 256, 256), np.float32)
    prompt = Prompt(
        [[[0, 1]], [[1, 0]]], [[1], [0]], [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]], mask, normalize_coords=False
    )
    found = short_form(prompt, 6, Limits())
    assert [(one.object_id, one.frame_index, one.time_s, one.where) for one in found] == [
        (1, 6, None, ""),
        (2, 6, None, ""),
    ]
    for place, one in enumerate(found):
        assert one.prompt is not None
        assert one.prompt.point_coords is not None
        assert one.prompt.point_labels is not None
        assert one.prompt.box is not None
        assert one.prompt.mask_input is not None
        assert (one.prompt.num_objects, one.prompt.has_object_axis) == (1, False)
        assert one.prompt.point_coords.tolist() == [[[0, 1]], [[1, 0]]][place]
        assert one.prompt.point_labels.tolist() == [[1], [0]][place]
        assert one.prompt.box.tolist() == [[0, 0, 1, 1], [0, 0, 0.5, 1]][place]
        # One mask serves all objects.
        assert one.prompt.mask_input.shape == (1, 256, 256)
        assert not one.prompt.normalize_coords


def test_an_images_prompt_that_is_empty_or_too_large() -> None:
    with pytest.raises(InvalidPrompt, match=r"^prompts: is missing; send it, or point_coords"):
        short_form(Prompt(), 0, Limits())
    with pytest.raises(TooLarge, match=r"^prompts: has 3 objects, more than the 2 "):
        short_form(Prompt(box=[BOX] * 3), 0, Limits(max_video_objects=2))
    with pytest.raises(TooLarge, match=r"^prompts: has 3 points, more than the 2 "):
        short_form(Prompt([[1, 1]] * 3, [1, 1, 1]), 0, Limits(max_points=2))


def test_the_short_forms_frame_is_named_as_it_was_sent() -> None:
    found = short_form(Prompt(box=BOX), 10, Limits())
    with pytest.raises(InvalidPrompt, match=r"^frame_index: is 10, but the video has 10 frames, 0 to 9"):
        resolve(found, FACTS)


# ---- a program's prompts


def test_prompts_of_a_program_are_checked_as_those_of_a_request() -> None:
    one = TrackPrompt(3, 5, Prompt(box=BOX))
    [found] = checked_prompts([one], Limits())
    assert (found.object_id, found.frame_index, found.prompt) == (3, 5, one.prompt)
    with pytest.raises(InvalidPrompt, match=r"^prompts: is empty"):
        checked_prompts([], Limits())
    with pytest.raises(TooLarge, match=r"^prompts: has 3 prompts"):
        checked_prompts([one] * 3, Limits(max_video_prompts=2))
    with pytest.raises(InvalidPrompt, match=r"^prompts\[1\]\.frame_index: must be at least 0, is -2"):
        checked_prompts([one, TrackPrompt(3, -2, Prompt(box=BOX))], Limits())
    with pytest.raises(TooLarge, match=r"^prompts: has 2 objects"):
        checked_prompts([one, TrackPrompt(4, 5, Prompt(box=BOX))], Limits(max_video_objects=1))
    with pytest.raises(InvalidPrompt, match=r"^prompts\[0\]\.frame_index: is 10, but"):
        resolve(checked_prompts([TrackPrompt(3, 10, Prompt(box=BOX))], Limits()), FACTS)


# ---- frames


@pytest.mark.parametrize(
    ("time_s", "index"),
    [
        (0, 0),
        (0.0, 0),
        (0.05, 0),
        (0.0999, 1),
        (0.1, 1),
        (0.3, 3),
        (0.333, 3),
        (0.899, 8),
        (0.9, 9),
        (0.95, 9),
        (1.0, 9),
    ],
)
def test_a_time_stands_for_the_frame_that_is_shown_then(time_s: float, index: int) -> None:
    [found] = resolve(parse({"time_s": time_s, "box": BOX}), FACTS).prompts
    assert found.frame_index == index


def test_a_time_with_three_digits_finds_its_frame_at_any_rate() -> None:
    for fps in (24, 30, 60, 120, 240):
        times = np.arange(1000) / fps
        facts = VideoFacts(6, 4, 1000, fps, times=times)
        found = resolve(parse(*({"time_s": round(float(times[one]), 3), "box": BOX} for one in range(200))), facts)
        assert [one.frame_index for one in found.prompts] == list(range(200))


def test_a_time_in_a_video_of_a_variable_rate_or_that_begins_late() -> None:
    facts = VideoFacts(6, 4, 4, 2.0, times=np.array([0.5, 0.6, 2.0, 9.0]))
    for time_s, index in ((0.0, 0), (0.55, 0), (1.99, 1), (2.0, 2), (8.9, 2), (9.0, 3), (9.5, 3)):
        [found] = resolve(parse({"time_s": time_s, "box": BOX}), facts).prompts
        assert found.frame_index == index


@pytest.mark.parametrize("time_s", [1.001, 5, 1e300])
def test_a_time_after_the_end_is_refused(time_s: float) -> None:
    with pytest.raises(InvalidPrompt, match=r"^prompts\[0\]\.time_s: is .*, but the video ends at 1.000 s"):
        resolve(parse({"time_s": time_s, "box": BOX}), FACTS)


def test_a_time_in_a_video_without_times_is_refused() -> None:
    with pytest.raises(InvalidPrompt, match=r"^prompts\[0\]\.time_s: this video gives its frames no times"):
        resolve(parse({"time_s": 0, "box": BOX}), VideoFacts(6, 4, 10, None))


def test_a_frame_that_the_video_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidPrompt, match=r"^prompts\[1\]\.frame_index: is 10, but the video has 10 frames, 0 to 9"):
        resolve(parse({"box": BOX}, {"frame_index": 10, "box": BOX}), FACTS)


def test_removals_are_told_from_prompts() -> None:
    found = resolve(parse({"box": BOX}, {"time_s": 0.4, "remove": True}), FACTS)
    assert [(one.object_id, one.frame_index) for one in found.prompts] == [(1, 0)]
    assert found.removals == ((1, 4),)


@pytest.mark.parametrize(
    ("field", "second"),
    [
        ("frame_index", {"box": BOX}),
        ("frame_index", {"frame_index": 0, **POINTS}),
        ("time_s", {"time_s": 0.05, "box": BOX}),
        ("frame_index", {"remove": True}),
    ],
)
def test_one_object_has_one_prompt_on_a_frame(field: str, second: dict[str, Any]) -> None:
    with pytest.raises(InvalidPrompt, match=rf"^prompts\[1\]\.{field}: object 1 has another prompt on frame 0"):
        resolve(parse({"box": BOX}, second), FACTS)
    found = resolve(parse({"box": BOX}, {"object_id": 2, "box": BOX}, {"frame_index": 1, "box": BOX}), FACTS)
    assert len(found.prompts) == 3


def test_a_mask_is_as_large_as_the_frames() -> None:
    [found] = resolve(parse({"mask": {"size": [4, 6], "counts": [3, 21]}}), FACTS).prompts
    assert found.mask is not None
    assert found.mask.sum() == 21
    with pytest.raises(InvalidPrompt, match=r"^prompts\[0\]\.mask: is 4×6; frames of this video are 6×4"):
        resolve(parse({"mask": {"size": [6, 4], "counts": [24]}}), FACTS)


# ---- run lengths


def masks() -> list[NDArray[np.bool_]]:
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 60, (60, 2))
    made = [rng.random(size) < share for size, share in zip(sizes, rng.random(60), strict=True)]
    blob = np.zeros((700, 900), bool)
    blob[100:650, 33:870] = True
    return [*made, blob, ~blob, np.zeros((5, 7), bool), np.ones((5, 7), bool), np.ones((1, 1), bool)]


def test_run_lengths_are_read_as_coco_reads_them() -> None:
    for mask in masks():
        text = segmentation(mask)
        flat = mask.T.ravel()
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *edges, flat.size]).tolist()
        plain = {"size": text["size"], "counts": [0, *runs] if flat[0] else runs}
        expected = coco.decode({"size": text["size"], "counts": text["counts"].encode()}).astype(bool)
        assert np.array_equal(expected, mask)
        for rle in (text, plain, orjson.loads(orjson.dumps(text))):
            decoded = decode_rle(rle, 10**6)
            assert decoded.dtype == bool
            assert np.array_equal(decoded, mask)


def test_runs_may_be_empty() -> None:
    assert decode_rle({"size": [2, 2], "counts": [0, 1, 0, 0, 3]}, 4).tolist() == [[True, False], [False, False]]


SIZE = [3, 4]
BAD_RLES: dict[str, Any] = {
    "nothing": None,
    "no size": {"counts": [12]},
    "no counts": {"size": SIZE},
    "size: one side": {"size": [12], "counts": [12]},
    "size: text": {"size": "34", "counts": [12]},
    "size: floats": {"size": [3.0, 4.0], "counts": [12]},
    "size: booleans": {"size": [True, True], "counts": [1]},
    "size: zero": {"size": [0, 4], "counts": []},
    "size: negative": {"size": [-3, -4], "counts": [12]},
    "counts: empty": {"size": SIZE, "counts": []},
    "counts: too few": {"size": SIZE, "counts": [11]},
    "counts: too many": {"size": SIZE, "counts": [13]},
    "counts: negative": {"size": SIZE, "counts": [13, -1]},
    "counts: floats": {"size": SIZE, "counts": [12.0]},
    "counts: booleans": {"size": SIZE, "counts": [11, True]},
    "counts: null": {"size": SIZE, "counts": [12, None]},
    "counts: nested": {"size": SIZE, "counts": [[12]]},
    "counts: a number": {"size": SIZE, "counts": 12},
    "counts: beyond int64": {"size": SIZE, "counts": [2**64 - 1, 2**64 - 1]},
    "text: empty": {"size": SIZE, "counts": ""},
    "text: a space": {"size": SIZE, "counts": " "},
    "text: too high": {"size": SIZE, "counts": "\x7f"},
    "text: not ASCII": {"size": SIZE, "counts": "é漢"},
    "text: ends within a number": {"size": SIZE, "counts": "P"},
    "text: a long number": {"size": SIZE, "counts": "o" * 40 + "0"},
    "text: negative": {"size": SIZE, "counts": "O"},
    "text: sum right, one negative": {"size": SIZE, "counts": "=O"},
    "text: too few": {"size": SIZE, "counts": "5"},
    "text: differences below zero": {"size": SIZE, "counts": "1110O"},
}


@pytest.mark.parametrize("case", BAD_RLES)
def test_malformed_run_lengths_are_refused(case: str) -> None:
    with pytest.raises(InvalidPrompt, match=r"^prompts\[2\]\.mask: "):
        decode_rle(BAD_RLES[case], 10**6, "prompts[2].mask")


COUNTS = st.one_of(
    st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-2, 14), st.integers(), st.floats(), st.none(), st.booleans()), max_size=6),
    st.none(),
)


@settings(max_examples=100, deadline=None)
@given(size=st.lists(st.integers(-1, 5), max_size=3), counts=COUNTS)
def test_whatever_is_sent_is_a_mask_or_an_error_of_ours(size: list[int], counts: Any) -> None:
    try:
        mask = decode_rle({"size": size, "counts": counts}, 20)
    except (InvalidPrompt, TooLarge):
        return
    assert list(mask.shape) == size
