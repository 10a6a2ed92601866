//! Steering a text from its second token to its end.

use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{Edit, Operand, Plan, Units};
use burn_align::generate::{GeneratedWorld, StepEdit, StepOperand};
use burn_align_models::{Site, TokenBatch};

/// What is added to a text, and where.
#[derive(Clone, Debug)]
pub(crate) struct Push<B: Backend> {
    /// The site.
    pub(crate) site: Site,
    /// What is added, `[1, 1, d_site]`.
    pub(crate) vector: Tensor<B, 3>,
}

/// A world in which vectors are added at every position of the prompts but the first, which is an
/// attention sink in many models, and at every generated token.
///
/// - addition: index of `AdditionIntervention` among the interventions
pub(crate) fn steered<B: Backend>(
    plan: &mut Plan<B>,
    prompts: &TokenBatch,
    pushes: &[Push<B>],
    addition: usize,
) -> GeneratedWorld<B> {
    let input = plan.tokens(prompts);
    let edits = pushes.iter().map(|push| {
        let values = after_the_first(&push.vector, prompts.pos());
        let constant = plan.constant(values);
        Edit::new(push.site, Units::ALL, addition, Operand::Constant(constant))
    });
    let edits: Vec<Edit> = edits.collect();
    let mut world = GeneratedWorld::new(plan.world(input, edits));
    for push in pushes {
        let operand = StepOperand::Constant(push.vector.clone());
        world = world.with_edit(StepEdit::new(push.site, addition, operand));
    }
    world
}

/// The vector at every position, and zeros at the first, `[1, pos, d_site]`.
fn after_the_first<B: Backend>(vector: &Tensor<B, 3>, pos: usize) -> Tensor<B, 3> {
    let first = vector.zeros_like();
    if pos < 2 {
        return first;
    }
    let [_, _, d_site] = vector.dims();
    let rest = vector.clone().expand([1, pos - 1, d_site]);
    Tensor::cat(vec![first, rest], 1)
}
