//! Where the values of a run stop being finite.
//!
//! A number that overflows turns everything that depends on it into NaN, and the model's output
//! shows nothing else. So when a result is not finite, the plan is run once more, one world after
//! another, with a tap at every site. Runs with finite results cost nothing extra.

mod watch;

use std::collections::BTreeSet;
use std::fmt;

use burn::module::{ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_align_models::{AlignableTransformer, Site};

pub(super) use self::watch::Watch;
use super::needs::Need;
use super::plan::{Operand, Plan, WorldId, WorldInput};
use super::schedule::Schedule;
use super::validate::validate;
use super::{PlanError, RunOptions};
use crate::interventions::Intervention;

/// The first value of a run that is not finite; see [`Plan::find_non_finite`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NonFinite {
    /// The world in words: `world 2`, or its role for the caller.
    pub run: String,
    /// Index of the world.
    pub world: usize,
    /// The site; `None` for the logits.
    pub site: Option<Site>,
    /// Index of the example.
    pub example: usize,
    /// The position, of the query in an attention pattern.
    pub position: usize,
    /// The head, at sites that have heads.
    pub head: Option<usize>,
    /// The value found there.
    pub value: NonFiniteValue,
    /// The cause.
    pub cause: NonFiniteCause,
    /// The largest magnitude of all finite values before, and its site.
    pub largest: Option<(f64, Site)>,
    /// The dtype that the values are computed in.
    pub dtype: DType,
}

impl NonFinite {
    /// Names the world by its role for the caller.
    pub fn with_run(mut self, run: impl Into<String>) -> Self {
        self.run = run.into();
        self
    }
}

// The magnitude is finite, and so equal to itself.
impl Eq for NonFinite {}

/// A value that is not a finite number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonFiniteValue {
    /// Not a number.
    Nan,
    /// Above all numbers.
    Infinity,
    /// Below all numbers.
    NegativeInfinity,
}

impl NonFiniteValue {
    /// `None` for a finite number.
    pub(super) fn of(value: f64) -> Option<Self> {
        match value {
            value if value.is_finite() => None,
            f64::INFINITY => Some(Self::Infinity),
            f64::NEG_INFINITY => Some(Self::NegativeInfinity),
            _ => Some(Self::Nan),
        }
    }
}

impl fmt::Display for NonFiniteValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nan => "NaN",
            Self::Infinity => "inf",
            Self::NegativeInfinity => "-inf",
        })
    }
}

/// Why a value is not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NonFiniteCause {
    /// The model computed it from finite values with finite weights.
    Computed,
    /// A weight of the model is not finite itself.
    Weight {
        /// The weight's path in the model, such as `layers.3.mlp.down_proj.weight`.
        name: String,
    },
    /// An intervention produced it from finite values.
    Intervention {
        /// Its index among those given to the run.
        index: usize,
    },
    /// The source given to an intervention was not finite.
    Source {
        /// Its index among the interventions given to the run.
        index: usize,
    },
    /// The input vectors were not finite.
    Input,
    /// The run that the plan resumes was not finite when the plan was frozen.
    Frozen,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, value, .. } = self;
        write!(f, "{run}: values stop being finite at ")?;
        match self.site {
            Some(site) => write!(f, "{site}")?,
            None => write!(f, "the logits")?,
        }
        write!(f, " (example {}, ", self.example)?;
        if let Some(head) = self.head {
            write!(f, "head {head}, ")?;
        }
        write!(f, "position {}: {value}", self.position)?;
        if let Some((magnitude, site)) = self.largest {
            write!(
                f,
                "; the largest magnitude before is {magnitude:.4e} at {site}"
            )?;
        }
        write!(f, "): ")?;
        match &self.cause {
            NonFiniteCause::Computed => write!(f, "{}", overflow(self.dtype)),
            NonFiniteCause::Weight { name } => write!(
                f,
                "the weight `{name}` is not finite itself; {}",
                match self.dtype {
                    DType::F16 =>
                        "if it is in the checkpoint, it is above 65504, where f16 ends: load the \
                         model in bf16 or f32",
                    _ => "the checkpoint is damaged, or the training that wrote it diverged",
                }
            ),
            NonFiniteCause::Intervention { index } => write!(
                f,
                "intervention {index} produced it from finite values; check its parameters and \
                 its source, or {}",
                match self.dtype {
                    DType::F16 => "load the model in bf16 or f32, since f16 ends at 65504",
                    _ => "intervene with smaller values",
                }
            ),
            NonFiniteCause::Source { index } => write!(
                f,
                "the source given to intervention {index} is not finite; give finite values"
            ),
            NonFiniteCause::Input => write!(
                f,
                "the vectors given as input are not finite; give finite values"
            ),
            NonFiniteCause::Frozen => write!(
                f,
                "they were already not finite when the plan was frozen; check the plan before \
                 freezing"
            ),
        }
    }
}

/// What to do about a number that is too large for its type.
fn overflow(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "f16 ends at 65504; load the model in bf16 or f32",
        DType::BF16 => {
            "the weights are finite, and bf16 reaches as far as f32, so the type is not the \
             cause; check that weights and configuration match"
        }
        _ => {
            "the weights are finite; check that weights and configuration match, and the backend \
             with the example `backends`"
        }
    }
}

impl<B: Backend> Plan<B> {
    /// Finds where the values of a run stop being finite: the first such site, in the order of
    /// computation, of the first world that has one, with the cause. `None` if everything that the
    /// plan reads is finite, or only values at padding are not.
    ///
    /// Runs the plan once, and then, if something is wrong, some worlds alone with a tap at every
    /// site, sources first. Call this only after a result turned out not to be finite.
    ///
    /// Attention scores count if they lead to a weight that is not finite: masked scores may be
    /// anything, and an intervention may well set some to negative infinity.
    ///
    /// # Errors
    /// As [`run_with`](Self::run_with).
    pub fn find_non_finite<M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        model: &M,
        interventions: &[I],
        options: &RunOptions,
    ) -> Result<Option<NonFinite>, PlanError> {
        let schedule = validate(self, model, interventions)?;
        let results = self.run_with(model, interventions, options)?;
        let mut bad = Vec::new();
        for (read, value) in self.reads.iter().zip(results.iter()) {
            if !is_finite(value)? {
                bad.push(read.world());
            }
        }
        let mut search = Search {
            plan: self,
            model,
            interventions,
            schedule: &schedule,
            seen: BTreeSet::new(),
        };
        for world in bad {
            if let Some(mut found) = search.world(world)? {
                if found.cause == NonFiniteCause::Computed
                    && let Some(name) = non_finite_weight(model)?
                {
                    found.cause = NonFiniteCause::Weight { name };
                }
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Checks numbers computed from the plan's results, such as a metric of logits, at the cost of
    /// reading them. If some are not finite because the run is not, the error says where that
    /// begins, as [`find_non_finite`](Self::find_non_finite) does; a metric that is not finite
    /// although the results are is not an error here.
    ///
    /// # Errors
    /// [`PlanError::NonFinite`], or as [`run_with`](Self::run_with).
    pub fn check_finite<'n, M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        numbers: impl IntoIterator<Item = &'n f64>,
        model: &M,
        interventions: &[I],
        options: &RunOptions,
    ) -> Result<(), PlanError> {
        if numbers.into_iter().all(|number| number.is_finite()) {
            return Ok(());
        }
        match self.find_non_finite(model, interventions, options)? {
            Some(found) => Err(PlanError::NonFinite(Box::new(found))),
            None => Ok(()),
        }
    }
}

/// Walks worlds, sources first.
struct Search<'a, B: Backend, M, I> {
    plan: &'a Plan<B>,
    model: &'a M,
    interventions: &'a [I],
    schedule: &'a Schedule,
    seen: BTreeSet<WorldId>,
}

impl<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>> Search<'_, B, M, I> {
    fn world(&mut self, world: WorldId) -> Result<Option<NonFinite>, PlanError> {
        let mut waiting = vec![(world, false)];
        while let Some((world, sources_done)) = waiting.pop() {
            if sources_done {
                if let Some(found) = self.watch(world)? {
                    return Ok(Some(found));
                }
                continue;
            }
            // Nothing of a frozen world is left to run.
            if !self.seen.insert(world) || self.plan.worlds[world.0].frozen {
                continue;
            }
            waiting.push((world, true));
            let edits: Vec<_> = self.schedule.needs.edits(self.plan, world).collect();
            for (_, edit) in edits.into_iter().rev() {
                if let Operand::Activation { world, .. } = &edit.operand {
                    waiting.push((*world, false));
                }
            }
        }
        Ok(None)
    }

    /// Looks at every site that a world reaches.
    fn watch(&self, world: WorldId) -> Result<Option<NonFinite>, PlanError> {
        let until = match self.schedule.needs.of(world) {
            None => return Ok(None),
            Some(Need::UpTo(site)) => Some(site),
            Some(Need::Logits) => None,
        };
        let (plan, stages) = (self.plan, &self.schedule.stages);
        let mut watch = Watch::new(plan, world, until);
        match plan.input_of(world) {
            WorldInput::Features(x) => {
                watch.given(Site::Embedding, x, NonFiniteCause::Input)?;
            }
            WorldInput::Resumed(resumed) => {
                let site = stages.residual_before(resumed.stage);
                let site = site.map_or(Site::Embedding, |(_, site)| site);
                watch.given(site, &resumed.x, NonFiniteCause::Frozen)?;
            }
            WorldInput::Tokens(_) | WorldInput::Continued(_) => {}
        }
        let found = match watch.is_done() {
            true => watch.finish::<B>(None)?,
            false => {
                let (logits, watch) =
                    plan.run_watched(self.model, self.interventions, world, watch);
                watch.finish(until.is_none().then_some(logits))?
            }
        };
        Ok(found)
    }
}

/// Whether all elements are finite, checked on the host: GPUs may compute as if all numbers were
/// finite.
fn is_finite<B: Backend>(x: &Tensor<B, 3>) -> Result<bool, PlanError> {
    let data = super::host::read_data(x.clone())?;
    Ok(data.iter::<f64>().all(f64::is_finite))
}

/// The first weight that is not finite.
fn non_finite_weight<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
) -> Result<Option<String>, PlanError> {
    struct Weights {
        path: Vec<String>,
        found: Result<Option<String>, PlanError>,
    }
    impl<B: Backend> ModuleVisitor<B> for Weights {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            if !is_enum(container_type) {
                self.path.push(name.to_owned());
            }
        }

        fn exit_module(&mut self, _name: &str, container_type: &str) {
            if !is_enum(container_type) {
                self.path.pop();
            }
        }

        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<B, D>>) {
            if !matches!(self.found, Ok(None)) {
                return;
            }
            let data = super::host::read_data(parameter.val());
            self.found = data.map(|data| {
                let is_finite = data.iter::<f64>().all(f64::is_finite);
                (!is_finite).then(|| self.path.join("."))
            });
        }
    }
    // The model family is not part of the names of weights.
    fn is_enum(container_type: &str) -> bool {
        container_type.starts_with("Enum:")
    }
    let mut weights = Weights {
        path: Vec::new(),
        found: Ok(None),
    };
    model.visit(&mut weights);
    weights.found
}
