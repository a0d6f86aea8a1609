"""The directories of a TIFF file: which pictures it holds, and what their tags say. Decodes nothing.

The structure is that of TIFF 6.0 and of BigTIFF. All sizes that a file states are checked against the file's own size,
since what reads the samples later trusts them.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from deployments.errors import InvalidImage, InvalidRequest
from deployments.messages.picture_options import Plane

SIGNATURES = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}

# TIFF's types: the bytes of a value, and what `struct` calls it, if it is an integer.
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}

ASCII = 2

SUBFILE_TYPE, OLD_SUBFILE_TYPE, SUB_DIRECTORIES, DESCRIPTION = 254, 255, 330, 270
REDUCED, MASK = 1, 4

MOST_DIRECTORIES = 65_536
MOST_TAGS = 1024
MOST_VALUES = 65_536
"""Of a tag that is read here: the most are the samples of a pixel."""

# OME's names of the dimensions, and those in ImageJ's description.
IMAGEJ_NAMES = {"c": "channels", "z": "slices", "t": "frames"}

MOST_XML = 2**22


@dataclass(frozen=True)
class Tag:
    """A tag's value, not yet read: TIFF's type, the number of values, and where they begin in the file."""

    kind: int
    count: int
    start: int


@dataclass(frozen=True, eq=False)
class Directory:
    """One picture of a file.

    Attributes:
        offset: where it begins.
        place: which one of the file's chain it is, counted from 0; None if it hangs on another one.
        next_offset: where the next one of the chain begins; 0 after the last.
        tags: the first tag of each code.
        data: the file.
        order: the byte order, as `struct` writes it.
    """

    offset: int
    place: int | None
    next_offset: int
    tags: dict[int, Tag] = field(repr=False)
    data: bytes = field(repr=False)
    order: str = field(repr=False)

    def values(self, code: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Returns the integers of a tag.

        Raises:
            InvalidImage: the tag holds no integers, or more than fit.
        """
        tag = self.tags.get(code)
        if tag is None or not tag.count:
            return default
        if tag.kind not in INTEGERS or tag.count > MOST_VALUES:
            raise InvalidImage(f"image: is a damaged TIFF file: tag {code} holds no integers")
        return _unpacked(self.data, f"{self.order}{tag.count}{INTEGERS[tag.kind]}", tag.start)

    def value(self, code: int, default: int) -> int:
        """Returns the first integer of a tag; errors as `values`."""
        return self.values(code, (default,))[0]

    def text(self, code: int) -> str:
        """Returns a tag's text; "" if there is none."""
        tag = self.tags.get(code)
        if tag is None or tag.kind != ASCII:
            return ""
        return self.data[tag.start : tag.start + tag.count].split(b"\0")[0].decode("utf-8", "replace")

    @property
    def subfile_type(self) -> int:
        """Bits: 1 a smaller version of another picture, 2 a page, 4 a mask."""
        return self.value(SUBFILE_TYPE, int(self.value(OLD_SUBFILE_TYPE, 0) == 2))


class Directories:
    """The directories of a file.

    Args:
        data: the file.

    Raises:
        InvalidImage: it is no TIFF file.
    """

    def __init__(self, data: bytes) -> None:
        if data[:4] not in SIGNATURES:
            raise InvalidImage("image: is no TIFF file")
        self._data = data
        self._order, self._is_big = SIGNATURES[data[:4]]
        self._count = 0

    def chain(self) -> Iterator[Directory]:
        """Yields the directories of the file's chain, in order.

        Raises:
            InvalidImage: the chain leads out of the file, into itself, or is too long.
        """
        if self._is_big and self._unpacked("HH", 4) != (8, 0):
            raise InvalidImage("image: is a damaged TIFF file: its offsets have another size than 8 bytes")
        [offset] = self._unpacked("Q", 8) if self._is_big else self._unpacked("I", 4)
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise InvalidImage("image: is a damaged TIFF file: its pages run in a circle")
            seen.add(offset)
            directory = self._directory(offset, len(seen) - 1)
            yield directory
            offset = directory.next_offset

    def pictures(self) -> Iterator[Directory]:
        """Yields the pictures in order: each of the chain, but masks and smaller versions of others.

        A directory that says that it is a smaller version, and on which larger ones hang, is a preview of these.
        """
        others, found = [], False
        for directory in self.chain():
            if directory.subfile_type & MASK:
                continue
            if not directory.subfile_type & REDUCED:
                found = True
                yield directory
                continue
            others.append(directory)
            for offset in directory.values(SUB_DIRECTORIES):
                picture = self._directory(offset, None)
                if not picture.subfile_type & (REDUCED | MASK):
                    found = True
                    yield picture
        if not found:
            yield from others

    def picture(self, page: int | Plane) -> Directory:
        """Returns a page.

        Raises:
            InvalidRequest: the file has no such page.
            InvalidImage: it is damaged, or holds no picture.
        """
        index = self._plane_index(page) if isinstance(page, Plane) else page
        count = 0
        for count, directory in enumerate(self.pictures(), 1):
            if count > index:
                return directory
        if not count:
            raise InvalidImage("image: is a TIFF file without a picture")
        raise InvalidRequest(f"page: is {index}, and the file has {count}, counted from 0")

    def mask_of(self, picture: Directory) -> Directory | None:
        """Returns the mask of a picture of the chain: GDAL puts it right behind, before the next picture."""
        if picture.place is None:
            return None
        for directory in self.chain():
            if directory.place is not None and directory.place > picture.place:
                kind = directory.subfile_type
                if kind & (REDUCED | MASK) == MASK:
                    same = all(directory.value(code, 0) == picture.value(code, 0) for code in (256, 257))
                    return directory if same else None
                if not kind & (REDUCED | MASK):
                    return None
        return None

    # ---- the structure

    def _unpacked(self, layout: str, start: int) -> tuple[int, ...]:
        return _unpacked(self._data, self._order + layout, start)

    def _directory(self, offset: int, place: int | None) -> Directory:
        self._count += 1
        if self._count > MOST_DIRECTORIES:
            raise InvalidImage(f"image: is a TIFF file of more than {MOST_DIRECTORIES} pictures")
        [count] = self._unpacked("Q" if self._is_big else "H", offset)
        start = offset + (8 if self._is_big else 2)
        entry, inline = (20, 8) if self._is_big else (12, 4)
        if count > MOST_TAGS:
            raise InvalidImage(f"image: is a damaged TIFF file: a page has {count} tags")
        tags: dict[int, Tag] = {}
        total = 0
        for at in range(start, start + count * entry, entry):
            code, kind, number = self._unpacked("HHQ" if self._is_big else "HHI", at)
            size = number * TYPE_BYTES.get(kind, 1)
            where = at + entry - inline
            if size > inline:
                [where] = self._unpacked("Q" if self._is_big else "I", where)
            total += min(size, len(self._data))
            tags.setdefault(code, Tag(kind, number, where))
        # Tags that overlap would take any time to read.
        if total > 2 * len(self._data) + 65_536:
            raise InvalidImage("image: is a damaged TIFF file: its tags hold more than the file")
        [following] = self._unpacked("Q" if self._is_big else "I", start + count * entry)
        return Directory(offset, place, following, tags, self._data, self._order)

    # ---- planes

    def _plane_index(self, plane: Plane) -> int:
        """Returns which picture a plane is, from the description by OME or ImageJ."""
        first = next(self.chain(), None)
        text = "" if first is None else first.text(DESCRIPTION)
        if text.startswith("ImageJ="):
            sizes = {
                name: int(found[1]) if (found := re.search(rf"^{word}=(\d{{1,9}})\s*$", text, re.MULTILINE)) else 1
                for name, word in IMAGEJ_NAMES.items()
            }
            return _linear(plane, "czt", sizes)
        if "<OME" not in text or len(text) > MOST_XML:
            raise InvalidRequest("page: c, z and t are for OME-TIFF and ImageJ's TIFF; this file has plain pages")
        return _ome_index(text, plane)


def _unpacked(data: bytes, layout: str, start: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, data, start)
    except (struct.error, OverflowError) as error:
        raise InvalidImage("image: is a TIFF file that is damaged or truncated: its structure leads outside") from error


def _linear(plane: Plane, order: str, sizes: dict[str, int]) -> int:
    """Returns a plane's index, the first of `order` counting fastest."""
    index, step = 0, 1
    for name in order:
        at: int = getattr(plane, name)
        if at >= sizes[name]:
            raise InvalidRequest(f"page: {name} is {at}, and the image has {sizes[name]}, counted from 0")
        index += at * step
        step *= sizes[name]
    return index


def _ome_index(text: str, plane: Plane) -> int:
    """Returns which picture a plane is, by the OME data model: DimensionOrder, and TiffData where it says more."""
    try:
        root = ElementTree.fromstring(text)
        pixels = next(one for one in root.iter() if one.tag.endswith("}Pixels") or one.tag == "Pixels")
        order = pixels.attrib["DimensionOrder"].lower().removeprefix("xy")
        channels = [one for one in pixels if one.tag.endswith("Channel")]
        samples = int(channels[0].get("SamplesPerPixel", "1")) if channels else 1
        sizes = {name: int(pixels.attrib[f"Size{name.upper()}"]) for name in "czt"}
        sizes["c"] = max(1, sizes["c"] // max(1, samples))
        if sorted(order) != ["c", "t", "z"]:
            raise ValueError(order)
        index = _linear(plane, order, sizes)
        for part in pixels:
            if part.tag.endswith("TiffData") and (found := _in_part(part.attrib, index, order, sizes)) is not None:
                return found
    except InvalidRequest:
        raise
    except (ElementTree.ParseError, StopIteration, LookupError, ValueError) as error:
        raise InvalidImage(f"image: its OME description cannot be read: {error!r:.99}") from error
    return index


def _in_part(attributes: dict[str, Any], index: int, order: str, sizes: dict[str, int]) -> int | None:
    """Returns which picture a plane is, if it is one of those that a TiffData element tells of."""
    first = Plane(*(int(attributes.get(f"First{name}", 0)) for name in "CZT"))
    start = _linear(first, order, sizes)
    # Without PlaneCount, an element with IFD is about one plane, one without about all.
    planes = int(attributes.get("PlaneCount", 1 if "IFD" in attributes else MOST_DIRECTORIES))
    return int(attributes.get("IFD", 0)) + index - start if start <= index < start + planes else None
