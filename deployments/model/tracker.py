"""Tracker: follows objects through the frames of a video with SAM 2's memory. Without Ray, and without state.

Gives what `SAM2VideoPredictor` gives, but what it remembers comes in and goes out as a value of bounded size. So
tracking a chunk of frames is a function of frames, prompts and state: it may run anywhere, and may be repeated.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base

from deployments.errors import InvalidPrompt
from deployments.messages.arrays import LOGIT_LIMIT
from deployments.messages.track import FrameMasks, TrackPrompt, TrackState
from deployments.model import memory_attention
from deployments.model.engine import Engine, ImageEmbedding
from deployments.model.mask_decoder import DecodedObjects, Features
from deployments.model.memory_bank import Attended, Memory, MemoryBank, bank_of, state_of
from deployments.model.out_of_memory import all_or_error, run_in_halves
from deployments.model.prompt_batches import PromptedObject, prompted_objects

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some consecutive frames of one video.

    Attributes:
        frames: the frames' embeddings, in the order in which they are followed.
        indices: the frames' numbers; memory knows the time between two frames by them.
        prompts: on these frames. Those on other frames are refused.
        state: of the frames before; `TrackState()` at the start.
    """

    frames: Sequence[ImageEmbedding]
    indices: Sequence[int]
    prompts: Sequence[TrackPrompt]
    state: TrackState


@dataclass(frozen=True, eq=False)
class TrackedChunk:
    """What tracking a chunk gives.

    Attributes:
        masks: of each frame on which any object is followed, in the chunk's order.
        state: for the next chunk.
    """

    masks: list[FrameMasks]
    state: TrackState


@dataclass(frozen=True, eq=False)
class _Decoded:
    """One object's mask on one frame: `1×1×256×256` logits, `1` IoU prediction, `1×C` pointer, `1×1` presence logit."""

    logits: torch.Tensor
    score: torch.Tensor
    pointer: torch.Tensor
    presence: torch.Tensor


@dataclass(eq=False)
class _Step:
    """One object on one frame, on its way through the model."""

    object_id: int
    frame_index: int
    embedding: ImageEmbedding
    prompt: TrackPrompt | None
    bank: MemoryBank
    attended: Attended | None = None
    features: torch.Tensor | None = None
    """`1×C×h×w` float32: the frame's, with the memory mixed in."""
    decoded: _Decoded | None = None

    @property
    def is_first(self) -> bool:
        return not self.bank.conditioning


def can_track(model: SAM2Base) -> bool:
    """Returns whether a model has SAM 2's memory, in the form that all of Meta's models have."""
    return (
        model.num_maskmem > 1
        and model.directly_add_no_mem_embed
        and all(layer.cross_attn_image.num_heads == 1 for layer in model.memory_attention.layers)
    )


class Tracker:
    """Follows objects through videos, on an engine's model.

    Objects of a frame run as one batch, and so do those of several videos where their memories have the same shape.

    Args:
        engine: a model that `can_track`; it may go on segmenting images.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._model = engine.model
        # As `build_sam2_video_predictor` does: a frame with a prompt is remembered by its thresholded mask.
        self._model.binarize_mask_from_pts_for_mem_enc = True
        side = self._model.sam_image_embedding_size
        features = torch.zeros((1, self._model.mem_dim, side, side), device=engine.device)
        # Of the memories' features: `(h·w)×D`, the same for every frame.
        self._memory_position = _as_tokens(self._model.memory_encoder.position_encoding(features))[0]

    @torch.inference_mode()
    def track(self, chunks: Sequence[Chunk]) -> list[TrackedChunk]:
        """Follows the objects of some videos through a chunk of each.

        A prompt for an object that is not followed yet begins it, without memory. A prompt on a later frame corrects
        it: the frame is decoded with memory, then again with the prompt and the logits that the first run gave. Both
        make the frame a conditioning one, as `SAM2VideoPredictor(add_all_frames_to_correct_as_cond=True)` does.

        Raises:
            InvalidPrompt: a prompt is on none of the chunk's frames, or there are two for one object and frame.
            Overloaded: a single object does not fit into the device's memory.
        """
        for chunk in chunks:
            _check(chunk)
        with self._engine.decoding():
            banks = [
                {one.object_id: bank_of(one, self._engine.device) for one in chunk.state.objects} for chunk in chunks
            ]
            masks: list[list[FrameMasks]] = [[] for _ in chunks]
            for place in range(max((len(chunk.frames) for chunk in chunks), default=0)):
                frames = [
                    (number, list(_steps(chunk, place, banks[number])))
                    for number, chunk in enumerate(chunks)
                    if place < len(chunk.frames)
                ]
                self._advance([(step, chunks[number].state) for number, steps in frames for step in steps])
                for number, steps in frames:
                    banks[number].update({step.object_id: step.bank for step in steps})
                    if steps:
                        masks[number].append(_frame_masks(steps))
            states = [
                replace(chunk.state, objects=tuple(state_of(object_id, bank) for object_id, bank in after.items()))
                for chunk, after in zip(chunks, banks, strict=True)
            ]
        return [TrackedChunk(*result) for result in zip(masks, states, strict=True)]

    # ---- one frame of each video

    def _advance(self, steps: Sequence[tuple[_Step, TrackState]]) -> None:
        """Decodes and remembers each object on its frame."""
        for step, state in steps:
            if not step.is_first and not _has_mask(step):
                step.attended = step.bank.attended(
                    self._model, step.frame_index, state.num_frames, state.reverse, self._memory_position
                )
            elif step.is_first:
                step.features = step.embedding.image_embed.float() + self._model.no_mem_embed.reshape(1, -1, 1, 1)
        attending = [step for step, _ in steps if step.attended is not None]
        for step, features in self._each(self._attend, attending, lambda step: step.attended and step.attended.shape):
            step.features, step.attended = features, None
        for step, decoded in self._each(self._decode, attending, lambda _: None):
            step.decoded = decoded
        prompted = [step for step, _ in steps if step.prompt is not None and not _has_mask(step)]
        objects = {id(step): self._prompted(step) for step in prompted}
        for step, decoded in self._each(
            lambda batch: self._decode(batch, [objects[id(step)] for step in batch]),
            prompted,
            lambda step: (objects[id(step)].kind, step.is_first),
        ):
            step.decoded = decoded
        given = [step for step, _ in steps if _has_mask(step)]
        for step, decoded in self._each(self._take_mask, given, lambda _: None):
            step.decoded = decoded
        every = [step for step, _ in steps]
        for step, features in self._each(self._remember, every, lambda step: step.prompt is not None):
            assert step.decoded is not None
            memory = Memory(step.frame_index, step.decoded.pointer, features)
            if step.prompt is None:
                step.bank = step.bank.with_recent(memory, self._model)
            else:
                step.bank = step.bank.with_conditioning(memory)

    def _each(
        self,
        run: Callable[[Sequence[_Step]], Sequence[Result]],
        steps: Sequence[_Step],
        key: Callable[[_Step], Hashable],
    ) -> Iterator[tuple[_Step, Result]]:
        """Runs steps of the same key together, as many as the engine takes at once; yields each with its result."""
        groups: dict[Hashable, list[_Step]] = {}
        for step in steps:
            groups.setdefault(key(step), []).append(step)
        for group in groups.values():
            for start in range(0, len(group), self._engine.objects_at_once):
                batch = group[start : start + self._engine.objects_at_once]
                results = all_or_error(run_in_halves(run, batch, self._engine.device, "object"))
                yield from zip(batch, results, strict=True)

    def _attend(self, steps: Sequence[_Step]) -> list[torch.Tensor]:
        """Mixes objects' memories into the features of their frames; each `1×C×h×w` float32."""
        frames = {id(step.embedding): step.embedding for step in steps}
        places = {key: place for place, key in enumerate(frames)}
        features = torch.cat([embedding.image_embed for embedding in frames.values()]).float()
        attended = [step.attended for step in steps if step.attended is not None]
        # As Meta runs the whole predictor; here only what takes nearly all of the time besides the image encoder.
        with torch.autocast(self._engine.device.type, torch.bfloat16, self._engine.precision == torch.bfloat16):
            mixed = memory_attention.attend(
                self._model.memory_attention,
                _as_tokens(features),
                _as_tokens(self._engine.position_encoding(steps[0].embedding)),
                [places[id(step.embedding)] for step in steps],
                torch.stack([one.memory for one in attended]),
                torch.stack([one.position for one in attended]),
                attended[0].num_pointer_tokens,
            ).float()
        return list(torch.split(mixed.transpose(1, 2).unflatten(2, features.shape[2:]), 1))  # type: ignore[no-untyped-call]

    def _decode(self, steps: Sequence[_Step], objects: Sequence[PromptedObject] | None = None) -> list[_Decoded]:
        """Runs the mask decoder on features with memory: without prompts, or with prompts of one kind."""
        points = masks = None
        if objects and objects[0].coords is not None:
            coords, labels = (
                np.stack([one.coords for one in objects if one.coords is not None]),
                np.stack([one.labels for one in objects if one.labels is not None]),
            )
            points = {"point_coords": self._tensor(coords), "point_labels": self._tensor(labels)}
        if objects:
            before = [self._logits_before(step, one) for step, one in zip(steps, objects, strict=True)]
            masks = torch.cat([one for one in before if one is not None]) if before[0] is not None else None
        size = self._model.sam_prompt_encoder.mask_input_size
        if masks is not None and masks.shape[-2:] != size:
            # As `SAM2Base._forward_sam_heads` does for models of another image size than 1024.
            masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False, antialias=True)
        sparse, dense = self._model.sam_prompt_encoder(
            points=tuple((points or self._no_point(len(steps))).values()), boxes=None, masks=masks
        )
        decoded = self._engine.decoder.decode(
            [Features(step.features, step.embedding.high_res_feats) for step in steps if step.features is not None],
            sparse,
            None if masks is None else dense,
            self._model._use_multimask(steps[0].is_first, points),
        )
        return self._chosen(decoded)

    def _no_point(self, count: int) -> dict[str, torch.Tensor]:
        """Returns the prompt of objects without one, as SAM 2 has it: padding."""
        labels = np.full((count, 1), -1, np.int32)
        return {"point_coords": self._tensor(np.zeros((count, 1, 2), np.float32)), "point_labels": self._tensor(labels)}

    def _chosen(self, decoded: DecodedObjects) -> list[_Decoded]:
        """Takes the candidates with the best scores, and makes pointers of their tokens.

        As `SAM2Base._forward_sam_heads` does, without bringing all candidates to the model's resolution.
        """
        model = self._model
        every, best = torch.arange(len(decoded.scores), device=self._engine.device), decoded.scores.argmax(1)
        logits = decoded.logits[every, best][:, None]
        pointers = model.obj_ptr_proj(decoded.tokens[every, best if decoded.tokens.shape[1] > 1 else 0])
        if model.pred_obj_scores:
            present = decoded.presence > 0
            logits = torch.where(present[..., None, None], logits, NO_OBJ_SCORE)
            share = decoded.presence.sigmoid() if model.soft_no_obj_ptr else present.float()
            pointers = (share * pointers if model.fixed_no_obj_ptr else pointers) + (1 - share) * model.no_obj_ptr
        return _each_decoded(logits, decoded.scores, pointers, decoded.presence)

    def _logits_before(self, step: _Step, prompted: PromptedObject) -> torch.Tensor | None:
        """Returns the `1×1×256×256` logits that a prompt refines: those given, else those that the frame has."""
        if prompted.mask is not None:
            return self._tensor(prompted.mask)[None].clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        return None if step.decoded is None else step.decoded.logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)

    def _prompted(self, step: _Step) -> PromptedObject:
        assert step.prompt is not None
        assert step.prompt.prompt is not None
        [one] = prompted_objects(0, step.prompt.prompt, step.embedding.image_size, self._model.image_size)
        return one

    def _take_mask(self, steps: Sequence[_Step]) -> list[_Decoded]:
        """Takes masks that were given as they are, at the model's resolution."""
        _, _, scores, logits, _, pointers, presence = self._model._use_mask_as_output(
            torch.cat([step.embedding.image_embed for step in steps]).float(),
            _high_res([step.embedding for step in steps]),
            torch.cat([self._mask(step) for step in steps]),
        )
        return _each_decoded(logits, scores, pointers, presence)

    def _mask(self, step: _Step) -> torch.Tensor:
        """Returns the mask that was given as `1×1×S×S` float32, resized as `SAM2VideoPredictor.add_new_mask` does."""
        assert step.prompt is not None
        assert step.prompt.mask is not None
        mask = self._tensor(step.prompt.mask.astype(np.float32))[None, None]
        side = self._model.image_size
        if mask.shape[-2:] == (side, side):
            return mask
        resized = F.interpolate(mask, (side, side), mode="bilinear", align_corners=False, antialias=True)
        return (resized >= 0.5).float()

    def _remember(self, steps: Sequence[_Step]) -> list[torch.Tensor]:
        """Encodes masks into memories, each `1×D×h×w` bfloat16; of frames with prompts, or of frames without."""
        decoded = [step.decoded for step in steps if step.decoded is not None]
        side = self._model.image_size
        logits = F.interpolate(
            torch.cat([one.logits for one in decoded]), (side, side), mode="bilinear", align_corners=False
        )
        features = torch.cat([step.embedding.image_embed for step in steps]).float()
        encoded, _ = self._model._encode_new_memory(
            current_vision_feats=[_as_tokens(features).transpose(0, 1)],
            feat_sizes=[features.shape[-2:]],
            pred_masks_high_res=logits,
            object_score_logits=torch.cat([one.presence for one in decoded]),
            is_mask_from_pts=steps[0].prompt is not None,
        )
        return [one.clone() for one in encoded.to(torch.bfloat16).split(1)]

    def _tensor(self, array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> torch.Tensor:
        return torch.from_numpy(array).to(self._engine.device)


def _each_decoded(
    logits: torch.Tensor, scores: torch.Tensor, pointers: torch.Tensor, presence: torch.Tensor
) -> list[_Decoded]:
    """Takes a batch apart. Of several candidates the logits are those of the best score."""
    columns = (torch.split(column, 1) for column in (logits, scores.amax(1), pointers, presence))
    return [_Decoded(*one) for one in zip(*columns, strict=True)]


def _check(chunk: Chunk) -> None:
    seen = set()
    for prompt in chunk.prompts:
        if prompt.frame_index not in chunk.indices:
            raise InvalidPrompt(f"prompts: frame {prompt.frame_index} is not among those that are followed here")
        key = prompt.object_id, prompt.frame_index
        if key in seen:
            raise InvalidPrompt(
                f"prompts: object {key[0]} has two prompts on frame {key[1]}; put their points into one prompt"
            )
        seen.add(key)


def _steps(chunk: Chunk, place: int, banks: dict[int, MemoryBank]) -> Iterator[_Step]:
    """Yields the objects of one frame: those that are followed, then those that begin here.

    In reverse order, an object that has been followed forwards already is followed on from its first prompt.
    """
    index = chunk.indices[place]
    prompts = {prompt.object_id: prompt for prompt in chunk.prompts if prompt.frame_index == index}
    for object_id in dict.fromkeys((*banks, *prompts)):
        bank = banks.get(object_id, MemoryBank())
        if chunk.state.reverse and object_id not in prompts and index >= bank.first_conditioning:
            continue
        yield _Step(object_id, index, chunk.frames[place], prompts.get(object_id), bank)


def _frame_masks(steps: Sequence[_Step]) -> FrameMasks:
    decoded = [step.decoded for step in steps if step.decoded is not None]
    return FrameMasks(
        steps[0].frame_index,
        tuple(step.object_id for step in steps),
        steps[0].embedding.image_size,
        torch.cat([one.logits for one in decoded])[:, 0].cpu().numpy(),
        torch.cat([one.score for one in decoded]).cpu().numpy(),
        torch.cat([one.presence for one in decoded])[:, 0].sigmoid().cpu().numpy(),
    )


def _has_mask(step: _Step) -> bool:
    return step.prompt is not None and step.prompt.mask is not None


def _as_tokens(features: torch.Tensor) -> torch.Tensor:
    """`B×C×h×w` as `B×(h·w)×C`."""
    return features.flatten(2).transpose(1, 2)


def _high_res(embeddings: Sequence[ImageEmbedding]) -> list[torch.Tensor] | None:
    levels = [torch.cat(list(level)).float() for level in zip(*(one.high_res_feats for one in embeddings), strict=True)]
    return levels or None
