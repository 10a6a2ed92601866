//! The classes of pyvene and pyreft: their names, and what is known of them.

use std::str::FromStr;

use crate::interventions::ReftKind;

/// What an intervention does, named as in align-transformers and pyvene.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum InterventionType {
    /// Replaces the base's activation with the source's.
    #[default]
    Vanilla,
    /// Adds the source's activation.
    Addition,
    /// Subtracts the source's activation.
    Subtraction,
    /// Replaces the base's activation with zeros.
    Zero,
    /// Replaces the output of the block, the attention or the MLP with its own input from the same
    /// run.
    Skip,
    /// Changes nothing and returns the base's activation, after the interventions listed before
    /// this one.
    Collect,
    /// Adds noise.
    Noise,
    /// Swaps along all directions of a rotation (DAS).
    RotatedSpace,
    /// Swaps along a few directions (DAS).
    LowRankRotatedSpace,
    /// Swaps along directions up to a learned boundary (Boundless DAS).
    BoundlessRotatedSpace,
    /// Swaps along directions under a learned mask.
    SigmoidMaskRotatedSpace,
    /// Swaps features under a learned mask.
    SigmoidMask,
    /// Swaps principal components.
    PcaRotatedSpace,
    /// Swaps hidden features of an autoencoder.
    Autoencoder,
    /// Swaps hidden features of a JumpReLU autoencoder.
    JumpReluAutoencoder,
    /// Changes directions without a source.
    Reft(ReftKind),
}

/// What gives the number of features of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// Nothing: it has no parameters.
    None,
    /// The width of the vector.
    Width,
    /// `low_rank_dimension`.
    Rank,
    /// `latent_dimension`.
    Latent,
}

impl InterventionType {
    /// Every class.
    const ALL: [Self; 21] = [
        Self::Vanilla,
        Self::Addition,
        Self::Subtraction,
        Self::Zero,
        Self::Skip,
        Self::Collect,
        Self::Noise,
        Self::RotatedSpace,
        Self::LowRankRotatedSpace,
        Self::BoundlessRotatedSpace,
        Self::SigmoidMaskRotatedSpace,
        Self::SigmoidMask,
        Self::PcaRotatedSpace,
        Self::Autoencoder,
        Self::JumpReluAutoencoder,
        Self::Reft(ReftKind::LoReft),
        Self::Reft(ReftKind::NoReft),
        Self::Reft(ReftKind::ConsReft),
        Self::Reft(ReftKind::LobiReft),
        Self::Reft(ReftKind::DiReft),
        Self::Reft(ReftKind::NodiReft),
    ];

    /// The class name in pyvene, or in pyreft for the ReFT family.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vanilla => "VanillaIntervention",
            Self::Addition => "AdditionIntervention",
            Self::Subtraction => "SubtractionIntervention",
            Self::Zero => "ZeroIntervention",
            Self::Skip => "SkipIntervention",
            Self::Collect => "CollectIntervention",
            Self::Noise => "NoiseIntervention",
            Self::RotatedSpace => "RotatedSpaceIntervention",
            Self::LowRankRotatedSpace => "LowRankRotatedSpaceIntervention",
            Self::BoundlessRotatedSpace => "BoundlessRotatedSpaceIntervention",
            Self::SigmoidMaskRotatedSpace => "SigmoidMaskRotatedSpaceIntervention",
            Self::SigmoidMask => "SigmoidMaskIntervention",
            Self::PcaRotatedSpace => "PCARotatedSpaceIntervention",
            Self::Autoencoder => "AutoencoderIntervention",
            Self::JumpReluAutoencoder => "JumpReLUAutoencoderIntervention",
            Self::Reft(ReftKind::LoReft) => "LoreftIntervention",
            Self::Reft(ReftKind::NoReft) => "NoreftIntervention",
            Self::Reft(ReftKind::ConsReft) => "ConsreftIntervention",
            Self::Reft(ReftKind::LobiReft) => "LobireftIntervention",
            Self::Reft(ReftKind::DiReft) => "DireftIntervention",
            Self::Reft(ReftKind::NodiReft) => "NodireftIntervention",
        }
    }

    /// What gives its number of features.
    pub(super) fn size(self) -> Size {
        match self {
            Self::Vanilla
            | Self::Addition
            | Self::Subtraction
            | Self::Zero
            | Self::Skip
            | Self::Collect
            | Self::Noise => Size::None,
            Self::RotatedSpace
            | Self::BoundlessRotatedSpace
            | Self::SigmoidMaskRotatedSpace
            | Self::SigmoidMask => Size::Width,
            Self::LowRankRotatedSpace
            | Self::PcaRotatedSpace
            | Self::JumpReluAutoencoder
            | Self::Reft(_) => Size::Rank,
            Self::Autoencoder => Size::Latent,
        }
    }

    /// Whether it has parameters.
    pub fn has_parameters(self) -> bool {
        self.size() != Size::None
    }

    /// Whether its size is a `low_rank_dimension`.
    pub(super) fn has_rank(self) -> bool {
        self.size() == Size::Rank
    }

    /// Whether pyvene's class, or pyreft's, treats each unit by itself (`keep_last_dim`).
    pub(crate) fn treats_units_alike(self) -> bool {
        matches!(
            self,
            Self::SigmoidMask | Self::JumpReluAutoencoder | Self::Reft(_)
        )
    }

    pub(super) fn is_reft(self) -> bool {
        matches!(self, Self::Reft(_))
    }
}

impl FromStr for InterventionType {
    type Err = String;

    /// Parses a class name; also accepts the form in which Python prints a class.
    fn from_str(text: &str) -> Result<Self, String> {
        let name = text
            .trim_start_matches("<class '")
            .trim_end_matches("'>")
            .rsplit('.')
            .next();
        let mut all = Self::ALL.into_iter();
        let found = all.find(|kind| Some(kind.name()) == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("alignable_interventions_type: expected one of {names}, found `{text}`")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::InterventionType;

    #[test]
    fn names_are_read_back() {
        for kind in InterventionType::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
    }
}
