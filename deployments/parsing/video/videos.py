"""Videos: the steps from a video and prompts to the masks of its frames, which HTTP requests and handle calls share."""

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import BinaryIO, cast

from deployments.errors import InvalidPrompt, InvalidRequest, InvalidVideo, Overloaded, TooLarge
from deployments.messages.answer_format import TrackFormat
from deployments.messages.track import LOGITS_BYTES, FrameMasks
from deployments.messages.video import VideoFacts, frame_image_id
from deployments.parsing.deadline import Deadline
from deployments.parsing.images import IMAGE_ID, IdentifiedImage
from deployments.parsing.model_calls import ModelCalls
from deployments.parsing.stage_times import StageTimes
from deployments.parsing.video.job import CHUNK_BYTES, MAX_CHUNK, TrackJob, TrackRequest
from deployments.parsing.video.job_replica import JobReplica
from deployments.parsing.video.plan import FrameRange, plan
from deployments.parsing.video.prompts import TimedPrompt, resolve
from deployments.parsing.video.video_calls import RequestedVideo, VideoCalls
from deployments.settings import BUNDLED_MODEL_ID, ServiceSettings

STATE_BYTES = 4_200_000
"""About what is remembered of an object with one prompt, for SAM 2."""

MEMORY_BYTES = 525_000
"""What each further frame with a prompt adds to that."""


class Videos:
    """Identifies videos, and follows objects through them.

    Args:
        settings: the application's settings.
        calls: sends calls to models.
        video_calls: sends calls to VideoReader.
    """

    def __init__(self, settings: ServiceSettings, calls: ModelCalls, video_calls: VideoCalls) -> None:
        self._settings = settings
        self._calls = calls
        self._video_calls = video_calls
        self._jobs = 0

    async def identify(self, video: bytes | BinaryIO | None, video_id: str = "") -> RequestedVideo:
        """Identifies a request's video: computes the id of the file that was sent, or takes the id that was given.

        Raises:
            InvalidRequest: there are both a video and an id, or neither, or the id is malformed.
            TooLarge: the file has too many bytes.
        """
        if video is not None and video_id:
            raise InvalidRequest("video_id: is given as well as video; send one of them")
        if video is None and not video_id:
            raise InvalidVideo("video: is missing; send it, or the video_id of a video that the service keeps")
        if video_id:
            return video_by_id(video_id)
        if not isinstance(video, (bytes, bytearray, memoryview, io.IOBase)) and not hasattr(video, "read"):
            raise InvalidVideo(f"video: must be the bytes of a file, or an open file, is {type(video).__name__}")
        source = io.BytesIO(video) if isinstance(video, (bytes, bytearray, memoryview)) else cast(BinaryIO, video)
        size = source.seek(0, os.SEEK_END)
        if not size:
            raise InvalidVideo("video: the file is empty")
        if size > (limit := self._settings.limits.max_video_bytes):
            raise TooLarge(f"video: has {size} bytes, more than the {limit} that are accepted")
        source.seek(0)
        digest = await asyncio.to_thread(hashlib.file_digest, cast(io.BytesIO, source), "sha256")
        return RequestedVideo(digest.hexdigest(), source)

    async def facts(self, video: RequestedVideo, deadline: Deadline) -> VideoFacts:
        """Returns what is known of a video; see `VideoCalls.facts`."""
        return await self._video_calls.facts(video, deadline)

    async def frame(self, video: RequestedVideo, index: int, deadline: Deadline) -> IdentifiedImage:
        """Identifies a frame as an image: its pixels are decoded only if a model needs them.

        Raises:
            InvalidRequest: the video has no such frame.
            VideoNotCached, InvalidVideo, TooLarge, Unavailable: see `VideoCalls.facts`.
        """
        facts = await self._video_calls.facts(video, deadline)
        if not 0 <= index < facts.num_frames:
            raise InvalidRequest(
                f"frame_index: must be from 0 to {facts.num_frames - 1}, the frames of this video, is {index}"
            )
        fetch = partial(self._video_calls.frame, video, index)
        decoded_bytes = 3 * facts.width * facts.height
        return IdentifiedImage(frame_image_id(video.video_id, index), None, decoded_bytes, fetch)

    async def prepare(
        self,
        video: RequestedVideo,
        prompts: Sequence[TimedPrompt],
        which: FrameRange,
        model_id: str,
        track_format: TrackFormat,
        deadline: Deadline,
    ) -> TrackRequest:
        """Checks all that can be known before the first frame is followed, and takes the job on.

        The caller must end `TrackRequest.replica` if it does not use up or close `masks`.

        Raises:
            InvalidRequest: the model cannot follow objects, or the prompts do not suit the video.
            VideoNotCached, InvalidVideo: there is no video, or it cannot be read.
            TooLarge: the video, or a frame's answer, is over a limit.
            Unavailable: the model is not ready or is overloaded, or the deadline has passed.
        """
        if model_id == BUNDLED_MODEL_ID:
            raise InvalidRequest(
                f"model_id: {model_id} segments images only; its memory is not trained to follow objects. Use one of "
                "Meta's models, such as facebook/sam2.1-hiera-tiny"
            )
        step = deadline.step(self._calls.config.request_timeout_s)
        facts = await self._video_calls.facts(video, step)
        resolved = resolve(prompts, facts)
        planned = plan(resolved, which, facts)
        ids = {one.object_id for one in resolved.prompts}
        numbers = len(ids) * facts.width * facts.height
        if numbers > (limit := self._settings.limits.max_compact_numbers):
            raise TooLarge(
                f"video: {len(ids)} masks of {facts.width}×{facts.height} are more than the {limit} numbers accepted"
            )
        if track_format.response_format == "png" and planned.repeats_frames:
            raise InvalidRequest(
                "response_format: png holds each frame once; with direction both, all objects must begin on one frame"
            )
        if track_format.response_format == "png" and not all(1 <= one <= 255 for one in ids):
            raise InvalidPrompt("prompts: response_format png needs object_ids from 1 to 255, its labels")
        # Again: others may have begun while the file was on its way, and later there is no status any more.
        self.check_jobs()
        self._jobs += 1
        replica = JobReplica(self._calls, model_id, video.video_id, self._note_end)
        await replica.begin(step)
        return TrackRequest(video, facts, model_id, resolved, planned, replica)

    async def masks(
        self, request: TrackRequest, deadline: Deadline, times: StageTimes
    ) -> AsyncGenerator[FrameMasks, None]:
        """Follows objects; see `TrackJob.masks`. The job has ended when the generator has."""
        async with aclosing(TrackJob(request, self._calls, self._video_calls, deadline, times).masks()) as masks:
            async for one in masks:
                yield one

    def _note_end(self) -> None:
        self._jobs -= 1

    def check_jobs(self) -> None:
        """Rejects a further job if there are too many.

        Raises:
            Overloaded: there are.
        """
        if self._jobs >= (limit := self._calls.config.max_video_jobs):
            raise Overloaded(f"overloaded: {limit} requests follow objects in videos already", 30.0)


def held_bytes(request: TrackRequest) -> int:
    """Estimates the most bytes that a job holds in RequestParser: a state, two chunks' logits, and given masks."""
    prompts = request.prompts.prompts
    objects = len({one.object_id for one in prompts})
    state = objects * STATE_BYTES + (len(prompts) - objects) * MEMORY_BYTES
    logits = max(objects * LOGITS_BYTES, min(MAX_CHUNK * objects * LOGITS_BYTES, CHUNK_BYTES))
    return state + 2 * logits + sum(one.mask.nbytes for one in prompts if one.mask is not None)


def video_by_id(video_id: str) -> RequestedVideo:
    """Returns a video of which only the id is given.

    Raises:
        InvalidRequest: the id is malformed.
    """
    if not isinstance(video_id, str) or not IMAGE_ID.fullmatch(video_id):
        raise InvalidRequest("video_id: must be the 64 hexadecimal digits of a SHA-256, as X-Video-Id has them")
    return RequestedVideo(video_id)
