"""Images in folders, as ImageNet is kept: an input pipeline on the host, with Grain.

    <root>/train/<class>/*.JPEG        training: random crop of random size, and flip
    <root>/val/<class>/*.JPEG          evaluation: centre crop

Step k of training takes the images `data.batch_indices(seed, k, ...)`, of which each
process reads its own contiguous part; crop and flip of an image depend on the seed and
on the image's position in the stream of all steps. So the state of the pipeline is the
number of the step: a run goes on at step k with the very batches it would have seen,
on any number of processes and workers.

Batches are uint8; `normalize` makes them the network's input on the device.
"""

import atexit
import dataclasses
import functools
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import data
from benchmarks.image_crops import Box, centre_crop, draw_crop, read_image
from benchmarks.image_listing import Listing
from benchmarks.image_listing import scan as scan

# Of ImageNet's training images, by channel, on a scale from 0 to 1.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)

# What one worker decodes at a time: few enough that a mini-batch is shared out evenly,
# and so many that what Grain does for each piece costs nothing.
CHUNK = 32
PADDING_LABEL = -1

Batch = tuple[np.ndarray, np.ndarray]
Batches = Generator[Batch, None, None]


# ------------------------------------------------------------------------------
#  Batches
# ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Chunks:
    """This process's part of some mini-batches in pieces of `CHUNK`: Grain's source.

    Attributes:
      listing: the images.
      image_size: width and height of the result.
      seed: of the order and crops of training; None: evaluation, in order.
      batch_size: images in a mini-batch, over all processes.
      first_step: the first mini-batch.
      num_steps: how many of them.
      start: of this process's part of a mini-batch.
      stop: the end of it.
    """

    listing: Listing
    image_size: int
    seed: int | None
    batch_size: int
    first_step: int
    num_steps: int
    start: int
    stop: int

    @property
    def per_step(self) -> int:
        return -(-(self.stop - self.start) // CHUNK)

    def __len__(self) -> int:
        return self.num_steps * self.per_step

    def __getitem__(self, item: int) -> Batch:
        steps, piece = divmod(item, self.per_step)
        step = self.first_step + steps
        begin = self.start + piece * CHUNK
        end = min(begin + CHUNK, self.stop)
        indices = self._indices(step)[begin:end]
        images = np.zeros((end - begin, self.image_size, self.image_size, 3), np.uint8)
        labels = np.full(end - begin, PADDING_LABEL, np.int32)
        for row, index in enumerate(indices.tolist()):
            images[row] = read_image(
                self.listing.path(index),
                self.image_size,
                self._crop(step * self.batch_size + begin + row),
            )
            labels[row] = self.listing.labels[index]
        return images, labels

    def _indices(self, step: int) -> np.ndarray:
        if self.seed is None:
            start = step * self.batch_size
            return np.arange(start, min(start + self.batch_size, len(self.listing)))
        return _batch_indices(self.seed, step, self.batch_size, len(self.listing))

    def _crop(self, position: int) -> Callable[[tuple[int, int]], tuple[Box, bool]]:
        if self.seed is None:
            return lambda size: (centre_crop(self.image_size, size), False)
        return functools.partial(draw_crop, self.seed, position)


# All pieces of a mini-batch need the same indices, which cost a copy of an epoch's.
_batch_indices = functools.lru_cache(maxsize=4)(data.batch_indices)


def training_batches(
    listing: Listing,
    *,
    image_size: int,
    seed: int,
    batch_size: int,
    first_step: int = 0,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 8,
) -> Batches:
    """Reads mini-batches to train on, cropped and mirrored at random.

    Args:
      listing: the training set.
      image_size: width and height of the images.
      seed: of the order of the images and of their crops.
      batch_size: images in a mini-batch, over all processes.
      first_step: the first mini-batch to read: 0, or where to go on.
      num_steps: how many mini-batches to read.
      process_index: which contiguous part of each mini-batch to read.
      process_count: into how many parts they are divided.
      num_workers: processes that decode images; 0: threads of this one do.
      num_threads: threads that decode images if there are no worker processes.

    Yields:
      Images, uint8 of shape (batch_size / process_count, image_size, image_size, 3),
      and labels, int32. About one mini-batch more waits in memory. `close()` of the
      generator ends the workers, as does dropping it.

    Raises:
      ValueError: an argument is out of range; or, while reading, an image is damaged.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if num_steps < 0 or first_step < 0:
        raise ValueError(
            "first_step and num_steps must not be negative, "
            f"got {first_step} and {num_steps}"
        )
    part = data.part_of_batch(batch_size, process_index, process_count)
    chunks = _Chunks(
        listing, image_size, seed, batch_size, first_step, num_steps, *part
    )
    return _read_batches(chunks, num_workers, num_threads)


def evaluation_batches(
    listing: Listing,
    *,
    image_size: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 8,
) -> Batches:
    """Reads all images once, in order, cropped at the centre (`centre_crop`).

    The last mini-batch is filled up with black images of label -1, so that every
    process gets as many mini-batches as the others, and all of one shape.

    Args:
      listing: the images.
      image_size: width and height of the images.
      batch_size: images in a mini-batch, over all processes.
      process_index: which contiguous part of each mini-batch to read.
      process_count: into how many parts they are divided.
      num_workers: as in `training_batches`.
      num_threads: as in `training_batches`.

    Yields:
      Images and labels as `training_batches` does.

    Raises:
      ValueError: an argument is out of range; or, while reading, an image is damaged.
    """
    part = data.part_of_batch(batch_size, process_index, process_count)
    num_steps = -(-len(listing) // batch_size)
    chunks = _Chunks(listing, image_size, None, batch_size, 0, num_steps, *part)
    return _read_batches(chunks, num_workers, num_threads)


def _read_batches(chunks: _Chunks, num_workers: int, num_threads: int) -> Batches:
    """Starts Grain's pipeline and puts its chunks together."""
    if len(chunks.listing) == 0:
        raise ValueError(f"{chunks.listing.folder} lists no images")
    if chunks.image_size < 1:
        raise ValueError(f"image_size must be positive, got {chunks.image_size}")
    if num_workers < 0 or num_threads < 1:
        raise ValueError(
            "num_workers must not be negative and num_threads must be positive, got "
            f"{num_workers} and {num_threads}"
        )
    import grain

    source: Any = chunks
    pieces = grain.MapDataset.source(source)
    if num_workers:
        from absl import flags

        # Grain reads flags there, which a program without absl has not parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # One thread a process: several would only wait for each other's lock. Through
        # pipes, not shared memory: no dearer here, containers have little of it, and
        # Grain (0.2.18) does not always give it back.
        pieces = grain.experimental.WithOptionsIterDataset(
            pieces.to_iter_dataset(grain.ReadOptions(0, 0)),
            grain.experimental.DatasetOptions(min_shm_size=sys.maxsize),
        )
        pieces = pieces.mp_prefetch(
            grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=1),
            worker_init_fn=_start_worker,
        )
        pieces = grain.experimental.ThreadPrefetchIterDataset(
            pieces, prefetch_buffer_size=chunks.per_step
        )
    else:
        ahead = grain.ReadOptions(num_threads, max(num_threads, chunks.per_step))
        pieces = pieces.to_iter_dataset(ahead)
    batches = _assemble(pieces, chunks)
    _open.add(batches)
    # Anew, to be the last one there and so the first to run: before multiprocessing's.
    atexit.unregister(_close_all)
    atexit.register(_close_all)
    return batches


# Closing needs modules that are gone when Python drops the generators it has left.
_open: weakref.WeakSet[Batches] = weakref.WeakSet()


def _close_all() -> None:
    for batches in list(_open):
        batches.close()


def _assemble(pieces: Any, chunks: _Chunks) -> Batches:
    local, size = chunks.stop - chunks.start, chunks.image_size
    iterator = iter(pieces)
    try:
        for _ in range(chunks.num_steps):
            # New arrays every time: a device may still be reading the old ones.
            images = np.empty((local, size, size, 3), np.uint8)
            labels = np.empty(local, np.int32)
            for begin in range(0, local, CHUNK):
                rows = slice(begin, begin + CHUNK)
                images[rows], labels[rows] = next(iterator)
            yield images, labels
    finally:
        iterator.close()


def _start_worker(index: int, count: int) -> None:
    """Prepares a worker process; it has imported JAX, and must leave devices alone."""
    del index, count
    jax.config.update("jax_platforms", "cpu")
    # These reach the whole group of processes. The main process decides: it may want
    # batches still, to reach a step at which it saves a checkpoint.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # If that is killed, nobody tells the workers, and they would wait for ever.
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# ------------------------------------------------------------------------------
#  Standardisation, on the device
# ------------------------------------------------------------------------------


def normalize(images: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Shifts and scales uint8 images by ImageNet's mean and deviation per channel.

        (x / 255 - mean) / deviation

    The usual constants for ImageNet, and for its subsets too, so that networks trained
    on them can be compared and exchanged. Arithmetic is float32; only the result is
    rounded to `dtype`.
    """
    mean, deviation = 255 * jnp.array(MEAN), 255 * jnp.array(DEVIATION)
    return ((images.astype(jnp.float32) - mean) / deviation).astype(dtype)
