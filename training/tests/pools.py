"""A pool of small hand-drawn scenes to train from."""

from pathlib import Path

import numpy as np

SIDE = 64


def write_pool(folder: Path, name: str = f"{SIDE}-1-000.npy") -> None:
    """Two scenes on black: a white object whose grey part has a darker one; and a small grey object."""
    block = np.zeros((2, SIDE, SIDE, 6), np.uint8)
    for scene in block:
        scene[8:40, 6:50, :4] = (255, 255, 255, 1)
        scene[12:36, 10:34, :3], scene[12:36, 10:34, 4] = 200, 1
        scene[16:32, 14:26, :3], scene[16:32, 14:26, 5] = 160, 1
        scene[46:60, 30:44, :4] = (200, 200, 200, 2)
    np.save(folder / name, block)
