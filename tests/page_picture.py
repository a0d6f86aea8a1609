"""Takes the picture in docs/page.md at a running service: `make serve`, then `python -m tests.page_picture`."""

import argparse
import tempfile
from pathlib import Path

from harness.browser import Page, launch

FOLDER = Path(__file__).parents[1] / "deployments" / "model" / "demo"
# A click, or a box from corner to corner.
OBJECTS = {"pear": (220, 240), "bucket": (500, 150), "strawberry": (304, 302, 425, 437), "egg": (330, 90)}


def main() -> None:
    """Writes deployments/model/demo/page.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    url: str = parser.parse_args().url
    with tempfile.TemporaryDirectory() as folder:
        browser = launch(Path(folder))
        try:
            page = Page(browser, Path(folder))
            page.open(url)
            page.show(FOLDER / "example.png")
            for name, place in OBJECTS.items():
                if page("new").is_enabled():
                    page("new").click()
                (page.click if len(place) == 2 else page.drag)(*place)
                page.name_last(name)
            browser.save_screenshot(str(FOLDER / "page.png"))
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
