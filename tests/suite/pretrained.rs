//! Published next-token probabilities, on real GPT-2 small weights (124 million parameters).
//!
//! The weights come from the folder or hub id in `BURN_ALIGN_GPT2`, or otherwise from the hub as
//! `gpt2`.

use burn::tensor::{ElementConversion, backend::Backend};
use burn_align::engine::RunOptions;
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
    InterventionType, Locations, Mode, Source, UnitLocations,
};
use burn_align::methods::{
    Mlps, ReceiverInput, head_effects, logit_differences, patch_streams, probability,
};
use burn_align::paths::{Node, Stream};
use burn_align_models::pretrained::Pretrained;
use burn_align_models::{
    AlignableTransformer, Component, Decoder, DecoderConfig, FromPretrained, LoadOptions,
    ModelInput, TokenBatch, Tokenizer,
};
use workbench::ioi::{Ioi, PUBLISHED};

use crate::paths::reads_at;

on_every_backend!(
    clean_runs,
    parallel_interventions,
    serial_interventions,
    added_embedding,
    patched_nodes,
    direct_effects_of_heads,
);

const TOLERANCE: f32 = 1e-5;
const SPAIN: &str = "The capital of Spain is";
const ITALY: &str = "The capital of Italy is";

type Published = [(&'static str, f32)];

fn gpt2<B: Backend>(device: &B::Device) -> Pretrained<Decoder<B>, DecoderConfig> {
    let source = std::env::var("BURN_ALIGN_GPT2").unwrap_or_else(|_| "gpt2".to_owned());
    Decoder::from_pretrained(source, &LoadOptions::default(), device).expect("GPT-2 small")
}

fn tokens(tokenizer: &Tokenizer, prompt: &str) -> TokenBatch {
    let batch = tokenizer.encode_batch([prompt]).expect("a prompt");
    assert_eq!(batch.pos(), 5, "{prompt}");
    batch
}

/// Compares the probabilities after the last of five tokens.
fn assert_published<B: Backend>(
    logits: burn::tensor::Tensor<B, 3>,
    tokenizer: &Tokenizer,
    published: &Published,
) {
    let logits = logits.narrow(1, 4, 1).squeeze_dim(1);
    for (token, expected) in published {
        let id = tokenizer.single_token(token).expect("one token");
        let found: f32 = probability(logits.clone(), id).into_scalar().elem();
        assert!(
            (found - expected).abs() <= TOLERANCE,
            "`{token}`: {expected}, found {found}"
        );
    }
}

/// nano-causal-interventions' notebook.
fn clean_runs<B: Backend>(device: &B::Device) {
    let gpt2 = gpt2::<B>(device);
    let tokenizer = gpt2.tokenizer().expect("a tokenizer");
    let run = |prompt| {
        let input = tokens(tokenizer, prompt).to_tensor(device);
        gpt2.model.forward(ModelInput::Tokens(input))
    };
    assert_published(
        run(SPAIN),
        tokenizer,
        &[
            (" Madrid", 0.105_014_3),
            (" the", 0.094_964_5),
            (" Barcelona", 0.070_278_3),
            (" a", 0.040_100_5),
            (" now", 0.028_243_7),
            (" in", 0.027_6),
            (" Spain", 0.022_992_1),
            (" Catalonia", 0.018_823_3),
            (" also", 0.018_689_3),
            (" not", 0.017_356_8),
        ],
    );
    assert_published(
        run(ITALY),
        tokenizer,
        &[
            (" Rome", 0.157_344),
            (" the", 0.073_161_1),
            (" Milan", 0.046_880_9),
            (" a", 0.034_500_4),
            (" now", 0.032_003),
            (" in", 0.023_065),
            (" also", 0.022_747_9),
            (" home", 0.019_203_4),
            (" not", 0.016_405_2),
            (" Italy", 0.015_770_5),
        ],
    );
}

/// pyvene's `pyvene_101.ipynb`, cell 57: position 1 from one source and 3 from another, layer 3.
fn parallel_interventions<B: Backend>(device: &B::Device) {
    let gpt2 = gpt2::<B>(device);
    let tokenizer = gpt2.tokenizer().expect("a tokenizer").clone();
    let layer_3 = || AlignableRepresentationConfig::new(3, Component::BlockOutput);
    let config = AlignableConfig::new([layer_3(), layer_3()]);
    let alignable = AlignableModel::new(config, gpt2.model).expect("it fits");
    let locations = Locations::each([Some(1), Some(3)]);
    let base = tokens(&tokenizer, SPAIN);
    let sources = ["The language of Spain is", ITALY].map(|prompt| tokens(&tokenizer, prompt));
    let output = alignable
        .forward(&base, &sources, locations)
        .expect("valid");
    assert_published(
        output.counterfactual,
        &tokenizer,
        &[
            (" the", 0.072_333_6),
            (" a", 0.057_315),
            (" not", 0.044_438_9),
            (" Italian", 0.033_642_9),
            (" often", 0.024_385_8),
            (" called", 0.022_171_7),
            (" known", 0.017_808_8),
            (" that", 0.016_059_2),
            (" \"", 0.012_973_4),
            (" an", 0.012_878_9),
        ],
    );
}

/// pyvene's `pyvene_101.ipynb`, cell 59: one source acts on the other, which acts on the base.
fn serial_interventions<B: Backend>(device: &B::Device) {
    let gpt2 = gpt2::<B>(device);
    let tokenizer = gpt2.tokenizer().expect("a tokenizer").clone();
    let config = AlignableConfig::new(
        [3, 10].map(|layer| AlignableRepresentationConfig::new(layer, Component::BlockOutput)),
    );
    let config = config.with_mode(Mode::Serial);
    let alignable = AlignableModel::new(config, gpt2.model).expect("it fits");
    let base = tokens(&tokenizer, SPAIN);
    let sources = ["The language of Spain is", ITALY].map(|prompt| tokens(&tokenizer, prompt));
    let locations = UnitLocations::chain([(1, 1), (4, 4)]);
    let output = alignable
        .forward(&base, &sources, locations)
        .expect("valid");
    assert_published(
        output.counterfactual,
        &tokenizer,
        &[
            (" the", 0.067_378_4),
            (" a", 0.059_834_4),
            (" not", 0.046_295),
            (" Italian", 0.036_238_3),
            (" often", 0.021_700_2),
            (" called", 0.018_407_9),
            (" that", 0.015_771_3),
            (" known", 0.014_391_8),
            (" an", 0.013_535_2),
            (" very", 0.013_022_4),
        ],
    );
}

/// pyvene's `Add_Activations_to_Streams.ipynb`, cell 12: the embedding of " Rome" is added to the
/// MLP's output of every layer.
fn added_embedding<B: Backend>(device: &B::Device) {
    let gpt2 = gpt2::<B>(device);
    let tokenizer = gpt2.tokenizer().expect("a tokenizer").clone();
    let rome = tokenizer.single_token(" Rome").expect("one token") as usize;
    let embedding = gpt2
        .model
        .token_embedding()
        .narrow(0, rome, 1)
        .unsqueeze::<3>();
    let config = AlignableConfig::new((0..12).map(|layer| {
        AlignableRepresentationConfig::new(layer, Component::MlpOutput)
            .with_intervention(InterventionType::Addition)
    }));
    let alignable = AlignableModel::new(config, gpt2.model).expect("it fits");
    let inputs = AlignableInputs::new(tokens(&tokenizer, SPAIN))
        .with_sources([Source::Values(embedding)])
        .with_locations(UnitLocations::base(4));
    let output = alignable.forward_inputs(&inputs).expect("valid");
    assert_published(
        output.counterfactual,
        &tokenizer,
        &[
            (" Rome", 0.455_826_2),
            (" Madrid", 0.278_823_9),
            (" Barcelona", 0.108_280_6),
            (" Valencia", 0.015_630_9),
            (" Lisbon", 0.008_415_4),
            (" the", 0.006_678_7),
            (" Santiago", 0.006_526_8),
            (" Naples", 0.004_116_3),
            (" Florence", 0.003_120_4),
            (" Athens", 0.002_858_5),
        ],
    );
}

/// nano-causal-interventions' notebook: P(" Rome") with what one node reads at the last position
/// from Italy, for all nodes but the embedding, from the last one down.
fn patched_nodes<B: Backend>(device: &B::Device) {
    const PUBLISHED: [f64; 24] = [
        0.006762, 0.006337, 0.008625, 0.005277, 0.006316, 0.005882, 0.005954, 0.005754, 0.005508,
        0.005749, 0.005638, 0.005575, 0.005551, 0.005588, 0.005308, 0.005874, 0.005578, 0.005785,
        0.005462, 0.005725, 0.005668, 0.005714, 0.005500, 0.005747,
    ];
    let gpt2 = gpt2::<B>(device);
    let tokenizer = gpt2.tokenizer().expect("a tokenizer");
    let [base, source] = [SPAIN, ITALY].map(|prompt| tokens(tokenizer, prompt));
    let rome = tokenizer.single_token(" Rome").expect("one token");
    let mut nodes = Node::all(gpt2.model.dims());
    nodes.reverse();
    nodes.pop();
    let patched = nodes
        .iter()
        .map(|node| reads_at(*node, 4, gpt2.model.dims()));
    let streams: Vec<Stream> = patched.chain([Stream::clean(0)]).collect();
    let metric = |logits| probability(logits, rome);
    let options = RunOptions::default();
    let found =
        patch_streams(&gpt2.model, &[&base, &source], &streams, metric, &options).expect("valid");
    let published = PUBLISHED.into_iter().chain([0.005747]);
    for ((stream, found), expected) in streams.iter().zip(found).zip(published) {
        let difference = (found - expected).abs();
        assert!(difference <= 1e-5, "{stream:?}: {expected}, found {found}");
    }
}

/// Wang et al. 2022, Figure 3b, on sentences of the same kind.
fn direct_effects_of_heads<B: Backend>(device: &B::Device) {
    let gpt2 = gpt2::<B>(device);
    let tokenizer = gpt2.tokenizer().expect("a tokenizer");
    let ioi = Ioi::draw(tokenizer, 256, 0).expect("names");
    let effects = head_effects(
        &gpt2.model,
        [&ioi.prompts, &ioi.others],
        &[ReceiverInput::Logits.into()],
        Mlps::Recomputed,
        |logits| logit_differences(logits, &ioi.indirect_objects, &ioi.subjects),
        &RunOptions::default().with_max_rows(1024),
    );
    let changes = effects.expect("valid").relative_changes().values;
    for (layer, head, expected) in PUBLISHED {
        let found = changes[layer][head];
        assert!(
            (found - expected).abs() <= 0.05,
            "{layer}.{head}: {expected}, found {found}"
        );
    }
    // In the same order, where the published figures differ by more than their tolerance.
    for (layer, head, expected) in PUBLISHED {
        for (other_layer, other, weaker) in PUBLISHED {
            if expected.abs() > weaker.abs() + 0.1 {
                let [a, b] = [changes[layer][head], changes[other_layer][other]].map(f64::abs);
                assert!(
                    a > b,
                    "{layer}.{head} ({a}) before {other_layer}.{other} ({b})"
                );
            }
        }
    }
}
