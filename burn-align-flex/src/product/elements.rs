//! Matrices in their own dtype or in blocks, whose products are computed in f32.

use burn::tensor::{DType, bf16, f16};
use burn_align_quants::Blocks;
use burn_flex::FlexTensor;
use pulp::{NullaryFnOnce, Simd};

/// Elements that are only read.
#[derive(Clone, Copy)]
pub(super) enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
    Blocks(Blocks<'a>),
}

impl<'a> Elements<'a> {
    /// The elements of a tensor's storage, starting at `first`.
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

    /// Whether this dtype is supported.
    pub(super) fn are(dtype: DType) -> bool {
        matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
    }

    /// The same elements, starting at a later one.
    #[inline(always)]
    pub(super) fn from(self, first: usize) -> Self {
        match self {
            Self::F32(elements) => Self::F32(&elements[first..]),
            Self::F16(elements) => Self::F16(&elements[first..]),
            Self::BF16(elements) => Self::BF16(&elements[first..]),
            Self::Blocks(blocks) => Self::Blocks(blocks.from(first)),
        }
    }

    /// The first elements in f32, as many as fit into `room`: borrowed as they are, or widened into
    /// it.
    #[inline(always)]
    pub(super) fn widened<'r, S: Simd>(self, simd: S, room: &'r mut [f32]) -> &'r [f32]
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
            Self::Blocks(blocks) => simd.vectorize(Widen { blocks, room }),
        }
        room
    }
}

/// Fills `room`: a separate function, because all formats together are long.
struct Widen<'a, 'r> {
    blocks: Blocks<'a>,
    room: &'r mut [f32],
}

impl NullaryFnOnce for Widen<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.blocks.widen(self.room);
    }
}
