"""Draws the pictures of this folder: simple shapes that the network that ships recognizes.

python -m samples.draw [FOLDER]
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFilter

SIDE = 256
FOLDER = pathlib.Path(__file__).parent

Color = tuple[int, int, int]
Picture = Image.Image


def gradient(top: Color, bottom: Color, height: int = SIDE) -> Picture:
    """A background of the given height whose color changes from top to bottom."""
    pixels = Image.new("RGB", (1, 2), top)
    pixels.putpixel((0, 1), bottom)
    return pixels.resize((SIDE, height), Image.Resampling.BILINEAR)


def airplane() -> Picture:
    picture = gradient((90, 150, 220), (190, 215, 240))
    draw = ImageDraw.Draw(picture)
    body = [(20, 130), (40, 118), (200, 112), (240, 124), (205, 138), (45, 142)]
    draw.polygon(body, fill=(235, 238, 242))
    draw.polygon([(200, 116), (226, 70), (244, 70), (236, 122)], fill=(180, 40, 50))
    draw.polygon([(105, 130), (160, 130), (205, 205), (185, 208)], fill=(170, 178, 190))
    draw.polygon([(115, 116), (150, 116), (180, 76), (166, 74)], fill=(190, 198, 208))
    draw.ellipse((120, 140, 150, 154), fill=(110, 115, 125))
    for x in range(55, 195, 9):
        draw.rectangle((x, 121, x + 3, 125), fill=(60, 75, 95))
    return picture


def automobile() -> Picture:
    picture = gradient((185, 200, 215), (215, 215, 210))
    picture.paste(gradient((115, 115, 115), (90, 90, 92), 80), (0, 176))
    draw = ImageDraw.Draw(picture)
    front = [(168, 92), (204, 132), (238, 142), (240, 185)]
    back = [(16, 185), (20, 140), (60, 132), (92, 92)]
    draw.polygon(front + back, fill=(190, 25, 30))
    draw.polygon([(74, 130), (98, 98), (126, 98), (126, 130)], fill=(60, 75, 90))
    draw.polygon([(134, 98), (164, 98), (190, 130), (134, 130)], fill=(60, 75, 90))
    for x in (66, 192):
        draw.ellipse((x - 26, 160, x + 26, 212), fill=(25, 25, 28))
        draw.ellipse((x - 13, 173, x + 13, 199), fill=(170, 170, 175))
    draw.ellipse((222, 144, 238, 158), fill=(250, 240, 180))
    return picture


def bird() -> Picture:
    picture = gradient((120, 170, 110), (90, 140, 80))
    draw = ImageDraw.Draw(picture)
    draw.line((0, 210, 256, 190), fill=(95, 65, 40), width=14)
    draw.ellipse((80, 80, 190, 190), fill=(60, 110, 190))
    draw.ellipse((90, 110, 170, 192), fill=(215, 120, 60))
    draw.ellipse((50, 50, 125, 120), fill=(60, 110, 190))
    draw.polygon([(52, 80), (24, 90), (54, 98)], fill=(60, 50, 40))
    draw.ellipse((72, 72, 86, 86), fill=(10, 10, 10))
    draw.polygon([(170, 140), (245, 200), (225, 212), (160, 175)], fill=(45, 80, 150))
    for x in (125, 145):
        draw.line((x, 188, x, 204), fill=(60, 50, 40), width=5)
    return picture


def frog() -> Picture:
    green, dark = (90, 150, 50), (60, 110, 35)
    picture = gradient((120, 95, 60), (90, 70, 45))
    draw = ImageDraw.Draw(picture)
    for x in (30, 150):
        draw.ellipse((x, 150, x + 78, 225), fill=dark)
    draw.ellipse((55, 80, 205, 215), fill=green)
    for x in (60, 150):
        draw.ellipse((x, 55, x + 50, 105), fill=green)
        draw.ellipse((x + 9, 62, x + 41, 94), fill=(235, 200, 60))
        draw.ellipse((x + 17, 70, x + 33, 90), fill=(15, 15, 10))
    draw.chord((80, 110, 180, 160), 10, 170, fill=(170, 190, 90))
    draw.ellipse((85, 150, 175, 215), fill=(190, 205, 130))
    return picture


def ship() -> Picture:
    picture = gradient((150, 190, 225), (205, 220, 230))
    picture.paste(gradient((40, 90, 130), (20, 55, 95), 90), (0, 170))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(18, 160), (238, 150), (215, 196), (45, 196)], fill=(60, 40, 45))
    draw.polygon([(45, 196), (215, 196), (212, 204), (50, 204)], fill=(150, 40, 35))
    draw.rectangle((70, 125, 170, 160), fill=(235, 235, 230))
    draw.rectangle((85, 100, 140, 126), fill=(225, 225, 220))
    draw.rectangle((100, 70, 122, 100), fill=(200, 60, 40))
    draw.rectangle((180, 80, 184, 155), fill=(80, 80, 80))
    for x in range(76, 165, 14):
        draw.rectangle((x, 134, x + 7, 142), fill=(60, 80, 110))
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    draw.__name__: draw for draw in (airplane, automobile, bird, frog, ship)
}
"""What draws each picture, by the class that the network gives it."""


def write(folder: pathlib.Path) -> None:
    """Draw every picture as a JPEG of 256 x 256 pixels in `folder`, named by its class."""
    for name, draw in PICTURES.items():
        picture = draw().filter(ImageFilter.GaussianBlur(1.5))  # edges as soft as in a photo
        picture.save(folder / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
