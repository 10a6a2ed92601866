"""The workloads of `benches/workloads` in PyTorch: through pyvene, and with hand-written hooks.

    python benches/peers/workloads.py --peer P [--cells N] [OPTION…] [NAME…]
    python benches/peers/workloads.py --check [--tiny] [OPTION…] [NAME…]
    python benches/peers/workloads.py --ceilings [--device D] [--dtype T]

Prints, and writes to the file, one JSON line per workload: the median of the repeats in seconds
after a warm-up, the spread, (slowest - fastest) / median, and the peak of memory; or why it could
not be run. The model has the shape `--model` and random weights. Names and options are those of
`benches/workloads`; names contain batch × tokens. Every workload ends with the logits at the last
position, of the base or of each cell; a repeat of a `das_…` workload is an optimizer step
(`das.py`). Peers are `pyvene`; `hooks`, with a batched forward pass per site of a sweep, or several
of --pass-cells; and `hooks_one_pass`, with a sweep in one pass (only for short sweeps over several
sites). Of a long sweep, --cells times so many cells, and scales up what is repeated for others: calls,
or passes, but not the source's pass before them. The line says which. --check computes
the workloads with every peer and compares all their cells, or the logits of some steps. --ceilings
measures a large matrix product and a large copy. See README.md.

Files: `tasks.py` (the workloads), `models.py` (shapes), `measure.py` (time and memory), `das.py`.
"""

import argparse
import contextlib
import io
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import das
import measure
import torch
from models import DTYPES, PRESETS, Shape, activation, blocks, build, last_logits, weight_bytes
from tasks import Cell, Choices, Site, Workload, chosen, tokens, workloads
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

TOLERANCE = 1e-4  # of logits, in --check
STEPS = 4  # of the optimizer, in --check
ONE_PASS = 16_384  # most tokens in one pass of `hooks_one_pass`

Run = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Prepared:
    """A workload that is ready to run: something once, then a number of calls or passes."""

    parts: list[tuple[int, Run]]  # how many cells each computes
    once: Callable[[], object] | None = None

    @classmethod
    def of(cls, run: Run) -> "Prepared":
        return cls([(1, run)])

    @property
    def cells(self) -> int:
        return sum(cells for cells, _ in self.parts)

    def run(self) -> list[Tensor]:
        if self.once:
            self.once()
        return [result for _, part in self.parts for result in part()]

    def some(self, cells: int) -> "Prepared":
        """Evenly chosen parts with about so many cells, and what runs once."""
        count = max(1, round(len(self.parts) * min(1, cells / self.cells)))
        return replace(self, parts=[self.parts[i * len(self.parts) // count] for i in range(count)])


# pyvene, as its users write it ---------------------------------------------------------------


def with_pyvene(model: PreTrainedModel, workload: Workload) -> Prepared:
    """One call per cell, which runs the source, then the base, with logits at all positions."""
    base = {"input_ids": tokens(workload, "base", model)}
    if workload.das:
        source = tokens(workload, "source", model)
        return Prepared.of(das.with_pyvene(model, workload.das, base["input_ids"], source))
    if workload.cells is None:
        return Prepared.of(lambda: [model(**base).logits[:, -1].clone()])

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what else could be installed
        import pyvene
    source = {"input_ids": tokens(workload, "source", model)}

    def intervenable(layer: int, component: str) -> pyvene.IntervenableModel:
        unit = "h.pos" if component.startswith("head_") else "pos"
        config = pyvene.IntervenableConfig(
            [{"layer": layer, "component": component, "unit": unit}],
            intervention_types=pyvene.VanillaIntervention,
            model_type=type(model),
        )
        intervenable = pyvene.IntervenableModel(config, model)
        intervenable.set_device(model.device)
        return intervenable

    # One per site, whose positions or heads are then looped over.
    intervenables = {site: intervenable(*site) for site in {cell.site for cell in workload.cells}}

    def locations(cell: Cell) -> dict:
        if cell.head is None:
            return {"sources->base": cell.position}
        # Of [intervention][heads, positions][batch][unit], the same in source and base.
        units = [[[[cell.head]] * workload.batch, [[cell.position]] * workload.batch]]
        return {"sources->base": (units, units)}

    def call(cell: Cell) -> list[Tensor]:
        _, intervened = intervenables[cell.site](base, [source], locations(cell))
        return [intervened.logits[:, -1].clone()]  # not the logits of all positions

    return Prepared([(1, partial(call, cell)) for cell in workload.cells])


# PyTorch hooks, batched by hand --------------------------------------------------------------

# Model type -> component -> module in the block, and whether it is the module's input.
MODULES = {
    "gpt2": {
        "block_output": ("", False),
        "attention_output": ("attn.resid_dropout", False),
        "mlp_output": ("mlp", False),
        "head_attention_value_output": ("attn.c_proj", True),
    },
    "llama": {
        "block_output": ("", False),
        "attention_output": ("self_attn.o_proj", False),
        "mlp_output": ("mlp", False),
        "head_attention_value_output": ("self_attn.o_proj", True),
    },
}


@contextlib.contextmanager
def tapped(model: PreTrainedModel, taps: dict[Site, Callable]) -> Iterator[None]:
    """Shows the activation at each site, [batch, pos, d_model], to the tap there, in this block."""
    modules = MODULES[model.config.model_type]
    with contextlib.ExitStack() as handles:
        for (layer, component), tap in taps.items():
            path, of_input = modules[component]
            module = blocks(model)[layer].get_submodule(path)
            if of_input:
                handle = module.register_forward_pre_hook(lambda _, args, tap=tap: tap(args[0]))
            else:
                handle = module.register_forward_hook(
                    lambda _, __, out, tap=tap: tap(activation(out))
                )
            handles.enter_context(handle)
        yield


def with_hooks(
    model: PreTrainedModel, workload: Workload, one_pass: bool = False, most: int | None = None
) -> Prepared:
    """The source once, then the cells as rows of batched forward passes: one, or at least one per site.

    A pass of a site has at most so many cells.
    """
    batch, base = workload.batch, tokens(workload, "base", model)
    device = base.device
    if workload.das:
        return Prepared.of(das.with_hooks(model, workload.das, base, tokens(workload, "source", model)))

    # On the CPU, the cache of keys and values is left on, as by default: its absence costs 4 ms a
    # pass. On a GPU, it would cost much of the memory.
    options = {"use_cache": device.type == "cpu"}
    if workload.cells is None:
        return Prepared.of(lambda: [last_logits(model, base, **options)])

    source = tokens(workload, "source", model)
    by_site = defaultdict(list)
    for cell in workload.cells:
        by_site[None if one_pass else cell.site].append(cell)
    # Of the cells that share a pass, in the order of the results.
    groups = [
        group[first : first + (most or len(group))]
        for group in by_site.values()
        for first in range(0, len(group), most or len(group))
    ]
    sites = {cell.site for cell in workload.cells}

    cache: dict[Site, Tensor] = {}

    def patches(group: list[Cell]) -> dict[Site, Callable]:
        """Per site, the function that writes the source's units into the rows of its cells."""
        rows_of = defaultdict(list)
        for index, cell in enumerate(group):
            rows_of[cell.site].append((index, cell))

        def patch(site: Site) -> Callable:
            def column(values: Iterator[int]) -> Tensor:
                return torch.tensor(list(values), device=device)[:, None]

            indices = column(index for index, _ in rows_of[site])
            position = column(cell.position for _, cell in rows_of[site])
            head = column(cell.head or 0 for _, cell in rows_of[site])
            heads = model.config.num_attention_heads if site[1].startswith("head_") else 1
            example = torch.arange(batch, device=device)
            row = indices * batch + example  # [cell, batch]

            def write(activation: Tensor) -> None:
                split = (heads, activation.shape[-1] // heads)
                units = cache[site].unflatten(-1, split)[example, position, head]
                activation.unflatten(-1, split)[row, position, head] = units

            return write

        return {site: patch(site) for site in rows_of}

    store = {site: lambda activation, site=site: cache.update({site: activation}) for site in sites}

    def run_source() -> None:
        cache.clear()
        with tapped(model, store):
            model.base_model(source, **options)

    def prepare(group: list[Cell]) -> tuple[int, Run]:
        ids, taps = base.repeat(len(group), 1), patches(group)

        def run() -> list[Tensor]:
            with tapped(model, taps):
                return list(last_logits(model, ids, **options).split(batch))

        return len(group), run

    return Prepared([prepare(group) for group in groups], run_source)


PEERS = {
    "pyvene": with_pyvene,
    "hooks": with_hooks,
    "hooks_one_pass": partial(with_hooks, one_pass=True),
}


def is_for(peer: str, workload: Workload) -> bool:
    """Whether the peer differs from `hooks`, as with cells at several sites, and can run this."""
    cells = workload.cells or []
    tokens_at_once = len(cells) * workload.batch * workload.pos
    several = len({cell.site for cell in cells}) > 1
    return peer != "hooks_one_pass" or several and tokens_at_once <= ONE_PASS


def prepared(peer: str, model: PreTrainedModel, workload: Workload, most: int | None) -> Prepared:
    options = {"most": most} if peer == "hooks" else {}
    return PEERS[peer](model, workload, **options)


def timed(model: PreTrainedModel, workload: Workload, args: argparse.Namespace) -> dict:
    """Seconds, or the error, and memory, under the names of `benches/workloads`."""
    line = {}
    measure.begin_peak(model.device)
    try:
        whole = prepared(args.peer, model, workload, args.pass_cells)
        part = whole.some(args.cells) if args.cells and workload.cells else whole

        def median_of(run: Run) -> float:
            times = measure.repeat(run, args.seconds, model.device, args.repeats)
            median = times[len(times) // 2]
            line.update(spread=(times[-1] - times[0]) / median, repeats=len(times))
            return median

        once = median_of(part.once) if part.once and part.cells < whole.cells else 0.0
        seconds = median_of(part.run)
        line["seconds"] = seconds
        if part.cells < whole.cells:
            # What runs once counts once.
            line["seconds"] = once + (seconds - once) * whole.cells / part.cells
            line |= {"cells": whole.cells, "cells_timed": part.cells}
            line |= {"parts": len(whole.parts), "parts_timed": len(part.parts)}
            line |= {"seconds_once": once, "seconds_timed": seconds}
    except Exception as error:  # of any kind: this peer cannot run this here
        line = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        for module in model.modules():  # what pyvene has left in it
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
    return line | measure.peak(model.device)


def check(model: PreTrainedModel, workloads: list[Workload], most: int | None) -> bool:
    """Whether the peers agree in every cell, and the cells do something."""
    passed = True
    for workload in workloads:
        runs = STEPS if workload.das else 1

        def results(peer: str) -> Tensor:
            run = prepared(peer, model, workload, most).run
            return torch.stack([result for _ in range(runs) for result in run()])

        found = {peer: results(peer) for peer in PEERS if is_for(peer, workload)}
        expected = found.pop("pyvene")  # [cell or step, batch, vocab]
        difference = max((result - expected).abs().max().item() for result in found.values())
        line = f"{workload.name}: {len(expected)} results, max abs difference {difference:.1e}"
        agree = difference < TOLERANCE
        if workload.das or workload.cells is not None:
            plain = model(tokens(workload, "base", model)).logits[:, -1]
            effect = (expected - plain).abs().max().item()
            agree &= effect > 10 * TOLERANCE  # otherwise agreement shows nothing
            line += f", largest effect {effect:.1e}"
        print(line if agree else f"{line}: FAILED", flush=True)
        passed &= agree
    return passed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="workloads, or families of them [default: all]"
    )
    parser.add_argument("--peer", choices=PEERS, help="how to intervene")
    parser.add_argument("--check", action="store_true", help="compare the peers, do not time")
    parser.add_argument("--ceilings", action="store_true", help="time a matrix product and a copy")
    parser.add_argument("--model", choices=PRESETS, default="gpt2", help="[default: %(default)s]")
    parser.add_argument("--layers", type=int, help="use only this many of the model's")
    parser.add_argument("--batch", type=int, help="examples [default: each workload's own]")
    parser.add_argument("--pos", type=int, help="tokens [default: each workload's own]")
    parser.add_argument("--layer", type=int, help="of one interchange and DAS [default: middle]")
    parser.add_argument("--rank", type=int, default=64, help="of low-rank DAS [default: 64]")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="f32", help="[default: %(default)s]")
    parser.add_argument("--tf32", action="store_true", help="matrix products of f32 on a GPU")
    parser.add_argument("--seconds", type=float, default=2.0, help="of repeats, at least")
    parser.add_argument("--repeats", type=int, help="exactly so many, after one warm-up")
    parser.add_argument(
        "--cells", type=int, help="time about this many cells of a sweep, evenly chosen, and scale up"
    )
    parser.add_argument(
        "--pass-cells",
        type=int,
        help="hooks: most cells in a pass [default: 40 on the CPU, all of a site on a GPU]",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="[default: all cores]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the lines here")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--tiny", action="store_true", help="3 narrow layers, to test this file")
    args = parser.parse_args()
    if sum([args.check, args.ceilings, bool(args.peer)]) != 1:
        parser.error("one of --peer, --check and --ceilings is needed")
    if args.check and args.dtype != "f32":
        parser.error("--check is in f32")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device")

    shape = PRESETS[args.model].tiny() if args.tiny else PRESETS[args.model]
    for option, most in [
        ("layers", shape.layers),
        ("batch", None),
        ("pos", shape.max_positions),
        ("rank", shape.d_model),
        ("cells", None),
        ("pass_cells", None),
        ("repeats", None),
    ]:
        value = getattr(args, option)
        if value is not None and (value < 1 or most is not None and value > most):
            parser.error(f"--{option.replace('_', '-')} {value}: expected 1 to {most or 'any number'}")
    args.shape = replace(shape, layers=args.layers or shape.layers)
    if args.layer is not None and not 0 <= args.layer < args.shape.layers:
        parser.error(f"--layer {args.layer}: expected 0 to {args.shape.layers - 1}")

    known = workloads(args.shape, Choices(args.batch, args.pos, args.layer, args.rank))
    names = {workload.name for workload in known} | {workload.family for workload in known}
    if unknown := set(args.names) - names:
        expected = ", ".join(workload.name for workload in known)
        parser.error(
            f"no workload {', '.join(sorted(unknown))} on this shape; expected {expected}, or a "
            f"family: {', '.join(dict.fromkeys(workload.family for workload in known))}"
        )
    args.chosen = chosen(known, args.names)
    if args.pass_cells is None and args.device == "cpu":
        args.pass_cells = 40
    if args.peer:
        args.chosen = [workload for workload in args.chosen if is_for(args.peer, workload)]
    return args


def model_name(args: argparse.Namespace) -> str:
    return f"{'tiny ' if args.tiny else ''}{args.model}:{args.shape.layers}"


@torch.no_grad()
def main() -> int:
    args = parse()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
    dtype, device = DTYPES[args.dtype], torch.device(args.device)
    setting = {"dtype": args.dtype, "device": measure.name_of(device), "threads": args.threads}

    with args.json.open("w") if args.json else contextlib.nullcontext() as file:

        def tell(line: dict) -> None:
            print(json.dumps(line), flush=True)
            if file:
                print(json.dumps(line), file=file, flush=True)

        if args.ceilings:
            tell(setting | measure.ceilings(dtype, device))
            return 0
        if not args.chosen:  # nothing to wait for
            return 0
        model = build(args.shape, args.attention, dtype, device)
        if args.check:
            return 0 if check(model, args.chosen, args.pass_cells) else 1

        setting |= {"backend": args.peer, "model": model_name(args)}
        floor = {"forward_bytes": weight_bytes(model)}
        times = 0
        for workload in args.chosen:
            line = {"workload": workload.name, "family": workload.family} | setting
            if flops := workload.flops(args.shape):
                line |= {"flops": flops} | floor
            line |= timed(model, workload, args)
            times += "seconds" in line
            tell(line)
    return 0 if times else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
