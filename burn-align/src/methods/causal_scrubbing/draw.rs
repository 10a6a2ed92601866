//! Drawing donors: examples that agree on a feature.

use std::collections::HashMap;

use burn_align_models::TokenBatch;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Donors;

/// Examples grouped by what they agree on. Only examples of equal length can replace each other.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    /// For each example: its class, and its index within the class.
    places: Vec<(usize, usize)>,
    members: Vec<Vec<usize>>,
}

impl Classes {
    /// Groups examples by these numbers, and by length.
    pub(super) fn new(numbers: &[usize], tokens: &TokenBatch) -> Self {
        let mut classes: HashMap<(usize, usize), usize> = HashMap::new();
        let mut members: Vec<Vec<usize>> = Vec::new();
        let keys = numbers.iter().copied().zip(tokens.lengths());
        let places = keys.enumerate().map(|(example, key)| {
            let class = *classes.entry(key).or_insert(members.len());
            if class == members.len() {
                members.push(Vec::new());
            }
            members[class].push(example);
            (class, members[class].len() - 1)
        });
        Self {
            places: places.collect(),
            members,
        }
    }

    /// The first example without a donor.
    pub(super) fn without_donor(&self, donors: Donors) -> Option<usize> {
        let alone = |members: &&Vec<usize>| members.len() == 1 && donors == Donors::WithoutSelf;
        let alone = self.members.iter().filter(alone);
        alone.map(|members| members[0]).min()
    }

    /// For each of these examples a donor that agrees with it, drawn uniformly.
    pub(super) fn draw(
        &self,
        examples: &[usize],
        donors: Donors,
        rng: &mut ChaCha8Rng,
    ) -> Vec<usize> {
        let drawn = examples.iter().map(|example| {
            let (class, place) = self.places[*example];
            let members = &self.members[class];
            match donors {
                Donors::WithSelf => members[rng.random_range(0..members.len())],
                Donors::WithoutSelf => {
                    let drawn = rng.random_range(0..members.len() - 1);
                    members[drawn + usize::from(drawn >= place)]
                }
            }
        });
        drawn.collect()
    }
}

/// The random sequence of one node of a tree, determined by its way to the output and independent
/// of other nodes.
pub(super) fn rng(seed: u64, way: &str, what: &str) -> ChaCha8Rng {
    // FNV-1a, which is the same on every machine and in every release.
    let bytes = seed.to_le_bytes().into_iter();
    let bytes = bytes.chain(way.bytes()).chain([0]).chain(what.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    ChaCha8Rng::seed_from_u64(hash)
}
