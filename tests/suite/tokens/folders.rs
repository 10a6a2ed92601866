//! Model folders: the ids of `AutoTokenizer`, whichever file determines them
//! (`tests/fixtures/make_tokenizers.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn_align_models::{SpecialTokens, Tokenizer, TokenizerFiles, TokensError};
use serde::Deserialize;

use crate::support::fixtures;

fn place() -> PathBuf {
    fixtures().join("tokenizers")
}

#[derive(Deserialize)]
struct Folder {
    files: BTreeMap<String, File>,
    /// For each text: with special tokens, and without.
    ids: Vec<[Vec<u32>; 2]>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum File {
    Base(String),
    Text(String),
}

impl File {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Base(name) => fs::read(place().join("base").join(name)).expect("a file"),
            Self::Text(text) => text.clone().into_bytes(),
        }
    }
}

impl Folder {
    fn read(path: &Path) -> Self {
        let json = fs::read_to_string(path).expect("a folder");
        serde_json::from_str(&json).expect("a folder")
    }

    fn files(&self) -> TokenizerFiles {
        let mut files = TokenizerFiles::default();
        for (name, file) in &self.files {
            let bytes = file.bytes();
            if name.ends_with(".model") {
                files.sentencepiece = Some(bytes);
                continue;
            }
            let text = Some(String::from_utf8(bytes).expect("text"));
            match name.as_str() {
                "tokenizer.json" => files.tokenizer = text,
                "tokenizer_config.json" => files.config = text,
                "special_tokens_map.json" => files.special_tokens_map = text,
                "added_tokens.json" => files.added_tokens = text,
                "vocab.json" => files.vocab = text,
                "merges.txt" => files.merges = text,
                "config.json" => files.model_config = text,
                name => panic!("{name}"),
            }
        }
        files
    }
}

fn texts() -> Vec<String> {
    let json = fs::read_to_string(place().join("texts.json")).expect("texts");
    serde_json::from_str(&json).expect("texts")
}

/// All folders in one of the places, by name.
fn folders(kind: &str) -> BTreeMap<String, Folder> {
    let entries = fs::read_dir(place().join(kind)).expect("folders");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy();
            (format!("{kind}/{name}"), Folder::read(&path))
        })
        .collect()
}

fn assert_ids(name: &str, tokenizer: &Tokenizer, expected: &[[Vec<u32>; 2]]) {
    let texts = texts();
    assert_eq!(texts.len(), expected.len());
    for (text, [with, without]) in texts.iter().zip(expected) {
        let ids = |special| tokenizer.encode_with(text, special).expect("ids");
        assert_eq!(ids(SpecialTokens::Always), *with, "{name}: {text:?}");
        assert_eq!(ids(SpecialTokens::Never), *without, "{name}: {text:?}");
    }
}

#[test]
fn ids_are_those_of_auto_tokenizer() {
    let (four, five) = (folders("folders"), folders("five"));
    assert!(four.len() >= 55 && five.len() >= 10);
    for (name, folder) in four.iter().chain(&five) {
        let tokenizer = Tokenizer::from_files(folder.files());
        let tokenizer = tokenizer.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_ids(name, &tokenizer, &folder.ids);
        // Both versions' ways of describing added tokens.
        let is_mixed = name == "five/backend_prefix";
        assert_eq!(tokenizer.notes().len(), usize::from(is_mixed), "{name}");
    }
}

#[test]
fn a_tokenizer_on_its_own_keeps_the_ids() {
    for (name, folder) in folders("folders") {
        let tokenizer = Tokenizer::from_files(folder.files()).expect(&name);
        // tokenizer.json does not determine which special tokens are found in a text.
        if name == "folders/fast_split_special" {
            continue;
        }
        let json = tokenizer.to_json().expect("JSON");
        let alone = Tokenizer::from_json(&json).expect(&name);
        assert_ids(&name, &alone, &folder.ids);
        let again = Tokenizer::from_files(tokenizer.files()).expect(&name);
        assert_ids(&name, &again, &folder.ids);
        let again = Tokenizer::from_files(alone.files()).expect(&name);
        assert_ids(&name, &again, &folder.ids);
    }
}

#[test]
fn text_that_brings_its_beginning_does_not_get_two() {
    let folder = Folder::read(&place().join("folders/llama.json"));
    let llama = Tokenizer::from_files(folder.files()).expect("a tokenizer");
    let encode = |text: &str, special| llama.encode_with(text, special).expect("ids");
    let bos = llama.token_id("<s>").expect("an id");
    let always = encode("<s>The capital", SpecialTokens::Always);
    assert_eq!(always[..2], [bos, bos]);
    assert_eq!(encode("<s>The capital", SpecialTokens::Once), always[1..]);
    assert_eq!(llama.encode("<s>The capital"), Ok(always[1..].to_vec()));
    let never = encode("<s>The capital", SpecialTokens::Never);
    assert_eq!(never, always[1..]);

    // One is added if there is none, and a later one does not count.
    for text in ["The capital", "", "The <s>capital", "</s>The", " <s>"] {
        let once = encode(text, SpecialTokens::Once);
        assert_eq!(once, encode(text, SpecialTokens::Always), "{text:?}");
        assert_eq!(once[0], bos);
    }
    // Two written out stay two.
    let two = encode("<s><s>The", SpecialTokens::Once);
    assert_eq!(two.iter().filter(|id| **id == bos).count(), 2);
    assert_eq!(encode("<s>", SpecialTokens::Once), [bos]);

    // The end comes after the text all the same, and positions are those of `encode`.
    let folder = Folder::read(&place().join("folders/llama_both_ends.json"));
    let both = Tokenizer::from_files(folder.files()).expect("a tokenizer");
    let eos = both.token_id("</s>").expect("an id");
    let ids = both.encode("<s>Rome").expect("ids");
    assert_eq!((ids[0], *ids.last().expect("one")), (bos, eos));
    assert_eq!(ids.iter().filter(|id| **id == bos).count(), 1);
    assert_eq!(both.encode("Rome").expect("ids"), ids);
    let positions = both.positions_of("<s>Rome", "Rome").expect("positions");
    assert_eq!(positions, 1..ids.len() - 1);

    let batch = both.encode_batch(["Rome", "<s>Rome"]).expect("a batch");
    assert_eq!(batch.ids(), [ids.clone(), ids.clone()]);
    let plain = both.encode_batch_with(["Rome"], SpecialTokens::Never);
    assert_eq!(plain.expect("a batch").ids(), [&ids[1..ids.len() - 1]]);
}

fn config(json: &str) -> TokenizerFiles {
    let bytes = fs::read_to_string(place().join("base/bytes.json")).expect("a file");
    TokenizerFiles::default()
        .with_tokenizer(bytes)
        .with_config(json)
}

#[test]
fn what_cannot_be_known_is_refused() {
    let bert = r#"{"tokenizer_class": "BertTokenizer"}"#;
    let error = Tokenizer::from_files(config(bert)).expect_err("another class");
    assert!(matches!(&error, TokensError::UnknownClass { class, .. } if class == "BertTokenizer"));
    assert!(
        error.to_string().contains("PreTrainedTokenizerFast"),
        "{error}"
    );

    for (json, said) in [
        ("[]", "tokenizer_config.json: not a JSON object"),
        (
            r#"{"bos_token": 3}"#,
            "`bos_token`: expected a token, found 3",
        ),
        (
            r#"{"added_tokens_decoder": {"x": {}}}"#,
            "`added_tokens_decoder`: expected tokens by id",
        ),
        (
            r#"{"added_tokens_decoder": {"1": {}}}"#,
            "`added_tokens_decoder.1`: expected a token",
        ),
        (
            r#"{"chat_template": 1}"#,
            "`chat_template`: expected a template",
        ),
        (
            r#"{"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}"#,
            "`fast_tokenizer_files`",
        ),
        (
            r#"{"additional_special_tokens": "x"}"#,
            "`additional_special_tokens`",
        ),
        (
            r#"{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "unk_token": null,
                "added_tokens_decoder": {}, "eos_token": ""}"#,
            "",
        ),
    ] {
        let read = Tokenizer::from_files(config(json));
        if said.is_empty() {
            read.expect("a tokenizer");
            continue;
        }
        let error = read.expect_err(json).to_string();
        assert!(error.contains(said), "{json}: {error}");
    }

    let read = |change: &dyn Fn(&mut TokenizerFiles)| {
        let mut files = TokenizerFiles::default();
        change(&mut files);
        Tokenizer::from_files(files)
            .expect_err("refused")
            .to_string()
    };
    let llama = r#"{"tokenizer_class": "LlamaTokenizer"}"#;
    let said = read(&|files| files.config = Some(llama.into()));
    assert!(
        said.contains("expected tokenizer.model, or tokenizer.json"),
        "{said}"
    );
    let said = read(&|files| {
        files.config = Some(llama.into());
        files.sentencepiece = Some(b"IQ== 0\nIg== 1\n".to_vec());
    });
    assert!(
        said.starts_with("tokenizer.model: ") && said.contains("save_pretrained"),
        "{said}"
    );
    let said = read(&|files| {
        files.config = Some(r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#.into());
        files.sentencepiece = Some(Vec::new());
    });
    assert!(said.contains("from tokenizer.model: "), "{said}");
    let gpt2 = r#"{"tokenizer_class": "GPT2Tokenizer"}"#;
    for (vocab, merges, expected) in [
        (
            r#"{"a": 0}"#,
            "#version\na b c\n",
            "merges.txt: expected two tokens on a line",
        ),
        (
            r#"{"a": 0}"#,
            "#version\na b\n",
            "merges.txt: `b` is not in vocab.json",
        ),
        ("{", "", "vocab.json:"),
    ] {
        let said = read(&|files| {
            files.config = Some(gpt2.into());
            files.vocab = Some(vocab.into());
            files.merges = Some(merges.into());
        });
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn what_auto_tokenizer_cannot_read_is_noted() {
    // It requires a tokenizer.model.
    let read = |json: &str| Tokenizer::from_files(config(json)).expect("a tokenizer");
    let prefix = read(
        r#"{
            "tokenizer_class": "LlamaTokenizer", "add_prefix_space": true,
            "bos_token": "<|endoftext|>"
        }"#,
    );
    assert!(
        prefix.notes()[0].contains("add_prefix_space"),
        "{:?}",
        prefix.notes()
    );
    let no_bos = read(r#"{"tokenizer_class": "GemmaTokenizer", "bos_token": null}"#);
    assert!(
        no_bos.notes()[0].contains("bos_token"),
        "{:?}",
        no_bos.notes()
    );
    assert_eq!(
        no_bos.encode("The"),
        no_bos.encode_with("The", SpecialTokens::Never)
    );
    let mut files = config("{}");
    files.model_config = Some(r#"{"model_type": "my_own"}"#.into());
    let own = Tokenizer::from_files(files).expect("a tokenizer");
    assert!(own.notes()[0].contains("my_own"), "{:?}", own.notes());
}

#[test]
fn special_tokens_have_names() {
    let folder = Folder::read(&place().join("folders/fast_named.json"));
    let tokenizer = Tokenizer::from_files(folder.files()).expect("a tokenizer");
    let tokens: Vec<_> = tokenizer.special_tokens().collect();
    assert_eq!(
        tokens,
        [
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("pad_token", "<|endoftext|>")
        ]
    );
}

#[cfg(feature = "flex")]
#[test]
fn a_saved_model_keeps_its_tokenizer() {
    use burn::backend::Flex;
    use burn_align_models::SavePretrained;
    use burn_align_models::{ChatMessage, ChatOptions, Decoder, FromPretrained, LoadOptions};

    use crate::scratch::Scratch;

    let load = |folder: &Path| {
        Decoder::<Flex>::from_pretrained(folder, &LoadOptions::default(), &Default::default())
    };
    for name in [
        "llama_model_new",
        "gpt2_merges_old",
        "fast_map",
        "no_config_llama",
    ] {
        let folder = Folder::read(&place().join(format!("folders/{name}.json")));
        let scratch = Scratch::copy("llama_gqa");
        for (file, content) in folder
            .files
            .iter()
            .filter(|(file, _)| *file != "config.json")
        {
            scratch.write(file, content.bytes());
        }
        if let Some(File::Text(config)) = folder.files.get("config.json") {
            // The class is that of the model if no file names one: here LLaMA's.
            let config: serde_json::Value = serde_json::from_str(config).expect("JSON");
            if config["model_type"] != "llama" {
                let class = serde_json::json!({"tokenizer_class": "GPT2Tokenizer"});
                scratch.write("tokenizer_config.json", class.to_string());
            }
        }
        fs::create_dir(scratch.file("additional_chat_templates")).expect("a folder");
        scratch.write(
            "additional_chat_templates/short.jinja",
            "{{ messages[0].content }}",
        );
        scratch.write(
            "chat_template.jinja",
            "{{ bos_token }}{{ messages[0].content }}",
        );

        let loaded = load(scratch.path()).expect(name);
        let tokenizer = loaded.tokenizer().expect("a tokenizer");
        assert_ids(name, tokenizer, &folder.ids);
        let saved = Scratch::empty();
        loaded
            .model
            .save_pretrained(&loaded.config, Some(tokenizer), saved.path())
            .expect(name);
        let again = load(saved.path()).expect(name);
        let again = again.tokenizer().expect("a tokenizer");
        assert_ids(name, again, &folder.ids);
        assert_eq!(
            again.chat_templates().collect::<Vec<_>>(),
            ["default", "short"]
        );
        let chat = again.chat(
            &[ChatMessage::user("Rome")],
            &ChatOptions::default().with_template("short"),
        );
        assert_eq!(chat.expect("a chat").text, "Rome");
    }
}

#[test]
fn a_tokenizer_may_decide_alone() {
    let read = |name: &str| fs::read_to_string(place().join("base").join(name)).expect("a file");
    for (name, class) in [
        ("spaces.json", "LlamaTokenizer"),
        ("prefix.json", "GPT2Tokenizer"),
    ] {
        let config = serde_json::json!({
            "tokenizer_class": class, "bos_token": "</s>", "unk_token": "capital",
            "add_bos_token": true, "add_eos_token": true, "eos_token": "<mark>",
            "additional_special_tokens": ["<extra>"], "split_special_tokens": true,
            "added_tokens_decoder": {"3": {"content": "The", "special": true}},
            "chat_template": "{{ bos_token }}{{ messages[0].content }}",
        });
        let alone = Tokenizer::from_json(&read(name)).expect("a tokenizer");
        let files = TokenizerFiles::default()
            .with_deciding_tokenizer(read(name))
            .with_config(config.to_string());
        let tokenizer = Tokenizer::from_files(files).expect("a tokenizer");
        let saved = Tokenizer::from_files(tokenizer.files()).expect("a tokenizer");
        assert!(!tokenizer.files().tokenizer_decides);
        for text in texts() {
            let expected = alone.encode(&text).expect("ids");
            assert_eq!(
                tokenizer.encode(&text),
                Ok(expected.clone()),
                "{name}: {text:?}"
            );
            assert_eq!(saved.encode(&text), Ok(expected), "{name}, saved: {text:?}");
        }
        // The names are those of the other file.
        let bos = tokenizer
            .special_tokens()
            .find(|(name, _)| *name == "bos_token");
        assert_eq!(bos, Some(("bos_token", "</s>")));
        assert_eq!(tokenizer.chat_templates().count(), 1);
    }
}
