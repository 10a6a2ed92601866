//! Building the interventions of a configuration.

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, SiteDims, SiteWidth};

use super::classes::Size;
use super::{AlignError, AlignableRepresentationConfig, InterventionType, Unit};
use crate::interventions::random::Seeded;
use crate::interventions::{
    Add, AutoencoderIntervention, BoundlessRotatedSpaceIntervention, BuiltinIntervention, Fill,
    JumpReluAutoencoderIntervention, Noise, Orthonormal, OrthonormalMap, Reft,
    RotatedSpaceIntervention, SigmoidMaskIntervention, SigmoidMaskRotatedSpaceIntervention,
    Subtract, Swap, TokenGrouping,
};

impl AlignableRepresentationConfig {
    /// Width of the vectors that an intervention with parameters acts on. `None` at attention
    /// scores and weights, whose width depends on the input.
    pub(super) fn vector_width(&self, SiteDims { heads, width }: SiteDims) -> Option<usize> {
        let SiteWidth::Features(width) = width else {
            return None;
        };
        Some(match (self.unit, self.tokens()) {
            (Unit::Head | Unit::HeadPos, _) => width.saturating_mul(self.max_number_of_units),
            (Unit::Pos | Unit::Step, TokenGrouping::Each) => width * heads,
            (Unit::Pos | Unit::Step, TokenGrouping::Joint(units)) => {
                (width * heads).saturating_mul(units)
            }
        })
    }

    /// Width of the vectors in pyvene; `None` as in [`vector_width`](Self::vector_width).
    pub(crate) fn stored_width(&self, SiteDims { heads, width }: SiteDims) -> Option<usize> {
        let SiteWidth::Features(width) = width else {
            return None;
        };
        let heads = match self.unit {
            Unit::Head | Unit::HeadPos => 1,
            Unit::Pos | Unit::Step => heads,
        };
        Some((width * heads).saturating_mul(self.max_number_of_units))
    }

    /// Number of features that a partition divides, for vectors of this width.
    pub(super) fn partitioned_features(&self, width: usize) -> usize {
        let size = match self.intervention.size() {
            // Parts of a member of the ReFT family are of the site's features.
            Size::Rank if !self.intervention.is_reft() => self.low_rank_dimension,
            Size::Latent => self.latent_dimension,
            Size::None | Size::Width | Size::Rank => None,
        };
        size.unwrap_or(width)
    }
}

/// The intervention of a representation, with untrained parameters; `None` if nothing is changed.
pub(super) fn build<B: Backend, M: AlignableTransformer<B>>(
    index: usize,
    representation: &AlignableRepresentationConfig,
    model: &M,
    seed: u64,
) -> Result<Option<BuiltinIntervention<B>>, AlignError> {
    let kind = representation.intervention;
    let device = model.device();
    let builder = Builder {
        index,
        representation,
        dims: model.site(representation.place()),
        seed,
        device: &device,
    };
    Ok(Some(match kind {
        InterventionType::Vanilla | InterventionType::Skip => Swap.into(),
        InterventionType::Addition => Add.into(),
        InterventionType::Subtraction => Subtract.into(),
        InterventionType::Zero => Fill::ZERO.into(),
        InterventionType::Noise => Noise::new(Noise::LEVEL, seed).into(),
        InterventionType::Collect => return Ok(None),
        _ => builder.with_parameters()?,
    }))
}

struct Builder<'a, B: Backend> {
    index: usize,
    representation: &'a AlignableRepresentationConfig,
    dims: Option<SiteDims>,
    seed: u64,
    device: &'a B::Device,
}

impl<B: Backend> Builder<'_, B> {
    fn with_parameters(&self) -> Result<BuiltinIntervention<B>, AlignError> {
        let tokens = self.representation.tokens();
        let width = self.width()?;
        Ok(match self.representation.intervention {
            InterventionType::RotatedSpace => {
                RotatedSpaceIntervention::new(self.rotation(width)?, tokens).into()
            }
            InterventionType::LowRankRotatedSpace => {
                RotatedSpaceIntervention::new(self.rotation(self.rank()?)?, tokens).into()
            }
            InterventionType::BoundlessRotatedSpace => {
                BoundlessRotatedSpaceIntervention::new(self.rotation(width)?, tokens).into()
            }
            InterventionType::SigmoidMaskRotatedSpace => {
                SigmoidMaskRotatedSpaceIntervention::new(self.rotation(width)?, tokens).into()
            }
            InterventionType::SigmoidMask => {
                SigmoidMaskIntervention::new(width, tokens, self.device).into()
            }
            InterventionType::Autoencoder => {
                let latent =
                    self.needed("latent_dimension", self.representation.latent_dimension)?;
                let mut seeded = Seeded::<B>::new(self.seed, self.device);
                let encoder = (
                    seeded.linear([width, latent], width),
                    seeded.linear([latent], width),
                );
                let decoder = (
                    seeded.linear([latent, width], latent),
                    seeded.linear([width], latent),
                );
                AutoencoderIntervention::new(encoder, decoder, tokens).into()
            }
            InterventionType::JumpReluAutoencoder => {
                let latent = self.rank()?;
                let zeros = |n| Tensor::zeros([n], (self.device, DType::F32));
                let mut seeded = Seeded::<B>::new(self.seed, self.device);
                let encoder = (seeded.linear([width, latent], width), zeros(latent));
                let decoder = (seeded.linear([latent, width], latent), zeros(width));
                JumpReluAutoencoderIntervention::new(encoder, zeros(latent), decoder, tokens).into()
            }
            InterventionType::Reft(kind) => {
                let rotation = self.rotation(self.rank()?)?;
                Reft::new(kind, rotation, self.seed).into()
            }
            kind => {
                return Err(AlignError::NotFitted {
                    representation: self.index,
                    kind: kind.name(),
                });
            }
        })
    }

    fn width(&self) -> Result<usize, AlignError> {
        let width = self
            .dims
            .and_then(|dims| self.representation.vector_width(dims));
        width.ok_or(AlignError::NoFixedWidth {
            representation: self.index,
            kind: self.representation.intervention.name(),
        })
    }

    fn rank(&self) -> Result<usize, AlignError> {
        self.needed("low_rank_dimension", self.representation.low_rank_dimension)
    }

    fn needed(&self, what: &'static str, found: Option<usize>) -> Result<usize, AlignError> {
        found
            .filter(|found| *found > 0)
            .ok_or(AlignError::NoDimension {
                representation: self.index,
                what,
                kind: self.representation.intervention.name(),
            })
    }

    fn rotation(&self, rank: usize) -> Result<Orthonormal<B>, AlignError> {
        let shape = [self.width()?, rank];
        Orthonormal::random(shape, OrthonormalMap::Retraction, self.seed, self.device).map_err(
            |cause| AlignError::Orthonormal {
                representation: self.index,
                cause,
            },
        )
    }
}
