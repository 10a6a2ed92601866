//! SmolLM2 from its GGUF file, compared with PyTorch hooks on its dequantised weights: see
//! `tests/real/make_expected.py`.

use std::fs;
use std::sync::{Mutex, OnceLock, PoisonError};

use burn::backend::Flex;
use burn::tensor::{Int, Tensor};
use burn_align::engine::{LogitPositions, Plan, RunOptions, Units};
use burn_align::generate::{GenerateOptions, GeneratedWorld, generate};
use burn_align::interventions::VanillaIntervention;
use burn_align::methods::{
    Grid, Mlps, PathPatch, ReceiverInput, SweepGrid, logit_differences, path_patch, probability,
    sweep,
};
use burn_align::paths::Node;
use burn_align_models::{
    AlignableTransformer, ChatMessage, ChatOptions, Component, Decoder, DecoderConfig,
    FromPretrained, LoadOptions, ModelInput, SavePretrained, Site, TokenBatch, Tokenizer,
};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use super::real;
use crate::support::{fixtures, tokens, values};

type B = Flex;

/// For logits, in f32 on both sides.
const LOGITS: f64 = 1e-4;
/// For probabilities.
const PROBABILITIES: f64 = 5e-5;
/// For differences of two logits.
const DIFFERENCES: f64 = 2.0 * LOGITS;

#[derive(Deserialize)]
struct Expected {
    file: String,
    vocabulary: Vec<usize>,
    prompts: Vec<Prompt>,
    swaps: Swaps,
    paths: Paths,
    chat: Chat,
}

/// A prompt, and what is said after its last token.
#[derive(Deserialize)]
struct Prompt {
    text: String,
    ids: Vec<u32>,
    /// The largest logits, with their ids.
    top: Vec<(u32, f64)>,
    /// Those of `Expected::vocabulary`.
    logits: Vec<f64>,
    log_sum_exp: f64,
}

/// The probability of the source's answer, under swaps of single activations into the base.
#[derive(Deserialize)]
struct Swaps {
    base: Vec<u32>,
    source: Vec<u32>,
    answer: u32,
    unchanged: f64,
    /// The embedding and every layer's output, at every position.
    blocks: Vec<Vec<f64>>,
    head_layer: usize,
    /// Every head of that layer, at every position.
    heads: Vec<Vec<f64>>,
}

/// Direct effects of heads on the logits.
#[derive(Deserialize)]
struct Paths {
    /// Prompt, the same with other names, the name to be said, the name that is there twice.
    texts: Vec<[String; 4]>,
    base_ids: Vec<Vec<u32>>,
    source_ids: Vec<Vec<u32>>,
    names: Vec<u32>,
    others: Vec<u32>,
    base: f64,
    source: f64,
    /// Layer and head.
    senders: Vec<(usize, usize)>,
    patched: Vec<f64>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Value,
    text: String,
    ids: Vec<u32>,
}

struct SmolLm2 {
    model: Decoder<B>,
    config: DecoderConfig,
    tokenizer: Tokenizer,
    expected: Expected,
}

/// Runs a test with the model, which is loaded once for all of them; without it, it does nothing.
fn with_smollm2(test: impl FnOnce(&SmolLm2)) {
    static MODEL: OnceLock<Mutex<Option<SmolLm2>>> = OnceLock::new();
    let model = MODEL.get_or_init(|| Mutex::new(load()));
    // One test at a time, of which each takes all cores. What one of them does with the model, also
    // with a panic, leaves it as it is.
    let model = model.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(model) = &*model {
        test(model);
    }
}

fn load() -> Option<SmolLm2> {
    let expected = fixtures().with_file_name("real").join("smollm2.json");
    let expected = fs::read_to_string(expected).expect("a file");
    let expected: Expected = serde_json::from_str(&expected).expect("as the script writes it");
    let file = real(&expected.file)?;
    let loaded = Decoder::from_pretrained(file, &LoadOptions::default(), &Default::default());
    let loaded = loaded.expect("the model");
    assert!(loaded.notes.is_empty(), "{:?}", loaded.notes);
    Some(SmolLm2 {
        model: loaded.model,
        config: loaded.config,
        tokenizer: loaded.tokenizer.expect("the file's own"),
        expected,
    })
}

#[track_caller]
fn assert_close(what: &str, found: f64, expected: f64, tolerance: f64) {
    // A NaN is not close.
    assert!(
        (found - expected).abs() <= tolerance,
        "{what}: expected {expected}, found {found}"
    );
}

#[track_caller]
fn assert_grid(what: &str, found: &Grid, expected: &[Vec<f64>]) {
    assert_eq!(found.values.len(), expected.len(), "{what}");
    for (row, (found, expected)) in found.values.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len(), "{what}, row {row}");
        for (column, (found, expected)) in found.iter().zip(expected).enumerate() {
            let cell = format!("{what}, row {row}, column {column}");
            assert_close(&cell, *found, *expected, PROBABILITIES);
        }
    }
}

fn batch(ids: &[Vec<u32>]) -> TokenBatch {
    TokenBatch::new(ids.to_vec()).expect("a batch")
}

#[test]
fn tokens_and_logits_are_those_of_the_dequantised_weights() {
    with_smollm2(|smollm2| {
        let expected = &smollm2.expected;
        let texts = expected.prompts.iter().map(|prompt| &prompt.text);
        let prompts = smollm2.tokenizer.encode_batch(texts).expect("tokens");
        let ids: Vec<_> = expected.prompts.iter().map(|it| it.ids.clone()).collect();
        assert_eq!(prompts.ids(), ids);
        assert!(ids.len() == 4 && ids[0].len() == 5, "{ids:?}");

        // Prompts of different lengths in one batch.
        let mut plan = Plan::new();
        let input = plan.tokens(&prompts);
        let world = plan.world(input, []);
        let read = plan.read_logits(world, LogitPositions::Last);
        let results = plan.run::<_, VanillaIntervention>(&smollm2.model, &[]);
        let logits = results.expect("a valid plan").get(read);
        let [batch, _last, vocab] = logits.dims();
        assert_eq!([batch, vocab], [ids.len(), smollm2.model.dims().vocab]);

        let tops = smollm2.tokenizer.top_tokens(logits.clone(), 10);
        let logits = values(logits);
        let rows = logits.chunks(vocab).zip(tops);
        for (prompt, (row, top)) in expected.prompts.iter().zip(rows) {
            let text = &prompt.text;
            assert_eq!((prompt.top.len(), prompt.logits.len()), (10, 50));
            for ((id, logit), token) in prompt.top.iter().zip(&top) {
                assert_eq!(token.id, *id, "{text}: {top:?}");
                assert_close(text, row[*id as usize].into(), *logit, LOGITS);
                let probability = (logit - prompt.log_sum_exp).exp();
                assert_close(text, token.probability.into(), probability, PROBABILITIES);
            }
            for (id, logit) in expected.vocabulary.iter().zip(&prompt.logits) {
                assert_close(text, row[*id].into(), *logit, LOGITS);
            }
            let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
            assert_close(text, sum.ln(), prompt.log_sum_exp, LOGITS);
        }
    });
}

#[test]
fn the_fact_moves_to_the_last_token_in_layer_23() {
    with_smollm2(|smollm2| {
        let expected = &smollm2.expected.swaps;
        let answer = smollm2.tokenizer.single_token(" Berlin").expect("a token");
        assert_eq!(answer, expected.answer);
        let [base, source] = [&expected.base, &expected.source].map(|ids| tokens(&[ids]));
        let (positions, layers) = (base.pos(), smollm2.model.dims().layers);
        assert_eq!((positions, layers), (5, 30));
        let words = smollm2.tokenizer.token_marks(&base.ids()[0]);
        let rows = ["embedding".to_owned()].into_iter();
        let rows = rows.chain((0..layers).map(|layer| layer.to_string()));
        let grid = SweepGrid::new(rows.collect(), words, |row, position| {
            let site = match row.checked_sub(1) {
                None => Site::Embedding,
                Some(layer) => Site::Block(layer, Component::BlockOutput),
            };
            (site, Units::position(position))
        });
        let swapped = |grid: &SweepGrid| {
            let metric = |logits| probability(logits, answer);
            let (prompts, options) = ([&base, &source], RunOptions::default());
            let vanilla = VanillaIntervention;
            sweep(&smollm2.model, &vanilla, prompts, grid, metric, &options).expect("a grid")
        };
        let found = swapped(&grid);
        assert_grid("blocks", &found, &expected.blocks);
        // What is the same in both prompts changes nothing, before the country and in the
        // embedding.
        for at in [0, 1, 2, 4] {
            let embedding = found.values[0][at];
            assert_close("embedding", embedding, expected.unchanged, PROBABILITIES);
        }

        // Between one layer and the next: the largest rise at the last token, and the largest fall
        // at the country's.
        let change =
            |layer: usize, at: usize| found.values[layer + 1][at] - found.values[layer][at];
        let largest = |at: usize, sign: f64| {
            let by_change =
                |a: &usize, b: &usize| (sign * change(*a, at)).total_cmp(&(sign * change(*b, at)));
            (0..layers).max_by(by_change).expect("there are layers")
        };
        assert_eq!((largest(4, 1.0), largest(3, -1.0)), (23, 23));
        assert!(change(23, 4) > 0.75 && change(23, 3) < -0.75, "{found:?}");

        // One head of this layer brings it there.
        let layer = expected.head_layer;
        assert_eq!(layer, 23);
        let heads = (0..smollm2.model.dims().heads).map(|head| head.to_string());
        let grid = SweepGrid::new(
            heads.collect(),
            grid_columns(positions),
            |head, position| {
                let site = Site::Block(layer, Component::AttentionValueOutput);
                (site, Units::position(position).of_head(head))
            },
        );
        let found = swapped(&grid);
        assert_grid("heads", &found, &expected.heads);
        for (head, row) in found.values.iter().enumerate() {
            assert_eq!(row[4] > 0.7, head == 4, "{found:?}");
        }
    });
}

fn grid_columns(count: usize) -> Vec<String> {
    (0..count).map(|column| column.to_string()).collect()
}

#[test]
fn path_patching_is_that_of_hooks() {
    with_smollm2(|smollm2| {
        let expected = &smollm2.expected.paths;
        let [base, source] = [0, 1].map(|column| {
            let texts = expected.texts.iter().map(|row| &row[column]);
            smollm2.tokenizer.encode_batch(texts).expect("tokens")
        });
        assert_eq!(base, batch(&expected.base_ids));
        assert_eq!(source, batch(&expected.source_ids));
        let [names, others] = [2, 3].map(|column| -> Vec<u32> {
            let names = expected.texts.iter().map(|row| &row[column]);
            let ids = names.map(|name| smollm2.tokenizer.single_token(name).expect("a token"));
            ids.collect()
        });
        assert_eq!((&names, &others), (&expected.names, &expected.others));

        assert_eq!((expected.senders.len(), expected.patched.len()), (12, 12));
        let heads = expected.senders.iter();
        let heads = heads.map(|(layer, head)| Node::Head {
            layer: *layer,
            head: *head,
        });
        let patches: Vec<_> = heads
            .map(|head| PathPatch::new(head, ReceiverInput::Logits))
            .collect();
        let found = path_patch(
            &smollm2.model,
            [&base, &source],
            &patches,
            Mlps::Recomputed,
            |logits| logit_differences(logits, &names, &others),
            &RunOptions::default(),
        );
        let found = found.expect("a valid patch");
        assert_close("base", found.base, expected.base, DIFFERENCES);
        assert_close("source", found.source, expected.source, DIFFERENCES);
        assert_eq!(found.patched.len(), patches.len());
        let cells = expected.senders.iter().zip(&found.patched);
        for ((sender, found), expected) in cells.clone().zip(&expected.patched) {
            assert_close(&format!("{sender:?}"), *found, *expected, DIFFERENCES);
        }

        // A name mover, and the head that speaks most against it.
        let of = |(sender, _): (&(usize, usize), &f64)| *sender;
        let smallest = cells.clone().min_by(|a, b| a.1.total_cmp(b.1)).map(of);
        let largest = cells.max_by(|a, b| a.1.total_cmp(b.1)).map(of);
        assert_eq!((smallest, largest), (Some((23, 3)), Some((29, 0))));
    });
}

/// `generate` of transformers 4.57 goes on like this, from the dequantised weights. llama.cpp,
/// which rounds activations to 8 bits, says something else after the first sentence.
#[test]
fn it_says_what_transformers_says() {
    with_smollm2(|it| {
        let ids = it.tokenizer.encode("The capital of France is");
        let mut plan = Plan::<B>::new();
        let input = plan.tokens(&tokens(&[&ids.expect("text")]));
        let world = GeneratedWorld::new(plan.world(input, []));
        let options = GenerateOptions::new(18);
        let none: [VanillaIntervention; 0] = [];
        let texts = generate(&it.model, &none, &plan, &[world], &options, |_| {});
        let texts = texts.expect("valid");
        let text = it.tokenizer.decode(&texts.rows[0].tokens).expect("text");
        assert_eq!(text, " Paris.\n\nThe answer is: 2018-01-2");
    });
}

#[test]
fn chats_are_those_of_the_template_in_the_file() {
    with_smollm2(|smollm2| assert_chat(&smollm2.tokenizer, &smollm2.expected.chat));
}

fn assert_chat(tokenizer: &Tokenizer, expected: &Chat) {
    let messages = ChatMessage::from_json(&expected.messages.to_string()).expect("messages");
    let options = ChatOptions::default().with_generation_prompt(true);
    let chat = tokenizer.chat(&messages, &options).expect("a chat");
    assert_eq!(chat.text, expected.text);
    assert_eq!(chat.ids, expected.ids);
    let said = chat.positions_of_role("assistant");
    let said: Vec<u32> = said.iter().map(|position| chat.ids[*position]).collect();
    assert_eq!(tokenizer.decode(&said).expect("text"), "Paris.");
}

#[test]
fn saved_and_loaded_again_it_is_the_same_to_the_bit() {
    with_smollm2(|smollm2| {
        let folder = TempDir::new().expect("a folder");
        let SmolLm2 {
            model,
            config,
            tokenizer,
            expected,
        } = smollm2;
        let saved = model.save_pretrained(config, Some(tokenizer), folder.path());
        saved.expect("it can be saved");
        let options = LoadOptions::default();
        let again = Decoder::<B>::from_pretrained(folder.path(), &options, &Default::default());
        let again = again.expect("it can be loaded");
        assert_eq!(again.config, *config);
        let prompts = expected.prompts.iter().map(|prompt| &prompt.ids);
        for ids in prompts.chain([&expected.chat.ids]) {
            let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
            let logits = [model, &again.model].map(|model| {
                let ids = Tensor::<B, 1, Int>::from_ints(&ids[..], &Default::default());
                values(model.forward(ModelInput::Tokens(ids.unsqueeze())))
            });
            assert!(logits[0].iter().all(|logit| logit.is_finite()));
            assert!(logits[0] == logits[1], "other logits of {ids:?}");
        }

        let again = again.tokenizer.expect("it was saved");
        for prompt in &expected.prompts {
            assert_eq!(again.encode(&prompt.text).expect("tokens"), prompt.ids);
        }
        assert_chat(&again, &expected.chat);
    });
}
