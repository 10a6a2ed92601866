//! Weights that must be rejected, and what else checkpoints may contain.

use burn::backend::Flex;
use burn::tensor::DType;
use burn_align_models::pretrained::{CheckpointError, LoadError, LoadNote};
use burn_align_models::{AlignableTransformer, LoadOptions, ModelInput};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::scratch::{RawTensor, Scratch};
use crate::support::checkpoints;

use super::load;

const FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A safetensors file with this header.
fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Checks that `model.safetensors` with this content is called unreadable.
fn assert_unreadable(scratch: &Scratch, content: &[u8]) {
    scratch.write(FILE, content);
    assert_refused!(
        scratch,
        LoadError::Checkpoint(CheckpointError::Unreadable { .. }),
        "model.safetensors: not a readable safetensors file",
    );
}

#[test]
fn truncated_files() {
    let scratch = Scratch::copy("gpt2_plain");
    let whole = std::fs::read(scratch.file(FILE)).expect("the file");
    let header = u64::from_le_bytes(*whole.first_chunk().expect("8 bytes")) as usize;
    let data = 8 + header;
    for length in [
        0,
        1,
        4,
        8,
        9,
        8 + header / 2,
        data - 1,
        data,
        data + 1,
        whole.len() / 2,
        whole.len() - 1,
    ] {
        assert_unreadable(&scratch, &whole[..length]);
    }
    assert_unreadable(&scratch, &[whole.as_slice(), b"more"].concat());
}

#[test]
fn headers_longer_than_the_file() {
    let scratch = Scratch::copy("gpt2_plain");
    for length in [
        u64::MAX,
        u64::MAX - 7,
        1 << 63,
        1 << 40,
        100_000_001,
        99_000_000,
        5,
    ] {
        let content = [&length.to_le_bytes()[..], b"{}"].concat();
        assert_unreadable(&scratch, &content);
    }
}

#[test]
fn headers_that_are_no_json() {
    let scratch = Scratch::copy("gpt2_plain");
    let deep = "{\"a\":".repeat(100_000);
    let headers: [&[u8]; 9] = [
        b"",
        b"null",
        b"[]",
        b"{",
        b"hello",
        b"\xff\xfe",
        b"{\"t\": 1}",
        b"{} {}",
        deep.as_bytes(),
    ];
    for header in headers {
        assert_unreadable(&scratch, &with_header(header, &[]));
    }
}

#[test]
fn tensors_that_are_not_where_the_header_says() {
    let scratch = Scratch::copy("gpt2_plain");
    let tensor = |dtype: &str, shape: Value, offsets: Value| {
        json!({
            "t": {"dtype": dtype, "shape": shape, "data_offsets": offsets},
        })
    };
    for header in [
        tensor("F32", json!([2]), json!([0, 12])),
        tensor("F32", json!([4]), json!([0, 16])),
        tensor("F32", json!([2]), json!([4, 12])),
        tensor("F32", json!([2]), json!([8, 0])),
        tensor("F32", json!([2]), json!([0, u64::MAX])),
        tensor("F32", json!([2]), json!([u64::MAX, u64::MAX])),
        tensor("F32", json!([2]), json!([-8, 0])),
        tensor("F32", json!([2]), json!([0])),
        tensor("F32", json!([3]), json!([0, 8])),
        tensor("F32", json!([-2]), json!([0, 8])),
        tensor("F32", json!([1.5]), json!([0, 8])),
        tensor("F32", json!([1_u64 << 62]), json!([0, 8])),
        tensor("F32", json!([1_u64 << 33, 1_u64 << 33]), json!([0, 8])),
        tensor("F32", json!([1_u64 << 32, 1_u64 << 32, 0]), json!([0, 0])),
        tensor("F33", json!([2]), json!([0, 8])),
        json!({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
               "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
        json!({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
               "b": {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}}),
    ] {
        assert_unreadable(
            &scratch,
            &with_header(header.to_string().as_bytes(), &[0; 8]),
        );
    }
}

/// In a debug build, `safetensors` 0.7 itself panics on the sum.
#[cfg(not(debug_assertions))]
#[test]
fn offsets_that_add_up_past_the_address_space() {
    let scratch = Scratch::copy("gpt2_plain");
    let size = (1_u64 << 61) - 1;
    let mut tensors: serde_json::Map<String, Value> = (0..8)
        .map(|n| {
            let offsets = [n * size, (n + 1) * size];
            let tensor = json!({"dtype": "U8", "shape": [size], "data_offsets": offsets});
            (format!("t{n}"), tensor)
        })
        .collect();
    let last = [8 * size, u64::MAX];
    let rest = json!({"dtype": "U8", "shape": [last[1] - last[0]], "data_offsets": last});
    tensors.insert("rest".to_owned(), rest);
    let header = Value::from(tensors).to_string();
    assert_unreadable(&scratch, &with_header(header.as_bytes(), &[0; 8]));
}

#[test]
fn a_missing_tensor() {
    let scratch = Scratch::copy("gpt2_plain");
    scratch.edit_tensors(|tensors| {
        tensors
            .remove("transformer.h.1.ln_2.bias")
            .expect("the tensor");
    });
    assert_refused!(
        scratch,
        LoadError::Checkpoint(CheckpointError::MissingTensors { .. }),
        "the checkpoint lacks transformer.h.1.ln_2.bias",
    );
    let scratch = Scratch::copy("gpt2_plain");
    scratch.set_config(json!({"tie_word_embeddings": false}));
    assert_refused!(
        scratch,
        LoadError::Checkpoint(CheckpointError::MissingTensors { .. }),
        "the checkpoint lacks lm_head.weight",
    );
}

#[test]
fn more_layers_than_the_checkpoint_has() {
    let scratch = Scratch::copy("gpt2_plain");
    scratch.set_config(json!({"n_layer": 4096}));
    let missing = 12 * 4094;
    assert_refused!(
        scratch,
        LoadError::Checkpoint(CheckpointError::MissingTensors { .. }),
        "transformer.h.10.attn.c_attn.bias",
        &format!("and {} more", missing - 5),
    );
    let scratch = Scratch::copy("gpt2_plain");
    scratch.set_config(json!({"n_layer": 1}));
    assert_refused!(
        scratch,
        LoadError::Checkpoint(CheckpointError::UnusedTensors { .. }),
        "tensors that the model does not use: transformer.h.1.attn.c_attn.bias",
        "and 7 more",
    );
}

#[test]
fn an_unused_tensor() {
    for name in [
        "scores.weight",
        "transformer.h.0.attn.rotary.weight",
        "wte2.weight",
        "bias",
    ] {
        let scratch = Scratch::copy("gpt2_plain");
        scratch.edit_tensors(|tensors| {
            tensors.insert(name.to_owned(), RawTensor::zeros(&[41, 16]));
        });
        assert_refused!(
            scratch,
            LoadError::Checkpoint(CheckpointError::UnusedTensors { .. }),
            "the checkpoint has tensors that the model does not use",
            name,
        );
    }
}

#[test]
fn a_tensor_of_another_shape() {
    let transposed: &[usize] = &[48, 16];
    for shape in [transposed, &[16, 47], &[16, 48, 1], &[768], &[0, 48], &[]] {
        let scratch = Scratch::copy("gpt2_plain");
        let name = "transformer.h.0.attn.c_attn.weight";
        scratch.edit_tensors(|tensors| {
            tensors.insert(name.to_owned(), RawTensor::zeros(shape));
        });
        assert_refused!(
            scratch,
            LoadError::Checkpoint(CheckpointError::WrongShape { .. }),
            &format!("`{name}`: expected shape [16, 48] from config.json, found {shape:?}"),
        );
    }
}

/// Nothing must be allocated by these sizes before they are compared with the file.
#[test]
fn a_configuration_of_other_sizes() {
    const MAX: usize = 1 << 24;
    for (fixture, changes, tensor) in [
        (
            "gpt2_plain",
            json!({"vocab_size": MAX}),
            "transformer.wte.weight",
        ),
        (
            "gpt2_plain",
            json!({"n_positions": MAX}),
            "transformer.wpe.weight",
        ),
        (
            "gpt2_plain",
            json!({"n_inner": MAX}),
            "transformer.h.0.mlp.c_proj.weight",
        ),
        (
            "gpt2_plain",
            json!({"n_embd": MAX, "n_head": MAX, "vocab_size": MAX}),
            "transformer.wte.weight",
        ),
        (
            "llama_plain",
            json!({"intermediate_size": MAX}),
            "model.layers.0.mlp.down_proj.weight",
        ),
        (
            "llama_plain",
            json!({"head_dim": MAX, "num_attention_heads": MAX}),
            "model.layers.0.self_attn.k_proj.weight",
        ),
        (
            "llama_plain",
            json!({
                "hidden_size": MAX, "head_dim": MAX, "num_attention_heads": MAX,
                "num_key_value_heads": MAX, "vocab_size": MAX,
            }),
            "model.embed_tokens.weight",
        ),
    ] {
        let scratch = Scratch::copy(fixture);
        scratch.set_config(changes);
        assert_refused!(
            scratch,
            LoadError::Checkpoint(CheckpointError::WrongShape { .. }),
            tensor,
            "from config.json",
        );
    }
}

#[test]
fn a_tensor_of_integers() {
    for (dtype, size, found) in [
        (Dtype::I64, 8, "i64"),
        (Dtype::U8, 1, "u8"),
        (Dtype::BOOL, 1, "bool"),
    ] {
        let scratch = Scratch::copy("gpt2_plain");
        let name = "transformer.ln_f.weight";
        scratch.edit_tensors(|tensors| {
            let integers = RawTensor {
                dtype,
                shape: vec![16],
                data: vec![1; 16 * size],
            };
            tensors.insert(name.to_owned(), integers);
        });
        assert_refused!(
            scratch,
            LoadError::Checkpoint(CheckpointError::WrongDType { .. }),
            &format!("`{name}`: expected f64, f32, f16 or bf16, found {found}"),
        );
    }
}

#[test]
fn no_weights() {
    let scratch = Scratch::copy("gpt2_plain");
    scratch.remove(FILE);
    scratch.write("pytorch_model.bin", "pickled");
    assert_refused!(
        scratch,
        LoadError::Checkpoint(CheckpointError::NoWeights { .. }),
        "neither model.safetensors nor model.safetensors.index.json",
        "save_pretrained(dir, safe_serialization=True)",
    );
    std::fs::create_dir(scratch.file(FILE)).expect("a folder");
    assert_refused!(
        scratch,
        LoadError::Checkpoint(CheckpointError::NoWeights { .. }),
        "neither",
    );
}

#[test]
fn a_missing_shard() {
    let scratch = Scratch::copy("gpt2_sharded");
    scratch.remove("model-00003-of-00004.safetensors");
    assert_refused!(
        scratch,
        LoadError::Checkpoint(CheckpointError::MissingShard { .. }),
        "model-00003-of-00004.safetensors: named in model.safetensors.index.json, but missing",
    );
}

#[test]
fn a_broken_shard() {
    let scratch = Scratch::copy("gpt2_sharded");
    scratch.write("model-00003-of-00004.safetensors", "");
    assert_refused!(
        scratch,
        LoadError::Checkpoint(CheckpointError::Unreadable { .. }),
        "model-00003-of-00004.safetensors",
    );
}

#[test]
fn an_index_that_leaves_the_folder() {
    let outside = Scratch::copy("gpt2_plain");
    let outside = outside.file(FILE);
    let outside = outside.to_str().expect("a path in UTF-8");
    for name in [
        "../x",
        "..",
        ".",
        "",
        "/etc/passwd",
        "a/b.safetensors",
        "./x",
        outside,
    ] {
        let scratch = Scratch::copy("gpt2_sharded");
        scratch.write(
            INDEX,
            json!({"weight_map": {"wte.weight": name}}).to_string(),
        );
        assert_refused!(
            scratch,
            LoadError::Checkpoint(CheckpointError::BadIndex { .. }),
            INDEX,
            &format!("expected a file name, found `{name}`"),
        );
    }
}

#[test]
fn an_index_that_is_no_index() {
    for text in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"weight_map": []}"#,
        r#"{"weight_map": {"a": 1}}"#,
    ] {
        let scratch = Scratch::copy("gpt2_sharded");
        scratch.write(INDEX, text);
        assert_refused!(
            scratch,
            LoadError::Checkpoint(CheckpointError::BadIndex { .. }),
            INDEX,
            "not an index",
        );
    }
}

#[test]
fn an_index_of_nothing() {
    let scratch = Scratch::copy("gpt2_sharded");
    scratch.write(INDEX, r#"{"weight_map": {}}"#);
    assert_refused!(
        scratch,
        LoadError::Checkpoint(CheckpointError::MissingTensors { .. }),
        "the checkpoint lacks",
    );
}

/// `burn-store` moves the module out of its place while it loads, so a panic of the backend (here
/// because of a dtype, more often of memory) must not drop the module twice.
#[test]
fn a_panic_of_the_backend_only_unwinds() {
    let options = LoadOptions::default().with_dtype(DType::I32);
    let load = || load::<Flex>(&checkpoints()["gpt2_plain"], &options, &Default::default());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load));
    let message = panic.expect_err("integers").downcast::<String>();
    assert_eq!(
        *message.expect("a message"),
        "Expected float dtype, got I32"
    );
}

/// Copies a tensor, changed, from its shard into another one, as a merge may leave it.
fn leave_copy(scratch: &Scratch) -> (String, String) {
    let index: Value =
        serde_json::from_str(&std::fs::read_to_string(scratch.file(INDEX)).expect("it"))
            .expect("JSON");
    let map = index["weight_map"].as_object().expect("an object");
    let name = "transformer.h.0.mlp.c_fc.weight";
    let home = map[name].as_str().expect("a file").to_owned();
    let other = map
        .values()
        .filter_map(Value::as_str)
        .find(|file| *file != home);
    let other = other.expect("another shard").to_owned();
    let mut tensor = crate::scratch::raw_tensors(&scratch.file(&home))
        .remove(name)
        .expect("it is there");
    tensor.data.iter_mut().for_each(|byte| *byte ^= 0x11);
    scratch.edit_file(&other, |tensors| {
        tensors.insert(name.to_owned(), tensor);
    });
    (name.to_owned(), other)
}

/// The index decides which file a tensor is read from.
#[test]
fn a_superseded_copy_in_another_shard() {
    let scratch = Scratch::copy("gpt2_sharded");
    let (name, other) = leave_copy(&scratch);
    let expected = load::<Flex>(
        &checkpoints()["gpt2_sharded"],
        &LoadOptions::default(),
        &Default::default(),
    );
    let found = load::<Flex>(scratch.path(), &LoadOptions::default(), &Default::default());
    let device = Default::default();
    assert_eq!(
        super::logits(&found.model, &device),
        super::logits(&expected.model, &device)
    );
    let tensors = vec![format!("{name} ({other})")];
    assert_eq!(found.notes, [LoadNote::NotInIndex { tensors }]);
}

/// Without an index, all numbered shards are read, and no tensor may be in two of them.
#[test]
fn shards_without_an_index() {
    let scratch = Scratch::copy("gpt2_sharded");
    scratch.remove(INDEX);
    let expected = load::<Flex>(
        &checkpoints()["gpt2_sharded"],
        &LoadOptions::default(),
        &Default::default(),
    );
    let found = load::<Flex>(scratch.path(), &LoadOptions::default(), &Default::default());
    let device = Default::default();
    assert_eq!(
        super::logits(&found.model, &device),
        super::logits(&expected.model, &device)
    );

    let scratch = Scratch::copy("gpt2_sharded");
    leave_copy(&scratch);
    scratch.remove(INDEX);
    assert_refused!(
        scratch,
        LoadError::Checkpoint(CheckpointError::StoredTwice { .. }),
        "transformer.h.0.mlp.c_fc.weight",
        "remove one, or add the index",
    );
}

/// A name with and one without the prefix are the same parameter.
#[test]
fn a_parameter_under_two_names() {
    let scratch = Scratch::copy("gpt2_plain");
    scratch.edit_tensors(|tensors| {
        let shape = tensors["transformer.ln_f.bias"].shape.clone();
        tensors.insert("ln_f.bias".to_owned(), RawTensor::zeros(&shape));
    });
    assert_refused!(
        scratch,
        LoadError::Checkpoint(CheckpointError::SameParameter { .. }),
        "`ln_f.bias` and `transformer.ln_f.bias` are for the same parameter",
    );
}

/// A stored head is what the author intended, whatever the configuration says about tying.
#[test]
fn a_head_that_differs_from_the_embedding() {
    for (tied, embedding) in [
        ("gpt2_plain", "transformer.wte.weight"),
        ("llama_tied", "model.embed_tokens.weight"),
        ("qwen2_tied", "model.embed_tokens.weight"),
        ("v5_llama_tied", "model.embed_tokens.weight"),
    ] {
        let device = Default::default();
        let plain = load::<Flex>(&checkpoints()[tied], &LoadOptions::default(), &device);
        let of_plain = super::logits(&plain.model, &device);

        // The same numbers, in whatever dtype: tied all the same.
        let scratch = Scratch::copy(tied);
        scratch.edit_tensors(|tensors| {
            let head = widened(&tensors[embedding]);
            tensors.insert("lm_head.weight".to_owned(), head);
        });
        let same = load::<Flex>(scratch.path(), &LoadOptions::default(), &device);
        assert!(same.notes.is_empty(), "{tied}: {:?}", same.notes);
        assert_eq!(
            (super::logits(&same.model, &device), &same.config),
            (of_plain.clone(), &plain.config)
        );

        // Twice the numbers: twice the logits.
        scratch.edit_tensors(|tensors| {
            let mut head = widened(&tensors[embedding]);
            for bytes in head.data.as_chunks_mut::<8>().0 {
                *bytes = (2.0 * f64::from_le_bytes(*bytes)).to_le_bytes();
            }
            tensors.insert("lm_head.weight".to_owned(), head);
        });
        let own = load::<Flex>(scratch.path(), &LoadOptions::default(), &device);
        let tensor = "lm_head.weight".to_owned();
        assert_eq!(own.notes, [LoadNote::HeadNotTied { tensor }], "{tied}");
        for (found, before) in super::logits(&own.model, &device).iter().zip(&of_plain) {
            assert!(
                (found - 2.0 * before).abs() < 1e-4,
                "{tied}: {found}, {before}"
            );
        }
        // It stays so when it is saved.
        let saved = Scratch::empty();
        super::save(&own, saved.path());
        let again = load::<Flex>(saved.path(), &LoadOptions::default(), &device);
        assert!(again.notes.is_empty());
        assert_eq!(
            super::logits(&again.model, &device),
            super::logits(&own.model, &device)
        );
    }
}

/// An f32 tensor in f64.
fn widened(tensor: &RawTensor) -> RawTensor {
    let numbers = tensor.data.as_chunks::<4>().0.iter();
    let wide = numbers.flat_map(|bytes| f64::from(f32::from_le_bytes(*bytes)).to_le_bytes());
    RawTensor {
        dtype: Dtype::F64,
        shape: tensor.shape.clone(),
        data: wide.collect(),
    }
}

/// Masks and tables of old exports, in any dtype, and heads for other tasks change nothing.
#[test]
fn buffers_and_heads_that_are_passed_over() {
    let device = Default::default();
    for (fixture, buffers) in [
        (
            "gpt2_plain",
            [
                ("transformer.h.0.attn.bias", Dtype::BOOL, 1),
                ("transformer.h.1.attn.bias", Dtype::U8, 1),
                ("transformer.h.0.attn.masked_bias", Dtype::F64, 8),
                ("h.1.attn.masked_bias", Dtype::I64, 8),
            ],
        ),
        (
            "llama_plain",
            [
                (
                    "model.layers.0.self_attn.rotary_emb.inv_freq",
                    Dtype::F64,
                    8,
                ),
                (
                    "model.layers.1.self_attn.rotary_emb.inv_freq",
                    Dtype::I64,
                    8,
                ),
                ("model.rotary_emb.inv_freq", Dtype::BF16, 2),
                (
                    "model.layers.1.self_attn.rotary_emb.cos_cached",
                    Dtype::F16,
                    2,
                ),
            ],
        ),
    ] {
        let plain = load::<Flex>(&checkpoints()[fixture], &LoadOptions::default(), &device);
        let scratch = Scratch::copy(fixture);
        scratch.edit_tensors(|tensors| {
            for (name, dtype, size) in buffers {
                let (shape, data) = (vec![2, 2], vec![0; 4 * size]);
                tensors.insert(name.to_owned(), RawTensor { dtype, shape, data });
            }
            tensors.insert(
                "v_head.summary.weight".to_owned(),
                RawTensor::zeros(&[1, 16]),
            );
            tensors.insert("score.weight".to_owned(), RawTensor::zeros(&[2, 16]));
        });
        let found = load::<Flex>(scratch.path(), &LoadOptions::default(), &device);
        assert_eq!(
            super::logits(&found.model, &device),
            super::logits(&plain.model, &device)
        );
        let tensors = ["score.weight", "v_head.summary.weight"].map(str::to_owned);
        let tensors = tensors.to_vec();
        assert_eq!(found.notes, [LoadNote::OtherHeads { tensors }]);
    }
}

/// Weights in f64 are rounded.
#[test]
fn weights_in_f64() {
    let device = Default::default();
    let plain = load::<Flex>(
        &checkpoints()["llama_plain"],
        &LoadOptions::default(),
        &device,
    );
    let scratch = Scratch::copy("llama_plain");
    scratch.edit_tensors(|tensors| {
        for tensor in tensors.values_mut() {
            *tensor = widened(tensor);
        }
    });
    let found = load::<Flex>(scratch.path(), &LoadOptions::default(), &device);
    assert_eq!(
        super::logits(&found.model, &device),
        super::logits(&plain.model, &device)
    );
}

/// A rotary model has no hard limit: longer prompts have angles too.
#[test]
fn more_positions_than_a_rotary_model_was_made_for() {
    let scratch = Scratch::copy("llama_rope_yarn");
    scratch.set_config(json!({"max_position_embeddings": 8}));
    let found = load::<Flex>(scratch.path(), &LoadOptions::default(), &Default::default());
    let expected = load::<Flex>(
        &checkpoints()["llama_rope_yarn"],
        &LoadOptions::default(),
        &Default::default(),
    );
    let ids: Vec<u32> = (1..21).collect();
    let batch = burn_align_models::TokenBatch::new(vec![ids]).expect("a batch");
    batch.check(found.model.dims()).expect("it can be read");
    let of = |model: &super::Loaded<Flex>| {
        crate::support::values(
            model
                .model
                .forward(ModelInput::Tokens(batch.to_tensor(&Default::default()))),
        )
    };
    assert_eq!(of(&found), of(&expected));
}
