//! The effects of nodes.

use super::{AttributionError, PatchDirection};

/// Effects by their magnitude, the largest first, each with its index.
pub(super) fn ranked(effects: Vec<f64>) -> Vec<(usize, f64)> {
    let mut ranked: Vec<(usize, f64)> = effects.into_iter().enumerate().collect();
    ranked.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    ranked
}

/// The effect of patching each node, estimated or exact.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeEffects {
    /// What was patched into what.
    pub direction: PatchDirection,
    /// The metric of the base, for each example.
    pub base: Vec<f64>,
    /// The metric of the source, for each example.
    pub source: Vec<f64>,
    /// `[node][example]`: by how much the metric of the base changes if the node takes the source's
    /// activation.
    pub effects: Vec<Vec<f64>>,
}

impl NodeEffects {
    /// Of nodes of which no example has been measured.
    pub(super) fn unmeasured(direction: PatchDirection, nodes: usize) -> Self {
        Self {
            direction,
            base: Vec::new(),
            source: Vec::new(),
            effects: vec![Vec::new(); nodes],
        }
    }

    /// The mean effect of each node over examples.
    pub fn means(&self) -> Vec<f64> {
        let mean = |values: &Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
        self.effects.iter().map(mean).collect()
    }

    /// The nodes by the magnitude of their mean effect, the largest first, each with that effect.
    pub fn ranked(&self) -> Vec<(usize, f64)> {
        ranked(self.means())
    }

    /// Checks that all effects are finite.
    pub(super) fn check_finite(&self) -> Result<(), AttributionError> {
        let named = |what: &str, values: &[f64]| {
            let example = values.iter().position(|value| !value.is_finite());
            match example {
                Some(example) => Err(AttributionError::NotFinite {
                    what: what.to_owned(),
                    example,
                }),
                None => Ok(()),
            }
        };
        named("the metric of the base", &self.base)?;
        named("the metric of the source", &self.source)?;
        for (node, effects) in self.effects.iter().enumerate() {
            named(&format!("the effect of node {node}"), effects)?;
        }
        Ok(())
    }
}
