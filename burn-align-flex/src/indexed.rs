//! Rows by their indices: chosen on all cores, replaced where they lie.

use burn::tensor::{Tensor, TensorData, TensorMetadata, backend::Backend};
use burn_flex::FlexTensor;

use crate::kernels::in_tasks;
use crate::recognise::{untracked, wrapped};
use crate::{memory, strided};

/// The entries of the first axis with these indices.
///
/// # Shapes
/// - x: `[row, …]`
/// - output: `[indices.len(), …]`
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it, or it has a gradient.
///
/// # Panics
/// If there is no such row.
pub fn rows_by_index<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    indices: &[usize],
) -> Result<Tensor<B, D>, Tensor<B, D>> {
    let mut shape = x.dims();
    let x = contiguous(x)?;
    shape[0] = indices.len();
    let width = shape[1..].iter().product::<usize>();
    let mut rows = memory::numbers(indices.len() * width);
    let from: &[f32] = x.storage();
    in_tasks(&mut rows, width.max(1), |row, to| {
        to.copy_from_slice(&from[indices[row] * width..][..width]);
    });
    memory::give(x);
    Ok(wrapped(FlexTensor::from_data(TensorData::new(rows, shape))))
}

/// `x` with other rows at these indices, in its memory if nothing else needs it. Of several rows
/// for one index, the last one counts.
///
/// # Shapes
/// - x, output: `[row, width]`
/// - rows: `[indices.len(), width]`
///
/// # Errors
/// Both, if there is [no kernel](crate) for them, or one of them has a gradient.
///
/// # Panics
/// If the shapes do not match, or there is no such row.
pub fn with_rows_at<B: Backend>(
    x: Tensor<B, 2>,
    indices: &[usize],
    rows: Tensor<B, 2>,
) -> Result<Tensor<B, 2>, [Tensor<B, 2>; 2]> {
    let [count, width] = x.dims();
    assert_eq!(rows.dims(), [indices.len(), width], "a row for each index");
    let highest = indices.iter().max();
    assert!(
        highest.is_none_or(|highest| *highest < count),
        "rows {highest:?} of {count}"
    );
    let rows = match contiguous(rows) {
        Ok(rows) => rows,
        Err(rows) => return Err([x, rows]),
    };
    let mut x = match contiguous(x) {
        Ok(x) => x,
        Err(x) => return Err([x, wrapped(rows)]),
    };
    if !x.is_unique() {
        let mut copy = memory::numbers(count * width);
        assert!(strided::copy_into(&x, &mut copy), "it has two axes");
        x = FlexTensor::from_data(TensorData::new(copy, x.shape()));
    }
    let to: &mut [f32] = x.storage_mut();
    let from: &[f32] = rows.storage();
    for (row, index) in indices.iter().enumerate() {
        to[index * width..][..width].copy_from_slice(&from[row * width..][..width]);
    }
    memory::give(rows);
    Ok(wrapped(x))
}

/// The tensor in row-major order, if it is f32 on Flex, without a gradient.
fn contiguous<B: Backend, const D: usize>(x: Tensor<B, D>) -> Result<FlexTensor, Tensor<B, D>> {
    let Some(known) = untracked(&x) else {
        return Err(x);
    };
    drop(x);
    Ok(strided::contiguous(known))
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::tensor::{Int, TensorData};
    use burn_flex::Flex;

    use super::*;

    type A = Autodiff<Flex>;

    fn numbers<B: Backend>(shape: [usize; 3], first: usize) -> Tensor<B, 3> {
        let count = shape.iter().product::<usize>();
        let numbers: Vec<f32> = (first..first + count).map(|i| i as f32).collect();
        Tensor::from_data(TensorData::new(numbers, shape), &Default::default())
    }

    fn selected<B: Backend>(x: Tensor<B, 3>, indices: &[usize]) -> Tensor<B, 3> {
        let ints: Vec<i64> = indices.iter().map(|index| *index as i64).collect();
        let data = TensorData::new(ints, [indices.len()]);
        x.select(0, Tensor::<B, 1, Int>::from_data(data, &Default::default()))
    }

    #[test]
    fn chosen_rows_are_those_of_burn() {
        for indices in [
            vec![],
            vec![2, 0, 0, 4],
            (0..2000).map(|i| i * 7 % 5).collect(),
        ] {
            for x in [
                numbers::<Flex>([5, 3, 7], 0),
                numbers([3, 7, 9], 0).swap_dims(0, 2).narrow(0, 1, 5),
            ] {
                let expected = selected(x.clone(), &indices).into_data();
                let found = rows_by_index(x, &indices).expect("a kernel").into_data();
                found.assert_eq(&expected, true);
            }
            let x = numbers::<A>([5, 3, 7], 0);
            let expected = selected(x.clone(), &indices).into_data();
            let found = rows_by_index(x, &indices).expect("no gradient").into_data();
            found.assert_eq(&expected, true);
        }
    }

    #[test]
    fn rows_are_replaced_where_they_lie() {
        let x = || numbers::<Flex>([1, 6, 4], 0).reshape([6, 4]);
        let rows = || numbers::<Flex>([1, 3, 4], 100).reshape([3, 4]);
        let shared = x();
        for (x, indices) in [(x(), [4, 0, 3]), (shared.clone(), [1, 1, 5])] {
            let mut expected: Vec<f32> = x.to_data().to_vec().expect("f32");
            for (row, index) in indices.iter().enumerate() {
                for column in 0..4 {
                    expected[index * 4 + column] = (100 + row * 4 + column) as f32;
                }
            }
            let found = with_rows_at(x, &indices, rows()).expect("a kernel");
            assert_eq!(found.into_data().to_vec::<f32>().expect("f32"), expected);
        }
        shared.into_data().assert_eq(&x().into_data(), true);
    }

    #[test]
    fn others_come_back() {
        let tracked = || numbers::<A>([1, 6, 4], 0).reshape([6, 4]).require_grad();
        let constant = || numbers::<A>([1, 6, 4], 0).reshape([6, 4]);
        assert!(rows_by_index(tracked(), &[0]).is_err());
        let all = [0, 1, 2, 3, 4, 5];
        assert!(with_rows_at(tracked(), &all, constant()).is_err());
        assert!(with_rows_at(constant(), &all, tracked()).is_err());
    }
}
