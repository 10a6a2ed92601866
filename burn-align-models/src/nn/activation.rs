//! Activation functions, by their Hugging Face names.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, SQRT_2};
use std::fmt;
use std::str::FromStr;

use burn::tensor::{Tensor, activation, backend::Backend};

use crate::pretrained::{ConfigError, Fields};

/// An element-wise activation function.
///
/// These are the parameter-free entries of `ACT2FN` in Hugging Face `transformers`; entries that
/// compute the same function share a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x Φ(x)`, with the error function: `gelu`, `gelu_python`.
    Gelu,
    /// [`Gelu`](Self::Gelu) clipped to `[-10, 10]`: `gelu_10`.
    GeluClipped,
    /// The tanh approximation `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`: `gelu_new`,
    /// `gelu_pytorch_tanh`, `gelu_python_tanh`, `gelu_fast`, `gelu_accurate`.
    GeluTanh,
    /// `(1 + erf((x - μ) / (σ √2))) / 2` with μ = 0.707107, σ = 0.282095: `laplace`.
    Laplace,
    /// `max(x, 0.01 x)`: `leaky_relu`.
    LeakyRelu,
    /// The identity: `linear`.
    Linear,
    /// `x tanh(ln(1 + eˣ))`: `mish`.
    Mish,
    /// `x σ(1.702 x)`: `quick_gelu`.
    QuickGelu,
    /// `max(x, 0)`: `relu`.
    Relu,
    /// `max(x, 0)²`: `relu2`.
    ReluSquared,
    /// `min(max(x, 0), 6)`: `relu6`.
    Relu6,
    /// `σ(x)`: `sigmoid`.
    Sigmoid,
    /// `x σ(x)`: `silu`, `swish`.
    Silu,
    /// `tanh(x)`: `tanh`.
    Tanh,
}

/// Every name and what it denotes; the first name of a variant is its canonical one.
const NAMES: [(&str, Activation); 20] = [
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_10", Activation::GeluClipped),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_accurate", Activation::GeluTanh),
    ("laplace", Activation::Laplace),
    ("leaky_relu", Activation::LeakyRelu),
    ("linear", Activation::Linear),
    ("mish", Activation::Mish),
    ("quick_gelu", Activation::QuickGelu),
    ("relu", Activation::Relu),
    ("relu2", Activation::ReluSquared),
    ("relu6", Activation::Relu6),
    ("sigmoid", Activation::Sigmoid),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("tanh", Activation::Tanh),
];

/// A string that names no supported activation function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unsupported activation function `{found}`; expected one of {}",
    NAMES.map(|(name, _)| name).join(", ")
)]
pub struct UnknownActivation {
    /// The string.
    pub found: String,
}

impl FromStr for Activation {
    type Err = UnknownActivation;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        NAMES
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, activation)| *activation)
            .ok_or_else(|| UnknownActivation {
                found: text.to_owned(),
            })
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = NAMES
            .iter()
            .find(|(_, activation)| activation == self)
            .expect("every variant has a name");
        f.write_str(name)
    }
}

impl Activation {
    /// Reads the name under `key` of a `config.json`; `default` if the key is absent.
    ///
    /// # Errors
    /// If it names no supported function.
    pub fn read(fields: &mut Fields, key: &str, default: Self) -> Result<Self, ConfigError> {
        let Some(name) = fields.optional_text(key)? else {
            return Ok(default);
        };
        name.parse()
            .map_err(|error: UnknownActivation| ConfigError::Unsupported {
                key: key.to_owned(),
                found: format!("`{name}`"),
                reason: error.to_string(),
            })
    }

    /// Applies the function to every element.
    pub fn forward<B: Backend, const D: usize>(self, x: Tensor<B, D>) -> Tensor<B, D> {
        #[cfg(feature = "flex")]
        let x = match super::flex::activate(self, x) {
            Ok(activated) => return activated,
            Err(x) => x,
        };
        match self {
            Self::Gelu => gelu(x),
            Self::GeluClipped => Self::Gelu.forward(x).clamp(-10.0, 10.0),
            Self::GeluTanh => gelu_tanh(x),
            Self::Laplace => {
                // 1/√2 and 1/(2√π), to the reference's six digits.
                #[expect(clippy::approx_constant, reason = "the reference's digits")]
                const MU: f64 = 0.707107;
                const SIGMA: f64 = 0.282095;
                (x - MU).div_scalar(SIGMA * SQRT_2).erf().add_scalar(1.0) * 0.5
            }
            Self::LeakyRelu => activation::leaky_relu(x, 0.01),
            Self::Linear => x,
            Self::Mish => activation::mish(x),
            Self::QuickGelu => x.clone() * activation::sigmoid(x * 1.702),
            Self::Relu => activation::relu(x),
            Self::ReluSquared => {
                let x = activation::relu(x);
                x.clone() * x
            }
            Self::Relu6 => x.clamp(0.0, 6.0),
            Self::Sigmoid => activation::sigmoid(x),
            Self::Silu => x.clone() * activation::sigmoid(x),
            Self::Tanh => x.tanh(),
        }
    }

    /// `f(gate) · factor`, where `f` is the function: what a gated MLP computes between its
    /// products.
    pub fn gated<B: Backend, const D: usize>(
        self,
        gate: Tensor<B, D>,
        factor: Tensor<B, D>,
    ) -> Tensor<B, D> {
        #[cfg(feature = "flex")]
        let [gate, factor] = match super::flex::gated(self, [gate, factor]) {
            Ok(product) => return product,
            Err(both) => both,
        };
        self.forward(gate) * factor
    }
}

/// `x (1 + erf(x / √2)) / 2`.
///
/// The same function as `burn::tensor::activation::gelu`, whose gradient in Burn 0.21 is that of the
/// tanh approximation on most backends.
fn gelu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let below = (x.clone() * FRAC_1_SQRT_2).erf() * 0.5 + 0.5;
    x * below
}

/// `x (1 + tanh(u)) / 2 = x σ(2u)` with `u = √(2/π) (x + 0.044715 x³)`.
///
/// The same function as `burn::tensor::activation::gelu_approximate`, but without the power and the
/// hyperbolic tangent, which are slow on the CPU backends.
fn gelu_tanh<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    // 2 √(2/π) = √2 · 2/√π
    const LINEAR: f64 = SQRT_2 * FRAC_2_SQRT_PI;
    const CUBIC: f64 = LINEAR * 0.044715;
    let square = x.clone() * x.clone();
    x.clone() * activation::sigmoid(x * (square * CUBIC + LINEAR))
}
