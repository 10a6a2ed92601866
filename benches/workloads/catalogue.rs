//! The workloads, as data.

use std::collections::BTreeSet;

use burn_align::engine::Units;
use burn_align::front::{AlignableRepresentationConfig, InterventionType};
use burn_align::methods::{Mlps, ReceiverInput};
use burn_align_models::{Component, ModelDims, Site};

use crate::circuits::{self, Circuits};
use crate::features::{self, Features};
use crate::generation::Generation;
use crate::planning::{self, Planning};
use crate::products::{self, Product};
use crate::{das_grid, long};

/// Something to time.
pub(crate) struct Workload {
    /// Its name without the shape.
    pub(crate) family: &'static str,
    /// Its name with the shape, as in tables and JSON.
    pub(crate) name: String,
    /// What is computed.
    pub(crate) what: String,
    /// The computation itself.
    pub(crate) task: Task,
}

/// What a workload computes.
pub(crate) enum Task {
    /// A clean run, its logits at the last position.
    Forward(Inputs),
    /// The same with weights that stay quantised.
    ForwardQuantised(Inputs),
    /// The model's own forward pass, logits at all positions.
    Plain(Inputs),
    /// The same, as a plan without edits.
    EmptyPlan(Inputs),
    /// One interchange per site and units, each in its own world, all in one plan; logits at the
    /// last position.
    Sweep {
        inputs: Inputs,
        cells: Vec<(Site, Units)>,
        /// Whether to read the logits of the clean base too.
        clean: bool,
    },
    /// Paths patched from each head, one at a time.
    Paths {
        inputs: Inputs,
        receiver: ReceiverInput,
        mlps: Mlps,
    },
    /// Something of the edges of the residual graph.
    Circuits { inputs: Inputs, kind: Circuits },
    /// An optimizer step of distributed alignment search.
    Das {
        inputs: Inputs,
        position: usize,
        representation: Box<AlignableRepresentationConfig>,
    },
    /// Distributed alignment search in every cell of a grid.
    DasGrid(Inputs),
    /// A change of all features of a dictionary.
    Features(Inputs, Features),
    /// Texts.
    Generate(Generation),
    /// A sweep on a model of its own, planned and not run.
    Planning(Planning),
    /// Products of one matrix.
    Product(Product),
    /// A checkpoint, read from a folder.
    Load,
}

/// The shape of the token ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inputs {
    pub(crate) batch: usize,
    pub(crate) pos: usize,
}

/// The shapes that a user can choose.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Choices {
    /// Examples per batch [default: each workload's own].
    #[arg(long)]
    pub(crate) batch: Option<usize>,
    /// Tokens per example [default: each workload's own].
    #[arg(long)]
    pub(crate) pos: Option<usize>,
    /// Layer of single interchanges, of DAS and of steering [default: the middle one].
    #[arg(long)]
    pub(crate) layer: Option<usize>,
    /// Directions of the low-rank DAS.
    #[arg(long, default_value_t = 64)]
    pub(crate) rank: usize,
}

impl Choices {
    /// The inputs of a workload with this default shape.
    pub(crate) fn inputs(&self, batch: usize, pos: usize) -> Inputs {
        Inputs {
            batch: self.batch.unwrap_or(batch),
            pos: self.pos.unwrap_or(pos),
        }
    }
}

impl std::fmt::Display for Inputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.batch, self.pos)
    }
}

/// All workloads on a model of these sizes. Names depend on sizes and choices, families do not.
pub(crate) fn catalogue(dims: &ModelDims, choices: &Choices) -> Vec<Workload> {
    let layer = choices.layer.unwrap_or(dims.layers / 2);
    let mut all = forwards(choices);
    all.extend(plain(choices));
    all.push(single("single", choices.inputs(1, 5), layer, |pos| pos - 1));
    all.extend(sweeps(dims, choices));
    all.push(single("batch", choices.inputs(32, 32), layer, middle));
    all.extend(paths(dims, choices));
    all.extend(circuits::workloads(dims, choices));
    all.extend(das(choices, layer));
    all.extend(features::workloads(choices, layer));
    all.push(Workload {
        family: "load",
        name: "load".to_owned(),
        what: "the model from a folder with config.json and model.safetensors, in its dtype"
            .to_owned(),
        task: Task::Load,
    });
    all.extend(planning::workloads());
    all.extend(products::workloads(dims, choices));
    all.extend(long::sweeps(dims, choices));
    all.push(long::das(choices, layer));
    all.push(das_grid::workload(dims, choices));
    all.extend(long::texts(choices, layer));
    // With shapes that a user chooses, some are the same.
    let mut names = BTreeSet::new();
    all.retain(|workload| names.insert(workload.name.clone()));
    all
}

/// The position in the middle, 15 of 32.
fn middle(pos: usize) -> usize {
    (pos / 2).saturating_sub(1)
}

fn forwards(choices: &Choices) -> Vec<Workload> {
    let shapes = [(1, 5), (1, 80), (8, 64), (8, 128), (32, 80)].map(|(b, p)| choices.inputs(b, p));
    let workload = |inputs| Workload {
        family: "forward",
        name: format!("forward_{inputs}"),
        what: "a clean run, logits at the last position".to_owned(),
        task: Task::Forward(inputs),
    };
    let quantised = |inputs| Workload {
        family: "forward_quantised",
        name: format!("forward_quantised_{inputs}"),
        what: "the same with the weights in Q8_0, or as the file has them".to_owned(),
        task: Task::ForwardQuantised(inputs),
    };
    let few = [(1, 5), (8, 64)].map(|(b, p)| choices.inputs(b, p));
    let dense = shapes.into_iter().map(workload);
    dense.chain(few.into_iter().map(quantised)).collect()
}

/// The cost of a plan that changes nothing.
fn plain(choices: &Choices) -> [Workload; 2] {
    let inputs = choices.inputs(8, 64);
    [
        Workload {
            family: "plain_forward",
            name: format!("plain_forward_{inputs}"),
            what: "the model's own forward pass, logits at all positions".to_owned(),
            task: Task::Plain(inputs),
        },
        Workload {
            family: "empty_plan",
            name: format!("empty_plan_{inputs}"),
            what: "the same as a plan without edits".to_owned(),
            task: Task::EmptyPlan(inputs),
        },
    ]
}

/// One interchange.
fn single(
    family: &'static str,
    inputs: Inputs,
    layer: usize,
    position: fn(usize) -> usize,
) -> Workload {
    let position = position(inputs.pos);
    let cell = (
        Site::Block(layer, Component::BlockOutput),
        Units::position(position),
    );
    Workload {
        family,
        name: format!("{family}_{inputs}"),
        what: format!("one interchange: block_output of layer {layer}, position {position}"),
        task: Task::Sweep {
            inputs,
            cells: vec![cell],
            clean: false,
        },
    }
}

fn sweeps(dims: &ModelDims, choices: &Choices) -> [Workload; 4] {
    let inputs = choices.inputs(1, 5);
    let Inputs { batch, pos } = inputs;
    // The name has the shape only if it is not the default, and cannot be told from the grid.
    let of_batch = of_batch(batch);
    let of_inputs = if (batch, pos) == (1, 5) {
        String::new()
    } else {
        format!("_{inputs}")
    };
    let [layers, heads] = [dims.layers, dims.heads];
    let head_cells = (0..layers).flat_map(|layer| {
        let site = Site::Block(layer, Component::AttentionValueOutput);
        (0..heads).map(move |head| (site, Units::position(pos - 1).of_head(head)))
    });
    let sweep = |family, name, what: String, cells, clean| Workload {
        family,
        name,
        what,
        task: Task::Sweep {
            inputs,
            cells,
            clean,
        },
    };
    [
        block_sweep("sweep_block_output", inputs, layers),
        sweep(
            "sweep_attn_mlp",
            format!("sweep_attn_mlp_{}x{pos}{of_batch}", 2 * layers),
            format!("attention and MLP outputs at each of {layers} layers × {pos} positions"),
            grid(
                layers,
                pos,
                &[Component::AttentionOutput, Component::MlpOutput],
            ),
            false,
        ),
        sweep(
            "head_sweep",
            format!("head_sweep_{layers}x{heads}{of_inputs}"),
            format!("each of {layers} × {heads} heads swapped in at the last position"),
            head_cells.collect(),
            false,
        ),
        sweep(
            "paths_nodes",
            format!("paths_nodes_{}x{pos}{of_batch}", 2 * layers + 1),
            format!(
                "what each attention or MLP reads at each of {pos} positions is the source's, and \
                 once nothing"
            ),
            grid(
                layers,
                pos,
                &[Component::AttentionInput, Component::MlpInput],
            ),
            true,
        ),
    ]
}

/// Block outputs swapped in at every layer and position.
pub(crate) fn block_sweep(family: &'static str, inputs: Inputs, layers: usize) -> Workload {
    let Inputs { batch, pos } = inputs;
    Workload {
        family,
        name: format!("sweep_block_output_{layers}x{pos}{}", of_batch(batch)),
        what: format!("block_output swapped in at each of {layers} layers × {pos} positions"),
        task: Task::Sweep {
            inputs,
            cells: grid(layers, pos, &[Component::BlockOutput]),
            clean: false,
        },
    }
}

/// The number of examples in a name, if it is not the default.
fn of_batch(batch: usize) -> String {
    match batch {
        1 => String::new(),
        _ => format!("_batch{batch}"),
    }
}

/// Every layer's components at every position.
pub(crate) fn grid(layers: usize, pos: usize, components: &[Component]) -> Vec<(Site, Units)> {
    let at = |layer, component| {
        (0..pos).map(move |position| (Site::Block(layer, component), Units::position(position)))
    };
    (0..layers)
        .flat_map(|layer| components.iter().flat_map(move |c| at(layer, *c)))
        .collect()
}

fn paths(dims: &ModelDims, choices: &Choices) -> [Workload; 4] {
    let inputs = choices.inputs(16, 15);
    let layer = dims.layers * 3 / 4;
    let head = dims.heads * 3 / 4;
    // The next layer, where more of the model comes before the receiver.
    let late = (layer + 1).min(dims.layers - 1);
    let workload = |family, what: String, receiver, mlps| Workload {
        family,
        name: format!("{family}_{inputs}"),
        what,
        task: Task::Paths {
            inputs,
            receiver,
            mlps,
        },
    };
    [
        workload(
            "paths_heads_to_logits",
            "paths patched from each head to the logits, MLPs frozen".to_owned(),
            ReceiverInput::Logits,
            Mlps::Frozen,
        ),
        workload(
            "paths_heads_mlps_to_logits",
            "paths patched from each head to the logits, MLPs recomputed".to_owned(),
            ReceiverInput::Logits,
            Mlps::Recomputed,
        ),
        workload(
            "paths_heads_to_query",
            format!("paths patched from each head to the queries of head {layer}.{head}"),
            ReceiverInput::Query { layer, head },
            Mlps::Frozen,
        ),
        workload(
            "paths_heads_to_late_query",
            format!("paths patched from each head to the queries of head {late}.0"),
            ReceiverInput::Query {
                layer: late,
                head: 0,
            },
            Mlps::Frozen,
        ),
    ]
}

fn das(choices: &Choices, layer: usize) -> [Workload; 3] {
    let inputs = choices.inputs(16, 32);
    let residual = AlignableRepresentationConfig::new(layer, Component::BlockOutput);
    [
        das_step(
            "das_rotated",
            "das_rotated",
            "DAS with a rotation of the whole residual stream",
            inputs,
            residual
                .clone()
                .with_intervention(InterventionType::RotatedSpace),
        ),
        low_rank_step("das_lowrank", inputs, layer, choices.rank),
        das_step(
            "das_boundless",
            "das_boundless",
            "Boundless DAS",
            inputs,
            residual.with_intervention(InterventionType::BoundlessRotatedSpace),
        ),
    ]
}

/// An optimizer step with some directions of the residual stream.
pub(crate) fn low_rank_step(
    family: &'static str,
    inputs: Inputs,
    layer: usize,
    rank: usize,
) -> Workload {
    let residual = AlignableRepresentationConfig::new(layer, Component::BlockOutput);
    let kind = format!("das_lowrank{rank}");
    let what = format!("DAS with {rank} directions");
    das_step(family, &kind, &what, inputs, residual.with_low_rank(rank))
}

/// An optimizer step at the position in the middle.
fn das_step(
    family: &'static str,
    kind: &str,
    what: &str,
    inputs: Inputs,
    representation: AlignableRepresentationConfig,
) -> Workload {
    let (layer, position) = (representation.layer, middle(inputs.pos));
    Workload {
        family,
        name: format!("{kind}_step_{inputs}"),
        what: format!("a step of {what}, layer {layer}, position {position}"),
        task: Task::Das {
            inputs,
            position,
            representation: Box::new(representation),
        },
    }
}
