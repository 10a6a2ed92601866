//! The JSON of configurations, unit locations, subspaces and requests.

use burn_align::front::{
    AlignableConfig, AlignableRepresentationConfig, InterventionType, Mode, RepresentationSite,
    Subspaces, Unit, UnitLocations,
};
use burn_align_models::Component;
use proptest::prelude::*;
use serde_json::{Value, json};
use workbench::requests::Request;

const INTERVENTIONS: [InterventionType; 6] = [
    InterventionType::Vanilla,
    InterventionType::Addition,
    InterventionType::Subtraction,
    InterventionType::Zero,
    InterventionType::Skip,
    InterventionType::Collect,
];

fn parse(json: Value) -> AlignableConfig {
    serde_json::from_value(json.clone()).unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// The message for a wrong configuration.
fn refused(json: Value) -> String {
    // From a string, as files are read.
    let text = json.to_string();
    match serde_json::from_str::<AlignableConfig>(&text) {
        Ok(config) => panic!("{json} was read as {config:?}"),
        Err(error) => error.to_string(),
    }
}

fn assert_round_trip(config: &AlignableConfig) {
    let json = serde_json::to_string(config).expect("JSON");
    let read: AlignableConfig = serde_json::from_str(&json).expect(&json);
    assert_eq!(read, *config, "{json}");
}

fn full() -> AlignableConfig {
    let linked = AlignableRepresentationConfig::new(3, Component::ValueOutput)
        .with_intervention(InterventionType::Subtraction)
        .with_unit(Unit::HeadPos)
        .with_subspace_partition(vec![vec![0, 4], vec![1, 2, 3], vec![]])
        .with_group(1)
        .with_max_number_of_units(5)
        .with_link(9);
    AlignableConfig::new([
        linked,
        AlignableRepresentationConfig::new(0, RepresentationSite::Embedding).with_group(0),
    ])
    .with_model_type("gpt2")
}

#[test]
fn all_fields_have_the_names_of_align_transformers() {
    let json = serde_json::to_value(full()).expect("JSON");
    let expected = json!({
        "alignable_model_type": "gpt2",
        "alignable_representations": [
            {
                "alignable_layer": 3,
                "alignable_representation_type": "head_value_output",
                "alignable_unit": "h.pos",
                "max_number_of_units": 5,
                "alignable_low_rank_dimension": null,
                "subspace_partition": [[0, 4], [1, 2, 3], []],
                "group_key": 1,
                "intervention_link_key": 9,
            },
            {
                "alignable_layer": 0,
                "alignable_representation_type": "embedding",
                "alignable_unit": "pos",
                "max_number_of_units": 1,
                "alignable_low_rank_dimension": null,
                "subspace_partition": null,
                "group_key": 0,
                "intervention_link_key": null,
            },
        ],
        "alignable_interventions_type": ["SubtractionIntervention", "VanillaIntervention"],
        "mode": "parallel",
    });
    assert_eq!(json, expected);
    assert_round_trip(&full());
}

#[test]
fn every_site_unit_and_intervention_round_trips() {
    assert_round_trip(&AlignableConfig::new([]));
    let components = Component::ALL.map(RepresentationSite::Component);
    let outside = [RepresentationSite::Embedding, RepresentationSite::FinalNorm];
    for site in components.into_iter().chain(outside) {
        for unit in [Unit::Pos, Unit::Head, Unit::HeadPos, Unit::Step] {
            for intervention in INTERVENTIONS {
                let representation = AlignableRepresentationConfig::new(1, site)
                    .with_unit(unit)
                    .with_intervention(intervention);
                for mode in [Mode::Parallel, Mode::Serial] {
                    let config = AlignableConfig::new([representation.clone()]).with_mode(mode);
                    assert_round_trip(&config);
                }
            }
        }
    }
}

#[test]
fn positional_lists_are_read_as_objects() {
    let objects = parse(serde_json::to_value(full()).expect("JSON"));
    let lists = parse(json!({
        "alignable_model_type": "gpt2",
        "alignable_representations": [
            [3, "head_value_output", "h.pos", 5, null, [[0, 4], [1, 2, 3], []], 1, 9],
            [0, "embedding", "pos", 1, null, null, 0, null],
        ],
        "alignable_interventions_type": ["SubtractionIntervention", "VanillaIntervention"],
        "mode": "parallel",
    }));
    assert_eq!(lists, objects);
    // Python's named tuple has defaults from the right.
    let short = parse(json!({"alignable_representations": [[2, "mlp_output"], [1], []]}));
    let expected = [
        AlignableRepresentationConfig::new(2, Component::MlpOutput),
        AlignableRepresentationConfig::new(1, Component::BlockOutput),
        AlignableRepresentationConfig::new(0, Component::BlockOutput),
    ];
    assert_eq!(short, AlignableConfig::new(expected));
}

#[test]
fn one_type_for_all_or_one_for_each() {
    let types = |types: Value| {
        let config = parse(json!({
            "alignable_representations": [{}, {}],
            "alignable_interventions_type": types,
        }));
        let [first, second] = &config.representations[..] else {
            panic!("two representations");
        };
        [first.intervention, second.intervention]
    };
    assert_eq!(types(Value::Null), [InterventionType::Vanilla; 2]);
    for intervention in INTERVENTIONS {
        let name = intervention.name();
        for written in [
            name.to_owned(),
            format!("<class 'models.interventions.{name}'>"),
            format!("<class 'pyvene.models.interventions.{name}'>"),
            format!("models.interventions.{name}"),
        ] {
            assert_eq!(types(json!(written)), [intervention; 2], "{written}");
            let each = json!([written, "ZeroIntervention"]);
            assert_eq!(types(each), [intervention, InterventionType::Zero]);
        }
    }
}

#[test]
fn keys_of_the_python_library_that_say_nothing_new_are_left_out() {
    let config = parse(json!({
        "alignable_representations": [{}],
        "alignable_interventions_dimensions": [16],
        "transformers_version": "4.30.0",
    }));
    let expected = [AlignableRepresentationConfig::new(
        0,
        Component::BlockOutput,
    )];
    assert_eq!(config, AlignableConfig::new(expected));
}

#[test]
fn unknown_and_wrong_fields_are_refused() {
    let representation =
        |field: &str, value: Value| refused(json!({"alignable_representations": [{field: value}]}));
    let config = |field: &str, value: Value| {
        refused(json!({"alignable_representations": [{}, {}], field: value}))
    };
    let at_position = |values: Value| refused(json!({"alignable_representations": [values]}));
    for (said, parts) in [
        (
            config("modes", json!("parallel")),
            &[
                "unknown field `modes`",
                "expected alignable_model_type",
                "mode",
            ][..],
        ),
        (
            config("mode", json!("sequential")),
            &["unknown variant `sequential`", "`parallel`", "`serial`"],
        ),
        (
            config(
                "alignable_interventions_type",
                json!("BoundlessIntervention"),
            ),
            &[
                "alignable_interventions_type: expected one of VanillaIntervention, ",
                "NodireftIntervention, found `BoundlessIntervention`",
            ],
        ),
        (
            config(
                "alignable_interventions_type",
                json!(["VanillaIntervention"]),
            ),
            &[
                "alignable_interventions_type: expected one type, or one for each of 2",
                "found 1",
            ],
        ),
        (
            config("alignable_interventions_type", json!(3)),
            &["alignable_interventions_type", "expected"],
        ),
        (
            config("alignable_model_type", json!(3)),
            &["invalid type: integer `3`, expected a string"],
        ),
        (
            refused(json!({})),
            &["missing field `alignable_representations`"],
        ),
        (
            refused(json!({"alignable_representations": {}})),
            &["invalid type: map, expected a sequence"],
        ),
        (
            representation("layer", json!(0)),
            &["unknown field `layer`, expected one of `alignable_layer`, "],
        ),
        (
            representation("alignable_layer", json!(-1)),
            &["integer `-1`", "expected usize"],
        ),
        (
            representation("alignable_layer", json!(1.5)),
            &["1.5", "expected usize"],
        ),
        (
            representation("alignable_layer", json!("1")),
            &["string \"1\"", "expected usize"],
        ),
        (
            representation("alignable_representation_type", json!("mlp")),
            &[
                "alignable_representation_type: unknown component `mlp`",
                "mlp_output",
                "embedding",
            ],
        ),
        (
            representation("alignable_unit", json!("head")),
            &["unknown variant `head`", "`pos`", "`h`", "`h.pos`", "`t`"],
        ),
        (
            representation("alignable_unit", json!("q_pos")),
            &["alignable_unit: `q_pos` is of attention_weight and attention_scores"],
        ),
        (
            representation("max_number_of_units", json!(0)),
            &["max_number_of_units: expected at least 1, found 0"],
        ),
        (
            representation("alignable_low_rank_dimension", json!("four")),
            &["string \"four\"", "expected usize"],
        ),
        (
            representation("subspace_partition", json!([0, 4])),
            &["integer `0`", "a sequence"],
        ),
        (
            representation("group_key", json!("a")),
            &["string \"a\"", "expected usize"],
        ),
        (
            representation("intervention_link_key", json!([])),
            &["sequence", "expected usize"],
        ),
        (
            at_position(json!(["mlp_output", 0])),
            &["string \"mlp_output\"", "expected usize"],
        ),
        (
            at_position(json!([
                0,
                "mlp_output",
                "pos",
                1,
                null,
                null,
                null,
                null,
                null,
                false,
                null,
                null,
                null
            ])),
            // A list from pyvene, which has more fields.
            &["trailing characters"],
        ),
        (at_position(json!(0)), &["integer `0`", "expected"]),
    ] {
        for part in parts {
            assert!(said.contains(part), "expected `{part}` in: {said}");
        }
    }
}

/// Any JSON, with the format's keywords among its strings, so that some of it gets far.
fn any_json() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "parallel",
        "serial",
        "pos",
        "h",
        "h.pos",
        "block_output",
        "head_query_output",
        "embedding",
        "VanillaIntervention",
        "<class 'models.interventions.ZeroIntervention'>",
        "<class '",
        "bundled:capitals",
    ]);
    let keys = prop::sample::select(vec![
        "model",
        "config",
        "base",
        "sources",
        "text",
        "input_ids",
        "unit_locations",
        "subspaces",
        "interventions",
        "output_original_output",
        "alignable_model_type",
        "alignable_representations",
        "alignable_interventions_type",
        "mode",
        "alignable_layer",
        "alignable_representation_type",
        "alignable_unit",
        "max_number_of_units",
        "subspace_partition",
        "group_key",
        "sources->base",
        "source_0->source_1",
        "source_0->base",
        "source_1->base",
    ]);
    let leaf = prop_oneof![
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        4 => (0..9_u64).prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        4 => words.prop_map(Value::from),
        1 => ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        let keys = prop_oneof![
            8 => keys.clone().prop_map(str::to_owned),
            1 => ".*",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(keys, inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A valid value with one of its parts replaced.
fn damaged(right: Value) -> impl Strategy<Value = Value> {
    (any::<prop::sample::Index>(), any_json()).prop_map(move |(index, part)| {
        let mut json = right.clone();
        let mut places = Vec::new();
        pointers(&json, "", &mut places);
        let place = index.get(&places);
        *json.pointer_mut(place).expect("a place of the value") = part;
        json
    })
}

/// JSON pointers to all parts of a value.
fn pointers(json: &Value, here: &str, places: &mut Vec<String>) {
    places.push(here.to_owned());
    match json {
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                pointers(value, &format!("{here}/{index}"), places);
            }
        }
        Value::Object(map) => {
            for (key, value) in map {
                pointers(value, &format!("{here}/{key}"), places);
            }
        }
        _ => {}
    }
}

fn right_request() -> Value {
    json!({
        "model": "bundled:capitals",
        "config": full(),
        "base": {"input_ids": [[1, 2, 3]]},
        "sources": [{"text": ["The capital"]}, null],
        "unit_locations": {"sources->base": [[[[[0]], [[1]]], null], [[[[0]], [[1]]], [[2]]]]},
        "subspaces": [[[0, 1]], null],
        "interventions": null,
        "output_original_output": true,
    })
}

/// Reads the value as everything that a user can write. Errors must have a message.
fn read_all(json: &Value) -> Result<(), TestCaseError> {
    let text = json.to_string();
    let said = [
        serde_json::from_str::<AlignableConfig>(&text)
            .map(|config| {
                assert_round_trip(&config);
            })
            .map_err(|error| error.to_string()),
        UnitLocations::try_from(json)
            .map(drop)
            .map_err(|error| error.to_string()),
        Subspaces::try_from(json)
            .map(drop)
            .map_err(|error| error.to_string()),
        Request::parse(&text)
            .map(drop)
            .map_err(|error| format!("{error:#}")),
    ];
    for said in said.into_iter().filter_map(Result::err) {
        prop_assert!(!said.is_empty());
    }
    Ok(())
}

#[test]
fn a_right_request_is_read() {
    Request::parse(&right_request().to_string()).expect("right");
    let request = right_request();
    UnitLocations::try_from(&request["unit_locations"]).expect("right");
    Subspaces::try_from(&request["subspaces"]).expect("right");
}

#[test]
fn locations_say_what_their_json_says() {
    use burn_align::engine::Indices;
    use burn_align::front::{Locations, RepresentationLocations};

    let same = |found: UnitLocations, json: Value| {
        assert_eq!(UnitLocations::try_from(&json).expect("right"), found);
    };
    same(4.into(), json!({"sources->base": 4}));
    same((3, 4).into(), json!({"sources->base": [3, 4]}));
    same(UnitLocations::base(4), json!({"base": 4}));
    same(
        UnitLocations::chain([(1, 1), (3, 4)]),
        json!({"source_0->source_1": [1, 1], "source_1->base": [3, 4]}),
    );
    let here = || Locations::each([Some(Indices::each([[4], [2]])), None]);
    let json = json!([[[4], [2]], null]);
    same(here().into(), json!({"sources->base": [json, json]}));
    same((here(), 4).into(), json!({"sources->base": [json, 4]}));
    let heads = RepresentationLocations::heads_at(
        Indices::each([[0, 1], [0, 1]]),
        Indices::one_each([4, 2]),
    );
    same(
        UnitLocations::base(Locations::each([Some(heads)])),
        json!({"base": [[[[0, 1], [0, 1]], [[4], [2]]]]}),
    );
    // The same in every example, which JSON cannot express.
    assert_eq!(UnitLocations::from(1..3), Indices::same([1, 2]).into());
    assert_eq!(Indices::same([7]), 7.into());
    assert_eq!(
        Indices::each([0..2, 3..5]),
        Indices::Each(vec![vec![0, 1], vec![3, 4]])
    );
}

#[test]
fn errors_of_requests_name_the_path() {
    // The message when the part of a valid request at this pointer is replaced.
    for (pointer, value, said) in [
        (
            "/model",
            json!(3),
            "model: invalid type: integer `3`, expected a string",
        ),
        (
            "/base",
            json!({"txt": ["a"]}),
            "base: unknown variant `txt`",
        ),
        (
            "/base/input_ids/0/2",
            json!("a"),
            "base.input_ids[0][2]: invalid type: string \"a\", expected u32",
        ),
        (
            "/sources/0/text/0",
            json!(null),
            "sources[0].text[0]: invalid type: null, expected a string",
        ),
        (
            "/config/mode",
            json!("sequential"),
            "config.mode: unknown variant `sequential`",
        ),
        (
            "/config/alignable_representations/1/alignable_layer",
            json!(-1),
            "config.alignable_representations[1].alignable_layer: invalid value: integer `-1`",
        ),
        (
            "/config/alignable_representations/0/subspace_partition/1/0",
            json!("a"),
            "config.alignable_representations[0].subspace_partition[1][0]: invalid type",
        ),
        // Errors about several fields refer to their parent.
        (
            "/config/alignable_representations/1/max_number_of_units",
            json!(0),
            "config.alignable_representations[1]: max_number_of_units: expected at least 1",
        ),
        (
            "/config/alignable_interventions_type",
            json!(["VanillaIntervention"]),
            "config: alignable_interventions_type: expected one type",
        ),
    ] {
        let mut request = right_request();
        *request.pointer_mut(pointer).expect("a part of the request") = value;
        let error = Request::parse(&request.to_string()).err().expect("wrong");
        let error = format!("{error:#}");
        assert!(
            error.starts_with(said),
            "expected `{said}` at the beginning of: {error}"
        );
    }
    for (text, said) in [
        ("{", "EOF while parsing an object at line 1 column 1"),
        (
            "{\"model\": \"a\"}",
            "missing field `base` at line 1 column 14",
        ),
    ] {
        let error = Request::parse(text).err().expect("wrong");
        assert_eq!(format!("{error:#}"), said);
    }
    let text = format!("{} true", right_request());
    let error = Request::parse(&text).err().expect("wrong");
    assert!(error.to_string().starts_with("trailing characters"));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_json_makes_anything_panic(json in any_json()) {
        read_all(&json)?;
    }

    #[test]
    fn no_damaged_request_makes_anything_panic(request in damaged(right_request())) {
        read_all(&request)?;
        for part in ["config", "unit_locations", "subspaces"] {
            if let Some(part) = request.get(part) {
                read_all(part)?;
            }
        }
    }

    #[test]
    fn no_text_makes_a_request_panic(text in ".*") {
        let _ = Request::parse(&text);
        let _ = serde_json::from_str::<AlignableConfig>(&text);
    }
}
