"""Writes a file in each tool's format, and the masks that belong into it: `… -m tests.tools.write_files FOLDER`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from deployments.encoding.response_encoder import encode_piece
from deployments.messages.answer_format import TRAITS, AnswerFormat
from deployments.messages.pieces import cut
from tests.masks import GivenMasks, Mask, discs_and_rings, random_mask


def answers() -> dict[str, GivenMasks]:
    """One mask, many objects with holes and islands, and shapes as no object has them."""
    rng = np.random.default_rng(16)
    size = (96, 131)
    noise = [random_mask(rng, size, cells, share) for cells in (5, 15, 40, 70) for share in (0.2, 0.5, 0.9)]
    found: dict[str, list[Mask]] = {
        "one": discs_and_rings(size)[2:3],
        "many": discs_and_rings(size),
        "noise": [mask for mask in noise if mask.any()],
    }
    return {name: GivenMasks(np.stack(masks), [0.9] * len(masks)) for name, masks in found.items()}


def main(folder: Path) -> None:
    """Writes `ANSWER.npy`, K×H×W bool, and `ANSWER/FORMAT.suffix`, with the image that the files are about."""
    for name, masks in answers().items():
        np.save(folder / f"{name}.npy", masks.given)
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
