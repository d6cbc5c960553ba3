"""The optimizers that the benchmarks compare, by name.

Each entry takes a learning rate, a number or a schedule, and returns a transformation
that accepts the extra arguments of a step (`value`, `grad`), whether it needs them or
not. To add one, add an entry to `OPTIMIZERS`, and to `SETTINGS` if it has a parameter
of its own that is worth choosing.

The L2 penalty is part of the objective and decoupled weight decay is added by `build`,
the same for all, so LARS and LAMB have none of their own. AdamW keeps the little (1e-4)
that Optax gives it by default.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
import optax.contrib

from optax_nlcg import (
    nlcg,
    reference,
    scale_by_curvature_line_search,
    scale_by_hessian_diagonal,
    scale_by_online_line_search,
    scale_by_orthogonalization,
    scale_by_step_line_search,
)


def _is_matrix(params: optax.Params) -> optax.Params:
    """Biases and batch norm's parameters take no layer-wise rate, as in MLPerf."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _nlcg(
    learning_rate: optax.ScalarOrSchedule, largest_beta: float = 1.0, **arguments: Any
) -> optax.GradientTransformation:
    return nlcg(learning_rate, beta_bounds=(0.0, largest_beta), **arguments)


def _constant_beta(
    learning_rate: optax.ScalarOrSchedule, beta: float = 0.9, **arguments: Any
) -> optax.GradientTransformation:
    # A rule that is always one, since a bound may be an input of the compiled step.
    return _nlcg(learning_rate, beta, beta_rule=1.0, **arguments)


def _with_hessian(
    learning_rate: optax.ScalarOrSchedule, floor: float = 0.1
) -> optax.GradientTransformation:
    preconditioner = scale_by_hessian_diagonal(estimator=None, floor=floor)
    return nlcg(learning_rate, preconditioner=preconditioner)


def kernels_as_matrices(params: optax.Params) -> optax.Params:
    """Says to Muon that a kernel is a matrix with a column for each output."""
    return jax.tree.map(
        lambda leaf: (
            optax.contrib.MuonDimensionNumbers(
                tuple(range(leaf.ndim - 1)), leaf.ndim - 1
            )
            if leaf.ndim > 1
            else None
        ),
        params,
    )


def _muon(
    learning_rate: optax.ScalarOrSchedule, beta: float = 0.95
) -> optax.GradientTransformation:
    """Muon on every kernel; biases by Adam."""
    return optax.contrib.muon(
        learning_rate,
        beta=beta,
        muon_weight_dimension_numbers=kernels_as_matrices,
        # Updates as large as Adam's, so that one learning rate suits both kinds.
        consistent_rms=0.2,
    )


def _schedule_free(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9
) -> optax.GradientTransformation:
    """Schedule-free SGD; its learning rate wants no decay."""
    return optax.contrib.schedule_free(optax.sgd(learning_rate), learning_rate, b1=b1)


_NONE = optax.identity()
# Adam's without its average of gradients, and without the buffer for that.
ADAM_SCALING = optax.scale_by_rms(0.999, eps_in_sqrt=False, bias_correction=True)
_MUON = scale_by_orthogonalization()

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    # The paper's optimizer: Fletcher-Reeves, diagonal BFGS, step line search.
    "nlcg": _nlcg,
    "nlcg_online": partial(_nlcg, line_search=scale_by_online_line_search()),
    # Other rules for beta.
    "nlcg_pr": partial(_nlcg, beta_rule="polak_ribiere"),
    "nlcg_hs": partial(_nlcg, beta_rule="hestenes_stiefel"),
    "nlcg_dy": partial(_nlcg, beta_rule="dai_yuan"),
    "nlcg_hz": partial(_nlcg, beta_rule="hager_zhang"),
    # Its parts: the direction alone, with the search, with the preconditioner.
    "nlcg_fr": partial(_nlcg, preconditioner=_NONE, line_search=_NONE),
    "nlcg_fr_step": partial(_nlcg, preconditioner=_NONE),
    "nlcg_fr_bfgs": partial(_nlcg, line_search=_NONE),
    # One part changed: nothing taken back, and heavy ball in place of a rule.
    "nlcg_no_rollback": partial(
        _nlcg, line_search=scale_by_step_line_search(rollback=False)
    ),
    "nlcg_constant": _constant_beta,
    # Curvature from the Hessian in place of BFGS.
    "nlcg_hutchinson": _with_hessian,
    "nlcg_gnb": _with_hessian,
    # The length of a step from the curvature along it: no learning rate, so that the
    # schedule changes nothing.
    "nlcg_curvature": partial(
        nlcg,
        preconditioner=_NONE,
        line_search=scale_by_curvature_line_search(),
    ),
    # Preconditioners of others.
    "nlcg_adam": partial(_nlcg, preconditioner=ADAM_SCALING),
    "nlcg_adam_fr": partial(_nlcg, preconditioner=ADAM_SCALING, line_search=_NONE),
    "nlcg_adam_constant": partial(_constant_beta, preconditioner=ADAM_SCALING),
    "nlcg_muon": partial(_nlcg, preconditioner=_MUON),
    "nlcg_muon_constant": partial(_constant_beta, preconditioner=_MUON),
    "nlcg_muon_pr": partial(_nlcg, beta_rule="polak_ribiere", preconditioner=_MUON),
    "nlcg_muon_nesterov": partial(_nlcg, preconditioner=_MUON, nesterov=True),
    "nlcg_muon_fr": partial(_nlcg, preconditioner=_MUON, line_search=_NONE),
    "nlcg_muon_no_rollback": partial(
        _nlcg,
        preconditioner=_MUON,
        line_search=scale_by_step_line_search(rollback=False),
    ),
    # Muon's metric and nothing of the past.
    "steepest_muon": partial(_nlcg, largest_beta=0.0, preconditioner=_MUON),
    # The authors' code as it runs.
    "ml_ncg": reference.ml_ncg,
    "sgd": optax.sgd,
    "sgd_step": lambda learning_rate: optax.chain(
        optax.sgd(learning_rate), scale_by_step_line_search()
    ),
    "momentum": partial(optax.sgd, momentum=0.9),
    "nesterov": partial(optax.sgd, momentum=0.9, nesterov=True),
    "rmsprop": partial(optax.rmsprop, decay=0.9, momentum=0.9, eps=1.0),
    "adamw": optax.adamw,
    "adamw_b1": optax.adamw,
    "lars": partial(
        optax.lars, weight_decay=0.0, trust_ratio_mask=_is_matrix, momentum=0.9
    ),
    "lamb": optax.lamb,
    "muon": _muon,
    "schedule_free": _schedule_free,
}

# What `optimizer_setting` is, for those that have one.
SETTINGS = {
    **dict.fromkeys(
        (
            *("nlcg", "nlcg_online", "nlcg_pr", "nlcg_hs", "nlcg_dy", "nlcg_hz"),
            *("nlcg_fr", "nlcg_fr_step", "nlcg_fr_bfgs", "nlcg_no_rollback"),
            *("nlcg_adam", "nlcg_adam_fr", "nlcg_muon", "nlcg_muon_pr"),
            *("nlcg_muon_fr", "nlcg_muon_no_rollback", "nlcg_muon_nesterov"),
        ),
        "largest_beta",
    ),
    "nlcg_constant": "beta",
    "nlcg_adam_constant": "beta",
    "nlcg_muon_constant": "beta",
    "nlcg_hutchinson": "floor",
    "nlcg_gnb": "floor",
    "momentum": "momentum",
    "nesterov": "momentum",
    "rmsprop": "decay",
    "adamw": "b2",
    "adamw_b1": "b1",
    "lars": "momentum",
    "lamb": "b2",
    "muon": "beta",
    "schedule_free": "b1",
}

# Which estimate of the Hessian's diagonal an optimizer is given, every
# `refresh_every` steps.
ESTIMATORS = {"nlcg_hutchinson": "hutchinson", "nlcg_gnb": "gauss_newton_bartlett"}


def build(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    setting: float | jax.Array | None = None,
    weight_decay: float | jax.Array = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Builds an optimizer by name.

    Args:
      name: a key of `OPTIMIZERS`.
      learning_rate: a number or a schedule.
      setting: the parameter that `SETTINGS` names; None: its default.
      weight_decay: decoupled, of weights of two and more dimensions; needs the
        learning rate of the step as a number.

    Raises:
      ValueError: there is no such optimizer, or it has no such parameter.
    """
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"unknown optimizer {name!r}; known: {known}")
    arguments = {}
    if setting is not None:
        if name not in SETTINGS:
            raise ValueError(
                f"optimizer_setting is for {', '.join(SETTINGS)}; {name} has none, "
                f"got {setting}"
            )
        arguments[SETTINGS[name]] = setting
    optimizer = OPTIMIZERS[name](learning_rate, **arguments)
    decay = optax.identity()
    if not callable(learning_rate):
        decay = _decay_weights(learning_rate, weight_decay)
    return optax.with_extra_args_support(optax.chain(optimizer, decay))


def _decay_weights(
    rate: float | jax.Array, weight_decay: float | jax.Array
) -> optax.GradientTransformation:
    """Decoupled decay, after the optimizer, whose line search it does not concern."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda u, w: u - rate * weight_decay * w if w.ndim > 1 else u,
            updates,
            params,
        )
    )


def evaluated(name: str, opt_state: Any, params: optax.Params) -> optax.Params:
    """The parameters to evaluate, where they are not those that are trained."""
    if name == "schedule_free":
        return optax.contrib.schedule_free_eval_params(opt_state[0], params)
    return params
