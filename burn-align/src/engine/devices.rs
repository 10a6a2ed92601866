//! Several devices: copies of a model that share the worlds of a plan.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::AlignableTransformer;

use super::plan::{Plan, Read};
use super::{PlanError, Results, RunOptions};
use crate::interventions::Intervention;

/// Copies a model or another module to each device. A module that is already there is not copied.
///
/// If loading is faster than copying between devices, load the model on each device instead.
pub fn replicate<B: Backend, M: Module<B>>(module: &M, devices: &[B::Device]) -> Vec<M> {
    let copies = devices.iter().map(|device| {
        let copy = module.clone().map(&mut Mover::<B> { device });
        // Moves what is not a float parameter, if there is any.
        copy.fork(device)
    });
    copies.collect()
}

/// Moves a tensor to another device, and waits until it has arrived.
///
/// All transfers between servers of Burn 0.21's remote backend have the same number (`burn-remote`,
/// `get_next_transfer_id`), so one could receive what another has sent. Waiting for each keeps them
/// apart.
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

/// [`Module::fork`], one parameter at a time.
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
    /// Runs all worlds on several devices. The worlds that are read are divided among the devices
    /// in turn; each device runs its share in lockstep, together with the worlds that the share
    /// depends on. The results are those of [`run_with`](Self::run_with), on the first device,
    /// where the plan's own tensors and the interventions must be.
    ///
    /// All devices get their work before any result is waited for, so on an asynchronous backend
    /// (GPUs, the remote backend) they compute at the same time. No gradient flows back to
    /// parameters.
    ///
    /// - models: copies of the same model, from [`replicate`] or loaded on each device
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
            marks: self.marks.reads.clone(),
        })
    }

    /// The plan with a selection of the reads that are not known yet, and their indices.
    fn of_reads(&self, chosen: impl Fn(&Read) -> bool) -> (Vec<usize>, Self) {
        let open = self.open_reads().filter(|(_, read)| chosen(read));
        let (indices, reads): (Vec<usize>, Vec<Read>) =
            open.map(|(index, read)| (index, read.clone())).unzip();
        let mut marks = self.marks.clone();
        marks.reads = indices.iter().map(|index| marks.reads[*index]).collect();
        let part = Self {
            known: vec![None; reads.len()],
            reads,
            marks,
            ..self.clone()
        };
        (indices, part)
    }
}
