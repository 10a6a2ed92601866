//! The memory that a plan uses, compared with the estimate of `explain` and with its budget, and how
//! much of it is new.
//!
//! Separate from the suite, because allocations are counted and nothing else may run meanwhile.

#![cfg(feature = "flex")]

use burn::backend::Flex;
use burn::tensor::DType;
use burn_align::engine::{Edit, LogitPositions, Plan, PlanError, Results, RunOptions, Units};
use burn_align::interventions::VanillaIntervention;
use burn_align_models::{
    AlignableTransformer, Component, Decoder, DecoderConfig, ModelInput, Site, TokenBatch,
};
use cap::Cap;
use peak_alloc::PeakAlloc;
use serde_json::json;
use workbench::out;

#[global_allocator]
static ALLOCATOR: Cap<PeakAlloc> = Cap::new(MEMORY, usize::MAX);
const MEMORY: PeakAlloc = PeakAlloc;

type B = Flex;

/// Swaps at every layer and every fourth position of `batch` examples of `pos` tokens.
fn sweep(layers: usize, [batch, pos]: [usize; 2], logits: &LogitPositions) -> Plan<B> {
    let tokens = |shift: usize| {
        let rows =
            (0..batch).map(|row| (0..pos).map(move |at| ((shift + 7 * row + at) % 100) as u32));
        TokenBatch::new(rows.map(Iterator::collect).collect()).expect("a batch")
    };
    let mut plan = Plan::new();
    let (base, source) = (plan.tokens(&tokens(0)), plan.tokens(&tokens(31)));
    let source = plan.world(source, []);
    for layer in 0..layers {
        for position in (0..pos).step_by(4) {
            let site = Site::Block(layer, Component::MlpOutput);
            let edit = Edit::from_world(source, site, Units::position(position), 0);
            let world = plan.world(base, [edit]);
            plan.read_logits(world, logits.clone());
        }
    }
    plan
}

/// Peak bytes of running a plan, and its results.
fn measured<M: AlignableTransformer<B>>(
    plan: &Plan<B>,
    model: &M,
    options: &RunOptions,
) -> (u64, Results<B>) {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let results = plan
        .run_with(model, &[VanillaIntervention], options)
        .expect("valid");
    ((MEMORY.peak_usage() - before) as u64, results)
}

fn check<M: AlignableTransformer<B>>(name: &str, model: &M) {
    // Weights are drawn, and thread buffers allocated, when they are first needed.
    drop(model.forward(ModelInput::Tokens(burn::tensor::Tensor::ones(
        [4, 64],
        &Default::default(),
    ))));
    let layers = model.dims().layers;
    for (shape, logits) in [
        ([8, 32], LogitPositions::Last),
        ([2, 64], LogitPositions::All),
        ([16, 16], LogitPositions::Last),
    ] {
        let plan = sweep(layers, shape, &logits);
        let estimated = plan.explain(model).expect("valid").peak_bytes;
        let (free, whole) = measured(&plan, model, &RunOptions::default());
        let share = estimated as f64 / free as f64;
        out!("{name} {shape:?} {logits:?}: {free} bytes, {share:.2} of them estimated")
            .expect("standard output");
        assert!((0.9..2.5).contains(&share), "{name} {shape:?}: {share}");

        let reads: usize = whole.iter().map(|x| 4 * x.shape().num_elements()).sum();
        let least = match plan
            .run_with(
                model,
                &[VanillaIntervention],
                &RunOptions::default().with_memory_budget(1),
            )
            .expect_err("nothing fits into a byte")
        {
            PlanError::MemoryBudget { needed, budget: 1 } => needed,
            other => panic!("{other}"),
        };
        assert!(least > reads as u64, "{least} {reads}");
        for budget in [least, least.midpoint(estimated)] {
            let options = RunOptions::default().with_memory_budget(budget);
            let (taken, parts) = measured(&plan, model, &options);
            out!(
                "    {budget} allowed: {taken} bytes, {:.2}",
                taken as f64 / budget as f64
            )
            .expect("standard output");
            assert!(
                taken as f64 <= 1.05 * budget as f64,
                "{name} {shape:?}: {taken} of {budget}"
            );
            for (a, b) in whole.iter().zip(parts.iter()) {
                let largest = (a.clone() - b.clone()).abs().max().into_scalar();
                assert!(largest < 1e-4, "{name} {shape:?}: {largest}");
            }
        }
    }
}

/// What more layers ask for besides what earlier results have left, in vectors of the residual stream
/// for each of their tokens.
fn check_new_memory(name: &str, model: impl Fn(usize) -> Decoder<B>) {
    let forward = {
        let mut plan = Plan::new();
        let rows = (0..16).map(|row| (0..64).map(|at| (7 * row + at) % 100).collect());
        let input = plan.tokens(&TokenBatch::new(rows.collect()).expect("a batch"));
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Last);
        plan
    };
    let sweep = sweep(4, [2, 48], &LogitPositions::Last);
    for (what, plan, most) in [("forward", forward, 2.0), ("sweep", sweep, 3.5)] {
        let [(few, new), (many, newer)] = [4, 12].map(|layers| {
            let model = model(layers);
            let run = || plan.run(&model, &[VanillaIntervention]).expect("valid");
            run();
            let before = ALLOCATOR.total_allocated();
            run();
            let new = ALLOCATOR.total_allocated() - before;
            let explanation = plan.explain(&model).expect("valid");
            let stages = explanation.passes.iter().flat_map(|pass| &pass.stages);
            let attentions = stages.filter(|it| it.stage.ends_with(" attention"));
            let tokens: usize = attentions.map(|stage| stage.positions).sum();
            (4 * tokens * model.dims().d_model, new)
        });
        let vectors = (newer as f64 - new as f64) / (many - few) as f64;
        out!("{name}, {what}: {vectors:.2} new vectors for a token and layer")
            .expect("standard output");
        assert!(vectors <= most, "{name}, {what}: {vectors}");
    }
}

#[test]
fn runs_stay_within_their_memory() {
    let device = Default::default();
    let sizes = json!({
        "vocab_size": 1000,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "max_position_embeddings": 64,
        "tie_word_embeddings": true,
    });
    for more in [
        json!({
            "model_type": "gpt2",
            "n_positions": 64,
            "n_embd": 96,
            "n_layer": 4,
            "n_head": 6,
        }),
        json!({"model_type": "llama", "num_key_value_heads": 2}),
        // Parallel blocks; norms after attention and MLP, and soft caps.
        json!({"model_type": "gpt_neox"}),
        json!({"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 16}),
    ] {
        let name = more["model_type"].as_str().expect("a family").to_owned();
        let mut config = match name.as_str() {
            "gpt2" => json!({"vocab_size": 1000}),
            _ => sizes.clone(),
        };
        let known = config.as_object_mut().expect("an object");
        known.extend(more.as_object().expect("an object").clone());
        let model = |layers: usize| {
            let mut config = config.clone();
            for key in ["n_layer", "num_hidden_layers"] {
                if let Some(known) = config.get_mut(key) {
                    *known = layers.into();
                }
            }
            let config = DecoderConfig::from_json(&config).expect("a valid configuration");
            config.init_seeded::<B>(0, DType::F32, &device)
        };
        check(&name, &model(4));
        check_new_memory(&name, model);
    }
}
