//! Several devices: copies of a model, among which the worlds of a plan are dealt out.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::AlignableTransformer;

use super::plan::{Plan, Read};
use super::{PlanError, Results, RunOptions};
use crate::interventions::Intervention;

/// Copies of a model or another module, one on each device. Nothing is copied where it is already.
///
/// Where loading is faster than copying from device to device, load the model once on each device
/// instead.
pub fn replicate<B: Backend, M: Module<B>>(module: &M, devices: &[B::Device]) -> Vec<M> {
    let copies = devices.iter().map(|device| {
        let copy = module.clone().map(&mut Mover::<B> { device });
        // What is no parameter of floats, if there is any.
        copy.fork(device)
    });
    copies.collect()
}

/// A tensor on another device, when it has come there.
///
/// All transfers between servers of Burn 0.21's remote backend have the same number
/// (`burn-remote`, `get_next_transfer_id`), so that one may receive what another has sent. Waiting
/// for each keeps them apart.
pub(crate) fn moved<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
    device: &B::Device,
) -> Tensor<B, D> {
    if tensor.device() == *device {
        return tensor;
    }
    let tensor = tensor.to_device(device);
    B::sync(device).expect("a device that a tensor was moved to can be waited for");
    tensor
}

/// [`Module::fork`], one parameter after another.
struct Mover<'a, B: Backend> {
    device: &'a B::Device,
}

impl<B: Backend> ModuleMapper<B> for Mover<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.map(|tensor| {
            let tracked = tensor.is_require_grad();
            let tensor = moved(tensor, self.device).detach();
            tensor.set_require_grad(tracked)
        })
    }
}

impl<B: Backend> Plan<B> {
    /// Runs all worlds on several devices: the worlds that are read are dealt out in turn, and each
    /// device runs its share in lockstep, together with what that share takes from other worlds.
    /// The results are those of [`run_with`](Self::run_with), and come to the first device, where
    /// the plan's own tensors and the interventions must be.
    ///
    /// All devices are given their work before any result is waited for. So they compute at the
    /// same time on a backend that computes asynchronously, as those of GPUs and the remote one do.
    /// No gradient flows back to parameters.
    ///
    /// - models: copies of the same model, by [`replicate`] or loaded on each device
    /// - options: for each device
    ///
    /// # Errors
    /// As [`run_with`](Self::run_with), or if there is no model.
    pub fn run_on_devices<M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        models: &[M],
        interventions: &[I],
        options: &RunOptions,
    ) -> Result<Results<B>, PlanError> {
        let [first, others @ ..] = models else {
            return Err(PlanError::NoDevice);
        };
        let mut worlds: Vec<_> = self.open_reads().map(|(_, read)| read.world()).collect();
        worlds.sort();
        worlds.dedup();
        if others.is_empty() || worlds.len() < 2 {
            return self.run_with(first, interventions, options);
        }
        // Everything is moved before the first device is busy.
        let mut shares = Vec::new();
        for (number, model) in models.iter().enumerate() {
            let is_own = |read: &Read| {
                let place = worlds.binary_search(&read.world());
                place.is_ok_and(|place| place % models.len() == number)
            };
            let (reads, plan) = self.of_reads(is_own);
            if reads.is_empty() {
                continue;
            }
            let device = model.device();
            let interventions =
                replicate(&interventions.to_vec(), std::slice::from_ref(&device)).remove(0);
            shares.push((reads, plan.to_device(&device), interventions, model));
        }
        let mut results = Vec::new();
        for (reads, plan, interventions, model) in shares {
            results.push((reads, plan.run_with(model, &interventions, options)?));
        }
        let device = first.device();
        let mut values = self.known.clone();
        for (reads, results) in results {
            for (read, value) in reads.into_iter().zip(results.values) {
                values[read] = Some(moved(value, &device));
            }
        }
        Ok(Results {
            values: values
                .into_iter()
                .map(|value| value.expect("every read is of one share"))
                .collect(),
        })
    }

    /// The plan with only some of the reads that are not known yet, and their indices.
    fn of_reads(&self, chosen: impl Fn(&Read) -> bool) -> (Vec<usize>, Self) {
        let open = self.open_reads().filter(|(_, read)| chosen(read));
        let (indices, reads): (Vec<usize>, Vec<Read>) =
            open.map(|(index, read)| (index, read.clone())).unzip();
        let part = Self {
            known: vec![None; reads.len()],
            reads,
            ..self.clone()
        };
        (indices, part)
    }
}
