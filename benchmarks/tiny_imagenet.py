"""Tiny-ImageNet in the folders it is published in, shrunk and kept in memory.

    tiny-imagenet-200/wnids.txt                      the names of the classes
    tiny-imagenet-200/train/<class>/images/*.JPEG
    tiny-imagenet-200/val/images/*.JPEG, and val/val_annotations.txt with their classes

The labels of its test images are not public, so that its validation set is tested on.
"""

import functools
import pathlib

import numpy as np

from benchmarks.image_crops import Box, read_image

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


# A sweep reads the same split for each of its runs, and 100,000 files take a while.
@functools.lru_cache(maxsize=2)
def read(folder: pathlib.Path, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads one split.

    Args:
      folder: that of the split, `tiny-imagenet-200/train` or `.../val`.
      image_size: width and height to shrink the images to.

    Returns:
      Images, uint8 of shape (num_examples, image_size, image_size, 3), by the names of
      their files within those of their classes or, of `val`, as they are listed; and
      labels, int32 of shape (num_examples,), positions in the sorted names of classes.
      Both are shared by all callers and cannot be written to.

    Raises:
      FileNotFoundError: a folder or a list is missing.
      ValueError: an image cannot be read or has an unknown class; names the file.
    """
    classes = folder.parent / "wnids.txt"
    names = sorted(classes.read_text().split())
    positions = {name: label for label, name in enumerate(names)}
    listed = _listed(folder) if folder.name == "val" else _by_class(folder, positions)
    images = np.empty((len(listed), image_size, image_size, 3), np.uint8)
    labels = np.empty(len(listed), np.int32)
    for i, (path, name) in enumerate(listed):
        if name not in positions:
            raise ValueError(
                f"{path} is of class {name!r}, which is not in {classes}: damaged, "
                f"or not the official one ({URL})"
            )
        images[i] = read_image(str(path), image_size, _whole)
        labels[i] = positions[name]
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def _by_class(
    folder: pathlib.Path, positions: dict[str, int]
) -> list[tuple[pathlib.Path, str]]:
    return [
        (path, name)
        for name in positions
        for path in sorted((folder / name / "images").iterdir())
    ]


def _listed(folder: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    # File, class and the corners of a box around the object.
    lines = (folder / "val_annotations.txt").read_text().splitlines()
    columns = (line.split("\t") for line in lines)
    return [(folder / "images" / file, name) for file, name, *_ in columns]


def _whole(size: tuple[int, int]) -> tuple[Box, bool]:
    return (0, 0, *size), False
