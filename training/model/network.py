"""The demo model: built from its YAML, run at any square size, with an easier start and attention fit for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

DEMO_FOLDER = Path(__file__).resolve().parents[2] / "deployments" / "model" / "demo"
CONFIG_PATH = DEMO_FOLDER / "sam2_demo.yaml"
CHECKPOINT_PATH = DEMO_FOLDER / "sam2_demo.safetensors"
CLICK_FREQUENCY_SCALES = (1.0, 2.0, 4.0)


class Features(NamedTuple):
    """What the encoder hands the decoder: the embedding (stride 16) and the finer maps (strides 4 and 8)."""

    embedding: Tensor
    high_res: list[Tensor]


class Decoded(NamedTuple):
    """All four masks of each prompt: index 0 the single mask, 1 to 3 the alternatives."""

    masks: Tensor
    scores: Tensor


def build_model(config: Path = CONFIG_PATH) -> Any:
    """SAM2Base as the YAML describes it, with random weights."""
    settings: Any = OmegaConf.load(config)
    return instantiate(settings.model, _recursive_=True)


def ease_start(model: Any) -> None:
    """Start attention from "look where things are alike": queries and keys begin with the same weights.

    A click finds its own place in the image from the first step instead of having to discover it, and tokens of one
    colour find each other. The click encoding also gets finer frequencies, for clicks sharper than SAM's.
    """
    for module in model.modules():
        if hasattr(module, "q_proj") and hasattr(module, "k_proj"):
            if module.q_proj.weight.shape == module.k_proj.weight.shape:
                module.k_proj.load_state_dict(module.q_proj.state_dict())
        elif hasattr(module, "qkv"):
            _share_query_and_key(module.qkv)
    matrix = model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    columns = torch.arange(matrix.shape[1]) % len(CLICK_FREQUENCY_SCALES)
    matrix.mul_(torch.tensor(CLICK_FREQUENCY_SCALES)[columns])


def _share_query_and_key(qkv: nn.Linear) -> None:
    width = qkv.out_features // 3
    with torch.no_grad():
        qkv.weight[width : 2 * width] = qkv.weight[:width]


def set_size(model: Any, size: int) -> None:
    """Make prompts and positions follow an input of size x size pixels; weights stay what they are."""
    encoder = model.sam_prompt_encoder
    encoder.input_image_size = (size, size)
    encoder.image_embedding_size = (size // 16, size // 16)
    encoder.mask_input_size = (size // 4, size // 4)


def encode(model: Any, images: Tensor) -> Features:
    """The features of a batch, as SAM2ImagePredictor.set_image computes them."""
    levels = model.forward_image(images)["backbone_fpn"]
    embedding = levels[-1] + model.no_mem_embed.view(1, -1, 1, 1)
    return Features(embedding, list(levels[:-1]))


def decode(
    model: Any, features: Features, owner: Tensor, points: Tensor | None, labels: Tensor | None, previous: Tensor | None
) -> Decoded:
    """Masks for many prompts in one call; owner says which image of the batch each prompt belongs to."""
    prompts = None if points is None else (points, labels)
    sparse, dense = model.sam_prompt_encoder(points=prompts, boxes=None, masks=previous)
    if prompts is None:
        sparse, dense = sparse.expand(len(owner), -1, -1), dense.expand(len(owner), -1, -1, -1)
    masks, scores, _, _ = model.sam_mask_decoder.predict_masks(
        image_embeddings=_channels_last(features.embedding[owner]),
        image_pe=_channels_last(model.sam_prompt_encoder.get_dense_pe()),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=_channels_last(dense),
        repeat_image=False,
        high_res_features=[_channels_last(level[owner]) for level in features.high_res],
    )
    return Decoded(masks, scores)


def _channels_last(maps: Tensor) -> Tensor:
    """Laid out as the decoder's tokens are, so that sums of maps and tokens run through memory in one order."""
    return maps.contiguous(memory_format=torch.channels_last)


# ---- attention that learns faster on processors, for the time of training

# PyTorch's fused attention is made for long sequences. SAM 2's windows (16 to 64 tokens) and prompts (7 to 12 tokens)
# are short, and there its backward pass costs a third of a training step: two products of matrices and a softmax are
# several times as fast.

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
