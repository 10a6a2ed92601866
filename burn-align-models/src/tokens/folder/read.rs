//! Reads the files that accompany the vocabulary, like `_from_pretrained` in `transformers`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::{TokenizerFiles, TokensError};
use super::class::Class;
use super::settings::{ADDITIONAL, SPECIALS};
use super::special::{Added, Special};

const EXTRA: &str = "extra_special_tokens";

/// The added tokens of the files.
#[derive(Debug, Default)]
pub(super) struct AddedTokens {
    pub(super) by_id: BTreeMap<i64, Added>,
    /// The tokens that special tokens refer to by their text.
    pub(super) by_content: BTreeMap<String, Added>,
}

impl AddedTokens {
    fn insert(&mut self, id: i64, token: Added) {
        self.by_content.insert(token.content.clone(), token.clone());
        self.by_id.insert(id, token);
    }
}

/// The class of the tokenizer.
pub(super) fn class(
    files: &TokenizerFiles,
    keys: &Map<String, Value>,
    notes: &mut Vec<String>,
) -> Result<&'static Class, TokensError> {
    const KEY: &str = "tokenizer_class";
    if let Some(versions) = keys.get("fast_tokenizer_files") {
        let only = versions
            .as_array()
            .is_some_and(|it| it.iter().all(|it| it == TokenizerFiles::TOKENIZER));
        if !only {
            return Err(bad_key(
                "fast_tokenizer_files",
                "only tokenizer.json: which value applies depends on the version of `transformers`",
            ));
        }
    }
    if let Some(name) = keys.get(KEY).and_then(Value::as_str) {
        return Class::named(name);
    }
    let Some(config) = object(files.model_config.as_deref(), "config.json")? else {
        return Ok(Class::base());
    };
    if let Some(name) = config.get(KEY).and_then(Value::as_str) {
        return Class::named(name);
    }
    let model_type = config.get("model_type").and_then(Value::as_str);
    if let Some(class) = model_type.and_then(Class::of_model) {
        return Ok(class);
    }
    if let Some(model_type) = model_type {
        notes.push(format!(
            "no file names the tokenizer's class, and the class for `{model_type}` models is \
             unknown: tokenizer.json is used as it is"
        ));
    }
    Ok(Class::base())
}

/// Special tokens of special_tokens_map.json, which take precedence over those of
/// tokenizer_config.json. Returns the last additional one.
pub(super) fn merge_map(keys: &mut Map<String, Value>, map: Map<String, Value>) -> Option<String> {
    let mut last = None;
    for (key, mut value) in map {
        if let Some(fields) = value.as_object_mut() {
            fields.insert("special".to_owned(), Value::Bool(true));
        }
        if let (ADDITIONAL, Some(new)) = (key.as_str(), value.as_array()) {
            let mut all = match keys.get(ADDITIONAL) {
                Some(Value::Array(old)) => old.clone(),
                _ => Vec::new(),
            };
            for token in new {
                let mut token = token.clone();
                if let Some(fields) = token.as_object_mut() {
                    fields.insert("special".to_owned(), Value::Bool(true));
                }
                last = match Special::read(&token) {
                    Ok(special) => special.map(|special| special.content().to_owned()),
                    Err(_) => None,
                };
                if !all.contains(&token) {
                    all.push(token);
                }
            }
            value = Value::Array(all);
        }
        keys.insert(key, value);
    }
    last
}

pub(super) fn read_keys(
    keys: &Map<String, Value>,
    specials: &mut BTreeMap<&'static str, Special>,
) -> Result<(), TokensError> {
    for name in SPECIALS {
        let Some(value) = keys.get(name) else {
            continue;
        };
        match Special::read(value) {
            Ok(Some(special)) => {
                specials.insert(name, special);
            }
            Ok(None) => {
                specials.remove(name);
            }
            Err(found) => return Err(not_a_token(name, &found)),
        }
    }
    Ok(())
}

pub(super) fn read_decoder(value: &Value, added: &mut AddedTokens) -> Result<(), TokensError> {
    const KEY: &str = "added_tokens_decoder";
    let map = value
        .as_object()
        .ok_or_else(|| bad_key(KEY, "tokens by id"))?;
    for (id, token) in map {
        let id: i64 = id.parse().map_err(|_| bad_key(KEY, "tokens by id"))?;
        match Special::read(token) {
            Ok(Some(Special::Token(token))) => added.insert(id, token),
            _ => return Err(not_a_token(&format!("{KEY}.{id}"), &token.to_string())),
        }
    }
    Ok(())
}

/// Added tokens if tokenizer_config.json does not list them.
pub(super) fn read_added(
    files: &TokenizerFiles,
    keys: &Map<String, Value>,
    last_additional: Option<&str>,
    added: &mut AddedTokens,
) -> Result<(), TokensError> {
    // Only tokens that tokenizer_config.json gives as text, and those of special_tokens_map.json,
    // are known to be special here.
    let is_special = |content: &str| {
        let is_it = |value: &Value| match value {
            Value::String(text) => text == content,
            Value::Object(fields) => !fields.contains_key("__type") && value["content"] == content,
            _ => false,
        };
        let named = SPECIALS.iter().filter_map(|name| keys.get(*name));
        let additional = keys.get(ADDITIONAL).and_then(Value::as_array);
        named.chain(additional.into_iter().flatten()).any(is_it)
    };
    let file = TokenizerFiles::ADDED_TOKENS;
    for (content, id) in object(files.added_tokens.as_deref(), file)?.unwrap_or_default() {
        let id = id.as_i64().ok_or_else(|| TokensError::File {
            file: file.to_owned(),
            reason: format!("`{content}`: expected an id, found {id}"),
        })?;
        let special = is_special(&content);
        let mut token = Added::new(&content).with_normalized(!special);
        token.special = special;
        // `AutoTokenizer` stores it under a different name (`_from_pretrained`, "legacy"), so that
        // it does not replace other special tokens.
        if let Some(name) = last_additional {
            added.by_content.insert(name.to_owned(), token.clone());
        }
        added.by_id.insert(id, token);
    }
    /// The parts of tokenizer.json that are read here.
    #[derive(Deserialize)]
    struct Tokens {
        #[serde(default)]
        added_tokens: Vec<Value>,
    }

    let json = files.tokenizer.as_deref().unwrap_or("{}");
    // An invalid tokenizer.json is rejected later.
    let tokens: Option<Tokens> = serde_json::from_str(json).ok();
    for token in tokens.into_iter().flat_map(|tokens| tokens.added_tokens) {
        let id = token.get("id").and_then(Value::as_i64);
        if let (Some(id), Ok(Some(Special::Token(token)))) = (id, Special::read(&token)) {
            added.insert(id, token);
        }
    }
    Ok(())
}

pub(super) fn list(keys: &Map<String, Value>, key: &str) -> Result<Vec<Special>, TokensError> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| match Special::read(item) {
                Ok(Some(special)) => Ok(special),
                _ => Err(not_a_token(key, &item.to_string())),
            })
            .collect(),
        Some(other) => Err(not_a_token(key, &other.to_string())),
    }
}

/// `extra_special_tokens`: by name, or a list since `transformers` 5.
pub(super) fn extra(keys: &Map<String, Value>) -> Result<Vec<(String, Special)>, TokensError> {
    let Some(Value::Object(map)) = keys.get(EXTRA) else {
        let all = list(keys, EXTRA)?;
        return Ok(all.into_iter().map(|it| (String::new(), it)).collect());
    };
    map.iter()
        .map(|(name, value)| match Special::read(value) {
            Ok(Some(special)) => Ok((name.clone(), special)),
            _ => Err(not_a_token(name, &value.to_string())),
        })
        .collect()
}

pub(super) fn object(
    text: Option<&str>,
    file: &str,
) -> Result<Option<Map<String, Value>>, TokensError> {
    let Some(text) = text else {
        return Ok(None);
    };
    let read = serde_json::from_str(text).map_err(|error| error.to_string());
    read.map(Some).map_err(|reason| TokensError::File {
        file: file.to_owned(),
        reason: format!("not a JSON object: {reason}"),
    })
}

pub(super) fn bad_key(key: &str, expected: &str) -> TokensError {
    TokensError::File {
        file: TokenizerFiles::CONFIG.to_owned(),
        reason: format!("`{key}`: expected {expected}"),
    }
}

fn not_a_token(key: &str, found: &str) -> TokensError {
    bad_key(key, &format!("a token, found {found}"))
}
