//! The task of `induction-gpt2`: who comes after whom in a queue?
//!
//! A queue is a list of distinct names. After it, some of the names are repeated, each followed by
//! the one that came after it: `Ada Ben Cleo Dan | Ben` → `Cleo`. Who follows whom is drawn anew
//! for every queue, so it can only be known from the queue.

use std::ops::RangeInclusive;

use rand::Rng;
use rand::seq::{SliceRandom, index};

use crate::words::{END, UNKNOWN};

/// The names.
pub const NAMES: [&str; 40] = [
    "Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jack", "Kira", "Leo",
    "Mia", "Nils", "Olga", "Paul", "Quinn", "Rosa", "Sam", "Tess", "Uma", "Vito", "Wanda", "Xena",
    "Yuri", "Zoe", "Amir", "Bela", "Cara", "Dora", "Emil", "Fred", "Greta", "Hans", "Iris", "Jona",
    "Karl", "Lena", "Max", "Nora",
];

/// How many names a queue has.
pub const LENGTHS: RangeInclusive<usize> = 6..=12;

/// How many of them are repeated in training.
pub const QUESTIONS: usize = 3;

/// A queue, and the names from it that are repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The names in the queue, as indices of [`NAMES`].
    pub names: Vec<usize>,
    /// Places in the queue that are asked for, none of them the last one; no name is in two
    /// questions and answers.
    pub asked: Vec<usize>,
}

impl Queue {
    /// A random queue with this many questions.
    pub fn draw(questions: usize, rng: &mut impl Rng) -> Self {
        let length = rng.random_range(LENGTHS);
        let names = index::sample(rng, NAMES.len(), length).into_vec();
        // Pairs of neighbours, with some names left out between them.
        let mut gaps = vec![0; questions + 1];
        for _name in 0..length - 2 * questions {
            let gap = rng.random_range(0..gaps.len());
            gaps[gap] += 1;
        }
        let mut next = 0;
        let mut asked: Vec<usize> = gaps[..questions]
            .iter()
            .map(|gap| {
                let place = next + gap;
                next = place + 2;
                place
            })
            .collect();
        asked.shuffle(rng);
        Self { names, asked }
    }

    /// The words: [`END`], the queue, then each name asked for with its answer.
    pub fn words(&self) -> Vec<&'static str> {
        let name = |place: usize| NAMES[self.names[place]];
        let queue = (0..self.names.len()).map(name);
        let questions = self.asked.iter();
        let questions = questions.flat_map(|place| [name(*place), name(place + 1)]);
        [END].into_iter().chain(queue).chain(questions).collect()
    }

    /// Positions of the answers among the words.
    pub fn answers(&self) -> Vec<usize> {
        let first = self.names.len() + 2;
        (0..self.asked.len()).map(|i| first + 2 * i).collect()
    }
}

/// The words by their token number.
pub fn vocabulary() -> Vec<String> {
    let words = [UNKNOWN, END].into_iter().chain(NAMES);
    words.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn names_are_distinct_words() {
        let distinct: HashSet<_> = vocabulary().into_iter().collect();
        assert_eq!(distinct.len(), NAMES.len() + 2);
        for name in NAMES {
            assert!(name.chars().all(|c| c.is_ascii_alphabetic()), "{name}");
        }
    }

    #[test]
    fn answers_come_after_the_names_asked_for() {
        let mut rng = StdRng::seed_from_u64(0);
        for _ in 0..1000 {
            let queue = Queue::draw(QUESTIONS, &mut rng);
            let words = queue.words();
            assert!(LENGTHS.contains(&queue.names.len()));
            assert_eq!(words.len(), 1 + queue.names.len() + 2 * QUESTIONS);
            let mut said = HashSet::new();
            for answer in queue.answers() {
                let (asked, answer) = (words[answer - 1], words[answer]);
                let place = words.iter().position(|word| *word == asked).expect("in it");
                assert_eq!(words[place + 1], answer);
                assert!(said.insert(asked) && said.insert(answer), "{words:?}");
            }
        }
    }

    #[test]
    fn every_place_is_asked_for() {
        let mut rng = StdRng::seed_from_u64(0);
        // The places at either end of the longest queues are asked for once in 7 · 2¹⁰ draws.
        let draws = (0..100_000).map(|_| Queue::draw(1, &mut rng));
        let asked: HashSet<usize> = draws.map(|queue| queue.asked[0]).collect();
        let all = 0..LENGTHS.end() - 1;
        assert_eq!(asked, all.collect());
    }
}
