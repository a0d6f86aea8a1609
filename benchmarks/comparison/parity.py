"""Whether the masks are those of Meta's SAM2ImagePredictor on the same weights: over HTTP, and at lower precision."""

from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES, build_sam2

from benchmarks.model import engines
from benchmarks.report import Findings, Row, budget_row
from benchmarks.servers import service
from benchmarks.workplace import TINY, Configuration, Workplace
from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import sorted_segmentation
from harness.images import encoded, iou, picture, pixels
from harness.load import ROUTE, TIMEOUT_S
from harness.reference import Reference, json_text, parse_answer

SIZES = ((640, 480), (333, 517), (1920, 1080))


def run(workplace: Workplace) -> Findings:
    """Compares the running service, and then the engine in bfloat16."""
    findings = Findings()
    differences = over_http(workplace)
    note = f"hiera-tiny, over HTTP, {len(differences)} requests, service {workplace.precision}"
    findings.rows.append(budget_row("parity float32", max(differences), workplace.precision, note=note))
    findings.data["differences"] = differences
    findings.rows.append(_bfloat16_row(workplace, findings))
    return findings


def over_http(workplace: Workplace) -> list[float]:
    """Max abs difference of logits and masks, for each request, from the predictor's."""
    config, filename = HF_MODEL_ID_TO_FILENAMES[TINY]
    checkpoint = next(workplace.hub_cache.rglob(filename))
    reference = Reference(build_sam2(config, str(checkpoint), device="cpu"))
    differences = []
    with (
        service(workplace, Configuration(model={"precision": "float32"})) as server,
        httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client,
    ):
        for seed, size in enumerate(SIZES[:2] if workplace.quick else SIZES):
            image = encoded(picture(*size, seed))
            for fields in prompts(size, seed):
                data = {name: json_text(value) for name, value in fields.items()}
                response = client.post(ROUTE, data=data, files={"image": image})
                answer = parse_answer(response.raise_for_status().content)
                expected = reference.answer(image, fields, multimask_output=True, normalize_coords=True)
                differences.append(max(_difference(*pair) for pair in zip(answer, expected, strict=True)))
    return differences


def prompts(size: tuple[int, int], seed: int) -> list[dict[str, Any]]:
    """Points, a box, and both."""
    rng = np.random.default_rng(seed)
    points = {"point_coords": (rng.random((2, 2)) * size).astype(np.float32), "point_labels": np.array([1, 0])}
    box = {"box": (np.sort(rng.random((2, 2)), axis=0) * size).astype(np.float32).ravel()}
    return [points, box, {**points, **box}]


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.abs(one.astype(np.float64) - other).max())


# ---- bfloat16


def _bfloat16_row(workplace: Workplace, findings: Findings) -> Row:
    ious = bfloat16_ious(1 if workplace.quick else 6)
    findings.data["bfloat16_ious"] = ious
    # The first of three is the best by score, which is what most clients use.
    note = (
        f"bundled model on {engines.device().type}, engine alone, {len(ious)} masks: all candidates of each prompt; "
        f"the best ones {np.mean(ious[::3]):.4f}; least {min(ious):.3f}"
    )
    return budget_row("parity bfloat16", float(np.mean(ious)), "bfloat16", note=note)


def bfloat16_ious(num_images: int) -> list[float]:
    """IoU of the engine's bfloat16 masks with the predictor's float32 ones, on a model that has learnt to segment."""
    engine = engines.engine(engines.demo(), "bfloat16")
    reference = Reference(engines.demo())
    ious = []
    for seed in range(num_images):
        image = encoded(picture(640, 480, seed))
        [embedding] = engines.embed(engine, [pixels(image)])
        for fields in prompts((640, 480), seed):
            logits, scores = engines.decode(engine, embedding, Prompt(**fields))
            masks = sorted_segmentation("", "", (480, 640), logits, scores, False).masks()
            expected = reference.answer(image, fields, multimask_output=True, normalize_coords=True)
            ious += [iou(one, other > 0) for one, other in zip(masks, expected.masks, strict=True)]
    return ious
