"""The libraries of the extra `formats`, and the refusal where they are missing."""

from importlib import import_module
from typing import Any

from deployments.errors import InvalidImage


def library(name: str, kind: str) -> Any:
    """Returns a library that only some kinds of files need.

    Args:
        name: of its module.
        kind: the file's kind, with its article.

    Raises:
        InvalidImage: the library is not installed; the message names kind and extra.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise InvalidImage(
            f"image: is {kind}, which this installation does not read: {name} is missing; "
            "install segment-anything-2-serve[formats]"
        ) from error
