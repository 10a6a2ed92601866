//! Kullback-Leibler divergences.

use burn::tensor::{DType, Tensor, activation::log_softmax, backend::Backend};

/// `KL(p ‖ q) = Σ p (ln p − ln q)` of each row, in nats, where `p` and `q` are the softmaxes of its
/// logits; a class with `p = 0` adds nothing. Computed in f32.
///
/// # Shapes
/// - wanted (of `p`), found (of `q`): `[row, class]`
/// - output: `[row]`
///
/// # Panics
/// If the shapes differ.
pub fn kl_divergences<B: Backend>(wanted: Tensor<B, 2>, found: Tensor<B, 2>) -> Tensor<B, 1> {
    let (wanted, found) = (wanted.cast(DType::F32), found.cast(DType::F32));
    #[cfg(feature = "flex")]
    let [wanted, found] = match super::flex::kl_divergences(wanted, found) {
        Ok(divergences) => return divergences,
        Err(both) => both,
    };
    assert_eq!(wanted.dims(), found.dims(), "wanted and found");
    let (log_p, log_q) = (log_softmax(wanted, 1), log_softmax(found, 1));
    let p = log_p.clone().exp();
    let impossible = p.clone().equal_elem(0);
    let differences = (log_p - log_q).mask_fill(impossible, 0);
    (p * differences).sum_dim(1).squeeze_dim(1)
}
