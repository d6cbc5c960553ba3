"""Every public transformation as a complete optimizer, and a problem to train on."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

import optax_nlcg

descent = optax.scale_by_learning_rate


def direction(*args, **options):
    stage = optax_nlcg.scale_by_conjugate_direction(*args, **options)
    return optax.chain(stage, descent(0.1))


def searched(search):
    return optax.chain(descent(0.1), search)


OPTIMIZERS = {
    "direction": direction,
    "direction_hz": lambda: direction(
        optax_nlcg.scale_by_diagonal_bfgs(),
        beta_rule="hager_zhang",
        restart_every=5,
        restart_threshold=0.2,
    ),
    "bfgs": lambda: optax.chain(optax_nlcg.scale_by_diagonal_bfgs(), descent(0.1)),
    "diagonal_given": lambda: direction(
        optax_nlcg.scale_by_hessian_diagonal(estimator=None), nesterov=True
    ),
    "diagonal_estimated": lambda: direction(
        optax_nlcg.scale_by_hessian_diagonal(update_every=2)
    ),
    "orthogonalization": lambda: optax.chain(
        optax_nlcg.scale_by_conjugate_direction(
            optax_nlcg.scale_by_orthogonalization(), beta_bounds=(0.0, 0.5)
        ),
        descent(lambda count: 0.9**count),
    ),
    "step": lambda: searched(optax_nlcg.scale_by_step_line_search()),
    "online": lambda: searched(optax_nlcg.scale_by_online_line_search(rollback=False)),
    "curvature": lambda: searched(
        optax_nlcg.scale_by_curvature_line_search(update_every=2)
    ),
    "hager_zhang": lambda: searched(optax_nlcg.scale_by_hager_zhang_line_search()),
    "nlcg": lambda: optax_nlcg.nlcg(0.1),
    "nlcg_decay": lambda: optax_nlcg.nlcg(
        0.1,
        preconditioner=optax.identity(),
        weight_decay=0.01,
        mask=lambda params: jax.tree.map(lambda x: jnp.ndim(x) > 1, params),
    ),
    "nonlinear_cg": optax_nlcg.nonlinear_cg,
    "limited_memory_cg": lambda: optax_nlcg.limited_memory_cg(3),
    "multi_steps": lambda: optax_nlcg.multi_steps(optax_nlcg.nlcg(0.1), 2),
    "over_shards": lambda: optax_nlcg.parallel.over_shards(
        optax_nlcg.nlcg(0.1), PartitionSpec()
    ),
    "ml_ncg": lambda: optax_nlcg.reference.ml_ncg(0.1),
    "ml_ncg_pr_lars": lambda: optax_nlcg.reference.ml_ncg(
        0.1, update_rule="PR", line_search="Online", lars_lr=0.1
    ),
    "lars": lambda: optax.chain(optax_nlcg.reference.scale_by_lars(1.0), descent(0.1)),
}

NOT_ON_GIVEN = ("diagonal_estimated",)
"""Those that estimate the diagonal themselves, unless it is given."""


class Outcome(NamedTuple):
    """What a run leaves: parameters and state at its end, its losses and updates."""

    params: Any
    state: Any
    losses: np.ndarray
    updates: Any


def params_of(dtype="float32", seed=0):
    """Parameters of a dtype; ``"mixed"`` has three of them."""
    rng = np.random.default_rng(seed)

    def leaf(shape, dtype):
        x = rng.normal(size=shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        return jnp.asarray(x, dtype)

    if dtype == "mixed":
        kinds = (jnp.float32, jnp.bfloat16, jnp.complex64)
    else:
        kinds = (jnp.dtype(dtype),) * 3
    a, b, c = kinds
    return {"w": leaf((3, 4), a), "b": [leaf((4,), b), leaf((1,), c)]}


def loss(params):
    """A convex function, least at ones: a quadratic and a little more."""
    total = 0.0
    for weight, leaf in enumerate(jax.tree.leaves(params), 1):
        wide = jnp.result_type(leaf, jnp.float32)
        x = jnp.abs(jnp.asarray(leaf).astype(wide) - 1)
        total += weight * jnp.sum(x**2 / 2 + 0.01 * x**4)
    return jnp.asarray(total)


def curvature(params):
    """Something like the diagonal of the loss's Hessian."""

    def leaf_curvature(x):
        both = 1 + 1j if jnp.iscomplexobj(x) else 1
        return (both * (2 + jnp.abs(x))).astype(x.dtype)

    return jax.tree.map(leaf_curvature, params)


def extra_args(name, params, value, grads, fun=loss):
    """All that the library's stages may ask for, for any of them."""
    extra = {"value": value, "grad": grads, "value_fn": fun}
    if name not in NOT_ON_GIVEN:
        extra["hessian_diagonal"] = curvature(params)
    return extra


def make_step(name, tx, fun=loss, **more) -> Callable[..., Any]:
    """One step of training: ``(params, state) -> (params, state, value, updates)``."""

    def step(params, state):
        value, grads = jax.value_and_grad(fun)(params)
        # JAX's gradients of complex parameters are conjugate.
        updates, state = tx.update(
            jax.tree.map(jnp.conj, grads),
            state,
            params,
            **extra_args(name, params, value, grads, fun),
            **more,
        )
        return optax.apply_updates(params, updates), state, value, updates

    return step


# Compilation is what takes time here.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def train(name, tx, params, steps, fun=loss, **more) -> Outcome:
    return run(jit(make_step(name, tx, fun, **more)), tx, params, steps)


def run(step, tx, params, steps) -> Outcome:
    state, losses, updates = tx.init(params), [], None
    for _ in range(steps):
        params, state, value, updates = step(params, state)
        losses.append(float(value))
    return Outcome(params, state, np.array(losses), updates)


@functools.cache
def compiled(name):
    """An optimizer and its step, compiled once for all tests."""
    tx = OPTIMIZERS[name]()
    return tx, jit(make_step(name, tx))


@functools.cache
def unwrapped(name, steps=8) -> Outcome:
    """The run that others are compared with."""
    tx, step = compiled(name)
    return run(step, tx, params_of(), steps)
