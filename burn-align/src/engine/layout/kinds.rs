//! How many rows have which length and begin at which position, and which of them are computed
//! alike.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use burn::tensor::backend::Backend;
use burn_align_models::nn::attends_in_place;

/// Most classes of suffixes in a stage. Each class costs a few small operations per block and saves
/// positions; with fewer classes, some suffixes begin earlier than necessary.
const MOST_CLASSES: usize = 8;

/// The same on a backend where a class costs next to nothing.
const MOST_CHEAP_CLASSES: usize = 128;

/// Most classes of suffixes of rows that have these lengths: two of each length at least.
pub(super) fn most_classes<B: Backend>(lengths: &[usize]) -> usize {
    let most = match attends_in_place::<B>() {
        true => MOST_CHEAP_CLASSES,
        false => MOST_CLASSES,
    };
    most.max(2 * lengths.len())
}

/// A length and a first position of rows, with the number of these rows.
pub(super) type Kind = ((usize, usize), usize);

/// A number for each length and first position of rows.
#[derive(Clone)]
pub(super) struct Starts {
    /// Lengths in order, each with where the numbers of its first positions begin.
    lengths: Vec<(usize, usize)>,
    numbers: Vec<u32>,
}

impl Starts {
    /// 0 for each.
    ///
    /// - lengths: in order
    pub(super) fn new(lengths: &[usize]) -> Self {
        let mut end: usize = 0;
        let lengths = lengths.iter().map(|pos| {
            end += *pos;
            (*pos, end - *pos)
        });
        let lengths: Vec<(usize, usize)> = lengths.collect();
        Self {
            lengths,
            numbers: vec![0; end],
        }
    }

    pub(super) fn at(&mut self, pos: usize, start: usize) -> &mut u32 {
        let of_length = match &self.lengths[..] {
            [(_, first)] => *first,
            all => all[all.partition_point(|(other, _)| *other < pos)].1,
        };
        &mut self.numbers[of_length + start]
    }

    /// The numbers of each length.
    fn by_length(&mut self) -> impl Iterator<Item = (usize, &mut [u32])> {
        let mut rest = &mut self.numbers[..];
        self.lengths.iter().map(move |(pos, _)| {
            let (own, others) = std::mem::take(&mut rest).split_at_mut(*pos);
            rest = others;
            (*pos, own)
        })
    }

    /// Back to 0.
    pub(super) fn clear(&mut self) {
        self.numbers.fill(0);
    }

    /// Gives each first position without a number that of the one before.
    pub(super) fn fill_forward(&mut self) {
        for (_, numbers) in self.by_length() {
            let mut last = 0;
            for number in numbers {
                match *number {
                    0 => *number = last,
                    own => last = own,
                }
            }
        }
    }

    /// Lengths and first positions in order, with their numbers if these are not 0.
    pub(super) fn kinds(&mut self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        for (pos, numbers) in self.by_length() {
            let numbers = numbers.iter().enumerate();
            let numbers = numbers.filter(|(_, number)| **number > 0);
            kinds.extend(numbers.map(|(start, number)| ((pos, start), *number as usize)));
        }
        kinds
    }
}

/// Chooses starts for suffixes with these ends and starts, so that there are at most
/// [`MOST_CLASSES`] kinds of them and little more is computed. The result is sorted.
pub(in crate::engine) fn merge_suffixes(
    suffixes: impl Iterator<Item = (usize, usize)>,
) -> Vec<(usize, usize)> {
    let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for kind in suffixes {
        *counts.entry(kind).or_default() += 1;
    }
    let merged = merge_kinds(counts.into_iter().collect(), MOST_CLASSES);
    merged.into_iter().map(|(kind, _count)| kind).collect()
}

/// Most lengths of rows in a plan, unless the rows continue others. Each is a class of its own.
const MOST_LENGTHS: usize = 8;

/// Chooses lengths for rows that must have these at least: as few as possible for at most a sixteenth
/// more positions, and never more than [`MOST_LENGTHS`]. The result is sorted.
pub(in crate::engine) fn merge_lengths(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut counts: BTreeMap<Reverse<usize>, usize> = BTreeMap::new();
    for length in lengths {
        *counts.entry(Reverse(length)).or_default() += 1;
    }
    // A row that is longer than necessary costs as much as one that begins earlier.
    let longest = counts.keys().next().map_or(0, |Reverse(longest)| *longest);
    let kinds = counts.into_iter();
    let kinds = kinds.map(|(Reverse(length), count)| ((longest, longest - length), count));
    let kinds: Vec<Kind> = kinds.collect();
    let positions = |kinds: &[Kind]| -> usize {
        let of_kind = kinds.iter();
        of_kind
            .map(|((_, less), count)| (longest - less) * count)
            .sum()
    };
    let needed = positions(&kinds);
    let merged = (1..=MOST_LENGTHS).map(|most| merge_kinds(kinds.clone(), most));
    let mut merged = merged.skip_while(|merged| 16 * positions(merged) > 17 * needed);
    let merged = merged
        .next()
        .unwrap_or_else(|| merge_kinds(kinds.clone(), MOST_LENGTHS));
    let lengths = merged.iter().rev();
    lengths.map(|((_, less), _)| longest - less).collect()
}

/// Merges kinds with the one before them until there are at most `most_classes`, each time those of
/// which it costs least.
///
/// - kinds: in order
pub(super) fn merge_kinds(mut kinds: Vec<Kind>, most_classes: usize) -> Vec<Kind> {
    if kinds.len() <= most_classes {
        return kinds;
    }
    // The kinds that are left are linked; an index of the end or beyond is that of none.
    let end = kinds.len();
    let mut next: Vec<usize> = (1..=end).collect();
    let mut before: Vec<usize> = (0..end).map(|index| index.wrapping_sub(1)).collect();
    // The cost of starting the suffixes of the next kind where a kind starts.
    let cost = |kinds: &[Kind], next: &[usize], index: usize| {
        let ((pos, start), _) = *kinds.get(index)?;
        let ((other_pos, later), count) = *kinds.get(next[index])?;
        (pos == other_pos).then(|| Reverse(((later - start) * count, index)))
    };
    let costs = (0..end).filter_map(|index| cost(&kinds, &next, index));
    let mut costs: BinaryHeap<Reverse<(usize, usize)>> = costs.collect();
    let mut left = end;
    while left > most_classes
        && let Some(least) = costs.pop()
    {
        let Reverse((_, index)) = least;
        // Merging changes the costs of what is beside it, and they are added anew.
        if kinds[index].1 == 0 || cost(&kinds, &next, index) != Some(least) {
            continue;
        }
        let merged = next[index];
        kinds[index].1 += std::mem::take(&mut kinds[merged].1);
        next[index] = next[merged];
        if let Some(before) = before.get_mut(next[index]) {
            *before = index;
        }
        left -= 1;
        costs.extend(cost(&kinds, &next, index));
        costs.extend(cost(&kinds, &next, before[index]));
    }
    kinds.retain(|(_, count)| *count > 0);
    kinds
}

#[cfg(test)]
mod tests {
    use super::{Kind, merge_kinds, merge_lengths};

    /// As defined: the cheapest of all pairs of neighbours, each time.
    fn merged_one_by_one(mut kinds: Vec<Kind>, most_classes: usize) -> Vec<Kind> {
        while kinds.len() > most_classes {
            let costs = kinds.windows(2).enumerate().filter_map(|(index, pair)| {
                let [((pos, start), _), ((other_pos, later), count)] = [pair[0], pair[1]];
                (pos == other_pos).then_some(((later - start) * count, index))
            });
            let Some((_, index)) = costs.min() else {
                break;
            };
            kinds[index].1 += kinds.remove(index + 1).1;
        }
        kinds
    }

    #[test]
    fn lengths_are_few() {
        let merged = |lengths: &[usize]| merge_lengths(lengths.iter().copied());
        assert!(merged(&[]).is_empty());
        assert_eq!(merged(&[7, 7]), [7]);
        // One position more of 17, and of 16.
        assert_eq!(merged(&[9, 8]), [9]);
        assert_eq!(merged(&[8, 7]), [7, 8]);
        assert_eq!(merged(&[20, 10, 9, 19, 5]), [5, 10, 20]);
        // 2, 4, …, 200: an even distribution needs one position more for each.
        let even: Vec<usize> = (1..=100).map(|length| 2 * length).collect();
        let few = merged(&even);
        assert_eq!(few.len(), 8);
        assert_eq!(few[7], 200);
        let positions = |length: &usize| few[few.partition_point(|other| other < length)];
        let (all, needed): (usize, usize) = (even.iter().map(positions).sum(), even.iter().sum());
        assert!(8 * all < 9 * needed, "{few:?}: {all} of {needed}");
    }

    #[test]
    fn kinds_are_merged_where_it_costs_least() {
        let mut state = 1_usize;
        let mut random = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..300 {
            let mut kinds: Vec<Kind> = Vec::new();
            for pos in [5, 12, 40] {
                for start in 0..pos {
                    if random(3) > 0 {
                        kinds.push(((pos, start), 1 + random(6)));
                    }
                }
            }
            for most in [0, 1, 3, 8, 30, usize::MAX] {
                let expected = merged_one_by_one(kinds.clone(), most);
                assert_eq!(
                    merge_kinds(kinds.clone(), most),
                    expected,
                    "{kinds:?}, {most}"
                );
            }
        }
    }
}
