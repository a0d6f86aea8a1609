"""Plan: which frames of a video are followed, in which order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from deployments.errors import InvalidPrompt, InvalidRequest
from deployments.messages.track import TrackPrompt
from deployments.messages.video import VideoFacts
from deployments.parsing.video.prompts import VideoPrompts

Direction: TypeAlias = Literal["forward", "backward", "both"]

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


@dataclass(frozen=True)
class FrameRange:
    """Which frames a request asks for.

    Attributes:
        direction: from each object's first prompt to the end of the video, from its last prompt to the beginning, or
            from its first prompt to both.
        start_frame: where to start; None is the first prompt in this direction.
        max_frames: how many frames at most are followed in each direction, the first included; None is no limit.
        stride: 1 follows every frame, n every n-th.

    Raises:
        InvalidRequest: a value is out of range.
    """

    direction: Direction = "forward"
    start_frame: int | None = None
    max_frames: int | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise InvalidRequest(f"direction: must be one of {', '.join(DIRECTIONS)}")
        for name, value, least in (
            ("start_frame", self.start_frame, 0),
            ("max_frames", self.max_frames, 1),
            ("stride", self.stride, 1),
        ):
            if value is not None and type(value) is not int:
                raise InvalidRequest(f"{name}: must be a whole number, is {value}")
            if value is not None and value < least:
                raise InvalidRequest(f"{name}: must be at least {least}, is {value}")


@dataclass(frozen=True)
class Pass:
    """Frames that are followed one after the other.

    Attributes:
        frames: their indices in the file. Reverse order has a negative step.
        offset: the index of the frame whose position is 0; memory counts frames by their positions.
        starts_over: whether nothing is remembered at its start. Otherwise it begins with what the pass before remembers
            of frames with prompts.
    """

    frames: range
    offset: int
    starts_over: bool = True

    @property
    def is_reverse(self) -> bool:
        """Whether the frames are followed in reverse order."""
        return self.frames.step < 0

    def position(self, index: int) -> int:
        """Returns a frame's position among those that are followed."""
        return (index - self.offset) // abs(self.frames.step)

    def prompts_on(self, frames: range, prompts: Sequence[TrackPrompt]) -> tuple[TrackPrompt, ...]:
        """Returns the prompts on some of the frames, with positions in place of indices."""
        return tuple(
            TrackPrompt(one.object_id, self.position(one.frame_index), one.prompt, one.mask)
            for one in prompts
            if one.frame_index in frames
        )


@dataclass(frozen=True)
class Plan:
    """What a job does.

    Attributes:
        passes: one, or two for both directions.
        num_positions: how many frames of the whole video could be followed with this stride.
        reaches_end: whether frames are followed up to the last one that the file holds, and would be further.
    """

    passes: tuple[Pass, ...]
    num_positions: int
    reaches_end: bool = False

    @property
    def repeats_frames(self) -> bool:
        """Whether a frame comes in both passes, each time with other objects."""
        first, *others = (one.frames for one in self.passes)
        return any(one[0] >= first[0] for one in others)


def plan(prompts: VideoPrompts, which: FrameRange, facts: VideoFacts) -> Plan:
    """Finds out which frames are followed.

    With `both`, the second pass follows each object from its first prompt to the beginning. If objects begin on
    different frames, a frame between them comes twice, each time with other objects.

    Raises:
        InvalidRequest: the start is not in the video, or nothing would be followed.
        InvalidPrompt: a prompt is on a frame that is not followed.
    """
    indices = [one.frame_index for one in prompts.prompts]
    if not indices:
        raise InvalidPrompt("prompts: none of them begins an object")
    backwards = which.direction == "backward"
    start = which.start_frame if which.start_frame is not None else (max(indices) if backwards else min(indices))
    if start >= facts.num_frames:
        raise InvalidRequest(f"start_frame: is {start}, but the video has {facts.num_frames} frames")
    step, offset = which.stride, start % which.stride
    positions = len(range(offset, facts.num_frames, step))
    count = which.max_frames if which.max_frames is not None else positions
    if backwards:
        frames = range(start, -1, -step)[:count]
        _check(prompts, frames, which, start)
        _check_removals(prompts, backwards)
        frames = _until_all_removed(prompts, frames)
        return Plan((Pass(frames[frames.index(max(indices)) :], offset),), positions)
    frames = range(start, facts.num_frames, step)[:count]
    _check(prompts, frames, which, start)
    _check_removals(prompts, backwards)
    frames = _until_all_removed(prompts, frames)
    forward = Pass(frames[frames.index(min(indices)) :], offset)
    reaches_end = frames.stop >= facts.num_frames and (len(frames) < count or which.max_frames is None)
    if which.direction == "forward":
        return Plan((forward,), positions, reaches_end)
    if prompts.removals:
        raise InvalidRequest("direction: objects can be removed in one direction only, not in both")
    first: dict[int, int] = {}
    for one in prompts.prompts:
        first[one.object_id] = min(one.frame_index, first.get(one.object_id, one.frame_index))
    earliest = max(-1, start - (count - 1) * step - 1)
    back = range(max(first.values()) - step, earliest, -step)
    passes = (forward, Pass(back, offset, starts_over=False)) if back else (forward,)
    return Plan(passes, positions, reaches_end)


def _check(prompts: VideoPrompts, frames: range, which: FrameRange, start: int) -> None:
    """Rejects prompts on frames that are not followed."""
    places = [(one.frame_index, one.object_id) for one in prompts.prompts]
    places += [(index, object_id) for object_id, index in prompts.removals]
    for index, object_id in places:
        if index not in frames:
            step = "" if which.stride == 1 else f" in steps of {which.stride}"
            first, last = sorted((frames[0], frames[-1]))
            raise InvalidPrompt(
                f"prompts: that for object {object_id} is on frame {index}, which is not among those followed: "
                f"{first} to {last}{step}, from start_frame {start}"
            )


def _check_removals(prompts: VideoPrompts, backwards: bool) -> None:
    """Rejects the removal of an object that has not been followed until then."""
    for object_id, index in prompts.removals:
        before = [one.frame_index for one in prompts.prompts if one.object_id == object_id]
        if not any(other > index if backwards else other < index for other in before):
            raise InvalidPrompt(f"prompts: object {object_id} is removed on frame {index}, but not followed until then")


def _until_all_removed(prompts: VideoPrompts, frames: range) -> range:
    """Returns the frames without those at the end on which no object is followed any more."""
    last: dict[int, int] = {one.object_id: len(frames) for one in prompts.prompts}
    for object_id, index in prompts.removals:
        place = frames.index(index)
        later = any(
            one.object_id == object_id and one.frame_index in frames and frames.index(one.frame_index) > place
            for one in prompts.prompts
        )
        if not later:
            last[object_id] = min(last[object_id], place)
    return frames[: max(last.values())]
