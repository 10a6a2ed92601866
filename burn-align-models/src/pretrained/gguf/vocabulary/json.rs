//! The texts of `tokenizer.json` and `tokenizer_config.json`.

use serde::ser::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::super::{GgufError, Metadata};
use super::merges::Merge;
use super::pre_tokenizer::{GPT2, PreTokenizer};
use super::tokens::{Roles, Tokens};

/// SentencePiece's replacement for a space.
const SPACE_MARK: &str = "▁";

/// The parts of a tokenizer.
pub(super) struct Parts<'a> {
    tokens: &'a Tokens<'a>,
    roles: &'a Roles,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    byte_fallback: bool,
    ignore_merges: bool,
    merges: Vec<Merge<'a>>,
}

/// Like GPT-2's: pieces are made of bytes, each written as a printable character.
pub(super) fn byte_level<'a>(
    tokens: &'a Tokens<'a>,
    roles: &'a Roles,
    pre_tokenizer: &PreTokenizer,
    merges: Vec<Merge<'a>>,
) -> Parts<'a> {
    let (splits, built_in) = match pre_tokenizer.splits {
        [before @ .., GPT2] => (before, true),
        all => (all, false),
    };
    let bytes = |use_regex: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
            "use_regex": use_regex,
        })
    };
    let splits = splits.iter().map(|regex| {
        json!({
            "type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false,
        })
    });
    let steps = splits.chain([bytes(built_in)]).collect();
    Parts {
        normalizer: Value::Null,
        pre_tokenizer: sequence("pretokenizers", steps),
        post_processor: sequence(
            "processors",
            [Some(bytes(true)), template(tokens, roles)]
                .into_iter()
                .flatten()
                .collect(),
        ),
        decoder: bytes(true),
        byte_fallback: false,
        ignore_merges: pre_tokenizer.ignore_merges,
        tokens,
        roles,
        merges,
    }
}

/// Like LLaMA's: pieces are made of characters, with a mark for a space, and text without a piece
/// is written as bytes.
///
/// - `prefix`: whether a space is put before a text, and after each token that is matched first
pub(super) fn sentence_piece<'a>(
    tokens: &'a Tokens<'a>,
    roles: &'a Roles,
    prefix: bool,
    merges: Vec<Merge<'a>>,
) -> Parts<'a> {
    let replace = |from: &str, to: &str| {
        json!({
            "type": "Replace", "pattern": {"String": from}, "content": to,
        })
    };
    let prepend = prefix.then(|| json!({"type": "Prepend", "prepend": SPACE_MARK}));
    let normalizers = prepend.into_iter().chain([replace(" ", SPACE_MARK)]);
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let decoders = [
        replace(SPACE_MARK, " "),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let decoders = decoders.into_iter().chain(prefix.then_some(strip));
    Parts {
        normalizer: sequence("normalizers", normalizers.collect()),
        pre_tokenizer: Value::Null,
        post_processor: template(tokens, roles).unwrap_or(Value::Null),
        decoder: sequence("decoders", decoders.collect()),
        byte_fallback: true,
        ignore_merges: false,
        tokens,
        roles,
        merges,
    }
}

/// Several steps, or the only one.
fn sequence(name: &str, mut steps: Vec<Value>) -> Value {
    match steps.len() {
        1 => steps.remove(0),
        _ => json!({"type": "Sequence", name: steps}),
    }
}

/// The post-processor that puts special tokens around a text.
fn template(tokens: &Tokens<'_>, roles: &Roles) -> Option<Value> {
    let bos = roles.bos.filter(|_| roles.adds_bos);
    let eos = roles.eos.filter(|_| roles.adds_eos);
    bos.or(eos)?;
    let around = |text: &str, type_id: u8| {
        let special =
            |id: u32| json!({"SpecialToken": {"id": tokens.text(id), "type_id": type_id}});
        let text = json!({"Sequence": {"id": text, "type_id": type_id}});
        let parts = [bos.map(special), Some(text), eos.map(special)];
        parts.into_iter().flatten()
    };
    let named = bos.into_iter().chain(eos).map(|id| {
        let text = tokens.text(id);
        (
            text.to_owned(),
            json!({"id": text, "ids": [id], "tokens": [text]}),
        )
    });
    Some(json!({
        "type": "TemplateProcessing",
        "single": around("A", 0).collect::<Vec<_>>(),
        "pair": around("A", 0).chain(around("B", 1)).collect::<Vec<_>>(),
        "special_tokens": named.collect::<Map<_, _>>(),
    }))
}

#[derive(serde::Serialize)]
struct TokenizerJson<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: &'a Value,
    pre_tokenizer: &'a Value,
    post_processor: &'a Value,
    decoder: &'a Value,
    model: Model<'a>,
}

#[derive(serde::Serialize)]
struct AddedToken<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(serde::Serialize)]
struct Model<'a> {
    r#type: &'static str,
    dropout: (),
    unk_token: Option<&'a str>,
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Vocabulary<'a>,
    merges: &'a [Merge<'a>],
}

/// Texts and ids, ordered by id.
struct Vocabulary<'a>(&'a Tokens<'a>);

impl Serialize for Vocabulary<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.texts().iter().zip(0_u32..))
    }
}

impl Parts<'_> {
    /// The text of `tokenizer.json`.
    pub(super) fn tokenizer(&self) -> String {
        let added = self
            .tokens
            .found_first()
            .map(|(id, content, special)| AddedToken {
                id,
                content,
                single_word: false,
                lstrip: false,
                rstrip: self.tokens.swallows_whitespace(content),
                normalized: false,
                special,
            });
        let unknown = self.roles.unk.filter(|_| self.byte_fallback);
        let tokenizer = TokenizerJson {
            version: "1.0",
            truncation: (),
            padding: (),
            added_tokens: added.collect(),
            normalizer: &self.normalizer,
            pre_tokenizer: &self.pre_tokenizer,
            post_processor: &self.post_processor,
            decoder: &self.decoder,
            model: Model {
                r#type: "BPE",
                dropout: (),
                unk_token: unknown.map(|id| self.tokens.text(id)),
                continuing_subword_prefix: (),
                end_of_word_suffix: (),
                fuse_unk: self.byte_fallback,
                byte_fallback: self.byte_fallback,
                ignore_merges: self.ignore_merges,
                vocab: Vocabulary(self.tokens),
                merges: &self.merges,
            },
        };
        serde_json::to_string(&tokenizer).expect("maps have texts as keys")
    }

    /// The text of `tokenizer_config.json`.
    pub(super) fn tokenizer_config(&self, metadata: &Metadata) -> Result<String, GgufError> {
        let mut config = Map::new();
        // The class that uses `tokenizer.json` as it is.
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        config.insert("add_bos_token".into(), self.roles.adds_bos.into());
        config.insert("add_eos_token".into(), self.roles.adds_eos.into());
        for (name, id) in [
            ("bos_token", self.roles.bos),
            ("eos_token", self.roles.eos),
            ("unk_token", self.roles.unk),
            ("pad_token", self.roles.pad),
        ] {
            if let Some(id) = id {
                config.insert(name.into(), self.tokens.text(id).into());
            }
        }
        if let Some(template) = chat_template(metadata)? {
            config.insert("chat_template".into(), template);
        }
        Ok(Value::Object(config).to_string())
    }
}

/// The chat template: a text, or several by name.
fn chat_template(metadata: &Metadata) -> Result<Option<Value>, GgufError> {
    const ONE: &str = "tokenizer.chat_template";
    let default = metadata.text(ONE)?;
    let names = metadata.texts("tokenizer.chat_templates")?;
    let mut named = Vec::new();
    for name in names.unwrap_or_default() {
        let template = metadata.text(&format!("{ONE}.{name}"))?;
        named.extend(template.map(|template| (name.as_str(), template)));
    }
    if named.is_empty() {
        return Ok(default.map(Value::from));
    }
    let all = default.map(|template| ("default", template)).into_iter();
    let all = all.chain(named);
    let all = all.map(|(name, template)| json!({"name": name, "template": template}));
    Ok(Some(all.collect()))
}
