"""Names that a client gives and that an answer repeats: of a category, and of the image's file."""

import unicodedata

from deployments.errors import InvalidRequest

LONGEST_NAME = 200
"""Characters of a name."""

UNWRITABLE = {"Cc", "Cs", "Cn", "Zl", "Zp"}
"""Unicode's categories of what no name has: control characters, lone surrogates, what is not assigned (XML forbids
some of each), separators of lines and paragraphs."""


def check_name(field: str, name: str | None) -> None:
    """Rejects a name that could not be written into every format, or that would blow it up; None is no name.

    Args:
        field: the field's name, for messages.
        name: what the client gave.

    Raises:
        InvalidRequest: the name is empty, is too long, or holds a character that no name has.
    """
    if name is None:
        return
    if not name.strip():
        raise InvalidRequest(f"{field}: must not be empty")
    if len(name) > LONGEST_NAME:
        raise InvalidRequest(f"{field}: has {len(name)} characters, more than the {LONGEST_NAME} that are accepted")
    if unwritable := [character for character in name if unicodedata.category(character) in UNWRITABLE]:
        raise InvalidRequest(f"{field}: holds U+{ord(unwritable[0]):04X}, which no name can hold")


def name_of_upload(sent: str) -> str | None:
    """Returns an uploaded file's own name, without folders and without what no name can hold; None if nothing is left.

    Args:
        sent: the name in the request's form, which may be anything.
    """
    last = sent.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(character for character in last if unicodedata.category(character) not in UNWRITABLE)
    # From the end: the suffix is worth more than the beginning.
    return kept[-LONGEST_NAME:].strip() or None
