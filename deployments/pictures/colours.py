"""Colours as a viewer shows them: profiles brought to sRGB by littlecms, transparent pixels over a background."""

import io

import numpy as np
from PIL import Image, ImageCms

from deployments.messages.arrays import RgbArray

# By the signature in a profile's header (ICC.1:2022, 7.2.6), the Pillow modes that it describes.
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}

# Profiles that move no colour by more than this, of 255, are sRGB: they differ in how their curves are rounded.
SAME_COLOUR = 2

LATTICE_STEPS = 9

INTENT = ImageCms.Intent.PERCEPTUAL
"""What browsers take for photographs."""


def shown(image: Image.Image, profile: bytes | None, background: tuple[int, int, int]) -> RgbArray:
    """Returns a picture of 8-bit samples as it is seen, `H×W×3` uint8 RGB.

    Args:
        image: of any mode but those of more than 8 bits a sample.
        profile: its ICC profile; one that is malformed, or describes another kind of colours, is ignored.
        background: what is seen through transparent pixels, in sRGB.
    """
    colours, alpha = _separated(image)
    rgb = in_srgb(colours, profile)
    if alpha is None or alpha.getextrema() == (255, 255):
        return np.ascontiguousarray(rgb)
    canvas = Image.new("RGB", rgb.size, background)
    canvas.paste(rgb, mask=alpha)
    return np.ascontiguousarray(canvas)


def _separated(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours, and the opacity as a grey picture; None where nothing is transparent."""
    if image.mode in {"La", "LA"} or (image.mode in {"1", "L"} and "transparency" in image.info):
        grey = image.convert("LA")
        return grey.getchannel("L"), grey.getchannel("A")
    if image.has_transparency_data or image.mode == "RGBa":
        coloured = image.convert("RGBA")
        return coloured.convert("RGB"), coloured.getchannel("A")
    if image.mode == "1":
        return image.convert("L"), None
    return (image if image.mode in {"L", "CMYK"} else image.convert("RGB")), None


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Returns a picture of mode L, RGB or CMYK in sRGB, mode RGB; with the same samples if it is sRGB already."""
    if profile:
        try:
            return _converted(image, profile)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return image.convert("RGB")


def _converted(image: Image.Image, profile: bytes) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = PROFILE_MODES.get(source.profile.xcolor_space.strip())
    # Photographs that were turned grey often keep the profile of their colours.
    if mode == "RGB" and image.mode == "L":
        image = image.convert("RGB")
    if mode != image.mode:
        return image.convert("RGB")
    target = ImageCms.createProfile("sRGB")
    if mode == "L":
        return _by_levels(image, ImageCms.buildTransform(source, target, "L", "RGB", INTENT, ImageCms.Flags.NOOPTIMIZE))
    transform = ImageCms.buildTransform(source, target, mode, "RGB", INTENT)
    return image if mode == "RGB" and _is_identity(transform) else _applied(image, transform)


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether the transform leaves all colours of a lattice as they are."""
    levels = np.linspace(0, 255, LATTICE_STEPS).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    converted = np.asarray(_applied(Image.fromarray(lattice), transform)).astype(int)
    return bool(np.abs(converted - lattice).max() <= SAME_COLOUR)


def _by_levels(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """A grey picture in sRGB, level by level: littlecms' own table for grey is too coarse for dark levels."""
    levels = np.arange(256, dtype=np.uint8)
    table = np.asarray(_applied(Image.fromarray(levels[None]), transform))[0]
    if np.abs(table.astype(int) - levels[:, None]).max() <= SAME_COLOUR:
        return image.convert("RGB")
    return Image.merge("RGB", [image.point(table[:, channel].tolist()) for channel in range(3)])
