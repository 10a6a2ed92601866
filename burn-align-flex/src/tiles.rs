//! Tiles of sums that stay in registers.

use pulp::Simd;

/// Vectors of a row of a tile.
pub(crate) const VECTORS: usize = 2;

/// Features whose products are added to a tile without a branch in between, which would take up to a
/// third of the time.
pub(crate) const GROUP: usize = 4;

/// Calls something whose `const` parameter is the number of rows of a block. With the vectors of
/// an architecture, it is not compiled for more rows than its tiles have.
macro_rules! with_rows {
    (@each $rows:expr, $name:ident, $body:expr, $($count:literal)+) => {
        match $rows {
            $($count => {
                const $name: usize = $count;
                $body
            })+
            _ => unreachable!("blocks have no more rows than tiles"),
        }
    };
    ($rows:expr, |$name:ident| $body:expr) => {
        with_rows!(@each $rows, $name, $body, 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    ($simd:ident, $rows:expr, |$name:ident| $body:expr) => {
        with_rows!($rows, |$name| {
            if const { $name <= $crate::tiles::rows_of_tile::<$simd>() } {
                $body
            } else {
                unreachable!("blocks have no more rows than tiles")
            }
        })
    };
}

pub(crate) use with_rows;

/// Rows of a tile: as many sums as fit into the registers together with what is read.
pub(crate) const fn rows_of_tile<S: Simd>() -> usize {
    registers::<S>() / VECTORS - 2
}

/// Vectors that a CPU has registers for.
pub(crate) const fn registers<S: Simd>() -> usize {
    match S::F32_LANES == 16 || cfg!(target_arch = "aarch64") {
        true => 32,
        false => 16,
    }
}
