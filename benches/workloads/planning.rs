//! How long sweeps take to plan, on models so narrow that only planning takes time.

use anyhow::Result;
use burn::tensor::backend::Backend;
use burn_align::engine::{Edit, LogitPositions, Plan};
use burn_align::interventions::VanillaIntervention;
use burn_align_models::{Component, DecoderConfig, TokenBatch};
use serde_json::json;

use crate::catalogue::{Task, Workload, grid};
use crate::run::Bench;
use crate::timing::{Times, time};

/// A sweep of block outputs, of which nothing is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planning {
    layers: usize,
    pos: usize,
    /// Whether the plan is explained, and not only checked and laid out.
    explained: bool,
}

/// Sweeps of one size and of ten times as many cells, on their own models.
pub(crate) fn workloads() -> Vec<Workload> {
    let shapes = [(32, 80), (32, 800), (300, 80)];
    let kinds = shapes.into_iter().flat_map(|(layers, pos)| {
        [("plan_sweep", false), ("explain_sweep", true)].map(|(family, explained)| {
            let does = if explained { "explaining" } else { "planning" };
            let cells = layers * pos;
            Workload {
                family,
                name: format!("{family}_{layers}x{pos}"),
                what: format!(
                    "{does} a sweep of {layers} layers × {pos} positions, {cells} cells, on a \
                     narrow model; nothing is computed"
                ),
                task: Task::Planning(Planning {
                    layers,
                    pos,
                    explained,
                }),
            }
        })
    });
    kinds.collect()
}

impl<B: Backend> Bench<'_, B> {
    pub(crate) fn planning(&self, planning: Planning) -> Result<Times> {
        let Planning {
            layers,
            pos,
            explained,
        } = planning;
        let config = DecoderConfig::from_json(&json!({
            "model_type": "llama",
            "vocab_size": 32,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "max_position_embeddings": pos,
        }))?;
        let model = config.init::<B>(self.device);
        let mut plan = Plan::<B>::new();
        let base = plan.tokens(&TokenBatch::new(vec![vec![1; pos]])?);
        let source = plan.tokens(&TokenBatch::new(vec![vec![2; pos]])?);
        let source = plan.world(source, []);
        for (site, units) in grid(layers, pos, &[Component::BlockOutput]) {
            let world = plan.world(base, [Edit::from_world(source, site, units, 0)]);
            plan.read_logits(world, LogitPositions::Last);
        }
        let run = || {
            match explained {
                true => drop(plan.explain(&model)?),
                false => plan.check(&model, &[VanillaIntervention])?,
            }
            Ok(())
        };
        time::<B, _>(run, self.repeats, self.device)
    }
}
