//! Masks and rotary tables kept from pass to pass.

use std::any::Any;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use burn::tensor::ops::Device;

use super::CausalPass;

/// What a pass depends on, apart from what is fixed for a model.
#[derive(PartialEq)]
pub(crate) struct PassKey<D> {
    pub(crate) pos: usize,
    pub(crate) device: D,
    /// Dtype of the rotary tables.
    pub(crate) dtype: DType,
    pub(crate) fused: bool,
}

type Kept<B> = (PassKey<Device<B>>, CausalPass<B>);

/// The shared state of the last pass. The next pass over equally many positions uses it again, so
/// that training steps and batches do not rebuild masks and rotary tables.
///
/// A clone starts empty: it may be for another device or backend.
#[derive(Default)]
pub(crate) struct LastPass {
    /// [`Kept`] of the model's backend. The type does not name the backend, because a skipped field
    /// of a module must have the same type on all backends.
    kept: Mutex<Option<Box<dyn Any + Send>>>,
}

impl LastPass {
    /// The last pass if it matches this one, or a new one.
    pub(crate) fn or_begin<B: Backend>(
        &self,
        key: PassKey<Device<B>>,
        begin: impl FnOnce(&PassKey<Device<B>>) -> CausalPass<B>,
    ) -> CausalPass<B> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let last = kept
            .as_ref()
            .and_then(|kept| kept.downcast_ref::<Kept<B>>());
        if let Some((last, pass)) = last
            && *last == key
        {
            return pass.clone();
        }
        let pass = begin(&key);
        *kept = Some(Box::new((key, pass.clone())));
        pass
    }
}

impl Clone for LastPass {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for LastPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastPass")
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::backend::flex::FlexDevice;

    use super::*;

    #[test]
    fn passes_alike_are_begun_once() {
        let last = LastPass::default();
        let mut begun = Vec::new();
        let mut begin = |pos, fused| {
            let key = PassKey {
                pos,
                device: FlexDevice,
                dtype: DType::F32,
                fused,
            };
            let pass: CausalPass<Flex> = last.or_begin(key, |key| {
                begun.push((key.pos, key.fused));
                CausalPass::new(key.pos, None, Vec::new(), &key.device).with_fused(key.fused)
            });
            assert_eq!(pass.masks.pos(), pos);
            assert_eq!(pass.fused, fused);
        };
        for pos in [3, 3, 4, 4, 3] {
            begin(pos, false);
        }
        begin(3, true);
        assert_eq!(begun, [(3, false), (4, false), (3, false), (3, true)]);
        assert!(last.clone().kept.lock().is_ok_and(|kept| kept.is_none()));
    }
}
