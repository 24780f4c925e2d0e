"""Reads or generates images, builds requests from them, and finds the class in a response.

An image from a file that is named `<class>_...` has a label, which is the correct class.
"""

from __future__ import annotations

import io
import pathlib
import re
import urllib.parse
from dataclasses import dataclass

BOUNDARY = "shoal-load-test"
CLASS = re.compile(rb'"class":\s*"([^"]+)"|classified as \[([^\]]+)\]')
"""Pattern of the class in a JSON response of this service, or in a text response such as
"classified as [ship]" (GluonCV's Flask tutorial)."""


@dataclass(frozen=True)
class Picture:
    """An encoded image."""

    name: str
    """Name of the file."""
    data: bytes
    """Encoded image, such as a JPEG."""
    label: str | None
    """Correct class of the image. None: unknown."""


def read(folder: pathlib.Path) -> list[Picture]:
    """Reads all files of a folder. Raises ValueError if the folder contains no files."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not files:
        raise ValueError(f"{folder} contains no files. Choose a folder that contains images")
    return [Picture(path.name, path.read_bytes(), _label(path.stem)) for path in files]


def generate(width: int, count: int = 64, height: int | None = None) -> list[Picture]:
    """Generates smooth random JPEGs, which take as long to decode as photos of the same size.

    Args:
        width: Width in pixels.
        count: Number of images. Default: 64.
        height: Height in pixels. None: the same as `width`.

    Raises:
        ModuleNotFoundError: NumPy or Pillow is not installed. The extra `server` contains both.
    """
    import numpy as np
    from PIL import Image

    size = (width, height or width)
    random = np.random.default_rng(0)
    pictures = []
    for number in range(count):
        shapes = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        out = io.BytesIO()
        shapes.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
        pictures.append(Picture(f"{number}.jpg", out.getvalue(), None))
    return pictures


def request(
    url: urllib.parse.SplitResult, picture: Picture, raw: bool, key: str | None = None
) -> bytes:
    """Returns the complete HTTP request that uploads an image.

    Args:
        url: URL that the request is sent to.
        picture: Image to upload.
        raw: Whether the image is the body of the request. False: the image is a field of a form.
        key: API key, which is sent in the header X-API-Key. None: no key is sent.
    """
    if raw:
        kind, body = "image/jpeg", picture.data
    else:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        head = (
            f"--{BOUNDARY}\r\n"
            f'Content-Disposition: form-data; name="img"; filename="{picture.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + picture.data + f"\r\n--{BOUNDARY}--\r\n".encode()
    target = urllib.parse.urlunsplit(("", "", url.path or "/", url.query, ""))
    lines = (
        f"POST {target} HTTP/1.1",
        f"Host: {url.netloc}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Accept: application/json, */*;q=0.5",
        *([f"X-API-Key: {key}"] if key else []),
        "\r\n",
    )
    return "\r\n".join(lines).encode() + body


def class_of(body: bytes) -> str | None:
    """Returns the class in the body of a response. None: the response has no class."""
    match = CLASS.search(body)
    return (match[1] or match[2]).decode() if match else None


def _label(stem: str) -> str | None:
    name, underscore, _ = stem.partition("_")
    return name if underscore else None
