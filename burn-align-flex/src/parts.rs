//! Parts of a tensor whose gradients are summed where they belong.

use std::any::TypeId;
use std::ops::Range;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{DType, Shape, Slice, Tensor, TensorData, TensorMetadata, backend::Backend};
use burn_flex::{Flex, FlexTensor};

use super::autodiff::{self, Tracked};
use super::recognise::{generic, recognise_view};
use super::{kernels, memory, strided};

/// What the gradient of a part needs: the shape of the whole, and the rows.
type State = (Shape, Range<usize>);

#[derive(Debug)]
struct OfPart;

impl Backward<Flex, 1> for OfPart {
    type State = State;

    fn backward(self, ops: Ops<State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        let (shape, rows) = ops.state;
        let of_part = gradients.consume::<Flex>(&ops.node);
        let Some(node) = parent else { return };
        // Takes a tensor, but looks only at its node.
        let mut whole = Tracked::new(of_part.clone());
        whole.node = node.clone();
        let mut sum = match gradients.remove::<Flex>(&whole) {
            Some(of_others) => strided::contiguous(of_others),
            None => {
                let zeros = memory::zeros(shape.num_elements());
                FlexTensor::from_data(TensorData::new(zeros, shape.clone()))
            }
        };
        let width = shape.num_elements() / shape[0].max(1);
        let part = &mut sum.storage_mut::<f32>()[rows.start * width..rows.end * width];
        let of_part = strided::contiguous(of_part);
        kernels::add(part, of_part.storage());
        memory::give(of_part);
        gradients.register::<Flex>(node.id, sum);
    }
}

/// Some entries of the first axis: a view. With gradients, those of several parts of one tensor are
/// summed in place; that of a slice is as large as the whole, and nearly all of it zeros.
///
/// # Shapes
/// - x: `[row, …]`
/// - output: `[rows.len(), …]`
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it. Without autodiff there is none: a slice is a view.
///
/// # Panics
/// If there are not as many rows.
pub fn part_of_rows<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    rows: Range<usize>,
) -> Result<Tensor<B, D>, Tensor<B, D>> {
    let all = x.dims()[0];
    assert!(
        rows.start <= rows.end && rows.end <= all,
        "{rows:?} of {all} rows"
    );
    let x = match recognise_view(x) {
        Ok(x) => return Err(generic(x)),
        Err(x) => autodiff::recognise(x)?,
    };
    let shape = x.primitive.shape();
    let mut slices = [Slice::from(..); D];
    slices[0] = Slice::from(rows.clone());
    let part = Flex::float_slice(x.primitive, &slices);
    let prepared = OfPart.prepare::<NoCheckpointing>([x.node]).compute_bound();
    Ok(autodiff::generic(match prepared.stateful() {
        OpsKind::Tracked(prepared) => prepared.finish((shape, rows), part),
        OpsKind::UnTracked(prepared) => prepared.finish(part),
    }))
}

/// Whether [`part_of_rows`] has a kernel for parts of this tensor.
pub fn sums_parts_in_place<B: Backend, const D: usize>(x: &Tensor<B, D>) -> bool {
    let tracked = TypeId::of::<FloatTensor<B>>() == TypeId::of::<Tracked>();
    tracked && x.dtype() == DType::F32
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::tensor::Distribution;

    use super::*;

    type A = Autodiff<Flex>;

    /// A loss of several parts of a product, some of which overlap, and of the whole.
    fn loss(
        whole: &Tensor<A, 3>,
        part: impl Fn(Tensor<A, 3>, Range<usize>) -> Tensor<A, 3>,
    ) -> Tensor<A, 1> {
        let parts = [0..2, 2..5, 1..4, 3..3];
        let parts = parts.into_iter().zip(1..).map(|(rows, factor)| {
            let part = part(whole.clone(), rows);
            (part.powi_scalar(2) * factor).sum()
        });
        parts.reduce(|sum, more| sum + more).expect("several") + whole.clone().sum()
    }

    #[test]
    fn gradients_are_those_of_slices() {
        let device = Default::default();
        let x = Tensor::<A, 3>::random([5, 3, 700], Distribution::Default, &device);
        for is_leaf in [true, false] {
            let gradient = |part: &dyn Fn(Tensor<A, 3>, Range<usize>) -> Tensor<A, 3>| {
                let x = x.clone().detach().require_grad();
                let whole = match is_leaf {
                    true => x.clone(),
                    false => x.clone() * 3,
                };
                let gradients = loss(&whole, part).backward();
                x.grad(&gradients).expect("a gradient").into_data()
            };
            let ours = |x, rows| part_of_rows(x, rows).expect("a kernel");
            let found = gradient(&ours);
            let expected = gradient(&|x, rows| x.slice_dim(0, rows));
            assert_eq!(found.shape, expected.shape);
            for (found, expected) in found.iter::<f32>().zip(expected.iter::<f32>()) {
                let allowed = 1e-5 * (1.0 + expected.abs());
                assert!((found - expected).abs() <= allowed, "{found} {expected}");
            }
        }
    }

    /// The first backward pass takes the graph that both share: the second one reaches nothing.
    #[test]
    fn parts_may_have_losses_of_their_own() {
        let x = Tensor::<A, 1>::ones([4], &Default::default()).require_grad();
        let whole = x.clone() * 2;
        let losses = [0..1, 1..4].map(|rows| {
            let part = part_of_rows(whole.clone(), rows).expect("a kernel");
            part.sum()
        });
        let [first, second] = losses;
        let gradients = first.backward();
        let found = x.grad(&gradients).expect("a gradient").into_data();
        assert_eq!(found.to_vec::<f32>().expect("f32"), [2.0, 0.0, 0.0, 0.0]);
        assert!(x.grad(&second.backward()).is_none());
    }

    #[test]
    fn others_come_back() {
        let x = Tensor::<Flex, 1>::ones([4], &Default::default());
        let x = part_of_rows(x, 1..2).expect_err("no kernel");
        assert_eq!(x.dims(), [4]);
    }
}
