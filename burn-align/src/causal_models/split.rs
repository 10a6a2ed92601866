//! Splitting a dataset into training and held-out parts without leaking inputs between them.

use std::collections::HashMap;
use std::hash::Hash;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{CausalModelError, CounterfactualDataset, CounterfactualExample, Value};

/// A dataset split in two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split<V> {
    /// The part for training.
    pub train: CounterfactualDataset<V>,
    /// The held-out part.
    pub held_out: CounterfactualDataset<V>,
    /// Examples with keys from both parts, which belong to neither. Empty unless examples have
    /// several keys.
    pub mixed: CounterfactualDataset<V>,
}

impl<V: Value> CounterfactualDataset<V> {
    /// Holds out a random fraction of the examples, rounded to a whole number. Both parts keep the
    /// order of the dataset.
    ///
    /// An example that occurs twice may end up in both parts. To keep inputs apart, use
    /// [`split_by_keys`](Self::split_by_keys).
    ///
    /// # Errors
    /// If the fraction is not between 0 and 1, or leaves one side empty.
    pub fn split(self, fraction: f64, seed: u64) -> Result<Split<V>, CausalModelError> {
        let held_out = choose(self.examples.len(), fraction, seed, "examples")?;
        let mut held_out = held_out.into_iter();
        Ok(self.distribute(|_| {
            if held_out.next() == Some(true) {
                Part::HeldOut
            } else {
                Part::Train
            }
        }))
    }

    /// Holds out a random fraction of the *keys*, rounded to a whole number, and the examples that
    /// have them, so that no key is on both sides. Examples with keys of both sides go to
    /// [`mixed`](Split::mixed); examples without keys stay in training. All parts keep the order of
    /// the dataset.
    ///
    /// A key may be the value of an input, in the base alone or in the sources too:
    ///
    /// ```
    /// # use burn_align::causal_models::{
    /// #     CausalModel, CausalModelError, CounterfactualConfig, Target, generate_counterfactuals,
    /// # };
    /// # let equality = CausalModel::<i64>::builder()
    /// #     .input("a", 0..20)
    /// #     .input("b", 0..20)
    /// #     .variable("same", ["a", "b"], 0..=1, |[a, b]| a == b)
    /// #     .build()?;
    /// # let same = equality.variable("same")?;
    /// # let config = CounterfactualConfig::new(1000, [Target::one_source([same])]);
    /// # let dataset = generate_counterfactuals(&equality, &config)?;
    /// let a = equality.variable("a")?;
    /// let split = dataset.split_by_keys(0.2, 0, |example| {
    ///     [example.base[a], example.sources[0].inputs[a]]
    /// })?;
    /// let seen = |value| split.train.examples.iter().any(|example| example.base[a] == value);
    /// assert!(split.held_out.examples.iter().all(|example| !seen(example.base[a])));
    /// # Ok::<(), CausalModelError>(())
    /// ```
    ///
    /// # Errors
    /// If the fraction is not between 0 and 1, or leaves one side without keys.
    pub fn split_by_keys<K: Eq + Hash, I: IntoIterator<Item = K>>(
        self,
        fraction: f64,
        seed: u64,
        keys: impl Fn(&CounterfactualExample<V>) -> I,
    ) -> Result<Split<V>, CausalModelError> {
        let mut numbers: HashMap<K, usize> = HashMap::new();
        for key in self.examples.iter().flat_map(&keys) {
            let next = numbers.len();
            numbers.entry(key).or_insert(next);
        }
        let held_out = choose(numbers.len(), fraction, seed, "keys")?;
        Ok(self.distribute(|example| {
            let keys = keys(example).into_iter();
            // A key that was missing in the first pass is not held out.
            let mut held_out = keys.map(|key| numbers.get(&key).is_some_and(|&n| held_out[n]));
            let first = held_out.next().unwrap_or(false);
            match held_out.all(|next| next == first) {
                true if first => Part::HeldOut,
                true => Part::Train,
                false => Part::Mixed,
            }
        }))
    }

    fn distribute(self, mut part: impl FnMut(&CounterfactualExample<V>) -> Part) -> Split<V> {
        let [mut train, mut held_out, mut mixed] = [Vec::new(), Vec::new(), Vec::new()];
        for example in self.examples {
            match part(&example) {
                Part::Train => train.push(example),
                Part::HeldOut => held_out.push(example),
                Part::Mixed => mixed.push(example),
            }
        }
        let [train, held_out, mixed] =
            [train, held_out, mixed].map(|examples| CounterfactualDataset { examples });
        Split {
            train,
            held_out,
            mixed,
        }
    }
}

enum Part {
    Train,
    HeldOut,
    Mixed,
}

/// Which of `count` items are held out.
fn choose(
    count: usize,
    fraction: f64,
    seed: u64,
    what: &'static str,
) -> Result<Vec<bool>, CausalModelError> {
    if !(0.0..=1.0).contains(&fraction) {
        return Err(CausalModelError::Config {
            what: "fraction",
            expected: "a share between 0 and 1",
            found: fraction.to_string(),
        });
    }
    let held_out = (fraction * count as f64).round() as usize;
    if held_out == 0 || held_out == count {
        return Err(CausalModelError::EmptySplit {
            what,
            held_out,
            count,
        });
    }
    let mut chosen: Vec<bool> = (0..count).map(|thing| thing < held_out).collect();
    chosen.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    Ok(chosen)
}
