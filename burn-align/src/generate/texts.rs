//! What comes out of generation, and on the way.

use std::ops::ControlFlow;

use burn::tensor::{Tensor, backend::Backend};

use crate::engine::{CachedRow, Results, WorldId};

/// The texts of all rows: the worlds in the order in which they were given, each example by
/// example.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GeneratedTexts<B: Backend> {
    /// The rows.
    pub rows: Vec<GeneratedRow<B>>,
    /// What the plan of the prompts reads.
    pub prompts: Results<B>,
}

/// The text of a row.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GeneratedRow<B: Backend> {
    /// The world.
    pub world: WorldId,
    /// The example of the world.
    pub example: usize,
    /// The new tokens, with the stop token if there was one.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// The logits from which each token was chosen, `[token, vocab]`, if they were to be kept.
    pub logits: Option<Tensor<B, 2>>,
    /// The logits at all positions of the prompt that are not cached, `[position, vocab]`, if they
    /// were to be kept. The last ones are those from which the first token was chosen.
    pub prompt_logits: Option<Tensor<B, 2>>,
    /// The activations to be collected, `[token, d_site]` each: at the positions of all new tokens
    /// but the last. `None` where there was no such token.
    pub collected: Vec<Option<Tensor<B, 2>>>,
    /// Where the text can be continued, if caches were to be kept and a token was asked for. It has
    /// the prompt and the new tokens as far as they were computed, which the last one is not:
    /// [`CachedRow::tokens`] says which.
    pub cached: Option<CachedRow<B>>,
}

/// Why a text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// It has as many tokens as asked for.
    Length,
    /// A stop token.
    StopToken(u32),
    /// A stop text, which may be followed by the rest of the last token.
    StopText(String),
    /// The model reads no longer texts.
    ModelEnd,
    /// The caller ended it: see [`Flow`].
    Stopped,
}

/// A token that has just been chosen.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Token<'a> {
    /// The row, in the order of [`GeneratedTexts::rows`].
    pub row: usize,
    /// Its number, counted from 0.
    pub step: usize,
    /// The token.
    pub token: u32,
    /// Why the row ends with it, if it does.
    pub finish: Option<&'a Finish>,
}

/// How generation goes on after a token: what the callback of [`generate`](super::generate)
/// returns. One that returns nothing continues, and one that returns a [`ControlFlow`] can end the
/// row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// As it would without the callback.
    #[default]
    Continue,
    /// The token's row ends with it.
    EndRow,
    /// All rows end: the token's row with it, those before it with their token of the same step,
    /// those after it without one.
    EndAll,
}

impl From<()> for Flow {
    fn from((): ()) -> Self {
        Self::Continue
    }
}

impl From<ControlFlow<()>> for Flow {
    /// A break ends the token's row.
    fn from(flow: ControlFlow<()>) -> Self {
        match flow {
            ControlFlow::Continue(()) => Self::Continue,
            ControlFlow::Break(()) => Self::EndRow,
        }
    }
}
