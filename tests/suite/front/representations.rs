//! Representations that the model does not have, and interventions that do not fit them.

use burn::backend::Flex;
use burn_align::front::{
    AlignError, AlignableConfig, AlignableModel, InterventionType, Mode, Unit, UnitLocations,
};
use burn_align::interventions::{BuiltinIntervention, VanillaIntervention};
use burn_align_models::{AlignableTransformer, Component, Site};
use serde_json::json;

use super::{assert_says, at, config_refused, inputs, model, output, parallel};
use crate::support::message;

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
        "layer 0 block_output: intervention 0: expected 1 unit of 16 features in all, as one \
         vector (to treat any number of units one by one, group tokens as TokenGrouping::Each, \
         which is keep_last_dim), found 2 units of 16 features",
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
