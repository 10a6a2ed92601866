//! The keys and values of a GGUF file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::GgufError;
use super::cursor::Cursor;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are those of GGUF's value types")]
pub enum MetadataValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(MetadataArray),
}

/// A metadata array: its elements are of one type.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are those of GGUF's value types")]
pub enum MetadataArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
}

/// The metadata of a GGUF file: values by key.
///
/// The typed lookups return `None` for a missing key and an error for a value of another type.
/// Integers of any width and sign are accepted if the value fits, since llama.cpp's converters
/// write them in different widths.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    values: BTreeMap<String, MetadataValue>,
}

impl Metadata {
    /// Later values replace earlier ones.
    #[cfg(test)]
    pub(super) fn of<'a>(values: impl IntoIterator<Item = (&'a str, MetadataValue)>) -> Self {
        let values = values.into_iter();
        Self {
            values: values.map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }

    /// A value as it is in the file.
    pub fn get(&self, key: &str) -> Option<&MetadataValue> {
        self.values.get(key)
    }

    /// All keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &MetadataValue)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A string.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a string", |value| match value {
            MetadataValue::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A size, a count or an id.
    ///
    /// # Errors
    /// If the value is not an integer, or is below 0.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "an integer that is not negative", |value| {
            integer(value)?.try_into().ok()
        })
    }

    /// A float, or an integer converted to a float.
    ///
    /// # Errors
    /// If the value is not a number.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a number", |value| match value {
            MetadataValue::F32(value) => Some(f64::from(*value)),
            MetadataValue::F64(value) => Some(*value),
            value => integer(value).map(|value| value as f64),
        })
    }

    /// True or false.
    ///
    /// # Errors
    /// If the value is not a bool.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a bool", |value| match value {
            MetadataValue::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.typed(key, "an array of strings", |value| match value {
            MetadataValue::Array(MetadataArray::String(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// An array of integers of any width.
    ///
    /// # Errors
    /// If the value is of another type, or an element exceeds 64 signed bits.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, GgufError> {
        fn wide<T: Copy + TryInto<i64>>(values: &[T]) -> Option<Vec<i64>> {
            let values = values.iter().map(|value| (*value).try_into().ok());
            values.collect()
        }
        self.typed(key, "an array of integers", |value| match value {
            MetadataValue::Array(array) => match array {
                MetadataArray::U8(values) => wide(values),
                MetadataArray::I8(values) => wide(values),
                MetadataArray::U16(values) => wide(values),
                MetadataArray::I16(values) => wide(values),
                MetadataArray::U32(values) => wide(values),
                MetadataArray::I32(values) => wide(values),
                MetadataArray::U64(values) => wide(values),
                MetadataArray::I64(values) => wide(values),
                _ => None,
            },
            _ => None,
        })
    }

    /// An array of f32.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.typed(key, "an array of f32", |value| match value {
            MetadataValue::Array(MetadataArray::F32(values)) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// The error for a value that cannot be used.
    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> GgufError {
        match self.get(key) {
            Some(value) => GgufError::WrongValue {
                key: key.to_owned(),
                expected: expected.into(),
                found: value.shown(),
            },
            None => GgufError::MissingKey {
                key: key.to_owned(),
            },
        }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a MetadataValue) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.wrong(key, expected)),
        }
    }

    pub(super) fn read(cursor: &mut Cursor<'_>, count: usize) -> Result<Self, GgufError> {
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let key = cursor.text("a metadata key")?;
            let value = MetadataValue::read(cursor, key)?;
            match values.entry(key.to_owned()) {
                Entry::Vacant(entry) => entry.insert(value),
                Entry::Occupied(entry) => {
                    let key = entry.key().clone();
                    return Err(GgufError::DuplicateKey { key });
                }
            };
        }
        Ok(Self { values })
    }
}

fn integer(value: &MetadataValue) -> Option<i128> {
    Some(match value {
        MetadataValue::U8(value) => (*value).into(),
        MetadataValue::I8(value) => (*value).into(),
        MetadataValue::U16(value) => (*value).into(),
        MetadataValue::I16(value) => (*value).into(),
        MetadataValue::U32(value) => (*value).into(),
        MetadataValue::I32(value) => (*value).into(),
        MetadataValue::U64(value) => (*value).into(),
        MetadataValue::I64(value) => (*value).into(),
        _ => return None,
    })
}

const VALUE: &str = "a metadata value";
/// The type number of arrays.
const ARRAY: u32 = 9;

impl MetadataValue {
    /// A short form of the value, for messages.
    pub(super) fn shown(&self) -> String {
        let shown = match self {
            Self::Array(_) => return "an array".to_owned(),
            Self::String(text) => format!("{text:?}"),
            Self::Bool(flag) => flag.to_string(),
            Self::F32(value) => value.to_string(),
            Self::F64(value) => value.to_string(),
            value => integer(value).map_or_else(String::new, |value| value.to_string()),
        };
        match shown.char_indices().nth(80) {
            Some((end, _)) => format!("{} …", &shown[..end]),
            None => shown,
        }
    }

    fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, GgufError> {
        Ok(match cursor.u32(VALUE)? {
            0 => Self::U8(u8::from_le_bytes(cursor.array(VALUE)?)),
            1 => Self::I8(i8::from_le_bytes(cursor.array(VALUE)?)),
            2 => Self::U16(u16::from_le_bytes(cursor.array(VALUE)?)),
            3 => Self::I16(i16::from_le_bytes(cursor.array(VALUE)?)),
            4 => Self::U32(cursor.u32(VALUE)?),
            5 => Self::I32(i32::from_le_bytes(cursor.array(VALUE)?)),
            6 => Self::F32(f32::from_le_bytes(cursor.array(VALUE)?)),
            7 => {
                let [byte] = cursor.array(VALUE)?;
                Self::Bool(read_bool(byte, key)?)
            }
            8 => Self::String(cursor.text(VALUE)?.to_owned()),
            ARRAY => Self::Array(MetadataArray::read(cursor, key)?),
            10 => Self::U64(cursor.u64(VALUE)?),
            11 => Self::I64(i64::from_le_bytes(cursor.array(VALUE)?)),
            12 => Self::F64(f64::from_le_bytes(cursor.array(VALUE)?)),
            other => return Err(unknown_type(key, other)),
        })
    }
}

impl MetadataArray {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::U16(values) => values.len(),
            Self::I16(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::U64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::String(values) => values.len(),
        }
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, GgufError> {
        /// Elements of `N` bytes.
        fn plain<T, const N: usize>(
            cursor: &mut Cursor<'_>,
            read: impl Fn([u8; N]) -> T,
        ) -> Result<Vec<T>, GgufError> {
            let count = cursor.count("the elements of a metadata array", N)?;
            let bytes = cursor.take((count * N) as u64, VALUE)?;
            let (elements, _) = bytes.as_chunks::<N>();
            Ok(elements.iter().map(|bytes| read(*bytes)).collect())
        }
        Ok(match cursor.u32(VALUE)? {
            0 => Self::U8(plain(cursor, u8::from_le_bytes)?),
            1 => Self::I8(plain(cursor, i8::from_le_bytes)?),
            2 => Self::U16(plain(cursor, u16::from_le_bytes)?),
            3 => Self::I16(plain(cursor, i16::from_le_bytes)?),
            4 => Self::U32(plain(cursor, u32::from_le_bytes)?),
            5 => Self::I32(plain(cursor, i32::from_le_bytes)?),
            6 => Self::F32(plain(cursor, f32::from_le_bytes)?),
            7 => {
                let bytes = plain(cursor, |[byte]: [u8; 1]| byte)?;
                let flags = bytes.into_iter().map(|byte| read_bool(byte, key));
                Self::Bool(flags.collect::<Result<_, _>>()?)
            }
            8 => {
                // Each begins with its length.
                let count = cursor.count("the strings of a metadata array", 8)?;
                let mut texts = Vec::with_capacity(count);
                for _ in 0..count {
                    texts.push(cursor.text(VALUE)?.to_owned());
                }
                Self::String(texts)
            }
            ARRAY => {
                let key = key.to_owned();
                return Err(GgufError::NestedArray { key });
            }
            10 => Self::U64(plain(cursor, u64::from_le_bytes)?),
            11 => Self::I64(plain(cursor, i64::from_le_bytes)?),
            12 => Self::F64(plain(cursor, f64::from_le_bytes)?),
            other => return Err(unknown_type(key, other)),
        })
    }
}

fn read_bool(byte: u8, key: &str) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(GgufError::damaged(
            format!("metadata key `{key}`"),
            "a bool of 0 or 1",
            byte,
        )),
    }
}

fn unknown_type(key: &str, found: u32) -> GgufError {
    let what = format!("metadata key `{key}`");
    GgufError::damaged(what, "a value type from 0 to 12", found)
}
