//! Tables for the terminal.

use burn_align::methods::Grid;
use comfy_table::{CellAlignment, Table, presets};

use crate::scale::Scale;

/// A table with these headers.
pub fn table<T: Into<String>>(headers: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(headers.into_iter().map(Into::into).collect::<Vec<String>>());
    table
}

/// Aligns all columns but the first on the right, as for numbers.
pub fn align_numbers(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// A grid of numbers as text, darker where the number is larger. If some are negative, 0 is empty
/// and both ends are strong, the negative one in line characters: `█` is as far above 0 as `#` is
/// below.
pub fn heat_map_text(grid: &Grid) -> Table {
    let scale = Scale::new(grid.range().unwrap_or_default());
    let shade = |value: f64| {
        const ABOVE: [&str; 5] = [" ", "░", "▒", "▓", "█"];
        const BELOW: [&str; 5] = [" ", "-", "=", "≡", "#"];
        let shade = scale.shade(value);
        let shades = if shade < 0.0 { BELOW } else { ABOVE };
        shades[(shade.abs() * (shades.len() - 1) as f64).round() as usize]
    };
    let mut table = table(
        [String::new()]
            .into_iter()
            .chain(grid.columns.iter().cloned()),
    );
    for (row, values) in grid.rows.iter().zip(&grid.values) {
        let cells = values
            .iter()
            .map(|value| format!("{} {value:.4}", shade(*value)));
        table.add_row([row.clone()].into_iter().chain(cells));
    }
    align_numbers(&mut table);
    table
}
