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
    /// Whether space that comes next is left out.
    is_trimmed: bool,
    /// What is not shown yet.
    waiting: String,
    has_ended: bool,
}

impl<'a> Answers<'a> {
    /// Nothing yet.
    ///
    /// - begun: what is shown before each answer, and the tokens that it continues
    /// - is_trimmed: whether space at the beginning of an answer is left out
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub(crate) fn new<'p>(
        screen: &'a mut Screen,
        tokenizer: &Tokenizer,
        begun: impl Iterator<Item = (&'static str, &'p [u32])>,
        is_trimmed: bool,
    ) -> Result<Self> {
        let mut rows = Vec::new();
        for (name, prompt) in begun {
            rows.push(Row {
                name,
                stream: TextStream::after(tokenizer, prompt)?,
                is_trimmed,
                waiting: String::new(),
                has_ended: false,
            });
        }
        Ok(Self {
            screen,
            rows,
            current: 0,
            has_begun: false,
            error: None,
        })
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
        let mut text = String::new();
        if !matches!(token.finish, Some(Finish::StopToken(_))) {
            text += &row.stream.push(token.token)?;
        }
        if token.finish.is_some() {
            text += &row.stream.finish()?;
            row.has_ended = true;
        }
        let text = match row.is_trimmed {
            true => text.trim_start(),
            false => &text,
        };
        row.is_trimmed &= text.is_empty();
        row.waiting += text;
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

    /// Shows what is left, and ends the line that appears now, if an error has cut it off.
    ///
    /// - is_whole: whether all answers have ended, those without any token as well
    ///
    /// # Errors
    /// If an answer could not be shown.
    pub(crate) fn finish(mut self, is_whole: bool) -> Result<()> {
        if is_whole && self.error.is_none() {
            for row in &mut self.rows {
                row.has_ended = true;
            }
            self.show()?;
        }
        if self.has_begun {
            self.screen.write("\n")?;
        }
        self.error.map_or(Ok(()), Err)
    }
}
