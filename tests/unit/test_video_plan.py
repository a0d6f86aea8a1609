"""Which frames of a video are followed: directions, starts, steps, limits, removals, and positions."""

from itertools import product
from typing import Any

import pytest

from deployments.errors import InvalidPrompt, InvalidRequest
from deployments.messages.prompt import Prompt
from deployments.messages.track import TrackPrompt
from deployments.messages.video import VideoFacts
from deployments.parsing.video.plan import DIRECTIONS, FrameRange, Pass, Plan, plan
from deployments.parsing.video.prompts import VideoPrompts

BOX = Prompt(box=[0, 0, 1, 1])


def planned(
    places: list[tuple[int, int]], num_frames: int = 10, removals: tuple[tuple[int, int], ...] = (), **which: Any
) -> Plan:
    """The plan for prompts that are pairs of an object_id and a frame."""
    prompts = VideoPrompts(tuple(TrackPrompt(*place, BOX) for place in places), removals)
    return plan(prompts, FrameRange(**which), VideoFacts(64, 48, num_frames, None))


def frames(*arguments: Any, **options: Any) -> list[list[int]]:
    return [list(run.frames) for run in planned(*arguments, **options).passes]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({}, [[4, 5, 6, 7, 8, 9]]),
        ({"max_frames": 3}, [[4, 5, 6]]),
        ({"max_frames": 1}, [[4]]),
        ({"max_frames": 100}, [[4, 5, 6, 7, 8, 9]]),
        ({"stride": 2}, [[4, 6, 8]]),
        ({"stride": 2, "max_frames": 2}, [[4, 6]]),
        ({"stride": 100}, [[4]]),
        # Frames are counted from the start; none is followed before the prompt.
        ({"start_frame": 0}, [[4, 5, 6, 7, 8, 9]]),
        ({"start_frame": 2, "max_frames": 4}, [[4, 5]]),
        ({"start_frame": 1, "stride": 3}, [[4, 7]]),
        ({"direction": "backward"}, [[4, 3, 2, 1, 0]]),
        ({"direction": "backward", "max_frames": 2}, [[4, 3]]),
        ({"direction": "backward", "stride": 3}, [[4, 1]]),
        ({"direction": "backward", "start_frame": 9}, [[4, 3, 2, 1, 0]]),
        ({"direction": "backward", "start_frame": 6, "max_frames": 4}, [[4, 3]]),
        ({"direction": "both"}, [[4, 5, 6, 7, 8, 9], [3, 2, 1, 0]]),
        ({"direction": "both", "max_frames": 3}, [[4, 5, 6], [3, 2]]),
        ({"direction": "both", "max_frames": 1}, [[4]]),
        ({"direction": "both", "stride": 4}, [[4, 8], [0]]),
        ({"direction": "both", "stride": 3}, [[4, 7], [1]]),
        ({"direction": "both", "stride": 3, "max_frames": 2}, [[4, 7], [1]]),
    ],
)
def test_frames_from_one_prompt(which: dict[str, Any], expected: list[list[int]]) -> None:
    assert frames([(1, 4)], **which) == expected


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({}, [[2, 3, 4, 5, 6, 7, 8, 9]]),
        ({"direction": "backward"}, [[6, 5, 4, 3, 2, 1, 0]]),
        # The frames between the objects' first prompts come again, for the object that begins later.
        ({"direction": "both"}, [[2, 3, 4, 5, 6, 7, 8, 9], [5, 4, 3, 2, 1, 0]]),
        ({"direction": "both", "stride": 2}, [[2, 4, 6, 8], [4, 2, 0]]),
        ({"direction": "both", "stride": 4}, [[2, 6], [2]]),
    ],
)
def test_frames_of_objects_that_begin_on_different_frames(which: dict[str, Any], expected: list[list[int]]) -> None:
    assert frames([(1, 2), (2, 6)], **which) == expected


def test_a_correction_begins_nothing() -> None:
    assert frames([(1, 2), (1, 6)], direction="both") == [[2, 3, 4, 5, 6, 7, 8, 9], [1, 0]]
    # The order of prompts has no effect.
    assert frames([(1, 6), (1, 2)], direction="both") == [[2, 3, 4, 5, 6, 7, 8, 9], [1, 0]]


def test_at_the_ends_of_a_video_there_is_one_pass() -> None:
    assert frames([(1, 0)], direction="both") == [list(range(10))]
    assert frames([(1, 0)], direction="backward") == [[0]]
    assert frames([(1, 9)]) == [[9]]
    assert frames([(1, 9)], direction="both") == [[9], list(range(8, -1, -1))]
    assert frames([(1, 0)], num_frames=1, direction="both") == [[0]]


def test_every_plan_follows_each_object_as_far_as_it_was_asked_to() -> None:
    """Against frames that are listed one by one."""
    for direction, stride, limit, start, first, second in product(
        DIRECTIONS, (1, 2, 3), (None, 1, 2, 5), (None, 0, 1, 4, 7), (0, 3, 4, 7), (1, 4, 6)
    ):
        begin = start if start is not None else (max if direction == "backward" else min)(first, second)
        ways = {"forward": (1,), "backward": (-1,), "both": (1, -1)}[direction]
        reached = [
            [place for place in range(begin, 8 if way > 0 else -1, way * stride)][:limit]  # noqa: C416
            for way in ways
        ]
        options: dict[str, Any] = {"direction": direction, "stride": stride, "max_frames": limit, "start_frame": start}
        if not {first, second} <= set(reached[0]):
            with pytest.raises(InvalidPrompt, match=r"^prompts: that for object [12] is on frame \d, which is not"):
                planned([(1, first), (2, second)], 8, **options)
            continue
        found = planned([(1, first), (2, second)], 8, **options)
        ahead = [place for place in reached[0] if place >= min(first, second)]
        if direction == "backward":
            ahead = [place for place in reached[0] if place <= max(first, second)]
        assert list(found.passes[0].frames) == ahead
        if direction == "both":
            # Backwards too, so many from the start, but from the last prompt on, which may be after the start.
            back = [place for place in range(max(first, second) - stride, min(reached[1]) - 1, -stride)]  # noqa: C416
            assert [list(run.frames) for run in found.passes[1:]] == ([back] if back else [])
        for run in found.passes:
            positions = [run.position(place) for place in run.frames]
            step = -1 if run.is_reverse else 1
            assert positions == [positions[0] + step * count for count in range(len(positions))]
            assert 0 <= min(positions) <= max(positions) < found.num_positions
            # Nothing before the first position, or after the last one, could be followed.
            offset = begin % stride
            assert run.position(offset) == 0
            assert found.num_positions == len(range(offset, 8, stride))


def test_positions_are_the_same_in_both_passes() -> None:
    found = planned([(1, 7)], 20, direction="both", stride=3)
    forward, back = found.passes
    assert [forward.position(place) for place in forward.frames] == [2, 3, 4, 5, 6]
    assert [back.position(place) for place in back.frames] == [1, 0]
    assert found.num_positions == 7
    assert (forward.is_reverse, back.is_reverse) == (False, True)
    # The second pass goes on from the prompts of the first.
    assert (forward.starts_over, back.starts_over) == (True, False)


def test_prompts_on_frames_get_positions() -> None:
    run = Pass(range(19, -1, -3), 1)
    prompts = [TrackPrompt(1, 19, BOX), TrackPrompt(2, 13, BOX), TrackPrompt(1, 1, BOX)]
    for part, expected in (
        (run.frames[0:2], [(1, 6)]),
        (run.frames[2:4], [(2, 4)]),
        (run.frames[4:], [(1, 0)]),
        (run.frames[3:4], []),
    ):
        assert [(one.object_id, one.frame_index) for one in run.prompts_on(part, prompts)] == expected
    assert run.prompts_on(run.frames, prompts)[0].prompt is BOX


@pytest.mark.parametrize(
    ("which", "reaches"),
    [
        ({}, True),
        ({"max_frames": 6}, False),
        ({"max_frames": 7}, True),
        ({"max_frames": 2}, False),
        ({"direction": "both"}, True),
        ({"direction": "both", "max_frames": 6}, False),
        ({"direction": "backward"}, False),
        ({"direction": "backward", "max_frames": 99}, False),
        ({"stride": 4, "max_frames": 2}, False),
        ({"stride": 4, "max_frames": 3}, True),
    ],
)
def test_whether_more_frames_would_be_followed_if_the_file_had_them(which: dict[str, Any], reaches: bool) -> None:
    assert planned([(1, 4)], **which).reaches_end is reaches


@pytest.mark.parametrize(
    ("places", "which", "message"),
    [
        ([(1, 4)], {"start_frame": 5}, "object 1 is on frame 4, .* 5 to 9, from start_frame 5"),
        ([(1, 4), (2, 8)], {"max_frames": 4}, "object 2 is on frame 8, .* 4 to 7, from start_frame 4"),
        ([(1, 4), (2, 7)], {"stride": 2}, "object 2 is on frame 7, .* 4 to 8 in steps of 2, from start_frame 4"),
        ([(1, 4), (2, 7)], {"direction": "backward", "stride": 2}, "object 1 is on frame 4, .* 1 to 7 in steps of 2"),
        ([(1, 4)], {"direction": "backward", "start_frame": 3}, "object 1 is on frame 4, .* 0 to 3, from"),
        ([(1, 4), (2, 1)], {"direction": "backward", "max_frames": 2}, "object 2 is on frame 1, .* 3 to 4, from"),
        ([(1, 4), (2, 8)], {"direction": "both", "max_frames": 4}, "object 2 is on frame 8, .* 4 to 7, from"),
    ],
)
def test_prompts_on_frames_that_are_not_followed_are_refused(
    places: list[tuple[int, int]], which: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidPrompt, match=f"^prompts: that for {message}"):
        planned(places, **which)


def test_a_start_that_is_not_in_the_video_is_refused() -> None:
    for direction in DIRECTIONS:
        with pytest.raises(InvalidRequest, match=r"^start_frame: is 10, but the video has 10 frames"):
            planned([(1, 4)], start_frame=10, direction=direction)


# ---- removals


def test_frames_end_where_no_object_is_left() -> None:
    assert frames([(1, 2), (2, 2)], removals=((1, 5),)) == [list(range(2, 10))]
    assert frames([(1, 2), (2, 2)], removals=((1, 5), (2, 4))) == [[2, 3, 4]]
    assert frames([(1, 7)], removals=((1, 5),), direction="backward") == [[7, 6]]
    # It may begin anew later.
    assert frames([(1, 2), (1, 7)], removals=((1, 5),)) == [list(range(2, 10))]


@pytest.mark.parametrize(
    ("removals", "which", "message"),
    [
        (((2, 5),), {}, "prompts: object 2 is removed on frame 5, but not followed until then"),
        (((1, 3),), {"start_frame": 2}, "prompts: object 1 is removed on frame 3, but not followed until then"),
        (((1, 6),), {"direction": "backward", "start_frame": 8}, "prompts: object 1 is removed on frame 6, but not"),
        (((1, 7),), {"max_frames": 3}, "prompts: that for object 1 is on frame 7, which is not among"),
        (((1, 5),), {"stride": 2}, "prompts: that for object 1 is on frame 5, which is not among"),
        (((1, 6),), {"direction": "both"}, "direction: objects can be removed in one direction only"),
    ],
)
def test_removals_that_make_no_sense_are_refused(
    removals: tuple[tuple[int, int], ...], which: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"^{message}"):
        planned([(1, 4)], removals=removals, **which)


def test_removals_alone_begin_nothing() -> None:
    with pytest.raises(InvalidPrompt, match=r"^prompts: none of them begins an object"):
        planned([], removals=((1, 5),))


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ({"direction": "sideways"}, "direction: must be one of forward, backward, both"),
        ({"direction": ""}, "direction: must be one of"),
        ({"start_frame": -1}, "start_frame: must be at least 0, is -1"),
        ({"max_frames": 0}, "max_frames: must be at least 1, is 0"),
        ({"stride": 0}, "stride: must be at least 1, is 0"),
        ({"stride": -2}, "stride: must be at least 1, is -2"),
    ],
)
def test_a_range_checks_itself(which: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{message}"):
        FrameRange(**which)
