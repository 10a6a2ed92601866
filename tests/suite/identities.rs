//! Identities that interventions obey for any model.

use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{Indices, LogitPositions};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableOutput,
    AlignableRepresentationConfig, InterventionType, Locations, Mode, RepresentationSite, Source,
    Subspaces, Unit, UnitLocations,
};
use burn_align_models::{
    AlignableTransformer, Component, Cx, Decoder, ModelInput, NoTap, Pass, Site, Tables, Tap,
    TokenBatch,
};

use crate::support::{load, max_difference, tokens, values};

on_every_backend!(
    one_source_in_series_is_one_in_parallel,
    one_group_is_the_same_source_for_all,
    linked_interventions_act_alike,
    the_last_of_two_swaps_wins,
    all_features_are_the_whole,
    no_features_are_nothing,
    parts_that_cover_everything_are_the_whole,
    zero_embedding_is_zero_features,
    collected_is_what_a_tap_sees,
    last_logits_are_after_the_last_tokens,
    a_forward_leaves_the_model_as_it_was,
    source_and_base_of_different_lengths,
    given_values_are_a_source,
    added_and_subtracted,
    skipped_blocks_are_not_there,
);

const MODELS: [&str; 2] = ["gpt2_plain", "llama_gqa"];

/// Batches are stacked with others, so sums may be made in another order.
const TOLERANCE: f32 = 2e-5;

const COMPONENTS: [Component; 5] = [
    Component::BlockInput,
    Component::ValueOutput,
    Component::AttentionOutput,
    Component::MlpActivation,
    Component::BlockOutput,
];

fn at(layer: usize, site: impl Into<RepresentationSite>) -> AlignableRepresentationConfig {
    AlignableRepresentationConfig::new(layer, site)
}

/// Two examples of 5 and 3 tokens.
fn base() -> TokenBatch {
    tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6]])
}

fn source() -> TokenBatch {
    tokens(&[&[7, 7, 2, 0, 8], &[1, 11, 40]])
}

fn other_source() -> TokenBatch {
    tokens(&[&[30, 31, 32, 33, 34], &[35, 36, 37]])
}

fn alignable<B: Backend, const N: usize>(
    model: &Decoder<B>,
    representations: [AlignableRepresentationConfig; N],
    mode: Mode,
) -> AlignableModel<B, Decoder<B>> {
    let config = AlignableConfig::new(representations).with_mode(mode);
    AlignableModel::new(config, model.clone()).expect("the configuration is right")
}

fn output<B: Backend, const N: usize>(
    model: &Decoder<B>,
    representations: [AlignableRepresentationConfig; N],
    inputs: &AlignableInputs<B>,
) -> AlignableOutput<B> {
    alignable(model, representations, Mode::Parallel)
        .forward_inputs(inputs)
        .expect("the inputs are right")
}

/// Logits of the base at its tokens: values at padding are meaningless.
fn logits<B: Backend, const N: usize>(
    model: &Decoder<B>,
    representations: [AlignableRepresentationConfig; N],
    inputs: &AlignableInputs<B>,
) -> Tensor<B, 2> {
    at_tokens(
        output(model, representations, inputs).counterfactual,
        &base(),
    )
}

/// `[token, vocab]`, without padding.
fn at_tokens<B: Backend>(logits: Tensor<B, 3>, batch: &TokenBatch) -> Tensor<B, 2> {
    let rows = batch.lengths().into_iter().enumerate();
    let rows = rows.map(|(row, length)| {
        let example = logits.clone().narrow(0, row, 1).squeeze_dim::<2>(0); // [pos, vocab]
        example.narrow(0, 0, length)
    });
    Tensor::cat(rows.collect(), 0)
}

fn plain<B: Backend>(model: &Decoder<B>, batch: &TokenBatch, device: &B::Device) -> Tensor<B, 2> {
    let input = ModelInput::Tokens(batch.to_tensor(device));
    at_tokens(model.forward(input), batch)
}

fn from<B: Backend>(sources: impl IntoIterator<Item = TokenBatch>) -> AlignableInputs<B> {
    AlignableInputs::new(base())
        .with_sources(sources)
        .with_locations(1)
}

fn assert_close<B: Backend, const D: usize>(
    found: Tensor<B, D>,
    expected: &Tensor<B, D>,
    what: &str,
) {
    let difference = max_difference(
        found,
        &expected.clone().cast(burn::tensor::DType::F32).to_data(),
    );
    assert!(difference <= TOLERANCE, "{what}: {difference}");
}

fn assert_differ<B: Backend>(found: Tensor<B, 2>, other: &Tensor<B, 2>, what: &str) {
    let difference = max_difference(
        found,
        &other.clone().cast(burn::tensor::DType::F32).to_data(),
    );
    assert!(difference > 1e-3, "{what}: nothing has happened");
}

/// A number for each model and component.
fn everywhere<B: Backend>(device: &B::Device, test: impl Fn(&Decoder<B>, Component, &str)) {
    for name in MODELS {
        let model = load::<B>(name, device);
        for component in COMPONENTS {
            test(&model, component, &format!("{name} {component}"));
        }
    }
}

fn one_source_in_series_is_one_in_parallel<B: Backend>(device: &B::Device) {
    everywhere::<B>(device, |model, component, what| {
        let inputs = from([source()]);
        let parallel = logits(model, [at(0, component)], &inputs);
        let serial = alignable(model, [at(0, component)], Mode::Serial);
        let chain = UnitLocations::chain([(1, 1)]);
        for inputs in [inputs.clone(), inputs.with_locations(chain)] {
            let serial = serial.forward_inputs(&inputs).expect("right");
            let serial = at_tokens(serial.counterfactual, &base());
            assert_eq!(values(serial), values(parallel.clone()), "{what}");
        }
        assert_differ(parallel, &plain(model, &base(), device), what);
    });
}

fn one_group_is_the_same_source_for_all<B: Backend>(device: &B::Device) {
    everywhere::<B>(device, |model, component, what| {
        let ungrouped = || [at(0, component), at(1, component)];
        let expected = logits(model, ungrouped(), &from([source(), source()]));
        let grouped = ungrouped().map(|representation| representation.with_group(0));
        assert_close(logits(model, grouped, &from([source()])), &expected, what);
        assert_close(
            logits(model, ungrouped(), &from([source()])),
            &expected,
            what,
        );
        // Groups may be in any order.
        let swapped = [
            at(0, component).with_group(1),
            at(1, component).with_group(0),
        ];
        assert_close(
            logits(model, swapped, &from([other_source(), source()])),
            &logits(model, ungrouped(), &from([source(), other_source()])),
            what,
        );
    });
}

fn linked_interventions_act_alike<B: Backend>(device: &B::Device) {
    everywhere::<B>(device, |model, component, what| {
        let unlinked = [at(0, component), at(1, component)];
        let linked = unlinked.clone().map(|it| it.with_link(3));
        assert_eq!(
            alignable(model, linked.clone(), Mode::Parallel)
                .interventions()
                .len(),
            1
        );
        let inputs = from([source(), other_source()]);
        assert_close(
            logits(model, linked, &inputs),
            &logits(model, unlinked, &inputs),
            what,
        );
    });
}

fn the_last_of_two_swaps_wins<B: Backend>(device: &B::Device) {
    everywhere::<B>(device, |model, component, what| {
        let twice = || [at(0, component), at(0, component)];
        let both = logits(model, twice(), &from([other_source(), source()]));
        let last = logits(model, [at(0, component)], &from([source()]));
        assert_close(both, &last, what);
    });
}

fn all_features_are_the_whole<B: Backend>(device: &B::Device) {
    everywhere::<B>(device, |model, component, what| {
        for kind in [
            InterventionType::Vanilla,
            InterventionType::Addition,
            InterventionType::Zero,
        ] {
            let representation = || [at(0, component).with_intervention(kind)];
            let dims = model.site(Site::Block(0, component)).expect("there");
            let burn_align_models::SiteWidth::Features(width) = dims.width else {
                panic!("features");
            };
            let all = Subspaces::Everywhere((0..dims.heads * width).rev().collect());
            let whole = logits(model, representation(), &from([source()]));
            let subspace = logits(
                model,
                representation(),
                &from([source()]).with_subspaces(all),
            );
            assert_close(subspace, &whole, what);
        }
    });
}

fn no_features_are_nothing<B: Backend>(device: &B::Device) {
    everywhere::<B>(device, |model, component, what| {
        let expected = plain(model, &base(), device);
        let ones = vec![vec![]; 2];
        for subspaces in [
            Subspaces::Everywhere(Vec::new()),
            Subspaces::Each(vec![Some(ones)]),
        ] {
            let inputs = from([source()]).with_subspaces(subspaces);
            assert_close(logits(model, [at(0, component)], &inputs), &expected, what);
        }
        // Representations without a location are left unchanged.
        let nowhere = Locations::Each(vec![None]);
        let inputs = from([source()]).with_locations(nowhere);
        assert_close(logits(model, [at(0, component)], &inputs), &expected, what);
    });
}

fn parts_that_cover_everything_are_the_whole<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let model = load::<B>(name, device);
        let whole = at(1, Component::BlockInput);
        let parts = vec![vec![0, 5], vec![5, 6, 7], vec![8, 16]];
        let parted = whole.clone().with_subspace_partition(parts);
        let inputs = from([source()]).with_subspaces(Subspaces::Everywhere(vec![2, 0, 1]));
        let expected = logits(&model, [whole.clone()], &from([source()]));
        assert_close(logits(&model, [parted.clone()], &inputs), &expected, name);
        // A part is the features that it lists.
        let inputs = |ids: Vec<usize>| from([source()]).with_subspaces(Subspaces::Everywhere(ids));
        assert_close(
            logits(&model, [parted], &inputs(vec![1])),
            &logits(&model, [whole], &inputs(vec![5, 6, 7])),
            name,
        );
    }
}

fn zero_embedding_is_zero_features<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let model = load::<B>(name, device);
        let zero = at(0, RepresentationSite::Embedding).with_intervention(InterventionType::Zero);
        let zeroed = logits(&model, [zero], &AlignableInputs::new(base()));
        // What the first block reads is all zeros, whatever the tokens.
        let pass = Pass::new(5, device, &Tables::new());
        let mut x = Tensor::zeros([2, 5, 16], device);
        for layer in 0..model.dims().layers {
            x = model.layer(layer, x, &mut Cx::new(&mut NoTap, &pass));
        }
        let x = model.final_norm(x);
        let expected = at_tokens(model.unembed(x), &base());
        assert_close(zeroed, &expected, name);
    }
}

/// Keeps the activation at one site.
struct Look<B: Backend> {
    site: Site,
    seen: Option<Tensor<B, 4>>,
}

impl<B: Backend> Tap<B> for Look<B> {
    fn wants(&self, site: Site) -> bool {
        site == self.site
    }

    fn visit(&mut self, _site: Site, activation: Tensor<B, 4>) -> Tensor<B, 4> {
        self.seen = Some(activation.clone());
        activation
    }
}

fn collected_is_what_a_tap_sees<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let model = load::<B>(name, device);
        for component in Component::ALL {
            let site = Site::Block(1, component);
            if model.site(site).is_none() {
                continue;
            }
            let mut look = Look { site, seen: None };
            let input = ModelInput::Tokens(base().to_tensor(device));
            let plain = model.forward_tapped(input, &mut look);
            let seen = look.seen.expect("the site is reached");
            let [batch, heads, pos, width] = seen.dims();
            // The heads of a position side by side.
            let expected = seen.swap_dims(1, 2).reshape([batch, pos, heads * width]);
            let collect = || at(1, component).with_intervention(InterventionType::Collect);
            let whole = output(&model, [collect()], &AlignableInputs::new(base()));
            assert_close(whole.counterfactual, &plain, name);
            assert_eq!(whole.collected.len(), 1);
            let collected = whole.collected[&0].clone();
            assert_close(collected, &expected, &format!("{name} {component}"));
            // One position of it, each example its own.
            let rows = UnitLocations::base(Indices::one_each([4, 2]));
            let inputs = AlignableInputs::new(base()).with_locations(rows);
            let last = output(&model, [collect()], &inputs).collected[&0].clone();
            let rows = [(0, 4), (1, 2)]
                .map(|(row, pos)| expected.clone().narrow(0, row, 1).narrow(1, pos, 1));
            let rows = Tensor::cat(rows.to_vec(), 0);
            assert_close(last, &rows, &format!("{name} {component}"));
        }
    }
}

fn last_logits_are_after_the_last_tokens<B: Backend>(device: &B::Device) {
    everywhere::<B>(device, |model, component, what| {
        let last_of = |logits: &Tensor<B, 3>| {
            let rows = [(0, 4), (1, 2)].map(|(row, pos)| {
                let example = logits.clone().narrow(0, row, 1).narrow(1, pos, 1);
                example.squeeze_dim::<2>(1) // [1, vocab]
            });
            Tensor::cat(rows.to_vec(), 0)
        };
        let inputs = from([source()]).with_original_output();
        let all = output(model, [at(0, component)], &inputs);
        let (changed, original) = (all.counterfactual_last(), all.original_last());
        let original = original.expect("asked for");
        let [expected, clean] = [
            &all.counterfactual,
            all.original.as_ref().expect("asked for"),
        ];
        assert_eq!(values(changed), values(last_of(expected)), "{what}");
        assert_eq!(values(original), values(last_of(clean)), "{what}");

        // The same if no others are computed, and if others were chosen.
        let inputs = inputs.with_logits(LogitPositions::Last);
        let last = output(model, [at(0, component)], &inputs);
        assert_eq!(last.counterfactual.dims()[..2], [2, 1]);
        assert_close(last.counterfactual_last(), &last_of(expected), what);
        let found = last.original_last().expect("asked for");
        assert_close(found, &last_of(clean), what);
        let chosen = LogitPositions::Each(vec![vec![1, 4], vec![0, 2]]);
        let chosen = output(model, [at(0, component)], &inputs.with_logits(chosen));
        assert_eq!(chosen.counterfactual.dims()[..2], [2, 2]);
        assert_close(chosen.counterfactual_last(), &last_of(expected), what);
    });
}

fn a_forward_leaves_the_model_as_it_was<B: Backend>(device: &B::Device) {
    everywhere::<B>(device, |model, component, what| {
        let before = values(plain(model, &base(), device));
        let alignable = alignable(model, [at(0, component)], Mode::Parallel);
        let inputs = from([source()]).with_original_output();
        let first = alignable.forward_inputs(&inputs).expect("right");
        let again = alignable.forward_inputs(&inputs).expect("right");
        assert_eq!(
            values(first.counterfactual),
            values(again.counterfactual),
            "{what}"
        );
        let original = first.original.expect("asked for");
        assert_close(
            at_tokens(original, &base()),
            &plain(model, &base(), device),
            what,
        );
        let after = plain(alignable.model(), &base(), device);
        assert_eq!(values(after), before, "{what}");
        assert_eq!(values(plain(model, &base(), device)), before, "{what}");
    });
}

fn source_and_base_of_different_lengths<B: Backend>(device: &B::Device) {
    everywhere::<B>(device, |model, component, what| {
        // The first tokens of a causal model are the same, whatever follows.
        let long = tokens(&[&[7, 7, 2, 0, 8, 9, 10], &[1, 11, 40, 5, 5, 5]]);
        let short = tokens(&[&[7, 7], &[1, 11]]);
        let expected = logits(model, [at(0, component)], &from([source()]));
        for source in [long, short] {
            let found = logits(model, [at(0, component)], &from([source]));
            assert_close(found, &expected, what);
        }
        // From the last position of one to that of the other: the same as each example alone.
        let inputs = |base: &[&[u32]], source: &[&[u32]], rows: [Vec<Vec<usize>>; 2]| {
            let [from, to] = rows.map(Indices::Each);
            AlignableInputs::new(tokens(base))
                .with_sources([tokens(source)])
                .with_locations((from, to))
        };
        let (a, b): (&[u32], &[u32]) = (&[3, 1, 4, 1, 5], &[9, 2]);
        let (c, d): (&[u32], &[u32]) = (&[8, 8], &[20, 21, 22, 23]);
        let run = |inputs| output(model, [at(0, component)], &inputs).counterfactual;
        let together = run(inputs(
            &[a, b],
            &[c, d],
            [vec![vec![1], vec![3]], vec![vec![4], vec![1]]],
        ));
        let alone = [
            run(inputs(&[a], &[c], [vec![vec![1]], vec![vec![4]]])),
            run(inputs(&[b], &[d], [vec![vec![3]], vec![vec![1]]])),
        ];
        let alone = alone.map(|logits| logits.squeeze_dim::<2>(0)); // [pos, vocab]
        assert_close(
            at_tokens(together, &tokens(&[a, b])),
            &Tensor::cat(alone.to_vec(), 0),
            what,
        );
    });
}

fn given_values_are_a_source<B: Backend>(device: &B::Device) {
    everywhere::<B>(device, |model, component, what| {
        let collect = at(0, component).with_intervention(InterventionType::Collect);
        let inputs = AlignableInputs::new(source()).with_locations(UnitLocations::base(1));
        let activation = output(model, [collect], &inputs).collected[&0].clone();
        let inputs = AlignableInputs::new(base())
            .with_sources([Source::Values(activation)])
            .with_locations(UnitLocations::base(1));
        assert_close(
            logits(model, [at(0, component)], &inputs),
            &logits(model, [at(0, component)], &from([source()])),
            what,
        );
    });
}

fn added_and_subtracted<B: Backend>(device: &B::Device) {
    everywhere::<B>(device, |model, component, what| {
        let of = |kind| at(0, component).with_intervention(kind);
        let (add, subtract) = (InterventionType::Addition, InterventionType::Subtraction);
        let expected = plain(model, &base(), device);
        let both = logits(model, [of(add), of(subtract)], &from([source()]));
        assert_close(both, &expected, what);
        // Nothing is left of what is subtracted from itself.
        assert_close(
            logits(model, [of(subtract)], &from([base()])),
            &logits(model, [of(InterventionType::Zero)], &from([])),
            what,
        );
    });
}

fn skipped_blocks_are_not_there<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let model = load::<B>(name, device);
        let skip =
            |layer| at(layer, Component::BlockOutput).with_intervention(InterventionType::Skip);
        // Without its blocks, a model unembeds the embedding.
        let found = logits(&model, [skip(0), skip(1)], &AlignableInputs::new(base()));
        let input = ModelInput::Tokens(base().to_tensor(device));
        let x = model.embed(input, &Pass::new(5, device, &Tables::new()));
        let x = model.final_norm(x);
        assert_close(found, &at_tokens(model.unembed(x), &base()), name);
        // Skipping all heads equals skipping the whole.
        let heads = at(0, Component::QueryOutput).with_unit(Unit::Head);
        let every_head = from([source()]).with_locations(0..4);
        let whole = from([source()]).with_locations(UnitLocations::Whole);
        let expected = logits(&model, [at(0, Component::QueryOutput)], &whole);
        assert_close(logits(&model, [heads], &every_head), &expected, name);
    }
}
