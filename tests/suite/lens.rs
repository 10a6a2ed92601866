//! Lenses: identities with the model's own logits, sums of direct logit attribution in every
//! family, and a tuned lens that is trained, saved and loaded.

mod patterns;

use burn::backend::Autodiff;
use burn::optim::AdamConfig;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align::engine::{
    Edit, Indices, LogitPositions, Operand, Plan, PlanError, RunOptions, Units,
};
use burn_align::interventions::{FillIntervention, VanillaIntervention};
use burn_align::methods::lens::{
    DirectLogits, LensError, LogitPart, LogitTarget, TunedLens, TunedLensConfig, direct_logits,
    head_sources, lens_divergences, logit_lens, stream_sites, train_tuned_lens, tuned_lens,
};
use burn_align::methods::{LoadResultError, SaveResultError};
use burn_align_models::{AlignableTransformer, Component, Decoder, Site, TokenBatch, TokensError};

use crate::support::{FAMILIES, load, message, tokens, values};

on_every_backend!(
    the_last_site_gives_the_logits_bit_by_bit,
    a_lens_reads_the_stream_as_if_it_were_the_last,
    rows_sum_to_logits_in_every_family,
    a_row_is_what_is_missing_without_its_part,
    sources_sum_to_their_head,
    an_untrained_lens_is_the_logit_lens,
    a_trained_lens_is_closer_on_other_texts,
    a_saved_lens_comes_back,
    what_is_no_lens_is_refused,
    what_cannot_be_read_is_refused,
);

/// Prompts of different lengths.
fn prompts() -> TokenBatch {
    tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6], &[5, 3, 5, 8, 9]])
}

/// The model's own logits.
fn own<B: Backend>(model: &Decoder<B>, positions: LogitPositions) -> Tensor<B, 3> {
    let mut plan = Plan::<B>::new();
    let input = plan.tokens(&prompts());
    let world = plan.world(input, []);
    let read = plan.read_logits(world, positions);
    let results = plan.run(model, &[VanillaIntervention; 0]).expect("valid");
    results.get(read)
}

fn bits<B: Backend>(x: Tensor<B, 3>) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

fn lens<B: Backend>(
    model: &Decoder<B>,
    sites: &[Site],
    positions: &LogitPositions,
) -> Vec<Tensor<B, 3>> {
    let options = RunOptions::default();
    let found = logit_lens(
        model,
        prompts(),
        sites,
        positions,
        &options,
        |_site, logits| logits,
    );
    found.expect("valid")
}

fn the_last_site_gives_the_logits_bit_by_bit<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let sites = stream_sites(&model);
        assert_eq!(sites.len(), model.dims().layers + 1);
        for positions in [LogitPositions::Last, LogitPositions::All] {
            let own = bits(own(&model, positions.clone()));
            let all = lens(&model, &sites, &positions);
            let [before, .., last] = &all[..] else {
                panic!("a site for each layer");
            };
            assert_eq!(bits(last.clone()), own, "{name}");
            assert_ne!(bits(before.clone()), own, "{name}");
            let normed = lens(&model, &[Site::FinalNorm], &positions).remove(0);
            let pairs = values(normed).into_iter().zip(values(last.clone()));
            for (found, expected) in pairs {
                assert!((found - expected).abs() <= 1e-5, "{name}");
            }
        }
    }
}

fn a_lens_reads_the_stream_as_if_it_were_the_last<B: Backend>(device: &B::Device) {
    // What comes after layer 0 is set to zero, so that its stream is the last one.
    let model = load::<B>("gpt2_plain", device);
    let mut plan = Plan::<B>::new();
    let input = plan.tokens(&prompts());
    let nothing = [Component::AttentionOutput, Component::MlpOutput]
        .map(|component| Edit::new(Site::Block(1, component), Units::ALL, 0, Operand::None));
    let world = plan.world(input, nothing);
    let read = plan.read_logits(world, LogitPositions::All);
    let results = plan.run(&model, &[FillIntervention::ZERO]).expect("valid");
    let expected = values(results.get(read));
    let sites = [Site::Block(0, Component::BlockOutput)];
    let found = values(lens(&model, &sites, &LogitPositions::All).remove(0));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= 1e-5, "{found}, {expected}");
    }
}

fn attribution<B: Backend>(
    model: &Decoder<B>,
    positions: &LogitPositions,
    target: &LogitTarget,
) -> DirectLogits {
    let options = RunOptions::default();
    direct_logits(model, prompts(), positions, target, &options).expect("valid")
}

/// Logits after any soft cap.
fn capped(logit: f64, cap: Option<f64>) -> f64 {
    match cap {
        Some(cap) => cap * (logit / cap).tanh(),
        None => logit,
    }
}

fn rows_sum_to_logits_in_every_family<B: Backend>(device: &B::Device) {
    const TOLERANCE: f64 = 1e-4;
    let (token, other) = (vec![5, 30, 7], vec![17]);
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let dims = model.dims().clone();
        for positions in [LogitPositions::Last, LogitPositions::All] {
            let own = own(&model, positions.clone());
            let [_batch, unit, vocab] = own.dims();
            let own = values(own);
            let single = LogitTarget::Logit(token.clone());
            let single = attribution(&model, &positions, &single);
            let difference = LogitTarget::Difference(token.clone(), other.clone());
            let difference = attribution(&model, &positions, &difference);
            let others = attribution(&model, &positions, &LogitTarget::Logit(other.clone()));
            assert_eq!(single.soft_cap.is_some(), name == "gemma2_plain", "{name}");
            for (example, length) in prompts().lengths().into_iter().enumerate() {
                for at in 0..unit {
                    // Logits at padding mean nothing.
                    if unit > 1 && at >= length {
                        continue;
                    }
                    let logit = |token: u32| {
                        let row = (example * unit + at) * vocab;
                        f64::from(own[row + token as usize])
                    };
                    let sum = single.sums()[example][at];
                    let other_sum = others.sums()[example][at];
                    let expected = [logit(token[example]), logit(other[0])];
                    for (sum, expected) in [sum, other_sum].into_iter().zip(expected) {
                        let found = capped(sum, single.soft_cap);
                        assert!(
                            (found - expected).abs() <= TOLERANCE,
                            "{name}: the logit is {expected}, the rows sum to {found}"
                        );
                    }
                    let both = difference.sums()[example][at];
                    assert!((both - (sum - other_sum)).abs() <= TOLERANCE, "{name}");
                    if single.soft_cap.is_none() {
                        let expected = expected[0] - expected[1];
                        assert!((both - expected).abs() <= TOLERANCE, "{name}: {both}");
                    }
                    let total = difference.total[example][at];
                    assert!((both - total).abs() <= TOLERANCE, "{name}: {both}, {total}");
                }
            }
            // Embedding, heads, attentions, MLPs; biases where there are any.
            let heads = dims.layers * dims.heads;
            let is_head = |part: LogitPart| matches!(part, LogitPart::Head { .. });
            let found = difference.rows.iter().filter(|row| is_head(row.part));
            assert_eq!(found.count(), heads, "{name}");
            let count = |part| {
                difference
                    .rows
                    .iter()
                    .filter(|row| row.part == part)
                    .count()
            };
            assert_eq!(count(LogitPart::Embedding), 1);
            // Without a bias, heads are all that an attention adds.
            for (layer, block) in model.layers.iter().enumerate() {
                if block.attention.output.bias.is_some() {
                    continue;
                }
                let part = LogitPart::Attention { layer };
                let row = single.rows.iter().find(|row| row.part == part);
                let row = row.expect("a row for each attention");
                for (values, length) in row.values.iter().zip(prompts().lengths()) {
                    for value in values.iter().take(length) {
                        assert!(value.abs() <= TOLERANCE, "{name}, {part}: {value}");
                    }
                }
            }
            for layer in 0..dims.layers {
                assert_eq!(count(LogitPart::Attention { layer }), 1);
                assert_eq!(count(LogitPart::Mlp { layer }), 1);
            }
            let has_norm_bias = model.final_norm.bias.is_some();
            assert_eq!(count(LogitPart::FinalNormBias), usize::from(has_norm_bias));
        }
    }
}

fn a_row_is_what_is_missing_without_its_part<B: Backend>(device: &B::Device) {
    // The norm's scale is held, so the MLP of the last layer can be taken out after the norm.
    let model = load::<B>("llama_gqa", device);
    let target = LogitTarget::Difference(vec![5], vec![17]);
    let found = attribution(&model, &LogitPositions::Last, &target);
    let mut plan = Plan::<B>::new();
    let input = plan.tokens(&prompts());
    let world = plan.world(input, []);
    let last = Units::positions(Indices::one_each([4, 2, 4]));
    let [stream, mlp] = [Component::BlockOutput, Component::MlpOutput]
        .map(|component| plan.read(world, Site::Block(1, component), last.clone()));
    let results = plan.run(&model, &[VanillaIntervention; 0]).expect("valid");
    let (stream, mlp) = (results.get(stream), results.get(mlp));
    let gain = model.final_norm.weight.val().unsqueeze::<3>();
    let scale = (stream.powi_scalar(2).mean_dim(2) + 1e-6).sqrt();
    let normed = mlp / scale * gain;
    let logits = values(model.unembed(normed));
    let row = found
        .rows
        .iter()
        .find(|row| row.part == LogitPart::Mlp { layer: 1 });
    let row = row.expect("an MLP");
    for (example, logits) in logits.chunks(41).enumerate() {
        let expected = f64::from(logits[5] - logits[17]);
        let found = row.values[example][0];
        assert!((found - expected).abs() <= 1e-4, "{found}, {expected}");
    }
    assert!(row.values.iter().flatten().any(|value| value.abs() > 0.05));
}

fn sources_sum_to_their_head<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "llama_gqa", "gemma2_plain", "olmo2_plain"] {
        let model = load::<B>(name, device);
        let target = LogitTarget::Difference(vec![5], vec![17]);
        for positions in [LogitPositions::Last, LogitPositions::All] {
            let whole = attribution(&model, &positions, &target);
            let heads = [(1, 3), (0, 0), (1, 2)];
            let options = RunOptions::default();
            let found = head_sources(&model, prompts(), &positions, &target, &heads, &options);
            for (found, (layer, head)) in found.expect("valid").iter().zip(heads) {
                assert_eq!((found.layer, found.head), (layer, head));
                let part = LogitPart::Head { layer, head };
                let row = whole.rows.iter().find(|row| row.part == part);
                let row = row.expect("a row for each head");
                let examples = found.values.iter().zip(&row.values);
                for (example, (sources, row)) in examples.enumerate() {
                    for (unit, (sources, expected)) in sources.iter().zip(row).enumerate() {
                        let sum: f64 = sources.iter().sum();
                        assert!((sum - expected).abs() <= 1e-4, "{name}: {sum}, {expected}");
                        // A head sees nothing after its own position.
                        let at = match positions {
                            LogitPositions::All => unit,
                            _ => prompts().lengths()[example] - 1,
                        };
                        assert!(sources[at + 1..].iter().all(|value| *value == 0.0));
                    }
                }
            }
        }
    }
}

fn texts(seed: u32) -> Vec<TokenBatch> {
    let text = |row: u32| -> Vec<u32> {
        (0..8)
            .map(|at| (seed * 31 + row * 17 + at * at * 5 + row * at) % 41)
            .collect()
    };
    let batches = (0..4).map(|batch| {
        let rows = (0..4).map(|row| text(4 * batch + row));
        TokenBatch::new(rows.collect()).expect("a batch")
    });
    batches.collect()
}

fn an_untrained_lens_is_the_logit_lens<B: Backend>(device: &B::Device) {
    let model = load::<B>("gemma2_plain", device);
    let sites = stream_sites(&model);
    let identity = TunedLens::<B>::identity(&sites, model.dims().d_model, device);
    let options = RunOptions::default();
    let last = LogitPositions::Last;
    let read = |_site: Site, logits: Tensor<B, 3>| logits;
    let found = tuned_lens(&model, &identity, prompts(), &sites, &last, &options, read);
    let expected = lens(&model, &sites, &last);
    for (found, expected) in found.expect("valid").into_iter().zip(expected) {
        assert_eq!(values(found), values(expected));
    }
    let batches = texts(1);
    let divergences = |lens: Option<&TunedLens<B>>| {
        lens_divergences(&model, lens, &batches, &sites, &options).expect("valid")
    };
    let (with, without) = (divergences(Some(&identity)), divergences(None));
    assert_eq!(with, without);
    assert!(without[0] > 1e-3, "{without:?}");
    // The stream that leaves the last layer is the answer.
    assert!(
        without.last().is_some_and(|it| it.abs() <= 1e-5),
        "{without:?}"
    );
}

fn trained<B: Backend>(device: &B::Device, at_once: usize) -> (TunedLens<B>, Vec<Vec<f64>>) {
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let mut sites = stream_sites(&model);
    sites.pop();
    let config = TunedLensConfig::default()
        .with_epochs(15)
        .with_learning_rate(5e-3)
        .with_optimizer(AdamConfig::new())
        .with_tokens_at_once(at_once);
    let mut history = Vec::new();
    let lens = train_tuned_lens(&model, &texts(1), &sites, &config, |step, divergences| {
        assert_eq!(step, history.len());
        history.push(divergences.to_vec());
    });
    (lens.expect("valid"), history)
}

fn a_trained_lens_is_closer_on_other_texts<B: Backend>(device: &B::Device) {
    let (lens, history) = trained::<B>(device, 256);
    assert_eq!(history.len(), 15 * 4);
    let model = load::<B>("gpt2_plain", device);
    let sites = lens.sites().to_vec();
    let options = RunOptions::default();
    let divergences = |lens: Option<&TunedLens<B>>, texts: &[TokenBatch]| {
        lens_divergences(&model, lens, texts, &sites, &options).expect("valid")
    };
    // The first step starts at the logit lens.
    let start = divergences(None, &texts(1)[..1]);
    for (found, expected) in history[0].iter().zip(&start) {
        assert!((found - expected).abs() <= 1e-4, "{found}, {expected}");
    }
    let held_out = texts(3);
    let (before, after) = (
        divergences(None, &held_out),
        divergences(Some(&lens), &held_out),
    );
    for (site, (before, after)) in sites.iter().zip(before.iter().zip(&after)) {
        assert!(after < before, "{site}: {before} before, {after} after");
    }
    // Parts of a batch change nothing but rounding.
    let (_lens, in_parts) = trained::<B>(device, 5);
    assert_eq!(in_parts.len(), history.len());
    for (step, (found, expected)) in in_parts.iter().zip(&history).enumerate() {
        for (found, expected) in found.iter().zip(expected) {
            let most = match step {
                0 | 1 => 1e-5,
                _ => 1e-4 * expected,
            };
            assert!(
                (found - expected).abs() <= most,
                "step {step}: {found}, {expected}"
            );
        }
    }
}

fn a_saved_lens_comes_back<B: Backend>(device: &B::Device) {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("lens");
    let (lens, _history) = trained::<B>(device, 256);
    lens.save(&folder).expect("it can be written");
    let loaded = TunedLens::<B>::load(&folder, device).expect("it was saved");
    assert_eq!(loaded.sites(), lens.sites());
    for (found, expected) in loaded.translators.iter().zip(&lens.translators) {
        assert_eq!(values(found.weight.val()), values(expected.weight.val()));
        assert_eq!(values(found.bias.val()), values(expected.bias.val()));
    }

    let rewritten = |name: &str, change: &dyn Fn(&str) -> String| {
        let other = folder.with_file_name("other");
        std::fs::create_dir_all(&other).expect("a folder");
        for file in ["tuned_lens.json", "tuned_lens.safetensors"] {
            std::fs::copy(folder.join(file), other.join(file)).expect("it can be copied");
        }
        let file = other.join(name);
        let text = std::fs::read(&file).expect("it was copied");
        let text = change(&String::from_utf8_lossy(&text));
        std::fs::write(&file, text).expect("it can be written");
        let error = TunedLens::<B>::load(&other, device).expect_err("it is damaged");
        message(&error)
    };
    let found = rewritten("tuned_lens.json", &|json| json.replace("16", "12"));
    assert!(
        found.contains(
            "tensor `0.weight`: expected f32 of shape [12, 12], found F32 of shape [16, 16]"
        ),
        "{found}"
    );
    let found = rewritten("tuned_lens.json", &|json| {
        json.replace("block_output", "nowhere")
    });
    assert!(
        found.contains("site: unknown component `nowhere`"),
        "{found}"
    );
    let found = rewritten("tuned_lens.json", &|json| {
        json.replace("\"format\": 1", "\"format\": 9")
    });
    assert!(found.contains("format: expected 1, found 9"), "{found}");
    let found = rewritten("tuned_lens.json", &|json| json[..20].to_owned());
    assert!(
        found.contains("expected the description of a tuned lens"),
        "{found}"
    );
    let found = rewritten("tuned_lens.safetensors", &|_| "nothing".to_owned());
    assert!(found.contains("expected safetensors"), "{found}");
    let nowhere = TunedLens::<B>::load(folder.join("nowhere"), device);
    assert!(matches!(nowhere, Err(LoadResultError::NoResult { .. })));
    std::fs::rename(
        folder.join("tuned_lens.json"),
        folder.join("tuned_lens.json.part"),
    )
    .expect("it can be renamed");
    let cut_off = TunedLens::<B>::load(&folder, device);
    assert!(matches!(cut_off, Err(LoadResultError::CutOff { .. })));
}

fn what_is_no_lens_is_refused<B: Backend>(device: &B::Device) {
    let folder = tempfile::tempdir().expect("a folder");
    let empty = TunedLens::<B>::identity(&[], 16, device);
    let error = empty.save(folder.path()).expect_err("it is empty");
    assert!(matches!(error, SaveResultError::NotReadable { .. }));
    assert_eq!(
        message(&error),
        "the tuned lens cannot be saved: expected a translator for each of 0 sites, at least one, \
         found 0"
    );
    let mut infinite = TunedLens::<B>::identity(&[Site::Embedding], 2, device);
    let bias = TensorData::new(vec![0.0_f32, f32::INFINITY], [2]);
    let bias = Tensor::<B, 1>::from_data(bias, (device, DType::F32));
    infinite.translators[0].bias = burn::module::Param::from_tensor(bias);
    let error = infinite.save(folder.path()).expect_err("it is not finite");
    assert_eq!(
        message(&error),
        "the tuned lens cannot be saved: tensor `0.bias`: expected finite numbers, found inf"
    );

    let model = load::<B>("gpt2_plain", device);
    let sites = stream_sites(&model);
    let last = LogitPositions::Last;
    let options = RunOptions::default();
    let apply = |lens: &TunedLens<B>| {
        let read = |_site: Site, _logits: Tensor<B, 3>| ();
        let found = tuned_lens(&model, lens, prompts(), &sites, &last, &options, read);
        found.expect_err("refused")
    };
    assert_eq!(
        apply(&TunedLens::identity(&sites, 12, device)),
        LensError::Width {
            expected: 16,
            found: 12
        }
    );
    assert_eq!(
        message(&apply(&TunedLens::identity(&sites[1..], 16, device))),
        "embedding: the tuned lens has no translator for this site; it has one for layer 0 \
         block_output, layer 1 block_output"
    );
    let mut short = TunedLens::<B>::identity(&sites, 16, device);
    short.translators[1].bias =
        burn::module::Param::from_tensor(Tensor::zeros([15], (device, DType::F32)));
    for lens in [
        TunedLens::identity(&sites, 12, device),
        TunedLens::identity(&sites[1..], 16, device),
        short,
    ] {
        let found = lens_divergences(&model, Some(&lens), &texts(1), &sites, &options);
        let found = found.expect_err("refused");
        assert_eq!(found, apply(&lens));
        assert!(matches!(
            found,
            LensError::Width { .. } | LensError::NoTranslator { .. }
        ));
    }
    let autodiff = load::<Autodiff<B>>("gpt2_plain", device);
    let train = |texts: &[TokenBatch], sites: &[Site], config: TunedLensConfig| {
        let found = train_tuned_lens(&autodiff, texts, sites, &config, |_, _| ());
        message(&found.expect_err("refused"))
    };
    let config = TunedLensConfig::default;
    for (found, expected) in [
        (
            train(&[], &sites, config()),
            "expected at least one batch, found none",
        ),
        (
            train(&texts(1), &[], config()),
            "expected at least one site, found none",
        ),
        (
            train(&texts(1), &sites, config().with_epochs(0)),
            "epochs: expected at least 1, found 0",
        ),
        (
            train(&texts(1), &sites, config().with_tokens_at_once(0)),
            "tokens_at_once: expected at least 1, found 0",
        ),
        (
            train(&texts(1), &sites, config().with_learning_rate(-1.0)),
            "learning_rate: expected a positive number, found -1",
        ),
    ] {
        assert_eq!(found, expected);
    }
}

fn what_cannot_be_read_is_refused<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let last = LogitPositions::Last;
    let options = RunOptions::default();
    let read = |site: Site| {
        let found = logit_lens(&model, prompts(), &[site], &last, &options, |_, _| ());
        found.expect_err("refused")
    };
    let queries = Site::Block(0, Component::QueryOutput);
    assert_eq!(
        message(&read(queries)),
        "layer 0 query_output: expected an activation as wide as the residual stream, 16, without \
         heads; use the embedding, a block's input or output, or what a sublayer adds"
    );
    let deep = read(Site::Block(9, Component::BlockOutput));
    assert!(matches!(
        deep,
        LensError::Plan(PlanError::NoSuchSite { .. })
    ));
    let none = logit_lens(&model, prompts(), &[], &last, &options, |_, _| ());
    assert_eq!(none, Err(LensError::Nothing { what: "site" }));

    let empty = || Tensor::<B, 3>::zeros([2, 0, 16], (device, DType::F32));
    let target = LogitTarget::Logit(vec![1]);
    let refused = [
        logit_lens(
            &model,
            empty(),
            &[Site::Embedding],
            &last,
            &options,
            |_, _| (),
        )
        .err(),
        direct_logits(&model, empty(), &last, &target, &options).err(),
    ];
    for found in refused {
        let found = found.expect("refused");
        assert!(
            matches!(
                found,
                LensError::Plan(PlanError::Input {
                    cause: TokensError::EmptyExample { example: 0 },
                    ..
                })
            ),
            "{found}"
        );
    }

    let parts = |target: &LogitTarget| {
        let found = direct_logits(&model, prompts(), &last, target, &options);
        message(&found.expect_err("refused"))
    };
    assert_eq!(
        parts(&LogitTarget::Logit(vec![41])),
        "tokens: expected ids below 41, found 41"
    );
    assert_eq!(
        parts(&LogitTarget::Difference(vec![1], vec![1, 2])),
        "other tokens: expected one for each of 3 examples, or one for all, found 2"
    );
    let heads = |heads: &[(usize, usize)]| {
        let found = head_sources(&model, prompts(), &last, &target, heads, &options);
        message(&found.expect_err("refused"))
    };
    assert_eq!(heads(&[]), "expected at least one head, found none");
    assert_eq!(
        heads(&[(0, 1), (1, 4)]),
        "layer 1, head 4: the model has 2 layers of 4 heads"
    );
}
