//! Products in full f32, also where matrix units round what they multiply.

use burn::tensor::{Tensor, backend::Backend};

/// `x y` of f32 matrices, as exact as sums in f32 are.
///
/// CUDA's matrix units round f32 operands to TF32, whose significand has 11 bits, and Burn uses them
/// for f32 without being asked. An error of 5e-4 ends neither an iteration that is to reach 1e-6
/// nor a search for orthonormal columns. So there each operand is the sum of two that TF32 holds.
///
/// # Shapes
/// - x: `[row, inner]`
/// - y: `[inner, col]`
/// - output: `[row, col]`
pub(super) fn product<B: Backend>(x: Tensor<B, 2>, y: Tensor<B, 2>) -> Tensor<B, 2> {
    match rounds_to_tf32::<B>(&x.device()) {
        true => by_parts(x, y),
        false => x.matmul(y),
    }
}

fn rounds_to_tf32<B: Backend>(device: &B::Device) -> bool {
    B::name(device).contains("cuda")
}

/// The product of operands in two parts each. Where both are small parts, the product is below what
/// f32 holds (Ootomo & Yokota 2022, arXiv 2203.03341), so that it does not matter how one of them
/// is rounded. The large parts are constants: gradients go through the small ones.
fn by_parts<B: Backend>(x: Tensor<B, 2>, y: Tensor<B, 2>) -> Tensor<B, 2> {
    let [x_high, x_low] = parts(x);
    let [y_high, y_low] = parts(y.clone());
    let small = x_high.clone().matmul(y_low) + x_low.matmul(y);
    x_high.matmul(y_high) + small
}

/// Two parts whose sum is the matrix: its first 11 bits, and the rest (Dekker 1971).
fn parts<B: Backend>(x: Tensor<B, 2>) -> [Tensor<B, 2>; 2] {
    const FACTOR: f64 = 8193.0; // 2¹³ + 1
    let fixed = x.clone().detach();
    let scaled = fixed.clone() * FACTOR;
    let high = scaled.clone() - (scaled - fixed);
    [high.clone(), x - high]
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::tensor::Distribution;

    use super::*;

    fn random<B: Backend>(shape: [usize; 2]) -> Tensor<B, 2> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Default::default())
    }

    /// As the hardware rounds: to 11 bits.
    fn in_tf32(x: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
        let [rows, cols] = x.dims();
        let values = x.into_data().to_vec::<f32>().expect("f32");
        let round = |x: f32| f32::from_bits((x.to_bits() + 0x1000) & !0x1fff);
        let values: Vec<f32> = values.into_iter().map(round).collect();
        Tensor::<Flex, 1>::from_floats(values.as_slice(), &Default::default()).reshape([rows, cols])
    }

    fn largest(difference: Tensor<Flex, 2>) -> f32 {
        difference.abs().max().into_scalar()
    }

    #[test]
    fn large_parts_survive_rounding_and_parts_add_up() {
        let x = random::<Flex>([40, 30]) * 100.0;
        let [high, low] = parts(x.clone());
        assert_eq!(largest(in_tf32(high.clone()) - high.clone()), 0.0);
        assert_eq!(largest(high + low.clone() - x.clone()), 0.0);
        // Rounding leaves at most half of the last bit that is kept.
        assert!(largest(low) <= largest(x) / 2048.0);
    }

    #[test]
    fn products_of_rounded_parts_are_exact_to_f32() {
        let (x, y) = (random::<Flex>([20, 64]), random::<Flex>([64, 30]));
        let [x_high, x_low] = parts(x.clone()).map(in_tf32);
        let [y_high, y_low] = parts(y.clone()).map(in_tf32);
        let rounded_y = in_tf32(y.clone());
        let small = x_high.clone().matmul(y_low) + x_low.matmul(rounded_y.clone());
        let whole = x.clone().matmul(y);
        assert!(largest(x_high.matmul(y_high) + small - whole.clone()) < 2e-5);
        // Which plain rounding does not reach.
        assert!(largest(in_tf32(x).matmul(rounded_y) - whole) > 1e-3);
    }

    #[test]
    fn gradients_are_those_of_the_product() {
        type A = Autodiff<Flex>;
        let x = random::<A>([5, 7]).require_grad();
        let y = random::<A>([7, 3]).require_grad();
        let weight = random::<A>([5, 3]);
        let of = |product: Tensor<A, 2>| {
            let grads = (product * weight.clone()).sum().backward();
            let of = |of: &Tensor<A, 2>| of.grad(&grads).expect("it has one");
            [of(&x), of(&y)]
        };
        let found = of(by_parts(x.clone(), y.clone()));
        let expected = of(x.clone().matmul(y.clone()));
        for (found, expected) in found.into_iter().zip(expected) {
            assert!(largest(found - expected) < 1e-5);
        }
    }
}
