"""Images as uint8 arrays, and the input pipeline that runs on the device.

The whole training set lives on the device as uint8. A step is told which images to
take (`batch_indices`, on the host) and cuts, mirrors and standardises them itself
(`draw_crops`, `take_crops`, `standardize`). Everything is a function of (seed, step),
so that a run can be repeated, and continued, exactly.
"""

import functools
import pathlib
import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import tiny_imagenet


class Split(NamedTuple):
    """Images and their classes.

    Attributes:
      images: uint8 of shape (num_examples, height, width, channels).
      labels: int32 of shape (num_examples,).
    """

    images: np.ndarray
    labels: np.ndarray


class DatasetInfo(NamedTuple):
    """What a data set must look like; `folder` is empty if it needs no download.

    Each split is in its files, or in a folder of them. CIFAR's images become the means
    over squares of `shrink` by `shrink` pixels; `image_shape` is what they are then.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    num_train: int
    num_test: int
    url: str = ""
    folder: str = ""
    train_files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    label_key: bytes = b"labels"
    shrink: int = 1


DATASETS = {
    "digits": DatasetInfo(10, (8, 8, 1), num_train=1437, num_test=360),
    "cifar10": DatasetInfo(
        10,
        (32, 32, 3),
        num_train=50_000,
        num_test=10_000,
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test_files=("test_batch",),
    ),
    "cifar100": DatasetInfo(
        100,
        (32, 32, 3),
        num_train=50_000,
        num_test=10_000,
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train_files=("train",),
        test_files=("test",),
        label_key=b"fine_labels",
    ),
}
# For studies on machines without an accelerator: a quarter of the work of an image.
DATASETS["cifar100_16x16"] = DATASETS["cifar100"]._replace(
    image_shape=(16, 16, 3), shrink=2
)
DATASETS["tiny_imagenet_16x16"] = DatasetInfo(
    200,
    (16, 16, 3),
    num_train=100_000,
    num_test=10_000,
    url=tiny_imagenet.URL,
    folder="tiny-imagenet-200",
    train_files=("train",),
    test_files=("val",),
)


# ------------------------------------------------------------------------------
#  Reading
# ------------------------------------------------------------------------------


def info(name: str) -> DatasetInfo:
    """Describes a data set, or says which ones there are."""
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name]


def check_files(name: str, data_dir: str | pathlib.Path) -> None:
    """Raises FileNotFoundError, saying what to download, unless all files are there."""
    wanted = info(name)
    folder = pathlib.Path(data_dir) / wanted.folder
    files = (*wanted.train_files, *wanted.test_files)
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        raise FileNotFoundError(
            f"{name} is not complete under {folder}: missing {', '.join(missing)}. "
            f"Download {wanted.url} and unpack it in {folder.parent} "
            f"(so that {folder / files[0]} exists), "
            f"or pass the folder that holds {wanted.folder}/ as --data-dir."
        )


def load(name: str, split: str, data_dir: str | pathlib.Path = "data") -> Split:
    """Reads one split of a data set into memory and checks it.

    Args:
      name: a key of `DATASETS`.
      split: "train" or "test".
      data_dir: the folder that holds the data set's official folder.

    Raises:
      FileNotFoundError: a file is missing; says what to download and where to put it.
      ValueError: a file is not what it should be.
    """
    wanted = info(name)
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if name == "digits":
        return _load_digits(split)
    check_files(name, data_dir)
    folder = pathlib.Path(data_dir) / wanted.folder
    files = wanted.train_files if split == "train" else wanted.test_files
    parts = [_read(folder / file, wanted) for file in files]
    loaded = Split(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    expected = wanted.num_train if split == "train" else wanted.num_test
    if len(loaded.labels) != expected:
        raise ValueError(
            f"{name} {split} has {len(loaded.labels)} images in {folder}, expected "
            f"{expected}: damaged, or not the official one ({wanted.url})"
        )
    return loaded


def _load_digits(split: str) -> Split:
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    # Gray levels 0..16, which uint8 holds exactly.
    images = np.asarray(pixels).astype(np.uint8).reshape(-1, 8, 8, 1)
    order = np.random.default_rng(2026).permutation(len(images))
    train = DATASETS["digits"].num_train
    part = order[:train] if split == "train" else order[train:]
    return Split(images[part], np.asarray(labels)[part].astype(np.int32))


def _read(path: pathlib.Path, wanted: DatasetInfo) -> Split:
    if wanted.url == tiny_imagenet.URL:
        return Split(*tiny_imagenet.read(path, wanted.image_shape[0]))
    return _read_cifar(path, wanted)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain containers only: a pickle could run any code."""

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "numpy" or module == "_codecs":
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refuses {module}.{name}")


def _read_cifar(path: pathlib.Path, wanted: DatasetInfo) -> Split:
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
        pixels = np.asarray(content[b"data"])
        labels = np.asarray(content[wanted.label_key])
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path} is not an official CIFAR batch ({error!r}); download {wanted.url}"
        ) from error
    height, width, channels = wanted.image_shape
    shrink = wanted.shrink
    size = height * width * channels * shrink**2
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != size:
        raise ValueError(
            f"{path}: the images are {pixels.dtype} of shape {pixels.shape}, "
            f"expected uint8 of shape (num_images, {size})"
        )
    if labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: the labels are {labels.dtype} of shape {labels.shape}, "
            f"expected {len(pixels)} integers"
        )
    if labels.min() < 0 or labels.max() >= wanted.num_classes:
        raise ValueError(
            f"{path}: labels range over [{labels.min()}, {labels.max()}], "
            f"expected [0, {wanted.num_classes - 1}]"
        )
    if shrink > 1:
        squares = pixels.reshape(-1, shrink, width, shrink)
        pixels = np.rint(squares.mean((1, 3), dtype=np.float32)).astype(np.uint8)
    images = pixels.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), labels.astype(np.int32))


def check_num_validation(num_validation: int, num_train: int) -> None:
    """Raises ValueError unless so many images can be held out of `num_train`."""
    if not 0 <= num_validation < num_train:
        raise ValueError(
            f"num_validation must be in [0, {num_train - 1}] for this training set, "
            f"got {num_validation}"
        )


def hold_out(train: Split, num_validation: int) -> tuple[Split, Split]:
    """Splits a training set into a smaller one and a validation set.

    Which images are held out depends on nothing but the two sizes, never on the seed
    of a run, so that every trial of a search sees the same validation set.
    """
    parts = hold_out_positions(len(train.labels), num_validation)
    rest, held_out = (Split(train.images[p], train.labels[p]) for p in parts)
    return rest, held_out


def hold_out_positions(size: int, num_validation: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the images that stay in the training set, and of those held out."""
    check_num_validation(num_validation, size)
    order = np.random.default_rng(0).permutation(size)
    # Sorted: the smaller set keeps the order of the files.
    return np.sort(order[num_validation:]), np.sort(order[:num_validation])


# ------------------------------------------------------------------------------
#  Order of the images, on the host
# ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    return order.astype(np.int32)


def batch_indices(
    seed: int, step: int, batch_size: int, num_examples: int
) -> np.ndarray:
    """Positions of the images of one mini-batch.

    The permutations of all epochs form one endless stream, of which step k takes the
    k-th `batch_size` entries. Nothing is dropped at the end of an epoch: 200 epochs of
    50,000 images are 610 mini-batches of 16384.

    Returns:
      int32 of shape (batch_size,), a function of the arguments alone.
    """
    start = step * batch_size
    first = start // num_examples
    last = (start + batch_size - 1) // num_examples
    epochs = [_permutation(seed, e, num_examples) for e in range(first, last + 1)]
    offset = start - first * num_examples
    return np.concatenate(epochs)[offset : offset + batch_size]


def part_of_batch(
    batch_size: int, process_index: int, process_count: int
) -> tuple[int, int]:
    """The start and the end of one process's part of a mini-batch."""
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must be in [0, process_count), got {process_index} with "
            f"process_count {process_count}"
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            "batch_size must be a positive multiple of process_count "
            f"{process_count}, got {batch_size}"
        )
    size = batch_size // process_count
    return process_index * size, (process_index + 1) * size


# ------------------------------------------------------------------------------
#  Augmentation and standardisation, on the device
# ------------------------------------------------------------------------------


class Crops(NamedTuple):
    """Where to cut each image out of its zero-padded self.

    Attributes:
      offsets: int32 of shape (batch, 2), row and column in [0, 2 crop_padding].
      flips: bool of shape (batch,), mirror left to right after cutting.
    """

    offsets: jax.Array
    flips: jax.Array


def crop_padding(height: int) -> int:
    """Rows and columns of zeros on each side: 4 for CIFAR's 32, as is usual there."""
    return height // 8


def draw_crops(key: jax.Array, batch_size: int, height: int) -> Crops:
    """Draws one random crop and flip for each image of a mini-batch."""
    key_offsets, key_flips = jax.random.split(key)
    offsets = jax.random.randint(
        key_offsets, (batch_size, 2), 0, 2 * crop_padding(height) + 1, jnp.int32
    )
    return Crops(offsets, jax.random.bernoulli(key_flips, shape=(batch_size,)))


def take_crops(images: jax.Array, indices: jax.Array, crops: Crops) -> jax.Array:
    """Takes images out of the data set, pads them, cuts and mirrors them.

    Choosing, padding, cutting and mirroring only change where a pixel is read, so they
    are one gather of uint8 pixels whose indices XLA computes on the fly: no padded
    copy, no float image in memory and no loop over the images.

    Args:
      images: the data set, uint8 of shape (num_examples, height, width, channels).
      indices: int32 of shape (batch,), which images to take.
      crops: from `draw_crops`.

    Returns:
      uint8 of shape (batch, height, width, channels).
    """
    height, width = images.shape[1:3]
    padding = crop_padding(height)
    flips = crops.flips[:, None]
    across = jnp.arange(width)
    rows = jnp.arange(height) + crops.offsets[:, :1] - padding
    columns = jnp.where(flips, width - 1 - across, across)
    columns += crops.offsets[:, 1:] - padding
    inside = ((rows >= 0) & (rows < height))[:, :, None]
    inside &= ((columns >= 0) & (columns < width))[:, None, :]
    pixels = images.at[
        indices[:, None, None], rows[:, :, None], columns[:, None, :]
    ].get(mode="clip", wrap_negative_indices=False)
    return jnp.where(inside[..., None], pixels, jnp.uint8(0))


def standardize(images: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Shifts and scales each image to mean 0 and standard deviation 1.

        (x - mean(x)) / max(std(x), 1 / sqrt(number of values))

    Statistics are float32; only the result is rounded to `dtype`.
    """
    images = images.astype(jnp.float32)
    axes = (1, 2, 3)
    smallest = 1.0 / np.sqrt(np.prod(images.shape[1:]))
    mean = jnp.mean(images, axes, keepdims=True)
    centred = images - mean
    deviation = jnp.sqrt(jnp.mean(jnp.square(centred), axes, keepdims=True))
    return (centred / jnp.maximum(deviation, smallest)).astype(dtype)
