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
    # Browsers send data to their makers; tests send none.
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1400,900",
)
WAIT_S = 60.0

MOVE_MS = 20
"""How long the mouse is under way; by default Selenium takes a quarter of a second for each move."""


class NoBrowser(Exception):
    """No browser is installed; the message says how to install one."""


def found(*names: str) -> str | None:
    """Returns the first of these programs that is installed."""
    return next(filter(None, map(shutil.which, names)), None)


def launch(downloads: Path) -> webdriver.Chrome:
    """Starts a new browser, whose downloads go to that folder.

    Raises:
        NoBrowser: none is installed.
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
    """The page in a browser, with the actions of a user.

    Args:
        browser: the browser.
        downloads: the folder of its downloads.
    """

    def __init__(self, browser: webdriver.Chrome, downloads: Path) -> None:
        self.browser = browser
        self._downloads = downloads

    def open(self, url: str) -> None:
        """Loads the page anew, without an earlier one's logs and token."""
        self.browser.get("about:blank")
        # Reading the logs empties them.
        self.log("browser")
        self.log("performance")
        self.browser.get(url)
        self.browser.execute_script("sessionStorage.clear()")
        self.wait(lambda: self("model").is_enabled() or self("token").is_displayed() or self("fault").is_displayed())

    def __call__(self, element_id: str) -> WebElement:
        """Returns an element by its id."""
        return self.browser.find_element(By.ID, element_id)

    def all(self, selector: str) -> list[WebElement]:
        """Returns elements by a CSS selector."""
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
        """Waits until the condition's value is true, and returns that value.

        Raises:
            TimeoutError: it did not become true in time; the message gives the page's status and fault.
        """
        deadline = time.monotonic() + timeout_s
        while not (result := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"status {self.status!r}, fault {self.fault!r}")
            time.sleep(0.02)
        return result

    @property
    def status(self) -> str:
        """The status line's text."""
        return self("status").text

    @property
    def fault(self) -> str:
        """The fault's text; "" if there is none."""
        return self("fault-text").text

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Returns the entries of one of the browser's logs since the last call."""
        entries: list[dict[str, Any]] = self.browser.get_log(kind)  # type: ignore[no-untyped-call]
        return entries

    def complaints(self) -> list[str]:
        """Returns the errors in the browser's console since the last call, violations of the policy included."""
        return [entry["message"] for entry in self.log("browser") if entry["level"] == "SEVERE"]

    # ---- images

    def choose(self, *paths: Path) -> None:
        """Chooses files, as in the browser's file dialog."""
        self("file").send_keys("\n".join(map(str, paths)))

    def show(self, path: Path) -> None:
        """Chooses an image and waits until it can be clicked on."""
        self.choose(path)
        self.wait(lambda: self.status.startswith("Ready"))

    # ---- prompts

    def use(self, tool: str) -> None:
        """Chooses a tool: `add`, `remove`, `box` or `move`."""
        self.actions().move_to_element(self.all(f"[value={tool}] + span")[0]).click().perform()

    def at(self, x: float, y: float) -> tuple[int, int]:
        """Returns where a pixel of the image is: its offset from the middle of the stage, as Selenium counts."""
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
        """Waits for the answer to the request that the block causes."""
        self.browser.execute_script("document.getElementById('latency').textContent = ''")
        yield
        self.wait(lambda: self("latency").text or self.fault)

    def actions(self) -> ActionChains:
        """Returns actions of mouse and keyboard, to be chained and performed."""
        return ActionChains(self.browser, duration=MOVE_MS)

    def point_to(self, x: float, y: float) -> ActionChains:
        """Returns actions that begin with the mouse at a pixel of the image."""
        return self.actions().move_to_element_with_offset(self("stage"), *self.at(x, y))

    def click(self, x: float, y: float) -> None:
        """Clicks on a pixel of the image and waits for the answer."""
        with self.answer():
            self.point_to(x, y).click().perform()

    def exclude(self, x: float, y: float) -> None:
        """Clicks on a pixel of the image with the right button and waits for the answer."""
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
        chain = self.actions()
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
        """Presses Ctrl+Z."""
        self.press("z", Keys.CONTROL)

    def frame(self) -> tuple[float, float, float]:
        """Returns where the image is in the window, in CSS pixels: left, top, width."""
        script = "const f = document.getElementById('image').getBoundingClientRect(); return [f.left, f.top, f.width]"
        left, top, width = self.browser.execute_script(script)
        return left, top, width

    # ---- fingers

    def touch(self, *steps: Sequence[tuple[float, float]]) -> None:
        """Moves fingers over the window; each step has the places of all fingers, in CSS pixels."""
        for index, places in enumerate([*steps, ()]):
            kind = "touchStart" if index == 0 else "touchMove" if places else "touchEnd"
            points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(places)]
            self.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    # ---- masks, scores and files

    def overlay(self) -> NDArray[np.uint8]:
        """Returns the overlay at its own resolution, H×W×4 uint8 RGBA."""
        url = self.browser.execute_script("return document.getElementById('overlay').toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))

    def shown(self) -> NDArray[np.bool_]:
        """Returns where the overlay covers the image, H×W bool."""
        return self.overlay()[..., 3] > 0

    def scores(self) -> list[str]:
        """Returns the candidates' scores as the page writes them."""
        return [button.text for button in self.all("#candidates button")]

    def downloaded(self, kind: str, buttons: str = "download") -> Path:
        """Presses a button with `data-{buttons}={kind}`, waits for the file and returns its path."""
        before = set(self._downloads.iterdir())
        self.browser.find_element(By.CSS_SELECTOR, f"[data-{buttons}={kind}]").click()

        def arrived() -> Path | None:
            new = [path for path in self._downloads.iterdir() if path not in before]
            # Files that Chromium still writes have other names.
            whole = (path for path in new if path.suffix != ".crdownload" and not path.name.startswith("."))
            return next(whole, None)

        path: Path = self.wait(arrived, 20)
        return path
