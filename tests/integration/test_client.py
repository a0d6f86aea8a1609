"""The Python client against the real service."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deployments.client import AsyncClient, Client, ClientError
from harness.images import iou, picture
from tests.documents import ROOT
from tests.integration.conftest import Service

EXAMPLE = ROOT / "deployments" / "model" / "demo" / "example.png"
TRUTH = np.array(Image.open(EXAMPLE.with_name("example_truth.png"))) > 0


def test_a_click_a_refinement_and_everything(service: Service) -> None:
    with Client(service.url) as client:
        image = client.image(EXAMPLE)
        assert client.embed(image) == image.image_id
        found = client.segment(image, point_coords=[[220, 240]], point_labels=[1], return_logits=True)
        assert iou(found.masks[0], TRUTH) > 0.8
        assert (np.diff(found.scores) <= 0).all()
        assert found.logits is not None
        better = client.segment(
            image,
            point_coords=[[220, 240], [340, 90]],
            point_labels=[1, 0],
            mask_input=found.logits[:1],
            multimask_output=False,
        )
        assert better.masks.shape == (1, *TRUTH.shape)
        both = client.segment(image, box=[[100, 60, 250, 290], [10, 10, 90, 90]])
        assert both.masks.shape == (2, 3, *TRUTH.shape)
        everything = client.auto(image, points_per_side=4, pred_iou_thresh=0.5, stability_score_thresh=0.7)
        assert len(everything.masks) == len(everything.predicted_iou) > 0
        assert client.segment_as(image, "png", point_coords=[[220, 240]], point_labels=[1]).startswith(b"\x89PNG")


def test_a_forgotten_image_is_uploaded_again_silently(service: Service) -> None:
    pixels = np.asarray(picture(80, 60, seed=140_001))
    with Client(service.url) as client, Client(service.url) as other:
        image = client.image(pixels)
        first = client.segment(image, box=[10, 10, 40, 40])
        # The first client does not learn of it.
        assert other.forget(image)
        again = client.segment(image, box=[10, 10, 40, 40])
        np.testing.assert_array_equal(again.masks, first.masks)


async def test_many_prompts_at_once(service: Service) -> None:
    async with AsyncClient(service.url) as client:
        image = client.image(picture(80, 60, seed=140_002))
        await client.embed(image)
        boxes = [[index, index, index + 30, index + 20] for index in range(8)]
        together = await asyncio.gather(*(client.segment(image, box=box) for box in boxes))
        for box, found in zip(boxes, together, strict=True):
            alone = await client.segment(image, box=box)
            np.testing.assert_allclose(found.scores, alone.scores, atol=1e-3)


def test_rejected_requests_raise_client_errors(service: Service, tmp_path: Path) -> None:
    with Client(service.url) as client:
        with pytest.raises(ClientError, match="400: box: must be") as error:
            client.segment(EXAMPLE, box=[1, 2, 3])
        assert error.value.status == 400
        with pytest.raises(ClientError, match="400: image: is text"):
            client.segment(b"not an image")
        with pytest.raises(ClientError, match="404"), Client(f"{service.url}/elsewhere") as lost:
            lost.segment(EXAMPLE)
    with pytest.raises(ClientError, match="ConnectError"), Client("http://127.0.0.1:9", max_retries=0) as unreachable:
        unreachable.segment(EXAMPLE)
