//! Copies of tensors, on all cores.

use burn::tensor::{DType, Tensor, TensorData, TensorMetadata, backend::Backend};
use burn_flex::FlexTensor;

use super::recognise::{generic, recognise_view};
use super::{memory, strided};

/// The tensor in row-major order: itself, or a copy.
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it, or the backend differentiates.
pub fn in_row_major_order<B: Backend, const D: usize>(
    x: Tensor<B, D>,
) -> Result<Tensor<B, D>, Tensor<B, D>> {
    recognise_view(x).map(|x| match x.is_contiguous() {
        true => generic(x),
        false => generic(strided::contiguous(x)),
    })
}

/// Joins tensors along their first axis.
///
/// # Errors
/// The tensors, if there is [no kernel](crate) for them, there are none, or the backend
/// differentiates.
///
/// # Panics
/// If they differ in another axis.
pub fn joined<B: Backend, const D: usize>(
    tensors: Vec<Tensor<B, D>>,
) -> Result<Tensor<B, D>, Vec<Tensor<B, D>>> {
    let is_known = |x: &Tensor<B, D>| x.dtype() == DType::F32;
    if tensors.is_empty() || !tensors.iter().all(is_known) {
        return Err(tensors);
    }
    let mut known = Vec::with_capacity(tensors.len());
    let mut others = Vec::new();
    for x in tensors {
        match recognise_view(x) {
            Ok(x) => known.push(x),
            Err(x) => others.push(x),
        }
    }
    // They are all of one backend.
    match others.is_empty() {
        true => {
            let joined = of_known(&known);
            known.into_iter().for_each(memory::give);
            Ok(generic(joined))
        }
        false => Err(others),
    }
}

fn of_known(tensors: &[FlexTensor]) -> FlexTensor {
    let mut shape: Vec<usize> = tensors[0].shape().iter().copied().collect();
    let rows = tensors.iter().map(|x| {
        let own = x.shape();
        assert_eq!(own[1..], shape[1..], "all axes but the first are equal");
        own[0]
    });
    shape[0] = rows.sum();
    let mut joined = memory::numbers(shape.iter().product());
    let mut rest = &mut joined[..];
    for x in tensors {
        let (to, others) = rest.split_at_mut(x.shape().num_elements());
        if !strided::copy_into(x, to) {
            to.copy_from_slice(x.to_contiguous().storage());
        }
        rest = others;
    }
    FlexTensor::from_data(TensorData::new(joined, shape))
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::Flex;

    use super::*;

    fn numbers<B: Backend>(shape: [usize; 3]) -> Tensor<B, 3> {
        let count = shape.iter().product::<usize>();
        let numbers: Vec<f32> = (0..count).map(|i| (i * 7919 % 2003) as f32).collect();
        Tensor::from_data(TensorData::new(numbers, shape), &Default::default())
    }

    #[test]
    fn joined_tensors_are_those_of_burn() {
        for rows in [vec![3], vec![1, 0, 2], vec![40, 700, 5]] {
            let views = rows.iter().map(|rows| {
                let wide = numbers::<Flex>([64, *rows, 9]).swap_dims(0, 1);
                wide.narrow(2, 2, 5)
            });
            let views: Vec<_> = views.collect();
            let expected = Tensor::cat(views.clone(), 0).into_data();
            let found = joined(views).expect("a kernel").into_data();
            found.assert_eq(&expected, true);
        }
    }

    #[test]
    fn order_does_not_change_elements() {
        let x = numbers::<Flex>([30, 50, 70]);
        for view in [
            x.clone(),
            x.clone().swap_dims(1, 2),
            x.narrow(1, 3, 40).swap_dims(0, 1),
        ] {
            let expected = view.to_data();
            let found = in_row_major_order(view).expect("a kernel").into_data();
            found.assert_eq(&expected, true);
        }
    }

    #[test]
    fn others_come_back() {
        assert!(joined(Vec::<Tensor<Flex, 3>>::new()).is_err());
        let tracked = numbers::<Autodiff<Flex>>([1, 2, 3]);
        assert!(in_row_major_order(tracked.clone()).is_err());
        let back = joined(vec![tracked.clone(), tracked]).expect_err("no kernel");
        assert_eq!(back.len(), 2);
    }
}
