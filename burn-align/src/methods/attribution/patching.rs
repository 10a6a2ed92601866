//! What is patched into what.

use burn::tensor::backend::Backend;

use super::AttributionError;
use crate::engine::WorldInput;

/// Which prompt is run, and which one activations are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchDirection {
    /// Corrupt activations are patched into the clean run: what is needed. Gradients are taken on
    /// the clean run, as in the reference code of EAP and EAP-IG.
    Noising,
    /// Clean activations are patched into the corrupt run: what is sufficient. Gradients are taken
    /// on the corrupt run, as in TransformerLens' demo of attribution patching.
    Denoising,
}

/// A pair of prompts, and the direction of patching.
///
/// An effect is always `m(base with the source's activation) − m(base)`. Under
/// [noising](Self::noising) the base is the clean prompt, and a node that supports the answer has a
/// negative effect on a metric of the answer; under [denoising](Self::denoising) the base is the
/// corrupt one, and the effect is positive.
#[derive(Clone, Debug)]
pub struct Patching<B: Backend> {
    base: WorldInput<B>,
    source: WorldInput<B>,
    direction: PatchDirection,
}

impl<B: Backend> Patching<B> {
    /// Patches corrupt activations into the clean run.
    pub fn noising(clean: impl Into<WorldInput<B>>, corrupt: impl Into<WorldInput<B>>) -> Self {
        Self {
            base: clean.into(),
            source: corrupt.into(),
            direction: PatchDirection::Noising,
        }
    }

    /// Patches clean activations into the corrupt run.
    pub fn denoising(clean: impl Into<WorldInput<B>>, corrupt: impl Into<WorldInput<B>>) -> Self {
        Self {
            base: corrupt.into(),
            source: clean.into(),
            direction: PatchDirection::Denoising,
        }
    }

    /// What is run, and patched.
    pub fn base(&self) -> &WorldInput<B> {
        &self.base
    }

    /// What activations are taken from.
    pub fn source(&self) -> &WorldInput<B> {
        &self.source
    }

    /// The direction.
    pub fn direction(&self) -> PatchDirection {
        self.direction
    }

    /// Number of examples.
    pub fn batch(&self) -> usize {
        self.base.batch()
    }

    /// Checks that examples can be compared position by position.
    pub(in crate::methods) fn check(&self) -> Result<(), AttributionError> {
        if self.base.batch() != self.source.batch() {
            return Err(AttributionError::Batches {
                base: self.base.batch(),
                source_batch: self.source.batch(),
            });
        }
        let lengths = self.base.lengths().into_iter().zip(self.source.lengths());
        for (example, (base, source_length)) in lengths.enumerate() {
            if base != source_length {
                return Err(AttributionError::Lengths {
                    example,
                    base,
                    source_length,
                });
            }
        }
        Ok(())
    }
}
