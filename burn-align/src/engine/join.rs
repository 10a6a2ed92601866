//! Joining plans: parts of one plan back into a whole.

use std::cmp::Ordering;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::nn::joined;

use super::PlanError;
use super::plan::Plan;
use super::zip::{Role, different};

impl<B: Backend> Plan<B> {
    /// Joins the examples of several plans into one plan. The plans must be equal except for their
    /// examples: parts of one plan from [`examples`](Self::examples), frozen or not.
    ///
    /// # Errors
    /// If the plans differ in more than their examples, or use all positions of inputs of different
    /// lengths.
    pub fn join(plans: &[Self]) -> Result<Self, PlanError> {
        // Whether runs that have reached some layer may get more positions.
        let pad = plans.iter().all(Self::names_its_positions);
        let plans: Vec<&Self> = plans.iter().collect();
        Self::zip(&plans, None, &mut |role, all| {
            let sizes = all.iter().map(|x| {
                let [_batch, size @ ..] = x.dims();
                size
            });
            let sizes: Vec<[usize; 2]> = sizes.collect();
            let same_size = |what| match sizes.iter().find(|found| **found != sizes[0]) {
                Some(found) => Err(different(what, sizes[0], found)),
                None => Ok(sizes[0][0]),
            };
            let pos = match role {
                // Of a single plan: a row that is continued is not joined with others.
                Role::Cache => return Ok(all[0].clone()),
                Role::Features => same_size("positions and features")?,
                Role::Residual { lengths: _ } => {
                    let longest = sizes.iter().map(|[pos, _]| *pos).max().unwrap_or(0);
                    if let Some([pos, _]) = sizes.iter().find(|[pos, _]| *pos != longest && !pad) {
                        return Err(different("positions", longest, pos));
                    }
                    longest
                }
                Role::Past { starts } => starts.iter().copied().max().unwrap_or(0),
                Role::Constant => same_size("constants")?,
                Role::Known => same_size("reads")?,
            };
            let mut rows = all.iter().zip(&plans);
            let by_example = rows.all(|(x, plan)| {
                let [rows, _, _] = x.dims();
                rows == plan.batch()
            });
            Ok(match role {
                // Tensors without a row per example are the same for all plans.
                Role::Constant | Role::Known if !by_example => all[0].clone(),
                _ => {
                    let all = all.iter().copied().cloned();
                    joined(all.map(|x| with_pos(x, pos)).collect())
                }
            })
        })
    }
}

/// The first `pos` positions; zeros, for those that there are not.
fn with_pos<B: Backend>(x: Tensor<B, 3>, pos: usize) -> Tensor<B, 3> {
    let [batch, found, features] = x.dims();
    match found.cmp(&pos) {
        Ordering::Equal => x,
        Ordering::Greater => x.narrow(1, 0, pos),
        Ordering::Less => {
            let kind = (&x.device(), x.dtype());
            let none = Tensor::zeros([batch, pos - found, features], kind);
            Tensor::cat(vec![x, none], 1)
        }
    }
}
