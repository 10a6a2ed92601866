//! A table of numbers with labelled axes.

use serde::{Deserialize, Serialize};

/// Numbers over two labelled axes: the result of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// Labels of the rows.
    pub rows: Vec<String>,
    /// Labels of the columns.
    pub columns: Vec<String>,
    /// `[row][column]`
    pub values: Vec<Vec<f64>>,
}

impl Grid {
    /// The cell with the largest value: row, column and value. `None` for a grid without numbers.
    pub fn max(&self) -> Option<(usize, usize, f64)> {
        let rows = self.values.iter().enumerate();
        let cells = rows.flat_map(|(row, values)| {
            let columns = values.iter().enumerate();
            columns.map(move |(column, value)| (row, column, *value))
        });
        cells
            .filter(|(_, _, value)| !value.is_nan())
            .max_by(|a, b| a.2.total_cmp(&b.2))
    }

    /// The smallest and the largest of the finite values. `None` if there are none.
    pub fn range(&self) -> Option<(f64, f64)> {
        let values = self.values.iter().flatten().copied();
        values
            .filter(|value| value.is_finite())
            .map(|value| (value, value))
            .reduce(|(low, high), (value, _)| (low.min(value), high.max(value)))
    }

    /// Comma-separated values, with the labels in the first line and the first column (RFC 4180).
    pub fn to_csv(&self) -> String {
        let quoted = |label: &String| format!("\"{}\"", label.replace('"', "\"\""));
        let mut csv = String::new();
        for column in &self.columns {
            csv.push(',');
            csv.push_str(&quoted(column));
        }
        csv.push_str("\r\n");
        for (row, values) in self.rows.iter().zip(&self.values) {
            csv.push_str(&quoted(row));
            for value in values {
                csv.push(',');
                csv.push_str(&value.to_string());
            }
            csv.push_str("\r\n");
        }
        csv
    }
}
