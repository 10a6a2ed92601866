//! The same plan for other examples, on another device, or on the autodiff backend.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use burn_align_models::TokensError;

use super::PlanError;
use super::devices::moved;
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
        Self::zip(&[self], Some(examples), &mut |role, all| {
            let x = all[0].clone();
            let [rows, _, _] = x.dims();
            Ok(match role {
                Role::Cache => x,
                Role::Constant | Role::Known if rows != batch => x,
                Role::Residual { lengths } if narrow => {
                    let longest = lengths.iter().copied().max().unwrap_or(0);
                    select(x, examples).narrow(1, 0, longest)
                }
                Role::Features
                | Role::Residual { .. }
                | Role::Past { .. }
                | Role::Constant
                | Role::Known => select(x, examples),
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

fn select<B: Backend>(x: Tensor<B, 3>, examples: &[usize]) -> Tensor<B, 3> {
    let rows: Vec<i64> = examples.iter().map(|example| *example as i64).collect();
    let rows = TensorData::new(rows, [examples.len()]);
    let device = x.device();
    x.select(0, Tensor::<B, 1, Int>::from_data(rows, &device))
}
