//! Matrices in their own dtype, of which products are computed in f32.

use burn::tensor::{DType, bf16, f16};
use burn_flex::FlexTensor;

/// Elements that are only read.
#[derive(Clone, Copy)]
pub(super) enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

impl<'a> Elements<'a> {
    /// Those of a tensor's storage, from one on.
    ///
    /// # Panics
    /// Unless [`Self::are`].
    pub(super) fn of(x: &'a FlexTensor, first: usize) -> Self {
        match x.dtype() {
            DType::F16 => Self::F16(&x.storage()[first..]),
            DType::BF16 => Self::BF16(&x.storage()[first..]),
            _ => Self::F32(&x.storage()[first..]),
        }
    }

    /// Whether there are elements of this dtype.
    pub(super) fn are(dtype: DType) -> bool {
        matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
    }

    /// From another one on.
    #[inline(always)]
    pub(super) fn from(self, first: usize) -> Self {
        match self {
            Self::F32(elements) => Self::F32(&elements[first..]),
            Self::F16(elements) => Self::F16(&elements[first..]),
            Self::BF16(elements) => Self::BF16(&elements[first..]),
        }
    }

    /// The first of them in f32, as many as there is `room` for: as they lie, or copied there.
    #[inline(always)]
    pub(super) fn widened<'r>(self, room: &'r mut [f32]) -> &'r [f32]
    where
        'a: 'r,
    {
        match self {
            Self::F32(elements) => return &elements[..room.len()],
            Self::F16(elements) => {
                for (to, from) in room.iter_mut().zip(elements) {
                    *to = from.to_f32();
                }
            }
            Self::BF16(elements) => {
                for (to, from) in room.iter_mut().zip(elements) {
                    *to = f32::from_bits(u32::from(from.to_bits()) << 16);
                }
            }
        }
        room
    }
}
