//! Gemma 3 270M against `transformers` on its dequantised weights (`make_expected_gemma3.py`).

use std::fs;

use burn::backend::Flex;
use burn_align::engine::{LogitPositions, Plan};
use burn_align::interventions::VanillaIntervention;
use burn_align_models::{Decoder, DecoderFamily, FromPretrained, LoadOptions, TokenBatch};
use serde::Deserialize;

use super::real_if_there;
use crate::support::{fixtures, values};

/// Of logits up to 20.
const LOGITS: f64 = 1e-3;

#[derive(Deserialize)]
struct Expected {
    file: String,
    vocabulary: Vec<usize>,
    prompts: Vec<Prompt>,
    continued: Vec<u32>,
}

#[derive(Deserialize)]
struct Prompt {
    ids: Vec<u32>,
    top: Vec<(u32, f64)>,
    logits: Vec<f64>,
}

#[test]
fn logits_and_text_are_those_of_the_dequantised_weights() {
    let expected = fixtures().with_file_name("real").join("gemma3.json");
    let expected = fs::read_to_string(expected).expect("a file");
    let expected: Expected = serde_json::from_str(&expected).expect("as the script writes it");
    let Some(file) = real_if_there(&expected.file) else {
        return;
    };
    let loaded =
        Decoder::<Flex>::from_pretrained(file, &LoadOptions::default(), &Default::default());
    let loaded = loaded.expect("the model");
    assert!(loaded.notes.is_empty(), "{:?}", loaded.notes);
    assert_eq!(loaded.config.family, DecoderFamily::Gemma3);
    let logits = |ids: &[u32]| {
        let mut plan = Plan::new();
        let input = plan.tokens(&TokenBatch::new(vec![ids.to_vec()]).expect("a batch"));
        let world = plan.world(input, []);
        let read = plan.read_logits(world, LogitPositions::Last);
        let results = plan.run::<_, VanillaIntervention>(&loaded.model, &[]);
        values(results.expect("a valid plan").get(read))
    };
    for prompt in &expected.prompts {
        let found = logits(&prompt.ids);
        let fixed = expected
            .vocabulary
            .iter()
            .copied()
            .zip(prompt.logits.iter().copied());
        let top = prompt.top.iter().map(|(id, logit)| (*id as usize, *logit));
        let pos = prompt.ids.len();
        for (id, expected) in top.chain(fixed) {
            let found = f64::from(found[id]);
            let close = (found - expected).abs() <= LOGITS;
            assert!(
                close,
                "{pos} positions, token {id}: expected {expected}, found {found}"
            );
        }
    }
    assert!(
        expected.prompts[1].ids.len() > 512,
        "longer than the window"
    );

    let tokenizer = loaded.tokenizer.as_ref().expect("the file's own");
    let prompt = tokenizer
        .encode_batch(["The capital of France is"])
        .expect("tokens");
    let mut ids = prompt.ids()[0].clone();
    assert_eq!(ids, expected.prompts[0].ids);
    for expected in &expected.continued {
        let found = logits(&ids);
        let (best, _) = (0..)
            .zip(&found)
            .max_by(|a, b| a.1.total_cmp(b.1))
            .expect("tokens");
        assert_eq!(best, *expected, "after {ids:?}");
        ids.push(best);
    }
    let text = tokenizer.decode(&ids[6..]).expect("text");
    assert_eq!(
        text,
        " the capital of the country of France. It is the largest"
    );
}
