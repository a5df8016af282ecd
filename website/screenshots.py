#!/usr/bin/env python3
"""The pictures of docs/demo.md: both demo pages of a run, in headless Chromium.

python website/screenshots.py RUN [--out docs/images]
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.demo.browser import chromium, served

from tvmatch.data.source import to_pictures
from tvmatch.demo.drawing import Artist
from tvmatch.demo.page import serve
from tvmatch.demo.static_page import write_static_page
from tvmatch.training.trained import load_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    run = load_run(options.run)
    name = options.run.resolve().name
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        page = browser.new_page(viewport={"width": 1100, "height": 600})
        answering = serve(Artist(run, lambda x: to_pictures(x).numpy()), name)
        try:
            page.goto(answering.url)
            for _ in range(2):  # the first request of a page pays for its start
                page.get_by_role("button", name="draw", exact=True).click()
                page.locator(".pixels img").nth(1).wait_for()
                page.wait_for_timeout(2500)
            page.screenshot(path=options.out / "demo_page.png", full_page=True)
        finally:
            answering.close()
        write_static_page(run, name, Path(folder) / "page")
        with served(Path(folder) / "page") as address:
            page = browser.new_page(viewport={"width": 760, "height": 900})
            page.goto(address)
            page.locator("#controls").wait_for()
            for label in range(run.flow.network.num_classes):
                page.locator("#classes button").nth(label % 10).click()
                page.wait_for_timeout(300)
                print(page.text_content("#time"))
            page.locator("#classes button").nth(3).click()
            page.wait_for_timeout(300)
            page.screenshot(path=options.out / "demo_static_page.png", full_page=True)


if __name__ == "__main__":
    main()
