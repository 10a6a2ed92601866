//! What a causal model rejects, and the messages.

use burn_align::causal_models::{
    BalancedSampler, CausalModel, CausalModelBuilder, CausalModelError as Error,
    CounterfactualConfig, CounterfactualDataset, Inputs, Target, Values, generate_counterfactuals,
    generate_counterfactuals_with,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{equality, price_tagging};

/// Checks that something is rejected with this kind of error and this message.
macro_rules! assert_refused {
    ($result:expr, $kind:pat, $message:expr $(,)?) => {{
        let error = $result.map(|_| ()).expect_err("refused");
        assert!(matches!(error, $kind), "{error:?}");
        assert_eq!(error.to_string(), $message);
    }};
}

fn builder() -> CausalModelBuilder<i64> {
    CausalModel::builder().input("x", 0..3)
}

#[test]
fn graphs_that_make_no_sense() {
    assert_refused!(
        builder().input("x", 0..3).build(),
        Error::DuplicateName { .. },
        "x: expected each variable to have its own name, found two with this name",
    );
    assert_refused!(
        builder().variable("y", ["z"], 0..3, |[z]| *z).build(),
        Error::UnknownParent { .. },
        "y: its parent z is not a variable; there are x, y",
    );
    assert_refused!(
        builder()
            .variable("y", ["x", "x"], 0..9, |[a, b]| a + b)
            .build(),
        Error::RepeatedParent { .. },
        "y: expected each parent once, found x twice",
    );
    let cycle = builder()
        .variable("out", ["b"], 0..3, |[b]| *b)
        .variable("a", ["x", "b"], 0..3, |[x, _]| *x)
        .variable("b", ["c"], 0..3, |[c]| *c)
        .variable("c", ["a"], 0..3, |[a]| *a);
    assert_refused!(
        cycle.build(),
        Error::Cycle { .. },
        "expected an order in which variables can be computed, found a cycle: b → a → c → b",
    );
    assert_refused!(
        builder().variable("y", ["y"], 0..3, |[y]| *y).build(),
        Error::Cycle { .. },
        "expected an order in which variables can be computed, found a cycle: y → y",
    );
    assert_refused!(
        builder().input("y", []).build(),
        Error::NoValues { .. },
        "y: expected at least one value, found none; list some, or use Values::Any",
    );
    assert_refused!(
        builder()
            .variable("y", ["x"], [0, 1, 2, 1], |[x]| *x)
            .build(),
        Error::RepeatedValue { .. },
        "y: expected each value once, found 1 twice",
    );
    assert_refused!(
        builder().build(),
        Error::NoOutput,
        "the model has no output: add a computed variable, or name outputs",
    );
    let copy = || builder().variable("y", ["x"], 0..3, |[x]| *x);
    assert_refused!(
        copy().outputs(["z"]).build(),
        Error::UnknownVariable { .. },
        "the model has no variable z; there are x, y",
    );
    assert_refused!(
        copy().outputs(["y", "x", "y"]).build(),
        Error::RepeatedVariable { .. },
        "y: expected a variable once, found it twice",
    );
}

#[test]
fn inputs_that_do_not_fit() {
    let model = equality(20);
    assert_refused!(
        model.inputs([("a", 1), ("b", 1), ("d", 1)]),
        Error::MissingInput { .. },
        "c: expected a value for every input, found none for this one",
    );
    assert_refused!(
        model.inputs([("a", 1), ("e", 1)]),
        Error::UnknownVariable { .. },
        "the model has no variable e; there are a, b, c, d, wx, yz, out",
    );
    assert_refused!(
        model.inputs([("a", 1), ("wx", 1)]),
        Error::NotAnInput { .. },
        "wx: expected an input, found a variable that is computed from a, b; to fix its value, \
         intervene",
    );
    assert_refused!(
        model.inputs([("a", 1), ("a", 1)]),
        Error::RepeatedVariable { .. },
        "a: expected a variable once, found it twice",
    );
    let message = "input d: expected one of 0, 1, 2, 3, 4, 5, 6, 7, … (20 values), found 20";
    let named = [("a", 1), ("b", 1), ("c", 1), ("d", 20)];
    assert_refused!(model.inputs(named), Error::InputValue { .. }, message);
    let wrong = Inputs::from([1, 1, 1, 20]);
    let right = Inputs::from([1, 1, 1, 1]);
    assert_refused!(model.run(&wrong), Error::InputValue { .. }, message);
    assert_refused!(
        model.intervene(&wrong, [("d", 1)]),
        Error::InputValue { .. },
        message,
    );
    assert_refused!(
        model.interchange(&right, [("wx", &wrong)]),
        Error::InputValue { .. },
        message,
    );
    assert_refused!(
        model.interchange(&wrong, [("wx", &right)]),
        Error::InputValue { .. },
        message,
    );
    assert_refused!(
        model.run(&Inputs::from([1, 2])),
        Error::InputCount { .. },
        "expected 4 values, for the inputs a, b, c, d; found 2",
    );
}

#[test]
fn interventions_that_do_not_fit() {
    let model = equality(4);
    let base = Inputs::from([0, 0, 1, 1]);
    assert_refused!(
        model.intervene(&base, [("wx", 2)]),
        Error::InterventionValue { .. },
        "intervention on wx: expected one of 0, 1, found 2",
    );
    assert_refused!(
        model.intervene(&base, [("wx", 1), ("wx", 0)]),
        Error::RepeatedVariable { .. },
        "wx: expected a variable once, found it twice",
    );
    let unknown = "the model has no variable xw; there are a, b, c, d, wx, yz, out";
    assert_refused!(
        model.intervene(&base, [("xw", 1)]),
        Error::UnknownVariable { .. },
        unknown,
    );
    assert_refused!(
        model.interchange(&base, [("xw", &base)]),
        Error::UnknownVariable { .. },
        unknown,
    );
    assert_refused!(
        model.interchange(&base, [("wx", &base), ("wx", &base)]),
        Error::RepeatedVariable { .. },
        "wx: expected a variable once, found it twice",
    );
    let [boundaries, ..] = price_tagging(4);
    let out = model.variable("out").unwrap();
    assert_refused!(
        boundaries.variable(out),
        Error::UnknownHandle { .. },
        "variable 6: this model has 6; handles are valid only in the model that returned them",
    );
}

#[test]
fn functions_that_leave_their_values() {
    let model = builder()
        .input("y", 0..3)
        .variable("sum", ["y", "x"], 0..4, |[y, x]| x + y)
        .build()
        .unwrap();
    let message = "the function of sum gives 4 at (y = 2, x = 2), expected one of 0, 1, 2, 3; \
                   list this value too, or fix the function";
    assert_refused!(
        model.run(&Inputs::from([2, 2])),
        Error::FunctionValue { .. },
        message,
    );
    let sum = model.variable("sum").unwrap();
    assert_refused!(
        BalancedSampler::new(&model, sum),
        Error::FunctionValue { .. },
        message,
    );
    // If the variable is fixed, its function is not called.
    assert!(model.intervene(&Inputs::from([2, 2]), [(sum, 3)]).is_ok());
}

#[test]
fn inputs_that_cannot_be_listed() {
    let model = builder()
        .input("price", Values::Any)
        .variable("more", ["price", "x"], Values::Any, |[price, x]| price + x)
        .build()
        .unwrap();
    assert_eq!(model.input_count(), None);
    assert_refused!(
        model.all_inputs(),
        Error::Unlisted { .. },
        "price: expected a list of values to choose from, found Values::Any; enumerate a list of \
         inputs of your own",
    );
    let message = "price: expected a list of values to choose from, found Values::Any; draw inputs \
                   with a sampler of your own";
    assert_refused!(
        model.sample_inputs(&mut StdRng::seed_from_u64(0)),
        Error::Unlisted { .. },
        message,
    );
    let more = model.variable("more").unwrap();
    let config = CounterfactualConfig::new(1, [Target::one_source([more])]);
    assert_refused!(
        generate_counterfactuals(&model, &config),
        Error::Unlisted { .. },
        message,
    );
    assert!(BalancedSampler::new(&model, more).is_err());
}

#[test]
fn samplers_that_cannot_be_made() {
    let [boundaries, ..] = price_tagging(4);
    let out = boundaries.variable("out").unwrap();
    assert_refused!(
        BalancedSampler::new(&boundaries, out),
        Error::NotATree { .. },
        "price: expected one child on the way to out, found right, left; a balanced sampler needs \
         a tree, so draw from the EquivalenceClasses of out, or write a sampler",
    );
    let [.., bracket] = price_tagging(300);
    let out = bracket.variable("out").unwrap();
    assert_refused!(
        BalancedSampler::new(&bracket, out),
        Error::TooManyCombinations { .. },
        "out: its parents have 27000000 combinations of values, expected at most 4194304; list \
         fewer values, or write a sampler",
    );
    assert_refused!(
        bracket.equivalence_classes("bracket", []),
        Error::NothingToSort,
        "equivalence classes: expected at least one input to sort, found none",
    );
    assert_refused!(
        boundaries.sample_inputs_where(&mut StdRng::seed_from_u64(0), 7, |_| false),
        Error::NotAccepted { tries: 7 },
        "expected inputs that are accepted, found none in 7 tries; raise max_tries, accept more, \
         or write a sampler",
    );
}

#[test]
fn configurations_of_datasets() {
    let model = equality(4);
    let [wx, yz, out] = model.variables(["wx", "yz", "out"]).unwrap();
    let config = |targets: Vec<Target>| CounterfactualConfig::new(10, targets);
    let refused = |targets: Vec<Target>| generate_counterfactuals(&model, &config(targets));
    assert_refused!(
        refused(vec![]),
        Error::EmptyTarget { .. },
        "targets: expected at least one target, found none",
    );
    assert_refused!(
        refused(vec![Target::one_source([wx]), Target::source_each([])]),
        Error::EmptyTarget { .. },
        "target 1: expected at least one source, found none",
    );
    assert_refused!(
        refused(vec![Target::sources([vec![wx], vec![]])]),
        Error::EmptyTarget { .. },
        "target 0, source 1: expected at least one variable, found none",
    );
    assert_refused!(
        refused(vec![Target::sources([vec![wx], vec![yz, wx]])]),
        Error::RepeatedVariable { .. },
        "wx: expected a variable once, found it twice",
    );
    let [boundaries, ..] = price_tagging(4);
    assert_refused!(
        generate_counterfactuals(&boundaries, &config(vec![Target::one_source([out])])),
        Error::UnknownHandle { .. },
        "variable 6: this model has 6; handles are valid only in the model that returned them",
    );
    let config = config(vec![Target::one_source([wx])]);
    for (share, found) in [(-0.1, "-0.1"), (1.5, "1.5"), (f64::NAN, "NaN")] {
        assert_refused!(
            generate_counterfactuals(&model, &config.clone().with_flips(share)),
            Error::Config { .. },
            format!("flips: expected a share from 0 to 1, found {found}"),
        );
    }
    for config in [config.clone().with_batch(0), config.with_max_tries(0)] {
        assert_refused!(
            generate_counterfactuals(&model, &config),
            Error::Config { .. },
            "batch and max_tries: expected at least 1, found 0",
        );
    }
}

#[test]
fn a_balance_that_inputs_do_not_give() {
    let model = equality(4);
    let [wx, yz, out] = model.variables(["wx", "yz", "out"]).unwrap();
    let config = CounterfactualConfig::new(10, [Target::sources([vec![wx, yz], vec![out]])]);
    let base = Inputs::from([1, 1, 2, 2]);
    let same = |flips| {
        let config = config.clone().with_flips(flips).with_max_tries(25);
        generate_counterfactuals_with(&model, &config, |_, _| Ok(base.clone()))
    };
    assert_eq!(same(0.0).unwrap().examples.len(), 10);
    assert_refused!(
        same(0.5),
        Error::Balance {
            flip: true,
            tries: 25,
            ..
        },
        "interchanging [wx, yz] [out]: expected an example whose label flips, found none in 25 \
         tries; raise max_tries, ask for another fraction of flips, or draw inputs with a sampler \
         under which both happen",
    );
    // A sampler's own error, and its wrong inputs.
    let stops =
        generate_counterfactuals_with(&model, &config, |_, _| Err(Error::NotAccepted { tries: 3 }));
    assert_eq!(stops, Err(Error::NotAccepted { tries: 3 }));
    let wrong = generate_counterfactuals_with(&model, &config, |_, _| Ok(Inputs::from([1])));
    assert_refused!(
        wrong,
        Error::InputCount { .. },
        "expected 4 values, for the inputs a, b, c, d; found 1",
    );
}

#[test]
fn splits_with_an_empty_side() {
    let model = equality(4);
    let wx = model.variable("wx").unwrap();
    let config = CounterfactualConfig::new(10, [Target::one_source([wx])]);
    let dataset = generate_counterfactuals(&model, &config).unwrap();
    let split = |fraction| dataset.clone().split(fraction, 0);
    assert_refused!(
        split(0.04),
        Error::EmptySplit { .. },
        "expected examples on both sides of the split, found 0 of 10 held out; choose another \
         fraction, or split more examples",
    );
    assert_refused!(
        split(f64::NAN),
        Error::Config { .. },
        "fraction: expected a share between 0 and 1, found NaN",
    );
    assert_refused!(
        dataset.clone().split_by_keys(0.5, 0, |_| ["same"]),
        Error::EmptySplit { .. },
        "expected keys on both sides of the split, found 1 of 1 held out; choose another fraction, \
         or split more keys",
    );
    let empty = CounterfactualDataset::<i64> { examples: vec![] };
    assert_eq!(empty.flip_fraction(), 0.0);
    assert!(empty.split(0.5, 0).is_err());
}
