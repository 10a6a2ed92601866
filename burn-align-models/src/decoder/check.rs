//! Checks for a configuration that was built by hand.

use super::{DecoderConfig, Positions, QkvLayout};
use crate::dims::ModelDims;

/// Why no model can have this configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecoderConfigError {
    /// A window for a different number of layers than the model has.
    #[error(
        "sliding_window.layers: expected an entry for each of {expected} layers, found {found}; \
         give one flag per layer, whether the window limits it"
    )]
    WindowLayers {
        /// Number of layers.
        expected: usize,
        /// Number of entries.
        found: usize,
    },
    /// A window too small for the query itself.
    #[error("sliding_window.size: expected at least 1, since each position sees itself, found 0")]
    EmptyWindow,
    /// Query heads that cannot be divided evenly among the key-value heads.
    #[error(
        "dims.kv_heads: expected a divisor of dims.heads = {heads}, so that all are shared by \
         equally many query heads, found {kv_heads}"
    )]
    Heads {
        /// Number of query heads.
        heads: usize,
        /// Number of key-value heads.
        kv_heads: usize,
    },
    /// A matrix with each head's query, key and value, in a model whose heads share keys.
    #[error(
        "qkv: a matrix by head needs a key and a value for each of {heads} heads, found \
         dims.kv_heads = {kv_heads}; use `Fused` or `Split`"
    )]
    HeadsByHead {
        /// Number of query heads.
        heads: usize,
        /// Number of key-value heads.
        kv_heads: usize,
    },
    /// Rotary tables that do not fit a head.
    #[error(
        "rotary d_head: expected an even number up to dims.d_head = {d_head}, found {found}; \
         features are rotated in pairs"
    )]
    RotaryWidth {
        /// Width of a head.
        d_head: usize,
        /// Width in the rotary configuration.
        found: usize,
    },
    /// Sizes that say something else than the rest of the configuration.
    #[error(
        "dims: expected max_positions {:?}, rotary {}, qk_norm {}, parallel {}, as in the rest of \
         the configuration", expected.max_positions, expected.rotary, expected.qk_norm,
        expected.parallel
    )]
    Dims {
        /// The sizes that fit the rest.
        expected: Box<ModelDims>,
    },
    /// Gate and up projection as one matrix, in an MLP without a gate.
    #[error("fused_gate_up: the MLP has no gate; set dims.gated_mlp")]
    NoGate,
}

impl DecoderConfig {
    /// Checks that the parts of the configuration are consistent, which [`init`](Self::init)
    /// requires.
    ///
    /// # Errors
    /// If they are not.
    pub fn check(&self) -> Result<(), DecoderConfigError> {
        let dims = &self.dims;
        if let Some(window) = &self.sliding_window {
            let (expected, found) = (dims.layers, window.layers.len());
            if found != expected {
                return Err(DecoderConfigError::WindowLayers { expected, found });
            }
            if window.size == 0 {
                return Err(DecoderConfigError::EmptyWindow);
            }
        }
        let (heads, kv_heads) = (dims.heads, dims.kv_heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(DecoderConfigError::Heads { heads, kv_heads });
        }
        if self.qkv == QkvLayout::FusedByHead && heads != kv_heads {
            return Err(DecoderConfigError::HeadsByHead { heads, kv_heads });
        }
        if self.fused_gate_up && !dims.gated_mlp {
            return Err(DecoderConfigError::NoGate);
        }
        if let Positions::Rotary { global, local } = &self.positions {
            for rotary in [Some(global), local.as_ref()].into_iter().flatten() {
                let (d_head, found) = (dims.d_head, rotary.d_head);
                if found > d_head || found % 2 != 0 {
                    return Err(DecoderConfigError::RotaryWidth { d_head, found });
                }
            }
        }
        let expected = self.dims_in_step();
        match *dims == expected {
            true => Ok(()),
            false => Err(DecoderConfigError::Dims {
                expected: Box::new(expected),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::{Residual, SlidingWindow};

    #[test]
    fn parts_that_do_not_belong_together_are_told() {
        let config = DecoderConfig::llama3_2_1b();
        assert_eq!(config.check(), Ok(()));
        let with = |change: fn(&mut DecoderConfig)| {
            let mut config = config.clone();
            change(&mut config);
            config.check()
        };
        let window = |size, layers| {
            let layers = vec![true; layers];
            Some(SlidingWindow { size, layers })
        };
        let mut windowed = config.clone();
        windowed.sliding_window = window(4, 16);
        assert_eq!(windowed.check(), Ok(()));
        windowed.sliding_window = window(4, 15);
        let error = DecoderConfigError::WindowLayers {
            expected: 16,
            found: 15,
        };
        assert_eq!(windowed.check(), Err(error));
        windowed.sliding_window = window(0, 16);
        assert_eq!(windowed.check(), Err(DecoderConfigError::EmptyWindow));
        let error = with(|config| config.dims.kv_heads = 5);
        assert!(matches!(error, Err(DecoderConfigError::Heads { .. })));
        let error = with(|config| config.qkv = QkvLayout::FusedByHead);
        assert!(matches!(error, Err(DecoderConfigError::HeadsByHead { .. })));
        let error = with(|config| config.dims.d_head = 32);
        assert!(matches!(error, Err(DecoderConfigError::RotaryWidth { .. })));
        let error = with(|config| config.residual = Residual::Parallel { shared_norm: true });
        assert!(matches!(error, Err(DecoderConfigError::Dims { .. })));
        let error = with(|config| config.dims.max_positions = Some(3));
        assert!(matches!(error, Err(DecoderConfigError::Dims { .. })));
    }
}
