//! What is trained, on one device or on several.
//!
//! Each device holds a share of the examples, and computes their logits and gradients with copies
//! of the model and the interventions. The loss is computed from the whole batch on the first
//! device, so it need not be a mean over examples. The first device also sums the gradients and
//! runs the optimizer.

use burn::module::{AutodiffModule, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};
use burn_align_models::{AlignableTransformer, Tables};

use super::TrainingError;
use super::kept::Kept;
use super::track::track;
use crate::engine::{Plan, PlanError, ReadId, RunOptions, moved, read_numbers, replicate};
use crate::interventions::Intervention;

/// Gradients of everything but masks, and of masks.
pub(super) type Split = [GradientsParams; 2];

/// A frozen model on one device.
pub(super) struct Replica<A: AutodiffBackend, M: AutodiffModule<A>, I: AutodiffModule<A>> {
    device: A::Device,
    model: M,
    frozen: M::InnerModule,
    interventions: Vec<I::InnerModule>,
    /// This device's share of each dataset; `None` if it has no example.
    kept: Vec<Option<Kept<A::InnerBackend>>>,
    /// What all steps have in common on this device: schedules, masks, rotary tables and indices.
    run: RunOptions,
}

/// All copies; the loss is computed on the first one's device.
pub(super) struct Replicas<A: AutodiffBackend, M: AutodiffModule<A>, I: AutodiffModule<A>> {
    copies: Vec<Replica<A, M, I>>,
    is_trained: Vec<bool>,
}

/// Logits of a share of a batch.
struct Share<A: AutodiffBackend> {
    device: usize,
    /// `[batch, unit, vocab]`
    logits: Tensor<A, 3>,
}

impl<A, M, I> Replicas<A, M, I>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend>,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    /// - plans: for each dataset, with the read of its logits
    pub(super) fn new(
        models: Vec<M>,
        interventions: &[I],
        plans: &[(Plan<A::InnerBackend>, ReadId)],
        examples: &[usize],
    ) -> Result<Self, TrainingError> {
        let is_trained = interventions.iter().map(|it| it.num_params() > 0).collect();
        let of = models.len();
        let mut copies = Vec::new();
        for (number, model) in models.into_iter().enumerate() {
            let device = model.device();
            let copy = replicate(&interventions.to_vec(), std::slice::from_ref(&device)).remove(0);
            let mut kept = Vec::new();
            for ((plan, read), examples) in plans.iter().zip(examples) {
                let own: Vec<usize> = (number..*examples).step_by(of).collect();
                kept.push(match own.is_empty() {
                    true => None,
                    false if of == 1 => Some(Kept::new((plan.to_device(&device), *read))),
                    false => Some(Kept::new((plan.examples(&own)?.to_device(&device), *read))),
                });
            }
            copies.push(Replica {
                frozen: model.valid(),
                interventions: copy.iter().map(I::valid).collect(),
                model,
                device,
                kept,
                run: RunOptions::default().with_tables(Tables::keeping_indices()),
            });
        }
        Ok(Self { copies, is_trained })
    }

    /// Takes what has been computed elsewhere for each dataset, on the only device.
    pub(super) fn hold(&mut self, kept: Vec<Kept<A::InnerBackend>>) {
        if let [copy] = &mut self.copies[..] {
            copy.kept = kept.into_iter().map(Some).collect();
        }
    }

    /// Computes what does not change, for all examples, up to a budget on each device. Returns what
    /// is left of the first device's budget.
    pub(super) fn fill(
        &mut self,
        examples: &[usize],
        piece: usize,
        budget: usize,
        mut done: impl FnMut(usize),
    ) -> Result<usize, TrainingError> {
        let of = self.copies.len();
        let mut rest = 0;
        for number in (0..of).rev() {
            let mut all = std::mem::take(&mut self.copies[number].kept);
            rest = budget;
            for (kept, examples) in all.iter_mut().zip(examples) {
                let Some(kept) = kept else { continue };
                let own = (number..*examples).step_by(of).len();
                let freeze = |plan: &Plan<_>| self.freeze(number, plan);
                kept.fill(own, piece, &mut rest, &freeze, &mut done)?;
            }
            self.copies[number].kept = all;
        }
        Ok(rest)
    }

    /// Runs the part of a plan that does not change, on a device.
    pub(super) fn freeze(
        &self,
        number: usize,
        plan: &Plan<A::InnerBackend>,
    ) -> Result<Plan<A::InnerBackend>, PlanError> {
        let Replica {
            frozen,
            interventions,
            run,
            ..
        } = &self.copies[number];
        let trained = |it: usize| self.is_trained[it];
        plan.freeze(frozen, interventions, trained, run)
    }

    /// The logits of a batch, by device, and its examples in their order.
    fn logits(
        &self,
        dataset: usize,
        examples: &[usize],
        copies: &[Vec<I>],
    ) -> Result<(Vec<Share<A>>, Vec<usize>), TrainingError> {
        let of = self.copies.len();
        let (mut plans, mut order) = (Vec::new(), Vec::new());
        for (number, copy) in self.copies.iter().enumerate() {
            let own = examples.iter().filter(|example| *example % of == number);
            let mut own: Vec<usize> = own.map(|example| example / of).collect();
            let (Some(kept), false) = (&copy.kept[dataset], own.is_empty()) else {
                continue;
            };
            let plan = kept.batch(&mut own, &|plan| self.freeze(number, plan))?;
            order.extend(own.iter().map(|index| index * of + number));
            plans.push((number, plan, kept.logits));
        }
        let mut shares = Vec::new();
        for (device, plan, read) in plans {
            let plan = plan.from_inner::<A>();
            let Replica { model, run, .. } = &self.copies[device];
            let results = plan.run_with(model, &copies[device], run)?;
            let logits = results.get(read);
            shares.push(Share { device, logits });
        }
        Ok((shares, order))
    }

    /// For each of several runs, the gradients of the same batch, and its loss without the penalty.
    ///
    /// - runs: several run on one device, in as few passes as possible
    /// - loss: for the run with this index, from the logits of the examples, in their order
    /// - total: what is minimised, computed from the loss
    pub(super) fn gradients(
        runs: &[Part<'_, A, M, I>],
        batch: (usize, &[usize]),
        loss: impl Fn(usize, Tensor<A, 3>, &[usize]) -> Tensor<A, 1>,
        total: impl Fn(usize, Tensor<A, 1>) -> Tensor<A, 1>,
    ) -> Result<Vec<(Vec<Split>, f64)>, TrainingError> {
        if let [run] = runs
            && run.replicas.copies.len() > 1
        {
            let loss = |logits: Tensor<A, 3>, order: &[usize]| loss(0, logits, order);
            let found = run.gradients_of_devices(batch, loss, |it| total(0, it))?;
            return Ok(vec![found]);
        }
        let (all, order) = Self::logits_together(runs, batch)?;
        let values = all.into_iter().enumerate();
        let values = values.map(|(run, logits)| loss(run, logits, &order));
        let values: Vec<Tensor<A, 1>> = values.collect();
        let totals = values.iter().cloned().enumerate();
        let sum = totals
            .map(|(run, value)| total(run, value))
            .reduce(|sum, more| sum + more);
        let Some(sum) = sum else {
            return Ok(Vec::new());
        };
        let mut gradients = sum.backward();
        let found = runs.iter().zip(values).map(|(run, value)| {
            let split = split(&mut gradients, run.interventions);
            Ok((vec![split], number(value)?))
        });
        found.collect()
    }

    /// The logits of a batch under the interventions of each run, and its examples in their order.
    /// Runs whose plans begin at the same point of the model share a pass.
    fn logits_together(
        runs: &[Part<'_, A, M, I>],
        (dataset, examples): (usize, &[usize]),
    ) -> Result<(Vec<Tensor<A, 3>>, Vec<usize>), TrainingError> {
        let (mut plans, mut order) = (Vec::new(), Vec::new());
        for Part { replicas, .. } in runs {
            let kept = replicas.copies[0].kept[dataset].as_ref();
            let kept = kept.expect("the only device has all examples of a batch");
            order = examples.to_vec();
            let plan = kept.batch(&mut order, &|plan| replicas.freeze(0, plan))?;
            plans.push((plan, kept.logits));
        }
        let mut logits: Vec<Option<Tensor<A, 3>>> = vec![None; runs.len()];
        while let Some(first) = logits.iter().position(Option::is_none) {
            let alike =
                |run: &usize| logits[*run].is_none() && plans[*run].0.begins_like(&plans[first].0);
            let alike: Vec<usize> = (first..runs.len()).filter(alike).collect();
            let interventions = alike.iter().flat_map(|run| runs[*run].interventions);
            let interventions: Vec<I> = interventions.cloned().collect();
            let parts = alike
                .iter()
                .map(|run| (&plans[*run].0, runs[*run].interventions.len()));
            let (plan, reads) = Plan::beside(parts);
            let Replica { model, run, .. } = &runs[first].replicas.copies[0];
            let plan = plan.from_inner::<A>();
            let results = plan.run_with(model, &interventions, run)?;
            for (run, reads) in alike.into_iter().zip(reads) {
                logits[run] = Some(results.get(reads.of(plans[run].1)));
            }
        }
        Ok((logits.into_iter().flatten().collect(), order))
    }

    /// Copies of the interventions for a step, one for each device; none if there is only one
    /// device.
    pub(super) fn replicated(&self, interventions: &Vec<I>) -> Vec<Vec<I>> {
        if self.copies.len() == 1 {
            return Vec::new();
        }
        let devices = self.copies.iter().map(|copy| copy.device.clone());
        replicate(interventions, &devices.collect::<Vec<_>>())
    }
}

/// A run, with what it computes gradients of.
pub(super) struct Part<'a, A: AutodiffBackend, M: AutodiffModule<A>, I: AutodiffModule<A>> {
    pub(super) replicas: &'a Replicas<A, M, I>,
    /// With gradients, on the first device.
    pub(super) interventions: &'a Vec<I>,
    /// From [`Replicas::replicated`].
    pub(super) copies: &'a [Vec<I>],
}

impl<A, M, I> Part<'_, A, M, I>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend>,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    /// As [`Replicas::gradients`], with the examples divided among devices.
    fn gradients_of_devices(
        &self,
        (dataset, examples): (usize, &[usize]),
        loss: impl Fn(Tensor<A, 3>, &[usize]) -> Tensor<A, 1>,
        total: impl Fn(Tensor<A, 1>) -> Tensor<A, 1>,
    ) -> Result<(Vec<Split>, f64), TrainingError> {
        let Self {
            replicas,
            interventions,
            ..
        } = self;
        let device = &replicas.copies[0].device;
        let copies = self.copies.iter().cloned().map(track::<A, Vec<I>>);
        let copies: Vec<Vec<I>> = copies.collect();
        let (shares, order) = replicas.logits(dataset, examples, &copies)?;
        let shapes = shares.iter().map(|share| share.logits.dims());
        let units = shapes.map(|[_batch, units, _vocab]| units).max();
        let rows = shares.iter().map(|share| {
            let rows = moved(share.logits.clone().inner(), device);
            padded(rows, units.unwrap_or(0))
        });
        let joined = Tensor::<A, 3>::from_inner(Tensor::cat(rows.collect(), 0)).require_grad();
        let value = loss(joined.clone(), &order);
        let mut gradients = total(value.clone()).backward();
        let of_logits = joined.grad_remove(&mut gradients);
        // Everything else that the loss depends on: penalties.
        let mut all = vec![split(&mut gradients, interventions)];
        if let Some(of_logits) = of_logits {
            let mut start = 0;
            let back = shares.into_iter().map(|share| {
                let [batch, units, _vocab] = share.logits.dims();
                let rows = of_logits.clone().slice([start..start + batch, 0..units]);
                start += batch;
                let rows = moved(rows, &replicas.copies[share.device].device);
                (share, Tensor::from_inner(rows))
            });
            let back: Vec<_> = back.collect();
            let splits = back.into_iter().map(|(share, rows)| {
                let mut gradients = (share.logits * rows).sum().backward();
                split(&mut gradients, &copies[share.device])
            });
            let splits: Vec<Split> = splits.collect();
            let to_first = |gradients| moved_gradients::<A, _>(gradients, *interventions, device);
            all.extend(splits.into_iter().map(|both| both.map(to_first)));
        }
        Ok((all, number(value)?))
    }
}

/// The gradients of a module, those of masks separately.
fn split<A: AutodiffBackend, I: Intervention<A> + AutodiffModule<A>>(
    gradients: &mut A::Gradients,
    interventions: &Vec<I>,
) -> Split {
    let masks: Vec<ParamId> = interventions.iter().flat_map(I::mask_parameters).collect();
    let of_masks = GradientsParams::from_params(gradients, interventions, &masks);
    let of_rest = GradientsParams::from_module(gradients, interventions);
    [of_rest, of_masks]
}

/// Appends zeros, up to this many units.
fn padded<B: Backend>(x: Tensor<B, 3>, units: usize) -> Tensor<B, 3> {
    let [batch, found, vocab] = x.dims();
    if found == units {
        return x;
    }
    let none = Tensor::zeros([batch, units - found, vocab], (&x.device(), x.dtype()));
    Tensor::cat(vec![x, none], 1)
}

/// [`GradientsParams::to_device`], one parameter at a time.
fn moved_gradients<A: AutodiffBackend, M: AutodiffModule<A>>(
    from: GradientsParams,
    module: &M,
    device: &A::Device,
) -> GradientsParams {
    struct Mover<'a, A: AutodiffBackend> {
        device: &'a A::Device,
        from: GradientsParams,
        to: GradientsParams,
    }
    impl<A: AutodiffBackend> ModuleVisitor<A> for Mover<'_, A> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
            if let Some(gradient) = self.from.remove::<A::InnerBackend, D>(param.id) {
                let gradient = moved(gradient, self.device);
                self.to.register::<A::InnerBackend, D>(param.id, gradient);
            }
        }
    }
    let to = GradientsParams::new();
    let mut mover = Mover::<A> { device, from, to };
    module.visit(&mut mover);
    mover.to
}

/// The number of a tensor that has one.
pub(crate) fn number<B: Backend>(value: Tensor<B, 1>) -> Result<f64, PlanError> {
    let numbers = read_numbers(value.detach().cast(DType::F32))?;
    Ok(numbers.first().copied().unwrap_or(f64::NAN))
}
