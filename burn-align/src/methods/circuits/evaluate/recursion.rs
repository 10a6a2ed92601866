//! The patched run: a recursion over the parts of the model, for many circuits at once.
//!
//! With `u → v` an edge, `a_u` what `u` writes in the patched run and `a'_u` what it writes when
//! ablated, `v` reads `x_v = s'_v + Σ_u m_uv (a_u − a'_u)`, where `s'_v` is the stream at `v` if
//! everything is ablated: the embedding, heads, MLPs and biases. Where `m_uv` is 1 for edges in
//! the circuit and 0 for the others, this is simultaneous path patching, `s_v + Σ_{u ∉ C} (a'_u −
//! a_u)`, with as many terms as the circuit has edges.

use std::ops::Range;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align_models::{AlignableTransformer, Cx, NoTap};

use super::super::{CircuitError, GraphNode};
use super::ablation::Streams;
use super::masks::{Masks, NodeRows, Rows, sublayers};
use super::outputs::Outputs;
use super::setting::Setting;
use crate::paths::Node;

/// A patched run.
struct Recursion<'a, B: Backend, M, K> {
    setting: &'a Setting<B, M>,
    masks: &'a K,
    outputs: Outputs<B>,
}

/// What the final norm reads under the circuits of some masks, `[circuit * batch, unit, d_model]`.
pub(super) fn patched_last<B, M>(
    setting: &Setting<B, M>,
    masks: &impl Masks<B>,
) -> Result<Tensor<B, 3>, CircuitError>
where
    B: Backend,
    M: AlignableTransformer<B>,
{
    let mut run = Recursion {
        setting,
        masks,
        outputs: Outputs::new(masks.circuits()),
    };
    run.embed();
    run.run(0)
}

/// The logits under the circuits of some masks, `[circuit * batch, unit, vocab]`.
pub(super) fn patched_logits<B, M>(
    setting: &Setting<B, M>,
    masks: &impl Masks<B>,
) -> Result<Tensor<B, 3>, CircuitError>
where
    B: Backend,
    M: AlignableTransformer<B>,
{
    Ok(setting.logits(patched_last(setting, masks)?))
}

/// The same for circuits that have all edges to readers before a sublayer, from that sublayer on.
///
/// - first: index of the sublayer in [`sublayers`]
/// - whole: the change of each writer in the run of the base, `[1, value]`
pub(super) fn patched_logits_from<B, M>(
    setting: &Setting<B, M>,
    masks: &impl Masks<B>,
    first: usize,
    whole: &[Tensor<B, 2>],
) -> Result<Tensor<B, 3>, CircuitError>
where
    B: Backend,
    M: AlignableTransformer<B>,
{
    let mut run = Recursion {
        setting,
        masks,
        outputs: Outputs::new(masks.circuits()),
    };
    let heads = setting.graph.heads();
    let before = 1 + first / 2 * (heads + 1) + first % 2 * heads;
    for (writer, change) in whole.iter().enumerate().take(before) {
        if masks.slot(writer).is_some() {
            run.write_for_all(change.clone());
        }
    }
    Ok(setting.logits(run.run(first)?))
}

impl<B: Backend, M: AlignableTransformer<B>> Setting<B, M> {
    /// By how much the output of each writer in the run of the base differs from its ablated one,
    /// `[1, value]`.
    pub(super) fn whole_changes(&self) -> Result<Vec<Tensor<B, 2>>, CircuitError> {
        let pass = self.base_pass();
        let base = Streams::run(&self.model, self.embedding.clone(), &pass)?;
        let heads = self.heads()?;
        let [batch, len, _d_model] = self.dims();
        let mut changes = vec![self.row(&self.embedding) - self.row(&self.ablated.embedding)];
        for (layer, streams) in base.layers.iter().enumerate() {
            for head in 0..self.graph.heads() {
                let own = streams.mixed.clone().narrow(1, head, 1);
                let [.., d_head] = own.dims();
                let own = own.narrow(2, self.first, len);
                let own = own.reshape([1, batch * len * d_head]);
                let change = own - self.ablated_mixed(layer, head);
                let change = change.reshape([1, batch * len, d_head]);
                let change = heads.head_output(layer, head, change);
                changes.push(change.reshape([1, self.values()]));
            }
            changes.push(self.row(&streams.mlp) - self.row(&self.ablated(layer).mlp));
        }
        Ok(changes)
    }
}

impl<B, M, K> Recursion<'_, B, M, K>
where
    B: Backend,
    M: AlignableTransformer<B>,
    K: Masks<B>,
{
    /// Runs the sublayers from one on. The result is what the final norm reads.
    fn run(&mut self, first: usize) -> Result<Tensor<B, 3>, CircuitError> {
        let (setting, masks) = (self.setting, self.masks);
        for (index, readers) in sublayers(&setting.graph)
            .into_iter()
            .enumerate()
            .skip(first)
        {
            let Some(rows) = masks.rows(readers) else {
                continue;
            };
            let layer = index / 2;
            if layer == setting.graph.layers() {
                let rows = self.inputs(layer, setting.row(&setting.ablated.last), &rows)?;
                let [circuits, _row, values] = rows.dims();
                // There is one reader, so a circuit has one row.
                return Ok(setting.last(rows.reshape([circuits, values])));
            }
            match index % 2 {
                0 => self.attention(layer, rows)?,
                _ => self.mlp(layer, rows)?,
            }
        }
        // The logits are always needed.
        Err(CircuitError::Nothing { what: "circuit" })
    }

    fn embed(&mut self) {
        if self.masks.slot(0).is_some() {
            let setting = self.setting;
            let change = setting.row(&setting.embedding) - setting.row(&setting.ablated.embedding);
            self.write_for_all(change);
        }
    }

    /// Keeps a change that is the same in all circuits, `[1, value]`.
    fn write_for_all(&mut self, change: Tensor<B, 2>) {
        let circuits: Vec<usize> = (0..self.masks.circuits()).collect();
        let change = change.repeat_dim(0, circuits.len());
        self.outputs.write(&circuits, change);
    }

    fn attention(&mut self, layer: usize, rows: Rows<B>) -> Result<(), CircuitError> {
        let setting = self.setting;
        let heads = setting.heads()?;
        let dims = setting.model.dims();
        let group = dims.heads / dims.kv_heads;
        let stream = setting.row(&setting.ablated(layer).attention_reads);
        let inputs = self.inputs(layer, stream, &rows)?;
        let inputs = self.read_by_attention(layer, inputs)?;
        for node in &rows.nodes {
            let Some(head) = self.head(node.node) else {
                continue;
            };
            let times = node.circuits.len();
            let (pass, shape) = setting.pass(layer, times, Some(head / group));
            let streams = [0, 1, 2].map(|input| taken(&inputs, node, input).reshape(shape));
            let mixed = heads.head_mixed_normed(layer, head, streams, &pass);
            let ablated = setting.ablated_mixed(layer, head);
            let [_one, values] = ablated.dims();
            let change = mixed.reshape([times, values]) - ablated;
            let tokens = shape[0] * shape[1];
            let change = change.reshape([1, tokens, times * values / tokens]);
            let change = heads.head_output(layer, head, change);
            let change = change.reshape([times, setting.values()]);
            self.outputs.write(&node.circuits, change);
        }
        Ok(())
    }

    /// Streams after the norm through which the attention of a layer reads them.
    ///
    /// # Shapes
    /// - x, output: `[circuit, row, value]`
    fn read_by_attention(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
    ) -> Result<Tensor<B, 3>, CircuitError> {
        let heads = self.setting.heads()?;
        let Some(norm) = heads.attention_norm(layer) else {
            return Ok(x);
        };
        let [circuits, count, values] = x.dims();
        let [batch, len, d_model] = self.setting.dims();
        let x = norm.forward(x.reshape([circuits * count * batch, len, d_model]));
        Ok(x.reshape([circuits, count, values]))
    }

    fn mlp(&mut self, layer: usize, rows: Rows<B>) -> Result<(), CircuitError> {
        let setting = self.setting;
        let stream = setting.row(&setting.ablated(layer).mlp_reads);
        let inputs = self.inputs(layer, stream, &rows)?;
        for node in &rows.nodes {
            let times = node.circuits.len();
            let (pass, shape) = setting.pass(layer, times, None);
            let read = taken(&inputs, node, 0).reshape(shape);
            let output = (setting.model).sublayer(layer, 1, read, &mut Cx::new(&mut NoTap, &pass));
            let output = output.reshape([times, setting.values()]);
            let change = output - setting.row(&setting.ablated(layer).mlp);
            self.outputs.write(&node.circuits, change);
        }
        Ok(())
    }

    /// The head that a node is.
    fn head(&self, node: GraphNode) -> Option<usize> {
        match node {
            GraphNode::Writer(writer) => match self.setting.graph.writers()[writer] {
                Node::Head { head, .. } => Some(head),
                _ => None,
            },
            GraphNode::Logits => None,
        }
    }

    /// What the readers of a sublayer read.
    ///
    /// - layers: number of layers before the sublayer's own
    ///
    /// # Shapes
    /// - stream: `[1, value]`
    /// - output: `[circuit, row, value]`
    fn inputs(
        &mut self,
        layers: usize,
        stream: Tensor<B, 2>,
        rows: &Rows<B>,
    ) -> Result<Tensor<B, 3>, CircuitError> {
        let weights = rows.weights.clone();
        if !self.setting.model.dims().post_norms {
            return Ok(self.outputs.weighted(stream, weights));
        }
        // What a norm is applied to is the sum over the heads of a layer.
        let [_circuits, _row, columns] = weights.dims();
        let layers = 0..self.setting.graph.layers().min(layers + 1);
        let spans: Vec<(usize, Range<usize>)> = layers
            .map(|layer| (layer, self.slots_of_heads(layer)))
            .filter(|(_, slots)| !slots.is_empty() && slots.end < columns)
            .collect();
        let mut direct = vec![1.0_f32; columns];
        for (_, slots) in &spans {
            direct[slots.start + 1..slots.end + 1].fill(0.0);
        }
        let device = weights.device();
        let direct = TensorData::new(direct, [1, 1, columns]);
        let direct = Tensor::<B, 3>::from_data(direct, (&device, DType::F32));
        let direct = direct.cast(weights.dtype());
        let mut x = self.outputs.weighted(stream, weights.clone() * direct);
        for (layer, slots) in spans {
            let own = weights.clone().narrow(2, slots.start + 1, slots.len());
            let Some(change) = self.outputs.weighted_part(slots, &own) else {
                continue;
            };
            let Normed { before, after } = self.normed(layer, change)?;
            x = x + (after - before);
        }
        Ok(x)
    }

    /// What the attention of a layer adds to the stream, ablated, and with changes in its heads.
    ///
    /// # Shapes
    /// - change: `[circuit, row, value]`
    fn normed(&self, layer: usize, change: Tensor<B, 3>) -> Result<Normed<B>, CircuitError> {
        let setting = self.setting;
        let norm = setting.post_norm(layer)?;
        let before = setting.ablated(layer).before_norm.as_ref();
        let (Some(norm), Some(before)) = (norm, before) else {
            return Err(CircuitError::NoPostNorm);
        };
        let [circuits, count, values] = change.dims();
        let [batch, len, d_model] = setting.dims();
        let before = setting.row(before);
        let after = change + before.clone().unsqueeze_dim::<3>(0);
        let after = after.reshape([circuits * count * batch, len, d_model]);
        let before = norm.forward(before.reshape([batch, len, d_model]));
        Ok(Normed {
            before: before.reshape([1, 1, values]),
            after: norm.forward(after).reshape([circuits, count, values]),
        })
    }

    /// The slots of the heads of a layer.
    fn slots_of_heads(&self, layer: usize) -> Range<usize> {
        let heads = self.setting.graph.heads();
        let first = 1 + layer * (heads + 1);
        let start = self.masks.slots_before(first);
        let own = (first..first + heads).filter(|writer| self.masks.slot(*writer).is_some());
        start..start + own.count()
    }
}

/// What the attention of a layer adds to the stream.
struct Normed<B: Backend> {
    /// If it is ablated, `[1, 1, value]`.
    before: Tensor<B, 3>,
    /// With changes in its heads, `[circuit, row, value]`.
    after: Tensor<B, 3>,
}

/// What one input of a node reads in each circuit in which it is computed.
///
/// # Shapes
/// - inputs: `[circuit, row, value]`
/// - output: `[circuit, value]`
fn taken<B: Backend>(inputs: &Tensor<B, 3>, node: &NodeRows, input: usize) -> Tensor<B, 2> {
    let [circuits, count, values] = inputs.dims();
    let rows = &node.rows[input];
    let times = rows.len();
    let same = rows.iter().all(|row| *row == rows[0]);
    if times == circuits && same {
        let own = inputs.clone().narrow(1, rows[0], 1);
        return own.reshape([times, values]);
    }
    let places = node.circuits.iter().zip(rows);
    let places = places.map(|(circuit, row)| (circuit * count + row) as i64);
    let places = TensorData::new(places.collect::<Vec<i64>>(), [times]);
    let places = Tensor::from_data(places, &inputs.device());
    let all = inputs.clone().reshape([circuits * count, values]);
    all.select(0, places)
}
