//! Which rows end, and which go on.

use std::collections::BTreeSet;

use burn::tensor::backend::Backend;
use burn_align_models::{AlignableTransformer, Tokenizer, TokensError};

use super::{Generator, Row};
use crate::generate::{Finish, GenerateError, StepOperand, TextStream};
use crate::interventions::Intervention;

impl<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>> Generator<'_, B, M, I> {
    /// Why a row ends with its last token, if it does.
    pub(super) fn finish(&self, row: &Row<B>) -> Result<Option<Finish>, GenerateError> {
        let new = row.new_tokens();
        let last = new.last().copied();
        if let Some(token) = last.filter(|token| self.options.stop_tokens.contains(token)) {
            return Ok(Some(Finish::StopToken(token)));
        }
        if let Some((tokenizer, texts)) = &self.options.stop_texts {
            // A text has no more tokens than bytes, and one that has just been completed has the
            // last token.
            let longest = texts.iter().map(String::len).max().unwrap_or(0);
            let start = row.history.len() - new.len().min(longest);
            let text = added(tokenizer, row.history.split_at(start));
            let text = text.map_err(GenerateError::StopText)?;
            if let Some(found) = texts.iter().find(|stop| text.contains(*stop)) {
                return Ok(Some(Finish::StopText(found.clone())));
            }
        }
        if new.len() == self.options.max_new_tokens {
            return Ok(Some(Finish::Length));
        }
        let max_positions = self.model.dims().max_positions;
        let is_full = max_positions.is_some_and(|most| row.pos + 1 >= most);
        Ok(is_full.then_some(Finish::ModelEnd))
    }

    /// The rows that go on: those that have not ended, and those that they take from. A row that
    /// takes from one whose text fills the model ends with it.
    pub(super) fn going(&self, rows: &mut [Row<B>]) -> BTreeSet<usize> {
        let most = self.model.dims().max_positions.unwrap_or(usize::MAX);
        let sources = |row: &Row<B>| {
            let edits = self.worlds[row.world].edits.iter();
            let places = edits.filter_map(|edit| match &edit.operand {
                StepOperand::World { world, .. } => Some(self.place[world]),
                StepOperand::None | StepOperand::Constant(_) | StepOperand::Activation { .. } => {
                    None
                }
            });
            let example = row.example;
            let rows = places.map(|place| self.first_rows[place] + example);
            rows.collect::<Vec<usize>>()
        };
        let takes: Vec<Vec<usize>> = rows.iter().map(sources).collect();
        let mut cannot_go_on: Vec<bool> = rows.iter().map(|row| row.pos >= most).collect();
        loop {
            let is_stuck = |index: &usize| {
                !cannot_go_on[*index] && takes[*index].iter().any(|source| cannot_go_on[*source])
            };
            let Some(stuck) = (0..rows.len()).find(is_stuck) else {
                break;
            };
            cannot_go_on[stuck] = true;
        }
        for (row, stuck) in rows.iter_mut().zip(cannot_go_on) {
            if stuck && row.finish.is_none() {
                row.finish = Some(Finish::ModelEnd);
            }
        }
        let going = rows
            .iter()
            .enumerate()
            .filter(|(_, row)| row.finish.is_none());
        let mut going: BTreeSet<usize> = going.map(|(index, _)| index).collect();
        let mut new: Vec<usize> = going.iter().copied().collect();
        while let Some(index) = new.pop() {
            new.extend(takes[index].iter().filter(|source| going.insert(**source)));
        }
        for (index, row) in rows.iter_mut().enumerate() {
            let ends = row.finish.is_some() && row.kept.is_none();
            if let (true, true, Some(cached)) = (ends, self.options.keep_caches, &row.cached) {
                row.kept = Some(cached.first(row.pos).unwrap_or_else(|| cached.clone()));
            }
            if !going.contains(&index) {
                row.cached = None;
            }
        }
        going
    }
}

/// What tokens add to the text of those before them.
fn added(tokenizer: &Tokenizer, (before, new): (&[u32], &[u32])) -> Result<String, TokensError> {
    let mut stream = TextStream::after(tokenizer, before)?;
    let text = stream.extend(new)?;
    Ok(text + &stream.finish()?)
}
