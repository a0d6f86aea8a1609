"""Names what a file is that is no picture, or a picture of a kind that is not read, by its first bytes."""

import re
from dataclasses import dataclass

from deployments.errors import InvalidImage

HEAD_BYTES = 65536
"""How much of a file says what it is."""

VIDEO_ADVICE = "; send it as `video` to the route for videos"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: with its article.
        magic: the bytes that such a file holds.
        offset: where it holds them.
        advice: what to do about it.
    """

    name: str
    magic: bytes
    offset: int = 0
    advice: str = ""


# The more particular ones first.
KINDS = (
    Kind("a PDF document", b"%PDF-"),
    Kind("an EPS file", b"%!PS"),
    Kind("an EPS file", b"\xc5\xd0\xd3\xc6"),
    Kind("an HDF5 file", b"\x89HDF\r\n\x1a\n"),
    Kind("an HDF5 file", b"\x89HDF\r\n\x1a\n", 512),
    Kind("an HDF4 file", b"\x0e\x03\x13\x01"),
    Kind("a NetCDF file", b"CDF\x01"),
    Kind("a NetCDF file", b"CDF\x02"),
    Kind("a NumPy array", b"\x93NUMPY", advice="; send it as an image file"),
    Kind("a NIfTI volume", b"n+1\0", 344),
    Kind("a NIfTI volume", b"ni1\0", 344),
    Kind("a NRRD volume", b"NRRD000"),
    Kind("a MATLAB file", b"MATLAB 5.0 MAT-file"),
    Kind("a GRIB file", b"GRIB"),
    Kind("a BUFR file", b"BUFR"),
    Kind("a WMF drawing", b"\xd7\xcd\xc6\x9a"),
    Kind("a WMF drawing", b"\x01\x00\x09\x00\x00\x03"),
    Kind("an EMF drawing", b" EMF", 40),
    Kind("a Photoshop big document (PSB)", b"8BPS\x00\x02"),
    Kind("an OpenEXR picture", b"\x76\x2f\x31\x01"),
    Kind("a JPEG XR picture", b"II\xbc\x01"),
    Kind("a JPEG-LS picture", b"\xff\xd8\xff\xf7"),
    Kind("a Radiance HDR picture", b"#?RADIANCE"),
    Kind("a Radiance HDR picture", b"#?RGBE"),
    Kind("a GIMP picture (XCF)", b"gimp xcf "),
    Kind("a DjVu document", b"AT&TFORM"),
    Kind("a BPG picture", b"BPG\xfb"),
    Kind("a FLIF picture", b"FLIF"),
    Kind("a KTX texture", b"\xabKTX "),
    Kind("a Carl Zeiss picture (CZI)", b"ZISRAWFILE"),
    Kind("a Leica picture (LIF)", b"\x70\x00\x00\x00"),
    Kind("a Nikon picture (ND2)", b"\xda\xce\xbe\x0a"),
    Kind("an Olympus or other picture in an OLE container (OIB, older Office)", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    Kind("an AVI video", b"AVI ", 8, VIDEO_ADVICE),
    Kind("a WAV sound", b"WAVE", 8),
    Kind("a WebM or Matroska video", b"\x1aE\xdf\xa3", advice=VIDEO_ADVICE),
    Kind("an MPEG video", b"\x00\x00\x01\xba", advice=VIDEO_ADVICE),
    Kind("an MPEG video", b"\x00\x00\x01\xb3", advice=VIDEO_ADVICE),
    Kind("an FLV video", b"FLV\x01", advice=VIDEO_ADVICE),
    Kind("an ASF or WMV video", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", advice=VIDEO_ADVICE),
    Kind("an Ogg file", b"OggS", advice=VIDEO_ADVICE),
    Kind("a QuickTime video", b"moov", 4, VIDEO_ADVICE),
    Kind("a QuickTime video", b"mdat", 4, VIDEO_ADVICE),
    Kind("an MP3 sound", b"ID3"),
    Kind("a FLAC sound", b"fLaC"),
    Kind("a gzip file", b"\x1f\x8b"),
    Kind("a bzip2 file", b"BZh"),
    Kind("an xz file", b"\xfd7zXZ\0"),
    Kind("a zstd file", b"\x28\xb5\x2f\xfd"),
    Kind("a 7z archive", b"7z\xbc\xaf\x27\x1c"),
    Kind("a RAR archive", b"Rar!\x1a\x07"),
    Kind("a tar archive", b"ustar", 257),
    Kind("a SQLite database", b"SQLite format 3\0"),
    Kind("a Python pickle", b"\x80\x04\x95"),
    Kind("a program", b"\x7fELF"),
    Kind("a program", b"MZ"),
)

# Of the ISO base media file format, whose first box names the brand.
BRANDS = {
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"heif"),
    "AVIF": (b"avif", b"avis"),
    "CR3 camera raw": (b"crx ",),
}

# What text begins with, after blanks.
MARKUP = (
    (re.compile(rb"(<\?xml[^>]*>\s*|<!--.*?-->\s*|<!DOCTYPE svg[^>]*>\s*)*<svg[\s>]", re.DOTALL), "an SVG drawing"),
    (re.compile(rb"<!doctype html|<html[\s>]|<head[\s>]|<body[\s>]", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"<\?xml[\s>]|<[A-Za-z][\w:.-]*[\s>/]"), "an XML document"),
    (re.compile(rb"data:image/[\w.+-]+;base64,", re.IGNORECASE), "a data URL; send the bytes that it encodes"),
    (re.compile(rb"[{\[]\s*[\"{\[\]}\d-]"), "a JSON document"),
    (re.compile(rb"(iVBORw0KGgo|/9j/|R0lGOD|UklGR)"), "base64 text; send the bytes that it encodes"),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS"),
)


def name_of(head: bytes) -> str:
    """Returns what a file is, with its article and, after a semicolon, what to do about it; "" if that is unknown.

    Args:
        head: its first bytes, HEAD_BYTES of them if it has so many.
    """
    kind = by_magic(head)
    if kind is not None:
        return kind.name + kind.advice
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(head)
    if head[4:8] == b"ftyp":
        return _media(head)
    # Packets of 188 bytes, each with its synchronisation byte.
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return "an MPEG transport stream" + VIDEO_ADVICE
    return _text(head)


def by_magic(head: bytes) -> Kind | None:
    """Returns the kind whose bytes a file holds, of those that no reader reads."""
    return next((kind for kind in KINDS if head.startswith(kind.magic, kind.offset)), None)


def refusal(head: bytes) -> InvalidImage:
    """Returns the error for a file that no reader reads, which says what the file is if that can be told."""
    name, _, advice = name_of(head).partition("; ")
    if name:
        return InvalidImage(f"image: is {name}, which is not read as a picture" + (f"; {advice}" if advice else ""))
    beginning = head[:8].hex(" ")
    return InvalidImage(f"image: is of a kind that is not known; its first bytes are {beginning}")


def _zip(head: bytes) -> str:
    if b"word/" in head[:4096] or b"xl/" in head[:4096] or b"ppt/" in head[:4096]:
        return "an Office document"
    if b".npy" in head[:256]:
        return "a NumPy archive; send it as an image file"
    return "a zip archive; send the picture in it, or many of one size as `video`"


def _media(head: bytes) -> str:
    brand = head[8:12]
    for name, brands in BRANDS.items():
        if brand in brands:
            return f"a{'n' * name.startswith('AVIF')} {name} picture"
    return ("a QuickTime video" if brand == b"qt  " else "an MP4 video") + VIDEO_ADVICE


def _text(head: bytes) -> str:
    beginning = head[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, name in MARKUP:
        if pattern.match(beginning):
            return name
    sample = head[:1024]
    if not sample or any(byte < 9 or 13 < byte < 27 for byte in sample):
        return ""
    try:
        # The last character may be cut off.
        sample.decode() if len(head) <= len(sample) else sample[:-4].decode(errors="strict")
    except UnicodeDecodeError as error:
        if error.start < len(sample) - 8:
            return ""
    return "text"
