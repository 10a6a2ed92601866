//! The cells of the leaderboard: task, model and variable.

use std::fmt;
use std::str::FromStr;

/// A task of the track.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrackTask {
    /// Indirect object identification.
    Ioi,
    /// Colours copied from the question.
    FourAnswerMcqa,
    /// ARC, its easy questions.
    ArcEasy,
    /// Two-digit addition.
    Arithmetic,
    /// RAVEL's cities.
    Ravel,
}

impl TrackTask {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Ioi,
        Self::FourAnswerMcqa,
        Self::ArcEasy,
        Self::Arithmetic,
        Self::Ravel,
    ];

    /// Its name in folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ioi => "ioi_task",
            Self::FourAnswerMcqa => "4_answer_MCQA",
            Self::ArcEasy => "ARC_easy",
            Self::Arithmetic => "arithmetic",
            Self::Ravel => "ravel_task",
        }
    }

    /// The variables whose features are searched for.
    pub fn variables(self) -> &'static [&'static str] {
        match self {
            Self::Ioi => &["output_token", "output_position"],
            Self::FourAnswerMcqa | Self::ArcEasy => &["answer_pointer", "answer"],
            Self::Arithmetic => &["ones_carry"],
            Self::Ravel => &["Country", "Continent", "Language"],
        }
    }

    /// The models in which they are.
    pub fn models(self) -> &'static [TrackModel] {
        use TrackModel::{Gemma2, Gpt2, Llama, Qwen2};
        match self {
            Self::Ioi => &[Gpt2, Qwen2, Gemma2, Llama],
            Self::FourAnswerMcqa => &[Qwen2, Gemma2, Llama],
            Self::ArcEasy | Self::Arithmetic | Self::Ravel => &[Gemma2, Llama],
        }
    }
}

/// A model of the track.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrackModel {
    /// GPT-2 small.
    Gpt2,
    /// Qwen2.5-0.5B.
    Qwen2,
    /// Gemma-2-2B.
    Gemma2,
    /// Llama-3.1-8B-Instruct.
    Llama,
}

impl TrackModel {
    /// Its name in folders: the class in `transformers`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "GPT2LMHeadModel",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
        }
    }
}

/// A cell of the leaderboard. Its text is the name of a submission's folder:
/// `TASK_MODEL_VARIABLE`.
///
/// ```
/// use burn_align::methods::causal_variables::VariableCell;
///
/// let cell: VariableCell = "arithmetic_Gemma2ForCausalLM_ones_carry".parse()?;
/// assert_eq!(cell.variable(), "ones_carry");
/// assert_eq!(VariableCell::all().count(), 26);
/// # Ok::<(), burn_align::methods::causal_variables::UnknownCell>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VariableCell {
    task: TrackTask,
    model: TrackModel,
    variable: &'static str,
}

/// A cell that the leaderboard does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}: expected TASK_MODEL_VARIABLE of the track, such as {example}")]
pub struct UnknownCell {
    /// Its name.
    pub text: String,
    /// A cell that there is.
    pub example: VariableCell,
}

impl VariableCell {
    /// All cells.
    pub fn all() -> impl Iterator<Item = Self> {
        TrackTask::ALL.into_iter().flat_map(|task| {
            task.models().iter().flat_map(move |model| {
                task.variables().iter().map(move |variable| Self {
                    task,
                    model: *model,
                    variable: *variable,
                })
            })
        })
    }

    /// A cell.
    ///
    /// # Errors
    /// If the leaderboard does not have it.
    pub fn new(task: TrackTask, model: TrackModel, variable: &str) -> Result<Self, UnknownCell> {
        format!("{}_{}_{variable}", task.name(), model.name()).parse()
    }

    /// The task.
    pub fn task(&self) -> TrackTask {
        self.task
    }

    /// The model.
    pub fn model(&self) -> TrackModel {
        self.model
    }

    /// The variable.
    pub fn variable(&self) -> &'static str {
        self.variable
    }
}

impl fmt::Display for VariableCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            task,
            model,
            variable,
        } = self;
        write!(f, "{}_{}_{variable}", task.name(), model.name())
    }
}

impl FromStr for VariableCell {
    type Err = UnknownCell;

    fn from_str(text: &str) -> Result<Self, UnknownCell> {
        let found = Self::all().find(|cell| cell.to_string() == text);
        found.ok_or_else(|| UnknownCell {
            text: text.to_owned(),
            example: Self {
                task: TrackTask::Ioi,
                model: TrackModel::Gpt2,
                variable: "output_token",
            },
        })
    }
}
