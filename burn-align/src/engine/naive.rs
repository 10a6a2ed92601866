//! The definition of what a plan means: every world by itself, from start to end.
//!
//! The lockstep executor is fast because it is clever. This one is neither, so tests can compare
//! the two on random plans.

use std::collections::HashMap;
use std::iter;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{
    AlignableTransformer, Cx, ModelInput, Pass, Prefixes, Site, SuffixClass, Suffixes, Tables, Tap,
};

use super::cache::{Cache, Continued};
use super::cells::{Cells, feature_count, feature_mask, gather_by_index, scatter_by_index};
use super::execute::stack_inputs;
use super::layout::int_tensor;
use super::non_finite::Watch;
use super::plan::{Edit, Operand, Plan, Read, Resumed, WorldId, WorldInput};
use super::stages::{Stage, Step};
use super::validate::validate;
use super::{Indices, PlanError, Results, Units};
use crate::interventions::{Intervention, Operands};

impl<B: Backend> Plan<B> {
    /// Runs every world by itself, and every source again for each edit that uses it.
    ///
    /// Gives the same results as [`run`](Self::run), much more slowly. The two share no code except
    /// for moving vectors in and out of an activation.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_naively<M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        model: &M,
        interventions: &[I],
    ) -> Result<Results<B>, PlanError> {
        validate(self, model, interventions)?;
        let naive = Naive {
            plan: self,
            model,
            interventions,
            device: model.device(),
        };
        let values = self
            .reads
            .iter()
            .zip(&self.known)
            .map(|(read, known)| match read {
                _ if known.is_some() => known.clone().expect("it is there"),
                Read::Activation { world, site, units } => naive.activation(*world, *site, units),
                Read::Logits { world, positions } => {
                    let input = self.input_of(*world);
                    let units = positions.units(&input.lengths());
                    let (logits, _) = naive.world(*world, None);
                    let [batch, pos, vocab] = logits.dims();
                    take(&logits.reshape([batch, 1, pos, vocab]), &units, input)
                }
            });
        Ok(Results {
            values: values.collect(),
            marks: self.marks.reads.clone(),
        })
    }
}

impl<B: Backend> Plan<B> {
    /// Runs one world, as far as `watch` says, and shows it everything that is computed on the way.
    /// Gives the logits at all positions.
    pub(super) fn run_watched<M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        model: &M,
        interventions: &[I],
        world: WorldId,
        watch: Watch,
    ) -> (Tensor<B, 3>, Watch) {
        let naive = Naive {
            plan: self,
            model,
            interventions,
            device: model.device(),
        };
        let mut tap = WatchTap {
            tap: naive.tap(world, watch.until()),
            watch,
        };
        let logits = naive.run(world, &mut tap);
        (logits, tap.watch)
    }
}

struct Naive<'a, B: Backend, M, I> {
    plan: &'a Plan<B>,
    model: &'a M,
    interventions: &'a [I],
    device: B::Device,
}

impl<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>> Naive<'_, B, M, I> {
    fn activation(&self, world: WorldId, site: Site, units: &Units) -> Tensor<B, 3> {
        let (_, seen) = self.world(world, Some(site));
        let seen = seen.expect("the site was checked");
        take(&seen, units, self.plan.input_of(world))
    }

    /// Runs one world: its logits at all positions and, if asked for, one of its activations.
    ///
    /// Edits after the requested site are left out: they cannot change it, and their operands may
    /// depend on it.
    fn world(&self, world: WorldId, until: Option<Site>) -> (Tensor<B, 3>, Option<Tensor<B, 4>>) {
        let mut tap = self.tap(world, until);
        let logits = self.run(world, &mut tap);
        (logits, tap.seen)
    }

    /// Makes the edits of a world, up to a site if one is given.
    fn tap(&self, world: WorldId, until: Option<Site>) -> WorldTap<'_, B, I> {
        let edits = self.plan.worlds[world.0]
            .edits
            .iter()
            .filter(|edit| until.is_none_or(|until| edit.site <= until));
        let mut edits_at: EditsAt<'_, B> = HashMap::new();
        for edit in edits {
            let source = match &edit.operand {
                Operand::None => None,
                Operand::Activation { world, site, units } => {
                    Some(self.activation(*world, *site, units))
                }
                Operand::Constant(id) => Some(self.plan.constants[id.0].clone()),
            };
            edits_at.entry(edit.site).or_default().push((edit, source));
        }
        WorldTap {
            input: self.plan.input_of(world),
            interventions: self.interventions,
            edits_at,
            until,
            seen: None,
        }
    }

    /// Runs a world under a tap: its logits at all positions.
    fn run(&self, world: WorldId, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        match self.plan.input_of(world) {
            WorldInput::Resumed(resumed) => self.resumed(resumed, tap),
            WorldInput::Continued(row) => self.continued(row, tap),
            input => {
                let input = stack_inputs([input].into_iter(), input.pos(), &self.device);
                self.model.forward_tapped(input, tap)
            }
        }
    }

    /// The new tokens of a row.
    fn continued(&self, row: &Continued<B>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        let (start, pos) = (row.past.pos(), row.pos());
        let positions = int_tensor(start..pos, &self.device);
        let pass = Pass::new(pos, &self.device, &Tables::new()).with_suffixes(Suffixes {
            positions,
            classes: vec![SuffixClass {
                rows: 1,
                start,
                queries: start,
                pos,
                prefixes: Some(Prefixes::Kept(Cache::prefixes(&[&row.past]))),
            }],
            queries: None,
        });
        let ids = int_tensor(row.tokens.iter().map(|id| *id as usize), &self.device);
        let mut cx = Cx::new(tap, &pass);
        let x = self.model.embed(ModelInput::Tokens(ids.unsqueeze()), &pass);
        let mut x = cx.stream(Site::Embedding, x);
        for layer in 0..self.model.layout().layers().len() {
            x = self.model.layer(layer, x, &mut cx);
        }
        let x = self.model.final_norm(x);
        self.model.unembed(cx.stream(Site::FinalNorm, x))
    }

    /// The rest of a forward pass.
    fn resumed(&self, resumed: &Resumed<B>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        let mut x = resumed.x.clone();
        let [_batch, pos, _d_model] = x.dims();
        let pass = Pass::new(pos, &self.device, &Tables::new());
        let mut cx = Cx::new(tap, &pass);
        let layers = self.model.layout().layers().len();
        let next = match resumed.stage {
            Stage::Layer {
                layer,
                sublayer: 0,
                step: Step::Run,
            } => layer,
            Stage::Layer {
                layer,
                sublayer,
                step,
            } => {
                let first = match step {
                    Step::Run => sublayer,
                    Step::Queries | Step::Output | Step::Exit => sublayer + 1,
                };
                let exit = self.model.layout().sublayer(layer, sublayer).exit();
                if let (Step::Exit, Some(component)) = (step, exit) {
                    x = cx.stream(Site::Block(layer, component), x);
                }
                x = self.model.sublayers_from(layer, first, x, &mut cx);
                layer + 1
            }
            Stage::Embed | Stage::FinalNorm | Stage::Unembed => layers,
        };
        for layer in next..layers {
            x = self.model.layer(layer, x, &mut cx);
        }
        let x = self.model.final_norm(x);
        self.model.unembed(cx.stream(Site::FinalNorm, x))
    }
}

/// Cells of an activation of one world.
fn cells(units: &Units, batch: usize, own_pos: usize, [heads, pos]: [usize; 2]) -> Cells {
    // The first positions may be cached.
    let first = own_pos - pos;
    Cells::of_units(units, batch, [own_pos, heads], |example, head, position| {
        (example * heads + head) * pos + position - first
    })
}

/// Units of an activation of one world, `[batch, unit, d_site]`.
fn take<B: Backend>(
    activation: &Tensor<B, 4>,
    units: &Units,
    input: &WorldInput<B>,
) -> Tensor<B, 3> {
    let [batch, heads, pos, width] = activation.dims();
    let cells = cells(units, batch, input.pos(), [heads, pos]);
    let width = units.heads.count(heads) * width;
    gather_by_index(activation, &cells, &Tables::new()).reshape([
        batch,
        units.positions.count(input.pos()),
        width,
    ])
}

/// The edits at each site, in order, with their sources.
type EditsAt<'a, B> = HashMap<Site, Vec<(&'a Edit, Option<Tensor<B, 3>>)>>;

struct WorldTap<'a, B: Backend, I> {
    input: &'a WorldInput<B>,
    interventions: &'a [I],
    edits_at: EditsAt<'a, B>,
    until: Option<Site>,
    seen: Option<Tensor<B, 4>>,
}

impl<B: Backend, I: Intervention<B>> Tap<B> for WorldTap<'_, B, I> {
    fn wants(&self, site: Site) -> bool {
        self.edits_at.contains_key(&site) || self.until == Some(site)
    }

    fn visit(&mut self, site: Site, mut activation: Tensor<B, 4>) -> Tensor<B, 4> {
        for (edit, source) in self.edits_at.remove(&site).into_iter().flatten() {
            activation = self.make(edit, source, activation);
        }
        if self.until == Some(site) {
            self.seen = Some(activation.clone());
        }
        activation
    }
}

impl<B: Backend, I: Intervention<B>> WorldTap<'_, B, I> {
    /// Makes an edit.
    fn make(
        &self,
        edit: &Edit,
        source: Option<Tensor<B, 3>>,
        activation: Tensor<B, 4>,
    ) -> Tensor<B, 4> {
        let base = take(&activation, &edit.units, self.input);
        let source = source.map(|source| source.expand(base.shape()));
        let [batch, unit, d_site] = base.dims();
        let features = (edit.features != Indices::All).then_some((&edit.features, batch));
        let count = feature_count(&self.interventions[edit.intervention], unit, d_site);
        let tables = Tables::new();
        let subspace = features
            .map(|features| feature_mask(iter::once(features), count, &tables, &base.device()));
        let changed = self.interventions[edit.intervention]
            .apply(base, Operands::new(source, subspace))
            .cast(activation.dtype());
        let [batch, heads, pos, width] = activation.dims();
        let cells = cells(&edit.units, batch, self.input.pos(), [heads, pos]);
        let count = changed.shape().num_elements() / width;
        let changed = changed.reshape([count, width]);
        scatter_by_index(activation, &cells, changed, &tables)
    }
}

/// Makes edits, and shows every activation before and after each of them.
struct WatchTap<'a, B: Backend, I> {
    tap: WorldTap<'a, B, I>,
    watch: Watch,
}

impl<B: Backend, I: Intervention<B>> Tap<B> for WatchTap<'_, B, I> {
    fn wants(&self, site: Site) -> bool {
        self.watch.wants(site)
    }

    fn visit(&mut self, site: Site, mut activation: Tensor<B, 4>) -> Tensor<B, 4> {
        self.watch.computed(site, &activation);
        for (edit, source) in self.tap.edits_at.remove(&site).into_iter().flatten() {
            let given = (&edit.operand, source.as_ref());
            let changed = self.tap.make(edit, source.clone(), activation);
            self.watch.edited(site, &changed, edit.intervention, given);
            activation = changed;
        }
        activation
    }
}
