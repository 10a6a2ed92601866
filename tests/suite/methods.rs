//! Sweeps and causal tracing: identities, and the front as an oracle.

use burn::tensor::backend::Backend;
use burn_align::engine::{Indices, RunOptions};
use burn_align::front::{AlignableConfig, AlignableModel, AlignableRepresentationConfig};
use burn_align::interventions::VanillaIntervention;
use burn_align::methods::{
    CausalTraceConfig, CausalTraceError, Grid, SweepGrid, causal_trace, logit_difference,
    probability, sweep,
};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, FromPretrained, LoadOptions, ModelInput, TokenBatch,
};

use crate::support::{checkpoints, values};

on_every_backend!(
    a_sweep_is_one_intervention_at_a_time,
    heads_are_swept_one_by_one,
    a_trace_without_noise_changes_nothing,
    restoring_the_end_brings_everything_back,
);

fn load<B: Backend>(name: &str, device: &B::Device) -> Decoder<B> {
    let folder = checkpoints()[name].clone();
    Decoder::from_pretrained(folder, &LoadOptions::default(), device)
        .expect("a fixture")
        .model
}

fn prompts() -> [TokenBatch; 2] {
    [
        [[3, 1, 4, 1], [5, 9, 2, 6]],
        [[7, 7, 30, 8], [11, 2, 0, 40]],
    ]
    .map(|rows| TokenBatch::new(rows.map(|row| row.to_vec()).to_vec()).expect("a batch"))
}

fn assert_close(found: f64, expected: f64) {
    assert!(
        (found - expected).abs() <= 1e-5,
        "expected {expected}, found {found}"
    );
}

fn a_sweep_is_one_intervention_at_a_time<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let [base, source] = prompts();
    let tokens: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
    let grid = SweepGrid::layers_and_positions(Component::MlpOutput, 2, &tokens);
    let metric = |logits| probability(logits, 5);
    let swept = |options: &RunOptions| {
        let prompts = [&base, &source];
        sweep(
            &model,
            &VanillaIntervention,
            prompts,
            &grid,
            metric,
            options,
        )
        .expect("valid")
    };
    let whole = swept(&RunOptions::default());
    assert_eq!((whole.rows.len(), &whole.columns), (2, &tokens));
    let parts = swept(&RunOptions::default().with_max_rows(6));
    for layer in 0..2 {
        let representation = AlignableRepresentationConfig::new(layer, Component::MlpOutput);
        let alignable = AlignableModel::new(AlignableConfig::new([representation]), model.clone())
            .expect("it fits");
        for position in 0..4 {
            let output = alignable.forward(&base, std::slice::from_ref(&source), position);
            let logits = output
                .expect("valid")
                .counterfactual
                .narrow(1, 3, 1)
                .squeeze_dim(1);
            let expected = f64::from(values(probability(logits, 5).mean())[0]);
            assert_close(whole.values[layer][position], expected);
            assert_close(parts.values[layer][position], expected);
        }
    }
}

fn heads_are_swept_one_by_one<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let [base, source] = prompts();
    let metric = |logits| logit_difference(logits, 5, 6);
    let run = |component, heads| {
        let grid = SweepGrid::layers_and_heads(component, 2, heads, &Indices::Same(vec![3]));
        let (prompts, options) = ([&base, &source], RunOptions::default());
        sweep(
            &model,
            &VanillaIntervention,
            prompts,
            &grid,
            metric,
            &options,
        )
    };
    let queries = run(Component::QueryOutput, 4).expect("four query heads");
    let values = run(Component::ValueOutput, 2).expect("two key-value heads");
    assert_eq!((queries.columns.len(), values.columns.len()), (4, 2));
    // Each head does something different.
    let mut numbers: Vec<f64> = queries.values.concat();
    numbers.extend(values.values.concat());
    numbers.sort_by(f64::total_cmp);
    assert!(
        numbers.windows(2).all(|pair| pair[1] - pair[0] > 1e-6),
        "{numbers:?}"
    );
    assert!(
        run(Component::ValueOutput, 3).is_err(),
        "there is no third key-value head"
    );
}

const PROMPT: [u32; 4] = [3, 1, 4, 1];

/// The model's most probable token after the prompt.
fn next_token<B: Backend>(model: &Decoder<B>, device: &B::Device) -> u32 {
    let prompt = TokenBatch::new(vec![PROMPT.to_vec()]).expect("a batch");
    let logits = model.forward(ModelInput::Tokens(prompt.to_tensor(device)));
    let best = logits.narrow(1, 3, 1).argmax(2).into_data();
    best.iter::<u32>().next().expect("one")
}

fn a_trace_without_noise_changes_nothing<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let config = CausalTraceConfig::new(1..3, next_token(&model, device), 0.0);
    let trace = causal_trace(&model, &PROMPT, &config, &RunOptions::default());
    let trace = trace.expect("valid");
    assert_close(trace.corrupted, trace.clean);
    for value in trace.restored.values.concat() {
        assert_close(value, trace.clean);
    }
}

fn restoring_the_end_brings_everything_back<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let layers = model.dims().layers;
    let config = CausalTraceConfig::new(0..2, next_token(&model, device), 2.0);
    let run =
        |config: &CausalTraceConfig| causal_trace(&model, &PROMPT, config, &RunOptions::default());
    let trace = run(&config).expect("valid");
    assert!((trace.clean - trace.corrupted).abs() > 1e-3, "{trace:?}");
    assert_close(trace.restored.values[layers - 1][3], trace.clean);
    // What comes after the last position cannot help at an earlier one of the last layer.
    assert_close(trace.restored.values[layers - 1][0], trace.corrupted);
    assert_eq!(run(&config).expect("valid"), trace, "the noise is seeded");
    // A window of all layers around any layer is the same window.
    let all = run(&config
        .clone()
        .with_component(Component::AttentionOutput, 2 * layers));
    let all = all.expect("valid").restored.values;
    assert!(all.iter().all(|row| *row == all[0]), "{all:?}");
    let mut wrong = config;
    wrong.subject = 3..9;
    let error = run(&wrong).expect_err("past the end");
    assert!(
        matches!(
            error,
            CausalTraceError::Config {
                what: "subject",
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn grids_are_written_as_csv_and_json() {
    let grid = Grid {
        rows: vec!["0".into(), "1".into()],
        columns: vec!["a \"quoted\"".into(), "b,c".into()],
        values: vec![vec![0.5, -1.0], vec![f64::NAN, 2.25]],
    };
    let expected = ",\"a \"\"quoted\"\"\",\"b,c\"\r\n\"0\",0.5,-1\r\n\"1\",NaN,2.25\r\n";
    assert_eq!(grid.to_csv(), expected);
    assert_eq!(grid.max(), Some((1, 1, 2.25)));
    let json = serde_json::to_string(&Grid {
        values: vec![vec![0.5, -1.0]],
        ..grid
    });
    assert!(json.expect("plain data").contains("[0.5,-1.0]"));
}
