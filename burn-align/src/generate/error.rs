//! Why a text could not be generated.

use burn_align_models::{Site, TokensError};

use super::SamplingError;
use crate::engine::PlanError;

/// Why a text could not be generated. Detected before anything is computed, except for what
/// sampling and the device report.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The prompts or a step cannot be run, or the values of a step stop being finite.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A token could not be chosen, or the settings are out of range.
    #[error("{}", sampling(*row, *step, cause))]
    Sampling {
        /// The row, unless the settings are wrong.
        row: Option<usize>,
        /// How many tokens it had.
        step: usize,
        /// Why.
        cause: SamplingError,
    },
    /// Texts that stop a row, and that cannot be compared with its tokens.
    #[error("stop texts: {0}")]
    StopText(TokensError),
    /// A stop text that every text has in it.
    #[error("stop texts: expected texts of at least one character, found an empty one")]
    EmptyStopText,
    /// No world to continue.
    #[error("expected at least one world to generate from, found none")]
    NoWorlds,
    /// A world twice.
    #[error("world {world} is generated from twice; add it to the plan twice")]
    RepeatedWorld {
        /// Index of the world.
        world: usize,
    },
    /// Another number of random streams than examples.
    #[error("world {world}: expected a stream for each of {expected} examples, found {found}")]
    Streams {
        /// Index of the world.
        world: usize,
        /// Number of examples.
        expected: usize,
        /// Number of streams.
        found: usize,
    },
    /// More tokens than the model reads.
    #[error(
        "row {row}: a prompt of {prompt} tokens and {new} new ones are more than the \
         {max_positions} positions of the model; ask for fewer, or set `at_limit` to `cut`"
    )]
    TooLong {
        /// The row.
        row: usize,
        /// Number of tokens of its prompt.
        prompt: usize,
        /// Number of tokens to generate.
        new: usize,
        /// The longest text that the model reads.
        max_positions: usize,
    },
    /// An edit at a step that is never computed.
    #[error(
        "world {world}: expected an edit at a step below {}, where a generated token is computed, \
         found {found}",
        steps
    )]
    NoSuchStep {
        /// Index of the world.
        world: usize,
        /// The step.
        found: usize,
        /// Number of steps: the last token is not computed.
        steps: usize,
    },
    /// Indices for another number of examples.
    #[error("world {world}: a step has heads or features for {found} examples, expected {batch}")]
    Indices {
        /// Index of the world.
        world: usize,
        /// Number of examples.
        batch: usize,
        /// Number of entries.
        found: usize,
    },
    /// Attention scores or weights of a step, which has them for its own positions only.
    #[error(
        "{site}: attention scores and weights cannot be changed or collected at steps, whose keys \
         are cached; do it in a plan of the whole text"
    )]
    Pattern {
        /// The site.
        site: Site,
    },
    /// An operand that is not of one position, or of another number of examples.
    #[error(
        "world {world}: expected the operand of a step to be [{batch} or 1, 1, d_site], found \
         {found:?}"
    )]
    Operand {
        /// Index of the world.
        world: usize,
        /// Number of examples.
        batch: usize,
        /// Its shape.
        found: [usize; 3],
    },
    /// An operand of the prompts that is not one position, or is of another number of examples.
    #[error(
        "world {world}: a step takes one position of each of {batch} examples of world \
         {source_world}, found {positions} of each of {examples}"
    )]
    SourceUnits {
        /// Index of the world.
        world: usize,
        /// Index of the world that it takes from.
        source_world: usize,
        /// Number of examples of the world.
        batch: usize,
        /// Number of examples of the other one.
        examples: usize,
        /// Number of positions.
        positions: usize,
    },
    /// Caches that do not fit the memory budget.
    #[error(
        "memory_budget: expected at least {needed} bytes, {caches} of them for the caches of \
         {rows} rows with all of their tokens, found {budget}; raise it in RunOptions, or generate \
         fewer rows at a time or fewer tokens"
    )]
    CacheBudget {
        /// Bytes needed with one row at a time in a step.
        needed: u64,
        /// Bytes of the caches.
        caches: u64,
        /// Number of rows.
        rows: usize,
        /// The budget.
        budget: u64,
    },
    /// An operand of a world that is not generated from, or has another number of examples.
    #[error(
        "world {world}: a step takes from world {found}, which must be generated from as well, \
         with as many examples"
    )]
    OperandWorld {
        /// Index of the world.
        world: usize,
        /// Index of the other one.
        found: usize,
    },
}

fn sampling(row: Option<usize>, step: usize, cause: &SamplingError) -> String {
    match row {
        Some(row) => format!("row {row}, token {step}: {cause}"),
        None => cause.to_string(),
    }
}
