//! The self-check of backends: it passes on sound ones and finds planted faults.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn_align::self_check::{check_backend, check_gradients};
use clap::ValueEnum;
use workbench::backends::DTypeChoice;

on_every_backend!(sound_backends_pass);

/// In every dtype that the backend supports.
fn sound_backends_pass<B: Backend>(device: &B::Device) {
    let all = DTypeChoice::value_variants().iter();
    for dtype in all.filter(|dtype| B::supports_dtype(device, dtype.dtype())) {
        let report = check_backend::<B>(device, dtype.dtype())
            .and(check_gradients::<Autodiff<B>>(device, dtype.dtype()));
        assert!(report.passed(), "{dtype}: {report}");
        assert!(report.checks.len() > 180, "{}", report.checks.len());
        let is_f32 = *dtype == DTypeChoice::F32;
        assert_eq!(report.f32_product_error().is_some(), is_f32, "{dtype}");
    }
}

/// Flex with one of its operations replaced. On one backend, because what is tested is the check.
#[cfg(feature = "flex")]
mod planted {
    use burn::backend::flex::FlexDevice;
    use burn::backend::{Autodiff, Flex};
    use burn::tensor::{Bool, DType, Int, Tensor, TensorData, activation, backend::Backend};
    use burn_align::self_check::{
        Check, Finding, Operation, Part, Primitives, Report, check_backend, check_backend_with,
        check_gradients, check_gradients_with, check_part,
    };

    fn report_of<P: Primitives<Flex>>(fault: &P) -> Report {
        let report = check_backend_with::<Flex, _>(fault, &FlexDevice, DType::F32);
        assert!(report.checks.len() > 160, "{}", report.checks.len());
        report
    }

    #[test]
    fn parts_are_the_whole_check() {
        let (device, dtype) = (FlexDevice, DType::F32);
        let parts = Part::ALL.map(|part| check_part::<Autodiff<Flex>>(part, &device, dtype));
        assert!(parts.iter().all(|part| !part.checks.is_empty()));
        let whole = check_backend::<Flex>(&device, dtype)
            .and(check_gradients::<Autodiff<Flex>>(&device, dtype));
        assert_eq!(parts.into_iter().reduce(Report::and), Some(whole));
    }

    fn gradient_report_of<P: Primitives<Autodiff<Flex>>>(fault: &P) -> Report {
        check_gradients_with::<Autodiff<Flex>, _>(fault, &FlexDevice, DType::F32)
    }

    /// The checks of an operation that the fault touches must have failed, the others not.
    #[track_caller]
    fn assert_found(report: &Report, operation: Operation, touched: impl Fn(&Check) -> bool) {
        let of_operation = report.checks.iter().filter(|it| it.operation == operation);
        let (faulty, sound): (Vec<&Check>, Vec<&Check>) = of_operation.partition(|it| touched(it));
        assert!(!faulty.is_empty(), "the fault touches no check");
        for check in faulty {
            assert!(!check.finding.is_right(), "not found: {check}");
        }
        for check in sound {
            assert!(check.finding.is_right(), "{check}");
        }
    }

    /// No other operations than these have failed.
    #[track_caller]
    fn assert_only(report: &Report, operations: &[Operation]) {
        for check in report.failures() {
            assert!(operations.contains(&check.operation), "{check}");
        }
    }

    #[track_caller]
    fn assert_says(report: &Report, parts: &[&str]) {
        let text = report.to_string();
        for part in parts {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
    }

    /// Sums that go wrong where the contracted length is an odd multiple of 32.
    struct WrongSums;

    impl<B: Backend> Primitives<B> for WrongSums {
        fn product<const D: usize>(&self, x: Tensor<B, D>, y: Tensor<B, D>) -> Tensor<B, D> {
            let inner = x.dims()[D - 1];
            let product = x.clone().matmul(y.clone());
            if inner % 64 != 32 {
                return product;
            }
            // As if the last products were added twice.
            let start = inner - 8;
            product + x.narrow(D - 1, start, 8).matmul(y.narrow(D - 2, start, 8))
        }
    }

    #[test]
    fn wrong_sums_are_found() {
        let report = report_of(&WrongSums);
        assert_found(&report, Operation::Product, |check| {
            check.sizes[0][1] % 64 == 32
        });
        let wrong = "matrix product, [1, 32] × [32, 40] in f32: off by";
        assert_says(&report, &[wrong, "tracel-ai/cubek#434"]);
    }

    /// Rows after the 500th that are 0.
    struct RowsOfZeros;

    impl<B: Backend> Primitives<B> for RowsOfZeros {
        fn product<const D: usize>(&self, x: Tensor<B, D>, y: Tensor<B, D>) -> Tensor<B, D> {
            let product = x.matmul(y);
            let rows = product.dims()[D - 2];
            if rows <= 500 {
                return product;
            }
            let kept = product.clone().narrow(D - 2, 0, 500);
            let lost = product.narrow(D - 2, 500, rows - 500).zeros_like();
            Tensor::cat(vec![kept, lost], D - 2)
        }
    }

    #[test]
    fn rows_of_zeros_are_found() {
        let report = report_of(&RowsOfZeros);
        assert_found(&report, Operation::Product, |check| check.sizes[0][0] > 500);
        let wrong = "matrix product, [501, 64] × [64, 33] in f32: off by";
        assert_says(&report, &[wrong, "tracel-ai/burn#4966"]);
    }

    /// Casts that lose one value.
    struct CastsToNan;

    impl<B: Backend> Primitives<B> for CastsToNan {
        fn cast<const D: usize>(&self, x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
            let x = x.cast(dtype);
            let count: usize = x.dims().iter().product();
            let lost: Vec<bool> = (0..count).map(|index| index == count / 2).collect();
            let lost = TensorData::new(lost, x.dims());
            let lost = Tensor::<B, D, Bool>::from_data(lost, &x.device());
            x.mask_fill(lost, f32::NAN)
        }
    }

    #[test]
    fn casts_to_nan_are_found() {
        for dtype in [DType::F32, DType::BF16] {
            let report = check_backend_with::<Flex, _>(&CastsToNan, &FlexDevice, dtype);
            assert_found(&report, Operation::Cast, |_| true);
            assert_found(&report, Operation::MixedDifference, |_| true);
            let casts = report.checks.iter();
            for check in casts.filter(|check| check.operation == Operation::Cast) {
                // One in each of the two casts, at the same place.
                let lost = Finding::NotFinite {
                    count: 1,
                    of: 33 * 257,
                };
                assert_eq!(check.finding, lost);
            }
            assert_says(&report, &["cast, [33, 257]", "tracel-ai/burn#4952"]);
        }
    }

    /// A softmax that does not see the first value.
    struct WrongSoftmax;

    impl<B: Backend> Primitives<B> for WrongSoftmax {
        fn softmax<const D: usize>(&self, x: Tensor<B, D>, axis: usize) -> Tensor<B, D> {
            let count = x.dims()[axis];
            let first = x.clone().narrow(axis, 0, 1).zeros_like();
            let rest = activation::softmax(x.narrow(axis, 1, count - 1), axis);
            Tensor::cat(vec![first, rest], axis)
        }
    }

    #[test]
    fn a_wrong_softmax_is_found() {
        let report = report_of(&WrongSoftmax);
        // With 1025 keys, a window hides the first one anyway.
        assert_found(&report, Operation::Softmax, |check| {
            check.sizes[0][3] != 1025
        });
        assert_found(&report, Operation::Attention, |_| true);
        assert_only(
            &report,
            &[
                Operation::Softmax,
                Operation::Attention,
                Operation::CachedAttention,
            ],
        );
        let report = gradient_report_of(&WrongSoftmax);
        assert_found(&report, Operation::SoftmaxGradient, |_| true);
        assert_only(&report, &[Operation::SoftmaxGradient]);
    }

    /// A selection that loses the gradient of the first row.
    struct LostGradients;

    impl<B: Backend> Primitives<B> for LostGradients {
        fn select<const D: usize>(
            &self,
            x: Tensor<B, D>,
            axis: usize,
            indices: Tensor<B, 1, Int>,
        ) -> Tensor<B, D> {
            let rows = x.dims()[axis];
            let first = x.clone().narrow(axis, 0, 1).detach();
            let rest = x.narrow(axis, 1, rows - 1);
            Tensor::cat(vec![first, rest], axis).select(axis, indices)
        }
    }

    #[test]
    fn wrong_gradients_are_found() {
        let forward = report_of(&LostGradients);
        assert!(forward.passed(), "{forward}");
        let report = gradient_report_of(&LostGradients);
        assert_found(&report, Operation::SelectGradient, |_| true);
        assert_only(&report, &[Operation::SelectGradient]);
        assert_says(&report, &["gradient of rows by index, [41, 33] in f32"]);
    }

    /// An addition by index that is not there.
    struct NoAddition;

    impl<B: Backend> Primitives<B> for NoAddition {
        fn select_add<const D: usize>(
            &self,
            _x: Tensor<B, D>,
            _axis: usize,
            _indices: Tensor<B, 1, Int>,
            _values: Tensor<B, D>,
        ) -> Tensor<B, D> {
            panic!("there is no such\n    kernel")
        }
    }

    #[test]
    fn a_panic_is_a_finding() {
        let report = report_of(&NoAddition);
        assert_found(&report, Operation::SelectAdd, |_| true);
        assert_only(&report, &[Operation::SelectAdd]);
        assert_says(&report, &["the backend stopped: there is no such kernel"]);
    }
}
