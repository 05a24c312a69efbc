"""Does the stand-in for CUDA (tests/simt) run kernels as a GPU does, and does it catch their bugs?

emulator/correct.cu holds kernels without a bug, which judge themselves; emulator/planted.cu holds
kernels with one bug each. A bug has to show as a wrong result, or end the program with a message.
Races end it where kernels are compiled for the race detector, whatever the order of the threads.
"""

import os
import pathlib
import re
import subprocess

import pytest

import simt_module
from simt_module import EMULATOR, SIMT

PROGRAMS = [SIMT / "emulator" / f"{name}.cu" for name in ("correct", "planted")]
PLANTED = PROGRAMS[1].read_text().splitlines()
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
SEEDS = range(5)

# What the kernel prints where it is right, and those that print something else.
WRONG_RESULTS = {
    "sum_block": ("32640", ["sum_block_without_barrier"]),
    "pass_in_warp": ("1", ["pass_in_warp_without_syncwarp"]),
    "ring": ("4950", ["ring_without_room"]),
    "copies": (
        "496",
        [
            "copies_without_wait",
            "copies_with_shallow_wait",
            "copies_without_barrier",
            "copies_too_early",
        ],
    ),
}
# What stands in the two lines that race.
RACES = {
    "sum_block_without_barrier": ("partial[i] += ", "partial[i] += "),
    "copies_without_wait": ("__pipeline", "int sum = copies["),
    "copies_with_shallow_wait": ("__pipeline", "int sum = copies["),
    "copies_without_barrier": ("__pipeline", "int sum = copies["),
    "copies_too_early": ("__pipeline", "int late = "),
    "rows_one_too_few": ("// reads its row", "// writes its row"),
    "rows_without_barrier": ("// reads its row", "// writes its row"),
    "rows_with_shuffle_for_barrier": ("// reads its row", "// writes its row"),
    "hand_over_too_early": ("// hands over", "// takes too early"),
    "hand_over_with_barrier_of_warps": ("// hands over", "// takes"),
    "pairs_and_another": ("// writes in pairs", "// reads in pairs"),
    "own_result_and_a_byte": ("// writes its own", "// writes the other's"),
    "one_word_of_two_values": ("// by all lanes", "// by all lanes"),
    "together_and_plain": ("// a plain write", "// a relaxed write"),
}
WITHOUT_RACE = [*WRONG_RESULTS, "rows", "hand_over", "pairs", "own_result", "together", "one_word"]
MESSAGES = {
    "barrier_in_branch": "deadlock: 64 of 64 threads have not exited",
    "barrier_of_two_lines": "__syncthreads, while 32 threads of the block are in the one at",
    "shuffle_in_branch": "deadlock: 32 of 32 threads have not exited",
    "shuffle_and_vote": "while lane",
    "shuffle_of_two_lines": "while lane",
    "not_in_own_mask": "is not in its own mask 0x0000ffff",
    "two_masks": "of the mask 0xffffffff",
    "exited_lanes": "exit",  # Seen by the lane that exits last, or by the one that comes too late.
    "lanes_that_never_were": "names lanes that have exited or never were: 0xfff00000",
    "spin_forever": "spins forever",
    "spin_on_atomic": "spins forever",
    "misaligned_load": "access of 16 bytes at",
    "misaligned_copy": "not aligned",
    "change_source_of_copy": "was changed before the copy was done",
}
SANITIZER_MESSAGES = {
    "beyond_dynamic_shared": "use-after-poison",
    "beyond_static_shared": "index 32 out of bounds for type 'int [32]'",
    "beyond_global": "heap-buffer-overflow",
    "copy_from_beyond_global": "heap-buffer-overflow",
    "misaligned_plain_load": "misaligned address",
    "overflow_stack": "stack-overflow",
}


def build(
    folder: pathlib.Path, emulator: list[str], kernels: list[str], link: list[str]
) -> pathlib.Path:
    """The folder with both programs: object files, what to compile kernels with, and to link."""
    objects = simt_module.compile_all(PROGRAMS, folder, "-O1", *kernels)
    for source, object_ in zip(PROGRAMS, objects, strict=True):
        command = [simt_module.compiler(), "-pthread", *link, object_, *emulator]
        subprocess.run([*command, "-o", folder / source.stem], check=True)
    return folder


def run(
    program: pathlib.Path, *arguments: str, seed: int | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "SIMT_SEED"}
    if seed is not None:
        environment["SIMT_SEED"] = str(seed)
    command = [program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return simt_module.compile_all(EMULATOR, tmp_path_factory.mktemp("emulator"), "-O1")


@pytest.fixture(scope="module")
def plain(emulator: list[str], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return build(tmp_path_factory.mktemp("plain"), emulator, [], [])


@pytest.fixture(scope="module")
def announced(emulator: list[str], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return build(tmp_path_factory.mktemp("announced"), emulator, simt_module.ANNOUNCED, [])


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder, flags = tmp_path_factory.mktemp("sanitized"), SANITIZE.split()
    emulator = simt_module.compile_all(EMULATOR, folder, "-O1", *flags)
    return build(folder, emulator, flags, flags)


@pytest.mark.parametrize("kind", ["plain", "sanitized", "announced"])
def test_correct_kernels(kind: str, request: pytest.FixtureRequest) -> None:
    program = request.getfixturevalue(kind) / "correct"
    for seed in [None, *SEEDS]:
        result = run(program, seed=seed)
        assert (result.returncode, result.stdout) == (0, "all as expected\n"), result.stderr


@pytest.mark.parametrize("right", WRONG_RESULTS)
def test_missing_waits_show_as_wrong_results(plain: pathlib.Path, right: str) -> None:
    expected, wrong = WRONG_RESULTS[right]
    assert {run(plain / "planted", right, seed=seed).stdout for seed in SEEDS} == {f"{expected}\n"}
    for name in wrong:
        results = [run(plain / "planted", name, seed=seed) for seed in SEEDS]
        assert all(result.returncode == 0 for result in results)
        assert any(result.stdout != f"{expected}\n" for result in results), name


def test_nobody_has_written_shared_memory(plain: pathlib.Path) -> None:
    assert run(plain / "planted", "read_unwritten_shared").stdout == "-1\n"


@pytest.mark.parametrize("name", MESSAGES)
def test_bugs_end_with_a_message(plain: pathlib.Path, name: str) -> None:
    for seed in SEEDS:
        result = run(plain / "planted", name, seed=seed)
        assert result.returncode < 0  # Killed by abort().
        assert result.stderr.startswith("simt: ")
        assert MESSAGES[name] in result.stderr
        assert "planted.cu:" in result.stderr  # Says where
        assert "in block (" in result.stderr  # and in which block.


def test_a_deadlock_says_who_waits_where(plain: pathlib.Path) -> None:
    message = run(plain / "planted", "barrier_in_branch").stderr
    start = next(i for i, line in enumerate(PLANTED) if "void BarrierInBranch" in line)
    barrier = next(i for i in range(start, len(PLANTED)) if "__syncthreads" in PLANTED[i]) + 1
    shuffle = next(i for i in range(start, len(PLANTED)) if "__shfl_xor_sync" in PLANTED[i]) + 1
    place = r"planted.cu:{} (BarrierInBranch): 32 threads: ({}, 0, 0)"
    assert "waiting in __syncthreads at " in message
    assert place.format(barrier, 0) in message
    assert "waiting in __shfl_xor_sync of the mask 0xffffffff at " in message
    assert place.format(shuffle, 16) in message


@pytest.mark.parametrize("name", RACES)
def test_races_are_found_in_any_order(announced: pathlib.Path, name: str) -> None:
    for seed in SEEDS:
        result = run(announced / "planted", name, seed=seed)
        assert result.returncode < 0
        first, *places = result.stderr.splitlines()[:3]
        assert first.startswith("simt: race: nothing orders two accesses to ")
        lines = [re.search(r"planted\.cu:(\d+)", place) for place in places]
        found = [PLANTED[int(line[1]) - 1] for line in lines if line]
        one, other = RACES[name]
        assert (one in found[0] and other in found[1]) or (other in found[0] and one in found[1])


@pytest.mark.parametrize("name", WITHOUT_RACE)
def test_no_race_where_there_is_none(announced: pathlib.Path, name: str) -> None:
    for seed in SEEDS:
        result = run(announced / "planted", name, seed=seed)
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("name", SANITIZER_MESSAGES)
def test_sanitizers_see_wrong_addresses(sanitized: pathlib.Path, name: str) -> None:
    result = run(sanitized / "planted", name)
    assert result.returncode != 0
    assert SANITIZER_MESSAGES[name] in result.stderr
    assert "planted.cu:" in result.stderr


@pytest.mark.parametrize("right", WRONG_RESULTS)
def test_sanitizers_are_silent_where_there_is_nothing(sanitized: pathlib.Path, right: str) -> None:
    result = run(sanitized / "planted", right)
    assert (result.returncode, result.stderr) == (0, "")


def test_seeds_choose_the_order(plain: pathlib.Path) -> None:
    def order(seed: int | None) -> list[int]:
        return [int(i) for i in run(plain / "planted", "order", seed=seed).stdout.split()]

    orders = [order(seed) for seed in SEEDS]
    assert orders == [order(seed) for seed in SEEDS]
    assert order(None) == order(None)
    assert len({tuple(order) for order in orders}) == len(SEEDS)
    for threads in orders:
        assert sorted(threads) == sorted([*range(8 * 64)] * 2)
        # In pieces of one block, before and after its barrier: no two in the same order.
        pieces = [threads[i : i + 64] for i in range(0, len(threads), 64)]
        assert all(sorted(piece)[-1] - sorted(piece)[0] == 63 for piece in pieces)
        assert len({tuple(i % 64 for i in piece) for piece in pieces}) == len(pieces)
