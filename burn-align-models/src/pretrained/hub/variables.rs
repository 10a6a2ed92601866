//! The environment variables of `huggingface_hub`, with the same meaning.
//!
//! Source: `huggingface_hub/constants.py` and `utils/_auth.py`, release 0.36. An empty variable
//! counts as not set.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::pretrained::LoadOptions;

const PUBLIC_HUB: &str = "https://huggingface.co";
/// How long to wait for the hub, unless a variable sets it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The same if the cache already has a file.
const SHORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Looks up a variable; tests substitute their own.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The variables of this process.
pub(super) fn of_process(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name);
    if value.is_none() && name == HOME {
        return std::env::home_dir().map(Into::into);
    }
    value
}

const HOME: &str = if cfg!(windows) { "USERPROFILE" } else { "HOME" };

/// Where the cache and the hub are, and how to use them.
#[derive(Debug)]
pub(super) struct Settings {
    /// Folder of the cache.
    pub(super) cache: PathBuf,
    /// Address of the hub, without a slash at its end.
    pub(super) endpoint: String,
    pub(super) token: Token,
    /// How long to wait for a file's metadata, if set by the user.
    metadata_timeout: Option<Duration>,
    /// How long to wait for the next bytes of a file.
    pub(super) download_timeout: Duration,
    /// Whether snapshots may link to blobs.
    pub(super) symlinks: bool,
    /// Whether to bypass the proxy set in other variables.
    pub(super) no_proxy: bool,
}

impl Settings {
    pub(super) fn read(variables: Lookup<'_>, options: &LoadOptions) -> Self {
        let endpoint = options.hub_endpoint.clone();
        let endpoint = endpoint.or_else(|| text(variables, "HF_ENDPOINT"));
        let endpoint = endpoint.unwrap_or_else(|| PUBLIC_HUB.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Self {
            cache: match &options.hub_cache {
                Some(folder) => folder.clone(),
                None => cache(variables),
            },
            no_proxy: ["NO_PROXY", "no_proxy"]
                .iter()
                .filter_map(|name| text(variables, name))
                .any(|hosts| matches_host(&hosts, host(&endpoint))),
            endpoint,
            token: Token::read(variables),
            metadata_timeout: seconds(variables, "HF_HUB_ETAG_TIMEOUT"),
            download_timeout: seconds(variables, "HF_HUB_DOWNLOAD_TIMEOUT").unwrap_or(TIMEOUT),
            symlinks: !is_true(text(variables, "HF_HUB_DISABLE_SYMLINKS")),
        }
    }

    /// How long to wait for a file's metadata; less if the cache can be used instead.
    pub(super) fn patience(&self, cached: bool) -> Duration {
        let usual = if cached { SHORT_TIMEOUT } else { TIMEOUT };
        self.metadata_timeout.unwrap_or(usual)
    }
}

/// Whether the hub must not be contacted.
pub(super) fn offline(variables: Lookup<'_>) -> bool {
    is_true(text(variables, "HF_HUB_OFFLINE").or_else(|| text(variables, "TRANSFORMERS_OFFLINE")))
}

/// The folder of the cache.
fn cache(variables: Lookup<'_>) -> PathBuf {
    path(variables, "HF_HUB_CACHE")
        .or_else(|| path(variables, "HUGGINGFACE_HUB_CACHE"))
        .unwrap_or_else(|| home(variables).join("hub"))
}

/// The data folder of Hugging Face's libraries.
fn home(variables: Lookup<'_>) -> PathBuf {
    path(variables, "HF_HOME").unwrap_or_else(|| {
        let cache = path(variables, "XDG_CACHE_HOME");
        let cache = cache.unwrap_or_else(|| expand("~/.cache", variables));
        cache.join("huggingface")
    })
}

/// The access token, and where it was looked for.
pub(super) struct Token {
    pub(super) secret: Option<String>,
    /// Where the secret came from, or why there is none.
    pub(super) place: String,
}

impl Token {
    fn read(variables: Lookup<'_>) -> Self {
        const DISABLED: &str = "HF_HUB_DISABLE_IMPLICIT_TOKEN";
        if is_true(text(variables, DISABLED)) {
            return Self {
                secret: None,
                place: format!("{DISABLED} is set, so none was sent"),
            };
        }
        let names = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
        let name = names.iter().find(|name| text(variables, name).is_some());
        let secret = name.and_then(|name| clean(&text(variables, name)?));
        if let (Some(name), Some(secret)) = (name, secret) {
            return Self {
                secret: Some(secret),
                place: (*name).to_owned(),
            };
        }
        let file = path(variables, "HF_TOKEN_PATH");
        let file = file.unwrap_or_else(|| home(variables).join("token"));
        match fs::read_to_string(&file).ok().and_then(|it| clean(&it)) {
            Some(secret) => Self {
                secret: Some(secret),
                place: file.display().to_string(),
            },
            None => Self {
                secret: None,
                place: format!("none was found in HF_TOKEN or {}", file.display()),
            },
        }
    }
}

/// Omits the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// A pasted token, without surrounding whitespace.
fn clean(token: &str) -> Option<String> {
    let token: String = token.chars().filter(|c| !"\r\n".contains(*c)).collect();
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

fn set(variables: Lookup<'_>, name: &str) -> Option<OsString> {
    variables(name).filter(|value| !value.is_empty())
}

fn text(variables: Lookup<'_>, name: &str) -> Option<String> {
    set(variables, name)?.into_string().ok()
}

/// True for `1`, `on`, `yes` and `true`, in any case; false for everything else.
fn is_true(value: Option<String>) -> bool {
    value.is_some_and(|it| ["1", "ON", "YES", "TRUE"].contains(&it.to_uppercase().as_str()))
}

fn seconds(variables: Lookup<'_>, name: &str) -> Option<Duration> {
    let seconds = text(variables, name)?.trim().parse().ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn path(variables: Lookup<'_>, name: &str) -> Option<PathBuf> {
    let value = set(variables, name)?;
    Some(match value.to_str() {
        Some(text) => expand(text, variables),
        None => PathBuf::from(value),
    })
}

/// Replaces `~` at the beginning by the home folder, and `$NAME` and `${NAME}` by variables if they
/// are set.
fn expand(text: &str, variables: Lookup<'_>) -> PathBuf {
    let is_separator = |c: char| c == '/' || (cfg!(windows) && c == '\\');
    let mut expanded = String::new();
    let mut rest = text;
    let home = set(variables, HOME).and_then(|home| home.into_string().ok());
    if let (Some(inside), Some(home)) = (text.strip_prefix('~'), home)
        && (inside.is_empty() || inside.starts_with(is_separator))
    {
        expanded.push_str(home.trim_end_matches(is_separator));
        rest = inside;
    }
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let (name, next) = match after.strip_prefix('{').and_then(|it| it.split_once('}')) {
            Some(braced) => braced,
            None => {
                let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                after.split_at(end.unwrap_or(after.len()))
            }
        };
        match variables(name).and_then(|value| value.into_string().ok()) {
            Some(value) if !name.is_empty() => expanded.push_str(&value),
            _ => expanded.push_str(&rest[before.len()..rest.len() - next.len()]),
        }
        rest = next;
    }
    expanded.push_str(rest);
    Path::new(&expanded).to_owned()
}

/// The host of an address, without the port.
fn host(endpoint: &str) -> &str {
    let host = endpoint.split_once("://").map_or(endpoint, |it| it.1);
    let host = host.split('/').next().unwrap_or_default();
    match host.strip_prefix('[').and_then(|it| it.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    }
}

/// Whether a host is in a list such as `localhost,.example.org`.
fn matches_host(hosts: &str, host: &str) -> bool {
    hosts.split(',').map(str::trim).any(|entry| {
        let entry = entry.trim_start_matches('.');
        let above = host.strip_suffix(entry);
        entry == "*"
            || (!entry.is_empty() && above.is_some_and(|it| it.is_empty() || it.ends_with('.')))
    })
}
