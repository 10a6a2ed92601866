//! What featurizers, operations and masks have in common: a table of those that come with the
//! crate, and how each is saved.

use burn::module::Param;
use burn::tensor::{DType, Tensor, backend::Backend};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Orthonormal, OrthonormalMap};
use crate::saved::{FileError, LoadInterventionsError, SaveInterventionsError, Tensors};

/// A part of an intervention that can be saved: a few fields of JSON, and tensors.
pub(crate) trait Part<B: Backend>: Sized {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError>;

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError>;
}

/// An enum of the parts of a kind, a row for each: its module, its type, and the name under which
/// it is saved. The types are made public.
///
/// A macro `each!(part, it => …)` makes the same call on whichever part it is.
macro_rules! table {
    (
        ($d:tt)
        $(#[$doc:meta])*
        $name:ident $what:literal {
            $($module:ident::$part:ident $(<$b:ident>)? => $kind:literal,)*
        }
    ) => {
        $(pub use self::$module::$part;)*

        $(#[$doc])*
        #[derive(burn::module::Module, Debug)]
        #[non_exhaustive]
        pub enum $name<B: burn::tensor::backend::Backend> {
            $(
                #[doc = concat!("[`", stringify!($part), "`].")]
                $part($part $(<$b>)?),
            )*
        }

        macro_rules! each {
            ($d self:expr, $d it:ident => $d call:expr) => {
                match $d self {
                    $($name::$part($d it) => $d call,)*
                }
            };
        }

        $(
            impl<B: burn::tensor::backend::Backend> From<$part $(<$b>)?> for $name<B> {
                fn from(part: $part $(<$b>)?) -> Self {
                    Self::$part(part)
                }
            }
        )*

        impl<B: burn::tensor::backend::Backend> $name<B> {
            /// The name under which it is saved.
            pub(crate) fn kind(&self) -> &'static str {
                match self {
                    $(Self::$part(_) => $kind,)*
                }
            }

            pub(crate) fn store(
                &self,
                out: &mut $crate::interventions::parts::Writer<'_>,
            ) -> Result<(), $crate::saved::SaveInterventionsError> {
                each!(self, it => $crate::interventions::parts::Part::<B>::store(it, out))
            }

            /// The part that is saved under this name.
            pub(crate) fn restore(
                kind: &str,
                from: &mut $crate::interventions::parts::Reader<'_, B>,
            ) -> Result<Self, $crate::interventions::parts::PartError> {
                use $crate::interventions::parts::{Part, PartError};
                match kind {
                    $($kind => Ok(<$part $(<$b>)? as Part<B>>::restore(from)?.into()),)*
                    other => Err(PartError::Description(format!(
                        concat!($what, ": unknown variant `{}`, expected one of {}"),
                        other,
                        [$($kind),*].join(", "),
                    ))),
                }
            }
        }
    };
}
pub(super) use table;

/// A part that is saved as a few public numbers.
macro_rules! saved_as_numbers {
    ($($part:ident { $($number:ident),* })*) => {$(
        impl<B: burn::tensor::backend::Backend> $crate::interventions::parts::Part<B> for $part {
            fn store(
                &self,
                _out: &mut $crate::interventions::parts::Writer<'_>,
            ) -> Result<(), $crate::saved::SaveInterventionsError> {
                $(_out.number(stringify!($number), self.$number);)*
                Ok(())
            }

            fn restore(
                _from: &mut $crate::interventions::parts::Reader<'_, B>,
            ) -> Result<Self, $crate::interventions::parts::PartError> {
                Ok(Self { $($number: _from.number(stringify!($number))?,)* })
            }
        }
    )*};
}
pub(super) use saved_as_numbers;

/// Why a part cannot be restored.
#[derive(Debug)]
pub(crate) enum PartError {
    /// What is wrong with the description.
    Description(String),
    /// What is wrong with the tensors.
    Load(LoadInterventionsError),
}

impl From<FileError> for PartError {
    fn from(error: FileError) -> Self {
        Self::Load(error.into())
    }
}

/// Other names of tensors: in the part, and in the file.
pub(crate) type Renamed = &'static [(&'static str, &'static str)];

fn in_file(prefix: &str, renamed: Renamed, name: &str) -> String {
    let other = renamed.iter().find(|(part, _)| *part == name);
    format!("{prefix}.{}", other.map_or(name, |(_, file)| file))
}

/// The tensors of a file to write, by name: shape and f32 bytes.
pub(crate) type StoredTensors = std::collections::BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// Takes the fields and tensors of a part.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    pub(crate) fields: &'a mut Map<String, Value>,
    pub(crate) tensors: &'a mut StoredTensors,
    pub(crate) prefix: String,
    pub(crate) renamed: Renamed,
    /// The number of features, if the featurizer gives it.
    pub(crate) features: Option<usize>,
    /// The index of the intervention.
    pub(crate) index: usize,
}

impl Writer<'_> {
    pub(crate) fn field(&mut self, name: &str, value: impl Serialize) {
        let value = serde_json::to_value(value).expect("numbers, names and lists of them");
        self.fields.insert(name.to_owned(), value);
    }

    pub(crate) fn number(&mut self, name: &str, value: f64) {
        self.field(name, Number::from(value));
    }

    pub(crate) fn tensor<B: Backend, const D: usize>(
        &mut self,
        name: &str,
        tensor: &Param<Tensor<B, D>>,
    ) -> Result<(), SaveInterventionsError> {
        let name = in_file(&self.prefix, self.renamed, name);
        let tensor = tensor.val().detach();
        let failed = |tensor: &str, found: String| SaveInterventionsError::Tensor {
            tensor: tensor.to_owned(),
            found,
        };
        match tensor.dtype() {
            DType::F32 | DType::F16 | DType::BF16 | DType::Flex32 => {}
            other => return Err(failed(&name, format!("{other:?}"))),
        }
        let data = tensor.cast(DType::F32).try_into_data();
        let data = data.map_err(|error| failed(&name, error.to_string()))?;
        let shape = data.shape.to_vec();
        let bytes = data.iter::<f32>().flat_map(f32::to_le_bytes).collect();
        self.tensors.insert(name, (shape, bytes));
        Ok(())
    }

    /// A matrix, with its map.
    pub(crate) fn rotation<B: Backend>(
        &mut self,
        rotation: &Orthonormal<B>,
    ) -> Result<(), SaveInterventionsError> {
        self.field("map", rotation.map());
        self.tensor("rotation.parameter", &rotation.parameter)?;
        match &rotation.base {
            Some(base) => self.tensor("rotation.base", base),
            None => Ok(()),
        }
    }
}

/// Takes a field; it may be missing if it may be `null`.
pub(crate) fn field<T: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    name: &str,
) -> Result<T, PartError> {
    let found = fields.remove(name);
    let missing = found.is_none();
    serde_json::from_value(found.unwrap_or(Value::Null)).map_err(|error| {
        PartError::Description(match missing {
            true => format!("missing field `{name}`"),
            false => format!("{name}: {error}"),
        })
    })
}

/// Gives the fields and tensors of a part.
#[derive(Debug)]
pub(crate) struct Reader<'a, B: Backend> {
    pub(crate) fields: &'a mut Map<String, Value>,
    pub(crate) tensors: &'a mut Tensors,
    pub(crate) prefix: String,
    pub(crate) renamed: Renamed,
    /// The number of features, if the featurizer gives it.
    pub(crate) features: Option<usize>,
    pub(crate) device: &'a B::Device,
}

impl<B: Backend> Reader<'_, B> {
    /// A field; it may be missing if it may be `null`.
    pub(crate) fn field<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, PartError> {
        field(self.fields, name)
    }

    pub(crate) fn number(&mut self, name: &str) -> Result<f64, PartError> {
        Ok(self.field::<Number>(name)?.into())
    }

    /// Sizes that are `None` may be any.
    pub(crate) fn tensor<const D: usize>(
        &mut self,
        name: &str,
        expected: [Option<usize>; D],
    ) -> Result<Tensor<B, D>, PartError> {
        let name = in_file(&self.prefix, self.renamed, name);
        Ok(self.tensors.tensor(&name, expected, self.device)?)
    }

    /// A matrix with orthonormal columns that stays as it is.
    pub(crate) fn directions(&mut self, name: &str) -> Result<Tensor<B, 2>, PartError> {
        /// Of products of columns; columns rounded to f16 are within it.
        const TOLERANCE: f64 = 1e-3;
        let name = in_file(&self.prefix, self.renamed, name);
        // The largest of numbers that are not all finite depends on the backend.
        let is_finite = self.tensors.is_finite(&name);
        let map = |_| OrthonormalMap::Retraction;
        let names = [name.as_str(), ""];
        let directions = (self.tensors).orthonormal(names, [None, None], map, self.device)?;
        let deviation = match is_finite {
            true => directions.deviation(),
            false => f64::INFINITY,
        };
        match deviation <= TOLERANCE {
            true => Ok(directions.matrix()),
            false => Err(PartError::Load(LoadInterventionsError::NotOrthonormal {
                file: self.tensors.file.clone(),
                tensor: name,
                deviation,
            })),
        }
    }

    /// A matrix, with its map.
    pub(crate) fn rotation(&mut self) -> Result<Orthonormal<B>, PartError> {
        let map: OrthonormalMap = self.field("map")?;
        let names = ["parameter", "base"]
            .map(|name| in_file(&self.prefix, self.renamed, &format!("rotation.{name}")));
        let names = [names[0].as_str(), names[1].as_str()];
        let device = self.device;
        let map = |_| map;
        Ok(self.tensors.orthonormal(names, [None, None], map, device)?)
    }
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
