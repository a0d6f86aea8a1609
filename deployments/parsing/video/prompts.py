"""Prompts of a video: from JSON to TrackPrompts."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from deployments.errors import InvalidPrompt, TooLarge
from deployments.messages.prompt import Prompt
from deployments.messages.rle import decode_rle
from deployments.messages.track import BoolArray, TrackPrompt
from deployments.messages.video import VideoFacts
from deployments.settings import Limits

MAX_NUMBERS = 4_000_000
"""Numbers in the text of `prompts`: those of sixty masks as `mask_input`. A parsed number takes 32 bytes or more."""

MAX_MASK_PIXELS = 64 * 3840 * 2160
"""Pixels of all masks together, each of which takes a byte. A few characters can stand for a mask of any size."""

MAX_OBJECT_ID = 2**31 - 1

ROUNDED_S = 0.000501
"""By so many seconds a time may be before its frame: half a millisecond, since times are often given with three digits,
and a little for float64."""

POINTS = ("point_coords", "point_labels", "box", "mask_input")
FIELDS = {"object_id", "frame_index", "time_s", "mask", "normalize_coords", "remove", *POINTS}


@dataclass(frozen=True, eq=False)
class TimedPrompt:
    """A prompt as it was sent: its frame may be given by a time.

    Attributes:
        where: what messages call it.
        object_id: the caller's number for the object.
        frame_index: the frame, or None.
        time_s: a time in seconds: the frame that is shown then; or None.
        prompt: see TrackPrompt.
        mask: see TrackPrompt.
        removes: whether the object is followed no more from this frame on; there is then no prompt and no mask.
    """

    where: str
    object_id: int
    frame_index: int | None
    time_s: float | None
    prompt: Prompt | None = None
    mask: BoolArray | None = None
    removes: bool = False

    def index(self, facts: VideoFacts) -> int:
        """Returns the index of the prompt's frame.

        Raises:
            InvalidPrompt: the video has no such frame, or gives its frames no times.
        """
        if self.frame_index is not None:
            if self.frame_index >= facts.num_frames:
                raise InvalidPrompt(
                    f"{self.where}frame_index: is {self.frame_index}, but the video has {facts.num_frames} frames, "
                    f"0 to {facts.num_frames - 1}"
                )
            return self.frame_index
        if facts.times is None:
            raise InvalidPrompt(f"{self.where}time_s: this video gives its frames no times; give frame_index")
        assert self.time_s is not None
        index = max(0, bisect_right(facts.times, self.time_s + ROUNDED_S) - 1)
        last_s = float(facts.times[-1]) + (1 / facts.fps if facts.fps else 0.0)
        if self.time_s > last_s:
            raise InvalidPrompt(f"{self.where}time_s: is {self.time_s:g}, but the video ends at {last_s:.3f} s")
        return index


@dataclass(frozen=True, eq=False)
class VideoPrompts:
    """The prompts of a job, by the indices of their frames.

    Attributes:
        prompts: what is known of objects.
        removals: pairs of an object_id and the frame from which on the object is followed no more.
    """

    prompts: tuple[TrackPrompt, ...]
    removals: tuple[tuple[int, int], ...] = ()


def parse_prompts(text: str, limits: Limits) -> list[TimedPrompt]:
    """Reads the field `prompts`.

    Raises:
        InvalidPrompt: it is not a list of prompts; the message says which one and what is wrong.
        TooLarge: there are too many of them, or too many points, numbers, or pixels of masks.
    """
    if text.count(",") > MAX_NUMBERS:
        raise TooLarge(f"prompts: has more than the {MAX_NUMBERS} numbers that are accepted")
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidPrompt(f"prompts: is not valid JSON: {error.msg} at character {error.pos}") from error
    if not isinstance(values, list) or not values:
        raise InvalidPrompt("prompts: must be a JSON array of objects, with at least one prompt")
    if len(values) > limits.max_video_prompts:
        raise TooLarge(f"prompts: has {len(values)} prompts, more than the {limits.max_video_prompts} accepted")
    found: list[TimedPrompt] = []
    for place, value in enumerate(values):
        found.append(_parsed(f"prompts[{place}].", value, limits))
        # Each time, so that masks are not all decoded before there are too many.
        _check_counts(found, limits)
    return found


def short_form(prompt: Prompt, frame_index: int, limits: Limits) -> list[TimedPrompt]:
    """Turns an image's prompt on one frame into one for each of its objects, which get the numbers 1 to B.

    Raises:
        InvalidPrompt: the prompt is empty.
        TooLarge: it has too many objects or points.
    """
    count = prompt.num_objects
    if prompt.point_coords is None and prompt.box is None and prompt.mask_input is None:
        raise InvalidPrompt("prompts: is missing; send it, or point_coords and point_labels, box or mask_input")
    points, boxes, masks = prompt.batched_points(), prompt.batched_boxes(), prompt.batched_masks()
    found = [
        TimedPrompt(
            "",
            index + 1,
            frame_index,
            None,
            Prompt(
                None if points is None else points[0][index],
                None if points is None else points[1][index],
                None if boxes is None else boxes[index],
                None if masks is None else masks[index % len(masks)],
                normalize_coords=prompt.normalize_coords,
            ),
        )
        for index in range(count)
    ]
    _check_counts(found, limits)
    return found


def checked_prompts(prompts: Sequence[TrackPrompt], limits: Limits) -> list[TimedPrompt]:
    """Turns the prompts of a Python program into those of a request.

    Raises:
        InvalidPrompt: there are none.
        TooLarge: there are too many prompts, objects or points.
    """
    if not prompts:
        raise InvalidPrompt("prompts: is empty; give at least one TrackPrompt")
    if len(prompts) > limits.max_video_prompts:
        raise TooLarge(f"prompts: has {len(prompts)} prompts, more than the {limits.max_video_prompts} accepted")
    found = [
        TimedPrompt(f"prompts[{place}].", one.object_id, one.frame_index, None, one.prompt, one.mask)
        for place, one in enumerate(prompts)
    ]
    for one in found:
        if not 0 <= one.object_id <= MAX_OBJECT_ID:
            raise InvalidPrompt(f"{one.where}object_id: must be from 0 to {MAX_OBJECT_ID}, is {one.object_id}")
        if one.frame_index is None or one.frame_index < 0:
            raise InvalidPrompt(f"{one.where}frame_index: must be at least 0, is {one.frame_index}")
    _check_counts(found, limits)
    return found


def resolve(prompts: Sequence[TimedPrompt], facts: VideoFacts) -> VideoPrompts:
    """Finds the frame of each prompt.

    Raises:
        InvalidPrompt: the video has no such frame; an object has two prompts on one frame; a mask is of another size
            than the frames.
    """
    found: list[TrackPrompt] = []
    removals: list[tuple[int, int]] = []
    seen: set[tuple[int, int]] = set()
    for one in prompts:
        index = one.index(facts)
        if (one.object_id, index) in seen:
            name = "time_s" if one.frame_index is None else "frame_index"
            raise InvalidPrompt(
                f"{one.where}{name}: object {one.object_id} has another prompt on frame {index}; put the points "
                "of both into one prompt"
            )
        seen.add((one.object_id, index))
        if one.removes:
            removals.append((one.object_id, index))
            continue
        if one.mask is not None and one.mask.shape != facts.image_size:
            height, width = one.mask.shape
            raise InvalidPrompt(
                f"{one.where}mask: is {width}×{height}; frames of this video are {facts.width}×{facts.height}"
            )
        found.append(TrackPrompt(one.object_id, index, one.prompt, one.mask))
    return VideoPrompts(tuple(found), tuple(removals))


def _check_counts(prompts: Sequence[TimedPrompt], limits: Limits) -> None:
    objects = len({one.object_id for one in prompts})
    if objects > limits.max_video_objects:
        raise TooLarge(f"prompts: has {objects} objects, more than the {limits.max_video_objects} that are accepted")
    points = sum(one.prompt.num_points for one in prompts if one.prompt is not None)
    if points > limits.max_points:
        raise TooLarge(f"prompts: has {points} points, more than the {limits.max_points} that are accepted")
    pixels = sum(one.mask.size for one in prompts if one.mask is not None)
    if pixels > MAX_MASK_PIXELS:
        raise TooLarge(f"prompts: masks have {pixels} pixels together, more than the {MAX_MASK_PIXELS} accepted")


def _parsed(where: str, value: Any, limits: Limits) -> TimedPrompt:
    if not isinstance(value, dict):
        raise InvalidPrompt(f"{where.removesuffix('.')}: must be a JSON object, is {type(value).__name__}")
    unknown = sorted(set(value) - FIELDS)
    if unknown:
        raise InvalidPrompt(f"{where}{unknown[0][:100]}: is not a field; there are {', '.join(sorted(FIELDS))}")
    given = {name: one for name, one in value.items() if one is not None}
    object_id = _whole(where, "object_id", given.get("object_id", 1), MAX_OBJECT_ID)
    if "frame_index" in given and "time_s" in given:
        raise InvalidPrompt(f"{where}time_s: is given as well as frame_index; send one of them")
    time_s = _time(where, given["time_s"]) if "time_s" in given else None
    frame_index = None if time_s is not None else _whole(where, "frame_index", given.get("frame_index", 0), 2**31 - 1)
    fields = [name for name in POINTS if name in given]
    if _flag(where, given, "remove", False):
        extra = [*fields, *(["mask"] if "mask" in given else [])]
        if extra:
            raise InvalidPrompt(f"{where}remove: is given as well as {extra[0]}; send one of them")
        return TimedPrompt(where, object_id, frame_index, time_s, removes=True)
    if "mask" in given:
        if fields:
            raise InvalidPrompt(f"{where}mask: is given as well as {fields[0]}; send one of them")
        mask = decode_rle(given["mask"], limits.max_pixels, f"{where}mask")
        return TimedPrompt(where, object_id, frame_index, time_s, mask=mask)
    if not fields:
        raise InvalidPrompt(f"{where}point_coords: is missing; a prompt needs points, box, mask or mask_input")
    arrays = {name: _numbers(f"{where}{name}", given[name]) for name in fields}
    normalize = _flag(where, given, "normalize_coords", True)
    try:
        prompt = Prompt(**arrays, normalize_coords=normalize)
    except InvalidPrompt as error:
        raise InvalidPrompt(f"{where}{error.message}") from error
    if prompt.num_objects != 1:
        raise InvalidPrompt(f"{where}object_id: each prompt is for one object; this one has {prompt.num_objects}")
    return TimedPrompt(where, object_id, frame_index, time_s, prompt)


def _numbers(where: str, value: Any) -> Any:
    if not isinstance(value, list):
        raise InvalidPrompt(f"{where}: must be a JSON array, is {type(value).__name__}")
    # Not left to numpy: beside a string, it gives each number the room that the string takes.
    if not _is_of_numbers(value):
        raise InvalidPrompt(f"{where}: must hold numbers only")
    try:
        array = np.array(value)
    except ValueError as error:
        raise InvalidPrompt(f"{where}: its rows are of different lengths") from error
    if array.dtype.kind not in "iuf":
        raise InvalidPrompt(f"{where}: must hold numbers only")
    return array


def _is_of_numbers(value: list[Any]) -> bool:
    """Returns whether a parsed JSON array holds no strings and objects, however deep."""
    try:
        return b'"' not in orjson.dumps(value)
    except orjson.JSONEncodeError:
        # It is deeper than orjson writes.
        return False


def _whole(where: str, name: str, value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        shown = value if isinstance(value, int | float) else type(value).__name__
        raise InvalidPrompt(f"{where}{name}: must be a whole number from 0 to {most}, is {shown}")
    return value


def _time(where: str, value: Any) -> float:
    if type(value) not in (int, float) or not (math.isfinite(value) and value >= 0):
        shown = value if isinstance(value, int | float) else type(value).__name__
        raise InvalidPrompt(f"{where}time_s: must be a number of seconds from 0, is {shown}")
    return float(value)


def _flag(where: str, given: dict[str, Any], name: str, default: bool) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise InvalidPrompt(f"{where}{name}: must be true or false, is {type(value).__name__}")
    return value
