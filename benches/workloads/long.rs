//! Workloads that take minutes, or that not every backend has: they run if they are named.

use burn_align_models::ModelDims;

use crate::catalogue::{Choices, Inputs, Task, Workload, block_sweep, low_rank_step};
use crate::generation::Generation;
use crate::{circuits, das_grid, products};

/// Their families.
const FAMILIES: [&str; 7] = [
    "sweep_long",
    "das_long",
    das_grid::FAMILY,
    "generate",
    "generate_chat",
    circuits::EXACT,
    products::FAMILY,
];

impl Workload {
    /// Whether it runs only if it is named.
    pub(crate) fn is_on_request(&self) -> bool {
        FAMILIES.contains(&self.family)
    }
}

/// Sweeps over the positions of prompts as people write them.
pub(crate) fn sweeps(dims: &ModelDims, choices: &Choices) -> [Workload; 3] {
    [6, 20, 80].map(|pos| block_sweep("sweep_long", choices.inputs(1, pos), dims.layers))
}

/// The low-rank step on longer prompts.
pub(crate) fn das(choices: &Choices, layer: usize) -> Workload {
    low_rank_step("das_long", choices.inputs(16, 64), layer, choices.rank)
}

/// Greedy texts after short prompts, and one of the length of a chat.
pub(crate) fn texts(choices: &Choices, layer: usize) -> [Workload; 6] {
    let kept = ", weights kept in Q8_0 or as their file has them";
    let steered = format!(", a direction of each row's own added after layer {layer} everywhere");
    let short = |batch| Generation {
        inputs: choices.inputs(batch, 5),
        tokens: 31,
        steered: None,
        quantised: false,
    };
    let chat = Generation {
        inputs: choices.inputs(1, 128),
        tokens: 384,
        ..short(1)
    };
    let in_blocks = |batch| Generation {
        quantised: true,
        ..short(batch)
    };
    let with_directions = Generation {
        steered: Some(layer),
        ..short(16)
    };
    // Names have the prompt's length if it is chosen, and that of the whole text for a chat.
    let of_pos = match choices.pos {
        Some(pos) => format!("_after{pos}"),
        None => String::new(),
    };
    let texts = |family, length: usize, generation: Generation, kind: &str, what: &str| {
        let Inputs { batch, pos } = generation.inputs;
        Workload {
            family,
            name: format!("{family}_{batch}x{length}{of_pos}{kind}"),
            what: format!(
                "{} new tokens in each of {batch} rows after {pos}{what}",
                generation.tokens
            ),
            task: Task::Generate(generation),
        }
    };
    [
        texts("generate", 31, short(1), "", ""),
        texts("generate", 31, short(16), "", ""),
        texts("generate", 31, with_directions, "_steered", &steered),
        texts("generate", 31, in_blocks(1), "_quantised", kept),
        texts("generate", 31, in_blocks(16), "_quantised", kept),
        texts("generate_chat", chat.inputs.pos + chat.tokens, chat, "", ""),
    ]
}
