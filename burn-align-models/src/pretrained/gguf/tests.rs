//! Valid headers, and many invalid ones.

use super::bytes::TensorBytes;
use super::part::Part;
use super::{GgmlType, GgufError, MetadataArray, MetadataValue};

/// Writes a file piece by piece.
#[derive(Clone, Default)]
struct Writer(Vec<u8>);

impl Writer {
    /// The magic bytes, version 3, and the numbers of tensors and keys that follow.
    fn header(tensors: u64, keys: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(tensors).u64(keys)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn text(self, text: &str) -> Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    /// A key, the number of its type, its bytes.
    fn key(self, key: &str, value_type: u32, value: &[u8]) -> Self {
        self.text(key).u32(value_type).bytes(value)
    }

    /// Dims in GGUF's order.
    fn tensor(self, name: &str, dims: &[u64], ggml_type: u32, offset: u64) -> Self {
        let start = self.text(name).u32(dims.len() as u32);
        let with_dims = dims.iter().fold(start, |writer, size| writer.u64(*size));
        with_dims.u32(ggml_type).u64(offset)
    }

    /// Zeros up to a multiple.
    fn pad(mut self, alignment: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(alignment), 0);
        self
    }

    fn read(self) -> Result<Part, GgufError> {
        Part::read(TensorBytes::from(self.0))
    }

    #[track_caller]
    fn refused(self, message: &str) {
        match self.read() {
            Ok(_) => panic!("read; expected: {message}"),
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(message), "{error}");
            }
        }
    }
}

/// An f32 matrix of 2 rows and 3 columns, and 32 elements in Q4_0.
fn two_tensors() -> Writer {
    Writer::header(2, 0)
        .tensor("a", &[3, 2], 0, 0)
        .tensor("b", &[32], 2, 32)
}

#[test]
fn tensors_are_where_the_header_says() {
    let data: Vec<u8> = (0..50).collect();
    let part = two_tensors().pad(32).bytes(&data).read().expect("a file");
    let [a, b] = part.tensors.try_into().expect("two tensors");
    assert_eq!((a.name.as_str(), &a.shape[..]), ("a", &[2, 3][..]));
    assert_eq!(a.ggml_type, GgmlType::F32);
    assert_eq!(a.bytes.as_ref(), &data[..24]);
    assert_eq!((b.name.as_str(), &b.shape[..]), ("b", &[32][..]));
    assert_eq!(b.ggml_type, GgmlType::Q4_0);
    assert_eq!(b.bytes.as_ref(), &data[32..]);
}

#[test]
fn the_alignment_is_read() {
    let header = Writer::header(1, 1).key("general.alignment", 4, &64_u32.to_le_bytes());
    let file = header.tensor("a", &[1], 24, 0).pad(64).bytes(&[7]);
    let part = file.read().expect("a file");
    assert_eq!(part.tensors[0].bytes.as_ref(), [7]);
    for wrong in [0_u32, 24] {
        let header = Writer::header(0, 1).key("general.alignment", 4, &wrong.to_le_bytes());
        header.refused("expected a power of two");
    }
    let header = Writer::header(1, 1).key("general.alignment", 4, &64_u32.to_le_bytes());
    header
        .tensor("a", &[1], 24, 32)
        .pad(64)
        .bytes(&[0; 64])
        .refused("a multiple of 64");
}

#[test]
fn all_kinds_of_values_are_read() {
    let values = [
        (0, MetadataValue::U8(200), vec![200]),
        (1, MetadataValue::I8(-2), vec![254]),
        (2, MetadataValue::U16(513), vec![1, 2]),
        (3, MetadataValue::I16(-2), vec![254, 255]),
        (4, MetadataValue::U32(1), vec![1, 0, 0, 0]),
        (5, MetadataValue::I32(-1), vec![255; 4]),
        (6, MetadataValue::F32(1.5), 1.5_f32.to_le_bytes().to_vec()),
        (7, MetadataValue::Bool(true), vec![1]),
        (10, MetadataValue::U64(u64::MAX), vec![255; 8]),
        (11, MetadataValue::I64(-1), vec![255; 8]),
        (
            12,
            MetadataValue::F64(-0.5),
            (-0.5_f64).to_le_bytes().to_vec(),
        ),
    ];
    for (number, value, bytes) in &values {
        let part = Writer::header(0, 1).key("k", *number, bytes).read();
        let part = part.expect("a value");
        assert_eq!(part.metadata.get("k"), Some(value));
    }
    // Arrays: the number of the element's type, the number of elements.
    for (number, _, bytes) in &values {
        let array = Writer::default()
            .u32(*number)
            .u64(2)
            .bytes(bytes)
            .bytes(bytes);
        let part = Writer::header(0, 1).key("k", 9, &array.0).read();
        match part.expect("an array").metadata.get("k") {
            Some(MetadataValue::Array(array)) => assert_eq!(array.len(), 2),
            other => panic!("{other:?}"),
        }
    }
    let texts = Writer::default().u32(8).u64(2).text("ä").text("");
    let part = Writer::header(0, 2)
        .key("k", 9, &texts.0)
        .text("t")
        .u32(8)
        .text("x");
    let part = part.read().expect("texts");
    assert_eq!(part.metadata.texts("k").unwrap().unwrap(), ["ä", ""]);
    assert_eq!(part.metadata.text("t").unwrap(), Some("x"));
    assert_eq!(part.metadata.text("absent").unwrap(), None);
    assert!(part.metadata.unsigned("t").is_err());
}

#[test]
fn integers_of_any_width_are_taken_by_value() {
    let keys = Writer::header(0, 3)
        .key("small", 0, &[7])
        .key("negative", 5, &[255; 4])
        .key(
            "array",
            9,
            &Writer::default().u32(3).u64(2).bytes(&[1, 0, 255, 255]).0,
        );
    let metadata = keys.read().expect("a file").metadata;
    assert_eq!(metadata.unsigned("small").unwrap(), Some(7));
    assert_eq!(metadata.float("negative").unwrap(), Some(-1.0));
    let error = metadata.unsigned("negative").unwrap_err().to_string();
    assert!(
        error.contains("`negative`") && error.ends_with("found -1"),
        "{error}"
    );
    assert_eq!(metadata.integers("array").unwrap(), Some(vec![1, -1]));
    assert!(metadata.floats("array").is_err());
}

#[test]
fn other_formats_are_refused_by_name() {
    let version = |version: u32| Writer(b"GGUF".to_vec()).u32(version).u64(0).u64(0);
    assert!(version(2).read().is_ok() && version(3).read().is_ok());
    version(1).refused("version 1");
    version(4).refused("version 4");
    version(3_u32.swap_bytes()).refused("big-endian");
    version(2_u32.swap_bytes()).refused("big-endian");
    Writer(b"FUGG".to_vec()).refused("big-endian");
    Writer(b"tjgg".to_vec()).refused("before GGUF");
    Writer(b"version https://git-lfs.github.com/spec/v1".to_vec()).refused("git lfs pull");
    Writer(b"PK\x03\x04".to_vec()).refused("`PK\\x03\\x04`");
    Writer(Vec::new()).refused("cut off");
}

#[test]
fn counts_that_cannot_be_are_refused() {
    for count in [1, 1 << 40, u64::MAX] {
        Writer::header(count, 0).refused("the number of tensors");
        Writer::header(0, count).refused("the number of metadata keys");
        let array = |element: u32| Writer::default().u32(element).u64(count).0;
        Writer::header(0, 1)
            .key("k", 9, &array(8))
            .refused("strings of a metadata array");
        Writer::header(0, 1)
            .key("k", 9, &array(10))
            .refused("elements of a metadata array");
    }
    let long = Writer::header(0, 1).u64(u64::MAX).bytes(&[b'k'; 32]);
    long.refused("18446744073709551615 bytes at byte 32");
}

#[test]
fn metadata_that_contradicts_itself_is_refused() {
    let twice = Writer::header(0, 2).key("k", 0, &[1]).key("k", 0, &[1]);
    twice.refused("`k`: expected once");
    Writer::header(0, 1)
        .key("long enough", 7, &[2])
        .refused("a bool of 0 or 1");
    Writer::header(0, 1)
        .key("long enough", 13, &[0])
        .refused("a value type from 0 to 12");
    let nested = Writer::default().u32(9).u64(0).0;
    Writer::header(0, 1)
        .key("k", 9, &nested)
        .refused("an array of arrays");
    let not_text = Writer::default().u64(2).bytes(b"\xff\xfe").0;
    Writer::header(0, 1).key("k", 8, &not_text).refused("UTF-8");
}

#[test]
fn tensors_that_cannot_be_are_refused() {
    let one = |dims: &[u64], ggml_type, offset| {
        let header = Writer::header(1, 0).tensor("name", dims, ggml_type, offset);
        header.pad(32).bytes(&[0; 64])
    };
    assert!(one(&[16], 0, 0).read().is_ok());
    assert!(one(&[], 0, 0).read().is_ok());
    one(&[1, 1, 1, 1, 1], 0, 0).refused("at most 4 axes");
    one(&[0], 0, 0).refused("axes with a size");
    one(&[17], 0, 0).refused("a file of");
    one(&[16], 0, 32).refused("a file of");
    one(&[16], 0, u64::MAX - 31).refused("a file of");
    one(&[16], 0, 7).refused("a multiple of 32");
    one(&[u64::MAX / 2, 4], 0, 0).refused("a size in 64 bits");
    one(&[48], 2, 0).refused("whole blocks of 32 elements for Q4_0");
    one(&[32, 2], 31, 0).refused("Q4_0_4_4, which ggml has removed");
    one(&[32, 2], 999, 0).refused("number 999");
    let overlap = Writer::header(2, 0)
        .tensor("a", &[16], 0, 0)
        .tensor("b", &[8], 0, 32);
    overlap
        .pad(32)
        .bytes(&[0; 64])
        .refused("bytes of tensor `a`");
}

/// A file is rejected wherever it is cut off.
#[test]
fn files_that_are_cut_off_are_refused() {
    let whole = two_tensors().pad(32).bytes(&[0; 50]).0;
    assert!(Writer(whole.clone()).read().is_ok());
    for length in 0..whole.len() {
        assert!(Writer(whole[..length].to_vec()).read().is_err(), "{length}");
    }
}

#[test]
fn arrays_know_their_length() {
    assert!(MetadataArray::F32(Vec::new()).is_empty());
    assert_eq!(MetadataArray::Bool(vec![true]).len(), 1);
}

#[test]
fn types_are_found_by_their_numbers() {
    for ggml_type in GgmlType::ALL {
        assert_eq!(GgmlType::from_id(ggml_type.id()), Some(*ggml_type));
    }
    assert_eq!(GgmlType::from_id(4), None);
    assert_eq!(GgmlType::Q4_K.name(), "Q4_K");
    // A super-block of 256 elements in 144 bytes: 4.5 bits each.
    let q4_k = GgmlType::Q4_K;
    assert_eq!((q4_k.block_len(), q4_k.block_bytes()), (256, 144));
}
