//! Invalid uses of the front: each is rejected before anything is computed.

use burn::backend::Flex;
use burn::tensor::Tensor;
use burn_align::engine::{Indices, PlanError};
use burn_align::front::{
    AlignError, AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
    InterventionType, Locations, Mode, RepresentationLocations, Source, Subspaces, Unit,
    UnitLocations,
};
use burn_align::interventions::{BuiltinIntervention, VanillaIntervention};
use burn_align_models::{AlignableTransformer, Component, Site, TokenBatch, TokensError};
use serde_json::json;

use crate::counted::Counted;
use crate::support::{load, message, tokens};

/// `gpt2_plain` and `llama_gqa` have 2 layers, 4 heads, `d_model` 16, 41 tokens and 32 positions.
const MODELS: [&str; 2] = ["gpt2_plain", "llama_gqa"];

fn model(name: &str) -> Counted<Flex> {
    Counted::new(load::<Flex>(name, &Default::default()))
}

fn at(layer: usize, component: Component) -> AlignableRepresentationConfig {
    AlignableRepresentationConfig::new(layer, component)
}

/// The output of the first block.
fn output() -> AlignableRepresentationConfig {
    at(0, Component::BlockOutput)
}

/// Two examples of 5 and 3 tokens.
fn base() -> TokenBatch {
    tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6]])
}

/// As many examples as the base, of the same lengths.
fn source() -> TokenBatch {
    tokens(&[&[7, 7, 2, 0, 8], &[1, 1, 40]])
}

fn inputs(sources: usize) -> AlignableInputs<Flex> {
    AlignableInputs::new(base())
        .with_sources(vec![source(); sources])
        .with_locations(1)
}

/// The error of a configuration, the same on both models.
fn config_refused<const N: usize>(
    representations: [AlignableRepresentationConfig; N],
    mode: Mode,
) -> AlignError {
    let [error, other] = MODELS.map(|name| {
        let config = AlignableConfig::new(representations.clone()).with_mode(mode);
        AlignableModel::<Flex, _>::new(config, model(name)).expect_err("refused")
    });
    assert_eq!(error, other);
    error
}

/// The error of inputs, the same on both models, having checked that nothing was computed.
fn refused<const N: usize>(
    representations: [AlignableRepresentationConfig; N],
    mode: Mode,
    inputs: &AlignableInputs<Flex>,
) -> AlignError {
    let [error, other] = MODELS.map(|name| {
        let config = AlignableConfig::new(representations.clone()).with_mode(mode);
        let model = AlignableModel::new(config, model(name)).expect("the configuration is right");
        let error = model.forward_inputs(inputs).expect_err("refused");
        assert_eq!(model.model().stages(), 0, "{error}");
        error
    });
    assert_eq!(error, other);
    error
}

fn parallel<const N: usize>(
    representations: [AlignableRepresentationConfig; N],
    inputs: &AlignableInputs<Flex>,
) -> AlignError {
    refused(representations, Mode::Parallel, inputs)
}

fn assert_says(error: &AlignError, expected: &str) {
    assert_eq!(message(error), expected);
}

fn units(rows: &[&[usize]]) -> Option<RepresentationLocations> {
    let rows = rows.iter().map(|row| row.to_vec()).collect();
    Some(Indices::Each(rows).into())
}

fn sides(
    source: Vec<Option<RepresentationLocations>>,
    base: Vec<Option<RepresentationLocations>>,
) -> UnitLocations {
    UnitLocations::SourcesToBase {
        source: Some(Locations::Each(source)),
        base: Locations::Each(base),
    }
}

#[test]
fn right_inputs_are_computed_and_counted() {
    let model = AlignableModel::new(AlignableConfig::new([output()]), model("llama_gqa"));
    let model = model.expect("right");
    model.forward_inputs(&inputs(1)).expect("right");
    assert_eq!(model.model().stages(), 5);
}

#[test]
fn no_representations() {
    let error = config_refused([], Mode::Parallel);
    assert_eq!(error, AlignError::NoRepresentations);
    assert_says(&error, "expected at least one representation, found none");
}

#[test]
fn layer_or_component_that_the_model_does_not_have() {
    let refused_by = |name, representation| {
        let config = AlignableConfig::new([output(), representation]);
        AlignableModel::<Flex, _>::new(config, model(name)).expect_err("refused")
    };
    let error = refused_by("llama_gqa", at(2, Component::MlpOutput));
    let expected = AlignError::NoSuchSite {
        representation: 1,
        site: Site::Block(2, Component::MlpOutput),
        layers: 2,
        lacks: "",
    };
    assert_eq!(error, expected);
    assert_says(
        &error,
        "representation 1: the model has no layer 2 mlp_output; it has 2 layers",
    );
    let error = refused_by("gpt2_plain", at(1, Component::RotaryKey));
    let expected = AlignError::NoSuchSite {
        representation: 1,
        site: Site::Block(1, Component::RotaryKey),
        layers: 2,
        lacks: " and no rotary embedding",
    };
    assert_eq!(error, expected);
    assert_says(
        &error,
        "representation 1: the model has no layer 1 rotary_key; \
         it has 2 layers and no rotary embedding",
    );
}

#[test]
fn heads_where_there_are_none() {
    for unit in [Unit::Head, Unit::HeadPos] {
        let error = config_refused([output().with_unit(unit)], Mode::Parallel);
        let expected = AlignError::NoHeads {
            representation: 0,
            site: Site::Block(0, Component::BlockOutput),
            unit,
        };
        assert_eq!(error, expected);
        assert_says(
            &error,
            &format!(
                "representation 0: layer 0 block_output has no heads; \
                 expected unit `pos`, found `{unit}`"
            ),
        );
    }
}

/// A site with heads can be addressed by head, even if there is only one.
#[test]
fn the_only_head() {
    let model = model("llama_mqa_head_dim");
    for unit in [Unit::Head, Unit::HeadPos] {
        let keys = at(0, Component::KeyOutput).with_unit(unit);
        let config = AlignableConfig::new([keys]);
        AlignableModel::<Flex, _>::new(config, model.clone()).expect("there is a head");
    }
}

#[test]
fn groups_with_gaps() {
    for keys in [
        [Some(0), Some(2)],
        [Some(1), Some(1)],
        [Some(0), None],
        [None, Some(0)],
    ] {
        let representations = keys.map(|key| match key {
            Some(key) => output().with_group(key),
            None => output(),
        });
        let error = config_refused(representations, Mode::Parallel);
        assert_eq!(
            error,
            AlignError::BadGroups {
                found: keys.to_vec()
            }
        );
        assert_says(
            &error,
            &format!(
                "group_key: expected none, or one of 0, 1, … on every representation, without \
                 gaps; found {keys:?}"
            ),
        );
    }
}

#[test]
fn groups_in_serial_mode() {
    let error = config_refused([output().with_group(0)], Mode::Serial);
    assert_eq!(error, AlignError::GroupsInSerialMode);
    assert_says(
        &error,
        "group_key is not supported in serial mode: representation i belongs to source i",
    );
}

#[test]
fn skip_of_what_has_no_input_of_its_own() {
    let layout = model("llama_gqa").layout().clone();
    let there = |component: &Component| layout.site(Site::Block(0, *component)).is_some();
    for component in Component::ALL.into_iter().filter(there) {
        let skip = at(0, component).with_intervention(InterventionType::Skip);
        let result =
            AlignableModel::<Flex, _>::new(AlignableConfig::new([skip]), model("llama_gqa"));
        match component {
            Component::BlockOutput | Component::AttentionOutput | Component::MlpOutput => {
                assert!(result.is_ok(), "{component}");
            }
            _ => {
                let error = result.expect_err("refused");
                let site = Site::Block(0, component);
                let expected = AlignError::NothingToSkip {
                    representation: 0,
                    site,
                };
                assert_eq!(error, expected);
                assert_says(
                    &error,
                    &format!(
                        "representation 0: {site} cannot be skipped; \
                         expected block_output, attention_output or mlp_output"
                    ),
                );
            }
        }
    }
}

#[test]
fn collecting_in_serial_mode() {
    let collect = output().with_intervention(InterventionType::Collect);
    let error = config_refused([output(), collect], Mode::Serial);
    assert_eq!(error, AlignError::CollectInSerialMode { representation: 1 });
    assert_says(
        &error,
        "representation 1: serial mode cannot collect; use parallel mode",
    );
}

#[test]
fn more_units_than_an_intervention_takes() {
    let inputs = inputs(1).with_locations(1..3);
    let error = parallel([output().with_low_rank(2)], &inputs);
    assert_says(
        &error,
        "layer 0 block_output: intervention 0: expected 1 unit of 16 features in all, as one vector \
         (to treat any number of units one by one, group tokens as TokenGrouping::Each, which is \
         keep_last_dim), found 2 units of 16 features",
    );
    let pair = output().with_low_rank(2).with_max_number_of_units(3);
    assert!(message(&parallel([pair], &inputs)).contains("expected 3 units of 48 features in all"));
}

#[test]
fn another_number_of_interventions() {
    let linked = |key| output().with_link(key);
    // Two interventions: one is shared, and nothing is done where activations are collected.
    let collect = output().with_intervention(InterventionType::Collect);
    let representations = [linked(7), output(), linked(7), collect];
    for found in [0, 1, 3, 4] {
        let config = AlignableConfig::new(representations.clone());
        let vanilla = (0..found)
            .map(|_| BuiltinIntervention::<Flex>::from(VanillaIntervention))
            .collect();
        let error =
            AlignableModel::<Flex, _, _>::with_interventions(config, model("gpt2_plain"), vanilla)
                .expect_err("refused");
        assert_eq!(
            error,
            AlignError::WrongInterventionCount { expected: 2, found }
        );
        assert_says(
            &error,
            &format!(
                "expected 2 interventions, one for each representation or link key, found {found}"
            ),
        );
    }
}

#[test]
fn another_number_of_sources() {
    for found in [0, 2, 4] {
        let error = parallel([output(), output(), output()], &inputs(found));
        let expected = AlignError::WrongSourceCount {
            expected: 3,
            one_allowed: true,
            found,
        };
        assert_eq!(error, expected);
        assert_says(
            &error,
            &format!("expected 3 sources (or one for all), found {found}"),
        );
    }
    // Groups share a source.
    let grouped = [0, 1, 0].map(|key| output().with_group(key));
    let error = parallel(grouped, &inputs(3));
    assert_says(&error, "expected 2 sources (or one for all), found 3");
    // In serial mode one is not enough.
    for found in [0, 1, 3] {
        let error = refused([output(), output()], Mode::Serial, &inputs(found));
        let expected = AlignError::WrongSourceCount {
            expected: 2,
            one_allowed: false,
            found,
        };
        assert_eq!(error, expected);
        assert_says(&error, &format!("expected 2 sources, found {found}"));
    }
    // Unused sources are also counted.
    let zero = || output().with_intervention(InterventionType::Zero);
    let error = parallel([zero(), zero(), zero()], &inputs(2));
    assert_says(&error, "expected 3 sources (or one for all), found 2");
}

#[test]
fn absent_source() {
    let zero = output().with_intervention(InterventionType::Zero);
    let wrong = inputs(0).with_sources([Source::Absent, Source::Absent]);
    let error = parallel([zero, output()], &wrong);
    let expected = AlignError::AbsentSource {
        group: 1,
        representation: 1,
    };
    assert_eq!(error, expected);
    assert_says(&error, "source 1 is absent, but representation 1 takes one");
    let wrong = inputs(0).with_sources([Source::from(source()), Source::Absent]);
    let error = refused([output(), output()], Mode::Serial, &wrong);
    assert_eq!(error, expected);
}

#[test]
fn batch_mismatch() {
    let wrong = inputs(0).with_sources([source(), tokens(&[&[1, 2, 3]])]);
    for mode in [Mode::Parallel, Mode::Serial] {
        let error = refused([output(), output()], mode, &wrong);
        let expected = AlignError::BatchMismatch {
            source_index: 1,
            expected: 2,
            found: 1,
        };
        assert_eq!(error, expected);
        assert_says(
            &error,
            "source 1 has 1 example; expected 2, as many as the base",
        );
    }
}

#[test]
fn subspaces_for_another_number_of_representations_or_examples() {
    let whole: Option<Vec<Vec<usize>>> = None;
    let wrong = inputs(1).with_subspaces(Subspaces::Each(vec![whole.clone()]));
    let error = parallel([output(), output()], &wrong);
    let expected = AlignError::SubspaceCount {
        what: "representations",
        expected: 2,
        found: 1,
    };
    assert_eq!(error, expected);
    assert_says(
        &error,
        "subspaces: expected entries for 2 representations, found 1",
    );
    let wrong = inputs(1).with_subspaces(Subspaces::Each(vec![whole, Some(vec![vec![0]])]));
    let error = parallel([output(), output()], &wrong);
    let expected = AlignError::SubspaceCount {
        what: "examples",
        expected: 2,
        found: 1,
    };
    assert_eq!(error, expected);
    assert_says(
        &error,
        "subspaces: expected entries for 2 examples, found 1",
    );
}

#[test]
fn subspace_that_the_partition_does_not_have() {
    let halves = output().with_subspace_partition(vec![vec![0, 8], vec![8, 16]]);
    for subspaces in [
        Subspaces::Everywhere(vec![0, 2]),
        Subspaces::Each(vec![Some(vec![vec![1], vec![2]])]),
    ] {
        let error = parallel([halves.clone()], &inputs(1).with_subspaces(subspaces));
        let expected = AlignError::NoSuchPart {
            representation: 0,
            parts: 2,
            found: 2,
        };
        assert_eq!(error, expected);
        assert_says(
            &error,
            "subspaces of representation 0: expected an index below 2, the number of parts of its \
             subspace_partition; found 2",
        );
    }
}

#[test]
fn subspace_of_features_that_the_site_does_not_have() {
    let site = Site::Block(0, Component::BlockOutput);
    let error = parallel(
        [output()],
        &inputs(1).with_subspaces(Subspaces::Everywhere(vec![16])),
    );
    let expected = PlanError::FeatureOutOfRange {
        site,
        example: 0,
        features: 16,
        found: 16,
    };
    assert_eq!(error, AlignError::Plan(expected));
}

#[test]
fn part_of_features_that_the_site_does_not_have() {
    for part in [
        vec![8, 17],
        vec![0, usize::MAX],
        vec![usize::MAX - 1, usize::MAX],
        vec![0, 1, 16],
        vec![16],
        // Two numbers are a range, and this one is empty.
        vec![8, 0],
    ] {
        let parts = vec![vec![0, 16], vec![16, 16], vec![], part.clone()];
        let error = config_refused([output().with_subspace_partition(parts)], Mode::Parallel);
        assert_says(
            &error,
            &format!(
                "representation 0: part 3 of subspace_partition: expected features below 16, or a \
                 range [from, to] within them, found {part:?}"
            ),
        );
        let expected = AlignError::NoSuchFeatures {
            representation: 0,
            part: 3,
            features: 16,
            found: part,
        };
        assert_eq!(error, expected);
    }
    // A part may be too wide for one head, yet not for all of them.
    let heads = at(0, Component::QueryOutput)
        .with_unit(Unit::Head)
        .with_subspace_partition(vec![vec![4, 8]]);
    let error = parallel(
        [heads],
        &inputs(1).with_subspaces(Subspaces::Everywhere(vec![0])),
    );
    assert!(matches!(
        error,
        AlignError::Plan(PlanError::FeatureOutOfRange {
            features: 4,
            found: 4,
            ..
        })
    ));
}

#[test]
fn linked_representations_with_different_interventions() {
    let linked = |intervention| output().with_intervention(intervention).with_link(3);
    let representations = [
        output(),
        linked(InterventionType::Vanilla),
        linked(InterventionType::Zero),
    ];
    let error = config_refused(representations, Mode::Parallel);
    let expected = AlignError::LinkedTypes {
        representation: 2,
        first: 1,
        expected: "VanillaIntervention",
        found: "ZeroIntervention",
    };
    assert_eq!(error, expected);
    assert_says(
        &error,
        "representation 2: expected VanillaIntervention, as for representation 1 with the same \
         intervention_link_key, found ZeroIntervention; give it a different key or none",
    );
}

#[test]
fn malformed_subspaces() {
    for json in [json!("0"), json!({}), json!([[0]]), json!(-1), json!(true)] {
        let error = Subspaces::try_from(&json).expect_err("refused");
        let found = json.to_string();
        assert_says(
            &error,
            &format!(
                "subspaces: expected null, one id, or [representation][batch][id]; found {found}"
            ),
        );
        assert_eq!(error, AlignError::MalformedSubspaces { found });
    }
}

#[test]
fn locations_for_another_number_of_representations() {
    let two = || vec![units(&[&[0], &[0]]), units(&[&[1], &[1]])];
    let three = || vec![units(&[&[0], &[0]]), None, None];
    for locations in [sides(three(), two()), sides(two(), three())] {
        let error = parallel([output(), output()], &inputs(2).with_locations(locations));
        let expected = AlignError::LocationCount {
            expected: 2,
            found: 3,
        };
        assert_eq!(error, expected);
        assert_says(
            &error,
            "unit locations: expected entries for 2 representations, found 3",
        );
    }
    // Each link of a chain has one.
    let link = || (Some(Locations::Each(two())), Locations::from(0));
    let chain = UnitLocations::Chain(vec![link(), link()]);
    let error = refused(
        [output(), output()],
        Mode::Serial,
        &inputs(2).with_locations(chain),
    );
    let expected = AlignError::LocationCount {
        expected: 1,
        found: 2,
    };
    assert_eq!(error, expected);
}

#[test]
fn locations_of_the_wrong_form_for_the_unit() {
    let query = |unit| at(0, Component::QueryOutput).with_unit(unit);
    let pairs = || {
        let rows = vec![vec![0], vec![0]];
        let pair =
            RepresentationLocations::HeadsAndPositions([rows.clone(), rows].map(Indices::Each));
        sides(vec![Some(pair.clone())], vec![Some(pair)])
    };
    let lists = || sides(vec![units(&[&[0], &[0]])], vec![units(&[&[0], &[0]])]);
    let both = "heads and positions, [[batch][unit], [batch][unit]]";
    for (unit, locations, expected) in [
        (Unit::Pos, pairs(), "[batch][unit]"),
        (Unit::Head, pairs(), "[batch][unit]"),
        (Unit::HeadPos, lists(), both),
        (Unit::HeadPos, UnitLocations::from(0), both),
    ] {
        let error = parallel([query(unit)], &inputs(1).with_locations(locations));
        let wanted = AlignError::LocationShape {
            representation: 0,
            unit,
            expected,
        };
        assert_eq!(error, wanted);
        assert_says(
            &error,
            &format!("unit locations of representation 0: unit `{unit}` needs {expected}"),
        );
    }
}

#[test]
fn time_steps() {
    let steps = || output().with_unit(Unit::Step);
    let error = config_refused([steps()], Mode::Parallel);
    assert_eq!(error, AlignError::NoTimeSteps { representation: 0 });
    assert_says(
        &error,
        "representation 0: unit `t` needs a recurrent model (its layers must be time steps); \
         expected unit `pos`, `h` or `h.pos`, found `t`",
    );
    // In a recurrent model, each location is one step, the same in every example.
    let config = AlignableConfig::new([steps()]);
    let model = AlignableModel::new(config, model("gpt2_plain").recurrent()).expect("right");
    let refused = |locations| {
        let error = model.forward_inputs(&inputs(1).with_locations(locations));
        error.expect_err("refused")
    };
    let of = |rows: &[&[usize]]| sides(vec![units(rows)], vec![units(rows)]);
    for locations in [
        UnitLocations::Whole,
        of(&[&[0, 1], &[0, 1]]),
        of(&[&[0], &[1]]),
    ] {
        let error = refused(locations);
        assert_says(
            &error,
            "unit locations of representation 0: unit `t` needs one time step, the same in every \
             example",
        );
    }
    let error = refused(UnitLocations::from(2));
    assert!(matches!(
        error,
        AlignError::Plan(PlanError::NoSuchSite { layers: 2, .. })
    ));
    assert_eq!(model.model().stages(), 0);
}

#[test]
fn locations_on_one_side_only() {
    let here = || vec![units(&[&[1], &[1]])];
    for (locations, given) in [
        (sides(here(), vec![None]), "source"),
        (sides(vec![None], here()), "base"),
        (UnitLocations::base(1), "base"),
    ] {
        let error = parallel([output()], &inputs(1).with_locations(locations));
        let expected = AlignError::OneSided {
            representation: 0,
            given,
        };
        assert_eq!(error, expected);
        assert_says(
            &error,
            &format!(
                "unit locations of representation 0: given for the {given} only; \
                 give both, or neither to leave the representation as it is"
            ),
        );
    }
}

#[test]
fn chains_where_there_are_none_and_of_another_length() {
    let link = || (Some(Locations::from(0)), Locations::from(0));
    let one = UnitLocations::Chain(vec![link()]);
    let error = parallel([output()], &inputs(1).with_locations(one.clone()));
    let expected = AlignError::WrongChain {
        expected: "\"sources->base\" in parallel mode".to_owned(),
        found: 1,
    };
    assert_eq!(error, expected);
    assert_says(
        &error,
        "unit locations: expected \"sources->base\" in parallel mode, found a chain of 1 links",
    );
    let error = refused(
        [output(), output()],
        Mode::Serial,
        &inputs(2).with_locations(one),
    );
    let expected = AlignError::WrongChain {
        expected: "a link for each of 2 representations".to_owned(),
        found: 1,
    };
    assert_eq!(error, expected);
}

#[test]
fn malformed_locations() {
    for (json, key) in [
        (json!(4), "unit_locations"),
        (json!([]), "unit_locations"),
        (json!({}), "unit_locations"),
        (json!({"sources->base": null}), "sources->base"),
        (json!({"sources->base": [1]}), "sources->base"),
        (json!({"sources->base": [1, null]}), "sources->base"),
        (json!({"sources->base": [1, 2, 3]}), "sources->base"),
        (json!({"sources->base": ["1", 2]}), "sources->base"),
        (json!({"sources->base": [-1, 2]}), "sources->base"),
        (json!({"sources->base": [[[1]], [[1]]]}), "sources->base"),
        (json!({"sources->base": 1, "base": 2}), "base"),
        (json!({"base": null}), "base"),
    ] {
        let error = UnitLocations::try_from(&json).expect_err("refused");
        let found = json.get(key).unwrap_or(&json).to_string();
        assert_eq!(
            message(&error),
            format!(
                "{key}: expected null or {{\"sources->base\": [source, base]}} with sides \
                 [representation][batch][unit] (serial: \"source_0->source_1\", …, \
                 \"source_n->base\"), found {found}"
            )
        );
        let key = key.to_owned();
        assert_eq!(error, AlignError::MalformedLocations { key, found });
    }
}

#[test]
fn missing_link() {
    for (json, key) in [
        (json!({"source_0->source_1": 0}), "source_0->base"),
        (
            json!({"source_0->source_1": 0, "source_2->base": 0}),
            "source_1->base",
        ),
        (json!({"source->base": 0}), "source_0->base"),
    ] {
        let error = UnitLocations::try_from(&json).expect_err("refused");
        assert_says(
            &error,
            &format!(
                "unit locations: expected \"sources->base\", or in serial mode a chain of links; \
                 `{key}` is missing"
            ),
        );
        let key = key.to_owned();
        assert_eq!(error, AlignError::MissingLink { key });
    }
}

#[test]
fn values_of_another_shape() {
    let values = Tensor::zeros([1, 2, 16], &Default::default());
    let error = parallel(
        [output()],
        &inputs(0).with_sources([Source::Values(values)]),
    );
    let expected = PlanError::OperandShape {
        site: Site::Block(0, Component::BlockOutput),
        expected: [2, 1, 16],
        found: [2, 2, 16],
    };
    assert_eq!(error, AlignError::Plan(expected));
}

/// What a user can get wrong when giving tokens, sources and locations.
#[test]
fn wrong_uses() {
    let query = || at(1, Component::QueryOutput).with_unit(Unit::Head);
    let plan = |error: AlignError| match error {
        AlignError::Plan(error) => error,
        other => panic!("{other:?}"),
    };
    // An unknown component.
    let error = "mlp_outputs".parse::<Component>().expect_err("refused");
    assert!(
        message(&error).starts_with(
            "unknown component `mlp_outputs`; expected one of block_input, attention_input, "
        ),
        "{error}"
    );
    // A layer past the last one.
    let config = AlignableConfig::new([at(7, Component::BlockOutput)]);
    let error = AlignableModel::<Flex, _>::new(config, model("gpt2_plain")).expect_err("refused");
    assert!(matches!(error, AlignError::NoSuchSite { layers: 2, .. }));
    // A head or a position past the last one, on either side.
    for (source, base) in [(0, 4), (4, 0)] {
        let error = plan(parallel(
            [query()],
            &inputs(1).with_locations((source, base)),
        ));
        assert!(matches!(
            error,
            PlanError::HeadOutOfRange {
                found: 4,
                heads: 4,
                ..
            }
        ));
    }
    for (source, base) in [(0, 3), (3, 0)] {
        let error = plan(parallel(
            [output()],
            &inputs(1).with_locations((source, base)),
        ));
        let length = 3;
        assert!(matches!(
            error,
            PlanError::PositionOutOfRange { example: 1, found: 3, length: of, .. } if of == length
        ));
    }
    // Locations for other examples, of different numbers, twice the same, none.
    let right = || vec![units(&[&[0], &[0]])];
    let error_at = |base| {
        plan(parallel(
            [output()],
            &inputs(1).with_locations(sides(right(), vec![units(base)])),
        ))
    };
    assert!(matches!(error_at(&[&[0]]), PlanError::WrongBatch { .. }));
    assert!(matches!(
        error_at(&[&[0], &[0, 1]]),
        PlanError::RaggedUnits { .. }
    ));
    assert!(matches!(
        error_at(&[&[0, 0], &[0, 1]]),
        PlanError::RepeatedUnit { .. }
    ));
    assert!(matches!(error_at(&[&[], &[]]), PlanError::NoUnits { .. }));
    // More units on one side.
    assert!(matches!(
        error_at(&[&[0, 1], &[0, 1]]),
        PlanError::OperandShape { .. }
    ));
    // Whole representations of different lengths.
    let longer = tokens(&[&[1, 2, 3, 4, 5, 6], &[1]]);
    let wrong = AlignableInputs::new(base()).with_sources([longer]);
    assert!(matches!(
        plan(parallel([output()], &wrong)),
        PlanError::OperandShape { .. }
    ));
    // Padding must not replace a token; it may replace padding.
    let wrong =
        AlignableInputs::new(base()).with_sources([tokens(&[&[1, 2, 3], &[1, 2, 3, 4, 5]])]);
    assert!(matches!(
        plan(parallel([output()], &wrong)),
        PlanError::PaddingTaken { .. }
    ));
    // Tokens that the model does not have, and none.
    for bad in [tokens(&[&[0], &[99]]), tokens(&[&[99], &[0]])] {
        let error = plan(parallel([output()], &inputs(0).with_sources([bad.clone()])));
        assert!(matches!(error, PlanError::Input { .. }));
        let wrong = AlignableInputs::new(bad).with_sources([source()]);
        let error = plan(parallel([output()], &wrong.with_locations(0)));
        assert!(matches!(error, PlanError::Input { .. }));
    }
    let empty = TokenBatch::new(vec![vec![1], vec![]]).expect_err("refused");
    assert_eq!(empty, TokensError::EmptyExample { example: 1 });
    let empty = TokenBatch::new(vec![]).expect_err("refused");
    assert_eq!(empty, TokensError::EmptyBatch);
}
