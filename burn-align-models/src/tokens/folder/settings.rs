//! Settings from the files that accompany the vocabulary.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::super::{TokenizerFiles, TokensError};
use super::class::{Class, Source};
use super::read::{self, AddedTokens};
use super::special::{Added, Special};

/// The special tokens, in the order in which they are added.
pub(super) const SPECIALS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];
pub(super) const ADDITIONAL: &str = "additional_special_tokens";
/// Additional special tokens of Code Llama's class, unless they are renamed.
const INFILLING: [(&str, &str); 4] = [
    ("prefix_token", "▁<PRE>"),
    ("middle_token", "▁<MID>"),
    ("suffix_token", "▁<SUF>"),
    ("eot_token", "▁<EOT>"),
];
/// Number of `<extra_id_…>` tokens of T5's class.
const EXTRA_IDS: usize = 100;
/// More than any model needs.
const MOST_EXTRA_IDS: u64 = 1000;

/// The settings of a tokenizer.
#[derive(Debug)]
pub(super) struct Settings {
    keys: Map<String, Value>,
    specials: BTreeMap<&'static str, Special>,
    additional: Vec<Special>,
    /// Special tokens with other roles, from `extra_special_tokens`.
    extra: Vec<(String, Special)>,
    /// Added tokens by their ids in the files, which determine their order.
    pub(super) added: BTreeMap<i64, Added>,
    /// Whether there is a tokenizer.json.
    has_json: bool,
}

impl Settings {
    /// Reads them, and returns the tokenizer's class.
    pub(super) fn read(
        files: &TokenizerFiles,
        notes: &mut Vec<String>,
    ) -> Result<(&'static Class, Self), TokensError> {
        let mut keys =
            read::object(files.config.as_deref(), TokenizerFiles::CONFIG)?.unwrap_or_default();
        let class = read::class(files, &keys, notes)?;
        let mut added = AddedTokens::default();
        let mut specials = BTreeMap::new();
        for (name, default) in [
            ("bos_token", class.bos),
            ("eos_token", class.eos),
            ("unk_token", class.unk),
            ("pad_token", class.pad),
        ] {
            if let Some(text) = default {
                specials.insert(name, Special::Text(text.to_owned()));
            }
        }
        if let Some(decoder) = keys.get("added_tokens_decoder") {
            read::read_decoder(decoder, &mut added)?;
            read::read_keys(&keys, &mut specials)?;
        } else {
            let map = read::object(
                files.special_tokens_map.as_deref(),
                TokenizerFiles::SPECIAL_TOKENS_MAP,
            )?;
            let last = read::merge_map(&mut keys, map.unwrap_or_default());
            read::read_keys(&keys, &mut specials)?;
            read::read_added(files, &keys, last.as_deref(), &mut added)?;
        }
        // Names refer to the tokens that the files describe.
        for (name, special) in &mut specials {
            let is_named = keys.get(*name).is_some_and(|value| !value.is_null());
            let described = added.by_content.get(special.content());
            if let (true, Some(token)) = (is_named, described) {
                *special = Special::Token(token.clone());
            }
        }
        if let Some(found) = keys.get("extra_ids").and_then(Value::as_u64)
            && found > MOST_EXTRA_IDS
        {
            return Err(TokensError::File {
                file: TokenizerFiles::CONFIG.to_owned(),
                reason: format!("`extra_ids`: expected at most {MOST_EXTRA_IDS}, found {found}"),
            });
        }
        let mut settings = Self {
            additional: read::list(&keys, ADDITIONAL)?,
            extra: read::extra(&keys)?,
            keys,
            specials,
            added: added.by_id,
            has_json: files.tokenizer.is_some(),
        };
        settings.apply_class(class);
        Ok((class, settings))
    }

    fn apply_class(&mut self, class: &Class) {
        if class.exact_specials {
            for special in self.specials.values_mut() {
                let token = |text: &str| Added::special(text).with_normalized(false);
                *special = Special::Token(special.clone().into_token(token));
            }
        }
        match class.source {
            Source::CodeLlama => {
                for (name, default) in INFILLING {
                    let text = match self.keys.get(name) {
                        None => Some(default),
                        Some(value) => value.as_str(),
                    };
                    let token = text.map(|text| Special::Text(text.to_owned()));
                    self.additional.extend(token);
                }
            }
            Source::T5 => {
                let has_extra = |it: &Special| it.content().contains("<extra_id_");
                if !self.additional.iter().any(has_extra) {
                    let ids = (0..self.extra_ids()).map(|id| format!("<extra_id_{id}>"));
                    self.additional.extend(ids.map(Special::Text));
                }
            }
            _ => {}
        }
    }

    /// Adjusts the special tokens when a tokenizer is converted.
    pub(super) fn specials_of_source(&mut self, source: Source) {
        for (name, special) in &mut self.specials {
            let token = |text: &str| match source {
                Source::Gpt2 => Added::new(text),
                Source::T5 => Added::special(text),
                _ => Added::special(text).with_normalized(false),
            };
            let is_wrapped = match source {
                Source::T5 => ["pad_token", "unk_token", "eos_token"].contains(name),
                Source::Nothing => false,
                _ => ["bos_token", "eos_token", "unk_token", "pad_token"].contains(name),
            };
            let wrapped = if is_wrapped {
                Special::Token(special.clone().into_token(token))
            } else {
                special.clone()
            };
            *special = wrapped.copied();
        }
        for special in &mut self.additional {
            *special = special.clone().copied();
        }
    }

    /// Whether the files describe added tokens as `transformers` 4 does.
    pub(super) fn describes_tokens(&self) -> bool {
        let named = SPECIALS.iter().filter_map(|name| self.keys.get(*name));
        self.names("added_tokens_decoder") || named.into_iter().any(Value::is_object)
    }

    /// The value of a key, unless it is null.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn is_null(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(Value::is_null)
    }

    pub(super) fn names(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// Whether the value of a key is true to Python's `if`.
    pub(super) fn flag(&self, key: &str, default: bool) -> bool {
        match self.keys.get(key) {
            None => default,
            Some(Value::Null) => false,
            Some(Value::Bool(flag)) => *flag,
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(items)) => !items.is_empty(),
            Some(Value::Object(fields)) => !fields.is_empty(),
        }
    }

    pub(super) fn special(&self, name: &str) -> Option<&Special> {
        let special = self.specials.get(name);
        special.filter(|special| !special.content().is_empty())
    }

    pub(super) fn has_pad(&self, class: &Class) -> bool {
        class.decides_pad || self.keys.contains_key("pad_token")
    }

    pub(super) fn set_pad(&mut self, content: String) {
        self.specials.insert("pad_token", Special::Text(content));
    }

    pub(super) fn extra_ids(&self) -> usize {
        let ids = self.keys.get("extra_ids").and_then(Value::as_u64);
        ids.map_or(EXTRA_IDS, |ids| ids as usize)
    }

    /// All special tokens, each text once, in the order in which they are added.
    pub(super) fn all_specials(&self) -> Vec<Special> {
        let named = SPECIALS.iter().filter_map(|name| self.special(name));
        let extra = self.extra.iter().map(|(_, special)| special);
        let mut all: Vec<Special> = Vec::new();
        let is_new = |all: &[Special], special: &Special| {
            !all.iter().any(|it| it.content() == special.content())
        };
        for special in named {
            if is_new(&all, special) {
                all.push(special.clone());
            }
        }
        // A list may contain a token twice.
        let additional = self.additional.iter();
        let additional: Vec<_> = additional.filter(|it| is_new(&all, it)).cloned().collect();
        all.extend(additional);
        for special in extra {
            if is_new(&all, special) {
                all.push(special.clone());
            }
        }
        all
    }

    /// The added tokens for a converted tokenizer: none if there is also a tokenizer.json.
    pub(super) fn converted(&self) -> &BTreeMap<i64, Added> {
        static NONE: BTreeMap<i64, Added> = BTreeMap::new();
        if self.has_json { &NONE } else { &self.added }
    }

    /// The id of an added token of a converted tokenizer, if the files list it.
    pub(super) fn added_id(&self, content: &str) -> Option<u32> {
        let mut all = self.converted().iter().rev();
        let (id, _) = all.find(|(_, token)| token.content == content)?;
        u32::try_from(*id).ok()
    }

    /// Special tokens by role.
    pub(super) fn named_specials(&self) -> Vec<(String, String)> {
        let named = SPECIALS
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), self.special(name)?)));
        let extra = self.extra.iter().map(|(name, it)| (name.clone(), it));
        let all = named.chain(extra.filter(|(name, _)| !name.is_empty()));
        all.map(|(name, it)| (name, it.content().to_owned()))
            .collect()
    }

    pub(super) fn additional_specials(&self) -> Vec<String> {
        let contents = self.additional.iter().map(Special::content);
        contents.map(str::to_owned).collect()
    }

    /// Chat templates by name; files take precedence over tokenizer_config.json.
    pub(super) fn templates(
        &self,
        files: &TokenizerFiles,
    ) -> Result<Vec<(String, String)>, TokensError> {
        const KEY: &str = "chat_template";
        if !files.chat_templates.is_empty() {
            let templates = files.chat_templates.iter();
            return Ok(templates.map(|(a, b)| (a.clone(), b.clone())).collect());
        }
        let invalid = || read::bad_key(KEY, "a template or a list of templates with names");
        let text = |value: &Value, key: &str| {
            let text = value.get(key).and_then(Value::as_str);
            text.map(str::to_owned).ok_or_else(invalid)
        };
        match self.value(KEY) {
            None => Ok(Vec::new()),
            Some(Value::String(template)) => Ok(vec![("default".to_owned(), template.clone())]),
            Some(Value::Array(list)) => list
                .iter()
                .map(|item| Ok((text(item, "name")?, text(item, "template")?)))
                .collect(),
            Some(Value::Object(map)) => map
                .iter()
                .map(|(name, value)| {
                    let template = value.as_str().ok_or_else(invalid)?;
                    Ok((name.clone(), template.to_owned()))
                })
                .collect(),
            Some(_) => Err(invalid()),
        }
    }
}
