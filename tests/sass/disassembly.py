"""CUDA sources -> what nvcc made of them: instructions, their scheduling, loops and paths.

Needs nvcc, its host compiler's c++filt, and nvdisasm (`nvidia-cuda-nvdisasm` on PyPI).
"""

import collections
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
# As CMake's Release does it; the architecture is named beside it.
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", f"-I{ROOT}"]
NO_BARRIER = 7


class MissingToolError(RuntimeError):
    pass


def nvcc() -> str:
    if found := os.environ.get("CUDACXX") or shutil.which("nvcc"):
        return found
    raise MissingToolError("no nvcc: put it on the PATH or name it in CUDACXX")


def nvdisasm() -> str:
    """PyPI's, which reads what any older nvcc wrote; otherwise a toolkit's."""
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nvdisasm":
            return str(file.locate())
    if found := shutil.which("nvdisasm"):
        return found
    raise MissingToolError("no nvdisasm: pip install nvidia-cuda-nvdisasm")


class Instruction(NamedTuple):
    """With its scheduling, which the compiler writes into bits 105 to 121 of the 128.

    The layout was found by Jia et al. 2018 (arXiv 1804.06826, section 2.1) for sm_70 and holds
    since. Instructions of fixed latency are waited for by `stall`; the others count one of six
    barriers up, which counts down when the result is there (`write_barrier`) or when the operands
    have been read (`read_barrier`). An instruction issues when the barriers in `waits` are at zero.
    """

    predicate: str  # "@P0", "@!UP1" or ""
    opcode: str  # with its modifiers, as LDG.E.128
    operands: str
    stall: int = 1
    write_barrier: int = NO_BARRIER
    read_barrier: int = NO_BARRIER
    waits: int = 0

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def label(self) -> str | None:
        """Where it may go on, or what it calls."""
        found = re.search(r"`\(([^)]+)\)", self.operands)
        return found[1] if found else None

    @property
    def bytes(self) -> int:
        """Of memory or registers moved for each thread."""
        if found := re.search(r"\.(?:ENL2\.)?(64|128|256)\b", self.opcode):
            return int(found[1]) // 8
        found = re.search(r"\.[US](8|16)\b", self.opcode)
        return int(found[1]) // 8 if found else 4

    def is_wide(self) -> bool:
        """Moves a pack from or to global memory."""
        return self.name in ("LDG", "STG") and self.bytes >= 16


def decode(text: str, encoding: int) -> Instruction:
    found = re.fullmatch(r"(?:(@\S+)\s+)?(\S+)\s*(.*)", text.strip())
    assert found, text
    return Instruction(
        found[1] or "",
        found[2],
        found[3],
        stall=encoding >> 105 & 15,
        write_barrier=encoding >> 110 & 7,
        read_barrier=encoding >> 113 & 7,
        waits=encoding >> 116 & 63,
    )


class Resources(NamedTuple):
    """As `ptxas -v` says; bytes of stack, spills and static shared memory."""

    registers: int
    stack: int
    spilled: int
    shared: int


@dataclasses.dataclass(eq=False)
class Loop:
    """A natural loop: the blocks between a header and the branches back to it."""

    header: int
    blocks: set[int]
    latches: set[int]
    parent: "Loop | None" = None
    children: "list[Loop]" = dataclasses.field(default_factory=list)

    def own_blocks(self) -> set[int]:
        return self.blocks.difference(*(child.blocks for child in self.children))


@dataclasses.dataclass(eq=False)
class Kernel:
    """A kernel's code as basic blocks, in the order of their addresses; it starts in the first."""

    name: str  # demangled, without namespaces and arguments
    resources: Resources
    blocks: list[list[Instruction]]
    successors: list[list[int]]
    callees: dict[str, int]  # instructions of the compiler's own subroutines, by label

    def instructions(self, blocks: set[int] | None = None) -> list[Instruction]:
        chosen = range(len(self.blocks)) if blocks is None else sorted(blocks)
        return [instruction for block in chosen for instruction in self.blocks[block]]

    def widths(self, opcode: str) -> collections.Counter[int]:
        """How many instructions move how many bytes for each thread."""
        found = (i.bytes for i in self.instructions() if i.name == opcode)
        return collections.Counter(found)

    @functools.cached_property
    def loops(self) -> list[Loop]:
        """Innermost ones first."""
        dominators = self._dominators()
        by_header: dict[int, Loop] = {}
        for block, targets in enumerate(self.successors):
            for header in targets:
                if header not in dominators.get(block, ()):
                    continue
                loop = by_header.setdefault(header, Loop(header, {header}, set()))
                loop.latches.add(block)
                todo = [block]
                while todo:
                    if (inside := todo.pop()) not in loop.blocks:
                        loop.blocks.add(inside)
                        todo += self._predecessors[inside]
        loops = sorted(by_header.values(), key=lambda loop: len(loop.blocks))
        for i, loop in enumerate(loops):
            around = (o for o in loops[i + 1 :] if loop.header in o.blocks)
            if parent := next(around, None):
                loop.parent = parent
                parent.children.append(loop)
        return loops

    @functools.cached_property
    def _predecessors(self) -> dict[int, list[int]]:
        """Only reachable blocks."""
        found: dict[int, list[int]] = {0: []}
        todo = [0]
        while todo:
            block = todo.pop()
            for target in self.successors[block]:
                if target not in found:
                    found[target] = []
                    todo.append(target)
                found[target].append(block)
        return found

    def _dominators(self) -> dict[int, set[int]]:
        every = set(self._predecessors)
        found = {block: {0} if block == 0 else every for block in every}
        changed = True
        while changed:
            changed = False
            for block in sorted(every - {0}):
                before = [found[p] for p in self._predecessors[block]]
                new = set.intersection(*before) | {block}
                changed |= new != found[block]
                found[block] = new
        return found

    def round(
        self, loop: Loop, rounds: Callable[[Loop], int], off: Callable[[int], bool]
    ) -> list[Instruction]:
        """The longest path once around `loop`, each nested loop as often as `rounds` says.

        Blocks that are `off` that path are not taken; where nothing is left, it is empty.
        """
        inner: dict[int, Loop] = {}  # block -> the nested loop that is gone around
        not_taken: set[int] = set()  # the ways back of those that are not
        todo = list(loop.children)
        while todo:
            child = todo.pop()
            if rounds(child):
                inner.update(dict.fromkeys(child.blocks, child))
            else:
                not_taken |= child.latches
                todo += child.children
        longest: dict[int, list[Instruction] | None] = {}  # None: no way

        def from_block(block: int) -> list[Instruction] | None:
            """The longest path from here to a branch back."""
            if block in longest:
                return longest[block]
            longest[block] = None  # while it is looked for: a way back to here is none
            if child := inner.get(block):
                code, leaving = self.round(child, rounds, off) * rounds(child), child.blocks
            else:
                code, leaving = self.blocks[block], {block}
            if block in not_taken or (not child and off(block)) or not code:
                return None
            inside = loop.blocks - leaving - {loop.header}
            after = {target for b in leaving for target in self.successors[b]} & inside
            ways = [way for target in after if (way := from_block(target)) is not None]
            if leaving & loop.latches:
                ways.append([])
            if ways:
                longest[block] = code + max(ways, key=self.count)
            return longest[block]

        return from_block(loop.header) or []

    def count(self, path: list[Instruction]) -> int:
        """Instructions executed, those of subroutines included."""
        return sum(1 + self.callees.get(i.label or "", 0) for i in path)


def compile_to_cubin(source: pathlib.Path, arch: int, cubin: pathlib.Path) -> str:
    """What ptxas says about it."""
    command = [nvcc(), *FLAGS, f"-arch=sm_{arch}", "-Xptxas", "-v", "-cubin", "-o", cubin, source]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        raise RuntimeError(f"{source.name} for sm_{arch}:\n{built.stderr}")
    return built.stderr


def resources(report: str) -> dict[str, Resources]:
    """By mangled name."""
    found = re.findall(
        r"Function properties for (\S+)\n"
        r" *(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*?Used (\d+) registers(?:.*?(\d+) bytes smem)?",
        report,
    )
    return {
        name: Resources(int(registers), int(stack), int(stores) + int(loads), int(shared or 0))
        for name, stack, stores, loads, registers, shared in found
    }


def demangle(name: str) -> str:
    command = ["c++filt", name]
    full = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    full = full.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.sub(r"\b\w+::", "", full).replace("> >", ">>").partition("(")[0]


Line = Instruction | str  # a label


def sections(text: str) -> Iterator[tuple[str, list[Line]]]:
    """Each kernel's mangled name, its instructions and labels."""
    name, lines, pending = "", [], ("", 0)
    for line in text.splitlines():
        if found := re.match(r"\s*\.section\s+\.text\.([^,]+),", line):
            if name:
                yield name, lines
            name, lines = found[1], []
        elif found := re.match(r"(\S+):$", line):
            lines.append(found[1])
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;?\s*/\* 0x(\w+) \*/", line):
            pending = found[1], int(found[2], 16)
        elif pending[0] and (found := re.match(r"\s+/\* 0x(\w+) \*/", line)):
            lines.append(decode(pending[0], int(found[1], 16) << 64 | pending[1]))
            pending = "", 0
    if name:
        yield name, lines


def jumps(instruction: Instruction) -> bool:
    """Also by a call within the kernel, which is how nvcc leaves some loops."""
    local = instruction.operands.startswith("`(.L")
    return instruction.name in ("BRA", "JMP") or (instruction.name == "CALL" and local)


def goes_on(instruction: Instruction) -> bool:
    """Whether the instruction behind it may be next, in a warp that has not diverged."""
    if ".DIV" in instruction.opcode:  # jumps if it has
        return True
    if ".CONV" in instruction.opcode:  # jumps if it has not
        return False
    if instruction.predicate:
        return True
    if jumps(instruction):  # others have a condition before the label
        return not instruction.operands.startswith("`")
    return instruction.name not in ("EXIT", "RET", "BRX")


def targets(instruction: Instruction) -> list[str]:
    if instruction.name == "BRX":
        return re.findall(r"\.L_x_\d+", instruction.operands)
    if jumps(instruction) and ".DIV" not in instruction.opcode and instruction.label:
        return [instruction.label]
    return []


def to_kernel(name: str, lines: list[Line], known: Resources) -> Kernel:
    """The control-flow graph. Nothing jumps at BSYNC: nvcc puts it where the paths meet."""
    starts, code, labels = {0}, [], {}
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(code)
            starts.add(len(code))
        else:
            code.append(line)
            if targets(line) or not goes_on(line):
                starts.add(len(code))
    bounds = sorted(start for start in starts if start < len(code))
    numbers = {start: number for number, start in enumerate(bounds)}
    blocks, successors = [], []
    for begin, end in zip(bounds, [*bounds[1:], len(code)], strict=True):
        last = code[end - 1]
        after = [labels[target] for target in targets(last) if target in labels]
        after += [end] if goes_on(last) else []
        blocks.append(code[begin:end])
        successors.append([numbers[start] for start in after if start in numbers])
    # Divisions, and on sm_75 __syncwarp, which are straight code.
    own = {label: start for label, start in labels.items() if label.startswith("$__internal")}
    callees = {}
    for label, start in own.items():
        returns = (k for k in range(start, len(code)) if code[k].name == "RET")
        callees[label] = next(returns, start - 1) + 1 - start
    return Kernel(demangle(name), known, blocks, successors, callees)


def kernels(source: pathlib.Path, arch: int) -> list[Kernel]:
    """What `source` becomes on an architecture (90 for sm_90)."""
    with tempfile.TemporaryDirectory() as directory:
        cubin = pathlib.Path(directory) / "kernels.cubin"
        known = resources(compile_to_cubin(source, arch, cubin))
        command = [nvdisasm(), "-c", "-hex", cubin]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [to_kernel(name, lines, known[name]) for name, lines in sections(text) if name in known]
