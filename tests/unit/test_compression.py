"""Content-Encoding: which client gets which coding, and that what it gets reads back."""

import gzip
from collections.abc import AsyncGenerator, Callable

import pytest
import zstandard

from deployments.messages.answer_format import AnswerFormat
from deployments.messages.segmentation import Segmentation
from deployments.parsing.http.compression import CODINGS, Coding, choose_coding, compress

BuildSegmentation = Callable[..., Segmentation]


@pytest.mark.parametrize(
    ("accept_encoding", "coding"),
    [
        ("", None),
        ("identity", None),
        ("br, deflate", None),
        ("gzip", "gzip"),
        ("gzip, deflate", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("GZIP;q=1.0, zstd;q=0.5", "gzip"),
        ("zstd;q=0, gzip", "gzip"),
        ("gzip;q=0, zstd;q=0", None),
        ("*", "zstd"),
        ("*;q=0, gzip;q=0.1", "gzip"),
        ("gzip;q=nonsense", None),
        (",;,=;q", None),
    ],
)
def test_the_client_chooses(segmentation_of: BuildSegmentation, accept_encoding: str, coding: str | None) -> None:
    assert choose_coding(accept_encoding, segmentation_of((1080, 1920)), AnswerFormat()) == coding


@pytest.mark.parametrize(
    ("size", "form"),
    [
        ((1080, 1920), AnswerFormat(return_logits=True)),
        ((64, 64), AnswerFormat()),
        ((1080, 1920), AnswerFormat("rle")),
        ((1080, 1920), AnswerFormat("npz")),
        ((1080, 1920), AnswerFormat("png")),
        ((1080, 1920), AnswerFormat("polygons", return_logits=True)),
    ],
)
def test_what_does_not_pay_is_sent_as_it_is(
    segmentation_of: BuildSegmentation, size: tuple[int, int], form: AnswerFormat
) -> None:
    assert choose_coding("gzip, zstd", segmentation_of(size), form) is None


def test_polygons_pay_of_any_size(segmentation_of: BuildSegmentation) -> None:
    assert choose_coding("gzip", segmentation_of((8, 8)), AnswerFormat("polygons")) == "gzip"


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("bands", [[b"[0,0,1]"], [b"0," * 1_000_000, b"1," * 10, b"", b"[]"]])
async def test_the_bands_are_one_stream(coding: Coding, bands: list[bytes]) -> None:
    async def source() -> AsyncGenerator[bytes, None]:
        for band in bands:
            yield band

    body = b"".join([part async for part in compress(source(), coding)])
    read = (
        gzip.decompress
        if coding == "gzip"
        else lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)
    )
    assert read(body) == b"".join(bands)
    assert len(body) < 20_000
