//! Files of `torch.save`: zip archives of a pickle and the numbers it refers to.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek};
use std::path::Path;
use std::rc::Rc;

use burn::tensor::{bf16, f16};
use serde_json::Value;
use zip::ZipArchive;

use super::pickle::{PickleError, PickledTensor, Tree, read_state_dict, read_tree};
use super::tensors::{Stored, Values};

/// Whether a state dict has no tensors, without reading them. If this cannot be determined, it is
/// assumed to have some.
pub(super) fn is_empty(file: &Path) -> bool {
    let tensors = File::open(file).ok().and_then(|file| {
        let mut archive = open(BufReader::new(file)).ok()?;
        pickled(&mut archive).ok()
    });
    tensors.is_some_and(|(_, tensors)| tensors.is_empty())
}

fn open<R: Read + Seek>(file: R) -> Result<ZipArchive<R>, PickleError> {
    ZipArchive::new(file).map_err(|error| {
        PickleError::Malformed(format!(
            "expected a zip archive, as written by torch.save since PyTorch 1.6: {error}"
        ))
    })
}

type PickledTensors = Vec<(String, Rc<PickledTensor>)>;

/// The folder in the archive, and the tensors of its pickle.
fn pickled<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
) -> Result<(String, PickledTensors), PickleError> {
    let (folder, pickle) = pickle(archive)?;
    Ok((folder, read_state_dict(&pickle)?))
}

/// The folder in the archive, and its pickle.
fn pickle<R: Read + Seek>(archive: &mut ZipArchive<R>) -> Result<(String, Vec<u8>), PickleError> {
    let pickles: Vec<String> = archive
        .file_names()
        .filter(|name| name.ends_with("/data.pkl"))
        .map(str::to_owned)
        .collect();
    let [pickle] = &pickles[..] else {
        return Err(PickleError::Malformed(format!(
            "expected one data.pkl in the archive, found {}",
            pickles.len()
        )));
    };
    let folder = pickle.trim_end_matches("data.pkl").to_owned();
    let byte_order = format!("{folder}byteorder");
    if archive.index_for_name(&byte_order).is_some() {
        let order = entry(archive, &byte_order)?;
        if order != b"little" {
            return Err(PickleError::Malformed(format!(
                "expected little-endian numbers, found `{}`",
                String::from_utf8_lossy(&order)
            )));
        }
    }
    let pickle = entry(archive, pickle)?;
    Ok((folder, pickle))
}

/// The tensors of a state dict by name.
pub(crate) fn state_dict(bytes: &[u8]) -> Result<BTreeMap<String, Stored>, PickleError> {
    let mut archive = open(Cursor::new(bytes))?;
    let (folder, tensors) = pickled(&mut archive)?;
    numbers(&mut archive, &folder, tensors, bytes.len())
}

/// The tensors and the other values of nested dictionaries, by their path: the keys that lead
/// there, joined by `/`.
pub(crate) fn nested(bytes: &[u8]) -> Result<Nested, PickleError> {
    let mut archive = open(Cursor::new(bytes))?;
    let (folder, pickle) = pickle(&mut archive)?;
    let Tree { fields, tensors } = read_tree(&pickle)?;
    let tensors = tensors.into_iter().collect();
    let tensors = numbers(&mut archive, &folder, tensors, bytes.len())?;
    Ok((tensors, fields))
}

/// Tensors and other values by their path.
pub(crate) type Nested = (BTreeMap<String, Stored>, BTreeMap<String, Value>);

/// The numbers of tensors, from an archive of this size.
fn numbers<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
    folder: &str,
    tensors: PickledTensors,
    size: usize,
) -> Result<BTreeMap<String, Stored>, PickleError> {
    let mut storages = BTreeMap::new();
    let mut read = BTreeMap::new();
    // Tensors may share numbers, but only up to a limit.
    let mut budget = size.saturating_mul(4);
    for (name, tensor) in tensors {
        let key = tensor.storage.key.to_string();
        if !storages.contains_key(&key) {
            let file = format!("{folder}data/{key}");
            storages.insert(key.clone(), entry(archive, &file)?);
        }
        let size: usize = storages[&key].len();
        let Some(left) = budget.checked_sub(size) else {
            return Err(PickleError::Malformed(
                "expected tensors with separate numbers, found too many that share them".to_owned(),
            ));
        };
        budget = left;
        let stored = stored(&tensor, &storages[&key])
            .map_err(|reason| PickleError::Malformed(format!("tensor `{name}`: {reason}")))?;
        read.insert(name, stored);
    }
    Ok(read)
}

fn entry<R: Read + Seek>(archive: &mut ZipArchive<R>, name: &str) -> Result<Vec<u8>, PickleError> {
    let failed = |error: &dyn std::fmt::Display| PickleError::Malformed(format!("{name}: {error}"));
    let mut file = archive.by_name(name).map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)
        .map_err(|error| failed(&error))?;
    Ok(bytes)
}

/// The values of a tensor, row by row whatever its strides.
fn stored(tensor: &PickledTensor, bytes: &[u8]) -> Result<Stored, String> {
    let shape = tensor.shape.clone();
    let values = match tensor.storage.class {
        "DoubleStorage" => Values::F64(collect(tensor, bytes, f64::from_le_bytes)?),
        "FloatStorage" => Values::F32(collect(tensor, bytes, f32::from_le_bytes)?),
        "HalfStorage" => Values::F32(collect(tensor, bytes, |b| f16::from_le_bytes(b).to_f32())?),
        "BFloat16Storage" => {
            Values::F32(collect(tensor, bytes, |b| bf16::from_le_bytes(b).to_f32())?)
        }
        "LongStorage" => Values::I64(collect(tensor, bytes, i64::from_le_bytes)?),
        "IntStorage" => Values::I64(collect(tensor, bytes, |b| i32::from_le_bytes(b).into())?),
        other => Values::Other(format!("torch.{other}")),
    };
    Ok(Stored { shape, values })
}

fn collect<T, const SIZE: usize>(
    tensor: &PickledTensor,
    bytes: &[u8],
    read: impl Fn([u8; SIZE]) -> T,
) -> Result<Vec<T>, String> {
    let PickledTensor {
        storage,
        offset,
        shape,
        stride,
    } = tensor;
    let (elements, rest) = bytes.as_chunks::<SIZE>();
    if !rest.is_empty() || elements.len() != storage.count {
        return Err(format!(
            "expected {} elements of {SIZE} bytes, found {} bytes",
            storage.count,
            bytes.len()
        ));
    }
    if shape.len() != stride.len() {
        return Err(format!("shape {shape:?} does not fit strides {stride:?}"));
    }
    let count = shape.iter().try_fold(1_usize, |n, s| n.checked_mul(*s));
    let Some(count) = count.filter(|count| *count <= elements.len()) else {
        return Err(format!(
            "expected at most the {} elements of its storage, found shape {shape:?}",
            elements.len()
        ));
    };
    let mut values = Vec::with_capacity(count);
    let mut index = vec![0; shape.len()];
    for _ in 0..count {
        let steps = index.iter().zip(stride);
        let at = steps.into_iter().try_fold(*offset, |at, (i, stride)| {
            stride.checked_mul(*i).and_then(|step| at.checked_add(step))
        });
        let element = at.and_then(|at| elements.get(at));
        let Some(element) = element else {
            return Err(format!(
                "shape {shape:?} with strides {stride:?} exceeds its storage"
            ));
        };
        values.push(read(*element));
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Ok(values)
}
