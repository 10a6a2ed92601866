//! The same plan for other examples, on another device, or on the autodiff backend.

use std::cell::OnceCell;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use burn_align_models::TokensError;

use super::PlanError;
use super::devices::moved;
use super::layout::int_tensor;
use super::plan::Plan;
use super::zip::Role;

impl<B: Backend> Plan<B> {
    /// The same plan for some of its examples, in this order.
    ///
    /// # Errors
    /// If the inputs have different numbers of examples, or `examples` is empty or names an unknown
    /// one.
    pub fn examples(&self, examples: &[usize]) -> Result<Self, PlanError> {
        let batch = self.batch();
        if let Some(found) = self.inputs.iter().find(|input| input.batch() != batch) {
            return Err(PlanError::WrongBatch {
                at: "inputs of a plan whose examples are chosen".to_owned(),
                batch,
                found: found.batch(),
            });
        }
        let wrong = match examples.iter().find(|example| **example >= batch) {
            Some(found) => Some(TokensError::NoSuchExample {
                found: *found,
                batch,
            }),
            None => examples.is_empty().then_some(TokensError::EmptyBatch),
        };
        if let Some(cause) = wrong {
            return Err(PlanError::Input { input: 0, cause });
        }
        // Positions that only longer examples had.
        let narrow = self.names_its_positions();
        let chosen = Rows::new(examples);
        Self::zip(&[self], Some(examples), &mut |role, all| {
            let x = all[0].clone();
            let [rows, _, _] = x.dims();
            Ok(match role {
                Role::Cache => x,
                Role::Constant | Role::Known if rows != batch => x,
                Role::Residual { lengths } if narrow => {
                    let longest = lengths.iter().copied().max().unwrap_or(0);
                    chosen.of(x).narrow(1, 0, longest)
                }
                Role::Features
                | Role::Residual { .. }
                | Role::Past { .. }
                | Role::Constant
                | Role::Known => chosen.of(x),
            })
        })
    }

    /// The same plan on the autodiff backend. Its tensors are constants there.
    pub fn from_inner<A: AutodiffBackend<InnerBackend = B>>(&self) -> Plan<A> {
        self.with_tensors(|x| Tensor::from_inner(x.clone()))
    }

    /// The same plan with its tensors on another device.
    pub fn to_device(&self, device: &B::Device) -> Self {
        self.with_tensors(|x| moved(x.clone(), device))
    }

    /// Number of bytes of the plan's tensors: residuals, keys and values, and constants.
    pub fn held_bytes(&self) -> usize {
        let mut bytes = 0;
        self.with_tensors(|x| {
            bytes += x.shape().num_elements() * x.dtype().size();
            x.clone()
        });
        bytes
    }

    fn with_tensors<A: Backend>(
        &self,
        mut tensor: impl FnMut(&Tensor<B, 3>) -> Tensor<A, 3>,
    ) -> Plan<A> {
        let plan = Self::zip(&[self], None, &mut |_role, all| Ok(tensor(all[0])));
        plan.expect("a single plan never differs")
    }
}

/// Examples of tensors with the same batch, whose indices are copied to the device once.
struct Rows<'a, B: Backend> {
    examples: &'a [usize],
    indices: OnceCell<Tensor<B, 1, Int>>,
}

impl<'a, B: Backend> Rows<'a, B> {
    fn new(examples: &'a [usize]) -> Self {
        Self {
            examples,
            indices: OnceCell::new(),
        }
    }

    fn of(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let device = x.device();
        let copy = || int_tensor(self.examples.iter().copied(), &device);
        let known = self.indices.get_or_init(copy);
        // A plan's tensors may be on several devices.
        let indices = match known.device() == device {
            true => known.clone(),
            false => copy(),
        };
        x.select(0, indices)
    }
}
