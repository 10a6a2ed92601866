"""pyvene's accuracy on the pairs of the example `das_map`, to compare with ours.

    cargo run --release --example das_map -- --write-pairs pairs.json --json ours.json
    python benches/peers/alignment.py burn-align-models/capitals-gpt2 pairs.json --beside ours.json

At the country's token and at the last one, after each layer, pyvene's
`LowRankRotatedSpaceIntervention` is trained as the example trains ours: the same pairs, rank,
batches, epochs and learning rates. Its rotation starts elsewhere, and sees the pairs in another
order, or in several (--seeds). Prints the accuracy on the held-out pairs, and the greatest
difference of the mean from ours.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

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
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--beside", type=Path, metavar="FILE", help="the example's --json")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    data = json.loads(args.pairs.read_text())
    training, held_out = (
        [torch.tensor(data[part][key]) for key in ("base", "source", "labels")]
        for part in ("training", "held_out")
    )
    for part in (training, held_out):
        part[2] = part[2].squeeze(-1)
    ours = json.loads(args.beside.read_text()) if args.beside else None
    largest = 0.0
    for layer in range(model.config.num_hidden_layers):
        for name, position in PLACES.items():
            cell = Das(layer, position, rank=args.rank)
            found = [
                accuracy(model, cell, training, held_out, args, seed) for seed in range(args.seeds)
            ]
            line = {"layer": layer, "token": name, "pyvene": found}
            if ours:
                # The first row is the embedding's.
                own = ours["cells"][layer + 1][position]["trained"]["accuracy"]
                line["burn-align"] = own
                largest = max(largest, abs(own - sum(found) / len(found)))
            print(json.dumps(line), flush=True)
    if ours:
        print(json.dumps({"largest_difference": round(largest, 4)}))


if __name__ == "__main__":
    main()
