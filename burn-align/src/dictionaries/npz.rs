//! NumPy's archives: a zip of arrays, each with a header of its own.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use burn::tensor::f16;
use zip::ZipArchive;
use zip::result::ZipError;

use super::weights::Array;
use crate::saved::{Stored, Values};

/// The arrays of an archive by name, or what is wrong with it.
pub(super) fn read(bytes: &[u8]) -> Result<BTreeMap<String, Stored>, String> {
    let mut archive = ZipArchive::new(Cursor::new(bytes))
        .map_err(|error| format!("expected a zip archive, as written by numpy.savez: {error}"))?;
    let mut arrays = BTreeMap::new();
    // Entries that share bytes would unpack to more than the file has.
    let mut left = bytes.len() as u64;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| match error {
            ZipError::UnsupportedArchive(reason) => format!(
                "an array cannot be unpacked ({reason}): expected arrays without compression; \
                 load it in NumPy and write it again with numpy.savez"
            ),
            other => other.to_string(),
        })?;
        let file = entry.name().to_owned();
        let name = file
            .strip_suffix(".npy")
            .ok_or_else(|| format!("expected arrays named NAME.npy, found `{file}`"))?
            .to_owned();
        left = left
            .checked_sub(entry.size())
            .ok_or_else(|| format!("{file}: expected no more bytes than the archive has"))?;
        let mut content = Vec::new();
        (entry.read_to_end(&mut content)).map_err(|error| format!("{file}: {error}"))?;
        let array = array(&content).map_err(|reason| format!("{file}: {reason}"))?;
        arrays.insert(name, array);
    }
    Ok(arrays)
}

/// One array: magic bytes, version, length of the header, header, values.
fn array(bytes: &[u8]) -> Result<Stored, String> {
    let short = || "it ends too early".to_owned();
    let rest = bytes
        .strip_prefix(b"\x93NUMPY")
        .ok_or("expected an array of NumPy")?;
    let ([major, _minor], rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    let (length, rest) = match major {
        1 => {
            let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
            (u16::from_le_bytes(*length) as usize, rest)
        }
        2 | 3 => {
            let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
        other => return Err(format!("expected version 1 to 3, found {other}")),
    };
    let (header, data) = rest.split_at_checked(length).ok_or_else(short)?;
    let header = std::str::from_utf8(header).map_err(|_| "expected a header of text")?;
    let shape = shape(header)?;
    let count = shape.iter().try_fold(1_usize, |n, s| n.checked_mul(*s));
    let dtype = quoted(field(header, "descr")?).ok_or("expected a dtype")?;
    let values = match dtype {
        "<f8" => Values::F64(numbers(data, count, f64::from_le_bytes)?),
        "<f4" => Values::F32(numbers(data, count, f32::from_le_bytes)?),
        "<f2" => Values::F32(numbers(data, count, |b| f16::from_le_bytes(b).to_f32())?),
        "<i8" => Values::I64(numbers(data, count, i64::from_le_bytes)?),
        "<i4" => Values::I64(numbers(data, count, |b| i32::from_le_bytes(b).into())?),
        other => Values::Other(other.to_owned()),
    };
    let column_major = match field(header, "fortran_order")? {
        text if text.starts_with("False") => false,
        text if text.starts_with("True") => true,
        _ => return Err("expected `fortran_order` to be True or False".to_owned()),
    };
    if !column_major || shape.len() < 2 {
        return Ok(Stored { shape, values });
    }
    let (&[rows, columns], Values::F32(values)) = (&shape[..], &values) else {
        return Err("expected a matrix of f32 or f16, or an array stored row by row".to_owned());
    };
    let values = match values.is_empty() {
        true => Vec::new(),
        false => {
            let by_column = Array {
                shape: [columns, rows],
                values: values.clone(),
            };
            by_column.transposed().values
        }
    };
    let values = Values::F32(values);
    Ok(Stored { shape, values })
}

fn numbers<T, const SIZE: usize>(
    data: &[u8],
    count: Option<usize>,
    read: impl Fn([u8; SIZE]) -> T,
) -> Result<Vec<T>, String> {
    let (elements, rest) = data.as_chunks::<SIZE>();
    if !rest.is_empty() || Some(elements.len()) != count {
        return Err(format!(
            "expected as many values of {SIZE} bytes as its shape says, found {} bytes",
            data.len()
        ));
    }
    Ok(elements.iter().map(|element| read(*element)).collect())
}

/// What comes after a key of the header, which is a dictionary of Python.
fn field<'a>(header: &'a str, key: &str) -> Result<&'a str, String> {
    let quoted = format!("'{key}':");
    let at = header.find(&quoted);
    let at = at.ok_or_else(|| format!("expected `{key}` in the header"))?;
    Ok(header[at + quoted.len()..].trim_start())
}

fn quoted(text: &str) -> Option<&str> {
    text.strip_prefix('\'')?.split('\'').next()
}

fn shape(header: &str) -> Result<Vec<usize>, String> {
    let bad = || "expected a shape, such as (16, 2)".to_owned();
    let sizes = field(header, "shape")?.strip_prefix('(').ok_or_else(bad)?;
    let (sizes, _) = sizes.split_once(')').ok_or_else(bad)?;
    let sizes = sizes.split(',').map(str::trim);
    let sizes = sizes.filter(|size| !size.is_empty());
    sizes.map(|size| size.parse().map_err(|_| bad())).collect()
}

#[cfg(test)]
mod tests {
    use super::{Stored, Values, array};

    fn bytes(header: &str, values: &[f32]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    }

    fn header(order: &str, shape: &str) -> String {
        format!("{{'descr': '<f4', 'fortran_order': {order}, 'shape': {shape}, }}\n")
    }

    #[test]
    fn both_orders_are_read() {
        let expected = Stored {
            shape: vec![2, 3],
            values: Values::F32(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        };
        let by_row = bytes(&header("False", "(2, 3)"), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(array(&by_row).as_ref(), Ok(&expected));
        let by_column = bytes(&header("True", "(2, 3)"), &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(array(&by_column).as_ref(), Ok(&expected));
    }

    #[test]
    fn damaged_arrays_are_errors() {
        let whole = bytes(&header("False", "(3,)"), &[1.0, 2.0, 3.0]);
        assert!(array(&whole).is_ok());
        for end in 0..whole.len() {
            assert!(array(&whole[..end]).is_err(), "{end}");
        }
        let empty = header("True", "(18446744073709551615, 0)");
        assert!(array(&bytes(&empty, &[])).is_ok_and(|array| array.shape[1] == 0));
        for shape in [
            "(4,)",
            "(3, 2)",
            "(18446744073709551615, 3)",
            "3",
            "(x,)",
            "(-3,)",
        ] {
            assert!(
                array(&bytes(&header("False", shape), &[1.0; 3])).is_err(),
                "{shape}"
            );
        }
    }
}
