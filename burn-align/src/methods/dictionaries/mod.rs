//! What a dictionary makes of a text: how well it reconstructs, and where its features are active.

mod error;
mod evaluate;
mod options;
mod top;

pub use error::DictionaryTextError;
pub use evaluate::{DictionaryEvaluation, SplicedLosses, evaluate_dictionary};
pub use options::DictionaryTextOptions;
pub use top::{FeatureTop, TopActivation, top_activations};
