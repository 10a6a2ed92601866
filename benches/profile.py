"""Where the time of real work goes on the CPU, and how far it is from what it cannot do without.

    python benches/profile.py [OPTION…] NAME… [-- OPTIONS of the benchmark]
    python benches/profile.py [OPTION…] --command -- COMMAND ARGUMENT…

Of workloads of `benches/workloads`, only their repeats are looked at. A table has a column for each:

- shares of the samples of `perf` by kind of work, and the cores that were busy
- bytes allocated, copied and zeroed through the C library, for each token that goes through a layer;
  `count.c` counts them, in a run of its own
- page faults without a read from disk, for memory that is touched for the first time, each as one small
  page, though a huge page takes only one
- the floor by arithmetic, all products at the rate of a large one, and by bytes, the weights read once
  by each walk through the network at the rate of a large copy. The rates are those of PyTorch
  (`benches/peers/workloads.py --ceilings`), or given

Of any other command, everything is looked at, from its start to its end, without tokens and floors.

    python benches/profile.py --command -- python benches/peers/workloads.py --peer hooks forward_8x64

Linux with `perf`, glibc and a C compiler. To tell kernels apart by the types that they are generic
over, the benchmark is built with Rust's `v0` names, in `target/profile`; with --program, kernels of a
build with other names are one kind. --symbols N lists the symbols of each kind.
"""

import argparse
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RATE = 499  # samples a second and core
COUNTED = ["allocated_bytes", "allocations", "copied_bytes", "copies", "zeroed_bytes", "zeroings"]
PAGE = resource.getpagesize()


def named(pattern: str) -> re.Pattern:
    """A pattern of names as Rust writes them; `::` stands for the length in a mangled name, too."""
    return re.compile(pattern.replace("::", r"(?:::|\d+)"))


# The first that fits. Symbols of the kernel begin with `[k]`.
OTHER = "other"
KINDS = {
    "waiting and waking": named(
        r"^\[k\].*(futex|sched|spin_unlock|task_switch|syscall|SYSCALL|sysret|pick_|queue|wake|idle)"
        r"|futex|sched_yield|^syscall|pthread_(cond|mutex)|wait_until|rayon_core::(sleep|latch)"
        r"|crossbeam|kmp_(wait|barrier|hyper)|gomp_(barrier|team)"
    ),
    "fresh memory: allocation, page faults": named(
        r"^\[k\].*(page|handle_mm|anon|memcg|mem_cgroup|lru|folio|zap_|map|brk|pte|vma|mas_)"
        r"|^\[k\].*(list_del|rmqueue)"
        r"|(^|_)(malloc|c?free|calloc|realloc|memalign)\b|malloc_consolidate|sysmalloc|unlink_chunk"
        r"|munmap|mmap|madvise"
    ),
    "copies and zeros": named(
        r"memmove|memcpy|memset|to_contiguous|StridedIter|strided_index|strided_iter|SpecFromIter"
        r"|burn_flex::ops::(cat|slice|expand|flip|repeat_dim|gather_scatter)|copy_contiguous"
        r"|copy_slice_recursive|slice_write|copy_kernel|index_kernel|cat_serial"
    ),
    "attention": named(r"burn_align_flex.*attention|burn_flex::ops::attention|flash_attention"),
    "products": named(
        r"burn_align_flex.*product|burn_align_quants|gemm|gemv|matmul|mkl_|tinyBLAS|ggml_vec_dot"
    ),
    "planning and bookkeeping": named(
        r"burn_align::(engine|front|generate|interventions|methods|training)|btree|hashbrown"
    ),
    "elementwise, norms and reductions": named(
        r"burn_align_flex|burn_align_models::nn|burn_flex::(ops|simd|tensor|layout)|macerator"
        r"|at::native|vectorized_loop|ieee754|expf|tanhf"
    ),
    "kernels, not told apart": named(r"pulp|V[34]::vectorize"),
}


def build() -> str:
    environment = os.environ | {
        "RUSTFLAGS": f"{os.environ.get('RUSTFLAGS', '')} -C symbol-mangling-version=v0".strip(),
        "CARGO_TARGET_DIR": str(ROOT / "target" / "profile"),
    }
    command = ["cargo", "bench", "--bench", "workloads", "--no-run", "--message-format", "json"]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    messages = (json.loads(line) for line in result.stdout.splitlines() if line.startswith("{"))
    return next(filter(None, reversed([message.get("executable") for message in messages])))


def compile_counter(folder: Path) -> Path:
    """`count.c` as a library."""
    library = folder / "count.so"
    compiler = os.environ.get("CC", "cc")
    flags = ["-O2", "-fno-builtin", "-fno-tree-loop-distribute-patterns", "-shared", "-fPIC"]
    source = Path(__file__).with_name("count.c")
    subprocess.run([compiler, *flags, "-o", str(library), str(source), "-ldl"], check=True)
    return library


@dataclass
class Profile:
    """What is known of a workload or a command."""

    line: dict = field(default_factory=dict)  # as the benchmark's JSON
    symbols: Counter = field(default_factory=Counter)  # samples
    counts: dict[str, float] = field(default_factory=dict)  # of a repeat, or of all

    def kinds(self) -> Counter:
        kinds: Counter = Counter()
        for symbol, samples in self.symbols.items():
            kinds[kind_of(symbol)] += samples
        return kinds


def kind_of(symbol: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if pattern.search(symbol)), OTHER)


def samples(command: Sequence[str], repeats_only: bool, folder: Path) -> tuple[Counter, dict]:
    """Runs a command under `perf`: samples by symbol, and what it took altogether."""
    data = folder / "perf.data"
    record = ["perf", "record", "-F", str(RATE), "-o", str(data)]
    environment = dict(os.environ)
    if repeats_only:  # the benchmark says when
        control, answers = folder / "control", folder / "answers"
        for pipe in (control, answers):
            pipe.unlink(missing_ok=True)
            os.mkfifo(pipe)
        record += ["-D", "-1", f"--control=fifo:{control},{answers}"]
        environment["BURN_ALIGN_PERF"] = f"{control},{answers}"
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run(record + ["--", *command], environment)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    total = {
        "seconds": wall,
        "cores_busy": cpu / wall,
        "page_faults": after.ru_minflt - before.ru_minflt,
    }
    report = ["perf", "report", "-i", str(data), "--stdio", "--sort", "symbol", "-n", "-q"]
    text = subprocess.run(report, check=True, capture_output=True, text=True).stdout
    symbols: Counter = Counter()
    for row in text.splitlines():
        if found := re.match(r"\s*[\d.]+%\s+(\d+)\s+\[(.)\]\s+(.*?)[-\s]*$", row):
            symbols[f"[k] {found[3]}" if found[2] == "k" else found[3]] += int(found[1])
    return symbols, total


def run(command: list[str], environment: dict[str, str]) -> None:
    result = subprocess.run(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if result.returncode:
        sys.stderr.buffer.write(result.stderr[-2000:])
        raise SystemExit(
            f"profile: `{' '.join(command[:1])} …` ended with status {result.returncode}"
        )


def counted(command: Sequence[str], library: Path, folder: Path) -> dict[str, float]:
    """Runs a command under `count.c`: everything that it counted."""
    file = folder / "counts"
    file.unlink(missing_ok=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "BURN_ALIGN_COUNTS": str(file)}
    run(list(command), environment)
    if not file.exists():
        raise SystemExit(f"profile: `{command[0]}` cannot be counted: it loads no libraries")
    return dict(zip(COUNTED, struct.unpack("6Q", file.read_bytes())))


def of_workload(name: str, args: argparse.Namespace, library: Path, folder: Path) -> Profile:
    """The repeats of a workload, and nothing before them."""
    file = folder / "line.json"
    command = [args.program, *args.rest, "--json", str(file), name]

    def line() -> dict:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        if len(lines) != 1 or "seconds" not in lines[0]:
            raise SystemExit(
                f"profile: {name}: expected one workload on one backend, found {lines}"
            )
        return lines[0]

    repeats = [] if args.repeats is None else ["--repeats", str(args.repeats)]
    symbols, _ = samples([*command, "--seconds", str(args.seconds), *repeats], True, folder)
    profile = Profile(line(), symbols)
    counted([*command, "--repeats", "1"], library, folder)
    profile.counts = {name: count for name, count in line().items() if name in COUNTED}
    return profile


def of_command(args: argparse.Namespace, library: Path, folder: Path) -> Profile:
    symbols, total = samples(args.rest, False, folder)
    return Profile(total, symbols, counted(args.rest, library, folder))


def ceilings(args: argparse.Namespace) -> tuple[float | None, float | None]:
    """GFLOP/s of a large product and GB/s of a large copy; None if they are not known."""
    if args.gflops and args.gb_s:
        return args.gflops, args.gb_s
    peers = Path(__file__).parent / "peers" / "workloads.py"
    command = [sys.executable, str(peers), "--ceilings", "--threads", str(args.threads)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        print(
            "profile: no floors: PyTorch is not there, and no --gflops and --gb-s", file=sys.stderr
        )
        return args.gflops, args.gb_s
    found = json.loads(result.stdout.splitlines()[-1])
    return args.gflops or 1e3 * found["matmul_tflops"], args.gb_s or found["copy_gb_s"]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def table(
    columns: dict[str, Profile], threads: int, gflops: float | None, gb_s: float | None
) -> str:
    """Markdown."""
    rows: list[list[str]] = []

    def add(title: str, cell) -> None:
        """A row, unless all of its cells are empty."""
        cells = [cell(profile) or "" for profile in columns.values()]
        if any(cells):
            rows.append([title, *cells])

    def share(kind: str):
        def cell(profile: Profile) -> str:
            kinds = profile.kinds()
            return f"{kinds[kind] / kinds.total():.0%}" if kinds[kind] else ""

        return cell

    for kind in [*KINDS, OTHER]:
        add(kind, share(kind))
    add(f"cores busy, of {threads}", lambda it: f"{it.line['cores_busy']:.2f}")
    add(
        "median of the repeats, or time of the command", lambda it: milliseconds(it.line["seconds"])
    )

    def per_token_layer(title: str, amount) -> None:
        def cell(profile: Profile) -> str:
            value = amount(profile)
            if value is None:
                return ""
            if tokens := profile.line.get("token_layers"):
                return f"{value / tokens:,.0f} B"
            return f"{value / 2**20:,.0f} MiB in all"

        add(title, cell)

    def count(name: str):
        return lambda profile: profile.counts.get(name)

    add(
        "tokens × layers",
        lambda it: f"{it.line['token_layers']:,}" if "token_layers" in it.line else "",
    )
    per_token_layer("allocated, a token and layer", count("allocated_bytes"))
    per_token_layer("copied by the C library", count("copied_bytes"))
    per_token_layer("zeroed by the C library", count("zeroed_bytes"))
    per_token_layer("page faults, as small pages", lambda it: PAGE * it.line["page_faults"])

    def floors(profile: Profile) -> list[float]:
        line = profile.line
        if "floor_flops" not in line or not gflops or not gb_s:
            return []
        # A copy reads and writes: its rate counts both.
        return [line["floor_flops"] / gflops / 1e9, line["floor_weight_bytes"] / gb_s / 1e9]

    def floor(index: int):
        return lambda it: milliseconds(floors(it)[index]) if floors(it) else ""

    if gflops and gb_s:
        add(f"floor by arithmetic, {gflops:.0f} GFLOP/s", floor(0))
        add(f"floor by bytes, {gb_s:.0f} GB/s", floor(1))
        add(
            "time / the higher floor",
            lambda it: f"{it.line['seconds'] / max(floors(it)):.2f}" if floors(it) else "",
        )
    header = ["share of samples", *columns]
    lines = [header, ["---", *("---:" for _ in columns)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def symbols_of(profile: Profile, count: int) -> str:
    """The symbols with the most samples of each kind."""
    by_kind: dict[str, list[tuple[int, str]]] = {}
    for symbol, samples in profile.symbols.items():
        by_kind.setdefault(kind_of(symbol), []).append((samples, symbol))
    total = profile.symbols.total()
    lines = []
    for kind, found in by_kind.items():
        lines.append(f"  {kind}")
        lines += [
            f"    {n / total:6.1%}  {symbol}" for n, symbol in sorted(found, reverse=True)[:count]
        ]
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="workloads, not families")
    parser.add_argument("--command", action="store_true", help="profile what follows `--`")
    parser.add_argument("--program", help="the benchmark [default: built first]")
    parser.add_argument("--seconds", type=float, default=10.0, help="of repeats, at least")
    parser.add_argument("--repeats", type=int, help="exactly so many, of work that takes minutes")
    parser.add_argument("--gflops", type=float, help="rate of a large product [default: measured]")
    parser.add_argument("--gb-s", type=float, help="rate of a large copy [default: measured]")
    parser.add_argument("--symbols", type=int, metavar="N", help="list so many of each kind")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    own = sys.argv[1:]
    split = own.index("--") if "--" in own else len(own)
    args = parser.parse_args(own[:split])
    args.rest = own[split + 1 :]
    if bool(args.names) == args.command:
        parser.error("either names of workloads, or --command and a command after `--`")
    if args.command and not args.rest:
        parser.error("--command needs a command after `--`")
    for program in ("perf", os.environ.get("CC", "cc")):
        if not shutil.which(program):
            parser.error(f"`{program}` was not found")
    return args


def main() -> int:
    args = parse()
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        library = compile_counter(folder)
        if args.command:
            columns = {Path(args.rest[0]).name: of_command(args, library, folder)}
            rates = None, None
        else:
            args.program = args.program or build()
            columns = {name: of_workload(name, args, library, folder) for name in args.names}
            rates = ceilings(args)
    print(table(columns, args.threads, *rates))
    if args.symbols:
        for name, profile in columns.items():
            print(f"\n{name}\n{symbols_of(profile, args.symbols)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
