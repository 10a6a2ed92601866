"""The `circuits_…` workloads of `benches/workloads` by the reference code of EAP-IG and of MIB.

    python benches/peers/circuits.py --reference DIR [--mib DIR] [OPTION…] [NAME…]
    python benches/peers/circuits.py --check [--layers N]

DIR are checkouts of `hannamw/EAP-IG` and, for the curve, of `hannamw/MIB-circuit-track`; README.md
has their commits. Random GPT-2 small, f32, on the CPU; 16 × 15 tokens by default, which differ
between the prompts at every position, so nothing can be skipped. The metric is the difference of the
logits of two tokens after the last one. TransformerLens does not process the weights.

Prints a JSON line per workload, and writes it to --json: the median of the repeats in seconds, and
the peak of memory, with what was resident before it, the model and Python's libraries. Each workload
has a process of its own. What takes longer than a minute is timed once, without a warm-up. The exact
effects of edges are timed on --edges of them, evenly chosen, and what is computed for each is scaled
up; what is computed once counts once.

With --beside FILE, the JSON lines of `cargo bench --bench workloads -- --json FILE`, prints a table
of both sides. --check compares the logits with those of `transformers`.

The reference is run as it is, with these differences: it asks for CUDA, and gets the CPU; it tokenises
texts, and gets token ids; and MIB passes an option on which this commit of EAP-IG does not have.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

os.environ["TQDM_DISABLE"] = "1"

import measure
import torch
from models import PRESETS
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel

FAMILIES = ["circuits_eap", "circuits_eap_ig5", "circuits_curve", "circuits_exact"]
STEPS = 5
LONG = 60.0  # seconds
CPU = torch.device("cpu")
TOKEN, OTHER = 5, 6  # whose logits are compared
UNPROCESSED = {
    "fold_ln": False,
    "center_writing_weights": False,
    "center_unembed": False,
    "fold_value_biases": False,
}

Data = list[tuple[list[list[int]], list[list[int]], list[int]]]


def tokens(seed: int, batch: int, pos: int, vocab: int) -> list[list[int]]:
    """Those of the benchmark."""
    row, pos = torch.arange(batch)[:, None], torch.arange(pos)
    return ((seed + row * 7919 + pos * 104_729) % vocab).tolist()


def plain(layers: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = PRESETS["gpt2"].config()
    config.n_layer = layers
    return GPT2LMHeadModel(config).eval()


def hooked(plain: GPT2LMHeadModel) -> HookedTransformer:
    """The same model in TransformerLens, with the hooks that the reference needs."""
    sizes = plain.config
    config = HookedTransformerConfig(
        n_layers=sizes.n_layer,
        d_model=sizes.n_embd,
        n_heads=sizes.n_head,
        d_head=sizes.n_embd // sizes.n_head,
        d_mlp=4 * sizes.n_embd,
        d_vocab=sizes.vocab_size,
        n_ctx=sizes.n_positions,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=sizes.layer_norm_epsilon,
        original_architecture="GPT2LMHeadModel",
        init_weights=False,
        device="cpu",
        dtype=torch.float32,
    )
    model = HookedTransformer(config)
    weights = {key: x.detach().clone() for key, x in convert_gpt2_weights(plain, config).items()}
    model.load_and_process_state_dict(weights, **UNPROCESSED)
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    return model.eval()


# The metric, as the reference's examples write theirs ------------------------------------------


def differences(logits: Tensor, _clean_logits: Tensor, lengths: Tensor, _labels: list) -> Tensor:
    last = logits[torch.arange(len(lengths)), lengths - 1]
    return last[:, TOKEN] - last[:, OTHER]


def losses(*arguments) -> Tensor:
    return -differences(*arguments)


def loss(*arguments) -> Tensor:
    """A sum, so that scores are means over examples."""
    return losses(*arguments).sum()


# The reference ---------------------------------------------------------------------------------


def tokenised(_model: HookedTransformer, rows: list[list[int]], max_length: int | None = None):
    """What the reference's `tokenize_plus` returns, for token ids of one length."""
    ids = torch.tensor(rows)
    batch, pos = ids.shape
    return ids, torch.ones_like(ids), torch.full((batch,), pos), pos


@contextlib.contextmanager
def on_cpu():
    """`torch.zeros` for CUDA makes its tensor on the CPU."""
    zeros = torch.zeros

    def patched(*arguments, **options):
        if options.get("device") == "cuda":
            options["device"] = "cpu"
        return zeros(*arguments, **options)

    with mock.patch.object(torch, "zeros", patched):
        yield


@dataclass
class Reference:
    model: HookedTransformer
    data: Data

    def __post_init__(self) -> None:
        from eap import attribute, evaluate, utils
        from eap.graph import Graph

        for module in (attribute, evaluate, utils):
            module.tokenize_plus = tokenised
        self.eap, self.evaluate_graph = attribute, evaluate.evaluate_graph
        self.graph = Graph.from_model(self.model)

    def attribute(self, method: str, metric: Callable[..., Tensor] = loss) -> None:
        self.eap.attribute(
            self.model, self.graph, self.data, metric, method, ig_steps=STEPS, quiet=True
        )

    def exact(self, edges: list[str]) -> None:
        """The reference's loop over all edges, over these only."""
        everything = self.graph.edges
        self.graph.edges = {name: everything[name] for name in edges}
        try:
            self.attribute("exact", losses)
        finally:
            self.graph.edges = everything

    def curve(self) -> Callable[[], None]:
        """CPR of the signed ranking and CMD of the absolute one, from scores that are given."""
        from MIB_circuit_track import evaluation

        def evaluate_graph(*arguments, optimal_ablation_path=None, **options):
            assert optimal_ablation_path is None
            return self.evaluate_graph(*arguments, **options)

        evaluation.evaluate_graph = evaluate_graph

        def run() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                for absolute in (False, True):
                    evaluation.evaluate_area_under_curve(
                        self.model,
                        self.graph,
                        self.data,
                        differences,
                        quiet=True,
                        absolute=absolute,
                    )

        return run


# Measuring -------------------------------------------------------------------------------------


def seconds_of(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measured(family: str, args: argparse.Namespace) -> dict:
    """Seconds and memory of a workload."""
    reference = loaded(args)
    sample = {}
    if family == "circuits_curve":
        reference.attribute("EAP")
        reference.model.zero_grad(set_to_none=True)
        run = reference.curve()
    elif family == "circuits_exact":
        edges = list(reference.graph.edges)
        count = min(args.edges, len(edges))
        chosen = [edges[index * len(edges) // count] for index in range(count)]
        sample = {"edges": len(edges), "timed": count}
        run = lambda: reference.exact(chosen)
    else:
        method = "EAP" if family == "circuits_eap" else "EAP-IG-inputs"
        run = lambda: reference.attribute(method)

    measure.begin_peak(CPU)
    before = measure.resident_kib() >> 10
    if sample:
        reference.exact(chosen[:1])
        once = statistics.median(seconds_of(lambda: reference.exact([])) for _ in range(3))
        times = [once + (seconds_of(run) - once) * len(edges) / count]
    else:
        times = [seconds_of(run)]
        if times[0] < LONG:  # a warm-up
            times = [seconds_of(run) for _ in range(args.repeats)]
    median = statistics.median(times)
    line = {
        "seconds": median,
        "spread": (max(times) - min(times)) / median,
        "repeats": len(times),
        "before_mib": before,
    }
    return line | sample | measure.peak(CPU)


def loaded(args: argparse.Namespace) -> Reference:
    small = plain(args.layers)
    model = hooked(small)
    vocab = small.config.vocab_size
    del small
    gc.collect()
    clean, corrupted = (tokens(seed, args.batch, args.pos, vocab) for seed in (1, 2))
    return Reference(model, [(clean, corrupted, [0] * args.batch)])


@torch.no_grad()
def agree(args: argparse.Namespace) -> bool:
    """Whether TransformerLens computes what `transformers` does."""
    small = plain(args.layers)
    ids = torch.tensor(tokens(1, args.batch, args.pos, small.config.vocab_size))
    expected, found = small(ids).logits, hooked(small)(ids)
    difference = (found - expected).abs().max().item()
    largest = expected.abs().max().item()
    print(f"logits: max abs difference {difference:.1e} of {largest:.1e}")
    return difference < 1e-4 * largest


def beside(path: Path, lines: list[dict]) -> str:
    """A Markdown table of both sides."""
    read = [json.loads(line) for line in path.read_text().splitlines()]
    ours = {line["workload"]: line for line in read if "seconds" in line}

    def added(line: dict) -> int | None:
        return line["peak_mib"] - line["before_mib"] if "before_mib" in line else None

    def row(name: str, theirs: dict) -> str:
        own = ours[name]
        cells = [name, f"{own['seconds']:.2f} s", f"{theirs['seconds']:.2f} s"]
        cells.append(f"{theirs['seconds'] / own['seconds']:.1f} ×")
        memory = [added(own), added(theirs)]
        cells += [f"{mib} MiB" if mib is not None else "" for mib in memory]
        cells.append(f"{memory[1] / memory[0]:.1f} ×" if all(memory) else "")
        return f"| {' | '.join(cells)} |"

    head = ["workload", "burn-align", "reference", "ratio", "memory", "reference", "ratio"]
    table = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    table += [row(line["workload"], line) for line in lines if line["workload"] in ours]
    return "\n".join(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="workloads, or families of them; default: all")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="checkout of EAP-IG")
    parser.add_argument("--mib", type=Path, metavar="DIR", help="checkout of MIB-circuit-track")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pos", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3, help="after a warm-up")
    parser.add_argument("--edges", type=int, default=12, help="whose exact effects are timed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--beside", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.check:
        sys.exit(not agree(args))
    if not args.reference:
        parser.error("--reference DIR: a checkout of EAP-IG is needed")
    known = {f"{family}_{args.batch}x{args.pos}": family for family in FAMILIES}
    wanted = [name for name in known if {name, known[name]} & set(args.names or known)]
    unknown = set(args.names) - set(known) - set(FAMILIES)
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}; expected {', '.join(known)}")
    if "circuits_curve" in map(known.get, wanted) and not args.mib:
        parser.error("--mib DIR: the curve needs a checkout of MIB-circuit-track")

    if args.one:
        sys.path.insert(0, str(args.reference / "src"))
        if args.mib:
            sys.path.insert(0, str(args.mib))
        [name] = wanted
        line = {
            "workload": name,
            "peer": "EAP-IG",
            "model": f"gpt2:{args.layers}",
            "threads": torch.get_num_threads(),
        }
        with on_cpu():
            print(json.dumps(line | measured(known[name], args)), flush=True)
        return

    lines = []
    options = [argument for argument in sys.argv[1:] if argument not in args.names]
    for name in wanted:
        command = [sys.executable, __file__, "--one", *options, name]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        print(output, end="", flush=True)
        lines.append(json.loads(output.splitlines()[-1]))
    if args.json:
        args.json.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if args.beside:
        print(beside(args.beside, lines))


if __name__ == "__main__":
    main()
