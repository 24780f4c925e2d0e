"""What is sent: image files of a folder, or pictures made up here; and what is expected back.

A file named `<class>_...` has a label. What the server answers to each image before the load is
what it must answer under load: another class is another caller's answer.
"""

from __future__ import annotations

import io
import pathlib
import re
import urllib.parse
from dataclasses import dataclass

import numpy as np
from PIL import Image

BOUNDARY = "shoal-load-test"
CLASS = re.compile(rb'"class":\s*"([^"]+)"|classified as \[([^\]]+)\]')
"""In our answers, and in those of the tutorial's server."""


@dataclass(frozen=True)
class Picture:
    name: str
    data: bytes
    label: str | None
    """What it shows, where that is known."""


def read(folder: pathlib.Path) -> list[Picture]:
    """Every file in `folder`. Raises ValueError if there is none."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not files:
        raise ValueError(f"{folder} holds no files: name a folder of images")
    return [Picture(path.name, path.read_bytes(), _label(path.stem)) for path in files]


def made_up(width: int, count: int = 64, height: int | None = None) -> list[Picture]:
    """Soft random JPEGs, square unless a height is given: they cost a server what photos of that
    size do."""
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
    """The whole HTTP request, ready to be written; with `key` where the server wants one."""
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
    """The class that an answer names."""
    found = CLASS.search(body)
    return (found[1] or found[2]).decode() if found else None


def _label(stem: str) -> str | None:
    name, underscore, _ = stem.partition("_")
    return name if underscore else None
