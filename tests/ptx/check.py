"""Holds what the CUDA kernels write to float64, where an interpreter of PTX executes them.

    python tests/ptx/check.py LIBRARIES ARCH [--quick] [--only TEXT]

An interpreter of PTX, which is a tool of the developer's own and no part of the project, compiles
`cuda/*.cu` by nvcc, links the host's half and `driver.cc` beside this file with a CUDA runtime of
its own into LIBRARIES/libptx.so, leaves the kernels' PTX beside it, and runs this script. Nothing
else does: the test-suite executes the same sources by tests/simt, without nvcc. Its library has

    itp_device(arch)  itp_load(ptx_file)  itp_seed(n)  itp_reset()  itp_free_all()
    itp_initialised(pointer, bytes)           whether all of it was written
    itp_faults(k)     of each of KINDS; itp_text() describes them
    itp_stats()       lines "kernel, launches, instructions of warps, of lanes"
    itp_uncovered(kernel)                     the instructions that were never executed

and cudaMalloc and cudaMemcpy. A device's memory is the host's.
"""

import argparse
import concurrent.futures
import ctypes
import multiprocessing
import pathlib
import sys
import time

import inputs
import numpy as np
import reference
from reference import INF, load, real, store

KINDS = ("races", "uninitialised reads", "out of bounds", "synchronisation", "others")
Pointer = ctypes.c_void_p
HOST_TO_DEVICE = 1


class Case(ctypes.Structure):
    """The lengths on the device and what the arcs are on the host, which it keeps alive."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "frames", "columns")),
        *((name, Pointer) for name in ("logit_lengths", "label_lengths")),
        *((name, ctypes.c_int32) for name in ("num_arcs", "num_heads")),
        *((name, Pointer) for name in ("durations", "emits", "classes")),
        ("sizes", ctypes.c_int64 * 2),
    ]

    def __init__(self, device, nodes, logit_lengths, label_lengths, arcs, sizes=()):
        durations, emits, reads = zip(*arcs, strict=True)
        # Of each head what each arc reads.
        tables = [np.array(x, np.int32, order="C") for x in (durations, emits, np.transpose(reads))]
        super().__init__(
            *nodes,
            *(device.put(lengths) for lengths in (logit_lengths, label_lengths)),
            *(len(arcs), len(sizes)),
            *(table.ctypes.data_as(Pointer) for table in tables),
            (ctypes.c_int64 * 2)(*sizes),
        )
        self.kept = tables


class Device:
    def __init__(self, directory: pathlib.Path, arch: str):
        self.lib = ctypes.CDLL(str(directory / "libptx.so"))
        for text in (self.lib.itp_text, self.lib.itp_stats, self.lib.itp_uncovered):
            text.restype = ctypes.c_char_p
        self.lib.itp_faults.restype = ctypes.c_uint64
        self.lib.itp_seed.argtypes = [ctypes.c_uint64]
        self.lib.workspace_numbers.restype = ctypes.c_int64
        self.lib.workspace_numbers.argtypes = [ctypes.c_int64] * 3 + [ctypes.c_int]
        self.lib.itp_device(int(arch))
        for ptx in sorted(directory.glob("*.ptx")):
            self.lib.itp_load(str(ptx).encode())

    def empty(self, nbytes: int) -> Pointer:
        pointer = Pointer()
        self.lib.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(max(nbytes, 1)))
        return pointer

    def put(self, array: np.ndarray, offset: int = 0) -> Pointer:
        array = np.ascontiguousarray(array)
        pointer = Pointer(self.empty(array.nbytes + offset).value + offset)
        self.lib.cudaMemcpy(
            pointer, array.ctypes.data_as(Pointer), ctypes.c_size_t(array.nbytes), HOST_TO_DEVICE
        )
        return pointer

    def get(self, pointer: Pointer, shape, dtype) -> np.ndarray:
        array = np.empty(shape, dtype)
        ctypes.memmove(array.ctypes.data, pointer, array.nbytes)
        return array

    def written(self, pointer: Pointer, nbytes: int) -> bool:
        return bool(self.lib.itp_initialised(pointer, ctypes.c_uint64(nbytes)))

    def workspace(self, of: Case, with_posteriors: bool, itemsize: int):
        numbers = self.lib.workspace_numbers(of.frames, of.columns, of.num_arcs, with_posteriors)
        return self.empty(of.batch * numbers * itemsize)


class Tally:
    def __init__(self):
        self.values = self.wrong = 0
        self.worst: dict[str, float] = {}
        self.notes: list[str] = []

    def check(self, case, what, got, want, rtol, atol):
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        error = np.abs(got - want)
        both_nan = np.isnan(got) & np.isnan(want)
        wrong = ~((error <= atol + rtol * np.abs(want)) | both_nan | (got == want))
        self.values += got.size
        finite = error[np.isfinite(error)]
        if finite.size:
            self.worst[what] = max(self.worst.get(what, 0.0), float(finite.max()))
        if wrong.any():
            self.wrong += int(wrong.sum())
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            self.notes.append(
                f"WRONG {case}: {what}: {wrong.sum()} of {got.size}, "
                f"first at {at}: {got[at]} for {want[at]}"
            )

    def must(self, case, holds, what):
        self.values += 1
        if not holds:
            self.wrong += 1
            self.notes.append(f"WRONG {case}: {what}")


def lengths(case, rng, batch, frames, columns):
    """Those of the case, else a full first utterance and random others."""
    tl = case.get("tl", [frames, *rng.integers(0, frames + 1, batch - 1)])
    ul = case.get("ul", [columns - 1, *rng.integers(0, columns, batch - 1)])
    return np.array(tl, np.int32), np.array(ul, np.int32)


def run_pipeline(device, tally, case, seed):
    """Logits -> arcs -> posteriors -> gradients; buffers are reused in place as XLA does."""
    lib, rng, dtype, name = device.lib, np.random.default_rng(seed), case["dtype"], case["name"]
    B, T, U1, V = case["shape"]
    real_type, f32 = real(dtype), dtype != "f64"
    itemsize = np.dtype(real_type).itemsize
    arcs, sizes = inputs.transducer(case)
    nodes = (B, T, U1)
    num_numbers = B * T * U1 * len(arcs)

    x = rng.normal(case.get("center", 0.0), case.get("scale", 2.0), (*nodes, V))
    # No path has to cross a mask of a large negative number.
    labels = rng.integers(1 if case.get("mask") else 0, sizes[0], (B, U1 - 1))
    tl, ul = lengths(case, rng, B, T, U1)
    if case.get("mask"):
        x[rng.random(x.shape) < 0.1] = -INF
        x[..., 0] = -1e9 if dtype != "f16" else -6e4
    if case.get("poison"):
        x[1, max(tl[1] - 1, 0), 0, V // 2] = np.nan
        labels[2, 0] = sizes[0] + case.get("beyond", 3)
        x[3, 0, 0, :] = -INF
        x[0, tl[0] :] = x[0, :, ul[0] + 1 :] = np.nan  # padding
        labels[0, ul[0] :] = -7
    logits = store(x, dtype)
    x = load(logits, dtype)
    labels = labels.astype(np.int32)
    clamped = "clamp" in case
    # Of the utterances after the first, some have other numbers.
    sigmas, label_weights, clamps = (
        np.array([number if b % 3 < 2 else other for b in range(B)], real_type)
        for number, other in [
            (case.get("sigma", 0), 0.5),
            (1 + case.get("fastemit", 0), 1),
            (case.get("clamp", 0), 0),
        ]
    )

    of = Case(device, nodes, tl, ul, arcs, sizes)
    at = ctypes.byref(of)
    # Logits need not be aligned to more than their own size.
    on_logits = device.put(logits, case.get("offset", 0) * logits.itemsize)
    on_labels = device.put(labels)
    on_arcs = device.empty(num_numbers * itemsize)
    normalizer_bytes = B * T * U1 * len(sizes) * 2 * itemsize
    on_normalizers = device.empty(normalizer_bytes)
    error = lib[f"arc_log_probs_{dtype}"](
        at, on_logits, on_labels, device.put(sigmas), on_arcs, on_normalizers
    )
    tally.must(name, error == 0, f"arc_log_probs: error {error}")
    numbers = [x.astype(np.float64) for x in (sigmas, label_weights, clamps)]
    want, normalizers = reference.arc_log_probs(x, labels, tl, ul, arcs, sizes, numbers[0])
    all_written = device.written(on_arcs, num_numbers * itemsize)
    all_written &= device.written(on_normalizers, normalizer_bytes)
    tally.must(name, all_written, "arc_log_probs: not all written")
    rtol, atol = (1e-6, 4e-6) if f32 else (1e-14, 1e-13)
    got = device.get(on_arcs, want.shape, real_type)
    tally.check(name, f"{dtype} arc_log_probs", got, want, rtol, atol)
    got = device.get(on_normalizers, (*normalizers.shape, 2), real_type).astype(np.float64)
    tally.check(name, f"{dtype} log_normalizers", got.sum(-1), normalizers, rtol, atol)

    on_losses = device.empty(B * itemsize)
    workspace = device.workspace(of, True, itemsize)
    error = lib[f"lattice_{dtype}"](at, 0, on_arcs, on_losses, on_arcs, workspace)
    tally.must(name, error == 0, f"lattice: error {error}")
    losses, posteriors = reference.lattice(want, arcs, tl, ul)
    all_written = device.written(on_losses, B * itemsize)
    all_written &= device.written(on_arcs, num_numbers * itemsize)
    tally.must(name, all_written, "lattice: not all written")
    got = device.get(on_losses, losses.shape, real_type)
    tally.check(name, f"{dtype} losses", got, losses, *((2e-6, 2e-5) if f32 else (1e-14, 1e-12)))
    tolerance = 2e-5 if f32 else 1e-11
    got = device.get(on_arcs, posteriors.shape, real_type)
    tally.check(name, f"{dtype} posteriors", got, posteriors, tolerance, tolerance)

    cotangents = rng.normal(0, 1, B).astype(real_type)
    in_place = case.get("in_place", True)
    on_gradients = on_logits if in_place else device.empty(logits.nbytes)
    error = lib[f"logit_gradients_{dtype}"](
        at, int(clamped), on_logits, on_labels, on_normalizers, on_arcs,
        device.put(label_weights), device.put(clamps), device.put(cotangents), on_gradients,
    )  # fmt: skip
    tally.must(name, error == 0, f"logit_gradients: error {error}")
    all_written = device.written(on_gradients, logits.nbytes)
    tally.must(name, all_written, "logit_gradients: not all written")
    want = reference.logit_gradients(
        x, labels, tl, ul, arcs, sizes, normalizers, posteriors,
        cotangents.astype(np.float64), *numbers[1:],
    )  # fmt: skip
    got = load(device.get(on_gradients, logits.shape, logits.dtype), dtype)
    rtol, atol = {
        "f32": (4e-5, 1e-5),
        "f64": (1e-10, 1e-11),
        "bf16": (2.0**-8, 2e-5),
        "f16": (2.0**-10, 2e-5),
    }[dtype]
    tally.check(name, f"{dtype} logit_gradients", got, want, rtol, atol)


def without_arc(num_frames, num_labels, arcs, T, U1):
    """Where [T, U+1, A] no arc of an utterance is: nobody may look there."""
    t, u, _ = reference.extent(num_frames, num_labels, T, U1)
    absent = np.ones((T, U1, len(arcs)), bool)
    for a, (d, emits, _) in enumerate(arcs):
        absent[: max(t - d + (1 - emits if d else 0), 0), : u + 1 - emits, a] = False
        if d and not emits and d <= t:
            absent[t - d, :u, a] = True  # only the last column's blank leads out
    return absent


def run_lattice(device, tally, case, seed):
    lib, rng, dtype, name = device.lib, np.random.default_rng(seed), case["dtype"], case["name"]
    B, T, U1 = case["shape"]
    real_type, f32 = real(dtype), dtype != "f64"
    itemsize = np.dtype(real_type).itemsize
    arcs = [(d, emits, ()) for d, emits in case["table"]]
    tl, ul = lengths(case, rng, B, T, U1)
    weights = rng.uniform(-8, 0, (B, T, U1, len(arcs)))
    for share, log_prob in case.get("rare", []):
        weights[rng.random(weights.shape) < share] += log_prob
    weights = weights.astype(real_type)
    if case.get("mask", True):
        weights[rng.random(weights.shape) < 0.05] = -INF
    for b in range(B):
        weights[b, without_arc(tl[b], ul[b], arcs, T, U1)] = np.nan

    of = Case(device, case["shape"], tl, ul, arcs)
    with_posteriors = case.get("posteriors", True)
    on_losses = device.empty(B * itemsize)
    on_posteriors = device.empty(weights.nbytes) if with_posteriors else Pointer()
    simple = case.get("simple", False)
    error = lib[f"lattice_{dtype}"](
        ctypes.byref(of), int(simple), device.put(weights), on_losses, on_posteriors,
        device.workspace(of, with_posteriors, itemsize),
    )  # fmt: skip
    tally.must(name, error == 0, f"lattice: error {error}")
    known = np.where(np.isnan(weights), -INF, weights).astype(np.float64)
    losses, posteriors = reference.lattice(known, arcs, tl, ul)
    got = device.get(on_losses, losses.shape, real_type)
    tolerances = (1e-6, 2e-5) if f32 else (1e-14, 1e-12)
    tally.check(name, f"{dtype} lattice: losses", got, losses, *tolerances)
    if with_posteriors:
        written = device.written(on_posteriors, weights.nbytes)
        tally.must(name, written, "posteriors: not all written")
        got = device.get(on_posteriors, posteriors.shape, real_type)
        tolerance = 1e-5 + 2e-7 * (T + U1) if f32 else 1e-11
        tally.check(name, f"{dtype} lattice: posteriors", got, posteriors, tolerance, tolerance)


def worker(directory, arch, cases, seed, uncovered):
    """Runs [(n, case)]: a Tally, faults of each of KINDS, their texts, counts of each kernel."""
    device, tally, faults, texts = Device(directory, arch), Tally(), np.zeros(5, int), []
    counts: dict[str, np.ndarray] = {}
    for n, case in cases:
        device.lib.itp_seed(seed * 100000 + n)
        device.lib.itp_reset()
        with np.errstate(all="ignore"):
            (run_lattice if "table" in case else run_pipeline)(device, tally, case, n)
        found = [device.lib.itp_faults(k) for k in range(len(KINDS))]
        if any(found):
            kinds = ", ".join(f"{v} {k}" for k, v in zip(KINDS, found, strict=True) if v)
            texts.append(f"--- {case['name']}: {kinds}\n{device.lib.itp_text().decode()}")
        faults += found
        for line in device.lib.itp_stats().decode().splitlines():
            kernel, *numbers = line.split("\t")
            if not kernel.startswith("="):
                counts[kernel] = counts.get(kernel, 0) + np.array(numbers, dtype=int)
        device.lib.itp_free_all()
    if uncovered:
        print(device.lib.itp_uncovered(uncovered.encode()).decode())
    return tally, faults, texts, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("arch")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="with random cases of their own")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--seed", type=int, default=1, help="of the interpreter's schedules")
    parser.add_argument("--uncovered", default="", help="a kernel's instructions never executed")
    parser.add_argument("--short", action="store_true", help="no tables")
    args = parser.parse_args()
    rounds = range(1 if args.quick else args.rounds)
    every = enumerate(case for r in rounds for case in inputs.cases(args.quick, r))
    cases = [(n, case) for n, case in every if args.only in case["name"]]
    jobs = 1 if args.uncovered else args.jobs
    began = time.time()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        parts = [
            pool.submit(
                worker, args.directory, args.arch, cases[k::jobs], args.seed, args.uncovered
            )
            for k in range(jobs)
        ]
        tallies, faults, texts, counts = zip(*(part.result() for part in parts), strict=True)

    texts = [text for part in texts for text in part]
    notes = [note for tally in tallies for note in tally.notes]
    print(*texts[:6], *notes[:20], sep="\n")
    if not args.short:
        print("worst absolute errors:")
        for what in sorted({what for tally in tallies for what in tally.worst}):
            print(f"  {what:28s} {max(tally.worst.get(what, 0.0) for tally in tallies):.2e}")
        print("kernel, launches, instructions of warps, of lanes:")
        for kernel in sorted({kernel for part in counts for kernel in part}):
            numbers = sum(part[kernel] for part in counts if kernel in part)
            print(f"  {kernel:44s} {numbers[0]:6d} {numbers[1]:12d} {numbers[2]:13d}")
    total = sum(faults)
    wrong = sum(tally.wrong for tally in tallies)
    rest = "".join(f", {v} {k}" for k, v in zip(KINDS[1:], total[1:], strict=True) if v)
    print(
        f"sm_{args.arch}: {sum(tally.values for tally in tallies)} values, {wrong} wrong, "
        f"{total[0]} races{rest} ({len(cases)} cases, {time.time() - began:.0f} s)"
    )
    sys.exit(1 if wrong or total.any() or not cases else 0)


if __name__ == "__main__":
    main()
