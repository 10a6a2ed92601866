//! Does a network that decides hierarchical equality compute the two equalities on the way?
//!
//! Distributed alignment search (Geiger et al. 2023, arXiv 2303.02536, §4). Four vectors are read;
//! the label says whether a = b and c = d have the same truth value. A three-layer network learns
//! the task. Then a rotation of its first hidden layer is trained so that swapping its first half
//! between two inputs swaps the truth value of a = b, and its second half that of c = d.
//!
//! ```sh
//! cargo run --release --example das_hierarchical_equality
//! cargo run --release --example das_hierarchical_equality -- --graph equality.svg
//! ```
//!
//! Prints the interchange intervention accuracy on 12,800 held-out counterfactuals of vectors not
//! seen in training, next to that of the alternatives: a random rotation, the neurons themselves,
//! whole layers, no swap; and of a wrong hypothesis, that the layer keeps the identity of the first
//! vector.
//!
//! The accuracies of seeds 0 to 5 are 0.9978, 0.9986, 0.9994, 0.9982, 0.9987 and 0.9977 (on Flex).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::{Int, Tensor, TensorData, activation::relu, backend::Backend};
use burn_align::causal_models::{
    BalancedSampler, CausalModel, CounterfactualConfig, CounterfactualExample, Inputs, Target,
    Values, Variable, generate_counterfactuals_with,
};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
    InterventionType, Locations, Subspaces,
};
use burn_align::training::{
    Controlled, History, InterchangeData, RateSchedule, TrainingConfig, evaluate,
    evaluate_with_controls, losses, train,
};
use burn_align_models::{
    AlignableTransformer, Component, Cx, InputKinds, LayerLayout, ModelDims, ModelInput,
    ModelLayout, Pass, Sublayer,
};
use clap::Parser;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use workbench::plot::{diagram_file, write_diagram, write_history};
use workbench::{BackendArgs, on_backend, out, progress};

/// Features of one vector.
const VECTOR: usize = 4;
/// Features of a hidden layer.
const HIDDEN: usize = 16;
/// Vectors that an input is drawn from.
const POOL: i64 = 1000;

/// Three hidden layers and a linear classifier.
#[derive(Module, Debug)]
struct Mlp<B: Backend> {
    hidden: Vec<Linear<B>>,
    output: Linear<B>,
    #[module(skip)]
    layout: ModelLayout,
}

impl<B: Backend> Mlp<B> {
    fn new(device: &B::Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let hidden = Sublayer::by_position("hidden layer").followed_by(Component::BlockOutput);
        Self {
            hidden: (0..3).map(|_| linear(HIDDEN, HIDDEN)).collect(),
            output: linear(HIDDEN, 2),
            layout: ModelLayout::new(
                ModelDims::features(3, HIDDEN, 2),
                InputKinds::features(HIDDEN),
                vec![LayerLayout::new([hidden]); 3],
            ),
        }
    }
}

impl<B: Backend> AlignableTransformer<B> for Mlp<B> {
    fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    fn device(&self) -> B::Device {
        self.output.weight.val().device()
    }

    fn embed(&self, input: ModelInput<B>, _pass: &Pass<B>) -> Tensor<B, 3> {
        let ModelInput::Features(x) = input else {
            panic!("this model reads features, not tokens");
        };
        x
    }

    fn sublayer(&self, layer: usize, _: usize, x: Tensor<B, 3>, _: &mut Cx<'_, B>) -> Tensor<B, 3> {
        relu(self.hidden[layer].forward(x))
    }

    fn final_norm(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        x
    }

    fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.output.forward(x)
    }
}

/// Finds both equalities by distributed alignment search.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    backend: BackendArgs,
    /// Seed of the network, the data and the rotation.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Passes over the 25,600 counterfactuals.
    #[arg(long, default_value_t = 20)]
    epochs: usize,
    /// Write loss and accuracy over steps into this file (SVG, PNG, CSV or JSON).
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Picture of the causal model, .svg, .png or .dot.
    #[arg(long, value_name = "FILE", value_parser = diagram_file)]
    graph: Option<PathBuf>,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| search::<B>(
            &args, &device
        ))
    })
}

fn search<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    let equality = CausalModel::<i64>::builder()
        .input("a", 0..POOL)
        .input("b", 0..POOL)
        .input("c", 0..POOL)
        .input("d", 0..POOL)
        .variable("wx", ["a", "b"], 0..=1, |[a, b]| a == b)
        .variable("yz", ["c", "d"], 0..=1, |[c, d]| c == d)
        .variable("out", ["wx", "yz"], 0..=1, |[wx, yz]| wx == yz)
        .build()?;
    let [wx, yz, label] = equality.variables(["wx", "yz", "out"])?;
    if let Some(file) = &args.graph {
        write_diagram(file, &equality.diagram())?;
    }
    let sampler = BalancedSampler::new(&equality, label)?;
    let network = learn_task::<B>(&equality, &sampler, label, args.seed, device)?;

    let pairs = [(wx, 0), (yz, 1)];
    let targets = [vec![wx], vec![yz], vec![wx, yz]];
    let data =
        |examples, seed: u64| -> Result<Vec<InterchangeData<B>>> {
            let mut data = Vec::new();
            for (index, target) in targets.iter().enumerate() {
                let target = Target::source_each(target.iter().copied());
                let seed = seed + index as u64;
                let config = CounterfactualConfig::new(examples, [target])
                    .with_flips(0.5)
                    .with_seed(seed);
                let drawn = generate_counterfactuals_with(&equality, &config, |_, rng| {
                    Ok(sampler.sample(rng))
                })?;
                data.push(interchanges(&drawn.examples, &pairs, seed, device));
            }
            Ok(data)
        };
    // Each dataset has its own vectors.
    let (training, held_out) = (
        data(25_600 / 3, 1000 + 10 * args.seed)?,
        data(12_800_usize.div_ceil(3), 2000 + 10 * args.seed)?,
    );
    // For the progress of training; nothing is selected with it.
    let followed = data(1024, 5000 + 10 * args.seed)?;
    let (found, history) = align(args, &network, &training, &followed)?;
    let controls = evaluate_with_controls(&found, &held_out, 1024, args.seed + 77)?;
    let neurons = AlignableModel::new(config(InterventionType::Vanilla), network.valid())?;
    let localist = evaluate(&neurons, &held_out, 1024)?;

    // The identity of the first vector: a hypothesis that also predicts every label.
    let identity = CausalModel::<i64>::builder()
        .input("a", 0..POOL)
        .input("b", 0..POOL)
        .input("c", 0..POOL)
        .input("d", 0..POOL)
        .variable("first", ["a"], Values::Any, |[a]| *a)
        .variable(
            "out",
            ["first", "b", "c", "d"],
            0..=1,
            |[first, b, c, d]| (first == b) == (c == d),
        )
        .build()?;
    let [first] = identity.variables(["first"])?;
    let wrong = |examples, seed: u64| -> Result<Vec<InterchangeData<B>>> {
        let config = CounterfactualConfig::new(examples, [Target::one_source([first])])
            .with_flips(0.5)
            .with_seed(seed);
        let drawn = generate_counterfactuals_with(&identity, &config, |draw, rng| {
            related(&sampler, draw, rng)
        })?;
        Ok(vec![interchanges(
            &drawn.examples,
            &[(first, 0)],
            seed,
            device,
        )])
    };
    let (wrong_training, wrong_held_out) = (
        wrong(25_600, 3000 + 10 * args.seed)?,
        wrong(12_800, 4000 + 10 * args.seed)?,
    );
    let (wrong_found, _) = align(args, &network, &wrong_training, &[])?;
    let wrong_found = evaluate(&wrong_found, &wrong_held_out, 1024)?;

    let Controlled {
        trained,
        random_rotation,
        whole_vector,
        no_swap,
    } = controls;
    out!(
        "interchange intervention accuracy, {} held-out counterfactuals",
        trained.examples
    )?;
    for (name, evaluation) in [
        ("both equalities, trained rotation", trained),
        ("random rotation", random_rotation),
        ("neurons 0-7 and 8-15", localist),
        ("whole layer", whole_vector),
        ("no swap", no_swap),
        ("identity of the first vector", wrong_found),
    ] {
        let [low, high] = evaluation.interval;
        out!(
            "{name:<34} {:.4}  [{low:.4}, {high:.4}]",
            evaluation.accuracy
        )?;
    }
    if let Some(file) = &args.plot {
        write_history(file, "Hierarchical equality", &history)?;
    }
    ensure!(trained.accuracy >= 0.97, "the equalities were not found");
    for control in [
        random_rotation,
        localist,
        whole_vector,
        no_swap,
        wrong_found,
    ] {
        ensure!(
            control.accuracy < 0.85,
            "a control is as good as the trained rotation"
        );
    }
    Ok(())
}

/// A network that solves the task.
fn learn_task<B: Backend>(
    equality: &CausalModel<i64>,
    sampler: &BalancedSampler<i64>,
    label: Variable,
    seed: u64,
    device: &B::Device,
) -> Result<Mlp<Autodiff<B>>> {
    const STEPS: usize = 4000;
    const BATCH: usize = 1024;
    Autodiff::<B>::seed(device, seed);
    let mut network = Mlp::<Autodiff<B>>::new(device);
    // Without decay the logits grow so large that alignments are hard to find.
    let mut adam = AdamWConfig::new().with_weight_decay(0.3).init();
    let loss = CrossEntropyLossConfig::new().init(device);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |pool: u64| -> Result<(Vec<Inputs<i64>>, Vec<i64>, u64)> {
        let inputs: Vec<_> = (0..BATCH).map(|_| sampler.sample(&mut rng)).collect();
        let labels = inputs.iter().map(|inputs| Ok(equality.run(inputs)?[label]));
        let labels = labels.collect::<Result<Vec<i64>>>()?;
        Ok((inputs, labels, pool))
    };
    let bar = progress::bar(STEPS as u64, "learning the task");
    for step in 0..STEPS {
        let (inputs, labels, pool) = draw(10_000 + step as u64)?;
        let x = Tensor::from_inner(features::<B>(inputs.iter(), pool, device));
        let labels =
            Tensor::<Autodiff<B>, 1, Int>::from_data(TensorData::new(labels, [BATCH]), device);
        let logits = network.forward(ModelInput::Features(x)).squeeze_dim(1);
        let gradients = loss.forward(logits, labels).backward();
        let gradients = GradientsParams::from_grads(gradients, &network);
        // Decays to zero in the last quarter.
        let left = (STEPS - step) as f64 / (STEPS as f64 / 4.0);
        network = adam.step(3e-3 * left.min(1.0), network, gradients);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (mut right, mut all) = (0, 0);
    for pool in 0..8 {
        let (inputs, labels, pool) = draw(5_000 + pool)?;
        let x = features::<B>(inputs.iter(), pool, device);
        let logits: Tensor<B, 2> = network
            .valid()
            .forward(ModelInput::Features(x))
            .squeeze_dim(1);
        let found: Vec<i64> = logits.argmax(1).into_data().iter::<i64>().collect();
        right += found.iter().zip(&labels).filter(|(a, b)| a == b).count();
        all += labels.len();
    }
    let accuracy = right as f64 / all as f64;
    out!("task accuracy {accuracy:.4} on {all} unseen inputs")?;
    ensure!(accuracy >= 0.98, "the network has not learned the task");
    Ok(network)
}

/// One rotation of the first hidden layer, in two halves; each half has its own source.
fn config(kind: InterventionType) -> AlignableConfig {
    let half = HIDDEN / 2;
    let hidden = AlignableRepresentationConfig::new(0, Component::BlockOutput)
        .with_intervention(kind)
        .with_subspace_partition(vec![vec![0, half], vec![half, HIDDEN]])
        .with_link(0);
    AlignableConfig::new([hidden.clone(), hidden])
}

type Aligned<B> = AlignableModel<B, Mlp<B>>;

/// The trained alignment, and how training went.
fn align<B: Backend>(
    args: &Args,
    network: &Mlp<Autodiff<B>>,
    data: &[InterchangeData<B>],
    followed: &[InterchangeData<B>],
) -> Result<(Aligned<B>, History)> {
    let config = config(InterventionType::RotatedSpace);
    let model = AlignableModel::new_seeded(config, network.clone(), args.seed)?;
    let training = TrainingConfig::default()
        .with_epochs(args.epochs)
        .with_batch_size(128)
        .with_learning_rate(1e-2)
        .with_schedule(RateSchedule::WarmUpThenDecay(0.05))
        .with_seed(args.seed);
    let (model, history) = train(
        model,
        data,
        followed,
        &training,
        losses::cross_entropy,
        progress::training("aligning"),
    )?;
    Ok((model.valid(), history))
}

/// Examples of a causal model as inputs of the network, with each variable in its part of the
/// layer.
fn interchanges<B: Backend>(
    examples: &[CounterfactualExample<i64>],
    parts: &[(Variable, usize)],
    pool: u64,
    device: &B::Device,
) -> InterchangeData<B> {
    let batch = examples.len();
    let base = features::<B>(examples.iter().map(|example| &example.base), pool, device);
    let mut sources = Vec::new();
    let mut places = Vec::new();
    for part in 0..2 {
        // All examples have the same target.
        let source = examples[0].sources.iter().position(|source| {
            let mut known = parts.iter().filter(|(_, other)| *other == part);
            known.any(|(variable, _)| source.variables.contains(variable))
        });
        places.push(source.map(|_| 0));
        sources.push(match source {
            None => base.clone(),
            Some(source) => {
                let inputs = examples
                    .iter()
                    .map(|example| &example.sources[source].inputs);
                features::<B>(inputs, pool, device)
            }
        });
    }
    let inputs = AlignableInputs::new(base)
        .with_sources(sources)
        .with_locations(Locations::each(places))
        .with_subspaces(Subspaces::Each(vec![
            Some(vec![vec![0]; batch]),
            Some(vec![vec![1]; batch]),
        ]));
    InterchangeData::new(
        inputs,
        examples.iter().map(|example| example.label[0] as u32),
    )
}

/// The vectors that the numbers represent, concatenated: `[batch, 1, 16]`.
fn features<'a, B: Backend>(
    inputs: impl Iterator<Item = &'a Inputs<i64>>,
    pool: u64,
    device: &B::Device,
) -> Tensor<B, 3> {
    let mut rng = ChaCha8Rng::seed_from_u64(pool);
    let vectors: Vec<[f32; VECTOR]> = (0..POOL)
        .map(|_| std::array::from_fn(|_| rng.random_range(-1.0..1.0)))
        .collect();
    let mut values = Vec::new();
    let mut batch = 0;
    for inputs in inputs {
        for number in inputs.values() {
            values.extend(vectors[*number as usize]);
        }
        batch += 1;
    }
    Tensor::from_data(TensorData::new(values, [batch, 1, HIDDEN]), device)
}

/// Inputs whose first vector may be the base's second, so that swapping it can make them equal.
fn related(
    sampler: &BalancedSampler<i64>,
    draw: burn_align::causal_models::Draw<'_, i64>,
    rng: &mut ChaCha8Rng,
) -> Result<Inputs<i64>, burn_align::causal_models::CausalModelError> {
    use burn_align::causal_models::Draw;
    let drawn = sampler.sample(rng);
    Ok(match draw {
        Draw::Source { base, .. } if rng.random_bool(0.5) => {
            let mut values: Vec<i64> = drawn.values().to_vec();
            values[0] = base.values()[1];
            Inputs::from(values)
        }
        _ => drawn,
    })
}
