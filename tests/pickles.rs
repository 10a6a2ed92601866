//! Pickles byte by byte, and archives of them, as `torch.load` reads them.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Adds a text to a pickle.
pub(crate) fn push_text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X'); // BINUNICODE
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

/// An archive with this pickle, and a storage `0` without numbers.
pub(crate) fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", &[])] {
        archive.start_file(name, stored).expect("an entry");
        archive.write_all(bytes).expect("in memory");
    }
    archive.finish().expect("in memory").into_inner()
}
