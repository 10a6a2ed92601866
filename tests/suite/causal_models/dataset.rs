//! Counterfactual datasets and their splits.

use std::collections::HashSet;

use burn_align::causal_models::{
    BalancedSampler, CounterfactualConfig, CounterfactualDataset, CounterfactualExample,
    CounterfactualSource, Draw, Inputs, Target, generate_counterfactuals,
    generate_counterfactuals_with,
};

use super::{equality, price_tagging};

type Example = CounterfactualExample<i64>;

/// The labels of hierarchical equality, written by hand: each of a to d, wx and yz may come from a
/// source.
fn label(inputs: &Inputs<i64>, wx: Option<&Inputs<i64>>, yz: Option<&Inputs<i64>>) -> i64 {
    let pair = |inputs: &Inputs<i64>, first: usize| {
        let values = inputs.values();
        values[first] == values[first + 1]
    };
    i64::from(pair(wx.unwrap_or(inputs), 0) == pair(yz.unwrap_or(inputs), 2))
}

/// wx, yz, both from one source, both each from its own.
fn dataset(config: impl Fn(CounterfactualConfig) -> CounterfactualConfig) -> Vec<Example> {
    let model = equality(50);
    let [wx, yz, out] = model.variables(["wx", "yz", "out"]).unwrap();
    let targets = [
        Target::one_source([wx]),
        Target::one_source([yz]),
        Target::one_source([wx, yz]),
        Target::source_each([wx, yz]),
    ];
    let config = config(CounterfactualConfig::new(1002, targets));
    let sampler = BalancedSampler::new(&model, out).unwrap();
    let dataset = generate_counterfactuals_with(&model, &config, |_, rng| Ok(sampler.sample(rng)));
    dataset.unwrap().examples
}

/// The numbers of the variables that each source gives.
fn target(example: &Example) -> Vec<Vec<usize>> {
    let numbers = |source: &CounterfactualSource<i64>| {
        let numbers = source.variables.iter().map(|variable| variable.index());
        numbers.collect()
    };
    example.sources.iter().map(numbers).collect()
}

#[test]
fn labels_are_those_written_by_hand() {
    let (wx, yz) = (4, 5);
    for example in dataset(|config| config.with_flips(0.3)) {
        let source_of = |variable| {
            let mut sources = example.sources.iter();
            let source = sources.find(|s| s.variables.iter().any(|v| v.index() == variable));
            source.map(|source| &source.inputs)
        };
        assert_eq!(example.base_label, [label(&example.base, None, None)]);
        let expected = label(&example.base, source_of(wx), source_of(yz));
        assert_eq!(example.label, [expected]);
    }
}

#[test]
fn the_share_of_flips_is_exact() {
    for share in [0.0, 0.1, 0.5, 2.0 / 3.0, 1.0] {
        let examples = dataset(|config| config.with_flips(share));
        let flips = examples.iter().filter(|example| example.flips()).count();
        assert_eq!(flips, (share * 1002.0).round() as usize);
        let targets: HashSet<_> = examples.iter().map(target).collect();
        assert_eq!(targets.len(), 4);
        for wanted in targets {
            let examples = examples.iter().filter(|example| target(example) == wanted);
            let (count, flips) = examples.fold((0.0, 0.0), |(count, flips), example| {
                (count + 1.0, flips + f64::from(example.flips()))
            });
            assert!((250.0..=251.0).contains(&count));
            assert!((flips - share * count).abs() <= 1.0, "{flips} of {count}");
        }
    }
}

#[test]
fn flips_are_spread_over_the_dataset() {
    let examples = dataset(|config| config.with_flips(0.5));
    for part in examples.chunks(334) {
        let flips = part.iter().filter(|example| example.flips()).count();
        assert!((130..204).contains(&flips), "{flips}");
    }
}

#[test]
fn without_a_share_labels_are_as_drawn() {
    let examples = dataset(|config| config);
    let flips = examples.iter().filter(|example| example.flips()).count();
    // Under the sampler all of wx, yz and out are fair coins, and so is whether they differ.
    assert!((440..560).contains(&flips), "{flips}");
}

#[test]
fn a_batch_has_one_target() {
    let examples = dataset(|config| config.with_batch(32).with_flips(0.5));
    assert_eq!(examples.len(), 1002);
    let mut targets = Vec::new();
    for batch in examples.chunks(32) {
        let first = target(&batch[0]);
        assert!(batch.iter().all(|example| target(example) == first));
        targets.push(first);
    }
    assert_eq!(targets.len(), 32);
    let different: HashSet<_> = targets.iter().collect();
    for wanted in different {
        assert_eq!(targets.iter().filter(|t| *t == wanted).count(), 8);
    }
    let in_turn = targets.windows(5).all(|window| window[0] == window[4]);
    assert!(!in_turn, "batches are not shuffled");
}

#[test]
fn the_seed_decides_what_is_drawn() {
    let first = dataset(|config| config.with_seed(1).with_flips(0.5));
    let again = dataset(|config| config.with_seed(1).with_flips(0.5));
    let other = dataset(|config| config.with_seed(2).with_flips(0.5));
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[test]
fn sources_may_depend_on_their_base() {
    let [model, ..] = price_tagging(1000);
    let [lower, upper, left, right] = model
        .variables(["lower", "upper", "left", "right"])
        .unwrap();
    let config = CounterfactualConfig::new(500, [Target::source_each([left, right])]);
    let mut drawn = Vec::new();
    let dataset = generate_counterfactuals_with(&model, &config, |draw, rng| {
        let inputs = model.sample_inputs(rng)?;
        match draw {
            Draw::Source { base, source, .. } => {
                drawn.push(source);
                let price = inputs.values()[0];
                Ok(Inputs::from([price, base[lower], base[upper]]))
            }
            _ => Ok(inputs),
        }
    });
    for example in dataset.unwrap().examples {
        let [price, other] = [0, 1].map(|source| example.sources[source].inputs.values()[0]);
        let expected = price >= example.base[lower] && other <= example.base[upper];
        assert_eq!(example.label, [i64::from(expected)]);
        for source in &example.sources {
            assert_eq!(source.inputs[upper], example.base[upper]);
        }
    }
    assert_eq!(drawn, [0, 1].repeat(500));
}

#[test]
fn one_makes_an_example_by_hand() {
    let model = equality(4);
    let wx = model.variable("wx").unwrap();
    let sources = vec![CounterfactualSource {
        inputs: Inputs::from([0, 1, 2, 3]),
        variables: vec![wx],
    }];
    let example = CounterfactualExample::new(&model, Inputs::from([1, 1, 2, 2]), sources).unwrap();
    assert_eq!(
        (&*example.base_label, &*example.label),
        (&[1][..], &[0][..])
    );
    assert!(example.flips());
}

#[test]
fn json_is_plain() {
    let model = equality(4);
    let wx = model.variable("wx").unwrap();
    let sources = vec![CounterfactualSource {
        inputs: Inputs::from([0, 1, 2, 3]),
        variables: vec![wx],
    }];
    let example = CounterfactualExample::new(&model, Inputs::from([1, 1, 2, 2]), sources).unwrap();
    let json = serde_json::to_value(&example).unwrap();
    let expected = serde_json::json!({
        "base": [1, 1, 2, 2],
        "sources": [{"inputs": [0, 1, 2, 3], "variables": [4]}],
        "base_label": [1],
        "label": [0],
    });
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_value::<Example>(json).unwrap(), example);
}

#[test]
fn a_split_holds_out_a_share() {
    let examples = dataset(|config| config);
    let whole = CounterfactualDataset { examples };
    let split = whole.clone().split(0.25, 0).unwrap();
    assert_eq!(split.held_out.examples.len(), 251); // 250.5
    assert_eq!(split.mixed.examples, []);
    // Both in order, and nothing is lost.
    let [mut train, mut held_out] = [split.train, split.held_out].map(|part| {
        let part = part.examples.into_iter();
        part.peekable()
    });
    for example in &whole.examples {
        let part = train.next_if_eq(example);
        part.or_else(|| held_out.next_if_eq(example))
            .expect("in a part");
    }
    assert_eq!((train.next(), held_out.next()), (None, None));
    assert_ne!(whole.clone().split(0.25, 1), whole.split(0.25, 0));
}

#[test]
fn no_key_is_on_both_sides_of_a_split() {
    let model = equality(50);
    let [wx, a] = model.variables(["wx", "a"]).unwrap();
    let config = CounterfactualConfig::new(2000, [Target::one_source([wx])]);
    let dataset = generate_counterfactuals(&model, &config).unwrap();
    let keys = |example: &Example| [example.base[a], example.sources[0].inputs[a]];
    let split = dataset.clone().split_by_keys(0.2, 3, keys).unwrap();
    let of = |part: &CounterfactualDataset<i64>| {
        let keys = part.examples.iter().flat_map(keys);
        keys.collect::<HashSet<i64>>()
    };
    let (train, held_out) = (of(&split.train), of(&split.held_out));
    assert!(train.is_disjoint(&held_out));
    assert_eq!((train.len(), held_out.len()), (40, 10));
    for example in &split.mixed.examples {
        let sides = keys(example).map(|key| held_out.contains(&key));
        assert_ne!(sides[0], sides[1]);
    }
    let parts = [&split.train, &split.held_out, &split.mixed];
    let count: usize = parts.iter().map(|part| part.examples.len()).sum();
    assert_eq!(count, 2000);

    // One key an example, and nothing is mixed.
    let split = dataset
        .split_by_keys(0.5, 3, |example| [example.base[a]])
        .unwrap();
    assert_eq!(split.mixed.examples, []);
}
