//! What generation will take, before it runs.

use std::fmt;

use burn::tensor::backend::Backend;
use burn_align_models::{AlignableTransformer, Mixing, SublayerKind};
use serde::Serialize;

use super::{GenerateError, GenerateOptions, GeneratedWorld, StepOperand};
use crate::engine::{
    CacheExplanation, Explanation, LogitPositions, Plan, ReadId, RunOptions, WorldId, WorldInput,
};

/// What generation will take: what is cached, and what a step costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GenerationExplanation {
    /// Number of rows.
    pub rows: usize,
    /// Number of steps, if no row ends early: one fewer than new tokens.
    pub steps: usize,
    /// The run of the prompts.
    pub prompts: Explanation,
    /// What is cached at the end, by layer.
    pub caches: Vec<CacheExplanation>,
    /// Bytes of all caches after the prompts.
    pub prompt_cache_bytes: u64,
    /// Bytes of all caches after the last step.
    pub cache_bytes: u64,
    /// Floating-point operations of the matrix products of the last step, which is the longest, for
    /// all rows.
    pub step_flops: u64,
    /// Bytes of activations in the last step, for all rows.
    pub step_bytes: u64,
    /// Peak bytes of caches and activations, without the model's weights.
    pub peak_bytes: u64,
}

/// Says what [`generate`](super::generate) will cache and compute, if no row ends early. Estimated
/// from the sizes of the model; activations to be collected and logits to be kept are not included.
///
/// ```
/// use burn_align::engine::Plan;
/// use burn_align::generate::{GenerateOptions, GeneratedWorld, explain_generation};
/// use burn_align::models::{Decoder, FromPretrained, LoadOptions};
/// # type B = burn::backend::Flex;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let device = Default::default();
/// let loaded =
///     Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let prompt = loaded.tokenizer()?.encode_batch(["The capital of Spain is"])?;
/// let mut plan = Plan::<B>::new();
/// let input = plan.tokens(&prompt);
/// let worlds = [plan.world(input, []), plan.world(input, [])].map(GeneratedWorld::new);
/// let explained = explain_generation(&loaded.model, &plan, &worlds, &GenerateOptions::new(8))?;
/// // The prompt is cached once, and each of the two rows has 7 positions of its own.
/// let layer = &explained.caches[0];
/// assert_eq!([layer.shared_positions, layer.row_positions], [prompt.pos(), 2 * 7]);
/// println!("{explained}");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If the plan does not fit the model, or its worlds cannot be continued.
pub fn explain_generation<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    plan: &Plan<B>,
    worlds: &[GeneratedWorld<B>],
    options: &GenerateOptions,
) -> Result<GenerationExplanation, GenerateError> {
    if worlds.is_empty() {
        return Err(GenerateError::NoWorlds);
    }
    let ids: Vec<WorldId> = worlds.iter().map(|it| it.world).collect();
    let mut lengths = Vec::new();
    for id in &ids {
        lengths.extend(plan.lengths_of(*id)?);
    }
    let (prompts, _reads) = prompts_of(plan, worlds, options);
    let steps = options.max_new_tokens.saturating_sub(1);
    let memory = prompts.explain_continued(model, &ids, steps)?;
    let explained = prompts.explain(model)?;
    let most = model.dims().max_positions.unwrap_or(usize::MAX);
    let keys = |length: &usize| length.saturating_add(steps).min(most);
    let [prompt_cache_bytes, cache_bytes] = [&memory.at_start, &memory.at_end].map(|it| total(it));
    let [step_bytes, _] = memory.step;
    let step_flops: u64 = match steps {
        0 => 0,
        _ => lengths
            .iter()
            .map(|it| flops::<B, M>(model, keys(it)))
            .sum(),
    };
    Ok(GenerationExplanation {
        rows: lengths.len(),
        steps,
        peak_bytes: (explained.peak_bytes + prompt_cache_bytes).max(cache_bytes + step_bytes),
        prompts: explained,
        caches: memory.at_end,
        prompt_cache_bytes,
        cache_bytes,
        step_flops,
        step_bytes,
    })
}

/// Floating-point operations of one position of a row, and its logits.
///
/// - keys: number of positions up to there
fn flops<B: Backend, M: AlignableTransformer<B>>(model: &M, keys: usize) -> u64 {
    let dims = model.dims();
    let sublayers = model.layout().layers().iter().flat_map(|it| it.sublayers());
    let sublayers = sublayers.map(|sublayer| {
        let seen = match sublayer.mixing() {
            Mixing::Causal {
                window: Some(window),
            } => keys.min(window),
            _ => keys,
        };
        match sublayer.kind() {
            SublayerKind::Attention => dims.attention_flops(1, 1, seen),
            SublayerKind::Mlp => dims.mlp_flops(1),
            SublayerKind::Other => dims.block_flops(1, seen),
        }
    });
    sublayers.sum::<u64>() + dims.unembed_flops()
}

/// What is read of the prompts.
pub(super) struct PromptReads {
    /// The logits of each world: at its last positions, or at all that are computed.
    pub(super) logits: Vec<ReadId>,
    /// Operands of steps that are activations of the prompts, world by world.
    pub(super) operands: Vec<ReadId>,
}

/// The plan that runs the prompts of some worlds, which are worlds of `plan`.
pub(super) fn prompts_of<B: Backend>(
    plan: &Plan<B>,
    worlds: &[GeneratedWorld<B>],
    options: &GenerateOptions,
) -> (Plan<B>, PromptReads) {
    let mut prompts = plan.clone();
    let mut reads = PromptReads {
        logits: Vec::new(),
        operands: Vec::new(),
    };
    for world in worlds {
        let positions = match options.keep_prompt_logits {
            true => computed(prompts.input_of(world.world)),
            false => LogitPositions::Last,
        };
        let logits = prompts.read_logits(world.world, positions);
        reads.logits.push(logits);
        for edit in &world.edits {
            if let StepOperand::Activation { world, site, units } = &edit.operand {
                let operand = prompts.read(*world, *site, units.clone());
                reads.operands.push(operand);
            }
        }
    }
    (prompts, reads)
}

/// The positions of an input that are computed.
fn computed<B: Backend>(input: &WorldInput<B>) -> LogitPositions {
    let Some(starts) = input.starts() else {
        return LogitPositions::All;
    };
    let examples = starts.into_iter().zip(input.lengths());
    LogitPositions::Each(
        examples
            .map(|(start, length)| (start..length).collect())
            .collect(),
    )
}

/// What remains of the budgets for activations.
pub(super) struct Budgets {
    pub(super) prompts: RunOptions,
    pub(super) steps: RunOptions,
}

/// Takes the caches from the memory budget, if there is one.
pub(super) fn budgets<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    prompts: &Plan<B>,
    ids: &[WorldId],
    options: &GenerateOptions,
) -> Result<Budgets, GenerateError> {
    let run = &options.run;
    let Some(budget) = run.memory_budget else {
        return Ok(Budgets {
            prompts: run.clone(),
            steps: run.clone(),
        });
    };
    let steps = options.max_new_tokens.saturating_sub(1);
    let memory = prompts.explain_continued(model, ids, steps)?;
    let [_, step_of_one] = memory.step;
    let caches = total(&memory.at_end);
    let needed = caches.saturating_add(step_of_one);
    if needed > budget {
        let mut rows = 0;
        for id in ids {
            rows += prompts.lengths_of(*id)?.len();
        }
        return Err(GenerateError::CacheBudget {
            needed,
            caches,
            rows,
            budget,
        });
    }
    let without = |caches: &[CacheExplanation]| RunOptions {
        memory_budget: Some(budget - total(caches).min(budget)),
        ..run.clone()
    };
    Ok(Budgets {
        prompts: without(&memory.at_start),
        steps: without(&memory.at_end),
    })
}

fn total(caches: &[CacheExplanation]) -> u64 {
    caches.iter().map(|layer| layer.bytes).sum()
}

impl fmt::Display for GenerationExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let sum = |count: fn(&CacheExplanation) -> usize| -> usize {
            self.caches.iter().map(count).sum()
        };
        writeln!(f, "{}", self.prompts)?;
        writeln!(f, "{} rows, {} steps", self.rows, self.steps)?;
        writeln!(
            f,
            "caches: {:.1} MiB after the prompts, {:.1} MiB at the end",
            mib(self.prompt_cache_bytes),
            mib(self.cache_bytes)
        )?;
        writeln!(
            f,
            "layers × positions: {} shared, {} of single rows",
            sum(|it| it.shared_positions),
            sum(|it| it.row_positions)
        )?;
        writeln!(
            f,
            "last step: {:.3e} FLOPs, {:.1} MiB of activations",
            self.step_flops as f64,
            mib(self.step_bytes)
        )?;
        write!(f, "{:.1} MiB at peak", mib(self.peak_bytes))
    }
}
