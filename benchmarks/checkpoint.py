"""Checkpoints of a run: its last step and its best, written by Orbax."""

import dataclasses
import os
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from benchmarks.config import FREE, Config
from benchmarks.training_step import State


class Checkpoints:
    """The checkpoints in a run's `checkpoint_dir`.

    A checkpoint is everything that a step changes, and a record of the run: its name,
    its config, what it has spent. The position in the input is the number of steps
    done. It is written beside the training and renamed when complete, so that a run
    that is killed while it writes one finds the one before.

    Raises:
      ValueError: the last checkpoint is of a run with other settings.
    """

    def __init__(self, config: Config):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        assert config.checkpoint_dir is not None
        folder = config.checkpoint_dir
        if "://" not in folder:
            folder = os.path.abspath(folder)
        self._ocp = ocp
        self._config = settings(config)
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(1),
                        policies.BestN(
                            n=1,
                            get_metric_fn=lambda metrics: metrics["score"],
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
                cleanup_tmp_directories=True,
            ),
        )
        # What was saved beside the last state; None if there is no checkpoint.
        self.record = self._read_record(folder)

    def _read_record(self, folder: str) -> dict[str, Any] | None:
        step = self._manager.latest_step()
        if step is None:
            return None
        args = self._ocp.args
        record = self._manager.restore(
            step, args=args.Composite(record=args.JsonRestore())
        )["record"]
        for name, value in self._config.items():
            saved = record["config"].get(name, value)
            if name not in FREE and saved != value:
                raise ValueError(
                    f"{folder} holds a run with {name} {saved!r}, this one has "
                    f"{value!r}: pass another checkpoint_dir, or the same {name} to go "
                    "on with that run"
                )
        return record

    def restore(self, like: State) -> State:
        """Reads the last checkpoint, onto the devices that `like` is on.

        Args:
          like: a state of the same run; its values do not matter.

        Returns:
          The state that was saved; `like` if there is no checkpoint.
        """
        if self.record is None:
            return like
        args = self._ocp.args
        like = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            self._manager.latest_step(),
            args=args.Composite(state=args.StandardRestore(like)),
        )
        return restored["state"]

    def save(
        self, step: int, state: State, record: dict[str, Any], score: float | None
    ) -> None:
        """Starts to write a checkpoint; a step may change the state meanwhile.

        Args:
          step: steps done.
          state: the state after them.
          record: what to know of the run besides; goes into a JSON file.
          score: the higher, the better the checkpoint; None if it is not known.
        """
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(state),
                record=args.JsonSave({**record, "config": self._config}),
            ),
            metrics=None if score is None else {"score": score},
            force=True,
        )

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()


def settings(config: Config) -> dict[str, Any]:
    """The settings of a run as JSON has them."""
    return {
        name: value if isinstance(value, (int, float, str, type(None))) else str(value)
        for name, value in dataclasses.asdict(config).items()
    }


class StopRequest:
    """Notices SIGTERM or Ctrl-C, so that a run can save before it stops.

    Among several processes the one that is told tells the others, and all stop after
    the same step. (Then the signal is JAX's to handle; Ctrl-C does what it always did.)
    """

    def __init__(self):
        self._asked = False
        self._previous = {}
        if not jax.distributed.is_initialized():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        # The second one is not to be waited for.
        signal.signal(number, self._previous[number])

    def reached(self, step: int) -> bool:
        """Whether to stop after `step` steps; every process must ask at every step."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def close(self) -> None:
        """Leaves the signals as they were."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
