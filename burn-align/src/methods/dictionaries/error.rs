//! What can go wrong when a dictionary is run over a text.

use burn_align_models::{Site, TokensError};

use crate::dictionaries::DictionaryError;
use crate::engine::PlanError;

/// Why a dictionary could not be run over a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DictionaryTextError {
    /// Nothing to run it over, or nothing to find.
    #[error("expected at least one {what}, found none")]
    Nothing {
        /// What is missing.
        what: &'static str,
    },
    /// A site whose activation is no vector.
    #[error(
        "site {site}: expected an activation that is a vector, found attention scores or weights, \
         which have a number for each key position"
    )]
    NoVector {
        /// The site.
        site: Site,
    },
    /// A site that the dictionary does not read.
    #[error(
        "site {site}: expected {expected} features, the width of the dictionary, with all heads \
         side by side, found {found}"
    )]
    Width {
        /// The site.
        site: Site,
        /// The width of the dictionary.
        expected: usize,
        /// The width of the site.
        found: usize,
    },
    /// A dictionary or a feature that cannot be used here.
    #[error(transparent)]
    Dictionary(#[from] DictionaryError),
    /// A site or a text that does not fit the model, or a run that is not finite.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A text without tokens.
    #[error(transparent)]
    Tokens(#[from] TokensError),
}
