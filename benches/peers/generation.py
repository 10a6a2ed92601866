"""Greedy texts on burn-align, transformers, pyvene and llama.cpp: the `generate…` workloads.

    python benches/peers/generation.py [--model SHAPE | --model FOLDER | --model FILE.gguf] [NAME…]
    python benches/peers/generation.py --peer P [OPTION…] [NAME…]
    python benches/peers/generation.py --check [OPTION…]

Without --peer, runs all sides that have a workload, each in a process of its own, with the same
number of threads, and prints Markdown tables of new tokens a second and of memory; our side is built
first, or --program. A model is a shape of `models.py`, with random weights, or a folder or GGUF file
with real ones.

A repeat reads prompts of 5 tokens and generates 31 after each, whatever they are: `generate_1x31` in
one row, `generate_16x31` in 16 together, `…_steered` with a direction of each row's own added after
the middle layer, at prompt and steps; `…_quantised` with weights in Q8_0, or as the GGUF file has
them. `generate_chat_1x512` has 128 and 384, for its memory. Peers:

    transformers   `generate`, with its cache
    hooks          the same, with one hook that adds the directions of all rows
    pyvene         `generate` of an `IntervenableModel` for each row, one after another
    llama.cpp      by `xllamacpp`, rows as parallel requests

Of pyvene's rows, --rows times so many, and scales up; the line says so. --check compares ids: of
pyvene with hooks, of rows together with rows alone, and of transformers with llama.cpp in f32.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import compare
import measure
import numpy as np
import torch
from models import PRESETS, activation, blocks, build
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging


@dataclass(frozen=True)
class Texts:
    """What is generated."""

    family: str
    name: str
    rows: int
    prompt: int = 5
    new: int = 31
    steered: bool = False
    quantised: bool = False
    first: int = 0  # the number of the first row

    def ids(self, vocab: int) -> Tensor:
        """Prompts that are arbitrary, but the same every time, as on our side; [row, pos]."""
        row = torch.arange(self.first, self.first + self.rows)[:, None]
        pos = torch.arange(self.prompt)
        return (1 + row * 7919 + pos * 104_729) % vocab

    def directions(self, d_model: int) -> Tensor:
        """[row, 1, d_model]"""
        index = torch.arange(self.rows * d_model)
        return (index * 7919 % 1009 / 1009 - 0.5).reshape(self.rows, 1, d_model)


WORKLOADS = [
    Texts("generate", "generate_1x31", 1),
    Texts("generate", "generate_16x31", 16),
    Texts("generate", "generate_16x31_steered", 16, steered=True),
    Texts("generate", "generate_1x31_quantised", 1, quantised=True),
    Texts("generate", "generate_16x31_quantised", 16, quantised=True),
    Texts("generate_chat", "generate_chat_1x512", 1, prompt=128, new=384),
]

Run = Callable[[], list[list[int]]]  # the new ids of each row


# Sides -----------------------------------------------------------------------------------------


def greedy(texts: Texts) -> dict:
    """For `generate` of transformers: always so many tokens."""
    length = {"max_new_tokens": texts.new, "min_new_tokens": texts.new}
    return length | {"do_sample": False, "use_cache": True, "pad_token_id": 0}


def with_transformers(model: PreTrainedModel, texts: Texts) -> Run:
    ids = texts.ids(model.config.vocab_size)
    mask = torch.ones_like(ids)

    def run() -> list[list[int]]:
        found = model.generate(ids, attention_mask=mask, **greedy(texts))
        return found[:, texts.prompt :].tolist()

    return run


def with_hooks(model: PreTrainedModel, texts: Texts) -> Run:
    plain = with_transformers(model, texts)
    directions = texts.directions(model.config.hidden_size)

    def add(_module: torch.nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
        activation(output).add_(directions)

    def run() -> list[list[int]]:
        handle = middle(model).register_forward_hook(add)
        try:
            return plain()
        finally:
            handle.remove()

    return run


def middle(model: PreTrainedModel) -> torch.nn.Module:
    return blocks(model)[model.config.num_hidden_layers // 2]


def with_pyvene(model: PreTrainedModel, texts: Texts) -> Run:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what else could be installed
        import pyvene

    def steered(direction: Tensor) -> pyvene.IntervenableModel:
        representation = {
            "layer": model.config.num_hidden_layers // 2,
            "component": "block_output",
            "source_representation": direction,
        }
        config = pyvene.IntervenableConfig(
            [representation],
            intervention_types=pyvene.AdditionIntervention,
            model_type=type(model),
        )
        intervenable = pyvene.IntervenableModel(config, model)
        intervenable.set_device(model.device)
        return intervenable

    ids = texts.ids(model.config.vocab_size)
    models = [steered(direction) for direction in texts.directions(model.config.hidden_size)]

    def run() -> list[list[int]]:
        results = []
        for row, intervenable in enumerate(models):
            base = {"input_ids": ids[row : row + 1], "attention_mask": torch.ones(1, texts.prompt)}
            # Without locations, on the prompt too: at every position of every pass.
            _, found = intervenable.generate(base, intervene_on_prompt=True, **greedy(texts))
            results.append(found[0, texts.prompt :].tolist())
        return results

    return run


def with_llama_cpp(file: Path, vocab: int, texts: Texts, threads: int) -> Run:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_parallel = texts.rows
    params.n_ctx = texts.rows * max(256, texts.prompt + texts.new)
    params.warmup, params.verbosity, params.cache_ram_mib = False, 0, 0
    server = xllamacpp.Server(params)
    requests = [
        {
            "prompt": ids,
            "n_predict": texts.new,
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": False,
            "logprobs": 1,  # the only way to the ids of tokens
        }
        for ids in texts.ids(vocab).tolist()
    ]

    def one(request: dict) -> list[int]:
        answer = server.handle_completions(request)
        if answer.get("usage", {}).get("completion_tokens") != texts.new:
            raise RuntimeError(f"expected {texts.new} tokens: {answer}")
        return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]

    pool = ThreadPoolExecutor(texts.rows)
    return lambda: list(pool.map(one, requests))


PEERS = {
    "transformers": lambda texts: not texts.steered and not texts.quantised,
    "hooks": lambda texts: texts.steered,
    "pyvene": lambda texts: texts.steered,
    "llama.cpp": lambda texts: texts.quantised,
}


# Models ----------------------------------------------------------------------------------------


def load(args: argparse.Namespace) -> PreTrainedModel:
    """In f32."""
    options = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    if args.model in PRESETS:
        shape = PRESETS[args.model]
        shape = replace(shape, layers=args.layers or shape.layers)
        return build(shape, "sdpa", torch.float32, torch.device("cpu"))
    path = Path(args.model)
    if path.is_dir():
        model = AutoModelForCausalLM.from_pretrained(path, **options)
    else:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)
    # Texts go on whatever is generated.
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def write_gguf(model: PreTrainedModel, file: Path, quantised: bool) -> None:
    """A LLaMA with tokens that have no text, matrices in Q8_0 or f32."""
    import gguf

    config = model.config
    if config.model_type != "llama":
        raise ValueError(f"only LLaMA's layout is written, this is {config.model_type}")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    # A byte-level vocabulary: some tokens must be there, the rest is arbitrary.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{token}" for token in range(config.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges(["t 0"])
    writer.add_add_bos_token(False)

    q8_0 = gguf.GGMLQuantizationType.Q8_0

    def add(name: str, weight: Tensor, of_heads: int | None = None) -> None:
        values = weight.detach().float().numpy()
        if of_heads:  # a head's halves, which are rotated together, become pairs
            shape = values.shape
            values = values.reshape(of_heads, 2, -1, shape[1]).swapaxes(1, 2).reshape(shape)
        values = np.ascontiguousarray(values)
        if quantised and values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, q8_0), raw_dtype=q8_0)
        else:
            writer.add_tensor(name, values)

    add("token_embd.weight", model.model.embed_tokens.weight)
    for layer, block in enumerate(model.model.layers):
        attention, mlp = block.self_attn, block.mlp
        for name, weight, of_heads in [
            ("attn_norm", block.input_layernorm.weight, None),
            ("attn_q", attention.q_proj.weight, heads),
            ("attn_k", attention.k_proj.weight, kv_heads),
            ("attn_v", attention.v_proj.weight, None),
            ("attn_output", attention.o_proj.weight, None),
            ("ffn_norm", block.post_attention_layernorm.weight, None),
            ("ffn_gate", mlp.gate_proj.weight, None),
            ("ffn_up", mlp.up_proj.weight, None),
            ("ffn_down", mlp.down_proj.weight, None),
        ]:
            add(f"blk.{layer}.{name}.weight", weight, of_heads)
    add("output_norm.weight", model.model.norm.weight)
    if not config.tie_word_embeddings:
        add("output.weight", model.lm_head.weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Running them ----------------------------------------------------------------------------------


@dataclass
class Loaded:
    """The model, as each peer takes it."""

    args: argparse.Namespace
    folder: Path  # for files
    model: PreTrainedModel | None = None
    vocab: int = 0

    def prepare(self, peer: str, texts: Texts, f32: bool = False) -> Run:
        if self.model is None and (peer != "llama.cpp" or not self.gguf()):
            self.model = load(self.args)
        if peer == "llama.cpp":
            return self.llama_cpp(texts, f32)
        return {"transformers": with_transformers, "hooks": with_hooks, "pyvene": with_pyvene}[
            peer
        ](self.model, texts)

    def gguf(self) -> Path | None:
        """The file of the model, if it has one."""
        path = Path(self.args.model)
        return path if path.suffix.lower() == ".gguf" else None

    def llama_cpp(self, texts: Texts, f32: bool) -> Run:
        file = None if f32 else self.gguf()
        if file is None:
            file = self.folder / f"{'f32' if f32 else 'q8_0'}.gguf"
            if not file.exists():
                write_gguf(self.model, file, not f32)
        vocab = self.model.config.vocab_size if self.model else vocab_of(file)
        return with_llama_cpp(file, vocab, texts, self.args.threads)


def vocab_of(file: Path) -> int:
    import gguf

    return len(gguf.GGUFReader(file).fields["tokenizer.ggml.tokens"].data)


def timed(loaded: Loaded, peer: str, texts: Texts) -> dict:
    """Seconds and new tokens a second, or the error, and memory."""
    args, cpu, line, scale = loaded.args, torch.device("cpu"), {}, 1.0
    measure.begin_peak(cpu)
    try:
        if peer == "pyvene" and args.rows and args.rows < texts.rows:
            # One call per row, so that a part of them takes a part of the time.
            scale = texts.rows / args.rows
            line |= {"rows": texts.rows, "rows_timed": args.rows}
        part = replace(texts, rows=round(texts.rows / scale))
        times = measure.repeat(loaded.prepare(peer, part), args.seconds, cpu, args.repeats)
    except Exception as error:  # of any kind: this peer cannot run this here
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]} | measure.peak(cpu)
    median = times[len(times) // 2]
    line |= {"seconds": scale * median, "spread": (times[-1] - times[0]) / median}
    line |= {"repeats": len(times), "new_tokens": texts.rows * texts.new}
    return line | measure.peak(cpu)


def check(loaded: Loaded) -> bool:
    """Whether sides that do the same generate the same ids."""
    passed = True

    def same(what: str, found: list[list[int]], expected: list[list[int]]) -> None:
        nonlocal passed
        several = len({tuple(row) for row in expected}) > 1
        equal = found == expected
        passed &= equal and several
        count = sum(len(row) for row in expected)
        print(f"{what}: {count} ids {'are equal' if equal else 'DIFFER'}", flush=True)

    plain, steered = Texts("", "", 4), Texts("", "", 4, steered=True)
    together = loaded.prepare("transformers", plain)()
    one = [replace(plain, rows=1, first=row) for row in range(4)]
    alone = [row for texts in one for row in loaded.prepare("transformers", texts)()]
    same("transformers, rows together and alone", together, alone)
    hooks = loaded.prepare("hooks", steered)()
    same("pyvene and hooks", loaded.prepare("pyvene", steered)(), hooks)
    if hooks == together:
        print("steering changed nothing: FAILED")
        passed = False
    same("llama.cpp in f32 and transformers", loaded.prepare("llama.cpp", plain, True)(), together)
    return passed


def lines_of(side: str, args: argparse.Namespace, names: list[str]) -> list[dict]:
    """The lines of a side, run in a process of its own."""
    command = ["--seconds", str(args.seconds)]
    if args.repeats is not None:
        command += ["--repeats", str(args.repeats)]
    if side == compare.US:
        preset = ["--model", args.model, *(["--layers", str(args.layers)] if args.layers else [])]
        model = preset if args.model in PRESETS else ["--weights", str(Path(args.model).resolve())]
        program = Path(args.program).resolve() if args.program else compare.build("flex")
        command = [str(program), "--backend", "flex", *model, *command]
    else:
        command = [sys.executable, __file__, "--peer", side, "--model", args.model, *command]
        command += ["--threads", str(args.threads)]
        command += ["--rows", str(args.rows)] if args.rows else []
        command += ["--layers", str(args.layers)] if args.layers else []
    found = []
    for name in names:  # each with a peak of memory of its own
        found += compare.lines_of([*command, name], args.threads)
    return found


def all_sides(args: argparse.Namespace) -> str:
    """The tables, as Markdown."""
    sides: dict[str, dict[str, dict]] = {}  # workload -> side -> line
    for side in [compare.US, *PEERS]:
        names = [texts.name for texts in args.chosen if side == compare.US or PEERS[side](texts)]
        print(f"{side}: {', '.join(names)}", file=sys.stderr)
        for line in lines_of(side, args, names):
            sides.setdefault(line["workload"], {})[side] = line
    all_names = [compare.US, *PEERS]
    header = ["new tokens a second", *all_names, *(f"{compare.US} / {side}" for side in PEERS)]
    speeds = [header, ["---"] + ["---:"] * (len(header) - 1)]
    memory = [
        ["peak MiB", *all_names, "weights + cache"],
        ["---"] + ["---:"] * (len(all_names) + 1),
    ]
    errors = []
    for texts in args.chosen:
        lines = sides.get(texts.name, {})
        rate = {
            s: texts.rows * texts.new / it["seconds"] for s, it in lines.items() if "seconds" in it
        }
        errors += [
            f"cannot: {s}, {texts.name}: {it['error']}" for s, it in lines.items() if "error" in it
        ]
        row = [texts.name, *(f"{rate[side]:.1f}" if side in rate else "–" for side in all_names)]
        for side in PEERS:
            both = side in rate and compare.US in rate
            row.append(f"{rate[compare.US] / rate[side]:.2f}×" if both else "–")
        speeds.append(row)
        peaks = [
            str(lines[s]["peak_mib"]) if "peak_mib" in lines.get(s, {}) else "–" for s in all_names
        ]
        memory.append([texts.name, *peaks, needed(lines.get(compare.US, {}), texts)])
    scaled = [] if not args.rows else [f"pyvene ran {args.rows} rows, scaled up"]
    return "\n\n".join([compare.markdown(speeds), compare.markdown(memory), *errors, *scaled])


def needed(line: dict, texts: Texts) -> str:
    """MiB of weights and cache, by our side."""
    if "cache_bytes" not in line:
        return "–"
    weights = line["floor_weight_bytes"] / texts.new  # read once for each new token
    return f"{(weights + line['cache_bytes']) / 2**20:.0f}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [texts.name for texts in WORKLOADS]
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="workloads or families [default: all]"
    )
    parser.add_argument("--peer", choices=PEERS, help="run only this one, here; prints JSON")
    parser.add_argument("--check", action="store_true", help="compare ids, do not time")
    parser.add_argument(
        "--model", default="smollm2-135m", help="shape, folder or GGUF file [default: %(default)s]"
    )
    parser.add_argument("--layers", type=int, help="use only this many of a shape's")
    parser.add_argument("--rows", type=int, help="pyvene: time this many rows, and scale up")
    parser.add_argument("--program", help="our side, built already with the backend flex")
    parser.add_argument("--seconds", type=float, default=2.0, help="of repeats, at least")
    parser.add_argument("--repeats", type=int, help="exactly so many, after one warm-up")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the lines here")
    args = parser.parse_args()
    if args.model not in PRESETS and not Path(args.model).exists():
        parser.error(f"--model {args.model}: no such file, and no shape of {', '.join(PRESETS)}")
    if args.model not in PRESETS and args.layers:
        parser.error("--layers is for shapes")
    families = {texts.family for texts in WORKLOADS}
    if unknown := set(args.names) - {*names, *families}:
        parser.error(f"no workload {', '.join(sorted(unknown))}; expected {', '.join(names)}")
    wanted = set(args.names or names)
    args.chosen = [texts for texts in WORKLOADS if {texts.name, texts.family} & wanted]
    return args


@torch.no_grad()
def main() -> int:
    args = parse()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    if not args.peer and not args.check:
        print(all_sides(args))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        loaded = Loaded(args, Path(folder))
        if args.check:
            return 0 if check(loaded) else 1
        name = args.model if args.model in PRESETS else Path(args.model).name
        setting = {"backend": args.peer, "model": name, "dtype": "f32", "threads": args.threads}
        with args.json.open("w") if args.json else contextlib.nullcontext() as file:
            for texts in args.chosen:
                if not PEERS[args.peer](texts):
                    continue
                line = {"workload": texts.name, "family": texts.family} | setting
                if texts.quantised:
                    line["dtype"] = "of the file" if loaded.gguf() else "q8_0"
                line |= timed(loaded, args.peer, texts)
                print(json.dumps(line), flush=True)
                if file:
                    print(json.dumps(line), file=file, flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except compare.Failure as failure:
        sys.exit(f"generation: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
