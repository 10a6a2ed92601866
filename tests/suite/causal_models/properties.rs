//! Properties of every causal model, on random graphs with random functions.

use burn_align::causal_models::{
    CausalModel, CausalModelError, CounterfactualConfig, CounterfactualExample, Inputs, Target,
    Values, Variable, generate_counterfactuals,
};
use proptest::prelude::*;
use proptest::sample::Index;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// A graph: variable `n` is named `vn`, and the inputs come first.
#[derive(Clone, Debug)]
struct Graph {
    /// For each input, the number of its values.
    inputs: Vec<i64>,
    computed: Vec<Computed>,
}

/// A variable that is computed.
#[derive(Clone, Debug)]
struct Computed {
    /// The number of its values.
    values: i64,
    /// A bit for each earlier variable.
    parents: u16,
    /// Chooses its function.
    salt: i64,
}

impl Computed {
    fn parents(&self, before: usize) -> impl Iterator<Item = usize> {
        (0..before).filter(|parent| self.parents >> parent & 1 == 1)
    }

    fn function(&self, parents: impl Iterator<Item = i64>) -> i64 {
        let mixed = parents.fold(self.salt, |mixed, parent| {
            let mixed = mixed.rotate_left(9) ^ (parent + 1);
            mixed.wrapping_mul(6_364_136_223_846_793_005)
        });
        (mixed >> 33).rem_euclid(self.values)
    }
}

impl Graph {
    /// The model, with its variables added in reverse order, except for the inputs.
    fn model(&self) -> CausalModel<i64> {
        let name = |number: usize| format!("v{number}");
        let count = self.inputs.len();
        let mut builder = CausalModel::<i64>::builder();
        for (place, computed) in self.computed.iter().enumerate().rev() {
            let (this, parents) = (computed.clone(), computed.parents(count + place));
            let function = move |values: &[&i64]| this.function(values.iter().map(|v| **v));
            let values: Values<i64> = (0..computed.values).into();
            builder = builder.variable_of(name(count + place), parents.map(name), values, function);
        }
        for (place, &values) in self.inputs.iter().enumerate() {
            builder = builder.input(name(place), 0..values);
        }
        builder.build().expect("a valid model")
    }

    /// The definition: a variable's value is the one it is fixed to, or its function's.
    fn value(&self, number: usize, inputs: &Inputs<i64>, fixed: &[Option<i64>]) -> i64 {
        if let Some(value) = fixed[number] {
            return value;
        }
        match number.checked_sub(self.inputs.len()) {
            None => inputs.values()[number],
            Some(place) => {
                let parents = self.computed[place].parents(number);
                let values = parents.map(|parent| self.value(parent, inputs, fixed));
                self.computed[place].function(values)
            }
        }
    }

    fn count(&self) -> usize {
        self.inputs.len() + self.computed.len()
    }

    /// The model's variables, in this graph's order.
    fn variables(&self, model: &CausalModel<i64>) -> Vec<Variable> {
        let names = (0..self.count()).map(|number| format!("v{number}"));
        names.map(|name| model.variable(&name).unwrap()).collect()
    }
}

fn graphs() -> impl Strategy<Value = Graph> {
    let computed = (1..4_i64, any::<u16>(), any::<i64>());
    let computed = computed.prop_map(|(values, parents, salt)| Computed {
        values,
        parents,
        salt,
    });
    let inputs = prop::collection::vec(1..5_i64, 1..5);
    let computed = prop::collection::vec(computed, 1..6);
    (inputs, computed).prop_map(|(inputs, computed)| Graph { inputs, computed })
}

/// A graph with its model, and as many random inputs as asked for.
fn drawn<const N: usize>(graph: &Graph, seed: u64) -> (CausalModel<i64>, [Inputs<i64>; N]) {
    let model = graph.model();
    let mut rng = StdRng::seed_from_u64(seed);
    let inputs = [(); N].map(|()| model.sample_inputs(&mut rng).unwrap());
    (model, inputs)
}

proptest! {
    #[test]
    fn a_run_is_the_definition(graph in graphs(), seed: u64, chosen: u16) {
        let (model, [base, first, second]) = drawn(&graph, seed);
        let variables = graph.variables(&model);
        // Each variable takes its value from one of two sources, or from none.
        let sources = [&first, &second].map(|s| model.run(s).unwrap());
        let source_of = |number: usize| [None, Some(0), Some(1)][usize::from(chosen >> number) % 3];
        let fixed: Vec<Option<i64>> = (0..graph.count())
            .map(|number| source_of(number).map(|source| sources[source][variables[number]]))
            .collect();
        let interchanged = (0..graph.count()).filter_map(|number| {
            let source = [&first, &second][source_of(number)?];
            Some((variables[number], source))
        });
        let interchanged = model.interchange(&base, interchanged).unwrap();
        let values = (0..graph.count()).filter_map(|n| Some((variables[n], fixed[n]?)));
        prop_assert_eq!(&model.intervene(&base, values).unwrap(), &interchanged);
        let clean = model.run(&base).unwrap();
        let nothing = vec![None; graph.count()];
        for (number, &variable) in variables.iter().enumerate() {
            prop_assert_eq!(clean[variable], graph.value(number, &base, &nothing));
            prop_assert_eq!(interchanged[variable], graph.value(number, &base, &fixed));
        }
    }

    #[test]
    fn a_source_like_the_base_changes_nothing(graph in graphs(), seed: u64, chosen: u16) {
        let (model, [base]) = drawn(&graph, seed);
        let clean = model.run(&base).unwrap();
        let variables = model.all_variables().filter(|v| chosen >> v.index() & 1 == 1);
        let variables: Vec<Variable> = variables.collect();
        let sources = variables.iter().map(|&variable| (variable, &base));
        prop_assert_eq!(&model.interchange(&base, sources).unwrap(), &clean);
        let values = variables.iter().map(|&variable| (variable, clean[variable]));
        prop_assert_eq!(&model.intervene(&base, values).unwrap(), &clean);
    }

    #[test]
    fn all_inputs_interchanged_are_the_source(graph in graphs(), seed: u64) {
        let (model, [base, source]) = drawn(&graph, seed);
        let all = model.input_variables().map(|input| (input, &source));
        let interchanged = model.interchange(&base, all).unwrap();
        prop_assert_eq!(interchanged, model.run(&source).unwrap());
    }

    #[test]
    fn an_intervention_changes_no_earlier_variable(graph in graphs(), seed: u64, at: Index) {
        let (model, [base, source]) = drawn(&graph, seed);
        let at = at.index(graph.count());
        let variable = model.all_variables().nth(at).unwrap();
        let clean = model.run(&base).unwrap();
        let interchanged = model.interchange(&base, [(variable, &source)]).unwrap();
        prop_assert_eq!(&interchanged.values()[..at], &clean.values()[..at]);
        prop_assert_eq!(interchanged[variable], model.run(&source).unwrap()[variable]);
    }

    #[test]
    fn inputs_are_enumerated_once(graph in graphs()) {
        let model = graph.model();
        let all: Vec<_> = model.all_inputs().unwrap().collect();
        let product: i64 = graph.inputs.iter().product();
        prop_assert_eq!(all.len(), product as usize);
        prop_assert_eq!(model.input_count(), Some(product as u128));
        prop_assert!(all.windows(2).all(|pair| pair[0].values() < pair[1].values()));
    }

    #[test]
    fn labels_are_recomputed(graph in graphs(), seed: u64, at: Index, batch in 1..9_usize) {
        let model = graph.model();
        let variables = graph.variables(&model);
        let numbers = [at.index(graph.count()), graph.count() - 1];
        let mut targets = vec![Target::one_source([variables[numbers[0]]])];
        if numbers[0] != numbers[1] {
            let both = numbers.map(|number| variables[number]);
            targets.extend([Target::one_source(both), Target::source_each(both)]);
        }
        let config = CounterfactualConfig::new(40, targets).with_seed(seed).with_batch(batch);
        let dataset = generate_counterfactuals(&model, &config).unwrap();
        prop_assert_eq!(dataset.examples.len(), 40);
        let nothing = vec![None; graph.count()];
        for example in &dataset.examples {
            let mut fixed = nothing.clone();
            for source in &example.sources {
                for variable in &source.variables {
                    let number = variables.iter().position(|v| v == variable).unwrap();
                    fixed[number] = Some(graph.value(number, &source.inputs, &nothing));
                }
            }
            let label = |fixed: &[Option<i64>]| -> Vec<i64> {
                let outputs = model.output_variables().iter();
                let numbers = outputs.map(|o| variables.iter().position(|v| v == o).unwrap());
                numbers.map(|number| graph.value(number, &example.base, fixed)).collect()
            };
            prop_assert_eq!(&example.base_label, &label(&nothing));
            prop_assert_eq!(&example.label, &label(&fixed));
        }
    }

    /// If the label cannot flip, or cannot stay, this is the error.
    #[test]
    fn a_balance_holds(graph in graphs(), seed: u64, flips in 0.0..=1.0, at: Index) {
        let model = graph.model();
        let variable = graph.variables(&model)[at.index(graph.count())];
        let config = CounterfactualConfig::new(20, [Target::one_source([variable])])
            .with_seed(seed)
            .with_flips(flips)
            .with_max_tries(1000);
        let wanted = (20.0 * flips).round() as usize;
        match generate_counterfactuals(&model, &config) {
            Ok(dataset) => {
                let flipped = dataset.examples.iter().filter(|example| example.flips());
                prop_assert_eq!(flipped.count(), wanted);
            }
            Err(CausalModelError::Balance { flip, tries: 1000, .. }) => {
                let asked_for = if flip { wanted > 0 } else { wanted < 20 };
                prop_assert!(asked_for);
                let inputs: Vec<_> = model.all_inputs().unwrap().collect();
                let pairs = inputs.iter().flat_map(|b| inputs.iter().map(move |s| (b, s)));
                let found = pairs.clone().filter(|(base, source)| {
                    let clean = model.run(base).unwrap();
                    let changed = model.interchange(base, [(variable, *source)]).unwrap();
                    (model.outputs_of(&clean) != model.outputs_of(&changed)) == flip
                });
                // At most rare enough for 1000 tries to miss it.
                prop_assert!(found.count() as f64 <= 0.02 * pairs.count() as f64);
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
    }

    #[test]
    fn a_split_is_disjoint_in_its_keys(seed: u64, fraction in 0.0..1.0) {
        let model = super::equality(6);
        let wx = model.variable("wx").unwrap();
        let config = CounterfactualConfig::new(60, [Target::one_source([wx])]).with_seed(seed);
        let dataset = generate_counterfactuals(&model, &config).unwrap();
        let keys = |example: &CounterfactualExample<i64>| {
            let inputs = [&example.base, &example.sources[0].inputs];
            inputs.map(|inputs| inputs.values()[0])
        };
        let Ok(split) = dataset.clone().split_by_keys(fraction, seed, keys) else {
            return Ok(());
        };
        let seen: Vec<i64> = split.train.examples.iter().flat_map(keys).collect();
        let held_out = split.held_out.examples.iter().flat_map(keys);
        prop_assert!(held_out.into_iter().all(|key| !seen.contains(&key)));
        let parts = [split.train, split.held_out, split.mixed];
        let count: usize = parts.iter().map(|part| part.examples.len()).sum();
        prop_assert_eq!(count, dataset.examples.len());
    }
}
