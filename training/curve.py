"""Draw a run's held-out curve as a small SVG for the model card."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from training.model import DEMO_FOLDER
from training.train import RUNS

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 40, 40
COLOURS = {128: "#4c78a8", 256: "#f58518", 512: "#54a24b", 1024: "#b279a2"}
TITLE = "Mean IoU on held-out scenes: one click, best of three; box (dashed)"


def place(minutes: float, value: float, longest: float) -> tuple[float, float]:
    """Where a point of the curve lies on the picture."""
    x = LEFT + (WIDTH - LEFT - RIGHT) * minutes / longest
    return round(x, 1), round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value, 1)


def axes(longest: float) -> list[str]:
    """Grid lines with their labels, and the title."""
    parts = [f'<text x="{LEFT}" y="14" font-weight="bold">{TITLE}</text>']
    for value in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        _, y = place(0, value, longest)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{value:.1f}</text>')
    for minutes in range(0, int(longest) + 1, 10):
        x, y = place(minutes, 0, longest)
        parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{minutes}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">minutes of training</text>')
    return parts


def draw(curve: list[dict[str, float]]) -> str:
    """The whole picture."""
    longest = max(note["minutes"] for note in curve) or 1.0
    parts = axes(longest)
    points = [(*place(note["minutes"], note["one_click_best_of_three"], longest), int(note["size"])) for note in curve]
    for key, dashes in (("one_click_best_of_three", "none"), ("box", "5 4")):
        places = (place(note["minutes"], note[key], longest) for note in curve if key in note)
        line = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="#888" stroke-dasharray="{dashes}"/>')
    parts += [f'<circle cx="{x}" cy="{y}" r="4" fill="{COLOURS.get(size, "#000")}"/>' for x, y, size in points]
    for index, size in enumerate(sorted({size for _, _, size in points})):
        x = LEFT + 100 * index
        parts.append(f'<circle cx="{x + 4}" cy="27" r="4" fill="{COLOURS.get(size, "#000")}"/>')
        parts.append(f'<text x="{x + 13}" y="31">{size} pixels</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
    body = "\n".join(parts)
    return f'{head}font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n{body}\n</svg>\n'


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="demo")
    parser.add_argument("--output", type=Path, default=DEMO_FOLDER / "curve.svg")
    args = parser.parse_args()
    args.output.write_text(draw(json.loads((RUNS / args.run / "curve.json").read_text())))


if __name__ == "__main__":
    main()
