//! Text generation: how the next token is chosen.

mod sampling;

pub use sampling::{Sampler, Sampling, SamplingError};
