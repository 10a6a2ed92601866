//! The ReFT family: trained changes in a subspace, without a source.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::nn::Activation;
use serde::{Deserialize, Serialize};

use super::{Change, Features, Operation};
use crate::interventions::parts::{Part, PartError, Reader, Writer};
use crate::interventions::random::Seeded;
use crate::interventions::{Orthonormal, TokenGrouping};
use crate::saved::SaveInterventionsError;

/// The members of the ReFT family (Wu et al. 2024, arXiv 2404.03592), named as in pyreft.
///
/// `R` has orthonormal columns, `P` is free; `s(x) = f(x W + b)` is learned, or a constant `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReftKind {
    /// `x + (s(x) - x R) Rᵀ`, eq. 2 of the paper.
    LoReft,
    /// `x + (s(x) - (x P + p)) Pᵀ`.
    NoReft,
    /// `x + (b - x R) Rᵀ`.
    ConsReft,
    /// `x + b Rᵀ`.
    LobiReft,
    /// `x + s(x) Rᵀ`.
    DiReft,
    /// `x + s(x) Pᵀ`.
    NodiReft,
}

impl ReftKind {
    /// Whether the directions are orthonormal.
    pub fn is_orthonormal(self) -> bool {
        !matches!(self, Self::NoReft | Self::NodiReft)
    }

    /// Whether the new value is a constant.
    pub fn is_constant(self) -> bool {
        matches!(self, Self::ConsReft | Self::LobiReft)
    }

    /// Whether the new value replaces the old one.
    pub fn replaces(self) -> bool {
        matches!(self, Self::LoReft | Self::NoReft | Self::ConsReft)
    }
}

/// Representation finetuning: a learned change in a subspace, without a source.
///
/// It steers a model; it does not locate anything. That a trained edit changes the answer does not
/// show that the model itself uses that subspace.
#[derive(Module, Debug)]
#[doc(alias = "LoReFT")]
pub struct Reft<B: Backend> {
    /// The directions `R`, `[d, rank]`, for kinds with orthonormal directions.
    pub rotation: Option<Orthonormal<B>>,
    /// The directions `P`, `[d, rank]`, for the other kinds.
    pub projection: Option<Param<Tensor<B, 2>>>,
    /// `p`, `[rank]`, for [`ReftKind::NoReft`].
    pub projection_bias: Option<Param<Tensor<B, 1>>>,
    /// `W`, `[d, rank]`, for kinds whose new value is not a constant.
    pub weight: Option<Param<Tensor<B, 2>>>,
    /// `b`, `[rank]`.
    pub bias: Param<Tensor<B, 1>>,
    #[module(skip)]
    activation: Activation,
    #[module(skip)]
    kind: ReftKind,
}

/// The parameters of a [`Reft`], as they are saved.
#[derive(Debug)]
pub(crate) struct ReftParts<B: Backend> {
    pub(crate) rotation: Option<Orthonormal<B>>,
    pub(crate) projection: Option<Tensor<B, 2>>,
    pub(crate) projection_bias: Option<Tensor<B, 1>>,
    pub(crate) weight: Option<Tensor<B, 2>>,
    pub(crate) bias: Tensor<B, 1>,
}

impl<B: Backend> Reft<B> {
    /// Random parameters, distributed as in pyreft. Kinds with orthonormal directions use this
    /// rotation; the others only take its shape.
    pub fn new(kind: ReftKind, rotation: Orthonormal<B>, seed: u64) -> Self {
        let [d, rank] = rotation.dims();
        let device = rotation.parameter.device();
        let mut seeded = Seeded::<B>::new(seed, &device);
        let free = !kind.is_orthonormal();
        let constant = kind.is_constant();
        Self::from_parts(
            kind,
            ReftParts {
                rotation: (!free).then_some(rotation),
                projection: free.then(|| seeded.linear([d, rank], d)),
                projection_bias: (kind == ReftKind::NoReft).then(|| seeded.linear([rank], d)),
                weight: (!constant).then(|| seeded.linear([d, rank], d)),
                bias: match constant {
                    true => seeded.uniform([rank], [0.0, 1.0]),
                    false => seeded.linear([rank], d),
                },
            },
        )
    }

    pub(crate) fn from_parts(kind: ReftKind, parts: ReftParts<B>) -> Self {
        Self {
            rotation: parts.rotation,
            projection: parts.projection.map(Param::from_tensor),
            projection_bias: parts.projection_bias.map(Param::from_tensor),
            weight: parts.weight.map(Param::from_tensor),
            bias: Param::from_tensor(parts.bias),
            activation: Activation::Linear,
            kind,
        }
    }

    /// Sets the function `f` after the learned linear map. Default: the identity.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Which member of the family this is.
    pub fn kind(&self) -> ReftKind {
        self.kind
    }

    /// The function `f`.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// `R` or `P`, `[d, rank]`.
    fn directions(&self) -> Tensor<B, 2> {
        match (&self.rotation, &self.projection) {
            (Some(rotation), _) => rotation.matrix(),
            (None, Some(projection)) => projection.val(),
            (None, None) => unreachable!("every kind has one of them"),
        }
    }
}

impl<B: Backend> Operation<B> for Reft<B> {
    fn width(&self) -> Option<usize> {
        let [d, _rank] = match (&self.rotation, &self.projection) {
            (Some(rotation), _) => rotation.dims(),
            (None, Some(projection)) => projection.dims(),
            (None, None) => unreachable!("every kind has one of them"),
        };
        Some(d)
    }

    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        let base = features.base();
        let directions = self.directions();
        let x = TokenGrouping::Each.join(base.clone());
        let mut new: Tensor<B, 2> = self.bias.val().unsqueeze();
        if let Some(weight) = &self.weight {
            new = self
                .activation
                .forward(x.clone().matmul(weight.val()) + new);
        }
        if self.kind.replaces() {
            let mut old = x.clone().matmul(directions.clone());
            if let Some(bias) = &self.projection_bias {
                old = old + bias.val().unsqueeze();
            }
            new = new - old;
        }
        let [vectors, _d] = x.dims();
        let [_one, rank] = new.dims();
        let change = new.expand([vectors, rank]).matmul(directions.transpose());
        Change::Difference(TokenGrouping::Each.split(&base, change))
    }

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        self.rotation.iter_mut().collect()
    }
}

impl<B: Backend> Part<B> for Reft<B> {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        out.field("member", self.kind);
        out.field("map", None::<()>);
        out.field("projection_bias", self.projection_bias.is_some());
        out.field("activation", self.activation.to_string());
        if let Some(rotation) = &self.rotation {
            out.rotation(rotation)?;
        }
        if let Some(projection) = &self.projection {
            out.tensor("projection", projection)?;
        }
        if let Some(bias) = &self.projection_bias {
            out.tensor("projection_bias", bias)?;
        }
        if let Some(weight) = &self.weight {
            out.tensor("weight", weight)?;
        }
        out.tensor("bias", &self.bias)
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        let kind: ReftKind = from.field("member")?;
        let projection_bias: bool = from.field("projection_bias")?;
        let activation: String = from.field("activation")?;
        let activation: Activation = activation
            .parse()
            .map_err(|error| PartError::Description(format!("activation: {error}")))?;
        let map = from.fields.get("map").filter(|map| !map.is_null());
        let (rotation, projection, [d, rank]) = match (map, kind.is_orthonormal()) {
            (Some(_), true) => {
                let rotation = from.rotation()?;
                let dims = rotation.dims();
                (Some(rotation), None, dims)
            }
            (None, false) => {
                from.fields.remove("map");
                let projection = from.tensor("projection", [None, None])?;
                let dims = projection.dims();
                (None, Some(projection), dims)
            }
            (found, orthonormal) => {
                return Err(PartError::Description(format!(
                    "map: expected {}, found {}",
                    if orthonormal {
                        "that of the rotation"
                    } else {
                        "null: the directions of this member are free"
                    },
                    found.map_or("null".to_owned(), ToString::to_string)
                )));
            }
        };
        if projection_bias && kind.is_orthonormal() {
            return Err(PartError::Description(
                "projection_bias: expected false for a member with a rotation, found true"
                    .to_owned(),
            ));
        }
        let parts = ReftParts {
            rotation,
            projection,
            projection_bias: match projection_bias {
                true => Some(from.tensor("projection_bias", [Some(rank)])?),
                false => None,
            },
            weight: match kind.is_constant() {
                true => None,
                false => Some(from.tensor("weight", [Some(d), Some(rank)])?),
            },
            bias: from.tensor("bias", [Some(rank)])?,
        };
        Ok(Self::from_parts(kind, parts).with_activation(activation))
    }
}
