//! Workloads that take minutes, or that not every backend has: they run if they are named.

use burn_align::front::AlignableRepresentationConfig;
use burn_align_models::{Component, ModelDims};

use crate::catalogue::{Choices, Inputs, Task, Workload, grid, middle};
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
    let layers = dims.layers;
    [6, 20, 80].map(|pos| {
        let inputs = choices.inputs(1, pos);
        let Inputs { batch, pos } = inputs;
        let of_batch = match batch {
            1 => String::new(),
            _ => format!("_batch{batch}"),
        };
        Workload {
            family: "sweep_long",
            name: format!("sweep_block_output_{layers}x{pos}{of_batch}"),
            what: format!("block_output swapped in at each of {layers} layers × {pos} positions"),
            task: Task::Sweep {
                inputs,
                cells: grid(layers, pos, &[Component::BlockOutput]),
                clean: false,
            },
        }
    })
}

/// The low-rank step on longer prompts.
pub(crate) fn das(choices: &Choices, layer: usize) -> Workload {
    let inputs = choices.inputs(16, 64);
    let (position, rank) = (middle(inputs.pos), choices.rank);
    let residual = AlignableRepresentationConfig::new(layer, Component::BlockOutput);
    Workload {
        family: "das_long",
        name: format!("das_lowrank{rank}_step_{inputs}"),
        what: format!("a step of DAS with {rank} directions, layer {layer}, position {position}"),
        task: Task::Das {
            inputs,
            position,
            representation: Box::new(residual.with_low_rank(rank)),
        },
    }
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
