//! How the elements of a GGUF tensor are stored.

use std::fmt;

/// Storage type of a tensor, as numbered by `enum ggml_type` in ggml's `ggml.h`.
///
/// The elements of a row are stored in blocks: [`block_len`](Self::block_len) elements take
/// [`block_bytes`](Self::block_bytes) bytes. Plain types have blocks of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(
    non_camel_case_types,
    reason = "the names that people know the types by"
)]
#[expect(missing_docs, reason = "the names say it")]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
}

/// The type, its number in a file, its name, elements per block and bytes per block, from the
/// `block_*` structs in ggml's `ggml-common.h`.
const TYPES: [(GgmlType, u32, &str, usize, usize); 34] = {
    use GgmlType::*;
    [
        (F32, 0, "F32", 1, 4),
        (F16, 1, "F16", 1, 2),
        (Q4_0, 2, "Q4_0", 32, 2 + 16),
        (Q4_1, 3, "Q4_1", 32, 2 + 2 + 16),
        (Q5_0, 6, "Q5_0", 32, 2 + 4 + 16),
        (Q5_1, 7, "Q5_1", 32, 2 + 2 + 4 + 16),
        (Q8_0, 8, "Q8_0", 32, 2 + 32),
        (Q8_1, 9, "Q8_1", 32, 2 + 2 + 32),
        (Q2_K, 10, "Q2_K", 256, 16 + 64 + 2 + 2),
        (Q3_K, 11, "Q3_K", 256, 32 + 64 + 12 + 2),
        (Q4_K, 12, "Q4_K", 256, 2 + 2 + 12 + 128),
        (Q5_K, 13, "Q5_K", 256, 2 + 2 + 12 + 32 + 128),
        (Q6_K, 14, "Q6_K", 256, 128 + 64 + 16 + 2),
        (Q8_K, 15, "Q8_K", 256, 4 + 256 + 2 * 16),
        (IQ2_XXS, 16, "IQ2_XXS", 256, 2 + 64),
        (IQ2_XS, 17, "IQ2_XS", 256, 2 + 64 + 8),
        (IQ3_XXS, 18, "IQ3_XXS", 256, 2 + 96),
        (IQ1_S, 19, "IQ1_S", 256, 2 + 32 + 16),
        (IQ4_NL, 20, "IQ4_NL", 32, 2 + 16),
        (IQ3_S, 21, "IQ3_S", 256, 2 + 64 + 8 + 32 + 4),
        (IQ2_S, 22, "IQ2_S", 256, 2 + 64 + 8 + 8),
        (IQ4_XS, 23, "IQ4_XS", 256, 2 + 2 + 4 + 128),
        (I8, 24, "I8", 1, 1),
        (I16, 25, "I16", 1, 2),
        (I32, 26, "I32", 1, 4),
        (I64, 27, "I64", 1, 8),
        (F64, 28, "F64", 1, 8),
        (IQ1_M, 29, "IQ1_M", 256, 32 + 16 + 8),
        (BF16, 30, "BF16", 1, 2),
        (TQ1_0, 34, "TQ1_0", 256, 48 + 4 + 2),
        (TQ2_0, 35, "TQ2_0", 256, 64 + 2),
        (MXFP4, 39, "MXFP4", 32, 1 + 16),
        (NVFP4, 40, "NVFP4", 64, 4 + 32),
        (Q1_0, 41, "Q1_0", 128, 2 + 16),
    ]
};

impl GgmlType {
    /// The type with this number in a file; `None` for one that ggml does not have, or no longer.
    pub fn from_id(id: u32) -> Option<Self> {
        let found = TYPES.iter().find(|(_, number, ..)| *number == id);
        found.map(|(ggml_type, ..)| *ggml_type)
    }

    /// Its number in a file.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// Its name in ggml, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements per block. A row holds whole blocks.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Whether the elements are integers, which no weight of a model is.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }

    /// Whether elements share a scale with others of their block.
    pub fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    fn row(self) -> &'static (Self, u32, &'static str, usize, usize) {
        let found = TYPES.iter().find(|(ggml_type, ..)| *ggml_type == self);
        found.expect("the table has every type: see the tests")
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names of types that ggml has removed, by their numbers.
pub(super) fn retired(id: u32) -> Option<&'static str> {
    Some(match id {
        4 => "Q4_2",
        5 => "Q4_3",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => return None,
    })
}
