"""Estimators of the Hessian's diagonal: Hutchinson, Gauss-Newton-Bartlett, exact."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_nlcg import arguments, shards, tree
from optax_nlcg.shards import AxisName
from optax_nlcg.tree import Tree

METHODS = ("hutchinson", "gauss_newton_bartlett", "exact")


def hessian_diagonal(
    fun: Callable[..., Any],
    params: Tree,
    key: jax.Array | None = None,
    *,
    method: str = "hutchinson",
    num_probes: int = 1,
) -> Tree:
    r"""Estimates the diagonal of the Hessian of a function at ``params``.

    The methods, and what they cost, are those of
    :func:`value_grad_and_hessian_diagonal`, which gives the value and the gradient as
    well, nearly for free. Use that one in a training step.

    Args:
        fun: function of the parameters that returns a real scalar; for
            ``"gauss_newton_bartlett"`` the pair ``(value, logits)``.
        params: tree of real or complex floating-point arrays.
        key: PRNG key of the probes; unused by ``"exact"``.
        method: ``"hutchinson"``, ``"gauss_newton_bartlett"`` or ``"exact"``.
        num_probes: number of independent estimates to average.

    Returns:
        Tree like ``params``.

    Raises:
        ValueError: if an argument is out of range, or a key is missing.
        TypeError: if ``fun`` does not return what the method needs, or a parameter is
            not of floating-point numbers.

    Examples:
        One probe is exact where the Hessian is diagonal:

        >>> import jax, jax.numpy as jnp, optax_nlcg
        >>> fun = lambda x: jnp.sum(jnp.array([1.0, 2.0]) * x**3)
        >>> x = jnp.array([1.0, -1.0])
        >>> print(optax_nlcg.hessian_diagonal(fun, x, jax.random.key(0)))
        [  6. -12.]
    """
    evaluate = value_grad_and_hessian_diagonal(
        fun, method=method, num_probes=num_probes
    )
    return evaluate(params, key=key)[-1]


def value_grad_and_hessian_diagonal(
    fun: Callable[..., Any],
    *,
    method: str = "hutchinson",
    num_probes: int = 1,
    has_aux: bool = False,
    axis_name: AxisName | None = None,
) -> Callable[..., tuple[Any, Tree, Tree]]:
    r"""Value, gradient and an estimate of the Hessian's diagonal, in one evaluation.

    ``"hutchinson"`` draws probes :math:`v` with independent entries :math:`\pm 1`:

    .. math::
        \mathrm{E}[v \odot H v] = \mathrm{diag}\,H, \qquad
        \mathrm{Var}[v \odot H v]_i = \sum_{j \ne i} H_{ij}^2 .

    The product :math:`Hv` is the derivative of the gradient along :math:`v`, so it
    comes from one ``jvp`` of ``value_and_grad`` that gives value and gradient too:
    about three times the cost of the gradient alone. Several probes share one
    linearisation, which is kept in memory, and are taken one after the other.

    ``"gauss_newton_bartlett"`` is for a cross-entropy of a softmax, averaged over
    :math:`B` samples. It draws labels from the model's own softmax; with :math:`\hat g`
    the gradient of the mean cross-entropy for those labels,

    .. math:: \mathrm{E}[B\, \hat g \odot \hat g] = \mathrm{diag}\,G \ge 0,

    the diagonal of the Gauss-Newton matrix of the mean cross-entropy, for the one
    further backward pass that :math:`\hat g` takes: less than twice the gradient's
    cost. What else is in the loss, such as weight decay, is not part of it.

    ``"exact"`` takes one Hessian-vector product for every parameter: for tests and
    tiny problems.

    Gradient and diagonal see the same batch, the same dropout masks and the same batch
    statistics, because they come from the same evaluation of ``fun``.

    A complex parameter :math:`a + ib` stands for the two real ones :math:`(a, b)`. Its
    entry of the diagonal is :math:`H_{aa} + i H_{bb}`; its gradient is that of
    :func:`jax.grad`, :math:`\partial_a - i \partial_b`, which Optax wants conjugated.

    Data parallelism. Under ``jit`` with a sharded batch nothing needs to be said:
    probes are replicated and the result is the global Hessian's, as on one device.
    Inside ``shard_map`` or ``pmap`` name the axis: ``fun`` is then the mean loss of the
    device's own part of the batch, without collectives (no batch statistics shared
    between devices), parts being of equal size and parameters replicated. Each device
    draws its own probes, and the product :math:`v \odot Hv` is averaged, so that the
    variance falls with the number of devices. Value and gradient come back averaged
    too, whatever ``check_vma`` is: average them no further. The auxiliary output stays
    local.

    Args:
        fun: function ``fun(params, *args, **kwargs)`` that returns a real scalar, or
            ``(value, aux)`` with ``has_aux``. For ``"gauss_newton_bartlett"`` it
            returns ``(value, logits)``, with ``has_aux`` ``(value, (logits, aux))``;
            logits have shape ``[..., classes]`` and every sample before the last axis
            weighs the same.
        method: ``"hutchinson"``, ``"gauss_newton_bartlett"`` or ``"exact"``.
        num_probes: number of independent probes (or label draws) to average; unused by
            ``"exact"``.
        has_aux: whether ``fun`` returns auxiliary output, such as batch statistics.
        axis_name: mapped axis, or axes, over which the batch is split.

    Returns:
        Function ``f(params, *args, key, **kwargs)`` that returns ``(value, grads,
        diagonal)``, or ``((value, aux), grads, diagonal)`` with ``has_aux``. The key
        must be another one at every step; it must be the same on all devices. It is for
        the probes and does not reach ``fun``, whose own key, of dropout say, goes in by
        position or under another name.

    Raises:
        ValueError: if an argument is out of range; when called, if a key is missing.
        TypeError: when called, if ``fun`` does not return what the method needs, or a
            parameter is not of floating-point numbers.

    Examples:
        >>> import jax, jax.numpy as jnp, optax_nlcg
        >>> def loss(w, x, y):
        ...     logits = x @ w
        ...     nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)
        ...     return nll.mean(), logits
        >>> f = optax_nlcg.value_grad_and_hessian_diagonal(
        ...     loss, method="gauss_newton_bartlett"
        ... )
        >>> x, y = jnp.ones((8, 3)), jnp.zeros(8, int)
        >>> value, grads, diagonal = f(jnp.zeros((3, 2)), x, y, key=jax.random.key(0))
        >>> diagonal.shape, bool((diagonal >= 0).all())
        ((3, 2), True)

    References:
        Bekas, Kokiopoulou & Saad, `An estimator for the diagonal of a matrix
        <https://doi.org/10.1016/j.apnum.2007.01.003>`_, 2007.

        Pearlmutter, `Fast exact multiplication by the Hessian
        <https://doi.org/10.1162/neco.1994.6.1.147>`_, 1994.

        Liu et al., `Sophia <https://arxiv.org/abs/2305.14342>`_, 2023.
    """
    arguments.check_function("fun", fun)
    arguments.check_choice("method", method, METHODS)
    arguments.check_number("num_probes", num_probes, low=1, integer=True)
    if axis_name is not None:
        axis_name = shards.axis_names(axis_name)
    estimate = {
        "hutchinson": _hutchinson,
        "gauss_newton_bartlett": _gauss_newton_bartlett,
        "exact": _exact,
    }[method]

    def evaluate(params: Tree, *args: Any, key: jax.Array | None = None, **kwargs: Any):
        if key is None and method != "exact":
            raise ValueError(
                f"method {method!r} draws random probes: pass a PRNG key, "
                "`key=jax.random.fold_in(key, step)`."
            )
        params = jax.tree.map(jnp.asarray, params)
        arguments.check_floating("params", params)
        if axis_name is not None:
            # With respect to parameters that differ between devices the gradient is
            # the local one; otherwise `shard_map` with `check_vma=True` sums it, and Hv
            # would be summed before it has been multiplied by the device's own probe.
            params = jax.tree.map(lambda p: shards.as_varying(p, axis_name), params)
            if key is not None:
                key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

        value, grads, diagonal, aux = estimate(
            lambda p: fun(p, *args, **kwargs), params, key, num_probes, has_aux
        )
        if axis_name is not None:
            value, grads, diagonal = jax.lax.pmean((value, grads, diagonal), axis_name)
        diagonal = tree.cast_like(diagonal, params)
        return ((value, aux) if has_aux else value), grads, diagonal

    return evaluate


def _hutchinson(fun, params, key, num_probes, has_aux):
    value_and_grad = _value_and_grad(fun, has_aux)
    if _is_one(num_probes):
        # A jvp interleaves both passes and keeps no linearisation in memory.
        probe = _rademacher_like(params, jax.random.fold_in(key, 0))
        (value, grads), (_, hvp), aux = jax.jvp(
            value_and_grad, (params,), (probe,), has_aux=True
        )
        return value, grads, jax.tree.map(_product, probe, hvp), aux

    (value, grads), pushforward, aux = jax.linearize(
        value_and_grad, params, has_aux=True
    )

    def draw(params, probe_key):
        probe = _rademacher_like(params, probe_key)
        _, hvp = pushforward(probe)
        return jax.tree.map(_product, probe, hvp)

    return value, grads, _mean_over_draws(draw, params, key, num_probes), aux


def _gauss_newton_bartlett(fun, params, key, num_probes, has_aux):
    def value_and_logits(p):
        out = fun(p)
        if not (isinstance(out, tuple) and len(out) == 2):
            raise _logits_error(out, has_aux)
        value, rest = out
        if has_aux:
            if not (isinstance(rest, tuple) and len(rest) == 2):
                raise _logits_error(out, has_aux)
            logits, aux = rest
        else:
            logits, aux = rest, None
        if not isinstance(logits, jax.Array) or logits.ndim == 0:
            raise _logits_error(out, has_aux)
        return (value, logits), aux

    (value, logits), pullback, aux = jax.vjp(value_and_logits, params, has_aux=True)
    # Both pullbacks share the forward pass.
    (grads,) = pullback((jnp.ones_like(value), jnp.zeros_like(logits)))

    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    probabilities = jax.nn.softmax(wide)
    num_samples = math.prod(logits.shape[:-1])

    def draw(params, label_key):
        del params
        labels = jax.random.categorical(label_key, wide)
        residual = probabilities - jax.nn.one_hot(
            labels, logits.shape[-1], dtype=wide.dtype
        )
        cotangent = (residual / num_samples).astype(logits.dtype)
        (sampled,) = pullback((jnp.zeros_like(value), cotangent))
        return jax.tree.map(lambda g: num_samples * _product(g, jnp.conj(g)), sampled)

    return value, grads, _mean_over_draws(draw, params, key, num_probes), aux


def _exact(fun, params, key, num_probes, has_aux):
    del key, num_probes
    value_and_grad = _value_and_grad(fun, has_aux)
    (value, grads), pushforward, aux = jax.linearize(
        value_and_grad, params, has_aux=True
    )
    leaves, treedef = jax.tree.flatten(params)
    zeros = [tree.full_like(leaf, 0) for leaf in leaves]

    def leaf_diagonal(which, unit):
        leaf = leaves[which]
        indices = jnp.arange(leaf.size)

        def entry(i):
            # By comparison: no index is taken of an axis that is split over devices.
            chosen = indices.reshape(leaf.shape) == i
            tangents = list(zeros)
            tangents[which] = jnp.where(chosen, unit, zeros[which])
            _, hvp = pushforward(jax.tree.unflatten(treedef, tangents))
            product = _product(tangents[which], jax.tree.leaves(hvp)[which])
            return jnp.sum(jnp.where(chosen, product, 0))

        # Split like the leaf.
        return jax.lax.map(entry, indices).reshape(leaf.shape) + zeros[which]

    diagonals = []
    for which, leaf in enumerate(leaves):
        diagonal = leaf_diagonal(which, 1)
        if jnp.iscomplexobj(leaf):
            diagonal = diagonal + leaf_diagonal(which, 1j)
        diagonals.append(diagonal)
    return value, grads, jax.tree.unflatten(treedef, diagonals), aux


def _value_and_grad(fun, has_aux):
    """The function ``params -> ((value, grads), aux)``."""

    def value_and_grad(p):
        if has_aux:
            (value, aux), grads = jax.value_and_grad(fun, has_aux=True)(p)
        else:
            (value, grads), aux = jax.value_and_grad(fun)(p), None
        return (value, grads), aux

    return value_and_grad


def _mean_over_draws(draw, params, key, num_draws):
    """Averages ``draw`` over keys one by one, so that memory does not grow."""
    if _is_one(num_draws):
        return draw(params, jax.random.fold_in(key, 0))

    def add_draw(i, carry):
        total, params = carry
        drawn = draw(params, jax.random.fold_in(key, i))
        return jax.tree.map(jnp.add, total, drawn), params

    def wide_zeros(x):
        return tree.full_like(x, 0, jnp.promote_types(x.dtype, jnp.float32))

    zeros = jax.tree.map(wide_zeros, params)
    # Handed on, since what a loop closes over forgets how it is split over a mesh.
    total, _ = jax.lax.fori_loop(0, num_draws, add_draw, (zeros, params))
    return jax.tree.map(lambda x: x / num_draws, total)


def _is_one(num_probes):
    """Whether it is known to be one; ``optax.inject_hyperparams`` makes it an array."""
    return not isinstance(num_probes, jax.Array) and num_probes == 1


def _rademacher_like(params, key):
    """Draws independent signs, one for every real number in the tree."""

    def signs(i, leaf):
        leaf_key = jax.random.fold_in(key, i)
        if jnp.iscomplexobj(leaf):
            real_dtype = leaf.real.dtype
            parts = jax.random.rademacher(leaf_key, (2, *leaf.shape), real_dtype)
            drawn = jax.lax.complex(parts[0], parts[1])
        else:
            drawn = jax.random.rademacher(leaf_key, leaf.shape, leaf.dtype)
        return drawn + tree.full_like(leaf, 0)  # a tangent has its primal's type

    leaves, treedef = jax.tree.flatten(params)
    return jax.tree.unflatten(treedef, [signs(i, x) for i, x in enumerate(leaves)])


def _product(x, y):
    """Product by components, in float32 or wider; ``y`` as ``jax.grad`` gives it.

    For complex parameters ``jax.grad`` and its derivatives are conjugate.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x, y = x.astype(wide), y.astype(wide)
    if jnp.iscomplexobj(x):
        return jax.lax.complex(x.real * y.real, -x.imag * y.imag)
    return x * y


def _logits_error(out, has_aux):
    wanted = "(value, (logits, aux))" if has_aux else "(value, logits)"
    shapes = jax.tree.map(jnp.shape, out)
    return TypeError(
        f"method 'gauss_newton_bartlett' needs `fun` to return `{wanted}` with logits "
        f"of shape [..., classes]; it returned arrays of shapes {shapes}."
    )
