//! High-level causal models: the hypotheses that a language model is tested against.
//!
//! A causal model is a hypothesis about an algorithm, written as variables, each of them a function
//! of its parents. Formally it is a structural causal model over discrete values (Geiger et al.
//! 2021, "Causal Abstractions of Neural Networks", arXiv 2106.02997; Geiger et al. 2023, "Finding
//! Alignments Between Interpretable Causal Variables and Distributed Neural Representations", arXiv
//! 2303.02536). It predicts the label when a variable takes the value it has under another input.
//! Those predictions are the counterfactual data that alignments are trained and tested on.
//!
//! Comparing outputs is not enough: different algorithms often agree on every input. They differ in
//! what an intervention on an intermediate variable does, and that is what the data must show.
//!
//! # Hierarchical equality
//! Are a and b equal to each other, just as c and d are? The integers stand for random vectors.
//!
//! ```
//! use burn_align::causal_models::{
//!     BalancedSampler, CausalModel, CounterfactualConfig, Target, generate_counterfactuals_with,
//! };
//!
//! # fn main() -> Result<(), burn_align::causal_models::CausalModelError> {
//! let equality = CausalModel::<i64>::builder()
//!     .input("a", 0..50)
//!     .input("b", 0..50)
//!     .input("c", 0..50)
//!     .input("d", 0..50)
//!     .variable("wx", ["a", "b"], 0..=1, |[a, b]| a == b)
//!     .variable("yz", ["c", "d"], 0..=1, |[c, d]| c == d)
//!     .variable("out", ["wx", "yz"], 0..=1, |[wx, yz]| wx == yz)
//!     .build()?;
//! let [wx, yz, out] = equality.variables(["wx", "yz", "out"])?;
//!
//! let base = equality.inputs([("a", 7), ("b", 7), ("c", 3), ("d", 4)])?;
//! assert_eq!(equality.run(&base)?[out], 0);
//! assert_eq!(equality.intervene(&base, [(yz, 1)])?[out], 1);
//!
//! // Each variable takes the value that it has under an input of its own.
//! let unequal = equality.inputs([("a", 1), ("b", 2), ("c", 1), ("d", 1)])?;
//! let equal = equality.inputs([("a", 5), ("b", 5), ("c", 6), ("d", 6)])?;
//! assert_eq!(equality.interchange(&base, [(wx, &unequal)])?[out], 1);
//! assert_eq!(equality.interchange(&base, [(wx, &unequal), (yz, &equal)])?[out], 0);
//!
//! // Examples that interchange wx, yz, or both, each from its own source. Half the labels flip.
//! let targets = [vec![wx], vec![yz], vec![wx, yz]].map(Target::source_each);
//! let config = CounterfactualConfig::new(12_800, targets).with_flips(0.5);
//! let sampler = BalancedSampler::new(&equality, out)?;
//! let dataset = generate_counterfactuals_with(&equality, &config, |_, rng| {
//!     Ok(sampler.sample(rng))
//! })?;
//! assert_eq!(dataset.flip_fraction(), 0.5);
//! # Ok(())
//! # }
//! ```
//!
//! # Price tagging
//! Is a price within a bracket? (Wu et al. 2023, "Interpretability at Scale: Identifying Causal
//! Mechanisms in Alpaca", arXiv 2305.08809.) Prices are in cents here, and there are three
//! hypotheses about how the model decides. They agree on every input, and differ in their
//! counterfactuals.
//!
//! ```
//! use burn_align::causal_models::{
//!     CausalModel, CausalModelError, CounterfactualConfig, Inputs, Target, Values,
//!     generate_counterfactuals_with,
//! };
//! use rand::Rng;
//!
//! # fn main() -> Result<(), CausalModelError> {
//! // The price is compared with either boundary.
//! let boundaries = CausalModel::<i64>::builder()
//!     .input("price", 0..1000)
//!     .input("lower", 0..1000)
//!     .input("upper", 0..1000)
//!     .variable("left", ["price", "lower"], 0..=1, |[price, lower]| price >= lower)
//!     .variable("right", ["price", "upper"], 0..=1, |[price, upper]| price <= upper)
//!     .variable("out", ["left", "right"], 0..=1, |[left, right]| left & right)
//!     .build()?;
//!
//! // The price's distance from the middle, twice so that it is whole, is compared with the width.
//! let mid_point = CausalModel::<i64>::builder()
//!     .input("price", 0..1000)
//!     .input("lower", 0..1000)
//!     .input("upper", 0..1000)
//!     .variable("distance", ["price", "lower", "upper"], Values::Any, |[price, lower, upper]| {
//!         (2 * price - lower - upper).abs()
//!     })
//!     .variable("out", ["distance", "lower", "upper"], 0..=1, |[distance, lower, upper]| {
//!         *distance <= upper - lower
//!     })
//!     .build()?;
//!
//! // The bracket is recognised, and the price is looked up in it.
//! let bracket = CausalModel::<i64>::builder()
//!     .input("price", 0..1000)
//!     .input("lower", 0..1000)
//!     .input("upper", 0..1000)
//!     .variable("bracket", ["lower", "upper"], Values::Any, |[lower, upper]| 1000 * lower + upper)
//!     .variable("out", ["price", "bracket"], 0..=1, |[price, bracket]| {
//!         (bracket / 1000..=bracket % 1000).contains(price)
//!     })
//!     .build()?;
//!
//! let base = Inputs::from([500, 400, 600]);
//! let source = Inputs::from([350, 300, 700]);
//! let label = |model: &CausalModel<i64>, variable| -> Result<_, CausalModelError> {
//!     Ok(model.outputs_of(&model.interchange(&base, [(variable, &source)])?))
//! };
//! assert_eq!(label(&boundaries, "left")?, [1]); // 350 >= 300, and 500 <= 600
//! assert_eq!(label(&mid_point, "distance")?, [0]); // 150 from the middle, of a bracket of ±100
//! assert_eq!(label(&bracket, "bracket")?, [1]); // 500 in 300..=700
//!
//! // Brackets are 2.50 to 7.50 wide, so the inputs need their own sampler.
//! let left = boundaries.variable("left")?;
//! let config = CounterfactualConfig::new(1000, [Target::one_source([left])]).with_flips(0.5);
//! let dataset = generate_counterfactuals_with(&boundaries, &config, |_, rng| {
//!     let width = rng.random_range(250..=750);
//!     let lower = rng.random_range(0..1000 - width);
//!     Ok(Inputs::from([rng.random_range(0..1000), lower, lower + width]))
//! })?;
//! let [price, lower] = boundaries.variables(["price", "lower"])?;
//! let example = &dataset.examples[0];
//! let source = &example.sources[0].inputs;
//! let right = example.base[price] <= example.base[boundaries.variable("upper")?];
//! assert_eq!(example.label == [1], source[price] >= source[lower] && right);
//! # Ok(())
//! # }
//! ```
//!
//! # Your own values
//! All variables of a model have values of one type, and a comparison can return 0 or 1 of an
//! integer type. An enum keeps different things apart:
//!
//! ```
//! use burn_align::causal_models::{CausalModel, CausalModelError, Values};
//!
//! #[derive(Clone, Debug, PartialEq, Eq, Hash)]
//! enum Value {
//!     City(&'static str),
//!     Country(&'static str),
//!     Language(&'static str),
//! }
//! use Value::*;
//!
//! let languages = CausalModel::<Value>::builder()
//!     .input("city", ["Madrid", "Sevilla", "Rome"].map(City))
//!     .variable("country", ["city"], ["Spain", "Italy"].map(Country), |[city]| match city {
//!         City("Rome") => Country("Italy"),
//!         _ => Country("Spain"),
//!     })
//!     .variable("language", ["country"], Values::Any, |[country]| match country {
//!         Country("Spain") => Language("Spanish"),
//!         _ => Language("Italian"),
//!     })
//!     .build()?;
//! // Cities that can replace each other.
//! let countries = languages.equivalence_classes("country", languages.all_inputs()?)?;
//! assert_eq!(countries.of(&Country("Spain")).len(), 2);
//! # Ok::<(), CausalModelError>(())
//! ```
//!
//! # Coming from pyvene
//! - `CausalModel(variables, values, parents, functions)`: [`CausalModel::builder`];
//! - `run_forward(inputs)`: [`CausalModel::run`], or [`CausalModel::intervene`] if more than inputs
//!   are given;
//! - `run_interchange(base, {variable: source})`: [`CausalModel::interchange`];
//! - `sample_input`: [`CausalModel::sample_inputs`], or [`CausalModel::sample_inputs_where`] with
//!   `mandatory`;
//! - `sample_input_tree_balanced`: [`BalancedSampler`];
//! - `get_partial_filter` and similar: closures;
//! - `generate_factual_dataset`: draw inputs and call [`CausalModel::run`];
//! - `generate_counterfactual_dataset`: [`generate_counterfactuals`]. pyvene first draws a value
//!   and then a source that has it; here you set the fraction of examples whose label flips. There
//!   are as many sources as a target names, without padding;
//! - `print_structure`, `print_setting`: [`CausalModel::diagram`], [`CausalModel::run_diagram`].

mod balanced;
mod builder;
mod classes;
mod dataset;
mod diagram;
mod draw;
mod error;
mod generate;
mod model;
mod run;
mod split;
mod values;
mod variable;

pub use balanced::BalancedSampler;
pub use builder::CausalModelBuilder;
pub use classes::EquivalenceClasses;
pub use dataset::{CounterfactualDataset, CounterfactualExample, CounterfactualSource};
pub use draw::AllInputs;
pub use error::CausalModelError;
pub use generate::{
    CounterfactualConfig, Draw, Target, generate_counterfactuals, generate_counterfactuals_with,
};
pub use model::CausalModel;
pub use split::Split;
pub use values::{Value, Values};
pub use variable::{Inputs, Setting, Variable, VariableRef};
