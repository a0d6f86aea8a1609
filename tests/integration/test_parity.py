"""The service answers what SAM 2's own predictor answers, on the same weights, over HTTP and through the handle."""

import hashlib
import io
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeAlias

import httpx
import numpy as np
import orjson
import pytest
from numpy.typing import NDArray
from PIL import Image
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES, build_sam2

from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import Segmentation
from deployments.model.checkpoints import load_model
from deployments.settings import ModelSettings
from harness.images import encoded, picture
from harness.reference import Answer, Fields, Reference, json_text, parse_answer, upright
from tests.integration.conftest import DEMO, TINY, Service

TOLERANCE = 1e-3


def with_orientation(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", exif=exif)


def with_alpha(image: Image.Image, mode: str) -> Image.Image:
    image = image.convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def sixteen_bit(image: Image.Image, order: str) -> Image.Image:
    grey = np.asarray(image.convert("L")).astype(f"{order}u2") * np.asarray(257, f"{order}u2")
    return Image.fromarray(grey.astype(f"{order}u2"))


IMAGES: dict[str, Callable[[], bytes]] = {
    "33x47 png": lambda: encoded(picture(33, 47, 1)),
    "rgba png": lambda: encoded(with_alpha(picture(200, 150, 2), "RGBA")),
    "palette gif": lambda: encoded(picture(120, 90, 3).quantize(32), "GIF"),
    "palette png": lambda: encoded(picture(90, 120, 4).quantize(200), "PNG"),
    "16-bit png": lambda: encoded(sixteen_bit(picture(80, 64, 5), "<")),
    "16-bit big-endian tiff": lambda: encoded(sixteen_bit(picture(64, 80, 6), ">"), "TIFF"),
    "cmyk jpeg": lambda: encoded(picture(160, 120, 7).convert("CMYK"), "JPEG"),
    "grey jpeg": lambda: encoded(picture(150, 200, 8).convert("L"), "JPEG"),
    "grey+alpha png": lambda: encoded(with_alpha(picture(64, 64, 9), "LA")),
    "1-bit png": lambda: encoded(picture(100, 60, 10).convert("1")),
    "sideways jpeg": lambda: with_orientation(picture(240, 160, 11), 6),
    "upside down jpeg": lambda: with_orientation(picture(130, 110, 12), 3),
    "mirrored sideways jpeg": lambda: with_orientation(picture(170, 130, 13), 5),
    "7x1 png": lambda: encoded(picture(7, 1, 14)),
    "webp": lambda: encoded(picture(256, 256, 15), "WEBP", lossless=True),
    "tall bmp": lambda: encoded(picture(60, 900, 16), "BMP"),
    "1080p jpeg": lambda: encoded(picture(1920, 1080, 17), "JPEG", quality=90),
}


@lru_cache
def image_file(name: str) -> bytes:
    return IMAGES[name]()


class Prompts:
    """Random prompts for one image: a method for each kind."""

    def __init__(self, rng: np.random.Generator, width: int, height: int, normalize_coords: bool) -> None:
        self.rng = rng
        self.scale = np.array([width, height], np.float32) if normalize_coords else np.ones(2, np.float32)

    def coords(self, *shape: int) -> NDArray[np.float32]:
        return (self.rng.random((*shape, 2), np.float32) * self.scale).astype(np.float32)

    def labels(self, *shape: int, known: tuple[int, ...] = (0, 1)) -> NDArray[np.int32]:
        return self.rng.choice(known, shape).astype(np.int32)

    def boxes(self, *shape: int) -> NDArray[np.float32]:
        corners = np.sort(self.rng.random((*shape, 2, 2), np.float32), axis=-2) * self.scale
        return corners.reshape(*shape, 4).astype(np.float32)

    def masks(self, *shape: int) -> NDArray[np.float32]:
        """Logits of discs, as an earlier answer could have held them, at most ±32."""
        y, x = np.mgrid[:256, :256].astype(np.float32)
        discs = []
        for _ in range(int(np.prod(shape, initial=1))):
            center_x, center_y, radius = self.rng.uniform((40, 40, 20), (216, 216, 90))
            discs.append((radius - np.hypot(x - center_x, y - center_y)).clip(-32, 32))
        return np.stack(discs).reshape(*shape, 1, 256, 256).astype(np.float32)

    def points(self, *shape: int, known: tuple[int, ...] = (0, 1)) -> dict[str, NDArray[Any]]:
        return {"point_coords": self.coords(*shape), "point_labels": self.labels(*shape, known=known)}


KINDS: dict[str, Callable[[Prompts], Fields]] = {
    "nothing": lambda prompts: {},
    "one point": lambda prompts: {**prompts.points(1), "point_labels": np.array([1], np.int32)},
    "five points": lambda prompts: prompts.points(5),
    "points of every label": lambda prompts: prompts.points(9, known=(-1, 0, 1, 2, 3)),
    "box": lambda prompts: {"box": prompts.boxes()},
    "points and box": lambda prompts: {**prompts.points(3), "box": prompts.boxes()},
    "mask": lambda prompts: {"mask_input": prompts.masks()},
    "mask and points": lambda prompts: {**prompts.points(2), "mask_input": prompts.masks()},
    "mask and box": lambda prompts: {"box": prompts.boxes(), "mask_input": prompts.masks()},
    "mask, points and box": lambda prompts: {
        **prompts.points(2),
        "box": prompts.boxes(),
        "mask_input": prompts.masks(),
    },
    "points of 3 objects": lambda prompts: prompts.points(3, 2),
    "boxes of 4 objects": lambda prompts: {"box": prompts.boxes(4)},
    "points and boxes of 2 objects": lambda prompts: {**prompts.points(2, 3), "box": prompts.boxes(2)},
    "points of 1 object with its axis": lambda prompts: prompts.points(1, 2),
    "box of 1 object with its axis": lambda prompts: {"box": prompts.boxes(1)},
    "points of 2 objects, one mask": lambda prompts: {**prompts.points(2, 1), "mask_input": prompts.masks()},
    "boxes and masks of 2 objects": lambda prompts: {"box": prompts.boxes(2), "mask_input": prompts.masks(2)},
    "masks of 2 objects": lambda prompts: {"mask_input": prompts.masks(2)},
}


@dataclass(frozen=True)
class Case:
    """One random request."""

    image: str
    kind: str
    seed: int
    multimask_output: bool = True
    return_logits: bool = True
    normalize_coords: bool = True

    def __str__(self) -> str:
        flags = (("m", self.multimask_output), ("l", self.return_logits), ("n", self.normalize_coords))
        return f"{self.image}, {self.kind}, {''.join(flag for flag, is_on in flags if is_on) or 'no flags'}"

    @property
    def file(self) -> bytes:
        return image_file(self.image)

    @property
    def fields(self) -> Fields:
        size = upright(self.file).size
        return KINDS[self.kind](Prompts(np.random.default_rng(self.seed), *size, self.normalize_coords))


def random_cases(images: tuple[str, ...], count: int, first_seed: int) -> list[Case]:
    """Each kind with ever other images and flags, an image's cases together; 1080p as 0/1, a sixth of the text."""
    kinds = list(KINDS)
    cases = []
    for index in range(count):
        flags = index % len(kinds) + 3 * (index // len(kinds))
        image = images[index % len(images)]
        cases.append(
            Case(
                image=image,
                kind=kinds[index % len(kinds)],
                seed=first_seed + index,
                multimask_output=bool(flags & 1),
                return_logits=bool(flags & 2) and image != "1080p jpeg",
                normalize_coords=bool(flags & 4),
            )
        )
    return sorted(cases, key=lambda case: images.index(case.image))


DEMO_CASES = [*random_cases(tuple(IMAGES), 36, first_seed=1000), Case("1080p jpeg", "five points", seed=1100)]
TINY_CASES = random_cases(("33x47 png", "1080p jpeg"), 6, first_seed=2000)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def waking(client: httpx.Client) -> Iterator[None]:
    """hiera-tiny, which sleeps, wakes while the bundled model is compared."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask_http, client, TINY_CASES[0], TINY)
        yield
        answer.result()


@pytest.fixture(scope="module")
def references(service: Service) -> Callable[[str], Reference]:
    """The predictor for a model id, built from the weights that the service has."""

    @lru_cache
    def reference(model_id: str) -> Reference:
        if model_id == DEMO:
            return Reference(load_model(ModelSettings(model_id=DEMO), lambda *_: None))
        # What SAM2ImagePredictor.from_pretrained does, with the file that the service finds in its hub cache.
        config, _ = HF_MODEL_ID_TO_FILENAMES[model_id]
        return Reference(build_sam2(config, str(service.tiny_checkpoint), device="cpu"))

    return reference


Expected: TypeAlias = Callable[[str, Case], Answer]


@pytest.fixture(scope="module")
def expected(references: Callable[[str], Reference]) -> Expected:
    """What a model's predictor answers in a case; remembered, since two tests ask for the same."""

    @cache
    def answer(model_id: str, case: Case) -> Answer:
        return references(model_id).answer(case.file, case.fields, case.multimask_output, case.normalize_coords)

    return answer


def ask_http(client: httpx.Client, case: Case, model_id: str) -> Answer:
    data = {
        "model_id": model_id,
        "multimask_output": str(case.multimask_output).lower(),
        "return_logits": str(case.return_logits).lower(),
        "normalize_coords": str(case.normalize_coords).lower(),
        **{name: json_text(value) for name, value in case.fields.items()},
    }
    response = client.post("/segment-anything-2", data=data, files={"image": case.file})
    assert response.status_code == 200, response.text[:1000]
    return parse_answer(response.content)


def ask_handle(image: Any, case: Case, model_id: str) -> Segmentation:
    from ray import serve

    prompt = Prompt(**case.fields, multimask_output=case.multimask_output, normalize_coords=case.normalize_coords)
    handle: Any = serve.get_app_handle("segment-anything-2")
    segmentation: Segmentation = handle.segment.remote(image, prompt, model_id=model_id).result(timeout_s=120)
    return segmentation


def assert_equal(answer: Answer, expected: Answer, return_logits: bool) -> None:
    """The answer is the predictor's, but for float noise."""
    assert [array.shape for array in answer] == [array.shape for array in expected]
    np.testing.assert_allclose(answer.scores, expected.scores, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(answer.logits, expected.logits, rtol=0, atol=TOLERANCE)
    if return_logits:
        np.testing.assert_allclose(answer.masks, expected.masks, rtol=0, atol=TOLERANCE)
    else:
        assert answer.masks.dtype.kind == "i"
        sure = np.abs(expected.masks) >= TOLERANCE
        assert sure.mean() > 0.9, "logits too close to zero to compare masks"
        np.testing.assert_array_equal(answer.masks[sure], (expected.masks > 0)[sure])
    assert (np.diff(answer.scores, axis=-1) <= 0).all()


def assert_same_numbers(segmentation: Segmentation, answer: Answer, return_logits: bool) -> None:
    """The handle's numbers are the very float32 (or 0 and 1) that HTTP sent as text."""
    masks = segmentation.masks(return_logits)
    assert masks.dtype == (np.float32 if return_logits else np.bool_)
    assert segmentation.scores.dtype == segmentation.logits.dtype == np.float32
    np.testing.assert_array_equal(segmentation.scores, answer.scores)
    np.testing.assert_array_equal(segmentation.logits, answer.logits)
    np.testing.assert_array_equal(masks, answer.masks)


@pytest.mark.parametrize("case", DEMO_CASES, ids=str)
def test_the_demo_model_answers_what_the_predictor_answers(
    case: Case, client: httpx.Client, expected: Expected
) -> None:
    assert_equal(ask_http(client, case, DEMO), expected(DEMO, case), case.return_logits)


@pytest.mark.parametrize("case", TINY_CASES, ids=str)
def test_hiera_tiny_answers_what_the_predictor_answers(case: Case, client: httpx.Client, expected: Expected) -> None:
    assert_equal(ask_http(client, case, TINY), expected(TINY, case), case.return_logits)


def test_sixteen_clients_at_once_get_each_what_the_predictor_answers(client: httpx.Client, expected: Expected) -> None:
    # All cases of every fourth image.
    cases = [case for case in DEMO_CASES if list(IMAGES).index(case.image) % 4 == 1]
    for file in {case.file for case in cases}:
        # So that images and prompts are new, on their way and remembered, all at the same time.
        client.delete(f"/segment-anything-2/images/{hashlib.sha256(file).hexdigest()}")
    random.Random(16).shuffle(cases)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda case: ask_http(client, case, DEMO), cases))
    for case, answer in zip(cases, answers, strict=True):
        assert_equal(answer, expected(DEMO, case), case.return_logits)


def as_array(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(upright(data))


def as_pil(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


FORMS: tuple[Callable[[bytes], Any], ...] = (bytes, as_array, as_pil)

# Every image, in each of the three forms that the handle takes; kinds and flags by turns.
HANDLE_CASES = [
    pytest.param(case, form, DEMO, id=f"{case}, {form.__name__}")
    for index, case in enumerate(DEMO_CASES[::4])
    for form in (FORMS[index % 3],)
] + [pytest.param(TINY_CASES[0], bytes, TINY, id=f"tiny, {TINY_CASES[0]}")]


@pytest.mark.parametrize(("case", "form", "model_id"), HANDLE_CASES)
def test_the_handle_gives_the_very_numbers_that_http_gives(
    case: Case, form: Callable[[bytes], Any], model_id: str, client: httpx.Client
) -> None:
    segmentation = ask_handle(form(case.file), case, model_id)
    assert segmentation.model_id == model_id
    assert segmentation.image_size == upright(case.file).size[::-1]
    assert_same_numbers(segmentation, ask_http(client, case, model_id), case.return_logits)


@pytest.mark.parametrize("model_id", [DEMO, TINY])
def test_the_predictor_tells_prompts_apart(model_id: str, references: Callable[[str], Reference]) -> None:
    """Or else equal answers would prove nothing."""
    kinds = ("nothing", "one point", "box", "mask", "mask and points", "points of 1 object with its axis")
    cases = [Case("33x47 png", kind, seed=5 + index) for index, kind in enumerate(kinds)]
    answers = [
        references(model_id).answer(case.file, case.fields, True, True).logits.reshape(3, 256, 256) for case in cases
    ]
    for index, answer in enumerate(answers):
        for other in answers[:index]:
            assert np.abs(answer - other).max() > 10 * TOLERANCE


@pytest.mark.parametrize("multimask_output", [False, True])
@pytest.mark.parametrize("kind", ["one point", "points of 3 objects", "box of 1 object with its axis"])
def test_an_answers_own_logits_are_a_mask_input_as_they_came(
    kind: str, multimask_output: bool, client: httpx.Client, references: Callable[[str], Reference]
) -> None:
    case = Case("rgba png", kind, seed=77, multimask_output=multimask_output)
    fields = {name: json_text(value) for name, value in case.fields.items()}
    flags = {"multimask_output": str(multimask_output).lower(), "return_logits": "false"}
    first = client.post("/segment-anything-2", data={**fields, **flags}, files={"image": case.file})
    assert first.status_code == 200, first.text[:1000]
    logits_text = orjson.loads(first.content)["logits"]
    second = client.post("/segment-anything-2", data={**fields, "mask_input": logits_text}, files={"image": case.file})
    assert second.status_code == 200, second.text[:1000]
    best = parse_answer(first.content).logits[..., :1, :, :]
    reference = references(DEMO)
    expected = reference.answer(case.file, {**case.fields, "mask_input": best}, True, True)
    assert_equal(parse_answer(second.content), expected, return_logits=True)
    without = reference.answer(case.file, case.fields, True, True)
    assert np.abs(without.logits - expected.logits).max() > 10 * TOLERANCE
