"""The settings of a run."""

import dataclasses
import importlib
import math
import pathlib
import pkgutil

from benchmarks import configs

# Settings that change how a run is done, but not what comes out of it.
FREE = (
    "data_dir",
    "num_workers",
    "num_devices",
    "log_every",
    "checkpoint_dir",
    "checkpoint_every",
    "out",
    "tensorboard",
    "progress",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run; its result depends on these settings, not on the machine.

    Attributes:
      dataset: a key of `benchmarks.data.DATASETS`, or image_folder: JPEG or PNG files
        in <data_dir>/train/<class>/ and <data_dir>/val/<class>/.
      data_dir: the folder that holds the data set's official folder.
      image_size: height and width of the crops out of an image_folder's files.
      num_workers: processes of this host that read an image_folder's files.
      num_validation: images held out of the training set to choose settings by. If 0,
        the run is evaluated on the test set; otherwise on these, and the test set is
        not read.
      model: mlp, vit or resnet<6n+2> for small images, or resnet50.
      dtype: of activations: float32, bfloat16, or auto (by platform).
      optimizer: a name in `benchmarks.optimizers`.
      learning_rate: the schedule's maximum; None: .1 per 128 images of the mini-batch.
      optimizer_setting: the optimizer's own parameter, named in
        `benchmarks.optimizers.SETTINGS`; None: its default.
      schedule: reference, linear, cosine or constant.
      warmup: part of the run in which the learning rate rises; None: the schedule's
        own.
      batch_size: images in a mini-batch, over all devices.
      num_microbatches: parts of a mini-batch with batch statistics of their own
        ("virtual workers"), shared out evenly over the devices.
      num_devices: how many to use; None: all.
      refresh_every: steps from one estimate of the Hessian's diagonal to the next, for
        optimizers that use one.
      num_epochs: length of the run in passes over the training set.
      l2: coefficient of half the sum of squares of the parameters, in the objective.
      weight_decay: decoupled; of every weight but biases and those of batch
        normalisation, learning rate x this x the weight is subtracted in a step.
      label_smoothing: probability spread evenly over the classes.
      augment: random crops and flips (an image_folder always has them).
      ema_decay: largest decay of the averaged weights that are evaluated.
      eval_statistics: batch statistics to evaluate with: running (the averages kept
        in training) or recomputed (of the averaged weights, on one more mini-batch).
      give_up_at: part of the run, rounded up to ten steps, after which it is given up
        unless the cross-entropy, of the last step or on average over the last ten, is
        below that of guessing, log(classes). None, or past half of the run: never.
      seed: of the initial weights, the order of the images and their crops.
      log_every: steps between looks at the metrics; every step's are recorded.
      checkpoint_dir: folder of this run's checkpoints: of its last step, and of the
        best one by held-out images, or by cross-entropy where there are none. A run
        that finds checkpoints there goes on from the last. None: none are kept.
      checkpoint_every: steps from one checkpoint to the next.
      out: folder for results and curves.
      tensorboard: write TensorBoard events besides (needs tensorboardX).
      progress: show a progress bar.
    """

    dataset: str = "digits"
    data_dir: pathlib.Path = pathlib.Path("data")
    image_size: int = 224
    num_workers: int = 8
    num_validation: int = 0
    model: str = "mlp"
    dtype: str = "auto"
    optimizer: str = "momentum"
    learning_rate: float | None = None
    optimizer_setting: float | None = None
    schedule: str = "reference"
    warmup: float | None = None
    batch_size: int = 128
    num_microbatches: int = 1
    num_devices: int | None = None
    refresh_every: int = 10
    num_epochs: float = 30.0
    l2: float = 2e-4
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    augment: bool = False
    ema_decay: float = 0.9999
    eval_statistics: str = "recomputed"
    give_up_at: float | None = None
    seed: int = 0
    log_every: int = 10
    checkpoint_dir: str | None = None
    checkpoint_every: int = 500
    out: pathlib.Path = pathlib.Path("runs")
    tensorboard: bool = False
    progress: bool = True

    @property
    def peak_learning_rate(self) -> float:
        """The schedule's maximum."""
        if self.learning_rate is None:
            return 0.1 * self.batch_size / 128
        return self.learning_rate

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "num_microbatches",
            "refresh_every",
            "num_epochs",
            "log_every",
            "checkpoint_every",
            "image_size",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be positive and finite, got {getattr(self, name)}"
                )
        for name in (
            "num_validation",
            "num_workers",
            "l2",
            "weight_decay",
            "seed",
            "peak_learning_rate",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must not be negative, nor infinite, "
                    f"got {getattr(self, name)}"
                )
        if self.seed >= 2**31:
            raise ValueError(f"seed must be below 2^31, got {self.seed}")
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("warmup", "give_up_at"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        if self.eval_statistics not in ("running", "recomputed"):
            raise ValueError(
                "eval_statistics must be 'running' or 'recomputed', "
                f"got {self.eval_statistics!r}"
            )
        if self.batch_size % self.num_microbatches:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by "
                f"num_microbatches {self.num_microbatches}"
            )

    def microbatches_per_device(self, num_devices: int) -> int:
        """Says how many microbatches each device computes, one after the other."""
        if self.num_microbatches % num_devices:
            raise ValueError(
                f"num_microbatches {self.num_microbatches} cannot be shared out over "
                f"{num_devices} devices: make it a multiple of {num_devices} that "
                f"divides batch_size {self.batch_size}, or set num_devices"
            )
        return self.num_microbatches // num_devices

    def num_steps(self, num_train: int) -> int:
        """Mini-batches in `num_epochs` passes over `num_train` images."""
        steps = int(self.num_epochs * num_train // self.batch_size)
        if steps < 1:
            raise ValueError(
                f"{self.num_epochs} epochs of {num_train} images are less than one "
                f"mini-batch of {self.batch_size}: raise num_epochs"
            )
        return steps


def names() -> list[str]:
    """Lists the configs in benchmarks/configs."""
    return sorted(module.name for module in pkgutil.iter_modules(configs.__path__))


def named(name: str) -> Config:
    """Returns the config `benchmarks/configs/<name>.py`."""
    if name not in names():
        raise ValueError(f"unknown config {name!r}; known: {', '.join(names())}")
    return importlib.import_module(f"benchmarks.configs.{name}").get_config()
