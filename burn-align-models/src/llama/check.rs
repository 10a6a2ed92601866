//! Checks for a configuration that was built by hand.

use super::LlamaConfig;

/// Why no model can have this configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LlamaConfigError {
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
    /// Rotary tables for heads of a different width.
    #[error(
        "rotary.d_head: expected dims.d_head = {expected}, which must be even, found {found}; \
         features are rotated in pairs"
    )]
    RotaryWidth {
        /// Width of a head.
        expected: usize,
        /// Width in the rotary configuration.
        found: usize,
    },
}

impl LlamaConfig {
    /// Checks that the parts of the configuration are consistent, which [`init`](Self::init)
    /// requires.
    ///
    /// # Errors
    /// If they are not.
    pub fn check(&self) -> Result<(), LlamaConfigError> {
        let dims = &self.dims;
        if let Some(window) = &self.sliding_window {
            let (expected, found) = (dims.layers, window.layers.len());
            if found != expected {
                return Err(LlamaConfigError::WindowLayers { expected, found });
            }
            if window.size == 0 {
                return Err(LlamaConfigError::EmptyWindow);
            }
        }
        if dims.kv_heads == 0 || !dims.heads.is_multiple_of(dims.kv_heads) {
            return Err(LlamaConfigError::Heads {
                heads: dims.heads,
                kv_heads: dims.kv_heads,
            });
        }
        let (expected, found) = (dims.d_head, self.rotary.d_head);
        if found != expected || found % 2 != 0 {
            return Err(LlamaConfigError::RotaryWidth { expected, found });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::SlidingWindow;

    #[test]
    fn parts_that_do_not_belong_together_are_told() {
        let config = LlamaConfig::llama3_2_1b();
        assert_eq!(config.check(), Ok(()));
        let with = |change: fn(&mut LlamaConfig)| {
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
        let error = LlamaConfigError::WindowLayers {
            expected: 16,
            found: 15,
        };
        assert_eq!(windowed.check(), Err(error));
        windowed.sliding_window = window(0, 16);
        assert_eq!(windowed.check(), Err(LlamaConfigError::EmptyWindow));
        let error = with(|config| config.dims.kv_heads = 5);
        assert!(matches!(error, Err(LlamaConfigError::Heads { .. })));
        let error = with(|config| config.dims.d_head = 32);
        assert!(matches!(error, Err(LlamaConfigError::RotaryWidth { .. })));
    }
}
