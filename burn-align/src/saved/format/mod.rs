//! This crate's own format: a JSON description of each intervention, next to a file of tensors.
//!
//! A composition is described by its three parts, `featurizer`, `operation` and `mask`, each with a
//! `kind` and fields of its own. Those with a name in [`NAMED`], and operations by themselves, have
//! that name as their kind and the fields of all parts side by side.

mod read;
mod write;

use crate::interventions::parts::Renamed;

pub(super) use read::load;
pub(super) use write::save;

const TENSORS: &str = "interventions.safetensors";
const INTERVENTIONS: &str = "interventions";
const WIDTHS: &str = "changed_features";
/// The fields of a composition, and its parts of tensors' names.
const PARTS: [&str; 3] = ["featurizer", "operation", "mask"];
/// Which features are changed if no subspace is named.
const SWAPPED: &str = "swapped";
/// The kind of a composition without a name.
const COMPOSED: &str = "composed";
/// The featurizer and mask of an operation by itself.
const ALONE: [&str; 2] = ["identity", "none"];

/// A composition with a name of its own.
struct Named {
    kind: &'static str,
    /// Featurizer, operation and mask.
    parts: [&'static str; 3],
    /// How it says which features are swapped if no subspace is named.
    swapped: Swapped,
    renamed: Renamed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Swapped {
    /// Not at all: all of them are.
    All,
    /// The number of the first few.
    Count,
    /// A list, or `null` for all.
    List,
}

const NAMED: [Named; 7] = [
    named(
        "rotated_space",
        ["rotation", "vanilla", "none"],
        Swapped::Count,
        &[],
    ),
    named(
        "boundless_rotated_space",
        ["rotation", "vanilla", "boundary"],
        Swapped::All,
        &[],
    ),
    named(
        "sigmoid_mask_rotated_space",
        ["rotation", "vanilla", "sigmoid"],
        Swapped::All,
        &[("mask", "masks")],
    ),
    named(
        "sigmoid_mask",
        ["identity", "vanilla", "sigmoid"],
        Swapped::All,
        &[],
    ),
    named("pca", ["pca", "vanilla", "none"], Swapped::All, &[]),
    named(
        "autoencoder",
        ["autoencoder", "vanilla", "none"],
        Swapped::List,
        &[],
    ),
    named(
        "jump_relu_autoencoder",
        ["jump_relu_autoencoder", "vanilla", "none"],
        Swapped::List,
        &[],
    ),
];

const fn named(
    kind: &'static str,
    parts: [&'static str; 3],
    swapped: Swapped,
    renamed: Renamed,
) -> Named {
    Named {
        kind,
        parts,
        swapped,
        renamed,
    }
}
