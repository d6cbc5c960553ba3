"""What data parallelism by hand needs, inside ``shard_map`` and ``pmap``.

Under ``jit`` with sharded arrays nothing of this is needed: arrays are global there,
and so are a loss and an inner product.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from optax_nlcg import arguments, shards
from optax_nlcg.shards import AxisName
from optax_nlcg.tree import Tree


def synchronize(
    value_fn: Callable[[Tree], jax.Array],
    axis_name: AxisName,
    specs: Tree = None,
) -> Callable[[Tree], jax.Array]:
    r"""Makes of each device's loss the mean loss over all devices.

    With :math:`f_i` the loss on the part of the batch that device :math:`i` of
    :math:`n` holds, it is

    .. math::

        f(x) = \frac1n \sum_i f_i(x), \qquad
        \nabla f(x) = \frac1n \sum_i \nabla f_i(x),

    and value, gradient (:func:`jax.grad`, :func:`jax.value_and_grad`) and
    Hessian-vector product (:func:`jax.jvp` of the gradient) are the same on all
    devices: inside ``shard_map`` with ``check_vma=True`` and with ``check_vma=False``,
    and inside ``pmap``. Line searches that evaluate the loss need just that. The
    obvious ``lax.pmean(value_fn(params), axis_name)`` has, without ``check_vma``, the
    gradient of the device's own loss: devices then disagree on when a search is over,
    and wait for each other for ever. (Without ``check_vma`` no gradient may be taken
    in reverse mode a second time; take Hessian-vector products forward over reverse.)

    Parameters may be split over the axes too, as in fully sharded data parallelism by
    hand: name their partition specs. ``value_fn`` then takes the device's part, gathers
    it with :func:`jax.lax.all_gather`, and the gradient is that with respect to the
    part; see :func:`over_shards`.

    Args:
        value_fn: ``value_fn(params)``, the mean loss of the device's own part of the
            batch, a real scalar, without collectives but those that gather parameters.
            Parts are of equal size.
        axis_name: mapped axis, or axes, that the batch or parameters are split over.
        specs: partition specs of the parameters, as ``in_specs`` of ``shard_map`` has
            them: a tree prefix. By default they are replicated.

    Returns:
        Function like ``value_fn``, to be called on all devices with equal parameters.

    Raises:
        TypeError: if ``value_fn`` is not callable.

    Examples:
        >>> import jax, jax.numpy as jnp, optax_nlcg
        >>> from jax.sharding import AxisType, PartitionSpec as P
        >>> mesh = jax.make_mesh((jax.device_count(),), ("batch",), (AxisType.Auto,))
        >>> x = jnp.repeat(jnp.array([1.0, 3.0]), jax.device_count())
        >>> @jax.shard_map(mesh=mesh, in_specs=(P(), P("batch")), out_specs=P())
        ... def value_and_grad(w, x):
        ...     def local(w): return jnp.mean((w - x) ** 2)
        ...     loss = optax_nlcg.parallel.synchronize(local, "batch")
        ...     return jax.value_and_grad(loss)(w)
        >>> value, grad = value_and_grad(jnp.array(0.0), x)
        >>> float(value), float(grad)
        (5.0, -4.0)
    """
    arguments.check_function("value_fn", value_fn)
    names = shards.axis_names(axis_name)

    def mean(value: jax.Array, split_over: shards.Axes = ()) -> jax.Array:
        # The gradient with respect to a part is the sum over devices already: that is
        # what a gather's transpose does.
        among = tuple(name for name in names if name not in split_over)
        return jax.lax.pmean(value, among) / jax.lax.axis_size(split_over)

    def local(params: Tree) -> Tree:
        # With respect to parameters that differ between devices a gradient is the
        # device's own whatever `check_vma` is.
        return jax.tree.map(lambda p: shards.as_varying(p, names), params)

    @jax.custom_vjp
    def synchronized(params):
        return mean(value_fn(local(params)))

    def forward(params):
        value, grads = jax.value_and_grad(value_fn)(local(params))
        leaves, treedef = jax.tree.flatten(grads)
        axes = shards.leaf_axes(params, specs)
        means = [mean(*pair) for pair in zip(leaves, axes, strict=True)]
        return mean(value), jax.tree.unflatten(treedef, means)

    def backward(grads, cotangent):
        return (jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), grads),)

    synchronized.defvjp(forward, backward)
    return synchronized


def over_shards(
    optimizer: optax.GradientTransformation, specs: Tree
) -> optax.GradientTransformationExtraArgs:
    r"""Lets an optimizer of this library see the whole of parameters that are split.

    Inside ``shard_map`` or ``pmap`` a device holds a part of the parameters, of their
    gradient and of the optimizer's state; what it can sum is its own part of an inner
    product. Here every reduction of a stage goes on over the devices,

    .. math:: \langle x, y \rangle = \sum_i \langle x_i, y_i \rangle ,

    a few scalars in one ``psum``, and leaves that are replicated count once. All
    devices so compute the same coefficients, and skip the same steps.

    It acts on the stages of this library. Transformations of Optax that reduce over
    the whole tree still see only a part: ``clip_by_global_norm``, ``scale_by_lbfgs``;
    so does :func:`optax_nlcg.minimize`.
    :func:`optax_nlcg.scale_by_hessian_diagonal` must be given its diagonals
    (``hessian_diagonal=``; kernels that it averages over space must be whole in space),
    and :func:`optax_nlcg.reference.scale_by_lars` is refused. All of these work under
    ``jit`` with sharded arrays, which needs no wrapper. It goes around
    :func:`optax_nlcg.multi_steps`, not inside.

    Args:
        optimizer: the optimizer, or a stage of it.
        specs: partition specs of the parameters, as ``in_specs`` of ``shard_map`` has
            them: a tree prefix.

    Returns:
        The transformation, with the same state. What of its ``update``'s arguments is
        like the parameters is the device's part; ``value`` and ``value_fn`` are those
        of the whole batch (:func:`synchronize` with the same specs).

    Raises:
        TypeError: if ``optimizer`` is not a transformation.
        ValueError: in ``init`` or ``update``, if ``specs`` does not fit the parameters
            or a stage reduces what is not like the parameters.

    Examples:
        >>> import jax, jax.numpy as jnp, optax_nlcg
        >>> from jax.sharding import PartitionSpec
        >>> optimizer = optax_nlcg.parallel.over_shards(
        ...     optax_nlcg.scale_by_conjugate_direction(), PartitionSpec("model")
        ... )
        >>> def slope(g):
        ...     return optimizer.update(g, optimizer.init(g))[1].slope
        >>> parts = jnp.array([[3.0], [4.0]])  # on two devices
        >>> print(jax.vmap(slope, axis_name="model")(parts))
        [-25. -25.]
    """
    arguments.check_transformation("optimizer", optimizer)
    inner = optax.with_extra_args_support(optimizer)

    def init_fn(params: Tree) -> Tree:
        with shards.split(params, specs):
            return inner.init(params)

    def update_fn(
        updates: Tree, state: Tree, params: Tree = None, **extra_args: Any
    ) -> tuple[Tree, Tree]:
        with shards.split(updates, specs):
            return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
