//! Causal scrubbing (Chan, Garriga-Alonso, Goldowsky-Dill, Greenblatt, Nitishinskaya,
//! Radhakrishnan, Shlegeris and Thomas 2022, "Causal Scrubbing: a method for rigorously testing
//! interpretability hypotheses").
//!
//! A [`Hypothesis`] states which parts of a model matter and which feature of the input each of
//! them computes. If it is right, every part may get another input with the same value of its
//! feature, and parts that do not matter may get any input: the model should do as well as before.
//!
//! 1. [`Hypothesis::treeify`] checks the hypothesis and draws an input for each node of the tree
//!    that the residual graph unfolds into: a [`ScrubTree`]. Nothing is computed.
//! 2. [`scrub`] runs the tree and reports how much of the loss is recovered: [`Scrubbed`].
//!    [`scrub_ablations`] also reports how much of that each node carries.
//!
//! The streams that nodes read are those of [`paths`](crate::paths).
//!
//! # When it misleads
//! High recovery does not prove a hypothesis. Features that are too fine always pass: donors that
//! agree on the whole input change nothing. Hypotheses that predict the same on the dataset cannot
//! be told apart, and errors that help on some examples and hurt on others cancel in the mean loss
//! (Scheurer et al. 2023, "Practical Pitfalls of Causal Scrubbing"); the divergence
//! [`Scrubbed::kl`] does not cancel.

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
