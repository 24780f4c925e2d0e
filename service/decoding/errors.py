"""Exceptions for images that cannot be decoded. They know nothing of HTTP.

Decoder processes import this module, so it imports nothing.
"""

from __future__ import annotations


class BadImage(Exception):
    """The data is not an image, or is damaged."""


class UnsupportedImageType(Exception):
    """The data is an image of a type that is not served."""


class ImageTooLarge(Exception):
    """The image has more pixels than allowed."""


class ImageTooExpensive(Exception):
    """Decoding the image took more CPU time or memory than one image may take."""
