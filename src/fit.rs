//! Training small language models from scratch.

use std::path::Path;

use anyhow::{Result, ensure};
use burn::lr_scheduler::LrScheduler;
use burn::lr_scheduler::composed::ComposedLrSchedulerConfig;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::module::AutodiffModule;
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use burn_align_models::{AlignableTransformer, ModelInput, TokenBatch};

use crate::plot::{Line, line_chart};
use crate::progress;

/// A sequence of tokens, and what to predict after which of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The tokens. Token 0 means no word.
    pub tokens: Vec<u32>,
    /// Positions, and the token to predict after each.
    pub predicted: Vec<(usize, u32)>,
}

impl Example {
    /// Predicts the tokens at these positions, none of them the first, from those before.
    pub fn within(mut tokens: Vec<u32>, positions: impl IntoIterator<Item = usize>) -> Self {
        let positions = positions.into_iter();
        let predicted = positions.map(|position| (position - 1, tokens[position]));
        let predicted = predicted.collect();
        tokens.pop();
        Self { tokens, predicted }
    }

    /// Predicts every token but the first from those before.
    pub fn all(tokens: Vec<u32>) -> Self {
        let positions = 1..tokens.len();
        Self::within(tokens, positions)
    }
}

/// How to train.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    /// Number of optimizer steps.
    pub steps: usize,
    /// Highest learning rate: it rises for a twentieth of the steps and falls as a cosine.
    pub learning_rate: f64,
    /// Weight decay.
    pub weight_decay: f32,
}

/// The token that means no word.
const NONE: u32 = 0;

impl Fit {
    /// Trains a model with AdamW, one batch per step, and returns it with the loss of each step:
    /// the mean cross-entropy of the tokens to predict.
    ///
    /// # Errors
    /// If a batch is empty, or the schedule is invalid.
    pub fn run<B: AutodiffBackend, M: AlignableTransformer<B> + AutodiffModule<B>>(
        &self,
        mut model: M,
        mut batch: impl FnMut() -> Vec<Example>,
        device: &B::Device,
    ) -> Result<(M, Vec<f64>)> {
        let mut schedule = ComposedLrSchedulerConfig::new()
            .linear(LinearLrSchedulerConfig::new(
                1e-3,
                1.0,
                self.steps.div_ceil(20),
            ))
            .cosine(CosineAnnealingLrSchedulerConfig::new(
                self.learning_rate,
                self.steps,
            ))
            .init()
            .map_err(anyhow::Error::msg)?;
        let mut optimizer = AdamWConfig::new()
            .with_weight_decay(self.weight_decay)
            .init();
        let loss = CrossEntropyLossConfig::new()
            .with_pad_tokens(Some(vec![NONE as usize]))
            .init(device);
        let mut curve = Vec::new();
        let bar = progress::bar(self.steps as u64, "training");
        for _step in 0..self.steps {
            let loss = mean_loss(&model, &batch(), &loss, device)?;
            curve.push(value(loss.clone()));
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(LrScheduler::step(&mut schedule), model, gradients);
            bar.set_prefix(format!("loss {:.3}", curve[curve.len() - 1]));
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok((model, curve))
    }
}

/// Mean cross-entropy of the tokens to predict.
fn mean_loss<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    examples: &[Example],
    loss: &CrossEntropyLoss<B>,
    device: &B::Device,
) -> Result<Tensor<B, 1>> {
    ensure!(!examples.is_empty(), "a batch without examples");
    let longest = examples.iter().map(|example| example.tokens.len());
    let pos = longest.max().unwrap_or(0);
    let inputs = examples.iter().map(|example| {
        let mut tokens = example.tokens.clone();
        tokens.resize(pos, NONE);
        tokens
    });
    let targets = examples.iter().map(|example| {
        let mut targets = vec![NONE; pos];
        for &(position, token) in &example.predicted {
            targets[position] = token;
        }
        targets
    });
    let inputs = TokenBatch::new(inputs.collect())?.to_tensor::<B>(device);
    let targets = TokenBatch::new(targets.collect())?.to_tensor::<B>(device);
    let logits = model.forward(ModelInput::Tokens(inputs));
    let [batch, pos, vocab] = logits.dims();
    let targets: Tensor<B, 1, Int> = targets.flatten(0, 1);
    Ok(loss.forward(logits.reshape([batch * pos, vocab]), targets))
}

/// The most probable next token after each prompt.
///
/// # Errors
/// If the prompts do not form a batch.
pub fn next_tokens<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    prompts: &TokenBatch,
    device: &B::Device,
) -> Result<Vec<u32>> {
    let logits = model.forward(ModelInput::Tokens(prompts.to_tensor(device)));
    let best: Vec<i64> = logits.argmax(2).into_data().iter::<i64>().collect();
    let lengths = prompts.lengths().into_iter().enumerate();
    Ok(lengths
        .map(|(row, length)| best[row * prompts.pos() + length - 1] as u32)
        .collect())
}

/// Draws the loss, averaged over stretches of 20 steps.
///
/// # Errors
/// If the picture cannot be written.
pub fn draw_loss(file: &Path, title: &str, steps: &str, curve: &[f64]) -> Result<()> {
    let points = curve.chunks(20).enumerate().map(|(i, losses)| {
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        ((i * 20) as f64, mean)
    });
    let line = Line {
        name: "training loss",
        points: points.collect(),
    };
    line_chart(file, title, [steps, "nats"], &[line])
}

/// The value of a tensor with one element.
fn value<B: Backend>(tensor: Tensor<B, 1>) -> f64 {
    let data = tensor.into_data();
    data.iter::<f64>().next().expect("one element")
}
