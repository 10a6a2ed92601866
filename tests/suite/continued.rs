//! Runs that go on from their cached keys and values, against the whole text from the start.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align::engine::{
    CachedRow, Edit, LogitPositions, Operand, Plan, PlanError, RunOptions, Units, WorldId,
};
use burn_align::interventions::{AdditionIntervention, BuiltinIntervention, VanillaIntervention};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, FromPretrained, LoadOptions, Site,
};

use crate::support::{FAMILIES, checkpoints, load, max_difference, message, tokens};

on_every_backend!(
    a_continued_run_is_the_run_of_the_whole_text,
    rows_can_be_left_out_and_forked,
    rows_go_on_wherever_their_logits_are_read,
    long_runs_join_their_parts
);

const SWAP: usize = 0;
const ADD: usize = 1;

fn interventions<B: Backend>() -> [BuiltinIntervention<B>; 2] {
    [
        BuiltinIntervention::from(VanillaIntervention),
        BuiltinIntervention::from(AdditionIntervention),
    ]
}

/// What is added to a residual stream.
fn direction<B: Backend>(d_model: usize, device: &B::Device) -> Tensor<B, 3> {
    let values: Vec<f32> = (0..d_model)
        .map(|i| ((i * 37 % 11) as f32 - 5.0) / 3.0)
        .collect();
    Tensor::from_data(TensorData::new(values, [1, 1, d_model]), device)
}

fn add<B: Backend>(plan: &mut Plan<B>, model: &Decoder<B>, site: Site, position: usize) -> Edit {
    let direction = direction(model.dims().d_model, &model.device());
    let operand = Operand::Constant(plan.constant(direction));
    Edit::new(site, Units::position(position), ADD, operand)
}

/// A row of text: its prompt, and what is done to it.
#[derive(Clone, Copy)]
struct Row {
    prompt: &'static [u32],
    /// Whether a direction is added at position 1 of the prompt.
    prompt_edited: bool,
    /// Whether a direction is added at every later position.
    steered: bool,
    /// Whether the second head's mixed values are taken from the row before, at every later
    /// position.
    follows: bool,
}

const PLAIN: Row = Row {
    prompt: &[],
    prompt_edited: false,
    steered: false,
    follows: false,
};

const ROWS: [Row; 6] = [
    Row {
        prompt: &[3, 1, 4],
        ..PLAIN
    },
    Row {
        prompt: &[2, 7, 1, 8, 2],
        ..PLAIN
    },
    Row {
        prompt: &[2, 7, 1, 8, 2],
        steered: true,
        ..PLAIN
    },
    Row {
        prompt: &[2, 7, 1, 8, 2],
        prompt_edited: true,
        steered: true,
        ..PLAIN
    },
    Row {
        prompt: &[1, 6, 1, 8, 0],
        ..PLAIN
    },
    Row {
        prompt: &[1, 6, 1, 8, 0],
        follows: true,
        ..PLAIN
    },
];

/// The edits of a row at its positions from the end of its prompt on.
fn later_edits<B: Backend>(
    plan: &mut Plan<B>,
    model: &Decoder<B>,
    row: Row,
    before: Option<WorldId>,
    positions: std::ops::Range<usize>,
) -> Vec<Edit> {
    let mut edits = Vec::new();
    for position in positions {
        if row.steered {
            edits.push(add(
                plan,
                model,
                Site::Block(0, Component::BlockOutput),
                position,
            ));
        }
        if let (true, Some(before)) = (row.follows, before) {
            let site = Site::Block(1, Component::AttentionValueOutput);
            let units = Units::position(position).of_head(1);
            edits.push(Edit::from_world(before, site, units, SWAP));
        }
    }
    edits
}

fn prompt_edits<B: Backend>(plan: &mut Plan<B>, model: &Decoder<B>, row: Row) -> Vec<Edit> {
    let site = Site::Block(0, Component::MlpOutput);
    let edited = row.prompt_edited.then(|| add(plan, model, site, 1));
    edited.into_iter().collect()
}

/// The logits at the last position of every row, `[row, vocab]`, of its whole text.
fn whole<B: Backend>(model: &Decoder<B>, texts: &[Vec<u32>]) -> Tensor<B, 2> {
    let mut plan = Plan::new();
    let mut reads = Vec::new();
    let mut before = None;
    for (row, text) in ROWS.into_iter().zip(texts) {
        let input = plan.tokens(&tokens(&[text]));
        let mut edits = prompt_edits(&mut plan, model, row);
        let later = row.prompt.len()..text.len();
        edits.extend(later_edits(&mut plan, model, row, before, later));
        let world = plan.world(input, edits);
        before = Some(world);
        reads.push(plan.read_logits(world, LogitPositions::Last));
    }
    let results = plan.run(model, &interventions()).expect("valid");
    let logits = reads
        .into_iter()
        .map(|read| results.get(read).squeeze_dim::<2>(0));
    Tensor::cat(logits.collect(), 0)
}

/// Runs the prompts: logits and rows.
fn start<B: Backend>(model: &Decoder<B>) -> (Tensor<B, 2>, Vec<CachedRow<B>>) {
    let mut plan = Plan::new();
    let (mut reads, mut worlds) = (Vec::new(), Vec::new());
    for row in ROWS {
        let input = plan.tokens(&tokens(&[row.prompt]));
        let edits = prompt_edits(&mut plan, model, row);
        let world = plan.world(input, edits);
        worlds.push(world);
        reads.push(plan.read_logits(world, LogitPositions::Last));
    }
    let run = plan.run_to_continue(model, &interventions(), &worlds, &RunOptions::default());
    let (results, rows) = run.expect("valid");
    let logits = reads
        .into_iter()
        .map(|read| results.get(read).squeeze_dim::<2>(0));
    (
        Tensor::cat(logits.collect(), 0),
        rows.into_iter().flatten().collect(),
    )
}

/// A plan of the next tokens of rows: the worlds, and the logits.
fn step<B: Backend>(
    model: &Decoder<B>,
    rows: &[(Row, &CachedRow<B>, Vec<u32>)],
) -> (Plan<B>, Vec<WorldId>, Vec<burn_align::engine::ReadId>) {
    let mut plan = Plan::new();
    let (mut reads, mut worlds) = (Vec::new(), Vec::new());
    for (row, cached, new) in rows {
        let positions = cached.pos()..cached.pos() + new.len();
        let input = plan.input(cached.then(new.clone()));
        let before = worlds.last().copied();
        let edits = later_edits(&mut plan, model, *row, before, positions);
        let world = plan.world(input, edits);
        worlds.push(world);
        reads.push(plan.read_logits(world, LogitPositions::Last));
    }
    (plan, worlds, reads)
}

fn a_continued_run_is_the_run_of_the_whole_text<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let vocab = model.dims().vocab as u32;
        let mut texts: Vec<Vec<u32>> = ROWS.iter().map(|row| row.prompt.to_vec()).collect();
        let (logits, mut rows) = start(&model);
        let expected = whole(&model, &texts).into_data().convert::<f32>();
        assert!(max_difference(logits, &expected) <= 1e-4, "{name}");
        let longest = model.dims().max_positions.unwrap_or(usize::MAX).min(17);
        // One token at a time, and then two.
        for (number, count) in [1, 1, 2, 1, 1, 1, 2, 1, 1, 1].into_iter().enumerate() {
            if rows[1].pos() + count > longest {
                break;
            }
            let next: Vec<Vec<u32>> = (0..ROWS.len())
                .map(|row| (0..count).map(move |i| ((number * 7 + row * 5 + i * 3) as u32) % vocab))
                .map(Iterator::collect)
                .collect();
            // Forks get the same tokens or others.
            for (text, next) in texts.iter_mut().zip(&next) {
                text.extend(next);
            }
            let new = ROWS.into_iter().zip(&rows).zip(next);
            let new: Vec<_> = new
                .map(|((row, cached), next)| (row, cached, next))
                .collect();
            let (plan, worlds, reads) = step(&model, &new);
            let options = RunOptions::default();
            let run = plan.run_to_continue(&model, &interventions(), &worlds, &options);
            let (results, continued) = run.expect("valid");
            let naive = plan.run_naively(&model, &interventions()).expect("valid");
            let expected = whole(&model, &texts).into_data().convert::<f32>();
            for (how, results) in [("lockstep", &results), ("naive", &naive)] {
                let logits = reads
                    .iter()
                    .map(|read| results.get(*read).squeeze_dim::<2>(0));
                let found = Tensor::cat(logits.collect(), 0);
                let difference = max_difference(found, &expected);
                assert!(
                    difference <= 1e-4,
                    "{name}, step {number}, {how}: {difference}"
                );
            }
            rows = continued.into_iter().flatten().collect();
            assert_eq!(rows.len(), ROWS.len());
        }
        assert!(rows[1].pos() > 8, "{name}");
    }
}

/// Rows that have ended are left out, and one row goes on in two ways.
fn rows_can_be_left_out_and_forked<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let (_, rows) = start(&model);
    let plain = |row: usize, next: &[u32]| (PLAIN, &rows[row], next.to_vec());
    // Rows of one cache, in another order, and twice; the second row's cache is the third's.
    let new = [
        plain(4, &[5]),
        plain(1, &[6]),
        plain(1, &[7]),
        plain(0, &[8]),
    ];
    let (plan, worlds, reads) = step(&model, &new);
    let options = RunOptions::default();
    let run = plan.run_to_continue(&model, &interventions(), &worlds, &options);
    let (results, continued) = run.expect("valid");
    let texts = [
        vec![1, 6, 1, 8, 0, 5],
        vec![2, 7, 1, 8, 2, 6],
        vec![2, 7, 1, 8, 2, 7],
        vec![3, 1, 4, 8],
    ];
    let check = |results: &burn_align::engine::Results<B>, reads: &[_], texts: &[Vec<u32>]| {
        for (read, text) in reads.iter().zip(texts) {
            let mut plan = Plan::new();
            let input = plan.tokens(&tokens(&[text]));
            let world = plan.world(input, []);
            let expected = plan.read_logits(world, LogitPositions::Last);
            let expected = plan
                .run(&model, &interventions())
                .expect("valid")
                .get(expected);
            let expected = expected.into_data().convert::<f32>();
            assert!(
                max_difference(results.get(*read), &expected) <= 1e-4,
                "{text:?}"
            );
        }
    };
    check(&results, &reads, &texts);
    // Again, from caches that are made of several.
    let continued: Vec<CachedRow<B>> = continued.into_iter().flatten().collect();
    let new: Vec<_> = [2, 0, 3]
        .map(|row| (PLAIN, &continued[row], vec![9]))
        .into();
    let (plan, _, reads) = step(&model, &new);
    let results = plan.run(&model, &interventions()).expect("valid");
    let texts = [2, 0, 3].map(|row: usize| [&texts[row][..], &[9]].concat());
    check(&results, &reads, &texts);
}

/// Keys and values are kept of all positions, though no logits need them.
fn rows_go_on_wherever_their_logits_are_read<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let texts: [&[u32]; 2] = [&[3, 1, 4, 1, 5], &[9, 2, 6]];
    let mut plan = Plan::new();
    let input = plan.tokens(&tokens(&texts));
    let world = plan.world(input, []);
    plan.read_logits(world, LogitPositions::Each(vec![vec![0], vec![1]]));
    let options = RunOptions::default();
    // With a schedule of the same plan that keeps nothing.
    plan.run_with(&model, &interventions(), &options)
        .expect("valid");
    let run = plan.run_to_continue(&model, &interventions(), &[world], &options);
    let rows = run.expect("valid").1.remove(0);
    let new = [0, 1].map(|row: usize| (PLAIN, &rows[row], vec![7]));
    let (plan, _, reads) = step(&model, &new);
    let found = plan.run(&model, &interventions()).expect("valid");
    let texts = texts.map(|text| [text, &[7]].concat());
    let mut whole = Plan::new();
    let input = whole.tokens(&tokens(&[&texts[0], &texts[1]]));
    let world = whole.world(input, []);
    let expected = whole.read_logits(world, LogitPositions::Last);
    let whole = whole.run(&model, &interventions()).expect("valid");
    for (row, read) in reads.into_iter().enumerate() {
        let expected = whole.get(expected).narrow(0, row, 1);
        let expected = expected.into_data().convert::<f32>();
        assert!(max_difference(found.get(read), &expected) <= 1e-4);
    }
}

/// Many steps, past a window and past the length from which on parts are joined.
fn long_runs_join_their_parts<B: Backend>(device: &B::Device) {
    for name in ["mistral_window", "gemma3_plain", "llama_gqa"] {
        let model = load::<B>(name, device);
        let vocab = model.dims().vocab as u32;
        let longest = model.dims().max_positions.unwrap_or(200).min(200);
        let mut text: Vec<u32> = vec![3, 1];
        let mut plan = Plan::new();
        let input = plan.tokens(&tokens(&[&text]));
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Last);
        let options = RunOptions::default();
        let run = plan.run_to_continue(&model, &interventions(), &[world], &options);
        let mut row = run.expect("valid").1.remove(0).remove(0);
        let mut last = None;
        while row.pos() < longest {
            let next = (row.pos() * 5 % 13) as u32 % vocab;
            text.push(next);
            let (plan, worlds, reads) = step(&model, &[(PLAIN, &row, vec![next])]);
            let run = plan.run_to_continue(&model, &interventions(), &worlds, &options);
            let (results, mut rows) = run.expect("valid");
            row = rows.remove(0).remove(0);
            last = Some(results.get(reads[0]));
        }
        let mut plan = Plan::new();
        let input = plan.tokens(&tokens(&[&text]));
        let world = plan.world(input, []);
        let read = plan.read_logits(world, LogitPositions::Last);
        let expected = plan.run(&model, &interventions()).expect("valid").get(read);
        let expected = expected.into_data().convert::<f32>();
        let difference = max_difference(last.expect("steps"), &expected);
        assert!(difference <= 1e-4, "{name}: {difference}");
    }
}

#[test]
#[cfg(feature = "flex")]
fn what_cannot_be_continued_is_refused() {
    type B = burn::backend::Flex;
    let model = load::<B>("gpt2_plain", &Default::default());
    let run = |plan: &Plan<B>, worlds: &[WorldId]| {
        let options = RunOptions::default();
        let run = plan.run_to_continue(&model, &interventions(), worlds, &options);
        run.map(|(_, rows)| rows)
    };
    let mut plan = Plan::new();
    let input = plan.tokens(&tokens(&[&[1, 2, 3]]));
    let world = plan.world(input, []);
    let error = run(&plan, &[world]).expect_err("refused");
    assert_eq!(
        message(&error),
        "world 0 cannot be continued: none of its logits are read"
    );
    let first = world;
    // A world on the second input of another plan.
    let (mut of_other, mut other) = (Plan::new(), Plan::<B>::new());
    other.tokens(&tokens(&[&[1]]));
    let foreign = other.tokens(&tokens(&[&[1]]));
    let odd = of_other.world(foreign, []);
    of_other.read_logits(odd, LogitPositions::Last);
    let error = run(&of_other, &[odd]).expect_err("refused");
    assert!(
        matches!(error, PlanError::UnknownId { what: "input", .. }),
        "{error}"
    );
    plan.read_logits(first, LogitPositions::Last);
    let row = run(&plan, &[first]).expect("valid").remove(0).remove(0);

    // A position that is cached.
    let mut next = Plan::new();
    let input = next.input(row.then([4]));
    let edit = add(&mut next, &model, Site::Block(0, Component::BlockOutput), 2);
    let world = next.world(input, [edit]);
    next.read_logits(world, LogitPositions::Last);
    let error = next
        .run(&model, &interventions())
        .map(drop)
        .expect_err("refused");
    assert!(
        matches!(error, PlanError::NotKept { start: 3, .. }),
        "{error}"
    );

    // On a model of other sizes.
    let other = load::<B>("llama_gqa", &Default::default());
    let mut next = Plan::new();
    let input = next.input(row.then([4]));
    let world = next.world(input, []);
    let logits = next.read_logits(world, LogitPositions::Last);
    let error = next
        .run(&other, &interventions())
        .map(drop)
        .expect_err("refused");
    assert_eq!(error, PlanError::CacheMisfit { input: 0 });

    // On the same model in another dtype, which takes its own rows.
    let options = LoadOptions::default().with_dtype(DType::BF16);
    let rounded = checkpoints()["gpt2_plain"].clone();
    let rounded = Decoder::<B>::from_pretrained(rounded.as_path(), &options, &Default::default());
    let rounded = rounded.expect("the fixture loads").model;
    let error = next.run(&rounded, &interventions()).map(drop);
    let error = error.expect_err("refused");
    assert_eq!(error, PlanError::CacheMisfit { input: 0 });
    let options = RunOptions::default();
    let own = plan.run_to_continue(&rounded, &interventions(), &[first], &options);
    let (_, own) = own.expect("valid");
    let mut of_rounded = Plan::new();
    let input = of_rounded.input(own[0][0].then([4]));
    let world = of_rounded.world(input, []);
    of_rounded.read_logits(world, LogitPositions::Last);
    of_rounded.run(&rounded, &interventions()).expect("valid");

    // A row is one example, and stays what it is on the way through other plans.
    assert!(next.examples(&[0, 0]).is_err());
    let expected = next
        .run(&model, &interventions())
        .expect("valid")
        .get(logits);
    let expected = expected.into_data();
    for same in [
        next.examples(&[0]).expect("valid"),
        Plan::join(std::slice::from_ref(&next)).expect("valid"),
        next.to_device(&Default::default()),
    ] {
        let found = same
            .run(&model, &interventions())
            .expect("valid")
            .get(logits);
        assert_eq!(found.into_data(), expected);
    }

    // The same world twice: both get their rows.
    let options = RunOptions::default();
    let twice = plan.run_to_continue(&model, &interventions(), &[first, first], &options);
    let (_, rows) = twice.expect("valid");
    assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);

    // No new token, one that is not in the vocabulary, and one too many.
    let longest = model.dims().max_positions.expect("a limit");
    for new in [vec![], vec![u32::MAX], vec![1; longest - 2]] {
        let mut next = Plan::new();
        let input = next.input(row.then(new));
        let world = next.world(input, []);
        next.read_logits(world, LogitPositions::Last);
        let error = next
            .run(&model, &interventions())
            .map(drop)
            .expect_err("refused");
        assert!(
            matches!(error, PlanError::Input { input: 0, .. }),
            "{error}"
        );
    }
}
