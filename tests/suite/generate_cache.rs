//! What generation keeps: caches that a later run continues, their size, and rows that the caller
//! ends.

use std::ops::ControlFlow;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use burn_align::engine::{
    CachedRow, Edit, LogitPositions, Operand, Plan, RunOptions, Units, WorldId, WorldInput,
};
use burn_align::generate::{
    Finish, Flow, GenerateError, GenerateOptions, GeneratedRow, GeneratedTexts, GeneratedWorld,
    Sampling, StepEdit, StepOperand, Token, explain_generation, generate,
};
use burn_align::interventions::AdditionIntervention;
use burn_align_models::{AlignableTransformer, Component, Decoder, Site};

use crate::support::{load, max_difference, message, tokens};

on_every_backend!(
    a_conversation_is_its_whole_text,
    a_cache_is_cut_where_texts_part,
    the_caller_ends_rows,
    operands_of_the_prompts_stay_the_same,
    a_memory_budget_changes_nothing
);

const AFTER_BLOCK_0: Site = Site::Block(0, Component::BlockOutput);

/// What is added to the residual stream, `[1, 1, d_model]`.
fn direction<B: Backend>(model: &Decoder<B>, strength: f64) -> Tensor<B, 3> {
    let d_model = model.dims().d_model;
    let values = (0..d_model).map(|i| ((i * 37 % 11) as f32 - 5.0) / 3.0);
    let values = TensorData::new(values.collect(), [1, 1, d_model]);
    Tensor::from_data(values, &model.device()) * strength
}

/// A text that is steered, or not, at the given positions and at each step.
fn world<B: Backend>(
    plan: &mut Plan<B>,
    model: &Decoder<B>,
    input: WorldInput<B>,
    positions: std::ops::Range<usize>,
    steered: bool,
) -> GeneratedWorld<B> {
    let input = plan.input(input);
    if !steered {
        return GeneratedWorld::new(plan.world(input, []));
    }
    let vector = direction(model, 1.0);
    let constant = plan.constant(vector.clone());
    let units = Units::positions(positions);
    let edit = Edit::new(AFTER_BLOCK_0, units, 0, Operand::Constant(constant));
    let step = StepEdit::new(AFTER_BLOCK_0, 0, StepOperand::Constant(vector));
    GeneratedWorld::new(plan.world(input, [edit])).with_edit(step)
}

fn run<B: Backend>(
    model: &Decoder<B>,
    plan: &Plan<B>,
    worlds: &[GeneratedWorld<B>],
    options: &GenerateOptions,
) -> Result<GeneratedTexts<B>, GenerateError> {
    generate(
        model,
        &[AdditionIntervention],
        plan,
        worlds,
        options,
        |_| {},
    )
}

fn assert_same<B: Backend>(what: &str, found: &GeneratedRow<B>, expected: &GeneratedRow<B>) {
    assert_eq!(found.tokens, expected.tokens, "{what}");
    let [found, expected] = [found, expected].map(|row| row.logits.clone().expect("kept"));
    let expected = expected.into_data().convert::<f32>();
    let difference = max_difference(found, &expected);
    assert!(difference <= 1e-4, "{what}: {difference}");
}

/// Three turns of two speakers, one of whom is steered, against whole texts.
fn a_conversation_is_its_whole_text<B: Backend>(device: &B::Device) {
    // Words that were said before are less likely, so the beginning must be known.
    let sampling = Sampling::greedy().with_repetition_penalty(1.5);
    let options = GenerateOptions::new(4)
        .with_sampling(sampling)
        .with_logits()
        .with_caches();
    for name in ["gpt2_plain", "llama_gqa", "mistral_window"] {
        let model = load::<B>(name, device);
        let mut texts: [Vec<u32>; 2] = [vec![], vec![]];
        let mut cached: [Option<CachedRow<B>>; 2] = [None, None];
        for turn in [&[2, 7, 1, 8][..], &[3], &[1, 6, 1]] {
            let (mut plan, mut whole) = (Plan::new(), Plan::new());
            let (mut worlds, mut whole_worlds) = (Vec::new(), Vec::new());
            for (speaker, text) in texts.iter_mut().enumerate() {
                text.extend(turn);
                let all = WorldInput::Tokens(tokens(&[&text[..]]));
                let steered = speaker == 1;
                let (input, start) = match &cached[speaker] {
                    Some(row) => (row.then(&text[row.pos()..]), row.pos()),
                    None => (all.clone(), 0),
                };
                let computed = start.max(1)..text.len();
                worlds.push(world(&mut plan, &model, input, computed, steered));
                let positions = 1..text.len();
                whole_worlds.push(world(&mut whole, &model, all, positions, steered));
            }
            let found = run(&model, &plan, &worlds, &options).expect("valid");
            let expected = run(&model, &whole, &whole_worlds, &options).expect("valid");
            for (speaker, (found, expected)) in found.rows.iter().zip(&expected.rows).enumerate() {
                assert_same(&format!("{name}, {speaker}, {turn:?}"), found, expected);
                let row = found.cached.clone().expect("kept");
                texts[speaker].extend(&found.tokens);
                let (_last, computed) = texts[speaker].split_last().expect("tokens");
                assert_eq!(row.tokens(), computed, "the last token is not computed");
                assert_eq!(row.pos(), computed.len());
                cached[speaker] = Some(row);
            }
            let [plain, steered] = [0, 1].map(|row| found.rows[row].logits.clone().expect("kept"));
            let plain = plain.into_data().convert::<f32>();
            assert!(
                max_difference(steered, &plain) > 1e-2,
                "{name}: not steered"
            );
        }
    }
}

fn last_logits<B: Backend>(model: &Decoder<B>, input: WorldInput<B>) -> Tensor<B, 3> {
    let mut plan = Plan::new();
    let input = plan.input(input);
    let world = plan.world(input, []);
    let read = plan.read_logits(world, LogitPositions::Last);
    let results = plan.run(model, &[AdditionIntervention]);
    results.expect("valid").get(read)
}

fn a_cache_is_cut_where_texts_part<B: Backend>(device: &B::Device) {
    // A window of 4 positions no longer has the beginning.
    for (name, there, gone) in [
        ("gpt2_plain", &[1, 3, 5, 6, 8][..], &[0, 9][..]),
        ("qwen3_plain", &[1, 3, 5, 6, 8][..], &[0, 9][..]),
        ("mistral_window", &[6, 8][..], &[0, 3, 9][..]),
    ] {
        let model = load::<B>(name, device);
        let mut plan = Plan::new();
        // Of two rows with one cache, the second.
        let input = plan.tokens(&tokens(&[&[5, 5, 5, 5, 5], &[2, 7, 1, 8, 2]]));
        let worlds = [GeneratedWorld::new(plan.world(input, []))];
        let options = GenerateOptions::new(4).with_caches();
        let texts = run(&model, &plan, &worlds, &options).expect("valid");
        let row = texts.rows[1].cached.clone().expect("kept");
        assert_eq!(row.pos(), 8);
        for first in there {
            let cut = row.first(*first).expect("there");
            assert_eq!(cut.tokens(), &row.tokens()[..*first]);
            let text = [cut.tokens(), &[9, 4]].concat();
            let found = last_logits(&model, cut.then([9, 4]));
            let expected = last_logits(&model, tokens(&[&text]).into());
            let difference = max_difference(found, &expected.into_data().convert::<f32>());
            assert!(difference <= 1e-4, "{name}, {first}: {difference}");
        }
        assert!(gone.iter().all(|first| row.first(*first).is_none()));
    }
}

fn the_caller_ends_rows<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let mut plan = Plan::new();
    let input = plan.tokens(&tokens(&[&[2, 7, 1], &[3, 1, 4, 1], &[5, 9]]));
    let worlds = [GeneratedWorld::new(plan.world(input, []))];
    let options = GenerateOptions::new(6).with_caches();
    let whole = run(&model, &plan, &worlds, &options).expect("valid").rows;
    let addition = [AdditionIntervention];
    let lengths = |rows: &[GeneratedRow<B>]| -> Vec<usize> {
        for ((row, whole), prompt) in rows.iter().zip(&whole).zip([3, 4, 2]) {
            assert_eq!(row.tokens, whole.tokens[..row.tokens.len()]);
            let cached = row.cached.as_ref().expect("kept");
            let known = &cached.tokens()[prompt..];
            assert_eq!(known, &row.tokens[..known.len()]);
        }
        rows.iter().map(|row| row.tokens.len()).collect()
    };

    // One row, after its second token.
    let one = |token: Token<'_>| match (token.row, token.step) {
        (1, 1) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let texts = generate(&model, &addition, &plan, &worlds, &options, one).expect("valid");
    assert_eq!(lengths(&texts.rows), [6, 2, 6]);
    assert_eq!(texts.rows[1].finish, Finish::Stopped);
    assert_eq!(texts.rows[2].finish, Finish::Length);

    // All rows, when the second has its third token: the last one has not.
    let mut count = 0;
    let all = |token: Token<'_>| {
        count += 1;
        match (token.row, token.step) {
            (1, 2) => Flow::EndAll,
            _ => Flow::Continue,
        }
    };
    let texts = generate(&model, &addition, &plan, &worlds, &options, all).expect("valid");
    assert_eq!(count, 8);
    assert_eq!(lengths(&texts.rows), [3, 3, 2]);
    assert!(texts.rows.iter().all(|row| row.finish == Finish::Stopped));

    // A row that has ended anyway says why.
    let last = |token: Token<'_>| match token.finish {
        Some(_) => Flow::EndRow,
        None => Flow::Continue,
    };
    let texts = generate(&model, &addition, &plan, &worlds, &options, last).expect("valid");
    assert!(texts.rows.iter().all(|row| row.finish == Finish::Length));
}

/// An activation of the prompts' plan is a constant at each step. What the plan reads comes back.
fn operands_of_the_prompts_stay_the_same<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let site = Site::Block(1, Component::AttentionValueOutput);
    let options = GenerateOptions::new(5).with_logits();
    let units = Units::position(1).of_head(2);
    let prompts = tokens(&[&[2, 7, 1, 8], &[3, 1]]);

    let mut plan = Plan::new();
    let source = plan.tokens(&tokens(&[&[6, 6, 3], &[4, 0]]));
    let source = plan.world(source, []);
    let read = plan.read(source, site, units.clone());
    let input = plan.tokens(&prompts);
    let activation = StepOperand::Activation {
        world: source,
        site,
        units: units.clone(),
    };
    let step = StepEdit::new(site, 0, activation).of_heads(2);
    let worlds = [GeneratedWorld::new(plan.world(input, [])).with_edit(step)];
    let found = run(&model, &plan, &worlds, &options).expect("valid");
    let values = found.prompts.get(read); // [batch, 1, d_head]
    assert_eq!(values.dims(), [2, 1, model.dims().d_head]);

    let mut plan = Plan::new();
    let input = plan.tokens(&prompts);
    let step = StepEdit::new(site, 0, StepOperand::Constant(values)).of_heads(2);
    let worlds = [GeneratedWorld::new(plan.world(input, [])).with_edit(step)];
    let expected = run(&model, &plan, &worlds, &options).expect("valid");
    for (found, expected) in found.rows.iter().zip(&expected.rows) {
        assert_same("an activation of the prompts", found, expected);
    }
}

/// Three worlds on one prompt, two of them edited after block 0 from position 3 on.
fn forked<B: Backend>(model: &Decoder<B>) -> (Plan<B>, Vec<GeneratedWorld<B>>) {
    let mut plan = Plan::new();
    let input = plan.tokens(&tokens(&[&[2, 7, 1, 8, 2]]));
    let mut worlds: Vec<WorldId> = vec![plan.world(input, [])];
    for strength in [1.0, -1.0] {
        let constant = plan.constant(direction(model, strength));
        let units = Units::positions(3..5);
        let edit = Edit::new(AFTER_BLOCK_0, units, 0, Operand::Constant(constant));
        worlds.push(plan.world(input, [edit]));
    }
    (plan, worlds.into_iter().map(GeneratedWorld::new).collect())
}

fn a_memory_budget_changes_nothing<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let (plan, worlds) = forked(&model);
    let options = GenerateOptions::new(6).with_logits();
    let explained = explain_generation(&model, &plan, &worlds, &options).expect("valid");
    let expected = run(&model, &plan, &worlds, &options).expect("valid");
    let budget = RunOptions::default().with_memory_budget(explained.peak_bytes);
    let within = options.clone().with_run(budget);
    let found = run(&model, &plan, &worlds, &within).expect("valid");
    for (found, expected) in found.rows.iter().zip(&expected.rows) {
        assert_same("within the budget", found, expected);
    }
    let budget = RunOptions::default().with_memory_budget(explained.cache_bytes);
    let error = run(&model, &plan, &worlds, &options.with_run(budget)).expect_err("refused");
    let GenerateError::CacheBudget {
        needed,
        caches,
        rows,
        budget,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!([caches, budget], [explained.cache_bytes; 2]);
    assert!(needed > budget && needed <= explained.peak_bytes);
    assert_eq!(rows, 3);
    assert!(
        message(&error).contains("raise it in RunOptions"),
        "{error}"
    );
}

#[test]
#[cfg(feature = "flex")]
fn caches_are_explained() {
    type B = burn::backend::Flex;
    let model = load::<B>("gpt2_plain", &Default::default());
    let dims = model.dims().clone();
    let (plan, worlds) = forked(&model);
    let explained = |new: usize| {
        let options = GenerateOptions::new(new);
        explain_generation(&model, &plan, &worlds, &options).expect("valid")
    };
    let found = explained(4);
    assert_eq!([found.rows, found.steps], [3, 3]);
    // The edit is after block 0, so its keys of the prompt are there once.
    let sizes = found
        .caches
        .iter()
        .map(|it| [it.layer, it.shared_positions, it.row_positions]);
    let sizes: Vec<[usize; 3]> = sizes.collect();
    assert_eq!(sizes, [[0, 5, 3 * 3], [1, 3, 3 * (2 + 3)]]);
    // Keys and values of all heads, in f32.
    let position = (2 * dims.kv_heads * dims.d_head * 4) as u64;
    assert_eq!(found.prompt_cache_bytes, (5 + 3 + 3 * 2) * position);
    assert_eq!(found.cache_bytes, (5 + 9 + 3 + 15) * position);
    let layer = dims.attention_flops(1, 1, 8) + dims.mlp_flops(1);
    assert_eq!(found.step_flops, 3 * (2 * layer + dims.unembed_flops()));
    assert!(found.peak_bytes >= found.cache_bytes + found.step_bytes);
    assert!(found.to_string().contains("3 rows, 3 steps"), "{found}");
    // One token needs no step, and what is longer than the model is not kept.
    let found = explained(1);
    assert_eq!([found.step_flops, found.step_bytes], [0, 0]);
    assert_eq!(found.cache_bytes, found.prompt_cache_bytes);
    let longest = dims.max_positions.expect("a limit");
    let [found, most] = [usize::MAX, longest - 4].map(|new| explained(new).cache_bytes);
    assert_eq!(found, most);

    // A sliding window keeps what it sees, and what has not been left out yet.
    let model = load::<B>("mistral_window", &Default::default());
    let (plan, worlds) = forked(&model);
    let options = GenerateOptions::new(20);
    let found = explain_generation(&model, &plan, &worlds, &options).expect("valid");
    assert!(found.caches.iter().all(|layer| layer.window.is_some()));

    let error = explain_generation(&model, &plan, &[], &options).expect_err("refused");
    assert_eq!(error, GenerateError::NoWorlds);
}

#[test]
#[cfg(feature = "flex")]
fn sources_of_several_positions_are_refused() {
    type B = burn::backend::Flex;
    let model = load::<B>("gpt2_plain", &Default::default());
    let mut plan = Plan::<B>::new();
    let source = plan.tokens(&tokens(&[&[6, 6, 3], &[4, 0]]));
    let source = plan.world(source, []);
    let input = plan.tokens(&tokens(&[&[2, 7], &[3, 1]]));
    let two = plan.world(input, []);
    let input = plan.tokens(&tokens(&[&[2, 7, 1]]));
    let one = plan.world(input, []);
    let options = GenerateOptions::new(3);
    let refused = |world: WorldId, units: Units| {
        let operand = StepOperand::Activation {
            world: source,
            site: AFTER_BLOCK_0,
            units,
        };
        let step = StepEdit::new(AFTER_BLOCK_0, 0, operand);
        let worlds = [GeneratedWorld::new(world).with_edit(step)];
        message(&run(&model, &plan, &worlds, &options).expect_err("refused"))
    };
    assert_eq!(
        refused(two, Units::positions(0..2)),
        "world 1: a step takes one position of each of 2 examples of world 0, found 2 of each of 2"
    );
    assert_eq!(
        refused(one, Units::position(0)),
        "world 2: a step takes one position of each of 1 examples of world 0, found 1 of each of 2"
    );
    // Outside of the source.
    assert!(refused(two, Units::position(2)).contains("layer 0 block_output"));
}
