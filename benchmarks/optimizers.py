"""The optimizers that the benchmarks compare, by name.

Each entry takes a learning rate, a number or a schedule, and returns a transformation
that accepts the extra arguments of a step (`value`, `grad`), whether it needs them or
not. To add one, add an entry to `OPTIMIZERS`.

The L2 penalty is part of the objective, the same for all, so LARS and LAMB have none
of their own. AdamW keeps the decoupled weight decay that Optax gives it by default.
"""

from collections.abc import Callable
from functools import partial

import jax
import optax


def _is_matrix(params: optax.Params) -> optax.Params:
    """Biases and batch norm's parameters take no layer-wise rate, as in MLPerf."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "nesterov": partial(optax.sgd, momentum=0.9, nesterov=True),
    "rmsprop": partial(optax.rmsprop, decay=0.9, momentum=0.9, eps=1.0),
    "adamw": optax.adamw,
    "lars": partial(
        optax.lars, weight_decay=0.0, trust_ratio_mask=_is_matrix, momentum=0.9
    ),
    "lamb": optax.lamb,
}


def build(
    name: str, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """Builds an optimizer by name, or raises ValueError with the names there are."""
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"unknown optimizer {name!r}; known: {known}")
    return optax.with_extra_args_support(OPTIMIZERS[name](learning_rate))
