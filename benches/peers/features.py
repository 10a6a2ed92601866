"""The `dictionary_…` workloads of `benches/workloads` by hand in PyTorch.

    python benches/peers/features.py [OPTION…] [NAME…]

`f = ReLU(x W_enc + b)`, `f' = f / 2`, and `x + (f' - f) W_dec`, which keeps the reconstruction's error:
16,384 features of 512 vectors by themselves (`dictionary_products`), and in a hook after a layer of
a forward pass at 8 × 64 positions, with logits at the last one (`dictionary_splice`). `hooks` is the
formula as it stands; `hooks_in_place` avoids what copies can be avoided: the bias and the ReLU in
place, and the products added to `x` by `addmm`.

Prints a JSON line for each workload and way: the median seconds of the repeats, and their spread.
--check compares the two.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import measure
import torch
from models import PRESETS, activation, blocks, build, last_logits
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

FEATURES, FACTOR = 16_384, 0.5
CPU = torch.device("cpu")
FAMILIES = ["dictionary_products", "dictionary_splice"]


@dataclass
class Dictionary:
    encoder: Tensor  # [d, feature]
    encoder_bias: Tensor
    decoder: Tensor  # [feature, d]

    @classmethod
    def random(cls, width: int) -> "Dictionary":
        torch.manual_seed(0)
        encoder, decoder = torch.randn(width, FEATURES), torch.randn(FEATURES, width)
        return cls(encoder / width**0.5, torch.zeros(FEATURES), decoder / width**0.5)

    def plain(self, x: Tensor) -> Tensor:
        features = torch.relu(x @ self.encoder + self.encoder_bias)
        changed = features * FACTOR
        return x + (changed - features) @ self.decoder

    def in_place(self, x: Tensor) -> Tensor:
        features = torch.addmm(self.encoder_bias, x, self.encoder).relu_()
        # f' - f, without f'.
        return torch.addmm(x, features.mul_(FACTOR - 1), self.decoder)


def splice(model: PreTrainedModel, layer: int, ids: Tensor, change: Callable) -> Tensor:
    def hook(_module: torch.nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
        at = activation(output)
        at.copy_(change(at.flatten(0, 1)).view_as(at))

    handle = blocks(model)[layer].register_forward_hook(hook)
    try:
        return last_logits(model, ids, use_cache=False)
    finally:
        handle.remove()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="*", choices=[*FAMILIES, []], help="families")
    parser.add_argument("--check", action="store_true", help="compare, do not time")
    parser.add_argument("--model", choices=PRESETS, default="gpt2", help="[default: %(default)s]")
    parser.add_argument("--layers", type=int, help="use only this many of the model's")
    parser.add_argument("--batch", type=int, default=8, help="examples [default: %(default)s]")
    parser.add_argument("--pos", type=int, default=64, help="tokens [default: %(default)s]")
    parser.add_argument("--layer", type=int, help="of the splice [default: middle]")
    parser.add_argument("--seconds", type=float, default=2.0, help="of repeats, at least")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="[default: all cores]")
    args = parser.parse_args()
    shape = PRESETS[args.model]
    for option, least, most in [
        ("layers", 1, shape.layers),
        ("batch", 1, None),
        ("pos", 1, shape.max_positions),
        ("layer", 0, (args.layers or shape.layers) - 1),
    ]:
        value = getattr(args, option)
        if value is not None and (value < least or most is not None and value > most):
            parser.error(f"--{option} {value}: expected {least} to {most or 'any number'}")
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    shape = replace(shape, layers=args.layers or shape.layers)
    layer = shape.layers // 2 if args.layer is None else args.layer
    model = build(shape, "sdpa", torch.float32, CPU)
    dictionary = Dictionary.random(shape.d_model)
    x = torch.randn(args.batch * args.pos, shape.d_model)
    row, position = torch.arange(args.batch)[:, None], torch.arange(args.pos)
    ids = (1 + row * 7919 + position * 104_729) % model.config.vocab_size

    ways = {"hooks": dictionary.plain, "hooks_in_place": dictionary.in_place}
    workloads = {
        f"dictionary_products_{FEATURES}_{len(x)}": lambda change: change(x),
        f"dictionary_splice_{FEATURES}_{args.batch}x{args.pos}": lambda change: splice(
            model, layer, ids, change
        ),
    }
    for family, (name, run) in zip(FAMILIES, workloads.items()):
        if args.names and family not in args.names:
            continue
        if args.check:
            plain, in_place = (run(change) for change in ways.values())
            difference = (plain - in_place).abs().max().item()
            effect = (plain - run(lambda x: x)).abs().max().item()
            assert difference < 1e-4 * max(1.0, plain.abs().max().item()), (name, difference)
            print(f"{name}: max abs difference {difference:.1e}, effect {effect:.1e}")
            continue
        for way, change in ways.items():
            times = measure.repeat(lambda change=change: run(change), args.seconds, CPU)
            median = times[len(times) // 2]
            line = {
                "workload": name,
                "backend": way,
                "model": f"{args.model}:{shape.layers}",
                "threads": args.threads,
                "seconds": median,
                "spread": (times[-1] - times[0]) / median,
                "repeats": len(times),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
