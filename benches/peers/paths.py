"""The `paths_…` workloads of `benches/workloads.rs` with PyTorch hooks, as papers' code has them.

    python benches/peers/paths.py [--senders N] [--threads N] [NAME…]

One sender at a time: a forward pass on the base under hooks that put in the source's output of the
sender and freeze all else between it and its receiver to the base, and, where the receiver is not
the logits, a second one with the receiver's input as it was recorded. Base and source are run once.
Prints one JSON line per workload: the seconds for all senders. --senders times so many, evenly
chosen, and scales up. Random GPT-2 small, f32, 16 × 15 tokens, logits at the last position.
"""

import argparse
import json
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

BATCH, POS, LAYERS, HEADS, D_HEAD = 16, 15, 12, 12, 64
RECEIVER = (9, 9)
NAMES = [
    "paths_heads_to_logits_16x15",
    "paths_heads_mlps_to_logits_16x15",
    "paths_heads_to_query_16x15",
]


def tokens(seed):
    row, pos = torch.arange(BATCH)[:, None], torch.arange(POS)
    return (seed + row * 7919 + pos * 104_729) % 50_257


class Hooked:
    def __init__(self):
        torch.manual_seed(0)
        self.model = GPT2LMHeadModel(GPT2Config()).eval()

    def run(self, ids, taps=None, logits=True):
        """Cached mixed values, MLP outputs and queries, and logits, under taps by place."""
        taps, cache, handles = taps or {}, {}, []

        def seen(place, value):
            if place in taps:
                value = taps[place](value)
            cache[place] = value
            return value

        for layer, block in enumerate(self.model.transformer.h):
            z = lambda m, args, p=("z", layer): (seen(p, args[0]),)
            out = lambda m, args, value, p=("m", layer): seen(p, value)
            qkv = lambda m, args, value, p=("qkv", layer): seen(p, value)
            handles.append(block.attn.c_proj.register_forward_pre_hook(z))
            handles.append(block.mlp.register_forward_hook(out))
            handles.append(block.attn.c_attn.register_forward_hook(qkv))
        hidden = self.model.transformer(ids, use_cache=False).last_hidden_state
        for handle in handles:
            handle.remove()
        return cache, self.model.lm_head(hidden[:, -1]) if logits else None


def sweep(hooked, name, senders):
    base, _ = hooked.run(tokens(1))
    source, _ = hooked.run(tokens(2))
    metric = lambda logits: (logits[:, 5] - logits[:, 6]).mean().item()
    effects = []
    for layer, head in senders:
        own = slice(head * D_HEAD, (head + 1) * D_HEAD)

        def send(value):
            value = base["z", layer].clone()
            value[..., own] = source["z", layer][..., own]
            return value

        taps = {("z", layer): send}
        for behind in range(layer, LAYERS):
            if behind > layer:
                taps["z", behind] = lambda _, at=("z", behind): base[at]
            if "mlps" not in name:
                taps["m", behind] = lambda _, at=("m", behind): base[at]
        if name != "paths_heads_to_query_16x15":
            effects.append(metric(hooked.run(tokens(1), taps)[1]))
            continue
        recorded, _ = hooked.run(tokens(1), taps, logits=False)
        at = ("qkv", RECEIVER[0])
        query = slice(RECEIVER[1] * D_HEAD, (RECEIVER[1] + 1) * D_HEAD)

        def receive(value):
            value = value.clone()
            value[..., query] = recorded[at][..., query]
            return value

        effects.append(metric(hooked.run(tokens(1), {at: receive})[1]))
    return effects


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--senders", type=int)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    hooked = Hooked()
    for name in args.names or NAMES:
        layers = RECEIVER[0] if "query" in name else LAYERS
        senders = [(layer, head) for layer in range(layers) for head in range(HEADS)]
        count = min(args.senders or len(senders), len(senders))
        timed = [senders[i * len(senders) // count] for i in range(count)]
        sweep(hooked, name, timed[:1])
        start = time.perf_counter()
        sweep(hooked, name, timed)
        seconds = (time.perf_counter() - start) * len(senders) / count
        line = {"workload": name, "peer": "hooks", "senders": len(senders), "timed": count}
        print(json.dumps(line | {"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
