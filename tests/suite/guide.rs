//! The chapters of the guide: their links work on GitHub, and each has an item in rustdoc.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// `[label]: target`
fn definitions(text: &str) -> Vec<(&str, &str)> {
    let lines = text.lines().filter(|line| line.starts_with('['));
    let pairs = lines.filter_map(|line| line.split_once("]: "));
    pairs.filter(|(_, target)| !target.contains(' ')).collect()
}

#[test]
fn links_are_defined_for_github_and_for_rustdoc() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../burn-align/guide");
    let read = |file: &Path| fs::read_to_string(file).expect("a file of the guide");
    let links = read(&folder.join("links.txt"));
    let known: BTreeSet<&str> = definitions(&links).iter().map(|it| it.0).collect();
    let index = read(&folder.join("README.md"));
    let modules = read(&folder.join("../src/guide.rs"));
    let mut used = BTreeSet::new();
    let mut chapters = 0;
    for entry in fs::read_dir(&folder).expect("the guide") {
        let file = entry.expect("a file").path();
        let name = file.file_name().and_then(|name| name.to_str());
        let name = name.expect("a name").to_owned();
        if !name.ends_with(".md") {
            continue;
        }
        let text = read(&file);
        let prose: String = text.split("```").step_by(2).collect();
        for (label, target) in definitions(&text) {
            assert!(
                known.contains(label),
                "{name}: {label}] is not in links.txt"
            );
            assert!(folder.join(target).exists(), "{name}: no file {target}");
            let uses = prose.matches(&format!("{label}]")).count();
            assert!(uses > 1, "{name}: {label}] is defined and not used");
            used.insert(label.to_owned());
        }
        if name != "README.md" {
            chapters += 1;
            assert!(
                index.contains(&format!("]: {name}")),
                "{name} is not in the index"
            );
            assert!(modules.contains(&name), "{name} is no module");
        }
    }
    assert_eq!(chapters, 17);
    let unused = known.iter().find(|label| !used.contains(**label));
    assert_eq!(unused, None, "a link of links.txt that no chapter has");
}
