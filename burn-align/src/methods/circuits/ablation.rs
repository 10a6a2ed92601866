//! What writers' outputs are replaced by.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use burn_align_models::AlignableTransformer;

use super::runs::{Outputs, Wiring};
use super::{CircuitError, EdgeAblation};
use crate::engine::{InputId, Plan, PlanError, RunOptions, WorldInput};
use crate::methods::attribution::{interventions, parts, read_all, size_of, unlimited};

/// What outputs are replaced by, if it does not depend on the source.
pub(super) enum Replacement<B: Backend> {
    /// The source's outputs.
    Source,
    /// The same for all examples, `[1, pos, width]`, in f32.
    Means(Outputs<B>),
    /// Nothing: zero.
    Zero,
}

impl<B: Backend> Replacement<B> {
    /// Means are computed here.
    ///
    /// - plan: makes a plan of some examples of the base
    /// - rows: how many examples are run at a time
    pub(super) fn new<I: Backend, M: AlignableTransformer<B>>(
        wiring: &Wiring<'_, B, M>,
        base: &WorldInput<I>,
        plan: impl Fn(&[usize]) -> Result<(Plan<B>, InputId), PlanError>,
        ablation: EdgeAblation,
        rows: usize,
        options: &RunOptions,
    ) -> Result<Self, CircuitError> {
        match ablation {
            EdgeAblation::Counterfactual => Ok(Self::Source),
            EdgeAblation::Zero => Ok(Self::Zero),
            EdgeAblation::Mean => {
                let means = means(wiring, base, plan, rows, options)?;
                Ok(Self::Means(means))
            }
        }
    }

    /// What the outputs of a base are replaced by; `None` if it takes a run on the source.
    pub(super) fn of<M: AlignableTransformer<B>>(
        &self,
        wiring: &Wiring<'_, B, M>,
        base: &Outputs<B>,
        options: &RunOptions,
    ) -> Option<Outputs<B>> {
        let [_batch, pos] = base.size();
        match self {
            Self::Source => None,
            Self::Means(means) => Some(means.zip(base, |mean, base| {
                mean.clone().narrow(1, 0, pos).expand(base.dims())
            })),
            Self::Zero => {
                let mut zero = base.map(Tensor::zeros_like);
                let dtype = base.embedding.dtype();
                let positions = wiring.positions(pos, dtype, &options.tables);
                zero.embedding = positions.expand(base.embedding.dims());
                Some(zero)
            }
        }
    }
}

/// The mean output of each writer over the examples that have a position, for each position.
fn means<B: Backend, I: Backend, M: AlignableTransformer<B>>(
    wiring: &Wiring<'_, B, M>,
    base: &WorldInput<I>,
    plan: impl Fn(&[usize]) -> Result<(Plan<B>, InputId), PlanError>,
    rows: usize,
    options: &RunOptions,
) -> Result<Outputs<B>, CircuitError> {
    let dims = wiring.model.dims();
    let (lengths, longest) = (base.lengths(), base.pos());
    let mut sums: Option<Outputs<B>> = None;
    for examples in parts(base.batch(), rows) {
        let (mut plan, input) = plan(&examples)?;
        let world = plan.world(input, []);
        let reads = read_all(&mut plan, world, &Outputs::<B>::sites(dims));
        let results = plan.run_with(wiring.model, &interventions::<B>(), &unlimited(options))?;
        let read = reads.into_iter().map(|read| results.get(read));
        let mut outputs = Outputs::from_read(read.collect(), dims);
        outputs.attention.clear();
        let [_rows, pos] = size_of(base, &examples);
        let own: Vec<usize> = examples.iter().map(|example| lengths[*example]).collect();
        let sum = outputs.map(|x| {
            let mask = mask::<B>(&own, pos, x);
            let sum = (x.clone().cast(DType::F32) * mask).sum_dim(0); // [1, pos, width]
            longer(sum, longest)
        });
        sums = Some(match sums {
            Some(sums) => sums.zip(&sum, |a, b| a.clone() + b.clone()),
            None => sum,
        });
    }
    let sums = sums.ok_or(CircuitError::Nothing { what: "example" })?;
    let counts = (0..longest).map(|position| {
        let having = lengths.iter().filter(|length| position < **length);
        having.count().max(1) as f32
    });
    let counts = TensorData::new(counts.collect::<Vec<f32>>(), [1, longest, 1]);
    let device = sums.embedding.device();
    let counts = Tensor::<B, 3>::from_data(counts, (&device, DType::F32));
    Ok(sums.map(|sum| sum.clone() / counts.clone()))
}

/// 1 at the positions of each example, 0 after its end, `[batch, pos, 1]`.
///
/// - like: on the device
fn mask<B: Backend>(lengths: &[usize], pos: usize, like: &Tensor<B, 3>) -> Tensor<B, 3> {
    let cells = lengths.iter().flat_map(|length| {
        let own = (0..pos).map(move |position| f32::from(u8::from(position < *length)));
        own.collect::<Vec<f32>>()
    });
    let data = TensorData::new(cells.collect::<Vec<f32>>(), [lengths.len(), pos, 1]);
    Tensor::from_data(data, (&like.device(), DType::F32))
}

/// With zeros up to this number of positions.
fn longer<B: Backend>(x: Tensor<B, 3>, longest: usize) -> Tensor<B, 3> {
    let [batch, pos, width] = x.dims();
    match longest - pos {
        0 => x,
        missing => {
            let zeros = Tensor::zeros([batch, missing, width], (&x.device(), x.dtype()));
            Tensor::cat(vec![x, zeros], 1)
        }
    }
}
