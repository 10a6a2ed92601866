//! How a site is written in JSON.

use burn_align_models::{Component, Site, UnknownComponent};
use serde::{Deserialize, Serialize};

/// `"embedding"`, `"final_norm"`, or `{"block": {"layer": 4, "component": "block_output"}}`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SavedSite {
    Embedding,
    Block(SavedBlock),
    FinalNorm,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedBlock {
    layer: usize,
    component: String,
}

impl From<Site> for SavedSite {
    fn from(site: Site) -> Self {
        match site {
            Site::Embedding => Self::Embedding,
            Site::Block(layer, component) => Self::Block(SavedBlock {
                layer,
                component: component.name().to_owned(),
            }),
            Site::FinalNorm => Self::FinalNorm,
        }
    }
}

impl SavedSite {
    pub(super) fn site(&self) -> Result<Site, UnknownComponent> {
        Ok(match self {
            Self::Embedding => Site::Embedding,
            Self::Block(SavedBlock { layer, component }) => {
                Site::Block(*layer, component.parse::<Component>()?)
            }
            Self::FinalNorm => Site::FinalNorm,
        })
    }
}
