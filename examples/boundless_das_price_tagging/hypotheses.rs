//! How the task might be solved: causal models, and the counterfactuals that they predict.

use anyhow::{Context, Result};
use burn::tensor::backend::Backend;
use burn_align::causal_models::{
    CausalModel, CounterfactualConfig, CounterfactualExample, Inputs, Target, Values, Variable,
    generate_counterfactuals_with,
};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableRepresentationConfig, InterventionType, Locations,
    RepresentationSite, UnitLocations,
};
use burn_align::training::InterchangeData;
use burn_align_models::{TokenBatch, Tokenizer};

use super::task::{AMOUNTS, ANSWERS, Asked, COMPARISONS, POSITIONS, Part, Question};

/// A causal model of the task, and the variables of it to search for.
pub(crate) struct Hypothesis {
    /// Its name in the paper.
    pub(crate) name: &'static str,
    /// All variables.
    pub(crate) model: CausalModel<i64>,
    /// The variables to search for, each in its own subspace.
    pub(crate) variables: Vec<Variable>,
}

/// The four hypotheses of the paper (its figure 2). They agree on every input.
///
/// # Errors
/// If a model is inconsistent, which none is.
pub(crate) fn hypotheses() -> Result<Vec<Hypothesis>> {
    let task = || {
        CausalModel::<i64>::builder()
            .input("price", 0..AMOUNTS)
            .input("lower", 0..AMOUNTS)
            .input("upper", 0..AMOUNTS)
    };
    // Is the price at least the lower boundary?
    let left = task()
        .variable("left", ["price", "lower"], 0..=1, |[price, lower]| {
            price >= lower
        })
        .variable(
            "out",
            ["left", "price", "upper"],
            0..=1,
            |[left, price, upper]| *left == 1 && price <= upper,
        )
        .build()?;
    // Both comparisons.
    let both = task()
        .variable("left", ["price", "lower"], 0..=1, |[price, lower]| {
            price >= lower
        })
        .variable("right", ["price", "upper"], 0..=1, |[price, upper]| {
            price <= upper
        })
        .variable("out", ["left", "right"], 0..=1, |[left, right]| {
            left & right
        })
        .build()?;
    // How far is the price from the middle? Twice the distance, so that it is an integer.
    let mid_point = task()
        .variable(
            "distance",
            ["price", "lower", "upper"],
            Values::Any,
            |[price, lower, upper]| (2 * price - lower - upper).abs(),
        )
        .variable(
            "out",
            ["distance", "lower", "upper"],
            0..=1,
            |[distance, lower, upper]| *distance <= upper - lower,
        )
        .build()?;
    // Which bracket is it?
    let bracket = task()
        .variable(
            "bracket",
            ["lower", "upper"],
            Values::Any,
            |[lower, upper]| AMOUNTS * lower + upper,
        )
        .variable("out", ["price", "bracket"], 0..=1, |[price, bracket]| {
            (bracket / AMOUNTS..=bracket % AMOUNTS).contains(price)
        })
        .build()?;
    let named: [(_, _, &[&str]); 4] = [
        ("left boundary", left, &["left"]),
        ("left and right boundary", both, &["left", "right"]),
        ("mid-point distance", mid_point, &["distance"]),
        ("bracket identity", bracket, &["bracket"]),
    ];
    let hypotheses = named.into_iter().map(|(name, model, variables)| {
        let variables = variables.iter().map(|name| model.variable(*name));
        Ok(Hypothesis {
            name,
            variables: variables.collect::<Result<_, _>>()?,
            model,
        })
    });
    hypotheses.collect()
}

impl Hypothesis {
    /// Where to search for its variables, with a label: together at every token but the first,
    /// which is the same in every prompt; and two variables each at the boundary that it compares
    /// with.
    pub(crate) fn places(&self) -> Vec<(String, Vec<usize>)> {
        let together = POSITIONS.into_iter().enumerate().skip(1);
        let together =
            together.map(|(it, label)| (label.to_owned(), vec![it; self.variables.len()]));
        let apart = (self.variables.len() == 2).then(|| {
            let [left, right] = COMPARISONS;
            let label = format!("{}, {}", POSITIONS[left], POSITIONS[right]);
            (label, COMPARISONS.to_vec())
        });
        together.chain(apart).collect()
    }

    /// What is trained at each place: for each variable a rotation, and how many features to swap.
    pub(crate) fn aligned(&self, site: impl Into<RepresentationSite>) -> AlignableConfig {
        let variable = AlignableRepresentationConfig::new(0, site)
            .with_intervention(InterventionType::BoundlessRotatedSpace);
        AlignableConfig::new(vec![variable; self.variables.len()])
    }

    /// Counterfactuals about the questions of a part: for each variable alone and, if there are
    /// several, for all of them, each from its own source. Half of the labels flip. They have no
    /// location yet: see [`at`].
    pub(crate) fn counterfactuals<B: Backend>(
        &self,
        part: Part,
        examples: usize,
        seed: u64,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<InterchangeData<B>>> {
        let mut targets: Vec<_> = self.variables.iter().map(|it| vec![*it]).collect();
        if self.variables.len() > 1 {
            targets.push(self.variables.clone());
        }
        let share = examples / targets.len();
        let datasets = targets.into_iter().zip(seed..).map(|(variables, seed)| {
            let config = CounterfactualConfig::new(share, [Target::source_each(variables)])
                .with_flips(0.5)
                .with_seed(seed);
            let drawn = generate_counterfactuals_with(&self.model, &config, |_, rng| {
                let it = part.question(rng);
                Ok(Inputs::from([it.price, it.lower, it.upper]))
            })?;
            self.interchanges(&drawn.examples, tokenizer)
        });
        datasets.collect()
    }

    /// Counterfactuals of one target as pairs of prompts.
    fn interchanges<B: Backend>(
        &self,
        examples: &[CounterfactualExample<i64>],
        tokenizer: &Tokenizer,
    ) -> Result<InterchangeData<B>> {
        let base = prompts(examples.iter().map(|it| &it.base), tokenizer)?;
        let (mut sources, mut moved) = (Vec::new(), Vec::new());
        for variable in &self.variables {
            let mut of = examples[0].sources.iter();
            let source = of.position(|it| it.variables.contains(variable));
            // A variable that is not a target is left unchanged.
            moved.push(source.map(|_| 0));
            sources.push(match source {
                Some(source) => {
                    let inputs = examples.iter().map(|it| &it.sources[source].inputs);
                    prompts(inputs, tokenizer)?
                }
                None => base.clone(),
            });
        }
        let answers = answers(tokenizer)?;
        let labels = examples.iter().map(|it| answers[it.label[0] as usize]);
        let inputs = AlignableInputs::new(base)
            .with_sources(sources)
            .with_locations(Locations::each(moved));
        Ok(InterchangeData::new(inputs, labels))
    }
}

/// The locations of the same swaps at these positions, one for each variable.
pub(crate) fn at<B: Backend>(positions: &[usize], data: &InterchangeData<B>) -> UnitLocations {
    let moved = match &data.inputs.locations {
        UnitLocations::SourcesToBase {
            base: Locations::Each(each),
            ..
        } => each.iter().map(Option::is_some).collect(),
        _ => vec![true; positions.len()],
    };
    let moved = moved.into_iter().zip(positions);
    Locations::each(moved.map(|(moved, position)| moved.then_some(*position))).into()
}

/// The tokens of `no` and `yes`.
fn answers(tokenizer: &Tokenizer) -> Result<[u32; 2]> {
    let [no, yes] = ANSWERS.map(|answer| tokenizer.single_token(answer));
    Ok([no?, yes?])
}

/// Inputs of a hypothesis as prompts.
fn prompts<'a>(
    inputs: impl Iterator<Item = &'a Inputs<i64>>,
    tokenizer: &Tokenizer,
) -> Result<TokenBatch> {
    let prompts = inputs.map(|inputs| {
        let [price, lower, upper] = *inputs.values() else {
            return None;
        };
        let question = Question {
            price,
            lower,
            upper,
            asked: Asked::Both,
        };
        Some(question.prompt())
    });
    let prompts: Option<Vec<String>> = prompts.collect();
    Ok(tokenizer.encode_batch(prompts.context("every hypothesis has three inputs")?)?)
}
