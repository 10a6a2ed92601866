//! Path patching (Wang et al. 2022, "Interpretability in the Wild", arXiv 2211.00593, §3.1;
//! Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching", arXiv 2304.05969).
//!
//! Two ways to say the same: [`patch_paths`] takes paths, [`path_patch`] senders and receivers.
//! Where all that lies between is frozen, a sender reaches a receiver on the direct path alone.

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
