//! The fast paths under autodiff: the same kernels for the forward pass, and kernels for their
//! gradients.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{DType, Tensor, TensorData, TensorMetadata, TensorPrimitive};
use burn_align_quants::QuantizedMatrix;
use burn_flex::{Flex, FlexTensor};

use super::recognise::cast;
use super::{cross_entropy, divergence, heads, kernels, memory, product, strided};

/// A tensor of the autodiff backend on Flex.
pub(super) type Tracked = FloatTensor<Autodiff<Flex>>;

/// Multiplies a gradient by the derivative of a function of each element, given its argument.
pub(super) type Gradient = fn(&mut [f32], &[f32]);

/// What the gradient of a function of one tensor needs from the forward pass.
#[derive(Clone, Debug)]
pub(super) enum Saved {
    /// The argument of a function of each element.
    Argument(FlexTensor, Gradient),
    /// The result of a softmax, and the factor on its scores.
    Softmax(FlexTensor, f32),
    /// The argument of a norm without parameters, and its ε.
    RootMeanSquare(FlexTensor, f32),
    /// The argument of a norm, its scale and its ε.
    RmsNorm(FlexTensor, FlexTensor, f32),
    /// Cosines and sines of the rotation.
    Rotation(FlexTensor, FlexTensor),
    /// The number of heads that have been merged.
    Merged(usize),
    /// The total number of heads, the first head of the part, and the distance to the next one.
    HeadPart([usize; 3]),
    /// The logits, and what else cross-entropies depend on.
    CrossEntropies(cross_entropy::State),
    /// Two predictions.
    Divergences(divergence::State),
    /// Tokens were turned into rows.
    Rows,
    /// This many rows were turned into tokens.
    Tokens(usize),
}

impl Saved {
    /// The gradient of the argument.
    fn gradient(self, gradient: FlexTensor) -> FlexTensor {
        match self {
            Self::Merged(head) => {
                let [batch, pos, width] = gradient.shape().dims();
                let split = gradient.reshape([batch, pos, head, width / head].into());
                return split.transpose(1, 2);
            }
            Self::Rotation(cos, sin) => return heads::rotated(gradient, [&cos, &sin], -1.0),
            Self::CrossEntropies(state) => return state.gradient(gradient),
            Self::Divergences(state) => return state.gradient(gradient),
            Self::HeadPart(places) => return strided::among_heads(&gradient, places),
            Self::Rows => return strided::tokens_of(gradient),
            Self::Tokens(rows) => return strided::rows_of(gradient, rows),
            _ => {}
        }
        let mut gradient = strided::contiguous(gradient);
        let width = gradient.shape().last().copied().unwrap_or(1);
        match self {
            Self::Argument(x, kernel) => with(x, |x| kernel(gradient.storage_mut(), x)),
            Self::Softmax(weights, scale) => with(weights, |weights| {
                kernels::softmax_gradient(gradient.storage_mut(), weights, width, scale);
            }),
            Self::RootMeanSquare(x, epsilon) => with(x, |x| {
                kernels::root_mean_square_gradient(gradient.storage_mut(), x, width, epsilon);
            }),
            Self::RmsNorm(x, weight, epsilon) => with(x, |x| {
                let weight = strided::contiguous(weight);
                kernels::rms_norm_gradient(gradient.storage_mut(), x, weight.storage(), epsilon);
            }),
            _ => unreachable!("returned above"),
        }
        gradient
    }
}

/// Calls `f` with the elements of a tensor, which is not needed any more then.
fn with(x: FlexTensor, f: impl FnOnce(&[f32])) {
    let x = strided::contiguous(x);
    f(x.storage());
    memory::give(x);
}

#[derive(Debug)]
struct OfOne;

impl Backward<Flex, 1> for OfOne {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        unary::<Flex, _>(ops.parents, ops.node, gradients, |gradient| {
            ops.state.gradient(gradient)
        });
    }
}

/// Applies `forward`; `Err` with the tensor unless it is an f32 tensor of the autodiff backend on
/// Flex.
///
/// - `save`: from argument and result, what the gradient needs
pub(super) fn apply<B: Backend, const D: usize, const E: usize>(
    x: Tensor<B, D>,
    forward: impl FnOnce(FlexTensor) -> FlexTensor,
    save: impl FnOnce(FlexTensor, &FlexTensor) -> Saved,
) -> Result<Tensor<B, E>, Tensor<B, D>> {
    let x = recognise(x)?;
    let result = match OfOne
        .prepare::<NoCheckpointing>([x.node.clone()])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prepared) => {
            let result = forward(x.primitive.clone());
            let saved = save(x.primitive, &result);
            prepared.finish(saved, result)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(forward(x.primitive)),
    };
    Ok(generic(result))
}

/// `x W + b`.
pub(super) fn affine<B: Backend>(
    x: Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    bias: Option<&Tensor<B, 1>>,
) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    let Ok(weight) = recognise_any(weight.clone()) else {
        return Err(x);
    };
    let Ok(bias) = bias.map(|bias| recognise_any(bias.clone())).transpose() else {
        return Err(x);
    };
    let x = recognise_any(x)?;
    Ok(generic(product::affine_tracked(x, weight, bias)))
}

/// `x Qᵀ + b`.
pub(super) fn affine_quantized<B: Backend>(
    x: Tensor<B, 2>,
    matrix: &QuantizedMatrix,
    bias: Option<&Tensor<B, 1>>,
) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    let Ok(bias) = bias.map(|bias| recognise_any(bias.clone())).transpose() else {
        return Err(x);
    };
    let x = recognise_any(x)?;
    Ok(generic(product::affine_quantized_tracked(x, matrix, bias)))
}

/// What the gradient of a layer norm needs: its argument, its scale and its ε.
type NormState = (FlexTensor, FlexTensor, f64);

#[derive(Debug)]
struct OfLayerNorm;

impl Backward<Flex, 3> for OfLayerNorm {
    type State = NormState;

    fn backward(self, ops: Ops<NormState, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [of_x, of_weight, of_bias] = ops.parents;
        let (x, weight, epsilon) = ops.state;
        let gradient = strided::contiguous(gradients.consume::<Flex>(&ops.node));
        let sizes = gradient.shape();
        let width = sizes.last().copied().unwrap_or(1);
        let rows = |x: FlexTensor| {
            let count = sizes.num_elements() / width;
            Flex::float_reshape(x, [count, width].into())
        };
        let sum = |x: FlexTensor| {
            let sum = Flex::float_sum_dim(rows(x), 0);
            Flex::float_reshape(sum, [width].into())
        };
        if let Some(node) = of_bias {
            gradients.register::<Flex>(node.id, sum(gradient.clone()));
        }
        if let Some(node) = of_weight {
            let ones = TensorData::ones::<f32, _>([width]);
            let none = TensorData::zeros::<f32, _>([width]);
            let plain = [ones, none].map(FlexTensor::from_data);
            let normed = layer_normed(x.clone(), plain, epsilon);
            let product = Flex::float_mul(gradient.clone(), normed);
            gradients.register::<Flex>(node.id, sum(product));
        }
        if let Some(node) = of_x {
            let mut gradient = gradient;
            kernels::layer_norm_gradient(
                gradient.storage_mut(),
                strided::contiguous(x).storage(),
                strided::contiguous(weight).storage(),
                epsilon as f32,
            );
            gradients.register::<Flex>(node.id, gradient);
        }
    }
}

/// `(x - mean) / √(var + ε) · weight + bias` over the last axis.
pub(super) fn layer_normed(x: FlexTensor, both: [FlexTensor; 2], epsilon: f64) -> FlexTensor {
    let (x, [weight, bias]) = (strided::contiguous(x), both.map(strided::contiguous));
    let shape = x.shape();
    let both = [weight.storage(), bias.storage()];
    let normed = kernels::layer_norm(x.storage(), both, epsilon as f32);
    memory::give(x);
    FlexTensor::from_data(TensorData::new(normed, shape))
}

/// [`layer_normed`]; `Err` with the argument unless all are of the autodiff backend on Flex.
pub(super) fn layer_norm<B: Backend>(
    x: Tensor<B, 3>,
    weight: &Tensor<B, 1>,
    bias: &Tensor<B, 1>,
    epsilon: f64,
) -> Result<Tensor<B, 3>, Tensor<B, 3>> {
    let (Ok(weight), Ok(bias)) = (recognise(weight.clone()), recognise(bias.clone())) else {
        return Err(x);
    };
    let x = recognise(x)?;
    let result = match OfLayerNorm
        .prepare::<NoCheckpointing>([x.node, weight.node, bias.node])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prepared) => {
            let both = [weight.primitive.clone(), bias.primitive];
            let normed = layer_normed(x.primitive.clone(), both, epsilon);
            prepared.finish((x.primitive, weight.primitive, epsilon), normed)
        }
        OpsKind::UnTracked(prepared) => {
            let both = [weight.primitive, bias.primitive];
            prepared.finish(layer_normed(x.primitive, both, epsilon))
        }
    };
    Ok(generic(result))
}

/// The tensor, if it is an f32 tensor of the autodiff backend on Flex.
pub(super) fn recognise<B: Backend, const D: usize>(
    x: Tensor<B, D>,
) -> Result<Tracked, Tensor<B, D>> {
    match x.dtype() {
        DType::F32 => recognise_any(x),
        _ => Err(x),
    }
}

/// Like [`recognise`], for any dtype.
fn recognise_any<B: Backend, const D: usize>(x: Tensor<B, D>) -> Result<Tracked, Tensor<B, D>> {
    cast::<_, Tracked>(x.into_primitive().tensor())
        .map_err(|x| Tensor::from_primitive(TensorPrimitive::Float(x)))
}

/// A tensor without a gradient, of the autodiff backend on Flex.
pub(super) fn constant<B: Backend, const D: usize>(x: FlexTensor) -> Tensor<B, D> {
    generic(Tracked::new(x))
}

/// The inverse of [`recognise`].
pub(super) fn generic<B: Backend, const D: usize>(x: Tracked) -> Tensor<B, D> {
    let x = cast(x).unwrap_or_else(|_| unreachable!("the backend has been recognised"));
    Tensor::from_primitive(TensorPrimitive::Float(x))
}
