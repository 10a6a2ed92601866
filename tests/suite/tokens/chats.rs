//! Chats: text and ids of `apply_chat_template` (`tests/fixtures/make_chats.py`), and where
//! messages are among the tokens.

use std::collections::BTreeMap;
use std::fs;

use burn_align_models::{
    ChatMessage, ChatOptions, SpecialTokens, Tokenizer, TokenizerFiles, TokensError,
};
use serde::Deserialize;
use serde_json::Value;

use crate::support::fixtures;

#[derive(Deserialize)]
struct Chats {
    config: Value,
    cases: BTreeMap<String, Case>,
    refused: BTreeMap<String, Refused>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Value,
    options: serde_json::Map<String, Value>,
    text: String,
    ids: Vec<u32>,
    /// The assistant's tokens, as marked by the template.
    assistant: Option<Vec<usize>>,
}

#[derive(Deserialize)]
struct Refused {
    template: String,
    messages: Value,
    reason: String,
}

fn chats() -> (Chats, TokenizerFiles) {
    let place = fixtures().join("tokenizers");
    let json = fs::read_to_string(place.join("chats.json")).expect("chats");
    let chats: Chats = serde_json::from_str(&json).expect("chats");
    let tokenizer = fs::read_to_string(place.join("base/bytes.json")).expect("a file");
    let files = TokenizerFiles::default()
        .with_tokenizer(tokenizer)
        .with_config(chats.config.to_string());
    (chats, files)
}

fn tokenizer(template: &str) -> Tokenizer {
    let files = chats().1.with_chat_template("default", template);
    Tokenizer::from_files(files).expect("a tokenizer")
}

fn messages(json: &Value) -> Vec<ChatMessage> {
    ChatMessage::from_json(&json.to_string()).expect("messages")
}

#[test]
fn text_and_ids_are_those_of_transformers() {
    let (chats, files) = chats();
    assert!(chats.cases.len() >= 10);
    for (name, case) in &chats.cases {
        let files = files.clone().with_chat_template("default", &case.template);
        let tokenizer = Tokenizer::from_files(files).expect(name);
        let mut options = ChatOptions::default().with_now("2024-07-26T09:05:00");
        for (key, value) in &case.options {
            options = match key.as_str() {
                "add_generation_prompt" => options.with_generation_prompt(value == true),
                // Python keeps the order of keys in the text, which `Value` does not.
                "tools" => options
                    .with_tools(
                        r#"[{"type": "function", "function": {"name": "look_up",
                        "description": "A country's capital", "parameters": {"type": "object",
                        "properties": {"country": {"type": "string"}}}}}]"#,
                    )
                    .expect("tools"),
                key => options.with_variable(key, value),
            };
        }
        let messages = messages(&case.messages);
        let chat = tokenizer.chat(&messages, &options).expect(name);
        assert_eq!(chat.text, case.text, "{name}");
        assert_eq!(chat.ids, case.ids, "{name}");
        for (turn, message) in chat.turns.iter().zip(&messages) {
            assert_eq!(turn.role, message.role);
            let content = message.content.as_deref().unwrap_or("").trim();
            let Some(positions) = turn.content.clone() else {
                // Missing, partly present, or in several places.
                let is_once = chat.text.matches(content).count() == 1;
                assert!(content.is_empty() || !is_once, "{name}: {content}");
                continue;
            };
            let covered = tokenizer
                .decode(&chat.ids[positions.clone()])
                .expect("text");
            assert!(
                covered.contains(content),
                "{name}: {covered:?}, not {content:?}"
            );
            let inside = tokenizer.decode(&chat.ids[positions.start + 1..positions.end - 1]);
            let inside = inside.unwrap_or_default();
            assert!(
                content.len() == 1 || !inside.contains(content),
                "{name}: {content:?}"
            );
        }
        if let Some(assistant) = &case.assistant {
            assert_eq!(chat.positions_of_role("assistant"), *assistant, "{name}");
        }
    }
}

#[test]
fn messages_are_found_where_their_words_occur_elsewhere() {
    let (chats, _) = chats();
    let case = &chats.cases["turns_of_roles_as_content"];
    let tokenizer = tokenizer(&case.template);
    let chat = tokenizer.chat(&messages(&case.messages), &ChatOptions::default());
    let chat = chat.expect("a chat");
    let [user, assistant, empty] = &chat.turns[..] else {
        panic!("three turns");
    };
    let shown = |range: &Option<std::ops::Range<usize>>| {
        tokenizer
            .decode(&chat.ids[range.clone().expect("a place")])
            .expect("text")
    };
    assert_eq!(shown(&user.content), "user");
    assert_eq!(shown(&assistant.content), "im");
    assert_eq!(empty.content, None);
    // The role's own "user" comes first.
    let start = user.content.clone().expect("a place").start;
    let before = tokenizer.decode(&chat.ids[..start]).expect("text");
    assert_eq!(before, "<|im_start|>user\n");
}

#[test]
fn a_template_may_refuse() {
    let (chats, _) = chats();
    for (name, case) in &chats.refused {
        let tokenizer = tokenizer(&case.template);
        let error = tokenizer
            .chat(&messages(&case.messages), &ChatOptions::default())
            .expect_err(name);
        assert!(
            matches!(&error, TokensError::ChatTemplate { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(&case.reason), "{error}");
    }
    for (template, said) in [
        ("{{ 1 + }}", "chat template: "),
        ("{%}", "chat template: "),
        ("{% generation %}", "chat template: "),
        (
            "{% for x in range(100000) %}{% for y in range(100000) %}{% endfor %}{% endfor %}",
            "",
        ),
        ("{{ messages[0].a.b }}", "undefined"),
        ("{{ strftime_now(3) }}", "chat template: "),
        ("{{ {}|tojson(separators=[1]) }}", "chat template: "),
    ] {
        let error = tokenizer(template)
            .chat(&[ChatMessage::user("x")], &ChatOptions::default())
            .expect_err(template);
        assert!(
            matches!(&error, TokensError::ChatTemplate { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(said), "{template}: {error}");
    }
}

#[test]
fn templates_have_names() {
    let (_, files) = chats();
    let none = Tokenizer::from_files(files.clone()).expect("a tokenizer");
    let error = none
        .chat(&[ChatMessage::user("x")], &ChatOptions::default())
        .expect_err("no template");
    assert!(matches!(error, TokensError::NoChatTemplate { .. }));
    assert!(error.to_string().contains("chat_template.jinja"), "{error}");

    let named = r#"{"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": [
        {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"},
        {"name": "rag", "template": "documents"}]}"#;
    let mut with_list = files.clone();
    with_list.config = Some(named.to_owned());
    let tokenizer = Tokenizer::from_files(with_list.clone()).expect("a tokenizer");
    let text = |tokenizer: &Tokenizer, options: ChatOptions| {
        let chat = tokenizer.chat(&[ChatMessage::user("x")], &options);
        chat.map(|chat| chat.text)
            .map_err(|error| error.to_string())
    };
    let options = ChatOptions::default;
    assert_eq!(text(&tokenizer, options()), Ok("plain".to_owned()));
    assert_eq!(
        text(&tokenizer, options().with_tools("[]").expect("tools")),
        Ok("tools".to_owned())
    );
    assert_eq!(
        text(&tokenizer, options().with_template("rag")),
        Ok("documents".to_owned())
    );
    let error = text(&tokenizer, options().with_template("other")).expect_err("no such");
    assert!(error.contains("named `other`"), "{error}");
    assert_eq!(
        tokenizer.chat_templates().collect::<Vec<_>>(),
        ["default", "tool_use", "rag"]
    );

    // Files come before the list.
    let files = with_list.with_chat_template("default", "of a file");
    let tokenizer = Tokenizer::from_files(files).expect("a tokenizer");
    assert_eq!(text(&tokenizer, options()), Ok("of a file".to_owned()));
    assert!(text(&tokenizer, options().with_template("rag")).is_err());
}

#[test]
fn a_chat_has_one_beginning() {
    let place = fixtures().join("tokenizers/base/llama.json");
    let json = fs::read_to_string(place).expect("a file");
    let files = TokenizerFiles::default()
        .with_tokenizer(json)
        .with_config(r#"{"tokenizer_class": "LlamaTokenizer", "legacy": false}"#)
        .with_chat_template(
            "default",
            "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}",
        );
    let tokenizer = Tokenizer::from_files(files).expect("a tokenizer");
    let chat = tokenizer
        .chat(&[ChatMessage::user("Rome")], &ChatOptions::default())
        .expect("a chat");
    let bos = tokenizer.token_id("<s>").expect("an id");
    assert_eq!(chat.ids.iter().filter(|id| **id == bos).count(), 1);
    // Rendered elsewhere, the text has the same tokens.
    assert_eq!(tokenizer.encode(&chat.text), Ok(chat.ids.clone()));
    let twice = tokenizer.encode_with(&chat.text, SpecialTokens::Always);
    assert_eq!(twice.expect("ids").len(), chat.ids.len() + 1);
    let content = chat.turns[0].content.clone().expect("a place");
    assert_eq!(
        tokenizer.token_strings(&chat.ids[content]).concat(),
        " Rome"
    );
}

#[test]
fn input_that_is_no_chat_is_refused() {
    for json in [
        "{",
        "{}",
        "[1]",
        r#"[{"content": "x"}]"#,
        r#"[{"role": "user", "content": [1]}]"#,
    ] {
        let error = ChatMessage::from_json(json).expect_err(json);
        assert!(matches!(error, TokensError::ChatInput { .. }), "{error:?}");
        assert!(error.to_string().starts_with("messages: "), "{error}");
    }
    assert!(ChatOptions::default().with_tools("{}").is_err());
    let error = tokenizer("x").chat(&[], &ChatOptions::default().with_now("soon"));
    assert!(
        error
            .expect_err("no date")
            .to_string()
            .contains("2024-07-26")
    );
}
