//! Loads the weights of a checkpoint into a model.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::rc::Rc;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Bytes, DType, Shape, Tensor, TensorData, backend::Backend};
use burn_store::{ModuleSnapshot, TensorSnapshot, TensorSnapshotError};

use super::checkpoint::{Checkpoint, Stored};
use super::{CheckpointError, Family, LoadNote, LoadOptions, LoadProgress, WeightLayout};
use crate::nn::keeps_quantized;

/// Loads the weights of a checkpoint into a model.
///
/// Names, shapes and dtypes are all checked before the first tensor is read; then one tensor is
/// read, converted and put in place at a time.
pub(super) fn load<B: Backend, M: Family<B>>(
    mut model: M,
    layout: WeightLayout,
    checkpoint: Checkpoint,
    options: &LoadOptions,
) -> Result<(M, Vec<LoadNote>), CheckpointError> {
    let Matched {
        mut names,
        other_heads,
    } = match_names(&shapes(&model), &layout, &checkpoint)?;
    let mut notes = checkpoint.notes.clone();
    if !other_heads.is_empty() {
        notes.push(LoadNote::OtherHeads {
            tensors: other_heads,
        });
    }

    if options.keep_quantised && options.dtype == DType::F32 && keeps_quantized::<B>() {
        keep_quantized(&mut model, &mut names, &checkpoint)?;
    }

    let total = |f: fn(&Stored) -> usize| -> usize {
        names
            .values()
            .map(|name| f(&checkpoint.tensors[name]))
            .sum()
    };
    let (tensors_total, bytes_total) = (names.len(), total(|stored| stored.bytes));
    let reader = Rc::new(Reader {
        checkpoint,
        layout,
        options: options.clone(),
        tensors_total,
        bytes_total,
        tensors_done: Cell::new(0),
        bytes_done: Cell::new(0),
        error: RefCell::new(None),
    });
    if let Some(most_bytes) = options.max_tensor_bytes {
        keep_in_parts(&mut model, &mut names, &reader, most_bytes)?;
    }
    let snapshots = names.into_iter().map(|(path, name)| {
        let reader = Rc::clone(&reader);
        let shape = Shape::from(reader.checkpoint.tensors[&name].shape.clone());
        let path_stack = path.split('.').map(str::to_owned).collect();
        TensorSnapshot::from_closure(
            Rc::new(move || reader.read(&path, &name)),
            options.dtype,
            shape,
            path_stack,
            Vec::new(),
            ParamId::new(),
        )
    });
    // `apply` moves the module out and back in; if the backend panics in between, the module must
    // not be dropped twice.
    let mut model = ManuallyDrop::new(model);
    let result = model.apply(snapshots.collect(), None, None, false);
    let mut model = ManuallyDrop::into_inner(model);
    if let Some(error) = reader.error.borrow_mut().take() {
        return Err(error);
    }
    assert!(
        result.errors.is_empty() && result.missing.is_empty() && result.unused.is_empty(),
        "names and shapes were checked before: {result}"
    );
    for (_path, weight) in model.weights_mut() {
        weight.lay_out();
    }
    Ok((model, notes))
}

/// Sets the matrices that stay quantised; they need not be read later.
fn keep_quantized<B: Backend, M: Family<B>>(
    model: &mut M,
    names: &mut BTreeMap<String, String>,
    checkpoint: &Checkpoint,
) -> Result<(), CheckpointError> {
    for (path, weight) in model.weights_mut() {
        let Some(name) = names.get(&path) else {
            continue;
        };
        let Some(matrix) = checkpoint.quantized(name) else {
            continue;
        };
        weight
            .set_quantized(matrix, DType::F32)
            .map_err(|error| CheckpointError::WrongShape {
                tensor: name.clone(),
                expected: error.expected.to_vec(),
                found: error.found.to_vec(),
            })?;
        checkpoint.release(name);
        names.remove(&path);
    }
    Ok(())
}

/// Reads the matrices that the device cannot hold as one tensor, and sets them in parts.
fn keep_in_parts<B: Backend, M: Family<B>>(
    model: &mut M,
    names: &mut BTreeMap<String, String>,
    reader: &Reader,
    most_bytes: u64,
) -> Result<(), CheckpointError> {
    for (path, weight) in model.weights_mut() {
        let bytes = weight.dims().iter().product::<usize>() * reader.options.dtype.size();
        let Some(name) = names.get(&path).filter(|_| bytes as u64 > most_bytes) else {
            continue;
        };
        let values = reader.values(&path, name)?;
        weight
            .set_in_parts(&values, most_bytes)
            .map_err(|error| CheckpointError::WrongShape {
                tensor: name.clone(),
                expected: error.expected.to_vec(),
                found: error.found.to_vec(),
            })?;
        names.remove(&path);
    }
    Ok(())
}

/// How the tensors of a checkpoint match a model.
#[derive(Default)]
struct Matched {
    /// Path in the module → name in the checkpoint.
    names: BTreeMap<String, String>,
    /// Tensors of heads other than the language-modelling one.
    other_heads: Vec<String>,
}

/// Finds the tensor of every parameter.
fn match_names(
    shapes: &BTreeMap<String, Vec<usize>>,
    layout: &WeightLayout,
    checkpoint: &Checkpoint,
) -> Result<Matched, CheckpointError> {
    let mut matched = Matched::default();
    let mut unused = Vec::new();
    for name in checkpoint.tensors.keys() {
        let path = layout.path(name);
        let path = path.filter(|path| shapes.contains_key(path));
        if let Some(first) = path.as_ref().and_then(|path| matched.names.get(path)) {
            return Err(CheckpointError::SameParameter {
                tensors: [first.clone(), name.clone()],
            });
        }
        if let Some(path) = path {
            matched.names.insert(path, name.clone());
        } else if is_of_another_head(name) {
            matched.other_heads.push(name.clone());
        } else if !layout.may_ignore(name) {
            unused.push(name.clone());
        }
    }
    let names = &matched.names;
    let missing: Vec<String> = shapes
        .keys()
        .filter(|path| !names.contains_key(*path))
        .map(|path| layout.name(path))
        .collect();
    if !missing.is_empty() {
        return Err(CheckpointError::MissingTensors { tensors: missing });
    }
    if !unused.is_empty() {
        return Err(CheckpointError::UnusedTensors { tensors: unused });
    }
    for (path, name) in names {
        let mut expected = shapes[path].clone();
        if layout.transposes(path, expected.len()) {
            expected.reverse();
        }
        let stored = &checkpoint.tensors[name];
        if stored.shape != expected {
            return Err(CheckpointError::WrongShape {
                tensor: name.clone(),
                expected,
                found: stored.shape.clone(),
            });
        }
        // Only parameters must be floats; masks stored by old versions are never read.
        if stored.dtype.is_none() {
            return Err(CheckpointError::WrongDType {
                tensor: name.clone(),
                found: stored.dtype_name.clone(),
            });
        }
    }
    Ok(matched)
}

/// Whether a tensor belongs to a head that other classes of `transformers` and training libraries
/// add next to the language-modelling one: such a head reads from the model without changing it.
fn is_of_another_head(name: &str) -> bool {
    const HEADS: [&str; 7] = [
        "score.",
        "classifier.",
        "multiple_choice_head.",
        "qa_outputs.",
        "v_head.",
        "value_head.",
        "regression_head.",
    ];
    HEADS.iter().any(|head| name.starts_with(head))
}

/// Reads tensors one after another, in the model's layout and dtype.
struct Reader {
    checkpoint: Checkpoint,
    layout: WeightLayout,
    options: LoadOptions,
    tensors_total: usize,
    bytes_total: usize,
    tensors_done: Cell<usize>,
    bytes_done: Cell<usize>,
    /// The first error; `burn-store` only keeps its text.
    error: RefCell<Option<CheckpointError>>,
}

impl Reader {
    fn read(&self, path: &str, name: &str) -> Result<TensorData, TensorSnapshotError> {
        self.values(path, name).map_err(|error| {
            let text = error.to_string();
            self.error.borrow_mut().get_or_insert(error);
            TensorSnapshotError::DataError(text)
        })
    }

    fn values(&self, path: &str, name: &str) -> Result<TensorData, CheckpointError> {
        if let Some(progress) = &self.options.progress {
            progress(LoadProgress {
                tensor: name,
                tensors_done: self.tensors_done.get(),
                tensors_total: self.tensors_total,
                bytes_done: self.bytes_done.get(),
                bytes_total: self.bytes_total,
            });
        }
        let data = self.checkpoint.read(name)?;
        self.tensors_done.update(|n| n + 1);
        self.bytes_done.update(|n| n + data.bytes.len());
        let data = data.convert_dtype(self.options.dtype);
        Ok(if self.layout.transposes(path, data.shape.num_dims()) {
            transpose(data)
        } else {
            data
        })
    }
}

/// Transposes a matrix, `[rows, cols]` → `[cols, rows]`.
pub(super) fn transpose(data: TensorData) -> TensorData {
    let [rows, cols] = data.shape[..] else {
        panic!("only matrices are stored transposed");
    };
    let bytes = match data.dtype.size() {
        2 => transpose_elements::<2>(&data.bytes, rows, cols),
        4 => transpose_elements::<4>(&data.bytes, rows, cols),
        8 => transpose_elements::<8>(&data.bytes, rows, cols),
        size => panic!("no float has {size} bytes"),
    };
    TensorData {
        bytes: Bytes::from_bytes_vec(bytes),
        shape: Shape::from(vec![cols, rows]),
        dtype: data.dtype,
    }
}

/// Works in tiles, so that both the rows read and the rows written stay in the cache.
fn transpose_elements<const SIZE: usize>(bytes: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    const TILE: usize = 32;
    let (source, _) = bytes.as_chunks::<SIZE>();
    let mut out = vec![0; bytes.len()];
    let (target, _) = out.as_chunks_mut::<SIZE>();
    for row_start in (0..rows).step_by(TILE) {
        for col_start in (0..cols).step_by(TILE) {
            for row in row_start..(row_start + TILE).min(rows) {
                for col in col_start..(col_start + TILE).min(cols) {
                    target[col * rows + row] = source[row * cols + col];
                }
            }
        }
    }
    out
}

/// The shape of every parameter, by its path in the module. Nothing is initialised.
pub(super) fn shapes<B: Backend, M: Module<B>>(model: &M) -> BTreeMap<String, Vec<usize>> {
    #[derive(Default)]
    struct Shapes {
        path: Vec<String>,
        shapes: BTreeMap<String, Vec<usize>>,
    }
    impl<B: Backend> ModuleVisitor<B> for Shapes {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.to_owned());
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let shape = param.lazy_shape().to_vec();
            self.shapes.insert(self.path.join("."), shape);
        }
    }
    let mut visitor = Shapes::default();
    model.visit(&mut visitor);
    visitor.shapes
}
