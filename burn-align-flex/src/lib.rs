//! Fast CPU kernels for Burn's backend [`Flex`], called from code that is generic
//! over the backend.
//!
//! Each function takes tensors of any backend, and looks at their concrete type. If it is Flex, with
//! or without autodiff, the kernel runs, with its own gradient ([`add`], [`in_row_major_order`],
//! [`joined`], [`rows_by_index`] and [`with_rows_at`] have none, and [`part_of_rows`] is there for
//! nothing else). Otherwise, and for a dtype that has no kernel, the argument comes back as `Err`, and
//! the caller computes the result with Burn's operations:
//!
//! ```
//! use burn::tensor::{Tensor, activation, backend::Backend};
//!
//! fn silu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
//!     match burn_align_flex::silu(x) {
//!         Ok(activated) => activated,
//!         Err(x) => activation::silu(x),
//!     }
//! }
//!
//! let zeros = Tensor::<burn_flex::Flex, 1>::zeros([3], &Default::default());
//! assert_eq!(silu(zeros.clone()).into_data(), zeros.into_data());
//! ```
//!
//! There are kernels for f32; for products of weights also for bf16, f16, and the blocks of GGUF
//! files ([`QuantizedMatrix`]). They use the widest vectors that the CPU has, and all cores. A row
//! of a result is the same, to the bit, whatever it is batched with and however many threads there
//! are.
//!
//! The axes in the lists of shapes: `batch` (examples), `pos` (token positions; `q_pos` and `k_pos`
//! where queries meet keys), `head`, `d_head` (features of a head), `width` (features), `row` (rows
//! of a product).

mod aligned;
mod attention;
mod autodiff;
mod copies;
mod cross_entropy;
mod divergence;
mod elementwise;
mod functions;
mod gated;
mod heads;
mod indexed;
mod kernels;
mod memory;
mod parts;
mod product;
mod recognise;
mod strided;
#[cfg(test)]
mod tests;
mod tiles;

use std::any::TypeId;

use burn::backend::Autodiff;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData, TensorMetadata, backend::Backend};
use burn_align_quants::QuantizedMatrix;
use burn_flex::{Flex, FlexTensor};

pub use attention::{AttendingRows, Attention, KeysBefore, attend, attend_after};
use autodiff::Saved;
pub use copies::{in_row_major_order, joined};
pub use cross_entropy::cross_entropies;
pub use divergence::kl_divergences;
pub use elementwise::{add, gelu, gelu_tanh, quick_gelu, sigmoid, silu};
pub use gated::{gelu_gated, gelu_tanh_gated, silu_gated};
pub use heads::{head_part, merge_heads, rows_of, tokens_of};
pub use indexed::{rows_by_index, with_rows_at};
pub use memory::{Reuse, give_back};
pub use parts::{part_of_rows, sums_parts_in_place};
use recognise::{constant, generic, in_place, in_vectors, recognise_any, recognise_view};

/// `x W + b`, in f32, bf16 or f16; sums are in f32.
///
/// # Shapes
/// - x: `[row, d_input]`
/// - weight: `[d_input, d_output]`
/// - bias: `[d_output]`
/// - output: `[row, d_output]`
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it, or the weight is of another dtype.
///
/// # Panics
/// If the shapes do not match.
pub fn affine<B: Backend>(
    x: Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    bias: Option<&Tensor<B, 1>>,
) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    assert_multiplies(&x, weight.dims(), bias);
    if weight.dtype() != x.dtype() || !product::multiplies(x.dtype()) {
        return Err(x);
    }
    let x = match recognise_any(x) {
        Ok(x) => {
            let known = "of the same backend";
            let weight = recognise_any(weight.clone()).expect(known);
            let bias = bias.map(|bias| recognise_any(bias.clone()).expect(known));
            let product = product::affine(&x, &weight, bias.as_ref());
            memory::give(x);
            return Ok(generic(product));
        }
        Err(x) => x,
    };
    autodiff::affine(x, weight, bias)
}

/// `x W + b` for each of several weights and biases, as [`affine`] computes them, but `x` is read
/// once.
///
/// # Shapes
/// - x: `[row, d_input]`
/// - weights: `[d_input, d_output]`
/// - biases: `[d_output]`
/// - outputs: `[row, d_output]`
///
/// # Errors
/// `x`, if something is not in f32, under autodiff, or if there are so few rows that reading the
/// weights is what takes the time: [`affine`] is as fast then.
///
/// # Panics
/// If the shapes do not match.
pub fn affine_each<B: Backend, const N: usize>(
    x: Tensor<B, 2>,
    weights: [&Tensor<B, 2>; N],
    biases: [Option<&Tensor<B, 1>>; N],
) -> Result<[Tensor<B, 2>; N], Tensor<B, 2>> {
    for (weight, bias) in weights.into_iter().zip(biases) {
        assert_multiplies(&x, weight.dims(), bias);
    }
    if weights.iter().any(|weight| weight.dtype() != DType::F32) {
        return Err(x);
    }
    let x = recognise_view(x)?;
    let known = "of the same backend";
    let weights = weights.map(|weight| recognise_any(weight.clone()).expect(known));
    let biases = biases.map(|bias| bias.map(|bias| recognise_any(bias.clone()).expect(known)));
    let Some(products) = product::affine_each(&x, &weights, &biases) else {
        return Err(generic(x));
    };
    memory::give(x);
    let mut products = products.into_iter();
    let next = |_| generic(products.next().expect("one for each weight"));
    Ok(std::array::from_fn(next))
}

/// Whether this is Flex without autodiff: there are kernels for it that have no gradient.
pub fn is_flex<B: Backend>() -> bool {
    TypeId::of::<FloatTensor<B>>() == TypeId::of::<FlexTensor>()
}

/// Whether [`affine_quantized`] supports this backend.
pub fn multiplies_quantized<B: Backend>() -> bool {
    is_flex::<B>() || TypeId::of::<FloatTensor<B>>() == TypeId::of::<FloatTensor<Autodiff<Flex>>>()
}

/// `x Qᵀ + b`, with the gradients of `x` and `b`: equal to the bit to [`affine`] with the
/// transposed matrix in f32.
///
/// # Shapes
/// - x: `[row, d_input]`
/// - matrix: `[d_output, d_input]`
/// - bias: `[d_output]`
/// - output: `[row, d_output]`
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
///
/// # Panics
/// If the shapes do not match.
pub fn affine_quantized<B: Backend>(
    x: Tensor<B, 2>,
    matrix: &QuantizedMatrix,
    bias: Option<&Tensor<B, 1>>,
) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    let [d_output, d_input] = matrix.dims();
    assert_multiplies(&x, [d_input, d_output], bias);
    if !product::multiplies(x.dtype()) {
        return Err(x);
    }
    let x = match recognise_any(x) {
        Ok(x) => {
            let known = "of the same backend";
            let bias = bias.map(|bias| recognise_any(bias.clone()).expect(known));
            let product = product::affine_quantized(&x, matrix, bias.as_ref());
            memory::give(x);
            return Ok(generic(product));
        }
        Err(x) => x,
    };
    autodiff::affine_quantized(x, matrix, bias)
}

/// Asserts that `x` can be multiplied by a weight of this shape, and the bias added.
fn assert_multiplies<B: Backend>(
    x: &Tensor<B, 2>,
    weight: [usize; 2],
    bias: Option<&Tensor<B, 1>>,
) {
    let ([_row, width], [d_input, d_output]) = (x.dims(), weight);
    assert_eq!(width, d_input, "features of x, and rows of the weight");
    if let Some(bias) = bias {
        assert_eq!(
            bias.dims(),
            [d_output],
            "the bias, and columns of the weight"
        );
    }
}

/// `softmax(scale · scores)` over the keys that each query sees: itself and the positions before
/// it, down to `window - 1` back. 0 for the others.
///
/// # Shapes
/// - scores, output: `[batch, head, q_pos, k_pos]`; the last query sees up to the last key
///
/// # Errors
/// `scores`, if there is [no kernel](crate) for them.
///
/// # Panics
/// If there are more queries than keys.
pub fn causal_softmax<B: Backend>(
    scores: Tensor<B, 4>,
    scale: f64,
    window: Option<usize>,
) -> Result<Tensor<B, 4>, Tensor<B, 4>> {
    let [_batch, _head, q_pos, k_pos] = scores.dims();
    assert!(q_pos <= k_pos, "{q_pos} queries of {k_pos} keys");
    let scale = scale as f32;
    in_place(
        scores,
        |scores| kernels::causal_softmax(scores, q_pos, k_pos, scale, window),
        |_, weights| Saved::Softmax(weights.clone(), scale),
    )
}

/// Rotates the pairs `(x[i], x[i + half])` of the first `2 * half` features of each vector by the
/// angles of their positions.
///
/// # Shapes
/// - x, output: `[batch, head, pos, d_head]`
/// - cos, sin: `[1, 1, pos, half]`
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it, or the tables are of another dtype.
///
/// # Panics
/// If the shapes do not match.
pub fn rotate<B: Backend>(
    x: Tensor<B, 4>,
    [cos, sin]: [&Tensor<B, 4>; 2],
) -> Result<Tensor<B, 4>, Tensor<B, 4>> {
    let [_batch, _head, pos, d_head] = x.dims();
    let [_one, _one_head, _table_pos, half] = cos.dims();
    assert!(2 * half <= d_head, "{half} pairs of {d_head} features");
    for table in [cos, sin] {
        assert_eq!(table.dims(), [1, 1, pos, half], "a table of angles");
    }
    let (Some(cos), Some(sin)) = (constant(cos), constant(sin)) else {
        return Err(x);
    };
    let run = |x: FlexTensor| heads::rotated(x, [&cos, &sin], 1.0);
    match recognise_view(x) {
        Ok(x) => Ok(generic(run(x))),
        Err(x) => autodiff::apply(x, run, |_, _| Saved::Rotation(cos.clone(), sin.clone())),
    }
}

/// `x / √(mean(x²) + ε)` over the last axis.
///
/// # Shapes
/// - x, output: `[batch, pos, width]`
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
pub fn root_mean_square<B: Backend>(
    x: Tensor<B, 3>,
    epsilon: f64,
) -> Result<Tensor<B, 3>, Tensor<B, 3>> {
    let [_batch, _pos, width] = x.dims();
    let epsilon = epsilon as f32;
    in_place(
        x,
        |x| kernels::root_mean_square(x, width, epsilon),
        |x, _| Saved::RootMeanSquare(x, epsilon),
    )
}

/// `x / √(mean(x²) + ε) · weight` over the last axis.
///
/// # Shapes
/// - x, output: `[batch, pos, width]`
/// - weight: `[width]`
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it, or if the weight has a gradient.
///
/// # Panics
/// If the shapes do not match.
pub fn rms_norm<B: Backend>(
    x: Tensor<B, 3>,
    weight: &Tensor<B, 1>,
    epsilon: f64,
) -> Result<Tensor<B, 3>, Tensor<B, 3>> {
    let [_batch, _pos, width] = x.dims();
    assert_eq!(weight.dims(), [width], "the weight");
    let Some(weight) = in_vectors(weight) else {
        return Err(x);
    };
    let weight = strided::contiguous(weight);
    let epsilon = epsilon as f32;
    let run = |x: FlexTensor| {
        let x = strided::contiguous(x);
        let shape = x.shape();
        let normed = kernels::rms_norm(x.storage(), weight.storage(), epsilon);
        memory::give(x);
        FlexTensor::from_data(TensorData::new(normed, shape))
    };
    match recognise_view(x) {
        Ok(x) => Ok(generic(run(x))),
        Err(x) => autodiff::apply(x, run, |x, _| Saved::RmsNorm(x, weight.clone(), epsilon)),
    }
}

/// `(x - mean) / √(var + ε) · weight + bias` over the last axis.
///
/// # Shapes
/// - x, output: `[batch, pos, width]`
/// - weight, bias: `[width]`
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it, its weight or its bias.
///
/// # Panics
/// If the shapes do not match.
pub fn layer_norm<B: Backend>(
    x: Tensor<B, 3>,
    weight: &Tensor<B, 1>,
    bias: &Tensor<B, 1>,
    epsilon: f64,
) -> Result<Tensor<B, 3>, Tensor<B, 3>> {
    let [_batch, _pos, width] = x.dims();
    assert_eq!(
        [weight.dims(), bias.dims()],
        [[width]; 2],
        "weight and bias"
    );
    let x = match recognise_view(x) {
        Ok(x) => {
            let (Some(weight), Some(bias)) = (in_vectors(weight), in_vectors(bias)) else {
                return Err(generic(x));
            };
            return Ok(generic(autodiff::layer_normed(x, [weight, bias], epsilon)));
        }
        Err(x) => x,
    };
    autodiff::layer_norm(x, weight, bias, epsilon)
}
