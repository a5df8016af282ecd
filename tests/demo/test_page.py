"""The served page as visitors meet it: asked by many at once, with bad values, and in headless Chromium."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.demo.browser import Watched, chromium
from tvmatch.data.source import to_pictures
from tvmatch.demo.drawing import Artist, Drawn
from tvmatch.demo.page import Served, serve
from tvmatch.demo.request import DrawRequest
from tvmatch.pictures import enlarge, tile
from tvmatch.sampling import draw
from tvmatch.training.trained import TrainedRun, load_run

pytestmark = pytest.mark.slow
AT_ONCE = 20
# `tvmatch demo` in a process that notes which hosts it looks up and connects to
WATCHED = """
import sys
log = open(sys.argv[1], "w")
hosts = {"socket.connect": lambda what: what[1][0], "socket.getaddrinfo": lambda what: what[0]}
sys.addaudithook(lambda event, what: event in hosts and print(hosts[event](what), file=log, flush=True))
from tvmatch.cli import main
sys.exit(main(["demo", *sys.argv[2:]]))
"""


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedRun:
    return load_run(run)


@pytest.fixture(scope="module")
def page(trained: TrainedRun) -> Iterator[Served]:
    pytest.importorskip("gradio")
    served = serve(Artist(trained, lambda x: to_pictures(x).numpy()), "bees <&> wasps")
    yield served
    served.close()


@pytest.fixture(scope="module")
def client(page: Served, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return connect(page.url, tmp_path_factory.mktemp("drawn"))


def connect(url: str, drawn: Path | None) -> Any:
    """A client of the page; None: it asks for no file of the pictures."""
    from gradio_client import Client

    patience = {"timeout": 120}  # seconds, not the client's 5: the server shares two cores with other tests
    into = False if drawn is None else str(drawn)
    return Client(url, verbose=False, download_files=into, analytics_enabled=False, httpx_kwargs=patience)


def directly(trained: TrainedRun, label: list[int], calls: int, w: float, seed: int, method: str) -> np.ndarray:
    x = draw(trained.flow, torch.tensor(label), w, calls, seed=seed, method=method)
    columns = int(np.ceil(np.sqrt(len(label))))
    return enlarge(tile(to_pictures(x).numpy(), columns), 512 // columns, 8)


def read(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_twenty_requests_at_once(client: Any, trained: TrainedRun) -> None:
    kinds = itertools.product([1, 2, 5], [0.5, 1.5, 3.0], [0, 7, 2**53 - 1], range(3), [1, 2, 5])
    wanted = list(itertools.islice(itertools.islice(kinds, 0, None, 11), AT_ONCE))
    names = trained.class_names
    jobs = [
        client.submit(names[label], calls, w, seed, count, index % 4 == 0, api_name="/draw")
        for index, (calls, w, seed, label, count) in enumerate(wanted)
    ]
    answers = [job.result(timeout=120) for job in jobs]
    assert len(answers) == AT_ONCE
    for index, ((calls, w, seed, label, count), answer) in enumerate(zip(wanted, answers, strict=True)):
        note, picture, milliseconds, beside, beside_milliseconds = answer
        np.testing.assert_array_equal(read(picture), directly(trained, [label] * count, calls, w, seed, "jump"))
        assert milliseconds > 0
        assert ("was not seen in training" in note) == (w != 1.5)
        if index % 4 == 0:
            np.testing.assert_array_equal(read(beside), directly(trained, [label] * count, 50, w, seed, "euler"))
            assert beside_milliseconds > 0
        else:
            assert (beside, beside_milliseconds) == (None, None)


def test_a_picture_that_was_told_of_is_never_written_again(trained: TrainedRun) -> None:
    """Written again in place, it would be cut for whoever is being sent it then."""
    pytest.importorskip("gradio")
    told = threading.Event()

    class Patient(Artist):
        def flow_matching(self, request: DrawRequest) -> Drawn:
            assert told.wait(60)
            return super().flow_matching(request)

    served = serve(Patient(trained, lambda x: to_pictures(x).numpy()), "x")
    try:
        client = connect(served.url, None)
        asked = "bee", 1, 1.5, 0, 4
        job = client.submit(*asked, True, api_name="/draw")
        first = Path(next(iter(job))[1]["path"])
        wanted = first.stat(), first.read_bytes()
        told.set()
        assert job.result(timeout=120)[1]["path"] == str(first)
        client.predict(*asked, False, api_name="/draw")  # another visitor who asks for the same
        status, content = first.stat(), first.read_bytes()
        assert content == wanted[1]
        assert (status.st_ino, status.st_mtime_ns) == (wanted[0].st_ino, wanted[0].st_mtime_ns)
        assert first.is_relative_to(os.environ["GRADIO_TEMP_DIR"])  # which the page removes
    finally:
        told.set()
        served.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((2, 1, 0, 0, 4), "w must be positive and finite (1 is no guidance), got 0."),
        (("999", 1, 1.5, 0, 4), "no class is called '999'; there are bee, wasp, ant [x]."),
        (("<b>", 1, 1.5, 0, 4), "no class is called '&lt;b&gt;'"),
        (("bee", 10**6, 1.5, 0, 4), "the number of calls must be 1 to 128, got 1000000."),
        (("bee", 1, 1.5, "seven", 4), "the seed must be a whole number from 0 to 9007199254740991, got 'seven'."),
        (("bee", 1, 1.5, 0, 10**6), "the number of pictures must be 1 to 64, got 1000000."),
        ((None, [], {}, None, "x"), "the number of pictures must be a whole number from 1 to 64, got 'x'."),
    ],
)
def test_bad_values_get_a_sentence(
    client: Any, capfd: pytest.CaptureFixture, values: tuple[Any, ...], message: str
) -> None:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as caught:
        client.predict(*values, False, api_name="/draw")
    assert message in str(caught.value)
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "body", [b'{"data": []}', b'{"data": [1]}', b"{}", b"not JSON", b'{"data": "x"}', b"[" * 10**5]
)
def test_bad_bodies_show_no_stack_trace(page: Served, body: bytes) -> None:
    request = urllib.request.Request(
        f"{page.url}gradio_api/call/draw", body, {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{page.url}gradio_api/call/draw/{event}", timeout=30) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        text = error.read().decode()
    assert "Traceback" not in text
    assert 'File "' not in text
    assert str(Path(__file__).parents[2]) not in text


def test_the_page_is_on_loopback_only(page: Served) -> None:
    found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", page.url)
    assert found is not None
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", int(found[1])))  # the same machine by another address
    config = json.loads(urllib.request.urlopen(f"{page.url}config", timeout=30).read())
    assert config["analytics_enabled"] is False


def test_the_page_in_chromium(page: Served, trained: TrainedRun) -> None:
    with chromium() as browser:
        opened = browser.new_page(viewport={"width": 1200, "height": 950})
        watched = Watched(opened)
        opened.goto(page.url)
        opened.get_by_role("button", name="draw", exact=True).click()
        opened.locator(".pixels img").nth(1).wait_for()
        assert opened.get_by_role("heading", name="bees <&> wasps").count() == 1
        milliseconds = [float(field.input_value()) for field in opened.get_by_label("milliseconds").all()]
        assert len(milliseconds) == 2
        assert all(each > 0 for each in milliseconds)
        source = opened.locator(".pixels img").first.get_attribute("src")
        with urllib.request.urlopen(source, timeout=30) as answer:
            drawn = np.asarray(Image.open(answer).convert("RGB"))
        label = [index % 3 for index in range(16)]
        np.testing.assert_array_equal(drawn, directly(trained, label, 1, 1.5, 0, "jump"))
        opened.get_by_label("seed").fill("-5")
        opened.get_by_role("button", name="draw", exact=True).click()
        opened.get_by_text("the seed must be 0 to 9007199254740991, got -5.").wait_for()
        assert watched.hosts == {"127.0.0.1"}
        assert watched.complaints == []


def test_a_port_that_is_taken(page: Served, trained: TrainedRun) -> None:
    port = int(page.url.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(OSError, match=str(port)):
        serve(Artist(trained, lambda x: to_pictures(x).numpy()), "x", port=port)


def test_the_loopback_of_ipv6(trained: TrainedRun) -> None:
    pytest.importorskip("gradio")
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    served = serve(Artist(trained, lambda x: to_pictures(x).numpy()), "x", "::1")
    try:
        assert re.fullmatch(r"http://\[::1\]:\d+/", served.url)
        assert urllib.request.urlopen(served.url, timeout=30).status == 200
    finally:
        served.close()


@pytest.mark.parametrize("host", ["203.0.113.5", "no host", "a" * 70])
def test_a_host_that_is_not_this_machine_s(trained: TrainedRun, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before gradio, which would try its hundred ports for 5 seconds each, is so much as asked."""
    monkeypatch.setattr("tvmatch.demo.page._gradio", lambda: pytest.fail("gradio was asked"))
    with pytest.raises(OSError, match=f"cannot serve at {host} .*; give an address of this machine"):
        serve(Artist(trained, lambda x: to_pictures(x).numpy()), "x", host)


def test_the_command_speaks_to_nobody_ends_on_a_signal_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"}
    environment.pop("GRADIO_TEMP_DIR", None)  # of the page that this process serves
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, "hosts", str(run)],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert line.endswith(" (Ctrl-C ends it)\n"), process.communicate()
        connect(line.split()[0], tmp_path).predict("wasp", 1, 1.5, 0, 1, True, api_name="/draw")
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, b"", b""), err.decode()
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == []
    hosts = set((tmp_path / "hosts").read_text().split())
    assert "127.0.0.1" in hosts  # the note is taken
    assert hosts <= {"127.0.0.1", "localhost", "None"}, hosts
