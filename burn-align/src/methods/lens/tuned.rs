//! The tuned lens: a translator for each site, before the logit lens.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, Site};

use super::LensError;
use super::logit::{lens_logits, streams};
use crate::engine::{LogitPositions, RunOptions, WorldInput};

/// `h + h A + b`: from the residual stream at one site to the one that leaves the last layer.
#[derive(Module, Debug)]
pub struct Translator<B: Backend> {
    /// `A`, `[d_model, d_model]`, which multiplies rows from the right.
    pub weight: Param<Tensor<B, 2>>,
    /// `b`, `[d_model]`.
    pub bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> Translator<B> {
    /// A translator that changes nothing: the logit lens.
    pub fn identity(d_model: usize, device: &B::Device) -> Self {
        let options = (device, DType::F32);
        Self {
            weight: Param::from_tensor(Tensor::zeros([d_model, d_model], options)),
            bias: Param::from_tensor(Tensor::zeros([d_model], options)),
        }
    }

    /// Translates, in f32, and returns to the dtype of the stream.
    ///
    /// # Shapes
    /// - x, output: `[batch, unit, d_model]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let dtype = x.dtype();
        let [batch, unit, d_model] = x.dims();
        let x = x.cast(DType::F32).reshape([batch * unit, d_model]);
        let translated = x.clone() + x.matmul(self.weight.val()) + self.bias.val().unsqueeze();
        translated.reshape([batch, unit, d_model]).cast(dtype)
    }
}

/// A tuned lens (Belrose et al. 2023, arXiv 2303.08112): an affine translator for each of some
/// sites. Trained by [`train_tuned_lens`](super::train_tuned_lens), applied by [`tuned_lens`].
#[derive(Module, Debug)]
pub struct TunedLens<B: Backend> {
    /// A translator for each site.
    pub translators: Vec<Translator<B>>,
    #[module(skip)]
    sites: Vec<Site>,
}

impl<B: Backend> TunedLens<B> {
    /// A lens that changes nothing at these sites.
    pub fn identity(sites: &[Site], d_model: usize, device: &B::Device) -> Self {
        let translators = sites.iter().map(|_| Translator::identity(d_model, device));
        Self::new(translators.collect(), sites.to_vec())
    }

    pub(super) fn new(translators: Vec<Translator<B>>, sites: Vec<Site>) -> Self {
        Self { translators, sites }
    }

    /// The sites, in the order of the translators.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// The translator of a site.
    pub fn translator(&self, site: Site) -> Option<&Translator<B>> {
        let index = self.sites.iter().position(|other| *other == site)?;
        self.translators.get(index)
    }

    /// Width of the residual stream; 0 if there are no sites.
    pub fn d_model(&self) -> usize {
        self.translators.first().map_or(0, |translator| {
            let [d_model, _d_model] = translator.weight.dims();
            d_model
        })
    }
}

/// The tuned lens: `W_U · norm_f(h + h A + b)` at each of these sites, in one pass; otherwise as
/// [`logit_lens`](super::logit_lens).
///
/// # When it misleads
/// The translators were trained to predict the model's final answer, so they may read it from what
/// merely correlates with it, earlier than the model does.
///
/// # Errors
/// As [`logit_lens`](super::logit_lens), or if the lens has no translator for a site, or is of
/// another width.
pub fn tuned_lens<B: Backend, M: AlignableTransformer<B>, R>(
    model: &M,
    lens: &TunedLens<B>,
    input: impl Into<WorldInput<B>>,
    sites: &[Site],
    positions: &LogitPositions,
    options: &RunOptions,
    mut read: impl FnMut(Site, Tensor<B, 3>) -> R,
) -> Result<Vec<R>, LensError> {
    let translators = translators_of(lens, sites, model.dims().d_model)?;
    let streams = streams(model, &input.into(), sites, positions, options)?;
    let mut results = Vec::new();
    for ((site, translator), stream) in sites.iter().zip(translators).zip(streams) {
        let logits = lens_logits(model, *site, translator.forward(stream));
        results.push(read(*site, logits));
    }
    Ok(results)
}

/// The translators of these sites, each as wide as the stream.
pub(super) fn translators_of<'a, B: Backend>(
    lens: &'a TunedLens<B>,
    sites: &[Site],
    d_model: usize,
) -> Result<Vec<&'a Translator<B>>, LensError> {
    let translators = sites.iter().map(|site| {
        let translator = lens.translator(*site).ok_or_else(|| {
            let known = lens.sites.iter().map(Site::to_string);
            LensError::NoTranslator {
                site: *site,
                known: known.collect::<Vec<_>>().join(", "),
            }
        })?;
        let [rows, columns] = translator.weight.dims();
        let [bias] = translator.bias.dims();
        let widths = [rows, columns, bias];
        match widths.into_iter().find(|width| *width != d_model) {
            Some(found) => Err(LensError::Width {
                expected: d_model,
                found,
            }),
            None => Ok(translator),
        }
    });
    translators.collect()
}
