//! Requests of the example `intervene` that generate: what is read, what is answered, what is
//! refused.

use burn::tensor::{Tensor, backend::Backend};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, InterveneAt, UnitLocations,
};
use burn_align::generate::{GenerateOptions, Sampling};
use burn_align_models::{AlignableTransformer, Decoder, FromPretrained, LoadOptions, Tokenizer};
use serde_json::{Value, json};
use workbench::requests::{Answer, Generated, Model, Request};

use crate::support::{checkpoints, fixtures, max_difference, tokens};

on_every_backend!(requests_generate_as_the_front_does, plain_requests_generate);

const BASE: [&[u32]; 2] = [&[3, 1, 4, 1, 5], &[9, 2, 6]];

fn model<B: Backend>(device: &B::Device) -> Model<B> {
    let folder = &checkpoints()["gpt2_plain"];
    let loaded = Decoder::from_pretrained(folder.as_path(), &LoadOptions::default(), device);
    loaded.expect("a fixture")
}

/// A request on `gpt2_plain`, with more keys.
fn request(more: Value) -> Value {
    let mut request = json!({"model": "checkpoints/gpt2_plain", "base": {"input_ids": BASE}});
    let more = more.as_object().expect("an object").clone();
    request.as_object_mut().expect("an object").extend(more);
    request
}

fn answer<B: Backend>(model: &Model<B>, json: &Value, device: &B::Device) -> Answer<B> {
    let request = Request::parse(&json.to_string()).expect("a request");
    let answer = request.answer(&fixtures(), model, device);
    answer.unwrap_or_else(|error| panic!("{json}: {error:#}"))
}

/// Zeroes an MLP, and collects what comes out of the last block.
fn config() -> Value {
    json!({
        "alignable_representations": [
            {"alignable_layer": 0, "alignable_representation_type": "mlp_output"},
            {"alignable_layer": 1, "alignable_representation_type": "block_output"},
        ],
        "alignable_interventions_type": ["ZeroIntervention", "CollectIntervention"],
    })
}

#[track_caller]
fn assert_same<B: Backend>(what: &str, found: &Tensor<B, 3>, expected: Tensor<B, 3>) {
    let expected = expected.into_data().convert::<f32>();
    let difference = max_difference(found.clone(), &expected);
    assert!(difference <= 1e-4, "{what}: {difference}");
}

fn requests_generate_as_the_front_does<B: Backend>(device: &B::Device) {
    let model = model::<B>(device);
    let parsed: AlignableConfig = serde_json::from_value(config()).expect("a config");
    let front = AlignableModel::<B, _>::new(parsed, model.model.clone()).expect("it fits");
    let sampling = Sampling::greedy()
        .with_temperature(0.9)
        .with_top_k(20)
        .with_seed(5);
    let options = GenerateOptions::new(6)
        .with_sampling(sampling)
        .with_logits();
    let plain = answer(&model, &request(json!({})), device);
    for (at, locations) in [
        (InterveneAt::Prompt, json!({"base": 1})),
        (InterveneAt::Steps, Value::Null),
        (InterveneAt::Steps, json!({"base": 0})),
        (InterveneAt::Step(2), Value::Null),
        (InterveneAt::All, Value::Null),
        (InterveneAt::All, json!({"base": 1})),
    ] {
        let what = format!("{at:?}, {locations}");
        let answer = answer(
            &model,
            &request(json!({
                "config": config(),
                "unit_locations": locations,
                "output_original_output": true,
                "generate": {"max_new_tokens": 6, "temperature": 0.9, "top_k": 20, "seed": 5,
                             "at": at, "logits": true},
            })),
            device,
        );
        let locations = UnitLocations::try_from(&locations).expect("locations");
        let inputs = AlignableInputs::new(tokens(&BASE))
            .with_locations(locations)
            .with_original_output();
        let texts = front
            .generate_inputs(&inputs, at, &options, |_| {})
            .expect("valid");

        let rows: Vec<Vec<u32>> = texts.rows.iter().map(|row| row.tokens.clone()).collect();
        let generated = &answer.generated["generated"];
        assert_eq!((&generated.rows, generated.longest), (&rows, 6), "{what}");
        let flat: Vec<i64> = rows.iter().flatten().copied().map(i64::from).collect();
        assert_eq!(generated.padded(), flat, "{what}");
        let original = texts.original.expect("asked for");
        for (row, original) in original.iter().enumerate() {
            let found = &answer.generated["original_generated"].rows[row];
            assert_eq!(*found, original.tokens, "{what}");
        }
        let logits = texts
            .rows
            .iter()
            .map(|row| row.logits.clone().expect("kept").unsqueeze());
        let logits = Tensor::cat(logits.collect(), 0);
        assert_same(&what, &answer.tensors["step_logits"], logits);
        let expected = match at.is_in_prompt() {
            true => front.forward_inputs(&inputs).expect("valid").counterfactual,
            false => plain.tensors["logits"].clone(),
        };
        for (row, ids) in BASE.iter().enumerate() {
            // Without padding.
            let own = |logits: &Tensor<B, 3>| {
                let row = logits.clone().narrow(0, row, 1);
                row.narrow(1, 0, ids.len())
            };
            let found = |name: &str| own(&answer.tensors[name]);
            assert_same(&what, &found("logits"), own(&expected));
            let original = own(&plain.tensors["logits"]);
            assert_same(&what, &found("original_logits"), original);
        }
        assert_eq!(
            answer.tensors.contains_key("collected.1"),
            at.is_in_prompt()
        );
        let steps = match at {
            InterveneAt::Prompt => None,
            InterveneAt::Step(_) => Some(1),
            _ => Some(5),
        };
        let collected = answer.tensors.get("step_collected.1").map(|it| it.dims());
        assert_eq!(collected, steps.map(|steps| [2, steps, 16]), "{what}");
        assert!(
            answer.tensors.contains_key("original_step_logits"),
            "{what}"
        );
    }
}

fn plain_requests_generate<B: Backend>(device: &B::Device) {
    let model = model::<B>(device);
    let whole = answer(
        &model,
        &request(json!({"generate": {"max_new_tokens": 8}})),
        device,
    );
    assert_eq!(whole.tensors.keys().collect::<Vec<_>>(), ["logits"]);
    let whole = &whole.generated["generated"];
    assert_eq!(whole.padded().len(), 2 * 8);

    // Each row ends after its own stop token, and is padded.
    let stop = whole.rows[0][2];
    let stopped = answer(
        &model,
        &request(json!({
            "output_original_output": true,
            "generate": {"max_new_tokens": 8, "stop_tokens": [stop], "logits": true},
        })),
        device,
    );
    let [batch, longest, vocab] = stopped.tensors["step_logits"].dims();
    assert_eq!([batch, longest, vocab], [2, 8, 41]);
    let generated = &stopped.generated["generated"];
    assert_eq!(*generated, stopped.generated["original_generated"]);
    let padded = generated.padded();
    let logits = stopped.tensors["step_logits"].clone();
    for (row, tokens) in whole.rows.iter().enumerate() {
        let end = tokens.iter().position(|token| *token == stop);
        let end = end.map_or(8, |last| last + 1);
        assert_eq!(generated.rows[row], tokens[..end]);
        let own = &padded[row * 8..(row + 1) * 8];
        assert!(own[end..].iter().all(|token| *token == -1));
        assert!(own[..end].iter().all(|token| *token >= 0));
        if end < 8 {
            let after = logits.clone().narrow(0, row, 1).narrow(1, end, 8 - end);
            let zeros = after.zeros_like().into_data().convert::<f32>();
            assert_eq!(max_difference(after, &zeros), 0.0);
        }
    }
    assert!(generated.rows[0].len() <= 3);

    // Cut where the model ends: 32 positions, of which the shortest example has 29 left.
    let cut = answer(
        &model,
        &request(json!({"generate": {"max_new_tokens": 100, "at_limit": "cut"}})),
        device,
    );
    let cut = &cut.generated["generated"];
    assert_eq!(cut.longest, 29);
    assert_eq!([cut.rows[0].len(), cut.rows[1].len()], [27, 29]);
    assert_eq!(model.model.dims().max_positions, Some(32));

    // A prompt that fills the model, alone and next to a shorter one.
    let full = vec![1; 32];
    for (base, lengths) in [
        (json!([full]), &[0][..]),
        (json!([full, [2, 7]]), &[0, 3][..]),
    ] {
        let generate = json!({"max_new_tokens": 3, "at_limit": "cut", "logits": true});
        let more = json!({"base": {"input_ids": base}, "generate": generate});
        let found = answer(&model, &request(more), device);
        let generated = &found.generated["generated"];
        let rows = generated.rows.iter().map(Vec::len);
        assert_eq!(rows.collect::<Vec<_>>(), lengths);
        let longest = *lengths.last().expect("a row");
        assert_eq!(generated.longest, longest);
        let logits = found.tensors.get("step_logits").map(|it| it.dims());
        assert_eq!(logits, (longest > 0).then_some([2, 3, 41]));
        assert_eq!(found.tensors["logits"].dims(), [lengths.len(), 32, 41]);
    }
}

/// Of a prompt whose values stop being finite, it is said where.
#[test]
#[cfg(feature = "flex")]
fn prompts_that_are_not_finite_are_refused() {
    type B = burn::backend::Flex;
    let device = Default::default();
    let mut model = model::<B>(&device);
    let up = model.model.layers[1].mlp.up.as_mut();
    let weight = &mut up.expect("a plain MLP").weight;
    weight.set(weight.val() * f32::NAN);
    let intervened = |at: &str, locations: Value| {
        json!({"config": config(), "unit_locations": locations,
               "generate": {"max_new_tokens": 3, "at": at}})
    };
    for (more, expected) in [
        (json!({"generate": {"max_new_tokens": 3}}), "the base: "),
        (
            intervened("prompt", json!({"base": 1})),
            "the base under the interventions: ",
        ),
        (intervened("steps", Value::Null), "the base: "),
    ] {
        let request = Request::parse(&request(more).to_string()).expect("a request");
        let found = request.answer(&fixtures(), &model, &device).map(drop);
        let error = format!("{:#}", found.expect_err("refused"));
        let expected = format!("{expected}values stop being finite at layer 1 ");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
#[cfg(feature = "flex")]
fn stop_texts_need_a_tokenizer() {
    type B = burn::backend::Flex;
    let device = Default::default();
    let capitals = LoadOptions::default();
    let capitals = Decoder::<B>::from_pretrained("bundled:capitals", &capitals, &device);
    let capitals = capitals.expect("bundled");
    let json = json!({
        "model": "bundled:capitals",
        "base": {"text": ["The capital of Spain is"]},
        "generate": {"max_new_tokens": 5, "stop": ["adr", "never"]},
    });
    let found = answer(&capitals, &json, &device);
    let tokenizer = capitals.tokenizer().expect("it has one");
    let text = tokenizer.decode(&found.generated["generated"].rows[0]);
    assert_eq!(text.expect("text"), "Madrid");

    let json = request(json!({"generate": {"max_new_tokens": 5, "stop": ["x"]}}));
    let request = Request::parse(&json.to_string()).expect("a request");
    let error = request.answer(&fixtures(), &model::<B>(&device), &device);
    let error = error.map(drop).expect_err("refused");
    assert!(format!("{error:#}").starts_with("generate.stop: the model has no tokenizer"));
}

/// A tokenizer that strips the space before the first word of a text, as LLaMA's do.
#[test]
fn generated_text_continues_its_prompt() {
    let words = ["<s>", "▁in", "▁the", "▁end", "!"];
    let ids = words.iter().enumerate();
    let vocab: serde_json::Map<String, Value> = ids
        .map(|(id, word)| ((*word).to_owned(), id.into()))
        .collect();
    let json = json!({
        "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true,
        },
        "model": {"type": "WordLevel", "unk_token": "<s>", "vocab": vocab},
    });
    let tokenizer = Tokenizer::from_json(&json.to_string()).expect("a tokenizer");
    let generated = Generated {
        rows: vec![vec![2, 3], vec![4], vec![]],
        longest: 2,
    };
    let prompts = tokens(&[&[1], &[2, 3], &[1, 2]]);
    let texts = generated.texts(&tokenizer, &prompts).expect("it decodes");
    assert_eq!(texts, [" the end", "!", ""]);
    assert_eq!(generated.padded(), [2, 3, 4, -1, -1, -1]);
    // By themselves, they would be the beginning of a text.
    let alone = tokenizer.decode(&generated.rows[0]).expect("it decodes");
    assert_eq!(alone, "the end");
}

#[test]
#[cfg(feature = "flex")]
fn wrong_requests_are_refused() {
    type B = burn::backend::Flex;
    let device = Default::default();
    // While they are read: the path of the wrong value.
    for (generate, expected) in [
        (json!({}), "generate: missing field `max_new_tokens`"),
        (
            json!({"max_new_tokens": 3, "tempreature": 1}),
            "generate.tempreature: unknown field `tempreature`",
        ),
        (
            json!({"max_new_tokens": -3}),
            "generate.max_new_tokens: invalid value: integer `-3`, expected a whole number that is \
             at least 0",
        ),
        (
            json!({"max_new_tokens": 3, "temperature": -1.0}),
            "generate.temperature: expected a finite number",
        ),
        (
            json!({"max_new_tokens": 3, "top_k": 0}),
            "generate.top_k: expected at least 1",
        ),
        (
            json!({"max_new_tokens": 3, "top_p": 1.5}),
            "generate.top_p: expected more than 0 and at most 1",
        ),
        (
            json!({"max_new_tokens": 3, "min_p": 1}),
            "generate.min_p: expected at least 0 and less than 1",
        ),
        (
            json!({"max_new_tokens": 3, "repetition_penalty": 0}),
            "generate.repetition_penalty: expected a finite number above 0",
        ),
        (
            json!({"max_new_tokens": 3, "stop": ["a", ""]}),
            "generate.stop[1]: expected at least one character",
        ),
        (
            json!({"max_new_tokens": 3, "stop_tokens": [1, "a"]}),
            "generate.stop_tokens[1]: invalid type",
        ),
        (
            json!({"max_new_tokens": 3, "at": "everywhere"}),
            "generate.at: expected \"prompt\", \"steps\", \"all\" or {\"step\": k}",
        ),
        (
            json!({"max_new_tokens": 3, "at": "step"}),
            "generate.at: expected \"prompt\", \"steps\", \"all\" or {\"step\": k} with a whole \
             number k, found \"step\"",
        ),
        (
            json!({"max_new_tokens": 3, "at": {"step": -1}}),
            "generate.at: expected \"prompt\"",
        ),
        (
            json!({"max_new_tokens": 3, "at_limit": "stretch"}),
            "generate.at_limit: unknown variant `stretch`",
        ),
    ] {
        let json = request(json!({"generate": generate}));
        let error = Request::parse(&json.to_string()).map(drop);
        let error = format!("{:#}", error.expect_err("refused"));
        assert!(error.starts_with(expected), "{error}");
    }
    // On the model.
    let model = model::<B>(&device);
    let locations = json!({"base": 1});
    for (more, expected) in [
        (
            json!({"generate": {"max_new_tokens": 3, "at": "steps"}}),
            "generate.at: expected none without a config or interventions",
        ),
        (
            json!({"generate": {"max_new_tokens": 30}}),
            "generate: row 0: a prompt of 5 tokens and 30 new ones",
        ),
        (
            json!({"config": config(), "generate": {"max_new_tokens": 3, "at": {"step": 2}}}),
            "generate: expected a step below 2",
        ),
        (
            json!({"config": config(), "unit_locations": locations,
                   "generate": {"max_new_tokens": 3, "at": "steps"}}),
            "generate: unit locations of representation 0: a step has one position",
        ),
        (
            json!({"base": {"input_ids": [[]]}, "generate": {"max_new_tokens": 3}}),
            "base: ",
        ),
    ] {
        let json = request(more);
        let request = Request::parse(&json.to_string()).expect("a request");
        let found = request.answer(&fixtures(), &model, &device).map(drop);
        let error = format!("{:#}", found.expect_err("refused"));
        assert!(error.starts_with(expected), "{error}");
    }
}
