"""MemoryBank: what is remembered of one object, as tensors, and what memory attention attends to of it."""

from dataclasses import dataclass

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe, select_closest_cond_frames

from deployments.messages.track import FrameMemory, ObjectState


@dataclass(frozen=True, eq=False)
class Memory:
    """What is remembered of one object on one frame, on the model's device; see FrameMemory.

    Attributes:
        frame_index: the frame.
        pointer: `1×C` float32.
        features: `1×D×h×w` bfloat16, or None.
    """

    frame_index: int
    pointer: torch.Tensor
    features: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Attended:
    """What memory attention attends to for one object.

    Attributes:
        memory: `S×D` float32: each frame's `h·w` features, then the pointers' tokens.
        position: `S×D` float32, its encoding of space and time.
        num_pointer_tokens: how many of the `S` are of pointers.
    """

    memory: torch.Tensor
    position: torch.Tensor
    num_pointer_tokens: int

    @property
    def shape(self) -> tuple[int, int]:
        """A key that objects must share to be attended to in one run."""
        return len(self.memory), self.num_pointer_tokens


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """What is remembered of one object; see ObjectState. Frozen: each frame makes a new one.

    Attributes:
        conditioning: the frames with prompts.
        recent: the last frames without prompts, the newest last.
    """

    conditioning: tuple[Memory, ...] = ()
    recent: tuple[Memory, ...] = ()

    @property
    def first_conditioning(self) -> int:
        """The lowest number of a frame with a prompt."""
        return min(memory.frame_index for memory in self.conditioning)

    def with_conditioning(self, memory: Memory) -> "MemoryBank":
        """Adds a frame with a prompt; it takes the place of what is remembered of this frame."""
        kept = tuple(one for one in self.conditioning if one.frame_index != memory.frame_index)
        recent = tuple(one for one in self.recent if one.frame_index != memory.frame_index)
        return MemoryBank((*kept, memory), recent)

    def with_recent(self, memory: Memory, model: SAM2Base) -> "MemoryBank":
        """Adds a frame without a prompt, and drops what no later frame attends to."""
        kept = []
        for one in self.recent:
            age = abs(memory.frame_index - one.frame_index)
            if age >= max(_reach_of_features(model), _reach_of_pointers(model)):
                continue
            features = one.features if age < _reach_of_features(model) else None
            kept.append(Memory(one.frame_index, one.pointer, features))
        return MemoryBank(self.conditioning, (*kept, memory))

    def attended(
        self, model: SAM2Base, frame_index: int, num_frames: int | None, reverse: bool, encoding: torch.Tensor
    ) -> Attended:
        """Selects what a frame attends to, as `SAM2Base._prepare_memory_conditioned_features` does.

        Args:
            model: the model.
            frame_index: the frame.
            num_frames: the number of frames in the video; None has the same effect as many.
            reverse: whether frames come in reverse order.
            encoding: `(h·w)×D` float32, the features' position encoding, which is the same for every frame.
        """
        conditioning = {one.frame_index: one for one in self.conditioning}
        near, far = select_closest_cond_frames(frame_index, conditioning, model.max_cond_frames_in_attn)
        others = {**far, **{one.frame_index: one for one in self.recent}}
        step = -1 if reverse else 1

        memories, positions = [], []
        spatial = [(0, one) for one in near.values()]
        spatial += [
            (place, others[index])
            for place, index in enumerate(_attended_frames(model, frame_index, step), 1)
            if index in others
        ]
        for place, one in spatial:
            if one.features is not None:
                memories.append(one.features[0].float().flatten(1).T)
                positions.append(encoding + model.maskmem_tpos_enc[model.num_maskmem - place - 1, 0])

        pointers: list[tuple[int, torch.Tensor]] = []
        most = model.max_obj_ptrs_in_encoder if num_frames is None else min(num_frames, model.max_obj_ptrs_in_encoder)
        if model.use_obj_ptrs_in_encoder:
            for index, one in near.items():
                age = (frame_index - index) * step
                if age >= 0 or not model.only_obj_ptrs_in_the_past_for_eval:
                    pointers.append((age if model.use_signed_tpos_enc_to_obj_ptrs else abs(age), one.pointer))
            ages = ((age, others.get(frame_index - age * step)) for age in range(1, most))
            pointers += [(age, one.pointer) for age, one in ages if one is not None]
        num_pointer_tokens = 0
        if pointers:
            tokens, encoded = _pointer_tokens(model, pointers, most)
            memories.append(tokens)
            positions.append(encoded)
            num_pointer_tokens = len(tokens)
        return Attended(torch.cat(memories), torch.cat(positions), num_pointer_tokens)


def _attended_frames(model: SAM2Base, frame_index: int, step: int) -> list[int]:
    """Returns the frames whose features are attended to, the farthest first: the last, and each stride-th before."""
    stride = model.memory_temporal_stride_for_eval
    nearest = (frame_index * step - 2) // stride * stride
    farther = [nearest - back * stride for back in range(model.num_maskmem - 2)]
    return [index * step for index in (*farther[::-1], frame_index * step - 1)]


def _reach_of_features(model: SAM2Base) -> int:
    """Returns the greatest age in frames at which a frame's features are attended to."""
    return int((model.num_maskmem - 2) * model.memory_temporal_stride_for_eval) + 1


def _reach_of_pointers(model: SAM2Base) -> int:
    """Returns the greatest age in frames at which a frame's pointer is attended to."""
    return int(model.max_obj_ptrs_in_encoder) - 1 if model.use_obj_ptrs_in_encoder else 0


def _pointer_tokens(
    model: SAM2Base, pointers: list[tuple[int, torch.Tensor]], most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts pointers into tokens as wide as the features; returns them and their encoding of time, both `T×D`."""
    ages, columns = zip(*pointers, strict=True)
    stacked = torch.cat(columns)
    parts = model.hidden_dim // model.mem_dim
    tokens = stacked.reshape(-1, model.mem_dim)
    if not model.add_tpos_enc_to_obj_ptrs:
        return tokens, torch.zeros_like(tokens)
    width = model.hidden_dim if model.proj_tpos_enc_in_obj_ptrs else model.mem_dim
    # A video of one frame has no other frame to attend to.
    encoded = get_1d_sine_pe(torch.tensor(ages, device=stacked.device) / max(1, most - 1), dim=width)
    return tokens, model.obj_ptr_tpos_proj(encoded).repeat_interleave(parts, dim=0)


def bank_of(state: ObjectState, device: torch.device) -> MemoryBank:
    """Copies a state's arrays to the device."""

    def memory(one: FrameMemory) -> Memory:
        pointer = torch.from_numpy(one.pointer.copy()).to(device)[None]
        if one.features is None:
            return Memory(one.frame_index, pointer, None)
        # A copy, since arrays in Ray's object store are read-only; numpy has no bfloat16.
        bits = torch.from_numpy(one.features.view(np.int16).copy())
        return Memory(one.frame_index, pointer, bits.view(torch.bfloat16).to(device)[None])

    return MemoryBank(tuple(map(memory, state.conditioning)), tuple(map(memory, state.recent)))


def state_of(object_id: int, bank: MemoryBank) -> ObjectState:
    """Copies a bank's tensors into arrays."""

    def memory(one: Memory) -> FrameMemory:
        features = None
        if one.features is not None:
            features = one.features[0].view(torch.int16).cpu().numpy().view(np.uint16)
        return FrameMemory(one.frame_index, one.pointer[0].cpu().numpy(), features)

    return ObjectState(object_id, tuple(map(memory, bank.conditioning)), tuple(map(memory, bank.recent)))
