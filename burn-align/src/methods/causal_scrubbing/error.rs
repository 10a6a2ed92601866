//! What can be wrong with a hypothesis, its examples, or the row budget.

use crate::engine::PlanError;
use crate::paths::PathError;

/// Why a hypothesis cannot be scrubbed. All of it is found before anything is computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScrubError {
    /// A name without a node.
    #[error("{reader} reads {name:?}: no node of the hypothesis has this name")]
    UnknownNode {
        /// What reads it.
        reader: String,
        /// The name.
        name: String,
    },
    /// Reads of an unknown node.
    #[error("reads of {reader:?} are declared: no node of the hypothesis has this name")]
    UnknownReader {
        /// The name.
        reader: String,
    },
    /// An ablation of an unknown node.
    #[error("cannot ablate {name:?}: no node of the hypothesis has this name")]
    UnknownAblation {
        /// The name.
        name: String,
    },
    /// Two nodes with one name.
    #[error("two nodes are named {name:?}: expected a name for each")]
    SameName {
        /// The name.
        name: String,
    },
    /// Nodes that read each other.
    #[error("nodes read each other: {}", names.join(" reads "))]
    Cycle {
        /// Their names; the first is repeated at the end.
        names: Vec<String>,
    },
    /// A node that the output does not depend on.
    #[error("{name:?} has no reader on the way to the output: declare one, or remove the node")]
    NotRead {
        /// Its name.
        name: String,
    },
    /// A node that reads the same node twice.
    #[error("{reader} reads {name:?} twice by the same input")]
    ReadTwice {
        /// What reads it.
        reader: String,
        /// The name.
        name: String,
    },
    /// A node whose part of the model has no such input.
    #[error("{reader:?} is {place}: expected a part that reads by {expected}")]
    NoSuchInput {
        /// The node.
        reader: String,
        /// Its part of the model.
        place: String,
        /// How it is declared to read.
        expected: &'static str,
    },
    /// A node that is not before its reader in the model.
    #[error(
        "{reader} reads {name:?}, which is {place}: expected a part of the model that comes before \
         its reader"
    )]
    NotBefore {
        /// What reads it.
        reader: String,
        /// The node.
        name: String,
        /// Its part of the model.
        place: String,
    },
    /// Two nodes that share a part of the model.
    #[error(
        "{reader} reads {first:?} and {second:?}, which have a part of the model in common; join \
         them, or name positions that differ"
    )]
    Overlap {
        /// What reads them.
        reader: String,
        /// One of them.
        first: String,
        /// The other one.
        second: String,
    },
    /// Positions that an example does not have.
    #[error("{name:?}: position {position} of example {example}, which has {length} tokens")]
    NoSuchPosition {
        /// The node.
        name: String,
        /// Index of the example.
        example: usize,
        /// The position.
        position: usize,
        /// Number of tokens.
        length: usize,
    },
    /// Positions for the wrong number of examples.
    #[error("{name:?}: expected positions for {expected} examples, found {found}")]
    Positions {
        /// The node.
        name: String,
        /// Number of examples.
        expected: usize,
        /// Number of lists.
        found: usize,
    },
    /// A number of examples that differs from the number of prompts.
    #[error("expected an example for each of the {expected} prompts, found {found}")]
    Examples {
        /// Number of prompts.
        expected: usize,
        /// Number of examples.
        found: usize,
    },
    /// No sample asked for.
    #[error("expected at least one sample of each example, found none")]
    NoSample,
    /// An example without a donor.
    #[error(
        "{name}: no other example agrees with example {example} on {feature:?} and has as many \
         tokens; add examples, or let them be drawn for themselves (Donors::WithSelf)"
    )]
    NoDonor {
        /// The node.
        name: String,
        /// The feature.
        feature: String,
        /// Index of the example.
        example: usize,
    },
    /// Examples of different lengths where unimportant parts are distinguished by position.
    #[error(
        "{reader} reads {name:?} at some positions: to draw an input for each unimportant part, \
         all examples must have the same length; use such examples, or Unimportant::Shared"
    )]
    ApartLengths {
        /// What reads it.
        reader: String,
        /// The node.
        name: String,
    },
    /// The model does not have this part.
    #[error("{name:?}: {cause}")]
    Path {
        /// The node.
        name: String,
        /// What is wrong with it.
        cause: PathError,
    },
    /// A tree that exceeds the row budget even for a single example.
    #[error(
        "one example takes {needed} rows, but the budget is {max_rows}: raise \
         ScrubOptions::max_rows"
    )]
    RowBudget {
        /// Number of rows.
        needed: usize,
        /// The budget.
        max_rows: usize,
    },
    /// The streams cannot be run.
    #[error(transparent)]
    Streams(#[from] PathError),
    /// The plan cannot be run.
    #[error(transparent)]
    Plan(#[from] PlanError),
}
