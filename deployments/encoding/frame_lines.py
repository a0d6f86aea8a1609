"""Writes the masks of a video's frame: as a JSON object, or as a label image with the palette of DAVIS."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from deployments.encoding import polygons, rle
from deployments.encoding.davis import label_image
from deployments.encoding.records import bbox
from deployments.messages.answer_format import TrackFormat
from deployments.messages.arrays import LOGIT_LIMIT
from deployments.messages.track import FrameMasks


def write(masks: FrameMasks, track_format: TrackFormat) -> bytes:
    """Writes a frame: `{"frame_index", "time_s", "objects": […]}`, or for `png` its label image."""
    if track_format.response_format == "png":
        return encode_labels(masks)
    geometry = _geometry(track_format)
    objects = [
        _record(masks, place, mask, geometry, track_format.return_logits)
        for place, mask in enumerate(masks.masks(track_format.non_overlapping))
    ]
    line = {"frame_index": masks.frame_index, "time_s": masks.time_s, "objects": objects}
    return orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY)


def _geometry(track_format: TrackFormat) -> Callable[[NDArray[np.bool_]], Any] | None:
    if track_format.response_format == "rle":
        return rle.segmentation
    if track_format.response_format == "polygons":
        tolerance = polygons.DEFAULT_TOLERANCE if track_format.tolerance is None else track_format.tolerance
        return partial(polygons.segmentation, tolerance=tolerance)
    return None


def _record(
    masks: FrameMasks,
    place: int,
    mask: NDArray[np.bool_],
    geometry: Callable[[NDArray[np.bool_]], Any] | None,
    return_logits: bool,
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "object_id": masks.object_ids[place],
        "score": masks.scores[place],
        "present": bool(masks.present[place]),
        "presence": masks.presence[place],
        "area": int(np.count_nonzero(mask)),
        "bbox": bbox(mask),
    }
    if geometry is not None:
        record["segmentation"] = geometry(mask)
    if return_logits:
        record["logits"] = masks.logits[place][None].clip(-LOGIT_LIMIT, LOGIT_LIMIT)
    return record


def encode_labels(masks: FrameMasks) -> bytes:
    """Writes a label image of 8 bits with a palette: each pixel is the object_id of the object there, or 0.

    Object ids are from 1 to 255. Where masks overlap, the object with the highest logit is on top.
    """
    ids = np.array([0, *masks.object_ids], np.uint8)
    return label_image(ids[masks.labels()])
