"""Names of fields that are nearly ours: a request with one is refused, since it would be answered as if without it."""

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from itertools import islice

from deployments.errors import InvalidRequest

PROMPT_NAMES = ("point_coords", "point_labels", "box", "mask_input", "prompts")

# What other programs call our fields, where it is not similar enough to be seen.
OTHER_NAMES = {
    "point": "point_coords",
    "points": "point_coords",
    "coords": "point_coords",
    "coordinates": "point_coords",
    "inputpoint": "point_coords",
    "inputpoints": "point_coords",
    "label": "point_labels",
    "labels": "point_labels",
    "inputlabel": "point_labels",
    "inputlabels": "point_labels",
    "bbox": "box",
    "bboxes": "box",
    "boxes": "box",
    "inputbox": "box",
    "inputboxes": "box",
    "mask": "mask_input",
    "masks": "mask_input",
    "inputmask": "mask_input",
    "inputmasks": "mask_input",
    "prompt": "prompts",
    "model": "model_id",
    "multimask": "multimask_output",
}

# With less, `image_id` would be taken for `image`; a misspelt letter or two leave more.
SIMILAR = 0.85

SHORTEST_MISSPELT = 4

MOST_IN_URL = 64
"""Names in a URL that are looked at: comparing takes time, and a URL may have a hundred thousand of them."""


def check_names(in_body: Iterable[str], in_url: Iterable[str], known: Collection[str]) -> None:
    """Rejects names that are nearly those of a route's fields, and fields in the URL. Others are ignored.

    Prompts that the route does not take are rejected too, if it answers with masks.

    Args:
        in_body: the names that a request's body has.
        in_url: the names of the parameters in its URL.
        known: the names of the route's fields.

    Raises:
        InvalidRequest: there is such a name.
    """
    for name in in_body:
        if name in known:
            continue
        if meant := meant_by(name, known):
            raise InvalidRequest(f"{_shown(name)}: is not a field; did you mean {meant}?")
        if "response_format" in known and meant_by(name, PROMPT_NAMES):
            prompts = [prompt for prompt in PROMPT_NAMES if prompt in known]
            raise InvalidRequest(
                f"{_shown(name)}: is not a field of this route, whose prompts are {', '.join(prompts) or 'none'}"
            )
    for name in islice(in_url, MOST_IN_URL):
        if meant := meant_by(name, known):
            raise InvalidRequest(f"{_shown(name)}: is in the URL; send {meant} in the body")


def meant_by(name: str, known: Collection[str]) -> str | None:
    """Returns which of the known names this one is, or nearly is; None if it is another one.

    Case, signs and brackets do not count: `point_coords[0][]` and `pointCoords` are `point_coords`.
    """
    plain = _plain(name.partition("[")[0]) or _plain(name)
    ours = {_plain(one): one for one in known}
    if plain in ours:
        return ours[plain]
    if OTHER_NAMES.get(plain) in known:
        return OTHER_NAMES[plain]
    close = get_close_matches(plain, ours, 1, SIMILAR) if len(plain) >= SHORTEST_MISSPELT else []
    return ours[close[0]] if close else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name[:100].lower())


def _shown(name: str) -> str:
    return name[:100]
