//! One file: its header, and where its tensors are.

use std::path::Path;

use super::cursor::Cursor;
use super::ggml_type::retired;
use super::{GgmlType, GgufError, Metadata, TensorBytes};

/// The header entry of a tensor, and its bytes.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Its shape with the innermost axis last: `[rows, cols]` for a matrix. GGUF itself writes the
    /// innermost axis first.
    pub shape: Vec<usize>,
    /// How its elements are stored. Blocks lie along the last axis.
    pub ggml_type: GgmlType,
    /// Its bytes, in the mapped file.
    pub bytes: TensorBytes,
}

/// One file.
pub(super) struct Part {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<GgufTensor>,
}

/// Maximum number of axes of a ggml tensor.
const MAX_AXES: u32 = 4;
/// The default.
const ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";

/// The header entry of a tensor.
struct Entry {
    name: String,
    shape: Vec<usize>,
    ggml_type: GgmlType,
    offset: u64,
    length: u64,
}

impl Part {
    pub(super) fn open(file: &Path) -> Result<Self, GgufError> {
        Self::read(TensorBytes::map(file)?)
    }

    pub(super) fn read(file: TensorBytes) -> Result<Self, GgufError> {
        let bytes = file.as_ref();
        let mut cursor = Cursor::new(bytes);
        read_version(&mut cursor)?;
        // A name's length, the number of axes, the type, the offset.
        let tensor_count = cursor.count("the number of tensors", 8 + 4 + 4 + 8)?;
        // A key's length, a type, a value.
        let key_count = cursor.count("the number of metadata keys", 8 + 4 + 1)?;
        let metadata = Metadata::read(&mut cursor, key_count)?;
        let alignment = match metadata.unsigned(ALIGNMENT_KEY)? {
            None => ALIGNMENT,
            Some(alignment) if alignment.is_power_of_two() => alignment,
            Some(_) => return Err(metadata.wrong(ALIGNMENT_KEY, "a power of two")),
        };
        let mut entries = Vec::with_capacity(tensor_count);
        for _ in 0..tensor_count {
            entries.push(read_entry(&mut cursor, alignment)?);
        }
        // The data begin at the next multiple of the alignment.
        let data = (cursor.at() as u64).checked_next_multiple_of(alignment);
        check_overlaps(&entries)?;
        let tensors = entries.into_iter().map(|entry| {
            let within = || {
                let start = usize::try_from(data?.checked_add(entry.offset)?).ok()?;
                let end = start.checked_add(usize::try_from(entry.length).ok()?)?;
                file.slice(start..end)
            };
            let outside = || {
                GgufError::damaged(
                    format!("tensor `{}`", entry.name),
                    format!(
                        "{} bytes from byte {} of the tensor data",
                        entry.length, entry.offset
                    ),
                    format!("a file of {} bytes", bytes.len()),
                )
            };
            Ok(GgufTensor {
                bytes: within().ok_or_else(outside)?,
                name: entry.name,
                shape: entry.shape,
                ggml_type: entry.ggml_type,
            })
        });
        let tensors = tensors.collect::<Result<_, GgufError>>()?;
        Ok(Self { metadata, tensors })
    }
}

/// Reads the magic bytes and the version.
fn read_version(cursor: &mut Cursor<'_>) -> Result<(), GgufError> {
    let magic: [u8; 4] = cursor.array("the bytes `GGUF`")?;
    if magic != *b"GGUF" {
        let found = match &magic {
            b"lmgg" | b"fmgg" | b"tjgg" | b"algg" => {
                "a ggml file from before GGUF: convert the model again with llama.cpp's \
                 convert_hf_to_gguf.py"
            }
            b"FUGG" => return Err(GgufError::BigEndian),
            b"vers" => "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
            _ => {
                let found = format!("`{}`", magic.escape_ascii());
                return Err(GgufError::NotGguf { found });
            }
        };
        let found = found.to_owned();
        return Err(GgufError::NotGguf { found });
    }
    match cursor.u32("the version")? {
        2 | 3 => Ok(()),
        // 1, 2 or 3 in big-endian order.
        version if version & 0xffff == 0 && version != 0 => Err(GgufError::BigEndian),
        found => Err(GgufError::Version { found }),
    }
}

fn read_entry(cursor: &mut Cursor<'_>, alignment: u64) -> Result<Entry, GgufError> {
    let name = cursor.text("a tensor's name")?.to_owned();
    let damaged = |expected: &str, found: String| {
        GgufError::damaged(format!("tensor `{name}`"), expected, found)
    };
    let axes = cursor.u32("a tensor's axes")?;
    if axes > MAX_AXES {
        return Err(damaged("at most 4 axes", axes.to_string()));
    }
    let mut shape = Vec::with_capacity(MAX_AXES as usize);
    for _ in 0..axes {
        let size = cursor.u64("a tensor's axes")?;
        match usize::try_from(size) {
            Ok(size) if size > 0 => shape.push(size),
            _ => return Err(damaged("axes with a size that fits", size.to_string())),
        }
    }
    shape.reverse();
    let id = cursor.u32("a tensor's type")?;
    let ggml_type = GgmlType::from_id(id).ok_or_else(|| GgufError::UnknownType {
        tensor: name.clone(),
        found: match retired(id) {
            Some(name) => format!("{name}, which ggml has removed"),
            None => format!("number {id}"),
        },
    })?;
    let offset = cursor.u64("a tensor's offset")?;
    if offset % alignment != 0 {
        let expected = format!("an offset that is a multiple of {alignment}");
        return Err(damaged(&expected, offset.to_string()));
    }
    let cols = shape.last().copied().unwrap_or(1);
    if cols % ggml_type.block_len() != 0 {
        let expected = format!(
            "rows of whole blocks of {} elements for {ggml_type}",
            ggml_type.block_len()
        );
        return Err(damaged(&expected, format!("rows of {cols}")));
    }
    let elements = shape
        .iter()
        .try_fold(1_u64, |product, size| product.checked_mul(*size as u64));
    let length = elements.and_then(|elements| {
        (elements / ggml_type.block_len() as u64).checked_mul(ggml_type.block_bytes() as u64)
    });
    let length = length.ok_or_else(|| damaged("a size in 64 bits", format!("{shape:?}")))?;
    Ok(Entry {
        name,
        shape,
        ggml_type,
        offset,
        length,
    })
}

/// Checks that no byte belongs to two tensors, so that a small file cannot claim many large ones.
fn check_overlaps(entries: &[Entry]) -> Result<(), GgufError> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by_key(|entry| entry.offset);
    for pair in sorted.windows(2) {
        let end = pair[0].offset.checked_add(pair[0].length);
        if end.is_none_or(|end| end > pair[1].offset) {
            return Err(GgufError::damaged(
                format!("tensor `{}`", pair[1].name),
                "bytes of its own",
                format!("bytes of tensor `{}`", pair[0].name),
            ));
        }
    }
    Ok(())
}
