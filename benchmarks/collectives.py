"""What a compiled program sends between devices, read off its HLO.

A loop's body counts as often as the loop runs, by XLA's own trip count; a branch counts
as if it were always taken.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

import jax

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BYTES = {
    "pred": 1,
    "bf16": 2,
    "c64": 8,
    "c128": 16,
}  # others have their bits in a name

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([\w\-]+)\((.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


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


def read(program: jax.stages.Compiled) -> list[Collective]:
    """Finds the operations between devices in a compiled program.

    Args:
        program: the program.

    Returns:
        The operations, in the order of the text.

    Raises:
        ValueError: if a loop around one has no known trip count, or one is split into
            start and end, which this does not read.
    """
    found: list[tuple[str, Collective]] = []
    # For each computation, who runs it and how often.
    callers: dict[str, list[tuple[str, int | None]]] = collections.defaultdict(list)
    for computation, (result, operation, rest) in _instructions(
        program.as_text() or ""
    ):
        if operation.removesuffix("-start") in KINDS:
            if operation not in KINDS:
                raise ValueError(f"{operation} is not read: compile without async.")
            shapes = list(_arrays(result))
            size = sum(width * math.prod(shape) for width, shape in shapes)
            found.append(
                (
                    computation,
                    Collective(operation, tuple(shape for _, shape in shapes), size),
                )
            )
        trips: int | None = 1
        if operation == "while":
            known = _TRIPS.search(rest)
            trips = int(known[1]) if known else None
        called = _CALLED.findall(rest)
        for branches in _BRANCHES.findall(rest):
            called += re.findall(r"[\w.\-]+", branches)
        for name in called:
            callers[name].append((computation, trips))

    def times(computation: str) -> int:
        total = 0 if callers[computation] else 1
        for caller, trips in callers[computation]:
            if trips is None:
                raise ValueError(f"loop over {computation} has no known trip count.")
            total += trips * times(caller)
        return total

    return [
        dataclasses.replace(collective, times=times(computation))
        for computation, collective in found
    ]


def summary(collectives: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """Operations and bytes by kind."""
    totals: dict[str, dict[str, int]] = {}
    for one in collectives:
        total = totals.setdefault(one.kind, {"count": 0, "bytes": 0})
        total["count"] += one.times
        total["bytes"] += one.times * one.num_bytes
    return totals


def _instructions(hlo: str) -> Iterator[tuple[str, tuple[str, str, str]]]:
    computation = ""
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif instruction := _INSTRUCTION.match(line):
            yield computation, (instruction[1], instruction[2], instruction[3])


def _arrays(result: str) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Width of an element in bytes, and shape, of each array of a result."""
    for dtype, dims in _ARRAY.findall(result):
        width = _BYTES.get(dtype)
        if width is None:
            width = int(re.sub(r"\D", "", dtype)) // 8
        yield width, tuple(int(dim) for dim in dims.split(",") if dim)
