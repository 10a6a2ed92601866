//! The task of `price-tagging-llama`: does a price lie within a bracket?

use rand::Rng;
use workbench::words::{END, UNKNOWN};

/// How many amounts there are: 0.00 to 9.90 dollars in steps of ten cents, one token each.
pub const AMOUNTS: i64 = 100;

/// Narrowest and widest bracket: 2.50 to 7.50 dollars, as in the paper.
const WIDTHS: std::ops::RangeInclusive<i64> = 25..=75;

/// The tokens of a prompt, by their meaning.
pub const POSITIONS: [&str; 7] = [
    "costs", "price", "at-least", "lower", "at-most", "upper", "both",
];

/// The positions of the boundaries, after which the two comparisons are answered.
pub const COMPARISONS: [usize; 2] = [3, 5];

/// The answers: no, yes.
pub const ANSWERS: [&str; 2] = ["no", "yes"];

/// The tokens that are the same in every prompt.
const FIXED: [&str; 3] = ["costs", "at-least", "at-most"];

/// What is asked about the two comparisons at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Whether both hold: the task of the paper.
    Both,
    /// Whether at least one of them holds.
    Either,
    /// Whether exactly one of them holds.
    JustOne,
    /// Whether the first holds, and the second does not.
    JustFirst,
}

impl Asked {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Both, Self::Either, Self::JustOne, Self::JustFirst];

    /// Its token.
    fn word(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Either => "either",
            Self::JustOne => "just-one",
            Self::JustFirst => "just-first",
        }
    }

    fn holds(self, left: bool, right: bool) -> bool {
        match self {
            Self::Both => left && right,
            Self::Either => left || right,
            Self::JustOne => left != right,
            Self::JustFirst => left && !right,
        }
    }
}

/// One question. Numbers are tens of cents, below [`AMOUNTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The price.
    pub price: i64,
    /// The lower boundary.
    pub lower: i64,
    /// The upper boundary.
    pub upper: i64,
    /// What is asked about the two comparisons.
    pub asked: Asked,
}

impl Question {
    /// The prompt, such as `costs 3.10 at-least 2.50 at-most 7.50 both`.
    pub fn prompt(&self) -> String {
        let [price, lower, upper] = [self.price, self.lower, self.upper].map(dollars);
        let ([costs, at_least, at_most], asked) = (FIXED, self.asked.word());
        format!("{costs} {price} {at_least} {lower} {at_most} {upper} {asked}")
    }

    /// Whether the answer is yes.
    pub fn is_yes(&self) -> bool {
        self.answers()[2].1
    }

    /// All questions along the way: the position after which each is answered, and whether the
    /// answer is yes. The first two are the comparisons, the last is the question of the whole
    /// prompt.
    pub fn answers(&self) -> [(usize, bool); 3] {
        let (left, right) = (self.price >= self.lower, self.price <= self.upper);
        let [at_lower, at_upper] = COMPARISONS;
        let asked = self.asked.holds(left, right);
        [
            (at_lower, left),
            (at_upper, right),
            (POSITIONS.len() - 1, asked),
        ]
    }

    /// One of the comparisons alone, with the boundary first, such as `at-least 2.50 costs 3.10`.
    pub fn turned(&self, left: bool) -> (String, (usize, bool)) {
        let [costs, at_least, at_most] = FIXED;
        let (word, boundary, holds) = match left {
            true => (at_least, self.lower, self.price >= self.lower),
            false => (at_most, self.upper, self.price <= self.upper),
        };
        let [boundary, price] = [boundary, self.price].map(dollars);
        (format!("{word} {boundary} {costs} {price}"), (3, holds))
    }
}

/// An amount as text, such as `2.50`.
fn dollars(amount: i64) -> String {
    format!("{}.{}0", amount / 10, amount % 10)
}

/// The words by their token number.
pub fn vocabulary() -> Vec<String> {
    let asked = Asked::ALL.into_iter().map(Asked::word);
    let words = [UNKNOWN, END].into_iter().chain(ANSWERS).chain(FIXED);
    let words = words.chain(asked).map(str::to_owned);
    words.chain((0..AMOUNTS).map(dollars)).collect()
}

/// A part of the questions. Prices that end in .70, and one pair of boundaries in ten, are never
/// asked about in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Prices and boundaries seen in training.
    Seen,
    /// Prices and boundaries that are both held out.
    HeldOut,
}

impl Part {
    /// A question about a bracket, as in the paper; brackets and prices are uniform.
    pub fn question(self, rng: &mut impl Rng) -> Question {
        let (lower, upper) = loop {
            let width = rng.random_range(WIDTHS);
            let lower = rng.random_range(0..AMOUNTS - width);
            if self.has_bracket(lower, lower + width) {
                break (lower, lower + width);
            }
        };
        let price = loop {
            let price = rng.random_range(0..AMOUNTS);
            if self.has_price(price) {
                break price;
            }
        };
        Question {
            price,
            lower,
            upper,
            asked: Asked::Both,
        }
    }

    /// A question about a bracket, with a price up to half a dollar from a boundary.
    pub fn close_question(self, rng: &mut impl Rng) -> Question {
        loop {
            let mut question = self.question(rng);
            question.price = near([question.lower, question.upper], rng);
            if self.has_price(question.price) {
                return question;
            }
        }
    }

    /// Any question: anything may be asked at the end, and the boundaries are independent of each
    /// other. In a fifth of them, the price is close to a boundary.
    pub fn any_question(self, rng: &mut impl Rng) -> Question {
        loop {
            let [lower, upper] = [0; 2].map(|_| rng.random_range(0..AMOUNTS));
            let price = match rng.random_bool(0.2) {
                true => near([lower, upper], rng),
                false => rng.random_range(0..AMOUNTS),
            };
            if self.has_price(price) && self.has_bracket(lower, upper) {
                let asked = Asked::ALL[rng.random_range(0..Asked::ALL.len())];
                return Question {
                    price,
                    lower,
                    upper,
                    asked,
                };
            }
        }
    }

    fn has_price(self, price: i64) -> bool {
        (price % 10 == 7) == (self == Self::HeldOut)
    }

    fn has_bracket(self, lower: i64, upper: i64) -> bool {
        is_tenth(AMOUNTS * lower + upper) == (self == Self::HeldOut)
    }
}

/// A price up to half a dollar from one of the boundaries.
fn near(boundaries: [i64; 2], rng: &mut impl Rng) -> i64 {
    let boundary = boundaries[rng.random_range(0..2)];
    (boundary + rng.random_range(-5..=5)).clamp(0, AMOUNTS - 1)
}

/// A tenth of all numbers, spread as if at random (by the finalizer of SplitMix64; Steele et al.
/// 2014).
fn is_tenth(number: i64) -> bool {
    let mut z = (number as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn prompts_have_these_words_and_answers() {
        let mut question = Question {
            price: 31,
            lower: 25,
            upper: 90,
            asked: Asked::Both,
        };
        let prompt = question.prompt();
        assert_eq!(prompt, "costs 3.10 at-least 2.50 at-most 9.00 both");
        assert_eq!(prompt.split(' ').count(), POSITIONS.len());
        let vocabulary = vocabulary();
        for word in prompt.split(' ') {
            assert!(vocabulary.iter().any(|it| it == word), "{word}");
        }
        assert_eq!(question.answers(), [(3, true), (5, true), (6, true)]);
        question.asked = Asked::JustOne;
        assert_eq!(question.answers()[2], (6, false));
        let turned = question.turned(false);
        assert_eq!(turned, ("at-most 9.00 costs 3.10".to_owned(), (3, true)));
    }

    #[test]
    fn a_tenth_of_the_prices_and_brackets_is_held_out() {
        let prices = (0..AMOUNTS).filter(|price| Part::HeldOut.has_price(*price));
        let prices = prices.count();
        assert_eq!(prices, 10);
        let brackets = (0..AMOUNTS).flat_map(|lower| (0..AMOUNTS).map(move |upper| (lower, upper)));
        let brackets = brackets.filter(|(lower, upper)| Part::HeldOut.has_bracket(*lower, *upper));
        let brackets = brackets.count();
        assert!((900..=1100).contains(&brackets), "{brackets}");
    }

    #[test]
    fn questions_are_of_their_part() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for part in [Part::Seen, Part::HeldOut] {
            for _ in 0..1000 {
                for question in [
                    part.question(&mut rng),
                    part.any_question(&mut rng),
                    part.close_question(&mut rng),
                ] {
                    let numbers @ [price, lower, upper] =
                        [question.price, question.lower, question.upper];
                    assert!(part.has_price(price) && part.has_bracket(lower, upper));
                    assert!(numbers.iter().all(|it| (0..AMOUNTS).contains(it)));
                }
            }
        }
    }

    #[test]
    fn half_of_the_answers_are_yes() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let yes = (0..4000).filter(|_| Part::Seen.question(&mut rng).is_yes());
        let share = yes.count() as f64 / 4000.0;
        assert!((0.4..0.6).contains(&share), "{share}");
    }
}
