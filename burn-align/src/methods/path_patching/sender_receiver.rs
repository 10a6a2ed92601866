//! Patches from senders to receivers.

use std::collections::HashSet;
use std::fmt;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, Component, ModelDims, Site, TokenBatch};
use serde::{Deserialize, Serialize};

use super::{PathEffects, PathGrid, frozen, recomputed};
use crate::engine::{Indices, Plan, RunOptions, Units};
use crate::methods::sweep::numbers;
use crate::paths::{Node, PathError, check_lengths};

/// A node whose output comes from the source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sender {
    /// The node.
    pub node: Node,
    /// Its positions; at other positions its output comes from the base.
    pub positions: Indices,
}

impl From<Node> for Sender {
    /// At all positions.
    fn from(node: Node) -> Self {
        Self {
            node,
            positions: Indices::All,
        }
    }
}

/// An input that sees the senders' outputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Receiver {
    /// The input.
    pub input: ReceiverInput,
    /// Its positions; the logits are always those after the last token.
    pub positions: Indices,
}

impl From<ReceiverInput> for Receiver {
    /// At all positions.
    fn from(input: ReceiverInput) -> Self {
        Self {
            input,
            positions: Indices::All,
        }
    }
}

/// The inputs that can receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceiverInput {
    /// The queries of a head.
    Query {
        /// The layer.
        layer: usize,
        /// The query head.
        head: usize,
    },
    /// The keys of a key-value head.
    Key {
        /// The layer.
        layer: usize,
        /// The key-value head, which query heads may share.
        kv_head: usize,
    },
    /// The values of a key-value head.
    Value {
        /// The layer.
        layer: usize,
        /// The key-value head, which query heads may share.
        kv_head: usize,
    },
    /// The input of an MLP.
    Mlp {
        /// The layer.
        layer: usize,
    },
    /// The final residual stream: the sender's direct effect.
    Logits,
}

impl ReceiverInput {
    /// As [`Node::depth`].
    pub(super) fn depth(self, dims: &ModelDims) -> usize {
        match self {
            Self::Query { layer, .. } | Self::Key { layer, .. } | Self::Value { layer, .. } => {
                Node::Attention { layer }.depth(dims)
            }
            Self::Mlp { layer } => Node::Mlp { layer }.depth(dims),
            Self::Logits => 2 * dims.layers + 1,
        }
    }

    /// The site and head at which the received input is recorded and patched. `None` for the
    /// logits.
    pub(super) fn site(self, dims: &ModelDims) -> Option<(Site, Option<usize>)> {
        let [queries, keys] = dims.queries_and_keys_by_head();
        Some(match self {
            Self::Query { layer, head } => (Site::Block(layer, queries), Some(head)),
            Self::Key { layer, kv_head } => (Site::Block(layer, keys), Some(kv_head)),
            Self::Value { layer, kv_head } => {
                (Site::Block(layer, Component::ValueOutput), Some(kv_head))
            }
            Self::Mlp { layer } => (Site::Block(layer, Component::MlpInput), None),
            Self::Logits => return None,
        })
    }

    fn check(self, dims: &ModelDims) -> Result<(), PathError> {
        match self {
            Self::Query { layer, head } => Node::Head { layer, head }.check(dims),
            Self::Key { layer, kv_head } | Self::Value { layer, kv_head } => {
                Node::Attention { layer }.check(dims)?;
                if kv_head < dims.kv_heads {
                    return Ok(());
                }
                Err(PathError::NoSuchKvHead {
                    receiver: self.to_string(),
                    found: kv_head,
                    kv_heads: dims.kv_heads,
                })
            }
            Self::Mlp { layer } => Node::Mlp { layer }.check(dims),
            Self::Logits => Ok(()),
        }
    }
}

impl fmt::Display for ReceiverInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query { layer, head } => write!(f, "{layer}.{head}.q"),
            Self::Key { layer, kv_head } => write!(f, "{layer}.{kv_head}.k"),
            Self::Value { layer, kv_head } => write!(f, "{layer}.{kv_head}.v"),
            Self::Mlp { layer } => write!(f, "m{layer}"),
            Self::Logits => f.write_str("logits"),
        }
    }
}

/// A patch from senders to receivers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPatch {
    /// The nodes that come from the source, all in the same run.
    pub senders: Vec<Sender>,
    /// The inputs that see them, all in the same run.
    pub receivers: Vec<Receiver>,
}

impl PathPatch {
    /// From one sender to one receiver.
    pub fn new(sender: impl Into<Sender>, receiver: impl Into<Receiver>) -> Self {
        Self {
            senders: vec![sender.into()],
            receivers: vec![receiver.into()],
        }
    }

    /// Whether only the logits receive.
    pub(super) fn is_direct(&self) -> bool {
        let mut receivers = self.receivers.iter();
        receivers.all(|receiver| receiver.input == ReceiverInput::Logits)
    }

    /// Checks that a model has the nodes, that every sender has a receiver after it, and that every
    /// receiver has a sender before it.
    fn check(&self, patch: usize, dims: &ModelDims) -> Result<(), PathError> {
        let empty = |what| Err(PathError::Empty { patch, what });
        let (Some(first), Some(last)) = (
            self.senders
                .iter()
                .min_by_key(|sender| sender.node.depth(dims)),
            self.receivers
                .iter()
                .max_by_key(|receiver| receiver.input.depth(dims)),
        ) else {
            return empty(match self.senders.is_empty() {
                true => "sender",
                false => "receiver",
            });
        };
        for sender in &self.senders {
            sender.node.check(dims)?;
        }
        for receiver in &self.receivers {
            receiver.input.check(dims)?;
        }
        let senders = self.senders.iter().map(|sender| (sender, last));
        let receivers = self.receivers.iter().map(|receiver| (first, receiver));
        for (sender, receiver) in senders.chain(receivers) {
            if !reaches(sender.node, receiver.input, dims) {
                return Err(PathError::NotAfter {
                    sender: sender.node,
                    receiver: receiver.input.to_string(),
                });
            }
        }
        for (index, sender) in self.senders.iter().enumerate() {
            for other in &self.senders[..index] {
                if other.node.overlaps(sender.node)
                    && crate::paths::meet(&other.positions, &sender.positions)
                {
                    return Err(PathError::Overlap {
                        first: other.node,
                        second: sender.node,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Whether a receiver reads what a node adds.
pub(super) fn reaches(sender: Node, receiver: ReceiverInput, dims: &ModelDims) -> bool {
    sender.depth(dims) < receiver.depth(dims)
}

/// What MLPs between senders and receivers do. All attention in between is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mlps {
    /// They keep their outputs from the base. A receiver sees the sender on the direct path only,
    /// so the change in its input is the change in the sender's output.
    Frozen,
    /// They react to the sender, as in Wang et al.: the direct effect includes paths through MLPs.
    Recomputed,
}

/// Patches paths from senders to receivers and measures the prediction: `metric` of the logits
/// after the last token of each example, averaged over examples.
///
/// For each patch (Wang et al., Appendix B): the senders' outputs are replaced by those of the
/// source, and all other heads are kept as in the base; the receivers' inputs are recorded; and
/// another run on the base, in which everything else is free, uses the recorded inputs.
///
/// With [`Mlps::Frozen`] the first of these runs is not needed: the residual stream is a sum, so
/// the receivers' inputs are those of the base plus the differences in the senders' outputs. If the
/// logits are the receiver, the second run is not needed either. All patches share the runs on base
/// and source. If a norm follows the attention, what its heads add is known from a run of the norm,
/// for all heads of a layer that send together.
///
/// # Shapes
/// - metric: `[batch, vocab]` → `[batch]`
///
/// # Errors
/// If a patch does not fit the model, a receiver does not come after its sender, or base and source
/// differ in length.
pub fn path_patch<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    [base, source]: [&TokenBatch; 2],
    patches: &[PathPatch],
    mlps: Mlps,
    metric: impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
    options: &RunOptions,
) -> Result<PathEffects, PathError> {
    check_lengths(&[base, source])?;
    for (index, patch) in patches.iter().enumerate() {
        patch.check(index, model.dims())?;
    }
    check_positions(model, base, patches)?;
    let mut senders = patches.iter().flat_map(|patch| &patch.senders);
    let needs_heads = mlps == Mlps::Frozen && !model.dims().post_norms;
    if needs_heads && senders.any(|sender| matches!(sender.node, Node::Head { .. })) {
        frozen::by_head(model)?;
    }
    match mlps {
        Mlps::Frozen => frozen::run(model, [base, source], patches, metric, options),
        Mlps::Recomputed => recomputed::run(model, [base, source], patches, metric, options),
    }
}

/// Checks that the base has all positions of senders and receivers.
fn check_positions<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    base: &TokenBatch,
    patches: &[PathPatch],
) -> Result<(), PathError> {
    let mut plan = Plan::<B>::new();
    let input = plan.tokens(base);
    let world = plan.world(input, []);
    let dims = model.dims();
    let senders = patches.iter().flat_map(|patch| &patch.senders);
    let senders = senders.map(|sender| (sender.node.output(dims), &sender.positions));
    let receivers = patches.iter().flat_map(|patch| &patch.receivers);
    let receivers = receivers.filter_map(|receiver| {
        let (site, _head) = receiver.input.site(dims)?;
        Some((site, &receiver.positions))
    });
    for (site, positions) in senders.chain(receivers).collect::<HashSet<_>>() {
        plan.read(world, site, Units::positions(positions.clone()));
    }
    plan.explain(model)?;
    Ok(())
}

/// Patches from each sender to each receiver, one at a time. Senders are the rows.
///
/// # Errors
/// As [`path_patch`], except that a receiver before its sender is no error: nothing changes in that
/// cell.
pub fn path_grid<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    inputs: [&TokenBatch; 2],
    senders: &[Sender],
    receivers: &[Receiver],
    mlps: Mlps,
    metric: impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
    options: &RunOptions,
) -> Result<PathGrid, PathError> {
    let cells = senders.iter().flat_map(|sender| {
        let receivers = receivers.iter();
        receivers.map(|receiver| PathPatch::new(sender.clone(), receiver.clone()))
    });
    let cells: Vec<PathPatch> = cells.collect();
    let effects = cells_with_paths(model, inputs, &cells, mlps, metric, options)?;
    let rows = senders.iter().map(|sender| sender.node.to_string());
    let columns = receivers.iter().map(|receiver| receiver.input.to_string());
    Ok(effects.into_grid(rows.collect(), columns.collect()))
}

/// Patches from each head of the model, one at a time, to all these receivers together: layers ×
/// heads. With [`ReceiverInput::Logits`] alone, this is Figure 3b of Wang et al.
///
/// # Errors
/// As [`path_patch`], except that a head without a receiver after it is no error: nothing changes
/// in its cell. Receivers that do not come after a head are left out for it.
///
/// ```
/// use burn_align::engine::RunOptions;
/// use burn_align::methods::{Mlps, ReceiverInput, head_effects, logit_difference};
/// use burn_align::models::{AlignableTransformer, Decoder, FromPretrained, LoadOptions};
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// let loaded =
///     Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// let base = tokenizer.encode_batch(["The capital of Spain is"])?;
/// let source = tokenizer.encode_batch(["The capital of Italy is"])?;
///
/// let [rome, madrid] = ["Rome", "Madrid"].map(|name| tokenizer.single_token(name));
/// let (rome, madrid) = (rome?, madrid?);
/// let found = head_effects(
///     &loaded.model,
///     [&base, &source],
///     &[ReceiverInput::Logits.into()],
///     Mlps::Frozen,
///     |logits| logit_difference(logits, rome, madrid),
///     &RunOptions::default(),
/// )?;
/// // The share of the way from base to source that each head goes: layers × heads.
/// let dims = loaded.model.dims();
/// assert_eq!(found.shares().values.len(), dims.layers);
/// assert_eq!(found.shares().values[0].len(), dims.heads);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn head_effects<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    inputs: [&TokenBatch; 2],
    receivers: &[Receiver],
    mlps: Mlps,
    metric: impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
    options: &RunOptions,
) -> Result<PathGrid, PathError> {
    let dims = model.dims();
    for receiver in receivers {
        receiver.input.check(dims)?;
    }
    let cells = Node::heads(dims).into_iter().map(|head| PathPatch {
        senders: vec![head.into()],
        receivers: receivers
            .iter()
            .filter(|receiver| reaches(head, receiver.input, dims))
            .cloned()
            .collect(),
    });
    let cells: Vec<PathPatch> = cells.collect();
    let effects = cells_with_paths(model, inputs, &cells, mlps, metric, options)?;
    Ok(effects.into_grid(numbers(dims.layers), numbers(dims.heads)))
}

/// The effects of patches; those without a path change nothing.
fn cells_with_paths<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    inputs: [&TokenBatch; 2],
    cells: &[PathPatch],
    mlps: Mlps,
    metric: impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
    options: &RunOptions,
) -> Result<PathEffects, PathError> {
    let dims = model.dims();
    let has_path = |cell: &PathPatch| {
        let mut pairs = cell.senders.iter().flat_map(|sender| {
            let receivers = cell.receivers.iter();
            receivers.map(move |receiver| (sender.node, receiver.input))
        });
        pairs.any(|(sender, receiver)| {
            // The check that follows reports nodes that the model lacks.
            let unknown = sender.check(dims).is_err() || receiver.check(dims).is_err();
            unknown || reaches(sender, receiver, dims)
        })
    };
    let patches: Vec<PathPatch> = cells
        .iter()
        .filter(|cell| has_path(cell))
        .cloned()
        .collect();
    let mut effects = path_patch(model, inputs, &patches, mlps, metric, options)?;
    let mut patched = effects.patched.into_iter();
    effects.patched = cells
        .iter()
        .map(|cell| match has_path(cell) {
            true => patched.next().expect("a value for each patch"),
            false => effects.base,
        })
        .collect();
    Ok(effects)
}
