//! Transcoders whose features write to several layers.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::dictionary::{check_layers, fits, fitting_skip, param};
use super::{DictionaryError, FeatureActivation};

/// The features of one layer of a cross-layer transcoder (Ameisen et al. 2025, Circuit Tracing,
/// "Building an interpretable replacement model"): they read one layer and write to the MLP outputs
/// of that layer and later ones.
///
/// ```text
/// f_ℓ = act(x_ℓ W_enc^ℓ, b_enc^ℓ)
/// y_L = Σ_{ℓ ≤ L} f_ℓ W_dec^{ℓ→L} + b_dec^L (+ x_L W_skip^L)
/// ```
/// A layer alone does not reconstruct anything: [`reconstruct`](Self::reconstruct) takes all
/// layers.
#[derive(Module, Debug)]
#[doc(alias = "CLT")]
pub struct CrossLayerTranscoder<B: Backend> {
    /// `W_enc`, `[d_in, feature]`.
    pub encoder: Param<Tensor<B, 2>>,
    /// `b_enc`, `[feature]`.
    pub encoder_bias: Param<Tensor<B, 1>>,
    /// From hidden values to features.
    pub activation: FeatureActivation<B>,
    /// `W_dec` to this layer and each later one, `[target, feature, d_out]`.
    pub decoders: Param<Tensor<B, 3>>,
    /// `b_dec` of this layer's output, `[d_out]`.
    pub decoder_bias: Param<Tensor<B, 1>>,
    /// `W_skip` of this layer, `[d_in, d_out]`.
    pub skip: Option<Param<Tensor<B, 2>>>,
    #[module(skip)]
    layer: usize,
}

impl<B: Backend> CrossLayerTranscoder<B> {
    /// The features of a layer.
    ///
    /// # Shapes
    /// - encoder: weight `[d_in, feature]`, bias `[feature]`
    /// - decoders: weights `[target, feature, d_out]`, the first of them to `layer`; bias `[d_out]`
    ///
    /// # Errors
    /// [`DictionaryError::Misfit`] if shapes do not match.
    pub fn new(
        layer: usize,
        encoder: (Tensor<B, 2>, Tensor<B, 1>),
        activation: FeatureActivation<B>,
        decoders: (Tensor<B, 3>, Tensor<B, 1>),
    ) -> Result<Self, DictionaryError> {
        let [_target, decoded, d_out] = decoders.0.dims();
        check_layers(&encoder, &activation, [decoded, d_out], decoders.1.dims())?;
        Ok(Self {
            encoder: param(encoder.0),
            encoder_bias: param(encoder.1),
            activation,
            decoders: param(decoders.0),
            decoder_bias: param(decoders.1),
            skip: None,
            layer,
        })
    }

    /// Adds a skip connection, `W_skip`, `[d_in, d_out]`.
    ///
    /// # Errors
    /// [`DictionaryError::Misfit`] if the shape does not match.
    pub fn with_skip(mut self, skip: Tensor<B, 2>) -> Result<Self, DictionaryError> {
        let [d_out] = self.decoder_bias.dims();
        self.skip = Some(fitting_skip(skip, [self.width(), d_out])?);
        Ok(self)
    }

    /// The layer that the features read, and the first that they write to.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// The layers that the features write to.
    pub fn targets(&self) -> std::ops::Range<usize> {
        let [targets, _feature, _d_out] = self.decoders.dims();
        self.layer..self.layer + targets
    }

    /// The width of the activation that it reads, `d_in`.
    pub fn width(&self) -> usize {
        let [d_in, _feature] = self.encoder.dims();
        d_in
    }

    /// The number of features of this layer.
    pub fn features(&self) -> usize {
        let [_d_in, features] = self.encoder.dims();
        features
    }

    /// The features of an activation of this layer.
    ///
    /// # Shapes
    /// - x: `[row, d_in]`
    /// - output: `[row, feature]`
    pub fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let hidden = x.cast(DType::F32).matmul(self.encoder.val());
        let bias = self.encoder_bias.val();
        self.activation.forward(hidden, bias, None)
    }

    /// What features of this layer, or changes of them, add to the output of a layer; `None` if
    /// they do not write to it.
    ///
    /// # Shapes
    /// - features: `[row, feature]`
    /// - output: `[row, d_out]`
    pub fn contribution(&self, features: Tensor<B, 2>, layer: usize) -> Option<Tensor<B, 2>> {
        if !self.targets().contains(&layer) {
            return None;
        }
        let target = layer - self.layer;
        let decoder = self.decoders.val().narrow(0, target, 1); // [1, feature, d_out]
        Some(features.matmul(decoder.squeeze_dim(0)))
    }

    /// The outputs of all layers, reconstructed from their inputs.
    ///
    /// # Shapes
    /// - inputs: one for each layer, `[row, d_in]`
    /// - outputs: one for each layer, `[row, d_out]`
    ///
    /// # Errors
    /// [`DictionaryError::Misfit`] if these are not the layers from 0 on in order, with an input
    /// for each.
    pub fn reconstruct(
        layers: &[Self],
        inputs: &[Tensor<B, 2>],
    ) -> Result<Vec<Tensor<B, 2>>, DictionaryError> {
        fits("inputs, one for each layer", layers.len(), inputs.len())?;
        for (expected, layer) in layers.iter().enumerate() {
            fits("layer in its place", expected, layer.layer)?;
        }
        let features: Vec<_> = (layers.iter().zip(inputs))
            .map(|(layer, x)| layer.encode(x.clone()))
            .collect();
        let outputs = layers.iter().zip(inputs).enumerate();
        let outputs = outputs.map(|(target, (layer, x))| {
            let [rows, _d_in] = x.dims();
            let [d_out] = layer.decoder_bias.dims();
            let bias = layer
                .decoder_bias
                .val()
                .unsqueeze::<2>()
                .expand([rows, d_out]);
            let start = match &layer.skip {
                Some(skip) => bias + x.clone().cast(DType::F32).matmul(skip.val()),
                None => bias,
            };
            let writers = layers[..=target].iter().zip(&features);
            writers
                .filter_map(|(writer, features)| writer.contribution(features.clone(), target))
                .fold(start, |sum, part| sum + part)
        });
        Ok(outputs.collect())
    }
}
