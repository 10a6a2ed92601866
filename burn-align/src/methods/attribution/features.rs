//! Features of a dictionary as nodes.

use burn::module::Module;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor, TensorData};
use burn_align_models::{AlignableTransformer, Site};

use super::check::{check_patching, check_tracked};
use super::effects::ranked;
use super::exact::measure;
use super::gradients::{ADD, Part, check_metrics, interventions, numbers_of, size_of};
use super::memory::{row_bytes, rows_at_once};
use super::parts::{logit_count, parts, sites_of, tracked_plan_of};
use super::probes::sizes;
use super::{AttributionError, Metric, NodeEffects, Patching};
use crate::dictionaries::{Dictionary, DictionaryKind, FeatureSelection};
use crate::engine::{Edit, Operand, Plan, RunOptions, Units, WorldId, read_numbers};

/// The estimated effects of a dictionary's features.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureEffects {
    /// The metric of the base, for each example.
    pub base: Vec<f64>,
    /// The metric of the source, for each example.
    pub source: Vec<f64>,
    /// `[example][feature]`, summed over the units.
    pub effects: Vec<Vec<f64>>,
    /// For each example, the effect of what the dictionary does not reconstruct. With it, the
    /// effects sum to that of the whole activation by attribution patching.
    pub error: Vec<f64>,
}

impl FeatureEffects {
    /// The mean effect of each feature over examples.
    pub fn means(&self) -> Vec<f64> {
        let count = self.effects.len().max(1) as f64;
        let mut means = vec![0.0; self.effects.first().map_or(0, Vec::len)];
        for row in &self.effects {
            for (mean, effect) in means.iter_mut().zip(row) {
                *mean += effect / count;
            }
        }
        means
    }

    /// The features by the magnitude of their mean effect, the largest first, each with that
    /// effect.
    pub fn ranked(&self) -> Vec<(usize, f64)> {
        ranked(self.means())
    }
}

/// Attribution patching of a dictionary's features (Marks et al. 2024, arXiv 2403.19647, §3.1):
///
/// ```text
/// ĉ(i) = (f_i(source) − f_i(base)) · (W_dec[i] · ∂m/∂y), at the base
/// ```
///
/// for an autoencoder of `y`, or a transcoder to `y`. The base keeps its reconstruction error.
///
/// - reads, writes: the sites that the dictionary encodes and reconstructs, the same for an
///   autoencoder; all heads of a position are one row, as in the dictionary
/// - units: which positions
///
/// # When it misleads
/// As [`attribution_patching`](super::attribution_patching); [`patch_features`] gives the exact
/// effects. A feature's effect leaves out that other features would change with it.
///
/// # Errors
/// As [`attribution_patching`](super::attribution_patching), or if the dictionary does not fit the
/// sites.
pub fn attribute_features<A, M, T>(
    model: &M,
    patching: &Patching<A::InnerBackend>,
    dictionary: &Dictionary<A>,
    [reads, writes]: [Site; 2],
    units: &Units,
    metric: &T,
    options: &RunOptions,
) -> Result<FeatureEffects, AttributionError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
    T: Metric,
{
    let model = &model.clone().no_grad();
    let dictionary = &dictionary.clone().no_grad();
    let sites = [(reads, units.clone()), (writes, units.clone())];
    check_tracked::<A, M, T>(model, patching, &sites, metric)?;
    let pos = patching.base().pos();
    check_widths(model, dictionary, [reads, writes], units, pos)?;
    let logits = logit_count(&metric.positions(), pos);
    let [unit, _heads, _width] = sizes(model, writes, units, pos)?;
    let read = numbers_of::<A, M>(model, &sites, pos)? + 4 * unit * dictionary.features();
    let rows = rows_at_once(row_bytes(model, pos, logits, read), options)?;
    let mut found = FeatureEffects {
        base: Vec::new(),
        source: Vec::new(),
        effects: Vec::new(),
        error: Vec::new(),
    };
    for examples in parts(patching.batch(), rows) {
        let part = Part {
            model,
            metric,
            examples: &examples,
            size: size_of(patching.base(), &examples),
            options,
        };
        let own = sites_of(&sites, &examples);
        let (mut plan, [source]) = tracked_plan_of::<A, 1>([patching.source()], &examples)?;
        let (sources, value) = part.run(&mut plan, source, &own)?;
        found.source.extend(read_numbers(value)?);
        let (plan, [base]) = tracked_plan_of::<A, 1>([patching.base()], &examples)?;
        let mut run = part.differentiate(plan, base, &own, Vec::new(), Vec::new())?;
        found.base.extend(read_numbers(run.metric)?);

        // The gradient is that of what is written.
        let gradient: Tensor<A, 2> = rows_of(Tensor::from_inner(run.gradients.swap_remove(1)));
        let [from, to] = [0, 1].map(|site| rows_of(sources[site].clone()));
        let [base_from, base_to] =
            [0, 1].map(|site| rows_of(Tensor::<A, 3>::from_inner(run.activations[site].clone())));
        let base_features = dictionary.encode(base_from.clone());
        let change = dictionary.encode(from) - base_features;
        // By the chain rule: the gradient of features that are all zero, which are added.
        let zeros = change.zeros_like().detach().require_grad();
        let added = dictionary.contribution(zeros.clone(), &base_from);
        let gradients = (added * gradient.clone()).sum().backward();
        let by_feature = zeros
            .grad(&gradients)
            .unwrap_or_else(|| zeros.clone().inner());
        let effects = change.clone().inner() * by_feature; // [example * unit, feature]
        let [row, features] = effects.dims();
        let [batch, _pos] = part.size;
        let effects = effects.reshape([batch, row / batch, features]);
        let numbers = read_numbers(effects.sum_dim(1).reshape([batch, features]))?;
        found
            .effects
            .extend(numbers.chunks(features).map(<[f64]>::to_vec));

        let explained = dictionary.contribution(change.clone(), &base_from);
        let error = (to - base_to - explained) * gradient;
        let error = error.inner(); // [example * unit, d_out]
        let [row, width] = error.dims();
        let error = error.reshape([batch, row / batch * width]).sum_dim(1);
        found.error.extend(read_numbers(error)?);
    }
    let ends = [&found.base[..], &found.source];
    check_metrics::<A, M, T>(model, patching, metric, ends, options)?;
    let numbers = found.effects.iter().zip(&found.error);
    for (example, (effects, error)) in numbers.enumerate() {
        if !error.is_finite() || effects.iter().any(|effect| !effect.is_finite()) {
            return Err(AttributionError::NotFinite {
                what: "the effect of a feature".to_owned(),
                example,
            });
        }
    }
    Ok(found)
}

/// The exact effects of some features: for each a world in which the base's activation gets
/// `(f_i(source) − f_i(base)) W_dec[i]`. All worlds are one plan; the reconstruction error stays.
///
/// # Errors
/// As [`patch_nodes`](super::patch_nodes), or if the dictionary does not fit the sites or has no
/// such feature.
pub fn patch_features<B: Backend, M: AlignableTransformer<B>, T: Metric>(
    model: &M,
    patching: &Patching<B>,
    selected: &FeatureSelection<B>,
    [reads, writes]: [Site; 2],
    units: &Units,
    metric: &T,
    options: &RunOptions,
) -> Result<NodeEffects, AttributionError> {
    let sites = [(reads, units.clone()), (writes, units.clone())];
    check_patching(model, patching, &sites, metric)?;
    let dictionary = selected.dictionary();
    let pos = patching.base().pos();
    check_widths(model, dictionary, [reads, writes], units, pos)?;
    let mut plan = Plan::<B>::new();
    let read = [patching.base(), patching.source()].map(|input| {
        let input = plan.input(input.clone());
        let world = plan.world(input, []);
        plan.read(world, reads, units.clone())
    });
    let results = plan.run_with(model, &interventions::<B>(), options)?;
    let [base, source] = read.map(|read| rows_of(results.get(read).detach()));
    let change = selected.encode(source) - selected.encode(base.clone()); // [row, selected]
    let batch = patching.batch();
    let directions = selected.directions(); // [selected, d_out]
    let [_selected, width] = directions.dims();
    let worlds = (0..selected.features().len()).map(|index| {
        let (change, base, device) = (&change, &base, directions.device());
        move |plan: &mut Plan<B>, _source: WorldId| {
            let [row, count] = change.dims();
            // All other features stay as they are in the base.
            let is_own = (0..count).map(|other| if other == index { 1.0 } else { 0.0 });
            let is_own = TensorData::new(is_own.collect::<Vec<f32>>(), [1, count]);
            let is_own = Tensor::<B, 2>::from_data(is_own, (&device, DType::F32));
            let added = selected.contribution(change.clone() * is_own, base); // [row, d_out]
            let added = plan.constant(added.reshape([batch, row / batch, width]));
            vec![Edit::new(
                writes,
                units.clone(),
                ADD,
                Operand::Constant(added),
            )]
        }
    });
    measure(model, patching, worlds.collect(), metric, options)
}

/// Checks that the units of the sites are as wide as the dictionary.
fn check_widths<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    dictionary: &Dictionary<B>,
    [reads, writes]: [Site; 2],
    units: &Units,
    pos: usize,
) -> Result<(), AttributionError> {
    let widths = [(reads, dictionary.width()), (writes, dictionary.d_out())];
    for (site, expected) in widths {
        let [_unit, heads, width] = sizes(model, site, units, pos)?;
        if heads * width != expected {
            return Err(AttributionError::DictionaryWidth {
                site,
                expected,
                found: heads * width,
            });
        }
    }
    if dictionary.kind() == DictionaryKind::Autoencoder && reads != writes {
        return Err(AttributionError::Option {
            what: "sites of an autoencoder",
            expected: "the same site to read and to write",
            found: format!("{reads} and {writes}"),
        });
    }
    Ok(())
}

/// `[batch, unit, width]` → `[batch * unit, width]`, in f32.
fn rows_of<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 2> {
    let [batch, unit, width] = x.dims();
    x.cast(DType::F32).reshape([batch * unit, width])
}
