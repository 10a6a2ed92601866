"""What SmolLM2 computes, by PyTorch hooks on its dequantised weights.

    pip install torch==2.15.0 transformers==4.57.6 gguf==0.19.0 xllamacpp==2026.10.11549
    python tests/real/make_expected.py FOLDER     # with SmolLM2's GGUF file, see `fetch.sh`

Writes `smollm2.json`: tokens, logits, swaps of single activations, path patching and a chat. All of
it is in f32, one example at a time, without padding. Everything is run: nothing is computed from
differences. The ids are those of llama.cpp, which puts no BOS before them, as the model was trained.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path

import torch
from gguf import GGUFReader
from tokens_oracle import Llama
from transformers import AutoModelForCausalLM
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

PROMPTS = [
    "The capital of France is",
    "The capital of Germany is",
    "The capital of Spain is",
    "When Mary and John went to the store, John gave a drink to",
]
BASE, SOURCE, ANSWER = PROMPTS[0], PROMPTS[1], " Berlin"

VOCABULARY = [983 * i for i in range(50)]
"""Ids whose logits are written for every prompt, over all of the vocabulary."""

HEAD_LAYER = 23
"""The layer whose heads are swapped one by one."""

IOI = [
    # prompt, the same with three other names, the name to say, the name that is there twice
    (
        "When Mary and John went to the store, John gave a drink to",
        "When Anna and Paul went to the store, Peter gave a drink to",
        " Mary",
        " John",
    ),
    (
        "After Tom and Laura came back from the garden, Laura handed a ring to",
        "After Frank and Susan came back from the garden, Alice handed a ring to",
        " Tom",
        " Laura",
    ),
    (
        "Then Sarah and James walked to the school, and James gave a computer to",
        "Then Karen and George walked to the school, and Henry gave a computer to",
        " Sarah",
        " James",
    ),
    (
        "The office was empty when David and Emma arrived, so David gave a snack to",
        "The office was empty when Robert and Linda arrived, so Daniel gave a snack to",
        " Emma",
        " David",
    ),
]
SENDERS = [
    (2, 5), (10, 0), (16, 7), (20, 3), (23, 0), (23, 2), (23, 3), (24, 4), (24, 5), (27, 6), (29, 0), (29, 1),
]

CHAT = [
    {"role": "user", "content": "Which city is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": " And of Spain?\n"},
]

EVERYWHERE = slice(None)


class Model:
    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=FILE, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.layers = self.model.model.layers
        self.heads = self.model.config.num_attention_heads
        self.d_head = self.model.config.hidden_size // self.heads

    def head(self, head):
        """The columns of a head in the input of the output projection."""
        return slice(head * self.d_head, (head + 1) * self.d_head)

    @torch.no_grad()
    def run(self, ids, edits=()):
        """Logits after the last token, and the activations, under edits.

        An edit is a place (`embedding`, `block` of a layer, or `z` of a layer: all heads side by
        side), positions, columns and the activations of the run that these come from.
        """
        seen = {}

        def change(place, x):
            for at, positions, columns, values in edits:
                if at == place:
                    x = x.clone()
                    x[:, positions, columns] = values[place][:, positions, columns]
            seen[place] = x
            return x

        with ExitStack() as stack:
            hook = lambda m, i, o: change("embedding", o)
            handle = self.model.model.embed_tokens.register_forward_hook(hook)
            stack.callback(handle.remove)
            for l, layer in enumerate(self.layers):
                hook = lambda m, i, o, l=l: change(("block", l), o)
                stack.callback(layer.register_forward_hook(hook).remove)
                hook = lambda m, i, l=l: (change(("z", l), i[0]), *i[1:])
                out = layer.self_attn.o_proj
                stack.callback(out.register_forward_pre_hook(hook).remove)
            logits = self.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        assert logits.dtype == torch.float32 and len(seen) == 1 + 2 * len(self.layers)
        return logits, seen


def logits_of(model, llama, prompt):
    ids = llama.encode(prompt)
    logits, _ = model.run(ids)
    values, top = logits.topk(10)
    return {
        "text": prompt,
        "ids": ids,
        "top": [[int(i), v.item()] for i, v in zip(top, values)],
        "logits": [logits[i].item() for i in VOCABULARY],
        "log_sum_exp": torch.logsumexp(logits.double(), 0).item(),
    }


def swaps(model, base, source, answer):
    """P(answer) under swaps of one activation of the source into the base."""

    def probability(edits=()):
        return torch.softmax(model.run(base, edits)[0].double(), 0)[answer].item()

    _, values = model.run(source)
    assert len(base) == len(source)
    positions = range(len(base))
    places = ["embedding"] + [("block", l) for l in range(len(model.layers))]
    blocks = [
        [probability([(place, [at], EVERYWHERE, values)]) for at in positions] for place in places
    ]
    heads = [
        [probability([(("z", HEAD_LAYER), [at], model.head(h), values)]) for at in positions]
        for h in range(model.heads)
    ]
    return {
        "base": base,
        "source": source,
        "answer": answer,
        "unchanged": probability(),
        "blocks": blocks,
        "head_layer": HEAD_LAYER,
        "heads": heads,
    }


def path_patching(model, llama):
    """The direct effect of heads on the difference of two names' logits, mean over examples: the
    head's output as in the other prompt, all other heads as in the base, MLPs recomputed (Wang et
    al. 2022, Appendix B, arXiv 2211.00593)."""

    def one(text):
        (token,) = llama.encode(text)
        return token

    examples = [
        (llama.encode(base), llama.encode(source), one(name), one(other))
        for base, source, name, other in IOI
    ]
    rows = []
    for base, source, name, other in examples:
        assert len(base) == len(source)

        difference = lambda logits: (logits[name] - logits[other]).item()
        base_logits, before = model.run(base)
        source_logits, values = model.run(source)
        row = [difference(base_logits), difference(source_logits)]
        for layer, head in SENDERS:
            edits = [(("z", layer), EVERYWHERE, model.head(head), values)]
            for l in range(layer + 1, len(model.layers)):
                edits.append((("z", l), EVERYWHERE, EVERYWHERE, before))
            row.append(difference(model.run(base, edits)[0]))
        rows.append(row)
    base, source, *patched = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    return {
        "texts": [list(row) for row in IOI],
        "base_ids": [example[0] for example in examples],
        "source_ids": [example[1] for example in examples],
        "names": [example[2] for example in examples],
        "others": [example[3] for example in examples],
        "base": base,
        "source": source,
        "senders": SENDERS,
        "patched": patched,
    }


def chat(file, llama):
    field = GGUFReader(file).fields["tokenizer.chat_template"]
    template = str(bytes(field.parts[field.data[0]]), "utf-8")
    (text,), _ = render_jinja_template(
        conversations=[CHAT], chat_template=template, add_generation_prompt=True
    )
    return {"messages": CHAT, "text": text, "ids": llama.encode(text)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    llama = Llama(folder / FILE)
    model = Model(folder)
    base, source = llama.encode(BASE), llama.encode(SOURCE)
    (answer,) = llama.encode(ANSWER)
    written = {
        "file": FILE,
        "vocabulary": VOCABULARY,
        "prompts": [logits_of(model, llama, prompt) for prompt in PROMPTS],
        "swaps": swaps(model, base, source, answer),
        "paths": path_patching(model, llama),
        "chat": chat(folder / FILE, llama),
    }
    sections = [f" {json.dumps(name)}: {json.dumps(part)}" for name, part in written.items()]
    (HERE / "smollm2.json").write_text("{\n" + ",\n".join(sections) + "\n}\n")


if __name__ == "__main__":
    main()
