//! Rotary position embeddings (RoPE, arXiv 2104.09864) and their scalings.
//!
//! Formulas as in `modeling_rope_utils.py` of Hugging Face `transformers`.

use std::f64::consts::PI;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

/// How positions become angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryConfig {
    /// Number of rotated features of a head, the first ones; must be even. In most models, all of
    /// them.
    pub d_head: usize,
    /// Base of the frequencies, `rope_theta`.
    pub theta: f64,
    /// Longest sequence that the model was trained for, `max_position_embeddings`. Not a limit:
    /// longer sequences have angles too, but the model has hardly seen them.
    pub max_positions: usize,
    /// How the frequencies are changed so that the model reads longer sequences.
    pub scaling: RotaryScaling,
}

/// A change of the rotary frequencies that lets a model read longer sequences than it was
/// trained on.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RotaryScaling {
    /// None.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// Ratio of new to old length.
        factor: f64,
    },
    /// A larger base for sequences past `max_positions` ("dynamic NTK").
    Dynamic {
        /// Ratio of new to old length.
        factor: f64,
    },
    /// LLaMA 3.1: low frequencies are divided by `factor`, high ones kept.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low-frequency.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high-frequency.
        high_freq_factor: f64,
        /// Length that the model was first trained on.
        original: usize,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn(Yarn),
    /// LongRoPE (arXiv 2402.13753): a divisor for each frequency.
    LongRope(LongRope),
}

/// Parameters of LongRoPE (arXiv 2402.13753).
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// Divisors of the frequencies for sequences of at most `original` positions, `d_head / 2` of
    /// them.
    pub short: Vec<f64>,
    /// Divisors for longer sequences.
    pub long: Vec<f64>,
    /// Factor on queries' and keys' rotations.
    pub attention_factor: f64,
    /// Length that the model was first trained on.
    pub original: usize,
}

impl LongRope {
    /// The factor on rotations where none is given, if sequences are `factor` times as long as
    /// originally: that of the paper's authors and of `transformers`.
    pub fn default_attention_factor(factor: f64, original: usize) -> f64 {
        match factor > 1.0 {
            true => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
            false => 1.0,
        }
    }
}

/// Parameters of YaRN (arXiv 2309.00071).
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// Ratio of new to old length.
    pub factor: f64,
    /// Length that the model was first trained on.
    pub original: usize,
    /// Factor on queries' and keys' rotations.
    pub attention_factor: f64,
    /// Rotations over the original length above which a frequency is kept.
    pub beta_fast: f64,
    /// Rotations over the original length below which a frequency is interpolated.
    pub beta_slow: f64,
    /// Whether the bounds between the two are rounded to whole frequencies.
    pub truncate: bool,
}

impl RotaryConfig {
    /// Whether the angle of a position depends on the length of its sequence.
    pub(crate) fn depends_on_length(&self) -> bool {
        match &self.scaling {
            RotaryScaling::Dynamic { .. } | RotaryScaling::LongRope(_) => true,
            RotaryScaling::Default
            | RotaryScaling::Linear { .. }
            | RotaryScaling::Llama3 { .. }
            | RotaryScaling::Yarn(_) => false,
        }
    }

    /// Tables for sequences of `pos` positions.
    pub fn tables<B: Backend>(&self, pos: usize, device: &B::Device) -> Rotary<B> {
        let frequencies = self.frequencies(pos);
        let factor = match &self.scaling {
            RotaryScaling::Yarn(yarn) => yarn.attention_factor,
            RotaryScaling::LongRope(long) => long.attention_factor,
            _ => 1.0,
        };
        // `transformers` multiplies in f32; doing the same keeps long sequences in agreement.
        let angles = (0..pos).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let table = |f: fn(f32) -> f32| {
            let values: Vec<f32> = angles.clone().map(|a| f(a) * factor as f32).collect();
            let data = TensorData::new(values, [1, 1, pos, frequencies.len()]);
            Tensor::from_data(data, (device, DType::F32))
        };
        Rotary::new(table(f32::cos), table(f32::sin))
    }

    /// Radians per position of each pair of features, `d_head / 2` of them.
    fn frequencies(&self, pos: usize) -> Vec<f32> {
        let plain = |theta: f64| -> Vec<f64> {
            (0..self.d_head)
                .step_by(2)
                .map(|i| theta.powf(-(i as f64) / self.d_head as f64))
                .collect()
        };
        let frequencies = match &self.scaling {
            RotaryScaling::Default => plain(self.theta),
            RotaryScaling::Linear { factor } => {
                plain(self.theta).iter().map(|f| f / factor).collect()
            }
            RotaryScaling::Dynamic { factor } => {
                let ratio = pos.max(self.max_positions) as f64 / self.max_positions as f64;
                let d_head = self.d_head as f64;
                let stretch = factor * ratio - (factor - 1.0);
                plain(self.theta * stretch.powf(d_head / (d_head - 2.0)))
            }
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original,
            } => plain(self.theta)
                .into_iter()
                .map(|f| {
                    let rotations = *original as f64 * f / (2.0 * PI);
                    // 0 for low frequencies, 1 for high ones. Compared first, because the two
                    // factors may be equal, which leaves no range in between.
                    let keep = if rotations < *low_freq_factor {
                        0.0
                    } else if rotations > *high_freq_factor {
                        1.0
                    } else if high_freq_factor > low_freq_factor {
                        (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor)
                    } else {
                        1.0
                    };
                    (1.0 - keep) * f / factor + keep * f
                })
                .collect(),
            RotaryScaling::Yarn(yarn) => {
                let (low, high) = self.yarn_bounds(yarn);
                plain(self.theta)
                    .into_iter()
                    .enumerate()
                    .map(|(i, f)| {
                        let interpolate = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        interpolate * f / yarn.factor + (1.0 - interpolate) * f
                    })
                    .collect()
            }
            RotaryScaling::LongRope(long) => {
                let divisors = match pos > long.original {
                    true => &long.long,
                    false => &long.short,
                };
                let divided = plain(self.theta).into_iter().zip(divisors);
                divided.map(|(f, divisor)| f / divisor).collect()
            }
        };
        frequencies.into_iter().map(|f: f64| f as f32).collect()
    }

    /// The frequency indices between which YaRN moves from keeping to interpolating.
    fn yarn_bounds(&self, yarn: &Yarn) -> (f64, f64) {
        let d_head = self.d_head as f64;
        // The index whose frequency makes this many rotations over the original length.
        let index = |rotations: f64| {
            d_head * (yarn.original as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (index(yarn.beta_fast), index(yarn.beta_slow));
        if yarn.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(d_head - 1.0));
        // As in `transformers`, to avoid a division by zero.
        (low, if low == high { high + 0.001 } else { high })
    }
}

/// Tables of a rotary embedding, in f32.
#[derive(Clone, Debug)]
pub struct Rotary<B: Backend> {
    /// `[1, 1, pos, d_head / 2]`
    cos: Tensor<B, 4>,
    /// `[1, 1, pos, d_head / 2]`
    sin: Tensor<B, 4>,
    whole: Arc<Mutex<Option<WholeTables<B>>>>,
}

/// Cosines and sines of all features of a head, `[1, 1, pos, d_head]`: made when they are first
/// used, for all layers.
#[derive(Clone, Debug)]
struct WholeTables<B: Backend> {
    cos: Tensor<B, 4>,
    /// Negative in the first half.
    sin: Tensor<B, 4>,
}

impl<B: Backend> Rotary<B> {
    fn new(cos: Tensor<B, 4>, sin: Tensor<B, 4>) -> Self {
        Self {
            cos,
            sin,
            whole: Arc::default(),
        }
    }

    fn map(&self, change: impl Fn(Tensor<B, 4>) -> Tensor<B, 4>) -> Self {
        Self::new(change(self.cos.clone()), change(self.sin.clone()))
    }

    fn whole(&self) -> WholeTables<B> {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let (cos, sin) = (self.cos.clone(), self.sin.clone());
            WholeTables {
                cos: Tensor::cat(vec![cos.clone(), cos], 3),
                sin: Tensor::cat(vec![-sin.clone(), sin], 3),
            }
        };
        whole.get_or_insert_with(make).clone()
    }

    /// The same tables in another dtype.
    pub fn cast(self, dtype: DType) -> Self {
        self.map(|table| table.cast(dtype))
    }

    /// Number of positions.
    pub(crate) fn pos(&self) -> usize {
        self.cos.dims()[2]
    }

    /// The tables of the first positions.
    pub(crate) fn first(&self, pos: usize) -> Self {
        match self.pos() == pos {
            true => self.clone(),
            false => self.map(|table| table.narrow(2, 0, pos)),
        }
    }

    /// The tables of tokens at these positions, `[token]`.
    pub(crate) fn at(&self, positions: &Tensor<B, 1, Int>) -> Self {
        self.map(|table| table.select(2, positions.clone()))
    }

    /// Rotates the pairs `(x[i], x[i + rotated / 2])` of the first `rotated` features by their
    /// position's angles.
    ///
    /// # Shapes
    /// - x, output: `[batch, head, pos, d_head]`
    pub fn rotate(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [_batch, _head, _pos, d_head] = x.dims();
        let [_one, _one_head, _table_pos, half] = self.cos.dims();
        #[cfg(feature = "flex")]
        let x = match super::flex::rotate(x, [&self.cos, &self.sin]) {
            Ok(rotated) => return rotated,
            Err(x) => x,
        };
        if d_head > 2 * half {
            let rotated = self.rotate(x.clone().narrow(3, 0, 2 * half));
            let rest = x.narrow(3, 2 * half, d_head - 2 * half);
            return Tensor::cat(vec![rotated, rest], 3);
        }
        // Heads come from projections, in which those of a token lie side by side: as views of
        // that, halves change places in one kernel, and the rest is a chain that can be fused.
        let [batch, head, pos, _d_head] = x.dims();
        let by_token = x.clone().swap_dims(1, 2);
        let halves = by_token.reshape([batch, pos, head, 2, half]);
        let turned = halves.flip([3]).reshape([batch, pos, head, d_head]);
        let WholeTables { cos, sin } = self.whole();
        x * cos + turned.swap_dims(1, 2) * sin
    }
}
