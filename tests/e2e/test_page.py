"""Tests the page at `/` in Chromium, against a real process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import pathlib
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from batching import QueueFull
from service.decoding.image import identify
from service.errors import BadImage, NotReady, Unauthorized
from service.http.problems import PROBLEMS
from tests.e2e.chromium import Chromium, Page
from tests.e2e.process import REAL, SCRIPTED, Server
from tests.service import synthetic
from tests.service.conftest import png

pytestmark = pytest.mark.slow

Write = Callable[..., pathlib.Path]
DONE = "document.querySelectorAll('[data-state=answered], [data-state=refused]').length"
PREDICT_ENTRIES = (
    "performance.getEntriesByType('resource').filter(e => e.name.endsWith('/predict'))"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*SCRIPTED, ENGINE_SECONDS="0.1") as server:
        server.wait_until_ready()
        yield server


@pytest.fixture
def page(chromium: Chromium, server: Server) -> Iterator[Page]:
    with chromium.page() as page:
        page.open(server.url)
        yield page


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Write:
    """A function that writes a file to disk."""

    def write(name: str, content: bytes) -> pathlib.Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def wait_for(page: Page, cards: int) -> None:
    """Wait until this number of cards has an answer or an error."""
    page.wait_for(f"{DONE} === {cards}")


def test_page_shows_the_answer_to_a_dropped_picture(
    page: Page, server: Server, write: Write
) -> None:
    """The card has sentence, bars, times and model, without errors or requests to other hosts."""
    page.drop("#zone", write("horse.png", png(7, side=200)))
    wait_for(page, 1)
    assert page.texts(".card h3") == ["horse.png"]
    assert page.texts(".sentence") == [HORSE]
    assert page.texts(".bars .class")[0] == "horse"
    assert page.texts(".bars .share") == ["91.0 %", "1.0 %", "1.0 %", "1.0 %", "1.0 %"]
    stages = page.texts(".times dt")
    assert stages == ["read", "decode", "queue", "infer", "round trip"]
    infer = float(page.texts(".times dd")[3].removesuffix(" ms"))
    assert 99 <= infer < 1000  # uvloop's timers have a resolution of one millisecond
    assert "Classified by fake, version 7." in page.texts(".card .quiet")
    assert page.texts("#log p") == ["horse.png: horse, 91.0 %"]
    assert page.evaluate("document.querySelector('.thumbnail').width") == 200
    assert page.complaints == []
    assert {url.split("/")[2] for url in page.requests} == {server.url.split("/")[2]}


def test_page_shows_the_error_of_a_text_file(page: Page, write: Write) -> None:
    """A file that is not an image shows the problem of the service, and no thumbnail."""
    page.choose("#files", write("notes.txt", b"These are words, and no picture at all. " * 9))
    wait_for(page, 1)
    assert page.texts(".sentence") == [PROBLEMS[BadImage].title]
    assert "Send JPEG, PNG, WebP, BMP or GIF." in page.texts(".outcome")[0]
    assert "bad_image, request " in page.texts(".trace")[0]
    assert page.texts(".card button") == [], "another attempt would not help"
    assert page.evaluate("document.querySelector('.pictures').checkVisibility()") is False


def test_page_classifies_several_pictures(page: Page, write: Write) -> None:
    """Each picture gets its own answer, in order, and at most four are sent at the same time."""
    files = [write(f"{number}.png", png(number)) for number in range(9)]
    page.choose("#files", *files[:4], write("broken.png", png(1)[:50]), *files[4:])
    wait_for(page, 10)
    classes = list(page.texts(".bars li:first-child .class"))
    assert classes == ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse",
                       "ship"]  # fmt: skip
    assert page.texts(".card h3")[3:6] == ["3.png", "broken.png", "4.png"]
    spans = page.evaluate(f"{PREDICT_ENTRIES}.map(e => [e.startTime, e.responseEnd])")
    together = [sum(begin <= at < end for begin, end in spans) for at, _ in spans]
    assert max(together) == 4
    page.choose("#files", write("later.png", png(9)))
    wait_for(page, 11)
    assert page.texts(".card h3")[0] == "later.png", "the newest card is on top"
    page.click("#clear")
    assert page.texts(".card") == [] and page.evaluate("document.activeElement.id") == "choose"


def test_page_classifies_a_pasted_picture(page: Page, write: Write) -> None:
    """A picture from the clipboard is classified."""
    page.evaluate(f"""{{
        const data = new DataTransfer();
        const bytes = new Uint8Array({list(png(7))});
        data.items.add(new File([bytes], "image.png", {{ type: "image/png" }}));
        document.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData: data }}));
    }}""")
    wait_for(page, 1)
    assert page.texts(".bars li:first-child .class") == ["horse"]


def test_page_fits_a_phone(page: Page, write: Write) -> None:
    """At a width of 360 pixels nothing overflows, even with long names, and photos can be taken."""
    page.resize(360, 740, mobile=True)
    page.send("Emulation.setTouchEmulationEnabled", enabled=True)
    page.drop("#zone", write(f"{'long' * 40}.png", png(7, side=200)), write("words.png", b"words"))
    wait_for(page, 2)
    page.wait_for("document.querySelector('#model').innerText")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.texts("#photograph") == ["Take a photo"]
    assert (
        page.evaluate("document.getElementById('camera').getAttribute('capture')") == "environment"
    )
    with page.choosing(write("photo.png", png(5))):
        page.click("#photograph")
    wait_for(page, 3)


def test_page_works_by_keyboard(page: Page, write: Write) -> None:
    """Controls are reached with Tab, show the focus, and react to Enter."""
    focused = []
    for _ in range(9):
        page.press("Tab")
        focused.append(page.evaluate("document.activeElement.id"))
        if focused[-1] == "choose":
            break
    assert focused[-1] == "choose"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    with page.choosing(write("horse.png", png(7))):
        page.press("Enter")
    wait_for(page, 1)
    while page.evaluate("document.activeElement.id") != "clear":
        page.press("Tab")
    page.press("Enter")
    assert page.texts(".card") == []


def test_page_names_everything_for_screen_readers(page: Page, write: Write) -> None:
    """Every element that a screen reader stops at has a name."""
    page.drop("#zone", write("horse.png", png(7)))
    wait_for(page, 1)
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    stops = [node for node in nodes if not node["ignored"] and node["role"]["value"] in NAMED]
    assert {node["role"]["value"] for node in stops} >= {"button", "link", "heading", "log"}
    assert [node for node in stops if not node["name"]["value"]] == []


NAMED = {"RootWebArea", "button", "heading", "image", "link", "log", "navigation", "region"}


def test_page_retries_after_a_rejection(chromium: Chromium, write: Write) -> None:
    """A rejection with Retry-After is shown, and the picture is sent again after that time."""
    one = {"SHOAL_MAX_QUEUE_SIZE": "1", "SHOAL_MAX_BATCH_SIZE": "1", "ENGINE_SECONDS": "1.2"}
    with (
        Server(*SCRIPTED, **one) as server,
        chromium.page() as page,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        server.wait_until_ready()
        page.open(server.url)
        others = []
        for metric in "shoal_batches_in_flight", "shoal_queue_length":
            send = functools.partial(httpx.post, files={"img": png(1)}, timeout=30)
            others.append(pool.submit(send, f"{server.url}/predict"))
            asyncio.run(server.wait_until(metric, 1))
        page.choose("#files", write("horse.png", png(7)))
        page.wait_for("document.querySelector('.outcome').innerText.includes('Trying again in ')")
        assert page.texts(".outcome")[0].startswith(f"{PROBLEMS[QueueFull].title}.")
        wait_for(page, 1)
        assert page.texts(".bars li:first-child .class") == ["horse"]
        assert predictions(page) == 2
        assert [other.result().status_code for other in others] == [200, 200]


def test_page_retries_once(chromium: Chromium, write: Write) -> None:
    """After a second rejection, the page offers a button to try again."""
    with Server(*SCRIPTED, ENGINE_LOAD_SECONDS="600") as server, chromium.page() as page:
        page.open(server.url)
        page.choose("#files", write("horse.png", png(7)))
        wait_for(page, 1)
        assert page.texts(".sentence") == [PROBLEMS[NotReady].title]
        assert predictions(page) == 2
        assert page.texts("#model") == ["is being loaded"]
        page.click(".card button")
        page.wait_for("document.activeElement.innerText.endsWith('Trying again in 1 second.')")


def test_page_asks_for_a_key(chromium: Chromium, write: Write) -> None:
    """If the service requires a key, the page asks for it and sends the rejected picture again."""
    with Server(*SCRIPTED, SHOAL_API_KEYS=KEY) as server, chromium.page() as page:
        server.wait_until_ready()
        page.open(server.url)
        assert page.evaluate("document.getElementById('unlock').hidden") is True
        page.choose("#files", write("horse.png", png(7)))
        for tried, key in enumerate(("wrong", KEY), start=1):
            page.wait_for("!document.getElementById('unlock').hidden")
            assert page.texts(".sentence") == [PROBLEMS[Unauthorized].title]
            page.click("#key")
            page.send("Input.insertText", text=key)
            page.press("Enter")
            page.wait_for(f"{PREDICT_ENTRIES}.length > {tried}")
        page.wait_for("document.querySelector('[data-state=answered]') !== null")
        assert page.texts(".sentence") == [HORSE]
        assert page.evaluate("document.getElementById('key').value") == ""


KEY = "a key of sixteen letters".replace(" ", "-")
HORSE = "The input picture is classified as [horse], with probability 0.910."


def test_page_shows_that_the_service_is_unreachable(chromium: Chromium, write: Write) -> None:
    """If the service does not respond, the card and the status say so."""
    with Server(*SCRIPTED) as server, chromium.page() as page:
        server.wait_until_ready()
        page.open(server.url)
        page.wait_for("!document.getElementById('live').hidden")
        server.stop()
        page.choose("#files", write("horse.png", png(7)))
        wait_for(page, 1)
        assert page.texts(".sentence") == ["No answer"]
        assert page.texts(".card button") == ["Try again"]
        page.wait_for("document.getElementById('live').hidden")
        assert page.texts("#live-note") == ["The service does not respond."]


def predictions(page: Page) -> int:
    """Number of predictions that the page has requested."""
    return len([url for url in page.requests if url.endswith("/predict")])


def photograph() -> Image.Image:
    """A picture of 900 x 700 pixels with smooth shapes in many colors and some noise."""
    across, down = np.meshgrid(np.linspace(0, 6, 900), np.linspace(0, 5, 700))
    waves = [np.sin(across * k + down * j) for k, j in ((1, 2), (2, -1), (3, 1))]
    grain = np.random.default_rng(5).normal(0, 12, (700, 900, 1))
    return Image.fromarray((127 + 100 * np.stack(waves, -1) + grain).clip(0, 255).astype(np.uint8))


def test_page_draws_the_input_of_the_network(page: Page, write: Write) -> None:
    """The browser draws what the service decodes: exactly if nothing has to be averaged, and
    otherwise with a difference of less than one level of 255 on average."""
    exact = synthetic.encode(synthetic.CHART, "PNG")
    turned = synthetic.exif(6)
    pictures = {
        "exact.png": exact,
        "photo.jpg": synthetic.encode(photograph(), "JPEG", quality=90),
        "turned.jpg": synthetic.encode(photograph(), "JPEG", quality=90, exif=turned),
        "clear.png": synthetic.served()["png alpha.png"],
        "tiny.png": synthetic.encode(photograph().resize((7, 5)), "PNG"),
    }
    page.drop("#zone", *[write(name, content) for name, content in pictures.items()])
    wait_for(page, len(pictures))
    page.wait_for("document.querySelectorAll('.thumbnail[width=\"0\"]').length === 0")
    for content, rgba in zip(pictures.values(), page.evaluate(INPUTS), strict=True):
        drawn = np.array(rgba).reshape(32, 32, 4)[..., :3]
        difference = np.abs(drawn - identify(content, 10**6).decode())
        assert difference.mean() < 1 and difference.max() <= (0 if content is exact else 3)


INPUTS = """[...document.querySelectorAll('.input')].map((canvas) =>
    [...canvas.getContext('2d').getImageData(0, 0, 32, 32).data])"""


def test_page_shows_the_status_of_the_service(page: Page, write: Write) -> None:
    """The figures come from /metrics, which is not requested while the page is hidden. The tooltip
    of the model has the reasons from /readyz."""
    page.drop("#zone", *[write(f"{number}.png", png(number)) for number in range(8)])
    page.wait_for("parseFloat(document.getElementById('per-second').innerText) > 0")
    assert 1 <= float(page.texts("#batch-size")[0]) <= 8
    number, unit = page.texts("#p99")[0].split()
    assert unit == "ms" and 100 <= float(number) <= 1000
    assert page.texts("#model") == ["fake, version 7, on cpu with mxnet"]
    page.wait_for("document.getElementById('model').title")
    reasons = page.evaluate("document.getElementById('model').title").splitlines()
    assert [line.partition(":")[0] for line in reasons] == [
        "device cpu",
        "backend mxnet",
        "precision fp32",
    ]
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true })")
    before = scrapes(page)
    assert before >= 2
    page.evaluate("new Promise(resolve => setTimeout(resolve, 2500))")
    assert scrapes(page) == before


def test_page_without_metrics(chromium: Chromium, server: Server) -> None:
    """If the metrics are not public, the page says so and does not request them again."""
    with chromium.page() as page:
        page.send("Page.addScriptToEvaluateOnNewDocument", source=NO_METRICS)
        page.open(server.url)
        page.wait_for("document.getElementById('live-note').innerText")
        assert page.texts("#live-note") == ["This service does not publish its metrics here."]
        page.evaluate("new Promise(resolve => setTimeout(resolve, 2500))")
        assert page.evaluate("window.scrapes") == 1
        assert page.complaints == []


NO_METRICS = """
    window.scrapes = 0;
    window.fetch = async () => { window.scrapes += 1; return new Response("", { status: 403 }); };
"""


def scrapes(page: Page) -> int:
    """Number of times that the page has requested the metrics."""
    return len([url for url in page.requests if url.endswith("/metrics")])


def test_page_computes_p99_like_prometheus(page: Page) -> None:
    """The quantile of a histogram is that of Prometheus' `histogram_quantile`."""
    for buckets, expected in {
        "[]": None,
        "[[0.1, 0], [Infinity, 0]]": None,
        "[[0.1, 100], [0.2, 100], [Infinity, 100]]": 0.099,
        "[[0.1, 98], [0.2, 100], [Infinity, 100]]": 0.15,
        "[[0.1, 98], [0.2, 98], [Infinity, 100]]": 0.2,
    }.items():
        code = f"import('/page/live.js').then(live => live.quantile(0.99, {buckets}))"
        assert page.evaluate(code) == pytest.approx(expected), buckets


def test_page_rounds_probabilities(page: Page) -> None:
    """Only exact 0 and 1 are shown as 0 % and 100 %."""
    numbers = [1, 0.9996, 0.5, 0.0004, 0]
    code = f"import('/page/card.js').then(card => {numbers}.map(card.percent))"
    assert page.evaluate(code) == ["100.0 %", "> 99.9 %", "50.0 %", "< 0.1 %", "0.0 %"]


def test_page_with_the_real_model(chromium: Chromium, data: pathlib.Path) -> None:
    """The page shows the answer of the service with the default model to a photo."""
    photo = next((data / "photos").glob("horse_*"))
    with Server(*REAL) as server, chromium.page() as page:
        server.wait_until_ready()
        page.open(server.url)
        page.drop("#zone", photo)
        wait_for(page, 1)
        with photo.open("rb") as file:
            answer = httpx.post(f"{server.url}/predict", files={"img": file}).json()
        assert page.texts(".sentence") == [answer["message"]]
        assert page.complaints == []
