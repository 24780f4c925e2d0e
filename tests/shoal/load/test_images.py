"""Images to send, the requests that carry them, and classes in answers."""

from __future__ import annotations

import pytest

from shoal.load.images import class_of
from tests.shoal.load.fakes import HORSE


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
