//! The classes of pyvene and pyreft: their names, and what they are called with.

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

/// What is known of a class.
pub(super) struct Class {
    pub(super) name: &'static str,
    pub(super) size: Size,
    /// Whether it treats each unit by itself (`keep_last_dim`).
    pub(super) each: bool,
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
    /// Every class: its name, its size, and whether it treats each unit by itself.
    #[rustfmt::skip]
    const ALL: [(Self, &'static str, Size, bool); 21] = [
        (Self::Vanilla, "VanillaIntervention", Size::None, false),
        (Self::Addition, "AdditionIntervention", Size::None, false),
        (Self::Subtraction, "SubtractionIntervention", Size::None, false),
        (Self::Zero, "ZeroIntervention", Size::None, false),
        (Self::Skip, "SkipIntervention", Size::None, false),
        (Self::Collect, "CollectIntervention", Size::None, false),
        (Self::Noise, "NoiseIntervention", Size::None, false),
        (Self::RotatedSpace, "RotatedSpaceIntervention", Size::Width, false),
        (Self::LowRankRotatedSpace, "LowRankRotatedSpaceIntervention", Size::Rank, false),
        (Self::BoundlessRotatedSpace, "BoundlessRotatedSpaceIntervention", Size::Width, false),
        (Self::SigmoidMaskRotatedSpace, "SigmoidMaskRotatedSpaceIntervention", Size::Width, false),
        (Self::SigmoidMask, "SigmoidMaskIntervention", Size::Width, true),
        (Self::PcaRotatedSpace, "PCARotatedSpaceIntervention", Size::Rank, false),
        (Self::Autoencoder, "AutoencoderIntervention", Size::Latent, false),
        (Self::JumpReluAutoencoder, "JumpReLUAutoencoderIntervention", Size::Rank, true),
        (Self::Reft(ReftKind::LoReft), "LoreftIntervention", Size::Rank, true),
        (Self::Reft(ReftKind::NoReft), "NoreftIntervention", Size::Rank, true),
        (Self::Reft(ReftKind::ConsReft), "ConsreftIntervention", Size::Rank, true),
        (Self::Reft(ReftKind::LobiReft), "LobireftIntervention", Size::Rank, true),
        (Self::Reft(ReftKind::DiReft), "DireftIntervention", Size::Rank, true),
        (Self::Reft(ReftKind::NodiReft), "NodireftIntervention", Size::Rank, true),
    ];

    pub(super) fn class(self) -> Class {
        let mut all = Self::ALL.into_iter();
        let (_, name, size, each) = all
            .find(|(kind, ..)| *kind == self)
            .expect("every class is in the table");
        Class { name, size, each }
    }

    /// The class name in pyvene, or in pyreft for the ReFT family.
    pub fn name(self) -> &'static str {
        self.class().name
    }

    /// Whether it has parameters.
    pub fn has_parameters(self) -> bool {
        self.class().size != Size::None
    }

    /// Whether its size is a `low_rank_dimension`.
    pub(super) fn has_rank(self) -> bool {
        self.class().size == Size::Rank
    }

    /// Whether pyvene's class, or pyreft's, treats each unit by itself (`keep_last_dim`).
    pub(crate) fn treats_units_alike(self) -> bool {
        self.class().each
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
        let found = Self::ALL
            .into_iter()
            .find(|(_, own, ..)| Some(*own) == name);
        found.map(|(kind, ..)| kind).ok_or_else(|| {
            let names = Self::ALL.map(|(_, name, ..)| name).join(", ");
            format!("alignable_interventions_type: expected one of {names}, found `{text}`")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::InterventionType;

    #[test]
    fn names_are_read_back() {
        for (kind, name, ..) in InterventionType::ALL {
            assert_eq!(kind.class().name, name);
            assert_eq!(name.parse(), Ok(kind));
        }
    }
}
