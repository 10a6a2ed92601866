//! Rotary embeddings in GGUF: metadata, and a tensor of divisors for LLaMA 3.

use serde_json::{Value, json};

use super::super::{GgmlType, GgufError};
use super::Reader;

/// The divisors of the frequencies in LLaMA 3.1 and later.
const DIVISORS: &str = "rope_freqs.weight";

/// Whether a tensor belongs to the rotary embedding.
pub(super) fn is_table(name: &str) -> bool {
    name == DIVISORS || name.ends_with(".attn_rot_embd.weight") || name == "rope_freqs"
}

/// Writes `rope_theta`, `rope_scaling` and `partial_rotary_factor`.
pub(super) fn write(reader: &Reader<'_>, config: &mut Value, d_head: u64) -> Result<(), GgufError> {
    if let Some(rotated) = reader.optional_size("rope.dimension_count")?
        && rotated != d_head
    {
        config["partial_rotary_factor"] = (rotated as f64 / d_head as f64).into();
    }
    config["rope_theta"] = reader
        .optional_float("rope.freq_base")?
        .unwrap_or(10000.0)
        .into();
    let scaling = scaling(reader)?;
    let divisors = divisors(reader, d_head)?;
    config["rope_scaling"] = match (scaling, divisors) {
        (None, None) => return Ok(()),
        (Some(scaling), None) => scaling,
        (None, Some(divisors)) => match llama3(&divisors, &config["rope_theta"], d_head) {
            Some(scaling) => scaling,
            None => json!({
                "rope_type": "longrope",
                "short_factor": divisors,
                "long_factor": divisors,
                "attention_factor": 1.0,
                "original_max_position_embeddings": config["max_position_embeddings"],
            }),
        },
        (Some(_), Some(_)) => {
            let expected = format!("none together with the tensor {DIVISORS}");
            return Err(reader.wrong("rope.scaling.type", expected));
        }
    };
    Ok(())
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
        _ => Err(reader.wrong("rope.scaling.type", "none, linear or yarn")),
    }
}

/// The divisors of the frequencies, unless all are 1.
fn divisors(reader: &Reader<'_>, d_head: u64) -> Result<Option<Vec<f32>>, GgufError> {
    let Some(tensor) = reader.gguf.tensor(DIVISORS) else {
        return Ok(None);
    };
    if tensor.ggml_type != GgmlType::F32 || tensor.shape != [(d_head / 2) as usize] {
        return Err(GgufError::WrongTensor {
            tensor: DIVISORS.to_owned(),
            expected: format!("{} numbers in F32", d_head / 2),
            found: format!("{:?} in {}", tensor.shape, tensor.ggml_type.name()),
        });
    }
    let (numbers, _) = tensor.bytes.as_ref().as_chunks::<4>();
    let divisors: Vec<f32> = numbers
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    Ok(divisors
        .iter()
        .any(|divisor| *divisor != 1.0)
        .then_some(divisors))
}

/// LLaMA 3's scaling, if it gives these divisors: the file does not contain its parameters.
fn llama3(divisors: &[f32], theta: &Value, d_head: u64) -> Option<Value> {
    let theta = theta.as_f64()?;
    let factor = f64::from(divisors.iter().copied().fold(0.0, f32::max));
    // The only values in use.
    let (low, high) = (1.0, 4.0);
    [8192_u32, 4096, 2048, 16384, 32768]
        .into_iter()
        .find_map(|original| {
            let same = divisors.iter().enumerate().all(|(index, divisor)| {
                let frequency = theta.powf(-2.0 * index as f64 / d_head as f64);
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
