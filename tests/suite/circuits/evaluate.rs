//! Circuits evaluated: against path patching, a recursion over plain parts, and the reference code.

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align::engine::{LogitPositions, RunOptions};
use burn_align::methods::attribution::{LogitDifference, Metric, Patching};
use burn_align::methods::circuits::{
    Circuit, CircuitAblation, CircuitError, CircuitValues, CurveArea, CurveOptions, Edge,
    EdgeGraph, EdgeMasking, EdgeProvenance, EdgeRanking, EdgeScores, MIB_SIZES, Reader,
    completeness, evaluate_circuits, faithfulness_curves, minimality, random_node_sets,
};
use burn_align::methods::{Mlps, PathPatch, ReceiverInput, logit_differences, path_patch};
use burn_align_models::{AlignableTransformer, Decoder, ModelInput, TokenBatch};

use super::metric;
use super::recursion::recursion;
use crate::support::{FAMILIES, fixtures, load, read_tensors, tokens, values};

on_every_backend!(
    all_edges_are_the_model_and_none_the_source,
    an_edge_taken_out_is_a_direct_patch,
    circuits_are_those_of_a_recursion,
    parts_and_stacks_change_nothing,
    weights_of_zero_and_one_are_circuits,
    weights_have_the_gradients_of_differences,
    values_are_those_of_the_reference,
    curves_are_those_of_the_reference,
    criteria_compare_the_circuits_they_name,
    what_does_not_fit_is_refused,
);

/// Both begin with the same token, so that only later positions are computed.
fn base() -> TokenBatch {
    tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6, 5, 3]])
}

fn source() -> TokenBatch {
    tokens(&[&[3, 7, 1, 8, 2], &[9, 1, 8, 2, 8]])
}

fn noising<B: Backend>() -> Patching<B> {
    Patching::noising(base(), source())
}

/// Circuits with more and more of the edges.
pub(super) fn random_circuits(graph: &EdgeGraph, count: usize) -> Vec<Circuit> {
    let circuits = (1..=count).map(|index| {
        // A fixed sequence without structure.
        let mut state = 1_000_003_u64 * index as u64;
        let members = (0..graph.edge_count()).map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % (count + 1) < index
        });
        Circuit::from_members(graph.clone(), members.collect()).expect("as many as edges")
    });
    circuits.collect()
}

fn evaluated<B: Backend>(
    model: &Decoder<B>,
    patching: &Patching<B>,
    circuits: &[Circuit],
    ablation: CircuitAblation,
    options: &RunOptions,
) -> CircuitValues {
    evaluate_circuits(model, patching, circuits, ablation, &metric(), options)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (found - expected).abs();
        assert!(
            off <= tolerance,
            "{what}, {index}: expected {expected}, found {found}"
        );
    }
}

fn numbers<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    values(tensor).into_iter().map(f64::from).collect()
}

fn all_edges_are_the_model_and_none_the_source<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let options = RunOptions::default();
        let positions = LogitPositions::All;
        let ablation = CircuitAblation::Counterfactual;
        let masking = EdgeMasking::new(&model, &noising(), ablation, &positions, &options)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let edges = masking.graph().edge_count();
        for (weight, expected) in [
            (1.0, masking.base_logits()),
            (0.0, masking.ablated_logits()),
        ] {
            let weights = Tensor::full([1, edges], weight, device);
            let found = masking.logits(weights).expect("as many as edges");
            let what = format!("{name}, {weight}");
            assert_close(&what, &numbers(found), &numbers(expected), 1e-4);
        }
        let graph = EdgeGraph::of(&model).expect("a transformer");
        let ends = [Circuit::full(graph.clone()), Circuit::empty(graph)];
        let found = evaluated(&model, &noising(), &ends, ablation, &options);
        let both = [
            (&base(), &found.circuits[0]),
            (&source(), &found.circuits[1]),
        ];
        for (tokens, found) in both {
            let logits = model.forward(ModelInput::Tokens(tokens.to_tensor(device)));
            let last = logits.narrow(1, 4, 1);
            let expected = numbers(metric().values(last, &[0, 1]));
            assert_close(name, found, &expected, 1e-4);
        }
    }
}

fn an_edge_taken_out_is_a_direct_patch<B: Backend>(device: &B::Device) {
    for name in [
        "gpt2_plain",
        "gpt_neox_plain",
        "llama_gqa",
        "gemma2_plain",
        "olmo2_plain",
    ] {
        let model = load::<B>(name, device);
        let graph = EdgeGraph::of(&model).expect("a transformer");
        let readers = [
            (
                Reader::Query { layer: 1, head: 1 },
                ReceiverInput::Query { layer: 1, head: 1 },
            ),
            (Reader::Mlp { layer: 1 }, ReceiverInput::Mlp { layer: 1 }),
            (Reader::Logits, ReceiverInput::Logits),
        ];
        let mut circuits = Vec::new();
        let mut patches = Vec::new();
        for (reader, receiver) in readers {
            let reader = graph.reader(reader).expect("of the graph");
            // The embedding, a head and the MLP of the first layer.
            for writer in [0, 2, graph.heads() + 1] {
                let edge = Edge { writer, reader };
                let circuit = Circuit::full(graph.clone()).with_edge(edge, false);
                circuits.push(circuit.expect("an edge"));
                patches.push(PathPatch::new(graph.writers()[writer], receiver));
            }
        }
        let options = RunOptions::default();
        let ablation = CircuitAblation::Counterfactual;
        let found = evaluated(&model, &noising(), &circuits, ablation, &options);
        let means = found.circuits.iter();
        let means: Vec<f64> = means
            .map(|values| values.iter().sum::<f64>() / 2.0)
            .collect();
        let expected = path_patch(
            &model,
            [&base(), &source()],
            &patches,
            Mlps::Frozen,
            |logits| logit_differences(logits, &[5, 30], &[17, 2]),
            &options,
        );
        let expected = expected.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_close(name, &means, &expected.patched, 2e-4);
        let base_mean = found.base.iter().sum::<f64>() / 2.0;
        let largest = means.iter().map(|mean| (mean - base_mean).abs());
        assert!(largest.fold(0.0, f64::max) > 1e-3, "{name}: no effect");
    }
}

fn circuits_are_those_of_a_recursion<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let graph = EdgeGraph::of(&model).expect("a transformer");
        let circuits = random_circuits(&graph, 3);
        let options = RunOptions::default();
        let ablation = CircuitAblation::Counterfactual;
        let found = evaluated(&model, &noising(), &circuits, ablation, &options);
        for (index, circuit) in circuits.iter().enumerate() {
            let logits = recursion(&model, [&base(), &source()], circuit);
            let last = logits.narrow(1, 4, 1);
            let expected = numbers(metric().values(last, &[0, 1]));
            let what = format!("{name}, circuit {index}");
            assert_close(&what, &found.circuits[index], &expected, 2e-4);
        }
    }
}

fn parts_and_stacks_change_nothing<B: Backend>(device: &B::Device) {
    for (name, ablation) in [
        ("gpt2_plain", CircuitAblation::Counterfactual),
        ("llama_gqa", CircuitAblation::Mean),
        ("gemma2_plain", CircuitAblation::MeanOverPositions),
        ("gpt_neox_plain", CircuitAblation::Zero),
        ("olmo2_plain", CircuitAblation::Resample { seed: 1 }),
    ] {
        let model = load::<B>(name, device);
        let graph = EdgeGraph::of(&model).expect("a transformer");
        let circuits = random_circuits(&graph, 4);
        let whole = RunOptions::default();
        let together = evaluated(&model, &noising(), &circuits, ablation, &whole);
        let rows = RunOptions::default().with_max_rows(1);
        let in_parts = evaluated(&model, &noising(), &circuits, ablation, &rows);
        for (index, circuit) in circuits.iter().enumerate() {
            let what = format!("{name}, circuit {index}");
            let own = [circuit.clone()];
            let alone = evaluated(&model, &noising(), &own, ablation, &whole);
            let expected = &together.circuits[index];
            assert_close(&what, &alone.circuits[0], expected, 1e-4);
            assert_close(&what, &in_parts.circuits[index], expected, 1e-4);
        }
    }
}

fn weights_of_zero_and_one_are_circuits<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "gemma2_plain", "gpt_neox_plain"] {
        let model = load::<B>(name, device);
        let graph = EdgeGraph::of(&model).expect("a transformer");
        let circuits = random_circuits(&graph, 3);
        let options = RunOptions::default();
        let positions = LogitPositions::Last;
        let ablation = CircuitAblation::Counterfactual;
        let masking = EdgeMasking::new(&model, &noising(), ablation, &positions, &options)
            .expect("the prompts fit");
        let weights: Vec<f32> = circuits
            .iter()
            .flat_map(|circuit| circuit.members().iter().map(|it| f32::from(u8::from(*it))))
            .collect();
        let weights = TensorData::new(weights, [3, graph.edge_count()]);
        let weights = Tensor::<B, 2>::from_data(weights, (device, DType::F32));
        let expected = masking.logits_of(&circuits).expect("of the model");
        let found = masking.logits(weights).expect("as many as edges");
        assert_close(name, &numbers(found), &numbers(expected), 1e-4);
    }
}

fn weights_have_the_gradients_of_differences<B: Backend>(device: &B::Device) {
    const STEP: f32 = 1e-2;
    for name in ["gpt2_plain", "llama_gqa", "gemma2_plain"] {
        let model = load::<Autodiff<B>>(name, device);
        let options = RunOptions::default();
        let masking = EdgeMasking::new(
            &model,
            &noising(),
            CircuitAblation::Counterfactual,
            &LogitPositions::Last,
            &options,
        );
        let masking = masking.expect("the prompts fit");
        let edges = masking.graph().edge_count();
        let sum = |weights: Tensor<Autodiff<B>, 2>| {
            let logits = masking.logits(weights).expect("as many as edges");
            metric().values(logits, &[0, 1]).sum()
        };
        let at: Vec<f32> = (0..edges)
            .map(|edge| 0.2 + 0.1 * (edge % 7) as f32)
            .collect();
        let weights = |at: Vec<f32>| {
            let data = TensorData::new(at, [1, edges]);
            Tensor::<Autodiff<B>, 2>::from_data(data, (device, DType::F32))
        };
        let tracked = weights(at.clone()).require_grad();
        let gradients = sum(tracked.clone()).backward();
        let gradient = values(tracked.grad(&gradients).expect("tracked"));
        let largest = gradient.iter().fold(0.0_f32, |max, it| max.max(it.abs()));
        assert!(largest > 1e-3, "{name}: the gradient vanishes");
        for edge in (0..edges).step_by(9) {
            let [up, down] = [STEP, -STEP].map(|by| {
                let mut moved = at.clone();
                moved[edge] += by;
                values(sum(weights(moved)))[0]
            });
            let difference = (up - down) / (2.0 * STEP);
            let off = (gradient[edge] - difference).abs();
            assert!(
                off <= 2e-2 * largest + 1e-3,
                "{name}, edge {edge}: gradient {}, by differences {difference}",
                gradient[edge]
            );
        }
    }
}

/// Prompts, counterfactuals and metric of `make_circuits.py`.
fn published<B: Backend>(is_ragged: bool) -> (Patching<B>, LogitDifference) {
    match is_ragged {
        true => (super::ragged(), super::ragged_metric()),
        false => (super::noising(), metric()),
    }
}

fn values_are_those_of_the_reference<B: Backend>(device: &B::Device) {
    let expected = read_tensors(&fixtures().join("circuit_curves.safetensors"));
    for name in ["gpt2_plain", "llama_gqa"] {
        let model = load::<B>(name, device);
        let graph = EdgeGraph::of(&model).expect("a transformer");
        let rows = |key: &str, width: usize| -> Vec<Vec<f64>> {
            let data = &expected[&format!("{name}.circuit.{key}")];
            let numbers: Vec<f32> = data.to_vec().expect("f32 values");
            let rows = numbers.chunks(width);
            rows.map(|row| row.iter().copied().map(f64::from).collect())
                .collect()
        };
        let pruned = rows("pruned", graph.edge_count());
        let circuits: Vec<Circuit> = pruned
            .iter()
            .map(|row| {
                let members = row.iter().map(|member| *member > 0.5).collect();
                let circuit = Circuit::from_members(graph.clone(), members).expect("all edges");
                assert_eq!(circuit.pruned(), circuit, "{name}: not a fixed point");
                circuit
            })
            .collect();
        for (key, ablation, ragged) in [
            ("patching", CircuitAblation::Counterfactual, false),
            ("patching.ragged", CircuitAblation::Counterfactual, true),
            ("zero", CircuitAblation::Zero, false),
            ("mean", CircuitAblation::Mean, false),
            (
                "mean_over_positions",
                CircuitAblation::MeanOverPositions,
                false,
            ),
        ] {
            let (patching, metric) = published::<B>(ragged);
            let expected = rows(key, if ragged { 3 } else { 2 });
            let options = RunOptions::default();
            let found =
                evaluate_circuits(&model, &patching, &circuits, ablation, &metric, &options);
            let found = found.unwrap_or_else(|error| panic!("{name}, {key}: {error}"));
            // Where the reference takes zeros for all writers, what is left of their sum is the
            // rounding, which the final norm makes large: it has no right value.
            let is_rounding = |index: usize| {
                key == "zero" && name == "llama_gqa" && circuits[index].edge_count() == 0
            };
            let expected = expected.iter().enumerate();
            for (index, expected) in expected.filter(|(index, _)| !is_rounding(*index)) {
                let what = format!("{name}, {key}, circuit {index}");
                assert_close(&what, &found.circuits[index], expected, 1e-4);
            }
        }
    }
}

fn curves_are_those_of_the_reference<B: Backend>(device: &B::Device) {
    let expected = read_tensors(&fixtures().join("circuit_curves.safetensors"));
    for name in ["gpt2_plain", "llama_gqa"] {
        let model = load::<B>(name, device);
        let graph = EdgeGraph::of(&model).expect("a transformer");
        let numbers = |key: &str| -> Vec<f64> {
            let values: Vec<f32> = expected[&format!("{name}.{key}")]
                .to_vec()
                .expect("f32 values");
            values.into_iter().map(f64::from).collect()
        };
        let scores = EdgeScores::new(graph, numbers("scores"), EdgeProvenance::GIVEN);
        let scores = scores.expect("a score for each edge");
        let (patching, metric) = published::<B>(false);
        let rankings = [EdgeRanking::Signed, EdgeRanking::Absolute];
        let options = CurveOptions::default();
        let curves = faithfulness_curves(&model, &patching, &scores, &rankings, &metric, &options);
        let curves = curves.expect("the prompts fit");
        for (curve, ranking) in curves.iter().zip(["signed", "absolute"]) {
            let expected = numbers(&format!("curve.{ranking}"));
            assert_eq!(curve.sizes, MIB_SIZES);
            let found = [curve.area(CurveArea::Cpr), curve.area(CurveArea::Cmd)];
            let what = format!("{name}, {ranking}");
            assert_close(&what, &found, &expected[..2], 1e-3);
            assert_close(&what, &curve.faithfulness(), &expected[2..], 1e-3);
            let interval = curve.interval(CurveArea::Cmd, 0.95, 100, 0).expect("valid");
            assert!(interval.low <= found[1] + 1e-9 && found[1] - 1e-9 <= interval.high);
        }
    }
}

fn criteria_compare_the_circuits_they_name<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let graph = EdgeGraph::of(&model).expect("a transformer");
    let circuit = random_circuits(&graph, 3).remove(2).pruned();
    let ablation = CircuitAblation::Counterfactual;
    let options = RunOptions::default();
    let sets = random_node_sets(&circuit, 3, 0);
    assert_eq!(sets, random_node_sets(&circuit, 3, 0));
    let patching = noising::<B>();
    let found = completeness(
        &model,
        &patching,
        &circuit,
        &sets,
        ablation,
        &metric(),
        &options,
    );
    let found = found.expect("the prompts fit");
    let mean = |circuit: &Circuit| {
        let own = [circuit.clone()];
        let values = evaluated(&model, &patching, &own, ablation, &options);
        values.circuits[0].iter().sum::<f64>() / 2.0
    };
    let whole = Circuit::full(graph);
    for (set, found) in sets.iter().zip(&found) {
        let expected = [mean(&circuit.without(set)), mean(&whole.without(set))];
        assert_close(
            "completeness",
            &[found.circuit, found.model],
            &expected,
            1e-4,
        );
    }
    let sets = [(3, vec![]), (3, vec![5])];
    let found = minimality(
        &model,
        &patching,
        &circuit,
        &sets,
        ablation,
        &metric(),
        &options,
    );
    let found = found.expect("the prompts fit");
    let expected = mean(&circuit.without(&[5, 3]));
    assert_close("minimality", &[found[1].after], &[expected], 1e-4);
    let change = mean(&circuit.without(&[3])) - mean(&circuit);
    assert_close("minimality", &[found[0].change()], &[change.abs()], 1e-4);
}

fn what_does_not_fit_is_refused<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let graph = EdgeGraph::of(&model).expect("a transformer");
    let options = RunOptions::default();
    let evaluate = |patching: &Patching<B>, circuit: &Circuit, ablation, options: &RunOptions| {
        let own = [circuit.clone()];
        let found = evaluate_circuits(&model, patching, &own, ablation, &metric(), options);
        found.expect_err("does not fit")
    };
    let whole = Circuit::full(graph);
    let ablation = CircuitAblation::Counterfactual;
    let other = Circuit::full(EdgeGraph::new(3, 4, false, 16));
    let error = evaluate(&noising(), &other, ablation, &options);
    assert!(matches!(error, CircuitError::OtherGraph { .. }), "{error}");
    let shorter = Patching::noising(base(), tokens(&[&[1, 2], &[3, 4]]));
    let error = evaluate(&shorter, &whole, ablation, &options);
    assert!(matches!(error, CircuitError::Attribution(_)), "{error}");
    let unknown = Patching::noising(tokens(&[&[1, 999], &[3, 4]]), source());
    let error = evaluate(&unknown, &whole, ablation, &options);
    assert!(matches!(error, CircuitError::Plan(_)), "{error}");
    let alone = Patching::noising(tokens(&[&[1, 2], &[3, 4, 5]]), source());
    let ablation = CircuitAblation::Resample { seed: 0 };
    let error = evaluate(&alone, &whole, ablation, &options);
    assert!(matches!(error, CircuitError::NoDonor { .. }), "{error}");
    let small = RunOptions::default().with_memory_budget(100);
    let error = evaluate(&noising(), &whole, CircuitAblation::Zero, &small);
    assert!(
        matches!(error, CircuitError::CircuitMemory { .. }),
        "{error}"
    );
    let same = Patching::noising(base(), base());
    let scores = EdgeScores::new(
        whole.graph().clone(),
        vec![0.0; whole.graph().edge_count()],
        EdgeProvenance::GIVEN,
    );
    let curves = faithfulness_curves(
        &model,
        &same,
        &scores.expect("a score for each edge"),
        &[EdgeRanking::Signed],
        &metric(),
        &CurveOptions::default(),
    );
    let error = curves.expect_err("nothing differs");
    assert!(
        matches!(error, CircuitError::NoDifference { .. }),
        "{error}"
    );
}
