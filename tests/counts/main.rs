//! What runs ask of a device: kernels, copies to it, and copies back, for which the host waits.
//!
//! ```sh
//! cargo test --release --test counts -- --nocapture   # prints the counts
//! ```
//!
//! Kernels are counted without fusion, and copies as a backend makes them that has no kernel for
//! ranges of numbers: one for each of these too.

mod channel;

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align::engine::{Edit, LogitPositions, Operand, Plan, RunOptions, Units};
use burn_align::front::{AlignableConfig, AlignableModel, AlignableRepresentationConfig};
use burn_align::generate::{GenerateOptions, GeneratedWorld, generate};
use burn_align::interventions::VanillaIntervention;
use burn_align::training::{
    InterchangeData, InterchangeExample, TrainingConfig, TrainingEvent, losses, train,
};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, DecoderConfig, ModelInput, Site, Tables, TokenBatch,
};
use serde_json::json;
use workbench::out;

use channel::{Counting, Counts, counted, so_far};

const FAMILIES: [&str; 2] = ["gpt2", "llama"];

fn model<B: Backend>(family: &str, layers: usize) -> Decoder<B> {
    let config = match family {
        "gpt2" => json!({
            "model_type": "gpt2",
            "vocab_size": 50,
            "n_positions": 64,
            "n_embd": 16,
            "n_layer": layers,
            "n_head": 4,
        }),
        _ => json!({
            "model_type": "llama",
            "vocab_size": 50,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        }),
    };
    let device = B::Device::default();
    let config = DecoderConfig::from_json(&config).expect("a valid configuration");
    let model = config.init_seeded::<B>(0, DType::F32, &device);
    // Weights are drawn when they are first read.
    drop(model.forward(ModelInput::Tokens(Tensor::ones([1, 2], &device))));
    model
}

/// Examples of five tokens.
fn prompts(examples: usize, salt: usize) -> TokenBatch {
    let ids = (0..examples).map(|example| {
        let id = |pos: usize| ((example * 17 + pos * 29 + salt) % 50) as u32;
        (0..5).map(id).collect()
    });
    TokenBatch::new(ids.collect()).expect("a batch")
}

fn run(plan: &Plan<Counting>, model: &Decoder<Counting>, options: &RunOptions) -> Counts {
    let (results, counts) = counted(|| plan.run_with(model, &[VanillaIntervention], options));
    results.expect("valid");
    assert_eq!(counts.reads(), 0, "a plan waits for the device: {counts}");
    counts
}

/// What each of two more layers adds to some count.
fn for_a_layer(of: impl Fn(usize) -> Counts, what: impl Fn(&Counts) -> usize) -> usize {
    let [few, many] = [4, 6].map(of).map(|counts| what(&counts));
    (many - few).div_ceil(2)
}

#[track_caller]
fn assert_at_most(what: &str, found: usize, ceiling: usize, counts: &Counts) {
    out!("{what}: {found}, at most {ceiling}\n    {counts}").expect("standard output");
    assert!(
        found <= ceiling,
        "{what}: {found}, at most {ceiling}; {counts}"
    );
}

#[test]
fn a_forward_pass_copies_its_tokens() {
    for (family, kernels, tables) in [("gpt2", 52, 1), ("llama", 62, 3)] {
        let mut plan = Plan::new();
        let input = plan.tokens(&prompts(3, 0));
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Last);
        let of = |layers: usize| run(&plan, &model(family, layers), &RunOptions::default());
        let layer = for_a_layer(of, Counts::kernels);
        assert_at_most(&format!("{family}: a layer"), layer, kernels, &of(2));
        assert_eq!(for_a_layer(of, Counts::uploads), 0, "{}", of(2));
        // The tokens, and four lists that say which tokens of the last layer are read. Once, angles
        // of rotations, and the positions from which the mask is made.
        let first = of(2);
        assert_at_most("copies", first.uploads(), 5 + tables, &first);
        let (options, model) = (RunOptions::default(), model(family, 2));
        run(&plan, &model, &options);
        let next = run(&plan, &model, &options);
        assert_at_most("copies of the next pass", next.uploads(), 5, &next);
        assert_at_most("their bytes", next.uploaded_bytes(), 156, &next);
    }
}

/// Numbers that are only moved, in vectors of the residual stream for each token and layer.
#[test]
fn a_layer_moves_little() {
    let forward = {
        let mut plan = Plan::new();
        let input = plan.tokens(&prompts(3, 0));
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Last);
        plan
    };
    // Swaps in the first two layers, of the rows that go through all of them.
    let sweep = sweep(2);
    // A forward pass splits and merges heads, or exchanges halves of them; suffixes are moved where an
    // attention has fewer kinds of them than there are, and follow keys and values of their trunks.
    for (family, of_forward, of_sweep) in [("gpt2", 4.0, 16.0), ("llama", 4.0, 15.0)] {
        for (what, plan, most) in [
            ("forward", &forward, of_forward),
            ("sweep", &sweep, of_sweep),
        ] {
            let [few, many] = [4, 6].map(|layers| {
                let model = model(family, layers);
                let counts = run(plan, &model, &RunOptions::default());
                let explanation = plan.explain(&model).expect("valid");
                let stages = explanation.passes.iter().flat_map(|pass| &pass.stages);
                let attentions = stages.filter(|it| it.stage.ends_with(" attention"));
                let tokens: usize = attentions.map(|stage| stage.positions).sum();
                (tokens * model.dims().d_model * 4, counts)
            });
            let moved = (many.1.moved_bytes() - few.1.moved_bytes()) as f64;
            let vectors = moved / (many.0 - few.0) as f64;
            out!("{family}: a {what} moves {vectors:.2} vectors").expect("standard output");
            assert!(vectors <= most, "{family}, {what}: {vectors}; {}", many.1);
        }
    }
}

/// Without copies of the activation, and without an index.
#[test]
fn one_position_of_all_examples_is_edited_in_place() {
    for family in FAMILIES {
        let model = model::<Counting>(family, 2);
        let options = RunOptions::default();
        let of = |edited: bool| {
            let mut plan = Plan::new();
            let input = plan.tokens(&prompts(3, 0));
            let values = Tensor::ones([1, 1, 16], &model.device());
            let operand = Operand::Constant(plan.constant(values));
            let site = Site::Block(0, Component::BlockOutput);
            let edit = Edit::new(site, Units::position(2), 0, operand);
            let world = plan.world(input, edited.then_some(edit));
            plan.read_logits(world, LogitPositions::All);
            run(&plan, &model, &options)
        };
        of(false); // Tables are made.
        let [plain, edited] = [false, true].map(of);
        assert_eq!(edited.uploads(), plain.uploads(), "{plain}\n{edited}");
        for (name, more) in [("SliceAssign", 1), ("Select", 0), ("Cat", 0)] {
            let found = edited.kernels_of(name) - plain.kernels_of(name);
            assert_eq!(found, more, "{family}: {name}: {plain}\n{edited}");
        }
        // The old values, which an intervention may use, and the new ones.
        let found = edited.kernels() - plain.kernels();
        assert_at_most("an edit", found, 3, &edited);
    }
}

/// Swaps at each layer and each of four positions.
fn sweep(layers: usize) -> Plan<Counting> {
    let mut plan = Plan::new();
    let (base, source) = (plan.tokens(&prompts(1, 0)), plan.tokens(&prompts(1, 7)));
    let source = plan.world(source, []);
    for layer in 0..layers {
        for position in 0..4 {
            let site = Site::Block(layer, Component::BlockOutput);
            let edit = Edit::from_world(source, site, Units::position(position), 0);
            let world = plan.world(base, [edit]);
            plan.read_logits(world, LogitPositions::Last);
        }
    }
    plan
}

#[test]
fn a_sweep_copies_what_changes() {
    // Of the source, four of five positions are used: rows of another length.
    for (family, kernels) in [("gpt2", 179), ("llama", 186)] {
        let of = |layers: usize| {
            let model = model(family, layers);
            run(&sweep(layers), &model, &RunOptions::default())
        };
        let counts = of(4);
        // Where rows are copied to, at which positions they are, where their prefixes are, for each
        // of three positions that have one, and from where cells are taken: for four cells of the
        // grid.
        let copies = for_a_layer(of, Counts::uploads);
        assert_at_most(&format!("{family}: copies"), copies, 8, &counts);
        let layer = for_a_layer(of, Counts::kernels);
        assert_at_most(&format!("{family}: a layer"), layer, kernels, &counts);
    }
}

#[test]
fn a_step_of_training_copies_its_labels() {
    type A = Autodiff<Counting>;
    for family in FAMILIES {
        let examples = (0..4).map(|example| InterchangeExample {
            base: prompts(4, 0).ids()[example].clone(),
            sources: vec![prompts(4, 7).ids()[example].clone()],
            label: 3 * example as u32,
        });
        let data = InterchangeData::<Counting>::from_examples(examples).expect("examples");
        let data = [data.with_locations(2)];
        let residual = AlignableRepresentationConfig::new(1, Component::BlockOutput);
        let config = AlignableConfig::new([residual.with_low_rank(3)]);
        let training = TrainingConfig::default().with_epochs(6).with_batch_size(4);
        let of = |layers: usize| {
            let model = AlignableModel::new_seeded(config.clone(), model::<A>(family, layers), 0);
            let model = model.expect("it fits");
            let mut steps: Vec<Counts> = Vec::new();
            let observe = |event: TrainingEvent<'_>| {
                if let TrainingEvent::Step(_) = event {
                    steps.push(so_far());
                }
            };
            let run = train(model, &data, &[], &training, losses::cross_entropy, observe);
            run.expect("it can be trained");
            steps[5].since(&steps[4])
        };
        let step = of(4);
        // The labels, and numbers from which the identity matrix is made.
        let what = format!("{family}: copies of a step");
        assert_at_most(&what, step.uploads(), 2, &step);
        // The loss, and how far the rotation is from orthonormal.
        assert_at_most("reads", step.reads(), 2, &step);
        for what in [Counts::uploads, Counts::reads] {
            assert_eq!(for_a_layer(of, what), 0, "{family}: {step}");
        }
        let layer = for_a_layer(of, Counts::kernels);
        assert_at_most("kernels for a layer", layer, 220, &step);
    }
}

#[test]
fn a_step_of_generation_copies_tokens_and_positions() {
    for (family, kernels) in [("gpt2", 66), ("llama", 63)] {
        let of = |layers: usize| {
            let model = model::<Counting>(family, layers);
            let mut plan = Plan::new();
            let input = plan.tokens(&prompts(2, 0));
            let world = plan.world(input, []);
            let mut steps: Vec<Counts> = Vec::new();
            let worlds = [GeneratedWorld::new(world)];
            let options = GenerateOptions::new(6);
            let texts = generate(
                &model,
                &[VanillaIntervention],
                &plan,
                &worlds,
                &options,
                |token| {
                    if token.row == 0 {
                        steps.push(so_far());
                    }
                },
            );
            texts.expect("valid");
            steps[5].since(&steps[4])
        };
        let step = of(4);
        assert_at_most(&format!("{family}: copies"), step.uploads(), 2, &step);
        assert_at_most("their bytes", step.uploaded_bytes(), 2 * 2 * 8, &step);
        // The logits of all rows.
        assert_eq!(step.reads(), 1, "{step}");
        for what in [Counts::uploads, Counts::reads] {
            assert_eq!(for_a_layer(of, what), 0, "{step}");
        }
        let layer = for_a_layer(of, Counts::kernels);
        assert_at_most("kernels for a layer", layer, kernels, &step);
    }
}

/// Lists that are kept are those that were asked for.
#[test]
fn a_repeated_plan_copies_its_tokens_alone() {
    let (plan, model) = (sweep(2), model("gpt2", 2));
    let options = RunOptions::default().with_tables(Tables::keeping_indices());
    let first = plan.run_with(&model, &[VanillaIntervention], &options);
    let (second, counts) = counted(|| plan.run_with(&model, &[VanillaIntervention], &options));
    assert_at_most("copies", counts.uploads(), 1, &counts);
    let [first, second] = [first, second].map(|it| it.expect("valid"));
    for (first, second) in first.iter().zip(second.iter()) {
        let values = |x: &Tensor<Counting, 3>| x.to_data().to_vec::<f32>().expect("f32");
        assert_eq!(values(first), values(second));
    }
}
