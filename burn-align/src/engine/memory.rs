//! Estimating the memory of a run.

use burn::module::{ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::nn::mask_bytes;
use burn_align_models::{
    AlignableTransformer, Mixing, ModelDims, Site, SiteWidth, Sublayer, SublayerKind,
};

use super::Units;
use super::hash::QuickSet;
use super::plan::{OperandKey, Plan, Read, WorldId};
use super::schedule::{Schedule, StageGroups};
use super::stages::{Stage, Stages, Step};

/// What the memory estimate of a run depends on.
pub(super) struct Memory<'a, B: Backend, M> {
    plan: &'a Plan<B>,
    model: &'a M,
    stages: Stages,
    /// What the model computes in.
    dtype: DType,
    /// Numbers that stay until the end once computed: what is read, and what one world uses from
    /// another.
    kept: u64,
}

impl<'a, B: Backend, M: AlignableTransformer<B>> Memory<'a, B, M> {
    /// - `whole`: everything that the plan runs
    pub(super) fn new(plan: &'a Plan<B>, model: &'a M, whole: &Schedule) -> Self {
        let mut memory = Self {
            plan,
            model,
            stages: whole.stages.clone(),
            dtype: dtype(model),
            kept: 0,
        };
        let reads = plan.open_reads().map(|(_, read)| memory.of_read(read));
        let worlds = plan.world_ids();
        let taken = worlds.flat_map(|world| whole.needs.edits(plan, world));
        let taken = taken.filter_map(|(_, edit)| edit.operand.key());
        let taken: QuickSet<OperandKey<'_>> = taken.collect();
        let taken = taken
            .iter()
            .map(|(world, site, units)| memory.of_units(*world, *site, units));
        memory.kept = reads.sum::<u64>() + taken.sum::<u64>();
        memory
    }

    /// Peak bytes of activations in a run, including kept ones, but not the model's weights or what
    /// a backend keeps for itself. This is without gradients: with them, nothing is freed.
    pub(super) fn peak(&self, schedule: &Schedule) -> u64 {
        let stages = schedule.passes.iter().flat_map(|pass| &pass.stages);
        let largest = stages.map(|stage| self.of_stage(stage)).max().unwrap_or(0);
        let passes = schedule
            .passes
            .iter()
            .filter_map(|pass| pass.stages.first());
        let longest = passes.map(|stage| stage.layout.pos).max();
        let masks = longest.map_or(0, |pos| self.of_masks(pos));
        self.element() * (self.kept + largest) + masks
    }

    /// Bytes that continuing rows by one position needs for a while, without their caches.
    ///
    /// - keys: positions that they attend to
    pub(super) fn of_step(&self, rows: usize, keys: usize) -> u64 {
        let dims = self.model.dims();
        // Some layers keep their input for the MLP.
        let mlp = of_mlp(dims, 1) + dims.d_model;
        let largest = of_attention(dims, 1, 1, keys).max(mlp);
        // Logits, before and after they are divided among the rows.
        let numbers = rows * (largest.max(3 * dims.d_model + dims.vocab) + dims.vocab);
        self.element() * numbers as u64 + self.of_masks(keys)
    }

    /// Bytes of a number.
    pub(super) fn element(&self) -> u64 {
        self.dtype.size().max(2) as u64
    }

    /// Bytes of the masks of attention.
    fn of_masks(&self, pos: usize) -> u64 {
        let layers = self.model.layout().layers().iter();
        let sublayers = layers.flat_map(|layer| layer.sublayers());
        let windows = sublayers.filter_map(|sublayer| match sublayer.mixing() {
            Mixing::Causal { window } => Some(window),
            Mixing::None | Mixing::Rows => None,
        });
        mask_bytes::<B>(pos, windows, self.dtype, &self.model.device())
    }

    fn of_read(&self, read: &Read) -> u64 {
        match read {
            Read::Activation { world, site, units } => self.of_units(*world, *site, units),
            Read::Logits { world, positions } => {
                let input = self.plan.input_of(*world);
                let units = positions.count(input.pos());
                (input.batch() * units * self.model.dims().vocab) as u64
            }
        }
    }

    fn of_units(&self, world: WorldId, site: Site, units: &Units) -> u64 {
        let input = self.plan.input_of(world);
        let Some(dims) = self.model.layout().site(site) else {
            return 0;
        };
        let width = match dims.width {
            SiteWidth::Features(width) => width,
            SiteWidth::KeyPositions => input.pos(),
        };
        let count = units.positions.count(input.pos()) * units.heads.count(dims.heads);
        (input.batch() * count * width) as u64
    }

    /// Numbers that exist at the same time in a stage.
    fn of_stage(&self, stage: &StageGroups) -> u64 {
        let dims = self.model.dims();
        // The layer's input is kept for a later sublayer.
        let keeps_input = self.stages.needs_layer_input(stage.stage);
        let runs = match stage.stage {
            Stage::Layer {
                step: Step::Run, ..
            } => self.stages.sublayer(stage.stage).map(Sublayer::kind),
            _ => None,
        };
        let asking = stage.given().work();
        let work = stage.layout.work().into_iter().zip(asking);
        let work = work.map(|([rows, tokens, keys], [_, queries, _])| {
            let attention = of_attention(dims, tokens, queries, keys);
            let mlp = of_mlp(dims, tokens);
            let kept = match keeps_input {
                true => tokens * dims.d_model,
                false => 0,
            };
            rows * match runs {
                Some(SublayerKind::Attention) => attention,
                Some(SublayerKind::Mlp) => mlp + kept,
                Some(SublayerKind::Other) => attention.max(mlp) + kept,
                // The stream before and after, and what is added or normalised.
                None => 3 * tokens * dims.d_model + kept,
            }
        });
        let logits = match stage.stage {
            // All of them, before they are divided among the reads, which are already counted.
            Stage::Unembed => {
                let mut is_here = vec![false; self.plan.worlds.len()];
                for world in stage.groups.worlds() {
                    is_here[*world as usize] = true;
                }
                let reads = self.plan.open_reads().map(|(_, read)| match read {
                    Read::Logits { world, .. } if is_here[world.0] => self.of_read(read),
                    _ => 0,
                });
                reads.sum::<u64>()
            }
            _ => 0,
        };
        work.sum::<usize>() as u64 + logits
    }
}

/// Numbers in one row's attention: the stream and its norm; queries, keys and values, rotated or
/// laid out by head as well, and for each query head; scores and weights; mixed values before and
/// after the projection.
fn of_attention(dims: &ModelDims, tokens: usize, queries: usize, keys: usize) -> usize {
    let (all_heads, kv) = (dims.heads * dims.d_head, dims.kv_heads * dims.d_head);
    let of_keys = 2 * dims.d_model + 4 * kv + if kv < all_heads { 2 * all_heads } else { 0 };
    let of_queries = 4 * all_heads + dims.d_model + 2 * dims.heads * keys;
    tokens * of_keys + queries * of_queries
}

/// Numbers in one row's MLP: the stream, its norm and the output; the hidden layer before and after
/// its activation function, and the gate.
fn of_mlp(dims: &ModelDims, tokens: usize) -> usize {
    let hidden = if dims.gated_mlp { 3 } else { 2 };
    tokens * (3 * dims.d_model + hidden * dims.d_mlp)
}

/// The dtype of the model's largest tensor, which it computes in.
///
/// Only among existing tensors, if there are any: weights that stay quantised would be dequantised
/// for this.
pub(super) fn dtype<B: Backend, M: AlignableTransformer<B>>(model: &M) -> DType {
    struct Largest {
        lazy: bool,
        count: usize,
        dtype: Option<DType>,
    }
    impl<B: Backend> ModuleVisitor<B> for Largest {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<B, D>>) {
            let count = parameter.lazy_shape().num_elements();
            if count > self.count && (self.lazy || parameter.is_initialized()) {
                (self.count, self.dtype) = (count, Some(parameter.val().dtype()));
            }
        }
    }
    let largest = |lazy| {
        let mut largest = Largest {
            lazy,
            count: 0,
            dtype: None,
        };
        model.visit(&mut largest);
        largest.dtype
    };
    largest(false)
        .or_else(|| largest(true))
        .unwrap_or(DType::F32)
}
