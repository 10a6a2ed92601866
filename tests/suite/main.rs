//! All integration tests of the workspace, in one program.
//!
//! A test that computes is written once, generic over the backend, and listed in
//! [`on_every_backend!`]; it then runs on each backend that was compiled in:
//! `cargo test --release` for flex, `cargo test --release --features ndarray ndarray::` for one
//! more.

#[macro_use]
mod support;

mod ablation;
mod activations;
mod alignment_map;
mod attribution;
mod builtin;
mod bundled;
mod causal_models;
mod causal_variables;
#[cfg(feature = "flex")]
mod checkpoints;
mod circuits;
mod config;
mod continued;
#[cfg(feature = "flex")]
mod counted;
mod dependencies;
mod devices;
mod dictionaries;
mod directions;
#[cfg(feature = "flex")]
mod disk;
mod engine;
mod evaluation;
#[cfg(feature = "flex")]
mod front;
mod front_generate;
mod generate;
mod generate_cache;
mod generate_requests;
mod gguf;
mod gradients;
mod guide;
#[cfg(all(feature = "hub", feature = "flex"))]
mod hub;
mod identities;
mod interventions;
mod lens;
mod loading;
mod losses;
mod methods;
#[cfg(feature = "flex")]
mod non_finite;
mod orthonormal;
mod output;
mod outside;
mod parity;
mod paths;
#[path = "../pickles.rs"]
mod pickles;
#[cfg(feature = "flex")]
mod plans;
#[cfg(feature = "pretrained")]
mod pretrained;
mod quantized;
mod readme;
mod real;
mod rooms;
mod saved;
mod scratch;
mod scrubbing;
mod self_check;
mod tokens;
mod training;
