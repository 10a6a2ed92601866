//! Configurations are those that `transformers` writes, for files as llama.cpp's converter writes
//! them: see `tests/fixtures/make_gguf_models.py`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::pretrained::gguf::{MetadataArray, MetadataValue};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf/models")
}

fn file(name: &str) -> Gguf {
    Gguf::open(folder().join(format!("{name}.gguf"))).expect("a fixture")
}

fn config(gguf: &Gguf) -> Result<Value, GgufError> {
    Architecture::of(gguf)?.config(gguf)
}

/// The configuration of a fixture with other values for some keys; `None` removes a key.
fn config_with(name: &str, changes: &[(&str, Option<MetadataValue>)]) -> Result<Value, GgufError> {
    let changed = changes.iter().fold(file(name), |file, (key, value)| {
        file.with(key, value.clone())
    });
    config(&changed)
}

fn target(name: &str, tensor: &str) -> Option<Role> {
    let file = file(name);
    let architecture = Architecture::of(&file).expect("a known one");
    architecture.tensor(&file, tensor).expect("a role")
}

/// Keys of `transformers` that no forward pass reads, or that repeat another one.
const LEFT_OUT: [&str; 12] = [
    "_sliding_window_pattern",
    "attention_dropout",
    "classifier_dropout",
    "embd_pdrop",
    "hidden_dropout",
    "initializer_range",
    "max_window_layers",
    "resid_pdrop",
    "use_bidirectional_attention",
    "use_cache",
    // Of layers without windows.
    "layer_types",
    // With LongRoPE alone.
    "original_max_position_embeddings",
];

/// Where two configurations differ; a missing key is the same as `null`.
fn differences(at: &str, found: &Value, expected: &Value) -> Vec<String> {
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let of = |key: &String| {
                let [a, b] = [a, b].map(|object| object.get(key).unwrap_or(&Value::Null));
                differences(&format!("{at}/{key}"), a, b)
            };
            keys.into_iter().flat_map(of).collect()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b);
            pairs.flat_map(|(a, b)| differences(at, a, b)).collect()
        }
        (Value::Number(a), Value::Number(b)) => {
            let [a, b] = [a, b].map(|number| number.as_f64().expect("a number"));
            let same = (a - b).abs() <= 1e-6 * b.abs();
            (!same)
                .then(|| format!("{at}: {a} {b}"))
                .into_iter()
                .collect()
        }
        (a, b) => (a != b)
            .then(|| format!("{at}: {a} {b}"))
            .into_iter()
            .collect(),
    }
}

#[test]
fn configurations_are_those_of_transformers() {
    let files = folder().read_dir().expect("the fixtures");
    let files = files.map(|entry| entry.expect("an entry").path());
    let mut kinds = BTreeSet::new();
    for expected in files.filter(|path| path.extension().is_some_and(|it| it == "json")) {
        let gguf = Gguf::open(expected.with_extension("gguf")).expect("a fixture");
        let text = fs::read_to_string(&expected).expect("a fixture");
        let mut expected: Value = serde_json::from_str(&text).expect("JSON");
        let found = config(&gguf).expect("a configuration");
        let kind = expected["model_type"].as_str().expect("text").to_owned();
        let left_out = expected.as_object_mut().expect("an object");
        for key in LEFT_OUT {
            if found.get(key).is_none() {
                left_out.remove(key);
            }
        }
        if kind == "gpt_neox" {
            for (key, same) in [
                ("partial_rotary_factor", "rotary_pct"),
                ("rope_theta", "rotary_emb_base"),
            ] {
                assert_eq!(left_out.remove(key), left_out.get(same).cloned());
            }
        }
        assert_eq!(differences("", &found, &expected), [""; 0], "{kind}");
        kinds.insert(kind);
    }
    let all = [
        "gemma2",
        "gemma3_text",
        "gpt_neox",
        "olmo2",
        "phi",
        "phi3",
        "qwen3",
    ];
    assert_eq!(kinds, all.map(str::to_owned).into());
}

#[test]
fn gemma_divides_scores_by_the_width_in_its_27b() {
    for (name, key, layers) in [
        ("gemma2_q8_0", "gemma2.block_count", 46),
        ("gemma3_q8_0", "gemma3.block_count", 62),
    ] {
        let scalar = |layers| {
            let config = config_with(name, &[(key, Some(MetadataValue::U32(layers)))]);
            config.expect("a configuration")["query_pre_attn_scalar"].clone()
        };
        assert_eq!(scalar(layers), 64 / 4);
        assert_eq!(scalar(layers - 1), 32);
    }
}

#[test]
fn gemma_has_windows_where_the_file_says() {
    const PATTERN: &str = "gemma3.attention.sliding_window_pattern";
    let windows = |changes: &[(&str, Option<MetadataValue>)]| {
        let config = config_with("gemma3_q8_0", changes).expect("a configuration");
        let types = config["layer_types"].as_array().expect("an array").iter();
        types
            .map(|it| *it == "sliding_attention")
            .collect::<Vec<_>>()
    };
    let (no, yes) = (false, true);
    let default = [yes, yes, yes, yes, yes, no, yes];
    assert_eq!(windows(&[]), default);
    let pattern = |period| windows(&[(PATTERN, Some(MetadataValue::U32(period)))]);
    assert_eq!(pattern(3), [yes, yes, no, yes, yes, no, yes]);
    assert_eq!(pattern(1), [no; 7]);
    assert_eq!(pattern(0), [yes; 7]);
    let of_layers = vec![no, yes, yes, no, no, no, yes];
    let array = MetadataArray::Bool(of_layers.clone());
    let found = windows(&[(PATTERN, Some(MetadataValue::Array(array)))]);
    assert_eq!(found, of_layers);
    let array = MetadataArray::I32(of_layers.iter().map(|it| (*it).into()).collect());
    let found = windows(&[(PATTERN, Some(MetadataValue::Array(array)))]);
    assert_eq!(found, of_layers);
    assert_eq!(
        windows(&[("gemma3.attention.sliding_window", None)]),
        [no; 7]
    );
}

#[test]
fn values_that_converters_leave_out_or_add() {
    let f32 = |value| Some(MetadataValue::F32(value));
    let gemma3 = config_with("gemma3_q8_0", &[("gemma3.rope.freq_base_swa", f32(500.0))]);
    let gemma3 = gemma3.expect("a configuration");
    assert_eq!(gemma3["rope_local_base_freq"], 500.0);
    assert_eq!(gemma3["rope_theta"], 500.0);
    let none = Some(MetadataValue::U32(0));
    let phi3 = config_with("phi3_q8_0", &[("phi3.attention.sliding_window", none)]);
    assert_eq!(
        phi3.expect("a configuration")["sliding_window"],
        Value::Null
    );
    // Without the key, llama.cpp does not scale the rotations.
    for own in [None, f32(1.0)] {
        let phi3 = config_with("phi3_long_q5_1", &[("phi3.rope.scaling.attn_factor", own)]);
        let scaling = &phi3.expect("a configuration")["rope_scaling"];
        assert_eq!(scaling["attention_factor"], 1.0);
    }
    let longrope = Some(MetadataValue::String("longrope".to_owned()));
    let named = config_with("phi3_long_q5_1", &[("phi3.rope.scaling.type", longrope)]);
    let named = named.expect("a configuration");
    assert_eq!(
        named,
        config(&file("phi3_long_q5_1")).expect("a configuration")
    );
    let rotated = [("phi2.rope.dimension_count", Some(MetadataValue::U32(14)))];
    let phi2 = config_with("phi2_q8_0", &rotated).expect("a configuration");
    assert_eq!(phi2["partial_rotary_factor"], 14.0 / 16.0);
}

#[test]
fn what_the_hugging_face_class_lacks_is_refused() {
    let u32 = MetadataValue::U32;
    let text = |text: &str| MetadataValue::String(text.to_owned());
    let two = MetadataValue::Array(MetadataArray::Bool(vec![true, false]));
    let cases = [
        (
            "olmo2_q8_0",
            "olmo2.attention.sliding_window",
            u32(4096),
            "OLMo 3",
        ),
        (
            "olmo2_q8_0",
            "olmo2.attention.key_length",
            u32(8),
            "16, the width",
        ),
        (
            "gpt_neox_f16",
            "gptneox.attention.head_count_kv",
            u32(2),
            "4, the number of heads",
        ),
        (
            "gpt_neox_f16",
            "gptneox.attention.head_count",
            u32(3),
            "a divisor of 64",
        ),
        (
            "phi2_q8_0",
            "phi2.rope.dimension_count",
            u32(7),
            "an even number of up to 16",
        ),
        (
            "phi2_q8_0",
            "phi2.rope.dimension_count",
            u32(18),
            "an even number of up to 16",
        ),
        (
            "qwen3_q8_0",
            "qwen3.rope.dimension_count",
            u32(16),
            "32, all features of a head",
        ),
        (
            "qwen3_q8_0",
            "qwen3.expert_count",
            u32(8),
            "mixtures of experts",
        ),
        (
            "qwen3_q8_0",
            "qwen3.attention.causal",
            MetadataValue::Bool(false),
            "encoders",
        ),
        (
            "qwen3_q8_0",
            "qwen3.attention.value_length",
            u32(16),
            "32, the length of keys",
        ),
        (
            "qwen3_q8_0",
            "qwen3.block_count",
            u32(4096),
            "at most 24, the number of tensors",
        ),
        (
            "gemma2_q8_0",
            "gemma2.attn_logit_softcapping",
            MetadataValue::F32(0.0),
            "above 0",
        ),
        (
            "gemma2_q8_0",
            "gemma2.rope.freq_base_swa",
            MetadataValue::F32(5.0),
            "the same base",
        ),
        (
            "gemma3_q8_0",
            "gemma3.attention.sliding_window_pattern",
            two,
            "7 entries",
        ),
        (
            "phi3_q8_0",
            "phi3.rope.scaling.attn_factor",
            MetadataValue::F32(1.5),
            "without YaRN",
        ),
        (
            "phi3_q8_0",
            "phi3.rope.scaling.type",
            text("longrope"),
            "rope_factors_short",
        ),
        (
            "phi3_long_q5_1",
            "phi3.rope.scaling.factor",
            MetadataValue::F32(2.0),
            "none beside",
        ),
    ];
    for (name, key, value, expected) in cases {
        let error = config_with(name, &[(key, Some(value))]).expect_err("a value to refuse");
        assert!(error.to_string().contains(expected), "{key}: {error}");
    }
    let error = config_with("gpt_neox_f16", &[("gptneox.use_parallel_residual", None)]);
    assert!(
        matches!(error, Err(GgufError::MissingKey { .. })),
        "{error:?}"
    );
}

#[test]
fn tensors_have_the_names_of_hugging_face() {
    let named = |name: &str| Some(Target::named(name).into());
    assert_eq!(
        target("phi3_q8_0", "blk.1.ffn_up.weight"),
        named("model.layers.1.mlp.gate_up_proj.weight")
    );
    assert_eq!(
        target("qwen3_q8_0", "blk.0.attn_q_norm.weight"),
        named("model.layers.0.self_attn.q_norm.weight")
    );
    assert_eq!(
        target("olmo2_q8_0", "blk.1.post_attention_norm.weight"),
        named("model.layers.1.post_attention_layernorm.weight")
    );
    let norm = Target::named("model.layers.3.pre_feedforward_layernorm.weight");
    assert_eq!(
        target("gemma3_q8_0", "blk.3.ffn_norm.weight"),
        Some(norm.with_offset(-1.0).into())
    );
    assert_eq!(
        target("gemma3_q8_0", "token_embd.weight"),
        named("model.embed_tokens.weight")
    );
    let fused = Target::named("gpt_neox.layers.1.attention.query_key_value.bias");
    assert_eq!(
        target("gpt_neox_f16", "blk.1.attn_qkv.bias"),
        Some(fused.with_rows(Rows::ByPart { heads: 4 }).into())
    );
    let part = |name: &str, start, end| {
        let rows = Rows::Range {
            start,
            end,
            all: 192,
        };
        Target::named(format!("model.layers.0.self_attn.{name}.weight")).with_rows(rows)
    };
    assert_eq!(
        target("phi2_fused_q4_0", "blk.0.attn_qkv.weight"),
        Some(Role::Tensors(vec![
            part("q_proj", 0, 64),
            part("k_proj", 64, 128),
            part("v_proj", 128, 192),
        ]))
    );
    assert_eq!(
        target("phi3_long_q5_1", "rope_factors_long.weight"),
        Some(Role::Configuration)
    );
    for unknown in [
        "cls.output.weight",
        "blk.0.attn_sinks.weight",
        "blk.0.ffn_gate.weight",
    ] {
        assert_eq!(target("phi3_q8_0", unknown), None, "{unknown}");
    }
}

#[test]
#[ignore = "needs the folder that BURN_ALIGN_REAL names"]
fn gemma_3_270m() {
    let folder = std::env::var_os("BURN_ALIGN_REAL").expect("a folder");
    let gguf = Gguf::open(Path::new(&folder).join("gemma-3-270m-q4_k_m.gguf")).expect("the model");
    let found = config(&gguf).expect("a configuration");
    let types: Vec<&str> = (0..18)
        .map(|layer| match layer {
            5 | 11 | 17 => "full_attention",
            _ => "sliding_attention",
        })
        .collect();
    let expected = serde_json::json!({
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "layer_types": types,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "attn_logit_softcapping": null,
        "final_logit_softcapping": null,
    });
    assert_eq!(differences("", &found, &expected), [""; 0]);
}

#[test]
fn paired_rows_are_put_in_halves() {
    // Two heads of four features: pairs (0, 1), (2, 3) of each head.
    let rows = Rows::Paired { heads: 2 };
    assert_eq!(rows.order(8), Some(vec![0, 2, 1, 3, 4, 6, 5, 7]));
    assert_eq!(Rows::AsTheyAre.order(8), None);
    assert_eq!(rows.expected(8), None);
    assert!(rows.expected(6).is_some());
    assert!(Rows::Paired { heads: usize::MAX }.expected(8).is_some());
}

#[test]
fn fused_rows_are_put_by_head() {
    // Two heads of two features: queries 0..4, keys 4..8, values 8..12.
    let rows = Rows::ByPart { heads: 2 };
    let order = vec![0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11];
    assert_eq!(rows.order(12), Some(order));
    assert_eq!(rows.expected(12), None);
    for wrong in [0, 8, 13] {
        assert!(rows.expected(wrong).is_some(), "{wrong}");
    }
}

#[test]
fn ranges_of_rows_are_cut_out() {
    let [start, end, all] = [4, 6, 8];
    let rows = Rows::Range { start, end, all };
    assert_eq!(rows.order(8), Some(vec![4, 5]));
    assert_eq!(rows.count(8), 2);
    assert_eq!(rows.expected(8), None);
    assert_eq!(rows.expected(9), Some("8 rows".to_owned()));
}

#[test]
fn names_come_apart() {
    assert_eq!(
        block_parts("blk.12.attn_q.weight"),
        Some((12, "attn_q", "weight"))
    );
    assert_eq!(block_parts("output.weight"), None);
    assert_eq!(module_and_kind("attn_q.bias"), Some(("attn_q", "bias")));
    assert_eq!(module_and_kind("attn_q.scale"), None);
}
