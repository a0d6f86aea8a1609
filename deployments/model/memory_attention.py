"""Memory attention as `SAM2Base.memory_attention` computes it, with less arithmetic.

Almost all of it is cross-attention: each of a frame's 4,096 places attends to 28,672 remembered ones. A remembered
place has 64 numbers, which a projection makes 256. Weighting the 64 and projecting the sum afterwards gives the same,
since a place's weights add up to 1, and takes five eighths of the arithmetic.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.memory_attention import MemoryAttention
from sam2.modeling.position_encoding import apply_rotary_enc

BLOCK = 1024
"""How many places, and how many remembered ones, are attended at a time on a CPU: its caches hold the weights of such a
block. All weights of an object at once would take 470 MB."""


def attend(
    module: MemoryAttention,
    frames: torch.Tensor,
    position: torch.Tensor,
    frame_of: Sequence[int],
    memory: torch.Tensor,
    memory_position: torch.Tensor,
    num_pointer_tokens: int,
) -> torch.Tensor:
    """Mixes objects' memories into the features of their frames.

    Args:
        module: the weights.
        frames: `F×N×C`, the features of some frames, a token a place.
        position: `1×N×C`, the position encoding of the places.
        frame_of: for each of `B` objects, the index of its frame.
        memory: `B×S×D`, what each object attends to, pointers last.
        memory_position: `B×S×D`, its encoding of space and time.
        num_pointer_tokens: how many of the `S` are of pointers, which have no place.

    Returns:
        `B×N×C`.
    """
    tokens = frames + 0.1 * position if module.pos_enc_at_input else frames
    keys = memory + memory_position
    for number, layer in enumerate(module.layers):
        normed = layer.norm1(tokens)
        query = normed + position if layer.pos_enc_at_attn else normed
        tokens = tokens + layer.self_attn(query, query, normed)
        if number == 0:
            # Up to here a frame's objects are alike.
            tokens = tokens[list(frame_of)]
        normed = layer.norm2(tokens)
        query = normed + position if layer.pos_enc_at_cross_attn_queries else normed
        key = keys if layer.pos_enc_at_cross_attn_keys else memory
        tokens = tokens + _cross_attention(layer.cross_attn_image, query, key, memory, num_pointer_tokens)
        tokens = tokens + layer.linear2(layer.activation(layer.linear1(layer.norm3(tokens))))
    mixed: torch.Tensor = module.norm(tokens)
    return mixed


def _cross_attention(
    attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_pointer_tokens: int
) -> torch.Tensor:
    """Computes what sam2's RoPEAttention computes with one head."""
    places = query.shape[1]
    side = int(places**0.5)
    freqs = attention.freqs_cis
    if freqs.shape[0] != places:
        freqs = attention.compute_cis(end_x=side, end_y=side)
    q, k = attention.q_proj(query), attention.k_proj(key)
    with_place = k.shape[1] - num_pointer_tokens
    q, turned = apply_rotary_enc(
        q[:, None], k[:, None, :with_place], freqs.to(q.device), repeat_freqs_k=attention.rope_k_repeat
    )
    k = torch.cat([turned[:, 0], k[:, with_place:]], 1)
    q = q[:, 0]
    if q.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        mixed = attention.v_proj(torch.stack([_weighted(*one) for one in zip(q, k, value, strict=True)]))
    else:
        # The kernels of a GPU, and those for bfloat16, are fastest with keys and values of one width.
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], attention.v_proj(value)[:, None])[:, 0]
    projected: torch.Tensor = attention.out_proj(mixed)
    return projected


def _weighted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Returns `softmax(query @ key.T / √C) @ value`, `N×D`, of one object, block by block.

    Softmax is the same whatever is subtracted from a row. Instead of a row's maximum, which is known only at the end,
    this subtracts the maximum of a sample of its logits: exponentials then overflow only if another logit is larger by
    88. What is subtracted, and the sum of a row's weights, are a further column of the two multiplications, so that the
    weights are written once, exponentiated once and read once.
    """
    ones = key.new_ones(len(key), 1)
    sample = key[:: max(1, len(key) // BLOCK)]
    keys, values = (torch.split(torch.cat([one, ones], 1), BLOCK) for one in (key, value))
    parts = []
    for rows in torch.split(query * query.shape[-1] ** -0.5, BLOCK):
        lowered = torch.cat([rows, -(rows @ sample.T).amax(1, keepdim=True)], 1)
        mixed = rows.new_zeros(len(rows), value.shape[1] + 1)
        for some_keys, some_values in zip(keys, values, strict=True):
            mixed.addmm_((lowered @ some_keys.T).exp_(), some_values)
        part = mixed[:, :-1] / mixed[:, -1:]
        parts.append(part if part.isfinite().all() else (rows @ key.T).softmax(1) @ value)
    return torch.cat(parts)
