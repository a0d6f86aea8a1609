"""The mask decoder against SAM 2's own modules, on the same embedding, in this process, by turns.

Both encode the prompts too, and both decode as many objects at once as the engine does. An object is a click. Memory is
that of one such run above what the process held before.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.model import engines
from benchmarks.report import Findings, Row, Spread, ratios
from benchmarks.workplace import Workplace
from deployments.messages.prompt import Prompt
from deployments.model.engine import Engine, ImageEmbedding
from harness.images import noise, pixels
from tuning.measuring import embed, peak_bytes
from tuning.tables import Table

OBJECTS = (1, 4, 16, 64)
ROUNDS = {1: 15, 4: 9, 16: 5, 64: 3}


def run(workplace: Workplace) -> Findings:
    """Measures hiera-tiny, whose mask decoder is that of all sizes."""
    engine = engines.engine(engines.hiera("tiny"), workplace.precision)
    [embedding] = embed(engine, [pixels(noise(1024, 1024, 1))])
    # As sam2 keeps them, in the order of memory that its modules are written for.
    kept = [one.float().contiguous() for one in (embedding.image_embed, *embedding.high_res_feats)]
    rows, lines, data = [], [], {}
    for count in OBJECTS[: 2 if workplace.quick else None]:
        peer, ours = partial(sam2s, engine, kept, count), partial(projects, engine, embedding, count)
        difference = float((peer() - ours()).abs().max())
        peer_s, our_s = by_turns(peer, ours, 2 if workplace.quick else ROUNDS[count])
        speed = ratios(peer_s, our_s)
        name = f"decoder, {count} object{'s' * (count > 1)}: speed ÷ SAM 2's own modules"
        note = f"logits differ by at most {difference:.1e}"
        rows.append(Row(name, speed.median, workplace.precision, unit="×", spread=speed, note=note))
        milliseconds = (str(Spread.of([1000 * one for one in seconds])) for seconds in (peer_s, our_s))
        memory = [peak_bytes(engine.device, call) for call in (peer, ours)]
        lines.append([str(count), *milliseconds, str(speed), *(f"{one / 1e6:.0f}" for one in memory)])
        data[str(count)] = {"sam2_s": peer_s, "project_s": our_s, "memory_bytes": memory, "difference": difference}
    columns = ("objects", "SAM 2's modules, ms", "ours, ms", "ratio", "SAM 2's, MB", "ours, MB")
    title = f"Mask decoder, hiera-tiny, {engine.objects_at_once} objects at once"
    return Findings(rows, [Table(title, columns, lines)], data)


def by_turns(peer: Callable[[], object], ours: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each of some rounds of both."""
    measured = [(engines.all_seconds(peer, 1)[0], engines.all_seconds(ours, 1)[0]) for _ in range(rounds)]
    peer_s, our_s = zip(*measured, strict=True)
    return list(peer_s), list(our_s)


def clicks(count: int) -> Any:
    """`count×1×2` places in a frame of 1024×1024."""
    return np.stack([np.linspace(20, 1000, count), np.linspace(1000, 20, count)], 1)[:, None].astype(np.float32)


def projects(engine: Engine, embedding: ImageEmbedding, count: int) -> torch.Tensor:
    """`count×3×256×256` logits of the project's engine."""
    prompt = Prompt(point_coords=clicks(count), point_labels=np.ones((count, 1)))
    [(logits, _)] = engine.decode([(embedding, prompt)])
    return torch.from_numpy(logits)


@torch.inference_mode()
def sam2s(engine: Engine, kept: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """The same of SAM 2's prompt encoder and mask decoder, called as `SAM2ImagePredictor` calls them."""
    model = engine.model
    encoder = model.sam_prompt_encoder
    image_embed, *high_res_feats = kept
    parts = []
    for coords in torch.from_numpy(clicks(count)).to(engine.device).split(engine.objects_at_once):  # type: ignore[no-untyped-call]
        labels = torch.ones(coords.shape[:2], dtype=torch.int32, device=engine.device)
        sparse, dense = encoder(points=(coords, labels), boxes=None, masks=None)
        logits, *_ = model.sam_mask_decoder(
            image_embeddings=image_embed + model.no_mem_embed.reshape(1, -1, 1, 1),
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            repeat_image=True,
            high_res_features=high_res_feats,
        )
        parts.append(logits.cpu())
    return torch.cat(parts)
