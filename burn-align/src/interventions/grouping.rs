//! How tokens become the vectors that interventions with parameters act on.

use burn::tensor::{DType, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

/// Which tokens an intervention with parameters treats as one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenGrouping {
    /// Every token is its own vector; all are treated alike.
    #[default]
    #[doc(alias = "keep_last_dim")]
    Each,
    /// This many tokens are concatenated into one vector.
    #[doc(alias = "max_number_of_units")]
    Joint(usize),
}

/// Why an intervention cannot act on some units.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {} of {d_site} features", counted(*units, "unit"))]
pub struct Misfit {
    /// What the intervention takes.
    pub expected: String,
    /// Number of units.
    pub units: usize,
    /// Features of a unit.
    pub d_site: usize,
}

impl TokenGrouping {
    /// Checks that these units form vectors of `width` features.
    pub(super) fn check(self, width: usize, units: usize, d_site: usize) -> Result<(), Misfit> {
        let size = self.size();
        if (self == Self::Each || units == size) && d_site * size == width {
            return Ok(());
        }
        let expected = match self {
            Self::Each => format!("units of {width} features"),
            Self::Joint(_) => format!(
                "{} of {width} features in all, as one vector (to treat any number of units one by \
                 one, group tokens as TokenGrouping::Each, which is keep_last_dim)",
                counted(size, "unit")
            ),
        };
        Err(Misfit {
            expected,
            units,
            d_site,
        })
    }

    /// The number of vectors that these units form.
    pub(super) fn vectors(self, units: usize) -> usize {
        units / self.size()
    }

    fn size(self) -> usize {
        match self {
            Self::Each => 1,
            Self::Joint(size) => size.max(1),
        }
    }

    /// `[batch, unit, d_site]` → `[batch * group, group size * d_site]`, in f32.
    pub(super) fn join<B: Backend>(self, x: Tensor<B, 3>) -> Tensor<B, 2> {
        let [batch, units, d_site] = x.dims();
        let size = self.size();
        x.cast(DType::F32)
            .reshape([batch * units / size, size * d_site])
    }

    /// Adds a change to an activation in the activation's dtype, so that unchanged features are not
    /// rounded.
    pub(super) fn add<B: Backend>(self, base: Tensor<B, 3>, change: Tensor<B, 2>) -> Tensor<B, 3> {
        let (shape, dtype) = (base.dims(), base.dtype());
        base + change.reshape(shape).cast(dtype)
    }

    /// Replaces an activation with these vectors, in the activation's dtype.
    pub(super) fn split<B: Backend>(self, base: &Tensor<B, 3>, new: Tensor<B, 2>) -> Tensor<B, 3> {
        new.reshape(base.dims()).cast(base.dtype())
    }
}

/// "1 unit", "2 units".
pub(crate) fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}
