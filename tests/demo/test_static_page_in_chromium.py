"""The static page as a visitor meets it, in headless Chromium."""

import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.demo.browser import Watched, chromium, served
from tvmatch.data.source import to_pictures
from tvmatch.demo.static_page import write_static_page
from tvmatch.sampling import sample
from tvmatch.training.trained import TrainedRun, load_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedRun:
    return load_run(run)


@pytest.fixture(scope="module")
def static(trained: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with a range of w, in a folder below the one that is served: its addresses are relative."""
    out = tmp_path_factory.mktemp("served") / "some where" / "page"
    write_static_page(replace(trained, guidance="1:3"), "bees <&> wasps", out, "float32")
    return out


def test_the_static_page_in_chromium(static: Path, trained: TrainedRun) -> None:
    with chromium() as browser, served(static.parents[1]) as address:
        opened = browser.new_page()
        watched = Watched(opened)
        opened.goto(f"{address}/some%20where/page/")
        opened.locator("#controls").wait_for()
        assert opened.get_by_role("heading").text_content() == "bees <&> wasps"
        times = []
        for name in ("wasp", "ant [x]", "bee"):
            before = opened.get_by_role("img").screenshot()
            opened.get_by_role("button", name=name, exact=True).click()
            opened.get_by_role("img", name=f"16 pictures of class {name}").wait_for()
            assert opened.get_by_role("button", name=name, exact=True).get_attribute("aria-pressed") == "true"
            assert opened.get_by_role("img").screenshot() != before
            found = re.fullmatch(r"16 pictures in ([\d.]+) ms, 1 network call", opened.text_content("#time") or "")
            assert found is not None
            times.append(float(found[1]))
        assert min(times) < 100
        for change in (
            lambda: opened.get_by_role("button", name="new noise").click(),
            lambda: opened.get_by_label("w (guidance scale)").fill("2.5"),
            lambda: opened.get_by_label("calls").select_option("4"),
        ):
            before = opened.get_by_role("img").screenshot()
            change()
            time.sleep(0.5)
            assert opened.get_by_role("img").screenshot() != before
        assert "4 network calls" in opened.text_content("#time")
        opened.get_by_label("seed").fill("-1")
        opened.get_by_label("seed").press("Enter")
        opened.get_by_text("The seed must be a whole number from 0 to 4294967295.").wait_for()
        assert watched.hosts == {"127.0.0.1"}
        assert watched.complaints == []


@pytest.mark.parametrize("calls", [1, 3])
def test_the_browser_computes_what_pytorch_computes(static: Path, trained: TrainedRun, calls: int) -> None:
    with chromium() as browser, served(static) as address:
        opened = browser.new_page(bypass_csp=True)  # of the test's own evaluation; the page itself runs above
        opened.goto(address)
        opened.locator("#controls").wait_for()
        noise, values = opened.evaluate(
            """async (calls) => {
                const size = 3 * 8 * 8, noise = new Float32Array(2 * size);
                for (let i = 0; i < 2; i++) noise.set(normalNoise(5, i, size), i * size);
                const values = await generate(page.session, noise, 2, [3, 8, 8], 2, 2.5, calls);
                return [Array.from(noise), Array.from(values)];
            }""",
            calls,
        )
        x = torch.tensor(noise).reshape(2, 3, 8, 8)
        ours = torch.tensor(values).reshape(2, 3, 8, 8)
        torch.testing.assert_close(ours, sample(trained.flow, x, 2, 2.5, calls), rtol=1e-4, atol=1e-5)
        # what the canvas shows is what tvmatch makes of these numbers; the picture of seed 5 comes first
        shown = opened.evaluate(
            """(values) => {
                show(Float32Array.from(values), 2, [3, 8, 8]);
                const pixels = document.getElementById("sheet").getContext("2d").getImageData(9, 0, 8, 8).data;
                return Array.from(pixels);
            }""",
            values,
        )
        np.testing.assert_array_equal(np.array(shown, np.uint8).reshape(8, 8, 4)[..., :3], to_pictures(ours)[1].numpy())


def test_noise_of_the_page_is_normal(static: Path) -> None:
    from scipy.stats import kstest

    with chromium() as browser, served(static) as address:
        opened = browser.new_page(bypass_csp=True)
        opened.goto(address)
        opened.locator("#controls").wait_for()
        many, again, other, seeds = opened.evaluate(
            """() => [
                ...[[3, 0, 20001], [3, 0, 11], [3, 1, 11]].map((each) => Array.from(normalNoise(...each))),
                Array.from({length: 20000}, (_, seed) => normalNoise(seed, 2, 1)[0]),
            ]"""
        )
    assert again == many[:11]
    assert abs(np.corrcoef(other, again)[0, 1]) < 0.9
    for numbers in (many, seeds):  # along a picture, and over seeds that follow one another
        assert kstest(numbers, "norm").pvalue > 1e-3
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.03


def test_a_page_that_cannot_draw_says_so(static: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in static.iterdir():
        (broken / path.name).symlink_to(path)
    (broken / "model.onnx").unlink()
    (broken / "model.onnx").write_bytes(b"no model")
    with chromium() as browser, served(broken) as address:
        opened = browser.new_page()
        opened.goto(address)
        opened.locator(".error").wait_for()
        assert (opened.text_content("#status") or "").startswith("This page cannot draw here: ")
        opened.goto((static / "index.html").as_uri())
        opened.get_by_text("browsers read no models from files. Serve the folder").wait_for()
