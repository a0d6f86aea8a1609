"""Attention that learns faster on processors, for the time of training.

PyTorch's fused attention is made for long sequences. SAM 2's windows (16 to 64 tokens) and prompts (7 to 12 tokens) are
short, and there its backward pass costs a third of a training step: two products of matrices and a softmax are several
times as fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT_KEYS = 256
SHORT_QUERIES = 64
fused_attention = F.scaled_dot_product_attention


def attention(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Softmax of query · key / √channels, times value; all are … × tokens × channels. No dropout is done."""
    if key.shape[-2] > SHORT_KEYS and query.shape[-2] > SHORT_QUERIES:
        return fused_attention(query, key, value)
    weights = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-2, -1)).softmax(-1)
    return torch.matmul(weights.to(value.dtype), value)


@contextmanager
def short_attention() -> Iterator[None]:
    """Has SAM 2's modules, which look it up in torch.nn.functional at each call, use `attention`."""
    namespace: Any = F
    namespace.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        namespace.scaled_dot_product_attention = fused_attention
