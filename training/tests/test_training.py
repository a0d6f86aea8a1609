"""Training: attention, losses, several processes, and the loop."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from training import train
from training.model import learning, network
from training.model.network import build_model, decode, encode, set_size
from training.scenes import render as scenes
from training.scenes import sprites, textures
from training.tests.gradients import share_gradients

# ---- attention


def outcome(attend: Callable[..., Tensor], tensors: Sequence[Tensor], towards: Tensor) -> list[Tensor]:
    """What attention gives, and the gradients of what goes in."""
    out = attend(*tensors)
    return [out, *torch.autograd.grad(out, tensors, towards)]


@pytest.mark.parametrize(("queries", "keys"), [(9, 7), (16, 16), (64, 400), (400, 256), (65, 257), (400, 9)])
def test_attention_and_its_gradients_are_those_of_torchs_fused_one(queries: int, keys: int) -> None:
    torch.manual_seed(queries)
    shapes = [(2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    towards = torch.randn(2, 3, queries, 8, dtype=torch.float64)

    ours, theirs = (outcome(attend, tensors, towards) for attend in (network.attention, network.fused_attention))

    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_short_attention_puts_back_what_it_replaced_even_after_an_error() -> None:
    namespace: Any = F
    before = namespace.scaled_dot_product_attention

    def fail() -> None:
        with network.short_attention():
            assert namespace.scaled_dot_product_attention is network.attention
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert namespace.scaled_dot_product_attention is before


def test_sam2_uses_the_short_attention_and_answers_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build_model().eval()
    set_size(model, 64)
    image, owner = torch.randn(1, 3, 64, 64), torch.zeros(2, dtype=torch.long)
    points, labels = torch.tensor([[[10.0, 20.0]], [[40.0, 30.0]]]), torch.ones(2, 1)
    calls: list[int] = []
    short = network.attention

    def counted(*tensors: Any, **options: Any) -> Tensor:
        calls.append(1)
        return short(*tensors, **options)

    monkeypatch.setattr(network, "attention", counted)
    with torch.no_grad():
        expected = decode(model, encode(model, image), owner, points, labels, None)
        assert not calls
        with network.short_attention():
            answer = decode(model, encode(model, image), owner, points, labels, None)

    # Eight blocks of the trunk; seven attentions of the decoder.
    assert len(calls) == 8 + 7
    torch.testing.assert_close(answer.masks, expected.masks, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answer.scores, expected.scores, atol=1e-4, rtol=1e-4)


# ---- losses


def four_guesses() -> tuple[Tensor, Tensor]:
    """Logits of four masks for two prompts, of which the third mask is the best, and the targets."""
    target = torch.zeros(2, 1, 32, 32)
    target[0, 0, 3:9, 10:30] = target[1, 0, 8:24, 4:12] = 1
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 32, 32, generator=generator)
    logits[:, 2:3] += 4 * (target - 0.5)
    return logits.requires_grad_(), target


def test_ious_are_of_masks_cut_at_one_half() -> None:
    logits = torch.full((1, 3, 4, 4), -1.0)
    logits[0, 0, :2], logits[0, 1, :, :2] = 0.1, 5.0
    target = torch.zeros(1, 1, 4, 4)
    target[0, 0, :2] = 0.6
    target[0, 0, 2:] = 0.4

    torch.testing.assert_close(learning.ious(logits, target), torch.tensor([[1.0, 4 / 12, 0.0]]))


def test_only_the_best_of_three_masks_learns_in_full() -> None:
    logits, target = four_guesses()
    full = torch.autograd.grad(learning.mask_losses(logits, target).sum(), logits)[0].norm(dim=(2, 3))

    loss, _ = learning.prompt_loss(logits, torch.zeros(2, 4), target, torch.ones(2))
    share = torch.autograd.grad(loss, logits)[0].norm(dim=(2, 3)) / full * len(logits)

    assert (share[:, 2] > 1).all()
    assert ((share[:, [1, 3]] > 0) & (share[:, [1, 3]] < 0.05)).all()
    assert (share[:, 0] > 0.3).all()


def test_the_single_mask_does_not_learn_where_it_is_not_clear_what_is_meant() -> None:
    logits, target = four_guesses()
    scores = torch.full((2, 4), 0.9, requires_grad=True)

    loss, _ = learning.prompt_loss(logits, scores, target, torch.tensor([1.0, 0.0]))
    by_mask, by_score = torch.autograd.grad(loss, (logits, scores))

    learns = by_mask.abs().amax((2, 3)) > 0
    assert learns.tolist() == [[True] * 4, [False, True, True, True]]
    assert (by_score != 0).tolist() == learns.tolist()


def test_scores_learn_the_ious_that_were_reached() -> None:
    logits, target = (tensor.detach() for tensor in four_guesses())
    reached = learning.ious(logits, target)
    right, returned = learning.prompt_loss(logits, reached, target, torch.ones(2))
    wrong, _ = learning.prompt_loss(logits, reached + 0.5, target, torch.ones(2))

    assert torch.equal(returned, reached)
    assert float(wrong - right) == pytest.approx(learning.SCORE_WEIGHT * 0.25)


def test_features_that_tell_objects_apart_have_less_loss() -> None:
    torch.manual_seed(0)
    helper = learning.AffinityHead(channels=(2, 2, 2), width=2)
    for level in helper.levels:
        level.load_state_dict({"weight": torch.eye(2)[..., None, None], "bias": torch.zeros(2)})
    objects = torch.zeros(1, 16, 16)
    objects[..., 8:] = 3
    apart = torch.stack([objects == 0, objects == 3], dim=1).float()

    told, mixed = (float(helper([maps, maps, maps], objects).detach()) for maps in (apart, torch.ones_like(apart)))

    assert told < 0.25 * mixed


# ---- several processes


def test_processes_take_the_mean_of_their_gradients(tmp_path: Path) -> None:
    learning.run(2, share_gradients, tmp_path)

    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert [gradient.unique().tolist() for gradient in found["gradients"]] == [[1.5], [2], [0], [0]]
        assert found["clock"] == 3


# ---- the loop


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A group of this process only, for which each step takes a second; of one thread, so that sums repeat."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    monkeypatch.setattr(train, "time", SimpleNamespace(process_time=count().__next__))
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two scenes to learn from, and few to check with."""
    square = np.full((60, 60, 6), (230, 40, 40, 255, 0, 0), np.uint8)
    monkeypatch.setattr(sprites, "load", lambda held_out: [square])
    monkeypatch.setattr(textures, "photographs", lambda held_out: ())
    monkeypatch.setattr(scenes, "POOL_FOLDER", tmp_path / "pool")
    monkeypatch.setattr(train, "CHECK_SCENES", {64: 2})
    scenes.fill_pool(512, shards=1, per_shard=2, seed=1)


def weights(trainer: train.Trainer) -> Sequence[Tensor]:
    """All that a trainer learns and remembers."""
    modules = (trainer.model, trainer.average, trainer.helper)
    states = [state for optimiser in trainer.optimisers for state in optimiser.state_dict()["state"].values()]
    momenta = [value for state in states for value in state.values()]
    return [*(value for module in modules for value in module.state_dict().values()), *momenta]


@pytest.mark.usefixtures("alone", "pool")
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    def trainer(seconds: int, seed: int) -> train.Trainer:
        stages = train.parse_stages(f"64:{seconds / 60}:2:2")
        return train.Trainer(tmp_path / "run", stages, lr=2e-3, seed=seed, rank=0, count=1, half=False)

    steady = trainer(2, seed=7)
    beginning = [value.clone() for value in steady.model.state_dict().values()]
    steady.run()
    resumed = trainer(4, seed=8)
    resumed.resume()

    assert (resumed.progress.steps, resumed.progress.images, resumed.progress.seconds) == (2, 4, 2)
    assert not all(map(torch.equal, beginning, steady.model.state_dict().values()))
    for one, other in zip(weights(resumed), weights(steady), strict=True):
        assert torch.equal(one, other)

    resumed.seed, steady.stages = steady.seed, resumed.stages
    steady.run()
    resumed.run()

    assert resumed.progress.steps == 4
    for one, other in zip(weights(resumed), weights(steady), strict=True):
        torch.testing.assert_close(one, other)


def test_stages_end_one_after_the_other() -> None:
    stages = train.parse_stages("128:2:16:5,512:0.5:8:4")
    assert stages == [train.Stage(128, 120, 16, 5), train.Stage(512, 150, 8, 4)]
