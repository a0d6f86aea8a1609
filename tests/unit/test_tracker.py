"""Following objects, against SAM 2's own video predictor on the same frames, prompts and seeded random weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.sam2_video_predictor import SAM2VideoPredictor

from deployments.errors import InvalidPrompt
from deployments.messages.prompt import Prompt
from deployments.messages.track import FrameMasks, TrackPrompt, TrackState
from deployments.model.checkpoints import POSTPROCESSING
from deployments.model.engine import Engine, ImageEmbedding
from deployments.model.tracker import Chunk, Tracker, can_track
from harness.video_reference import initial_state, video_predictor
from harness.weights import sam2_package

SIDE = 128
"""Of the model's frame: a sixty-fourth of the arithmetic at 1024."""

SMALLER = {
    "image_encoder.trunk.embed_dim": 16,
    "image_encoder.neck.backbone_channel_list": [128, 64, 32, 16],
    "memory_attention.layer.dim_feedforward": 64,
    "memory_attention.num_layers": 2,
}
"""Where these models are narrower and less deep than Meta's: in what costs most, and runs through code of sam2."""

HEIGHT, WIDTH, FRAMES = 120, 160, 22
"""Of the clip. More frames than the memory has places: six for features, fifteen for pointers."""

FEW = 9
"""Frames where the kind of prompt matters and not what is forgotten: more than there are places for features."""

TOLERANCE = 1e-3
"""Of a logit; the budget that the project set itself."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def clip() -> list[Pixels]:
    """Two squares that move over noise, one behind the other for some frames."""
    rng = np.random.default_rng(5)
    ground = rng.integers(0, 90, (HEIGHT, WIDTH, 3), np.uint8)
    frames = []
    for index in range(FRAMES):
        frame = ground.copy()
        frame[40:80, 10 + 5 * index : 40 + 5 * index] = (250, 60, 20)
        frame[20:100, 90:110] = (30, 120, 240)
        frames.append(frame)
    return frames


class Reference:
    """SAM2VideoPredictor, which is handed our frames: its own loaders resize otherwise."""

    def __init__(self, predictor: SAM2VideoPredictor, images: torch.Tensor) -> None:
        self._predictor = predictor
        self._encode = predictor.forward_image
        self._encoded: dict[int, Any] = {}
        # The predictor keeps the features of one frame only, and objects take their turns here.
        predictor.forward_image = self._forward_image
        self._images = images

    def track(
        self, prompts: Sequence[TrackPrompt], reverse: bool, num_frames: int
    ) -> dict[tuple[int, int], tuple[np.ndarray[Any, Any], float]]:
        """By object and frame the low-resolution logits and the presence logit.

        Objects are independent of each other, so each has a state of its own. A prompt on a later frame comes when the
        object has been followed to that frame.
        """
        found = {}
        for object_id in {prompt.object_id for prompt in prompts}:
            own = sorted(
                (prompt for prompt in prompts if prompt.object_id == object_id),
                key=lambda prompt: prompt.frame_index,
                reverse=reverse,
            )
            state = initial_state(self._predictor, self._images, HEIGHT, WIDTH)
            last = 0 if reverse else num_frames - 1
            for prompt, until in zip(own, [*(each.frame_index for each in own[1:]), last], strict=True):
                self._add(state, prompt)
                # Frame 0 is not followed in reverse, which starts there.
                for _ in self._predictor.propagate_in_video(
                    state, prompt.frame_index, abs(until - prompt.frame_index), reverse
                ):
                    pass
            outputs = state["output_dict_per_obj"][0]
            for kind in ("non_cond_frame_outputs", "cond_frame_outputs"):
                for index, output in outputs[kind].items():
                    logits = output["pred_masks"][0, 0].numpy()
                    found[object_id, index] = (logits, float(output["object_score_logits"]))
        return found

    def _forward_image(self, image: torch.Tensor) -> Any:
        if image.data_ptr() not in self._encoded:
            self._encoded[image.data_ptr()] = self._encode(image)
        return self._encoded[image.data_ptr()]

    def _add(self, state: Any, prompt: TrackPrompt) -> None:
        if prompt.mask is not None:
            self._predictor.add_new_mask(state, prompt.frame_index, prompt.object_id, prompt.mask)
            return
        assert prompt.prompt is not None
        self._predictor.add_new_points_or_box(
            state,
            prompt.frame_index,
            prompt.object_id,
            prompt.prompt.point_coords,
            prompt.prompt.point_labels,
            box=prompt.prompt.box,
        )


@dataclass(frozen=True, eq=False)
class Both:
    """The same model twice, and the clip's frames for ours; and what came out for cases that several tests look at."""

    tracker: Tracker
    reference: Reference
    frames: list[ImageEmbedding]
    whole: dict[str, tuple[list[FrameMasks], TrackState]] = field(default_factory=dict)


@pytest.fixture(scope="module", params=["sam2/sam2_hiera_t", "sam2.1/sam2.1_hiera_t"])
def both(request: pytest.FixtureRequest) -> Both:
    config = OmegaConf.load(sam2_package() / "configs" / f"{request.param}.yaml")
    for name, value in {"image_size": SIDE, **SMALLER}.items():
        OmegaConf.update(config, f"model.{name}", value)
    OmegaConf.update(config, "model.sam_mask_decoder_extra_args", POSTPROCESSING, merge=True, force_add=True)
    # A seed with which objects are there on some frames and not on others; see below.
    torch.manual_seed(4)
    model = instantiate(config.model, _recursive_=True)
    # Untrained, the encoding of time is so small that a wrong one would not be noticed.
    model.maskmem_tpos_enc.data *= 100
    predictor = video_predictor(config, model.state_dict(), add_all_frames_to_correct_as_cond=True)
    engine = Engine(model, torch.device("cpu"))
    engine.objects_at_once = 16
    frames = clip()
    images = engine._batch(frames)
    both = Both(Tracker(engine), Reference(predictor, images), engine.embed(frames))
    # An untrained model takes objects to be there on all frames, or on none: this makes it half of them.
    masks, _ = tracked(both, CASES["several objects, some later"])
    presence = np.concatenate([each.presence for each in masks])
    for each in (model, predictor):
        bias = each.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
        bias.data -= float(np.median(np.log(presence / (1 - presence))))
    return both


def click(object_id: int, frame_index: int, *points: tuple[float, float, int]) -> TrackPrompt:
    return TrackPrompt(
        object_id, frame_index, Prompt([[x, y] for x, y, _ in points], [label for _, _, label in points])
    )


def square(left: int) -> np.ndarray[Any, Any]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[40:80, left : left + 30] = True
    return mask


CASES: dict[str, list[TrackPrompt]] = {
    "a click": [click(1, 0, (25, 60, 1))],
    "several clicks": [click(1, 0, (25, 60, 1), (20, 50, 1), (100, 60, 0))],
    "a box": [TrackPrompt(1, 0, Prompt(box=[10, 40, 40, 80]))],
    "a box and a click": [TrackPrompt(1, 3, Prompt([[40, 60]], [1], box=[25, 40, 55, 80]))],
    "a mask": [TrackPrompt(1, 0, mask=square(10))],
    "several objects, some later": [
        click(7, 0, (25, 60, 1)),
        TrackPrompt(3, 0, Prompt(box=[90, 20, 110, 100])),
        TrackPrompt(5, 4, mask=square(30)),
        click(4, 4, (100, 30, 1)),
    ],
    "corrections": [
        click(1, 0, (25, 60, 1)),
        click(1, 5, (50, 60, 1)),
        click(1, 9, (70, 60, 1), (100, 30, 0)),
        TrackPrompt(1, 14, mask=square(80)),
        click(2, 3, (100, 60, 1)),
        TrackPrompt(2, 5, Prompt(box=[90, 20, 110, 100])),
    ],
}


def tracked(
    both: Both,
    prompts: Sequence[TrackPrompt],
    chunk_size: int = FRAMES,
    reverse: bool = False,
    num_frames: int = FRAMES,
) -> tuple[list[FrameMasks], TrackState]:
    """The clip, or its beginning, in chunks; the state is all that goes from one to the next."""
    state, masks = TrackState(FRAMES, reverse), []
    order = list(range(FRAMES))[:: -1 if reverse else 1][:num_frames]
    for start in range(0, num_frames, chunk_size):
        indices = order[start : start + chunk_size]
        inside = [prompt for prompt in prompts if prompt.frame_index in indices]
        [chunk] = both.tracker.track([Chunk([both.frames[index] for index in indices], indices, inside, state)])
        masks += chunk.masks
        state = chunk.state
    return masks, state


def tracked_whole(both: Both, case: str) -> tuple[list[FrameMasks], TrackState]:
    """A case of the whole clip, forward and in one chunk."""
    if case not in both.whole:
        both.whole[case] = tracked(both, CASES[case])
    return both.whole[case]


def by_object(masks: Sequence[FrameMasks]) -> dict[tuple[int, int], tuple[np.ndarray[Any, Any], float]]:
    return {
        (object_id, each.frame_index): (each.logits[place], float(each.presence[place]))
        for each in masks
        for place, object_id in enumerate(each.object_ids)
    }


def check_parity(masks: Sequence[FrameMasks], expected: dict[tuple[int, int], Any]) -> None:
    ours = by_object(masks)
    assert ours.keys() == expected.keys()
    for key, (logits, presence) in expected.items():
        np.testing.assert_allclose(ours[key][0], logits, atol=TOLERANCE, rtol=0, err_msg=str(key))
        np.testing.assert_allclose(ours[key][1], 1 / (1 + np.exp(-presence)), atol=TOLERANCE, err_msg=str(key))


@pytest.mark.parametrize("case", ["a click", "several objects, some later", "corrections"])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_same_masks_as_metas_predictor(both: Both, case: str, reverse: bool) -> None:
    prompts = CASES[case]
    if reverse:
        prompts = [TrackPrompt(one.object_id, FRAMES - 1 - one.frame_index, one.prompt, one.mask) for one in prompts]
        masks, _ = tracked(both, prompts, reverse=True)
    else:
        masks, _ = tracked_whole(both, case)

    check_parity(masks, both.reference.track(prompts, reverse, FRAMES))


@pytest.mark.parametrize("case", ["several clicks", "a box", "a box and a click", "a mask"])
def test_each_kind_of_prompt_gives_the_masks_of_metas_predictor(both: Both, case: str) -> None:
    masks, _ = tracked(both, CASES[case], num_frames=FEW)

    check_parity(masks, both.reference.track(CASES[case], False, FEW))


@pytest.mark.parametrize("chunk_size", [1, 8])
def test_chunks_of_any_size_give_the_same_masks(both: Both, chunk_size: int) -> None:
    whole, whole_state = tracked_whole(both, "corrections")
    parts, state = tracked(both, CASES["corrections"], chunk_size)

    assert len(whole) == len(parts) == FRAMES
    for one, other in zip(whole, parts, strict=True):
        assert (one.frame_index, one.object_ids) == (other.frame_index, other.object_ids)
        assert np.array_equal(one.logits, other.logits)
        assert np.array_equal(one.scores, other.scores)
        assert np.array_equal(one.presence, other.presence)
    assert state.nbytes == whole_state.nbytes


def test_several_videos_at_once_get_the_masks_that_each_gets_alone(both: Both) -> None:
    """One forward from its start, one backward from its end with fewer frames, with prompts of several kinds."""
    forward = Chunk(both.frames, range(FRAMES), CASES["several objects, some later"], TrackState(FRAMES))
    backward = Chunk(
        both.frames[::-1][:9], range(FRAMES)[::-1][:9], [click(1, FRAMES - 1, (120, 60, 1))], TrackState(FRAMES, True)
    )

    together = both.tracker.track([forward, backward])

    for chunk, found in zip([forward, backward], together, strict=True):
        [alone] = both.tracker.track([chunk])
        assert [each.frame_index for each in found.masks] == list(chunk.indices)
        for one, other in zip(found.masks, alone.masks, strict=True):
            assert one.object_ids == other.object_ids
            np.testing.assert_allclose(one.logits, other.logits, atol=1e-4, rtol=0)


def test_the_state_is_bounded_and_counts_its_bytes(both: Both) -> None:
    sizes = []
    for frames in (8, FRAMES):
        chunk = Chunk(both.frames[:frames], range(frames), CASES["a click"], TrackState())
        [found] = both.tracker.track([chunk])
        sizes.append(found.state.nbytes)
    [one] = found.state.objects
    assert [memory.frame_index for memory in one.conditioning] == [0]
    assert [memory.frame_index for memory in one.recent] == list(range(FRAMES - 15, FRAMES))
    assert [memory.features is not None for memory in one.recent] == 9 * [False] + 6 * [True]
    features, pointer = 64 * (SIDE // 16) ** 2 * 2, 256 * 4
    assert sizes == [7 * features + 8 * pointer, 7 * features + 16 * pointer]


def test_it_is_said_whether_an_object_is_there(both: Both) -> None:
    """The weights are such that this object is now there, now not."""
    masks, _ = tracked_whole(both, "several objects, some later")
    present = np.concatenate([each.present for each in masks])
    logits = np.concatenate([each.logits for each in masks])
    assert 0.1 < present.mean() < 0.9
    assert (logits[~present] == -1024).all()
    assert (logits[present] > -1024).all()
    assert all(((each.scores >= 0) & (each.scores <= 1)).all() for each in masks)


def test_an_object_is_followed_no_more(both: Both) -> None:
    first = Chunk(both.frames[:4], range(4), CASES["several objects, some later"][:2], TrackState(FRAMES))
    [before] = both.tracker.track([first])
    [after] = both.tracker.track([Chunk(both.frames[4:6], range(4, 6), [], before.state.without([7]))])
    assert [each.object_ids for each in after.masks] == [(3,), (3,)]


def test_the_other_direction_begins_at_the_frames_with_prompts(both: Both) -> None:
    prompt = click(1, 6, (55, 60, 1))
    [forward] = both.tracker.track([Chunk(both.frames[6:12], range(6, 12), [prompt], TrackState(FRAMES))])
    turned = forward.state.turned()
    assert turned.reverse
    [backward] = both.tracker.track([Chunk(both.frames[5:1:-1], range(5, 1, -1), [], turned)])

    expected = both.reference.track([prompt], True, FRAMES)
    for each in backward.masks:
        np.testing.assert_allclose(each.logits[0], expected[1, each.frame_index][0], atol=TOLERANCE, rtol=0)


def test_frames_before_any_prompt_have_no_masks(both: Both) -> None:
    [found] = both.tracker.track([Chunk(both.frames[:3], range(3), [click(1, 2, (25, 60, 1))], TrackState(FRAMES))])
    assert [each.frame_index for each in found.masks] == [2]


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        ([click(1, 5, (1, 1, 1))], "prompts: frame 5 is not"),
        ([click(1, -1, (1, 1, 1))], "prompts: frame -1 is not"),
        ([click(1, 1, (1, 1, 1)), click(1, 1, (2, 2, 1))], "prompts: object 1 has two prompts on frame 1"),
    ],
)
def test_prompts_that_do_not_fit_the_chunk_are_refused(both: Both, prompts: list[TrackPrompt], named: str) -> None:
    with pytest.raises(InvalidPrompt, match=f"^{named}"):
        both.tracker.track([Chunk(both.frames[:2], range(2), prompts, TrackState(FRAMES))])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "mask: give either"),
        ({"prompt": Prompt(box=[0, 0, 1, 1]), "mask": [[True]]}, "mask: give either"),
        ({"prompt": Prompt()}, "prompts: each needs"),
        ({"prompt": Prompt(box=[[0, 0, 1, 1], [0, 0, 2, 2]])}, "prompts: each is for one object; this one is for 2"),
        ({"mask": [[[True]]]}, "mask: must be H×W, is 1×1×1"),
        ({"mask": np.zeros((0, 4), bool)}, "mask: must be H×W, is 0×4"),
        ({"mask": [[0, 255]]}, "mask: must hold booleans"),
        ({"mask": [["yes"]]}, "mask: must hold booleans"),
        ({"mask": [[float("nan")]]}, "mask: must hold booleans"),
    ],
)
def test_prompts_that_mean_nothing_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidPrompt, match=f"^{named}"):
        TrackPrompt(1, 0, **options)


def test_only_models_with_sam2s_memory_can_track(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    model = both.tracker._model
    assert can_track(model)
    for name, value in {"num_maskmem": 0, "directly_add_no_mem_embed": False}.items():
        with monkeypatch.context() as patch:
            patch.setattr(model, name, value)
            assert not can_track(model)
