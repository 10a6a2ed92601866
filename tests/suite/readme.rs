//! The README files refer to things that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).expect(file)
}

/// Targets of Markdown links, `](target)` and `[label]: target`, which are files.
fn linked_files(text: &str) -> Vec<&str> {
    let inline = text.split("](").skip(1);
    let inline = inline.filter_map(|rest| rest.split_once(')').map(|it| it.0));
    let labels = text.lines().filter(|line| line.starts_with('['));
    let labels = labels.filter_map(|line| line.split_once("]: ").map(|it| it.1));
    let files = inline.chain(labels).filter(|link| !link.contains("://"));
    files
        .map(|link| link.split_once('#').map_or(link, |it| it.0))
        .collect()
}

#[test]
fn links_lead_to_files() {
    for file in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "benches/peers/README.md",
        "burn-align/README.md",
        "burn-align-flex/README.md",
        "burn-align-models/README.md",
        "burn-align-quants/README.md",
        "examples/README.md",
    ] {
        let folder = root().join(file);
        let folder = folder.parent().expect("a folder");
        for link in linked_files(&read(file)) {
            assert!(folder.join(link).exists(), "{file}: no file {link}");
        }
    }
}

#[test]
fn every_example_is_in_the_table() {
    let entries = fs::read_dir(root().join("examples")).expect("the examples");
    let paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    let is_example = |path: &&PathBuf| {
        path.extension().is_some_and(|it| it == "rs") || path.join("main.rs").exists()
    };
    let names: BTreeSet<&str> = paths
        .iter()
        .filter(is_example)
        .filter_map(|path| path.file_stem()?.to_str())
        .collect();
    assert!(names.contains("capital_of_spain") && names.contains("train_capitals"));
    let table = read("examples/README.md");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let listed: BTreeSet<&str> = rows
        .filter_map(|row| row.split_once('`').map(|it| it.0))
        .collect();
    assert_eq!(names, listed, "examples, and rows of examples/README.md");
}

#[test]
fn every_picture_is_shown_and_small() {
    let readme = read("examples/README.md");
    let shown: BTreeSet<&str> = linked_files(&readme).into_iter().collect();
    let mut total = 0;
    for entry in fs::read_dir(root().join("examples/pictures")).expect("pictures") {
        let file = entry.expect("a file");
        let name = file.file_name().into_string().expect("a name");
        let size = file.metadata().expect("a size").len();
        assert!(size < 60_000, "{name}: {size} bytes");
        assert!(
            shown.contains(&*format!("pictures/{name}")),
            "{name} is not in examples/README.md"
        );
        total += size;
    }
    assert!(total < 500_000, "{total} bytes of pictures");
}
