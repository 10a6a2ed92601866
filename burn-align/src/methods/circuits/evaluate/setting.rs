//! What all circuits have in common: the base, what ablated edges carry, and where logits are
//! read.

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_align_models::nn::Norm;
use burn_align_models::{
    AlignableTransformer, ByHead, Cx, KeysValues, ModelInput, NoTap, Pass, Prefixes, SuffixClass,
    Suffixes, Tables,
};

use super::super::{CircuitError, EdgeGraph};
use super::ablation::{LayerStreams, Streams};

/// Some examples, and what their runs under any circuit have in common.
pub(super) struct Setting<B: Backend, M> {
    pub(super) model: M,
    pub(super) graph: EdgeGraph,
    pub(super) tables: Tables,
    /// The base's, `[batch, pos, d_model]`.
    pub(super) embedding: Tensor<B, 3>,
    /// What ablated edges carry.
    pub(super) ablated: Streams<B>,
    /// The first position that is computed. Before it, no edge carries anything else than in the
    /// base.
    pub(super) first: usize,
    /// `[batch][unit]`: the positions whose logits are read.
    pub(super) logits_at: Vec<Vec<usize>>,
}

impl<B: Backend, M: AlignableTransformer<B>> Setting<B, M> {
    /// Number of examples, of computed positions, and the width of the stream.
    pub(super) fn dims(&self) -> [usize; 3] {
        let [batch, pos, d_model] = self.embedding.dims();
        [batch, pos - self.first, d_model]
    }

    /// Number of values of a row: a stream of all examples at all computed positions.
    pub(super) fn values(&self) -> usize {
        self.dims().iter().product()
    }

    pub(super) fn heads(&self) -> Result<&dyn ByHead<B>, CircuitError> {
        self.model.by_head().ok_or(CircuitError::NoHeads)
    }

    /// The norm after the attention of a layer, if it has one.
    pub(super) fn post_norm(&self, layer: usize) -> Result<Option<&Norm<B>>, CircuitError> {
        if !self.model.dims().post_norms {
            return Ok(None);
        }
        let readout = self.model.readout();
        let norm = readout.and_then(|readout| readout.post_norm(layer, 0));
        norm.map(Some).ok_or(CircuitError::NoPostNorm)
    }

    pub(super) fn ablated(&self, layer: usize) -> &LayerStreams<B> {
        &self.ablated.layers[layer]
    }

    /// The computed positions of a stream as a row, `[1, value]`.
    pub(super) fn row(&self, stream: &Tensor<B, 3>) -> Tensor<B, 2> {
        let [_batch, len, _d_model] = self.dims();
        let computed = stream.clone().narrow(1, self.first, len);
        computed.reshape([1, self.values()])
    }

    /// What one head mixes in the ablated run, at the computed positions, `[1, value]`.
    pub(super) fn ablated_mixed(&self, layer: usize, head: usize) -> Tensor<B, 2> {
        let [batch, len, _d_model] = self.dims();
        let mixed = self.ablated(layer).mixed.clone().narrow(1, head, 1);
        let [.., d_head] = mixed.dims();
        let computed = mixed.narrow(2, self.first, len);
        computed.reshape([1, batch * len * d_head])
    }

    /// A pass over `times` copies of the examples, one after the other, and the shape of a stream
    /// in it.
    ///
    /// - key_head: whose keys and values attention continues, if it continues any
    pub(super) fn pass(
        &self,
        layer: usize,
        times: usize,
        key_head: Option<usize>,
    ) -> (Pass<B>, [usize; 3]) {
        let [batch, pos, d_model] = self.embedding.dims();
        let device = self.embedding.device();
        let pass = Pass::new(pos, &device, &self.tables);
        let (first, rows) = (self.first, times * batch);
        if first == 0 {
            return (pass, [rows, pos, d_model]);
        }
        let kept =
            key_head
                .zip(self.ablated(layer).keys_values.as_ref())
                .map(|(head, [keys, values])| {
                    let before = |x: &Tensor<B, 4>| {
                        let own = x.clone().narrow(1, head, 1).narrow(2, 0, first);
                        own.repeat_dim(0, times) // [row, 1, pos, d_head]
                    };
                    KeysValues {
                        layer,
                        keys: before(keys),
                        values: before(values),
                    }
                });
        let len = pos - first;
        let positions = (0..rows).flat_map(|_| (first..pos).map(|position| position as i64));
        let positions = TensorData::new(positions.collect::<Vec<i64>>(), [rows * len]);
        let suffixes = Suffixes {
            positions: Tensor::<B, 1, Int>::from_data(positions, &device),
            classes: vec![SuffixClass {
                rows,
                start: first,
                queries: first,
                pos,
                prefixes: Some(Prefixes::Kept(kept.into_iter().collect())),
            }],
            queries: None,
        };
        (pass.with_suffixes(suffixes), [1, rows * len, d_model])
    }

    /// A pass over whole rows.
    pub(super) fn base_pass(&self) -> Pass<B> {
        let [_batch, pos, _d_model] = self.embedding.dims();
        Pass::new(pos, &self.embedding.device(), &self.tables)
    }

    /// What the final norm reads at the positions whose logits are read.
    ///
    /// # Shapes
    /// - rows: `[circuit, value]`
    /// - output: `[circuit * batch, unit, d_model]`
    pub(super) fn last(&self, rows: Tensor<B, 2>) -> Tensor<B, 3> {
        let [circuits, _value] = rows.dims();
        let [batch, len, d_model] = self.dims();
        let units = self.logits_at.first().map_or(0, Vec::len);
        let places = (0..circuits).flat_map(|circuit| {
            let examples = self.logits_at.iter().enumerate();
            examples.flat_map(move |(example, positions)| {
                let row = (circuit * batch + example) * len;
                positions
                    .iter()
                    .map(move |position| (row + position - self.first) as i64)
            })
        });
        let places: Vec<i64> = places.collect();
        let count = places.len();
        let places = TensorData::new(places, [count]);
        let places = Tensor::<B, 1, Int>::from_data(places, &rows.device());
        rows.reshape([circuits * batch * len, d_model])
            .select(0, places)
            .reshape([circuits * batch, units, d_model])
    }

    /// The logits of what the final norm reads.
    ///
    /// # Shapes
    /// - last: `[row, unit, d_model]`
    /// - output: `[row, unit, vocab]`
    pub(super) fn logits(&self, last: Tensor<B, 3>) -> Tensor<B, 3> {
        self.model.unembed(self.model.final_norm(last))
    }

    /// What the final norm reads in the base, `[batch, unit, d_model]`.
    pub(super) fn base_last(&self) -> Tensor<B, 3> {
        let pass = self.base_pass();
        let mut x = self.embedding.clone();
        for layer in 0..self.graph.layers() {
            x = self.model.layer(layer, x, &mut Cx::new(&mut NoTap, &pass));
        }
        self.last(self.row(&x))
    }

    /// What the final norm reads if all edges are ablated, `[batch, unit, d_model]`.
    pub(super) fn ablated_last(&self) -> Tensor<B, 3> {
        self.last(self.row(&self.ablated.last))
    }

    /// The dtype of the stream.
    pub(super) fn dtype(&self) -> DType {
        self.embedding.dtype()
    }
}

/// The embedding of an input, `[batch, pos, d_model]`.
pub(super) fn embedded<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    input: ModelInput<B>,
    tables: &Tables,
) -> Tensor<B, 3> {
    let [_batch, pos] = input.dims();
    let device = model.device();
    let pass = Pass::new(pos, &device, tables);
    model.embed(input, &pass)
}
