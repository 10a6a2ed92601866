//! Shared by the tests.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align::engine::LogitPositions;
use burn_align::methods::attribution::Metric;
use burn_align_models::{Decoder, FromPretrained, LoadOptions, Site, Tap, TokenBatch};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
pub(crate) use workbench::fixtures::fixtures;

/// Declares each test once for every backend compiled in, as `flex::NAME`, `ndarray::NAME`, ….
macro_rules! on_every_backend {
    ($($test:ident),+ $(,)?) => {
        on_every_backend!(@one flex, "flex", burn::backend::Flex, $($test),+);
        on_every_backend!(@one ndarray, "ndarray", burn::backend::NdArray, $($test),+);
        on_every_backend!(@one wgpu, "wgpu", burn::backend::Wgpu, $($test),+);
        on_every_backend!(@one vulkan, "vulkan", burn::backend::Vulkan, $($test),+);
        on_every_backend!(@one metal, "metal", burn::backend::Metal, $($test),+);
        on_every_backend!(@one cuda, "cuda", burn::backend::Cuda, $($test),+);
        on_every_backend!(@one rocm, "rocm", burn::backend::Rocm, $($test),+);
    };
    (@one $module:ident, $feature:literal, $backend:ty, $($test:ident),+) => {
        #[cfg(feature = $feature)]
        mod $module {
            $(
                #[test]
                fn $test() {
                    super::$test::<$backend>(&Default::default());
                }
            )+
        }
    };
}

/// A small model of every family, and of both kinds of residual where a family has two.
pub(crate) const FAMILIES: [&str; 14] = [
    "gpt2_plain",
    "gpt_neo_plain",
    "gpt_neox_plain",
    "gpt_neox_sequential",
    "llama_gqa",
    "mistral_window",
    "qwen2_window",
    "qwen3_plain",
    "gemma2_plain",
    "gemma3_plain",
    "phi_plain",
    "phi_qk_layernorm",
    "phi3_plain",
    "olmo2_plain",
];

/// Every checkpoint among the fixtures, by name.
pub(crate) fn checkpoints() -> BTreeMap<String, PathBuf> {
    workbench::fixtures::checkpoints().expect("the fixtures are there")
}

/// The model of a checkpoint among the fixtures.
pub(crate) fn load<B: Backend>(name: &str, device: &B::Device) -> Decoder<B> {
    Decoder::from_pretrained(
        checkpoints()[name].as_path(),
        &LoadOptions::default(),
        device,
    )
    .expect("the fixture loads")
    .model
}

/// A batch of examples.
pub(crate) fn tokens(rows: &[&[u32]]) -> TokenBatch {
    TokenBatch::new(rows.iter().map(|row| row.to_vec()).collect()).expect("a batch")
}

/// The tensors of a safetensors file, floats as f32 and integers as i64.
pub(crate) fn read_tensors(file: &Path) -> BTreeMap<String, TensorData> {
    read_tensors_where(file, |_| true)
}

/// The same without those whose names begin so.
pub(crate) fn read_tensors_but(file: &Path, prefix: &str) -> BTreeMap<String, TensorData> {
    read_tensors_where(file, |name| !name.starts_with(prefix))
}

fn read_tensors_where(file: &Path, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, TensorData> {
    workbench::fixtures::read_tensors(file, wanted).expect("the fixture can be read")
}

/// The values of a tensor, in f32.
pub(crate) fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor
        .cast(DType::F32)
        .into_data()
        .to_vec()
        .expect("f32 values")
}

/// The largest absolute difference between a tensor and what it should be.
pub(crate) fn max_difference<B: Backend, const D: usize>(
    found: Tensor<B, D>,
    expected: &TensorData,
) -> f32 {
    assert_eq!(found.dims()[..], expected.shape[..], "shapes differ");
    let expected: Vec<f32> = expected.to_vec().expect("f32 values");
    let found = values(found);
    let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    // A NaN must not pass as a small difference.
    differences.fold(0.0, |max, d| if d <= max { max } else { d })
}

/// An error's message. It includes the cause.
pub(crate) fn message(error: &dyn std::error::Error) -> String {
    assert!(error.source().is_none(), "a separate cause: {error:?}");
    error.to_string()
}

/// A tolerance for gradients, relative to the largest: Burn 0.21's NdArray takes reciprocals of 12
/// bits where it can compute several at once, and gradients of quotients are made of them.
pub(crate) fn of_gradients<B: Backend>(device: &B::Device, tolerance: f64) -> f64 {
    match B::name(device).as_str() {
        "ndarray" => tolerance.max(5e-3),
        _ => tolerance,
    }
}

/// Numbers between -1 and 1.
pub(crate) fn random<B: Backend, const D: usize>(
    seed: u64,
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count: usize = shape.iter().product();
    let numbers = (0..count).map(|_| rng.random_range(-1.0..1.0));
    let data = TensorData::new(numbers.collect::<Vec<f32>>(), shape);
    Tensor::from_data(data, (device, DType::F32))
}

/// Replaces activations, by the last value that is given for a site, and keeps all.
pub(crate) struct Replacing<B: Backend> {
    replaced: Vec<(Site, Tensor<B, 4>)>,
    /// Every activation, after it was replaced.
    pub(crate) seen: HashMap<Site, Tensor<B, 4>>,
}

impl<B: Backend> Replacing<B> {
    pub(crate) fn new(replaced: Vec<(Site, Tensor<B, 4>)>) -> Self {
        Self {
            replaced,
            seen: HashMap::new(),
        }
    }
}

impl<B: Backend> Tap<B> for Replacing<B> {
    fn wants(&self, _site: Site) -> bool {
        true
    }

    fn visit(&mut self, site: Site, activation: Tensor<B, 4>) -> Tensor<B, 4> {
        let replaced = self.replaced.iter().rev().find(|(at, _)| *at == site);
        let activation = replaced.map_or(activation, |(_, value)| value.clone());
        self.seen.insert(site, activation.clone());
        activation
    }
}

/// Output 0 less output 1, summed over positions.
pub(crate) struct Everywhere;

impl Metric for Everywhere {
    fn positions(&self) -> LogitPositions {
        LogitPositions::All
    }

    fn values<B: Backend>(&self, logits: Tensor<B, 3>, _examples: &[usize]) -> Tensor<B, 1> {
        let [batch, _pos, _outputs] = logits.dims();
        let output = |index| logits.clone().narrow(2, index, 1);
        (output(0) - output(1)).sum_dim(1).reshape([batch])
    }
}
