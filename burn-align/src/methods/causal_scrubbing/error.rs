use crate::engine::PlanError;
use crate::paths::PathError;

/// Why a hypothesis cannot be scrubbed. Found before anything is computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScrubError {
    /// A name that no node has.
    #[error("{reader} reads {name:?}: no node of the hypothesis has this name")]
    UnknownNode {
        /// What reads it.
        reader: String,
        /// The name.
        name: String,
    },
    /// Reads of a node that there is not.
    #[error("{reader:?} is said to read others: no node of the hypothesis has this name")]
    UnknownReader {
        /// The name.
        reader: String,
    },
    /// An ablation of a node that there is not.
    #[error("{name:?} is to be ablated: no node of the hypothesis has this name")]
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
        /// Their names, the first one again at the end.
        names: Vec<String>,
    },
    /// A node that the output does not depend on.
    #[error(
        "{name:?} is read by nobody on the way to the output: name its readers, or leave it out"
    )]
    NotRead {
        /// Its name.
        name: String,
    },
    /// The same node twice among those that one reads.
    #[error("{reader} reads {name:?} twice by the same input")]
    ReadTwice {
        /// What reads it.
        reader: String,
        /// The name.
        name: String,
    },
    /// A node whose part of the model does not have such an input.
    #[error("{reader:?} is {place}: expected a part that reads by {expected}")]
    NoSuchInput {
        /// The node.
        reader: String,
        /// Its part of the model.
        place: String,
        /// By what it is said to read.
        expected: &'static str,
    },
    /// A node that does not lie before its reader in the model.
    #[error(
        "{reader} reads {name:?}, which is {place}: expected a part of the model that lies before \
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
    /// Two nodes for the same thing.
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
    /// Positions for another number of examples.
    #[error("{name:?}: expected positions for {expected} examples, found {found}")]
    Positions {
        /// The node.
        name: String,
        /// Number of examples.
        expected: usize,
        /// Number of lists.
        found: usize,
    },
    /// Not as many examples as prompts.
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
    /// An example with no other one to stand for it.
    #[error(
        "{name}: no other example agrees with example {example} on {feature:?} and has as many \
         tokens; give more examples, or let them be drawn for themselves"
    )]
    NoDonor {
        /// The node.
        name: String,
        /// The feature.
        feature: String,
        /// Index of the example.
        example: usize,
    },
    /// Examples of several lengths where what does not matter has to be told apart by position.
    #[error(
        "{reader} reads {name:?} at some positions: to draw inputs for each part that does not \
         matter, all examples must have one length; give such examples, or let the parts share an \
         input"
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
    /// A tree that does not fit into the row budget even for one example.
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
