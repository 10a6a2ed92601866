//! Attribution: how much each node of a model matters, estimated from gradients, beside the exact
//! answer.
//!
//! Exact patching needs a world for each node. Attribution patching replaces it by a linear
//! estimate, `(a_source − a_base) · ∂m/∂a`, for all nodes at once from one backward pass. The
//! estimate can be wrong, and where it is, nothing in it says so; so the exact effects of the same
//! nodes are one call away, and [`compare`] shows what the estimate has missed.
//!
//! | function | what it computes |
//! | --- | --- |
//! | [`site_gradients`] | activations and gradients at any sites: one backward pass |
//! | [`attribution_patching`] | AtP: one backward pass; AtP*: one for each layer |
//! | [`integrated_gradients`] | the same with gradients along a path, in steps |
//! | [`attribute_features`] | AtP of a dictionary's features |
//! | [`patch_nodes`], [`patch_features`] | the exact effects: a world for each, in one plan |
//! | [`bound_missed`] | a bound on effects that were not patched: a world for each sample |
//!
//! # Gradients without hooks
//! The gradient at a site is that of zeros which are added there. Adding a constant is an edit like
//! any other, so gradients of any world of any plan need nothing from the engine or the model:
//! [`Probes`] are such edits.
//!
//! # Clean and corrupt
//! Tools differ in where they take the gradient: on the clean prompt, when the corrupt activation
//! is patched in, or on the corrupt prompt, when the clean one is. Here [`Patching`] names it:
//! [`Patching::noising`] or [`Patching::denoising`].

mod agreement;
mod atp;
mod check;
mod effects;
mod error;
mod exact;
mod features;
mod gradients;
mod integrated;
mod measured;
mod memory;
mod metric;
mod missed;
mod parts;
mod patching;
mod probes;
mod qk;
mod statistics;

pub(super) use check::{check_patching, check_tracked};
pub(super) use gradients::{ADD, Part, REPLACE, check_metrics, interventions, numbers_of, size_of};
pub(super) use integrated::point;
pub(super) use measured::Measured;
pub(super) use memory::{row_bytes, rows_at_once, unlimited};
pub(super) use parts::{logit_count, parts, plan_of, positions_of, read_all, tracked_plan_of};

pub use agreement::{Agreement, Miss, compare};
pub use atp::{AtpOptions, attribution_patching};
pub use effects::NodeEffects;
pub use error::AttributionError;
pub use exact::patch_nodes;
pub use features::{FeatureEffects, attribute_features, patch_features};
pub use gradients::{Gradients, site_gradients};
pub use integrated::{IntegrationOptions, IntegrationPath, Steps, integrated_gradients};
pub use metric::{LogitDifference, Metric};
pub use missed::{MissedBound, SubsetOptions, bound_missed};
pub use patching::{PatchDirection, Patching};
pub use probes::Probes;
