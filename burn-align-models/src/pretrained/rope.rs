//! Rotary embeddings in `config.json`: the keys of every release of `transformers`, read in one
//! place.
//!
//! Releases before 5 write `rope_theta`, `rope_scaling` and `partial_rotary_factor` side by side;
//! release 5 writes one object `rope_parameters`, or one for each kind of layer. The parameters are
//! defined in `modeling_rope_utils.py` of `transformers`.

use serde_json::{Value, json};

use super::note::LoadNote;
use super::{ConfigError, Fields};
use crate::nn::{LongRope, RotaryConfig, RotaryScaling, Yarn};

/// The kinds of layers that `rope_parameters` may have entries for.
const LAYER_KINDS: [&str; 4] = [
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "linear_attention",
];

/// Every key of a scaling object, of any type.
const KEYS: [&str; 13] = [
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "short_factor",
    "long_factor",
    "alpha",
];

/// What a family's class assumes of its rotary embedding.
pub(crate) struct RotaryDefaults {
    /// Width of one head.
    pub(crate) d_head: usize,
    /// `max_position_embeddings`.
    pub(crate) max_positions: usize,
    /// `rope_theta`, where the config has none.
    pub(crate) theta: f64,
    /// Which part of a head's features is rotated, where the config does not say; `None` if the
    /// family always rotates all.
    pub(crate) partial: Option<f64>,
}

impl RotaryDefaults {
    /// Reads `partial_rotary_factor` under this key.
    fn read_partial(&self, fields: &mut Fields, key: &str) -> Result<Option<f64>, ConfigError> {
        match self.partial {
            None => fields.only(key, &[json!(1.0), json!(1)]).map(|()| None),
            Some(_) => fields.optional_positive(key),
        }
    }

    /// Number of rotated features.
    fn width(&self, factor: Option<f64>) -> Result<usize, ConfigError> {
        let Some(factor) = factor.or(self.partial) else {
            return Ok(self.d_head);
        };
        let width = (self.d_head as f64 * factor) as usize;
        if width == 0 || width > self.d_head || !width.is_multiple_of(2) {
            return Err(ConfigError::Invalid {
                key: "partial_rotary_factor".to_owned(),
                expected: format!(
                    "a part of a head's {} features whose number is even",
                    self.d_head
                ),
                found: factor.to_string(),
            });
        }
        Ok(width)
    }
}

/// Reads the rotary embedding shared by all layers of a model.
///
/// # Errors
/// If its type is not implemented, a number is missing, or it differs between kinds of layers.
pub(crate) fn read_rotary(
    fields: &mut Fields,
    defaults: &RotaryDefaults,
) -> Result<RotaryConfig, ConfigError> {
    let max_positions = defaults.max_positions;
    let mut theta = fields.optional_positive("rope_theta")?;
    let outer_part = defaults.read_partial(fields, "partial_rotary_factor")?;
    let old = fields.optional_object("rope_scaling")?;
    let new = read_parameters(fields)?;
    let (scaling, d_head) = match (old, new) {
        (None, None) => (RotaryScaling::Default, defaults.width(outer_part)?),
        (Some(old), None) => {
            let d_head = defaults.width(outer_part)?;
            let scaling = read_scaling(fields, "rope_scaling", old, d_head, max_positions)?;
            (scaling, d_head)
        }
        (old, Some((key, mut new))) => {
            let part = defaults.read_partial(&mut new, &format!("{key}.partial_rotary_factor"))?;
            let d_head = defaults.width(part.or(outer_part))?;
            let own = new.optional_positive(&format!("{key}.rope_theta"))?;
            let scaling = read_scaling(fields, &key, new, d_head, max_positions)?;
            // Releases before 5 read `rope_scaling`, and release 5 prefers it: the two must agree.
            if let Some(old) = old {
                let outer = read_scaling(fields, "rope_scaling", old, d_head, max_positions)?;
                if outer != scaling {
                    let found = format!("{outer:?}");
                    let expected = format!("{scaling:?}");
                    return Err(contradiction("rope_scaling", found, &key, expected));
                }
                if let (Some(outer), Some(own)) = (theta, own)
                    && outer != own
                {
                    let found = outer.to_string();
                    return Err(contradiction("rope_theta", found, &key, own.to_string()));
                }
            }
            if own.is_some() && theta.is_some_and(|outer| Some(outer) != own) {
                fields.note(LoadNote::UnusedConfigKey {
                    key: "rope_theta".to_owned(),
                    reason: format!("`{key}` has a separate one"),
                });
            }
            theta = own.or(theta);
            (scaling, d_head)
        }
    };
    Ok(RotaryConfig {
        d_head,
        theta: theta.unwrap_or(defaults.theta),
        max_positions,
        scaling,
    })
}

/// Reads the rotary embeddings of a model that has one for layers with full attention and one for
/// layers with a window, in this order.
///
/// # Errors
/// If a type is not implemented, a number is missing, or the keys of different releases contradict
/// each other.
pub(crate) fn read_rotary_kinds(
    fields: &mut Fields,
    defaults: &RotaryDefaults,
    local_theta: f64,
) -> Result<[RotaryConfig; 2], ConfigError> {
    const KEY: &str = "rope_parameters";
    let (d_head, max_positions) = (defaults.d_head, defaults.max_positions);
    let read = |fields: &mut Fields, key: &str, object: Fields| {
        read_scaling(fields, key, object, d_head, max_positions)
    };
    let mut theta = fields
        .optional_positive("rope_theta")?
        .unwrap_or(defaults.theta);
    let mut local_theta = fields
        .optional_positive("rope_local_base_freq")?
        .unwrap_or(local_theta);
    let mut scaling = match fields.optional_object("rope_scaling")? {
        Some(object) => Some(read(fields, "rope_scaling", object)?),
        None => None,
    };
    let mut local_scaling = RotaryScaling::Default;
    if let Some(mut parameters) = fields.optional_object(KEY)? {
        let kinds = ["full_attention", "sliding_attention"].map(|kind| format!("{KEY}.{kind}"));
        let [global, local] = &kinds;
        let (of_global, of_local) = (
            parameters.optional_object(global)?,
            parameters.optional_object(local)?,
        );
        let (Some(mut of_global), Some(mut of_local)) = (of_global, of_local) else {
            return Err(ConfigError::Missing {
                key: format!("{global}` and `{local}"),
            });
        };
        fields.absorb(parameters)?;
        if let Some(own) = of_global.optional_positive(&format!("{global}.rope_theta"))? {
            theta = own;
        }
        if let Some(own) = of_local.optional_positive(&format!("{local}.rope_theta"))? {
            local_theta = own;
        }
        let own = read(fields, global, of_global)?;
        if let Some(outer) = scaling.replace(own.clone())
            && outer != own
        {
            let (found, expected) = (format!("{outer:?}"), format!("{own:?}"));
            return Err(contradiction("rope_scaling", found, global, expected));
        }
        local_scaling = read(fields, local, of_local)?;
    }
    let config = |theta, scaling| RotaryConfig {
        d_head,
        theta,
        max_positions,
        scaling,
    };
    Ok([
        config(theta, scaling.unwrap_or(RotaryScaling::Default)),
        config(local_theta, local_scaling),
    ])
}

/// `rope_parameters`, with the prefix of its keys.
///
/// If it has an entry for each kind of layer, these must agree.
fn read_parameters(fields: &mut Fields) -> Result<Option<(String, Fields)>, ConfigError> {
    const KEY: &str = "rope_parameters";
    let Some(mut parameters) = fields.optional_object(KEY)? else {
        return Ok(None);
    };
    let kinds: Vec<String> = LAYER_KINDS
        .iter()
        .map(|kind| format!("{KEY}.{kind}"))
        .collect();
    let present: Vec<&String> = kinds
        .iter()
        .filter(|kind| parameters.keys().any(|key| key == *kind))
        .collect();
    let Some(first) = present.first() else {
        return Ok(Some((KEY.to_owned(), parameters)));
    };
    let of_first = parameters.optional_value(first);
    for other in &present[1..] {
        let of_other = parameters.optional_value(other);
        if of_other != of_first {
            return Err(ConfigError::Unsupported {
                key: (*other).clone(),
                found: of_other.unwrap_or_default().to_string(),
                reason: format!(
                    "this model family has one rotary embedding for all layers, but `{first}` \
                     differs"
                ),
            });
        }
    }
    let inner = parameters.optional_object(first)?;
    fields.absorb(parameters)?;
    Ok(inner.map(|inner| ((*first).clone(), inner)))
}

fn contradiction(key: &str, found: String, other: &str, expected: String) -> ConfigError {
    ConfigError::Invalid {
        key: key.to_owned(),
        expected: format!("{expected}, as in `{other}`"),
        found,
    }
}

/// Reads an object that describes the scaling of the frequencies; its keys have the prefix `key`.
fn read_scaling(
    fields: &mut Fields,
    key: &str,
    mut object: Fields,
    d_head: usize,
    max_positions: usize,
) -> Result<RotaryScaling, ConfigError> {
    let name = |inner: &str| format!("{key}.{inner}");
    // The older name takes precedence, as in `transformers`.
    let old = object.optional_text(&name("type"))?;
    let new = object.optional_text(&name("rope_type"))?;
    let kind = old.or(new).unwrap_or_else(|| "default".to_owned());
    let original = |object: &mut Fields| {
        let original = object.optional_size(&name("original_max_position_embeddings"))?;
        Ok(original.unwrap_or(max_positions))
    };
    let scaling = match kind.as_str() {
        "default" => RotaryScaling::Default,
        "linear" => RotaryScaling::Linear {
            factor: object.positive(&name("factor"))?,
        },
        "dynamic" => RotaryScaling::Dynamic {
            factor: object.positive(&name("factor"))?,
        },
        "llama3" => RotaryScaling::Llama3 {
            factor: object.positive(&name("factor"))?,
            low_freq_factor: object.positive(&name("low_freq_factor"))?,
            high_freq_factor: object.positive(&name("high_freq_factor"))?,
            original: original(&mut object)?,
        },
        "yarn" => {
            let original = original(&mut object)?;
            RotaryScaling::Yarn(read_yarn(key, &mut object, original)?)
        }
        // The original name in Phi-3.
        "longrope" | "su" => {
            let longrope = read_longrope(fields, key, &mut object, d_head, max_positions)?;
            RotaryScaling::LongRope(longrope)
        }
        other => {
            return Err(ConfigError::Unsupported {
                key: name("rope_type"),
                found: format!("`{other}`"),
                reason: "expected default, linear, dynamic, llama3, yarn or longrope".to_owned(),
            });
        }
    };
    for inner in KEYS.map(name) {
        if object.keys().any(|there| there == inner) && !object.was_read(&inner) {
            object.optional_value(&inner);
            object.note(LoadNote::UnusedConfigKey {
                key: inner,
                reason: format!("rotary embeddings of type `{kind}` have no such parameter"),
            });
        }
    }
    fields.absorb(object)?;
    Ok(scaling)
}

fn read_yarn(key: &str, object: &mut Fields, original: usize) -> Result<Yarn, ConfigError> {
    let name = |inner: &str| format!("{key}.{inner}");
    let factor = object.positive(&name("factor"))?;
    let mscale = object.optional_number(&name("mscale"))?;
    let mscale_all_dim = object.optional_number(&name("mscale_all_dim"))?;
    // Equation 22 of the paper, generalised as in DeepSeek's models.
    let magnitude = |mscale: f64| match factor > 1.0 {
        true => 0.1 * mscale * factor.ln() + 1.0,
        false => 1.0,
    };
    let default_attention_factor = match (mscale, mscale_all_dim) {
        (Some(one), Some(all)) if one != 0.0 && all != 0.0 => magnitude(one) / magnitude(all),
        _ => magnitude(1.0),
    };
    let nonzero = |value: Option<f64>, default: f64| value.filter(|v| *v != 0.0).unwrap_or(default);
    Ok(Yarn {
        factor,
        original,
        attention_factor: object
            .optional_number(&name("attention_factor"))?
            .unwrap_or(default_attention_factor),
        beta_fast: nonzero(object.optional_number(&name("beta_fast"))?, 32.0),
        beta_slow: nonzero(object.optional_number(&name("beta_slow"))?, 1.0),
        truncate: object.flag(&name("truncate"), true)?,
    })
}

fn read_longrope(
    fields: &mut Fields,
    key: &str,
    object: &mut Fields,
    d_head: usize,
    max_positions: usize,
) -> Result<LongRope, ConfigError> {
    let name = |inner: &str| format!("{key}.{inner}");
    // The older key next to the object takes precedence if present.
    let outer = fields.optional_size("original_max_position_embeddings")?;
    let inner = object.optional_size(&name("original_max_position_embeddings"))?;
    let factor = object.optional_positive(&name("factor"))?;
    let original = outer.or(inner).unwrap_or(max_positions);
    let factor = factor.unwrap_or(max_positions as f64 / original as f64);
    let default_attention_factor = LongRope::default_attention_factor(factor, original);
    let mut divisors = |inner: &str| {
        let key = name(inner);
        let divisors = object.optional_numbers(&key)?;
        let divisors = divisors.ok_or_else(|| ConfigError::Missing { key: key.clone() })?;
        if divisors.len() != d_head / 2 || divisors.iter().any(|divisor| *divisor <= 0.0) {
            return Err(ConfigError::Invalid {
                key,
                expected: format!("{} numbers above 0, one for each frequency", d_head / 2),
                found: format!("{} numbers", divisors.len()),
            });
        }
        Ok(divisors)
    };
    let (short, long) = (divisors("short_factor")?, divisors("long_factor")?);
    Ok(LongRope {
        short,
        long,
        attention_factor: object
            .optional_number(&name("attention_factor"))?
            .unwrap_or(default_attention_factor),
        original,
    })
}

/// `rope_scaling` in a form that every release of `transformers` reads; `None` for plain rotary
/// embeddings.
pub(crate) fn write_scaling(scaling: &RotaryScaling) -> Option<Value> {
    Some(match scaling {
        RotaryScaling::Default => return None,
        RotaryScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RotaryScaling::Dynamic { factor } => json!({"rope_type": "dynamic", "factor": factor}),
        RotaryScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original,
        }),
        RotaryScaling::Yarn(yarn) => json!({
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original,
            "attention_factor": yarn.attention_factor,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "truncate": yarn.truncate,
        }),
        RotaryScaling::LongRope(long) => json!({
            "rope_type": "longrope",
            // Only read if there is no `attention_factor`.
            "factor": 1.0,
            "short_factor": long.short,
            "long_factor": long.long,
            "attention_factor": long.attention_factor,
            "original_max_position_embeddings": long.original,
        }),
    })
}
