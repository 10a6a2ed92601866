//! Configurations, tokenizers and sources that must be rejected, and what may pass.

use burn::backend::Flex;
use burn_align_models::decoder::Positions;
use burn_align_models::pretrained::{ConfigError, LoadError};
use burn_align_models::{Decoder, FromPretrained, LoadOptions};
use serde_json::{Value, json};

use crate::scratch::Scratch;
use crate::support::{fixtures, message};

use super::{load, refusal};

/// The error for a fixture's configuration after these changes. There are no weights, so this also
/// checks that the configuration is read first.
fn config_error(fixture: &str, changes: Value) -> ConfigError {
    let scratch = Scratch::config(fixture, changes.clone());
    match refusal(scratch.path()) {
        LoadError::Config { file, cause } => {
            assert_eq!(file, scratch.file("config.json"));
            cause
        }
        error => panic!("{changes}: {error:?}"),
    }
}

const GPT2_SIZES: [&str; 6] = [
    "vocab_size",
    "n_positions",
    "n_embd",
    "n_layer",
    "n_head",
    "n_inner",
];
const LLAMA_SIZES: [&str; 8] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "head_dim",
];

fn sizes() -> impl Iterator<Item = (&'static str, &'static str)> {
    let gpt2 = GPT2_SIZES.map(|key| ("gpt2_plain", key));
    let llama = LLAMA_SIZES.map(|key| ("llama_gqa", key));
    gpt2.into_iter().chain(llama)
}

#[test]
fn sizes_out_of_range() {
    let wrong = json!([
        0,
        -1,
        1.5,
        1e300,
        (1 << 24) + 1,
        u64::MAX,
        i64::MIN,
        "16",
        [16],
        {},
        true
    ]);
    for (fixture, key) in sizes() {
        for value in wrong.as_array().expect("a list") {
            let error = config_error(fixture, json!({key: value}));
            let ConfigError::Invalid {
                key: named, found, ..
            } = &error
            else {
                panic!("{key} = {value}: {error:?}");
            };
            assert_eq!((named.as_str(), found), (key, &value.to_string()));
            let message = message(&error);
            assert!(
                message.contains("expected a whole number from 1"),
                "{message}"
            );
        }
    }
}

#[test]
fn sizes_that_are_missing() {
    let optional = ["n_inner", "num_key_value_heads", "head_dim"];
    for (fixture, key) in sizes().filter(|(_, key)| !optional.contains(key)) {
        let missing = ConfigError::Missing {
            key: key.to_owned(),
        };
        assert_eq!(config_error(fixture, json!({key: null})), missing);
    }
}

#[test]
fn too_many_layers() {
    for (fixture, key) in [
        ("gpt2_plain", "n_layer"),
        ("llama_gqa", "num_hidden_layers"),
    ] {
        let error = config_error(fixture, json!({key: 4097})).to_string();
        assert!(
            error.contains(key) && error.contains("at most 4096 layers"),
            "{error}"
        );
    }
}

#[test]
fn values_that_do_not_fit() {
    for (fixture, changes, key, expected) in [
        (
            "gpt2_plain",
            json!({"n_head": 3}),
            "n_head",
            "a divisor of n_embd = 16",
        ),
        (
            "gpt2_plain",
            json!({"layer_norm_epsilon": -1e-5}),
            "layer_norm_epsilon",
            "at least 0",
        ),
        (
            "gpt2_plain",
            json!({"layer_norm_epsilon": "1e-5"}),
            "layer_norm_epsilon",
            "a number",
        ),
        (
            "gpt2_plain",
            json!({"scale_attn_weights": 1}),
            "scale_attn_weights",
            "true or false",
        ),
        (
            "gpt2_plain",
            json!({"tie_word_embeddings": "no"}),
            "tie_word_embeddings",
            "true or false",
        ),
        (
            "gpt2_plain",
            json!({"activation_function": 7}),
            "activation_function",
            "a text",
        ),
        (
            "gpt2_plain",
            json!({"model_type": 2}),
            "model_type",
            "a text",
        ),
        (
            "llama_gqa",
            json!({"num_key_value_heads": 3}),
            "num_key_value_heads",
            "a divisor of num_attention_heads = 4",
        ),
        (
            "llama_gqa",
            json!({"num_key_value_heads": 8}),
            "num_key_value_heads",
            "a divisor of num_attention_heads = 4",
        ),
        (
            "llama_gqa",
            json!({"head_dim": 5}),
            "head_dim",
            "an even number",
        ),
        (
            "llama_gqa",
            json!({"head_dim": null, "hidden_size": 18}),
            "num_attention_heads",
            "a divisor of hidden_size = 18, or a head_dim",
        ),
        (
            "llama_gqa",
            json!({"head_dim": null, "hidden_size": 12}),
            "head_dim",
            "an even number",
        ),
        (
            "llama_gqa",
            json!({"rope_theta": -1.0}),
            "rope_theta",
            "a number",
        ),
        (
            "llama_gqa",
            json!({"rope_theta": 0.0}),
            "rope_theta",
            "a number above 0",
        ),
        (
            "llama_gqa",
            json!({"rope_scaling": "linear"}),
            "rope_scaling",
            "an object",
        ),
        (
            "llama_rope_linear",
            json!({"rope_scaling": {"type": "linear", "factor": 0}}),
            "rope_scaling.factor",
            "a number above 0",
        ),
        (
            "mistral_window",
            json!({"sliding_window": 0}),
            "sliding_window",
            "a whole number",
        ),
        (
            "qwen2_window",
            json!({"layer_types": ["full_attention"]}),
            "layer_types",
            "3 entries, one for each layer",
        ),
        (
            "qwen2_window",
            json!({"layer_types": vec!["full_attention"; 4]}),
            "layer_types",
            "3 entries, one for each layer",
        ),
        (
            "qwen2_window",
            json!({"layer_types": ["full_attention", "sliding_attention", "chunked"]}),
            "layer_types",
            "full_attention or sliding_attention",
        ),
        (
            "qwen2_window",
            json!({"layer_types": [1, 2, 3]}),
            "layer_types",
            "a list of strings",
        ),
        (
            "qwen2_window",
            json!({"layer_types": "sliding_attention"}),
            "layer_types",
            "a list of strings",
        ),
    ] {
        let error = config_error(fixture, changes.clone());
        let ConfigError::Invalid {
            key: named,
            expected: wanted,
            ..
        } = &error
        else {
            panic!("{changes}: {error:?}");
        };
        assert_eq!(named, key, "{changes}");
        assert!(wanted.contains(expected), "{changes}: {error}");
        assert!(error.to_string().contains(wanted), "{error}");
    }
}

#[test]
fn computations_that_are_not_implemented() {
    for (fixture, changes, key, remedy) in [
        (
            "gpt2_plain",
            json!({"activation_function": "gelu_newer"}),
            "activation_function",
            "gelu_new",
        ),
        (
            "llama_gqa",
            json!({"hidden_act": "xielu"}),
            "hidden_act",
            "silu",
        ),
        (
            "gpt2_plain",
            json!({"model_type": "bloom"}),
            "model_type",
            "gpt2, gpt_neo, gpt_neox, llama",
        ),
        (
            "gpt2_plain",
            json!({"model_type": null}),
            "model_type",
            "gpt2, gpt_neo, gpt_neox, llama",
        ),
        (
            "gpt2_plain",
            json!({"add_cross_attention": true}),
            "add_cross_attention",
            "not implemented",
        ),
        (
            "gpt2_plain",
            json!({"pruned_heads": {"0": [1]}}),
            "pruned_heads",
            "not implemented",
        ),
        (
            "llama_gqa",
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor",
            "not implemented",
        ),
        (
            "llama_gqa",
            json!({"rope_scaling": {"rope_type": "mrope"}}),
            "rope_scaling.rope_type",
            "default, linear, dynamic, llama3, yarn or longrope",
        ),
        (
            "llama_gqa",
            json!({"rope_parameters": {"type": "ntk"}}),
            "rope_parameters.rope_type",
            "default, linear, dynamic, llama3, yarn or longrope",
        ),
    ] {
        let error = config_error(fixture, changes.clone());
        let ConfigError::Unsupported { key: named, .. } = &error else {
            panic!("{changes}: {error:?}");
        };
        assert_eq!(named, key, "{changes}");
        assert!(error.to_string().contains(remedy), "{changes}: {error}");
    }
}

/// Unknown keys whose names suggest an effect on the computation are rejected, with their values.
#[test]
fn keys_that_are_unknown() {
    let changes =
        json!({"new_trick": 3, "attn_trick": [1, 2], "second_norm": true, "no_window": null});
    let error = config_error("gpt2_plain", changes);
    let keys = ["`attn_trick` = [1,2]", "`second_norm` = true"];
    let keys = keys.map(str::to_owned).to_vec();
    assert_eq!(error, ConfigError::Unknown { keys });

    let scaling = json!({"rope_type": "linear", "factor": 2.0, "warp": 1.0});
    let error = config_error("llama_gqa", json!({"rope_scaling": scaling}));
    let keys = vec!["`rope_scaling.warp` = 1.0".to_owned()];
    assert_eq!(error, ConfigError::Unknown { keys });
}

/// A message never recommends ignoring what may change the computation.
#[test]
fn no_message_says_to_ignore_a_key() {
    for (fixture, changes) in [
        ("gpt2_plain", json!({"attn_trick": 1})),
        (
            "llama_gqa",
            json!({"rope_parameters": {"rope_type": "new"}}),
        ),
        ("llama_gqa", json!({"quantization_config": {"bits": 4}})),
        ("qwen2_plain", json!({"use_mrope": true})),
    ] {
        let error = config_error(fixture, changes).to_string();
        assert!(!error.contains("ignore"), "{error}");
    }
}

/// The logits of a fixture after these changes of its configuration, and the notes.
fn changed(fixture: &str, changes: Value) -> (Vec<f32>, Vec<String>) {
    let scratch = Scratch::copy(fixture);
    scratch.set_config(changes);
    let loaded = load::<Flex>(scratch.path(), &LoadOptions::default(), &Default::default());
    let notes = loaded.notes.iter().map(ToString::to_string).collect();
    (super::logits(&loaded.model, &Default::default()), notes)
}

/// Keys that have no effect: the model is the same, and a note says so where it may surprise.
#[test]
fn keys_without_effect() {
    for (fixture, changes, noted) in [
        (
            "gpt2_plain",
            json!({"_num_labels": 1, "n_ctx": 7, "unk_token_id": 0}),
            &[][..],
        ),
        (
            "gpt2_plain",
            json!({"hidden_dropout": 0.5, "classifier_dropout": 0.1}),
            &[],
        ),
        (
            "gpt2_plain",
            json!({"tuned_on": "a corpus"}),
            &["`tuned_on` = \"a corpus\""],
        ),
        (
            "qwen2_plain",
            json!({"use_mrope": false, "attention_bias": false}),
            &[],
        ),
        (
            "llama_gqa",
            json!({"rope_interleaved": false, "is_llama_config": true}),
            &[],
        ),
        (
            "llama_gqa",
            json!({"layer_types": ["full_attention", "full_attention"]}),
            &[],
        ),
        (
            "llama_rope_linear",
            json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "low_freq_factor": 1.0}}),
            &["`rope_scaling.low_freq_factor` has no effect"],
        ),
        (
            "llama_rope_yarn",
            json!({"rope_scaling": {
                "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8,
                "finetuned": true,
            }}),
            &[],
        ),
    ] {
        let (expected, none) = changed(fixture, json!({}));
        assert!(none.is_empty(), "{none:?}");
        let (found, notes) = changed(fixture, changes.clone());
        assert_eq!(found, expected, "{changes}");
        assert_eq!(notes.len(), noted.len(), "{changes}: {notes:?}");
        for (note, text) in notes.iter().zip(noted) {
            assert!(note.contains(text), "{note}");
        }
    }
}

/// The same rotary embedding in the format of every release.
#[test]
fn rotary_embeddings_by_any_name() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    });
    let with_theta = |theta: f64| {
        let mut all = scaling.clone();
        all["rope_theta"] = theta.into();
        all
    };
    let (expected, _) = changed("llama_rope_llama3", json!({}));
    let none = json!({"rope_theta": null, "rope_scaling": null});
    let merged = |changes: Value| {
        let mut all = none.clone();
        for (key, value) in changes.as_object().expect("an object") {
            all[key] = value.clone();
        }
        all
    };
    for (changes, notes) in [
        (merged(json!({"rope_parameters": with_theta(100.0)})), 0),
        (
            merged(json!({"rope_parameters": {"full_attention": with_theta(100.0)}})),
            0,
        ),
        (
            merged(json!({"rope_parameters": {
                "full_attention": with_theta(100.0), "sliding_attention": with_theta(100.0),
            }})),
            0,
        ),
        (
            merged(json!({"rope_parameters": scaling, "rope_theta": 100.0})),
            0,
        ),
        // The inner one decides.
        (
            merged(json!({"rope_parameters": with_theta(100.0), "rope_theta": 7.0})),
            1,
        ),
        (json!({"rope_parameters": with_theta(100.0)}), 0),
    ] {
        let (found, noted) = changed("llama_rope_llama3", changes.clone());
        assert_eq!(found, expected, "{changes}");
        assert_eq!(noted.len(), notes, "{changes}: {noted:?}");
    }
    for (changes, key) in [
        (json!({"rope_parameters": with_theta(7.0)}), "rope_theta"),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
            "rope_scaling",
        ),
    ] {
        let error = config_error("llama_rope_llama3", changes.clone());
        let ConfigError::Invalid { key: named, .. } = &error else {
            panic!("{changes}: {error}");
        };
        assert_eq!(named, key);
    }
}

/// Equal bounds in LLaMA 3's scaling leave nothing to interpolate.
#[test]
fn frequency_factors_that_are_equal() {
    for (low, high) in [(2.0, 2.0), (4.0, 1.0)] {
        let scaling = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": 32,
        });
        let (logits, _) = changed("llama_rope_llama3", json!({"rope_scaling": scaling}));
        assert!(logits.iter().all(|logit| logit.is_finite()), "{low} {high}");
    }
}

#[test]
fn scalings_without_their_numbers() {
    for kind in ["linear", "dynamic", "llama3", "yarn"] {
        let error = config_error("llama_gqa", json!({"rope_scaling": {"rope_type": kind}}));
        let key = "rope_scaling.factor".to_owned();
        assert_eq!(error, ConfigError::Missing { key }, "{kind}");
    }
}

#[test]
fn a_configuration_that_is_no_object() {
    let deep = "[".repeat(100_000);
    for text in [
        "",
        "{",
        "null",
        "[]",
        "3",
        "{\"n_embd\": }",
        "{} {}",
        deep.as_str(),
    ] {
        let scratch = Scratch::empty();
        scratch.write("config.json", text);
        assert_refused!(
            scratch,
            LoadError::Config {
                cause: ConfigError::NotAnObject { .. },
                ..
            },
            "not a JSON object",
        );
    }
}

#[test]
fn a_configuration_that_cannot_be_read() {
    let scratch = Scratch::empty();
    assert_refused!(
        scratch,
        LoadError::NoConfig { .. },
        "no config.json; expected a folder"
    );
    scratch.write("config.json", b"{\"model_type\": \"\xff\"}");
    assert_refused!(scratch, LoadError::Io { .. }, "config.json");
    scratch.remove("config.json");
    std::fs::create_dir(scratch.file("config.json")).expect("a folder");
    assert_refused!(scratch, LoadError::Io { .. }, "config.json");
}

#[test]
fn a_source_that_does_not_exist() {
    let load = |source: &str| {
        Decoder::<Flex>::from_pretrained(source, &LoadOptions::default(), &Default::default())
            .expect_err(source)
    };
    for source in ["no/such/folder", "./nothing", ""] {
        let error = load(source);
        assert!(matches!(error, LoadError::NoSuchModel { .. }), "{error:?}");
        let message = message(&error);
        assert!(message.contains(&format!("`{source}`")), "{message}");
        assert!(
            message.contains("expected a folder with config.json"),
            "{message}"
        );
    }
    let error = load("bundled:nothing");
    assert!(
        matches!(error, LoadError::UnknownBundled { .. }),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .contains("`nothing`; expected `capitals`, `induction` or `price-tagging`"),
        "{error}"
    );
}

#[test]
fn a_tokenizer_that_is_broken() {
    let scratch = Scratch::copy("gpt2_plain");
    let bpe = std::fs::read_to_string(fixtures().join("tokenizers/bpe.json")).expect("the fixture");
    let cut = &bpe[..bpe.len() / 2];
    let lost = bpe.replace("\"ĠSpain\":277", "\"lost\":277");
    for text in ["", "{}", "null", cut, &lost] {
        scratch.write("tokenizer.json", text);
        assert_refused!(
            scratch,
            LoadError::Tokenizer { .. },
            "tokenizer.json: cannot be used: tokenizer:"
        );
    }
    scratch.write("tokenizer.json", b"\xff");
    assert_refused!(scratch, LoadError::Io { .. }, "tokenizer.json");
}

/// Numbers in `config.json` are read to the last bit, so that a saved configuration is the same.
#[test]
fn numbers_are_read_exactly() {
    for number in (1..100_u32).map(|n| 1e-5 * f64::from(n).sqrt()) {
        let scratch = Scratch::copy("llama_plain");
        scratch.set_config(json!({"rms_norm_eps": number, "rope_theta": 1e9 * number}));
        let loaded = load::<Flex>(scratch.path(), &LoadOptions::default(), &Default::default());
        let Positions::Rotary { global, .. } = loaded.config.positions else {
            panic!("a LLaMA has rotary embeddings");
        };
        assert_eq!(
            (loaded.config.norm_epsilon, global.theta),
            (number, 1e9 * number)
        );
    }
}

/// A caller can declare an unknown key harmless, but not one that is known to matter.
#[test]
fn keys_that_the_caller_vouches_for() {
    let scratch = Scratch::copy("gpt2_plain");
    scratch.set_config(json!({"my_scale": 1, "my_norm": true}));
    let mut options = LoadOptions::default().with_ignored_config_keys(["my_scale"]);
    let result = Decoder::<Flex>::from_pretrained(scratch.path(), &options, &Default::default());
    let error = message(&result.expect_err("one key is still unknown"));
    assert!(
        error.contains("my_norm") && !error.contains("my_scale"),
        "{error}"
    );
    options.ignored_config_keys.push("my_norm".into());
    let loaded = load::<Flex>(scratch.path(), &options, &Default::default());
    assert!(loaded.notes.is_empty());

    scratch.set_config(json!({"quantization_config": {"bits": 4}, "add_cross_attention": true}));
    options.ignored_config_keys = ["quantization_config", "add_cross_attention"]
        .map(str::to_owned)
        .to_vec();
    let result = Decoder::<Flex>::from_pretrained(scratch.path(), &options, &Default::default());
    let error = message(&result.expect_err("it is known to matter"));
    assert!(error.contains("is not supported"), "{error}");
}
