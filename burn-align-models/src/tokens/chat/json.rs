//! JSON as Python's `json.dumps` writes it, which templates rely on: minijinja's own is meant for
//! HTML.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Writes like Python's `json.dumps`.
pub(super) struct Json {
    pub(super) indent: Option<usize>,
    /// Between items, and after a key.
    pub(super) separators: [String; 2],
    pub(super) ascii: bool,
    pub(super) sorted: bool,
}

impl Json {
    pub(super) fn write(&self, value: &Value) -> Result<String, Error> {
        let mut written = String::new();
        self.append(value, 0, &mut written)?;
        Ok(written)
    }

    fn append(&self, value: &Value, depth: usize, written: &mut String) -> Result<(), Error> {
        // Values in templates are never deeper than this; it bounds the stack.
        const DEEPEST: usize = 100;
        let invalid = |reason: String| Error::new(ErrorKind::InvalidOperation, reason);
        if depth > DEEPEST {
            return Err(invalid("tojson: nested too deeply".to_owned()));
        }
        match value.kind() {
            ValueKind::None => written.push_str("null"),
            ValueKind::Bool => written.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => written.push_str(&value.to_string()),
            ValueKind::String => written.push_str(&self.string(value.as_str().unwrap_or_default())),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.between('[', ']', &items, depth, written, |item, written| {
                    self.append(item, depth + 1, written)
                })?;
            }
            ValueKind::Map => {
                let mut entries = entries(value);
                if self.sorted {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.between(
                    '{',
                    '}',
                    &entries,
                    depth,
                    written,
                    |(key, value), written| {
                        written.push_str(&self.string(&key.to_string()));
                        written.push_str(&self.separators[1]);
                        self.append(value, depth + 1, written)
                    },
                )?;
            }
            other => {
                return Err(invalid(format!(
                    "tojson: {other} cannot be written as JSON"
                )));
            }
        }
        Ok(())
    }

    fn between<T>(
        &self,
        open: char,
        close: char,
        items: &[T],
        depth: usize,
        written: &mut String,
        mut append: impl FnMut(&T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |depth: usize, written: &mut String| {
            if let Some(indent) = self.indent {
                written.push('\n');
                written.push_str(&" ".repeat(indent * depth));
            }
        };
        written.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                written.push_str(&self.separators[0]);
            }
            line(depth + 1, written);
            append(item, written)?;
        }
        if !items.is_empty() {
            line(depth, written);
        }
        written.push(close);
        Ok(())
    }

    fn string(&self, text: &str) -> String {
        let mut written = String::from('"');
        for sign in text.chars() {
            match sign {
                '"' => written.push_str("\\\""),
                '\\' => written.push_str("\\\\"),
                '\n' => written.push_str("\\n"),
                '\r' => written.push_str("\\r"),
                '\t' => written.push_str("\\t"),
                '\u{8}' => written.push_str("\\b"),
                '\u{C}' => written.push_str("\\f"),
                sign if u32::from(sign) < 0x20 || (self.ascii && !sign.is_ascii()) => {
                    for unit in sign.encode_utf16(&mut [0; 2]) {
                        written.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                sign => written.push(sign),
            }
        }
        written.push('"');
        written
    }
}

fn entries(map: &Value) -> Vec<(Value, Value)> {
    let keys = map.try_iter().into_iter().flatten();
    keys.map(|key| {
        let value = map.get_item(&key).unwrap_or_default();
        (key, value)
    })
    .collect()
}
