//! The environment variables and the cache, without a hub.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cache::{Commit, Held, Store, stays_inside};
use super::variables::{Settings, offline};
use crate::pretrained::LoadOptions;

const HOME: &str = if cfg!(windows) { "USERPROFILE" } else { "HOME" };

fn read<T>(variables: &[(&str, &str)], what: impl Fn(&dyn Fn(&str) -> Option<OsString>) -> T) -> T {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    what(&|name| variables.get(name).map(OsString::from))
}

fn settings(variables: &[(&str, &str)]) -> Settings {
    read(variables, |lookup| {
        Settings::read(lookup, &LoadOptions::default())
    })
}

fn cache_of(variables: &[(&str, &str)]) -> PathBuf {
    settings(variables).cache
}

#[test]
fn where_the_cache_is() {
    let mut variables = vec![(HOME, "/home/ada")];
    // From the last resort to the first choice.
    for (name, value, expected) in [
        ("HOME_ALONE", "", "/home/ada/.cache/huggingface/hub"),
        ("XDG_CACHE_HOME", "/xdg", "/xdg/huggingface/hub"),
        ("HF_HOME", "/hf", "/hf/hub"),
        ("HUGGINGFACE_HUB_CACHE", "/old", "/old"),
        ("HF_HUB_CACHE", "/new", "/new"),
    ] {
        variables.push((name, value));
        assert_eq!(cache_of(&variables), Path::new(expected), "{name}");
    }
    let variables = [(HOME, "/home/ada"), ("HF_HOME", ""), ("HF_HUB_CACHE", "")];
    assert_eq!(
        cache_of(&variables),
        Path::new("/home/ada/.cache/huggingface/hub")
    );
    let options = LoadOptions::default().with_hub_cache("/mine");
    let chosen = read(&[("HF_HUB_CACHE", "/new")], |lookup| {
        Settings::read(lookup, &options)
    });
    assert_eq!(chosen.cache, Path::new("/mine"));
}

#[test]
fn paths_are_expanded() {
    for (value, expected) in [
        ("~/models", "/home/ada/models"),
        ("~", "/home/ada"),
        ("~bob/models", "~bob/models"),
        ("/a/~/b", "/a/~/b"),
        ("$SCRATCH/models", "/scratch/1/models"),
        ("${SCRATCH}models/$SCRATCH", "/scratch/1models//scratch/1"),
        ("$NOWHERE/${NOWHERE}/$", "$NOWHERE/${NOWHERE}/$"),
        ("${SCRATCH", "${SCRATCH"),
    ] {
        let variables = [
            (HOME, "/home/ada"),
            ("SCRATCH", "/scratch/1"),
            ("HF_HUB_CACHE", value),
        ];
        assert_eq!(cache_of(&variables), Path::new(expected), "{value}");
    }
}

#[test]
fn when_the_hub_is_not_asked() {
    for (hub, transformers, expected) in [
        (None, None, false),
        (Some("1"), None, true),
        (Some("yes"), None, true),
        (Some("On"), None, true),
        (Some("TRUE"), None, true),
        (Some("0"), None, false),
        (Some("2"), None, false),
        (None, Some("1"), true),
        (Some(""), Some("1"), true),
        // The newer variable takes precedence if it is set.
        (Some("0"), Some("1"), false),
    ] {
        let mut variables = Vec::new();
        variables.extend(hub.map(|value| ("HF_HUB_OFFLINE", value)));
        variables.extend(transformers.map(|value| ("TRANSFORMERS_OFFLINE", value)));
        assert_eq!(read(&variables, offline), expected, "{variables:?}");
    }
}

#[test]
fn whose_token_is_sent() {
    let folder = std::env::temp_dir().join(format!("burn-align-token-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let (token, other) = (folder.join("token"), folder.join("other"));
    fs::write(&token, " hf_file\r\n").expect("a file");
    fs::write(&other, "hf_other").expect("a file");
    let (home, other) = (
        folder.to_str().expect("UTF-8"),
        other.to_str().expect("UTF-8"),
    );
    let mut variables = vec![("HF_HOME", home)];
    for (name, value, expected) in [
        ("HF_TOKEN", "", Some("hf_file")),
        ("HF_TOKEN_PATH", other, Some("hf_other")),
        // A blank one hides the older variable, as in Python.
        ("HF_TOKEN", " \n", Some("hf_other")),
        ("HUGGING_FACE_HUB_TOKEN", "hf_old", Some("hf_other")),
        ("HF_TOKEN", "", Some("hf_old")),
        ("HF_TOKEN", "hf_new\n", Some("hf_new")),
        ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1", None),
    ] {
        variables.retain(|it| it.0 != name);
        variables.push((name, value));
        let found = settings(&variables).token;
        assert_eq!(found.secret.as_deref(), expected, "{name}={value:?}");
        assert!(
            !format!("{found:?}").contains("hf_"),
            "a secret in {found:?}"
        );
    }
    let none = settings(&[("HF_HOME", "/nowhere")]).token;
    assert_eq!(none.secret, None);
    assert!(none.place.contains("/nowhere"), "{}", none.place);
    fs::remove_dir_all(&folder).expect("the folder");
}

#[test]
fn which_hub_is_asked_and_for_how_long() {
    assert_eq!(settings(&[]).endpoint, "https://huggingface.co");
    let mirror = [
        ("HF_ENDPOINT", "https://mirror.example/hf/"),
        ("HF_HUB_ETAG_TIMEOUT", "7"),
    ];
    assert_eq!(settings(&mirror).endpoint, "https://mirror.example/hf");
    assert_eq!(settings(&mirror).patience(true), Duration::from_secs(7));
    assert_eq!(settings(&[]).patience(false), Duration::from_secs(10));
    assert!(settings(&[]).patience(true) < Duration::from_secs(10));
    for (hosts, expected) in [
        ("localhost,.example", true),
        ("mirror.example", true),
        ("*", true),
        ("rror.example", false),
        ("", false),
    ] {
        let variables = [mirror[0], ("NO_PROXY", hosts)];
        assert_eq!(settings(&variables).no_proxy, expected, "{hosts}");
    }
}

#[test]
fn what_the_cache_knows() {
    let cache = std::env::temp_dir().join(format!("burn-align-cache-{}", std::process::id()));
    let model = cache.join("models--owner--name");
    let (first, second) = ("a".repeat(40), format!("{}b", "a".repeat(39)));
    let write = |path: &str, text: &str| {
        let path = model.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    };
    write("refs/main", &format!("{first}\n"));
    write("refs/refs/pr/1", &second);
    write("refs/bad", "../../elsewhere");
    write(&format!("snapshots/{first}/config.json"), "{}");
    write(&format!("snapshots/{second}/config.json"), "{}");
    write(&format!(".no_exist/{first}/tokenizer.json"), "");
    let tree =
        r#"{"format_version": 1, "files": {"config.json": {"size": 2}, "a.gguf": {"size": 1}}}"#;
    write(&format!("trees/{second}.json"), tree);

    let store = Store::new(&cache, "owner/name", true);
    let commit = |revision: &str| store.commit_of(revision).map(|it| it.as_str().to_owned());
    assert_eq!(commit("main"), Some(first.clone()));
    assert_eq!(commit("refs/pr/1"), Some(second.clone()));
    assert_eq!(commit("v2"), None);
    assert_eq!(commit("bad"), None, "a reference that leads elsewhere");
    assert_eq!(commit(&second[..40]), Some(second.clone()));
    assert_eq!(commit(&first[..39]), None, "the beginning of two commits");

    let [first, second] = [first, second].map(|it| Commit::parse(&it).expect("a commit"));
    assert!(matches!(store.look(&first, "config.json"), Held::File(_)));
    assert_eq!(store.look(&first, "tokenizer.json"), Held::Absent);
    assert_eq!(store.look(&first, "merges.txt"), Held::Unknown);
    assert_eq!(
        store.look(&second, "tokenizer.json"),
        Held::Absent,
        "not in the tree"
    );
    assert_eq!(
        store.look(&second, "a.gguf"),
        Held::Unknown,
        "in the tree, not here"
    );
    fs::remove_dir_all(&cache).expect("the folder");
}

#[test]
fn names_that_lead_elsewhere() {
    for name in ["main", "refs/pr/1", "v1.0", "sub/model.gguf"] {
        assert!(stays_inside(name), "{name}");
    }
    for name in ["", "..", "a/../b", "/etc", "a//b", "a/", "a\\b", "./a"] {
        assert!(!stays_inside(name), "{name}");
    }
    assert!(Commit::parse("../x").is_none());
}
