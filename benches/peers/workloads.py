"""The workloads of `benches/workloads` in PyTorch: through pyvene, and with hooks by hand.

    python benches/peers/workloads.py --peer P [--seconds S] [--threads N] [--json FILE] [NAME…]
    python benches/peers/workloads.py --check [--tiny] [NAME…]

Prints, and writes to the file, one JSON line per workload: the median of the repeats in seconds
after a warm-up, and the spread, (slowest - fastest) / median. The model is a random GPT-2 small in
f32 on the CPU. Names say batch × tokens. Every workload ends with the logits at the last position,
of the base or of each cell; a repeat of a `das_…` one is a step of the optimizer (`das.py`). Peers
are `pyvene`; `hooks`, with a batched forward pass per site of a sweep; and `hooks_one_pass`, with a
sweep in one pass (only for sweeps over several sites). --check computes the workloads in every way
and compares all their cells, or the logits of some steps. README.md says more.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import das
import torch
from das import Das
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

TINY = GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=128)
SEEDS = {"base": 1, "source": 2}
LEAST, MOST = 5, 200  # repeats
TOLERANCE = 1e-4  # of logits, in --check
STEPS = 4  # of the optimizer, in --check

Site = tuple[int, str]  # layer, component


@dataclass(frozen=True)
class Cell:
    """One interchange: the units of the base that are taken from the source."""

    layer: int
    component: str  # pyvene's name
    position: int
    head: int | None = None

    @property
    def site(self) -> Site:
        return self.layer, self.component


@dataclass(frozen=True)
class Workload:
    name: str
    batch: int
    pos: int
    cells: list[Cell] | None = None  # None, and no search: a plain forward pass
    das: Das | None = None


def workloads(config: GPT2Config) -> list[Workload]:
    """The list of `benches/workloads`, for a model of this many layers and heads."""
    layers, middle = range(config.n_layer), config.n_layer // 2

    def grid(*components: str) -> list[Cell]:
        return [Cell(layer, c, p) for layer in layers for c in components for p in range(5)]

    heads = [
        Cell(layer, "head_attention_value_output", 4, head)
        for layer in layers
        for head in range(config.n_head)
    ]
    return [
        Workload("forward_1x5", 1, 5),
        Workload("forward_8x64", 8, 64),
        Workload("forward_8x128", 8, 128),
        Workload("single_1x5", 1, 5, [Cell(middle, "block_output", 4)]),
        Workload("sweep_block_output_12x5", 1, 5, grid("block_output")),
        Workload("sweep_attn_mlp_24x5", 1, 5, grid("attention_output", "mlp_output")),
        Workload("head_sweep_12x12", 1, 5, heads),
        Workload("batch_32x32", 32, 32, [Cell(middle, "block_output", 15)]),
        Workload("das_rotated_step_16x32", 16, 32, das=Das(middle, 15)),
        Workload("das_lowrank64_step_16x32", 16, 32, das=Das(middle, 15, rank=64)),
        Workload("das_boundless_step_16x32", 16, 32, das=Das(middle, 15, boundless=True)),
    ]


def tokens(workload: Workload, which: str) -> Tensor:
    """Token ids that look like text to nobody, but are the same each time; [batch, pos]."""
    row = torch.arange(workload.batch)[:, None]
    pos = torch.arange(workload.pos)
    return (SEEDS[which] + row * 7919 + pos * 104_729) % 50_257


# pyvene, as its users write it ---------------------------------------------------------------


def with_pyvene(model: GPT2LMHeadModel, workload: Workload) -> Callable[[], list[Tensor]]:
    """One call per cell, which runs the source, then the base, with logits at all positions."""
    base = {"input_ids": tokens(workload, "base")}
    if workload.das:
        return das.with_pyvene(model, workload.das, base["input_ids"], tokens(workload, "source"))
    if workload.cells is None:
        return lambda: [model(**base).logits[:, -1].clone()]

    with contextlib.redirect_stdout(io.StringIO()):  # it tells what else could be installed
        import pyvene
    source = {"input_ids": tokens(workload, "source")}

    def intervenable(layer: int, component: str) -> pyvene.IntervenableModel:
        unit = "h.pos" if component.startswith("head_") else "pos"
        config = pyvene.IntervenableConfig(
            [{"layer": layer, "component": component, "unit": unit}],
            intervention_types=pyvene.VanillaIntervention,
            model_type=type(model),
        )
        return pyvene.IntervenableModel(config, model)

    # One per site, whose positions or heads are then looped over.
    intervenables = {site: intervenable(*site) for site in {cell.site for cell in workload.cells}}

    def locations(cell: Cell) -> dict:
        if cell.head is None:
            return {"sources->base": cell.position}
        # Of [intervention][heads, positions][batch][unit], the same in source and base.
        units = [[[[cell.head]] * workload.batch, [[cell.position]] * workload.batch]]
        return {"sources->base": (units, units)}

    def run() -> list[Tensor]:
        results = []
        for cell in workload.cells:
            _, intervened = intervenables[cell.site](base, [source], locations(cell))
            results.append(intervened.logits[:, -1].clone())  # not the logits of all positions
        return results

    return run


# PyTorch hooks, batched by hand --------------------------------------------------------------

# Component -> module in the block, and whether it is the module's input.
MODULES = {
    "block_output": ("", False),
    "attention_output": ("attn.resid_dropout", False),
    "mlp_output": ("mlp", False),
    "head_attention_value_output": ("attn.c_proj", True),
}


@contextlib.contextmanager
def tapped(model: GPT2LMHeadModel, taps: dict[Site, Callable]) -> Iterator[None]:
    """Shows the activation at each site, [batch, pos, d_model], to the tap there, in this block."""
    with contextlib.ExitStack() as handles:
        for (layer, component), tap in taps.items():
            path, of_input = MODULES[component]
            module = model.transformer.h[layer].get_submodule(path)
            if of_input:
                handle = module.register_forward_pre_hook(lambda _, args, tap=tap: tap(args[0]))
            else:
                handle = module.register_forward_hook(
                    lambda _, __, out, tap=tap: tap(out[0] if isinstance(out, tuple) else out)
                )
            handles.enter_context(handle)
        yield


def with_hooks(
    model: GPT2LMHeadModel, workload: Workload, one_pass: bool = False
) -> Callable[[], list[Tensor]]:
    """The source once, then the cells as rows of one batched forward pass per site, or in all."""
    batch, base = workload.batch, tokens(workload, "base")
    if workload.das:
        return das.with_hooks(model, workload.das, base, tokens(workload, "source"))

    def last_logits(ids: Tensor) -> Tensor:
        # The cache of keys and values is left on, as by default: its absence costs 4 ms a pass.
        hidden = model.transformer(ids).last_hidden_state
        return model.lm_head(hidden[:, -1])

    if workload.cells is None:
        return lambda: [last_logits(base)]

    source = tokens(workload, "source")
    groups = defaultdict(list)  # of the cells that share a pass, in the order of the results
    for cell in workload.cells:
        groups[None if one_pass else cell.site].append(cell)
    sites = {cell.site for cell in workload.cells}

    def patches(group: list[Cell], cache: dict) -> dict[Site, Callable]:
        """Per site, the function that writes the source's units into the rows of its cells."""
        rows_of = defaultdict(list)
        for index, cell in enumerate(group):
            rows_of[cell.site].append((index, cell))

        def patch(site: Site) -> Callable:
            indices = torch.tensor([index for index, _ in rows_of[site]])[:, None]
            position = torch.tensor([cell.position for _, cell in rows_of[site]])[:, None]
            head = torch.tensor([cell.head or 0 for _, cell in rows_of[site]])[:, None]
            heads = model.config.n_head if site[1].startswith("head_") else 1
            example = torch.arange(batch)
            row = indices * batch + example  # [cell, batch]

            def write(activation: Tensor) -> None:
                split = (heads, activation.shape[-1] // heads)
                units = cache[site].unflatten(-1, split)[example, position, head]
                activation.unflatten(-1, split)[row, position, head] = units

            return write

        return {site: patch(site) for site in rows_of}

    cache: dict[Site, Tensor] = {}
    store = {site: lambda activation, site=site: cache.update({site: activation}) for site in sites}
    passes = [(base.repeat(len(group), 1), patches(group, cache)) for group in groups.values()]

    def run() -> list[Tensor]:
        with tapped(model, store):
            model.transformer(source)
        results = []
        for ids, taps in passes:
            with tapped(model, taps):
                results.extend(last_logits(ids).split(batch))
        cache.clear()
        return results

    return run


PEERS = {
    "pyvene": with_pyvene,
    "hooks": with_hooks,
    "hooks_one_pass": partial(with_hooks, one_pass=True),
}


def is_for(peer: str, workload: Workload) -> bool:
    """Whether the peer is another one than `hooks`: with cells at one site, one pass is one pass."""
    sites = {cell.site for cell in workload.cells or []}
    return peer != "hooks_one_pass" or len(sites) > 1


def repeat(run: Callable[[], list[Tensor]], seconds: float) -> list[float]:
    """Seconds of every repeat, ascending."""
    run()
    run()
    times, start = [], time.perf_counter()
    while len(times) < LEAST or (len(times) < MOST and time.perf_counter() - start < seconds):
        before = time.perf_counter()
        results = run()
        times.append(time.perf_counter() - before)
        del results
    return sorted(times)


def check(model: GPT2LMHeadModel, chosen: list[Workload]) -> bool:
    """Whether the peers agree in every cell, and the cells do something."""
    passed = True
    for workload in chosen:
        peers = {peer: prepare for peer, prepare in PEERS.items() if is_for(peer, workload)}
        runs = STEPS if workload.das else 1

        def results(prepare: Callable) -> Tensor:
            run = prepare(model, workload)
            return torch.stack([result for _ in range(runs) for result in run()])

        found = {peer: results(prepare) for peer, prepare in peers.items()}
        expected = found.pop("pyvene")  # [cell or step, batch, vocab]
        difference = max((result - expected).abs().max().item() for result in found.values())
        line = f"{workload.name}: {len(expected)} results, max abs difference {difference:.1e}"
        agree = difference < TOLERANCE
        if workload.das or workload.cells is not None:
            plain = model(tokens(workload, "base")).logits[:, -1]
            effect = (expected - plain).abs().max().item()
            agree &= effect > 10 * TOLERANCE  # else nothing is shown by the agreement
            line += f", largest effect {effect:.1e}"
        print(line if agree else f"{line}: FAILED", flush=True)
        passed &= agree
    return passed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="workloads [default: all]")
    parser.add_argument("--peer", choices=PEERS, help="how to intervene")
    parser.add_argument("--check", action="store_true", help="compare the peers, do not time")
    parser.add_argument("--seconds", type=float, default=2.0, help="of repeats, at least")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="[default: all cores]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the lines here")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--tiny", action="store_true", help="3 layers, to test this file")
    args = parser.parse_args()
    if not args.check and not args.peer:
        parser.error("--peer or --check is needed")
    known = [workload.name for workload in workloads(TINY)]
    if unknown := set(args.names).difference(known):
        parser.error(f"no workload {', '.join(sorted(unknown))}; expected {', '.join(known)}")
    return args


@torch.no_grad()
def main() -> int:
    args = parse()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = TINY if args.tiny else GPT2Config()
    config._attn_implementation = args.attention
    chosen = [w for w in workloads(config) if not args.names or w.name in args.names]
    if args.peer:
        chosen = [workload for workload in chosen if is_for(args.peer, workload)]
    # Without workloads, there is nothing to wait for.
    model = GPT2LMHeadModel(config).eval() if chosen else None
    if args.check:
        return 0 if check(model, chosen) else 1

    with args.json.open("w") if args.json else contextlib.nullcontext() as file:
        for workload in chosen:
            times = repeat(PEERS[args.peer](model, workload), args.seconds)
            median = times[len(times) // 2]
            line = {
                "workload": workload.name,
                "backend": args.peer,
                "dtype": "f32",
                "seconds": median,
                "spread": (times[-1] - times[0]) / median,
            }
            line = json.dumps(line | ({"tiny": True} if args.tiny else {}))
            print(line, flush=True)
            if file:
                print(line, file=file, flush=True)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    mib = peak / 2 ** (20 if sys.platform == "darwin" else 10)
    print(json.dumps({"peer": args.peer, "peak_rss_mib": round(mib)}), file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
