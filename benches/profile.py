"""Where the time of a workload goes on the CPU: samples of `perf`, summed up by kind of work.

    python benches/profile.py [--program FILE] [--seconds S] NAME… [-- OPTIONS of the benchmark]

Linux only; `perf` must be installed. Samples of the setup (drawing weights) are left out.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RATE = 499  # samples a second
SETTING_UP = r"rand|chacha|TensorData::random|distribution|ParamInit|boxcar"
# The first that fits.
KINDS = {
    "products in attention, Flex": r"^gemm|gemm_common|gemm_f32|matmul",
    "kernels of ours": r"pulp|burn_align_(flex|quants|models)",
    "copies, zeros and fresh pages": r"memmove|memcpy|memset|clear_page|page_fault|to_contiguous"
    r"|StridedIter|strided|handle_mm|alloc_pages|mem_cgroup|lru_|folio|zap_|unmap|SpecFromIter",
    "waiting and waking": r"spindle|syscall|futex|sched|rayon|crossbeam|spin_unlock|task_switch"
    r"|entry_SYSCALL|sysret|pick_|enqueue|dequeue|wake|idle",
    "other operations of Flex": r"burn_flex|macerator",
}


def build() -> str:
    command = ["cargo", "bench", "--bench", "workloads", "--no-run", "--message-format", "json"]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    messages = (json.loads(line) for line in result.stdout.splitlines() if line.startswith("{"))
    return next(filter(None, reversed([message.get("executable") for message in messages])))


def profile(program: str, name: str, seconds: float, options: list[str]) -> tuple[dict, Counter]:
    """The benchmark's own line, and samples by symbol."""
    with tempfile.TemporaryDirectory() as directory:
        samples, line = Path(directory, "perf.data"), Path(directory, "line.json")
        run = [program, *options, "--seconds", str(seconds), "--json", str(line), name]
        record = ["perf", "record", "-F", str(RATE), "-o", str(samples), *run]
        subprocess.run(record, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        report = ["perf", "report", "-i", str(samples), "--stdio", "--sort", "symbol", "-n", "-q"]
        text = subprocess.run(report, check=True, capture_output=True, text=True).stdout
        measured = json.loads(line.read_text().splitlines()[0])
    symbols: Counter = Counter()
    for row in text.splitlines():
        if found := re.match(r"\s*[\d.]+%\s+(\d+)\s+\[.\]\s+(.*)", row):
            symbols[found[2].strip()] += int(found[1])
    return measured, symbols


def kind_of(symbol: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, symbol)), "other")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="+")
    parser.add_argument("--program", help="the benchmark [default: built first]")
    parser.add_argument("--seconds", type=float, default=10.0)
    own = sys.argv[1:]
    split = own.index("--") if "--" in own else len(own)
    args, options = parser.parse_args(own[:split]), own[split + 1 :]
    program = args.program or build()
    columns = {}
    for name in args.names:
        measured, symbols = profile(program, name, args.seconds, options)
        kinds: Counter = Counter()
        for symbol, count in symbols.items():
            if not re.search(SETTING_UP, symbol):
                kinds[kind_of(symbol)] += count
        columns[name] = (measured, kinds)
        others = [(n, s) for s, n in symbols.items() if kind_of(s) == "other"]
        print(name, sorted(others, reverse=True)[:8], file=sys.stderr)
    print("| share of samples |", " | ".join(columns), "|")
    print("| --- |", " | ".join("---:" for _ in columns), "|")
    for kind in [*KINDS, "other"]:
        shares = [kinds[kind] / kinds.total() for _, kinds in columns.values()]
        print(f"| {kind} |", " | ".join(f"{share:.0%}" for share in shares), "|")
    medians = [f"{measured['seconds'] * 1e3:.0f} ms" for measured, _ in columns.values()]
    print("| median of the repeats |", " | ".join(medians), "|")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("RAYON_NUM_THREADS", str(os.cpu_count()))
    sys.exit(main())
