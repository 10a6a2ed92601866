//! The tokens of names, for indirect objects.

use burn_align_models::{SpecialTokens, Tokenizer};

use super::{CausalVariableError, TaskExample, VariableTask};

/// Which token stands for a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameTokens {
    /// The first token of the name as the task has it. The track does this: it is the token that a
    /// model would say if names in the data begin with their space.
    #[default]
    AsWritten,
    /// The first token of the name after a space.
    AfterSpace,
}

impl NameTokens {
    /// The tokens of the base's indirect object and subject.
    pub(super) fn of(
        self,
        task: &VariableTask,
        example: &TaskExample,
        tokenizer: &Tokenizer,
    ) -> Result<[u32; 2], CausalVariableError> {
        let [a, b, c] = task.model.variables(["name_A", "name_B", "name_C"])?;
        let setting = task.model.run(&example.base.inputs)?;
        let (object, subject) = match setting[a] == setting[c] {
            true => (b, a),
            false => (a, b),
        };
        let token = |name| self.token(&setting[name].to_string(), tokenizer);
        Ok([token(object)?, token(subject)?])
    }

    fn token(self, name: &str, tokenizer: &Tokenizer) -> Result<u32, CausalVariableError> {
        let text = match self {
            Self::AsWritten => name.to_owned(),
            Self::AfterSpace => format!(" {name}"),
        };
        let tokens = tokenizer.encode_with(&text, SpecialTokens::Never)?;
        tokens.first().copied().ok_or(CausalVariableError::Prompt {
            prompt: text,
            expected: "a name with a token".to_owned(),
        })
    }
}
