//! What can go wrong when interventions are saved or loaded, and with files in general.

use std::io;
use std::path::PathBuf;

use crate::front::AlignError;
use crate::interventions::counted;

/// Why a file could not be read, or its tensors cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A file or folder could not be read.
    #[error("{}: cannot be read: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// A damaged file.
    #[error("{}: not readable: {reason}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A pickle that would run code. It was not run.
    #[error(
        "{}: refused: expected a pickle with only tensors, found one that calls `{global}`, which \
         could run arbitrary code; do not load it anywhere",
        file.display()
    )]
    ForbiddenGlobal {
        /// The file.
        file: PathBuf,
        /// What the pickle names.
        global: String,
    },
    /// A tensor that is not there.
    #[error(
        "{}: expected a tensor `{tensor}`, found none; do the file and its configuration belong \
         together?",
        file.display()
    )]
    MissingTensor {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// Tensors that nothing needs.
    #[error(
        "{}: expected only the tensors that its configuration requires, also found {}; do they \
         belong together?",
        file.display(),
        tensors.join(", ")
    )]
    UnusedTensors {
        /// The file.
        file: PathBuf,
        /// Their names.
        tensors: Vec<String>,
    },
    /// A tensor whose shape does not fit the others or the configuration.
    #[error("{}: tensor `{tensor}`: expected shape {expected}, found {found:?}", file.display())]
    WrongShape {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// The shape, with `_` for any size.
        expected: String,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor of an unsupported type.
    #[error("{}: tensor `{tensor}`: expected {expected}, found {found}", file.display())]
    WrongDType {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// The supported types.
        expected: &'static str,
        /// The type in the file.
        found: String,
    },
}

/// Why interventions could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadInterventionsError {
    /// A folder without `config.json`.
    #[error(
        "{}: no config.json; expected a folder written by save_interventions or by pyvene's save",
        folder.display()
    )]
    NoConfig {
        /// The folder.
        folder: PathBuf,
    },
    /// A folder in which saving was interrupted.
    #[error(
        "{}: saving interventions here was interrupted, config.json is missing; the new files are \
         complete: remove .part from the names that end with it",
        folder.display()
    )]
    CutOff {
        /// The folder.
        folder: PathBuf,
    },
    /// A file could not be read, or its tensors are others than expected.
    #[error(transparent)]
    File(#[from] FileError),
    /// `config.json` cannot be used.
    #[error("{}: {reason}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// What is wrong, what was expected and what was found.
        reason: String,
    },
    /// A class without a corresponding intervention.
    #[error(
        "{}: representation {representation}: no intervention for `{class}`; {reason}",
        file.display()
    )]
    UnknownClass {
        /// The configuration.
        file: PathBuf,
        /// Index of the representation.
        representation: usize,
        /// The class.
        class: String,
        /// What is expected.
        reason: String,
    },
    /// Something that would compute a different result here.
    #[error(
        "{}: representation {representation}: {what}: found {found}, which is not supported; \
         {remedy}",
        file.display()
    )]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// Index of the representation.
        representation: usize,
        /// What is not supported.
        what: &'static str,
        /// The value.
        found: String,
        /// What is expected, or what to do.
        remedy: &'static str,
    },
    /// A representation without a file of parameters.
    #[error(
        "{}: representation {representation}: expected its parameters in {}, found no such file; \
         save the interventions again, or rename the representation to match its file",
        folder.display(),
        expected.join(" or ")
    )]
    MissingFile {
        /// The folder.
        folder: PathBuf,
        /// Index of the representation.
        representation: usize,
        /// The names that the file may have.
        expected: Vec<String>,
    },
    /// A file that belongs to no representation.
    #[error(
        "{}: expected the parameters of a representation in config.json, but it belongs to none \
         of them; remove it, or add the representation",
        file.display()
    )]
    UnusedFile {
        /// The file.
        file: PathBuf,
    },
    /// Weights of the model, which pyvene saves with `include_model=True`.
    #[error(
        "{}: expected only interventions, also found weights of the model; they may have been \
         trained, and are not loaded here: save that model with transformers' save_pretrained, \
         load it from there, and remove this file",
        file.display()
    )]
    ModelWeights {
        /// The file.
        file: PathBuf,
    },
    /// Directions that are not orthonormal, so that what is outside of them would change too.
    #[error(
        "{}: tensor `{tensor}`: expected orthonormal columns, found products of columns that \
         differ by up to {deviation} from 0 or 1; save the interventions again",
        file.display()
    )]
    NotOrthonormal {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// `max |WᵀW - I|`; infinite if a number is not finite.
        deviation: f64,
    },
    /// Linked representations with different parameters.
    #[error(
        "{}: expected the same parameters as for representation {first}, which has the same \
         intervention_link_key as representation {representation}, found different ones",
        file.display()
    )]
    LinkedDiffer {
        /// The file.
        file: PathBuf,
        /// Index of the representation.
        representation: usize,
        /// Index of the first one with the key.
        first: usize,
    },
    /// An intervention that changes only some of the features, according to the saved width.
    #[error(
        "representation {representation}: expected an intervention on all {expected} features of \
         the model's representation, found one on {found} of them; use a subspace instead"
    )]
    Width {
        /// Index of the representation.
        representation: usize,
        /// Number of the model's features.
        expected: usize,
        /// Number of features.
        found: usize,
    },
    /// The interventions do not fit the model or the configuration.
    #[error(transparent)]
    Align(#[from] AlignError),
}

/// Why interventions could not be saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveInterventionsError {
    /// A file could not be written.
    #[error("{}: cannot be written: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// The configuration and the interventions do not match.
    #[error(
        "expected {}, one for each representation or link key, found {found}",
        counted(*expected, "intervention")
    )]
    WrongInterventionCount {
        /// The number that the configuration requires.
        expected: usize,
        /// The number given.
        found: usize,
    },
    /// A configuration that would read back as a different one.
    #[error("the configuration cannot be saved: {reason}")]
    Config {
        /// Why.
        reason: String,
    },
    /// A closure among the interventions.
    #[error(
        "intervention {intervention} is a closure, which cannot be saved; add it again after \
         loading the others, or implement it as your own type"
    )]
    Closure {
        /// Index of the intervention.
        intervention: usize,
    },
    /// A tensor that f32 cannot represent exactly, or that cannot be read.
    #[error("tensor `{tensor}`: expected f32, f16 or bf16, found {found}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// Its type, or what went wrong.
        found: String,
    },
}
