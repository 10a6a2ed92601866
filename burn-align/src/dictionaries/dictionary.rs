//! A dictionary and what it computes.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::{ActiveFeatures, DictionaryError, FeatureActivation, InputNorm};

/// What a dictionary reconstructs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DictionaryKind {
    /// The activation that it reads: a sparse autoencoder.
    #[default]
    Autoencoder,
    /// Another activation: a transcoder (Dunefsky et al. 2024, arXiv 2406.11944), which reads the
    /// MLP's input and reconstructs its output.
    Transcoder,
}

/// A sparse dictionary: an autoencoder or a transcoder of one activation.
///
/// ```text
/// f = act(n(x) W_enc, b_enc)                       features of x, `[row, feature]`
/// y = f W_dec + b_dec                              the reconstruction, `[row, d_out]`
/// ```
/// where `n` normalises the input and subtracts `b_dec`, in dictionaries that do this;
/// autoencoders map `y` back to the scale of `x`, and skip transcoders (Paulo et al. 2025,
/// arXiv 2501.18823) add `x W_skip`. A transcoder subtracts no bias.
///
/// What is not reconstructed is the [`error`](Self::error). To edit features and keep the error,
/// add the [`contribution`](Self::contribution) of the change to the activation: an edit that
/// changes nothing adds zeros.
///
/// All products are in f32, the dtype of the parameters.
///
/// # Axes
/// `row`: tokens, of all examples; `d_in`, `d_out`: widths of the activations, with all heads in
/// one row (head by head) if the activation has heads; `feature`: the dictionary's features.
#[derive(Module, Debug)]
#[doc(alias = "SAE")]
#[doc(alias = "transcoder")]
pub struct Dictionary<B: Backend> {
    /// `W_enc`, `[d_in, feature]`.
    pub encoder: Param<Tensor<B, 2>>,
    /// `b_enc`, `[feature]`; of a gated dictionary, the bias of the gate.
    pub encoder_bias: Param<Tensor<B, 1>>,
    /// From hidden values to features.
    pub activation: FeatureActivation<B>,
    /// `W_dec`, `[feature, d_out]`.
    pub decoder: Param<Tensor<B, 2>>,
    /// `b_dec`, `[d_out]`.
    pub decoder_bias: Param<Tensor<B, 1>>,
    /// `W_skip`, `[d_in, d_out]`.
    pub skip: Option<Param<Tensor<B, 2>>>,
    #[module(skip)]
    kind: DictionaryKind,
    #[module(skip)]
    input_norm: InputNorm,
    #[module(skip)]
    subtracts_bias: bool,
}

impl<B: Backend> Dictionary<B> {
    /// A dictionary with these parameters, which neither normalises its input nor subtracts
    /// `b_dec`: an autoencoder if input and output have the same width, otherwise a transcoder.
    ///
    /// # Shapes
    /// - encoder: weight `[d_in, feature]`, bias `[feature]`
    /// - decoder: weight `[feature, d_out]`, bias `[d_out]`
    ///
    /// # Errors
    /// [`DictionaryError::Misfit`] if shapes do not match, or `k` is not from 1 to the number of
    /// features.
    pub fn new(
        encoder: (Tensor<B, 2>, Tensor<B, 1>),
        activation: FeatureActivation<B>,
        decoder: (Tensor<B, 2>, Tensor<B, 1>),
    ) -> Result<Self, DictionaryError> {
        check_layers(&encoder, &activation, decoder.0.dims(), decoder.1.dims())?;
        Ok(Self::of_layers(encoder, activation, decoder))
    }

    /// The same with layers that are known to fit.
    pub(crate) fn of_layers(
        encoder: (Tensor<B, 2>, Tensor<B, 1>),
        activation: FeatureActivation<B>,
        decoder: (Tensor<B, 2>, Tensor<B, 1>),
    ) -> Self {
        let [d_in, _feature] = encoder.0.dims();
        let [_feature, d_out] = decoder.0.dims();
        Self {
            encoder: param(encoder.0),
            encoder_bias: param(encoder.1),
            activation,
            decoder: param(decoder.0),
            decoder_bias: param(decoder.1),
            skip: None,
            kind: match d_in == d_out {
                true => DictionaryKind::Autoencoder,
                false => DictionaryKind::Transcoder,
            },
            input_norm: InputNorm::None,
            subtracts_bias: false,
        }
    }

    /// The same parameters as a transcoder, or as an autoencoder.
    ///
    /// # Errors
    /// [`DictionaryError::Misfit`] for an autoencoder with different input and output widths.
    pub fn with_kind(mut self, kind: DictionaryKind) -> Result<Self, DictionaryError> {
        if kind == DictionaryKind::Autoencoder {
            fits(
                "width of an autoencoder's output",
                self.width(),
                self.d_out(),
            )?;
        }
        self.kind = kind;
        Ok(self)
    }

    /// Normalises the input.
    pub fn with_input_norm(mut self, input_norm: InputNorm) -> Self {
        self.input_norm = input_norm;
        self
    }

    /// Subtracts `b_dec` from the (normalised) input, or does not.
    ///
    /// # Errors
    /// [`DictionaryError::Misfit`] if `b_dec` has another width than the input.
    #[doc(alias = "apply_b_dec_to_input")]
    pub fn with_subtracted_bias(mut self, subtracts_bias: bool) -> Result<Self, DictionaryError> {
        if subtracts_bias {
            fits("decoder's bias, to subtract it", self.width(), self.d_out())?;
        }
        self.subtracts_bias = subtracts_bias;
        Ok(self)
    }

    /// Subtracts `b_dec`, which is known to be as wide as the input.
    pub(crate) fn subtracting_bias(mut self) -> Self {
        self.subtracts_bias = true;
        self
    }

    /// Adds a skip connection, `W_skip`, `[d_in, d_out]`.
    ///
    /// # Errors
    /// [`DictionaryError::Misfit`] if the shape does not match.
    pub fn with_skip(mut self, skip: Tensor<B, 2>) -> Result<Self, DictionaryError> {
        self.skip = Some(fitting_skip(skip, [self.width(), self.d_out()])?);
        Ok(self)
    }

    /// The width of the activation that it reads, `d_in`.
    pub fn width(&self) -> usize {
        let [d_in, _feature] = self.encoder.dims();
        d_in
    }

    /// The width of the activation that it reconstructs.
    pub fn d_out(&self) -> usize {
        let [_feature, d_out] = self.decoder.dims();
        d_out
    }

    /// The number of features.
    #[doc(alias = "d_sae")]
    pub fn features(&self) -> usize {
        let [_d_in, features] = self.encoder.dims();
        features
    }

    /// Whether it is an autoencoder or a transcoder.
    pub fn kind(&self) -> DictionaryKind {
        self.kind
    }

    /// How the input is normalised.
    pub fn input_norm(&self) -> InputNorm {
        self.input_norm
    }

    /// Whether `b_dec` is subtracted from the input.
    pub fn subtracts_bias(&self) -> bool {
        self.subtracts_bias
    }

    /// The features of an activation.
    ///
    /// # Shapes
    /// - x: `[row, d_in]`
    /// - output: `[row, feature]`
    pub fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let hidden = self.read(x).matmul(self.encoder.val());
        self.activation
            .forward(hidden, self.encoder_bias.val(), None)
    }

    /// What these features reconstruct. The input gives the scale of a normalised activation and
    /// feeds a skip connection; other dictionaries do not use it.
    ///
    /// # Shapes
    /// - features: `[row, feature]`
    /// - input: the activation that they are from, `[row, d_in]`
    /// - output: `[row, d_out]`
    pub fn decode(&self, features: Tensor<B, 2>, input: &Tensor<B, 2>) -> Tensor<B, 2> {
        self.write(features.matmul(self.decoder.val()), input)
    }

    /// What these features, or changes of features, add to the reconstruction: `f W_dec` in units
    /// of the reconstructed activation, without bias and skip connection.
    ///
    /// To edit features and keep the reconstruction error, add the contribution of `f′ − f` to the
    /// reconstructed activation.
    ///
    /// # Shapes
    /// - features: `[row, feature]`
    /// - input: the activation that they are from, `[row, d_in]`
    /// - output: `[row, d_out]`
    pub fn contribution(&self, features: Tensor<B, 2>, input: &Tensor<B, 2>) -> Tensor<B, 2> {
        self.in_units(features.matmul(self.decoder.val()), input)
    }

    /// Encodes and decodes. If few features are active in any row, only they are decoded.
    ///
    /// # Shapes
    /// - x: `[row, d_in]`
    /// - output: `[row, d_out]`
    pub fn reconstruct(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        // Selecting rows of the decoder moves each of them three times, the product once.
        const PAYS: usize = 4;
        let features = self.encode(x.clone());
        let active = ActiveFeatures::of(&features);
        match active.features().len() * PAYS <= self.features() {
            true => active.decode(self, &x),
            false => self.decode(features, &x),
        }
    }

    /// What is not reconstructed: `target − reconstruct(input)`.
    ///
    /// # Shapes
    /// - input: `[row, d_in]`
    /// - target: `[row, d_out]`; for an autoencoder, the input
    /// - output: `[row, d_out]`
    pub fn error(&self, input: Tensor<B, 2>, target: Tensor<B, 2>) -> Tensor<B, 2> {
        target.cast(DType::F32) - self.reconstruct(input)
    }

    /// Folds a constant factor of the input into the weights, so that the dictionary reads the
    /// activation itself: `W_enc s`, `W_dec / s`, `b_dec / s`. Features and thresholds stay as they
    /// were in training. SAELens: `fold_activation_norm_scaling_factor`; the factor is usually
    /// `√d_in` over the mean norm of the activations.
    #[doc(alias = "expected_average_only_in")]
    pub fn with_input_scale(self, scale: f64) -> Self {
        self.with_scales(scale, scale)
    }

    /// The same with a factor of its own for the output.
    pub(super) fn with_scales(mut self, input: f64, output: f64) -> Self {
        self.encoder = folded(self.encoder, |weight| weight * input);
        self.decoder = folded(self.decoder, |weight| weight / output);
        self.decoder_bias = folded(self.decoder_bias, |bias| bias / output);
        let skip = self.skip.take();
        self.skip = skip.map(|skip| folded(skip, |weight| weight * (input / output)));
        self
    }

    /// Scales each feature such that its decoder direction has norm 1: activations can then be
    /// compared between features. What is reconstructed does not change. SAELens:
    /// `fold_W_dec_norm`; dictionary_learning does this when it loads an `AutoEncoder`.
    ///
    /// # Errors
    /// [`DictionaryError::Misfit`] for TopK, where it would change which features are active.
    #[doc(alias = "fold_W_dec_norm")]
    pub fn with_unit_decoder(self) -> Result<Self, DictionaryError> {
        if !self.activation.is_local() {
            return Err(DictionaryError::Misfit {
                part: "activation, to scale features",
                expected: "one in which features do not compete".to_owned(),
                found: "TopK, which would select others".to_owned(),
            });
        }
        Ok(self.scaled_by_decoder())
    }

    /// Folds the norms of the decoder's directions into the encoder.
    pub(super) fn scaled_by_decoder(mut self) -> Self {
        /// SAELens' smallest norm.
        const SMALLEST: f64 = 1e-8;
        let decoder = self.decoder.val().set_require_grad(false);
        let squares = decoder.square().sum_dim(1); // [feature, 1]
        let norms = squares.sqrt().clamp_min(SMALLEST);
        let row = norms.clone().transpose(); // [1, feature]
        let vector: Tensor<B, 1> = norms.clone().squeeze_dim(1);
        let times = |param: Param<Tensor<B, 1>>| folded(param, |values| values * vector.clone());
        self.encoder = folded(self.encoder, |weight| weight * row);
        self.encoder_bias = times(self.encoder_bias);
        self.decoder = folded(self.decoder, |weight| weight / norms);
        self.activation = match self.activation {
            FeatureActivation::JumpRelu(mut it) => {
                it.threshold = times(it.threshold);
                FeatureActivation::JumpRelu(it)
            }
            FeatureActivation::Gated(mut it) => {
                it.magnitude_bias = times(it.magnitude_bias);
                FeatureActivation::Gated(it)
            }
            other => other,
        };
        self
    }

    /// The activation as the encoder reads it, `[row, d_in]`.
    pub(super) fn read(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let x = self.input_norm.apply(x.cast(DType::F32));
        match self.subtracts_bias {
            true => x - self.decoder_bias.val().unsqueeze::<2>(),
            false => x,
        }
    }

    /// A sum of decoder directions in units of the reconstructed activation, `[row, d_out]`.
    pub(crate) fn in_units(&self, sum: Tensor<B, 2>, input: &Tensor<B, 2>) -> Tensor<B, 2> {
        match self.kind {
            DictionaryKind::Autoencoder => self.input_norm.rescale(sum, input),
            DictionaryKind::Transcoder => sum,
        }
    }

    /// The reconstruction from a sum of decoder directions, `[row, d_out]`.
    pub(super) fn write(&self, sum: Tensor<B, 2>, input: &Tensor<B, 2>) -> Tensor<B, 2> {
        let y = sum + self.decoder_bias.val().unsqueeze::<2>();
        let y = match self.kind {
            DictionaryKind::Autoencoder => self.input_norm.undo(y, input),
            DictionaryKind::Transcoder => y,
        };
        match &self.skip {
            Some(skip) => y + input.clone().cast(DType::F32).matmul(skip.val()),
            None => y,
        }
    }
}

/// The parameter with another value, and tracked as before.
fn folded<B: Backend, const D: usize>(
    param: Param<Tensor<B, D>>,
    change: impl FnOnce(Tensor<B, D>) -> Tensor<B, D>,
) -> Param<Tensor<B, D>> {
    param.map(|tensor| {
        let tracked = tensor.is_require_grad();
        change(tensor.set_require_grad(false)).set_require_grad(tracked)
    })
}

/// A parameter in f32.
pub(super) fn param<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Param<Tensor<B, D>> {
    Param::from_tensor(tensor.cast(DType::F32))
}

/// Checks that an encoder, an activation function and a decoder `[feature, d_out]` fit.
pub(super) fn check_layers<B: Backend>(
    encoder: &(Tensor<B, 2>, Tensor<B, 1>),
    activation: &FeatureActivation<B>,
    [decoded, d_out]: [usize; 2],
    [decoder_biases]: [usize; 1],
) -> Result<(), DictionaryError> {
    let [_d_in, features] = encoder.0.dims();
    let [encoder_biases] = encoder.1.dims();
    fits("number of features in the decoder", features, decoded)?;
    fits("encoder's bias", features, encoder_biases)?;
    fits("decoder's bias", d_out, decoder_biases)?;
    check_activation(activation, features)
}

/// A skip connection of this shape, `[d_in, d_out]`.
pub(super) fn fitting_skip<B: Backend>(
    skip: Tensor<B, 2>,
    expected: [usize; 2],
) -> Result<Param<Tensor<B, 2>>, DictionaryError> {
    let found = skip.dims();
    fits("rows of the skip connection", expected[0], found[0])?;
    fits("columns of the skip connection", expected[1], found[1])?;
    Ok(param(skip))
}

fn check_activation<B: Backend>(
    activation: &FeatureActivation<B>,
    features: usize,
) -> Result<(), DictionaryError> {
    match activation {
        FeatureActivation::Relu(_) => Ok(()),
        FeatureActivation::JumpRelu(it) => {
            let [thresholds] = it.threshold.dims();
            fits("thresholds", features, thresholds)
        }
        FeatureActivation::Gated(it) => {
            let ([magnitudes], [biases]) = (it.log_magnitude.dims(), it.magnitude_bias.dims());
            fits("magnitudes", features, magnitudes)?;
            fits("biases of magnitudes", features, biases)
        }
        FeatureActivation::TopK(it) if (1..=features).contains(&it.k) => Ok(()),
        FeatureActivation::TopK(it) => Err(DictionaryError::Misfit {
            part: "k",
            expected: format!("1 to {features}, the number of features"),
            found: it.k.to_string(),
        }),
    }
}

pub(super) fn fits(
    part: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), DictionaryError> {
    match expected == found {
        true => Ok(()),
        false => Err(DictionaryError::Misfit {
            part,
            expected: expected.to_string(),
            found: found.to_string(),
        }),
    }
}
