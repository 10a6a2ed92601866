//! One pass, many worlds.
//!
//! A method like activation patching runs the same model hundreds of times with one small change.
//! Most of that work is repeated: the layers before the change, the positions before the change,
//! everything after the last activation that is read. A [`Plan`] makes the repetition visible, so
//! it can be left out.
//!
//! A plan states what to compute: *worlds*, each a run of the model on a batch of examples under a
//! list of edits, and *reads*, the activations and logits to return. All worlds go through the
//! network together, stacked along the batch axis, one layer at a time ([`Plan::run`]). What they
//! have in common is computed once:
//!
//! 1. equal inputs are embedded once, and a world leaves the others only at the layer of its first
//!    edit;
//! 2. before the first position at which it has been edited, a world is equal to the others on its
//!    input, so only the positions from there on are computed;
//! 3. a world ends at the last layer at which it is read or used as a source;
//! 4. only the requested positions are unembedded.
//!
//! [`Plan::run_on_devices`] divides worlds among copies of the model on several devices.
//! [`Plan::run_naively`] runs every world by itself, from start to end. It is the definition of
//! what a plan means.

mod beside;
mod cache;
mod cells;
mod chunks;
mod convert;
mod devices;
mod error;
mod execute;
mod explain;
mod freeze;
mod groups;
mod hash;
mod host;
mod join;
mod layout;
mod lockstep_tap;
mod marks;
mod memory;
mod naive;
mod needs;
mod non_finite;
mod options;
mod origin;
mod past;
mod plan;
mod reuse;
mod schedule;
mod stages;
mod units;
mod validate;
mod wanted;
mod zip;

pub use cache::{CacheExplanation, CachedRow, CachedRows, Continued};
pub(crate) use devices::moved;
pub use devices::replicate;
pub use error::PlanError;
pub use execute::Results;
pub use explain::{Explanation, PassExplanation, StageExplanation};
pub(crate) use host::{read_floats, read_numbers};
pub use non_finite::{NonFinite, NonFiniteCause, NonFiniteValue};
pub use options::RunOptions;
pub use plan::{
    ConstantId, Edit, InputId, LogitPositions, Operand, Plan, ReadId, Resumed, WorldId, WorldInput,
};
pub use reuse::Schedules;
pub use units::{Indices, Units};
