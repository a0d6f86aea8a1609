"""Videos on the click page, in a real browser, against the shared service."""

import base64
import io
import json
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from rasterio import features
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from deployments.encoding.davis import davis_palette
from harness.browser import Page
from harness.videos import mp4, squares, zipped
from tests.integration.conftest import OWN, Service
from tests.relay import relay

ROUTE = "/segment-anything-2"
COUNT = 5
FRAMES = squares(COUNT)
HEIGHT, WIDTH = FRAMES[0].shape[:2]
SQUARE, BAR = (25, 60), (100, 60)

Found = dict[str, Any]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of a few frames, as they are to the bit."""
    path = tmp_path_factory.mktemp("clips") / "clip.zip"
    path.write_bytes(zipped(FRAMES))
    return path


@pytest.fixture
def film(browser: Page, service: Service, clip: Path) -> Page:
    """The page with the clip and a model that can follow objects."""
    return opened(browser, service.url, clip)


def opened(browser: Page, url: str, clip: Path) -> Page:
    browser.open(url)
    Select(browser("model")).select_by_value(OWN)
    browser.show(clip)
    return browser


def in_page(page: Page, expression: str) -> Any:
    """The value of an expression of `page`, the page's own state."""
    script = 'import("/page/state.js").then(({page}) => arguments[0](%s), (fault) => arguments[0](String(fault)))'
    return page.browser.execute_async_script(script % expression)


def found(page: Page, object_id: int = 1) -> dict[int, Found]:
    """What the page knows of an object, by frame: its run lengths and area."""
    entries = in_page(
        page,
        f"[...Array(page.video.facts.num_frames).keys()].filter((frame) => page.video.tracks.has({object_id}, frame))"
        f".map((frame) => [frame, page.video.tracks.on({object_id}, frame).mask])",
    )
    return {frame: {"counts": mask["counts"], "area": mask["area"]} for frame, mask in entries}


def masks_of(page: Page, object_id: int = 1) -> dict[int, NDArray[np.bool_]]:
    return {frame: decoded(one["counts"]) for frame, one in found(page, object_id).items()}


def decoded(counts: str) -> NDArray[np.bool_]:
    return rle.decode({"size": [HEIGHT, WIDTH], "counts": counts.encode()}).astype(bool)  # type: ignore[no-any-return]


def prompts_in(program: str) -> list[dict[str, Any]]:
    """The prompts in curl's command."""
    prompts: list[dict[str, Any]] = json.loads(program.split("prompts='")[1].partition("'")[0])
    return prompts


def answered(service: Service, clip: Path, prompts: Any, **fields: str) -> dict[int, NDArray[np.bool_]]:
    """What the service answers to a program, by frame: the mask of object 1."""
    data = {"model_id": OWN, "prompts": json.dumps(prompts), **fields}
    with service.client() as client:
        answer = client.post(f"{ROUTE}/video", data=data, files={"video": clip.read_bytes()})
    return in_lines(answer.text)


def in_lines(text: str) -> dict[int, NDArray[np.bool_]]:
    """The masks of object 1 in the service's answer, by frame."""
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[-1].get("done"), lines[-1]
    return {
        line["frame_index"]: decoded(one["segmentation"]["counts"])
        for line in lines[1:-1]
        for one in line["objects"]
        if one["object_id"] == 1
    }


def go_to(page: Page, frame: int) -> None:
    """Types a frame's number, and waits until it is shown."""
    page("frame").send_keys(Keys.CONTROL + "a" + Keys.NULL + str(frame) + Keys.TAB)
    page.wait(lambda: in_page(page, "page.history.frame") == frame)


def track(page: Page, direction: str = "forward") -> None:
    """Presses a button to track, and waits for the end."""
    page.browser.find_element("css selector", f"[data-track={direction}]").click()
    page.wait(lambda: page.status.startswith("Tracked") or page.fault)
    assert not page.fault


def assert_same(found: dict[int, NDArray[np.bool_]], expected: dict[int, NDArray[np.bool_]]) -> None:
    """The masks are the same but for a few pixels at their edges, since batches may round otherwise."""
    assert found.keys() == expected.keys()
    for frame, mask in expected.items():
        assert np.count_nonzero(found[frame] != mask) <= 0.002 * mask.size, frame


def as_file(page: Page, kind: str) -> Path:
    """Presses a button of the video's downloads."""
    return page.downloaded(kind, "video-download")


# ---- showing and prompting


def test_a_dropped_clip_is_uploaded_once_and_a_click_prompts_the_frame_that_is_shown(
    browser: Page, service: Service, clip: Path
) -> None:
    drop = """
        const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "dropped.zip", {type: "application/zip"}));
        document.getElementById("stage").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
    """
    with relay(service.url, token="s3cret") as between:
        browser.open(between.url)
        browser("token").send_keys("s3cret", Keys.ENTER)
        browser.wait(lambda: browser("model").is_enabled())
        Select(browser("model")).select_by_value(OWN)
        browser.browser.execute_script(drop, base64.b64encode(clip.read_bytes()).decode())
        browser.wait(lambda: browser.status.startswith("Ready"))
        assert "dropped.zip" in str(browser("stage").get_attribute("aria-label"))
        assert browser("time").text.startswith(f"of {COUNT - 1}")

        go_to(browser, 2)
        shown = browser.browser.execute_script("""
            const canvas = document.createElement("canvas"), image = document.getElementById("image");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL("image/png").split(",")[1];
        """)
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown))).convert("RGB")).astype(int)
        # A JPEG of noise, but it is this frame, not one of its neighbours.
        distances = [np.abs(pixels - frame).mean() for frame in FRAMES]
        assert int(np.argmin(distances)) == 2

        browser.click(*SQUARE)
        assert between.seen[f"{ROUTE}/video/embed"] == 1
        body = between.bodies[ROUTE].decode()
        assert 'name="frame_index"\r\n\r\n2\r\n' in body
        data = {"model_id": OWN, "response_format": "rle", "frame_index": "2", "point_labels": "[1]"}
        data["point_coords"] = body.split('name="point_coords"\r\n\r\n')[1].split("\r\n")[0]
        with service.client() as client:
            data["video_id"] = in_page(browser, "page.video.facts.video_id")
            answer = client.post(ROUTE, data=data).json()
        assert np.array_equal(browser.shown(), rle.decode(answer["masks"][0]["segmentation"]))
        assert len(browser.all("#marks circle")) == 1

        # The prompt belongs to its frame: it is not on another, is there again, and undo leads back to it.
        go_to(browser, 4)
        assert not browser.shown().any()
        assert browser.all("#marks circle") == []
        browser.undo()
        browser.wait(lambda: in_page(browser, "page.history.frame") == 2)
        assert browser.all("#marks circle") == []
        # The first request had no token.
        assert [one for one in browser.complaints() if "401" not in one] == []


# ---- tracking


def test_objects_are_tracked_and_corrections_leave_the_frames_before_as_they_are(
    film: Page, clip: Path, tmp_path: Path
) -> None:
    film.click(*SQUARE)
    track(film)
    before = found(film)
    assert list(before) == list(range(COUNT))
    assert film.status == f"Tracked {COUNT} frames."
    assert "frames/s" in film("latency").text
    # The page has followed the track, and shows its last mask.
    film.wait(lambda: in_page(film, "page.history.frame") == COUNT - 1)
    assert np.array_equal(film.shown(), decoded(before[COUNT - 1]["counts"]))

    go_to(film, 3)
    film.click(*BAR)
    program = film("code").text
    assert [(one["object_id"], one["frame_index"]) for one in prompts_in(program)] == [(1, 0), (1, 3)]
    track(film)
    after = found(film)
    assert {frame: after[frame] for frame in (0, 1, 2)} == {frame: before[frame] for frame in (0, 1, 2)}

    # What the panel says finds the same: the service does not change frames before a correction either.
    (tmp_path / clip.name).write_bytes(clip.read_bytes())
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, check=True)
    assert_same(masks_of(film), in_lines(done.stdout.decode()))


def test_backward_and_both_ways_and_only_some_frames(film: Page, service: Service, clip: Path) -> None:
    go_to(film, 3)
    film.click(*BAR)
    prompts = prompts_in(film("code").text)
    film("most-frames").send_keys("2" + Keys.TAB)
    track(film, "backward")
    assert list(found(film)) == [2, 3]
    film("most-frames").send_keys(Keys.CONTROL + "a" + Keys.NULL + Keys.DELETE + Keys.TAB)
    go_to(film, 2)
    track(film, "backward")
    assert list(found(film)) == [0, 1, 2, 3]
    track(film, "both")
    assert_same(masks_of(film), answered(service, clip, prompts, direction="both"))


def test_tracking_can_be_stopped_and_keeps_what_it_has_found(browser: Page, service: Service, tmp_path: Path) -> None:
    from ray import serve

    path = tmp_path / "long.mp4"
    path.write_bytes(mp4(squares(60, 48, 64)))
    film = opened(browser, service.url, path)
    model: Any = serve.get_deployment_handle(f"Sam2Model:{OWN}", "segment-anything-2")
    film.click(32, 24)
    film.browser.find_element("css selector", "[data-track=forward]").click()
    film.wait(lambda: len(in_page(film, "[...page.video.tracks.states(1)].filter(Boolean)")) >= 3)
    assert film("stop").is_displayed()
    assert film("progress").is_displayed()
    film("stop").click()
    film.wait(lambda: film.status.startswith("Stopped after"))
    film.wait(lambda: not film("stop").is_displayed())
    count = len(in_page(film, "[...page.video.tracks.states(1)].filter(Boolean)"))
    assert 3 <= count < 60
    film.wait(lambda: model.begin_tracking.remote("a question").result()[1] == 0, 10)
    model.end_tracking.remote("a question").result()

    # However many frames are looked at, few are held.
    film("stage").send_keys("." * 30)
    film.wait(lambda: in_page(film, "page.history.frame") > 25)
    assert in_page(film, "page.video.file.held.frames") <= 24


def test_what_the_service_says_is_shown(browser: Page, service: Service, clip: Path) -> None:
    message = "model_id: this one segments images only. Use one of Meta's models, such as facebook/sam2.1-hiera-tiny"
    with relay(service.url) as between:
        film = opened(browser, between.url, clip)
        film.click(*SQUARE)
        between.rejection[f"{ROUTE}/video"] = message
        film.browser.find_element("css selector", "[data-track=forward]").click()
        film.wait(lambda: film.fault)
        assert message in film.fault
        film("most-frames").send_keys("2" + Keys.TAB)
        # The file is gone: it is uploaded again.
        with service.client() as client:
            client.delete(f"{ROUTE}/video/{in_page(film, 'page.video.facts.video_id')}")
        track(film)
        assert between.seen[f"{ROUTE}/video/embed"] == 2
        assert list(found(film)) == [0, 1]


# ---- downloads


def known(object_id: int, frame: int) -> NDArray[np.bool_]:
    """A mask with all that files stumble over: a hole, two parts, a frame without it, another object beneath it."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    if object_id == 2:
        mask[10:110, 50:75] = True
    elif frame != 3:
        mask[20:70, 10 + 5 * frame : 60 + 5 * frame] = True
        mask[35:50, 25 + 5 * frame : 40 + 5 * frame] = False
        mask[90:100, 100:120] = True
    return mask


def put(page: Page, object_id: int, frame: int, mask: NDArray[np.bool_]) -> None:
    """Makes the page take a mask for one that was found by tracking."""
    coded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    record = {
        "segmentation": {"size": list(mask.shape), "counts": coded["counts"].decode()},
        "area": int(mask.sum()),
        "bbox": [int(value) for value in rle.toBbox(coded)],
        "score": 0.5,
        "present": bool(mask.any()),
    }
    in_page(page, f"page.video.tracks.put({object_id}, {frame}, {json.dumps(record)}, null)")


def test_downloads_are_read_by_common_libraries(film: Page) -> None:
    film.click(*SQUARE)
    square = {0: film.shown()}
    film.name_last("square")
    film("new").click()
    film.click(*BAR)
    film.name_last('a "bar" <&>')
    counts = in_page(film, "page.history.state.objects[1].slot.answer.candidates[0].mask.counts")
    bar = {0: decoded(counts)}
    for frame in range(1, COUNT):
        square[frame], bar[frame] = known(1, frame), known(2, frame)
        put(film, 1, frame, square[frame])
        put(film, 2, frame, bar[frame])

    with zipfile.ZipFile(as_file(film, "davis")) as files:
        assert files.testzip() is None
        about = json.loads(files.read("video.json"))
        assert about["objects"] == {"1": "square", "2": 'a "bar" <&>'}
        for frame in range(COUNT):
            labels = Image.open(files.open(f"{frame:05d}.png"))
            assert (labels.mode, bytes(labels.getpalette() or [])) == ("P", davis_palette())
            assert np.array_equal(np.asarray(labels), np.where(square[frame], 1, 2 * bar[frame]))

    sav = json.loads(as_file(film, "sav").read_text())
    assert (sav["video_height"], sav["video_width"], sav["video_frame_count"]) == (HEIGHT, WIDTH, COUNT)
    for frame, row in enumerate(sav["masklet"]):
        assert np.array_equal(rle.decode(row[0]) > 0, square[frame])
        assert np.array_equal(rle.decode(row[1]) > 0, bar[frame])
    assert np.allclose(sav["masklet_size_abs"][0], np.mean([mask.sum() for mask in square.values() if mask.any()]))

    vis = json.loads(as_file(film, "youtubevis").read_text())
    assert vis["videos"][0]["length"] == len(vis["videos"][0]["file_names"]) == COUNT
    assert [one["name"] for one in vis["categories"]] == ["square", 'a "bar" <&>']
    for annotation, masks in zip(vis["annotations"], (square, bar), strict=True):
        for frame, coded in enumerate(annotation["segmentations"]):
            assert (coded is None) == (not masks[frame].any())
            if coded:
                assert np.array_equal(rle.decode(coded) > 0, masks[frame])
                assert annotation["areas"][frame] == masks[frame].sum()
                assert annotation["bboxes"][frame] == list(rle.toBbox(coded))

    tracks = ElementTree.parse(as_file(film, "cvattracks")).getroot().findall("track")
    assert [one.get("label") for one in tracks] == ["square", 'a "bar" <&>']
    for one, masks in zip(tracks, (square, bar), strict=True):
        for polygon in one.findall("polygon"):
            mask = masks[int(polygon.get("frame", ""))]
            assert (polygon.get("outside") == "1") == (not mask.any())
            if mask.any():
                ring = [tuple(map(float, pair.split(","))) for pair in polygon.get("points", "").split(";")]
                shape = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
                assert np.array_equal(features.rasterize([shape], (HEIGHT, WIDTH)) > 0, mask)

    # The second object is selected.
    with zipfile.ZipFile(as_file(film, "cutouts")) as files:
        assert files.namelist() == [f"{frame:05d}.png" for frame, mask in bar.items() if mask.any()]
        for name in files.namelist():
            pixels = np.asarray(Image.open(files.open(name)))
            assert np.array_equal(pixels[..., 3] == 255, bar[int(name[:5])])

    with av.open(str(as_file(film, "webm"))) as video:
        pictures = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in video.decode(video=0)]
    assert pictures[0][1].shape == (HEIGHT, WIDTH, 3)
    assert len(pictures) >= COUNT - 1
    # Ten frames a second, as for all videos without times.
    assert pictures[-1][0] == pytest.approx((COUNT - 1) / 10, abs=0.25)


# ---- keyboard, phone


def test_the_keyboard_is_enough(film: Page) -> None:
    film("timeline").send_keys(Keys.ARROW_RIGHT)
    film.wait(lambda: in_page(film, "page.history.frame") == 1)
    assert film("timeline").get_attribute("aria-valuenow") == "1"
    film.press(Keys.END)
    film.wait(lambda: in_page(film, "page.history.frame") == COUNT - 1)
    film("stage").send_keys(",")
    film.wait(lambda: in_page(film, "page.history.frame") == COUNT - 2)
    film.press(Keys.ARROW_LEFT)
    with film.answer():
        film.press(Keys.ENTER)
    film.press("r")
    film.wait(lambda: film.status.startswith("Tracked"))
    assert list(found(film)) == list(range(COUNT - 1))
    film.press(" ")
    film.wait(lambda: film("play").text == "Play" and in_page(film, "page.history.frame") == COUNT - 1)
    for control in film.all("button, input, select, [tabindex]"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")
    assert film.complaints() == []


def test_a_phone(browser: Page, service: Service, clip: Path) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 3, "mobile": True}
    browser.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        film = opened(browser, service.url, clip)
        film.click(*SQUARE)
        film("most-frames").send_keys("2" + Keys.TAB)
        track(film)
        assert film.browser.execute_script("return document.documentElement.scrollWidth") <= 390
        for control in film.all("#film button, #film input, #timeline"):
            if control.is_displayed():
                assert control.rect["x"] >= 0
                assert control.rect["x"] + control.rect["width"] <= 390
        save_picture(film, "phone")
    finally:
        browser.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def save_picture(page: Page, name: str) -> None:
    """Saves what the browser shows, if PAGE_PICTURES names a folder: for people to look at."""
    if folder := os.environ.get("PAGE_PICTURES"):
        page.browser.save_screenshot(str(Path(folder) / f"video_{name}.png"))


def test_the_bundled_clip(browser: Page, service: Service) -> None:
    browser.open(service.url)
    Select(browser("model")).select_by_value(OWN)
    browser.all("#examples button")[2].click()
    browser.wait(lambda: browser.status.startswith("Ready"))
    assert browser("time").text.startswith("of 71 · 0.00 s")
    browser.click(66, 158)
    browser("most-frames").send_keys("2" + Keys.TAB)
    track(browser)
    assert list(found(browser)) == [0, 1]
    save_picture(browser, "clip")
