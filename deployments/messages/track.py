"""Following objects through a video: prompts on frames, the state that travels from chunk to chunk, and the masks."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deployments.errors import InvalidPrompt, ServiceError
from deployments.messages.arrays import LOW_RES_SIZE, FloatArray
from deployments.messages.prompt import Prompt
from deployments.messages.upsampling import row_chunks, upsample, upsample_rows

BoolArray: TypeAlias = NDArray[np.bool_]

LOGITS_BYTES = 4 * LOW_RES_SIZE**2
"""Bytes of an object's logits on a frame."""


@dataclass(frozen=True, eq=False, init=False)
class TrackPrompt:
    """What is known of one object on one frame. On a frame that the object has been followed to, it is a correction.

    Attributes:
        object_id: the caller's number for the object.
        frame_index: the frame.
        prompt: points, a box, `mask_input` or a mix of them, for one object; None if `mask` is given. Its
            `multimask_output` has no effect: as in SAM 2, a single click is decoded to three masks, of which the best
            is kept.
        mask: `H×W` bool, the object's mask on this frame; None if `prompt` is given. The service takes masks as large
            as the frame; the tracker itself resizes others.

    Raises:
        InvalidPrompt: there are both a prompt and a mask or neither, the prompt is empty or for several objects, or the
            mask is not a table of booleans, 0 and 1.
    """

    object_id: int
    frame_index: int
    prompt: Prompt | None
    mask: BoolArray | None

    def __init__(
        self, object_id: int, frame_index: int, prompt: Prompt | None = None, mask: ArrayLike | None = None
    ) -> None:
        if (prompt is None) == (mask is None):
            raise InvalidPrompt("mask: give either a mask, or points, a box or mask_input")
        if prompt is not None:
            if prompt.num_objects != 1:
                raise InvalidPrompt(f"prompts: each is for one object; this one is for {prompt.num_objects}")
            if prompt.point_coords is None and prompt.box is None and prompt.mask_input is None:
                raise InvalidPrompt("prompts: each needs points, a box, a mask or mask_input")
        values = {
            "object_id": int(object_id),
            "frame_index": int(frame_index),
            "prompt": prompt,
            "mask": None if mask is None else _mask(mask),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _mask(value: ArrayLike) -> BoolArray:
    array = np.asarray(value)
    if array.ndim != 2 or not array.size:
        raise InvalidPrompt(f"mask: must be H×W, is {'×'.join(map(str, array.shape)) or 'a single number'}")
    # SAM 2's predictor takes 255 too, and turns it into a mask that is more than true.
    # Booleans are not looked at: that takes 0.15 s for a frame of 4K, on the event loop.
    if array.dtype.kind not in "biuf" or (array.dtype != bool and not np.isin(array, (0, 1)).all()):
        raise InvalidPrompt("mask: must hold booleans, or 0 and 1")
    return array.astype(bool)


@dataclass(frozen=True, eq=False)
class FrameMemory:
    """What is remembered of one object on one frame.

    Attributes:
        frame_index: the frame.
        pointer: `C` float32, the object pointer; for SAM 2, C = 256.
        features: `D×h×w` bfloat16, whose bits are held as uint16, the memory encoder's output; for SAM 2, 64×64×64.
            None if the frame is too old for memory attention, which then needs its pointer alone.
    """

    frame_index: int
    pointer: FloatArray
    features: NDArray[np.uint16] | None


@dataclass(frozen=True, eq=False)
class ObjectState:
    """What is remembered of one object: bounded, however long the video is.

    Attributes:
        object_id: the caller's number for the object.
        conditioning: the frames with prompts.
        recent: the last frames without prompts, the newest last.
    """

    object_id: int
    conditioning: tuple[FrameMemory, ...]
    recent: tuple[FrameMemory, ...]


@dataclass(frozen=True, eq=False)
class TrackState:
    """All that tracking needs of the frames before: a chunk of frames is a function of itself and of this state.

    Attributes:
        num_frames: the number of frames in the video; None if it is not known, which has the same effect as 16 or more.
            SAM 2 scales the temporal encoding of object pointers by it, in videos of fewer frames than 16.
        reverse: whether frames come in reverse order.
        objects: in the order of their first prompts.
    """

    num_frames: int | None = None
    reverse: bool = False
    objects: tuple[ObjectState, ...] = ()

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays."""
        memories = (memory for one in self.objects for memory in (*one.conditioning, *one.recent))
        return sum(
            memory.pointer.nbytes + (0 if memory.features is None else memory.features.nbytes) for memory in memories
        )

    def without(self, object_ids: Collection[int]) -> "TrackState":
        """Returns a state in which some objects are followed no more."""
        return replace(self, objects=tuple(one for one in self.objects if one.object_id not in object_ids))

    def turned(self) -> "TrackState":
        """Returns the state for the other direction, from the frames with prompts."""
        objects = tuple(replace(one, recent=()) for one in self.objects)
        return replace(self, reverse=not self.reverse, objects=objects)


@dataclass(frozen=True, eq=False)
class FrameMasks:
    """The masks of one frame, of every object that is followed there.

    Attributes:
        frame_index: the frame.
        object_ids: the `B` objects.
        image_size: height and width of the frame in pixels.
        logits: `B×256×256` float32 low-resolution logits, not clamped; −1024 everywhere if the object is absent.
        scores: `B` float32, the predicted IoU of each mask; 1 for a mask that was given.
        presence: `B` float32, the probability that the object is to be seen; always near 1 for models that do not
            predict it.
        time_s: when the frame is shown, in seconds from the video's start; None if the video gives its frames no times.
    """

    frame_index: int
    object_ids: tuple[int, ...]
    image_size: tuple[int, int]
    logits: FloatArray
    scores: FloatArray
    presence: FloatArray
    time_s: float | None = None

    @property
    def present(self) -> BoolArray:
        """`B` booleans: whether the model takes the object to be seen."""
        present: BoolArray = self.presence > 0.5
        return present

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays."""
        return self.logits.nbytes + self.scores.nbytes + self.presence.nbytes

    def mask(self, index: int) -> BoolArray:
        """Computes the mask of the object at `index` in `object_ids`, at the frame's size, `H×W` bool."""
        mask: BoolArray = upsample(self.logits[index], self.image_size) > 0
        return mask

    def labels(self) -> NDArray[np.uint16]:
        """Gives each pixel to one object: that with the highest logit, if the logit is above 0.

        Returns:
            `H×W` uint16: the object's place in `object_ids`, counted from 1, or 0 where no object is. Without overlaps,
            as `SAM2VideoPredictor(non_overlap_masks=True)` gives masks.
        """
        labels = np.zeros(self.image_size, np.uint16)
        for start, stop in row_chunks(*self.image_size, 250_000):
            highest = np.zeros((stop - start, self.image_size[1]), np.float32)
            for place, logits in enumerate(self.logits, 1):
                rows = upsample_rows(logits, self.image_size, start, stop)
                is_higher = rows > highest
                labels[start:stop][is_higher] = place
                np.maximum(highest, rows, out=highest)
        return labels

    def masks(self, non_overlapping: bool = False) -> Iterator[BoolArray]:
        """Yields the mask of each object at the frame's size, `H×W` bool.

        Args:
            non_overlapping: whether each pixel belongs to one object at most, see `labels`.
        """
        labels = self.labels() if non_overlapping else None
        for index in range(len(self.object_ids)):
            yield self.mask(index) if labels is None else labels == index + 1


@dataclass(frozen=True, eq=False)
class TrackCall:
    """Follows objects through some frames of a video.

    SAM 2's memory counts frames by their position among those that are followed. If every frame is followed, that is
    the frame's index in the file.

    Attributes:
        video_id: SHA-256 of the video file, as hex.
        job: a name that no other job has; the replica keeps the state under it.
        run: 0 for the job's first pass over the video, 1 for its second.
        position: of the first frame.
        frames: the frames' indices in the file, in the order in which they are followed.
        prompts: on these frames; their `frame_index` is a position.
        ended: the ids of the objects that are followed no more.
        wants_state: whether the answer is to hold the state after the last frame.
    """

    video_id: str
    job: str
    position: int
    frames: range
    run: int = 0
    prompts: tuple[TrackPrompt, ...] = ()
    ended: frozenset[int] = frozenset()
    wants_state: bool = False


@dataclass(frozen=True, eq=False)
class TrackedFrames:
    """A model's answer to a TrackCall.

    Attributes:
        masks: of each frame on which any object is followed.
        num_frames: how many of the call's frames were followed: fewer than asked for if there is a fault.
        state: the state after them, if the call asked for it.
        fault: why the next frame could not be followed, or None.
        hits: how many frames' embeddings were remembered.
        others: how many other jobs the replica has.
        embed_s: seconds that the image encoder ran, or that the call waited for it.
        track_s: seconds that the tracker ran; other calls' frames may have been in the same runs.
        replica: the replica's name.
    """

    masks: tuple[FrameMasks, ...]
    num_frames: int
    state: TrackState | None = None
    fault: ServiceError | None = None
    hits: int = 0
    others: int = 0
    embed_s: float = 0.0
    track_s: float = 0.0
    replica: str = ""
