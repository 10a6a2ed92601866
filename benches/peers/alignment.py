"""pyvene's accuracy on the pairs of the example `das_map`, to compare with ours.

    for seed in 0 1 2 3; do
      cargo run --release --example das_map -- \
        --seed $seed --write-pairs pairs-$seed.json --json ours-$seed.json
    done
    python benches/peers/alignment.py burn-align-models/capitals-gpt2 \
      --pairs pairs-*.json --beside ours-*.json

At the country's token and at the last one, after each layer, pyvene's
`LowRankRotatedSpaceIntervention` is trained as the example trains ours: the same pairs, rank,
batches, epochs and learning rates. Its rotation starts elsewhere, and sees the pairs in another
order. Prints the accuracies on the held-out pairs of each file, the difference of the means, with
the standard error of the files' differences, and the greatest difference.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import das
import torch
from tasks import Das
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

PLACES = {"country": 3, "last": 4}
WARM = 0.05  # share of the steps


def factor(steps: int) -> Callable[[int], float]:
    """The learning rate rises, then falls to 0."""
    warm = round(WARM * steps)
    return lambda step: step / warm if step < warm else (steps - step) / max(steps - warm, 1)


def read(file: Path) -> list[list[Tensor]]:
    """Bases, sources and labels, for training and held out."""
    data = json.loads(file.read_text())
    parts = [
        [torch.tensor(data[part][key]) for key in ("base", "source", "labels")]
        for part in ("training", "held_out")
    ]
    for part in parts:
        part[2] = part[2].squeeze(-1)
    return parts


def accuracy(
    model: PreTrainedModel,
    cell: Das,
    training: list[Tensor],
    held_out: list[Tensor],
    args: argparse.Namespace,
    seed: int,
) -> float:
    search = das.PyveneSearch(model, cell)
    steps = args.epochs * -(-len(training[0]) // args.batch)
    for group in search.optimizer.param_groups:
        group["lr"] = args.learning_rate
    schedule = torch.optim.lr_scheduler.LambdaLR(search.optimizer, factor(steps))
    generator = torch.Generator().manual_seed(seed)
    for _epoch in range(args.epochs):
        for some in torch.randperm(len(training[0]), generator=generator).split(args.batch):
            search.step(*(values[some] for values in training))
            schedule.step()
    base, source, wanted = held_out
    with torch.no_grad():
        found = search.logits(base, source).argmax(-1)
    for module in model.modules():  # what pyvene has left in it
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return (found == wanted).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--pairs", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], metavar="FILE", help="the example's --json"
    )
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    if args.beside and len(args.beside) != len(args.pairs):
        parser.error("--beside: a file for each of --pairs")
    pairs = [read(file) for file in args.pairs]
    ours = [json.loads(file.read_text())["cells"] for file in args.beside]
    largest = 0.0
    for layer in range(model.config.num_hidden_layers):
        for name, position in PLACES.items():
            cell = Das(layer, position, rank=args.rank)
            found = [
                accuracy(model, cell, training, held_out, args, seed)
                for seed, (training, held_out) in enumerate(pairs)
            ]
            line = {"layer": layer, "token": name, "pyvene": found}
            if ours:
                # The first row is the embedding's.
                own = [cells[layer + 1][position]["trained"]["accuracy"] for cells in ours]
                each = [ours - theirs for ours, theirs in zip(own, found, strict=True)]
                line |= {"burn-align": own, "difference": round(mean(each), 4)}
                if len(each) > 1:
                    line["standard_error"] = round(stdev(each) / len(each) ** 0.5, 4)
                largest = max(largest, abs(mean(each)))
            print(json.dumps(line), flush=True)
    if ours:
        print(json.dumps({"largest_difference": round(largest, 4)}))


if __name__ == "__main__":
    main()
