//! The tensors of parameters and optimizers, as a checkpoint stores them.

use std::collections::BTreeMap;

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param};
use burn::optim::record::AdaptorRecord;
use burn::optim::{AdamState, AdaptiveMomentumState};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};

use super::Records;
use crate::training::checkpoint_file::{MOMENTS, Stored};

/// The optimizers' names: of everything but masks, and of masks.
const OPTIMIZERS: [&str; 2] = ["optimizer", "mask_optimizer"];

/// Collects the tensors of parameters and optimizers, one parameter after another.
pub(super) struct Collect<A: AutodiffBackend, I: AutodiffModule<A>> {
    pub(super) what: &'static str,
    pub(super) index: usize,
    pub(super) records: [Records<A, I>; 2],
    pub(super) tensors: BTreeMap<String, Stored>,
    pub(super) times: BTreeMap<String, usize>,
    pub(super) failed: Option<String>,
}

impl<A: AutodiffBackend, I: AutodiffModule<A>> Collect<A, I> {
    fn put<B: Backend, const D: usize>(&mut self, name: String, tensor: Tensor<B, D>) {
        let data = tensor.into_data();
        match stored_dtype(data.dtype) {
            Some(dtype) => {
                let stored = Stored {
                    dtype,
                    shape: data.shape.to_vec(),
                    bytes: data.as_bytes().to_vec(),
                };
                self.tensors.insert(name, stored);
            }
            None => {
                let reason = format!("{name}: {:?} cannot be stored", data.dtype);
                self.failed.get_or_insert(reason);
            }
        }
    }
}

impl<A: AutodiffBackend, I: AutodiffModule<A>> ModuleVisitor<A> for Collect<A, I> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
        let index = self.index;
        self.index += 1;
        self.put(format!("{}.{index}", self.what), param.val().inner());
        if self.what != "parameter" {
            return;
        }
        for (optimizer, name) in OPTIMIZERS.iter().enumerate() {
            let Some(record) = self.records[optimizer].remove(&param.id) else {
                continue;
            };
            let AdaptiveMomentumState {
                time,
                moment_1,
                moment_2,
                max_moment_2,
            } = record.into_state::<D>().momentum;
            self.times.insert(format!("{name}.{index}"), time);
            let moments = [Some(moment_1), Some(moment_2), max_moment_2];
            for (moment, tensor) in MOMENTS.into_iter().zip(moments) {
                if let Some(tensor) = tensor {
                    self.put(format!("{name}.{index}.{moment}"), tensor);
                }
            }
        }
    }
}

/// Restores the tensors, in the same order.
pub(super) struct Restore<'a, A: AutodiffBackend, I: AutodiffModule<A>> {
    pub(super) what: &'static str,
    pub(super) index: usize,
    pub(super) records: [Records<A, I>; 2],
    pub(super) tensors: &'a SafeTensors<'a>,
    pub(super) times: &'a BTreeMap<String, usize>,
    pub(super) failed: Option<String>,
}

impl<'a, A: AutodiffBackend, I: AutodiffModule<A>> Restore<'a, A, I> {
    /// The bytes of a tensor; none if it is missing or has another dtype.
    pub(super) fn bytes(&mut self, name: &str, dtype: Dtype) -> &'a [u8] {
        match self.tensors.tensor(name) {
            Ok(view) if view.dtype() == dtype => view.data(),
            other => {
                let found = other.map(|view| view.dtype().to_string());
                let found = found.unwrap_or_else(|_| "none".to_owned());
                let reason = format!("{name}: expected a tensor of {dtype}, found {found}");
                self.failed.get_or_insert(reason);
                &[]
            }
        }
    }

    /// A tensor with the shape and dtype of `like`, which is returned if it cannot be read.
    fn take<B: Backend, const D: usize>(&mut self, name: &str, like: Tensor<B, D>) -> Tensor<B, D> {
        let Some(dtype) = stored_dtype(like.dtype()) else {
            self.failed
                .get_or_insert(format!("{name}: {:?}", like.dtype()));
            return like;
        };
        let bytes = self.bytes(name, dtype);
        let shape = self.tensors.tensor(name).map(|view| view.shape().to_vec());
        if self.failed.is_some() || shape.is_ok_and(|shape| shape != like.dims()) {
            let reason = format!("{name}: expected a tensor of shape {:?}", like.dims());
            self.failed.get_or_insert(reason);
            return like;
        }
        let data = TensorData::from_bytes_vec(bytes.to_vec(), like.dims(), like.dtype());
        Tensor::from_data(data, (&like.device(), like.dtype()))
    }
}

impl<A: AutodiffBackend, I: AutodiffModule<A>> ModuleMapper<A> for Restore<'_, A, I> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<A, D>>) -> Param<Tensor<A, D>> {
        let index = self.index;
        self.index += 1;
        let id = param.id;
        let like = param.val().inner();
        let own = self.take(&format!("{}.{index}", self.what), like.clone());
        let param =
            param.map(|old| Tensor::from_inner(own).set_require_grad(old.is_require_grad()));
        if self.what != "parameter" {
            return param;
        }
        for (optimizer, name) in OPTIMIZERS.iter().enumerate() {
            let Some(time) = self.times.get(&format!("{name}.{index}")) else {
                continue;
            };
            let names = MOMENTS.map(|moment| format!("{name}.{index}.{moment}"));
            let has_max = self.tensors.tensor(&names[2]).is_ok();
            let momentum = AdaptiveMomentumState {
                time: *time,
                moment_1: self.take(&names[0], like.clone()),
                moment_2: self.take(&names[1], like.clone()),
                max_moment_2: has_max.then(|| self.take(&names[2], like.clone())),
            };
            let state = AdamState::new(momentum);
            self.records[optimizer].insert(id, AdaptorRecord::from_state(state));
        }
        param
    }
}

/// The name of a float type in safetensors.
fn stored_dtype(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F64 => Some(Dtype::F64),
        DType::F32 | DType::Flex32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}
