//! What has become of a text.

use std::collections::BTreeSet;

use anyhow::Result;
use burn::tensor::ElementConversion;
use burn::tensor::backend::Backend;
use burn_align::engine::{LogitPositions, Plan, RunOptions, Units};
use burn_align::interventions::VanillaIntervention;
use burn_align::methods::{Direction, cross_entropies};
use burn_align_models::{AlignableTransformer, TokenBatch};

/// A prompt and the text generated after it.
pub(crate) struct Continued {
    /// Tokens of the prompt.
    pub(crate) prompt: Vec<u32>,
    /// New tokens.
    pub(crate) new: Vec<u32>,
    /// The new text.
    pub(crate) text: String,
    /// The answers to the prompt, if it has some: its own, and the one it is steered to.
    pub(crate) answers: Option<[&'static str; 2]>,
}

/// The mean over some texts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    /// Mean log-probability of a token for the model without steering. Low for nonsense, and for
    /// what it would not say.
    pub(crate) log_probability: f64,
    /// Distinct tokens among all. Low for texts that go round in circles.
    pub(crate) distinct: f64,
    /// How much of the text is as desired: the fraction of steered answers or, where any text may
    /// follow, of tokens that the model, reading without steering, has on the direction's positive
    /// side.
    pub(crate) desired: f64,
    /// The fraction of answers that are as without steering.
    pub(crate) kept: f64,
}

impl Measured {
    /// Reads texts with the model as it is.
    pub(crate) fn of<B: Backend, M: AlignableTransformer<B>>(
        texts: &[Continued],
        model: &M,
        direction: &Direction,
        options: &RunOptions,
    ) -> Result<Self> {
        let mut plan = Plan::<B>::new();
        let mut reads = Vec::new();
        for text in texts {
            let tokens = TokenBatch::new(vec![[&text.prompt[..], &text.new].concat()])?;
            let input = plan.tokens(&tokens);
            let world = plan.world(input, []);
            let new = text.prompt.len()..tokens.pos();
            let before = new.clone().map(|position| position - 1).collect();
            reads.push((
                plan.read_logits(world, LogitPositions::Each(vec![before])),
                plan.read(world, direction.site, Units::positions(new)),
            ));
        }
        let results = plan.run_with(model, &[VanillaIntervention; 0], options)?;

        let unit = direction.unit();
        let mut sum = Self::default();
        for (text, (logits, activations)) in texts.iter().zip(reads) {
            let logits = results.get(logits).squeeze_dim::<2>(0); // [token, vocab]
            let surprisal = cross_entropies(logits, &text.new).mean().into_scalar();
            sum.log_probability -= surprisal.elem::<f64>();
            let distinct: BTreeSet<u32> = text.new.iter().copied().collect();
            sum.distinct += distinct.len() as f64 / text.new.len() as f64;
            match text.answers {
                Some([own, steered]) => {
                    let first = text.text.split_whitespace().next();
                    sum.desired += f64::from(u8::from(first == Some(steered)));
                    sum.kept += f64::from(u8::from(first == Some(own)));
                }
                None => {
                    let read = results.get(activations).into_data(); // [1, token, d_site]
                    let read: Vec<f64> = read.iter::<f64>().collect();
                    let projections = read.chunks(unit.len()).map(|activation| {
                        let products = activation.iter().zip(&unit);
                        products.map(|(x, unit)| x * f64::from(*unit)).sum::<f64>()
                    });
                    let threshold = direction.separation.threshold;
                    let positive = projections.filter(|projection| *projection > threshold);
                    sum.desired += positive.count() as f64 / text.new.len() as f64;
                }
            }
        }
        let count = texts.len() as f64;
        Ok(Self {
            log_probability: sum.log_probability / count,
            distinct: sum.distinct / count,
            desired: sum.desired / count,
            kept: sum.kept / count,
        })
    }

    /// Whether texts are broken, next to those without steering: most answers are neither one nor
    /// the other; or tokens are e times less likely on average, or go round in circles.
    pub(crate) fn is_broken(&self, unsteered: &Self, has_answers: bool) -> bool {
        match has_answers {
            true => self.desired + self.kept < 0.5,
            false => {
                self.log_probability < unsteered.log_probability - 1.0
                    || self.distinct < 0.6 * unsteered.distinct
            }
        }
    }
}
