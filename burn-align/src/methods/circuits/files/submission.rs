//! Folders of submissions to MIB's circuit localisation track.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use burn_align_models::files::Replacement;

use super::{CircuitFile, CircuitFileError};
use crate::methods::circuits::{Circuit, EdgeScores, MIB_SIZES};

/// A task of the track (arXiv 2504.13151, table 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MibTask {
    /// Indirect object identification.
    Ioi,
    /// Multiple choice: the colour of an object.
    Mcqa,
    /// Sums of two numbers.
    ArithmeticAddition,
    /// Differences of two numbers.
    ArithmeticSubtraction,
    /// The easy set of the AI2 reasoning challenge.
    ArcEasy,
    /// Its challenge set.
    ArcChallenge,
}

/// A model of the track.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MibModel {
    /// GPT-2 small.
    Gpt2,
    /// Qwen 2.5 0.5B.
    Qwen25,
    /// Gemma 2 2B.
    Gemma2,
    /// Llama 3.1 8B.
    Llama3,
    /// The model of InterpBench, whose circuit is known.
    InterpBench,
}

impl MibTask {
    fn name(self) -> &'static str {
        match self {
            Self::Ioi => "ioi",
            Self::Mcqa => "mcqa",
            Self::ArithmeticAddition => "arithmetic-addition",
            Self::ArithmeticSubtraction => "arithmetic-subtraction",
            Self::ArcEasy => "arc-easy",
            Self::ArcChallenge => "arc-challenge",
        }
    }

    /// Whether the track has the task for a model.
    pub fn is_combined_with(self, model: MibModel) -> bool {
        use MibModel::*;
        match self {
            Self::Ioi => true,
            Self::Mcqa => matches!(model, Qwen25 | Gemma2 | Llama3),
            Self::ArcEasy => matches!(model, Gemma2 | Llama3),
            Self::ArithmeticAddition | Self::ArithmeticSubtraction | Self::ArcChallenge => {
                model == Llama3
            }
        }
    }
}

impl MibModel {
    fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Qwen25 => "qwen2.5",
            Self::Gemma2 => "gemma2",
            Self::Llama3 => "llama3",
            Self::InterpBench => "interpbench",
        }
    }
}

/// A cell of MIB's table: a task and a model. As text, it is the name of its folder: `ioi_gpt2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MibCell {
    /// The task.
    pub task: MibTask,
    /// The model.
    pub model: MibModel,
}

impl fmt::Display for MibCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.task.name(), self.model.name())
    }
}

/// What is submitted for a cell.
#[derive(Clone, Debug, PartialEq)]
pub enum MibCircuits {
    /// Scores, of which MIB chooses circuits of its [sizes](MIB_SIZES).
    Importances(EdgeScores),
    /// A circuit for each size but the last, in order: with at most so many edges.
    Circuits(Vec<Circuit>),
}

/// A submission: a folder for each cell, to be uploaded to a repository of the Hugging Face hub.
/// MIB asks for at least two models and two tasks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MibSubmission {
    /// What is submitted for each cell.
    pub cells: Vec<(MibCell, MibCircuits)>,
}

impl MibSubmission {
    /// Checks what can be checked before the upload.
    ///
    /// # Errors
    /// If a cell is not in the track, or is there twice, if there are fewer than two models or
    /// tasks, or if a circuit is too large or missing.
    pub fn check(&self) -> Result<(), CircuitFileError> {
        let wrong =
            |expected: String, found: String| Err(CircuitFileError::Submission { expected, found });
        let mut seen = BTreeSet::new();
        for (cell, circuits) in &self.cells {
            if !cell.task.is_combined_with(cell.model) {
                let cell = cell.to_string();
                return Err(CircuitFileError::NoSuchCell { cell });
            }
            if !seen.insert(*cell) {
                return wrong("each cell once".to_owned(), format!("{cell} twice"));
            }
            if let MibCircuits::Circuits(circuits) = circuits {
                check_sizes(*cell, circuits)?;
            }
        }
        let models: BTreeSet<MibModel> = seen.iter().map(|cell| cell.model).collect();
        let tasks: BTreeSet<MibTask> = seen.iter().map(|cell| cell.task).collect();
        if models.len() < 2 || tasks.len() < 2 {
            return wrong(
                "at least 2 models and 2 tasks".to_owned(),
                format!("{} and {}", models.len(), tasks.len()),
            );
        }
        Ok(())
    }

    /// Writes the folders: `importances.json`, or a circuit for each size, such as `0.001.json`.
    ///
    /// # Errors
    /// As [`check`](Self::check), before anything is written, or if a file cannot be written.
    /// Cells are written one after the other, each all at once.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), CircuitFileError> {
        self.check()?;
        for (cell, circuits) in &self.cells {
            let mut files = Replacement::new(&folder.as_ref().join(cell.to_string()))?;
            match circuits {
                MibCircuits::Importances(scores) => {
                    let json = CircuitFile::of_scores(scores).to_json();
                    files.write("importances.json", json.as_bytes())?;
                }
                MibCircuits::Circuits(circuits) => {
                    for (size, circuit) in MIB_SIZES.iter().zip(circuits) {
                        let json = CircuitFile::new(circuit).to_json();
                        files.write(&format!("{size}.json"), json.as_bytes())?;
                    }
                }
            }
            files.finish()?;
        }
        Ok(())
    }
}

/// Checks that there is a circuit for each size but the last, none of which is too large.
fn check_sizes(cell: MibCell, circuits: &[Circuit]) -> Result<(), CircuitFileError> {
    let sizes = &MIB_SIZES[..MIB_SIZES.len() - 1];
    if circuits.len() != sizes.len() {
        return Err(CircuitFileError::Submission {
            expected: format!("{cell}: {} circuits", sizes.len()),
            found: circuits.len().to_string(),
        });
    }
    for (size, circuit) in sizes.iter().zip(circuits) {
        let all = circuit.graph().edge_count();
        let most = (size * all as f64).floor() as usize;
        if circuit.edge_count() > most {
            return Err(CircuitFileError::Submission {
                expected: format!("{cell}: at most {most} of {all} edges in the circuit of {size}"),
                found: circuit.edge_count().to_string(),
            });
        }
    }
    Ok(())
}
