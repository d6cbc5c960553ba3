"""What a compiled program sends between devices, read off its HLO.

A loop's body counts as often as the loop runs, a branch as if it were always taken
(hlo.py). What is split into a start and an end counts at its start. TPU programs carry
an operation along through a chain of fusions, each with a piece of it that names the
whole: it counts at the head of the chain.
"""

import dataclasses
import re
from collections.abc import Iterable

import jax

from benchmarks import hlo

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# A piece that goes on with what another one started.
_LATER_PIECE = re.compile(r'"async_collective_fusion_config":\{"flag_start":"[^-]')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation between devices.

    Attributes:
        kind: one of `KINDS`.
        shapes: shapes of the arrays that it results in on a device.
        num_bytes: their size.
        times: how often it runs.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    num_bytes: int
    times: int = 1

    def sent(self, num_devices: int) -> float:
        """Bytes that a device sends for it, by a ring over all devices."""
        share = (num_devices - 1) / num_devices
        factor = {
            "all-reduce": 2 * share,
            "all-gather": share,
            # What results is one part of what is reduced.
            "reduce-scatter": num_devices * share,
            "all-to-all": share,
            "collective-permute": 1.0,
        }[self.kind]
        return factor * self.num_bytes * self.times


def read(program: jax.stages.Compiled | str) -> list[Collective]:
    """Finds the operations between devices in a compiled program.

    Args:
        program: the program, or its text.

    Returns:
        The operations, in the order of the text.

    Raises:
        ValueError: if a loop around one has no number of trips that can be read.
    """
    text = program if isinstance(program, str) else program.as_text() or ""
    parsed = hlo.Program(text)
    found = []
    for name, computation in parsed.computations.items():
        for instruction in computation.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or _LATER_PIECE.search(instruction.attributes):
                continue
            starts = instruction.opcode != kind
            arrays = instruction.moved if starts else instruction.arrays
            found.append(
                Collective(
                    kind,
                    tuple(array.shape for array in arrays),
                    sum(array.num_bytes for array in arrays),
                    parsed.times(name),
                )
            )
    return [one for one in found if one.times]


def summary(collectives: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """Operations and bytes by kind."""
    totals: dict[str, dict[str, int]] = {}
    for one in collectives:
        total = totals.setdefault(one.kind, {"count": 0, "bytes": 0})
        total["count"] += one.times
        total["bytes"] += one.times * one.num_bytes
    return totals
