"""What can be wrong with an image. These exceptions know nothing of HTTP.

The decoder processes import this module too, so it imports nothing.
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
