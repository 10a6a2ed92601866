//! Which positions are computed.

use burn::tensor::Tensor;
use burn_align::engine::{
    Edit, Explanation, Indices, LogitPositions, Operand, Plan, RunOptions, Units,
};
use burn_align_models::{AlignableTransformer, Component, Site, TokenBatch};

use super::mixed;
use crate::support::{FAMILIES, load, max_difference, message, tokens};

/// The stages of the first pass, with the rows and positions in them.
fn counts(explanation: &Explanation) -> Vec<(&str, usize, usize)> {
    let stages = explanation.passes[0].stages.iter();
    stages
        .map(|stage| (&stage.stage[..], stage.rows, stage.positions))
        .collect()
}

#[test]
fn positions_before_the_first_edit_are_not_computed() {
    let model = load::<burn::backend::Flex>("gpt2_plain", &Default::default());
    let mut plan = Plan::new();
    let base = plan.tokens(&tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6]]));
    let source = plan.tokens(&tokens(&[&[2, 7, 1, 8, 2], &[8, 1, 8]]));
    let source = plan.world(source, []);
    let clean = plan.world(base, []);
    let site = |component| Site::Block(0, component);
    let swap = |component, positions: [usize; 2]| {
        let units = Units::positions(Indices::Each(positions.map(|p| vec![p]).to_vec()));
        Edit::from_world(source, site(component), units, 0)
    };
    // From one layer on, at positions 4 and 2; within a layer, at position 1; then earlier.
    let late = plan.world(base, [swap(Component::BlockOutput, [4, 2])]);
    let both = plan.world(
        base,
        [
            swap(Component::AttentionOutput, [1, 1]),
            swap(Component::BlockOutput, [0, 0]),
        ],
    );
    for world in [clean, late, both] {
        plan.read_logits(world, LogitPositions::All);
    }
    let explanation = plan.explain(&model).expect("a right plan");
    assert_eq!(
        counts(&explanation),
        [
            // Two inputs, two examples each, as wholes.
            ("embedding", 4, 4 * 5),
            // Of the source's second example, three positions are used.
            ("layer 0 attention", 4, 2 * 5 + 5 + 3),
            // A world's own positions from position 1 on.
            ("layer 0 attention_output", 6, 2 * 5 + 5 + 3 + 2 * 4),
            ("layer 0 mlp", 6, 2 * 5 + 5 + 3 + 2 * 4),
            // From positions 4 and 2 on; and everything.
            ("layer 0 block_output", 8, 2 * 5 + 5 + 3 + 1 + 3 + 2 * 5),
            // The source has ended.
            ("layer 1 attention", 6, 2 * 5 + 1 + 3 + 2 * 5),
            ("layer 1 mlp", 6, 2 * 5 + 1 + 3 + 2 * 5),
            ("final_norm", 6, 2 * 5 + 1 + 3 + 2 * 5),
            ("unembed", 6, 2 * 5 + 1 + 3 + 2 * 5),
        ]
    );
}

#[test]
fn positions_that_nobody_wants_are_not_computed() {
    let model = load::<burn::backend::Flex>("gpt2_plain", &Default::default());
    let mut plan = Plan::new();
    let base = plan.tokens(&tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6]]));
    let source = plan.tokens(&tokens(&[&[2, 7, 1, 8, 2], &[8, 1, 8]]));
    let source = plan.world(source, []);
    let mlp = Site::Block(1, Component::MlpOutput);
    let edit = Edit::from_world(source, mlp, Units::position(1), 0);
    let world = plan.world(base, [edit]);
    let clean = plan.world(base, []);
    plan.read_logits(clean, LogitPositions::Last);
    let early = plan.read(world, mlp, Units::position(0));
    let explanation = plan.explain(&model).expect("a right plan");
    assert_eq!(
        counts(&explanation),
        [
            ("embedding", 4, 4 * 5),
            // All of the base, and two positions of the source.
            ("layer 0 attention", 4, 5 + 3 + 2 * 2),
            ("layer 0 mlp", 4, 5 + 3 + 2 * 2),
            ("layer 1 attention", 4, 5 + 3 + 2 * 2),
            // Position 1 of the source is used. Position 0 of the base is read.
            ("layer 1 mlp", 4, 5 + 3 + 2),
            // The world's own positions from the edited one on; before it the clean run's.
            ("layer 1 mlp_output", 6, 5 + 3 + 2 + 4 + 2),
            // The last positions.
            ("final_norm", 2, 2),
            ("unembed", 2, 2),
        ]
    );
    let found = plan.run(&model, &mixed()).expect("a right plan");
    let expected = plan.run_naively(&model, &mixed()).expect("a right plan");
    for (found, expected) in found.iter().zip(expected.iter()) {
        assert!(max_difference(found.clone(), &expected.to_data()) <= 1e-5);
    }
    assert_eq!(found.get(early).dims(), [2, 1, 16]);
}

/// Padding, and the rest of prompts of which a beginning is used. Results are the same to the bit.
#[test]
fn positions_after_the_last_needed_one_are_not_computed() {
    let rows = |from: u32, lengths: [u32; 4]| {
        let row = |length: u32| {
            (0..length)
                .map(|at| (7 * from + 3 * at + length) % 13)
                .collect()
        };
        let rows: Vec<Vec<u32>> = lengths.map(row).into();
        TokenBatch::new(rows).expect("a batch")
    };
    for name in FAMILIES {
        let model = load::<burn::backend::Flex>(name, &Default::default());
        let of = |all_of_source: bool| {
            let mut plan = Plan::new();
            let base = plan.tokens(&rows(1, [12, 4, 11, 8]));
            let source = plan.tokens(&rows(2, [12, 5, 11, 8]));
            let donor = plan.world(source, []);
            let positions = Indices::one_each([2, 3, 2, 5]);
            let layer = model.dims().layers - 1;
            let site = Site::Block(layer, Component::BlockInput);
            let edit = Edit::from_world(donor, site, Units::positions(positions), 0);
            let world = plan.world(base, [edit]);
            let read = plan.read_logits(world, LogitPositions::Last);
            if all_of_source {
                plan.read(donor, site, Units::ALL);
            }
            (plan, read)
        };
        let ((plan, read), (whole, of_whole)) = (of(false), of(true));
        let explanation = plan.explain(&model).expect("a right plan");
        let counts = counts(&explanation);
        let (_, rows, positions) = counts[1];
        assert_eq!(
            (rows, positions),
            (8, (12 + 4 + 12 + 8) + (4 + 4 + 4 + 6)),
            "{name}"
        );
        let values = [
            plan.run(&model, &mixed()).expect("valid").get(read),
            whole.run(&model, &mixed()).expect("valid").get(of_whole),
        ];
        let [found, expected] = values.map(Tensor::into_data);
        assert_eq!(found, expected, "{name}");
    }
}

/// A row is no longer than its input, though lengths that differ little are rounded up.
#[test]
fn rows_of_similar_lengths() {
    let model = load::<burn::backend::Flex>("gpt2_plain", &Default::default());
    let mut plan = Plan::new();
    for length in [2_u32, 8, 9] {
        let input = plan.tokens(&tokens(&[&(0..length).collect::<Vec<u32>>()]));
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Last);
    }
    let explanation = plan.explain(&model).expect("a right plan");
    let positions = counts(&explanation)[2];
    assert_eq!(positions.2, 2 + 8 + 9, "{positions:?}");
}

/// Where angles depend on the length of a row, its end is not left out.
#[test]
fn angles_are_those_of_the_whole_row() {
    for name in ["llama_rope_dynamic", "phi3_longrope"] {
        let model = load::<burn::backend::Flex>(name, &Default::default());
        assert!(model.layout().depends_on_length(), "{name}");
        let mut plan = Plan::new();
        let row: Vec<u32> = (0..14).map(|at| 3 * at % 13).collect();
        let input = plan.tokens(&tokens(&[&row]));
        let world = plan.world(input, []);
        let early = plan.read_logits(world, LogitPositions::Each(vec![vec![5]]));
        let found = plan.run(&model, &mixed()).expect("valid").get(early);
        let all = plan.read_logits(world, LogitPositions::All);
        let whole = plan.run_naively(&model, &mixed()).expect("valid");
        let expected = whole.get(all).narrow(1, 5, 1).into_data();
        assert!(max_difference(found, &expected) <= 1e-5, "{name}");
    }
}

/// Positions whose keys and values are cached in a frozen plan cannot be read.
#[test]
fn positions_that_a_frozen_plan_no_longer_has() {
    let model = load::<burn::backend::Flex>("llama_gqa", &Default::default());
    let mut plan = Plan::new();
    let input = plan.tokens(&tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6]]));
    let last = Units::positions(Indices::Each(vec![vec![3], vec![2]]));
    let output = Site::Block(0, Component::BlockOutput);
    let world = plan.world(input, [Edit::new(output, last, 2, Operand::None)]);
    let kept = plan.read_logits(world, LogitPositions::Last);
    let frozen = plan
        .freeze(&model, &mixed(), |index| index == 2, &RunOptions::default())
        .expect("a right plan");
    let again = frozen.freeze(&model, &mixed(), |_| true, &RunOptions::default());
    for frozen in [&frozen, &again.expect("it is right")] {
        let (left, whole) = (frozen.run(&model, &mixed()), plan.run(&model, &mixed()));
        let (left, whole) = (
            left.expect("valid").get(kept),
            whole.expect("valid").get(kept),
        );
        assert!(max_difference(left, &whole.to_data()) <= 1e-5);
    }
    let stages = frozen.explain(&model).expect("a right plan");
    assert_eq!(stages.passes[0].stages[1].positions, 2 + 1, "3, 4, and 2");

    let refused = |read: &dyn Fn(&mut Plan<burn::backend::Flex>)| {
        let mut more = frozen.clone();
        read(&mut more);
        let error = more.run(&model, &mixed()).expect_err("refused");
        message(&error)
    };
    assert_eq!(
        refused(&|plan| {
            plan.read_logits(world, LogitPositions::All);
        }),
        "logits: for example 0, the frozen plan only has the positions from 3 on; add reads and \
         edits before the plan is frozen"
    );
    let weights = Site::Block(1, Component::AttentionWeights);
    assert_eq!(
        refused(&|plan| {
            plan.read(world, weights, Units::position(4));
        }),
        "layer 1 attention_weight: for example 0, the frozen plan only has the positions from 3 \
         on; add reads and edits before the plan is frozen"
    );
    assert_eq!(
        refused(&|plan| {
            plan.read(world, output, Units::position(1));
        }),
        "layer 0 block_output: for example 0, the frozen plan only has the positions from 3 on; \
         add reads and edits before the plan is frozen"
    );
}
