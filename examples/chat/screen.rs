//! Answers that appear while they are generated.

use std::io::{self, Write};

use anyhow::{Context, Error, Result};
use burn_align::generate::{Finish, Flow, TextStream, Token};
use burn_align_models::Tokenizer;

/// Standard output, whose reader may go away.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    is_gone: bool,
}

impl Screen {
    /// Shows a text at once.
    ///
    /// # Errors
    /// If it cannot be written, other than because the reader has gone away.
    pub(crate) fn write(&mut self, text: &str) -> Result<()> {
        if self.is_gone || text.is_empty() {
            return Ok(());
        }
        let mut output = io::stdout().lock();
        let written = output
            .write_all(text.as_bytes())
            .and_then(|()| output.flush());
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.is_gone = true,
            result => result.context("standard output")?,
        }
        Ok(())
    }

    /// Whether nobody reads any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone
    }
}

/// The answers of a turn, one below the other: the first appears token by token, the others wait
/// for those above them.
pub(crate) struct Answers<'a> {
    screen: &'a mut Screen,
    rows: Vec<Row>,
    /// The row that appears now.
    current: usize,
    /// Whether the current row has begun.
    has_begun: bool,
    error: Option<Error>,
}

struct Row {
    name: &'static str,
    stream: TextStream,
    /// What is not shown yet.
    waiting: String,
    has_ended: bool,
}

impl<'a> Answers<'a> {
    /// Nothing yet.
    ///
    /// - names: what is shown before each answer
    pub(crate) fn new(
        screen: &'a mut Screen,
        tokenizer: &Tokenizer,
        names: impl Iterator<Item = &'static str>,
    ) -> Self {
        let rows = names.map(|name| Row {
            name,
            stream: TextStream::new(tokenizer),
            waiting: String::new(),
            has_ended: false,
        });
        Self {
            screen,
            rows: rows.collect(),
            current: 0,
            has_begun: false,
            error: None,
        }
    }

    /// One more token of an answer. Ends all answers if nobody can read them.
    pub(crate) fn add(&mut self, token: &Token<'_>) -> Flow {
        if self.error.is_none() {
            self.error = self.try_add(token).err();
        }
        match self.error.is_some() || self.screen.is_gone() {
            true => Flow::EndAll,
            false => Flow::Continue,
        }
    }

    fn try_add(&mut self, token: &Token<'_>) -> Result<()> {
        let Some(row) = self.rows.get_mut(token.row) else {
            return Ok(());
        };
        if !matches!(token.finish, Some(Finish::StopToken(_))) {
            row.waiting += &row.stream.push(token.token)?;
        }
        if token.finish.is_some() {
            row.waiting += &row.stream.finish()?;
            row.has_ended = true;
        }
        self.show()
    }

    /// Shows what may appear by now.
    fn show(&mut self) -> Result<()> {
        while let Some(row) = self.rows.get_mut(self.current) {
            if !self.has_begun {
                self.screen.write(row.name)?;
                self.has_begun = true;
            }
            self.screen.write(&std::mem::take(&mut row.waiting))?;
            if !row.has_ended {
                break;
            }
            self.screen.write("\n")?;
            self.current += 1;
            self.has_begun = false;
        }
        Ok(())
    }

    /// Ends the line that appears now, if an error has cut it off.
    ///
    /// # Errors
    /// If an answer could not be shown.
    pub(crate) fn finish(self) -> Result<()> {
        if self.has_begun {
            self.screen.write("\n")?;
        }
        self.error.map_or(Ok(()), Err)
    }
}
