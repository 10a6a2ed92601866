"""The `das_grid_…` workload of `benches/workloads` in pyvene: a search in every cell, one by one.

    python benches/peers/grid.py [--cells N] [OPTION…]

In each cell, a layer and one of the last four positions, pyvene's `IntervenableModel` with a
`LowRankRotatedSpaceIntervention` is made, trained for two epochs of batches of 16, and evaluated on
16 held-out pairs, as its tutorials do. A cell shares nothing with another, so --cells N times N of them,
evenly chosen, and scales up to all; without it, all are run. (Ours also evaluates three controls.)

Prints a JSON line: the seconds of the grid, those of each cell that was timed, and how many these
are. Random GPT-2 small, or another shape; the same token ids and labels as in ours.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace

import das
import measure
import torch
from models import PRESETS, build
from tasks import Das
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

COLUMNS, RANK, BATCH, EPOCHS, HELD_OUT = 4, 16, 16, 2, 16
CPU = torch.device("cpu")


def pairs(model: PreTrainedModel, seeds: tuple[int, int], batch: int, pos: int) -> list[Tensor]:
    """Bases, sources and labels: those of the benchmark."""
    row, position = torch.arange(batch)[:, None], torch.arange(pos)
    ids = [(seed + row * 7919 + position * 104_729) % model.config.vocab_size for seed in seeds]
    return [*ids, das.labels(model, batch)]


def batches(data: list[Tensor], epoch: int) -> Iterator[list[Tensor]]:
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(epoch))
    return ([values[some] for values in data] for some in order.split(BATCH))


def fit(model: PreTrainedModel, cell: Das, training: list[Tensor], held_out: list[Tensor]) -> float:
    """The share of held-out pairs whose label is predicted."""
    search = das.PyveneSearch(model, cell)
    for epoch in range(EPOCHS):
        for base, source, wanted in batches(training, epoch):
            search.step(base, source, wanted)
    base, source, wanted = held_out
    found = search.logits(base, source).argmax(-1)
    for module in model.modules():  # what pyvene has left in it
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return (found == wanted).float().mean().item()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=PRESETS, default="gpt2", help="[default: %(default)s]")
    parser.add_argument("--layers", type=int, help="use only this many of the model's")
    parser.add_argument("--batch", type=int, default=256, help="examples [default: %(default)s]")
    parser.add_argument("--pos", type=int, default=8, help="tokens [default: %(default)s]")
    parser.add_argument("--cells", type=int, help="time this many, evenly chosen [default: all]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="[default: all cores]")
    args = parser.parse_args()
    shape = PRESETS[args.model]
    for option, most in [
        ("layers", shape.layers),
        ("batch", None),
        ("pos", shape.max_positions),
        ("cells", None),
    ]:
        value = getattr(args, option)
        if value is not None and (value < 1 or most is not None and value > most):
            parser.error(f"--{option} {value}: expected 1 to {most or 'any number'}")
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    shape = replace(shape, layers=args.layers or shape.layers)
    model = build(shape, "sdpa", torch.float32, CPU)
    training = pairs(model, (1, 2), args.batch, args.pos)
    held_out = pairs(model, (3, 4), HELD_OUT, args.pos)
    columns = range(max(args.pos - COLUMNS, 0), args.pos)
    rank = min(RANK, shape.d_model)
    cells = [Das(layer, at, rank=rank) for layer in range(shape.layers) for at in columns]
    count = min(args.cells or len(cells), len(cells))
    timed = [cells[i * len(cells) // count] for i in range(count)]

    # What PyTorch and pyvene do once is not repeated for a cell.
    fit(model, cells[0], [values[:BATCH] for values in training], held_out)
    measure.begin_peak(CPU)
    seconds, accuracies = [], []
    for cell in timed:
        start = time.perf_counter()
        accuracies.append(fit(model, cell, training, held_out))
        seconds.append(time.perf_counter() - start)
    line = {
        "workload": f"das_grid_{shape.layers}x{len(columns)}_rank{rank}_{args.batch}x{args.pos}",
        "backend": "pyvene",
        "model": f"{args.model}:{shape.layers}",
        "threads": args.threads,
        "seconds": sum(seconds) * len(cells) / len(timed),
        "cells": len(cells),
        "cells_timed": len(timed),
        "seconds_of_cells": seconds,
        "steps_of_a_cell": EPOCHS * -(-args.batch // BATCH),
        "accuracies": accuracies,
    }
    print(json.dumps(line | measure.peak(CPU)), flush=True)


if __name__ == "__main__":
    main()
