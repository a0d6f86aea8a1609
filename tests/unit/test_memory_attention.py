"""Cross-attention block by block: the same as in one piece, whatever the logits are, and nearly so in bfloat16."""

import numpy as np
import pytest
import torch

from deployments.messages.prompt import Prompt
from deployments.messages.track import TrackPrompt, TrackState
from deployments.model.checkpoints import load_model
from deployments.model.engine import Engine
from deployments.model.memory_attention import BLOCK, _weighted
from deployments.model.tracker import Chunk, Tracker
from deployments.settings import ModelSettings
from harness.videos import squares


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = (query.double() @ key.double().T / query.shape[1] ** 0.5).softmax(1) @ value.double()
    return found


@pytest.mark.parametrize("count", [1, 7, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
def test_blocks_give_what_one_piece_gives(count: int) -> None:
    torch.manual_seed(count)
    query, key, value = torch.randn(BLOCK + 5, 16), torch.randn(count, 16), torch.randn(count, 8)
    found = _weighted(query, key, value)
    np.testing.assert_allclose(found.numpy(), exact(query, key, value).numpy(), atol=1e-5)


def test_a_logit_far_above_those_of_the_sample_overflows_nothing() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(9, 16), torch.randn(4 * BLOCK, 16), torch.randn(4 * BLOCK, 8)
    # Every fourth key is in the sample; this one is not.
    key[4 * BLOCK - 1] = 400 * query[3]
    found = _weighted(query, key, value)
    np.testing.assert_allclose(found.numpy(), exact(query, key, value).numpy(), atol=1e-5)


def test_in_bfloat16_masks_are_nearly_those_of_float32(small_demo: ModelSettings) -> None:
    engine = Engine(load_model(small_demo, lambda *_: None), torch.device("cpu"))
    # Of memory attention alone: embeddings are those of float32.
    embeddings = engine.embed(squares(4))
    masks = []
    for precision in (torch.float32, torch.bfloat16):
        engine.precision = precision
        prompt = TrackPrompt(1, 0, Prompt(box=[10, 40, 42, 80]))
        [found] = Tracker(engine).track([Chunk(embeddings, range(4), [prompt], TrackState(4))])
        masks.append([one.logits[0] > 0 for one in found.masks])
    for exact_mask, rounded in zip(*masks, strict=True):
        assert (exact_mask & rounded).sum() / (exact_mask | rounded).sum() > 0.99
