"""The click page in a real browser, against the shared service."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import shapely
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from rasterio import features
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from deployments.encoding.davis import davis_palette
from harness.browser import Page
from harness.images import encoded, iou, picture
from tests.integration.conftest import DEMO, WRONG_CHECKPOINT, Service
from tests.relay import relay
from tests.unit.test_tool_formats import read_cvat, read_labelme, read_labelstudio, read_qupath, read_yolo

DEMO_FOLDER = Path(__file__).parents[2] / "deployments" / "model" / "demo"
EXAMPLE = DEMO_FOLDER / "example.png"
SIZE = (480, 640)
PEAR, EGG, BUCKET, STRAWBERRY, LEAVES = (220, 240), (330, 90), (500, 150), (375, 390), (345, 330)
PEAR_BOX = (118, 148, 302, 352)
TRUTH: NDArray[np.bool_] = np.asarray(Image.open(DEMO_FOLDER / "example_truth.png")) > 0
ROUTE = "/segment-anything-2"
HOSTILE = "<img src=x onerror=alert(1)> '$(touch pwned)' \"; `id` &amp; \\ ü.png"


@pytest.fixture
def page(browser: Page, service: Service) -> Page:
    """The page, just loaded."""
    browser.open(service.url)
    return browser


@pytest.fixture
def example(page: Page) -> Page:
    """The page with the example image, whose pear has a known mask."""
    page.show(EXAMPLE)
    return page


def opened_by_pillow(path: Path) -> NDArray[Any]:
    return np.asarray(Image.open(path))


# ---- loading


def test_the_page_loads_nothing_but_itself_and_breaks_no_policy(browser: Page, service: Service) -> None:
    browser.open(service.url)
    browser.all("#examples button")[0].click()
    browser.wait(lambda: browser.status.startswith("Ready"))
    browser.click(*PEAR)
    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert len(urls) > 10
    assert {urlsplit(url).netloc for url in urls if not url.startswith("blob:")} - {""} == {
        urlsplit(service.url).netloc
    }
    assert browser.complaints() == []


def test_both_examples_can_be_opened(page: Page) -> None:
    for index in range(2):
        page.open(page.browser.current_url)
        page.all("#examples button")[index].click()
        page.wait(lambda: page.status.startswith("Ready"))
        assert page("image").get_attribute("naturalWidth") != "0"


def test_an_image_can_be_dropped_and_pasted(page: Page) -> None:
    content = base64.b64encode(EXAMPLE.read_bytes()).decode()
    script = """
        const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], arguments[1], {type: "image/png"}));
        const event = arguments[2] === "drop" ? new DragEvent("drop", {dataTransfer: data, bubbles: true})
            : new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
        document.getElementById("stage").dispatchEvent(event);
    """
    for way in ("drop", "paste"):
        page.open(page.browser.current_url)
        page.browser.execute_script(script, content, f"{way}.png", way)
        page.wait(lambda: page.status.startswith("Ready"))
        assert f"{way}.png" in str(page("stage").get_attribute("aria-label"))


# ---- prompts


def test_a_click_shows_the_mask_at_the_images_own_resolution(example: Page) -> None:
    example.click(*PEAR)
    assert example.shown().shape == SIZE
    assert iou(example.shown(), TRUTH) > 0.85
    assert len(example.scores()) == 3
    assert example.scores() == sorted(example.scores(), reverse=True)
    # The outline is opaque, the rest of the mask is not.
    alpha = example.overlay()[..., 3]
    assert set(np.unique(alpha)) > {0, 255}
    assert "ms" in example("latency").text
    assert "mask" in example("latency").text


def test_the_mask_is_the_services_answer_to_that_prompt(example: Page, service: Service) -> None:
    example.click(*PEAR)
    fields = json.loads(
        example.browser.execute_script("return JSON.stringify(document.getElementById('code').textContent)")
    )
    coords = fields.split("point_coords='")[1].split("'")[0]
    data = {"point_coords": coords, "point_labels": "[1]", "response_format": "rle"}
    with service.client() as client:
        answer = client.post(ROUTE, data=data, files={"image": EXAMPLE.read_bytes()}).json()
    assert np.array_equal(example.shown(), rle.decode(answer["masks"][0]["segmentation"]))
    assert np.allclose(json.loads(coords), [PEAR], atol=1.5)


def test_another_candidate_can_be_picked(example: Page) -> None:
    example.click(*PEAR)
    first = example.shown()
    example.all("#candidates button")[1].click()
    second = example.shown()
    assert not np.array_equal(first, second)
    assert example.all("#candidates button")[1].get_attribute("aria-pressed") == "true"
    example.undo()
    assert np.array_equal(example.shown(), first)


def test_a_background_click_takes_a_part_away(example: Page) -> None:
    example.click(*STRAWBERRY)
    before = example.shown()
    example.exclude(*LEAVES)
    after = example.shown()
    assert before[LEAVES[::-1]]
    assert not after[LEAVES[::-1]]
    # The fruit is still there.
    assert after[STRAWBERRY[::-1]]
    assert 0.4 * before.sum() < after.sum() < 0.9 * before.sum()
    assert len(example.all("#marks .background")) == 1


def test_alt_click_and_the_remove_tool_are_background_clicks(example: Page) -> None:
    example.click(*PEAR)
    with example.answer():
        example.point_to(*EGG).key_down(Keys.ALT).click().key_up(Keys.ALT).perform()
    example.use("remove")
    example.click(*BUCKET)
    assert (len(example.all("#marks .background")), len(example.all("#marks .foreground"))) == (2, 1)


def test_a_further_click_sends_the_previous_logits_as_mask_input(browser: Page, service: Service) -> None:
    with relay(service.url) as between:
        browser.open(between.url)
        browser.show(EXAMPLE)
        browser.click(*PEAR)
        assert b'name="mask_input"' not in between.bodies[ROUTE]
        browser.click(200, 300)
        assert b'name="mask_input"' in between.bodies[ROUTE]
        assert between.seen[f"{ROUTE}/embed"] == 1
        # The image was uploaded once.
        assert b'name="image"' not in between.bodies[ROUTE]


def test_a_box(example: Page) -> None:
    example.drag(*PEAR_BOX)
    assert iou(example.shown(), TRUTH) > 0.8
    assert len(example.all("#marks .box")) == 1


def test_undo_redo_and_clear(example: Page) -> None:
    example.click(*PEAR)
    first = example.shown()
    example.click(*EGG)
    second = example.shown()
    example("undo").click()
    assert np.array_equal(example.shown(), first)
    assert len(example.all("#marks circle")) == 1
    example("redo").click()
    assert np.array_equal(example.shown(), second)
    example("clear").click()
    assert not example.shown().any()
    example.undo()
    assert np.array_equal(example.shown(), second)
    example.undo()
    example.undo()
    assert not example.shown().any()
    assert not example("undo").is_enabled()


def test_two_objects_have_names_and_colours_of_their_own(example: Page) -> None:
    example.click(*PEAR)
    pear = example.shown()
    example("new").click()
    example.click(*EGG)
    both = example.overlay()
    assert (both[pear][:, 3] > 0).mean() > 0.95
    colours = [tuple(both[y, x, :3]) for x, y in (PEAR, EGG)]
    assert colours[0] != colours[1]
    names = example.all("#objects input")
    assert [name.get_attribute("value") for name in names] == ["object 1", "object 2"]
    example.all("#objects li > button:last-child")[1].click()
    assert np.array_equal(example.shown(), pear)


def test_everything_becomes_objects(example: Page) -> None:
    example.browser.execute_script("""
        const options = {points_per_side: 6, pred_iou_thresh: 0.3, stability_score_thresh: 0.5};
        for (const [id, value] of Object.entries(options)) document.getElementById(id).value = value;
    """)
    example("everything").click()
    example.wait(lambda: example.status.startswith("Found"))
    count = int(example.status.split()[1])
    assert count >= 3
    # And an empty one for the next click.
    assert len(example.all("#objects li")) == count + 1
    example.undo()
    assert len(example.all("#objects li")) == 1


def test_a_preview_follows_the_pointer(example: Page) -> None:
    example("hover").click()
    example.point_to(*PEAR).perform()
    example.wait(lambda: example.shown().any())
    assert iou(example.shown(), TRUTH) > 0.8
    assert example.scores() == []
    example.actions().move_to_element(example("undo")).perform()
    example.wait(lambda: not example.shown().any())


def test_a_click_hits_the_same_pixel_after_zoom_and_pan(example: Page) -> None:
    for _ in range(3):
        example("zoom-in").click()
    example.use("move")
    mouse = example.actions().move_to_element(example("stage")).click_and_hold()
    mouse.move_by_offset(200, 20).release().perform()
    assert example("latency").text == ""
    example.use("add")
    example.click(*PEAR)
    assert iou(example.shown(), TRUTH) > 0.85
    mark = example.all("#marks circle")[0]
    frame = example("stage").size
    centre = [float(str(mark.get_attribute(name))) for name in ("cx", "cy")]
    expected = [a + b / 2 for a, b in zip(example.at(*PEAR), (frame["width"], frame["height"]), strict=True)]
    assert np.allclose(centre, expected, atol=3)


# ---- images of users


def test_a_photograph_from_a_phone_is_upright_on_both_sides(page: Page, tmp_path: Path) -> None:
    upright = Image.open(EXAMPLE).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "phone.jpg"
    # 6: shown turned clockwise by 90°.
    file.write_bytes(encoded(upright.rotate(90, expand=True), "JPEG", quality=95, exif=exif.tobytes()))
    page.show(file)
    page.click(*PEAR)
    assert page.shown().shape == SIZE
    assert iou(page.shown(), TRUTH) > 0.8


def test_a_large_image_is_masked_at_its_own_resolution(page: Page, tmp_path: Path) -> None:
    large = Image.open(EXAMPLE).convert("RGB").resize((2560, 1920))
    file = tmp_path / "large.jpg"
    file.write_bytes(encoded(large, "JPEG"))
    page.show(file)
    page.click(PEAR[0] * 4, PEAR[1] * 4)
    assert page.shown().shape == (1920, 2560)
    assert iou(page.shown()[::4, ::4], TRUTH) > 0.8


# ---- downloads


def test_every_download_is_read_by_common_libraries(example: Page) -> None:
    example.click(*PEAR)
    pear = example.shown()
    example.name_last("pear")
    mask = Image.open(example.downloaded("mask"))
    assert (mask.mode, mask.size) == ("L", SIZE[::-1])
    assert np.array_equal(np.asarray(mask) == 255, pear)
    assert set(np.unique(np.asarray(mask))) == {0, 255}

    cutout = opened_by_pillow(example.downloaded("cutout"))
    rows, columns = np.nonzero(pear)
    window = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    image = np.asarray(Image.open(EXAMPLE).convert("RGB"))
    assert np.array_equal(cutout[..., 3] == 255, pear[window])
    assert np.array_equal(cutout[pear[window]][:, :3], image[window][pear[window]])

    example("new").click()
    example.click(*BUCKET)
    # The two masks may overlap: only their union is sure.
    labels = opened_by_pillow(example.downloaded("labels"))
    assert (labels.shape, set(np.unique(labels))) == (SIZE, {0, 1, 2})
    assert np.array_equal(labels > 0, example.shown())

    data = COCO(str(example.downloaded("coco")))
    assert data.getCatIds(catNms=["pear"]) == [1]
    [annotation] = data.loadAnns(data.getAnnIds(catIds=[1]))
    assert np.array_equal(data.annToMask(annotation), pear)
    assert data.loadImgs([1])[0]["file_name"] == "example.png"

    collection = json.loads(example.downloaded("polygons").read_text())
    assert [feature["properties"]["name"] for feature in collection["features"]] == ["pear", "object 2"]
    shape = shapely.geometry.shape(collection["features"][0]["geometry"])
    assert shape.is_valid
    assert shape.area == pear.sum()
    assert np.array_equal(features.rasterize([shape], SIZE), pear)

    for kind, read in {
        "cvat": read_cvat,
        "labelstudio": read_labelstudio,
        "labelme": read_labelme,
        "qupath": read_qupath,
    }.items():
        data_of_tool = example.downloaded(kind).read_bytes()
        assert b"pear" in data_of_tool
        found = read(data_of_tool, SIZE)
        assert len(found) == 2
        assert np.array_equal(found[0], pear)

    lines = example.downloaded("yolo").read_bytes()
    assert [line.split()[0] for line in lines.splitlines()] == [b"0", b"1"]
    [ring] = read_yolo(lines.splitlines()[0], SIZE)
    assert (ring >= pear).all()
    assert iou(ring, pear) > 0.98
    davis = Image.open(example.downloaded("davis"))
    assert (davis.mode, bytes(davis.getpalette() or [])) == ("P", davis_palette())
    assert np.array_equal(np.asarray(davis) == 1, pear)
    assert np.array_equal(np.asarray(davis) > 0, example.shown())
    napari = tifffile.imread(example.downloaded("napari"))
    assert napari.dtype == np.uint16
    assert set(np.unique(napari)) == {0, 1, 2}
    assert np.array_equal(napari > 0, example.shown())


@pytest.mark.parametrize("seed", range(6))
def test_polygons_of_the_oddest_masks_are_valid_and_exact(page: Page, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # From noise, where pixels touch at corners everywhere, to blobs with holes; one pixel; all of the image.
    masks = [rng.random((23, 31)) < share for share in (0.02, 0.2, 0.5, 0.8, 0.98)]
    masks += [np.kron(rng.random((6, 7)) < 0.5, np.ones((4, 5))) > 0, np.ones((5, 9), bool), np.eye(8) > 0]
    records = []
    for mask in masks:
        coded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        bbox = [int(value) for value in rle.toBbox(coded)]
        segmentation = {"size": list(mask.shape), "counts": coded["counts"].decode()}
        records.append({"segmentation": segmentation, "area": int(mask.sum()), "bbox": bbox})
    script = """
        const [records, done] = arguments;
        Promise.all([import("/page/mask.js"), import("/page/polygons.js")]).then(([{Mask}, {multiPolygon}]) =>
            done(records.map((record) => multiPolygon(new Mask(record)))), (fault) => done(String(fault)));
    """
    for mask, geometry in zip(masks, page.browser.execute_async_script(script, records), strict=True):
        shape = shapely.geometry.shape(geometry)
        assert shape.is_valid, shapely.is_valid_reason(shape)
        assert shape.area == mask.sum()
        assert np.array_equal(features.rasterize([shape], mask.shape), mask)
        assert all(polygon.exterior.is_ccw for polygon in shape.geoms)


# ---- programs


@pytest.mark.parametrize("language", ["curl", "python"])
def test_the_programs_return_the_shown_mask_even_with_a_hostile_file_name(
    page: Page, tmp_path: Path, language: str
) -> None:
    file = tmp_path / HOSTILE.replace("/", "")
    file.write_bytes(EXAMPLE.read_bytes())
    page.show(file)
    page.click(*PEAR)
    if language == "python":
        page.click(200, 300)
    page.browser.find_element("css selector", f"[value={language}]").click()
    program = page("code").text
    if language == "curl":
        done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, check=True)
        record = json.loads(done.stdout)["masks"][0]
        assert np.array_equal(rle.decode(record["segmentation"]), page.shown())
    else:
        environment = os.environ | {"NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", program]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, text=True, env=environment)
        assert int(run.stdout.split()[0]) == page.shown().sum()
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name]
    # The name is shown as text; the picture in it is never requested.
    assert file.name in str(page("stage").get_attribute("aria-label"))
    assert len(page.all("img[src=x]")) == 0
    assert page.complaints() == []


def test_hostile_messages_and_names_are_text(browser: Page, service: Service) -> None:
    hostile = "<img src=x onerror=alert(1)><b>bold</b>"
    with relay(service.url) as between:
        browser.open(between.url)
        browser.show(EXAMPLE)
        between.rejection[ROUTE] = hostile
        browser.point_to(*PEAR).click().perform()
        browser.wait(lambda: browser.fault)
        assert hostile in browser.fault
        browser.name_last(hostile)
        assert hostile in str(browser.all("#objects button")[0].get_attribute("aria-label"))
    assert browser.all("img[src=x], #fault b, #objects b") == []
    assert [entry for entry in browser.complaints() if "400" not in entry] == []


# ---- faults


def test_a_file_that_is_no_image(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("not a picture")
    page.choose(file)
    page.wait(lambda: page.fault)
    assert page.fault.startswith("This file is not an image that the service can read")
    page("fault-close").click()
    assert not page("fault").is_displayed()
    # Another image can be opened.
    page.show(EXAMPLE)
    assert not page.fault


def test_a_file_that_is_too_large(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    noise = np.random.default_rng(0).integers(0, 256, (2700, 2700, 3), np.uint8)
    file.write_bytes(encoded(Image.fromarray(noise), compress_level=0))
    page.choose(file)
    page.wait(lambda: page.fault)
    assert page.fault.startswith("This is too large for the service")


def test_an_image_that_only_the_service_can_read(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "scan.tiff"
    file.write_bytes(encoded(picture(64, 48), "TIFF"))
    page.choose(file)
    page.wait(lambda: page.fault)
    assert "this browser cannot show it" in page.fault


def test_a_model_that_failed_to_load(example: Page) -> None:
    Select(example("model")).select_by_value(WRONG_CHECKPOINT)
    example.wait(lambda: example.fault, 150)
    assert WRONG_CHECKPOINT in example.fault
    assert "failed to load" in example.fault
    Select(example("model")).select_by_value(DEMO)
    example.wait(lambda: example.status.startswith("Ready"))
    example.click(*PEAR)
    assert iou(example.shown(), TRUTH) > 0.85


def test_a_request_to_a_busy_service_is_repeated(browser: Page, service: Service) -> None:
    with relay(service.url) as between:
        browser.open(between.url)
        browser.show(EXAMPLE)
        between.busy[ROUTE] = 1
        browser.point_to(*PEAR).click().perform()
        browser.wait(lambda: browser.status == "The service is busy: trying again in 2 s.")
        browser.wait(lambda: browser.status.startswith("object 1: found"))
        assert iou(browser.shown(), TRUTH) > 0.85
        assert between.seen[ROUTE] == 2


def test_progress_is_shown_and_can_be_cancelled(browser: Page, service: Service) -> None:
    with relay(service.url) as between:
        between.slow_s[f"{ROUTE}/embed"] = 3
        browser.open(between.url)
        browser.choose(EXAMPLE)
        browser.wait(lambda: browser("progress").is_displayed())
        browser.wait(lambda: browser.status == "The model looks at the image…")
        browser.wait(lambda: browser("cancel").is_displayed())
        browser("cancel").click()
        assert browser.status == "Cancelled."
        assert not browser("progress").is_displayed()
        between.slow_s.clear()
        browser.click(*PEAR)
        assert iou(browser.shown(), TRUTH) > 0.85


def test_a_click_while_the_image_is_uploaded_waits_for_it(browser: Page, service: Service) -> None:
    with relay(service.url) as between:
        between.slow_s[f"{ROUTE}/embed"] = 2
        browser.open(between.url)
        browser.choose(EXAMPLE)
        browser.wait(lambda: browser("image").is_displayed())
        browser.click(*PEAR)
        assert iou(browser.shown(), TRUTH) > 0.85
        assert between.seen[f"{ROUTE}/embed"] == 1


def test_masks_of_two_objects_are_requested_at_the_same_time(browser: Page, service: Service) -> None:
    with relay(service.url) as between:
        browser.open(between.url)
        browser.show(EXAMPLE)
        between.slow_s[ROUTE] = 1
        browser.point_to(*PEAR).click().perform()
        browser("new").click()
        browser.point_to(*EGG).click().perform()
        browser.wait(lambda: all("–" not in button.text for button in browser.all("#objects .select")))
        shown = browser.shown()
        assert shown[PEAR[::-1]]
        assert shown[EGG[::-1]]


def test_a_new_image_cancels_the_requests_of_the_old_one(browser: Page, service: Service, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(encoded(picture(300, 200)))
    with relay(service.url) as between:
        browser.open(between.url)
        browser.show(EXAMPLE)
        between.slow_s[ROUTE] = 1
        browser.point_to(*PEAR).click().perform()
        browser.wait(lambda: between.seen[ROUTE] == 1)
        browser.show(other)
        # By then the old answer would have come.
        browser.wait(lambda: between.answered[ROUTE] == 1)
        assert browser.shown().shape == (200, 300)
        assert not browser.shown().any()
        assert browser.all("#marks circle") == []


def test_quick_clicks_send_the_logits_of_the_last_mask_that_was_shown(browser: Page, service: Service) -> None:
    with relay(service.url) as between:
        browser.open(between.url)
        browser.show(EXAMPLE)
        browser.click(*PEAR)
        seen = browser.shown()
        between.slow_s[ROUTE] = 1
        browser.point_to(200, 300).click().perform()
        # The mask before stays until the answer comes.
        assert np.array_equal(browser.shown(), seen)
        browser.click(170, 200)
        assert b'name="mask_input"' in between.bodies[ROUTE]
        assert len(browser.all("#marks circle")) == 3


def test_undo_keeps_the_objects_name(example: Page) -> None:
    example.click(*PEAR)
    example.click(200, 300)
    example.name_last("pear")
    example.undo()
    assert example.all("#objects input")[0].get_attribute("value") == "pear"


def test_an_unreachable_service(browser: Page, service: Service) -> None:
    with relay(service.url) as between:
        browser.open(between.url)
        browser.show(EXAMPLE)
    browser.point_to(*PEAR).click().perform()
    browser.wait(lambda: browser.fault)
    assert browser.fault == "The service cannot be reached. Is it running?"


def test_a_forgotten_image_is_uploaded_again(example: Page, service: Service) -> None:
    with service.client() as client:
        answer = client.post(f"{ROUTE}/embed", files={"image": EXAMPLE.read_bytes()}).json()
        assert client.delete(f"{ROUTE}/images/{answer['image_id']}").json()["forgotten"]
    example.click(*PEAR)
    assert iou(example.shown(), TRUTH) > 0.85
    assert not example.fault


def test_the_page_asks_for_a_token_and_sends_it(browser: Page, service: Service) -> None:
    with relay(service.url, token="s3cret") as between:
        browser.open(between.url)
        assert browser("token").is_displayed()
        browser("token").send_keys("“odd”", Keys.ENTER)
        browser.wait(lambda: browser.fault == "This token holds a character that no token can have.")
        browser("token").send_keys("wrong", Keys.ENTER)
        browser.wait(lambda: browser.fault == "The service does not accept this token.")
        browser("token").send_keys("s3cret", Keys.ENTER)
        browser.wait(lambda: browser("model").is_enabled())
        assert not browser("token").is_displayed()
        browser.show(EXAMPLE)
        browser.click(*PEAR)
        assert iou(browser.shown(), TRUTH) > 0.85
        assert "$AUTH_TOKEN" in browser("code").text
        assert "s3cret" not in browser.browser.page_source


# ---- keyboard, phone


def test_the_keyboard_is_enough(page: Page) -> None:
    for _ in range(30):
        page.press(Keys.TAB)
        if page.browser.switch_to.active_element.tag_name == "button" and page.browser.switch_to.active_element in (
            page.all("#examples button")
        ):
            break
    page.press(Keys.ENTER)
    page.wait(lambda: page.status.startswith("Ready"))
    # The example's button is hidden now: the image has the keyboard.
    assert page.browser.switch_to.active_element == page("stage")
    # From the middle of 640×480 in steps of 13 pixels to the pear.
    page.press(Keys.ARROW_LEFT * 8)
    page.wait(lambda: page.status == "Cross at 216, 240")
    with page.answer():
        page.press(Keys.ENTER)
    assert iou(page.shown(), TRUTH) > 0.85
    page.press("2")
    assert page.all("#candidates button")[1].get_attribute("aria-pressed") == "true"
    page.press("n")
    page.press("x" + Keys.ARROW_RIGHT * 6 + Keys.ARROW_UP * 6)
    with page.answer():
        page.press("x")
    assert len(page.all("#objects li")) == 2
    page.press(Keys.DELETE)
    assert len(page.all("#objects li")) == 1
    # Enlarged, the image moves under the cross.
    page.press("+" * 8)
    before = page.frame()
    page.press(Keys.ARROW_LEFT * 12)
    assert page.frame()[0] > before[0]
    page.press("0")
    assert page.complaints() == []


def test_every_control_has_a_name(example: Page) -> None:
    example.click(*PEAR)
    for control in example.all("button, input, select, [tabindex]"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")


def test_a_phone(page: Page, service: Service) -> None:
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 3, "mobile": True}
    )
    page.browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        page.open(service.url)
        page.show(EXAMPLE)
        width = page.browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= 390
        assert page("stage").size["height"] > 0.5 * 844
        page.browser.execute_script("window.scrollTo(0, 0)")
        left, top, width = page.frame()
        x, y = left + width / SIZE[1] * PEAR[0], top + width / SIZE[1] * PEAR[1]
        with page.answer():
            page.touch([(x, y)])
        assert iou(page.shown(), TRUTH) > 0.85
        assert page.browser.execute_script("return window.scrollY") == 0
        # One finger moves the image, two enlarge it; neither is a prompt.
        page.touch([(x, y)], [(x + 40, y)])
        assert page.frame()[0] > left + 20
        page.touch([(x, y), (x + 40, y)], [(x, y), (x + 100, y)])
        assert page.frame()[2] > 2 * width
        assert len(page.all("#marks circle")) == 1
        for button in page.all("#toolbar button, #toolbar label"):
            assert button.rect["x"] + button.rect["width"] <= 390
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
