//! Values equal those of the Python package `gguf`, to the bit.

use std::path::Path;

use burn::tensor::f16;
use serde_json::Value;

use super::{
    BlockFormat, LANES, Lanes, OnPanels, PanelFormat, QuantizedMatrix, QuantizedMatrixError,
    dequantize, floats,
};

/// The fixture written by `tests/fixtures/make_quants.py`: the bytes of a tensor by its name.
struct Fixture {
    header: Value,
    data: Vec<u8>,
}

impl Fixture {
    fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let mut bytes = std::fs::read(folder.join("quants.safetensors")).expect("a fixture");
        let data = bytes.split_off(8);
        let length = u64::from_le_bytes(*bytes.first_chunk().expect("eight bytes")) as usize;
        let header = serde_json::from_slice(&data[..length]).expect("a header");
        let data = data[length..].to_vec();
        Self { header, data }
    }

    fn bytes(&self, name: &str) -> &[u8] {
        let range = &self.header[name]["data_offsets"];
        let place = |index: usize| range[index].as_u64().expect("an offset") as usize;
        &self.data[place(0)..place(1)]
    }
}

#[test]
fn values_are_those_of_the_gguf_package() {
    let fixture = Fixture::read();
    for format in BlockFormat::ALL {
        let blocks = fixture.bytes(&format!("{format}.blocks"));
        let values = fixture.bytes(&format!("{format}.values")).as_chunks().0;
        let expected: Vec<f32> = values.iter().map(|it| f32::from_le_bytes(*it)).collect();
        assert!(expected.len() >= 2 * format.block_elements());
        let mut found = vec![f32::NAN; expected.len()];
        dequantize(*format, blocks, &mut found);
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(
                found.to_bits(),
                expected.to_bits(),
                "{format}, element {index}: {found} {expected}"
            );
        }
    }
}

#[test]
fn every_half_is_widened_as_the_crate_half_does() {
    for bits in 0..=u16::MAX {
        let (found, expected) = (floats::widen_f16(bits), f16::from_bits(bits).to_f32());
        let equal = found.to_bits() == expected.to_bits();
        assert!(equal || found.is_nan() && expected.is_nan(), "{bits:#x}");
    }
}

#[test]
fn formats_have_the_numbers_and_sizes_of_ggml() {
    let fixture = Fixture::read();
    let metadata = &fixture.header["__metadata__"];
    for format in BlockFormat::ALL {
        let sizes = [
            format.ggml_type() as usize,
            format.block_elements(),
            format.block_bytes(),
        ];
        assert_eq!(metadata[format.name()], format!("{sizes:?}"));
        assert_eq!(
            BlockFormat::from_ggml_type(format.ggml_type()),
            Some(*format)
        );
    }
    // IQ2_XXS, F64 and numbers unknown to ggml.
    for number in [16, 28, 4, 1000] {
        assert_eq!(BlockFormat::from_ggml_type(number), None);
    }
    assert_eq!(BlockFormat::Q6_K.row_bytes(512), Some(420));
    assert_eq!(BlockFormat::Q6_K.row_bytes(576), None);
    assert_eq!(BlockFormat::F32.row_bytes(usize::MAX), None);
}

/// A matrix of different blocks. The bits that are never set keep the scales small.
fn any_matrix(format: BlockFormat, [rows, cols]: [usize; 2]) -> QuantizedMatrix {
    let length = rows * format.row_bytes(cols).expect("whole blocks");
    let bytes: Vec<u8> = (0..length as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 17) as u8 & 0xb7)
        .collect();
    QuantizedMatrix::new(format, [rows, cols], bytes).expect("as many bytes")
}

#[test]
fn parts_of_a_matrix_are_parts_of_its_values() {
    let formats = BlockFormat::ALL.iter();
    for (format, in_panels) in formats.flat_map(|it| [(it, false), (it, true)]) {
        let [rows, cols] = [7, 3 * format.block_elements().max(32)];
        let matrix = any_matrix(*format, [rows, cols]);
        let all = matrix.dequantize();
        let matrix = match in_panels {
            true => matrix.in_panels(),
            false => matrix,
        };
        assert_eq!(matrix.dequantize(), all, "{format}");
        assert!(all.iter().any(|it| *it != 0.0) && all.iter().all(|it| it.is_finite()));
        let expected = |rows: &[usize], cols: std::ops::Range<usize>| -> Vec<f32> {
            let rows = rows.iter().map(|row| &all[row * matrix.dims()[1]..]);
            rows.flat_map(|row| row[cols.clone()].to_vec()).collect()
        };
        for part in [0..cols, 0..cols - 1, 1..cols, 31..33, 5..5, cols / 3..cols] {
            let found = matrix.rows(1..5).rows(1..3).cols(part.clone());
            assert_eq!(found.dims(), [2, part.len()]);
            assert_eq!(
                found.dequantize(),
                expected(&[2, 3], part.clone()),
                "{format}"
            );
            let found = matrix.cols(part.clone()).select_rows(&[6, 0, 6]);
            assert_eq!(found.dequantize(), expected(&[6, 0, 6], part), "{format}");
        }
        let found = matrix.cols(2..20).cols(3..9);
        assert_eq!(found.rows(4..5).dequantize(), expected(&[4], 5..11));
    }
}

#[test]
fn bytes_that_are_no_such_matrix_are_refused() {
    let new = |shape, bytes: usize| QuantizedMatrix::new(BlockFormat::Q4_1, shape, vec![0; bytes]);
    assert_eq!(new([3, 64], 120).expect("as many bytes").dims(), [3, 64]);
    assert_eq!(new([0, 64], 0).expect("as many bytes").dims(), [0, 64]);
    let partial = new([3, 33], 120).expect_err("33 is no multiple of 32");
    assert_eq!(
        partial.to_string(),
        "rows of 33 elements are not whole blocks of Q4_1, of 32 elements each; \
         store the matrix in a format with shorter blocks, such as Q8_0"
    );
    for (shape, bytes) in [([3, 64], 119), ([3, 64], 140), ([usize::MAX, 64], 120)] {
        let error = new(shape, bytes).expect_err("another length");
        assert!(
            matches!(error, QuantizedMatrixError::WrongLength { .. }),
            "{error}"
        );
    }
}

/// Widens the first blocks of a panel through its format.
struct Widened<'a>(&'a [u8]);

impl OnPanels for Widened<'_> {
    type Output = Vec<Lanes<f32>>;

    fn with<F: PanelFormat<BYTES, WORDS>, const BYTES: usize, const WORDS: usize>(
        self,
    ) -> Self::Output {
        let panel = self.0.first_chunk().expect("a panel");
        let mut all = Vec::new();
        for group in 0..F::ELEMENTS / F::GROUP {
            let (scales, words) = (F::scales(panel, group), F::words(panel, group));
            for k in (0..F::GROUP).step_by(4) {
                let integers = F::integers(&words, group, k);
                all.extend(integers.map(|it| F::elements(it, &scales)));
            }
        }
        all
    }
}

#[test]
fn panels_hold_the_elements_of_sixteen_rows() {
    let mut formats = 0;
    for format in BlockFormat::ALL {
        let elements = format.block_elements();
        let [rows, cols] = [2 * LANES + 3, 2 * elements];
        let matrix = any_matrix(*format, [rows, cols]);
        let all = matrix.dequantize();
        let in_panels = matrix.in_panels();
        if in_panels.elements().panels().is_none() {
            assert!(format.on_panels(Widened(&[])).is_none());
            continue;
        }
        formats += 1;
        for (first, col) in [(0, 0), (0, elements + 3), (LANES, elements), (2 * LANES, 9)] {
            let part = in_panels.rows(first..rows).cols(col..cols);
            let panels = part.elements().panels().expect("a panel begins here");
            assert_eq!(panels.skip, col % elements);
            let col = col - panels.skip;
            let found = format.on_panels(Widened(panels.bytes)).expect("as above");
            assert_eq!(found.len(), elements);
            for (k, found) in found.iter().enumerate() {
                for lane in 0..LANES.min(rows - first) {
                    let expected = all[(first + lane) * cols + col + k];
                    let place = format!("{format}, row {}, column {}", first + lane, col + k);
                    assert_eq!(found[lane].to_bits(), expected.to_bits(), "{place}");
                }
            }
        }
        for first in [1, LANES - 1] {
            assert!(in_panels.rows(first..rows).elements().panels().is_none());
        }
    }
    assert_eq!(formats, 8);
}
