//! Evaluating circuits: exact path patching of all edges outside of a circuit at once.

mod ablation;
mod masks;
mod outputs;
mod prepare;
mod recursion;
mod setting;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::AlignableTransformer;
use burn_align_models::nn::ReusedMemory;

use super::circuit::check_graph;
use super::{Circuit, CircuitError, EdgeGraph};
use crate::engine::{LogitPositions, Plan, RunOptions, read_numbers};
use crate::interventions::VanillaIntervention;
use crate::methods::attribution::{AttributionError, Measured, Metric, Patching};
pub use ablation::CircuitAblation;
use masks::{Chosen, Weighted, distinct, stacks};
use prepare::Prepared;
use recursion::{patched_last, patched_logits, patched_logits_from};
use setting::Setting;

/// A metric under some circuits.
#[derive(Clone, Debug, PartialEq)]
pub struct CircuitValues {
    /// The metric of the base, for each example: the circuit of all edges.
    pub base: Vec<f64>,
    /// The metric if all edges are ablated, for each example: the circuit of no edge.
    pub ablated: Vec<f64>,
    /// `[circuit][example]`: the metric of each circuit.
    pub circuits: Vec<Vec<f64>>,
}

/// The metric of each circuit: the base is run, and every edge outside of the circuit carries what
/// its writer writes when [ablated](CircuitAblation), all at once. A reader `v` reads
/// `x_v = s_v + Σ (a'_u − a_u)`, over the edges `u → v` outside, where `a_u` is what `u` writes in
/// this same run (Wang et al. 2022, arXiv 2211.00593; `evaluate_graph` of the reference code of
/// EAP-IG, arXiv 2403.17806). Where the output of an attention goes through a norm (Gemma 2, OLMo
/// 2), the sum of heads is patched before the norm.
///
/// A circuit is evaluated as it is given: call [`Circuit::pruned`] before, as MIB does. Circuits of
/// a similar size are stacked along the batch as far as the memory budget of [`RunOptions`] allows
/// (512 MiB where none is set), writers that the logits do not depend on are not computed, equal
/// inputs of a layer are computed once, and positions before the first difference between base and
/// source, and logits that the metric does not [read](Metric::narrowed), not at all.
///
/// # When it misleads
/// A circuit that does as well as the model need not work like it: the ablated edges still carry
/// whatever both prompts have in common. And the mean over examples may be right where single
/// examples are not.
///
/// # Errors
/// If a circuit is of another graph, the prompts or the metric do not fit the model, prompts have
/// different lengths, a budget is too small for one example, or values are not finite.
pub fn evaluate_circuits<B: Backend, M: AlignableTransformer<B>, T: Metric>(
    model: &M,
    patching: &Patching<B>,
    circuits: &[Circuit],
    ablation: CircuitAblation,
    metric: &T,
    options: &RunOptions,
) -> Result<CircuitValues, CircuitError> {
    let _memory = ReusedMemory::in_pass();
    let positions = metric.positions();
    let prepared = Prepared::new(model, patching, ablation, &positions, options)?;
    metric.check(patching.batch(), model.dims().vocab)?;
    let measured = Measured::<B, M, T>::new(&prepared.model, metric);
    for circuit in circuits {
        check_graph(&prepared.graph, circuit.graph())?;
    }
    let members: Vec<&[bool]> = circuits.iter().map(Circuit::members).collect();
    let (unique, place) = distinct(&members);
    let unique: Vec<&[bool]> = unique.iter().map(|index| members[*index]).collect();
    // The circuit of all edges is the base. Circuits of a similar size are stacked.
    let edges = |index: &usize| unique[*index].iter().filter(|member| **member).count();
    let is_full = |index: &usize| edges(index) == unique[*index].len();
    let (full, mut computed): (Vec<usize>, Vec<usize>) = (0..unique.len()).partition(is_full);
    computed.sort_by_cached_key(edges);
    let sizes: Vec<usize> = computed.iter().map(edges).collect();
    let sorted: Vec<&[bool]> = computed.iter().map(|index| unique[*index]).collect();
    let mut found = CircuitValues {
        base: Vec::new(),
        ablated: Vec::new(),
        circuits: vec![Vec::new(); unique.len()],
    };
    for examples in prepared.parts()? {
        let indices: Vec<usize> = examples.clone().collect();
        let setting = prepared.setting(examples)?;
        let mut values = vec![
            measured.of_last(setting.base_last(), &indices).detach(),
            measured.of_last(setting.ablated_last(), &indices).detach(),
        ];
        let batch = indices.len();
        for stack in stacks(&sizes, prepared.circuits_at_once(batch)) {
            let chosen = &sorted[stack];
            let masks = Chosen::<B>::new(&setting.graph, chosen, &model.device(), setting.dtype());
            let last = patched_last(&setting, &masks)?; // [circuit * batch, unit, d_model]
            values.push(measured.of_last(last, &indices).detach());
        }
        let numbers = read_numbers(Tensor::cat(values, 0))?;
        let mut numbers = numbers.chunks(batch);
        let mut next = || numbers.next().unwrap_or_default();
        let base = next();
        found.base.extend(base);
        found.ablated.extend(next());
        for index in &full {
            found.circuits[*index].extend(base);
        }
        for index in &computed {
            found.circuits[*index].extend(next());
        }
    }
    let unique = found.circuits;
    found.circuits = place.iter().map(|index| unique[*index].clone()).collect();
    check_finite(model, patching, metric, &found, options)?;
    Ok(found)
}

/// Fails if a value is not finite, and says where that begins.
fn check_finite<B: Backend, M: AlignableTransformer<B>, T: Metric>(
    model: &M,
    patching: &Patching<B>,
    metric: &T,
    found: &CircuitValues,
    options: &RunOptions,
) -> Result<(), CircuitError> {
    let all = [&found.base, &found.ablated].into_iter();
    let all = all.chain(&found.circuits);
    for (index, values) in all.enumerate() {
        let Some(example) = values.iter().position(|value| !value.is_finite()) else {
            continue;
        };
        let mut plan = Plan::new();
        for input in [patching.base(), patching.source()] {
            let input = plan.input(input.clone());
            let world = plan.world(input, []);
            plan.read_logits(world, metric.positions());
        }
        plan.check_finite(values, model, &[VanillaIntervention; 0], options)?;
        let error = AttributionError::NotFinite {
            what: match index {
                0 => "the metric of the base".to_owned(),
                1 => "the metric with all edges ablated".to_owned(),
                index => format!("the metric of circuit {}", index - 2),
            },
            example,
        };
        return Err(error.into());
    }
    Ok(())
}

/// A model under weights of its edges, through which gradients flow: what learning a circuit
/// needs.
///
/// Base and ablated streams are computed once, and kept for any number of runs. The model's
/// weights are not tracked.
///
/// ```
/// use burn::backend::{Autodiff, Flex};
/// use burn::tensor::Tensor;
/// use burn_align::engine::{LogitPositions, RunOptions};
/// use burn_align::methods::attribution::Patching;
/// use burn_align::methods::circuits::{CircuitAblation, EdgeMasking};
/// use burn_align::models::{Decoder, FromPretrained, LoadOptions};
///
/// type B = Autodiff<Flex>;
///
/// let device = Default::default();
/// let loaded = Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// let [clean, corrupt] = ["Spain", "Italy"]
///     .map(|country| tokenizer.encode_batch([format!("The capital of {country} is")]));
/// let patching = Patching::noising(clean?, corrupt?);
/// let masking = EdgeMasking::new(
///     &loaded.model,
///     &patching,
///     CircuitAblation::Counterfactual,
///     &LogitPositions::Last,
///     &RunOptions::default(),
/// )?;
/// // Half of every edge.
/// let edges = masking.graph().edge_count();
/// let weights = Tensor::<B, 2>::full([1, edges], 0.5, &device).require_grad();
/// let logits = masking.logits(weights.clone())?; // [1, 1, vocab]
/// let gradients = logits.max().backward();
/// assert_eq!(weights.grad(&gradients).unwrap().dims(), [1, edges]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct EdgeMasking<B: Backend, M> {
    setting: Setting<B, M>,
}

impl<B: Backend, M: AlignableTransformer<B>> EdgeMasking<B, M> {
    /// - positions: whose logits are read
    ///
    /// # Errors
    /// If the model has no [graph](EdgeGraph::of), or the prompts or positions do not fit it.
    pub fn new(
        model: &M,
        patching: &Patching<B>,
        ablation: CircuitAblation,
        positions: &LogitPositions,
        options: &RunOptions,
    ) -> Result<Self, CircuitError> {
        let prepared = Prepared::new(model, patching, ablation, positions, options)?;
        let setting = prepared.setting(0..prepared.batch())?;
        Ok(Self { setting })
    }

    /// The graph of the model.
    pub fn graph(&self) -> &EdgeGraph {
        &self.setting.graph
    }

    /// The model's own logits.
    ///
    /// # Shapes
    /// - output: `[batch, unit, vocab]`
    pub fn base_logits(&self) -> Tensor<B, 3> {
        self.setting.logits(self.setting.base_last())
    }

    /// The logits if all edges are ablated.
    ///
    /// # Shapes
    /// - output: `[batch, unit, vocab]`
    pub fn ablated_logits(&self) -> Tensor<B, 3> {
        self.setting.logits(self.setting.ablated_last())
    }

    /// The logits if each edge carries `w · current + (1 − w) · ablated`.
    ///
    /// # Shapes
    /// - weights: `[circuit, edge]`, edges in the order of [`EdgeGraph::edges`]
    /// - output: `[circuit * batch, unit, vocab]`, circuit by circuit
    ///
    /// # Errors
    /// If there are not as many weights as edges, or no circuit.
    pub fn logits(&self, weights: Tensor<B, 2>) -> Result<Tensor<B, 3>, CircuitError> {
        let [circuits, edges] = weights.dims();
        if edges != self.graph().edge_count() {
            return Err(CircuitError::ScoreCount {
                expected: self.graph().edge_count(),
                found: edges,
            });
        }
        if circuits == 0 {
            return Err(CircuitError::Nothing { what: "circuit" });
        }
        let masks = Weighted {
            graph: self.graph(),
            weights,
        };
        patched_logits(&self.setting, &masks)
    }

    /// The logits of circuits, `[circuit * batch, unit, vocab]`, circuit by circuit: what
    /// [`logits`](Self::logits) gives for weights of 0 and 1, in less time.
    ///
    /// # Errors
    /// If a circuit is of another graph, or there is none.
    pub fn logits_of(&self, circuits: &[Circuit]) -> Result<Tensor<B, 3>, CircuitError> {
        for circuit in circuits {
            check_graph(self.graph(), circuit.graph())?;
        }
        if circuits.is_empty() {
            return Err(CircuitError::Nothing { what: "circuit" });
        }
        let members: Vec<&[bool]> = circuits.iter().map(Circuit::members).collect();
        let setting = &self.setting;
        let device = setting.embedding.device();
        let masks = Chosen::<B>::new(&setting.graph, &members, &device, setting.dtype());
        patched_logits(setting, &masks)
    }

    /// By how much the output of each writer in the run of the base differs from its ablated one.
    pub(super) fn whole_changes(&self) -> Result<Vec<Tensor<B, 2>>, CircuitError> {
        self.setting.whole_changes()
    }

    /// The logits of circuits that have all edges to readers before a sublayer.
    ///
    /// - whole: from [`whole_changes`](Self::whole_changes)
    pub(super) fn logits_from(
        &self,
        circuits: &[Circuit],
        sublayer: usize,
        whole: &[Tensor<B, 2>],
    ) -> Result<Tensor<B, 3>, CircuitError> {
        let members: Vec<&[bool]> = circuits.iter().map(Circuit::members).collect();
        let setting = &self.setting;
        let device = setting.embedding.device();
        let masks = Chosen::<B>::new(&setting.graph, &members, &device, setting.dtype());
        patched_logits_from(setting, &masks, sublayer, whole)
    }
}

impl<B: Backend, M> std::fmt::Debug for EdgeMasking<B, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeMasking")
            .field("graph", &self.setting.graph)
            .finish_non_exhaustive()
    }
}
