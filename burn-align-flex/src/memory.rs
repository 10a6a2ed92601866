//! Memory that results of kernels use again, instead of going back to the system in between.
//!
//! Fresh memory is mapped page by page and zeroed by the system, which takes a fifth of the time of
//! a long sweep. So while a [`Reuse`] is alive, kernels keep the buffers of their arguments that
//! nothing else needs, and write results into them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;

use burn::tensor::{Bytes, DType, Tensor, backend::Backend};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::kernels::{TASK, in_tasks};
use crate::{autodiff, recognise::recognise_any};

/// Elements below which memory is not kept: the system has it at hand anyway.
const LEAST: usize = 16 * 1024;
/// Elements in the smallest page of a system.
const PAGE: usize = 1024;
/// How many times as long or as short as what is needed a buffer may be.
const MOST_RATIO: usize = 2;
/// Buffers of similar lengths that a pass keeps: as many as a layer has use for.
const MOST_SIMILAR: usize = 2;
/// Results that are remembered as taken: more than a step has.
const MOST_LOANS: usize = 4096;

thread_local! {
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept::new()) };
}

/// Buffers of a thread that wait to be used again.
struct Kept {
    /// How many [`Reuse`]s are alive.
    open: usize,
    /// How many buffers of similar lengths are kept.
    most_similar: usize,
    /// The oldest first.
    buffers: Vec<Vec<f32>>,
    /// The lengths of results that have been taken and not given back, the oldest first. A buffer
    /// is only kept in place of a similar one, so memory from elsewhere does not pile up here.
    loans: VecDeque<usize>,
}

impl Kept {
    const fn new() -> Self {
        Self {
            open: 0,
            most_similar: 0,
            buffers: Vec::new(),
            loans: VecDeque::new(),
        }
    }

    /// The buffer that is nearest to this length, if one is similar.
    fn take(&mut self, length: usize) -> Option<Vec<f32>> {
        self.loans.push_back(length);
        if self.loans.len() > MOST_LOANS {
            self.loans.pop_front();
        }
        let nearest = self
            .similar(length)
            .min_by_key(|index| self.buffers[*index].capacity().abs_diff(length));
        Some(self.buffers.remove(nearest?))
    }

    /// Keeps a buffer in place of one that has been taken, if there is one of its length or similar.
    fn give(&mut self, buffer: Vec<f32>) {
        let length = buffer.len();
        let mut loans = self.loans.iter();
        let own = loans.clone().rposition(|loan| *loan == length);
        let loan = own.or_else(|| loans.rposition(|loan| are_similar(*loan, length)));
        let Some(loan) = loan else {
            return;
        };
        self.loans.remove(loan);
        let similar: Vec<usize> = self.similar(buffer.capacity()).collect();
        if similar.len() >= self.most_similar {
            self.buffers.remove(similar[0]);
        }
        self.buffers.push(buffer);
    }

    /// The indices of buffers that could be used for this length, the oldest first.
    fn similar(&self, length: usize) -> impl Iterator<Item = usize> {
        let all = self.buffers.iter().enumerate();
        let similar = all.filter(move |(_, buffer)| are_similar(buffer.capacity(), length));
        similar.map(|(index, _)| index)
    }
}

/// Whether a buffer of one length can be used for the other.
fn are_similar(a: usize, b: usize) -> bool {
    a <= b * MOST_RATIO && b <= a * MOST_RATIO
}

/// While one is alive, kernels on this thread use memory again. When the last one is dropped, what
/// they have kept goes back to the system.
///
/// A buffer is only kept in place of one of similar length that a result has taken.
#[derive(Debug)]
pub struct Reuse {
    /// How many similar buffers were kept before.
    before: usize,
    /// It counts on its own thread.
    of_thread: PhantomData<*const ()>,
}

impl Reuse {
    /// Keeps what a pass without gradients uses again, from layer to layer.
    #[must_use = "it ends when this is dropped"]
    pub fn in_pass() -> Self {
        Self::begin(MOST_SIMILAR)
    }

    /// Also keeps what the gradients of one step leave to the forward pass of the next one.
    #[must_use = "it ends when this is dropped"]
    pub fn in_steps() -> Self {
        Self::begin(usize::MAX)
    }

    fn begin(most_similar: usize) -> Self {
        KEPT.with_borrow_mut(|kept| {
            let before = kept.most_similar;
            kept.open += 1;
            kept.most_similar = before.max(most_similar);
            Self {
                before,
                of_thread: PhantomData,
            }
        })
    }
}

impl Drop for Reuse {
    fn drop(&mut self) {
        KEPT.with_borrow_mut(|kept| {
            kept.open -= 1;
            kept.most_similar = self.before;
            if kept.open == 0 {
                *kept = Kept::new();
            }
        });
    }
}

/// Gives back the memory of a tensor that is not needed any more, if nothing else needs it either.
pub fn give_back<B: Backend, const D: usize>(x: Tensor<B, D>) {
    match recognise_any(x) {
        Ok(x) => give(x),
        Err(x) => {
            if let Ok(x) = autodiff::recognise(x) {
                give(x.primitive);
            }
        }
    }
}

/// [`give_back`] of a tensor of Flex.
pub(crate) fn give(x: FlexTensor) {
    if x.dtype() != DType::F32 || x.bytes().len() < LEAST * size_of::<f32>() {
        return;
    }
    let bytes = x.data_arc();
    drop(x);
    let Some(Ok(buffer)) = Arc::into_inner(bytes).map(Bytes::try_into_vec) else {
        return;
    };
    KEPT.with_borrow_mut(|kept| kept.give(buffer));
}

/// Memory for this many numbers, with any contents: all of them must be written before they are
/// read.
pub(crate) fn numbers(length: usize) -> Vec<f32> {
    let mut buffer = kept(length).unwrap_or_else(|| vec![0.0; length]);
    // What is read before it is written shows in tests.
    if cfg!(any(test, debug_assertions)) {
        buffer.fill(f32::NAN);
    }
    buffer
}

/// This many zeros.
pub(crate) fn zeros(length: usize) -> Vec<f32> {
    match kept(length) {
        Some(mut buffer) => {
            in_tasks(&mut buffer, TASK, |_, part| part.fill(0.0));
            buffer
        }
        None => vec![0.0; length],
    }
}

/// A kept buffer of this length, with any contents.
fn kept(length: usize) -> Option<Vec<f32>> {
    if length < LEAST {
        return None;
    }
    let mut buffer = KEPT.with_borrow_mut(|kept| {
        if kept.open == 0 {
            return None;
        }
        kept.take(length)
    })?;
    buffer.truncate(length);
    let more = length - buffer.len();
    buffer.reserve_exact(more);
    // All cores have the system map new pages, which takes longer than to write zeros to them.
    let new = &mut buffer.spare_capacity_mut()[..more];
    if more > TASK {
        new.par_chunks_mut(TASK).for_each(|part| {
            for page in part.chunks_mut(PAGE) {
                page[0].write(0.0);
            }
        });
    }
    buffer.resize(length, 0.0);
    Some(buffer)
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::tensor::TensorData;
    use burn_flex::Flex;

    use super::*;

    fn tensor(numbers: Vec<f32>) -> FlexTensor {
        let shape = [numbers.len()];
        FlexTensor::from_data(TensorData::new(numbers, shape))
    }

    fn kept_lengths() -> Vec<usize> {
        KEPT.with_borrow(|kept| kept.buffers.iter().map(Vec::len).collect())
    }

    #[test]
    fn a_buffer_is_used_again() {
        let reuse = Reuse::in_steps();
        let buffer = numbers(3 * LEAST);
        let place = buffer.as_ptr();
        give(tensor(buffer));
        assert_eq!(kept_lengths(), [3 * LEAST]);
        // Shorter and longer ones, but not by more than twice.
        let longer = numbers(7 * LEAST);
        assert_ne!(longer.as_ptr(), place);
        let shorter = numbers(2 * LEAST);
        assert_eq!(shorter.as_ptr(), place);
        assert_eq!(shorter.len(), 2 * LEAST);
        give(tensor(shorter));
        assert_eq!(zeros(4 * LEAST), vec![0.0; 4 * LEAST]);
        assert_eq!(kept_lengths(), [0; 0]);
        drop(reuse);
    }

    #[test]
    fn nothing_is_kept_that_is_needed_or_foreign() {
        // Nothing has begun.
        give(tensor(numbers(LEAST)));
        assert_eq!(kept_lengths(), [0; 0]);
        let outer = Reuse::in_steps();
        // Nothing similar was taken.
        drop(numbers(3 * LEAST));
        give(tensor(vec![0.0; LEAST]));
        assert_eq!(kept_lengths(), [0; 0]);
        // Needed elsewhere.
        let x = tensor(numbers(2 * LEAST));
        let other = x.clone();
        give(x);
        assert_eq!(kept_lengths(), [0; 0]);
        // Too short.
        give(tensor(numbers(LEAST - 1)));
        assert_eq!(kept_lengths(), [0; 0]);
        {
            let _inner = Reuse::in_steps();
            give(other.reshape([LEAST, 2].into()).transpose(0, 1));
            give(other);
        }
        assert_eq!(kept_lengths(), [2 * LEAST]);
        drop(outer);
        assert_eq!(kept_lengths(), [0; 0]);
    }

    #[test]
    fn a_pass_keeps_two_of_similar_lengths() {
        let _reuse = Reuse::in_pass();
        let lengths = [2, 3, 9, 4];
        let buffers = lengths.map(|length| numbers(length * LEAST));
        for buffer in buffers {
            give(tensor(buffer));
        }
        assert_eq!(kept_lengths(), [3, 9, 4].map(|length| length * LEAST));
    }

    #[test]
    fn foreign_memory_does_not_pile_up() {
        let _reuse = Reuse::in_steps();
        for _ in 0..5 {
            // Results that are dropped elsewhere, and more buffers from elsewhere than that.
            for _ in 0..3 {
                drop(numbers(2 * LEAST));
            }
            for _ in 0..7 {
                give(tensor(vec![0.0; 2 * LEAST]));
                give(tensor(vec![0.0; 9 * LEAST]));
            }
            assert_eq!(kept_lengths(), [2 * LEAST; 3]);
        }
    }

    #[test]
    fn tensors_of_both_backends_give_back_memory() {
        let _reuse = Reuse::in_steps();
        let (device, shape) = (Default::default(), [LEAST]);
        for _ in 0..2 {
            drop(numbers(LEAST));
        }
        give_back(Tensor::<Flex, 1>::from_data(
            TensorData::new(vec![1.0_f32; LEAST], shape),
            &device,
        ));
        give_back(Tensor::<Autodiff<Flex>, 1>::from_data(
            TensorData::new(vec![1.0_f32; LEAST], shape),
            &device,
        ));
        assert_eq!(kept_lengths(), [LEAST; 2]);
    }
}
