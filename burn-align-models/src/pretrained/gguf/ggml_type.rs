//! How the elements of a GGUF tensor are stored.

use std::fmt;

/// One row for each type: its name, its number in a file, elements per block, bytes per block.
macro_rules! ggml_types {
    ($($name:ident = $id:literal: $len:literal in $bytes:expr;)*) => {
        /// Storage type of a tensor, as numbered by `enum ggml_type` in ggml's `ggml.h`.
        ///
        /// The elements of a row are stored in blocks: [`block_len`](Self::block_len) elements
        /// take [`block_bytes`](Self::block_bytes) bytes. Plain types have blocks of one element.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[allow(non_camel_case_types, reason = "the established names of the types")]
        #[expect(missing_docs, reason = "the names are self-explanatory")]
        pub enum GgmlType {
            $($name,)*
        }

        impl GgmlType {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The type with this number in a file; `None` if ggml does not have it, or no longer
            /// has it.
            pub fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its number in a file.
            pub fn id(self) -> u32 {
                match self {
                    $(Self::$name => $id,)*
                }
            }

            /// Its name in ggml, such as `Q4_K`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// Elements per block. A row holds whole blocks.
            pub fn block_len(self) -> usize {
                match self {
                    $(Self::$name => $len,)*
                }
            }

            /// Bytes per block.
            pub fn block_bytes(self) -> usize {
                match self {
                    $(Self::$name => $bytes,)*
                }
            }
        }
    };
}

// Sizes: the `block_*` structs in ggml's `ggml-common.h`.
ggml_types! {
    F32 = 0: 1 in 4;
    F16 = 1: 1 in 2;
    Q4_0 = 2: 32 in 2 + 16;
    Q4_1 = 3: 32 in 2 + 2 + 16;
    Q5_0 = 6: 32 in 2 + 4 + 16;
    Q5_1 = 7: 32 in 2 + 2 + 4 + 16;
    Q8_0 = 8: 32 in 2 + 32;
    Q8_1 = 9: 32 in 2 + 2 + 32;
    Q2_K = 10: 256 in 16 + 64 + 2 + 2;
    Q3_K = 11: 256 in 32 + 64 + 12 + 2;
    Q4_K = 12: 256 in 2 + 2 + 12 + 128;
    Q5_K = 13: 256 in 2 + 2 + 12 + 32 + 128;
    Q6_K = 14: 256 in 128 + 64 + 16 + 2;
    Q8_K = 15: 256 in 4 + 256 + 2 * 16;
    IQ2_XXS = 16: 256 in 2 + 64;
    IQ2_XS = 17: 256 in 2 + 64 + 8;
    IQ3_XXS = 18: 256 in 2 + 96;
    IQ1_S = 19: 256 in 2 + 32 + 16;
    IQ4_NL = 20: 32 in 2 + 16;
    IQ3_S = 21: 256 in 2 + 64 + 8 + 32 + 4;
    IQ2_S = 22: 256 in 2 + 64 + 8 + 8;
    IQ4_XS = 23: 256 in 2 + 2 + 4 + 128;
    I8 = 24: 1 in 1;
    I16 = 25: 1 in 2;
    I32 = 26: 1 in 4;
    I64 = 27: 1 in 8;
    F64 = 28: 1 in 8;
    IQ1_M = 29: 256 in 32 + 16 + 8;
    BF16 = 30: 1 in 2;
    TQ1_0 = 34: 256 in 48 + 4 + 2;
    TQ2_0 = 35: 256 in 64 + 2;
    MXFP4 = 39: 32 in 1 + 16;
    NVFP4 = 40: 64 in 4 + 32;
    Q1_0 = 41: 128 in 2 + 16;
}

impl GgmlType {
    /// Whether the elements are integers, which weights never are.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }

    /// Whether the elements of a block share a scale.
    pub fn is_quantised(self) -> bool {
        self.block_len() > 1
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
