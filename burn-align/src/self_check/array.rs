//! Numbers on the host: operands of a check, in f64 and as they are in the operand's dtype.

use burn::tensor::{DType, TensorData};

/// A tensor on the host. Its values can be represented exactly in its dtype.
#[derive(Clone, Debug)]
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f64>,
    pub(super) dtype: DType,
}

impl Array {
    /// These values, rounded to the dtype.
    pub(super) fn new(shape: &[usize], values: &[f64], dtype: DType) -> Self {
        let data = data(shape, values, dtype);
        Self {
            shape: shape.to_vec(),
            values: data.iter::<f64>().collect(),
            dtype,
        }
    }

    /// Values that are spread evenly from `-scale` to `scale`, the same ones for a seed everywhere.
    pub(super) fn drawn(shape: &[usize], seed: u64, scale: f64, dtype: DType) -> Self {
        let count: usize = shape.iter().product();
        let values = (0..count as u64).map(|index| scale * uniform(seed, index));
        Self::new(shape, &values.collect::<Vec<f64>>(), dtype)
    }

    /// The values for the device.
    pub(super) fn data(&self) -> TensorData {
        data(&self.shape, &self.values, self.dtype)
    }
}

fn data(shape: &[usize], values: &[f64], dtype: DType) -> TensorData {
    let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
    TensorData::new(values, shape.to_vec()).convert_dtype(dtype)
}

/// A number from -1 to 1: SplitMix64 (Steele et al. 2014, doi 10.1145/2660193.2660195), of which
/// the upper 24 bits are used.
fn uniform(seed: u64, index: u64) -> f64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let state = (seed << 32).wrapping_add(index + 1);
    let mut z = state.wrapping_mul(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f64 / f64::from(1 << 23) - 1.0
}
