"""What Gemma 3 270M computes, by transformers on the dequantised weights of its GGUF file.

    pip install torch==2.15.0 transformers==4.57.6 gguf==0.19.0
    python tests/real/make_expected_gemma3.py FOLDER     # with the GGUF file, see `fetch.sh --all`

Writes `gemma3.json`: logits after the last token of two prompts, one of them longer than the window of
512, and the greedy continuation of the first. The ids are those of llama.cpp, which puts a BOS before
them. All of it is in f32.
"""

import argparse
import json
from pathlib import Path

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

HERE = Path(__file__).parent
FILE = "gemma-3-270m-q4_k_m.gguf"
PROMPT = [2, 818, 5279, 529, 7001, 563]
"""<bos>The capital of France is"""
LONG = PROMPT + [107 + 37 * i % 5000 for i in range(534)] + PROMPT[1:]
VOCABULARY = [5243 * i for i in range(50)]
NEW = 12

MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def weights(file):
    """The tensors by their names in transformers. Norms are stored with 1 added."""
    named = {}
    for tensor in GGUFReader(file).tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)).float()
        if "norm" in tensor.name:
            values = values - 1.0
        if tensor.name == "token_embd.weight":
            named["model.embed_tokens.weight"] = named["lm_head.weight"] = values
        elif tensor.name == "output_norm.weight":
            named["model.norm.weight"] = values
        else:
            _, layer, module, kind = tensor.name.split(".")
            named[f"model.layers.{layer}.{MODULES[module]}.{kind}"] = values
    return named


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    file = parser.parse_args().folder / FILE
    config = Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        max_position_embeddings=32768,
        sliding_window=512,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        attn_implementation="eager",
    )
    model = Gemma3ForCausalLM(config).eval()
    model.load_state_dict(weights(file), strict=True)

    def prompt(ids):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        values, top = logits.topk(10)
        return {
            "ids": ids,
            "top": [[int(i), v.item()] for i, v in zip(top, values)],
            "logits": [logits[i].item() for i in VOCABULARY],
        }

    ids = list(PROMPT)
    for _ in range(NEW):
        ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    expected = {
        "file": FILE,
        "vocabulary": VOCABULARY,
        "prompts": [prompt(PROMPT), prompt(LONG)],
        "continued": ids[len(PROMPT) :],
    }
    (HERE / "gemma3.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
