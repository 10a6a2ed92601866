//! What a plan will run, and what sharing saves.

use std::fmt;

use burn::tensor::backend::Backend;
use burn_align_models::{AlignableTransformer, Sublayer, SublayerKind};
use serde::Serialize;

use super::PlanError;
use super::memory::Memory;
use super::plan::{Plan, Read, WorldId};
use super::schedule::{Pass, Schedule, StageGroups};
use super::stages::{Stage, Step};
use super::validate::validate_without_interventions;

/// What a plan will run, and what sharing saves over running every world separately.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// Number of worlds that are read or used as a source.
    pub worlds: usize,
    /// Number of worlds that are neither, and are skipped.
    pub unused_worlds: usize,
    /// The passes, in order.
    pub passes: Vec<PassExplanation>,
    /// Rows that go through a block, summed over blocks.
    pub row_layers: usize,
    /// Like `row_layers`, if every world ran separately from start to end.
    pub row_layers_alone: usize,
    /// Floating-point operations of all matrix products.
    pub flops: u64,
    /// Like `flops`, if every world ran separately from start to end, with logits at all positions.
    pub flops_alone: u64,
    /// Peak bytes of activations, estimated from the sizes of the model: what a layer holds, what
    /// is read, and what worlds use of each other. The model's weights and what is kept for
    /// gradients are not included.
    pub peak_bytes: u64,
}

/// One walk through the network.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PassExplanation {
    /// Number of positions of the longest row.
    pub pos: usize,
    /// The stages that are run.
    pub stages: Vec<StageExplanation>,
}

/// A stage of a pass.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageExplanation {
    /// Its name.
    pub stage: String,
    /// Number of worlds in it.
    pub worlds: usize,
    /// Number of rows in it.
    pub rows: usize,
    /// Number of computed positions, over all rows: in some rows, only those from the first edited
    /// one on, and none after the last that is needed.
    pub positions: usize,
    /// Number of groups of worlds that fork off here.
    pub forks: usize,
    /// Number of edits made here, by groups of worlds.
    pub edits: usize,
    /// Number of activations or logits read here.
    pub reads: usize,
}

impl<B: Backend> Plan<B> {
    /// Describes what [`run`](Self::run) will do.
    ///
    /// # Errors
    /// As [`run`](Self::run), except for what depends on the interventions.
    pub fn explain<M: AlignableTransformer<B>>(&self, model: &M) -> Result<Explanation, PlanError> {
        let schedule = validate_without_interventions(self, model, &[])?;
        let dims = model.dims();
        let passes: Vec<PassExplanation> = schedule
            .passes
            .iter()
            .enumerate()
            .map(|pass| explain_pass(self, &schedule, pass))
            .collect();
        let mut explanation = Explanation {
            worlds: schedule.needs.iter().flatten().count(),
            unused_worlds: schedule.needs.iter().filter(Option::is_none).count(),
            row_layers: 0,
            row_layers_alone: 0,
            flops: 0,
            flops_alone: 0,
            peak_bytes: Memory::new(self, model, &schedule).peak(&schedule),
            passes,
        };
        for pass in &schedule.passes {
            for stage in &pass.stages {
                let Stage::Layer {
                    sublayer,
                    step: Step::Run,
                    ..
                } = stage.stage
                else {
                    continue;
                };
                if sublayer == 0 {
                    explanation.row_layers += stage.layout.rows();
                }
                let kind = schedule.stages.sublayer(stage.stage).map(Sublayer::kind);
                let queries = stage.given().work();
                for ([rows, computed, seen], [_, asking, _]) in
                    stage.layout.work().into_iter().zip(queries)
                {
                    explanation.flops += rows as u64
                        * match kind {
                            Some(SublayerKind::Attention) => {
                                dims.attention_flops(computed, asking, seen)
                            }
                            Some(SublayerKind::Mlp) => dims.mlp_flops(computed),
                            Some(SublayerKind::Other) | None => dims.block_flops(computed, seen),
                        };
                }
            }
        }
        for read in &self.reads {
            if let Read::Logits { world, positions } = read {
                let input = self.input_of(*world);
                let count = positions.count(input.pos());
                explanation.flops += (input.batch() * count) as u64 * dims.unembed_flops();
            }
        }
        for world in needed_worlds(self, &schedule) {
            let input = self.input_of(world);
            let (batch, pos) = (input.batch(), input.pos());
            explanation.row_layers_alone += batch * dims.layers;
            explanation.flops_alone += batch as u64
                * (dims.layers as u64 * dims.block_flops(pos, pos)
                    + pos as u64 * dims.unembed_flops());
        }
        Ok(explanation)
    }
}

fn needed_worlds<B: Backend>(plan: &Plan<B>, schedule: &Schedule) -> impl Iterator<Item = WorldId> {
    let needs = schedule.needs.iter().enumerate();
    needs.filter_map(|(world, need)| need.map(|_| plan.world_id(world)))
}

/// - index: of the pass
fn explain_pass<B: Backend>(
    plan: &Plan<B>,
    schedule: &Schedule,
    (index, pass): (usize, &Pass),
) -> PassExplanation {
    // Whether a world is run up to a stage in this pass.
    let reaches = |WorldId(world, _): WorldId, stage: Stage| {
        let is_here = schedule.pass_of[world] == Some(index);
        let need = schedule.needs.of(plan.world_id(world));
        is_here && need.is_some_and(|need| need.stage(&schedule.stages) >= stage)
    };
    let explain = |stage: &StageGroups| {
        let reads = schedule.reads.at(stage.stage).iter();
        let reads = reads.filter(|read| reaches(plan.reads[**read].world(), stage.stage));
        let forks = stage.parents.as_ref().map_or(0, |parents| {
            // The parts of a group are neighbours.
            let groups = parents.chunk_by(|a, b| a == b).count();
            parents.len() - groups
        });
        let positions = stage.layout.work().into_iter();
        StageExplanation {
            stage: schedule.stages.name(stage.stage),
            worlds: stage.groups.worlds().len(),
            rows: stage.layout.rows(),
            positions: positions.map(|[rows, computed, _]| rows * computed).sum(),
            forks,
            edits: stage.edits.len(),
            reads: reads.count(),
        }
    };
    // Most of the time nothing happens between sublayers.
    let computes = |stage: &StageGroups| match stage.stage {
        Stage::Layer { step, .. } => step == Step::Run,
        Stage::Embed | Stage::FinalNorm | Stage::Unembed => true,
    };
    let stages = pass.stages.iter().map(|stage| (stage, explain(stage)));
    let stages = stages.filter(|(stage, explained)| {
        computes(stage) || explained.forks + explained.edits + explained.reads > 0
    });
    let stages: Vec<StageExplanation> = stages.map(|(_, explained)| explained).collect();
    PassExplanation {
        pos: pass.stages.first().map_or(0, |first| first.layout.pos),
        stages,
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} worlds", self.worlds)?;
        if self.unused_worlds > 0 {
            write!(f, " ({} more are not needed)", self.unused_worlds)?;
        }
        match self.passes.len() {
            1 => writeln!(f, ", 1 pass")?,
            passes => writeln!(f, ", {passes} passes")?,
        }
        for (index, pass) in self.passes.iter().enumerate() {
            writeln!(f, "pass {index}, {} positions", pass.pos)?;
            writeln!(
                f,
                "  {:<25} {:>7} {:>7} {:>9} {:>7} {:>7} {:>7}",
                "stage", "worlds", "rows", "positions", "forks", "edits", "reads"
            )?;
            for stage in &pass.stages {
                writeln!(
                    f,
                    "  {:<25} {:>7} {:>7} {:>9} {:>7} {:>7} {:>7}",
                    stage.stage,
                    stage.worlds,
                    stage.rows,
                    stage.positions,
                    stage.forks,
                    stage.edits,
                    stage.reads
                )?;
            }
        }
        writeln!(
            f,
            "rows × layers: {} instead of {} ({:.1} × fewer)",
            self.row_layers,
            self.row_layers_alone,
            self.row_layers_alone as f64 / self.row_layers.max(1) as f64
        )?;
        writeln!(
            f,
            "FLOPs: {:.3e} instead of {:.3e} ({:.1} × fewer)",
            self.flops as f64,
            self.flops_alone as f64,
            self.flops_alone as f64 / self.flops.max(1) as f64
        )?;
        write!(
            f,
            "activations: {:.1} MiB at peak",
            self.peak_bytes as f64 / f64::from(1 << 20)
        )
    }
}
