"""The one runner: `python -m benchmarks NAME [--quick] [--out DIR]`, from the root of a clone."""

import argparse
import importlib
import pathlib
import signal
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
# `python -m` looks into the clone first, where the package lies without its compiled modules. An
# installed one comes before that.
sys.path[:] = [path for path in sys.path if pathlib.Path(path).resolve() != ROOT] + [str(ROOT)]
sys.path.append(str(ROOT / "tests"))  # what sass and exact_chunks share with them

BENCHMARKS = {
    "loss": "value_and_grad beside floors, rivals and peers, on the CPU or a GPU; memory",
    "scaling": "how the times grow with B, T, U, V and the threads, and a picture",
    "joint": "the loss of a joint by chunks of frames beside all logits: time and memory",
    "decoding": "greedy and beam search and streams, beside other searches",
    "sass": "what nvcc made of the CUDA kernels, without a GPU",
    "exact_chunks": "how much of the lattice the CUDA sweep does exactly, without a GPU",
}


def main() -> int:
    from benchmarks import apart

    if sys.argv[1:2] == ["--apart"]:
        apart.answer(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:14}{what}" for name, what in BENCHMARKS.items()),
    )
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help="see below")
    # Options of the benchmark itself are its own, and its --help tells them.
    name = parser.parse_args(sys.argv[1:2]).name
    benchmark = importlib.import_module(f"benchmarks.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small: does all of it run?")
    results = pathlib.Path(__file__).with_name("results")
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="DIR", help=f"default: {results}, or with --quick none"
    )
    if hasattr(benchmark, "add_arguments"):
        benchmark.add_arguments(parser)
    arguments = parser.parse_args(sys.argv[2:])

    from benchmarks.results import Report

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of `finally`
    start = time.monotonic()
    report = Report(name, arguments.out or (None if arguments.quick else results))
    try:
        return benchmark.run(report, arguments) or 0
    finally:  # what there is, if it was stopped
        report.say("", f"{time.monotonic() - start:.0f} s in all")
        report.save()


if __name__ == "__main__":
    sys.exit(main())
