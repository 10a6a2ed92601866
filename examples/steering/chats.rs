//! Prompts of chat models, and where their answers end.

use anyhow::Result;
use burn::tensor::backend::Backend;
use burn_align::generate::{Finish, GeneratedRow};
use burn_align_models::{ChatMessage, ChatOptions, Tokenizer};

/// Whether a model has been trained on chats: whether its tokenizer has a template for them.
pub(crate) fn is_chat_model(tokenizer: &Tokenizer) -> bool {
    tokenizer.chat_templates().next().is_some()
}

/// The tokens of a conversation, up to where the next answer begins.
pub(crate) fn conversation(tokenizer: &Tokenizer, messages: &[ChatMessage]) -> Result<Vec<u32>> {
    let options = ChatOptions::default().with_generation_prompt(true);
    Ok(tokenizer.chat(messages, &options)?.ids)
}

/// The tokens of a prompt: in a chat model a question, in others a text to continue.
pub(crate) fn prompt(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    match is_chat_model(tokenizer) {
        true => conversation(tokenizer, &[ChatMessage::user(text)]),
        false => Ok(tokenizer.encode(text)?),
    }
}

/// The tokens that end an answer: the end of a text, and what the template writes after one.
pub(crate) fn end_tokens(tokenizer: &Tokenizer) -> Vec<u32> {
    let named = tokenizer.special_tokens();
    let named = named.filter(|(role, _)| *role == "eos_token");
    let mut ends: Vec<u32> = named
        .filter_map(|(_, token)| tokenizer.token_id(token))
        .collect();
    ends.extend(end_of_turn(tokenizer).filter(|token| !ends.contains(token)));
    ends
}

/// The special token that the template writes after an answer, such as `<|im_end|>`.
fn end_of_turn(tokenizer: &Tokenizer) -> Option<u32> {
    let messages = [ChatMessage::user("Hello"), ChatMessage::assistant("Hello")];
    let chat = tokenizer.chat(&messages, &ChatOptions::default()).ok()?;
    let answer = chat.turns.last()?.content.clone()?;
    let token = *chat.ids.get(answer.end)?;
    let text = tokenizer.decode(&[token]).ok()?;
    text.starts_with('<').then_some(token)
}

/// The text of a row, without the token that ends it.
pub(crate) fn text<B: Backend>(tokenizer: &Tokenizer, row: &GeneratedRow<B>) -> Result<String> {
    let tokens = match (&row.finish, row.tokens.split_last()) {
        (Finish::StopToken(_), Some((_end, before))) => before,
        _ => &row.tokens,
    };
    Ok(tokenizer.decode(tokens)?)
}

/// The beginning of a text on one line.
pub(crate) fn shortened(text: &str, longest: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(longest) {
        None => line,
        Some((end, _)) => format!("{}…", &line[..end]),
    }
}
