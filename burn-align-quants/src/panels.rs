//! Blocks whose rows lie side by side, [`LANES`] at a time: the order in which products of a few
//! rows read a weight fastest.
//!
//! A panel holds the same block of 16 rows. It begins with the first half-precision numbers of
//! all 16, then come their second ones if they have them, then their first words of 32 bits, and so
//! on; where a block ends with half-precision numbers, a panel does, too. So one load gives a vector
//! with one element of each row, and the sums of different rows are independent.
//!
//! The values are those of the blocks, to the bit: an element is a product of integers and halves
//! that f32 holds exactly, less or plus a minimum, so that it is rounded once.

#![expect(
    clippy::needless_range_loop,
    reason = "plain loops over lanes become vectors; closures would not be compiled for the CPU's \
              vectors"
)]

use super::{BlockFormat, widen_f16};

/// Rows of a panel.
pub const LANES: usize = 16;

/// One value for each row of a panel.
pub type Lanes<T> = [T; LANES];

/// A format whose blocks can lie side by side.
///
/// - `BYTES`: bytes of a panel
/// - `WORDS`: words that hold the integers of a group
pub trait PanelFormat<const BYTES: usize, const WORDS: usize> {
    /// Elements of a block.
    const ELEMENTS: usize;
    /// Elements that share a scale.
    const GROUP: usize;
    /// Whether a minimum is added to each element.
    const HAS_MINIMUM: bool;

    /// The scales of a group, and its minima.
    fn scales(panel: &[u8; BYTES], group: usize) -> [Lanes<f32>; 2];

    /// The words that hold the integers of a group.
    fn words(panel: &[u8; BYTES], group: usize) -> [Lanes<u32>; WORDS];

    /// The integers at place `k` of a group, a multiple of 4, and at the three after it.
    fn integers(words: &[Lanes<u32>; WORDS], group: usize, k: usize) -> [Lanes<i32>; 4];

    /// The elements of integers.
    #[inline(always)]
    fn elements(integers: Lanes<i32>, [scales, minima]: &[Lanes<f32>; 2]) -> Lanes<f32> {
        let mut elements = [0.0; LANES];
        for lane in 0..LANES {
            let integer = integers[lane] as f32;
            elements[lane] = match Self::HAS_MINIMUM {
                true => scales[lane].mul_add(integer, minima[lane]),
                false => scales[lane] * integer,
            };
        }
        elements
    }
}

/// A computation on panels of any format.
pub trait OnPanels {
    /// Its result.
    type Output;

    /// Runs it with the format `F`.
    fn with<F: PanelFormat<BYTES, WORDS>, const BYTES: usize, const WORDS: usize>(
        self,
    ) -> Self::Output;
}

/// Where the numbers of a block are: half-precision ones, then words, then half-precision ones.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    first_halves: usize,
    words: usize,
    last_halves: usize,
}

/// Defines which formats can lie side by side.
macro_rules! panel_formats {
    ($(
        $format:ident = $type:ident<$bytes:literal, $words:literal>:
            [$first:literal, $all:literal, $last:literal];
    )+) => {
        impl BlockFormat {
            pub(super) fn parts(self) -> Option<Parts> {
                match self {
                    $(Self::$format => Some(Parts {
                        first_halves: $first,
                        words: $all,
                        last_halves: $last,
                    }),)+
                    _ => None,
                }
            }

            /// Calls a computation with this format; `None` if its blocks cannot lie side by side.
            #[inline(always)]
            pub fn on_panels<C: OnPanels>(self, computation: C) -> Option<C::Output> {
                match self {
                    $(Self::$format => {
                        const {
                            let bytes = Self::$format.block_bytes();
                            assert!($bytes == LANES * bytes);
                            assert!(2 * $first + 4 * $all + 2 * $last == bytes);
                            let elements = <$type as PanelFormat<$bytes, $words>>::ELEMENTS;
                            assert!(elements == Self::$format.block_elements());
                        };
                        Some(computation.with::<$type, $bytes, $words>())
                    })+
                    _ => None,
                }
            }
        }
    };
}

panel_formats! {
    Q4_0 = Q40<288, 4>: [1, 4, 0];
    Q4_1 = Q41<320, 4>: [2, 4, 0];
    Q5_0 = Q50<352, 5>: [1, 5, 0];
    Q5_1 = Q51<384, 5>: [2, 5, 0];
    Q8_0 = Q80<544, 8>: [1, 8, 0];
    Q4_K = Q4K<2304, 8>: [2, 35, 0];
    Q5_K = Q5K<2816, 16>: [2, 43, 0];
    Q6_K = Q6K<3360, 8>: [0, 52, 1];
}

impl Parts {
    /// Copies a block to its lane of a panel.
    pub(super) fn put(self, block: &[u8], lane: usize, panel: &mut [u8]) {
        self.each(lane, |at, of_panel, size| {
            panel[of_panel..][..size].copy_from_slice(&block[at..][..size]);
        });
    }

    /// Copies a block from its lane of a panel.
    #[inline(always)]
    pub(super) fn take(self, panel: &[u8], lane: usize, block: &mut [u8]) {
        self.each(lane, |at, of_panel, size| {
            block[at..][..size].copy_from_slice(&panel[of_panel..][..size]);
        });
    }

    /// Calls `copy` with each number's place in the block, its place in the panel, and its size.
    #[inline(always)]
    fn each(self, lane: usize, mut copy: impl FnMut(usize, usize, usize)) {
        let mut at = 0;
        for (count, size) in [
            (self.first_halves, 2),
            (self.words, 4),
            (self.last_halves, 2),
        ] {
            for _ in 0..count {
                copy(at, at * LANES + lane * size, size);
                at += size;
            }
        }
    }
}

/// The half-precision numbers at `AT` of each block.
#[inline(always)]
fn halves<const AT: usize, const BYTES: usize>(panel: &[u8; BYTES]) -> Lanes<f32> {
    const { assert!((AT + 2) * LANES <= BYTES) };
    let bytes: &[u8; 2 * LANES] = panel[AT * LANES..].first_chunk().expect("checked");
    let mut halves = [0.0; LANES];
    for lane in 0..LANES {
        halves[lane] = widen_f16(u16::from_le_bytes([bytes[2 * lane], bytes[2 * lane + 1]]));
    }
    halves
}

/// The word that begins at `at` of each block.
#[inline(always)]
fn word<const BYTES: usize>(panel: &[u8; BYTES], at: usize) -> Lanes<u32> {
    let bytes: &[u8; 4 * LANES] = panel[at * LANES..].first_chunk().expect("within a block");
    let mut words = [0; LANES];
    for lane in 0..LANES {
        let at = 4 * lane;
        words[lane] = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    }
    words
}

/// `N` words, the first of which begins at `at` of each block.
#[inline(always)]
fn words<const N: usize, const BYTES: usize>(panel: &[u8; BYTES], at: usize) -> [Lanes<u32>; N] {
    let mut words = [[0; LANES]; N];
    for number in 0..N {
        words[number] = word(panel, at + 4 * number);
    }
    words
}

/// The bits of each word that are in `mask` after shifting them right.
#[inline(always)]
fn bits(words: &Lanes<u32>, shift: usize, mask: u32) -> Lanes<i32> {
    let mut integers = [0; LANES];
    for lane in 0..LANES {
        integers[lane] = (words[lane] >> shift & mask) as i32;
    }
    integers
}

/// The bits in `mask` of the four bytes of each word, after shifting the word right.
// The only shift that is not constant is the first one.
#[inline(always)]
fn bytes(words: &Lanes<u32>, shift: usize, mask: u32) -> [Lanes<i32>; 4] {
    let mut shifted = *words;
    for lane in 0..LANES {
        shifted[lane] >>= shift;
    }
    let mut integers = [[0; LANES]; 4];
    for byte in 0..4 {
        integers[byte] = bits(&shifted, 8 * byte, mask);
    }
    integers
}

/// A byte of each word, with its sign.
#[inline(always)]
fn signed_byte(words: &Lanes<u32>, byte: usize) -> Lanes<i32> {
    let mut integers = [0; LANES];
    for lane in 0..LANES {
        integers[lane] = (words[lane] << (24 - 8 * byte)) as i32 >> 24;
    }
    integers
}

/// Puts these bits above the lower `places` of an integer.
#[inline(always)]
fn above(integers: &mut Lanes<i32>, high: Lanes<i32>, places: usize) {
    for lane in 0..LANES {
        integers[lane] |= high[lane] << places;
    }
}

/// Subtracts `offset` from all integers.
#[inline(always)]
fn subtract(integers: &mut [Lanes<i32>; 4], offset: i32) {
    for integers in integers {
        for integer in integers {
            *integer -= offset;
        }
    }
}

/// The lower four bits of byte `k` of the words and the next three, or the upper four of byte
/// `k - 16` and the next three.
#[inline(always)]
fn four_bits(words: &[Lanes<u32>], k: usize) -> [Lanes<i32>; 4] {
    bytes(&words[k % 16 / 4], 4 * (k / 16), 15)
}

/// As [`four_bits`] of the words but the first, in which bit `k` is the fifth.
#[inline(always)]
fn five_bits(words: &[Lanes<u32>; 5], k: usize) -> [Lanes<i32>; 4] {
    let mut integers = four_bits(&words[1..], k);
    let mut high = words[0];
    for lane in 0..LANES {
        high[lane] >>= k;
    }
    for place in 0..4 {
        above(&mut integers[place], bits(&high, place, 1), 4);
    }
    integers
}

/// 4 bits, less 8.
struct Q40;

impl PanelFormat<288, 4> for Q40 {
    const ELEMENTS: usize = 32;
    const GROUP: usize = 32;
    const HAS_MINIMUM: bool = false;

    #[inline(always)]
    fn scales(panel: &[u8; 288], _group: usize) -> [Lanes<f32>; 2] {
        [halves::<0, _>(panel), [0.0; LANES]]
    }

    #[inline(always)]
    fn words(panel: &[u8; 288], _group: usize) -> [Lanes<u32>; 4] {
        words(panel, 2)
    }

    #[inline(always)]
    fn integers(words: &[Lanes<u32>; 4], _group: usize, k: usize) -> [Lanes<i32>; 4] {
        let mut integers = four_bits(words, k);
        subtract(&mut integers, 8);
        integers
    }
}

/// 4 bits and a minimum.
struct Q41;

impl PanelFormat<320, 4> for Q41 {
    const ELEMENTS: usize = 32;
    const GROUP: usize = 32;
    const HAS_MINIMUM: bool = true;

    #[inline(always)]
    fn scales(panel: &[u8; 320], _group: usize) -> [Lanes<f32>; 2] {
        [halves::<0, _>(panel), halves::<2, _>(panel)]
    }

    #[inline(always)]
    fn words(panel: &[u8; 320], _group: usize) -> [Lanes<u32>; 4] {
        words(panel, 4)
    }

    #[inline(always)]
    fn integers(words: &[Lanes<u32>; 4], _group: usize, k: usize) -> [Lanes<i32>; 4] {
        four_bits(words, k)
    }
}

/// 5 bits, less 16.
struct Q50;

impl PanelFormat<352, 5> for Q50 {
    const ELEMENTS: usize = 32;
    const GROUP: usize = 32;
    const HAS_MINIMUM: bool = false;

    #[inline(always)]
    fn scales(panel: &[u8; 352], _group: usize) -> [Lanes<f32>; 2] {
        [halves::<0, _>(panel), [0.0; LANES]]
    }

    #[inline(always)]
    fn words(panel: &[u8; 352], _group: usize) -> [Lanes<u32>; 5] {
        words(panel, 2)
    }

    #[inline(always)]
    fn integers(words: &[Lanes<u32>; 5], _group: usize, k: usize) -> [Lanes<i32>; 4] {
        let mut integers = five_bits(words, k);
        subtract(&mut integers, 16);
        integers
    }
}

/// 5 bits and a minimum.
struct Q51;

impl PanelFormat<384, 5> for Q51 {
    const ELEMENTS: usize = 32;
    const GROUP: usize = 32;
    const HAS_MINIMUM: bool = true;

    #[inline(always)]
    fn scales(panel: &[u8; 384], _group: usize) -> [Lanes<f32>; 2] {
        [halves::<0, _>(panel), halves::<2, _>(panel)]
    }

    #[inline(always)]
    fn words(panel: &[u8; 384], _group: usize) -> [Lanes<u32>; 5] {
        words(panel, 4)
    }

    #[inline(always)]
    fn integers(words: &[Lanes<u32>; 5], _group: usize, k: usize) -> [Lanes<i32>; 4] {
        five_bits(words, k)
    }
}

/// 8 bits with their sign.
struct Q80;

impl PanelFormat<544, 8> for Q80 {
    const ELEMENTS: usize = 32;
    const GROUP: usize = 32;
    const HAS_MINIMUM: bool = false;

    #[inline(always)]
    fn scales(panel: &[u8; 544], _group: usize) -> [Lanes<f32>; 2] {
        [halves::<0, _>(panel), [0.0; LANES]]
    }

    #[inline(always)]
    fn words(panel: &[u8; 544], _group: usize) -> [Lanes<u32>; 8] {
        words(panel, 2)
    }

    #[inline(always)]
    fn integers(words: &[Lanes<u32>; 8], _group: usize, k: usize) -> [Lanes<i32>; 4] {
        let mut integers = [[0; LANES]; 4];
        for byte in 0..4 {
            integers[byte] = signed_byte(&words[k / 4], byte);
        }
        integers
    }
}

/// The scales and minima of group `group` of 8, in 6 bits, from three words.
#[inline(always)]
fn scales_and_minima(words: &[Lanes<u32>; 3], group: usize) -> [Lanes<i32>; 2] {
    let shift = 8 * (group % 4);
    if group < 4 {
        return [bits(&words[0], shift, 63), bits(&words[1], shift, 63)];
    }
    let mut scales = bits(&words[2], shift, 15);
    let mut minima = bits(&words[2], shift + 4, 15);
    above(&mut scales, bits(&words[0], shift + 6, 3), 4);
    above(&mut minima, bits(&words[1], shift + 6, 3), 4);
    [scales, minima]
}

/// The scales and negated minima of a group of Q4_K and Q5_K, from the halves and words that both
/// begin with.
#[inline(always)]
fn scales_of_k<const BYTES: usize>(panel: &[u8; BYTES], group: usize) -> [Lanes<f32>; 2] {
    let (d, d_min) = (halves::<0, _>(panel), halves::<2, _>(panel));
    let [scales, minima] = scales_and_minima(&words(panel, 4), group);
    let mut of_group = [[0.0; LANES]; 2];
    for lane in 0..LANES {
        of_group[0][lane] = d[lane] * scales[lane] as f32;
        of_group[1][lane] = -(d_min[lane] * minima[lane] as f32);
    }
    of_group
}

/// 4 bits; two groups in the lower and upper halves of 8 words.
struct Q4K;

impl PanelFormat<2304, 8> for Q4K {
    const ELEMENTS: usize = 256;
    const GROUP: usize = 32;
    const HAS_MINIMUM: bool = true;

    #[inline(always)]
    fn scales(panel: &[u8; 2304], group: usize) -> [Lanes<f32>; 2] {
        scales_of_k(panel, group)
    }

    #[inline(always)]
    fn words(panel: &[u8; 2304], group: usize) -> [Lanes<u32>; 8] {
        words(panel, 16 + 32 * (group / 2))
    }

    #[inline(always)]
    fn integers(words: &[Lanes<u32>; 8], group: usize, k: usize) -> [Lanes<i32>; 4] {
        bytes(&words[k / 4], 4 * (group % 2), 15)
    }
}

/// As [`Q4K`], the fifth bits of the groups in 8 more words.
struct Q5K;

impl PanelFormat<2816, 16> for Q5K {
    const ELEMENTS: usize = 256;
    const GROUP: usize = 32;
    const HAS_MINIMUM: bool = true;

    #[inline(always)]
    fn scales(panel: &[u8; 2816], group: usize) -> [Lanes<f32>; 2] {
        scales_of_k(panel, group)
    }

    #[inline(always)]
    fn words(panel: &[u8; 2816], group: usize) -> [Lanes<u32>; 16] {
        let mut all = [[0; LANES]; 16];
        for number in 0..8 {
            all[number] = word(panel, 48 + 32 * (group / 2) + 4 * number);
            all[number + 8] = word(panel, 16 + 4 * number);
        }
        all
    }

    #[inline(always)]
    fn integers(words: &[Lanes<u32>; 16], group: usize, k: usize) -> [Lanes<i32>; 4] {
        let mut integers = bytes(&words[k / 4], 4 * (group % 2), 15);
        let high = bytes(&words[8 + k / 4], group, 1);
        for place in 0..4 {
            above(&mut integers[place], high[place], 4);
        }
        integers
    }
}

/// 6 bits, less 32: the lower four and the upper two in 4 words each.
struct Q6K;

impl Q6K {
    /// Of the 128 elements that a group belongs to: their number, and the group's among 8.
    #[inline(always)]
    fn place(group: usize) -> (usize, usize) {
        (group / 8, group % 8)
    }
}

impl PanelFormat<3360, 8> for Q6K {
    const ELEMENTS: usize = 256;
    const GROUP: usize = 16;
    const HAS_MINIMUM: bool = false;

    #[inline(always)]
    fn scales(panel: &[u8; 3360], group: usize) -> [Lanes<f32>; 2] {
        let d = halves::<208, _>(panel);
        let integers = signed_byte(&word(panel, 192 + group / 4 * 4), group % 4);
        let mut scales = [0.0; LANES];
        for lane in 0..LANES {
            scales[lane] = d[lane] * integers[lane] as f32;
        }
        [scales, [0.0; LANES]]
    }

    #[inline(always)]
    fn words(panel: &[u8; 3360], group: usize) -> [Lanes<u32>; 8] {
        let (half, group) = Self::place(group);
        let mut all = [[0; LANES]; 8];
        for number in 0..4 {
            all[number] = word(panel, 64 * half + 16 * (group % 4) + 4 * number);
            all[number + 4] = word(panel, 128 + 32 * half + 16 * (group % 2) + 4 * number);
        }
        all
    }

    #[inline(always)]
    fn integers(words: &[Lanes<u32>; 8], group: usize, k: usize) -> [Lanes<i32>; 4] {
        let (_half, group) = Self::place(group);
        let mut integers = bytes(&words[k / 4], 4 * (group / 4), 15);
        let high = bytes(&words[4 + k / 4], 2 * (group / 2), 3);
        for place in 0..4 {
            above(&mut integers[place], high[place], 4);
        }
        subtract(&mut integers, 32);
        integers
    }
}
