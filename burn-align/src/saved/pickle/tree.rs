//! Pickles of dictionaries in dictionaries: their values by path.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Value;

use super::{Item, Machine, PickleError, PickledTensor, malformed};

/// The values of nested dictionaries, by their path: the keys that lead there, joined by `/`.
#[derive(Debug, Default)]
pub(in crate::saved) struct Tree {
    /// Numbers, texts, booleans and `None`.
    pub(in crate::saved) fields: BTreeMap<String, Value>,
    pub(in crate::saved) tensors: BTreeMap<String, Rc<PickledTensor>>,
}

// Dictionaries may share others, so what is copied is limited, and not only the pickle.

/// Dictionaries in one another.
const MOST_LEVELS: usize = 8;
/// Values of all dictionaries.
const MOST_VALUES: usize = 1 << 12;
/// Bytes of a key or a text.
const MOST_BYTES: usize = 1 << 10;

/// Reads the values of nested dictionaries.
pub(in crate::saved) fn read_tree(bytes: &[u8]) -> Result<Tree, PickleError> {
    let mut machine = Machine {
        bytes,
        ..Machine::default()
    };
    machine.run()?;
    let root = machine.root()?;
    let mut tree = Tree::default();
    let mut open = vec![(root, String::new(), 1)];
    let mut values = 0;
    while let Some((dict, path, level)) = open.pop() {
        if level > MOST_LEVELS {
            return malformed(format!(
                "expected at most {MOST_LEVELS} levels of dictionaries"
            ));
        }
        for (key, value) in &machine.dicts[dict] {
            values += 1;
            if values > MOST_VALUES {
                return malformed(format!("expected at most {MOST_VALUES} values"));
            }
            let Item::Text(key) = key else {
                return malformed("expected values by name, found another key");
            };
            let path = format!("{path}{}", short(key)?);
            let is_new = match value {
                Item::Dict(inner) => {
                    open.push((*inner, format!("{path}/"), level + 1));
                    true
                }
                Item::Tensor(tensor) => {
                    let old = tree.tensors.insert(path.clone(), tensor.clone());
                    old.is_none()
                }
                other => tree.fields.insert(path.clone(), plain(other)?).is_none(),
            };
            if !is_new {
                return malformed(format!("`{path}` occurs twice"));
            }
        }
    }
    Ok(tree)
}

fn plain(item: &Item) -> Result<Value, PickleError> {
    Ok(match item {
        Item::None => Value::Null,
        Item::Bool(value) => Value::Bool(*value),
        Item::Int(value) => (*value).into(),
        Item::Text(text) => Value::String(short(text)?.to_owned()),
        other => {
            return malformed(format!(
                "expected numbers, texts, tensors and dictionaries, found {}",
                kind(other)
            ));
        }
    })
}

fn kind(item: &Item) -> &'static str {
    match item {
        Item::Float => "a float",
        Item::Tuple(_) => "a tuple",
        Item::Global(_) => "a class",
        Item::Storage(_) => "a storage",
        _ => "another object",
    }
}

fn short(text: &str) -> Result<&str, PickleError> {
    match text.len() <= MOST_BYTES {
        true => Ok(text),
        false => malformed(format!("expected texts of at most {MOST_BYTES} bytes")),
    }
}
