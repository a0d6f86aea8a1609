"""Writes a file in each tool's format, and the masks that belong into it: `… -m tests.tools.write_files FOLDER`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from deployments.encoding.response_encoder import encode_piece
from deployments.messages.answer_format import TRAITS, AnswerFormat
from deployments.messages.everything import AutomaticMasks
from deployments.messages.pieces import cut
from tests.masks import GivenMasks, Mask, discs_and_rings, random_mask


def answers() -> dict[str, GivenMasks | AutomaticMasks]:
    """One mask, many objects with holes and islands, shapes as no object has them, and everything in an image."""
    rng = np.random.default_rng(16)
    size = (96, 131)
    noise = [random_mask(rng, size, cells, share) for cells in (5, 15, 40, 70) for share in (0.2, 0.5, 0.9)]
    found: dict[str, list[Mask]] = {
        "one": discs_and_rings(size)[2:3],
        "many": discs_and_rings(size),
        "noise": [mask for mask in noise if mask.any()],
    }
    given = {name: GivenMasks(np.stack(masks), [0.9] * len(masks)) for name, masks in found.items()}
    return {**given, "everything": everything(size)}


def everything(size: tuple[int, int]) -> AutomaticMasks:
    """Masks with holes and islands of the whole image, and of a crop of it; the higher number has the higher score."""
    height, width = size
    inside = np.stack(discs_and_rings((256, 256))[:3])
    logits = np.where(np.concatenate([inside, inside]), np.float32(5), np.float32(-5))
    boxes = [[0, 0, width, height]] * len(inside) + [[20, 10, width - 30, height - 5]] * len(inside)
    return AutomaticMasks(
        image_id="1" * 64,
        model_id="sam2-demo",
        image_size=size,
        low_res_logits=logits,
        predicted_iou=np.linspace(0.5, 0.9, len(logits), dtype=np.float32),
        stability_score=np.ones(len(logits), np.float32),
        point_coords=np.ones((len(logits), 2), np.float32),
        crop_boxes=np.array(boxes, np.int32),
    )


def main(folder: Path) -> None:
    """Writes `ANSWER.npy`, K×H×W bool, and `ANSWER/FORMAT.suffix`, with the image that the files are about."""
    for name, masks in answers().items():
        np.save(folder / f"{name}.npy", np.stack([masks.mask(index) for index in range(masks.num_masks)]))
        (folder / name).mkdir()
        height, width = masks.image_size
        Image.new("RGB", (width, height)).save(folder / name / "image.png")
        for kind, traits in TRAITS.items():
            if traits.one_mask_an_object and not traits.is_georeferenced:
                form = AnswerFormat(kind, file_name="image.png")
                text = b"".join(encode_piece(piece, form) for piece in cut(masks, form, 5_000_000))
                (folder / name / f"{kind}{traits.suffix}").write_bytes(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
