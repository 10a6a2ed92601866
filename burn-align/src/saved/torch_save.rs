//! Writing files that `torch.load` reads, with `weights_only` too: a pickle, and the numbers it
//! refers to, in a zip archive.
//!
//! What is written: dictionaries with text keys, as `dict` or as `OrderedDict`; in them `None`,
//! booleans, whole numbers, texts, and tensors in f32.

use std::io::{self, Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A value to write.
#[derive(Clone, Debug)]
pub(crate) enum TorchValue<'a> {
    None,
    Bool(bool),
    Number(usize),
    Text(&'a str),
    Dict(Vec<(&'a str, TorchValue<'a>)>),
    /// A dictionary as `Module.state_dict` returns it.
    OrderedDict(Vec<(&'a str, TorchValue<'a>)>),
    Tensor(&'a Floats),
}

/// A tensor in f32, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Floats {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// The folder of all entries of the archive; `torch.load` takes any.
const FOLDER: &str = "archive";

/// The file of a value.
///
/// # Errors
/// If it has more bytes than fit an archive.
pub(crate) fn torch_file(value: &TorchValue<'_>) -> io::Result<Vec<u8>> {
    let mut pickle = Pickle::default();
    pickle.bytes.extend([0x80, 2]); // PROTO
    pickle.value(value)?;
    pickle.bytes.push(b'.'); // STOP
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    // Uncompressed, and numbers aligned, as PyTorch maps them into memory.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(64);
    let mut entry = |name: &str, bytes: &[u8]| -> io::Result<()> {
        let options = options.large_file(u32::try_from(bytes.len()).is_err());
        archive.start_file(format!("{FOLDER}/{name}"), options)?;
        archive.write_all(bytes)
    };
    entry("data.pkl", &pickle.bytes)?;
    entry("byteorder", b"little")?;
    for (key, tensor) in pickle.tensors.iter().enumerate() {
        let bytes = tensor.values.iter().flat_map(|value| value.to_le_bytes());
        entry(&format!("data/{key}"), &bytes.collect::<Vec<u8>>())?;
    }
    entry("version", b"3\n")?;
    Ok(archive.finish()?.into_inner())
}

#[derive(Default)]
struct Pickle<'a> {
    bytes: Vec<u8>,
    tensors: Vec<&'a Floats>,
}

impl<'a> Pickle<'a> {
    fn value(&mut self, value: &TorchValue<'a>) -> io::Result<()> {
        match value {
            TorchValue::None => self.bytes.push(b'N'),
            TorchValue::Bool(value) => self.bytes.push(if *value { 0x88 } else { 0x89 }),
            TorchValue::Number(value) => self.number(*value)?,
            TorchValue::Text(text) => self.text(text)?,
            TorchValue::Dict(items) => {
                self.bytes.push(b'}');
                self.items(items)?;
            }
            TorchValue::OrderedDict(items) => {
                self.ordered_dict();
                self.items(items)?;
            }
            TorchValue::Tensor(tensor) => self.tensor(tensor)?,
        }
        Ok(())
    }

    fn items(&mut self, items: &[(&'a str, TorchValue<'a>)]) -> io::Result<()> {
        self.bytes.push(b'('); // MARK
        for (key, value) in items {
            self.text(key)?;
            self.value(value)?;
        }
        self.bytes.push(b'u'); // SETITEMS
        Ok(())
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`
    fn tensor(&mut self, tensor: &'a Floats) -> io::Result<()> {
        let key = self.tensors.len().to_string();
        self.tensors.push(tensor);
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.bytes.push(b'(');
        self.bytes.push(b'(');
        self.text("storage")?;
        self.global("torch", "FloatStorage");
        self.text(&key)?;
        self.text("cpu")?;
        self.number(tensor.values.len())?;
        self.bytes.extend([b't', b'Q']); // TUPLE, BINPERSID
        self.number(0)?;
        self.sizes(&tensor.shape)?;
        self.sizes(&strides(&tensor.shape))?;
        self.bytes.push(0x89); // NEWFALSE
        self.ordered_dict();
        self.bytes.extend([b't', b'R']); // TUPLE, REDUCE
        Ok(())
    }

    fn sizes(&mut self, sizes: &[usize]) -> io::Result<()> {
        self.bytes.push(b'(');
        for size in sizes {
            self.number(*size)?;
        }
        self.bytes.push(b't');
        Ok(())
    }

    fn ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.bytes.extend([b')', b'R']); // EMPTY_TUPLE, REDUCE
    }

    fn global(&mut self, module: &str, name: &str) {
        let line = format!("c{module}\n{name}\n");
        self.bytes.extend(line.as_bytes());
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        self.bytes.push(b'X'); // BINUNICODE
        self.bytes.extend(length.to_le_bytes());
        self.bytes.extend(text.as_bytes());
        Ok(())
    }

    fn number(&mut self, number: usize) -> io::Result<()> {
        let number = i64::try_from(number).map_err(io::Error::other)?;
        match (u8::try_from(number), i32::try_from(number)) {
            (Ok(small), _) => self.bytes.extend([b'K', small]), // BININT1
            (_, Ok(whole)) => {
                self.bytes.push(b'J'); // BININT
                self.bytes.extend(whole.to_le_bytes());
            }
            _ => {
                self.bytes.extend([0x8a, 8]); // LONG1
                self.bytes.extend(number.to_le_bytes());
            }
        }
        Ok(())
    }
}

/// Steps between neighbours along each axis, row by row.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    strides
}
