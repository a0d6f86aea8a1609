"""The click page in a real browser: Chromium, driven by Selenium."""

import base64
import io
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
    # What a browser says to its maker: nothing here may leave the machine.
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1400,900",
)
WAIT_S = 60.0


class NoBrowser(Exception):
    """There is no browser on this machine; the message says how to get one."""


def found(*names: str) -> str | None:
    """The first of these programs that is installed."""
    return next(filter(None, map(shutil.which, names)), None)


def launch(downloads: Path) -> webdriver.Chrome:
    """A new browser, whose downloads go to that folder.

    Raises:
        NoBrowser: there is none on this machine.
    """
    chromium, chromedriver = found("chromium", "chromium-browser", "google-chrome"), found("chromedriver")
    if chromium is None or chromedriver is None:
        raise NoBrowser("needs Chromium and its driver: `make browser` installs them on Debian")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))


class Page:
    """The page, and what a person does there.

    Args:
        browser: the browser.
        downloads: where its files go.
    """

    def __init__(self, browser: webdriver.Chrome, downloads: Path) -> None:
        self.browser = browser
        self._downloads = downloads

    def open(self, url: str) -> None:
        """Loads the page anew, without what an earlier one left."""
        self.browser.get("about:blank")
        # Reading the logs empties them.
        self.log("browser")
        self.log("performance")
        self.browser.get(url)
        self.browser.execute_script("sessionStorage.clear()")
        self.wait(lambda: self("model").is_enabled() or self("token").is_displayed() or self("fault").is_displayed())

    def __call__(self, element_id: str) -> WebElement:
        """An element by its id."""
        return self.browser.find_element(By.ID, element_id)

    def all(self, selector: str) -> list[WebElement]:
        """Elements by a CSS selector."""
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
        """Waits until something is so, and returns it."""
        deadline = time.monotonic() + timeout_s
        while not (result := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"status {self.status!r}, fault {self.fault!r}")
            time.sleep(0.02)
        return result

    @property
    def status(self) -> str:
        """What the page says."""
        return self("status").text

    @property
    def fault(self) -> str:
        """What it complains about."""
        return self("fault-text").text

    def log(self, kind: str) -> list[dict[str, Any]]:
        """A log of the browser's, since it was asked last."""
        entries: list[dict[str, Any]] = self.browser.get_log(kind)  # type: ignore[no-untyped-call]
        return entries

    def complaints(self) -> list[str]:
        """What the browser's console says is wrong, the policy's refusals among it, since it was asked last."""
        return [entry["message"] for entry in self.log("browser") if entry["level"] == "SEVERE"]

    # ---- images

    def choose(self, *paths: Path) -> None:
        """Picks a file."""
        self("file").send_keys("\n".join(map(str, paths)))

    def show(self, path: Path) -> None:
        """Picks an image and waits until it can be clicked on."""
        self.choose(path)
        self.wait(lambda: self.status.startswith("Ready"))

    # ---- prompts

    def use(self, tool: str) -> None:
        """Chooses what a click does."""
        ActionChains(self.browser).move_to_element(self.all(f"[value={tool}] + span")[0]).click().perform()

    def at(self, x: float, y: float) -> tuple[int, int]:
        """Where a pixel of the image is, from the middle of the stage, as Selenium counts."""
        script = """
            const image = document.getElementById("image"), stage = document.getElementById("stage");
            const shown = image.getBoundingClientRect(), frame = stage.getBoundingClientRect();
            const scale = shown.width / image.naturalWidth;
            return [shown.left + scale * arguments[0] - frame.left - frame.width / 2,
                    shown.top + scale * arguments[1] - frame.top - frame.height / 2];
        """
        dx, dy = self.browser.execute_script(script, x, y)
        return round(dx), round(dy)

    @contextmanager
    def answer(self) -> Iterator[None]:
        """Waits for the answer to what is done inside."""
        self.browser.execute_script("document.getElementById('latency').textContent = ''")
        yield
        self.wait(lambda: self("latency").text or self.fault)

    def point_to(self, x: float, y: float) -> ActionChains:
        """Begins with the mouse at a pixel of the image."""
        return ActionChains(self.browser).move_to_element_with_offset(self("stage"), *self.at(x, y))

    def click(self, x: float, y: float) -> None:
        """Clicks on a pixel of the image and waits for the answer."""
        with self.answer():
            self.point_to(x, y).click().perform()

    def exclude(self, x: float, y: float) -> None:
        """The same with the right button."""
        with self.answer():
            self.point_to(x, y).context_click().perform()

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Drags a box and waits for the answer."""
        (left, top), (right, bottom) = self.at(x0, y0), self.at(x1, y1)
        with self.answer():
            mouse = self.point_to(x0, y0).click_and_hold()
            mouse.move_by_offset(right - left, bottom - top).release().perform()

    def press(self, keys: str, *held: str) -> None:
        """Presses keys, one after the other, while others are held."""
        chain = ActionChains(self.browser)
        for key in held:
            chain.key_down(key)
        chain.send_keys(keys)
        for key in held:
            chain.key_up(key)
        chain.perform()

    def name_last(self, name: str) -> None:
        """Names the last object of the list."""
        self.all("#objects input")[-1].send_keys(Keys.CONTROL + "a" + Keys.NULL + name + Keys.TAB)

    def undo(self) -> None:
        """As the keyboard does it."""
        self.press("z", Keys.CONTROL)

    def frame(self) -> tuple[float, float, float]:
        """Where the image is in the window: left, top, width."""
        script = "const f = document.getElementById('image').getBoundingClientRect(); return [f.left, f.top, f.width]"
        left, top, width = self.browser.execute_script(script)
        return left, top, width

    # ---- fingers

    def touch(self, *steps: Sequence[tuple[float, float]]) -> None:
        """Fingers that go through these places of the window; each step has the places of all of them."""
        for index, places in enumerate([*steps, ()]):
            kind = "touchStart" if index == 0 else "touchMove" if places else "touchEnd"
            points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(places)]
            self.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    # ---- what is seen

    def overlay(self) -> NDArray[np.uint8]:
        """The overlay at its own resolution, H×W×4."""
        url = self.browser.execute_script("return document.getElementById('overlay').toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))

    def shown(self) -> NDArray[np.bool_]:
        """Where the overlay covers the image, H×W."""
        return self.overlay()[..., 3] > 0

    def scores(self) -> list[str]:
        """The candidates' scores as they are written."""
        return [button.text for button in self.all("#candidates button")]

    def downloaded(self, kind: str) -> Path:
        """Presses a download button and waits for the file."""
        before = set(self._downloads.iterdir())
        self.browser.find_element(By.CSS_SELECTOR, f"[data-download={kind}]").click()

        def arrived() -> Path | None:
            new = [path for path in self._downloads.iterdir() if path not in before]
            # Not what is still being written.
            whole = (path for path in new if path.suffix != ".crdownload" and not path.name.startswith("."))
            return next(whole, None)

        path: Path = self.wait(arrived, 20)
        return path
