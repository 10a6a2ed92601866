//! Causal scrubbing (Chan, Garriga-Alonso, Goldowsky-Dill, Greenblatt, Nitishinskaya, Radhakrishnan,
//! Shlegeris and Thomas 2022, "Causal Scrubbing: a method for rigorously testing interpretability
//! hypotheses").
//!
//! A [`Hypothesis`] says which parts of a model matter and which feature of the input each of them
//! computes. If it is right, then every part may get another input, as long as the feature is the
//! same, and parts that do not matter may get any input: the model should do as well as before.
//!
//! 1. [`Hypothesis::treeify`] checks the hypothesis and draws an input for each node of the tree
//!    that the residual graph becomes: a [`ScrubTree`]. Nothing is computed.
//! 2. [`scrub`] runs the tree and says how much of the loss is recovered: [`Scrubbed`].
//!    [`scrub_ablations`] says in addition how much of that each node carries.
//!
//! The streams that nodes read are those of [`paths`](crate::paths).

mod check;
mod diagram;
mod draw;
mod error;
mod feature;
mod hypothesis;
mod options;
mod report;
mod run;
mod streams;
mod tree;

pub use error::ScrubError;
pub use feature::Feature;
pub use hypothesis::{Hypothesis, Part, Place};
pub use options::{Donors, ScrubOptions, Unimportant};
pub use report::{NodeAblation, ScrubAblations, Scrubbed};
pub use run::{ScrubExplanation, scrub, scrub_ablations};
pub use tree::{ScrubNode, ScrubTree};
