//! Maps that are filled while a plan is laid out.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// A map with a quick hash. Its keys come from a plan, so nobody gains from making them collide.
pub(super) type QuickMap<K, V> = HashMap<K, V, BuildHasherDefault<QuickHasher>>;

/// A set with a quick hash.
pub(super) type QuickSet<K> = HashSet<K, BuildHasherDefault<QuickHasher>>;

/// Multiplies once for each word.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QuickHasher {
    state: u64,
}

impl QuickHasher {
    /// 2^64 divided by the golden ratio: an odd number whose bits are well mixed.
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

    fn mix(&mut self, word: u64) {
        self.state = (self.state.rotate_left(5) ^ word).wrapping_mul(Self::FACTOR);
    }
}

impl Hasher for QuickHasher {
    fn finish(&self) -> u64 {
        // A product mixes its high bits best, and maps use low ones as well.
        self.state ^ (self.state >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        let words = bytes.chunks_exact(size_of::<u64>());
        let mut rest = [0; size_of::<u64>()];
        let left = words.remainder();
        rest[..left.len()].copy_from_slice(left);
        for word in words {
            let mut own = [0; size_of::<u64>()];
            own.copy_from_slice(word);
            self.mix(u64::from_le_bytes(own));
        }
        if !left.is_empty() {
            self.mix(u64::from_le_bytes(rest));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.mix(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.mix(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.mix(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.mix(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, BuildHasherDefault};

    use super::{QuickHasher, QuickSet};

    #[test]
    fn lists_that_differ_in_one_number_have_different_hashes() {
        let hasher = BuildHasherDefault::<QuickHasher>::default();
        let mut lists: Vec<Vec<u32>> = vec![Vec::new(), vec![0], vec![0, 0], vec![0, 0, 0]];
        lists.extend((1..1000).flat_map(|number| [vec![number], vec![number, 0], vec![0, number]]));
        let hashes: QuickSet<u64> = lists.iter().map(|list| hasher.hash_one(list)).collect();
        assert_eq!(hashes.len(), lists.len());
        // Maps choose a place by the low bits.
        let places: QuickSet<u64> = hashes.iter().map(|hash| hash % 4096).collect();
        assert!(places.len() > 1500, "{}", places.len());
    }
}
