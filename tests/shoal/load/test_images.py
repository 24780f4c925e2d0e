"""Images to send, the requests that carry them, and classes in answers."""

from __future__ import annotations

import email
import email.policy
import io
import pathlib
import urllib.parse
from email.message import Message

import pytest
from PIL import Image

from shoal.load.images import Picture, class_of, generate, read, request
from tests.shoal.load.fakes import HORSE

URL = urllib.parse.urlsplit("http://shoal.example:8000/v1/predict?top=3")
PICTURE = Picture("horse_1.png", b"\x89PNG\r\n\r\n--pixels", "horse")


def parsed(message: bytes) -> tuple[str, Message, bytes]:
    """Returns the first line, the headers and the body of a request."""
    head, _, body = message.partition(b"\r\n\r\n")
    first, _, headers = head.decode().partition("\r\n")
    return first, email.message_from_string(headers), body


def test_read_returns_the_files_of_a_folder(tmp_path: pathlib.Path) -> None:
    """Files are in the order of their names, `<class>_...` has a label, and folders are skipped."""
    (tmp_path / "zebra").mkdir()
    for name in ("horse_1.png", "dog_a_b.jpg", "photo.png"):
        (tmp_path / name).write_bytes(name.encode())
    assert read(tmp_path) == [
        Picture("dog_a_b.jpg", b"dog_a_b.jpg", "dog"),
        Picture("horse_1.png", b"horse_1.png", "horse"),
        Picture("photo.png", b"photo.png", None),
    ]


def test_read_rejects_a_folder_without_files(tmp_path: pathlib.Path) -> None:
    """The message names the folder."""
    (tmp_path / "below").mkdir()
    with pytest.raises(ValueError, match=tmp_path.name):
        read(tmp_path)


@pytest.mark.parametrize(("height", "size"), [(None, (48, 48)), (20, (48, 20))])
def test_generate_makes_jpegs_of_a_size(height: int | None, size: tuple[int, int]) -> None:
    """Images differ from each other, and are the same in each call."""
    pictures = generate(48, count=3, height=height)
    for picture in pictures:
        with Image.open(io.BytesIO(picture.data)) as image:
            assert (image.format, image.size, picture.label) == ("JPEG", size, None)
    assert len({picture.data for picture in pictures}) == 3
    assert pictures == generate(48, count=3, height=height)


def test_request_sends_an_image_in_a_form() -> None:
    """The form has one field `img`, with the name of the file and its bytes."""
    first, headers, body = parsed(request(URL, PICTURE, raw=False))
    assert first == "POST /v1/predict?top=3 HTTP/1.1"
    assert headers["Host"] == "shoal.example:8000"
    assert headers["Content-Length"] == str(len(body))
    head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
    (part,) = email.message_from_bytes(head + body, policy=email.policy.HTTP).iter_parts()
    assert part["Content-Disposition"].params == {"name": "img", "filename": "horse_1.png"}
    assert body.count(PICTURE.data) == 1


def test_request_sends_an_image_as_the_body() -> None:
    """With `raw` the body is the image, byte for byte."""
    _, headers, body = parsed(request(URL, PICTURE, raw=True))
    assert headers["Content-Type"] == "image/jpeg"
    assert headers["Content-Length"] == str(len(body))
    assert body == PICTURE.data


@pytest.mark.parametrize("key", [None, "a-key-of-sixteen-or-more"])
def test_request_has_the_key(key: str | None) -> None:
    """The key is sent as X-API-Key, and without one the header is missing."""
    _, headers, _ = parsed(request(URL, PICTURE, raw=True, key=key))
    assert headers["X-API-Key"] == key


def test_request_goes_to_the_root_without_a_path() -> None:
    """A URL without a path means `/`."""
    first, _, _ = parsed(request(urllib.parse.urlsplit("http://shoal"), PICTURE, raw=True))
    assert first == "POST / HTTP/1.1"


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (HORSE, "horse"),
        (b'{"class":"dog"}', "dog"),
        (b"The input picture is classified as [cat], with probability 0.997.", "cat"),
        (b'{"detail": "no"}', None),
    ],
)
def test_class_of_reads_json_and_sentences(body: bytes, name: str | None) -> None:
    """The class is read from this service's JSON and from the sentence of the tutorial's server."""
    assert class_of(body) == name
