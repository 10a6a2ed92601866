//! Products of a model's largest matrix alone, as it lies and transposed.

use anyhow::Result;
use burn::tensor::{Distribution, Tensor, backend::Backend};
use burn_align_models::ModelDims;

use crate::catalogue::{Choices, Task, Workload};
use crate::run::Bench;
use crate::timing::{Times, time};

/// The family.
pub(crate) const FAMILY: &str = "product";
/// How many products a repeat has, so that little of it is waiting.
const PRODUCTS: usize = 16;

/// Vectors times a matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    rows: usize,
    /// Of the matrix.
    shape: [usize; 2],
    /// Whether the matrix lies transposed, `[out, in]`.
    transposed: bool,
}

/// One row, as in a text, some, and those of a batch.
pub(crate) fn workloads(dims: &ModelDims, choices: &Choices) -> Vec<Workload> {
    let batch = choices.inputs(32, 80);
    let shape @ [inputs, outputs] = [dims.d_model, dims.d_mlp];
    let rows = [1, 16, batch.batch * batch.pos].into_iter();
    let products = rows.flat_map(|rows| {
        [("", false), ("_transposed", true)].map(|(suffix, transposed)| Workload {
            family: FAMILY,
            name: format!("{FAMILY}_{rows}x{inputs}x{outputs}{suffix}"),
            what: format!(
                "{PRODUCTS} times {rows} vectors by a matrix{}",
                match transposed {
                    true => " that lies output by output",
                    false => "",
                }
            ),
            task: Task::Product(Product {
                rows,
                shape,
                transposed,
            }),
        })
    });
    products.collect()
}

impl<B: Backend> Bench<'_, B> {
    pub(crate) fn product(&self, it: Product) -> Result<Times> {
        let [inputs, outputs] = it.shape;
        let random = |shape: [usize; 2], deviation: f64| {
            let distribution = Distribution::Normal(0.0, deviation);
            Tensor::<B, 2>::random(shape, distribution, self.device).cast(self.dtype)
        };
        let deviation = (inputs as f64).sqrt().recip();
        let matrix = match it.transposed {
            true => random([outputs, inputs], deviation).transpose(),
            false => random([inputs, outputs], deviation),
        };
        let vectors = random([it.rows, inputs], 1.0);
        let run = || {
            let product = |_| vectors.clone().matmul(matrix.clone());
            Ok((0..PRODUCTS).map(product).collect::<Vec<_>>())
        };
        time::<B, _>(run, self.repeats, self.device)
    }
}
