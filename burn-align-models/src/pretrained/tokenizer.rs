//! The tokenizer of a model folder.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::{CONFIG, LoadError, Repository};
use crate::files::{Replacement, WriteError};
use crate::tokens::{Tokenizer, TokenizerFiles, TokensError};

/// Writes a tokenizer's files, from which it is read again with the same ids.
///
/// Chat templates go into tokenizer_config.json, so that a folder holds them in one place.
pub(super) fn save(tokenizer: &Tokenizer, folder: &mut Replacement) -> Result<(), WriteError> {
    let files = tokenizer.files();
    let texts = [
        (TokenizerFiles::TOKENIZER, files.tokenizer),
        (TokenizerFiles::CONFIG, files.config),
        (TokenizerFiles::SPECIAL_TOKENS_MAP, files.special_tokens_map),
        (TokenizerFiles::ADDED_TOKENS, files.added_tokens),
        (TokenizerFiles::VOCAB, files.vocab),
        (TokenizerFiles::MERGES, files.merges),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            folder.write(name, text.as_bytes())?;
        }
    }
    if let Some(bytes) = files.sentencepiece {
        let name = if tokenizer.class() == "T5Tokenizer" {
            TokenizerFiles::SENTENCEPIECE_OF_T5
        } else {
            TokenizerFiles::SENTENCEPIECE
        };
        folder.write(name, &bytes)?;
    }
    Ok(())
}

impl Repository {
    /// The tokenizer; `None` if there is no file with a vocabulary.
    pub(super) fn tokenizer(&self) -> Result<Option<Tokenizer>, LoadError> {
        let files = match self {
            Self::Gguf(model) => model.tokenizer_files()?,
            Self::Folder(_) | Self::Bundled(_) => Some(self.tokenizer_files()?),
        };
        let Some(files) = files.filter(TokenizerFiles::has_vocabulary) else {
            return Ok(None);
        };
        let json = files.tokenizer.is_some();
        Tokenizer::from_files(files).map(Some).map_err(|cause| {
            let file = match &cause {
                TokensError::UnknownClass { .. } => TokenizerFiles::CONFIG,
                TokensError::Tokenizer { .. } if json => TokenizerFiles::TOKENIZER,
                // The message contains the file name.
                _ => "",
            };
            LoadError::Tokenizer {
                file: self.describe(file),
                cause,
            }
        })
    }

    fn tokenizer_files(&self) -> Result<TokenizerFiles, LoadError> {
        let sentencepiece = match self.optional_bytes(TokenizerFiles::SENTENCEPIECE)? {
            Some(bytes) => Some(bytes),
            None => self.optional_bytes(TokenizerFiles::SENTENCEPIECE_OF_T5)?,
        };
        Ok(TokenizerFiles {
            tokenizer: self.optional_text(TokenizerFiles::TOKENIZER)?,
            config: self.optional_text(TokenizerFiles::CONFIG)?,
            special_tokens_map: self.optional_text(TokenizerFiles::SPECIAL_TOKENS_MAP)?,
            added_tokens: self.optional_text(TokenizerFiles::ADDED_TOKENS)?,
            vocab: self.optional_text(TokenizerFiles::VOCAB)?,
            merges: self.optional_text(TokenizerFiles::MERGES)?,
            sentencepiece,
            model_config: self.optional_text(CONFIG)?,
            tokenizer_decides: false,
            chat_templates: self.chat_templates()?,
        })
    }

    fn optional_bytes(&self, file: &str) -> Result<Option<Vec<u8>>, LoadError> {
        let Self::Folder(folder) = self else {
            return Ok(None);
        };
        match fs::read(folder.join(file)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(LoadError::Io {
                file: folder.join(file),
                cause,
            }),
        }
    }

    /// Chat templates in separate files, by name.
    fn chat_templates(&self) -> Result<BTreeMap<String, String>, LoadError> {
        let mut templates = BTreeMap::new();
        if let Some(template) = self.optional_text(TokenizerFiles::CHAT_TEMPLATE)? {
            templates.insert("default".to_owned(), template);
        }
        let Self::Folder(folder) = self else {
            return Ok(templates);
        };
        let failed = |cause: io::Error| LoadError::Io {
            file: folder.join(TokenizerFiles::CHAT_TEMPLATES),
            cause,
        };
        let entries = match fs::read_dir(folder.join(TokenizerFiles::CHAT_TEMPLATES)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(templates),
            Err(cause) => return Err(failed(cause)),
        };
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".jinja")) else {
                continue;
            };
            let file = format!("{}/{stem}.jinja", TokenizerFiles::CHAT_TEMPLATES);
            if let Some(template) = self.optional_text(&file)? {
                templates.insert(stem.to_owned(), template);
            }
        }
        Ok(templates)
    }
}
