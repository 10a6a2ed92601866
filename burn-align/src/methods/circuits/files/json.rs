//! JSON as Python's `json` module writes it: keys keep their order, numbers their text, and `NaN`,
//! `Infinity` and `-Infinity` are numbers.

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    /// As it is written.
    Number(String),
    Text(String),
    List(Vec<Json>),
    /// In order. Keys may repeat.
    Object(Vec<(String, Json)>),
}

/// Nested deeper than any circuit.
const DEPTH: usize = 16;

impl Json {
    /// Reads a value.
    ///
    /// # Errors
    /// What was expected, and at which byte.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        reader.space();
        match reader.rest().is_empty() {
            true => Ok(value),
            false => Err(reader.expected("the end of the file")),
        }
    }

    /// Writes the value on one line, with a space after each comma and colon.
    pub(super) fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(true) => out.push_str("true"),
            Self::Bool(false) => out.push_str("false"),
            Self::Number(text) => out.push_str(text),
            Self::Text(text) => out.push_str(&quoted(text)),
            Self::List(values) => {
                out.push('[');
                for (index, value) in values.iter().enumerate() {
                    if index > 0 {
                        out.push_str(", ");
                    }
                    value.write(out);
                }
                out.push(']');
            }
            Self::Object(fields) => {
                out.push('{');
                for (index, (key, value)) in fields.iter().enumerate() {
                    if index > 0 {
                        out.push_str(", ");
                    }
                    out.push_str(&quoted(key));
                    out.push_str(": ");
                    value.write(out);
                }
                out.push('}');
            }
        }
    }

    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    /// A number as Python writes it: the fewest digits that read back as the same number, with an
    /// exponent below 1e-4 and from 1e16 on.
    pub(super) fn number(value: f64) -> Self {
        Self::Number(python_float(value))
    }
}

/// Printable ASCII as it is, anything else escaped, as Python does.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            ' '..='~' => quoted.push(character),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    quoted.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    quoted.push('"');
    quoted
}

fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    // The shortest digits, as `d.ddde±x`.
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((text.as_str(), "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let text = format!("{value}");
        return match text.contains('.') {
            true => text,
            false => text + ".0",
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        let rest = self.rest();
        let trimmed = rest.trim_start_matches([' ', '\t', '\n', '\r']);
        self.at += rest.len() - trimmed.len();
    }

    fn expected(&self, what: &str) -> String {
        match self.rest().chars().next() {
            Some(found) => format!("byte {}: expected {what}, found {found:?}", self.at),
            None => format!(
                "byte {}: expected {what}, found the end of the file",
                self.at
            ),
        }
    }

    /// Whether the rest begins so. If it does, it is read.
    fn take(&mut self, token: &str) -> bool {
        let begins = self.rest().starts_with(token);
        if begins {
            self.at += token.len();
        }
        begins
    }

    fn value(&mut self, depth: usize) -> Result<Json, String> {
        self.space();
        if depth > DEPTH {
            return Err(self.expected("values nested less deeply"));
        }
        for (token, value) in [
            ("null", Json::Null),
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
        ] {
            if self.take(token) {
                return Ok(value);
            }
        }
        match self.rest().chars().next() {
            Some('"') => Ok(Json::Text(self.string()?)),
            Some('[') => self.list(depth),
            Some('{') => self.object(depth),
            _ => self.number(),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Json, String> {
        let mut values = Vec::new();
        self.take("[");
        self.space();
        if self.take("]") {
            return Ok(Json::List(values));
        }
        loop {
            values.push(self.value(depth + 1)?);
            self.space();
            if self.take("]") {
                return Ok(Json::List(values));
            }
            if !self.take(",") {
                return Err(self.expected("`,` or `]`"));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, String> {
        let mut fields = Vec::new();
        self.take("{");
        self.space();
        if self.take("}") {
            return Ok(Json::Object(fields));
        }
        loop {
            self.space();
            let key = self.string()?;
            self.space();
            if !self.take(":") {
                return Err(self.expected("`:`"));
            }
            fields.push((key, self.value(depth + 1)?));
            self.space();
            if self.take("}") {
                return Ok(Json::Object(fields));
            }
            if !self.take(",") {
                return Err(self.expected("`,` or `}`"));
            }
        }
    }

    fn string(&mut self) -> Result<String, String> {
        let rest = self.rest();
        if !rest.starts_with('"') {
            return Err(self.expected("a string"));
        }
        let mut is_escaped = false;
        let end = rest.bytes().enumerate().skip(1).find(|(_, byte)| {
            let ends = *byte == b'"' && !is_escaped;
            is_escaped = *byte == b'\\' && !is_escaped;
            ends
        });
        let Some((end, _)) = end else {
            return Err(format!(
                "byte {}: expected `\"`, found the end of the file",
                self.at
            ));
        };
        let literal = &rest[..=end];
        let text = serde_json::from_str(literal)
            .map_err(|error| format!("byte {}: expected a string: {error}", self.at))?;
        self.at += literal.len();
        Ok(text)
    }

    fn number(&mut self) -> Result<Json, String> {
        for token in ["NaN", "Infinity", "-Infinity"] {
            if self.take(token) {
                return Ok(Json::Number(token.to_owned()));
            }
        }
        let rest = self.rest();
        let is_number =
            |character: char| matches!(character, '0'..='9' | '-' | '+' | '.' | 'e' | 'E');
        let end = rest.find(|character: char| !is_number(character));
        let literal = &rest[..end.unwrap_or(rest.len())];
        if serde_json::from_str::<f64>(literal).is_err() {
            return Err(self.expected("a value"));
        }
        self.at += literal.len();
        Ok(Json::Number(literal.to_owned()))
    }
}

/// A number's value.
pub(super) fn value_of(text: &str) -> f64 {
    match text {
        "Infinity" => f64::INFINITY,
        "-Infinity" => f64::NEG_INFINITY,
        text => text.parse().unwrap_or(f64::NAN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        // `json.dumps` of these numbers.
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-0.0001, "-0.0001"),
            (0.00001, "1e-05"),
            (-5.101770511828363e-5, "-5.101770511828363e-05"),
            (0.016900015994906425, "0.016900015994906425"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (5e-324, "5e-324"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(python_float(value), text);
            let read = value_of(text);
            assert!(
                read.to_bits() == value.to_bits() || value.is_nan(),
                "{text}"
            );
        }
    }

    #[test]
    fn text_is_kept() {
        let text = r#"{"b": [1, -2.50, NaN, true], "a": {"\u00e9\n\"": null}, "c": []}"#;
        let mut written = String::new();
        Json::parse(text).expect("valid").write(&mut written);
        assert_eq!(written, text);
    }

    #[test]
    fn damaged_text_is_rejected() {
        let deep = "[".repeat(1000);
        for text in [
            "",
            "{",
            r#"{"a" 1}"#,
            "[1,]",
            "1 2",
            "\"a",
            "nul",
            "--1",
            &*deep,
        ] {
            assert!(Json::parse(text).is_err(), "{text}");
        }
    }
}
