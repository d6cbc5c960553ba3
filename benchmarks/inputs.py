"""Where a run's images come from, and how a step gets at them.

Small data sets lie on every device as a whole, and a mini-batch is a list of positions
in them (`benchmarks.data`). Large ones are read from a folder of image files while the
run goes on (`benchmarks.image_folder`). Either way the order, the crops and the flips
are functions of (seed, step): a run continues exactly where it stopped, on whatever
number of processes, from the number of steps done.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import data, image_folder
from benchmarks.config import Config

Tree = Any

IMAGE_FOLDER = "image_folder"


class Source(NamedTuple):
    """What a run needs to know of its images on the host.

    Attributes:
      num_classes: number of classes.
      image_shape: height, width and channels.
      num_train: number of images to train on.
      resident: arrays that every device holds during the whole run.
      element: shapes and dtypes of one image's entries in the mini-batches.
      batches: batches(first_step, last_step) yields this process's part of each
        mini-batch, arrays whose first axis is the image.
      evaluation_name: "validation" or "test".
      evaluation_batches: evaluation_batches(batch_size) yields this process's part of
        each batch of (images, labels) to evaluate on; label -1 is padding.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    num_train: int
    resident: Tree
    element: Tree
    batches: Callable[[int, int], Iterator[Tree]]
    evaluation_name: str
    evaluation_batches: Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]


# ------------------------------------------------------------------------------
#  On the host
# ------------------------------------------------------------------------------


def open_source(config: Config) -> Source:
    """Finds the images of a run, and reads those that are to be kept in memory."""
    if config.dataset == IMAGE_FOLDER:
        return _open_folder(config)
    return _open_memory(config)


def _open_memory(config: Config) -> Source:
    described = data.info(config.dataset)
    data.check_num_validation(config.num_validation, described.num_train)
    if described.url:
        data.check_files(config.dataset, config.data_dir)
    train, held_out = data.hold_out(
        data.load(config.dataset, "train", config.data_dir), config.num_validation
    )
    num_train = len(train.labels)

    def batches(first_step: int, last_step: int) -> Iterator[np.ndarray]:
        for step in range(first_step, last_step):
            yield part_of_process(
                data.batch_indices(config.seed, step, config.batch_size, num_train)
            )

    def evaluation_batches(batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        # The test set is not even read where held-out images are evaluated.
        split = held_out
        if not config.num_validation:
            split = data.load(config.dataset, "test", config.data_dir)
        for i in range(0, len(split.labels), batch_size):
            images, labels = (part[i : i + batch_size] for part in split)
            padding = batch_size - len(labels)
            images = np.pad(images, [(0, padding), (0, 0), (0, 0), (0, 0)])
            labels = np.pad(labels, (0, padding), constant_values=-1)
            yield part_of_process(images), part_of_process(labels)

    return Source(
        described.num_classes,
        described.image_shape,
        num_train,
        tuple(train),
        jax.ShapeDtypeStruct((), np.int32),
        batches,
        "validation" if config.num_validation else "test",
        evaluation_batches,
    )


def _open_folder(config: Config) -> Source:
    train = image_folder.scan(config.data_dir / "train")
    num_classes = len(train.classes)
    if config.num_validation:
        rest, held_out = data.hold_out_positions(
            len(train.labels), config.num_validation
        )
        evaluated, train = train.select(held_out), train.select(rest)
    else:
        evaluated = image_folder.scan(config.data_dir / "val", classes=train.classes)
    process = {
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "num_workers": config.num_workers,
    }

    def batches(first_step: int, last_step: int) -> Iterator[Tree]:
        return image_folder.training_batches(
            train,
            image_size=config.image_size,
            seed=config.seed,
            batch_size=config.batch_size,
            first_step=first_step,
            num_steps=last_step - first_step,
            **process,
        )

    def evaluation_batches(batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return image_folder.evaluation_batches(
            evaluated, image_size=config.image_size, batch_size=batch_size, **process
        )

    shape = config.image_size, config.image_size, 3
    return Source(
        num_classes,
        shape,
        len(train.labels),
        (),
        (jax.ShapeDtypeStruct(shape, np.uint8), jax.ShapeDtypeStruct((), np.int32)),
        batches,
        "validation" if config.num_validation else "test",
        evaluation_batches,
    )


def part_of_process(batch: np.ndarray) -> np.ndarray:
    """Cuts out what this process's devices hold of a batch shared out over all."""
    first, last = data.part_of_batch(
        len(batch), jax.process_index(), jax.process_count()
    )
    return batch[first:last]


# ------------------------------------------------------------------------------
#  On the device
# ------------------------------------------------------------------------------


def draw(config: Config, batch: Tree, key: jax.Array) -> Tree:
    """Adds a mini-batch's random crops, where they are cut on the device.

    They are drawn for the mini-batch as a whole, so that no image's crop depends on how
    the mini-batch is shared out.

    Args:
      config: the run.
      batch: arrays of shape (microbatches, microbatch, ...), from a source's `batches`.
      key: from `step_keys`.

    Returns:
      Tree of arrays of that shape; `take` wants a microbatch of it.
    """
    if config.dataset == IMAGE_FOLDER or not config.augment:
        return batch
    height = data.info(config.dataset).image_shape[0]
    crops = data.draw_crops(key, config.batch_size, height)
    shape = config.num_microbatches, config.batch_size // config.num_microbatches
    return batch, jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), crops)


def take(
    config: Config, resident: Tree, microbatch: Tree
) -> tuple[jax.Array, jax.Array]:
    """Images, as training sees them, and labels of one microbatch."""
    if config.dataset == IMAGE_FOLDER:
        return microbatch
    images, labels = resident
    if not config.augment:
        return images[microbatch], labels[microbatch]
    indices, crops = microbatch
    return data.take_crops(images, indices, crops), labels[indices]


def standardize(
    config: Config, images: jax.Array, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Turns uint8 images into what the network takes."""
    if config.dataset == IMAGE_FOLDER:
        return image_folder.normalize(images, dtype)
    return data.standardize(images, dtype)


class StepKeys(NamedTuple):
    """Random keys of one mini-batch.

    Attributes:
      crops: of its crops and flips.
      probes: of the probes of its microbatches, shape (microbatches,).
    """

    crops: jax.Array
    probes: jax.Array


def step_keys(
    config: Config, seed: jax.typing.ArrayLike, step: jax.typing.ArrayLike
) -> StepKeys:
    """Derives the keys of one mini-batch; `step` counts the steps before it."""
    crops, probes = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return StepKeys(crops, jax.random.split(probes, config.num_microbatches))
