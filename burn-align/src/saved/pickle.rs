//! Pickles of state dicts, parsed but not run: of everything a pickle can name, only tensors and
//! ordered dictionaries are known, and anything else is rejected immediately.

mod tree;

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

pub(super) use tree::{Tree, read_tree};

/// Why a pickle cannot be read.
#[derive(Debug)]
pub(crate) enum PickleError {
    /// It names something other than tensors.
    Forbidden(String),
    /// It is damaged, or not a state dict.
    Malformed(String),
}

impl From<String> for PickleError {
    fn from(reason: String) -> Self {
        Self::Malformed(reason)
    }
}

/// A tensor as a pickle describes it.
#[derive(Clone, Debug)]
pub(super) struct PickledTensor {
    pub(super) storage: Storage,
    /// Elements before the first one.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) stride: Vec<usize>,
}

/// The numbers of one tensor or several.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    /// The class in `torch`, such as `FloatStorage`.
    pub(super) class: &'static str,
    /// The name of its file.
    pub(super) key: Rc<str>,
    /// Number of elements.
    pub(super) count: usize,
}

/// Everything of a state dict that can be unpickled.
const STORAGES: [&str; 11] = [
    "FloatStorage",
    "HalfStorage",
    "BFloat16Storage",
    "DoubleStorage",
    "LongStorage",
    "IntStorage",
    "ShortStorage",
    "CharStorage",
    "ByteStorage",
    "BoolStorage",
    "UntypedStorage",
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(&'static str),
}

impl Global {
    fn find(module: &str, name: &str) -> Result<Self, PickleError> {
        let found = match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", class) => {
                let known = STORAGES.iter().find(|known| **known == class);
                known.map(|class| Self::Storage(class))
            }
            _ => None,
        };
        found.ok_or_else(|| PickleError::Forbidden(format!("{module}.{name}")))
    }
}

/// An item on the stack. Containers refer to their values by index, so that no pickle can nest them
/// too deeply to be dropped.
#[derive(Clone, Debug)]
enum Item {
    Mark,
    None,
    Bool(bool),
    Float,
    Int(i64),
    Text(Rc<str>),
    Tuple(usize),
    Dict(usize),
    Global(Global),
    Storage(Storage),
    Tensor(Rc<PickledTensor>),
}

/// Maximum number of objects in a pickle: far more than a state dict of interventions has. Each may
/// be a byte in the file, and a few dozen in memory.
const MOST_OBJECTS: usize = 1 << 20;

/// More axes than any parameter has.
pub(super) const MOST_AXES: usize = 8;

/// Reads the tensors of a state dict by name.
pub(super) fn read_state_dict(
    bytes: &[u8],
) -> Result<Vec<(String, Rc<PickledTensor>)>, PickleError> {
    let mut machine = Machine {
        bytes,
        ..Machine::default()
    };
    machine.run()?;
    machine.state_dict()
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    stack: Vec<Item>,
    memo: HashMap<u32, Item>,
    tuples: Vec<Vec<Item>>,
    dicts: Vec<Vec<(Item, Item)>>,
    objects: usize,
}

fn malformed<T>(reason: impl Into<String>) -> Result<T, PickleError> {
    Err(PickleError::Malformed(reason.into()))
}

impl Machine<'_> {
    fn run(&mut self) -> Result<(), PickleError> {
        loop {
            self.objects += 1;
            if self.objects > MOST_OBJECTS {
                return malformed("expected a state dict, found too many objects");
            }
            let [code] = self.array()?;
            match code {
                0x80 => {
                    let [version] = self.array()?;
                    if !(2..=5).contains(&version) {
                        return malformed(format!("expected protocol 2 to 5, found {version}"));
                    }
                }
                0x95 => {
                    self.array::<8>()?; // FRAME
                }
                b'(' => self.stack.push(Item::Mark),
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.stack.push(Item::Global(Global::find(&module, &name)?));
                }
                0x93 => {
                    // STACK_GLOBAL
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Item::Text(name), Item::Text(module)) = (name, module) else {
                        return malformed("expected the name of a global");
                    };
                    self.stack.push(Item::Global(Global::find(&module, &name)?));
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.array()?);
                    self.text(length as usize)?;
                }
                0x8c => {
                    let [length] = self.array()?;
                    self.text(length.into())?;
                }
                b'K' => {
                    let [value] = self.array()?;
                    self.stack.push(Item::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.stack.push(Item::Int(value.into()));
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.stack.push(Item::Int(value.into()));
                }
                0x8a => self.long()?,
                b'G' => {
                    self.array::<8>()?;
                    self.stack.push(Item::Float);
                }
                b'N' => self.stack.push(Item::None),
                0x88 | 0x89 => self.stack.push(Item::Bool(code == 0x88)),
                b'}' => self.new_dict(),
                b')' => self.new_tuple(Vec::new()),
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.new_tuple(items);
                }
                0x85..=0x87 => {
                    let size = usize::from(code - 0x84);
                    let Some(rest) = self.stack.len().checked_sub(size) else {
                        return malformed("expected the items of a tuple");
                    };
                    let items = self.stack.split_off(rest);
                    self.new_tuple(items);
                }
                b'q' => {
                    let [index] = self.array()?;
                    self.remember(index.into())?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.remember(index)?;
                }
                0x94 => self.remember(self.memo.len() as u32)?,
                b'h' => {
                    let [index] = self.array()?;
                    self.recall(index.into())?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.recall(index)?;
                }
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(items)?;
                }
                b'b' => {
                    // BUILD: the attributes of a dictionary, none of which is needed for tensors.
                    self.pop()?;
                    let Some(Item::Dict(_)) = self.stack.last() else {
                        return malformed("expected attributes of a dictionary only");
                    };
                }
                b'.' => return Ok(()),
                other => {
                    return malformed(format!("expected a state dict, found opcode {other:#x}"));
                }
            }
        }
    }

    /// The index of the dictionary that the pickle is.
    fn root(&mut self) -> Result<usize, PickleError> {
        if !self.bytes.is_empty() {
            return malformed("expected the end, found more bytes");
        }
        match (self.stack.pop(), self.stack.is_empty()) {
            (Some(Item::Dict(index)), true) => Ok(index),
            _ => malformed("expected a state dict, found another object"),
        }
    }

    fn state_dict(mut self) -> Result<Vec<(String, Rc<PickledTensor>)>, PickleError> {
        let index = self.root()?;
        let mut tensors: Vec<(String, Rc<PickledTensor>)> = Vec::new();
        let mut names = HashSet::new();
        for (key, value) in std::mem::take(&mut self.dicts[index]) {
            let (Item::Text(name), Item::Tensor(tensor)) = (key, value) else {
                return malformed("expected tensors by name, found something else");
            };
            if !names.insert(name.clone()) {
                return malformed(format!("tensor `{name}` occurs twice"));
            }
            tensors.push((name.to_string(), tensor));
        }
        Ok(tensors)
    }

    fn take(&mut self, count: usize) -> Result<&[u8], PickleError> {
        let Some((taken, rest)) = self.bytes.split_at_checked(count) else {
            return malformed("it ends too early");
        };
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') else {
            return malformed("it ends too early");
        };
        let line = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.take(1)?;
        Ok(line)
    }

    fn text(&mut self, length: usize) -> Result<(), PickleError> {
        let Ok(text) = std::str::from_utf8(self.take(length)?) else {
            return malformed("expected UTF-8");
        };
        let text = Rc::from(text);
        self.stack.push(Item::Text(text));
        Ok(())
    }

    /// An integer of up to eight bytes.
    fn long(&mut self) -> Result<(), PickleError> {
        let [length] = self.array()?;
        if length > 8 {
            return malformed("expected an integer of 64 bits, found a larger one");
        }
        let bytes = self.take(length.into())?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut all = [if negative { 0xff } else { 0 }; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        self.stack.push(Item::Int(i64::from_le_bytes(all)));
        Ok(())
    }

    fn pop(&mut self) -> Result<Item, PickleError> {
        match self.stack.pop() {
            None | Some(Item::Mark) => malformed("expected a value, found none"),
            Some(item) => Ok(item),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Item>, PickleError> {
        let mark = self.stack.iter().rposition(|i| matches!(i, Item::Mark));
        let Some(mark) = mark else {
            return malformed("expected a mark, found none");
        };
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn new_tuple(&mut self, items: Vec<Item>) {
        self.tuples.push(items);
        self.stack.push(Item::Tuple(self.tuples.len() - 1));
    }

    fn new_dict(&mut self) {
        self.dicts.push(Vec::new());
        self.stack.push(Item::Dict(self.dicts.len() - 1));
    }

    fn remember(&mut self, index: u32) -> Result<(), PickleError> {
        let item = self.pop()?;
        self.stack.push(item.clone());
        self.memo.insert(index, item);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), PickleError> {
        let Some(item) = self.memo.get(&index) else {
            return malformed("it refers to a missing object");
        };
        self.stack.push(item.clone());
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Item>) -> Result<(), PickleError> {
        let Some(Item::Dict(index)) = self.stack.last() else {
            return malformed("expected a dictionary");
        };
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            let Some(value) = items.next() else {
                return malformed("expected a value for each key");
            };
            self.dicts[*index].push((key, value));
        }
        Ok(())
    }

    fn tuple(&self, item: &Item) -> Result<&[Item], PickleError> {
        match item {
            Item::Tuple(index) => Ok(&self.tuples[*index]),
            _ => malformed("expected a tuple"),
        }
    }

    /// A shape or strides. Many tensors may share one tuple, so its length is checked before it is
    /// copied.
    fn sizes(&self, item: &Item) -> Result<Vec<usize>, PickleError> {
        let sizes = self.tuple(item)?;
        if sizes.len() > MOST_AXES {
            return malformed(format!(
                "expected a tensor of at most {MOST_AXES} axes, found {}",
                sizes.len()
            ));
        }
        sizes.iter().map(size).collect()
    }

    /// A storage: `('storage', class, key, device, count)`.
    fn persistent(&mut self) -> Result<(), PickleError> {
        let id = self.pop()?;
        let [
            Item::Text(kind),
            Item::Global(Global::Storage(class)),
            Item::Text(key),
            Item::Text(_device),
            count,
        ] = self.tuple(&id)?
        else {
            return malformed("expected a storage");
        };
        if &**kind != "storage" {
            return malformed("expected a storage");
        }
        let storage = Storage {
            class,
            key: key.clone(),
            count: size(count)?,
        };
        self.stack.push(Item::Storage(storage));
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), PickleError> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Item::Global(function) = function else {
            return malformed("expected a function");
        };
        match (function, self.tuple(&arguments)?) {
            (Global::OrderedDict, []) => self.new_dict(),
            (
                Global::RebuildTensor,
                [
                    Item::Storage(storage),
                    offset,
                    shape,
                    stride,
                    Item::Bool(_),
                    Item::Dict(_),
                    ..,
                ],
            ) => {
                let tensor = PickledTensor {
                    storage: storage.clone(),
                    offset: size(offset)?,
                    shape: self.sizes(shape)?,
                    stride: self.sizes(stride)?,
                };
                self.stack.push(Item::Tensor(Rc::new(tensor)));
            }
            (Global::RebuildParameter, [Item::Tensor(tensor), Item::Bool(_), Item::Dict(_)]) => {
                let tensor = tensor.clone();
                self.stack.push(Item::Tensor(tensor));
            }
            (function, _) => return malformed(format!("an unknown call of {function:?}")),
        }
        Ok(())
    }
}

fn size(item: &Item) -> Result<usize, PickleError> {
    match item {
        Item::Int(value) => usize::try_from(*value).or_else(|_| malformed("a negative size")),
        _ => malformed("expected a number"),
    }
}
