//! Tables for the terminal.

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
