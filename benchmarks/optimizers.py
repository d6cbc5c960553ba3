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

from optax_nlcg import (
    nlcg,
    reference,
    scale_by_curvature_line_search,
    scale_by_diagonal_bfgs,
    scale_by_hessian_diagonal,
    scale_by_online_line_search,
    scale_by_step_line_search,
)


def _is_matrix(params: optax.Params) -> optax.Params:
    """Biases and batch norm's parameters take no layer-wise rate, as in MLPerf."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _fletcher_reeves(
    learning_rate: optax.ScalarOrSchedule,
    preconditioner: optax.GradientTransformation | None = None,
    line_search: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """NLCG less the parts that are not given."""
    return nlcg(
        learning_rate,
        preconditioner=preconditioner or optax.identity(),
        line_search=line_search or optax.identity(),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    # The paper's optimizer: Fletcher-Reeves, diagonal BFGS, step line search.
    "nlcg": nlcg,
    "nlcg_online": partial(nlcg, line_search=scale_by_online_line_search()),
    # Other rules for beta.
    "nlcg_pr": partial(nlcg, beta_rule="polak_ribiere"),
    "nlcg_hs": partial(nlcg, beta_rule="hestenes_stiefel"),
    "nlcg_dy": partial(nlcg, beta_rule="dai_yuan"),
    "nlcg_hz": partial(nlcg, beta_rule="hager_zhang"),
    # Its parts: the direction alone, with the search, with the preconditioner.
    "nlcg_fr": _fletcher_reeves,
    "nlcg_fr_step": partial(_fletcher_reeves, line_search=scale_by_step_line_search()),
    "nlcg_fr_bfgs": partial(_fletcher_reeves, preconditioner=scale_by_diagonal_bfgs()),
    # Curvature from the Hessian in place of BFGS.
    "nlcg_hutchinson": partial(
        nlcg, preconditioner=scale_by_hessian_diagonal(estimator=None)
    ),
    "nlcg_gnb": partial(nlcg, preconditioner=scale_by_hessian_diagonal(estimator=None)),
    # The length of a step from the curvature along it: no learning rate, so that the
    # schedule changes nothing.
    "nlcg_curvature": partial(
        nlcg,
        preconditioner=optax.identity(),
        line_search=scale_by_curvature_line_search(),
    ),
    # The authors' code as it runs.
    "ml_ncg": reference.ml_ncg,
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

# Which estimate of the Hessian's diagonal an optimizer is given, every
# `refresh_every` steps.
ESTIMATORS = {"nlcg_hutchinson": "hutchinson", "nlcg_gnb": "gauss_newton_bartlett"}


def build(
    name: str, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """Builds an optimizer by name, or raises ValueError with the names there are."""
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"unknown optimizer {name!r}; known: {known}")
    return optax.with_extra_args_support(OPTIMIZERS[name](learning_rate))
