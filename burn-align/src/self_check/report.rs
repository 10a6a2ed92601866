//! What a self-check found.

use std::fmt;

use burn::tensor::DType;
use serde::{Deserialize, Serialize};

use super::known::{KnownFault, known};
use super::operation::Operation;

/// What a self-check found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The checks, in the order in which they ran.
    pub checks: Vec<Check>,
}

/// One operation at some sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The operation.
    pub operation: Operation,
    /// The shapes of its operands.
    pub sizes: Vec<Vec<usize>>,
    /// The dtype that the check was made for. Some operands may be in another one.
    pub dtype: DType,
    /// How far the result is from the exact one.
    pub finding: Finding,
}

/// How far a result is from the exact one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// As close as rounding allows.
    Right {
        /// The largest difference, relative to the largest value.
        error: f64,
    },
    /// Further away.
    Wrong {
        /// The largest difference, relative to the largest value.
        error: f64,
        /// What rounding would explain.
        allowed: f64,
    },
    /// Values that are not finite where finite ones are right.
    NotFinite {
        /// How many.
        count: usize,
        /// Of how many.
        of: usize,
    },
    /// The backend failed or panicked.
    Stopped {
        /// What it said.
        reason: String,
    },
}

impl Finding {
    /// Judges values by the exact ones.
    ///
    /// - found: the values, or why there are none
    /// - allowed: the largest difference that rounding explains, relative to the largest value
    pub(super) fn of(found: Result<Vec<f64>, String>, expected: &[f64], allowed: f64) -> Self {
        let found = match found {
            Ok(found) => found,
            Err(reason) => return Self::Stopped { reason },
        };
        if found.len() != expected.len() {
            let (expected, found) = (expected.len(), found.len());
            let reason = format!("expected {expected} values, found {found}");
            return Self::Stopped { reason };
        }
        let count = found.iter().filter(|value| !value.is_finite()).count();
        if count > 0 {
            let of = found.len();
            return Self::NotFinite { count, of };
        }
        let largest = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
        let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
        let difference = differences.fold(0.0, f64::max);
        let error = match largest > 0.0 {
            true => difference / largest,
            false => difference,
        };
        match error <= allowed {
            true => Self::Right { error },
            false => Self::Wrong { error, allowed },
        }
    }

    /// Whether the result is right.
    pub fn is_right(&self) -> bool {
        matches!(self, Self::Right { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right { error } => write!(f, "right to {error:.1e} of the largest value"),
            Self::Wrong { error, allowed } => write!(
                f,
                "off by {error:.1e} of the largest value, where rounding explains {allowed:.1e}"
            ),
            Self::NotFinite { count, of } => write!(f, "{count} of {of} values are not finite"),
            Self::Stopped { reason } => write!(f, "the backend stopped: {reason}"),
        }
    }
}

impl Check {
    /// Faults that others have reported at such sizes. They are possible causes: a check that fails
    /// may have another one.
    pub fn known_faults(&self) -> Vec<KnownFault> {
        known(self.operation, &self.sizes)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.sizes.iter().map(|size| format!("{size:?}")).collect();
        let (operation, sizes) = (self.operation, sizes.join(" × "));
        write!(
            f,
            "{operation}, {sizes} in {}: {}",
            self.dtype.name(),
            self.finding
        )
    }
}

impl Report {
    /// Whether all results are right.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The checks whose results are not right.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.finding.is_right())
    }

    /// These checks, and those of another report after them.
    pub fn and(mut self, other: Self) -> Self {
        self.checks.extend(other.checks);
        self
    }

    /// The largest error of the matrix products in f32 that are right, relative to the largest
    /// value of a product; `None` without any. About 1e-6 where products are computed in f32, and
    /// 5e-4 where their factors are rounded to TF32.
    pub fn f32_product_error(&self) -> Option<f64> {
        let products = self
            .checks
            .iter()
            .filter(|check| check.operation.is_product() && check.dtype == DType::F32);
        let errors = products.filter_map(|check| match check.finding {
            Finding::Right { error } => Some(error),
            _ => None,
        });
        errors.reduce(f64::max)
    }
}

/// The number of checks; what failed, with up to three sizes of each operation and the reports that
/// may explain them; and whether products in f32 are less precise than f32.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        const PRECISE: f64 = 5e-5;
        let failures: Vec<&Check> = self.failures().collect();
        match failures.len() {
            0 => write!(f, "all {} checks passed", self.checks.len())?,
            failed => write!(f, "{failed} of {} checks failed", self.checks.len())?,
        }
        let mut operations: Vec<Operation> = failures.iter().map(|it| it.operation).collect();
        operations.sort();
        operations.dedup();
        for operation in operations {
            let of_operation = failures.iter().filter(|it| it.operation == operation);
            let of_operation: Vec<&&Check> = of_operation.collect();
            for check in of_operation.iter().take(SHOWN) {
                write!(f, "\n  {check}")?;
            }
            if of_operation.len() > SHOWN {
                write!(f, "\n  … and at {} more sizes", of_operation.len() - SHOWN)?;
            }
            let mut faults: Vec<KnownFault> = Vec::new();
            for fault in of_operation.iter().flat_map(|check| check.known_faults()) {
                if !faults.contains(&fault) {
                    faults.push(fault);
                }
            }
            for fault in faults {
                write!(f, "\n    reported: {} ({})", fault.reports, fault.condition)?;
            }
        }
        match self.f32_product_error() {
            Some(error) if error > PRECISE => write!(
                f,
                "\n  note: matrix products in f32 are only right to {error:.0e}, as if their \
                 factors were rounded to 11 bits (TF32)"
            ),
            _ => Ok(()),
        }
    }
}
