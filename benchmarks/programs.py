"""What a run of training compiles, once for all runs that differ in numbers alone."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import evaluation, metrics, models, optimizers
from benchmarks.config import Config
from benchmarks.training_step import (
    State,
    hyperparameters,
    init_state,
    make_step,
    optimizer,
)

Tree = Any


class Programs(NamedTuple):
    """Everything that a run compiles.

    Attributes:
      init: init(hyper) -> initial state.
      step: a step and what it costs, in gradients of a mini-batch.
      refresh_step: the same for the steps that estimate the Hessian's diagonal.
      statistics: see `evaluation.make_statistics`.
      sums: see `evaluation.evaluate`.
    """

    init: Callable[..., State]
    step: tuple[Callable[..., Any], float]
    refresh_step: tuple[Callable[..., Any], float]
    statistics: Callable[..., Any]
    sums: Callable[..., Any]


def structure(config: Config) -> Config:
    """What of a config is part of its programs; the rest has one value for all."""
    setting = None if config.optimizer_setting is None else 0.0
    return Config(
        optimizer_setting=setting,
        **{
            name: getattr(config, name)
            for name in (
                *("dataset", "model", "image_size", "optimizer", "augment"),
                *("batch_size", "num_microbatches", "ema_decay"),
            )
        },
    )


# Runs that differ in numbers alone, as in a sweep, are compiled once.
@functools.lru_cache(maxsize=2)
def compile_programs(
    config: Config,
    dtype: str,
    mesh: Mesh,
    num_classes: int,
    image_shape: tuple[int, int, int],
    resident_like: Tree,
    element: Tree,
) -> Programs:
    """Compiles what a run needs; nothing here depends on values in the config."""
    everywhere, shared_out = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    model = models.build(config.model, num_classes, np.dtype(dtype))
    hyper = hyperparameters(config, np.float32(0))
    shape = config.num_microbatches, config.batch_size // config.num_microbatches
    batch_like = jax.tree.map(lambda x: like(x, shared_out, shape), element)

    def init(hyper):
        key = jax.random.key(hyper.seed)
        return init_state(model, optimizer(config, hyper), image_shape, key)

    init = jax.jit(init, out_shardings=everywhere)
    state_like = jax.tree.map(
        lambda x: like(x, everywhere), jax.eval_shape(init, hyper)
    )

    # What a step costs in gradients is counted against one that takes a gradient and
    # nothing else.
    nothing = optax.with_extra_args_support(optax.identity())
    plainest = dataclasses.replace(config, optimizer="sgd")
    gradient_step = make_step(plainest, model, lambda *_: nothing, mesh)
    gradient_state = state_like._replace(opt_state=nothing.init({}))
    arguments = resident_like, batch_like, hyper
    gradient_flops = metrics.flops(
        jax.jit(gradient_step).lower(gradient_state, *arguments)
    )

    def compile_step(estimator: str | None) -> tuple[Callable[..., Any], float]:
        step = make_step(config, model, optimizer, mesh, estimator)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=everywhere)
        lowered = jitted.lower(state_like, *arguments)
        return lowered.compile(), metrics.flops(lowered) / gradient_flops

    estimator = optimizers.ESTIMATORS.get(config.optimizer)
    plain = compile_step(None)
    return Programs(
        init,
        plain,
        plain if estimator is None else compile_step(estimator),
        jax.jit(evaluation.make_statistics(config, model, mesh)),
        jax.jit(
            functools.partial(evaluation.evaluate_batch, config, model),
            out_shardings=everywhere,
        ),
    )


def like(
    x: Any, sharding: NamedSharding, more: tuple[int, ...] = ()
) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, with `more` axes before its own, and a layout."""
    return jax.ShapeDtypeStruct((*more, *x.shape), x.dtype, sharding=sharding)
