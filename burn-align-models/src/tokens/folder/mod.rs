//! Building the tokenizer that a model folder describes.
//!
//! `AutoTokenizer` in `transformers` does not rely on tokenizer.json alone. The tokenizer's class,
//! named in tokenizer_config.json or config.json, rebuilds parts of it, and tokens from
//! tokenizer_config.json, special_tokens_map.json and added_tokens.json are added. This follows
//! version 4.57.6 (`PreTrainedTokenizerBase._from_pretrained` and
//! `PreTrainedTokenizerFast.__init__`), and version 5 for the class that exists only there.

mod bpe;
mod class;
mod read;
mod sentencepiece;
mod settings;
mod special;

use serde_json::{Value, json};
use tokenizers::{PostProcessorWrapper, PreTokenizerWrapper};

use self::class::{Class, Ends, PrefixSpace, Source};
use self::settings::Settings;
use self::special::{Added, Special};
use super::tokenizer::{no_panic, parse};
use super::{TokenizerFiles, TokensError};

/// A tokenizer, with everything else that its files describe.
#[derive(Debug)]
pub(super) struct Assembled {
    pub(super) inner: tokenizers::Tokenizer,
    /// The name of its class.
    pub(super) class: &'static str,
    /// Special tokens by role, such as `bos_token`.
    pub(super) specials: Vec<(String, String)>,
    /// Additional special tokens, which have no role.
    pub(super) additional: Vec<String>,
    /// Chat templates by name.
    pub(super) templates: Vec<(String, String)>,
    /// Notes for the user.
    pub(super) notes: Vec<String>,
}

/// The tokenizer that these files describe.
pub(super) fn assemble(files: &TokenizerFiles) -> Result<Assembled, TokensError> {
    let mut notes = Vec::new();
    let (class, settings) = Settings::read(files, &mut notes)?;
    let json = files.tokenizer.as_deref();
    let from_model = !files.tokenizer_decides
        && class.prefix_space == PrefixSpace::FromSentencePiece
        && settings.value("add_prefix_space").is_some();
    let (mut inner, converted) = match json {
        Some(json) if !from_model => (parse(json)?, false),
        // `AutoTokenizer` fails here.
        Some(json) if files.sentencepiece.is_none() => {
            notes.push(format!(
                "add_prefix_space in tokenizer_config.json requires tokenizer.model, which is \
                 missing; tokenizer.json is used instead ({})",
                class.name
            ));
            (parse(json)?, false)
        }
        _ => (convert(files, class, &settings)?, true),
    };
    if class.adds_all_specials && settings.describes_tokens() {
        notes.push(format!(
            "{} is of transformers 5, which describes added tokens only in tokenizer.json; tokens \
             that other files describe too may be matched differently",
            class.name
        ));
    }
    let mut settings = settings;
    if converted {
        settings.specials_of_source(class.source);
    }
    if let (Some(padding), false) = (inner.get_padding(), settings.has_pad(class)) {
        settings.set_pad(padding.pad_token.clone());
    }
    inner.with_padding(None);
    inner
        .with_truncation(None)
        .map_err(super::tokenizer::failed)?;

    if !files.tokenizer_decides {
        add_tokens(&mut inner, &settings, class)?;
        set_prefix_space(&mut inner, &settings, class)?;
        set_ends(&mut inner, &settings, class, &mut notes)?;
        inner.set_encode_special_tokens(settings.flag("split_special_tokens", false));
    }
    Ok(Assembled {
        inner,
        class: class.name,
        specials: settings.named_specials(),
        additional: settings.additional_specials(),
        templates: settings.templates(files)?,
        notes,
    })
}

/// A tokenizer without a tokenizer.json.
fn convert(
    files: &TokenizerFiles,
    class: &Class,
    settings: &Settings,
) -> Result<tokenizers::Tokenizer, TokensError> {
    let cannot = |reason: &str| TokensError::CannotConvert {
        found: files.vocabularies(),
        class: class.name.to_owned(),
        reason: reason.to_owned(),
    };
    const REMEDY: &str = "save the folder with \
                          `AutoTokenizer.from_pretrained(…).save_pretrained(…)` of \
                          `transformers`, which writes tokenizer.json";
    match class.source {
        Source::Gpt2 | Source::Qwen2 => match (&files.vocab, &files.merges) {
            (Some(vocab), Some(merges)) => bpe::convert(class.source, vocab, merges, settings),
            _ => Err(cannot(
                "expected vocab.json and merges.txt, or tokenizer.json",
            )),
        },
        Source::Llama | Source::CodeLlama | Source::Gemma | Source::T5 => {
            match &files.sentencepiece {
                Some(bytes) => sentencepiece::convert(class.source, bytes, settings),
                None => Err(cannot("expected tokenizer.model, or tokenizer.json")),
            }
        }
        Source::Nothing => Err(cannot(REMEDY)),
    }
}

/// Adds the tokens of the other files to the added tokens of tokenizer.json, or replaces those.
fn add_tokens(
    inner: &mut tokenizers::Tokenizer,
    settings: &Settings,
    class: &Class,
) -> Result<(), TokensError> {
    let specials = settings.all_specials();
    let listed: Vec<Added> = settings.added.values().cloned().collect();
    let mut added = listed.clone();
    let known: Vec<String> = inner
        .get_added_tokens_decoder()
        .into_values()
        .map(|token| token.content)
        .chain(listed.iter().map(|token| token.content.clone()))
        .collect();
    for special in &specials {
        let is_known = known.iter().any(|known| known == special.content());
        let skip = match special {
            Special::Text(_) => is_known,
            Special::Token(token) => {
                (class.adds_all_specials && is_known)
                    || listed.iter().any(|it| it.token() == token.token())
            }
        };
        if !skip {
            added.push(special.clone().into_token(Added::new));
        }
    }
    for token in &mut added {
        token.special |= specials.iter().any(|it| it.content() == token.content);
    }
    let tokens: Vec<_> = added.iter().map(Added::token).collect();
    no_panic(|| Ok(inner.add_tokens(&tokens)))?;
    if class.adds_all_specials {
        let again: Vec<_> = specials
            .into_iter()
            .map(|special| {
                let exact = |text: &str| Added::special(text).with_normalized(false);
                let mut token = special.into_token(exact);
                token.special = true;
                token.token()
            })
            .collect();
        no_panic(|| Ok(inner.add_special_tokens(&again)))?;
    }
    Ok(())
}

/// Whether a space is put before a text.
fn set_prefix_space(
    inner: &mut tokenizers::Tokenizer,
    settings: &Settings,
    class: &Class,
) -> Result<(), TokensError> {
    const KEY: &str = "add_prefix_space";
    if class.prefix_space == PrefixSpace::Ignored {
        return Ok(());
    }
    let wanted = match settings.value(KEY) {
        Some(Value::Bool(wanted)) => *wanted,
        Some(_) => return Ok(()),
        // Nothing changes only if the key is present and null.
        None if settings.is_null(KEY) => return Ok(()),
        None if class.prefix_space == PrefixSpace::FromSentencePiece => return Ok(()),
        None => false,
    };
    let Some(pre_tokenizer) = inner.get_pre_tokenizer() else {
        return Ok(());
    };
    let mut state = serde_json::to_value(pre_tokenizer).map_err(|error| failed(&error))?;
    let before = state.clone();
    if let Some(outermost) = state.get_mut(KEY) {
        *outermost = Value::Bool(wanted);
    }
    if wanted && class.prefix_space == PrefixSpace::Everywhere {
        set_everywhere(&mut state, KEY);
    }
    if state != before {
        let changed: PreTokenizerWrapper =
            serde_json::from_value(state).map_err(|error| failed(&error))?;
        inner.with_pre_tokenizer(Some(changed));
    }
    Ok(())
}

fn set_everywhere(state: &mut Value, key: &str) {
    match state {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == key {
                    *value = Value::Bool(true);
                } else {
                    set_everywhere(value, key);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| set_everywhere(item, key)),
        _ => {}
    }
}

/// What comes before and after each text.
fn set_ends(
    inner: &mut tokenizers::Tokenizer,
    settings: &Settings,
    class: &Class,
    notes: &mut Vec<String>,
) -> Result<(), TokensError> {
    let (bos, eos) = match class.ends {
        Ends::AsInFile => return Ok(()),
        // Written only by version 5.
        Ends::Rebuilt { .. }
            if settings.names("backend") && inner.get_post_processor().is_some() =>
        {
            return Ok(());
        }
        Ends::Rebuilt { bos, eos } => (bos, eos),
    };
    let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
    let mut pair = vec![json!({"Sequence": {"id": "B", "type_id": 1}})];
    let mut tokens = serde_json::Map::new();
    for (flag, default, name, at_start) in [
        ("add_bos_token", bos, "bos_token", true),
        ("add_eos_token", eos, "eos_token", false),
    ] {
        if !settings.flag(flag, default) {
            continue;
        }
        let Some(content) = settings
            .special(name)
            .map(|special| special.content().to_owned())
        else {
            notes.push(format!(
                "{flag} is set for {}, but there is no {name}: none is added",
                class.name
            ));
            continue;
        };
        let unknown = settings.special("unk_token").map(Special::content);
        let id = inner.token_to_id(&content);
        let id = id.or_else(|| unknown.and_then(|unknown| inner.token_to_id(unknown)));
        let Some(id) = id else {
            return Err(TokensError::File {
                file: TokenizerFiles::CONFIG.to_owned(),
                reason: format!("{name} `{content}` is not in the vocabulary"),
            });
        };
        tokens.insert(
            content.clone(),
            json!({"id": content, "ids": [id], "tokens": [content]}),
        );
        for (list, type_id) in [(&mut single, 0), (&mut pair, 1)] {
            let piece = json!({"SpecialToken": {"id": content, "type_id": type_id}});
            if at_start {
                list.insert(0, piece);
            } else {
                list.push(piece);
            }
        }
    }
    let pair: Vec<Value> = single.iter().cloned().chain(pair).collect();
    let template: PostProcessorWrapper = serde_json::from_value(json!({
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens,
    }))
    .map_err(|error| failed(&error))?;
    inner.with_post_processor(Some(template));
    Ok(())
}

fn failed(error: &dyn std::fmt::Display) -> TokensError {
    TokensError::Tokenizer {
        reason: error.to_string(),
    }
}
