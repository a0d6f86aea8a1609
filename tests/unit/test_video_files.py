"""Video files, made here with PyAV and Pillow: every frame, its time, its pixels, and how bad files are refused."""

import io
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from av.video.reformatter import Colorspace
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image
from PIL._avif import AvifDecoder

from deployments.errors import InvalidVideo, ServiceError, TooLarge
from deployments.frames import animation, animation_frames, film, zipped_pictures
from deployments.frames.animation_frames import AnimationFrames
from deployments.frames.decode import open_video
from deployments.frames.video import VideoFrame
from deployments.messages.picture_options import PictureOptions
from deployments.pictures import heif
from deployments.pictures.isolated import HELPERS, Helpers
from deployments.pictures.reader import read as read_picture
from deployments.settings import Limits
from harness.images import encoded, picture

Pixels = NDArray[np.uint8]
COUNT = 24


def numbered(index: int, width: int = 64, height: int = 48) -> Pixels:
    """A frame that tells which one it is, even after lossy encoding, and where its corners are."""
    pixels = np.full((height, width, 3), 10 * index, np.uint8)
    pixels[: height // 2, : width // 2] = (200, 30, 30)
    return pixels


def number_of(pixels: Pixels) -> int:
    """Which frame it is, by its lower right corner."""
    return round(float(pixels[-8:, -8:].mean()) / 10)


def write(
    target: Any,
    frames: Sequence[Pixels],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    stamps: Sequence[int] | None = None,
    rate: int = 10,
    container: str | None = None,
    shift: int = 0,
    prepare: Callable[[Any], None] = lambda _: None,
    **options: str,
) -> None:
    """Writes a video file; `stamps` are the frames' times in 1/`rate` s."""
    with av.open(target, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.time_base = Fraction(1, rate)
        prepare(stream)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts = stamps[index] if stamps else index
            frame.time_base = Fraction(1, rate)
            _mux(output, stream.encode(frame), shift, rate)
        _mux(output, stream.encode(), shift, rate)


def _mux(output: Any, packets: Sequence[Any], shift: int, rate: int) -> None:
    for packet in packets:
        if shift:
            ticks = int(Fraction(shift, rate) / packet.time_base)
            packet.pts -= ticks
            packet.dts -= ticks
        output.mux(packet)


def read(path: Path, start: int = 0, stop: int = 10**9, max_frames: int = 1000) -> list[VideoFrame]:
    with open_video(path, Limits(), max_frames) as video:
        return list(video.frames(start, stop))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary mp4 with frames that are decoded in another order than they are shown."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write(str(path), [numbered(index) for index in range(COUNT)], bf="2", g="8")
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mp4", "libx265"),
        ("a.mov", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("a.webm", "libvpx"),
        ("a.avi", "mpeg4"),
        ("a.ts", "libx264"),
        ("a.mpg", "mpeg2video"),
        ("a.mov", "mjpeg"),
    ],
)
def test_every_frame_of_common_files_in_order(tmp_path: Path, name: str, codec: str) -> None:
    rate = 25 if codec == "mpeg2video" else 10
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = tmp_path / name
    write(str(path), [numbered(index) for index in range(COUNT)], codec, pix_fmt, rate=rate)

    with open_video(path, Limits(), 1000) as video:
        frames = list(video.frames(0, COUNT))

    assert (video.facts.width, video.facts.height, video.facts.num_frames) == (64, 48, COUNT)
    assert not video.facts.is_cut
    assert video.facts.fps == pytest.approx(rate, rel=0.01)
    assert [frame.index for frame in frames] == list(range(COUNT))
    assert [number_of(frame.pixels) for frame in frames] == list(range(COUNT))
    times = [frame.time_s for frame in frames]
    assert times == pytest.approx([index / rate for index in range(COUNT)], abs=0.06 if rate == 25 else 0.005)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A file of numbered frames of each kind, by its name; made once."""
    folder = tmp_path_factory.mktemp("files")

    @cache
    def made(name: str) -> Path:
        path, frames = folder / name, [numbered(index) for index in range(COUNT)]
        if name in ("a.gif", "a.webp", "a.png", "a.avif", "a.tif"):
            animate(path, frames, **({"lossless": True} if name == "a.webp" else {}))
        elif name == "a.zip":
            zipped(path, {f"{index}.png": encoded(Image.fromarray(frame)) for index, frame in enumerate(frames)})
        else:
            codec = {"a.avi": "mpeg4", "a.mpg": "mpeg2video"}.get(name, "libx264")
            write(str(path), frames, codec, rate=25 if name == "a.mpg" else 10, g="8")
        return path

    return made


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 24)],
        [(0, 3), (3, 9), (9, 24)],
        [(20, 24), (0, 4), (10, 12), (11, 13)],
        [(index, index + 1) for index in range(23, -1, -1)],
        [(23, 40), (24, 30), (7, 7), (5, 6)],
    ],
)
@pytest.mark.parametrize(
    "name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.mpg", "a.gif", "a.webp", "a.png", "a.avif", "a.tif", "a.zip"]
)
def test_any_frames_in_any_order(files: Callable[[str], Path], name: str, ranges: list[tuple[int, int]]) -> None:
    with open_video(files(name), Limits(), 1000) as video:
        for start, stop in ranges:
            found = list(video.frames(start, stop))
            expected = list(range(start, min(stop, COUNT)))
            assert [frame.index for frame in found] == expected
            assert [number_of(frame.pixels) for frame in found] == expected


def test_frames_beyond_the_end_are_none(clip: Path) -> None:
    with open_video(clip, Limits(), 1000) as video:
        for start, stop in ((COUNT, COUNT + 3), (COUNT + 7, COUNT + 9), (5, 5), (9, 3)):
            assert list(video.frames(start, stop)) == []
        assert [number_of(frame.pixels) for frame in video.frames(4, 6)] == [4, 5]


def textured(index: int) -> Pixels:
    """A frame whose picture moves, so that one that is decoded without those before it is seen to be damaged."""
    ground = np.asarray(picture(240, 200, 3))
    return np.ascontiguousarray(ground[2 * index % 50 :][:128, 3 * index % 50 :][:, :160])


SEEKS: dict[str, tuple[str, str, int, Any]] = {
    "H.264, open groups": ("a.mp4", "libx264", 10, {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    "H.265, open groups": (
        "a.mp4",
        "libx265",
        10,
        {"x265-params": "keyint=12:min-keyint=12:open-gop=1:log-level=none"},
    ),
    "H.264, no frame by itself but the first": ("a.mp4", "libx264", 10, {"x264-params": "intra-refresh=1:keyint=999"}),
    "MPEG-2, a recording": ("a.ts", "mpeg2video", 25, {"g": "12", "bf": "2"}),
    # Its decoder begins at any frame.
    "MPEG-4, a recording": ("a.ts", "mpeg4", 10, {"g": "12"}),
}


@pytest.mark.parametrize("case", SEEKS)
def test_a_frame_is_the_same_whatever_was_read_before(tmp_path: Path, case: str) -> None:
    name, codec, rate, options = SEEKS[case]
    write(str(tmp_path / name), [textured(index) for index in range(50)], codec, rate=rate, **options)
    expected = [frame.pixels for frame in read(tmp_path / name)]
    assert len(expected) == 50
    with open_video(tmp_path / name, Limits(), 1000) as video:
        for index in np.random.default_rng(2).permutation(50).tolist():
            [frame] = video.frames(index, index + 1)
            assert np.array_equal(frame.pixels, expected[index]), index


def test_a_frame_that_is_shown_before_the_nearest_key_frame_is_found_near_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In open groups of pictures; from the file's beginning it would take as long as all that lies between."""
    name, codec, rate, options = SEEKS["H.265, open groups"]
    write(str(tmp_path / name), [textured(index) for index in range(100)], codec, rate=rate, **options)
    with open_video(tmp_path / name, Limits(), 1000) as video:
        list(video.frames(0, 1))
        monkeypatch.setattr(film.Film, "_open", lambda _: pytest.fail("reads the file from its beginning"))
        for index in range(99, 30, -1):
            assert [frame.index for frame in video.frames(index, index + 1)] == [index]


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_recording_begins_with_the_first_frame_that_can_be_decoded(tmp_path: Path, codec: str) -> None:
    """It was switched on amid a group of pictures."""
    write(str(tmp_path / "a.ts"), [textured(index) for index in range(60)], codec, rate=25, g="12", bf="2")
    content = (tmp_path / "a.ts").read_bytes()
    (tmp_path / "a.ts").write_bytes(content[len(content) // 3 // 188 * 188 :])
    with open_video(tmp_path / "a.ts", Limits(), 1000) as video:
        frames = list(video.frames(0, 60))
    assert 20 < len(frames) < 60
    assert [frame.index for frame in frames] == list(range(video.facts.num_frames))
    shifts = [float(np.abs(frames[0].pixels.astype(int) - textured(index)).mean()) for index in range(60)]
    assert int(np.argmin(shifts)) == 60 - len(frames)


def test_a_variable_rate_keeps_each_frames_own_time(tmp_path: Path) -> None:
    stamps = [0, 1, 2, 7, 8, 20, 21, 50]
    write(str(tmp_path / "a.mp4"), [numbered(index) for index in range(8)], stamps=stamps, rate=100)
    frames = read(tmp_path / "a.mp4")
    assert [number_of(frame.pixels) for frame in frames] == list(range(8))
    assert [frame.time_s for frame in frames] == pytest.approx([stamp / 100 for stamp in stamps])


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path: Path) -> None:
    """As phones and lossless cutters write it: decoding begins five frames before what is shown."""
    write(str(tmp_path / "a.mp4"), [numbered(index) for index in range(COUNT)], shift=5, bf="0")
    with open_video(tmp_path / "a.mp4", Limits(), 1000) as video:
        frames = list(video.frames(0, COUNT))
    assert not video.facts.is_cut
    assert [number_of(frame.pixels) for frame in frames] == list(range(5, COUNT))
    assert [frame.index for frame in frames] == list(range(COUNT - 5))
    assert frames[0].time_s == pytest.approx(0)
    assert number_of(read(tmp_path / "a.mp4", 10, 11)[0].pixels) == 15


TURNS: dict[str, tuple[tuple[int, int, int, int], Callable[[Pixels], Pixels]]] = {
    "upright": ((1, 0, 0, 1), lambda pixels: pixels),
    "a quarter clockwise": ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),
    "a quarter anticlockwise": ((0, -1, 1, 0), np.rot90),
    "upside down": ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
    "mirrored": ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
    "flipped": ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
    "mirrored and turned": ((0, 1, 1, 0), lambda pixels: pixels.swapaxes(0, 1)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_upright(clip: Path, tmp_path: Path, turn: str) -> None:
    """The four numbers of the track's matrix, as phones write them."""
    (a, b, c, d), turned = TURNS[turn]
    content = bytearray(clip.read_bytes())
    at = content.index(b"tkhd") + 44
    struct.pack_into(">9i", content, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(content)

    with open_video(tmp_path / "a.mp4", Limits(), 1000) as video:
        [frame] = video.frames(3, 4)

    expected = turned(numbered(3))
    assert (video.facts.height, video.facts.width) == frame.pixels.shape[:2] == expected.shape[:2]
    assert np.abs(frame.pixels.astype(int) - expected).mean() < 8
    assert frame.pixels.flags.c_contiguous


def test_odd_sizes(tmp_path: Path) -> None:
    write(str(tmp_path / "a.mp4"), [numbered(index, 33, 47) for index in range(3)], pix_fmt="yuv444p")
    frames = read(tmp_path / "a.mp4")
    assert [frame.pixels.shape for frame in frames] == [(47, 33, 3)] * 3


def test_a_file_without_length_and_index(tmp_path: Path) -> None:
    """As a browser's recorder streams it."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        seek = tell = None  # type: ignore[assignment]

    pipe = Pipe()
    write(pipe, [numbered(index) for index in range(COUNT)], "libvpx", container="webm")
    (tmp_path / "a.webm").write_bytes(pipe.getvalue())
    with open_video(tmp_path / "a.webm", Limits(), 1000) as video:
        frames = list(video.frames(0, COUNT))
    assert [number_of(frame.pixels) for frame in frames] == list(range(COUNT))
    assert video.facts.fps == pytest.approx(10, rel=0.01)
    assert not video.facts.is_cut


@pytest.fixture(scope="module")
def long_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], bytes]:
    """A file of 60 pictures of each kind, by its name and flags; made once."""
    folder = tmp_path_factory.mktemp("long")
    frames = [np.asarray(picture(160, 120, index)) for index in range(60)]

    @cache
    def made(name: str, flags: str) -> bytes:
        path = folder / name
        with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as output:
            stream = output.add_stream(
                "mpeg4" if name == "a.avi" else "libx264", rate=10, options={"g": "10", "threads": "1"}
            )
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            for index, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = index
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
        return path.read_bytes()

    return made


@pytest.mark.parametrize("share", [0.55, 0.6, 0.65, 0.7, 0.75, 0.8])
@pytest.mark.parametrize(
    ("name", "flags"),
    [("a.mp4", "faststart"), ("a.mp4", "frag_keyframe+empty_moov+default_base_moof"), ("a.mkv", ""), ("a.avi", "")],
)
def test_a_file_that_is_cut_off_gives_the_frames_that_are_there(
    tmp_path: Path, long_files: Callable[[str, str], bytes], name: str, flags: str, share: float
) -> None:
    content, cut = long_files(name, flags), tmp_path / name
    cut.write_bytes(content[: int(len(content) * share)])

    with open_video(cut, Limits(), 1000) as video:
        assert video.facts.is_cut
        found: list[int] = []
        with pytest.raises(InvalidVideo, match=r"^video: frame \d+ cannot be decoded: the file is cut off") as error:
            found.extend(frame.index for frame in video.frames(0, 60))
    assert found == list(range(len(found)))
    # How many bytes a frame takes is up to the encoder; the first ones may take most.
    assert 9 <= len(found) < 60
    assert f"frame {len(found)} " in str(error.value)


def test_a_file_whose_end_holds_its_index_cannot_be_read_when_cut(clip: Path, tmp_path: Path) -> None:
    content = clip.read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidVideo, match=r"^video: is not a video"):
        read(tmp_path / "a.mp4")


# ---- colours


@pytest.mark.parametrize(
    ("size", "space", "tagged"),
    [((64, 48), 5, False), ((1280, 720), 1, False), ((64, 48), 1, True), ((1280, 720), 5, True)],
    ids=["small, untagged", "HD, untagged", "small, tagged BT.709", "HD, tagged BT.601"],
)
def test_colours_are_as_tagged_or_as_players_take_them(
    tmp_path: Path, size: tuple[int, int], space: int, tagged: bool
) -> None:
    matrix = {1: Colorspace.ITU709, 5: Colorspace.ITU601}[space]
    width, height = size
    red = np.zeros((height, width, 3), np.uint8)
    red[...] = (220, 40, 30)
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=10, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        frame = av.VideoFrame.from_ndarray(red, format="rgb24").reformat(format="yuv444p", dst_colorspace=matrix)
        frame.colorspace = stream.codec_context.colorspace = space if tagged else 2
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode())

    [found] = read(tmp_path / "a.mp4")
    assert np.abs(found.pixels.astype(int) - red).max() <= 4


def test_ten_bits(tmp_path: Path) -> None:
    write(str(tmp_path / "a.mp4"), [numbered(index) for index in range(5)], "libx265", "yuv420p10le")
    assert [number_of(frame.pixels) for frame in read(tmp_path / "a.mp4")] == list(range(5))


@pytest.mark.parametrize(("transfer", "samples"), [(16, (0.0, 0.35, 0.581, 0.752)), (18, (0.0, 0.5, 0.75, 1.0))])
def test_hdr_is_toned_down(tmp_path: Path, transfer: int, samples: tuple[float, ...]) -> None:
    """Black stays black, greys grey and in order, paper white is light but not white, the peak is white."""
    shown = []
    for sample in samples:
        grey = np.full((48, 64, 3), round(sample * 65535), np.uint16)
        with av.open(str(tmp_path / "a.mkv"), "w") as output:
            stream = output.add_stream("libx265", rate=10, options={"x265-params": "bframes=0:log-level=none"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
            context = stream.codec_context
            context.color_trc, context.color_primaries, context.colorspace = transfer, 9, 9
            frame = av.VideoFrame.from_ndarray(grey, format="rgb48le").reformat(format="yuv420p10le")
            frame.pts, frame.time_base = 0, Fraction(1, 10)
            output.mux(stream.encode(frame))
            output.mux(stream.encode())
        [found] = read(tmp_path / "a.mkv")
        assert np.ptp(found.pixels[10:-10, 10:-10].reshape(-1, 3), axis=0).max() <= 3
        shown.append(float(found.pixels.mean()))
    assert shown[0] <= 2
    assert shown[-1] >= 250
    assert shown == sorted(shown)
    assert 20 < shown[1] < shown[2] < 240


# ---- animated pictures, pages, zips


def animate(path: Path, frames: Sequence[Pixels], **options: Any) -> None:
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=others, **({"duration": 100} | options))


def entries(count: int, name: bytes = b"") -> bytes:
    """A zip of empty files, of which only the directory is written."""
    one = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, *[0] * 7, len(name), *[0] * 6) + name
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, count * len(one), 4, 0)
    return b"PK\x03\x04" + count * one + end


def zipped(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as target:
        for name, content in files.items():
            target.writestr(name, content)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.avif"])
def test_animated_pictures_are_composed(tmp_path: Path, name: str) -> None:
    lossless = {"lossless": True} if name == "a.webp" else {}
    animate(tmp_path / name, [numbered(index) for index in range(6)], **lossless)
    frames = read(tmp_path / name)
    assert [number_of(frame.pixels) for frame in frames] == list(range(6))
    assert [frame.time_s for frame in frames] == pytest.approx([index / 10 for index in range(6)], abs=0.002)


def test_a_gif_whose_frames_are_disposed_of(tmp_path: Path) -> None:
    """Each frame paints a part only; afterwards the ground is restored."""
    frames = []
    for index in range(4):
        frame = np.full((48, 64, 3), 100, np.uint8)
        frame[10:20, 10 + 10 * index : 18 + 10 * index] = (250, 0, 0)
        frames.append(frame)
    animate(tmp_path / "a.gif", frames, disposal=2)
    for expected, found in zip(frames, read(tmp_path / "a.gif"), strict=True):
        assert np.abs(expected.astype(int) - found.pixels).max() <= 4


def test_the_still_picture_of_an_animated_png_is_no_frame(tmp_path: Path) -> None:
    animate(tmp_path / "a.png", [numbered(index) for index in range(5)], default_image=True)
    assert [number_of(frame.pixels) for frame in read(tmp_path / "a.png")] == [1, 2, 3, 4]


def test_frames_shown_for_different_times(tmp_path: Path) -> None:
    animate(tmp_path / "a.gif", [numbered(index) for index in range(4)], duration=[50, 200, 1000, 70])
    assert [frame.time_s for frame in read(tmp_path / "a.gif")] == pytest.approx([0, 0.05, 0.25, 1.25])


def test_pages_of_sixteen_bits_are_shown_in_the_window_of_the_first(tmp_path: Path) -> None:
    """As a microscope writes them; Pillow by itself makes all but the darkest pixels white."""
    # As dim as 12 bits are: in a window of its own, each page would look like the first.
    pages = [np.arange(64 * 48).reshape(48, 64) + 1000 * index for index in range(3)]
    first, *others = (Image.fromarray(page.astype(np.uint16)) for page in pages)
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    alone = read_picture(io.BytesIO(encoded(first, "TIFF")), PictureOptions(), 2**20)
    assert alone.window is not None
    low, high = alone.window
    for page, frame in zip(pages, read(tmp_path / "a.tif"), strict=True):
        expected = (page - low) / (high - low) * 255
        assert np.abs(frame.pixels.astype(int) - expected.clip(0, 255).round()[:, :, None]).max() <= 1


@pytest.mark.parametrize("name", ["a.tif", "a.webp", "a.png"])
def test_animated_pictures_are_upright(tmp_path: Path, name: str) -> None:
    """The orientation in EXIF is applied, as to images."""
    exif = Image.Exif()
    exif[274] = 6
    options: dict[str, Any] = {"tiffinfo": {274: 6}} if name == "a.tif" else {"exif": exif}
    animate(tmp_path / name, [numbered(index) for index in range(4)], **options)
    with open_video(tmp_path / name, Limits(), 100) as video:
        assert (video.facts.width, video.facts.height) == (48, 64)
        for frame in video.frames(0, 4):
            assert np.abs(frame.pixels.astype(int) - np.rot90(numbered(frame.index), -1)).mean() < 4


def test_pages_of_a_tiff(tmp_path: Path) -> None:
    animate(tmp_path / "a.tif", [numbered(index) for index in range(4)])
    frames = read(tmp_path / "a.tif")
    assert [number_of(frame.pixels) for frame in frames] == [0, 1, 2, 3]
    assert [frame.time_s for frame in frames] == [None] * 4


@pytest.mark.parametrize("name", ["a.avif", "a.tif"])
def test_avif_and_tiff_are_decoded_in_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    animate(tmp_path / name, [numbered(index) for index in range(4)])
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it is opened here"))
    with open_video(tmp_path / name, Limits(), 100) as video:
        assert [number_of(frame.pixels) for frame in video.frames(3, 4)] == [3]
        assert [number_of(frame.pixels) for frame in video.frames(0, 4, 2)] == [0, 2]
        monkeypatch.setattr(animation_frames, "_picture_of", crash)
        with pytest.raises(InvalidVideo, match=r"^video: frame 1 cannot be decoded"):
            list(video.frames(1, 2))
        monkeypatch.undo()
        assert [number_of(frame.pixels) for frame in video.frames(1, 2)] == [1]
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError):
            list(video.frames(1, 2))


def open_files(folder: Path) -> list[str]:
    """The files in a folder that processes which this one has started have open."""
    children = psutil.Process().children()
    paths = [Path(one.path) for child in children if child.is_running() for one in child.open_files()]
    return sorted(path.name for path in paths if path.parent == folder)


def test_two_animations_at_once_stay_open_and_are_closed_at_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers = Helpers(count=2, timeout_s=20)
    for module in (animation, animation_frames):
        monkeypatch.setattr(module, "HELPERS", helpers)
    names = ["a.tif", "b.tif"]
    for place, name in enumerate(names):
        animate(tmp_path / name, [numbered(2 * index + place) for index in range(4)])
    one, other = (open_video(tmp_path / name, Limits(), 100) for name in names)
    for index in range(4):
        assert [number_of(frame.pixels) for frame in one.frames(index, index + 1)] == [2 * index]
        assert [number_of(frame.pixels) for frame in other.frames(index, index + 1)] == [2 * index + 1]
        assert open_files(tmp_path) == names
    (tmp_path / "a.tif").unlink()
    one.close()
    assert open_files(tmp_path) == ["b.tif"]
    assert [number_of(frame.pixels) for frame in other.frames(0, 1)] == [1]
    other.close()
    assert open_files(tmp_path) == []
    helpers.close()


@pytest.mark.parametrize("name", ["a.avif", "a.gif"])
def test_the_limit_of_one_video_is_none_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # In this process: what holds for its Pillow holds for a helper's.
    monkeypatch.setattr(HELPERS, "call", lambda _, function, *args, **__: function(*args))
    monkeypatch.setattr(HELPERS, "release", lambda _, function, *args: function(*args))
    before = Image.MAX_IMAGE_PIXELS
    animate(tmp_path / name, [numbered(index) for index in range(3)])
    with pytest.raises(TooLarge, match=r"^video: "):
        open_video(tmp_path / name, Limits(max_pixels=64 * 48 // 3), 100)
    assert len(read(tmp_path / name)) == 3
    assert before == Image.MAX_IMAGE_PIXELS


def test_an_animated_avif_is_decoded_on_the_cores_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def decoder(data: bytes, codec: str, threads: int) -> Any:
        given.append(threads)
        return AvifDecoder(data, codec, threads)

    animate(tmp_path / "a.avif", [numbered(index) for index in range(3)])
    monkeypatch.setattr("PIL.AvifImagePlugin._avif.AvifDecoder", decoder)
    monkeypatch.setattr(AvifImagePlugin, "DEFAULT_MAX_THREADS", 0)
    monkeypatch.setattr(heif, "usable_cores", lambda: 3)
    AnimationFrames(tmp_path / "a.avif", 10_000).close()
    assert given == [3]


def crash(*_: object) -> None:
    """Ends the process in which it runs, as native code does that fails."""
    os._exit(1)


def test_a_zip_of_pictures_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    files = {f"clip/{index}.png": encoded(Image.fromarray(numbered(index))) for index in (10, 2, 1, 0, 9)}
    zipped(tmp_path / "a.zip", files | {"clip/.DS_Store": b"x", "__MACOSX/clip/._1.png": b"x", "clip/": b""})
    frames = read(tmp_path / "a.zip")
    assert [number_of(frame.pixels) for frame in frames] == [0, 1, 2, 9, 10]
    assert [frame.index for frame in frames] == list(range(5))


def test_all_pictures_of_a_zip_are_shown_in_the_window_of_the_first(tmp_path: Path) -> None:
    bright = np.tile(np.arange(0, 10_000, 100, dtype=np.uint16), (100, 1))
    plain = np.tile(np.arange(100, dtype=np.uint8), (100, 1))
    greys: list[NDArray[Any]] = [bright, bright // 2, plain]
    pictures = {f"{index}.png": encoded(Image.fromarray(grey)) for index, grey in enumerate(greys)}
    zipped(tmp_path / "a.zip", pictures)

    first, second, third = (frame.pixels for frame in read(tmp_path / "a.zip"))

    assert first[0, -1, 0] == 255
    np.testing.assert_allclose(second.astype(int), first / 2, atol=1)
    np.testing.assert_array_equal(third[:, :, 0], plain)


# ---- what is refused


def audio(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())


def unreadable(path: Path, name: bytes) -> None:
    """Writes an mp4 whose frames are, by the name of their format, none that FFmpeg can decode."""
    write(buffer := io.BytesIO(), [numbered(index) for index in range(3)], container="mp4")
    path.write_bytes(buffer.getvalue().replace(b"avc1", name))


PNG = encoded(picture(40, 30))
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(1).bytes(5000)), "is not a video"),
    "text": (lambda path: path.write_text("a video, surely"), "is not a video"),
    "a playlist": (
        lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n"),
        "is not a video",
    ),
    "a list of files": (lambda path: path.write_text("ffconcat version 1.0\nfile 'a.mp4'\n"), "is not a video"),
    "sound": (audio, "only sound"),
    "an encrypted file": (lambda path: unreadable(path, b"encv"), "are encrypted, or in a format that cannot be read"),
    "an unknown format": (lambda path: unreadable(path, b"zzzz"), "are encrypted, or in a format that cannot be read"),
    "a picture": (lambda path: path.write_bytes(PNG), r"is a still picture \(PNG\)"),
    "a gif of one frame": (
        lambda path: path.write_bytes(encoded(picture(40, 30).quantize(8), "GIF")),
        r"is a still picture \(GIF\)",
    ),
    "an empty zip": (lambda path: zipped(path, {}), "video: "),
    "a zip without pictures": (lambda path: zipped(path, {"a.txt": b"text"}), "frame 0, 'a.txt', is text"),
    "a zip of hidden files": (lambda path: zipped(path, {".a.png": PNG}), "holds no pictures"),
    "a damaged zip": (lambda path: path.write_bytes(b"PK\x03\x04" + 60 * b"x"), "is a zip file that is damaged"),
    "a still webp": (lambda path: path.write_bytes(encoded(picture(9, 9), "WEBP")), r"is a still picture \(WEBP\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_video_is_refused(tmp_path: Path, case: str) -> None:
    make, fault = BAD[case]
    make(tmp_path / "upload")
    with pytest.raises(InvalidVideo, match=f"^video: .*{fault}" if not fault.startswith("video") else fault):
        read(tmp_path / "upload")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.avif", "a.tif"])
def test_an_animation_that_is_cut_off_is_an_error_of_ours_or_shorter(tmp_path: Path, name: str) -> None:
    animate(tmp_path / name, [np.asarray(picture(90, 60, index)) for index in range(8)])
    content, faults = (tmp_path / name).read_bytes(), []
    for share in (0.2, 0.5, 0.8, 0.98):
        (tmp_path / name).write_bytes(content[: int(len(content) * share)])
        try:
            assert len(read(tmp_path / name)) < 8
        except InvalidVideo as error:
            faults.append(error.message)
    assert all(fault.startswith("video: ") for fault in faults)


def test_a_picture_with_more_pixels_than_pillow_opens(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(TooLarge, match=r"^video: "):
        open_video(tmp_path / "a.png", Limits(max_pixels=100), 100)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_later_frame_that_is_far_larger_than_the_first(tmp_path: Path) -> None:
    """Pillow's canvas grows with a GIF's frames."""
    animate(tmp_path / "a.gif", [numbered(index) for index in range(3)])
    content = bytearray((tmp_path / "a.gif").read_bytes())
    last = content.rindex(b",\0\0\0\0")
    content[last + 5 : last + 9] = struct.pack("<HH", 60_000, 60_000)
    (tmp_path / "a.gif").write_bytes(content)
    with pytest.raises(TooLarge, match=r"^video: has more than the 10000 pixels"):
        open_video(tmp_path / "a.gif", Limits(max_pixels=10_000), 100)


def test_a_picture_of_another_format_is_a_still_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(encoded(picture(9, 9), "JPEG"))
    with pytest.raises(InvalidVideo, match=r"is a still picture \(JPEG\)"):
        read(tmp_path / "a")


def test_too_many_frames(clip: Path, tmp_path: Path) -> None:
    animate(tmp_path / "a.gif", [numbered(index) for index in range(6)])
    zipped(tmp_path / "a.zip", {f"{index}.png": PNG for index in range(6)})
    for path in (clip, tmp_path / "a.gif", tmp_path / "a.zip"):
        with pytest.raises(TooLarge, match=r"^video: has more than the 5 frames"):
            read(path, max_frames=5)


def test_too_many_pixels(clip: Path, tmp_path: Path) -> None:
    animate(tmp_path / "a.gif", [numbered(index) for index in range(2)])
    zipped(tmp_path / "a.zip", {"0.png": encoded(Image.fromarray(numbered(0)))})
    for path in (clip, tmp_path / "a.gif", tmp_path / "a.zip"):
        with pytest.raises(TooLarge, match=r"^video: .* more than the 3000 "):
            open_video(path, Limits(max_pixels=3000), 100)


def test_a_picture_in_a_zip_that_says_it_is_huge_is_not_unpacked(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"0.png": PNG, "1.png": bytes(3000)})
    limits = Limits(max_image_bytes=len(PNG))
    with (
        open_video(tmp_path / "a.zip", limits, 100) as video,
        pytest.raises(TooLarge, match=r"frame 1, '1\.png', has 3000"),
    ):
        list(video.frames(0, 2))


def test_a_zip_of_very_many_entries_is_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("the entries are read"))
    (tmp_path / "a.zip").write_bytes(entries(3001))
    with pytest.raises(TooLarge, match=r"^video: is a zip file of more than 3000 entries"):
        read(tmp_path / "a.zip", max_frames=1000)
    monkeypatch.setattr(zipped_pictures, "DIRECTORY_BYTES", 2_000_000)
    (tmp_path / "a.zip").write_bytes(entries(50, b"a" * 50_000))
    with pytest.raises(TooLarge, match=r"^video: is a zip file whose directory has more than the 2000000 bytes"):
        read(tmp_path / "a.zip")


def test_a_zip_of_as_many_entries_as_may_be_is_read(tmp_path: Path) -> None:
    """Those that are no pictures count too; what precedes or follows the zip in its file does not."""
    others = {f"folder{index}/": b"" for index in range(1003)}
    zipped(tmp_path / "a.zip", others | {"0.png": PNG, "1.png": PNG})
    assert len(read(tmp_path / "a.zip", max_frames=3)) == 2
    with pytest.raises(TooLarge, match="more than 1004 entries"):
        read(tmp_path / "a.zip", max_frames=2)
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as target:
        target.comment = b"made by hand"
    assert len(read(tmp_path / "a.zip", max_frames=3)) == 2


def test_names_with_very_long_numbers_are_names(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"9" * 5000 + ".png": PNG, "8" * 5001 + ".png": PNG, "007.png": PNG, "8.png": PNG})
    with open_video(tmp_path / "a.zip", Limits(), 100) as video:
        assert [len(one.filename) for one in video._files] == [7, 5, 5004, 5005]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["a.zip", "a.tif"])
def test_frames_of_different_sizes_are_refused_at_the_frame(tmp_path: Path, name: str) -> None:
    frames = [numbered(0), numbered(1), numbered(2, 50, 40)]
    if name == "a.zip":
        zipped(tmp_path / name, {f"{index}.png": encoded(Image.fromarray(frame)) for index, frame in enumerate(frames)})
    else:
        animate(tmp_path / name, frames)
    found: list[int] = []
    with open_video(tmp_path / name, Limits(), 100) as video:
        with pytest.raises(InvalidVideo, match=r"^video: frame 2 is 50×40; the first one is 64×48"):
            found.extend(frame.index for frame in video.frames(0, 3))
        assert [frame.index for frame in video.frames(0, 2)] == [0, 1]


def test_damage_in_the_middle_is_an_error_of_ours_or_a_picture(clip: Path, tmp_path: Path) -> None:
    """Whatever is overwritten, frames come or a sentence does."""
    content, faults = clip.read_bytes(), []
    rng = np.random.default_rng(7)
    for start in range(0, len(content), max(1, len(content) // 40)):
        damaged = bytearray(content)
        damaged[start : start + 12] = rng.bytes(12)
        (tmp_path / "a.mp4").write_bytes(damaged)
        try:
            frames = read(tmp_path / "a.mp4")
        except ServiceError as error:
            faults.append(error.message)
        else:
            assert frames
    assert all(fault.startswith("video: ") for fault in faults)
