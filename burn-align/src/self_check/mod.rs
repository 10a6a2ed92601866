//! Does this backend compute what it should, on this device?
//!
//! GPU backends choose among many kernels, fuse operations and keep what was fastest, so a fault
//! may show on one device, driver or build only, and give wrong numbers without an error: several
//! such faults of Burn 0.21 have been [reported](KnownFault). A result of a faulty product looks
//! like a finding about the model. So run this check once on each device, driver and build before
//! you trust its numbers:
//!
//! ```
//! use burn::backend::{Autodiff, Flex};
//! use burn::tensor::DType;
//! use burn_align::self_check::{check_backend, check_gradients};
//!
//! let device = Default::default();
//! let report = check_backend::<Flex>(&device, DType::F32)
//!     .and(check_gradients::<Autodiff<Flex>>(&device, DType::F32));
//! assert!(report.passed(), "{report}");
//! ```
//!
//! It covers the operations that plans are made of at the sizes where kernels change, and a small
//! GPT-2 and a small LLaMA with interchanges, kept keys and values, and gradients. Expected values
//! are computed in f64 loops on the host, so the check does not depend on another backend. It takes
//! about a second on a CPU. On a GPU, nearly all of its time goes into compiling and choosing
//! kernels: minutes on one that is emulated on the CPU.
//!
//! It is evidence, not proof: an operation may be wrong at sizes that are not checked. Results of
//! your own model in f32 on a CPU backend are the best second opinion.

mod array;
mod attention;
mod chains;
mod checks;
mod decoder;
mod decoder_checks;
mod gradients;
mod indexing;
mod known;
mod operation;
mod primitives;
mod products;
mod reference;
mod report;
#[cfg(test)]
mod tests;

use burn::tensor::DType;
use burn::tensor::backend::{AutodiffBackend, Backend};
use serde::{Deserialize, Serialize};

pub use known::KnownFault;
pub use operation::Operation;
pub use primitives::{OwnPrimitives, Primitives};
pub use report::{Check, Finding, Report};

use checks::Checks;

/// Raised whenever checks are added or change, so that kept reports of older ones can be told
/// apart.
pub const REVISION: u32 = 4;

/// A part of the check. It needs no other part, so parts can run in processes of their own: on a
/// GPU, most of the time goes to compilers of kernels, each of which keeps one core busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// Matrix products.
    Products,
    /// Softmax and attention.
    Attention,
    /// Selections, copies and sums.
    Indexing,
    /// Casts, norms, rotary embeddings, and chains that may be fused.
    Chains,
    /// Small decoders from tokens to logits.
    Decoders,
    /// Backward passes of single operations.
    Gradients,
    /// A backward pass through small decoders.
    DecoderGradients,
}

impl Part {
    /// All of them, in the order of [`check_backend`] and [`check_gradients`].
    pub const ALL: [Self; 7] = [
        Self::Products,
        Self::Attention,
        Self::Indexing,
        Self::Chains,
        Self::Decoders,
        Self::Gradients,
        Self::DecoderGradients,
    ];
}

/// Checks what a backend computes for models in `dtype`: f32, bf16 or f16. What models compute in
/// f32 whatever their dtype, such as norms and rotations, is checked in f32, so a model in 16 bits
/// needs the check in f32 too.
///
/// A panic of the backend is a finding; the panic hook still prints it. In a dtype that the device
/// does not support, checks fail.
pub fn check_backend<B: Backend>(device: &B::Device, dtype: DType) -> Report {
    check_backend_with::<B, _>(&OwnPrimitives, device, dtype)
}

/// As [`check_backend`], with some of the backend's operations replaced.
pub fn check_backend_with<B: Backend, P: Primitives<B>>(
    primitives: &P,
    device: &B::Device,
    dtype: DType,
) -> Report {
    let parts = Part::ALL.into_iter().filter_map(forward::<B, P>);
    let reports = parts.map(|part| run(part, primitives, device, dtype));
    reports.fold(Report::default(), Report::and)
}

/// Checks what a backend computes in backward passes: gradients of products, softmax, norms and
/// selections, and of a small decoder's logits with respect to a steering vector. Otherwise as
/// [`check_backend`].
pub fn check_gradients<B: AutodiffBackend>(device: &B::Device, dtype: DType) -> Report {
    check_gradients_with::<B, _>(&OwnPrimitives, device, dtype)
}

/// As [`check_gradients`], with some of the backend's operations replaced.
pub fn check_gradients_with<B: AutodiffBackend, P: Primitives<B>>(
    primitives: &P,
    device: &B::Device,
    dtype: DType,
) -> Report {
    let parts = Part::ALL.into_iter().filter_map(backward::<B, P>);
    let reports = parts.map(|part| run(part, primitives, device, dtype));
    reports.fold(Report::default(), Report::and)
}

/// One part of [`check_backend`] on the backend below, or of [`check_gradients`].
pub fn check_part<B: AutodiffBackend>(part: Part, device: &B::Device, dtype: DType) -> Report {
    let own = &OwnPrimitives;
    let of_inner = forward::<B::InnerBackend, _>(part).map(|part| run(part, own, device, dtype));
    let report = of_inner.or_else(|| Some(run(backward::<B, _>(part)?, own, device, dtype)));
    report.expect("a part is checked either way")
}

/// Checks of a part.
type Checking<B, P> = fn(&mut Checks<'_, B, P>);

/// The checks of a part without a backward pass.
fn forward<B: Backend, P: Primitives<B>>(part: Part) -> Option<Checking<B, P>> {
    Some(match part {
        Part::Products => products::check,
        Part::Attention => attention::check,
        Part::Indexing => indexing::check,
        Part::Chains => chains::check,
        Part::Decoders => decoder_checks::check,
        Part::Gradients | Part::DecoderGradients => return None,
    })
}

/// The checks of a part with a backward pass.
fn backward<B: AutodiffBackend, P: Primitives<B>>(part: Part) -> Option<Checking<B, P>> {
    match part {
        Part::Gradients => Some(gradients::check),
        Part::DecoderGradients => Some(decoder_checks::check_gradients),
        _ => None,
    }
}

fn run<B: Backend, P: Primitives<B>>(
    part: Checking<B, P>,
    primitives: &P,
    device: &B::Device,
    dtype: DType,
) -> Report {
    let mut checks = Checks::<B, P>::new(primitives, device, dtype);
    part(&mut checks);
    checks.finish()
}
