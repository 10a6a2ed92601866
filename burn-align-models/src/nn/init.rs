//! Parameters that are initialised when they are first read, each from its own seed.

use burn::module::{Param, ParamId};
use burn::nn::Embedding;
use burn::tensor::{DType, Distribution, Shape, Tensor, backend::Backend};

use super::weight::in_order;
use super::{Norm, NormKind, Projection, TokenEmbedding};

/// Makes the parameters of one model: random ones, or placeholders for those of a checkpoint.
///
/// Parameters are lazy: a model that is about to be loaded from a checkpoint allocates nothing
/// for them. Each draws from its own seed, so their values do not depend on which is read first.
#[derive(Debug)]
pub struct ParamInit<'a, B: Backend> {
    device: &'a B::Device,
    dtype: DType,
    seed: u64,
    std: f64,
}

impl<'a, B: Backend> ParamInit<'a, B> {
    /// Weights are drawn from a normal distribution with standard deviation `std`.
    ///
    /// - seed: models of different seeds share no numbers
    pub fn new(device: &'a B::Device, dtype: DType, seed: u64, std: f64) -> Self {
        Self {
            device,
            dtype,
            // Keeps the parameters of one model apart from those of the next seed.
            seed: seed << 20,
            std,
        }
    }

    /// A parameter whose elements all begin with this value.
    pub fn constant<const D: usize>(
        &mut self,
        shape: [usize; D],
        value: f64,
    ) -> Param<Tensor<B, D>> {
        let dtype = self.dtype;
        self.param(shape, move |device| {
            Tensor::full(Shape::new(shape), value, (device, dtype))
        })
    }

    /// A parameter of normally distributed elements.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<B, D>> {
        self.scaled_normal(shape, 1.0)
    }

    fn scaled_normal<const D: usize>(
        &mut self,
        shape: [usize; D],
        scale: f64,
    ) -> Param<Tensor<B, D>> {
        let draw = self.drawing(shape, scale);
        self.param(shape, draw)
    }

    /// Draws the elements of the next parameter.
    fn drawing<const D: usize>(
        &mut self,
        shape: [usize; D],
        scale: f64,
    ) -> impl Fn(&B::Device) -> Tensor<B, D> + Send + Sync + 'static + use<B, D> {
        let (dtype, seed) = (self.dtype, self.seed);
        self.seed += 1;
        let distribution = Distribution::Normal(0.0, self.std * scale);
        move |device| {
            B::seed(device, seed);
            Tensor::random(Shape::new(shape), distribution, (device, dtype))
        }
    }

    /// A vector for each row, `[row, d_model]`.
    pub fn embedding(&mut self, rows: usize, d_model: usize) -> Embedding<B> {
        Embedding {
            weight: self.normal([rows, d_model]),
        }
    }

    /// A vector for each token, `[vocab, d_model]`.
    pub fn token_embedding(&mut self, vocab: usize, d_model: usize) -> TokenEmbedding<B> {
        TokenEmbedding::new(self.normal([vocab, d_model]))
    }

    /// A norm of vectors of this width that does not change their scale yet.
    pub fn norm(&mut self, kind: NormKind, width: usize, epsilon: f64) -> Norm<B> {
        Norm::new(kind, width, epsilon, self)
    }

    /// `[d_input, d_output]`, with a bias of 0 if there is one.
    pub fn linear(&mut self, d_input: usize, d_output: usize, bias: bool) -> Projection<B> {
        self.scaled_linear(d_input, d_output, bias, 1.0)
    }

    /// A linear layer whose initial weights are `scale` times the usual size.
    pub fn scaled_linear(
        &mut self,
        d_input: usize,
        d_output: usize,
        bias: bool,
        scale: f64,
    ) -> Projection<B> {
        Projection::new(
            self.scaled_matrix([d_input, d_output], scale),
            bias.then(|| self.constant([d_output], 0.0)),
        )
    }

    fn scaled_matrix(&mut self, shape: [usize; 2], scale: f64) -> Param<Tensor<B, 2>> {
        let draw = self.drawing(shape, scale);
        self.param(shape, move |device| in_order(draw(device)))
    }

    fn param<const D: usize>(
        &self,
        shape: [usize; D],
        value: impl Fn(&B::Device) -> Tensor<B, D> + Send + Sync + 'static,
    ) -> Param<Tensor<B, D>> {
        Param::uninitialized(
            ParamId::new(),
            move |device, require_grad| {
                let tensor = value(device);
                if require_grad {
                    tensor.require_grad()
                } else {
                    tensor
                }
            },
            self.device.clone(),
            true,
            Shape::new(shape),
        )
    }
}
