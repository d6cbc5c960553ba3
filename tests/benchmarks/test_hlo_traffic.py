"""What programs move through memory, on programs whose traffic is known."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hlo, hlo_traffic

ROWS, COLUMNS = 64, 1024
ARRAY = 4 * ROWS * COLUMNS
ROW = 4 * COLUMNS
V5E = pathlib.Path(__file__).parent / "v5e_update.hlo"
# Indices and the results of sums, beside the arrays.
SCALARS = 256


def traffic(function, *arguments, donate=()):
    program = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    return hlo_traffic.total(hlo_traffic.read(program))


def array():
    return jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.float32)


def index():
    return jax.ShapeDtypeStruct((), jnp.int32)


def in_a_loop(x):
    # XLA unrolls what has few iterations.
    return jax.lax.fori_loop(0, 50, lambda _, x: jnp.sin(x), x)


PROGRAMS = {
    "add": ((lambda x, y: x + y), (array(), array()), 3 * ARRAY),
    "square": ((lambda x: x * x), (array(),), 2 * ARRAY),
    "sum": (jnp.sum, (array(),), ARRAY),
    "one row": ((lambda x, i: x[i] + 1), (array(), index()), 2 * ROW),
    "loop": (in_a_loop, (array(),), (2 * 50 + 2) * ARRAY),
    "fill": ((lambda: jnp.ones((ROWS, COLUMNS))), (), ARRAY),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_known_programs(name):
    function, arguments, expected = PROGRAMS[name]
    found = traffic(function, *arguments)
    assert expected <= found.num_bytes <= 1.0001 * expected + SCALARS


def test_update_in_place_moves_what_it_updates():
    def update(x, row, i):
        return x.at[i].set(row)

    row = jax.ShapeDtypeStruct((COLUMNS,), jnp.float32)
    found = traffic(update, array(), row, index(), donate=0)
    # The row is read and written; XLA reads the old one where the index is too large.
    assert 2 * ROW <= found.num_bytes <= 3 * ROW + SCALARS
    copied = traffic(update, array(), row, index())
    assert copied.num_bytes >= found.num_bytes + 2 * ARRAY


def test_slices_of_what_is_computed_on_the_way():
    """A fusion computes, and reads, no more of a sum than it gives a part of."""
    program = """
%fused (p.0: f32[8192], p.1: f32[8192]) -> (f32[1024], f32[2048]) {
  %p.0 = f32[8192]{0} parameter(0)
  %p.1 = f32[8192]{0} parameter(1)
  %sum = f32[8192]{0} add(%p.0, %p.1)
  %first = f32[1024]{0} slice(%sum), slice={[0:1024]}
  %second = f32[2048]{0} slice(%sum), slice={[1024:3072]}
  ROOT %both = (f32[1024]{0}, f32[2048]{0}) tuple(%first, %second)
}

ENTRY %main (x: f32[8192], y: f32[8192]) -> (f32[1024], f32[2048]) {
  %x = f32[8192]{0} parameter(0)
  %y = f32[8192]{0} parameter(1)
  ROOT %out = (f32[1024]{0}, f32[2048]{0}) fusion(%x, %y), kind=kLoop, calls=%fused
}
"""
    found = hlo_traffic.total(hlo_traffic.read(program))
    assert found.num_bytes == 3 * 4 * 3072


def test_every_branch_counts():
    def step(x, i):
        return jax.lax.switch(i, [jnp.sin, jnp.cos, lambda x: x], x)

    assert traffic(step, array(), index()).num_bytes >= 4 * ARRAY


def test_loop_without_a_known_end():
    def double(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: 2 * x, x)

    with pytest.raises(ValueError, match="no number of trips"):
        traffic(double, array())


def test_transfers_on_a_tpu():
    """A program for a TPU: x - g / (g'g) of two arrays each.

    One g stays in on-chip memory between its two uses, the other is read twice.
    """
    operations = hlo_traffic.read(V5E.read_text())
    mib = 2**20
    found = hlo_traffic.total(operations)
    assert 14 * mib <= found.num_bytes <= 14 * mib + SCALARS
    assert (found.kernels, found.scalar_operations) == (4, 1)
    by_kind = {}
    for one in operations:
        kind = one.opcode, one.read > SCALARS, one.written > SCALARS
        by_kind[kind] = by_kind.get(kind, 0) + one.num_bytes
    moved = {kind: size for kind, size in by_kind.items() if size > SCALARS}
    assert moved == {
        ("copy-start", True, False): 4 * mib,
        ("copy-start", False, True): 4 * mib,
        ("slice-start", True, False): 4 * mib,
        ("fusion", True, False): 2 * mib + 4,
    }


def test_counted_loops():
    """TPU programs do not state the number of trips, but count to a constant."""
    program = hlo.Program(
        """
%condition (p.0: (s32[], f32[8])) -> pred[] {
  %p.0 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %end = s32[]{:T(128)} constant(16)
  %i.0 = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.0, %end), direction=LT
}

%body (p.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %copied = s32[]{:T(128)} copy(%i.1)
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%copied, %two)
  %x = f32[8]{0:T(128)} get-tuple-element(%p.1), index=1
  %sine = f32[8]{0:T(128)} sine(%x)
  ROOT %both = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%next, %sine)
}

ENTRY %main (x.0: f32[8]) -> f32[8] {
  %x.0 = f32[8]{0:T(128)} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %start = s32[]{:T(128)} copy(%one)
  %tuple = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%start, %x.0)
  %while = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%tuple), condition=%condition, body=%body
  ROOT %result = f32[8]{0:T(128)} get-tuple-element(%while), index=1
}
"""  # noqa: E501
    )
    assert program.times("body") == program.times("condition") == 8  # 1, 3, ..., 15


def test_communication_is_refused():
    text = V5E.read_text().replace(" copy-start(", " collective-permute-start(")
    with pytest.raises(ValueError, match="compile for one device"):
        hlo_traffic.read(text)
