//! Rotary embeddings in GGUF: metadata, and tensors of divisors for LLaMA 3 and Phi-3.

use serde_json::{Value, json};

use super::super::{GgmlType, GgufError};
use super::Reader;
use crate::nn::LongRope;

/// The divisors of the frequencies in LLaMA 3.1 and later.
const DIVISORS: &str = "rope_freqs.weight";
/// The divisors of LongRoPE, up to the original context length and above it.
const SHORT: &str = "rope_factors_short.weight";
const LONG: &str = "rope_factors_long.weight";

/// Whether a tensor belongs to the rotary embedding.
pub(super) fn is_table(name: &str) -> bool {
    [DIVISORS, SHORT, LONG, "rope_freqs"].contains(&name) || name.ends_with(".attn_rot_embd.weight")
}

/// Writes `rope_theta` and `rope_scaling`, for models that rotate all features of a head.
pub(super) fn write(reader: &Reader<'_>, config: &mut Value, d_head: u64) -> Result<(), GgufError> {
    let positions = reader.size("context_length")?;
    let rotary = Rotary::read(reader, d_head, positions)?;
    if rotary.rotated != d_head {
        let expected = format!("{d_head}, all features of a head");
        return Err(reader.wrong("rope.dimension_count", expected));
    }
    config["rope_theta"] = rotary.theta.into();
    rotary.write_scaling(config);
    Ok(())
}

/// Writes `rope_theta`, `rope_scaling` and `partial_rotary_factor`.
pub(super) fn write_partial(
    reader: &Reader<'_>,
    config: &mut Value,
    d_head: u64,
) -> Result<(), GgufError> {
    let positions = reader.size("context_length")?;
    let rotary = Rotary::read(reader, d_head, positions)?;
    config["partial_rotary_factor"] = rotary.share(d_head).into();
    config["rope_theta"] = rotary.theta.into();
    rotary.write_scaling(config);
    Ok(())
}

/// A rotary embedding.
pub(super) struct Rotary {
    /// The number of rotated features of a head.
    rotated: u64,
    /// The base of the frequencies.
    pub(super) theta: f64,
    scaling: Option<Value>,
    /// The context length that LongRoPE starts from.
    original: Option<u64>,
}

impl Rotary {
    pub(super) fn read(
        reader: &Reader<'_>,
        d_head: u64,
        positions: u64,
    ) -> Result<Self, GgufError> {
        const COUNT: &str = "rope.dimension_count";
        if !d_head.is_multiple_of(2) {
            let expected = "heads with an even number of features";
            return Err(reader.wrong("attention.head_count", expected));
        }
        let rotated = reader.optional_size(COUNT)?.unwrap_or(d_head);
        if rotated == 0 || rotated % 2 != 0 || rotated > d_head {
            let expected = format!("an even number of up to {d_head} features of a head");
            return Err(reader.wrong(COUNT, expected));
        }
        let theta = reader.optional_float("rope.freq_base")?.unwrap_or(10000.0);
        let by_key = scaling(reader)?;
        let llama3 = llama3(reader, theta, rotated, positions)?;
        let long = long_rope(reader, rotated, positions)?;
        let second = match (&by_key, &llama3, &long) {
            (_, Some(_), Some(_)) | (Some(_), None, Some(_)) => Some(SHORT),
            (Some(_), Some(_), None) => Some(DIVISORS),
            _ => None,
        };
        if let Some(tensor) = second {
            return Err(GgufError::WrongTensor {
                tensor: tensor.to_owned(),
                expected: "none beside another scaling of the frequencies".to_owned(),
                found: "one".to_owned(),
            });
        }
        const FACTOR: &str = "rope.scaling.attn_factor";
        let yarn = by_key.as_ref().is_some_and(|it| it["rope_type"] == "yarn");
        let factor = reader.optional_float(FACTOR)?.unwrap_or(1.0);
        if factor != 1.0 && !yarn && long.is_none() {
            return Err(reader.wrong(FACTOR, "1 without YaRN and LongRoPE"));
        }
        let original = long.as_ref().map(|(_, original)| *original);
        let scaling = by_key.or(llama3).or(long.map(|(scaling, _)| scaling));
        Ok(Self {
            rotated,
            theta,
            scaling,
            original,
        })
    }

    /// The share of the features of a head that are rotated. Multiplied by their number and rounded
    /// down, as in `transformers`, it gives the number of rotated ones.
    pub(super) fn share(&self, d_head: u64) -> f64 {
        let share = self.rotated as f64 / d_head as f64;
        match share * (d_head as f64) < self.rotated as f64 {
            true => share.next_up(),
            false => share,
        }
    }

    pub(super) fn write_scaling(self, config: &mut Value) {
        if let Some(scaling) = self.scaling {
            config["rope_scaling"] = scaling;
        }
        if let Some(original) = self.original {
            config["original_max_position_embeddings"] = original.into();
        }
    }
}

fn scaling(reader: &Reader<'_>) -> Result<Option<Value>, GgufError> {
    let factor = reader.optional_float("rope.scaling.factor")?;
    // Files from 2023 use a different name.
    let old = reader.optional_float("rope.scale_linear")?;
    let kind = match reader.optional_text("rope.scaling.type")? {
        None if factor.or(old).is_some() => "linear",
        None => return Ok(None),
        Some(kind) => kind,
    };
    let factor = factor.or(old).unwrap_or(1.0);
    match kind {
        "none" => Ok(None),
        "linear" if factor == 1.0 => Ok(None),
        "linear" => Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
        "yarn" => {
            let optional = |key: &str| reader.optional_float(&format!("rope.scaling.{key}"));
            // Multiplies every rotation, in addition to YaRN's own factor.
            let own = optional("attn_factor")?
                .or(optional("yarn_attn_factor")?)
                .unwrap_or(1.0);
            let mut scaling = json!({
                "rope_type": "yarn",
                "factor": factor,
                "attention_factor": own * if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 },
                "beta_fast": optional("yarn_beta_fast")?.unwrap_or(32.0),
                "beta_slow": optional("yarn_beta_slow")?.unwrap_or(1.0),
            });
            if let Some(original) = reader.optional_size("rope.scaling.original_context_length")? {
                scaling["original_max_position_embeddings"] = original.into();
            }
            Ok(Some(scaling))
        }
        // Its numbers are in tensors.
        "longrope" if reader.has(SHORT) => Ok(None),
        _ => {
            let expected = format!("none, linear, yarn, or longrope with the tensor {SHORT}");
            Err(reader.wrong("rope.scaling.type", expected))
        }
    }
}

/// LongRoPE, and the context length that it starts from.
///
/// llama.cpp takes the long divisors if its context is longer than that, `transformers` if the text
/// is.
fn long_rope(
    reader: &Reader<'_>,
    rotated: u64,
    positions: u64,
) -> Result<Option<(Value, u64)>, GgufError> {
    let (short, long) = match (
        divisors(reader, SHORT, rotated)?,
        divisors(reader, LONG, rotated)?,
    ) {
        (None, None) => return Ok(None),
        (Some(short), Some(long)) => (short, long),
        (short, _) => {
            return Err(GgufError::WrongTensor {
                tensor: if short.is_none() { SHORT } else { LONG }.to_owned(),
                expected: "both this one and its counterpart for other lengths".to_owned(),
                found: "none".to_owned(),
            });
        }
    };
    const ORIGINAL: &str = "rope.scaling.original_context_length";
    let original = reader.optional_size(ORIGINAL)?.unwrap_or(positions);
    if original < 2 {
        return Err(reader.wrong(ORIGINAL, "a length of at least 2"));
    }
    // Phi-3's class in `transformers` takes no more keys than these.
    let mut scaling = json!({"type": "longrope", "short_factor": short, "long_factor": long});
    let factor = positions as f64 / original as f64;
    let default = LongRope::default_attention_factor(factor, original as usize);
    let own = reader.optional_float("rope.scaling.attn_factor")?;
    let own = own.unwrap_or(1.0);
    if (own - default).abs() > 1e-6 * default {
        scaling["attention_factor"] = own.into();
    }
    Ok(Some((scaling, original)))
}

/// Divisors of the frequencies.
fn divisors(reader: &Reader<'_>, name: &str, rotated: u64) -> Result<Option<Vec<f32>>, GgufError> {
    let Some(tensor) = reader.gguf.tensor(name) else {
        return Ok(None);
    };
    if tensor.ggml_type != GgmlType::F32 || tensor.shape != [(rotated / 2) as usize] {
        return Err(GgufError::WrongTensor {
            tensor: name.to_owned(),
            expected: format!("{} numbers in F32", rotated / 2),
            found: format!("{:?} in {}", tensor.shape, tensor.ggml_type.name()),
        });
    }
    let (numbers, _) = tensor.bytes.as_ref().as_chunks::<4>();
    let numbers = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes));
    Ok(Some(numbers.collect()))
}

/// LLaMA 3's scaling, or any other one with the same divisors for all lengths; `None` if all are 1.
fn llama3(
    reader: &Reader<'_>,
    theta: f64,
    rotated: u64,
    positions: u64,
) -> Result<Option<Value>, GgufError> {
    let divisors = divisors(reader, DIVISORS, rotated)?.unwrap_or_default();
    if divisors.iter().all(|divisor| *divisor == 1.0) {
        return Ok(None);
    }
    let known = llama3_with(&divisors, theta, rotated);
    Ok(Some(known.unwrap_or_else(|| {
        json!({
            "rope_type": "longrope",
            "short_factor": divisors,
            "long_factor": divisors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": positions,
        })
    })))
}

/// LLaMA 3's scaling, if it gives these divisors: the file does not contain its parameters.
fn llama3_with(divisors: &[f32], theta: f64, rotated: u64) -> Option<Value> {
    let factor = f64::from(divisors.iter().copied().fold(0.0, f32::max));
    // The only values in use.
    let (low, high) = (1.0, 4.0);
    [8192_u32, 4096, 2048, 16384, 32768]
        .into_iter()
        .find_map(|original| {
            let same = divisors.iter().enumerate().all(|(index, divisor)| {
                let frequency = theta.powf(-2.0 * index as f64 / rotated as f64);
                let rotations = f64::from(original) * frequency / (2.0 * std::f64::consts::PI);
                let keep = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
                let expected = 1.0 / ((1.0 - keep) / factor + keep);
                (expected - f64::from(*divisor)).abs() <= 1e-5 * expected
            });
            same.then(|| {
                json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                })
            })
        })
}

#[cfg(test)]
mod tests {
    use super::Rotary;

    #[test]
    fn shares_give_back_the_number_of_features() {
        for d_head in (2..=512_u64).step_by(2) {
            for rotated in (2..=d_head).step_by(2) {
                let rotary = Rotary {
                    rotated,
                    theta: 1e4,
                    scaling: None,
                    original: None,
                };
                let share = rotary.share(d_head);
                assert!(share <= 1.0);
                assert_eq!((share * d_head as f64) as u64, rotated, "of {d_head}");
            }
        }
    }
}
