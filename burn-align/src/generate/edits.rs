//! What is done to a row while it is generated.

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::Site;

use crate::engine::{Indices, Units, WorldId};

/// A world whose examples are continued, and what is done to them on the way.
#[derive(Clone, Debug)]
pub struct GeneratedWorld<B: Backend> {
    pub(super) world: WorldId,
    pub(super) edits: Vec<StepEdit<B>>,
    pub(super) streams: Vec<u64>,
}

impl<B: Backend> GeneratedWorld<B> {
    /// A world of the plan that runs the prompts. Its examples are the rows; the edits that the
    /// plan gives it are made in the prompt.
    pub fn new(world: WorldId) -> Self {
        Self {
            world,
            edits: Vec::new(),
            streams: Vec::new(),
        }
    }

    /// The same with one more edit; edits at one site are made in this order.
    pub fn with_edit(mut self, edit: StepEdit<B>) -> Self {
        self.edits.push(edit);
        self
    }

    /// The same with a stream of random numbers for each example. Rows with the same stream draw
    /// the same numbers, so the texts of equal prompts are equal; default: stream 0 for all. Number
    /// them by what they are, not by their place in a batch, and a row's text does not depend on
    /// its batch.
    pub fn with_streams(mut self, streams: impl IntoIterator<Item = u64>) -> Self {
        self.streams = streams.into_iter().collect();
        self
    }
}

/// An edit at the position of a generated token, at one step or at all of them.
#[derive(Clone, Debug)]
pub struct StepEdit<B: Backend> {
    pub(super) site: Site,
    pub(super) heads: Indices,
    pub(super) features: Indices,
    pub(super) intervention: usize,
    pub(super) operand: StepOperand<B>,
    pub(super) step: Option<usize>,
}

/// What an intervention gets besides the activation, at a step.
#[derive(Clone, Debug)]
pub enum StepOperand<B: Backend> {
    /// Nothing.
    None,
    /// Values, `[batch or 1, 1, d_site]`: for each example, or the same for all.
    Constant(Tensor<B, 3>),
    /// What a world of the prompts' plan has at one position of each example, after its own edits
    /// there: the same at every step. The world has as many examples; it need not be generated
    /// from.
    Activation {
        /// The world.
        world: WorldId,
        /// The site.
        site: Site,
        /// Which heads, as wide as the edit's, and which position.
        units: Units,
    },
    /// What the same example of another generated world has at a site, at the same step, after that
    /// world's own edits there. That world goes on as long as this one, whether its text has ended
    /// or not.
    World {
        /// The world.
        world: WorldId,
        /// The site.
        site: Site,
        /// Which heads; as wide as the edit's.
        heads: Indices,
    },
}

impl<B: Backend> GeneratedWorld<B> {
    /// The same, with constants in the place of activations of the prompts.
    ///
    /// - constant: `[batch or 1, 1, d_site]`
    pub(super) fn with_constants(
        &self,
        mut constant: impl FnMut(WorldId, Site, &Units) -> Tensor<B, 3>,
    ) -> Self {
        let mut world = self.clone();
        for edit in &mut world.edits {
            if let StepOperand::Activation { world, site, units } = &edit.operand {
                edit.operand = StepOperand::Constant(constant(*world, *site, units));
            }
        }
        world
    }
}

impl<B: Backend> StepEdit<B> {
    /// An edit at every step.
    ///
    /// - intervention: index into the interventions given to [`generate`](super::generate)
    pub fn new(site: Site, intervention: usize, operand: StepOperand<B>) -> Self {
        Self {
            site,
            heads: Indices::All,
            features: Indices::All,
            intervention,
            operand,
            step: None,
        }
    }

    /// The same, at one step only: where generated token `step` is, counted from 0.
    pub fn at_step(mut self, step: usize) -> Self {
        self.step = Some(step);
        self
    }

    /// The same for some heads only.
    pub fn of_heads(mut self, heads: impl Into<Indices>) -> Self {
        self.heads = heads.into();
        self
    }

    /// The same for some features only, as in [`Edit::features`](crate::engine::Edit::features).
    pub fn with_features(mut self, features: Indices) -> Self {
        self.features = features;
        self
    }

    pub(super) fn is_made_at(&self, step: usize) -> bool {
        self.step.is_none_or(|own| own == step)
    }
}
