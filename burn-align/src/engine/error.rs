//! What can be wrong with a plan, its inputs, or the budget for running it.

use burn_align_models::{Component, InputKinds, Site, TokensError};

use super::NonFinite;
use crate::interventions::{Misfit, counted};

/// Why a plan cannot be run. Detected before anything is computed, except for
/// [`Device`](Self::Device), [`NonFinite`](Self::NonFinite) and [`NeverTapped`](Self::NeverTapped).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// An input that the model cannot read.
    #[error("the model cannot read input {input}: {cause}")]
    Input {
        /// Index of the input.
        input: usize,
        /// What is wrong.
        cause: TokensError,
    },
    /// An input of a kind that the model does not read.
    #[error("input {input}: the model reads {expected}; found {found}")]
    InputKind {
        /// Index of the input.
        input: usize,
        /// What the model reads.
        expected: InputKinds,
        /// What the input is.
        found: InputKinds,
    },
    /// Inputs of several kinds in one plan.
    #[error(
        "expected all inputs to be token ids, all to be vectors, or all to be resumed runs; found \
         several kinds"
    )]
    MixedInputs,
    /// Plans that differ in more than their examples.
    #[error("plans to be joined: {what}: expected {expected}, as in the first plan, found {found}")]
    Different {
        /// What differs.
        what: &'static str,
        /// What the first plan has.
        expected: String,
        /// What another one has.
        found: String,
    },
    /// A world that [`Plan::freeze`](super::Plan::freeze) has taken out of the plan.
    #[error(
        "world {world} has been frozen: nothing new can be read of it; add reads before the plan \
         is frozen"
    )]
    Frozen {
        /// Index of the world.
        world: usize,
    },
    /// A site before the one at which a frozen plan resumes.
    #[error("{site}: the plan was frozen and resumes after this site")]
    NotReached {
        /// The site.
        site: Site,
    },
    /// A position before the first remaining one of a frozen plan.
    #[error(
        "{at}: for example {example}, the frozen plan only has the positions from {start} on; add \
         reads and edits before the plan is frozen"
    )]
    NotKept {
        /// Where.
        at: String,
        /// The example.
        example: usize,
        /// The first remaining position.
        start: usize,
    },
    /// A world whose keys and values cannot be kept, or that would not be run to its end.
    #[error("world {world} cannot be continued: {reason}")]
    NotContinuable {
        /// Index of the world.
        world: usize,
        /// Why.
        reason: &'static str,
    },
    /// A frozen plan on another model than the one that it was frozen on, or on the same in another
    /// dtype.
    #[error(
        "input {input}: the plan was frozen on a model with another {what}: expected {expected}, \
         found {found}; run it on the model that it was frozen on, or freeze the whole plan on \
         this one"
    )]
    FrozenMisfit {
        /// Index of the input.
        input: usize,
        /// In what the models differ.
        what: &'static str,
        /// What the model has that the plan was frozen on.
        expected: String,
        /// What this model has.
        found: String,
    },
    /// A cached row that another model has computed, or the same model in another dtype.
    #[error(
        "input {input}: the row to continue was kept by another model or in another dtype, or this \
         model needs whole rows; continue it on the model that ran its beginning"
    )]
    CacheMisfit {
        /// Index of the input.
        input: usize,
    },
    /// No device to run on.
    #[error("expected a copy of the model on at least one device, found none")]
    NoDevice,
    /// An id that belongs to another plan.
    #[error(
        "{what} {found} is not one of the {count} of this plan; ids are only valid in the plan \
         that gave them, and in copies of it"
    )]
    UnknownId {
        /// What it is an id of.
        what: &'static str,
        /// Its index.
        found: usize,
        /// How many there are.
        count: usize,
    },
    /// A site that the model does not have.
    #[error("{site}: the model has no such site; it has {layers} layers{lacks}")]
    NoSuchSite {
        /// The site.
        site: Site,
        /// Number of the model's layers.
        layers: usize,
        /// What the model lacks.
        lacks: &'static str,
    },
    /// A head that the site does not have.
    #[error("{site}: expected a {} below {heads}, found {found}", head(*site))]
    HeadOutOfRange {
        /// The site.
        site: Site,
        /// The head.
        found: usize,
        /// Number of the site's heads.
        heads: usize,
    },
    /// A position past an example's end.
    #[error(
        "{at}: example {example} has {}; expected a position below that, found {found}",
        counted(*length, "token")
    )]
    PositionOutOfRange {
        /// Where.
        at: String,
        /// Index of the example.
        example: usize,
        /// The position.
        found: usize,
        /// The example's length.
        length: usize,
    },
    /// Per-example indices for another number of examples.
    #[error("{at}: expected indices for {batch} examples, found {found}")]
    WrongBatch {
        /// Where.
        at: String,
        /// Number of examples.
        batch: usize,
        /// Number of entries.
        found: usize,
    },
    /// A different number of units in different examples.
    #[error(
        "{at}: example {example} has {}, the first has {expected}; \
         every example needs the same number",
        counted(*found, "unit")
    )]
    RaggedUnits {
        /// Where.
        at: String,
        /// Index of the example.
        example: usize,
        /// Number of units of the first example.
        expected: usize,
        /// Number of units of this example.
        found: usize,
    },
    /// No units at all.
    #[error("{at}: expected at least one unit, found none")]
    NoUnits {
        /// Where.
        at: String,
    },
    /// The same unit twice in one edit.
    #[error("{at}: example {example} names {found} twice")]
    RepeatedUnit {
        /// Where.
        at: String,
        /// Index of the example.
        example: usize,
        /// The index.
        found: usize,
    },
    /// An operand whose shape does not match what is changed.
    #[error(
        "{site}: the intervention changes {expected:?} [batch, unit, d_site], but its operand is \
         {found:?}; choose the same number of units of the same width, from the same number of \
         examples"
    )]
    OperandShape {
        /// The edit's site.
        site: Site,
        /// Shape of what is changed.
        expected: [usize; 3],
        /// Shape of the operand.
        found: [usize; 3],
    },
    /// Padding that would take a token's place.
    #[error(
        "{site}: the source's example {example} has {found} tokens, but the intervention takes \
         all {pos} positions of the batch, including padding; name the positions, or give source \
         and base the same lengths"
    )]
    PaddingTaken {
        /// The edit's site.
        site: Site,
        /// Index of the example.
        example: usize,
        /// The length of the source's example.
        found: usize,
        /// Number of positions of the longest example.
        pos: usize,
    },
    /// An intervention that was not given.
    #[error("{site}: intervention {found}, but only {count} are given")]
    NoSuchIntervention {
        /// The edit's site.
        site: Site,
        /// Its index.
        found: usize,
        /// How many there are.
        count: usize,
    },
    /// A feature that the changed units do not have.
    #[error("{site}: example {example}: expected a feature below {features}, found {found}")]
    FeatureOutOfRange {
        /// The edit's site.
        site: Site,
        /// Index of the example.
        example: usize,
        /// Number of features of a unit, or of the intervention's coordinates of it.
        features: usize,
        /// The feature.
        found: usize,
    },
    /// Units that the intervention cannot act on.
    #[error("{site}: intervention {intervention}: {cause}")]
    Misfit {
        /// The edit's site.
        site: Site,
        /// Index of the intervention.
        intervention: usize,
        /// What it takes.
        cause: Misfit,
    },
    /// An operand that is missing, or that the intervention does not take.
    #[error(
        "{site}: intervention {intervention} takes {} source, but the edit has {}",
        if *needed { "a" } else { "no" },
        if *needed { "none" } else { "one" }
    )]
    OperandPresence {
        /// The edit's site.
        site: Site,
        /// Index of the intervention.
        intervention: usize,
        /// Whether the intervention takes a source.
        needed: bool,
    },
    /// A row budget too small for a single world.
    #[error(
        "max_rows: expected at least {needed}, for one world with its sources at a time, found \
         {max_rows}; raise it, or give fewer examples at a time"
    )]
    RowBudget {
        /// Rows of the first world that does not fit.
        needed: usize,
        /// The budget.
        max_rows: usize,
    },
    /// A memory budget too small for a single world.
    #[error(
        "memory_budget: expected at least {needed} bytes, for one world with its sources at a time \
         and for everything that is read, found {budget}; raise it, give fewer examples at a \
         time, or read fewer positions"
    )]
    MemoryBudget {
        /// Bytes needed by the first world that does not fit.
        needed: u64,
        /// The budget.
        budget: u64,
    },
    /// A device failure. GPUs report it when numbers are read.
    #[error(
        "the device failed: {reason}; if its memory ran out, give RunOptions a memory_budget or \
         lower max_rows, give fewer examples at a time, or load the model in bf16"
    )]
    Device {
        /// What the backend said.
        reason: String,
    },
    /// Results that are not finite. Detected when they are read.
    #[error("{0}")]
    NonFinite(Box<NonFinite>),
    /// Edits that wait for one another.
    #[error("{site}: the operand of this edit depends on the edit itself")]
    Circular {
        /// The edit's site.
        site: Site,
    },
    /// A model that does not tap a site that it declares.
    #[error(
        "the model never taps the activation at {site}: call Cx::stream or Cx::heads there, or \
         take it out of the model's ModelLayout"
    )]
    NeverTapped {
        /// The site.
        site: Site,
    },
}

/// Keys and values may have fewer heads than queries.
fn head(site: Site) -> &'static str {
    match site {
        Site::Block(
            _,
            Component::KeyOutput
            | Component::ValueOutput
            | Component::KeyNorm
            | Component::RotaryKey,
        ) => "key-value head",
        _ => "head",
    }
}
