//! What path patching measures.

use serde::{Deserialize, Serialize};

use crate::methods::Grid;

/// What base, source and each patched run predict: a metric, averaged over examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathEffects {
    /// For the base.
    pub base: f64,
    /// For the source.
    pub source: f64,
    /// For the base under each patch.
    pub patched: Vec<f64>,
}

impl PathEffects {
    /// For each patch, the share of the way from base to source that it goes:
    /// `(patched - base) / (source - base)`.
    pub fn shares(&self) -> Vec<f64> {
        let way = self.source - self.base;
        let patched = self.patched.iter();
        patched.map(|patched| (patched - self.base) / way).collect()
    }

    /// Arranges the patches in rows and columns with these labels.
    pub(super) fn into_grid(self, rows: Vec<String>, columns: Vec<String>) -> PathGrid {
        let width = columns.len().max(1);
        PathGrid {
            base: self.base,
            source: self.source,
            patched: Grid {
                values: self.patched.chunks(width).map(<[f64]>::to_vec).collect(),
                rows,
                columns,
            },
        }
    }
}

/// Like [`PathEffects`], over two labelled axes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathGrid {
    /// For the base.
    pub base: f64,
    /// For the source.
    pub source: f64,
    /// For the base under the patch of each cell; the base's value where there is no path.
    pub patched: Grid,
}

impl PathGrid {
    /// The share of the way from base to source that each patch goes:
    /// `(patched - base) / (source - base)`.
    pub fn shares(&self) -> Grid {
        self.map(|patched| (patched - self.base) / (self.source - self.base))
    }

    /// The change by each patch relative to the base, `(patched - base) / base`: Figure 3 of Wang
    /// et al.
    pub fn relative_changes(&self) -> Grid {
        self.map(|patched| (patched - self.base) / self.base)
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Grid {
        let rows = self.patched.values.iter();
        Grid {
            rows: self.patched.rows.clone(),
            columns: self.patched.columns.clone(),
            values: rows
                .map(|row| row.iter().map(|value| f(*value)).collect())
                .collect(),
        }
    }
}
