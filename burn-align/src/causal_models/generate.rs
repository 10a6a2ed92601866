//! Counterfactual data: which variables are interchanged, how often the label flips, and how inputs
//! are drawn.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    CausalModel, CausalModelError, CounterfactualDataset, CounterfactualExample,
    CounterfactualSource, Inputs, Value, Variable,
};

/// The variables to interchange, and which of them share a source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// For each source, the variables that take their values from it.
    pub sources: Vec<Vec<Variable>>,
}

impl Target {
    /// All variables from one source.
    pub fn one_source(variables: impl IntoIterator<Item = Variable>) -> Self {
        Self {
            sources: vec![variables.into_iter().collect()],
        }
    }

    /// Each variable from a source of its own.
    pub fn source_each(variables: impl IntoIterator<Item = Variable>) -> Self {
        Self {
            sources: variables
                .into_iter()
                .map(|variable| vec![variable])
                .collect(),
        }
    }

    /// A source for each list of variables.
    pub fn sources(sources: impl IntoIterator<Item = Vec<Variable>>) -> Self {
        Self {
            sources: sources.into_iter().collect(),
        }
    }
}

/// The counterfactual examples to generate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CounterfactualConfig {
    /// Number of examples.
    pub examples: usize,
    /// What is interchanged. With several targets, the batches are divided among them as evenly as
    /// possible.
    pub targets: Vec<Target>,
    /// The fraction of examples whose label flips, between 0 and 1. It holds for the dataset
    /// exactly (rounded to a whole number of examples), and for each target to within one example.
    /// Default: `None`, whatever the drawn inputs give.
    pub flips: Option<f64>,
    /// Examples come in batches of this many with the same target, so that one batch can be
    /// intervened on at one site. The last batch has the remainder. Default: 1, all targets mixed.
    pub batch: usize,
    /// How often inputs are redrawn for one example that must flip, or must not. Default: 10,000.
    pub max_tries: usize,
    /// Seed for everything that is drawn. Default: 0.
    pub seed: u64,
}

impl CounterfactualConfig {
    /// This many examples that interchange these variables, whatever their labels.
    pub fn new(examples: usize, targets: impl IntoIterator<Item = Target>) -> Self {
        Self {
            examples,
            targets: targets.into_iter().collect(),
            flips: None,
            batch: 1,
            max_tries: 10_000,
            seed: 0,
        }
    }

    /// Sets the fraction of flipped labels.
    pub fn with_flips(mut self, flips: f64) -> Self {
        self.flips = Some(flips);
        self
    }

    /// Sets the number of examples in a batch; a batch has one target.
    pub fn with_batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }

    /// Sets the number of tries for one example.
    pub fn with_max_tries(mut self, max_tries: usize) -> Self {
        self.max_tries = max_tries;
        self
    }

    /// Sets the seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

/// What a sampler is asked to draw.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Draw<'a, V> {
    /// A base.
    #[non_exhaustive]
    Base {
        /// What will be interchanged.
        target: &'a Target,
    },
    /// A source.
    #[non_exhaustive]
    Source {
        /// What will be interchanged.
        target: &'a Target,
        /// Which of the target's sources.
        source: usize,
        /// The base.
        base: &'a Inputs<V>,
    },
}

/// Counterfactual examples with uniformly drawn inputs: see [`generate_counterfactuals_with`].
///
/// # Errors
/// As [`generate_counterfactuals_with`], and if an input can have any value.
#[doc(alias = "generate_counterfactual_dataset")]
pub fn generate_counterfactuals<V: Value>(
    model: &CausalModel<V>,
    config: &CounterfactualConfig,
) -> Result<CounterfactualDataset<V>, CausalModelError> {
    generate_counterfactuals_with(model, config, |_, rng| model.sample_inputs(rng))
}

/// Counterfactual examples with inputs drawn by a sampler.
///
/// For each example a base and its sources are drawn, and redrawn until its label flips or stays as
/// the configuration requires. So within the flipping examples, and within the others, the
/// sampler's distribution is preserved. The same configuration, model and sampler give the same
/// examples.
///
/// The sampler knows what it draws, so a source may depend on its base:
///
/// ```
/// use burn_align::causal_models::{
///     CausalModel, CausalModelError, CounterfactualConfig, Draw, Inputs, Target,
///     generate_counterfactuals_with,
/// };
/// use rand::Rng;
///
/// let sum = CausalModel::<i64>::builder()
///     .input("x", 0..10)
///     .input("y", 0..10)
///     .input("z", 0..10)
///     .variable("xy", ["x", "y"], 0..=18, |[x, y]| x + y)
///     .variable("sum", ["xy", "z"], 0..=27, |[xy, z]| xy + z)
///     .build()?;
/// let [xy, z] = sum.variables(["xy", "z"])?;
/// let config = CounterfactualConfig::new(100, [Target::one_source([xy])]);
/// let dataset = generate_counterfactuals_with(&sum, &config, |draw, rng| match draw {
///     // Sources have the z of their base.
///     Draw::Source { base, .. } => {
///         let [x, y] = [rng.random_range(0..10), rng.random_range(0..10)];
///         Ok(Inputs::from([x, y, base[z]]))
///     }
///     _ => sum.sample_inputs(rng),
/// })?;
/// assert!(dataset.examples.iter().all(|e| e.sources[0].inputs[z] == e.base[z]));
/// # Ok::<(), CausalModelError>(())
/// ```
///
/// # Errors
/// If the configuration does not fit the model; if drawn inputs do not, or a function returns a
/// value that its variable cannot have; if the sampler returns an error; or if no example that
/// flips (or none that does not) is found in `max_tries` tries.
pub fn generate_counterfactuals_with<V: Value>(
    model: &CausalModel<V>,
    config: &CounterfactualConfig,
    mut sampler: impl FnMut(Draw<'_, V>, &mut ChaCha8Rng) -> Result<Inputs<V>, CausalModelError>,
) -> Result<CounterfactualDataset<V>, CausalModelError> {
    check(model, config)?;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let targets = schedule_targets(config, &mut rng);
    let flips = schedule_flips(config, &targets, &mut rng);
    let mut examples = Vec::with_capacity(config.examples);
    for (target, flip) in targets.into_iter().zip(flips) {
        let target = &config.targets[target];
        let mut draw = || draw(model, target, &mut sampler, &mut rng);
        examples.push(match flip {
            None => draw()?,
            Some(flip) => draw_until(draw, flip, config.max_tries)?.ok_or_else(|| {
                CausalModelError::Balance {
                    target: describe(model, target),
                    flip,
                    tries: config.max_tries,
                }
            })?,
        });
    }
    Ok(CounterfactualDataset { examples })
}

/// The first example whose label flips, or does not; `None` if these tries give none.
fn draw_until<V: Value>(
    mut draw: impl FnMut() -> Result<CounterfactualExample<V>, CausalModelError>,
    flip: bool,
    max_tries: usize,
) -> Result<Option<CounterfactualExample<V>>, CausalModelError> {
    for _ in 0..max_tries {
        let example = draw()?;
        if example.flips() == flip {
            return Ok(Some(example));
        }
    }
    Ok(None)
}

/// One base with its sources, labelled.
fn draw<V: Value>(
    model: &CausalModel<V>,
    target: &Target,
    sampler: &mut impl FnMut(Draw<'_, V>, &mut ChaCha8Rng) -> Result<Inputs<V>, CausalModelError>,
    rng: &mut ChaCha8Rng,
) -> Result<CounterfactualExample<V>, CausalModelError> {
    let base = sampler(Draw::Base { target }, rng)?;
    let sources = target
        .sources
        .iter()
        .enumerate()
        .map(|(source, variables)| {
            let draw = Draw::Source {
                target,
                source,
                base: &base,
            };
            Ok(CounterfactualSource {
                inputs: sampler(draw, rng)?,
                variables: variables.clone(),
            })
        });
    let sources = sources.collect::<Result<Vec<_>, CausalModelError>>()?;
    CounterfactualExample::new(model, base, sources)
}

/// The target of each example.
fn schedule_targets(config: &CounterfactualConfig, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let batches = config.examples.div_ceil(config.batch);
    let mut targets: Vec<usize> = (0..batches).map(|b| b % config.targets.len()).collect();
    targets.shuffle(rng);
    let targets = targets
        .into_iter()
        .flat_map(|t| std::iter::repeat_n(t, config.batch));
    targets.take(config.examples).collect()
}

/// Whether each example must flip; `None` where it does not matter.
fn schedule_flips(
    config: &CounterfactualConfig,
    targets: &[usize],
    rng: &mut ChaCha8Rng,
) -> Vec<Option<bool>> {
    let Some(share) = config.flips else {
        return vec![None; targets.len()];
    };
    let mut flips = vec![None; targets.len()];
    // Rounding the running count makes the total exact, and each target's count right to within
    // one.
    let (mut seen, mut flipped) = (0, 0);
    for target in 0..config.targets.len() {
        let mut places: Vec<usize> = (0..targets.len())
            .filter(|&i| targets[i] == target)
            .collect();
        places.shuffle(rng);
        seen += places.len();
        let until_here = (share * seen as f64).round() as usize;
        let (flip, stay) = places.split_at(until_here - flipped);
        flipped = until_here;
        flip.iter().for_each(|&place| flips[place] = Some(true));
        stay.iter().for_each(|&place| flips[place] = Some(false));
    }
    flips
}

fn check<V: Value>(
    model: &CausalModel<V>,
    config: &CounterfactualConfig,
) -> Result<(), CausalModelError> {
    let empty = |what: String, expected| Err(CausalModelError::EmptyTarget { what, expected });
    if config.targets.is_empty() {
        return empty("targets".to_owned(), "target");
    }
    for (index, target) in config.targets.iter().enumerate() {
        if target.sources.is_empty() {
            return empty(format!("target {index}"), "source");
        }
        let mut seen = Vec::new();
        for (source, variables) in target.sources.iter().enumerate() {
            if variables.is_empty() {
                return empty(format!("target {index}, source {source}"), "variable");
            }
            for &variable in variables {
                let variable = model.variable(variable)?;
                if seen.contains(&variable) {
                    return Err(CausalModelError::RepeatedVariable {
                        variable: model.names([variable]),
                    });
                }
                seen.push(variable);
            }
        }
    }
    let wrong = |what, expected, found: String| {
        Err(CausalModelError::Config {
            what,
            expected,
            found,
        })
    };
    if let Some(share) = config.flips.filter(|share| !(0.0..=1.0).contains(share)) {
        return wrong("flips", "a share from 0 to 1", share.to_string());
    }
    if config.batch == 0 || config.max_tries == 0 {
        return wrong("batch and max_tries", "at least 1", "0".to_owned());
    }
    Ok(())
}

/// For messages: `[wx] [yz]`, with brackets around the variables of each source.
fn describe<V: Value>(model: &CausalModel<V>, target: &Target) -> String {
    let sources = target.sources.iter().map(|variables| {
        let names = model.names(variables.iter().copied());
        format!("[{names}]")
    });
    sources.collect::<Vec<_>>().join(" ")
}
