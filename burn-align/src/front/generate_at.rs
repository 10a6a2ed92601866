//! Where interventions act while a text is generated.

use serde::{Deserialize, Serialize};

use super::UnitLocations;

/// Where interventions act while a text is generated.
///
/// Step `k` is the pass that computes generated token `k`, counted from 0. pyvene decides by two
/// arguments of its `generate`:
///
/// | `unit_locations` | `intervene_on_prompt` | here |
/// | --- | --- | --- |
/// | given | `True` | [`Prompt`](Self::Prompt), with the locations |
/// | given | `False` | [`Steps`](Self::Steps): a step has one position, so the base's is 0 |
/// | `None` | `False` | [`Steps`](Self::Steps), with [`UnitLocations::Whole`] |
/// | `None` | `True` | [`All`](Self::All), with [`UnitLocations::Whole`]: usual steering |
/// | | | [`Step`](Self::Step): pyvene cannot act at one step |
/// | | | [`All`](Self::All), with locations: pyvene cannot act at some positions and at steps |
///
/// In JSON: `"prompt"`, `"steps"`, `"all"` or `{"step": k}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[doc(alias = "intervene_on_prompt")]
pub enum InterveneAt {
    /// In the prompt, at the unit locations.
    #[default]
    Prompt,
    /// At every step, and not in the prompt.
    Steps,
    /// At one step, and not in the prompt.
    Step(usize),
    /// In the prompt, at the unit locations, and at every step.
    All,
}

impl InterveneAt {
    /// What pyvene's `generate` does with these arguments.
    pub fn of_pyvene(locations: &UnitLocations, intervene_on_prompt: bool) -> Self {
        match (intervene_on_prompt, locations) {
            (false, _) => Self::Steps,
            (true, UnitLocations::Whole) => Self::All,
            (true, _) => Self::Prompt,
        }
    }

    /// Whether the prompt is acted on.
    pub fn is_in_prompt(self) -> bool {
        matches!(self, Self::Prompt | Self::All)
    }

    /// Whether a step, or every step, is acted on.
    pub fn is_at_steps(self) -> bool {
        self != Self::Prompt
    }
}
