//! Chat templates: Jinja, in the environment that `transformers` provides
//! (`utils/chat_template_utils.py`).

use std::str::FromStr;

use jiff::{Zoned, civil::DateTime};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value, context};
use minijinja_contrib::pycompat;

use super::super::TokensError;
use super::super::folder::Assembled;
use super::json::Json;
use super::{ChatMessage, ChatOptions};

/// No real template comes near this number of steps; one that does not terminate is stopped.
const STEPS: u64 = 50_000_000;

const NAME: &str = "chat template";

/// A compiled template.
pub(super) struct Environment(minijinja::Environment<'static>);

impl Environment {
    pub(super) fn new(source: &str, options: &ChatOptions) -> Result<Self, TokensError> {
        let mut environment = minijinja::Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| failed(&error))?);
        environment.set_fuel(Some(STEPS));
        environment.set_unknown_method_callback(method);
        environment.add_filter("tojson", to_json);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function(GENERATION, |state: &mut State, options: Kwargs| {
            let caller: Value = options.get("caller")?;
            caller.call(state, &[])
        });
        let now = now(options)?;
        environment.add_function("strftime_now", move |format: &str| {
            now.map_or_else(
                || jiff::fmt::strtime::format(format, &Zoned::now()),
                |now| jiff::fmt::strtime::format(format, now),
            )
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        });
        environment
            .add_template_owned(NAME, with_generation_blocks(source))
            .map_err(|error| failed(&error))?;
        Ok(Self(environment))
    }
}

/// The function that replaces `{% generation %}` blocks, which mark what the model says.
const GENERATION: &str = "generation_block";

/// Rewrites `{% generation %}` blocks, an extension of `transformers`, as calls.
fn with_generation_blocks(source: &str) -> String {
    let mut written = String::new();
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start + 2..].find("%}") else {
            break;
        };
        let end = start + 2 + length + 2;
        let tag = &rest[start..end];
        let inner = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        let replaced = match inner {
            "generation" => tag.replace("generation", &format!("call {GENERATION}()")),
            "endgeneration" => tag.replace("endgeneration", "endcall"),
            _ => tag.to_owned(),
        };
        written.push_str(&rest[..start]);
        written.push_str(&replaced);
        rest = &rest[end..];
    }
    written.push_str(rest);
    written
}

pub(super) fn render(
    environment: &Environment,
    messages: &[ChatMessage],
    assembled: &Assembled,
    options: &ChatOptions,
) -> Result<String, TokensError> {
    let message = |message: &ChatMessage| {
        let role = ("role".to_owned(), Value::from(message.role.as_str()));
        let content =
            (message.content.as_deref()).map(|it| ("content".to_owned(), Value::from(it)));
        let fields = message.fields.iter().cloned();
        Value::from_pairs([role].into_iter().chain(content).chain(fields))
    };
    let messages: Vec<Value> = messages.iter().map(message).collect();
    let specials = assembled.specials.iter();
    let specials = specials.map(|(name, token)| (name.clone(), Value::from(token.as_str())));
    let mut variables: Vec<(String, Value)> = specials.collect();
    if !assembled.additional.is_empty() {
        let tokens = Value::from(Serde(&assembled.additional));
        variables.push(("additional_special_tokens".to_owned(), tokens));
    }
    for name in ["tools", "documents"] {
        variables.push((name.to_owned(), Value::from(())));
    }
    let prompt = options.generation_prompt.into();
    variables.push(("add_generation_prompt".to_owned(), prompt));
    variables.push(("messages".to_owned(), messages.into()));
    variables.extend(options.variables.iter().cloned());
    let template = environment.0.get_template(NAME);
    let rendered =
        template.and_then(|template| template.render(context! { ..Value::from_pairs(variables) }));
    rendered.map_err(|error| failed(&error))
}

/// Python string methods that templates use, beyond those in `minijinja-contrib`.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if value.kind() == ValueKind::String
        && let Some(text) = value.as_str()
    {
        match name {
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(text.strip_prefix(prefix).unwrap_or(text).into());
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(text.strip_suffix(suffix).unwrap_or(text).into());
            }
            _ => {}
        }
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let separators = match separators.as_deref() {
        None if indent.is_some() => [",".to_owned(), ": ".to_owned()],
        None => [", ".to_owned(), ": ".to_owned()],
        Some([items, keys]) => [items.clone(), keys.clone()],
        Some(_) => {
            let reason = "tojson: expected two strings as separators";
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
    };
    let json = Json {
        indent,
        separators,
        ascii: ascii.unwrap_or(false),
        sorted: sorted.unwrap_or(false),
    };
    json.write(value)
}

fn now(options: &ChatOptions) -> Result<Option<DateTime>, TokensError> {
    let Some(now) = &options.now else {
        return Ok(None);
    };
    let read = DateTime::from_str(now).map_err(|error| TokensError::ChatInput {
        what: "now".to_owned(),
        reason: format!("expected a date such as 2024-07-26, found `{now}`: {error}"),
    });
    read.map(Some)
}

fn failed(error: &Error) -> TokensError {
    let place = error.line().map(|line| format!(" (line {line})"));
    let reason = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    TokensError::ChatTemplate {
        reason: reason + &place.unwrap_or_default(),
    }
}
