//! How to generate.

use burn_align_models::{Site, Tokenizer};
use serde::{Deserialize, Serialize};

use super::Sampling;
use crate::engine::{Indices, RunOptions};

/// How long to generate, how to choose tokens, where to stop, and what to keep.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// Most tokens to generate for each row.
    pub max_new_tokens: usize,
    /// How tokens are chosen. Default: greedily.
    pub sampling: Sampling,
    /// Tokens after which a row ends; they are part of its tokens. Default: none.
    pub stop_tokens: Vec<u32>,
    /// Texts after which a row ends, with the tokenizer that finds them.
    pub(super) stop_texts: Option<(Tokenizer, Vec<String>)>,
    /// What to do if prompt and new tokens are longer than the model reads.
    pub at_limit: AtLimit,
    /// Whether to keep the logits from which each token was chosen. Default: no.
    pub keep_logits: bool,
    /// Whether to keep the logits at all positions of the prompts that are computed. Default: no.
    pub keep_prompt_logits: bool,
    /// Activations to keep at the position of each generated token, except for the last, which is
    /// not computed. Default: none.
    pub collect: Vec<(Site, Indices)>,
    /// Whether each row gives back its cache, so that its text can be continued later. Default: no.
    pub keep_caches: bool,
    /// Budgets. The memory budget is for caches and activations together;
    /// [`explain_generation`](super::explain_generation) says what both take.
    pub run: RunOptions,
}

/// What to do if prompt and new tokens are longer than the model reads.
///
/// In JSON: `"refuse"` or `"cut"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtLimit {
    /// Refuse it before anything is computed.
    #[default]
    Refuse,
    /// End rows where the model ends, as [`Finish::ModelEnd`](super::Finish::ModelEnd).
    Cut,
}

impl GenerateOptions {
    /// Greedy, up to this many tokens.
    pub fn new(max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            sampling: Sampling::greedy(),
            stop_tokens: Vec::new(),
            stop_texts: None,
            at_limit: AtLimit::default(),
            keep_logits: false,
            keep_prompt_logits: false,
            collect: Vec::new(),
            keep_caches: false,
            run: RunOptions::default(),
        }
    }

    /// Chooses tokens like this.
    pub fn with_sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Ends a row after any of these tokens.
    pub fn with_stop_tokens(mut self, tokens: impl IntoIterator<Item = u32>) -> Self {
        self.stop_tokens = tokens.into_iter().collect();
        self
    }

    /// Ends a row once its new text has any of these in it.
    pub fn with_stop_texts<T: Into<String>>(
        mut self,
        tokenizer: &Tokenizer,
        texts: impl IntoIterator<Item = T>,
    ) -> Self {
        let texts = texts.into_iter().map(Into::into).collect();
        self.stop_texts = Some((tokenizer.clone(), texts));
        self
    }

    /// What to do if a row would be longer than the model reads.
    pub fn with_at_limit(mut self, at_limit: AtLimit) -> Self {
        self.at_limit = at_limit;
        self
    }

    /// Keeps the logits of each token.
    pub fn with_logits(mut self) -> Self {
        self.keep_logits = true;
        self
    }

    /// Keeps the logits of the prompts, which are computed once for this and for the texts.
    #[doc(alias = "prompt_logprobs")]
    pub fn with_prompt_logits(mut self) -> Self {
        self.keep_prompt_logits = true;
        self
    }

    /// Keeps the activation of some heads at a site, at each generated token.
    pub fn with_collected(mut self, site: Site, heads: impl Into<Indices>) -> Self {
        self.collect.push((site, heads.into()));
        self
    }

    /// Gives back the cache of each row.
    pub fn with_caches(mut self) -> Self {
        self.keep_caches = true;
        self
    }

    /// Runs within these budgets.
    pub fn with_run(mut self, run: RunOptions) -> Self {
        self.run = run;
        self
    }
}
