//! Memory that is used again while work goes on.

use std::marker::PhantomData;

use burn::tensor::{Tensor, backend::Backend};

/// While one is alive, the CPU backend Flex writes results into memory that earlier ones on this
/// thread do not need any more, if the feature `flex` is on; the system would map and zero new
/// memory for each of them. Other backends have pools of their own, and this does nothing.
///
/// What is kept goes back to the system when the last one is dropped.
#[derive(Debug)]
pub struct ReusedMemory {
    #[cfg(feature = "flex")]
    _reuse: super::flex::Reuse,
    /// It counts on its own thread.
    of_thread: PhantomData<*const ()>,
}

impl ReusedMemory {
    /// Keeps what a pass uses again, from layer to layer.
    #[must_use = "it ends when this is dropped"]
    pub fn in_pass() -> Self {
        Self {
            #[cfg(feature = "flex")]
            _reuse: super::flex::Reuse::in_pass(),
            of_thread: PhantomData,
        }
    }

    /// Also keeps what the gradients of one step leave to the forward pass of the next one: about as
    /// much as a step has at once.
    #[must_use = "it ends when this is dropped"]
    pub fn in_steps() -> Self {
        Self {
            #[cfg(feature = "flex")]
            _reuse: super::flex::Reuse::in_steps(),
            of_thread: PhantomData,
        }
    }
}

/// Gives back the memory of a tensor that is not needed any more, if nothing else needs it either.
/// Products, norms, attention and sums of this module do this with their arguments.
pub fn give_back<B: Backend, const D: usize>(x: Tensor<B, D>) {
    #[cfg(feature = "flex")]
    super::flex::give_back(x);
    #[cfg(not(feature = "flex"))]
    drop(x);
}
