"""burn-align, PyTorch hooks and pyvene on the same workloads, as a Markdown table.

    python benches/peers/compare.py [--rounds N] [--seconds S] [--threads N] [--memory] [NAME…]

Runs all sides one after another, in turned order every other round, and takes each workload's
median over the rounds. Without names, all workloads. With --memory, each named workload has a
process of its own, and the peaks of their resident memory are a second table. What was measured
before a failure or an interruption is still printed.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).with_name("workloads.py")
PACKAGES = ["torch", "transformers", "pyvene"]
US = "burn-align"
THEM = ["hooks", "hooks_one_pass", "pyvene"]

# workload -> side -> of each round: seconds, or MiB
Measured = dict[str, dict[str, list[float]]]


class Failure(Exception):
    """What a person should read."""


def execute(command: list[str], threads: int) -> float:
    """Runs a command in the repository; its output is progress, not result.

    Returns its largest resident memory in MiB.
    """
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    try:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sys.stderr)
    except FileNotFoundError as error:
        raise Failure(f"`{command[0]}` was not found") from error
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        process.kill()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failure(f"`{shlex.join(command)}` failed with status {process.returncode}")
    return usage.ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)  # KiB, but there bytes


def build() -> str:
    """Builds our side; returns the program."""
    command = ["cargo", "bench", "--bench", "workloads", "--no-run", "--message-format", "json"]
    try:
        result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    except FileNotFoundError as error:
        raise Failure("`cargo` was not found") from error
    except subprocess.CalledProcessError as error:
        raise Failure(f"`{shlex.join(command)}` failed with status {error.returncode}") from error
    messages = (json.loads(line) for line in result.stdout.splitlines() if line.startswith("{"))
    programs = [message.get("executable") for message in messages]
    return next(filter(None, reversed(programs)))


def measure(
    side: str, program: str, names: list[str], args: argparse.Namespace
) -> tuple[dict[str, float], float]:
    """Seconds of each workload, and MiB of all."""
    if side == US:
        command = [program, *shlex.split(args.burn_args)]
    else:
        command = [sys.executable, str(PEERS), "--peer", side, "--threads", str(args.threads)]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "lines.json")
        options = ["--json", str(file), "--seconds", str(args.seconds)]
        memory = execute([*command, *options, *names], args.threads)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
    # A line without seconds tells why there are none.
    times = {line["workload"]: line["seconds"] for line in lines if "seconds" in line}
    return times, memory


def rounds(args: argparse.Namespace, times: Measured, memory: Measured) -> None:
    """Adds what is measured, side by side, so that it is there when a later side fails."""
    program = build()
    sides = [US, *THEM]
    for number in range(args.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            print(f"round {number + 1} of {args.rounds}: {side}", file=sys.stderr)
            for names in [[name] for name in args.names] if args.memory else [args.names]:
                seconds, peak = measure(side, program, names, args)
                for workload, value in seconds.items():
                    times.setdefault(workload, {}).setdefault(side, []).append(value)
                    if args.memory:
                        memory.setdefault(workload, {}).setdefault(side, []).append(peak)


def table(measured: Measured, factor: float, unit: str) -> str:
    """The medians, and how many times more than burn-align's."""
    header = ["workload", US, *THEM, *(f"{side} / {US}" for side in THEM)]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for workload, sides in measured.items():
        medians = {side: factor * median(values) for side, values in sides.items()}
        row = [f"{medians[side]:.1f} {unit}" if side in medians else "–" for side in [US, *THEM]]
        for side in THEM:
            both = US in medians and side in medians
            row.append(f"{medians[side] / medians[US]:.2f}×" if both else "–")
        lines.append([workload, *row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def noise(times: Measured) -> str:
    """The largest disagreement between rounds."""
    spreads = [
        ((max(seconds) - min(seconds)) / median(seconds), workload, side)
        for workload, sides in times.items()
        for side, seconds in sides.items()
        if len(seconds) > 1
    ]
    if not spreads:
        return "One round only: nothing is known about the noise."
    spread, workload, side = max(spreads)
    return f"Rounds differ by {spread:.0%} at most ({side}, {workload})."


def cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def output_of(*command: str) -> str:
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return result.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def setting(args: argparse.Namespace, packages: dict[str, str]) -> str:
    """Where and with what this was measured."""
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]
    burn = workspace["dependencies"]["burn"]["version"].lstrip("=")
    revision = output_of("git", "describe", "--always", "--dirty")
    parts = [
        f"{cpu()}, {args.threads} threads",
        f"burn-align {workspace['package']['version']} ({revision}) {args.burn_args}".rstrip(),
        f"burn {burn}",
        " ".join(output_of("rustc", "--version").split()[:2]),
        f"Python {platform.python_version()}",
        *(f"{name} {number}" for name, number in packages.items()),
        f"{args.rounds} rounds of at least {args.seconds:g} s a workload",
    ]
    return "; ".join(parts) + "."


def parse() -> argparse.Namespace:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="workloads [default: all]")
    parser.add_argument("--rounds", type=int, default=2, help="[default: %(default)s]")
    parser.add_argument("--seconds", type=float, default=2.0, help="of repeats, at least")
    parser.add_argument("--threads", type=int, default=cores, help="of each side [default: all]")
    parser.add_argument("--burn-args", default="", help='for our side only, as "--fused"')
    parser.add_argument("--memory", action="store_true", help="also of each NAME, which it needs")
    args = parser.parse_args()
    if args.memory and not args.names:
        parser.error("--memory needs names of workloads")
    return args


def main() -> int:
    args = parse()
    times: Measured = {}
    memory: Measured = {}
    packages: dict[str, str] = {}
    status = 0
    try:
        packages = {name: version(name) for name in PACKAGES}
        rounds(args, times, memory)
    except PackageNotFoundError as error:
        requirements = PEERS.with_name("requirements.txt").relative_to(ROOT)
        message = f"{error.name} is not installed; `pip install -r {requirements}`"
        print(f"compare: {message}", file=sys.stderr)
        status = 1
    except Failure as failure:
        print(f"compare: {failure}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("compare: interrupted", file=sys.stderr)
        status = 130
    if times:
        if status:
            print("compare: incomplete, this is what there is", file=sys.stderr)
        print(table(times, 1e3, "ms"))
        if memory:
            print("\nPeak resident memory, with the model and its building:\n")
            print(table(memory, 1, "MiB"))
        print(f"\n{setting(args, packages)} {noise(times)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
