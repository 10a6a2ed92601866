//! Values equal those of the Python package `gguf`, to the bit.

use std::path::Path;

use burn::tensor::f16;
use serde_json::Value;

use super::{BlockFormat, dequantize, floats};

/// What `tests/fixtures/make_quants.py` wrote: the bytes of a tensor by its name.
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
    // IQ2_XXS, F64 and numbers that ggml does not know.
    for number in [16, 28, 4, 1000] {
        assert_eq!(BlockFormat::from_ggml_type(number), None);
    }
    assert_eq!(BlockFormat::Q6_K.row_bytes(512), Some(420));
    assert_eq!(BlockFormat::Q6_K.row_bytes(576), None);
    assert_eq!(BlockFormat::F32.row_bytes(usize::MAX), None);
}
