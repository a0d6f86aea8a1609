"""The click page in a real browser: from the press of the button to the mask on the screen, on the bundled model."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import Findings, Spread, budget_row
from benchmarks.servers import service
from benchmarks.workplace import ROOT, Configuration, Workplace
from deployments.settings import BUNDLED_MODEL_ID
from harness.browser import NoBrowser, Page, launch
from harness.load import percentile
from tuning.tables import Table

EXAMPLE = ROOT / "deployments" / "model" / "demo" / "example.png"
WARM_UP = 3

# Clicks where a mouse would, for a new object each time; done once the frame with its mask has been drawn.
MEASURE = """
const [x, y, done] = arguments;
const image = document.getElementById("image"), stage = document.getElementById("stage");
const shown = image.getBoundingClientRect();
const [clientX, clientY] = [shown.left + shown.width * x, shown.top + shown.height * y];
if (!document.getElementById("new").disabled) document.getElementById("new").click();
const latency = document.getElementById("latency");
const observer = new MutationObserver(() => {
  observer.disconnect();
  requestAnimationFrame(() => setTimeout(() => done([performance.now() - pressed, latency.textContent])));
});
observer.observe(latency, {childList: true});
const pressed = performance.now();
for (const kind of ["pointerdown", "pointerup"])
  stage.dispatchEvent(new PointerEvent(kind, {clientX, clientY, pointerId: 1, button: 0, bubbles: true}));
"""


def run(workplace: Workplace) -> Findings:
    """Clicks at many places of the example, one after the other."""
    count = 5 if workplace.quick else 60
    try:
        with service(workplace, Configuration(model_id=BUNDLED_MODEL_ID)) as server, opened(workplace.folder) as page:
            page.open(server.url)
            page.show(EXAMPLE)
            clicks = [click(page, index) for index in range(WARM_UP + count)][WARM_UP:]
    except NoBrowser as error:
        return Findings([budget_row("first click", None, workplace.precision, note=str(error))])
    milliseconds = [taken for taken, _ in clicks]
    median = statistics.median(milliseconds)
    note = (
        f"640×480, from the press to the frame with the mask; 95th percentile {percentile(milliseconds, 0.95):.0f} ms"
    )
    row = budget_row("first click", median, workplace.precision, spread=Spread.of(milliseconds), note=note)
    lines = [[f"{taken:.0f}", words] for taken, words in clicks[:5]]
    table = Table("First clicks on the page", ("ms until it is seen", "what the page says of the answer"), lines)
    return Findings([row], [table], {"milliseconds": milliseconds})


@contextmanager
def opened(folder: Path) -> Iterator[Page]:
    """A browser."""
    browser = launch(folder)
    try:
        yield Page(browser, folder)
    finally:
        browser.quit()


def click(page: Page, index: int) -> tuple[float, str]:
    """Milliseconds of one click, and what the page says of its answer."""
    # Spread over the image, the same in each run.
    x, y = 0.1 + 0.8 * (index * 0.618034 % 1), 0.1 + 0.8 * (index * 0.754878 % 1)
    taken, words = page.browser.execute_async_script(MEASURE, x, y)
    return float(taken), str(words)
