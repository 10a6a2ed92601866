//! A model's file, or all of its parts.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};

#[cfg(test)]
use super::MetadataValue;
use super::part::Part;
use super::{GgufError, GgufTensor, Metadata};

/// An open GGUF file: metadata, and tensors whose bytes stay in the file until they are used.
///
/// Format: `docs/gguf.md` in ggml's repository, versions 2 and 3, little-endian.
#[derive(Clone, Debug)]
pub struct Gguf {
    metadata: Metadata,
    tensors: Vec<GgufTensor>,
    by_name: HashMap<String, usize>,
    files: Vec<PathBuf>,
}

impl Gguf {
    /// Opens a file. If the model is in several parts, such as `name-00001-of-00003.gguf`, any one
    /// may be named; all are opened.
    ///
    /// # Errors
    /// If the file, or one of the parts, is missing, damaged or not GGUF. See [`GgufError`].
    pub fn open(file: impl AsRef<Path>) -> Result<Self, GgufError> {
        let file = file.as_ref();
        let opened = Part::open(file)?;
        let count = part_count(&opened.metadata)?;
        if count == 1 {
            return Self::assemble(vec![(file.to_owned(), opened)]);
        }
        let name = PartName::parse(file).filter(|name| name.count == count);
        let name = name.ok_or_else(|| GgufError::PartName {
            count,
            expected: format!("model-00001-of-{count:05}.gguf"),
            found: file.display().to_string(),
        })?;
        let mut opened = Some(opened);
        let mut parts = Vec::new();
        for number in 0..count {
            let path = name.path_of(number);
            let part = match opened.take_if(|_| number == name.number) {
                Some(part) => part,
                None if !path.exists() => {
                    return Err(GgufError::MissingPart { file: path, count });
                }
                None => Part::open(&path).map_err(|cause| in_part(&path, cause))?,
            };
            check_part(&part.metadata, number, count).map_err(|cause| in_part(&path, cause))?;
            parts.push((path, part));
        }
        Self::assemble(parts)
    }

    fn assemble(parts: Vec<(PathBuf, Part)>) -> Result<Self, GgufError> {
        let mut all = Self {
            metadata: Metadata::default(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
            files: Vec::new(),
        };
        for (file, part) in parts {
            // Later parts only have metadata about themselves.
            if all.files.is_empty() {
                all.metadata = part.metadata;
            }
            all.files.push(file);
            for tensor in part.tensors {
                match all.by_name.entry(tensor.name.clone()) {
                    Entry::Vacant(entry) => entry.insert(all.tensors.len()),
                    Entry::Occupied(entry) => {
                        let tensor = entry.key().clone();
                        return Err(GgufError::DuplicateTensor { tensor });
                    }
                };
                all.tensors.push(tensor);
            }
        }
        match all.metadata.unsigned(SPLIT_TENSORS)? {
            Some(count) if all.files.len() > 1 && count != all.tensors.len() as u64 => {
                let found = format!("the tensors of this model: there are {}", all.tensors.len());
                Err(all.metadata.wrong(SPLIT_TENSORS, found))
            }
            _ => Ok(all),
        }
    }

    /// The same file with another value for a key, or without the key.
    #[cfg(test)]
    pub(super) fn with(mut self, key: &str, value: Option<MetadataValue>) -> Self {
        let others = self.metadata.iter().filter(|(found, _)| *found != key);
        let others = others.map(|(key, value)| (key, value.clone()));
        self.metadata = Metadata::of(others.chain(value.map(|value| (key, value))));
        self
    }

    /// The metadata; for several parts, those of the first.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// A tensor by its name.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.by_name.get(name).map(|index| &self.tensors[*index])
    }

    /// The files: one, or all parts in order.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

const SPLIT_COUNT: &str = "split.count";
const SPLIT_NUMBER: &str = "split.no";
const SPLIT_TENSORS: &str = "split.tensors.count";
/// The maximum for five digits.
const MAX_PARTS: u64 = 99_999;

fn part_count(metadata: &Metadata) -> Result<usize, GgufError> {
    match metadata.unsigned(SPLIT_COUNT)? {
        None | Some(0) => Ok(1),
        Some(count) if count <= MAX_PARTS => Ok(count as usize),
        Some(_) => Err(metadata.wrong(SPLIT_COUNT, format!("at most {MAX_PARTS}"))),
    }
}

fn check_part(metadata: &Metadata, number: usize, count: usize) -> Result<(), GgufError> {
    for (key, expected) in [(SPLIT_NUMBER, number), (SPLIT_COUNT, count)] {
        if metadata.unsigned(key)? != Some(expected as u64) {
            return Err(metadata.wrong(key, format!("{expected}, from the file's name")));
        }
    }
    Ok(())
}

fn in_part(file: &Path, cause: GgufError) -> GgufError {
    GgufError::Part {
        file: file.to_owned(),
        cause: Box::new(cause),
    }
}

/// `prefix-00001-of-00003.gguf`.
struct PartName {
    folder: PathBuf,
    prefix: String,
    /// From 0.
    number: usize,
    count: usize,
}

impl PartName {
    fn parse(file: &Path) -> Option<Self> {
        fn five_digits(text: &str) -> Option<usize> {
            let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok())?
        }
        let name = file.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = name.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let (number, count) = (five_digits(number)?, five_digits(count)?);
        Some(Self {
            folder: file.parent()?.to_owned(),
            prefix: prefix.to_owned(),
            number: number.checked_sub(1).filter(|number| *number < count)?,
            count,
        })
    }

    fn path_of(&self, number: usize) -> PathBuf {
        let (prefix, count) = (&self.prefix, self.count);
        let number = number + 1;
        self.folder
            .join(format!("{prefix}-{number:05}-of-{count:05}.gguf"))
    }
}
