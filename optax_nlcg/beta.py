r"""Rules for the conjugate-gradient coefficient: pure functions of a few scalars.

With :math:`z = P g` the preconditioned gradient, :math:`d` the direction,
:math:`y_k = g_k - g_{k-1}` and a minus sign for "of the previous step", a rule gives
:math:`\beta` of

.. math:: d_k = -z_k + \beta_k d_{k-1}.

On a quadratic with exact steps all rules are the same, linear conjugate gradients; they
differ in how they fare elsewhere. A rule does not know about trees or state. The
stage that applies it takes all inner products in one pass and hands them over.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_nlcg import arguments


class InnerProducts(NamedTuple):
    """What a rule may use. All are real scalars of one dtype, float32 or wider.

    Attributes:
        gz: :math:`g'z > 0`.
        gz_prev: :math:`g_-'z_-`, of the previous step.
        gd_prev: :math:`g'd_-`, the new gradient along the previous direction.
        slope_prev: :math:`g_-'d_- < 0`, the previous gradient along its own direction.
        yd_prev: :math:`y'd_-`.
        yz: :math:`y'z`; zero where no previous gradient is kept.
        ypy: :math:`y'Py`; zero unless the rule asks for it.
        metric_prev: :math:`d_-'P^{-1}d_-`, the previous direction's squared length.
    """

    gz: jax.Array
    gz_prev: jax.Array
    gd_prev: jax.Array
    slope_prev: jax.Array
    yd_prev: jax.Array
    yz: jax.Array
    ypy: jax.Array
    metric_prev: jax.Array


class BetaRule(NamedTuple):
    """A rule and what it costs.

    Attributes:
        compute: the coefficient from the inner products, all scalars.
        needs_previous_gradient: whether it uses ``yz``: the stage then keeps a copy of
            the previous gradient.
        needs_preconditioned_difference: whether it uses ``ypy``: the stage then applies
            the preconditioner a second time, to ``y``.

    Examples:
        A rule of one's own, Fletcher-Reeves damped by a half:

        >>> import optax_nlcg
        >>> rule = optax_nlcg.BetaRule(lambda p: 0.5 * p.gz / p.gz_prev)
        >>> tx = optax_nlcg.scale_by_conjugate_direction(beta_rule=rule)
    """

    compute: Callable[[InnerProducts], jax.Array]
    needs_previous_gradient: bool = False
    needs_preconditioned_difference: bool = False


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """A quotient that is 0, a restart, where it is not a finite number.

    No epsilon: that would make rules depend on the scale of the loss, and switch
    conjugacy off near a minimum, where all of these products are small.
    """
    safe = jnp.where(denominator == 0, 1, denominator)
    quotient = jnp.where(denominator == 0, 0, numerator / safe)
    return jnp.where(jnp.isfinite(quotient), quotient, 0)


def fletcher_reeves(p: InnerProducts) -> jax.Array:
    """:math:`g'z / g_-'z_-` (Fletcher & Reeves 1964)."""
    return _ratio(p.gz, p.gz_prev)


def _polak_ribiere_unclipped(p: InnerProducts) -> jax.Array:
    return _ratio(p.yz, p.gz_prev)


def polak_ribiere(p: InnerProducts) -> jax.Array:
    """:math:`max(0, z'y / g_-'z_-)` (Polak & Ribiere 1969; Gilbert & Nocedal 1992)."""
    return jnp.maximum(0, _polak_ribiere_unclipped(p))


def _hestenes_stiefel_unclipped(p: InnerProducts) -> jax.Array:
    return _ratio(p.yz, p.yd_prev)


def hestenes_stiefel(p: InnerProducts) -> jax.Array:
    """:math:`max(0, z'y / d_-'y)` (Hestenes & Stiefel 1952)."""
    return jnp.maximum(0, _hestenes_stiefel_unclipped(p))


def dai_yuan(p: InnerProducts) -> jax.Array:
    """:math:`g'z / d_-'y` (Dai & Yuan 1999)."""
    return _ratio(p.gz, p.yd_prev)


def liu_storey(p: InnerProducts) -> jax.Array:
    """:math:`z'y / (-d_-'g_-)` (Liu & Storey 1991)."""
    return _ratio(p.yz, -p.slope_prev)


def conjugate_descent(p: InnerProducts) -> jax.Array:
    """:math:`g'z / (-d_-'g_-)` (Fletcher 1987)."""
    return _ratio(p.gz, -p.slope_prev)


def hs_dy(p: InnerProducts) -> jax.Array:
    """:math:`max(0, min(HS, DY))` (Dai & Yuan 2001)."""
    return jnp.maximum(0, jnp.minimum(_hestenes_stiefel_unclipped(p), dai_yuan(p)))


def ls_cd(p: InnerProducts) -> jax.Array:
    """:math:`max(0, min(LS, CD))`."""
    return jnp.maximum(0, jnp.minimum(liu_storey(p), conjugate_descent(p)))


def pr_fr(p: InnerProducts) -> jax.Array:
    """:math:`max(-FR, min(PR, FR))` (Gilbert & Nocedal 1992)."""
    fr = fletcher_reeves(p)
    return jnp.maximum(-fr, jnp.minimum(_polak_ribiere_unclipped(p), fr))


def hager_zhang(p: InnerProducts, theta: float = 1.0, eta: float = 0.4) -> jax.Array:
    r"""The CG_DESCENT rule, preconditioned and truncated.

    .. math::

      \beta = \max\Big(\frac{y'z - \theta\, (y'Py)\, (g'd_-)/(d_-'y)}{d_-'y},\;
        \eta\, \frac{d_-'g_-}{d_-'P^{-1}d_-}\Big)

    Whatever the step, the direction descends:
    :math:`g'd \le -(1 - 1/(4\theta))\, g'z`.

    Args:
        p: inner products.
        theta: 1 gives the rule of 2013, 2 that of 2005; above 1/4.
        eta: depth of the truncation from below, positive.

    Returns:
        The coefficient; it can be negative.

    References:
        Hager & Zhang, `A new conjugate gradient method with guaranteed descent and an
        efficient line search`, SIAM J. Optim. 16, 2005: the rule and its descent.

        Hager & Zhang, `The limited memory conjugate gradient method`, SIAM J. Optim.
        23, 2013: preconditioning, the truncation in the metric, theta = 1.
    """
    # The proof of descent needs y'Py >= (y'z)^2 / g'z, the Cauchy-Schwarz inequality in
    # the metric of P. Rounding, or a preconditioner that moved between its two
    # applications, could break it.
    ypy = jnp.maximum(p.ypy, _ratio(p.yz**2, p.gz))
    coefficient = _ratio(p.yz - theta * ypy * _ratio(p.gd_prev, p.yd_prev), p.yd_prev)
    return jnp.maximum(coefficient, eta * _ratio(p.slope_prev, p.metric_prev))


BETA_RULES: dict[str, BetaRule] = {
    "fletcher_reeves": BetaRule(fletcher_reeves),
    "polak_ribiere": BetaRule(polak_ribiere, needs_previous_gradient=True),
    "hestenes_stiefel": BetaRule(hestenes_stiefel, needs_previous_gradient=True),
    "dai_yuan": BetaRule(dai_yuan),
    "liu_storey": BetaRule(liu_storey, needs_previous_gradient=True),
    "conjugate_descent": BetaRule(conjugate_descent),
    "hager_zhang": BetaRule(
        hager_zhang,
        needs_previous_gradient=True,
        needs_preconditioned_difference=True,
    ),
    "hs_dy": BetaRule(hs_dy, needs_previous_gradient=True),
    "ls_cd": BetaRule(ls_cd, needs_previous_gradient=True),
    "pr_fr": BetaRule(pr_fr, needs_previous_gradient=True),
}
"""The rules by name."""


def get_beta_rule(rule: "str | float | BetaRule") -> BetaRule:
    """The rule that a user's ``beta_rule`` argument stands for.

    Args:
        rule: a name in :data:`BETA_RULES`, a rule, or a number for a constant
            coefficient (the heavy ball).

    Returns:
        The rule.

    Raises:
        ValueError: if there is no rule of that name.
        TypeError: if it is none of these.

    Examples:
        >>> from optax_nlcg.beta import get_beta_rule
        >>> get_beta_rule("dai_yuan").needs_previous_gradient
        False
    """
    if isinstance(rule, BetaRule):
        return rule
    if isinstance(rule, str):
        if rule not in BETA_RULES:
            known = ", ".join(BETA_RULES)
            raise ValueError(
                f"Unknown `beta_rule` {rule!r}. The known rules are: {known}."
            )
        return BETA_RULES[rule]
    is_array = isinstance(rule, jax.Array) or (
        isinstance(rule, np.ndarray) and rule.ndim == 0
    )
    is_number = isinstance(rule, int | float | np.number) and not isinstance(rule, bool)
    if is_array or is_number:
        arguments.check_number("beta_rule", rule)
        return BetaRule(lambda p: jnp.asarray(rule, p.gz.dtype))
    raise TypeError(
        "`beta_rule` must be the name of a rule, a number or a `BetaRule`, "
        f"got {rule!r}."
    )
