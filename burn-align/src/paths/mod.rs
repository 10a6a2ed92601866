//! The residual graph, and runs in which some of its paths carry another input.
//!
//! A transformer's residual stream is a sum: each [`Node`] (the embedding, a head, an MLP) adds its
//! output, and each later node reads the sum so far. Seen this way, the model is a graph whose
//! paths lead from the embedding to the logits. Along each path a node's input can be a different
//! one: the graph is *treeified* (Wang et al. 2022, arXiv 2211.00593, §3; Chan et al. 2022, "Causal
//! Scrubbing").
//!
//! A swap at a site answers "does this activation matter?". It cannot answer "to which reader?",
//! because everything after the site reacts. That question needs a node whose readers see different
//! values of it, which no single run of the model has; hence the tree.
//!
//! - [`Node`], [`Hop`], [`Path`]: places in the graph, and ways through it;
//! - [`Stream`]: what a node reads, as a tree: a clean run's residual stream in which the outputs
//!   of some nodes are replaced, each by that of another run or by what the node computes from its
//!   own streams;
//! - [`Worlds`]: turns streams into worlds of a [`Plan`](crate::engine::Plan). A replaced output
//!   enters the reader's input as the difference it makes to the sum, which is exact;
//! - [`Stream::diagram`]: the tree as a picture.
//!
//! [`patch_paths`](crate::methods::patch_paths) is the method built on this.

mod check;
mod diagram;
mod error;
mod node;
mod path;
mod stream;
mod worlds;

pub(crate) use check::{check_lengths, meet};
pub use error::PathError;
pub use node::{HeadInput, Hop, Node};
pub use path::Path;
pub use stream::{Change, Reach, Stream, Value};
pub use worlds::Worlds;
