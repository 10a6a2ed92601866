//! Path patching (Wang et al. 2022, "Interpretability in the Wild", arXiv 2211.00593, §3.1;
//! Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching", arXiv 2304.05969).
//!
//! There are two ways to state a patch: [`patch_paths`] takes paths, [`path_patch`] takes senders
//! and receivers. They differ in what happens in between and afterwards; with everything in between
//! frozen, a sender reaches a receiver on the direct path only.
//!
//! # When it misleads
//! Frozen nodes keep their value from the base although their input has changed, so the run is one
//! that no prompt produces. The direct effect of a node also says little if later nodes would
//! compensate for it (McGrath et al. 2023, arXiv 2307.15771). And a result holds for one pair of
//! base and source distributions: it says which paths carry their *difference*.

mod attention;
mod effects;
mod frozen;
mod recomputed;
mod sender_receiver;
mod treeified;

pub use effects::{PathEffects, PathGrid};
pub use sender_receiver::{
    Mlps, PathPatch, Receiver, ReceiverInput, Sender, head_effects, path_grid, path_patch,
};
pub use treeified::{patch_paths, patch_streams};
