//! The residual graph, and runs in which what flows along some of its paths is another input's.
//!
//! A transformer's residual stream is a sum: each [`Node`] (the embedding, a head, an MLP) adds
//! its output, and each later one reads the sum so far. Seen so, the model is a graph whose paths
//! lead from the embedding to the logits, and a node's input on one path can be another one than
//! on the next: the graph is *treeified* (Wang et al. 2022, arXiv 2211.00593, §3; Chan et al. 2022,
//! "Causal Scrubbing").
//!
//! - [`Node`], [`Hop`], [`Path`]: places in the graph, and ways through it;
//! - [`Stream`]: what a node reads, as a tree: a clean run's residual stream with some nodes'
//!   outputs changed, each to that of another run or to what it computes from streams of its own;
//! - [`Worlds`]: turns streams into worlds of a [`Plan`](crate::engine::Plan). A changed output
//!   enters the reader's input as the difference that it makes to the sum, which is exact;
//! - [`Stream::diagram`]: the tree as a picture.
//!
//! [`patch_paths`](crate::methods::patch_paths) is the method on top.

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
