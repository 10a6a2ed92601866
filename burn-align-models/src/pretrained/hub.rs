//! Files from the Hugging Face hub, through the cache that `huggingface_hub` shares.

use std::path::PathBuf;

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::checkpoint::shard_names;
use super::{LoadError, LoadOptions};

/// Brings a model's files into the hub cache and returns their folder there.
///
/// Files that the cache holds are not fetched again.
pub(super) fn fetch(id: &str, options: &LoadOptions) -> Result<PathBuf, LoadError> {
    let cache = match &options.hub_cache {
        Some(folder) => Cache::new(folder.clone()),
        None => Cache::from_env(),
    };
    let repo = Repo::with_revision(id.to_owned(), RepoType::Model, options.revision.clone());
    let remote = if options.offline {
        None
    } else {
        let mut builder = ApiBuilder::from_env()
            .with_cache_dir(cache.path().clone())
            .with_progress(false);
        // `hf-hub` knows the token only from the file of `huggingface-cli login`.
        if let Some(token) = std::env::var("HF_TOKEN").ok().filter(|t| !t.is_empty()) {
            builder = builder.with_token(Some(token));
        }
        if let Some(endpoint) = &options.hub_endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder
            .build()
            .map_err(|error| hub_error(id, options, "", &error))?;
        Some(api.repo(repo.clone()))
    };
    let files = HubFiles {
        id,
        options,
        cached: cache.repo(repo),
        remote,
    };

    let config = files.get("config.json")?;
    files.get_optional("tokenizer.json")?;
    if files.get_optional("model.safetensors")?.is_none() {
        const INDEX: &str = "model.safetensors.index.json";
        let index = files.get(INDEX)?;
        let json = std::fs::read_to_string(&index).map_err(|cause| LoadError::Io {
            file: index.clone(),
            cause,
        })?;
        for shard in shard_names(&index, &json)? {
            files.get(&shard)?;
        }
    }
    let folder = config.parent().expect("a file lies in a folder");
    Ok(folder.to_owned())
}

/// One repository on the hub, or what the cache holds of it.
struct HubFiles<'a> {
    id: &'a str,
    options: &'a LoadOptions,
    cached: CacheRepo,
    remote: Option<ApiRepo>,
}

impl HubFiles<'_> {
    fn get(&self, file: &str) -> Result<PathBuf, LoadError> {
        self.get_optional(file)?.ok_or_else(|| {
            let reason = match self.remote {
                Some(_) => "no such file, no such model, or a model that needs a token (HF_TOKEN)",
                None => "not in the cache, and offline",
            };
            hub_error(self.id, self.options, file, &reason)
        })
    }

    /// `None` if the repository has no such file.
    fn get_optional(&self, file: &str) -> Result<Option<PathBuf>, LoadError> {
        if let Some(path) = self.cached.get(file) {
            return Ok(Some(path));
        }
        let Some(remote) = &self.remote else {
            return Ok(None);
        };
        match remote.download(file) {
            Ok(path) => Ok(Some(path)),
            Err(ApiError::RequestError(error)) if is_refusal(&error) => Ok(None),
            Err(error) => Err(hub_error(self.id, self.options, file, &error)),
        }
    }
}

/// Whether the hub answered that there is no such thing for us.
fn is_refusal(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Status(401 | 403 | 404, _))
}

fn hub_error(
    id: &str,
    options: &LoadOptions,
    file: &str,
    reason: &dyn std::fmt::Display,
) -> LoadError {
    LoadError::Hub {
        id: id.to_owned(),
        revision: options.revision.clone(),
        file: file.to_owned(),
        reason: reason.to_string(),
    }
}
