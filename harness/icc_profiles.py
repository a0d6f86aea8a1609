"""ICC profiles made by code: of screens (matrix and curve), of grey, and of a printer (a table)."""

import struct
from collections.abc import Sequence

import numpy as np

# Colorants adapted to D50, as XYZ of full red, green and blue.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
D50 = (0.9642, 1.0, 0.8249)


def rgb_profile(colorants: Sequence[Sequence[float]], gamma: float) -> bytes:
    """A profile of three primaries whose samples are light to the power of 1 / gamma."""
    tags = {name: _xyz(xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(gamma))
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    """A profile of grey samples."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _gamma(gamma)})


def cmyk_profile(lightness_of_ink: float) -> bytes:
    """A profile of four inks, each of which alone has this lightness (L*, 0 to 100) and no hue; no ink is white.

    The lightness of several inks is the product of theirs, as shares of 100.
    """
    share = lightness_of_ink / 100
    nodes = bytearray()
    for index in range(16):
        inks = index.bit_count()
        nodes += bytes([round(255 * share**inks), 128, 128])
    identity = b"".join(struct.pack(">i", 65536 * (row == column)) for row in range(3) for column in range(3))
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + 4 * ramp + bytes(nodes) + 3 * ramp
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def linear_srgb(samples: np.ndarray, colorants: Sequence[Sequence[float]], gamma: float) -> np.ndarray:
    """The sRGB samples, 0 to 255, of a profile's samples, computed by the definition of sRGB (IEC 61966-2-1)."""
    light = (np.asarray(samples, float) / 255) ** gamma @ np.array(colorants)
    linear = (light @ np.linalg.inv(np.array(SRGB))).clip(0, 1)
    encoded: np.ndarray = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    return encoded


def _xyz(value: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(65536 * part)) for part in value)


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma)) + b"\0\0"


def _profile(device: bytes, colours: bytes, space: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"wtpt": _xyz(D50), b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78), **tags}
    offset = 128 + 4 + 12 * len(tags)
    table, data = b"", b""
    for name, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", offset + len(data), len(content))
        data += padded
    white = b"".join(struct.pack(">i", round(65536 * part)) for part in D50)
    header = struct.pack(">I4sI4s4s4s", 0, b"lcms", 0x02400000, device, colours, space)
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white + bytes(48)
    body = header + struct.pack(">I", len(tags)) + table + data
    return struct.pack(">I", len(body)) + body[4:]
