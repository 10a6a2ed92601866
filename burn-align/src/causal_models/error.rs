//! What can be wrong with a causal model, its inputs, or a dataset drawn from it.

/// Why a causal model cannot be built, run, or drawn from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CausalModelError {
    /// Two variables of one name.
    #[error("{name}: expected each variable to have its own name, found two with this name")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// A parent that does not exist.
    #[error("{variable}: its parent {parent} is not a variable; there are {known}")]
    UnknownParent {
        /// Whose parent.
        variable: String,
        /// The parent.
        parent: String,
        /// The variables' names.
        known: String,
    },
    /// A parent that is named twice.
    #[error("{variable}: expected each parent once, found {parent} twice")]
    RepeatedParent {
        /// Whose parent.
        variable: String,
        /// The parent.
        parent: String,
    },
    /// Variables that depend on themselves.
    #[error("expected an order in which variables can be computed, found a cycle: {cycle}")]
    Cycle {
        /// The variables of the cycle, each a parent of the next; the first is repeated at the end.
        cycle: String,
    },
    /// A variable without values.
    #[error("{variable}: expected at least one value, found none; list some, or use Values::Any")]
    NoValues {
        /// The variable.
        variable: String,
    },
    /// A value that is listed twice.
    #[error("{variable}: expected each value once, found {value} twice")]
    RepeatedValue {
        /// The variable.
        variable: String,
        /// The value.
        value: String,
    },
    /// A model without an output.
    #[error("the model has no output: add a computed variable, or name outputs")]
    NoOutput,
    /// A variable that the model does not have.
    #[error("the model has no variable {name}; there are {known}")]
    UnknownVariable {
        /// The name.
        name: String,
        /// The variables' names.
        known: String,
    },
    /// A handle from another model.
    #[error(
        "variable {found}: this model has {count}; handles are valid only in the model that \
         returned them"
    )]
    UnknownHandle {
        /// Its number.
        found: usize,
        /// Number of the model's variables.
        count: usize,
    },
    /// The same variable twice.
    #[error("{variable}: expected a variable once, found it twice")]
    RepeatedVariable {
        /// The variable.
        variable: String,
    },
    /// A computed variable given as an input.
    #[error(
        "{variable}: expected an input, found a variable that is computed from {parents}; to fix \
         its value, intervene"
    )]
    NotAnInput {
        /// The variable.
        variable: String,
        /// Its parents.
        parents: String,
    },
    /// An input without a value.
    #[error("{variable}: expected a value for every input, found none for this one")]
    MissingInput {
        /// The input.
        variable: String,
    },
    /// Too few or too many inputs.
    #[error("expected {expected} values, for the inputs {inputs}; found {found}")]
    InputCount {
        /// Number of inputs.
        expected: usize,
        /// The inputs' names.
        inputs: String,
        /// Number of values.
        found: usize,
    },
    /// An input with a value that it cannot have.
    #[error("input {variable}: expected {expected}, found {found}")]
    InputValue {
        /// The input.
        variable: String,
        /// Its values.
        expected: String,
        /// The value.
        found: String,
    },
    /// An intervention with a value that the variable cannot have.
    #[error("intervention on {variable}: expected {expected}, found {found}")]
    InterventionValue {
        /// The variable.
        variable: String,
        /// Its values.
        expected: String,
        /// The value.
        found: String,
    },
    /// A function that returns a value its variable cannot have.
    #[error(
        "the function of {variable} gives {found} at ({parents}), expected {expected}; list this \
         value too, or fix the function"
    )]
    FunctionValue {
        /// The variable.
        variable: String,
        /// Its values.
        expected: String,
        /// The value.
        found: String,
        /// Its parents and their values.
        parents: String,
    },
    /// An input whose values must be enumerated, but which has no list of them.
    #[error("{variable}: expected a list of values to choose from, found Values::Any; {remedy}")]
    Unlisted {
        /// The variable.
        variable: String,
        /// What to do.
        remedy: &'static str,
    },
    /// No inputs to sort.
    #[error("equivalence classes: expected at least one input to sort, found none")]
    NothingToSort,
    /// A variable that reaches another in two ways.
    #[error(
        "{variable}: expected one child on the way to {root}, found {children}; a balanced sampler \
         needs a tree, so draw from the EquivalenceClasses of {root}, or write a sampler"
    )]
    NotATree {
        /// The variable with several children.
        variable: String,
        /// The variable that is balanced.
        root: String,
        /// The children.
        children: String,
    },
    /// Too many combinations of values to enumerate.
    #[error(
        "{variable}: its parents have {found} combinations of values, expected at most {limit}; \
         list fewer values, or write a sampler"
    )]
    TooManyCombinations {
        /// The variable.
        variable: String,
        /// Number of combinations.
        found: u128,
        /// The limit.
        limit: u128,
    },
    /// Nothing to interchange.
    #[error("{what}: expected at least one {expected}, found none")]
    EmptyTarget {
        /// Where.
        what: String,
        /// What is missing.
        expected: &'static str,
    },
    /// A setting out of range.
    #[error("{what}: expected {expected}, found {found}")]
    Config {
        /// What is wrong.
        what: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// No accepted inputs among those drawn.
    #[error(
        "expected inputs that are accepted, found none in {tries} tries; raise max_tries, accept \
         more, or write a sampler"
    )]
    NotAccepted {
        /// Number of tries.
        tries: usize,
    },
    /// A fraction of flipped labels that the drawn inputs do not give.
    #[error(
        "interchanging {target}: expected an example whose label {}, found none in {tries} tries; \
         raise max_tries, ask for another fraction of flips, or draw inputs with a sampler under \
         which both happen",
        if *flip { "flips" } else { "does not flip" }
    )]
    Balance {
        /// The variables, with brackets around those of one source.
        target: String,
        /// Whether a flip was wanted.
        flip: bool,
        /// Number of tries.
        tries: usize,
    },
    /// A split with nothing on one side.
    #[error(
        "expected {what} on both sides of the split, found {held_out} of {count} held out; choose \
         another fraction, or split more {what}"
    )]
    EmptySplit {
        /// What is split.
        what: &'static str,
        /// How many would be held out.
        held_out: usize,
        /// How many there are.
        count: usize,
    },
}
