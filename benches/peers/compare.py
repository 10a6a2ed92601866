"""burn-align, PyTorch hooks and pyvene on the same workloads, as a Markdown table.

    python benches/peers/compare.py [--rounds N] [--seconds S] [--threads N] [--memory] [NAME…]
    python benches/peers/compare.py --device cuda --dtype bf16 --model llama2-7b \\
        --batch 32 --pos 80 --layer 15 --memory forward batch das_lowrank

Runs all sides one after another, reversing the order every other round, and takes each workload's
median over the rounds. A name is that of a workload or of a family of them; without names, all run but
those that take minutes. With --cells, peers time a part of each sweep, and scale up what is repeated.
With --memory, each name has its own process, and the peaks of memory are a second table. The limits
of the device, a large matrix product and a large copy, are measured first; the last table shows how
close each side comes to them. What was measured before a failure or an interruption is still
printed, and what a side could not run is listed with the reason.
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).with_name("workloads.py")
PACKAGES = ["torch", "transformers", "pyvene"]
US = "burn-align"
THEM = ["hooks", "hooks_one_pass", "pyvene"]

SHAPE = ["model", "layers", "batch", "pos", "layer", "rank"]  # options of every side

# workload -> side -> of each round: seconds, or MiB
Measured = dict[str, dict[str, list[float]]]


@dataclass
class Found:
    """What was measured."""

    times: Measured = field(default_factory=dict)
    memory: Measured = field(default_factory=dict)
    memory_of: set[str] = field(default_factory=set)  # kinds of peaks
    errors: dict[tuple[str, str], str] = field(default_factory=dict)  # workload, side
    devices: dict[str, str] = field(default_factory=dict)  # by side
    ceilings: dict[str, float] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)  # by workload
    forward_bytes: dict[str, int] = field(default_factory=dict)  # of forward passes alone
    scaled: bool = False  # whether peers ran only some cells

    def add(self, side: str, line: dict) -> None:
        workload = line["workload"]
        self.devices[side] = line["device"]
        if "error" in line:
            self.errors[workload, side] = line["error"]
        if "seconds" in line:
            sides = self.times.setdefault(workload, {})
            sides.setdefault(side, []).append(line["seconds"])
            if "peak_mib" in line:
                sides = self.memory.setdefault(workload, {})
                sides.setdefault(side, []).append(line["peak_mib"])
                self.memory_of.add(line["peak_of"])
        self.scaled |= "cells_timed" in line
        if "flops" in line:
            self.flops[workload] = line["flops"]
            if line["family"] == "forward":
                self.forward_bytes[workload] = line["forward_bytes"]


class Failure(Exception):
    """An error to show to the user."""


def lines_of(command: list[str], threads: int) -> Iterator[dict]:
    """The lines of JSON of a command; its output is progress, not result.

    Fails only after the last line, so that none is lost.
    """
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "lines.json")
        command = [*command, "--json", str(file)]
        try:
            result = subprocess.run(command, env=environment, stdout=sys.stderr)
        except OSError as error:
            raise Failure(f"`{command[0]}` could not be run: {error}") from error
        lines = file.read_text().splitlines() if file.exists() else []
    lines = [json.loads(line) for line in lines]
    yield from lines
    # If no workload could be run, the status is bad, but the lines say why.
    if result.returncode and not (lines and all("error" in line for line in lines)):
        raise Failure(f"`{shlex.join(command)}` failed with status {result.returncode}")


def build(backend: str) -> str:
    """Builds our side; returns the program."""
    command = ["cargo", "bench", "--bench", "workloads", "--features", backend, "--no-run"]
    command += ["--message-format", "json"]
    try:
        result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    except FileNotFoundError as error:
        raise Failure("`cargo` was not found; --program takes what is built already") from error
    except subprocess.CalledProcessError as error:
        raise Failure(f"`{shlex.join(command)}` failed with status {error.returncode}") from error
    messages = (json.loads(line) for line in result.stdout.splitlines() if line.startswith("{"))
    programs = [message.get("executable") for message in messages]
    return next(filter(None, reversed(programs)))


def peers(args: argparse.Namespace) -> list[str]:
    """The command of the peers, without names of workloads."""
    command = [sys.executable, str(PEERS), "--device", args.device, "--dtype", args.dtype]
    command += ["--threads", str(args.threads)]
    return [*command, "--tf32"] if args.tf32 else command


def command_of(side: str, program: str, args: argparse.Namespace) -> list[str]:
    """The command that runs workloads on a side, without their names."""
    if side == US:
        command = [program, "--backend", args.backend, "--dtype", args.dtype]
        command += shlex.split(args.burn_args)
    else:
        command = [*peers(args), "--peer", side]
        if args.cells is not None:
            command += ["--cells", str(args.cells)]
        if args.pass_cells is not None:
            command += ["--pass-cells", str(args.pass_cells)]
    for option in SHAPE:
        if (value := getattr(args, option)) is not None:
            command += [f"--{option}", str(value)]
    if args.repeats is not None:
        command += ["--repeats", str(args.repeats)]
    return [*command, "--seconds", str(args.seconds)]


def rounds(args: argparse.Namespace, found: Found) -> None:
    """Adds the results side by side, so that they survive if a later side fails."""
    program = str(args.program.resolve()) if args.program else build(args.backend)
    (found.ceilings,) = lines_of([*peers(args), "--ceilings"], args.threads)
    sides = [US, *THEM]
    for number in range(args.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            print(f"round {number + 1} of {args.rounds}: {side}", file=sys.stderr)
            for names in [[name] for name in args.names] if args.memory else [args.names]:
                for line in lines_of([*command_of(side, program, args), *names], args.threads):
                    found.add(side, line)


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
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shares(found: Found) -> str:
    """How close each side comes to the device's limits."""
    sides = [US, *THEM]
    tflops, gb_s = found.ceilings["matmul_tflops"], found.ceilings["copy_gb_s"]
    lines = [["workload", "GFLOP", *sides], ["---"] + ["---:"] * (1 + len(sides))]
    for workload, measured in found.times.items():
        if workload not in found.flops:
            continue
        row = [workload, f"{found.flops[workload] / 1e9:,.1f}"]
        for side in sides:
            if side not in measured:
                row.append("–")
                continue
            seconds = median(measured[side])
            cell = f"{found.flops[workload] / seconds / 1e12 / tflops:.0%}"
            if workload in found.forward_bytes:
                cell += f", {found.forward_bytes[workload] / seconds / 1e9 / gb_s:.0%}"
            row.append(cell)
        lines.append(row)
    return (
        f"Ceilings in {found.ceilings['dtype']}, by PyTorch: matrix product {tflops:.3g} TFLOP/s, "
        f"copy {gb_s:.3g} GB/s (read and written).\n"
        "Shares of the matrix product's, and for forward passes of the copy's by reading the "
        "weights once. FLOPs are\nthose of the source and each cell in a pass of its own, with "
        "logits at the last position, whatever a side\nshares, leaves out or adds:\n\n"
        f"{markdown(lines)}"
    )


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


def setting(args: argparse.Namespace, packages: dict[str, str], found: Found) -> str:
    """The machine, the versions and the settings."""
    revision = output_of("git", "describe", "--always", "--dirty")
    try:
        workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]
        burn = workspace["dependencies"]["burn"]["version"].lstrip("=")
        number = workspace["package"]["version"]
    except OSError:  # without the repository, as in the pack of `benches/gpu`
        burn = number = "unknown"
    ours = f"burn-align {number} ({revision}) {args.burn_args}".rstrip()
    built = " ".join(output_of("rustc", "--version").split()[:2])
    chosen = {option: getattr(args, option) for option in SHAPE[1:]}
    shape = [f"{option} {value}" for option, value in chosen.items() if value is not None]
    parts = [
        " ".join([args.model, *shape]) + f", random weights in {args.dtype}",
        f"{cpu()}, {args.threads} threads",
        *([] if args.device == "cpu" else [f"{side} on {d}" for side, d in found.devices.items()]),
        f"{ours}, {args.backend}",
        f"burn {burn}",
        f"program {args.program.name}, given" if args.program else built,
        f"Python {platform.python_version()}",
        *(f"{name} {number}" for name, number in packages.items()),
        *(["PyTorch with TF32"] if args.tf32 else []),
        *([f"peers ran about {args.cells} cells of a sweep, scaled up"] if found.scaled else []),
        f"{args.rounds} rounds of "
        + (f"{args.repeats} repeats" if args.repeats else f"at least {args.seconds:g} s a workload"),
    ]
    return "; ".join(parts) + "."


def parse() -> argparse.Namespace:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="workloads, or families of them [default: all]"
    )
    parser.add_argument("--model", default="gpt2", help="as of both sides [default: %(default)s]")
    parser.add_argument("--layers", type=int, help="use only this many of the model's")
    parser.add_argument("--batch", type=int, help="examples [default: each workload's own]")
    parser.add_argument("--pos", type=int, help="tokens [default: each workload's own]")
    parser.add_argument("--layer", type=int, help="of one interchange and DAS [default: middle]")
    parser.add_argument("--rank", type=int, help="of low-rank DAS [default: 64]")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of PyTorch")
    parser.add_argument("--dtype", choices=["f32", "bf16", "f16"], default="f32")
    parser.add_argument("--tf32", action="store_true", help="let PyTorch use TF32 for f32")
    parser.add_argument("--backend", help="our side's [default: flex, or cuda with --device cuda]")
    parser.add_argument("--program", type=Path, help="our side, built already with that backend")
    parser.add_argument("--burn-args", default="", help='for our side only, as "--fused"')
    parser.add_argument("--cells", type=int, help="peers: time about this many cells, and scale up")
    parser.add_argument("--pass-cells", type=int, help="hooks: most cells in a pass")
    parser.add_argument("--repeats", type=int, help="exactly so many, after one warm-up")
    parser.add_argument("--rounds", type=int, default=2, help="[default: %(default)s]")
    parser.add_argument("--seconds", type=float, default=2.0, help="of repeats, at least")
    parser.add_argument("--threads", type=int, default=cores, help="of each side [default: all]")
    parser.add_argument("--memory", action="store_true", help="also of each NAME, which it needs")
    args = parser.parse_args()
    if args.memory and not args.names:
        parser.error("--memory needs names of workloads")
    args.backend = args.backend or {"cpu": "flex", "cuda": "cuda"}[args.device]
    return args


def main() -> int:
    args = parse()
    found = Found()
    packages: dict[str, str] = {}
    status = 0
    try:
        packages = {name: version(name) for name in PACKAGES}
        rounds(args, found)
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
    if status and (found.times or found.errors):
        print("compare: incomplete, this is what there is", file=sys.stderr)
    if found.times:
        print(table(found.times, 1e3, "ms"))
        if args.memory and found.memory:
            what = {"resident": "the process", "pool": "the GPU, held by the allocator"}
            of = " or ".join(what[kind] for kind in sorted(found.memory_of))
            print(f"\nPeak memory of {of}, with the model:\n")
            print(table(found.memory, 1, "MiB"))
        print(f"\n{shares(found)}")
    for (workload, side), reason in found.errors.items():
        print(f"\ncannot: {side}, {workload}: {reason}")
    if found.times:
        print(f"\n{setting(args, packages, found)} {noise(found.times)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
