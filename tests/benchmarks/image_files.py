"""What the tests of images share."""

import numpy as np

from benchmarks import image_crops


def write_image(path, seed, width, height, mode="RGB", **options):
    """Writes a smooth random image, which JPEG keeps nearly as it is."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    image.convert(mode).save(path, **options)


def read_image(path, image_size, box, mirror=False):
    """Reads a given part of an image."""
    return image_crops.read_image(str(path), image_size, lambda size: (box, mirror))
