//! Causal models: running, intervening, drawing inputs. Datasets, errors and properties of random
//! models are in the submodules.

use std::collections::HashSet;

use burn_align::causal_models::{BalancedSampler, CausalModel, Inputs, Values};
use rand::SeedableRng;
use rand::rngs::StdRng;

mod dataset;
mod properties;
mod refused;

/// Whether a and b are the same as each other, just as c and d are.
fn equality(values: i64) -> CausalModel<i64> {
    let model = CausalModel::<i64>::builder()
        .input("a", 0..values)
        .input("b", 0..values)
        .input("c", 0..values)
        .input("d", 0..values)
        .variable("wx", ["a", "b"], 0..=1, |[a, b]| a == b)
        .variable("yz", ["c", "d"], 0..=1, |[c, d]| c == d)
        .variable("out", ["wx", "yz"], 0..=1, |[wx, yz]| wx == yz);
    model.build().expect("a valid model")
}

/// Whether a price is within a bracket: by either boundary, by its distance from the middle, and by
/// looking it up in the bracket.
fn price_tagging(values: i64) -> [CausalModel<i64>; 3] {
    let inputs = || {
        CausalModel::<i64>::builder()
            .input("price", 0..values)
            .input("lower", 0..values)
            .input("upper", 0..values)
    };
    let boundaries = inputs()
        .variable("left", ["price", "lower"], 0..=1, |[price, lower]| {
            price >= lower
        })
        .variable("right", ["price", "upper"], 0..=1, |[price, upper]| {
            price <= upper
        })
        .variable("out", ["left", "right"], 0..=1, |[left, right]| {
            left & right
        });
    let mid_point = inputs()
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
        );
    let bracket = inputs()
        .variable(
            "bracket",
            ["lower", "upper"],
            0..values * values,
            move |[lower, upper]| values * lower + upper,
        )
        .variable(
            "out",
            ["price", "bracket"],
            0..=1,
            move |[price, bracket]| (bracket / values..=bracket % values).contains(price),
        );
    [boundaries, mid_point, bracket].map(|model| model.build().expect("a valid model"))
}

#[test]
fn hierarchical_equality_is_its_formula() {
    let model = equality(4);
    let [wx, yz, out] = model.variables(["wx", "yz", "out"]).unwrap();
    let mut count = 0;
    for inputs in model.all_inputs().unwrap() {
        let &[a, b, c, d] = inputs.values() else {
            panic!("four inputs")
        };
        let setting = model.run(&inputs).unwrap();
        assert_eq!(setting[wx], i64::from(a == b));
        assert_eq!(setting[yz], i64::from(c == d));
        assert_eq!(setting[out], i64::from((a == b) == (c == d)));
        count += 1;
    }
    assert_eq!(count, 4 * 4 * 4 * 4);
}

#[test]
fn sources_give_each_variable_its_value() {
    let model = equality(4);
    let base = Inputs::from([0, 0, 1, 2]); // wx, not yz
    let unequal = Inputs::from([0, 1, 3, 3]); // yz, not wx
    let equal = Inputs::from([2, 2, 3, 3]); // both
    let out = |setting| model.outputs_of(&setting);
    let sources = [("wx", &unequal), ("yz", &equal)];
    assert_eq!(out(model.run(&base).unwrap()), [0]);
    assert_eq!(out(model.interchange(&base, [sources[0]]).unwrap()), [1]);
    assert_eq!(out(model.interchange(&base, [sources[1]]).unwrap()), [1]);
    assert_eq!(out(model.interchange(&base, sources).unwrap()), [0]);
    let both_of_one = [("wx", &unequal), ("yz", &unequal)];
    assert_eq!(out(model.interchange(&base, both_of_one).unwrap()), [0]);
    // An output has the value of its own source, whatever its parents have.
    let with_out = [("wx", &unequal), ("out", &equal)];
    let setting = model.interchange(&base, with_out).unwrap();
    assert_eq!(setting.values(), [0, 0, 1, 2, 0, 0, 1]);
    // An input too.
    let setting = model.interchange(&base, [("d", &equal)]).unwrap();
    assert_eq!(setting.values(), [0, 0, 1, 3, 1, 0, 0]);
}

#[test]
fn an_intervention_reaches_only_what_depends_on_it() {
    let model = equality(4);
    let base = Inputs::from([0, 0, 1, 2]);
    let fixed = model.intervene(&base, [("yz", 1), ("a", 3)]).unwrap();
    assert_eq!(fixed.values(), [3, 0, 1, 2, 0, 1, 0]);
}

#[test]
fn hypotheses_about_price_tagging_agree_on_labels() {
    const VALUES: i64 = 10;
    let models = price_tagging(VALUES);
    for inputs in models[0].all_inputs().unwrap() {
        let &[price, lower, upper] = inputs.values() else {
            panic!("three inputs")
        };
        let label = i64::from(lower <= price && price <= upper);
        for model in &models {
            assert_eq!(model.outputs_of(&model.run(&inputs).unwrap()), [label]);
        }
    }
}

/// All pairs of base and source.
#[test]
fn hypotheses_about_price_tagging_differ_in_counterfactuals() {
    const VALUES: i64 = 5;
    let models = price_tagging(VALUES);
    let inputs: Vec<_> = models[0].all_inputs().unwrap().collect();
    let mut seen = HashSet::new();
    for (base, source) in inputs
        .iter()
        .flat_map(|b| inputs.iter().map(move |s| (b, s)))
    {
        let label = |model: usize, variable| {
            let setting = models[model].interchange(base, [(variable, source)]);
            models[model].outputs_of(&setting.unwrap())[0] == 1
        };
        let (&[price, lower, upper], &[s_price, s_lower, s_upper]) =
            (base.values(), source.values())
        else {
            panic!("three inputs each")
        };
        let left = label(0, "left");
        assert_eq!(left, s_price >= s_lower && price <= upper);
        let distance = label(1, "distance");
        let s_distance = (2 * s_price - s_lower - s_upper).abs();
        assert_eq!(distance, s_distance <= upper - lower);
        let bracket = label(2, "bracket");
        assert_eq!(bracket, s_lower <= price && price <= s_upper);
        seen.insert([left, distance, bracket]);
    }
    assert_eq!(seen.len(), 8, "some hypotheses go together");
}

#[test]
fn variables_are_numbered_inputs_first() {
    let model = CausalModel::<bool>::builder()
        .variable("not not x", ["not x"], [false, true], |[x]| !x)
        .variable("not x", ["x"], [false, true], |[x]| !x)
        .input("x", [false, true])
        .build()
        .unwrap();
    let names = model.all_variables().map(|v| model.name(v).unwrap());
    assert!(names.eq(["x", "not x", "not not x"]));
    let x = model.variable("x").unwrap();
    assert_eq!(model.input_variables().collect::<Vec<_>>(), [x]);
    let last = model.variable(&"not not x".to_owned()).unwrap();
    assert_eq!(model.output_variables(), [last]);
    assert_eq!(model.parents("not x").unwrap(), [x]);
    assert_eq!(model.values(x).unwrap(), &Values::from([false, true]));
    assert_eq!(
        format!("{model:?}"),
        r#"CausalModel { variables: ["x", "not x(x)", "not not x(not x)"], outputs: "not not x" }"#
    );
}

#[test]
fn outputs_may_be_named() {
    let named = CausalModel::<i64>::builder()
        .input("x", 0..5)
        .variable("double", ["x"], 0..10, |[x]| 2 * x)
        .variable("more", ["double"], 0..11, |[double]| double + 1)
        .outputs(["more", "double"])
        .build()
        .unwrap();
    let setting = named.run(&Inputs::from([3])).unwrap();
    assert_eq!(named.outputs_of(&setting), [7, 6]);
}

#[test]
fn parents_may_be_a_list() {
    let names: Vec<String> = (0..5).map(|input| format!("x{input}")).collect();
    let builder = names
        .iter()
        .fold(CausalModel::<i64>::builder(), |builder, name| {
            builder.input(name, 0..3)
        });
    let sum = |values: &[&i64]| values.iter().copied().sum::<i64>();
    let model = builder
        .variable_of("sum", names, 0..=10, sum)
        .build()
        .unwrap();
    let setting = model.run(&Inputs::from([0, 1, 2, 1, 0])).unwrap();
    assert_eq!(model.outputs_of(&setting), [4]);
}

#[test]
fn a_long_chain_is_computed() {
    const LENGTH: i64 = 20_000;
    let mut builder = CausalModel::<i64>::builder();
    for link in (1..=LENGTH).rev() {
        let (name, parent) = (link.to_string(), (link - 1).to_string());
        builder = builder.variable(name, [parent.as_str()], Values::Any, |[x]| x + 1);
    }
    let model = builder.input("0", [0]).build().unwrap();
    let setting = model.run(&Inputs::from([0])).unwrap();
    assert_eq!(model.outputs_of(&setting), [LENGTH]);
}

#[test]
fn all_inputs_come_in_order() {
    let model = CausalModel::<i64>::builder()
        .input("x", [7, 3])
        .input("y", 0..3)
        .variable("sum", ["x", "y"], Values::Any, |[x, y]| x + y)
        .build()
        .unwrap();
    assert_eq!(model.input_count(), Some(6));
    let all = model.all_inputs().unwrap().map(Inputs::into_values);
    let expected = [[7, 0], [7, 1], [7, 2], [3, 0], [3, 1], [3, 2]];
    assert!(all.eq(expected.map(Vec::from)));
}

#[test]
fn a_constant_has_one_input() {
    let model = CausalModel::<i64>::builder()
        .variable("x", [], [1], |[]| 1)
        .build()
        .unwrap();
    assert_eq!(model.input_count(), Some(1));
    let all: Vec<_> = model.all_inputs().unwrap().collect();
    assert_eq!(all, [Inputs::from([])]);
}

#[test]
fn inputs_are_drawn_until_accepted() {
    let model = equality(50);
    let out = model.variable("out").unwrap();
    let mut rng = StdRng::seed_from_u64(0);
    for _ in 0..20 {
        let unequal = model.sample_inputs_where(&mut rng, 10_000, |setting| setting[out] == 0);
        let &[a, b, c, d] = unequal.as_ref().unwrap().values() else {
            panic!("four inputs")
        };
        assert_ne!(a == b, c == d);
    }
}

#[test]
fn equivalence_classes_sort_all_inputs() {
    let model = equality(4);
    let [yz, a] = model.variables(["yz", "a"]).unwrap();
    let all = model.all_inputs().unwrap();
    let classes = model.equivalence_classes(yz, all).unwrap();
    let sizes: Vec<_> = classes
        .iter()
        .map(|(value, inputs)| (*value, inputs.len()))
        .collect();
    assert_eq!(sizes, [(1, 64), (0, 192)]);
    assert!(classes.of(&1).iter().all(|inputs| {
        let values = inputs.values();
        values[2] == values[3]
    }));
    assert!(classes.of(&2).is_empty());
    // The rarer class is drawn as often as the other.
    let mut rng = StdRng::seed_from_u64(0);
    let drawn: Vec<_> = (0..4000).map(|_| classes.sample(&mut rng)).collect();
    let equal = drawn
        .iter()
        .filter(|inputs| classes.of(&1).contains(inputs));
    assert!((1850..2150).contains(&equal.count()));
    let values = drawn.iter().map(|inputs| inputs[a]);
    assert_eq!(values.collect::<HashSet<_>>().len(), 4);
}

#[test]
fn a_balanced_sampler_draws_every_value_as_often() {
    let model = equality(100);
    let [wx, yz, out] = model.variables(["wx", "yz", "out"]).unwrap();
    let sampler = BalancedSampler::new(&model, out).unwrap();
    let mut rng = StdRng::seed_from_u64(0);
    let settings: Vec<_> = (0..4000)
        .map(|_| model.run(&sampler.sample(&mut rng)).unwrap())
        .collect();
    for variable in [wx, yz, out] {
        let ones = settings.iter().filter(|setting| setting[variable] == 1);
        assert!((1850..2150).contains(&ones.count()), "{variable:?}");
    }
    for value in [0, 1] {
        for _ in 0..100 {
            let inputs = sampler.sample_of(&value, &mut rng).unwrap();
            assert_eq!(model.run(&inputs).unwrap()[out], value);
        }
    }
}

/// Neither 1 of `parity` nor, therefore, 1 of `out` can occur, and `z` does not matter.
#[test]
fn a_balanced_sampler_knows_what_can_be_reached() {
    let model = CausalModel::<i64>::builder()
        .input("x", [0, 2, 4])
        .input("z", 0..4)
        .variable("parity", ["x"], 0..=1, |[x]| x % 2)
        .variable("out", ["parity"], 0..=1, |[parity]| *parity)
        .build()
        .unwrap();
    let [x, z, out] = model.variables(["x", "z", "out"]).unwrap();
    let sampler = BalancedSampler::new(&model, out).unwrap();
    let mut rng = StdRng::seed_from_u64(0);
    assert_eq!(sampler.sample_of(&1, &mut rng), None);
    let drawn: Vec<_> = (0..100).map(|_| sampler.sample(&mut rng)).collect();
    let values = |input| {
        drawn
            .iter()
            .map(|inputs| inputs[input])
            .collect::<HashSet<_>>()
    };
    assert_eq!(values(x), HashSet::from([0, 2, 4]));
    assert_eq!(values(z), HashSet::from([0, 1, 2, 3]));
}

#[test]
fn a_graph_is_drawn_with_the_values_of_a_run() {
    let model = CausalModel::<&str>::builder()
        .input(r#"the "city""#, ["Rome", r"a\b"])
        .variable("city", [r#"the "city""#], Values::Any, |[city]| *city)
        .build()
        .unwrap();
    let setting = model.run(&Inputs::from([r"a\b"])).unwrap();
    let dot = model.run_diagram(&setting).to_dot();
    let expected = r#"digraph causal_model {
  rankdir=LR;
  "the \"city\"" [shape=box, label="the \"city\" = \"a\\\\b\""];
  "city" [shape=ellipse, peripheries=2, label="city = \"a\\\\b\""];
  "the \"city\"" -> "city";
}
"#;
    assert_eq!(dot, expected);
}
