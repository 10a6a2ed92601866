"""SAELens' trainer on the tokens of the example `train_dictionary`, to compare with ours.

    cargo run --release --example train_dictionary -- --model MODEL --write-tokens tokens.json
    pip install sae-lens==6.54.12
    python benches/peers/dictionaries.py FOLDER tokens.json --layer 12 --features 2304

MODEL is a GGUF file and FOLDER the same model for `transformers`, for example made by
`AutoModelForCausalLM.from_pretrained(DIR, gguf_file=FILE, dtype=torch.float32).save_pretrained(FOLDER)`;
or both are one folder. The defaults are those of the example for models other than the bundled one.

The activations come from `transformers`, whose layers after the site are removed, in SAELens' own
mixing buffer; TopK and Adam are SAELens' (`SAETrainer`). Prints what the example prints: tokens per
second, the model's passes included, and the explained variance of held-out tokens, as JSON. The
first position of each example is left out on both sides.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.mixing_buffer import mixing_buffer
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

TOGETHER = 16  # examples of a pass, as in burn-align
BUFFER = 1 << 16  # tokens that are shuffled together, as in burn-align
SKIPPED = 1


def load(folder: Path, layer: int) -> PreTrainedModel:
    """The model up to a layer, without its last norm."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().base_model
    layers = "layers" if hasattr(model, "layers") else "h"
    setattr(model, layers, getattr(model, layers)[: layer + 1])
    setattr(model, "norm" if hasattr(model, "norm") else "ln_f", torch.nn.Identity())
    return model.requires_grad_(False)


def activations(model: PreTrainedModel, examples: Tensor, clock: dict) -> Iterator[Tensor]:
    for some in examples.split(TOGETHER):
        start = time.perf_counter()
        with torch.no_grad():
            hidden = model(some, use_cache=False).last_hidden_state
        clock["model"] += time.perf_counter() - start
        yield hidden[:, SKIPPED:].flatten(0, 1)


def epochs(model: PreTrainedModel, examples: Tensor, clock: dict) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(examples), generator=generator)
        yield from activations(model, examples[order], clock)


@torch.no_grad()
def evaluate(sae: torch.nn.Module, batches: Iterator[Tensor]) -> dict:
    """On the sums over all tokens, in f64."""
    count, total, squares, error, active = 0, 0.0, 0.0, 0.0, 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for x in batches:
        features = sae.encode(x)
        features = features.to_dense() if features.is_sparse else features
        missed = (x - sae.decode(features)).double()
        count += len(x)
        total = total + x.double().sum(dim=0)
        squares += x.double().square().sum().item()
        error += missed.square().sum().item()
        active += (features != 0).sum().item()
        fired |= (features != 0).any(dim=0)
    variance = squares - (total / count).square().sum().item() * count
    return {
        "held_out_tokens": count,
        "explained_variance": 1 - error / variance,
        "l0": active / count,
        "silent_features": int((~fired).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokens_file", type=Path)
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--features", type=int, default=2304)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=204_800)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sparse", action="store_true", help="SAELens' use_sparse_activations")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    model = load(arguments.folder, arguments.layer)
    text = json.loads(arguments.tokens_file.read_text())
    training, held_out = (torch.tensor(text[part]) for part in ("training", "held_out"))
    width = model.config.hidden_size
    steps = arguments.tokens // arguments.batch
    sae_class, config_class = get_sae_training_class("topk")
    sae = sae_class(
        config_class(
            d_in=width,
            d_sae=arguments.features,
            k=arguments.k,
            use_sparse_activations=arguments.sparse,
            normalize_activations="expected_average_only_in",
        )
    )
    trainer_config = SAETrainerConfig(
        total_training_samples=steps * arguments.batch,
        train_batch_size_samples=arguments.batch,
        lr=arguments.learning_rate,
        lr_end=arguments.learning_rate / 10,
        lr_warm_up_steps=round(0.05 * steps),
        lr_decay_steps=round(0.2 * steps),
        dead_feature_window=50,
        # The factor is measured on as many tokens as ours: the buffer.
        n_batches_for_norm_estimate=BUFFER // arguments.batch,
    )

    clock = {"model": 0.0}
    start = time.perf_counter()
    stream = epochs(model, training, clock)
    provider = mixing_buffer(max(BUFFER, arguments.batch), arguments.batch, stream)
    trainer = SAETrainer(trainer_config, sae, provider)
    sae = trainer.fit()
    seconds = time.perf_counter() - start
    # The batches of the estimate pass the model as well; ours are trained on too.
    read = steps * arguments.batch + BUFFER
    found = evaluate(sae, activations(model, held_out, {"model": 0.0}))
    print(
        json.dumps(
            {
                "side": "SAELens, sparse" if arguments.sparse else "SAELens",
                "steps": steps,
                "seconds": round(seconds, 1),
                "seconds_of_model": round(clock["model"], 1),
                "tokens_per_second": round(steps * arguments.batch / seconds, 1),
                "tokens_per_second_read": round(read / seconds, 1),
                "dead": int(trainer.dead_neurons.sum()),
                **found,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
