"""Measure a checkpoint on a dozen photographs, outlined by hand, as a Markdown table and a sheet to look at.

photographs.yaml says which they are: some that scikit-image and scikit-learn bring along, and Debian wallpapers that
are held out from training. The two packages are only read, never imported, so they can lie in a folder of their own:

    pip install --target FOLDER --no-deps scikit-image scikit-learn
    PYTHONPATH=FOLDER python -m training.evaluation.photographs --sheet sheet.png

A photograph that is not there is left out, and said to be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from training.evaluation import sheets
from training.evaluation.held_out import ROW_SIDE, Mask, iou, load_predictor, measure
from training.model.network import CHECKPOINT_PATH
from training.scenes import textures

Point = tuple[float, float]

LIST_PATH = Path(__file__).resolve().with_suffix(".yaml")
SIDE = 1024  # wider or higher ones are reduced to this, and their points are of the reduced picture
FINER = 4  # masks are drawn so much larger, for edges between pixels
COLUMNS = {
    "click_best": "one click, best of three",
    "click_scored": "one click, mask of the highest score",
    "box_single": "box, `multimask_output=False`",
    "corrected": "click in the middle and three corrections",
}


@dataclass(frozen=True)
class Photograph:
    """A photograph to measure on.

    Attributes:
        name: a short one.
        subject: what is clicked on.
        module: of the package that the file is in; None where it is a wallpaper.
        file: below the module's folder, or the end of the wallpaper's path.
        source: who ships it, who took it.
        licence: of the picture.
        click: x and y.
        polygons: the subject is what any of them holds.
    """

    name: str
    subject: str
    module: str | None
    file: str
    source: str
    licence: str
    click: Point
    polygons: tuple[tuple[Point, ...], ...]

    def find(self) -> Path | None:
        """Where its file lies, if it does."""
        if self.module is None:
            return next((path for path in textures.photographs(held_out=True) if path.match(self.file)), None)
        spec = find_spec(self.module)
        if spec is None or spec.origin is None:
            return None
        path = Path(spec.origin).parent / self.file
        return path if path.exists() else None

    def truth(self, height: int, width: int) -> Mask:
        """The subject's mask (height × width)."""
        canvas = Image.new("L", (FINER * width, FINER * height))
        for polygon in self.polygons:
            ImageDraw.Draw(canvas).polygon([(FINER * x, FINER * y) for x, y in polygon], fill=255)
        return np.asarray(canvas.resize((width, height), Image.Resampling.BOX)) > 127


def points(text: str) -> tuple[Point, ...]:
    """Points from "x,y x,y ..."."""
    pairs = (pair.split(",") for pair in text.split())
    return tuple((float(x), float(y)) for x, y in pairs)


def read(path: Path = LIST_PATH) -> list[Photograph]:
    """The photographs of a list."""
    return [
        Photograph(
            name=entry["name"],
            subject=entry["subject"],
            module=entry.get("module"),
            file=entry["file"],
            source=entry["source"],
            licence=entry["licence"],
            click=points(entry["click"])[0],
            polygons=tuple(points(polygon) for polygon in entry["polygons"]),
        )
        for entry in yaml.safe_load(path.read_text())
    ]


def load(path: Path) -> NDArray[np.uint8]:
    """The picture (H×W×3), reduced where it is large."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    return np.array(picture)


def judge(predictor: Any, photograph: Photograph, image: NDArray[np.uint8]) -> tuple[dict[str, float], Image.Image]:
    """Figures of COLUMNS; and the image with the click, then the three masks over it."""
    truth = photograph.truth(*image.shape[:2])
    predictor.set_image(image)
    masks, scores, _ = predictor.predict(np.array([photograph.click]), np.array([1]))
    found = [mask > 0 for mask in masks]
    each = [iou(mask, truth) for mask in found]
    figures, _ = measure(predictor, truth, photograph.click)
    figures |= {"click_best": max(each), "click_scored": each[int(scores.argmax())]}
    captions = [f"IoU {reached:.2f} score {score:.2f}" for reached, score in zip(each, scores, strict=True)]
    strip = sheets.strip(image, photograph.click, found, captions, ROW_SIDE)
    height = round(ROW_SIDE * image.shape[0] / max(image.shape[:2]))
    return {key: figures[key] for key in COLUMNS}, strip.crop((0, 0, strip.width, height))


def table(results: Sequence[tuple[Photograph, dict[str, float]]]) -> str:
    """Every photograph's figures and the means, as a Markdown table."""
    lines = [
        f"| photograph | {' | '.join(COLUMNS.values())} | source | licence |",
        f"| --- |{' --- |' * len(COLUMNS)} --- | --- |",
    ]
    for photograph, figures in results:
        cells = " | ".join(f"{figures[key]:.3f}" for key in COLUMNS)
        where = f"{photograph.source} | {photograph.licence}"
        lines.append(f"| {photograph.name}: {photograph.subject} | {cells} | {where} |")
    means = " | ".join(f"{np.mean([figures[key] for _, figures in results]):.3f}" for key in COLUMNS)
    return "\n".join([*lines, f"| mean of {len(results)} | {means} | | |"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT_PATH)
    parser.add_argument("--sheet", type=Path, default=None, help="write a picture of all results here")
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="NAME", help="photographs to leave out")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    there: list[tuple[Photograph, Path]] = []
    for photograph in read():
        if photograph.name in args.leave_out:
            continue
        if path := photograph.find():
            there.append((photograph, path))
        else:
            print(f"left out: {photograph.name} ({photograph.source}): no {photograph.file}", file=sys.stderr)
    if not there:
        parser.error("none of the photographs is there: see --help for how to get them")
    predictor = load_predictor(args.checkpoint)
    judged = [
        (photograph, *judge(predictor, photograph, load(path)))
        for photograph, path in tqdm(there, desc="photographs", disable=None)
    ]
    print(table([(photograph, figures) for photograph, figures, _ in judged]))
    if args.sheet is not None:
        sheets.save([strip for *_, strip in judged], args.sheet)


if __name__ == "__main__":
    main()
