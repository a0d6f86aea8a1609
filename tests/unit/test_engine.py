"""The engine against Meta's `SAM2ImagePredictor` on the same weights, in float32 on the CPU."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sam2.sam2_image_predictor import SAM2ImagePredictor

from deployments.errors import ModelLoadError
from deployments.model import engine as engine_module
from deployments.model.engine import Engine, ImageEmbedding, limit_gpu_memory, start_device
from deployments.schema import Prompt
from deployments.upsampling import upsample
from tests.images import picture
from tests.weights import random_model

TOLERANCE = 1e-4


def floats(values: Any) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def labels(values: Any) -> NDArray[np.int32]:
    return np.array(values, np.int32)


WIDE, TALL = np.array(picture(160, 90, seed=1)), np.array(picture(50, 120, seed=2))
HEIGHT, WIDTH = WIDE.shape[:2]

MASK = np.random.default_rng(0).normal(0, 6, (3, 1, 256, 256)).astype(np.float32)
POINTS: dict[str, Any] = {"point_coords": floats([[80, 45], [20, 10]]), "point_labels": labels([1, 0])}
BOX: dict[str, Any] = {"box": floats([30, 20, 120, 70])}
BOXES = floats([[30, 20, 120, 70], [0, 0, 40, 40], [100, 10, 150, 80]])
POINTS_OF_THREE: dict[str, Any] = {
    "point_coords": floats([[[80, 45], [20, 10]], [[5, 5], [6, 6]], [[100, 80], [0, 0]]]),
    "point_labels": labels([[1, 0], [1, 1], [1, -1]]),
}

PROMPTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "points": POINTS,
    "points, one mask": {**POINTS, "multimask_output": False},
    "coordinates in [0, 1]": {
        **POINTS,
        "point_coords": POINTS["point_coords"] / floats([WIDTH, HEIGHT]),
        "normalize_coords": False,
    },
    "box": BOX,
    "box, one mask": {**BOX, "multimask_output": False},
    "mask": {"mask_input": MASK[0]},
    "points, box and mask": {**POINTS, **BOX, "mask_input": MASK[0], "multimask_output": False},
    "box corners as labels": {"point_coords": BOX["box"].reshape(2, 2), "point_labels": labels([2, 3])},
    "three objects by points": POINTS_OF_THREE,
    "three objects by points and boxes": {**POINTS_OF_THREE, "box": BOXES, "multimask_output": False},
    "three boxes, a mask for all": {"box": BOXES, "mask_input": MASK[0]},
    "three boxes, a mask each": {"box": BOXES, "mask_input": MASK},
}


def check_parity(engine: Engine, embedding: ImageEmbedding, predictor: Any, fields: dict[str, Any]) -> None:
    logits, scores = engine.decode(embedding, Prompt(**fields))
    masks, expected_scores, expected_logits = predictor.predict(**fields, return_logits=True)

    assert logits.shape[0] == Prompt(**fields).num_objects
    np.testing.assert_allclose(scores.reshape(expected_scores.shape), expected_scores, atol=TOLERANCE)
    np.testing.assert_allclose(
        logits.clip(-32, 32).reshape(expected_logits.shape), expected_logits, atol=TOLERANCE * 10
    )
    np.testing.assert_allclose(
        upsample(logits, (HEIGHT, WIDTH)).reshape(masks.shape), masks, atol=TOLERANCE * np.abs(masks).max()
    )


@pytest.fixture(scope="module")
def batch(demo_engine: Engine) -> list[ImageEmbedding]:
    """Two images of different sizes, embedded together."""
    return demo_engine.embed([WIDE, TALL])


@pytest.fixture(scope="module")
def embedding(demo_engine: Engine) -> ImageEmbedding:
    """The wide image, embedded alone."""
    return demo_engine.embed([WIDE])[0]


@pytest.fixture(scope="module")
def predictor(demo_engine: Engine) -> Any:
    """Meta's predictor on the bundled model."""
    predictor = SAM2ImagePredictor(demo_engine._model)
    predictor.set_image(WIDE)
    return predictor


@pytest.mark.parametrize("fields", PROMPTS.values(), ids=PROMPTS)
def test_every_kind_of_prompt_gives_what_metas_predictor_gives(
    demo_engine: Engine, embedding: ImageEmbedding, predictor: Any, fields: dict[str, Any]
) -> None:
    check_parity(demo_engine, embedding, predictor, fields)


@pytest.mark.parametrize("kind", [kind for kind in PROMPTS if "three" in kind])
def test_objects_decoded_in_several_runs_give_what_one_run_gives(
    demo_engine: Engine, embedding: ImageEmbedding, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Prompt(**PROMPTS[kind])
    logits, scores = demo_engine.decode(embedding, prompt)
    monkeypatch.setattr(engine_module, "OBJECTS_AT_ONCE", 2)
    in_two_runs = demo_engine.decode(embedding, prompt)
    np.testing.assert_allclose(in_two_runs[0], logits, atol=TOLERANCE)
    np.testing.assert_allclose(in_two_runs[1], scores, atol=TOLERANCE)


def test_untrained_weights_give_what_metas_predictor_gives() -> None:
    config = Path(engine_module.__file__).parent / "demo" / "sam2_demo.yaml"
    engine = Engine(random_model(config, seed=3), torch.device("cpu"))
    predictor = SAM2ImagePredictor(engine._model)
    predictor.set_image(WIDE)

    [embedding] = engine.embed([WIDE])
    for kind in ("points", "three boxes, a mask each"):
        check_parity(engine, embedding, predictor, PROMPTS[kind])


def test_a_batch_of_images_of_different_sizes_gives_what_each_gives_alone(
    demo_engine: Engine, batch: list[ImageEmbedding], embedding: ImageEmbedding
) -> None:
    alone = [embedding, *demo_engine.embed([TALL])]

    assert [one.image_size for one in batch] == [(90, 160), (120, 50)]
    for together, single in zip(batch, alone, strict=True):
        torch.testing.assert_close(together.image_embed, single.image_embed, atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(together.high_res_feats, single.high_res_feats, atol=TOLERANCE, rtol=TOLERANCE)


def test_an_embedding_holds_no_memory_of_the_others_in_its_batch(batch: list[ImageEmbedding]) -> None:
    for tensor in (batch[0].image_embed, *batch[0].high_res_feats):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_arrays_that_are_read_only_or_strided_are_accepted(demo_engine: Engine, embedding: ImageEmbedding) -> None:
    read_only: NDArray[np.uint8] = WIDE[:, ::-1].copy()[:, ::-1]
    read_only.flags.writeable = False

    [again] = demo_engine.embed([read_only])

    torch.testing.assert_close(again.image_embed, embedding.image_embed, atol=TOLERANCE, rtol=TOLERANCE)


def test_decoding_does_not_change_the_embedding(demo_engine: Engine, embedding: ImageEmbedding) -> None:
    before = [tensor.clone() for tensor in (embedding.image_embed, *embedding.high_res_feats)]

    demo_engine.decode(embedding, Prompt(**POINTS))

    for old, new in zip(before, (embedding.image_embed, *embedding.high_res_feats), strict=True):
        assert torch.equal(old, new)


def test_masks_alone_can_stand_for_several_objects(demo_engine: Engine, embedding: ImageEmbedding) -> None:
    together, _ = demo_engine.decode(embedding, Prompt(mask_input=MASK[:2]))
    alone = np.concatenate([demo_engine.decode(embedding, Prompt(mask_input=one))[0] for one in MASK[:2]])

    np.testing.assert_allclose(together, alone, atol=TOLERANCE * 10)


# ---- devices


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Gives torch its threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize(("device", "gpu_fraction"), [("cpu", 0.0), ("cpu", 1.0), ("auto", 0.0)])
def test_the_cpu_is_taken_where_asked_for_or_without_a_share_of_a_gpu(device: str, gpu_fraction: float) -> None:
    assert start_device(device, gpu_fraction, torch_threads=1) == torch.device("cpu")
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(("device", "gpu_fraction"), [("cuda", 0.0), ("auto", 0.5)])
def test_a_gpu_that_is_not_there_is_an_error_not_a_slow_answer(device: str, gpu_fraction: float) -> None:
    with pytest.raises(ModelLoadError, match="torch finds no CUDA device"):
        start_device(device, gpu_fraction, torch_threads=1)


def test_a_share_smaller_than_the_cuda_context_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=10_000))

    with pytest.raises(ModelLoadError, match=r"0\.05 of a GPU of 10000 bytes leaves nothing beside the CUDA context"):
        limit_gpu_memory(torch.device("cuda"), 0.05, 600)


def test_the_cuda_context_is_taken_off_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=10_000))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: shares.append(share))

    limit_gpu_memory(torch.device("cuda"), 0.5, 1_000)

    assert shares == [pytest.approx(0.4)]
