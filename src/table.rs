//! Tables for the terminal.

use burn_align::methods::Grid;
use comfy_table::{CellAlignment, Table, presets};

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

/// A grid of numbers as text, darker where the number is larger.
pub fn heat_map_text(grid: &Grid) -> Table {
    let (low, high) = grid.range().unwrap_or_default();
    let shade = |value: f64| {
        const SHADES: [&str; 5] = [" ", "░", "▒", "▓", "█"];
        let share = if high > low {
            ((value - low) / (high - low)).clamp(0.0, 1.0)
        } else {
            0.0
        };
        // A NaN is drawn as the lowest.
        SHADES[(share * (SHADES.len() - 1) as f64).round() as usize]
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
