//! Generation under interventions, against `transformers`, hooks that run the whole text again, and
//! plans.

use std::fs;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use burn_align::engine::{Edit, Indices, LogitPositions, Operand, Plan, Units, WorldId};
use burn_align::generate::{
    AtLimit, Finish, GenerateError, GenerateOptions, GeneratedTexts, GeneratedWorld, Sampling,
    StepEdit, StepOperand, generate,
};
use burn_align::interventions::{AdditionIntervention, BuiltinIntervention, VanillaIntervention};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, FromPretrained, LoadOptions, Site,
};
use serde::Deserialize;

use crate::support::{FAMILIES, fixtures, load, max_difference, message, tokens};

on_every_backend!(
    greedy_texts_are_those_of_transformers,
    logits_and_activations_are_those_of_the_whole_text,
    a_text_does_not_depend_on_its_batch,
    rows_end_where_they_should
);

const SWAP: usize = 0;
const ADD: usize = 1;
const AFTER_BLOCK_0: Site = Site::Block(0, Component::BlockOutput);

fn interventions<B: Backend>() -> [BuiltinIntervention<B>; 2] {
    [
        BuiltinIntervention::from(VanillaIntervention),
        BuiltinIntervention::from(AdditionIntervention),
    ]
}

/// As in `make_generated.py`.
fn direction<B: Backend>(model: &Decoder<B>) -> Tensor<B, 3> {
    let d_model = model.dims().d_model;
    let values = (0..d_model).map(|i| ((i * 37 % 11) as f32 - 5.0) / 3.0);
    let values = TensorData::new(values.collect(), [1, 1, d_model]);
    Tensor::from_data(values, &model.device())
}

fn add_at_each_step<B: Backend>(model: &Decoder<B>) -> StepEdit<B> {
    StepEdit::new(AFTER_BLOCK_0, ADD, StepOperand::Constant(direction(model)))
}

/// A world with the direction added from position 1 to the end of the prompt.
fn edited_prompt<B: Backend>(plan: &mut Plan<B>, model: &Decoder<B>, prompt: &[u32]) -> WorldId {
    let input = plan.tokens(&tokens(&[prompt]));
    let operand = Operand::Constant(plan.constant(direction(model)));
    let units = Units::positions(1..prompt.len());
    plan.world(input, [Edit::new(AFTER_BLOCK_0, units, ADD, operand)])
}

fn plain_prompt<B: Backend>(plan: &mut Plan<B>, prompt: &[u32]) -> WorldId {
    let input = plan.tokens(&tokens(&[prompt]));
    plan.world(input, [])
}

fn run<B: Backend>(
    model: &Decoder<B>,
    plan: &Plan<B>,
    worlds: &[GeneratedWorld<B>],
    options: &GenerateOptions,
) -> Result<GeneratedTexts<B>, GenerateError> {
    generate(model, &interventions(), plan, worlds, options, |_| {})
}

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    plain: Vec<u32>,
    everywhere: Vec<u32>,
    steps: Vec<u32>,
}

fn greedy_texts_are_those_of_transformers<B: Backend>(device: &B::Device) {
    let text = fs::read_to_string(fixtures().join("generated.json")).expect("the fixture");
    let all: std::collections::BTreeMap<String, Vec<Case>> =
        serde_json::from_str(&text).expect("the fixture");
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let (mut plan, mut worlds, mut expected) = (Plan::new(), Vec::new(), Vec::new());
        for case in &all[name] {
            let steered = |world| GeneratedWorld::new(world).with_edit(add_at_each_step(&model));
            worlds.push(GeneratedWorld::new(plain_prompt(&mut plan, &case.prompt)));
            let everywhere = edited_prompt(&mut plan, &model, &case.prompt);
            worlds.push(steered(everywhere));
            worlds.push(steered(plain_prompt(&mut plan, &case.prompt)));
            expected.extend([&case.plain, &case.everywhere, &case.steps]);
        }
        let options = GenerateOptions::new(64).with_at_limit(AtLimit::Cut);
        let texts = run(&model, &plan, &worlds, &options).expect("valid");
        assert_eq!(texts.rows.len(), expected.len());
        for (row, (found, expected)) in texts.rows.iter().zip(expected).enumerate() {
            assert!(expected.len() >= 9, "{name}");
            let found = &found.tokens[..expected.len()];
            assert_eq!(found, expected, "{name}, row {row}");
        }
    }
}

/// A row that is steered from step 2 on, and one that takes from it at every step.
fn logits_and_activations_are_those_of_the_whole_text<B: Backend>(device: &B::Device) {
    let site = Site::Block(1, Component::AttentionValueOutput);
    for name in ["llama_gqa", "gemma3_plain", "gpt_neox_plain"] {
        let model = load::<B>(name, device);
        let prompt = [2, 7, 1, 8];
        let mut plan = Plan::new();
        let source = plain_prompt(&mut plan, &prompt);
        let taker = plain_prompt(&mut plan, &[3, 1]);
        let mut steered = GeneratedWorld::new(source);
        for step in 2..5 {
            steered = steered.with_edit(add_at_each_step(&model).at_step(step));
        }
        let taken = StepOperand::World {
            world: source,
            site,
            heads: 1.into(),
        };
        let taking = StepEdit::new(site, SWAP, taken).of_heads(1);
        let worlds = [steered, GeneratedWorld::new(taker).with_edit(taking)];
        let options = GenerateOptions::new(6)
            .with_logits()
            .with_collected(site, 1)
            .with_collected(AFTER_BLOCK_0, Indices::All);
        let texts = run(&model, &plan, &worlds, &options).expect("valid");

        // The same texts as one plan.
        let mut whole = Plan::new();
        let text = |prompt: &[u32], row: usize| [prompt, &texts.rows[row].tokens].concat();
        let (source_text, taker_text) = (text(&prompt, 0), text(&[3, 1], 1));
        let input = whole.tokens(&tokens(&[&source_text]));
        let operand = Operand::Constant(whole.constant(direction(&model)));
        let units = Units::positions(prompt.len() + 2..prompt.len() + 5);
        let source = whole.world(input, [Edit::new(AFTER_BLOCK_0, units, ADD, operand)]);
        let input = whole.tokens(&tokens(&[&taker_text]));
        let edits = (0..5).map(|step| {
            let operand = Operand::Activation {
                world: source,
                site,
                units: Units::position(prompt.len() + step).of_head(1),
            };
            Edit::new(site, Units::position(2 + step).of_head(1), SWAP, operand)
        });
        let taker = whole.world(input, edits.collect::<Vec<_>>());
        for (row, (world, start)) in [(source, prompt.len()), (taker, 2)].into_iter().enumerate() {
            let chosen_from = (start - 1..start + 5).collect();
            let logits = whole.read_logits(world, LogitPositions::Each(vec![chosen_from]));
            let new = Units::positions(start..start + 5);
            let head = whole.read(world, site, new.clone().of_head(1));
            let stream = whole.read(world, AFTER_BLOCK_0, new);
            let results = whole.run(&model, &interventions()).expect("valid");
            let found = &texts.rows[row];
            let expected = |read| {
                results
                    .get(read)
                    .squeeze_dim::<2>(0)
                    .into_data()
                    .convert::<f32>()
            };
            let close = |what: &str, found: &Option<Tensor<B, 2>>, expected: &TensorData| {
                let found = found.clone().expect("it was asked for");
                let difference = max_difference(found, expected);
                assert!(
                    difference <= 1e-4,
                    "{name}, row {row}, {what}: {difference}"
                );
            };
            close("logits", &found.logits, &expected(logits));
            close("head", &found.collected[0], &expected(head));
            close("stream", &found.collected[1], &expected(stream));
        }
    }
}

fn a_text_does_not_depend_on_its_batch<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let prompts: [&[u32]; 3] = [&[2, 7, 1, 8], &[3, 1], &[1, 6, 1, 8]];
    let sampling = Sampling::greedy().with_temperature(1.5).with_seed(11);
    let options = GenerateOptions::new(12).with_sampling(sampling);
    let texts = |rows: &[(usize, u64)], steered: bool| -> Vec<Vec<u32>> {
        let mut plan = Plan::new();
        let worlds = rows.iter().map(|(prompt, stream)| {
            let world = plain_prompt(&mut plan, prompts[*prompt]);
            let world = GeneratedWorld::new(world).with_streams([*stream]);
            match steered && *prompt == 1 {
                true => world.with_edit(add_at_each_step(&model)),
                false => world,
            }
        });
        let worlds: Vec<_> = worlds.collect();
        let texts = run(&model, &plan, &worlds, &options).expect("valid");
        texts.rows.into_iter().map(|row| row.tokens).collect()
    };
    let together = texts(&[(0, 4), (1, 5), (2, 6), (0, 7)], true);
    for (row, alone) in [(0, 4), (1, 5), (2, 6), (0, 7)].into_iter().enumerate() {
        assert_eq!(texts(&[alone], true)[0], together[row], "row {row}");
    }
    assert_eq!(
        texts(&[(2, 6), (0, 7)], true),
        [&together[2][..], &together[3]]
    );
    assert_ne!(together[0], together[3], "another stream");
    assert_ne!(texts(&[(1, 5)], false)[0], together[1], "not steered");
    // Examples of one world.
    let mut plan = Plan::new();
    let input = plan.tokens(&tokens(&[prompts[0], prompts[2]]));
    let world = GeneratedWorld::new(plan.world(input, [])).with_streams([4, 6]);
    let found = run(&model, &plan, &[world], &options).expect("valid");
    let found: Vec<Vec<u32>> = found.rows.into_iter().map(|row| row.tokens).collect();
    assert_eq!(found, [&together[0][..], &together[2]]);
}

fn rows_end_where_they_should<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let mut plan = Plan::new();
    let ids = [&[2, 7, 1, 8][..], &[3, 1]].map(|prompt| plain_prompt(&mut plan, prompt));
    let worlds = ids.map(GeneratedWorld::new);
    let options = GenerateOptions::new(12);
    let whole = run(&model, &plan, &worlds, &options).expect("valid");
    assert!(whole.rows.iter().all(|row| row.finish == Finish::Length));
    let nothing = run(&model, &plan, &worlds, &GenerateOptions::new(0)).expect("valid");
    assert!(nothing.rows.iter().all(|row| row.tokens.is_empty()));
    assert_eq!(nothing.rows.len(), 2);
    // The third token of the first row.
    let stop = whole.rows[0].tokens[2];
    let first = |row: usize| {
        whole.rows[row]
            .tokens
            .iter()
            .position(|token| *token == stop)
    };
    let stopped = options.clone().with_stop_tokens([stop]);
    let texts = run(&model, &plan, &worlds, &stopped).expect("valid");
    for (row, found) in texts.rows.iter().enumerate() {
        let (end, finish) = match first(row) {
            Some(end) => (end + 1, Finish::StopToken(stop)),
            None => (12, Finish::Length),
        };
        assert_eq!(found.tokens, whole.rows[row].tokens[..end], "row {row}");
        assert_eq!(found.finish, finish);
    }
    // Two rows that take from each other, at different steps.
    let other = |row: usize| StepOperand::World {
        world: ids[row],
        site: AFTER_BLOCK_0,
        heads: Indices::All,
    };
    let crossed = [0, 1].map(|row| {
        let taking = StepEdit::new(AFTER_BLOCK_0, SWAP, other(1 - row)).at_step(row);
        worlds[row].clone().with_edit(taking)
    });
    run(&model, &plan, &crossed, &options).expect("valid");
    // Where the model ends.
    let limit = model.dims().max_positions.expect("a limit");
    let endless = GenerateOptions::new(limit).with_at_limit(AtLimit::Cut);
    let texts = run(&model, &plan, &worlds, &endless).expect("valid");
    for (row, prompt) in texts.rows.iter().zip([4, 2]) {
        assert_eq!(row.tokens.len() + prompt, limit);
        assert_eq!(row.finish, Finish::ModelEnd);
    }
    // One that takes from the longer one ends with it: its last token comes from the last position
    // that the longer one has.
    let follows = worlds[1]
        .clone()
        .with_edit(StepEdit::new(AFTER_BLOCK_0, SWAP, other(0)));
    let texts = run(&model, &plan, &[worlds[0].clone(), follows], &endless).expect("valid");
    let lengths = texts.rows.iter().map(|row| row.tokens.len());
    assert_eq!(lengths.collect::<Vec<_>>(), [limit - 4, limit - 3]);
    assert_eq!(texts.rows[1].finish, Finish::ModelEnd);
    // A row that has ended goes on for another one that takes from it.
    let mut plan = Plan::new();
    let ids = [&[2, 7, 1, 8][..], &[3, 1]].map(|prompt| plain_prompt(&mut plan, prompt));
    let site = Site::Block(1, Component::AttentionValueOutput);
    let taken = StepOperand::World {
        world: ids[0],
        site,
        heads: 1.into(),
    };
    let taking = StepEdit::new(site, SWAP, taken).of_heads(1);
    let options = options.with_sampling(Sampling::greedy().with_temperature(3.0));
    // A token that only the first row has, and early.
    let found = (1..50).find_map(|stream| {
        let linked = [
            GeneratedWorld::new(ids[0]).with_streams([stream]),
            GeneratedWorld::new(ids[1])
                .with_streams([0])
                .with_edit(taking.clone()),
        ];
        let free = run(&model, &plan, &linked, &options).expect("valid");
        let [from, to] = [0, 1].map(|row| free.rows[row].tokens.clone());
        let stop = from[..6].iter().find(|token| !to.contains(token)).copied();
        Some((linked, stop?, to))
    });
    let (linked, stop, to) = found.expect("texts that differ");
    let stopped = options.with_stop_tokens([stop]);
    let texts = run(&model, &plan, &linked, &stopped).expect("valid");
    assert_eq!(texts.rows[0].finish, Finish::StopToken(stop));
    assert!(texts.rows[0].tokens.len() < 12);
    assert_eq!(texts.rows[1].tokens, to);
}

/// The repetition penalty counts the tokens of a prompt that are cached, as `transformers` does.
#[test]
#[cfg(feature = "flex")]
fn the_penalty_is_of_the_whole_history() {
    type B = burn::backend::Flex;
    let model = load::<B>("gpt2_plain", &Default::default());
    // One that encourages repetition, and one that discourages it.
    for (penalty, expected) in [(0.01, [1, 1, 1, 1]), (2.0, [36, 36, 40, 29])] {
        let sampling = Sampling::greedy().with_repetition_penalty(penalty);
        let options = GenerateOptions::new(4).with_sampling(sampling);
        let mut plan = Plan::new();
        let whole = [GeneratedWorld::new(plain_prompt(&mut plan, &[1, 2, 3]))];
        let texts = run(&model, &plan, &whole, &options).expect("valid");
        assert_eq!(texts.rows[0].tokens, expected, "{penalty}");

        let mut first = Plan::new();
        let world = plain_prompt(&mut first, &[1, 2]);
        first.read_logits(world, LogitPositions::Last);
        let run_options = &options.run;
        let cached = first.run_to_continue(&model, &interventions(), &[world], run_options);
        let (_, rows) = cached.expect("valid");
        let mut plan = Plan::new();
        let input = plan.input(rows[0][0].then([3]));
        let continued = [GeneratedWorld::new(plan.world(input, []))];
        let texts = run(&model, &plan, &continued, &options).expect("valid");
        assert_eq!(texts.rows[0].tokens, expected, "{penalty}, continued");
    }
}

#[test]
#[cfg(feature = "flex")]
fn texts_stop_and_stream() {
    type B = burn::backend::Flex;
    let device = Default::default();
    let loaded =
        Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device);
    let loaded = loaded.expect("bundled");
    let tokenizer = loaded.tokenizer().expect("it has one");
    let prompt = tokenizer.encode("The capital of Spain").expect("text");
    let mut plan = Plan::new();
    let worlds = [GeneratedWorld::new(plain_prompt(&mut plan, &prompt))];
    let options = GenerateOptions::new(3);
    let mut seen = Vec::new();
    let texts = generate(
        &loaded.model,
        &interventions(),
        &plan,
        &worlds,
        &options,
        |token| {
            seen.push((token.row, token.step, token.token, token.finish.cloned()));
        },
    );
    let texts = texts.expect("valid");
    let row = &texts.rows[0];
    let expected = (0..3).map(|step| {
        let finish = (step == 2).then_some(Finish::Length);
        (0, step, row.tokens[step], finish)
    });
    assert_eq!(seen, expected.collect::<Vec<_>>());
    let stop = tokenizer
        .decode(&row.tokens[1..2])
        .expect("text")
        .trim()
        .to_owned();
    let options = options.with_stop_texts(tokenizer, [&stop]);
    let texts = run(&loaded.model, &plan, &worlds, &options).expect("valid");
    assert_eq!(texts.rows[0].tokens, row.tokens[..2]);
    assert_eq!(texts.rows[0].finish, Finish::StopText(stop));
    // The space before the first new word is new.
    let first = tokenizer.decode(&row.tokens[..1]).expect("text");
    let stop = format!(" {}", first.trim());
    let options = GenerateOptions::new(3).with_stop_texts(tokenizer, [&stop]);
    let texts = run(&loaded.model, &plan, &worlds, &options).expect("valid");
    assert_eq!(texts.rows[0].tokens, row.tokens[..1]);
    assert_eq!(texts.rows[0].finish, Finish::StopText(stop));
}

/// The logits of a prompt are those of a run without generation; of a row that is continued, those
/// of its new tokens.
#[test]
#[cfg(feature = "flex")]
fn prompts_give_their_logits() {
    type B = burn::backend::Flex;
    #[track_caller]
    fn assert_close(found: Option<Tensor<B, 2>>, expected: Tensor<B, 2>) {
        let found = found.expect("they were to be kept");
        let difference = max_difference(found, &expected.into_data());
        assert!(difference <= 1e-4, "{difference}");
    }
    let model = load::<B>("gpt2_plain", &Default::default());
    let logits = |text: &[u32]| {
        let mut plan = Plan::new();
        let world = plain_prompt(&mut plan, text);
        let read = plan.read_logits(world, LogitPositions::All);
        let results = plan.run(&model, &interventions()).expect("valid");
        results.get(read).squeeze_dim::<2>(0)
    };
    let prompts: [&[u32]; 2] = [&[2, 7, 1, 8], &[3, 1]];
    let mut plan = Plan::new();
    let input = plan.tokens(&tokens(&prompts));
    let worlds = [GeneratedWorld::new(plan.world(input, []))];
    for new in [0, 3] {
        let options = GenerateOptions::new(new).with_prompt_logits().with_caches();
        let texts = run(&model, &plan, &worlds, &options).expect("valid");
        for (row, prompt) in texts.rows.into_iter().zip(prompts) {
            assert_close(row.prompt_logits, logits(prompt));
            assert_eq!(row.cached.is_some(), new > 0);
            let Some(cached) = row.cached else { continue };
            let text = [cached.tokens(), &[9, 4]].concat();
            let mut plan = Plan::new();
            let input = plan.input(cached.then([9, 4]));
            let worlds = [GeneratedWorld::new(plan.world(input, []))];
            let mut texts = run(&model, &plan, &worlds, &options).expect("valid");
            let expected = logits(&text).narrow(0, cached.pos(), 2);
            assert_close(texts.rows.remove(0).prompt_logits, expected);
        }
    }
}

#[test]
#[cfg(feature = "flex")]
fn wrong_requests_are_refused() {
    type B = burn::backend::Flex;
    let model = load::<B>("gpt2_plain", &Default::default());
    let limit = model.dims().max_positions.expect("a limit");
    let mut plan = Plan::new();
    let input = plan.tokens(&tokens(&[&[2, 7, 1], &[3, 1]]));
    let world = plan.world(input, []);
    let other = plain_prompt(&mut plan, &[5]);
    let stranger = plain_prompt(&mut Plan::<B>::new(), &[5]);
    let options = GenerateOptions::new(5);
    let refused = |worlds: &[GeneratedWorld<B>], options: &GenerateOptions| {
        message(&run(&model, &plan, worlds, options).expect_err("refused"))
    };
    let plain = || GeneratedWorld::new(world);
    let with = |edit| [plain().with_edit(edit)];
    let constant = |shape| {
        let values = Tensor::<B, 3>::zeros(shape, &model.device());
        StepEdit::new(AFTER_BLOCK_0, ADD, StepOperand::Constant(values))
    };
    let d_model = model.dims().d_model;
    let from = |world| StepOperand::World {
        world,
        site: AFTER_BLOCK_0,
        heads: Indices::All,
    };
    for (found, expected) in [
        (
            refused(&[], &options),
            "expected at least one world to generate from".to_owned(),
        ),
        (
            refused(&[plain(), plain()], &options),
            "world 0 is generated from twice".to_owned(),
        ),
        (
            refused(&[GeneratedWorld::new(stranger)], &options),
            "world 0 is not one of the 2".to_owned(),
        ),
        (
            refused(&[plain().with_streams([1])], &options),
            "world 0: expected a stream for each of 2 examples, found 1".to_owned(),
        ),
        (
            refused(&[plain()], &GenerateOptions::new(usize::MAX)),
            "row 0: a prompt of 3 tokens".to_owned(),
        ),
        (
            refused(
                &with(constant([1, 1, d_model]).with_features(Indices::each([[0]]))),
                &options,
            ),
            "world 0: a step has heads or features for 1 examples, expected 2".to_owned(),
        ),
        (
            refused(
                &[plain()],
                &options
                    .clone()
                    .with_collected(Site::Block(0, Component::AttentionWeights), 0),
            ),
            "layer 0 attention_weight: attention scores and weights cannot be".to_owned(),
        ),
        (
            refused(&[plain()], &GenerateOptions::new(limit - 2)),
            format!("row 0: a prompt of 3 tokens and {} new ones", limit - 2),
        ),
        (
            refused(&with(add_at_each_step(&model).at_step(4)), &options),
            "world 0: expected an edit at a step below 4".to_owned(),
        ),
        (
            refused(&with(constant([1, 2, d_model])), &options),
            "world 0: expected the operand of a step to be [2 or 1, 1, d_site]".to_owned(),
        ),
        (
            refused(&with(constant([1, 1, d_model - 1])), &options),
            "layer 0 block_output: the intervention changes".to_owned(),
        ),
        (
            refused(
                &with(StepEdit::new(AFTER_BLOCK_0, 7, StepOperand::None)),
                &options,
            ),
            "layer 0 block_output: intervention 7, but only 2 are given".to_owned(),
        ),
        (
            refused(
                &with(StepEdit::new(AFTER_BLOCK_0, SWAP, from(other))),
                &options,
            ),
            "world 0: a step takes from world 1, which must be generated from".to_owned(),
        ),
        (
            refused(
                &[plain()],
                &options
                    .clone()
                    .with_sampling(Sampling::greedy().with_top_k(0)),
            ),
            "top_k: expected at least 1".to_owned(),
        ),
        (
            refused(
                &[plain()],
                &options
                    .clone()
                    .with_collected(Site::Block(9, Component::BlockOutput), 0),
            ),
            "layer 9 block_output: the model has no such site".to_owned(),
        ),
    ] {
        assert!(found.starts_with(&expected), "{found}");
    }
}
