"""Reads the text of a compiled program.

Just what is needed to count: which instructions there are, what they take and give, and
how often each computation runs. A loop's body runs as often as XLA says, or where it
does not say (for TPUs it does not) as often as a counter from one constant to another
takes; a branch counts as if it were always taken.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ([\w\-]+)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
# What an instruction calls: once per element or in its own kernel, or as a sequence.
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)="
    r"%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")

_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Array:
    """An array that an instruction gives.

    Attributes:
        dtype: XLA's name of the type of its elements.
        shape: of the array.
        space: where it lies; 0 is the device's main memory.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size, without the padding of tiles."""
        bits = _BITS.get(self.dtype)
        if bits is None:  # the first number in the name: f32, bf16, f8e4m3fn
            bits = int(re.findall(r"\d+", self.dtype)[0])
        return -(-bits * self.size // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of the program.

    Attributes:
        name: its name, unique in the program.
        result: the type of what it gives, as written.
        opcode: what it does.
        operands: names of what it takes, in order; for a constant or a parameter none.
        argument: what stands in its parentheses, as written.
        attributes: what follows them.
        is_root: whether it is what its computation gives.
    """

    name: str
    result: str
    opcode: str
    operands: tuple[str, ...]
    argument: str
    attributes: str
    is_root: bool

    @property
    def arrays(self) -> list[Array]:
        """The arrays of its result, those of tuples one by one."""
        return arrays(self.result)

    @property
    def moved(self) -> list[Array]:
        """The arrays at the other end, if this starts something asynchronous."""
        if self.opcode == "all-reduce-start":
            return self.arrays
        # (to, from, context), but (what goes in, what comes out, context) for others.
        return arrays(elements(self.result)[0 if self.opcode == "copy-start" else 1])

    def called(self, *kinds: str) -> list[str]:
        """Computations that it calls, in these attributes or in all."""
        if self.opcode.endswith(("-done", "-update")):
            return []  # named again here, called by the start
        found = [
            name
            for kind, name in _CALLED.findall(self.attributes)
            if not kinds or kind in kinds
        ]
        if not kinds or "branch_computations" in kinds:
            for names in _BRANCHES.findall(self.attributes):
                found += re.findall(r"[\w.\-]+", names)
        return found


Computation = Mapping[str, Instruction]


class Program:
    """A program by computations.

    Attributes:
        computations: instructions by name, by the name of the computation.
        entry: name of the computation that the program is.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self._times: dict[str, int] = {}
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                current = self.computations.setdefault(header[2], {})
                if header[1]:
                    self.entry = header[2]
            elif name := _NAME.match(line):
                found = _instruction(name[2], line[name.end() :], bool(name[1]))
                current[found.name] = found
        if not self.entry:
            raise ValueError("this is not the text of a compiled program.")

    def root(self, computation: str) -> Instruction:
        """What a computation gives."""
        instructions = self.computations[computation].values()
        return next(one for one in instructions if one.is_root)

    def times(self, computation: str) -> int:
        """How often a computation runs, wherever it is called from.

        Raises:
            ValueError: if a loop around it has no number of trips that can be read.
        """
        if computation not in self._times:
            total = int(computation == self.entry)
            for caller, instruction in self._callers[computation]:
                trips = self._trips(caller, instruction)
                total += trips * self.times(caller)
            self._times[computation] = total
        return self._times[computation]

    def executed(self) -> Iterator[tuple[str, Instruction]]:
        """Instructions that are executed one after the other, with their computation.

        Not what fusions consist of, nor what reductions apply to each element.
        """
        sequence, seen = [self.entry], set()
        for name in sequence:
            if name in seen:
                continue
            seen.add(name)
            for instruction in self.computations[name].values():
                yield name, instruction
                if instruction.opcode in ("while", "conditional", "call"):
                    sequence += instruction.called()
                elif instruction.opcode == "async-start":
                    sequence += instruction.called("calls")

    @functools.cached_property
    def _callers(self) -> dict[str, list[tuple[str, Instruction]]]:
        callers = {name: [] for name in self.computations}
        for name, computation in self.computations.items():
            for instruction in computation.values():
                for called in instruction.called():
                    callers[called].append((name, instruction))
        return callers

    def _trips(self, name: str, caller: Instruction) -> int:
        """How often a caller in a computation of this name runs what it calls."""
        if caller.opcode != "while":
            return 1
        if known := _TRIPS.search(caller.attributes):
            return int(known[1])
        counted = self._counted(name, caller)
        if counted is None:
            raise ValueError(
                f"the loop {caller.name} has no number of trips that can be read: "
                "give it a constant one."
            )
        return counted

    def _counted(self, name: str, loop: Instruction) -> int | None:
        """Trips of a loop that adds a constant up to another one."""
        [condition] = loop.called("condition")
        [body] = loop.called("body")
        test = self.root(condition)
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        counter = self._origin(condition, test.operands[0])
        index = _index(counter)
        end = self._constant(condition, test.operands[1])
        before = self._origin(name, loop.operands[0])
        after = self.root(body)
        if (
            index is None
            or end is None
            or before.opcode != "tuple"
            or after.opcode != "tuple"
        ):
            return None
        start = self._constant(name, before.operands[index])
        add = self._origin(body, after.operands[index])
        if start is None or add.opcode != "add":
            return None
        if _index(self._origin(body, add.operands[0])) != index:
            return None
        step = self._constant(body, add.operands[1])
        if step is None or step <= 0:
            return None
        return max(0, -(-(end - start) // step))

    def _origin(self, computation: str, name: str) -> Instruction:
        """Where a value was made, before it was copied."""
        instruction = self.computations[computation][name]
        while instruction.opcode in ("copy", "bitcast"):
            instruction = self.computations[computation][instruction.operands[0]]
        return instruction

    def _constant(self, computation: str, name: str) -> int | None:
        instruction = self._origin(computation, name)
        if instruction.opcode != "constant":
            return None
        number = re.fullmatch(r"-?\d+", instruction.argument)
        return int(number[0]) if number else None


def arrays(result: str) -> list[Array]:
    """The arrays of a type, those of tuples one by one."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(result):
        space = _SPACE.search(layout)
        shape = tuple(int(dim) for dim in dims.split(",") if dim)
        found.append(Array(dtype, shape, int(space[1]) if space else 0))
    return found


def elements(result: str) -> list[str]:
    """The types in a tuple's type."""
    inner, parts, depth = result[1:-1], [""], 0
    for character in inner:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else 0
    opcode = _OPCODE.search(text, end)
    if opcode is None:
        raise ValueError(f"{name} has no opcode: {text}")
    closing = _closing(text, opcode.end() - 1)
    argument = text[opcode.end() : closing]
    return Instruction(
        name=name,
        result=text[: opcode.start()],
        opcode=opcode[1],
        operands=tuple(_OPERAND.findall(argument)),
        argument=argument,
        attributes=text[closing + 1 :],
        is_root=is_root,
    )


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens there closes."""
    depth = 0
    for position in range(opening, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if depth == 0:
            return position
    raise ValueError(f"a parenthesis stays open: {text}")


def _index(instruction: Instruction) -> int | None:
    """Which element of a computation's argument this is."""
    if instruction.opcode != "get-tuple-element":
        return None
    found = re.search(r"\bindex=(\d+)", instruction.attributes)
    return int(found[1]) if found else None
