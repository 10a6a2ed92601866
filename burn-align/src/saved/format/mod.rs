//! This crate's own format: a JSON description of each intervention, next to a file of tensors.

mod read;
mod write;

use serde::{Deserialize, Serialize};

use crate::interventions::{OrthonormalMap, ReftKind, SourceOperation, TokenGrouping};

pub(super) use read::load;
pub(super) use write::save;

const TENSORS: &str = "interventions.safetensors";
const INTERVENTIONS: &str = "interventions";
const WIDTHS: &str = "changed_features";

/// The description of an intervention, apart from its tensors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Description {
    Vanilla {},
    Addition {},
    Subtraction {},
    Fill {
        value: Number,
    },
    Scaling {
        factor: Number,
    },
    Noise {
        level: Number,
        seed: u64,
    },
    ConstantSource {
        operation: Operation,
    },
    RotatedSpace {
        map: MapName,
        tokens: Tokens,
        swapped: usize,
    },
    BoundlessRotatedSpace {
        map: MapName,
        tokens: Tokens,
        temperature: Number,
    },
    SigmoidMaskRotatedSpace {
        map: MapName,
        tokens: Tokens,
        temperature: Number,
    },
    SigmoidMask {
        tokens: Tokens,
        temperature: Number,
    },
    Pca {
        tokens: Tokens,
    },
    Autoencoder {
        tokens: Tokens,
        swapped: Option<Vec<usize>>,
    },
    JumpReluAutoencoder {
        tokens: Tokens,
        swapped: Option<Vec<usize>>,
    },
    Reft {
        member: Member,
        /// For members with orthonormal directions.
        map: Option<MapName>,
        /// Whether there is a bias after the projection.
        projection_bias: bool,
        activation: String,
    },
}

/// A float. JSON has no infinities.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, `inf`, `-inf` or `nan`")]
enum Number {
    Finite(f64),
    Other(Infinite),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Infinite {
    #[serde(rename = "inf")]
    Infinity,
    #[serde(rename = "-inf")]
    NegativeInfinity,
    #[serde(rename = "nan")]
    Nan,
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        match value {
            f64::INFINITY => Self::Other(Infinite::Infinity),
            f64::NEG_INFINITY => Self::Other(Infinite::NegativeInfinity),
            nan if nan.is_nan() => Self::Other(Infinite::Nan),
            finite => Self::Finite(finite),
        }
    }
}

impl From<Number> for f64 {
    fn from(number: Number) -> Self {
        match number {
            Number::Finite(value) => value,
            Number::Other(Infinite::Infinity) => Self::INFINITY,
            Number::Other(Infinite::NegativeInfinity) => Self::NEG_INFINITY,
            Number::Other(Infinite::Nan) => Self::NAN,
        }
    }
}

/// Conversions between a type and the same names in snake case.
macro_rules! names {
    ($name:ident = $type:ty { $($variant:ident,)* }) => {
        #[derive(Clone, Copy, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[allow(clippy::enum_variant_names)]
        enum $name {
            $($variant,)*
        }

        impl From<$type> for $name {
            fn from(value: $type) -> Self {
                match value {
                    $(<$type>::$variant => Self::$variant,)*
                }
            }
        }

        impl From<$name> for $type {
            fn from(value: $name) -> Self {
                match value {
                    $($name::$variant => Self::$variant,)*
                }
            }
        }
    };
}

names!(
    MapName = OrthonormalMap {
        Retraction,
        MatrixExponential,
        Cayley,
        Householder,
    }
);
names!(
    Operation = SourceOperation {
        Swap,
        Add,
        Subtract,
    }
);
names!(
    Member = ReftKind {
        LoReft,
        NoReft,
        ConsReft,
        LobiReft,
        DiReft,
        NodiReft,
    }
);

/// `"each"`, or `{"joint": units}`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tokens {
    Each,
    Joint(usize),
}

impl From<TokenGrouping> for Tokens {
    fn from(tokens: TokenGrouping) -> Self {
        match tokens {
            TokenGrouping::Each => Self::Each,
            TokenGrouping::Joint(units) => Self::Joint(units),
        }
    }
}

impl From<Tokens> for TokenGrouping {
    fn from(tokens: Tokens) -> Self {
        match tokens {
            Tokens::Each => Self::Each,
            Tokens::Joint(units) => Self::Joint(units),
        }
    }
}
