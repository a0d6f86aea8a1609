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
    """Returns a picture of mode L, RGB or CMYK in sRGB, mode RGB; with the samples that it has if it is sRGB already.

    The rendering intent is perceptual, which browsers take for photographs.
    """
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
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL)
    converted = image if mode != "CMYK" and _changes_nothing(transform, mode) else None
    if converted is None:
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
    return converted.convert("RGB")


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether the transform leaves all colours of a lattice as they are."""
    levels = np.linspace(0, 255, LATTICE_STEPS if mode == "RGB" else 256).round().astype(np.uint8)
    lattice = (
        np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3) if mode == "RGB" else levels[None]
    )
    converted = ImageCms.applyTransform(Image.fromarray(lattice), transform)
    assert converted is not None
    expected = lattice if mode == "RGB" else np.repeat(lattice[:, :, None], 3, axis=2)
    return bool(np.abs(np.asarray(converted).astype(int) - expected).max() <= SAME_COLOUR)
