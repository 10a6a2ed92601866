//! Chats: messages with roles, rendered by the tokenizer's chat template.

mod json;
mod spans;
mod template;

use std::ops::Range;

use minijinja::Value;
use minijinja::value::Serde;

use super::{SpecialTokens, Tokenizer, TokensError};

/// A chat message.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatMessage {
    /// The speaker: usually `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text; `None` if there are only other fields, such as tool calls.
    pub content: Option<String>,
    fields: Vec<(String, Value)>,
}

impl ChatMessage {
    /// A message with any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Some(content.into()),
            fields: Vec::new(),
        }
    }

    /// A `system` message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// A `user` message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// An `assistant` message.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// Messages from JSON: a list of objects with `role`, `content` as text, and any other fields
    /// that the template reads, such as `tool_calls`.
    ///
    /// # Errors
    /// If it is not such a list.
    pub fn from_json(json: &str) -> Result<Vec<Self>, TokensError> {
        let invalid = |reason: String| TokensError::ChatInput {
            what: "messages".to_owned(),
            reason,
        };
        let messages: Vec<Value> =
            serde_json::from_str(json).map_err(|error| invalid(error.to_string()))?;
        let read = |(index, message): (usize, Value)| {
            let text = |key: &str| {
                let value = message.get_attr(key).unwrap_or_default();
                match value.as_str() {
                    Some(text) => Ok(Some(text.to_owned())),
                    None if value.is_none() || value.is_undefined() => Ok(None),
                    None => Err(invalid(format!(
                        "message {index}, `{key}`: expected text, found {value}"
                    ))),
                }
            };
            let role = text("role")?
                .ok_or_else(|| invalid(format!("message {index}: expected a `role`")))?;
            let keys = message.try_iter().into_iter().flatten();
            let others = keys.filter(|key| !matches!(key.as_str(), Some("role" | "content")));
            let field = |key: Value| {
                let value = message.get_item(&key).unwrap_or_default();
                (key.to_string(), value)
            };
            Ok(Self {
                role,
                content: text("content")?,
                fields: others.map(field).collect(),
            })
        };
        messages.into_iter().enumerate().map(read).collect()
    }

    /// Adds another field that the template reads, such as `name`.
    pub fn with_field(mut self, name: impl Into<String>, value: impl serde::Serialize) -> Self {
        self.fields.push((name.into(), Value::from(Serde(value))));
        self
    }
}

/// How a chat is rendered.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ChatOptions {
    /// Whether the start of the assistant's answer is appended. Default: no.
    pub generation_prompt: bool,
    /// The name of the template. Default: `tool_use` if there are tools and it exists, otherwise
    /// `default`.
    pub template: Option<String>,
    /// The date and time for templates that use one, such as `2024-07-26` or `2024-07-26T12:30:00`.
    /// Default: now, so the ids of such a template change from day to day.
    pub now: Option<String>,
    variables: Vec<(String, Value)>,
}

impl ChatOptions {
    /// Whether to append the start of the assistant's answer.
    #[doc(alias = "add_generation_prompt")]
    pub fn with_generation_prompt(mut self, generation_prompt: bool) -> Self {
        self.generation_prompt = generation_prompt;
        self
    }

    /// Uses the template of this name.
    pub fn with_template(mut self, name: impl Into<String>) -> Self {
        self.template = Some(name.into());
        self
    }

    /// Sets the date and time for templates that use one.
    pub fn with_now(mut self, now: impl Into<String>) -> Self {
        self.now = Some(now.into());
        self
    }

    /// Sets a variable that the template reads, such as `enable_thinking`.
    pub fn with_variable(mut self, name: impl Into<String>, value: impl serde::Serialize) -> Self {
        self.variables
            .push((name.into(), Value::from(Serde(value))));
        self
    }

    /// The tools that the model may call: a JSON list of schemas, whose keys keep their order.
    ///
    /// # Errors
    /// If it is not a JSON list.
    pub fn with_tools(mut self, json: &str) -> Result<Self, TokensError> {
        let tools: Vec<Value> =
            serde_json::from_str(json).map_err(|error| TokensError::ChatInput {
                what: "tools".to_owned(),
                reason: error.to_string(),
            })?;
        self.variables.push(("tools".to_owned(), tools.into()));
        Ok(self)
    }
}

/// A rendered chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chat {
    /// The text; begins with a BOS if the template writes one.
    pub text: String,
    /// Its token ids, without added special tokens.
    pub ids: Vec<u32>,
    /// The messages and their positions.
    pub turns: Vec<ChatTurn>,
}

/// The position of a message among the tokens of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTurn {
    /// The speaker.
    pub role: String,
    /// The token positions of the content, without the template's own text and without spaces at
    /// either end. `None` if the message has no content, or the template does not reproduce it
    /// verbatim.
    pub content: Option<Range<usize>>,
}

impl Chat {
    /// The token positions of everything that a role says.
    pub fn positions_of_role(&self, role: &str) -> Vec<usize> {
        let turns = self.turns.iter().filter(|turn| turn.role == role);
        turns
            .filter_map(|turn| turn.content.clone())
            .flatten()
            .collect()
    }
}

impl Tokenizer {
    /// Renders messages with the chat template and returns the token ids, with the positions of
    /// each message's content.
    ///
    /// The text is that of `apply_chat_template` in `transformers`. It is encoded without special
    /// tokens, since a template writes its own.
    ///
    /// ```
    /// use burn_align_models::{ChatMessage, ChatOptions, Tokenizer, TokenizerFiles};
    ///
    /// let tokenizer = r#"{
    ///   "added_tokens": [], "normalizer": null, "post_processor": null, "decoder": null,
    ///   "pre_tokenizer": {"type": "Whitespace"},
    ///   "model": {"type": "WordLevel", "unk_token": "?", "vocab": {
    ///     "?": 0, "user": 1, "assistant": 2, ":": 3, "Which": 4, "city": 5
    ///   }}
    /// }"#;
    /// let template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\
    ///                 {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    /// let files = TokenizerFiles::default()
    ///     .with_tokenizer(tokenizer)
    ///     .with_chat_template("default", template);
    /// let tokenizer = Tokenizer::from_files(files)?;
    ///
    /// let options = ChatOptions::default().with_generation_prompt(true);
    /// let chat = tokenizer.chat(&[ChatMessage::user("Which city ?")], &options)?;
    /// assert_eq!(chat.text, "user: Which city ?\nassistant:");
    /// assert_eq!(chat.ids, [1, 3, 4, 5, 0, 2, 3]);
    /// assert_eq!(chat.turns[0].content, Some(2..5));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If there is no such template, or it rejects these messages or fails.
    #[doc(alias = "apply_chat_template")]
    pub fn chat(
        &self,
        messages: &[ChatMessage],
        options: &ChatOptions,
    ) -> Result<Chat, TokensError> {
        let template = self.chat_template(options)?;
        let rendered = spans::render(template, messages, self.assembled(), options)?;
        let encoded = self.encoding(&rendered.text, SpecialTokens::Never)?;
        let turns = messages.iter().zip(&rendered.contents);
        let turns = turns.map(|(message, part)| ChatTurn {
            role: message.role.clone(),
            content: (part.as_ref()).and_then(|part| self.touching(&rendered.text, &encoded, part)),
        });
        Ok(Chat {
            turns: turns.collect(),
            text: rendered.text,
            ids: encoded.ids,
        })
    }

    /// The names of the chat templates; a single one is named `default`.
    pub fn chat_templates(&self) -> impl Iterator<Item = &str> {
        let templates = self.assembled().templates.iter();
        templates.map(|(name, _)| name.as_str())
    }

    fn chat_template(&self, options: &ChatOptions) -> Result<&str, TokensError> {
        let templates = &self.assembled().templates;
        let find = |wanted: &str| {
            let found = templates.iter().rev().find(|(name, _)| name == wanted);
            found.map(|(_, template)| template.as_str())
        };
        let has_tools = options.variables.iter().any(|(name, _)| name == "tools");
        let found = match &options.template {
            Some(name) => find(name),
            None => has_tools
                .then(|| find("tool_use"))
                .flatten()
                .or_else(|| find("default")),
        };
        found.ok_or_else(|| TokensError::NoChatTemplate {
            name: options.template.clone(),
            available: self.chat_templates().map(str::to_owned).collect(),
        })
    }
}
