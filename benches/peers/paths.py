"""The `paths_…` workloads of `benches/workloads` with PyTorch hooks, like the papers' code.

    python benches/peers/paths.py [--model M] [--senders N] [--threads N] [--nano DIR [--check]] [NAME…]

One sender at a time: a forward pass on the base under hooks that insert the source's output of the
sender and freeze everything else between it and its receiver to the base. If the receiver is not
the logits, a second pass uses the recorded input of the receiver. Base and source are run once.
Prints one JSON line per workload: the seconds for all senders. --senders times this many, evenly
chosen, and scales up what is computed for each. Random weights in the shape of GPT-2 small or of
--model, f32, 16 × 15 tokens, logits at the last position.

`paths_nodes_25x5` is the sweep of nano-causal-interventions on 1 × 5 tokens: what the attention or
the MLP of a layer reads at a position comes from the source, for one of them at a time, and once for
none. With --nano, also runs that code from its checkout DIR; --check compares the two. README.md
lists the packages it needs. Only on GPT-2.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from functools import partial

import torch
from models import PRESETS, Shape, blocks, build
from transformers import GPT2Config, GPT2LMHeadModel

BATCH, POS = 16, 15
LAYERS = 12  # of GPT-2, in `paths_nodes_25x5`
NAMES = [
    "paths_heads_to_logits_16x15",
    "paths_heads_mlps_to_logits_16x15",
    "paths_heads_to_query_16x15",
    "paths_heads_to_late_query_16x15",
]
NODES = "paths_nodes_25x5"


def tokens(seed, batch=BATCH, pos=POS, vocab=50_257):
    row, pos = torch.arange(batch)[:, None], torch.arange(pos)
    return (seed + row * 7919 + pos * 104_729) % vocab


def receivers(shape):
    """Workload -> layer and head whose queries receive, as in `benches/workloads`."""
    layer = shape.layers * 3 // 4
    return {
        "paths_heads_to_query_16x15": (layer, shape.heads * 3 // 4),
        "paths_heads_to_late_query_16x15": (min(layer + 1, shape.layers - 1), 0),
    }


class Hooked:
    def __init__(self, shape: Shape):
        self.shape, self.d_head = shape, shape.d_model // shape.heads
        self.receivers = receivers(shape)
        self.model = build(shape, "sdpa", torch.float32, torch.device("cpu"))

    def tokens(self, seed):
        return tokens(seed, vocab=self.shape.vocab)

    def modules(self, block):
        """The output projection of attention, what computes the queries at the front of its output,
        and the MLP."""
        if self.shape.kv_heads is None:
            return block.attn.c_proj, block.attn.c_attn, block.mlp
        return block.self_attn.o_proj, block.self_attn.q_proj, block.mlp

    def run(self, ids, taps=None, logits=True):
        """Cached mixed values, MLP outputs and queries, and logits, under taps by place."""
        taps, cache, handles = taps or {}, {}, []

        def seen(place, value):
            if place in taps:
                value = taps[place](value)
            cache[place] = value
            return value

        for layer, block in enumerate(blocks(self.model)):
            z = lambda m, args, p=("z", layer): (seen(p, args[0]),)
            out = lambda m, args, value, p=("m", layer): seen(p, value)
            qkv = lambda m, args, value, p=("qkv", layer): seen(p, value)
            projection, queries, mlp = self.modules(block)
            handles.append(projection.register_forward_pre_hook(z))
            handles.append(mlp.register_forward_hook(out))
            handles.append(queries.register_forward_hook(qkv))
        hidden = self.model.base_model(ids, use_cache=False).last_hidden_state
        for handle in handles:
            handle.remove()
        return cache, self.model.lm_head(hidden[:, -1]) if logits else None


def sweep(hooked, name, senders):
    base, _ = hooked.run(hooked.tokens(1))
    source, _ = hooked.run(hooked.tokens(2))
    layers, d_head = hooked.shape.layers, hooked.d_head
    metric = lambda logits: (logits[:, 5] - logits[:, 6]).mean().item()
    effects = []
    for layer, head in senders:
        own = slice(head * d_head, (head + 1) * d_head)

        def send(value):
            value = base["z", layer].clone()
            value[..., own] = source["z", layer][..., own]
            return value

        taps = {("z", layer): send}
        for after in range(layer, layers):
            if after > layer:
                taps["z", after] = lambda _, at=("z", after): base[at]
            if "mlps" not in name:
                taps["m", after] = lambda _, at=("m", after): base[at]
        if name not in hooked.receivers:
            effects.append(metric(hooked.run(hooked.tokens(1), taps)[1]))
            continue
        recorded, _ = hooked.run(hooked.tokens(1), taps, logits=False)
        to_layer, to_head = hooked.receivers[name]
        at = ("qkv", to_layer)
        query = slice(to_head * d_head, (to_head + 1) * d_head)

        def receive(value):
            value = value.clone()
            value[..., query] = recorded[at][..., query]
            return value

        effects.append(metric(hooked.run(hooked.tokens(1), {at: receive})[1]))
    return effects


def scaled_up(run, timed, count):
    """Estimates the seconds of `run` for this many from a few. What it computes once counts once."""

    def seconds(chosen):
        start = time.perf_counter()
        run(chosen)
        return time.perf_counter() - start

    run(timed[:1])
    once = statistics.median(seconds([]) for _ in range(3))
    return once + (seconds(timed) - once) * count / len(timed)


def cells():
    """Attention (a) and MLP (f) of every layer at every position, and nothing."""
    nodes = [(kind, layer) for layer in range(LAYERS) for kind in "af"]
    return [(kind, layer, position) for kind, layer in nodes for position in range(5)] + [None]


def nodes_with_hooks(model):
    """A function from cells to the logits of each at the last position, [vocab]."""

    def run(chosen):
        base, source = tokens(1, 1, 5), tokens(2, 1, 5)
        norm = lambda kind, layer: getattr(model.transformer.h[layer], {"a": "ln_1", "f": "ln_2"}[kind])
        cache, results = {}, []

        def under(hooks, ids):
            handles = [norm(*at).register_forward_hook(hook) for at, hook in hooks]
            hidden = model.transformer(ids, use_cache=False).last_hidden_state
            for handle in handles:
                handle.remove()
            return hidden

        def keep(at):
            return lambda _module, _args, value: cache.update({at: value})

        under([((kind, layer), keep((kind, layer))) for kind in "af" for layer in range(LAYERS)], source)
        for cell in chosen:
            hooks = []
            if cell:
                *at, position = cell

                def swap(_module, _args, value, at=tuple(at), position=position):
                    value = value.clone()
                    value[:, position] = cache[at][:, position]
                    return value

                hooks = [(at, swap)]
            results.append(model.lm_head(under(hooks, base)[:, -1])[0])
        return results

    return run


def nodes_with_nano(model, folder):
    """The same by a checkout of nano-causal-interventions, which has logits at all positions."""
    sys.path.insert(0, folder)
    from patch import utils
    from patch.models.gpt2 import GPT2
    from transformers import BatchEncoding

    wrapped = GPT2(model.config, model.transformer)
    inputs = [BatchEncoding({"input_ids": tokens(seed, 1, 5)}) for seed in (1, 2)]

    def run(chosen):
        results = []
        for cell in chosen:
            kind, layer, position = cell or ("none", "", 0)
            place = {"node": f"{kind}{layer}", "pos": position}
            which = partial(utils.which_node_pos, **place)
            branch = partial(utils.branch_node_pos, **place)
            result, _cache = wrapped(inputs, which, branch)
            logits = utils.embed_to_distrib(wrapped, result.hidden_states, logits=True)
            results.append(logits[0, -1].clone())
        return results

    return run


def sweep_nodes(model, args):
    """Prints the lines of `paths_nodes_25x5`, or compares the peers."""
    peers = {"hooks": nodes_with_hooks(model)}
    if args.nano:
        peers["nano-causal-interventions"] = nodes_with_nano(model, args.nano)
    everything = cells()
    if args.check:
        expected, found = (torch.stack(run(everything)) for run in peers.values())
        difference = (found - expected).abs().max().item()
        effect = (expected - expected[-1]).abs().max().item()
        print(f"{NODES}: max abs difference {difference:.1e}, largest effect {effect:.1e}")
        return difference < 1e-4 < effect
    count = min(args.senders or len(everything), len(everything))
    timed = [everything[i * len(everything) // count] for i in range(count)]
    for peer, run in peers.items():
        seconds = scaled_up(run, timed, len(everything))
        line = {"workload": NODES, "peer": peer, "cells": len(everything), "timed": count}
        print(json.dumps(line | {"seconds": seconds}), flush=True)
    return True


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--model", choices=PRESETS, default="gpt2")
    parser.add_argument("--layers", type=int, help="use only this many of the model's")
    parser.add_argument("--senders", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--nano", metavar="DIR")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check and not args.nano:
        parser.error("--check compares with --nano")
    if args.threads:
        torch.set_num_threads(args.threads)
    shape = PRESETS[args.model]
    shape = replace(shape, layers=args.layers or shape.layers)
    args.names = args.names or [*NAMES, *([NODES] if args.model == "gpt2" else [])]
    if NODES in args.names or args.check:
        torch.manual_seed(0)
        if not sweep_nodes(GPT2LMHeadModel(GPT2Config()).eval(), args):
            sys.exit(1)
    if args.check or args.names == [NODES]:
        return
    hooked = Hooked(shape)
    for name in args.names:
        if name == NODES:
            continue
        layers = hooked.receivers.get(name, (shape.layers, 0))[0]
        senders = [(layer, head) for layer in range(layers) for head in range(shape.heads)]
        count = min(args.senders or len(senders), len(senders))
        timed = [senders[i * len(senders) // count] for i in range(count)]
        seconds = scaled_up(lambda chosen: sweep(hooked, name, chosen), timed, len(senders))
        line = {"workload": name, "peer": "hooks", "model": args.model}
        line |= {"senders": len(senders), "timed": count}
        print(json.dumps(line | {"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
