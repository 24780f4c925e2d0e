"""The page at `/` in a real Chromium, against a real process."""

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

from service.decoding.image import identify
from tests.e2e.chromium import Chromium, Page
from tests.e2e.process import REAL, SCRIPTED, Server
from tests.service import synthetic
from tests.service.conftest import png

pytestmark = pytest.mark.slow

Write = Callable[..., pathlib.Path]
DONE = "document.querySelectorAll('[data-state=answered], [data-state=refused]').length"
ANSWERS = "performance.getEntriesByType('resource').filter(e => e.name.endsWith('/predict'))"


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
    """Makes a file on disk."""

    def write(name: str, content: bytes) -> pathlib.Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def wait_for(page: Page, cards: int) -> None:
    page.wait_for(f"{DONE} === {cards}")


def test_a_dropped_picture(page: Page, server: Server, write: Write) -> None:
    """Sentence, bars, times and model, without a complaint or a look elsewhere."""
    page.drop("#zone", write("horse.png", png(7, side=200)))
    wait_for(page, 1)
    assert page.texts(".card h3") == ["horse.png"]
    assert page.texts(".sentence") == [HORSE]
    assert page.texts(".bars .class")[0] == "horse"
    assert page.texts(".bars .share") == ["91.0 %", "1.0 %", "1.0 %", "1.0 %", "1.0 %"]
    stages = page.texts(".times dt")
    assert stages == ["read", "decode", "queue", "infer", "there and back"]
    infer = float(page.texts(".times dd")[3].removesuffix(" ms"))
    assert 99 <= infer < 1000  # uvloop's timers count whole milliseconds
    assert "Answered by fake, version 7." in page.texts(".card .quiet")
    assert page.texts("#log p") == ["horse.png: horse, 91.0 %"]
    assert page.evaluate("document.querySelector('.thumbnail').width") == 200
    assert page.complaints == []
    assert {url.split("/")[2] for url in page.requests} == {server.url.split("/")[2]}


def test_a_text_file(page: Page, write: Write) -> None:
    """Is refused in the words of the service, without a picture of it."""
    page.choose("#files", write("notes.txt", b"These are words, and no picture at all. " * 9))
    wait_for(page, 1)
    assert page.texts(".sentence") == ["Not a readable image"]
    assert "Send JPEG, PNG, WebP, BMP or GIF." in page.texts(".outcome")[0]
    assert "bad_image, request " in page.texts(".trace")[0]
    assert page.texts(".card button") == [], "trying again would not help"
    assert page.evaluate("document.querySelector('.pictures').checkVisibility()") is False


def test_several_at_once(page: Page, write: Write) -> None:
    """Each gets its own answer, in the order given, and four at most are asked about at a time."""
    files = [write(f"{number}.png", png(number)) for number in range(9)]
    page.choose("#files", *files[:4], write("broken.png", png(1)[:50]), *files[4:])
    wait_for(page, 10)
    classes = list(page.texts(".bars li:first-child .class"))
    assert classes == ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse",
                       "ship"]  # fmt: skip
    assert page.texts(".card h3")[3:6] == ["3.png", "broken.png", "4.png"]
    spans = page.evaluate(f"{ANSWERS}.map(e => [e.startTime, e.responseEnd])")
    together = [sum(begin <= at < end for begin, end in spans) for at, _ in spans]
    assert max(together) == 4
    page.choose("#files", write("later.png", png(9)))
    wait_for(page, 11)
    assert page.texts(".card h3")[0] == "later.png", "the newest is on top"
    page.click("#clear")
    assert page.texts(".card") == [] and page.evaluate("document.activeElement.id") == "choose"


def test_a_pasted_picture(page: Page, write: Write) -> None:
    page.evaluate(f"""{{
        const data = new DataTransfer();
        const bytes = new Uint8Array({list(png(7))});
        data.items.add(new File([bytes], "image.png", {{ type: "image/png" }}));
        document.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData: data }}));
    }}""")
    wait_for(page, 1)
    assert page.texts(".bars li:first-child .class") == ["horse"]


def test_on_a_phone(page: Page, write: Write) -> None:
    """Nothing sticks out at 360 pixels, whatever the names, and a photo can be taken."""
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


def test_by_keyboard_alone(page: Page, write: Write) -> None:
    """Everything is reached by Tab, shows that it is, and answers to Enter."""
    reached = []
    for _ in range(9):
        page.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        if reached[-1] == "choose":
            break
    assert reached[-1] == "choose"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    with page.choosing(write("horse.png", png(7))):
        page.press("Enter")
    wait_for(page, 1)
    while page.evaluate("document.activeElement.id") != "clear":
        page.press("Tab")
    page.press("Enter")
    assert page.texts(".card") == []


def test_everything_has_a_name(page: Page, write: Write) -> None:
    """Nothing that a screen reader stops at is mute."""
    page.drop("#zone", write("horse.png", png(7)))
    wait_for(page, 1)
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    stops = [node for node in nodes if not node["ignored"] and node["role"]["value"] in NAMED]
    assert {node["role"]["value"] for node in stops} >= {"button", "link", "heading", "log"}
    assert [node for node in stops if not node["name"]["value"]] == []


NAMED = {"RootWebArea", "button", "heading", "image", "link", "log", "navigation", "region"}


def test_busy(chromium: Chromium, write: Write) -> None:
    """A refusal with Retry-After is told, and tried again when it says."""
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
        page.wait_for("document.querySelector('.outcome').innerText.includes('Tries again in ')")
        assert page.texts(".outcome")[0].startswith("Too many requests are waiting.")
        wait_for(page, 1)
        assert page.texts(".bars li:first-child .class") == ["horse"]
        assert predictions(page) == 2
        assert [other.result().status_code for other in others] == [200, 200]


def test_not_ready(chromium: Chromium, write: Write) -> None:
    """A second refusal is the last, and a button tries again."""
    with Server(*SCRIPTED, ENGINE_LOAD_SECONDS="600") as server, chromium.page() as page:
        page.open(server.url)
        page.choose("#files", write("horse.png", png(7)))
        wait_for(page, 1)
        assert page.texts(".sentence") == ["Not ready yet"]
        assert predictions(page) == 2
        assert page.texts("#model") == ["is being loaded"]
        page.click(".card button")
        page.wait_for("document.activeElement.innerText.endsWith('Tries again in a second.')")


def test_locked(chromium: Chromium, write: Write) -> None:
    """Where keys are set the page asks for one, and sends again what was refused."""
    with Server(*SCRIPTED, SHOAL_API_KEYS=KEY) as server, chromium.page() as page:
        server.wait_until_ready()
        page.open(server.url)
        assert page.evaluate("document.getElementById('unlock').hidden") is True
        page.choose("#files", write("horse.png", png(7)))
        for tried, key in enumerate(("wrong", KEY), start=1):
            page.wait_for("!document.getElementById('unlock').hidden")
            assert page.texts(".sentence") == ["No valid key"]
            page.click("#key")
            page.send("Input.insertText", text=key)
            page.press("Enter")
            page.wait_for(f"{ANSWERS}.length > {tried}")
        page.wait_for("document.querySelector('[data-state=answered]') !== null")
        assert page.texts(".sentence") == [HORSE]
        assert page.evaluate("document.getElementById('key').value") == ""


KEY = "a key of sixteen letters".replace(" ", "-")
HORSE = "The input picture is classified as [horse], with probability 0.910."


def test_gone(chromium: Chromium, write: Write) -> None:
    """A service that cannot be reached is told in words, too."""
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
        assert page.texts("#live-note") == ["The service does not answer."]


def predictions(page: Page) -> int:
    """How often the page has asked for one."""
    return len([url for url in page.requests if url.endswith("/predict")])


def photograph() -> Image.Image:
    """Of nothing: smooth shapes of every colour, some fine grain, 900 x 700."""
    across, down = np.meshgrid(np.linspace(0, 6, 900), np.linspace(0, 5, 700))
    waves = [np.sin(across * k + down * j) for k, j in ((1, 2), (2, -1), (3, 1))]
    grain = np.random.default_rng(5).normal(0, 12, (700, 900, 1))
    return Image.fromarray((127 + 100 * np.stack(waves, -1) + grain).clip(0, 255).astype(np.uint8))


def test_what_the_network_sees(page: Page, write: Write) -> None:
    """What the browser draws is what `decode` makes, but for rounding: exact where nothing is to
    be averaged, and elsewhere off by less than one level of 255 on average."""
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
    for content, rgba in zip(pictures.values(), page.evaluate(SEEN), strict=True):
        drawn = np.array(rgba).reshape(32, 32, 4)[..., :3]
        off = np.abs(drawn - identify(content, 10**6).decode())
        assert off.mean() < 1 and off.max() <= (0 if content is exact else 3)


SEEN = """[...document.querySelectorAll('.seen')].map((canvas) =>
    [...canvas.getContext('2d').getImageData(0, 0, 32, 32).data])"""


def test_the_service_now(page: Page, write: Write) -> None:
    """Numbers from /metrics, which rest while nobody looks."""
    page.drop("#zone", *[write(f"{number}.png", png(number)) for number in range(8)])
    page.wait_for("parseFloat(document.getElementById('per-second').innerText) > 0")
    assert 1 <= float(page.texts("#batch-size")[0]) <= 8
    number, unit = page.texts("#p99")[0].split()
    assert unit == "ms" and 100 <= float(number) <= 1000
    assert page.texts("#model") == ["fake, version 7, on cpu"]
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true })")
    asked = looks(page)
    assert asked >= 2
    page.evaluate("new Promise(resolve => setTimeout(resolve, 2500))")
    assert looks(page) == asked


def test_closed_metrics(chromium: Chromium, server: Server) -> None:
    """Where they are not for everybody the page says so and asks no more."""
    with chromium.page() as page:
        page.send("Page.addScriptToEvaluateOnNewDocument", source=CLOSED)
        page.open(server.url)
        page.wait_for("document.getElementById('live-note').innerText")
        assert page.texts("#live-note") == ["This service does not show its metrics here."]
        page.evaluate("new Promise(resolve => setTimeout(resolve, 2500))")
        assert page.evaluate("window.looks") == 1
        assert page.complaints == []


CLOSED = """
    window.looks = 0;
    window.fetch = async () => { window.looks += 1; return new Response("", { status: 403 }); };
"""


def looks(page: Page) -> int:
    """How often the page has read the metrics."""
    return len([url for url in page.requests if url.endswith("/metrics")])


def test_p99(page: Page) -> None:
    """As Prometheus computes it from a histogram."""
    for buckets, expected in {
        "[]": None,
        "[[0.1, 0], [Infinity, 0]]": None,
        "[[0.1, 100], [0.2, 100], [Infinity, 100]]": 0.099,
        "[[0.1, 98], [0.2, 100], [Infinity, 100]]": 0.15,
        "[[0.1, 98], [0.2, 98], [Infinity, 100]]": 0.2,
    }.items():
        code = f"import('/page/live.js').then(live => live.quantile(0.99, {buckets}))"
        assert page.evaluate(code) == pytest.approx(expected), buckets


def test_percent(page: Page) -> None:
    """Never to a certainty that the network does not have."""
    numbers = [1, 0.9996, 0.5, 0.0004, 0]
    code = f"import('/page/card.js').then(card => {numbers}.map(card.percent))"
    assert page.evaluate(code) == ["100.0 %", "> 99.9 %", "50.0 %", "< 0.1 %", "0.0 %"]


def test_a_photo(chromium: Chromium, data: pathlib.Path) -> None:
    """The service as it ships, and a photo of a horse."""
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
