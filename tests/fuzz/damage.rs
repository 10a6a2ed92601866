//! Random damage.

use std::io::{Cursor, Read, Write};

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// The same file with some damage. In an archive, its contents are damaged.
pub(crate) fn damage(file: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    if file.starts_with(b"PK") && random.random_bool(0.9) {
        return damage_archive(file, random);
    }
    let mut file = file.to_vec();
    for _ in 0..random.random_range(1..=3) {
        damage_once(&mut file, random);
    }
    file
}

fn damage_archive(file: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut archive = zip::ZipArchive::new(Cursor::new(file)).expect("an archive");
    let damaged = random.random_range(0..archive.len());
    let mut written = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).expect("an entry");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("readable");
        // The pickle matters most.
        if index == damaged || entry.name().ends_with(".pkl") {
            damage_once(&mut bytes, random);
        }
        let stored = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored);
        written.start_file(entry.name(), stored).expect("a name");
        written.write_all(&bytes).expect("in memory");
    }
    written.finish().expect("in memory").into_inner()
}

/// Numbers and words that may cause trouble.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "2",
    "7",
    "1e9",
    "0.5",
    "-0.0",
    "1e308",
    "4294967295",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e-320",
];
const WORDS: [&str; 8] = [
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "[[]]",
    "[null]",
    "\"\\u0000\"",
];

fn damage_once(file: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    if file.is_empty() {
        return file.push(random.random());
    }
    // Headers and configurations come first.
    let reach = match random.random_bool(0.5) {
        true => file.len().min(512),
        false => file.len(),
    };
    let at = random.random_range(0..reach);
    let length = random.random_range(0..=(file.len() - at).min(16));
    match random.random_range(0..9) {
        0 => file[at] ^= 1 << random.random_range(0..8),
        1 => file[at] = random.random(),
        2 => file.truncate(at),
        3 => drop(file.drain(at..at + length)),
        4 => {
            let copy = file[at..at + length].to_vec();
            drop(file.splice(at..at, copy));
        }
        5 => {
            let bytes = (0..length).map(|_| random.random()).collect::<Vec<u8>>();
            drop(file.splice(at..at, bytes));
        }
        // Repetitions: a few bytes may ask for many.
        8 => {
            let copies = file[at..at + length].repeat(random.random_range(1..=1000));
            drop(file.splice(at..at, copies));
        }
        // Replaces the next number, or the next value.
        6 => {
            let digit = |byte: &u8| byte.is_ascii_digit();
            if let Some(start) = file[at..].iter().position(digit) {
                let start = at + start;
                let digits = file[start..].iter().take_while(|byte| digit(byte)).count();
                let number = NUMBERS.choose(random).expect("there are some");
                drop(file.splice(start..start + digits, number.bytes()));
            }
        }
        _ => {
            if let Some(colon) = file[at..].iter().position(|byte| *byte == b':') {
                let start = at + colon + 1;
                let end = file[start..]
                    .iter()
                    .position(|byte| b",}]\n".contains(byte));
                let end = end.map_or(file.len(), |end| start + end);
                let word = WORDS.choose(random).expect("there are some");
                drop(file.splice(start..end, word.bytes()));
            }
        }
    }
}
