//! Dependencies of this project: the minimum Rust version, licences, and the reason for each.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output()
        .expect(program);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

/// All packages built on this machine by default, which are already downloaded.
fn packages() -> Vec<Value> {
    let version = run("rustc", &["-vV"]);
    let mut lines = version.lines();
    let host = lines.find_map(|line| line.strip_prefix("host: "));
    let json = run(
        env!("CARGO"),
        &[
            "metadata",
            "--format-version=1",
            "--locked",
            "--offline",
            "--filter-platform",
            host.expect("a platform"),
        ],
    );
    let metadata: Value = serde_json::from_str(&json).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages").clone();
    assert!(packages.len() > 100, "{}", packages.len());
    packages
}

fn version(text: &str) -> Vec<u64> {
    let parts = text.split('.').map(|part| part.parse().expect("a number"));
    let mut parts: Vec<u64> = parts.collect();
    parts.resize(3, 0);
    parts
}

#[test]
fn none_needs_a_newer_rust_than_we_say() {
    let ours = version(env!("CARGO_PKG_RUST_VERSION"));
    let mut newest = Vec::new();
    for package in packages() {
        if let Some(theirs) = package["rust_version"].as_str() {
            let theirs = version(theirs);
            assert!(theirs <= ours, "{}: {theirs:?}", package["id"]);
            newest = newest.max(theirs);
        }
    }
    // No older version is promised without being tested.
    assert_eq!(newest, ours, "rust-version in Cargo.toml");
}

/// Whether a licence expression can be met with these. `/` is how old crates write `OR`.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = expression.trim().replace('/', " OR ");
    // In `(A OR B) AND C`, the parenthesised expression is one part.
    let split = |operator: &str| -> Vec<String> {
        let (mut parts, mut depth) = (vec![String::new()], 0);
        for word in expression.split_whitespace() {
            if depth == 0 && word == operator {
                parts.push(String::new());
                continue;
            }
            depth += word.matches('(').count();
            depth -= word.matches(')').count();
            let part = parts.last_mut().expect("one");
            part.push_str(word);
            part.push(' ');
        }
        parts
    };
    let (any, all) = (split("OR"), split("AND"));
    if any.len() > 1 {
        return any.iter().any(|part| is_met(part, allowed));
    }
    if all.len() > 1 {
        return all.iter().all(|part| is_met(part, allowed));
    }
    let inner = expression.trim().strip_prefix('(');
    match inner.and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => is_met(inner, allowed),
        None => allowed.contains(expression.trim()),
    }
}

#[test]
fn licences_are_those_of_deny_toml() {
    let deny = fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let list = deny.split_once("allow = [").expect("a list").1;
    let list = list.split_once(']').expect("its end").0;
    let quoted = list.split('"').skip(1).step_by(2);
    let allowed: BTreeSet<String> = quoted.map(str::to_owned).collect();
    assert!(allowed.contains("MIT"));
    for (expression, expected) in [
        ("MIT/Apache-2.0", true),
        ("GPL-3.0 OR (MIT AND Zlib)", true),
        ("(MIT OR Apache-2.0) AND GPL-3.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("GPL-3.0", false),
    ] {
        assert_eq!(is_met(expression, &allowed), expected, "{expression}");
    }
    for package in packages() {
        let licence = package["license"].as_str().unwrap_or("none");
        assert!(is_met(licence, &allowed), "{}: {licence}", package["id"]);
    }
}

/// Direct dependencies in a manifest, including optional ones and those of tests.
fn direct(manifest: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(manifest)).expect(manifest);
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with('[') {
            inside = ["[dependencies]", "[dev-dependencies]"].contains(&line);
        } else if let Some((name, _)) = line.split_once('=').filter(|_| inside) {
            let name = name.trim();
            names.insert(name.trim_end_matches(".workspace").to_owned());
        }
    }
    names
}

#[test]
fn every_direct_dependency_has_its_reason() {
    let manifests = [
        "",
        "tests/",
        "burn-align/",
        "burn-align-flex/",
        "burn-align-models/",
        "burn-align-quants/",
    ];
    let ours = manifests.map(|folder| direct(&format!("{folder}Cargo.toml")));
    let mut ours: BTreeSet<String> = ours.into_iter().flatten().collect();
    ours.retain(|name| !name.starts_with("burn-align"));
    assert!(ours.contains("tokenizers") && ours.contains("tempfile"));
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).expect("CONTRIBUTING.md");
    let table = text.split_once("## Dependencies").expect("a chapter").1;
    let table = table.split_once("\n## ").map_or(table, |it| it.0);
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.filter_map(|row| row.split_once(" | ").map(|it| it.0));
    let names = names.flat_map(|names| names.split(", "));
    let listed: BTreeSet<String> = names.map(|name| name.replace('`', "")).collect();
    assert_eq!(ours, listed, "dependencies, and rows of CONTRIBUTING.md");
}
