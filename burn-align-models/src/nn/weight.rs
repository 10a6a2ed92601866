//! The weight of a projection or an embedding: a tensor, several, or the blocks of a GGUF file.

mod order;
mod split;
#[cfg(all(test, feature = "flex"))]
mod tests;

use std::ops::Range;

use burn::module::{
    AutodiffModule, Content, Devices, HasAutodiffModule, Module, ModuleDisplay,
    ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param, ParamId,
};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Shape, Tensor, TensorData};

pub(super) use self::order::in_order;
use self::split::Split;
use crate::quants::QuantizedMatrix;

/// Whether weights of a model on this backend may stay quantised: [`Flex`](burn::backend) with and
/// without autodiff, with the kernels of the feature `flex`. On others, a quantised weight is
/// dequantised when it is [set](Weight::set_quantized).
pub fn keeps_quantized<B: Backend>() -> bool {
    #[cfg(feature = "flex")]
    return super::flex::multiplies_quantized::<B>();
    #[cfg(not(feature = "flex"))]
    false
}

/// A matrix that multiplies activations, or whose rows are looked up.
///
/// To Burn it is one parameter in any form. A weight that is quantised or in parts is frozen:
/// mappers, such as those that turn on gradients, skip it. Reading its values, as when it is saved
/// or recorded, dequantises it into a new f32 tensor, or joins the parts.
#[derive(Clone, Debug)]
pub struct Weight<B: Backend> {
    values: Values<B>,
    orientation: Orientation,
}

#[derive(Clone, Debug)]
enum Values<B: Backend> {
    Dense(Param<Tensor<B, 2>>),
    Quantized(Quantized<B>),
    /// Parts of its outputs: rows of an embedding, columns of a projection.
    Split(Split<B>),
}

#[derive(Clone, Debug)]
struct Quantized<B: Backend> {
    id: ParamId,
    device: B::Device,
    matrix: QuantizedMatrix,
}

/// How a quantised matrix is oriented relative to the tensor that it represents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Orientation {
    /// `[row, col]`, as the tensor.
    Same,
    /// `[col, row]`.
    Transposed,
}

/// A quantised matrix whose shape does not match the weight.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a matrix of shape {expected:?}, found {found:?}")]
#[non_exhaustive]
pub struct WeightShapeError {
    /// Expected rows and columns, as stored in a GGUF file.
    pub expected: [usize; 2],
    /// Rows and columns found.
    pub found: [usize; 2],
}

impl<B: Backend> Weight<B> {
    pub(super) fn new(param: Param<Tensor<B, 2>>, orientation: Orientation) -> Self {
        Self {
            values: Values::Dense(param),
            orientation,
        }
    }

    /// Rows and columns of the tensor; does not dequantise.
    pub fn dims(&self) -> [usize; 2] {
        match &self.values {
            Values::Dense(param) => param.lazy_shape().dims(),
            Values::Quantized(quantized) => self.orientation.of(quantized.matrix.dims()),
            Values::Split(split) => split.dims(),
        }
    }

    /// Its device.
    pub fn device(&self) -> B::Device {
        match &self.values {
            Values::Dense(param) => param.lazy_device(),
            Values::Quantized(quantized) => quantized.device.clone(),
            Values::Split(split) => split.device(),
        }
    }

    /// The dtype of the tensor.
    pub fn dtype(&self) -> DType {
        match &self.values {
            Values::Dense(param) => param.val().dtype(),
            Values::Quantized(_) => DType::F32,
            Values::Split(split) => split.dtype(),
        }
    }

    /// The tensor; a quantised weight is dequantised to f32 each time, and parts are joined.
    pub fn val(&self) -> Tensor<B, 2> {
        match &self.values {
            Values::Dense(param) => param.val(),
            Values::Quantized(quantized) => self.dense(quantized).val(),
            Values::Split(split) => split.whole().val(),
        }
    }

    /// Brings the values into the order in memory in which products read them fastest.
    pub(crate) fn lay_out(&mut self) {
        if self.orientation == Orientation::Transposed {
            self.values = match &self.values {
                Values::Dense(param) => Values::Dense(param.clone().map(in_order)),
                Values::Split(split) => Values::Split(split.map(in_order)),
                Values::Quantized(quantized) => Values::Quantized(quantized.clone()),
            };
        }
    }

    /// The tensors that its outputs are in, in order: rows of an embedding, columns of a
    /// projection.
    pub(super) fn parts(&self) -> Vec<Tensor<B, 2>> {
        match &self.values {
            Values::Split(split) => split.parts().to_vec(),
            _ => vec![self.val()],
        }
    }

    /// The same for some of the outputs: one tensor of none, if the range is empty.
    pub(crate) fn outputs(&self, range: Range<usize>) -> Vec<Tensor<B, 2>> {
        let axis = self.orientation.outputs();
        match &self.values {
            _ if range.is_empty() => {
                let mut dims = self.dims();
                dims[axis] = 0;
                vec![Tensor::zeros(dims, (&self.device(), self.dtype()))]
            }
            Values::Split(split) => split.within(range),
            _ => vec![self.val().narrow(axis, range.start, range.len())],
        }
    }

    /// Whether it has a gradient.
    pub(super) fn is_trained(&self) -> bool {
        matches!(&self.values, Values::Dense(weight) if weight.val().is_require_grad())
    }

    /// Whether it is in parts.
    pub(crate) fn is_split(&self) -> bool {
        matches!(self.values, Values::Split(_))
    }

    /// The blocks of a weight that has stayed quantised. A projection's are `[d_output, d_input]`.
    pub fn quantized(&self) -> Option<&QuantizedMatrix> {
        match &self.values {
            Values::Dense(_) | Values::Split(_) => None,
            Values::Quantized(quantized) => Some(&quantized.matrix),
        }
    }

    /// Replaces the values with a tensor of the same shape.
    ///
    /// # Panics
    /// If its shape is different.
    pub fn set(&mut self, tensor: Tensor<B, 2>) {
        assert_eq!(
            tensor.dims(),
            self.dims(),
            "the new values must have the weight's shape"
        );
        self.values = Values::Dense(Param::from_tensor(tensor));
    }

    /// Replaces the values with a matrix from a GGUF file: a projection's `[d_output, d_input]`, an
    /// embedding's `[vocab, d_model]`. In a model in f32, on a backend that [can multiply by
    /// it](keeps_quantized), it stays quantised, as a copy [in
    /// panels](QuantizedMatrix::in_panels) if its format can; otherwise it becomes a tensor of the
    /// model's dtype. Either way it has no gradient.
    ///
    /// # Errors
    /// If its shape is different.
    pub fn set_quantized(
        &mut self,
        matrix: QuantizedMatrix,
        dtype: DType,
    ) -> Result<(), WeightShapeError> {
        let expected = self.orientation.of(self.dims());
        if matrix.dims() != expected {
            return Err(WeightShapeError {
                expected,
                found: matrix.dims(),
            });
        }
        let (id, device) = (self.id(), self.device());
        self.values = match dtype == DType::F32 && keeps_quantized::<B>() {
            true => Values::Quantized(Quantized {
                id,
                device,
                matrix: matrix.in_panels(),
            }),
            false => {
                let tensor = self.orientation.tensor(&matrix, &device, dtype);
                Values::Dense(Param::initialized(id, tensor))
            }
        };
        Ok(())
    }

    /// Replaces the values with a matrix on the host, `[d_input, d_output]` of a projection or
    /// `[vocab, d_model]` of an embedding, in parts of at most `most_bytes`: for devices that hold
    /// no larger tensor. It has no gradient.
    ///
    /// # Errors
    /// If its shape is different.
    pub(crate) fn set_in_parts(
        &mut self,
        values: &TensorData,
        most_bytes: u64,
    ) -> Result<(), WeightShapeError> {
        let expected = self.dims();
        if values.shape[..] != expected {
            let found = match values.shape[..] {
                [rows, cols] => [rows, cols],
                _ => [values.num_elements(), 1],
            };
            return Err(WeightShapeError { expected, found });
        }
        let (id, axis, device) = (self.id(), self.orientation.outputs(), self.device());
        let split = Split::new(id, axis, values, most_bytes, &device);
        self.values = Values::Split(split);
        Ok(())
    }

    fn id(&self) -> ParamId {
        match &self.values {
            Values::Dense(param) => param.id,
            Values::Quantized(quantized) => quantized.id,
            Values::Split(split) => split.id,
        }
    }

    /// A parameter whose tensor is made when it is first read.
    fn dense(&self, quantized: &Quantized<B>) -> Param<Tensor<B, 2>> {
        let (orientation, matrix) = (self.orientation, quantized.matrix.clone());
        Param::uninitialized(
            quantized.id,
            move |device, _| orientation.tensor(&matrix, device, DType::F32),
            quantized.device.clone(),
            false,
            Shape::new(self.dims()),
        )
    }

    /// The parameter that Burn sees.
    fn param(&self) -> Param<Tensor<B, 2>> {
        match &self.values {
            Values::Dense(param) => param.clone(),
            Values::Quantized(quantized) => self.dense(quantized),
            Values::Split(split) => split.whole(),
        }
    }

    fn map_dense(self, map: impl FnOnce(Param<Tensor<B, 2>>) -> Param<Tensor<B, 2>>) -> Self {
        let values = match self.values {
            Values::Dense(param) => Values::Dense(map(param)),
            frozen => frozen,
        };
        Self { values, ..self }
    }

    fn on_device(
        self,
        device: &B::Device,
        map: impl FnOnce(Param<Tensor<B, 2>>, &B::Device) -> Param<Tensor<B, 2>>,
    ) -> Self {
        let values = match self.values {
            Values::Dense(param) => Values::Dense(map(param, device)),
            Values::Quantized(quantized) => Values::Quantized(Quantized {
                device: device.clone(),
                ..quantized
            }),
            Values::Split(split) => Values::Split(split.map(|part| part.to_device(device))),
        };
        Self { values, ..self }
    }
}

impl Orientation {
    /// The axis of the tensor along which its outputs are: tokens of an embedding, features of a
    /// projection.
    fn outputs(self) -> usize {
        match self {
            Self::Same => 0,
            Self::Transposed => 1,
        }
    }

    fn of(self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Same => [rows, cols],
            Self::Transposed => [cols, rows],
        }
    }

    /// In the layout in which products with a dense weight are fastest.
    fn tensor<B: Backend>(
        self,
        matrix: &QuantizedMatrix,
        device: &B::Device,
        dtype: DType,
    ) -> Tensor<B, 2> {
        match self {
            Self::Same => matrix.to_tensor(device, dtype),
            Self::Transposed => matrix.to_transposed_tensor(device, dtype),
        }
    }
}

impl<B: Backend> Module<B> for Weight<B> {
    type Record = Param<Tensor<B, 2>>;

    fn collect_devices(&self, mut devices: Devices<B>) -> Devices<B> {
        let device = self.device();
        if !devices.contains(&device) {
            devices.push(device);
        }
        devices
    }

    fn fork(self, device: &B::Device) -> Self {
        self.on_device(device, Module::fork)
    }

    fn to_device(self, device: &B::Device) -> Self {
        self.on_device(device, Module::to_device)
    }

    fn visit<V: ModuleVisitor<B>>(&self, visitor: &mut V) {
        match &self.values {
            // Not a clone, which would not be initialised with it.
            Values::Dense(param) => param.visit(visitor),
            Values::Quantized(_) | Values::Split(_) => self.param().visit(visitor),
        }
    }

    fn map<M: ModuleMapper<B>>(self, mapper: &mut M) -> Self {
        self.map_dense(|param| mapper.map_float(param))
    }

    fn load_record(self, record: Self::Record) -> Self {
        Self {
            values: Values::Dense(self.param().load_record(record)),
            ..self
        }
    }

    fn into_record(self) -> Self::Record {
        self.param().into_record()
    }
}

impl<B: AutodiffBackend> AutodiffModule<B> for Weight<B> {
    type InnerModule = Weight<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        let values = match &self.values {
            Values::Dense(param) => Values::Dense(param.valid()),
            Values::Quantized(quantized) => Values::Quantized(Quantized {
                id: quantized.id,
                device: quantized.device.clone(),
                matrix: quantized.matrix.clone(),
            }),
            Values::Split(split) => Values::Split(split.map(Tensor::inner)),
        };
        Weight {
            values,
            orientation: self.orientation,
        }
    }

    fn from_inner(module: Self::InnerModule) -> Self {
        let values = match module.values {
            Values::Dense(param) => Values::Dense(AutodiffModule::from_inner(param)),
            Values::Quantized(quantized) => Values::Quantized(Quantized {
                id: quantized.id,
                device: quantized.device,
                matrix: quantized.matrix,
            }),
            Values::Split(split) => Values::Split(split.map(Tensor::from_inner)),
        };
        Self {
            values,
            orientation: module.orientation,
        }
    }
}

impl<B: AutodiffBackend> HasAutodiffModule<B> for Weight<B::InnerBackend> {
    type TrainModule = Weight<B>;
}

impl<B: Backend> ModuleDisplayDefault for Weight<B> {
    fn content(&self, content: Content) -> Option<Content> {
        let text = match &self.values {
            Values::Dense(param) => format!("{:?}", param.lazy_shape().as_slice()),
            Values::Quantized(quantized) => format!("{:?}", quantized.matrix),
            Values::Split(split) => {
                format!("{:?} in {} parts", split.dims(), split.parts().len())
            }
        };
        content.add_formatted(&text).optional()
    }
}

impl<B: Backend> ModuleDisplay for Weight<B> {}
