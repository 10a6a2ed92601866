//! What a repeat cannot do without: the floor below its time.

use burn::tensor::backend::Backend;
use burn_align::engine::Plan;
use burn_align::generate::explain_generation;
use burn_align_models::AlignableTransformer;
use serde_json::{Value, json};

use crate::catalogue::{Inputs, Task};
use crate::generation::Generation;
use crate::model::weight_bytes;
use crate::run::Bench;

/// What one repeat computes and reads at least, with all that worlds share computed once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    /// Floating-point operations of all matrix products.
    flops: u64,
    /// Positions that go through a layer, summed over layers.
    token_layers: u64,
    /// Bytes of weights, read once by every walk through the network.
    weight_bytes: u64,
    /// Bytes of keys and values at the end of generated texts.
    cache_bytes: Option<u64>,
}

impl Work {
    /// Adds it to a line of JSON.
    pub(crate) fn add_to(self, line: &mut Value) {
        line["floor_flops"] = json!(self.flops);
        line["token_layers"] = json!(self.token_layers);
        line["floor_weight_bytes"] = json!(self.weight_bytes);
        if let Some(bytes) = self.cache_bytes {
            line["cache_bytes"] = json!(bytes);
        }
    }
}

impl<B: Backend> Bench<'_, B> {
    /// The work of a task; `None` where it is not known.
    pub(crate) fn work(&self, task: &Task) -> Option<Work> {
        match task {
            Task::Forward(_) | Task::EmptyPlan(_) | Task::Sweep { .. } => {
                self.work_of_plan(&self.plan_of(task)?)
            }
            Task::Plain(inputs) => Some(self.work_of_pass(*inputs, inputs.pos)),
            Task::Das {
                inputs,
                position,
                representation,
            } => Some(self.work_of_step(*inputs, representation.layer, *position)),
            Task::Generate(it) => self.work_of_texts(it),
            _ => None,
        }
    }

    fn weight_bytes(&self) -> u64 {
        weight_bytes(&self.model, self.dtype)
    }

    fn work_of_plan(&self, plan: &Plan<B>) -> Option<Work> {
        let explained = plan.explain(&self.model).ok()?;
        let stages = explained.passes.iter().flat_map(|pass| &pass.stages);
        let mlps = stages.filter(|stage| stage.stage.ends_with(" mlp"));
        Some(Work {
            flops: explained.flops,
            token_layers: mlps.map(|stage| stage.positions as u64).sum(),
            weight_bytes: explained.passes.len() as u64 * self.weight_bytes(),
            cache_bytes: None,
        })
    }

    /// - logits: positions with logits
    fn work_of_pass(&self, Inputs { batch, pos }: Inputs, logits: usize) -> Work {
        let dims = self.model.dims();
        let of_row = dims.layers as u64 * dims.block_flops(pos, pos);
        Work {
            flops: batch as u64 * (of_row + logits as u64 * dims.unembed_flops()),
            token_layers: (batch * pos * dims.layers) as u64,
            weight_bytes: self.weight_bytes(),
            cache_bytes: None,
        }
    }

    /// A step of training: what depends on the swap, forward and, as frozen weights have no
    /// gradients, as much again backward.
    fn work_of_step(&self, Inputs { batch, pos }: Inputs, layer: usize, position: usize) -> Work {
        let dims = self.model.dims();
        let (layers, changed) = (dims.layers - layer - 1, pos - position);
        let forward = layers as u64 * dims.block_flops(changed, pos) + dims.unembed_flops();
        // Of the layers in between, and the unembedding: about this share of all.
        let read = self.weight_bytes() * (layers + 1) as u64 / (dims.layers + 1) as u64;
        Work {
            flops: 2 * batch as u64 * forward,
            token_layers: (2 * batch * changed * layers) as u64,
            weight_bytes: 2 * read,
            cache_bytes: None,
        }
    }

    fn work_of_texts(&self, it: &Generation) -> Option<Work> {
        let dims = self.model.dims();
        let (prompt, steps) = (it.inputs.pos, it.tokens - 1);
        let step = |step: usize| {
            dims.layers as u64 * dims.block_flops(1, prompt + step + 1) + dims.unembed_flops()
        };
        let of_prompts = self.work_of_pass(it.inputs, 1);
        let of_steps: u64 = (0..steps).map(step).sum();
        let model = self.of_generation(it).ok()?;
        let (plan, worlds) = self.prompts(it);
        let options = self.options_of_generation(it);
        let explained = explain_generation(&model, &plan, &worlds, &options).ok()?;
        Some(Work {
            flops: of_prompts.flops + it.inputs.batch as u64 * of_steps,
            token_layers: of_prompts.token_layers + (it.inputs.batch * steps * dims.layers) as u64,
            weight_bytes: it.tokens as u64 * weight_bytes(&model, self.dtype),
            cache_bytes: Some(explained.cache_bytes),
        })
    }
}
