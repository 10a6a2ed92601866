//! Indirect object identification (Wang et al. 2022, arXiv 2211.00593, §2): "When Mary and John
//! went to the store, John gave a drink to" → " Mary". The sentences here are similar to the
//! paper's, but not the same.

use anyhow::{Result, ensure};
use burn_align_models::{TokenBatch, Tokenizer};
use rand::seq::{IndexedRandom, index};
use rand::{Rng, SeedableRng, rngs::StdRng};

const NAMES: [&str; 40] = [
    "Mary", "John", "Tom", "James", "Paul", "Mark", "Anna", "Laura", "Sarah", "David", "Peter",
    "Alice", "Emma", "Jack", "Kate", "Martin", "Simon", "Robert", "Daniel", "Richard", "Michael",
    "Andrew", "Thomas", "Steven", "George", "Henry", "Frank", "Rachel", "Jessica", "Jennifer",
    "Lisa", "Maria", "Susan", "Karen", "Linda", "Brian", "Kevin", "Jason", "Matthew", "Adam",
];
const PLACES: [&str; 8] = [
    "store",
    "garden",
    "restaurant",
    "school",
    "hospital",
    "office",
    "house",
    "station",
];
const OBJECTS: [&str; 8] = [
    "ring",
    "kiss",
    "bone",
    "basketball",
    "computer",
    "necklace",
    "drink",
    "snack",
];

/// Each with the first name, the second name, the giver, a place and an object.
const TEMPLATES: [&str; 8] = [
    "When {1} and {2} went to the {place}, {3} gave a {object} to",
    "After {1} and {2} came back from the {place}, {3} handed a {object} to",
    "While {1} and {2} were working at the {place}, {3} passed a {object} to",
    "Then {1} and {2} walked to the {place}, and {3} gave a {object} to",
    "Last week {1} and {2} met at the {place}. {3} brought a {object} for",
    "Today {1} and {2} left the {place} late. {3} gave a {object} to",
    "Since {1} and {2} had found a {object} at the {place}, {3} offered it to",
    "The {place} was empty when {1} and {2} arrived, so {3} gave a {object} to",
];

/// Figure 3b of the paper, the heads with the largest direct effects on the logits: layer, head,
/// and the relative change of the logit difference, digitised.
pub const PUBLISHED: [(usize, usize, f64); 15] = [
    (9, 9, -0.673),
    (10, 7, 0.455),
    (9, 6, -0.282),
    (11, 10, 0.239),
    (10, 0, -0.207),
    (10, 10, -0.146),
    (11, 2, 0.099),
    (10, 6, -0.081),
    (7, 9, -0.064),
    (8, 10, -0.060),
    (10, 1, -0.087),
    (8, 6, -0.059),
    (9, 7, -0.048),
    (10, 2, -0.020),
    (7, 3, -0.020),
];

/// Prompts in pairs.
#[derive(Clone, Debug)]
pub struct Ioi {
    /// Prompts of two names, one of them twice.
    pub prompts: TokenBatch,
    /// The same with three other names, each once: p_ABC.
    pub others: TokenBatch,
    /// The name that occurs once, which is to be predicted.
    pub indirect_objects: Vec<u32>,
    /// The name that occurs twice.
    pub subjects: Vec<u32>,
}

impl Ioi {
    /// Draws `count` random pairs, half of them with the subject first.
    ///
    /// # Errors
    /// If too few names are one token in the tokenizer.
    pub fn draw(tokenizer: &Tokenizer, count: usize, seed: u64) -> Result<Self> {
        let token = |name: &&str| tokenizer.single_token(&format!(" {name}")).is_ok();
        let one_token = |words: &[&'static str]| -> Vec<&'static str> {
            words.iter().copied().filter(token).collect()
        };
        let [names, places, objects] = [&NAMES[..], &PLACES, &OBJECTS].map(one_token);
        ensure!(
            names.len() >= 8 && !places.is_empty() && !objects.is_empty(),
            "only {} of the names are one token in this tokenizer: is it GPT-2's?",
            names.len()
        );
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut prompts, mut others) = (Vec::new(), Vec::new());
        let (mut indirect_objects, mut subjects) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let chosen = index::sample(&mut rng, names.len(), 5).into_vec();
            let [object, subject, a, b, c] = [0, 1, 2, 3, 4].map(|i| names[chosen[i]]);
            let template = TEMPLATES.choose(&mut rng).unwrap_or(&TEMPLATES[0]);
            let place = places[rng.random_range(0..places.len())];
            let thing = objects[rng.random_range(0..objects.len())];
            let fill = |first: &str, second: &str, third: &str| {
                template
                    .replace("{1}", first)
                    .replace("{2}", second)
                    .replace("{3}", third)
                    .replace("{place}", place)
                    .replace("{object}", thing)
            };
            prompts.push(match rng.random::<bool>() {
                true => fill(subject, object, subject),
                false => fill(object, subject, subject),
            });
            others.push(fill(a, b, c));
            indirect_objects.push(tokenizer.single_token(&format!(" {object}"))?);
            subjects.push(tokenizer.single_token(&format!(" {subject}"))?);
        }
        Ok(Self {
            prompts: tokenizer.encode_batch(&prompts)?,
            others: tokenizer.encode_batch(&others)?,
            indirect_objects,
            subjects,
        })
    }
}
