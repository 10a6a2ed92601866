//! Distributions by hand and by `transformers`' logits processors, and draws against them.

use super::*;

const LOGITS: [f32; 12] = [
    2.5, -1.25, 0.75, 3.5, -0.5, 1.5, 3.0, -2.0, 0.25, 1.75, -3.5, 2.0,
];
const HISTORY: [u32; 6] = [3, 6, 1, 3, 3, 10];

fn at(temperature: f64) -> Sampling {
    Sampling::greedy().with_temperature(temperature)
}

fn distribution(sampling: &Sampling, logits: &[f32]) -> Vec<(u32, f64)> {
    sampling
        .distribution(logits, &HISTORY)
        .expect("valid parameters and logits")
}

#[track_caller]
fn assert_distribution(sampling: &Sampling, expected: &[(u32, f64)]) {
    let found = distribution(sampling, &LOGITS);
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((token, found), (expected_token, expected)) in found.iter().zip(expected) {
        assert_eq!(token, expected_token);
        let error = (found - expected).abs();
        assert!(error < 5e-7, "token {token}: {found}, expected {expected}");
    }
}

fn tokens(found: &[(u32, f64)]) -> Vec<u32> {
    found.iter().map(|(token, _)| *token).collect()
}

/// The probabilities of `transformers` 4.57.6: its processors in f32, then a softmax in f64.
#[test]
fn filters_are_those_of_transformers() {
    assert_distribution(
        &at(0.7),
        &[
            (0, 0.1186278),
            (1, 0.0005593),
            (2, 0.0097376),
            (3, 0.4950025),
            (4, 0.0016328),
            (5, 0.0284293),
            (6, 0.2423243),
            (7, 0.0001916),
            (8, 0.0047669),
            (9, 0.0406323),
            (10, 0.0000225),
            (11, 0.0580733),
        ],
    );
    assert_distribution(
        &at(1.0).with_repetition_penalty(1.3),
        &[
            (0, 0.20657),
            (1, 0.0033389),
            (2, 0.0358965),
            (3, 0.2503719),
            (4, 0.0102845),
            (5, 0.0759929),
            (6, 0.1704312),
            (7, 0.0022948),
            (8, 0.0217723),
            (9, 0.0975768),
            (10, 0.0001792),
            (11, 0.1252911),
        ],
    );
    assert_distribution(
        &at(1.5).with_top_k(5),
        &[
            (0, 0.1764786),
            (3, 0.3437334),
            (6, 0.2462958),
            (9, 0.1070397),
            (11, 0.1264525),
        ],
    );
    assert_distribution(
        &at(1.0).with_top_p(0.8),
        &[
            (0, 0.1674051),
            (3, 0.4550542),
            (6, 0.2760043),
            (11, 0.1015363),
        ],
    );
    assert_distribution(
        &at(1.0).with_min_p(0.15),
        &[
            (0, 0.1551374),
            (3, 0.4217071),
            (6, 0.2557783),
            (9, 0.0732817),
            (11, 0.0940956),
        ],
    );
    assert_distribution(
        &at(0.8)
            .with_top_k(8)
            .with_top_p(0.9)
            .with_min_p(0.1)
            .with_repetition_penalty(1.2),
        &[
            (0, 0.2169058),
            (3, 0.3651456),
            (6, 0.2169058),
            (9, 0.0849415),
            (11, 0.1161013),
        ],
    );
    assert_distribution(&at(1.0).with_top_p(1e-9), &[(3, 1.0)]);
}

/// Probabilities 1/2, 1/4, 1/8, 1/8 and none, in another order.
#[test]
fn filters_by_hand() {
    let logits = [0.25, 0.5, 0.125, 0.125, 0.0_f32].map(f32::ln);
    let kept = |sampling: Sampling| tokens(&distribution(&sampling, &logits));
    assert_eq!(kept(at(1.0)), [0, 1, 2, 3]);
    assert_eq!(kept(at(1.0).with_top_k(1)), [1]);
    assert_eq!(kept(at(1.0).with_top_k(2)), [0, 1]);
    // The fourth is as likely as the third.
    assert_eq!(kept(at(1.0).with_top_k(3)), [0, 1, 2, 3]);
    assert_eq!(kept(at(1.0).with_top_k(99)), [0, 1, 2, 3]);
    assert_eq!(kept(at(1.0).with_top_p(0.49)), [1]);
    assert_eq!(kept(at(1.0).with_top_p(0.51)), [0, 1]);
    assert_eq!(kept(at(1.0).with_top_p(0.74)), [0, 1]);
    assert_eq!(kept(at(1.0).with_top_p(0.8)), [0, 1, 3]);
    assert_eq!(kept(at(1.0).with_top_p(0.9)), [0, 1, 2, 3]);
    assert_eq!(kept(at(1.0).with_top_p(1.0)), [0, 1, 2, 3]);
    assert_eq!(kept(at(1.0).with_min_p(0.0)), [0, 1, 2, 3]);
    assert_eq!(kept(at(1.0).with_min_p(0.3)), [0, 1]);
    assert_eq!(kept(at(1.0).with_min_p(0.6)), [1]);
    // The nucleus is that of what top-k has left: 2/3, 1/3.
    assert_eq!(kept(at(1.0).with_top_k(2).with_top_p(0.6)), [1]);
    // At temperature 1/2 probabilities are squared: 4/22, 16/22, 1/22, 1/22.
    let cold = distribution(&at(0.5), &logits);
    for ((_, found), expected) in cold.iter().zip([4.0, 16.0, 1.0, 1.0]) {
        assert!((found - expected / 22.0).abs() < 1e-6, "{cold:?}");
    }
    // A temperature too low to divide by.
    assert_eq!(kept(at(1e-310)), [1]);

    // The boundary among equals: half of four tokens is two of them.
    let equal = [0.0; 4];
    let kept = |top_p| tokens(&distribution(&at(1.0).with_top_p(top_p), &equal));
    assert_eq!(kept(0.5), [2, 3]);
    assert_eq!(kept(0.6), [1, 2, 3]);
}

/// The nucleus by sorting, on vocabularies with flat, steep and tied scores.
#[test]
fn a_nucleus_is_found_without_sorting() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for round in 0..200 {
        let vocab = rng.random_range(1..400);
        let steep = f32::from(round as u8 % 5);
        let logits: Vec<f32> = (0..vocab)
            .map(|_| {
                let logit: f32 = rng.random::<f32>() * 3.0 * steep;
                if round % 3 == 0 { logit.round() } else { logit }
            })
            .collect();
        let top_p = rng.random_range(0.01..0.999);
        let found = distribution(&at(1.0).with_top_p(top_p), &logits);

        let mut sorted = distribution(&at(1.0), &logits);
        sorted.sort_by(|(a_token, a), (b_token, b)| b.total_cmp(a).then(b_token.cmp(a_token)));
        let mut before = 0.0;
        let mut expected = Vec::new();
        for (token, probability) in sorted {
            if before >= top_p {
                break;
            }
            // Sums in another order may differ here.
            assert!((before - top_p).abs() > 1e-12, "another seed");
            before += probability;
            expected.push(token);
        }
        expected.sort_unstable();
        assert_eq!(tokens(&found), expected, "round {round}");
        let sum: f64 = found.iter().map(|(_, probability)| probability).sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }
}

#[test]
fn greedy_takes_the_lowest_of_the_best() {
    let choose = |sampling: &Sampling, logits: &[f32]| {
        let mut sampler = Sampler::new(sampling, 0).expect("valid");
        sampler.next(logits, &HISTORY).expect("finite logits")
    };
    let greedy = Sampling::default();
    assert!(greedy.is_greedy());
    assert_eq!(choose(&greedy, &LOGITS), 3);
    assert_eq!(choose(&greedy, &[1.0, 4.0, -0.0, 4.0]), 1);
    assert_eq!(choose(&greedy, &[-0.0, 0.0]), 0);
    assert_eq!(choose(&greedy, &[f32::NEG_INFINITY, -1e30]), 1);
    // 3.5 / 2 and 3 / 2 are less than 2.5.
    let penalised = Sampling::greedy().with_repetition_penalty(2.0);
    assert_eq!(choose(&penalised, &LOGITS), 0);
    // Filters and the seed have no effect.
    let filtered = Sampling::greedy()
        .with_top_k(1)
        .with_top_p(0.1)
        .with_seed(9);
    assert_eq!(choose(&filtered, &LOGITS), 3);
    assert_eq!(distribution(&greedy, &LOGITS), [(3, 1.0)]);
}

const DRAWS: u64 = 20_000;

/// Pearson's statistic of draws against a distribution.
fn chi_squared(expected: &[(u32, f64)], drawn: impl Iterator<Item = u32>) -> f64 {
    let mut counts = vec![0_u32; expected.len()];
    for token in drawn {
        let place = expected.iter().position(|(it, _)| *it == token);
        counts[place.expect("only tokens that are kept")] += 1;
    }
    let draws: u32 = counts.iter().sum();
    assert_eq!(u64::from(draws), DRAWS);
    let terms = expected.iter().zip(counts);
    let terms = terms.map(|((_, probability), count)| {
        let expected = probability * f64::from(draws);
        (f64::from(count) - expected).powi(2) / expected
    });
    terms.sum()
}

/// Limits are exceeded once in 10,000 seeds.
#[test]
fn draws_follow_the_distribution() {
    // 12 tokens, then 5, then 6.
    for (sampling, limit) in [
        (at(1.0).with_repetition_penalty(0.9).with_top_p(1.0), 37.37),
        (at(2.0).with_top_k(5).with_seed(1), 23.51),
        (at(0.8).with_min_p(0.05).with_seed(2), 25.74),
    ] {
        let expected = distribution(&sampling, &LOGITS);
        let mut steps = Sampler::new(&sampling, 17).expect("valid");
        let steps = (0..DRAWS).map(|_| steps.next(&LOGITS, &HISTORY).expect("finite"));
        let along_steps = chi_squared(&expected, steps);
        assert!(along_steps < limit, "steps: {along_steps}, {sampling:?}");

        let streams = (0..DRAWS).map(|stream| {
            let mut sampler = Sampler::new(&sampling, stream).expect("valid");
            sampler.next(&LOGITS, &HISTORY).expect("finite")
        });
        let across_streams = chi_squared(&expected, streams);
        assert!(
            across_streams < limit,
            "streams: {across_streams}, {sampling:?}"
        );
    }
}

/// Logits that depend on a row's own history.
fn logits_after(history: &[u32]) -> Vec<f32> {
    let mut state = history.iter().fold(7_u32, |state, token| {
        state.wrapping_mul(31).wrapping_add(*token)
    });
    let logits = (0..50).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as f32 / 16_384.0
    });
    logits.collect()
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let sampling = at(0.9)
        .with_top_k(30)
        .with_top_p(0.95)
        .with_repetition_penalty(1.1)
        .with_seed(42);
    let generate = |streams: &[u64], steps: usize| -> Vec<Vec<u32>> {
        let mut rows: Vec<(Sampler, Vec<u32>)> = streams
            .iter()
            .map(|stream| (Sampler::new(&sampling, *stream).expect("valid"), vec![1, 2]))
            .collect();
        for _ in 0..steps {
            for (sampler, row) in &mut rows {
                let next = sampler.next(&logits_after(row), row).expect("finite");
                row.push(next);
            }
        }
        rows.into_iter().map(|(_, row)| row).collect()
    };
    let together = generate(&[5, 0, 9, 5], 40);
    for (stream, row) in [5, 0, 9, 5].iter().zip(&together) {
        assert_eq!(&generate(&[*stream], 40)[0], row);
    }
    assert_eq!(together[0], together[3]);
    assert_ne!(together[0], together[1]);
    assert_ne!(together[0], together[2]);

    // A row continues where it was left.
    let row = &together[2];
    let mut sampler = Sampler::new(&sampling, 9).expect("valid").at_step(25);
    let mut text = row[..27].to_vec();
    while text.len() < row.len() {
        let next = sampler.next(&logits_after(&text), &text).expect("finite");
        text.push(next);
    }
    assert_eq!(&text, row);
    assert_eq!(sampler.step(), 40);

    let other = Sampling {
        seed: 43,
        ..sampling.clone()
    };
    let mut sampler = Sampler::new(&other, 9).expect("valid");
    let mut text = vec![1, 2];
    for _ in 0..40 {
        let next = sampler.next(&logits_after(&text), &text).expect("finite");
        text.push(next);
    }
    assert_ne!(&text, row, "the seed matters");
}

/// Draws at the ends of a distribution, and with no mass where it is looked for.
#[test]
fn draws_at_the_ends() {
    let candidates: Vec<Candidate> = [(4, 0.25), (7, 1.0), (9, 0.75)]
        .map(|(token, weight)| Candidate { token, weight })
        .to_vec();
    let below_one = 1.0 - f64::EPSILON / 2.0;
    for (uniform, expected) in [
        (0.0, 4),
        (0.124, 4),
        (0.125, 7),
        (0.624, 7),
        (0.626, 9),
        (below_one, 9),
    ] {
        assert_eq!(draw(&candidates, 7, uniform), expected, "{uniform}");
    }
}

#[test]
fn what_is_refused() {
    let refused = |sampling: Sampling| {
        let error = sampling.validate().expect_err("refused");
        let sampler = Sampler::new(&sampling, 0).expect_err("refused too");
        assert_eq!(sampler.to_string(), error.to_string());
        error.to_string()
    };
    for (sampling, expected) in [
        (at(-0.5), "temperature: expected a finite number that is at"),
        (at(f64::NAN), "temperature: expected a finite number"),
        (at(f64::INFINITY), "temperature: expected a finite number"),
        (
            at(1.0).with_top_k(0),
            "top_k: expected at least 1, found 0; leave it out",
        ),
        (at(1.0).with_top_p(0.0), "top_p: expected more than 0"),
        (at(1.0).with_top_p(1.01), "top_p: expected more than 0"),
        (at(1.0).with_top_p(f64::NAN), "top_p: expected more than 0"),
        (at(1.0).with_min_p(-0.1), "min_p: expected at least 0"),
        (at(1.0).with_min_p(1.0), "min_p: expected at least 0"),
        (at(1.0).with_min_p(f64::NAN), "min_p: expected at least 0"),
        (
            at(1.0).with_repetition_penalty(0.0),
            "repetition_penalty: expected a finite number above 0",
        ),
        (
            at(1.0).with_repetition_penalty(f64::NAN),
            "repetition_penalty: expected a finite number above 0",
        ),
    ] {
        let message = refused(sampling);
        assert!(message.starts_with(expected), "{message}");
    }

    let penalised = at(1.0).with_repetition_penalty(2.0);
    let mut sampler = Sampler::new(&penalised, 0).expect("valid");
    let cases: [(Vec<f32>, Vec<u32>, SamplingError); 4] = [
        (vec![], vec![], SamplingError::NoToken),
        (vec![f32::NEG_INFINITY; 3], vec![], SamplingError::NoToken),
        (
            vec![0.0, f32::INFINITY],
            vec![],
            SamplingError::NotFinite {
                token: 1,
                found: f32::INFINITY,
            },
        ),
        (
            vec![0.0, 1.0],
            vec![0, 2],
            SamplingError::UnknownToken { found: 2, vocab: 2 },
        ),
    ];
    for (logits, history, expected) in cases {
        assert_eq!(sampler.next(&logits, &history), Err(expected));
    }
    let nan = sampler.next(&[f32::NAN, 1.0], &[]);
    assert!(
        matches!(nan, Err(SamplingError::NotFinite { token: 0, .. })),
        "{nan:?}"
    );
    assert_eq!(sampler.step(), 0);
}

#[test]
fn parameters_in_json() {
    let read: Sampling = serde_json::from_str(r#"{"temperature": 0.7, "top_k": 40}"#).expect("ok");
    assert_eq!(read, at(0.7).with_top_k(40));
    let written = serde_json::to_string(&read).expect("plain data");
    assert_eq!(
        serde_json::from_str::<Sampling>(&written).expect("ok"),
        read
    );
    let unknown = serde_json::from_str::<Sampling>(r#"{"top": 1}"#);
    assert!(unknown.is_err(), "{unknown:?}");
}
