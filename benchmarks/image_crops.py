"""Reading one image: which part of it, at what size.

Training takes a random part, evaluation the centre.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
CENTRE_FRACTION = 224 / 256

# Left, top, right and bottom, in pixels.
Box = tuple[float, float, float, float]


def draw_crop(seed: int, position: int, size: tuple[int, int]) -> tuple[Box, bool]:
    """Draws the part of an image to train on, and whether to mirror it.

    The Inception crop: area uniform in [.08, 1] of the image's, ratio of width to
    height log-uniform in [3/4, 4/3], place uniform; after ten draws that do not fit,
    as large a centre crop as the ratios allow. Corners are not rounded to pixels.

    Args:
      seed: of the run.
      position: of the image in the stream of all mini-batches.
      size: width and height of the image in pixels.

    Returns:
      Left, top, right and bottom in pixels; whether to mirror.

    References:
      Szegedy et al., Going Deeper with Convolutions, arXiv 1409.4842, section 6.
    """
    width, height = size
    # A counter-based generator: any position's numbers without those before it.
    bits = np.random.Philox(key=[seed, 0], counter=[0, position, 0, 0])
    numbers = np.random.Generator(bits).random(3 + 2 * CROP_ATTEMPTS).tolist()
    mirror, across, down, *shapes = numbers
    low, high = CROP_AREA
    log_low, log_high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for u, v in zip(shapes[::2], shapes[1::2], strict=True):
        area = (low + u * (high - low)) * width * height
        ratio = math.exp(log_low + v * (log_high - log_low))
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if crop_width <= width and crop_height <= height:
            break
    else:
        across = down = 0.5
        crop_width = min(width, height * CROP_RATIO[1])
        crop_height = min(height, width / CROP_RATIO[0])
    left, top = across * (width - crop_width), down * (height - crop_height)
    # Rounding errors must not put a corner outside the image.
    right, bottom = min(left + crop_width, width), min(top + crop_height, height)
    return (left, top, right, bottom), mirror < 0.5


def centre_crop(image_size: int, size: tuple[int, int]) -> Box:
    """Chooses the part of an image to evaluate on.

    The centre square of 224/256 of the shorter side: the same as resizing the shorter
    side to image_size * 256/224 and cutting out image_size. But nothing is cut off to
    enlarge what remains: a crop that would have fewer pixels than the network takes is
    widened to as many, as far as the image goes. So images that have the network's
    size, such as Tiny-ImageNet's, stay as they are.
    """
    shorter = min(size)
    side = max(shorter * CENTRE_FRACTION, min(shorter, image_size))
    # Whole pixels, so that a crop that needs no resizing is not blurred by half a one.
    left, top = ((length - side) // 2 for length in size)
    return left, top, left + side, top + side


def read_image(
    path: str, image_size: int, choose: Callable[[tuple[int, int]], tuple[Box, bool]]
) -> np.ndarray:
    """Reads an image, cuts out a box, resizes it (bilinear, antialiased), mirrors it.

    Large JPEG files are decoded at a half, a quarter or an eighth of their size where
    that still has the pixels that the result needs.

    Args:
      path: of a file in any format that Pillow reads; any colour mode becomes RGB.
      image_size: width and height of the result.
      choose: gives the box, and whether to mirror, for a width and height.

    Returns:
      uint8 of shape (image_size, image_size, 3).

    Raises:
      ValueError: the file cannot be read; names it.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            (left, top, right, bottom), mirror = choose(image.size)
            wanted_width = math.ceil(width * image_size / (right - left))
            wanted_height = math.ceil(height * image_size / (bottom - top))
            drafted = image.draft(None, (wanted_width, wanted_height))
            rgb = _to_rgb(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read the image {path}: {error}") from error
    # The box in pixels of the reduced image, whose last ones may stick out.
    scale = drafted[1][2] / width if drafted else 1.0
    box = left * scale, top * scale, right * scale, bottom * scale
    resized = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR, box)
    return np.asarray(resized)[:, :: -1 if mirror else 1]


def _to_rgb(image: "Image.Image") -> "Image.Image":
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns that it drops the alphas
    return image.convert("RGB")
