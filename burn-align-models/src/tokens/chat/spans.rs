//! Finding the contents of messages in a rendered chat.
//!
//! A template may put them anywhere, merge or trim them. So the chat is rendered again with markers
//! around each content; if the rest of the text is unchanged, the markers give the positions.

use std::ops::Range;

use super::super::TokensError;
use super::super::folder::Assembled;
use super::template::{self, Environment};
use super::{ChatMessage, ChatOptions};

/// Markers are taken from this private-use area.
const SIGNS: Range<u32> = 0xF_0000..0xF_FFFD;

pub(super) struct Rendered {
    pub(super) text: String,
    /// Where each message's content is, in bytes.
    pub(super) contents: Vec<Option<Range<usize>>>,
}

pub(super) fn render(
    source: &str,
    messages: &[ChatMessage],
    assembled: &Assembled,
    options: &ChatOptions,
) -> Result<Rendered, TokensError> {
    let environment = Environment::new(source, options)?;
    let render =
        |messages: &[ChatMessage]| template::render(&environment, messages, assembled, options);
    let text = render(messages)?;
    let is_free = |sign: &char| {
        let used = |text: &str| text.contains(*sign);
        !used(source) && !used(&text)
    };
    let signs: Vec<char> = SIGNS
        .filter_map(char::from_u32)
        .filter(is_free)
        .take(2)
        .collect();
    let mut contents = vec![None; messages.len()];
    let [open, close] = signs[..] else {
        return Ok(Rendered { text, contents });
    };
    let marked = |which: &dyn Fn(usize) -> bool| {
        let all = messages.iter().enumerate();
        let all = all.map(|(index, message)| ChatMessage {
            content: (message.content.as_deref()).map(|content| {
                if which(index) {
                    mark(content, open, close)
                } else {
                    content.to_owned()
                }
            }),
            ..message.clone()
        });
        all.collect::<Vec<_>>()
    };
    let shown: Vec<usize> = (0..messages.len())
        .filter(|index| {
            let content = messages[*index].content.as_deref();
            content.is_some_and(|content| !content.trim().is_empty())
        })
        .collect();
    // In the order of the messages, which most templates keep; otherwise one at a time.
    let all = render(&marked(&|index| shown.contains(&index)));
    let places = all.ok().and_then(|it| places(&it, &text, open, close));
    let in_order = |places: &Vec<Range<usize>>| {
        let of = |index: usize| messages[index].content.as_deref().unwrap_or("").trim();
        places.len() == shown.len()
            && places
                .iter()
                .zip(&shown)
                .all(|(part, index)| text[part.clone()] == *of(*index))
    };
    if let Some(places) = places.filter(in_order) {
        for (index, place) in shown.into_iter().zip(places) {
            contents[index] = Some(place);
        }
        return Ok(Rendered { text, contents });
    }
    for index in shown {
        let one = render(&marked(&|it| it == index)).ok();
        let places = one.and_then(|it| places_of_one(&it, &text, open, close));
        let content = messages[index].content.as_deref().unwrap_or("").trim();
        contents[index] = places.or_else(|| only_place(&text, content));
    }
    Ok(Rendered { text, contents })
}

/// The content with markers around it, inside the spaces at its ends, which templates trim.
fn mark(content: &str, open: char, close: char) -> String {
    let inner = content.trim();
    let start = content.len() - content.trim_start().len();
    let (before, after) = (&content[..start], &content[start + inner.len()..]);
    format!("{before}{open}{inner}{close}{after}")
}

/// The ranges between markers, if the text without them is `text`.
fn places(marked: &str, text: &str, open: char, close: char) -> Option<Vec<Range<usize>>> {
    let mut plain = String::new();
    let (mut places, mut start) = (Vec::new(), None);
    for sign in marked.chars() {
        if sign == open && start.is_none() {
            start = Some(plain.len());
        } else if sign == close {
            places.push(start.take()?..plain.len());
        } else {
            plain.push(sign);
        }
    }
    (plain == text && start.is_none()).then_some(places)
}

fn places_of_one(marked: &str, text: &str, open: char, close: char) -> Option<Range<usize>> {
    match &places(marked, text, open, close)?[..] {
        [place] => Some(place.clone()),
        _ => None,
    }
}

/// Where the content occurs, if it occurs exactly once.
fn only_place(text: &str, content: &str) -> Option<Range<usize>> {
    let start = text.find(content)?;
    (text.rfind(content) == Some(start)).then(|| start..start + content.len())
}
