//! Requests for circuits, as the example `circuit` serves them.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn_align::engine::RunOptions;
use burn_align::methods::circuits::CircuitFile;
use burn_align_models::{Decoder, FromPretrained, LoadOptions};
use serde_json::{Value, json};
use workbench::circuit_requests::CircuitRequest;

on_every_backend!(requests_are_answered, requests_that_do_not_fit_are_refused);

fn request(changes: &[(&str, Value)]) -> String {
    let mut request = json!({
        "model": "bundled:capitals",
        "clean": {"text": ["The capital of Spain is", "The capital of Italy is"]},
        "corrupt": {"text": ["The capital of France is", "The capital of Spain is"]},
        "metric": {"logit_difference": [[3, 4], [5, 6]]},
        "method": "eap",
    });
    for (key, value) in changes {
        request[key] = value.clone();
    }
    request.to_string()
}

fn requests_are_answered<B: Backend>(device: &B::Device) {
    let options = LoadOptions::default();
    let loaded = Decoder::<Autodiff<B>>::from_pretrained("bundled:capitals", &options, device);
    let loaded = loaded.expect("bundled");
    let tokenizer = loaded.tokenizer().expect("bundled");
    let id = |word: &str| {
        let within = tokenizer.single_token(&format!(" {word}"));
        within
            .or_else(|_| tokenizer.single_token(word))
            .expect("one token")
    };
    let metric = json!({"logit_difference": [
        [id("Madrid"), id("Rome")],
        [id("Paris"), id("Madrid")],
    ]});
    let run = RunOptions::default();
    for (method, more) in [
        ("eap", vec![("top_n", json!(20)), ("absolute", json!(true))]),
        (
            "eap_ig_inputs",
            vec![("steps", json!(2)), ("evaluate", json!(true))],
        ),
        (
            "ifr",
            vec![("threshold", json!(0.1)), ("absolute", json!(false))],
        ),
        ("clean_corrupted", vec![("ablation", json!("mean"))]),
    ] {
        let mut changes = vec![("method", json!(method)), ("metric", metric.clone())];
        changes.extend(more);
        let request = CircuitRequest::parse(&request(&changes));
        let request = request.unwrap_or_else(|error| panic!("{method}: {error:#}"));
        let answer = request.answer(&loaded, &run);
        let answer = answer.unwrap_or_else(|error| panic!("{method}: {error:#}"));
        let read = CircuitFile::parse(&answer.circuit.to_json()).expect("MIB's form");
        let scores = read.scores().expect("scores of all edges");
        assert!(
            scores.values().iter().all(|score| score.is_finite()),
            "{method}"
        );
        assert!(
            scores.values().iter().any(|score| *score != 0.0),
            "{method}"
        );
        if method == "eap" {
            assert!((1..=20).contains(&read.circuit().edge_count()));
        }
        let Some(curve) = answer.curve else {
            assert_ne!(method, "eap_ig_inputs");
            continue;
        };
        let curves = curve["curves"].as_array().expect("both rankings");
        assert_eq!(curves.len(), 2);
        let last = curves[0]["faithfulness"][9].as_f64().expect("ten sizes");
        assert!((last - 1.0).abs() < 1e-6);
        assert_eq!(curve["cmd"]["ranking"], "absolute");
        assert_eq!(curve["cmd"]["value"], curves[1]["cmd"]);
        assert_eq!(curve["cpr"]["value"], curves[0]["cpr"]);
    }
}

fn requests_that_do_not_fit_are_refused<B: Backend>(device: &B::Device) {
    let options = LoadOptions::default();
    let loaded = Decoder::<Autodiff<B>>::from_pretrained("bundled:capitals", &options, device);
    let loaded = loaded.expect("bundled");
    let run = RunOptions::default();
    for (key, value, start) in [
        (
            "corrupt",
            json!({"text": ["The capital of Spain is"]}),
            "corrupt: expected 2 examples",
        ),
        (
            "corrupt",
            json!({"input_ids": [[1, 2], [1, 2]]}),
            "corrupt: example 0: expected",
        ),
        ("clean", json!({"input_ids": [[99999], [1]]}), "clean: "),
        (
            "metric",
            json!({"logit_difference": [[1, 2, 3], [4]]}),
            "metric: ",
        ),
        (
            "metric",
            json!({"logit_difference": [[99999], [4]]}),
            "metric: ",
        ),
    ] {
        let request = CircuitRequest::parse(&request(&[(key, value)])).expect("well formed");
        let error = request.answer(&loaded, &run).expect_err(start);
        assert!(format!("{error:#}").starts_with(start), "{error:#}");
    }
}

#[test]
fn errors_of_requests_name_the_path() {
    for (changes, start) in [
        (vec![("clean", json!({"texts": []}))], "clean"),
        (
            vec![("clean", json!({"input_ids": [[1, -2]]}))],
            "clean.input_ids[0][1]",
        ),
        (vec![("method", json!("eap_ig"))], "method"),
        (
            vec![("metric", json!({"logit_difference": [[1]]}))],
            "metric.logit_difference",
        ),
        (vec![("top_n", json!(-3))], "top_n"),
        (vec![("top_n", json!(3))], "absolute"),
        (vec![("absolute", json!(true))], "absolute"),
        (
            vec![
                ("top_n", json!(3)),
                ("threshold", json!(0.5)),
                ("absolute", json!(true)),
            ],
            "threshold",
        ),
        (vec![("steps", json!(3))], "steps"),
        (
            vec![("method", json!("eap_ig_inputs")), ("steps", json!(0))],
            "steps",
        ),
        (vec![("ablation", json!("noise"))], "ablation"),
    ] {
        let error = CircuitRequest::parse(&request(&changes))
            .err()
            .expect(start);
        assert!(
            format!("{error:#}").starts_with(start),
            "{start}: {error:#}"
        );
    }
}
