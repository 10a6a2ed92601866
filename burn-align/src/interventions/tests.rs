//! Compositions against the formulas of their names, bit by bit, and against hand-worked values.

use burn::backend::{Autodiff, Flex};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Bool, DType, Tensor, TensorData, activation, backend::Backend};

use super::*;
use crate::dictionaries::{Dictionary, FeatureActivation};

type A = Autodiff<Flex>;

fn wave<B: Backend, const D: usize>(phase: f32, shape: [usize; D], dtype: DType) -> Tensor<B, D> {
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|i| (phase + i as f32 * 1.7).sin() * (1.0 + phase))
        .collect();
    let device = Default::default();
    let data = TensorData::new(values, shape);
    Tensor::<B, D>::from_data(data, (&device, DType::F32)).cast(dtype)
}

fn vector<B: Backend>(phase: f32, count: usize) -> Tensor<B, 1> {
    wave(phase, [count], DType::F32)
}

fn matrix<B: Backend>(phase: f32, shape: [usize; 2]) -> Tensor<B, 2> {
    wave(phase, shape, DType::F32)
}

fn values<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
    x.cast(DType::F32).into_data().iter().collect()
}

fn bits<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

/// Every other feature, another half for the second example: `[2, 1, feature]`.
fn subspace<B: Backend>(features: usize) -> Tensor<B, 3, Bool> {
    let chosen = (0..2).flat_map(|example| (0..features).map(move |i| i % 2 == example));
    let data = TensorData::new(chosen.collect::<Vec<bool>>(), [2, 1, features]);
    Tensor::from_data(data, &Default::default())
}

fn rotation<B: Backend>(rank: usize, map: OrthonormalMap) -> Orthonormal<B> {
    Orthonormal::random([8, rank], map, 7, &Default::default()).expect("fits")
}

type Rows = Tensor<A, 2>;
type Activation = Tensor<A, 3>;

/// A named intervention and its formula.
struct Case {
    name: &'static str,
    it: BuiltinIntervention<A>,
    tokens: TokenGrouping,
    formula: Box<dyn Fn(Activation, Operands<A>) -> Activation>,
}

fn choose(change: Rows, subspace: Option<Tensor<A, 3, Bool>>) -> Rows {
    let Some(subspace) = subspace else {
        return change;
    };
    let [vectors, feature] = change.dims();
    let shape = [2, vectors / 2, feature];
    let change = change.reshape(shape);
    let zeros = change.zeros_like();
    zeros
        .mask_where(subspace.expand(shape), change)
        .reshape([vectors, feature])
}

fn difference(tokens: TokenGrouping, base: &Activation, source: Activation) -> Rows {
    tokens.join(source.cast(DType::F32) - base.clone().cast(DType::F32))
}

fn rotated_cases(tokens: TokenGrouping, cases: &mut Vec<Case>) {
    for (rank, map, swapped) in [
        (8, OrthonormalMap::Retraction, 8),
        (3, OrthonormalMap::Retraction, 3),
        (8, OrthonormalMap::MatrixExponential, 2),
        (8, OrthonormalMap::Cayley, 8),
        (3, OrthonormalMap::Householder, 1),
    ] {
        let directions = rotation(rank, map);
        let it = RotatedSpaceIntervention::new(directions.clone(), tokens).with_swapped(swapped);
        cases.push(Case {
            name: "rotated",
            it: it.into(),
            tokens,
            formula: Box::new(move |base, operands| {
                let mut matrix = directions.matrix();
                if operands.subspace.is_none() && swapped < rank {
                    matrix = matrix.narrow(1, 0, swapped);
                }
                let difference = difference(tokens, &base, operands.source());
                let rotated = difference.matmul(matrix.clone());
                let chosen = choose(rotated, operands.subspace);
                tokens.add(base, chosen.matmul(matrix.transpose()))
            }),
        });
    }
    let masked =
        move |directions: Orthonormal<A>, mask: Rows, base: Activation, it: Operands<A>| {
            let matrix = directions.matrix();
            let rotated = difference(tokens, &base, it.source()).matmul(matrix.clone());
            let change = choose(rotated * mask, it.subspace);
            tokens.add(base, change.matmul(matrix.transpose()))
        };
    let directions = rotation(8, OrthonormalMap::MatrixExponential);
    let boundless =
        BoundlessRotatedSpaceIntervention::new(directions.clone(), tokens).with_temperature(0.7);
    let mask = boundless.mask.clone();
    cases.push(Case {
        name: "boundless",
        it: boundless.into(),
        tokens,
        formula: Box::new(move |base, operands| {
            let device = base.device();
            let index = Tensor::<A, 1, burn::tensor::Int>::arange(0..8, &device);
            let index = index.float().cast(DType::F32);
            let boundary = mask.boundary.val().clamp(1e-3, 1.0) * 8.0;
            let steepness = 0.7_f64.recip();
            let above = activation::sigmoid(index.clone() * steepness);
            let below = activation::sigmoid((boundary - index) * steepness);
            masked(
                directions.clone(),
                (above * below).unsqueeze(),
                base,
                operands,
            )
        }),
    });
    let directions = rotation(8, OrthonormalMap::Retraction);
    let sigmoid = SigmoidMaskRotatedSpaceIntervention::new(directions.clone(), tokens);
    let sigmoid = sigmoid.with_mask(SigmoidMask::new(vector(0.4, 8), 0.3));
    let mask = sigmoid.mask.clone();
    cases.push(Case {
        name: "sigmoid rotated",
        it: sigmoid.into(),
        tokens,
        formula: Box::new(move |base, operands| {
            let shares = activation::sigmoid(mask.logits.val() * 0.3_f64.recip()).unsqueeze();
            masked(directions.clone(), shares, base, operands)
        }),
    });
    let sigmoid = SigmoidMaskIntervention::new(8, tokens, &Default::default());
    let sigmoid = sigmoid.with_mask(SigmoidMask::new(vector(0.4, 8), 0.3));
    let mask = sigmoid.mask.clone();
    cases.push(Case {
        name: "sigmoid",
        it: sigmoid.into(),
        tokens,
        formula: Box::new(move |base, operands| {
            let shares: Rows = activation::sigmoid(mask.logits.val() * 0.3_f64.recip()).unsqueeze();
            let change = difference(tokens, &base, operands.source()) * shares;
            tokens.add(base, choose(change, operands.subspace))
        }),
    });
}

fn coded_cases(tokens: TokenGrouping, cases: &mut Vec<Case>) {
    let it = PcaIntervention::<A>::new(
        matrix(6.0, [5, 8]),
        vector(0.7, 8),
        vector(0.8, 8) + 2.5,
        tokens,
    );
    let pca = it.featurizer.clone();
    cases.push(Case {
        name: "pca",
        it: it.into(),
        tokens,
        formula: Box::new(move |base, operands| {
            let mean: Rows = pca.mean.val().detach().unsqueeze();
            let std: Rows = pca.std.val().detach().unsqueeze();
            let components = pca.components.val().detach();
            let project = |x: Activation| {
                ((tokens.join(x) - mean.clone()) / std.clone())
                    .matmul(components.clone().transpose())
            };
            let kept = project(base.clone());
            let change = project(operands.source()) - kept.clone();
            let swapped = kept + choose(change, operands.subspace);
            tokens.split(
                &base,
                swapped.matmul(components) * std.clone() + mean.clone(),
            )
        }),
    });
    for swapped in [None, Some(vec![3, 0, 9]), Some(vec![0, 1])] {
        let parts = || {
            let encoder = (matrix::<A>(1.0, [8, 10]), vector(2.0, 10));
            (encoder, (matrix(3.0, [10, 8]), vector(4.0, 8)))
        };
        let swap = move |encode: &dyn Fn(Activation) -> Rows,
                         base: &Activation,
                         source: Activation,
                         subspace: Option<Tensor<A, 3, Bool>>| {
            let source = encode(source);
            if subspace.is_none() {
                return source;
            }
            let kept = encode(base.clone());
            kept.clone() + choose(source - kept, subspace)
        };
        let listed = swapped.clone().map(|swapped: Vec<usize>| {
            let chosen: Vec<bool> = (0..10).map(|i| swapped.contains(&i)).collect();
            Tensor::<A, 3, Bool>::from_data(
                TensorData::new(chosen, [1, 1, 10]),
                &Default::default(),
            )
        });
        let (encoder, decoder) = parts();
        let mut it = AutoencoderIntervention::new(encoder, decoder, tokens);
        let coder = it.featurizer.dictionary().clone();
        if let Some(swapped) = swapped.clone() {
            it = it.with_swapped(swapped);
        }
        let own = listed.clone();
        cases.push(Case {
            name: "autoencoder",
            it: it.into(),
            tokens,
            formula: Box::new(move |base, operands| {
                let encode = |x: Activation| {
                    let x = tokens.join(x) - coder.decoder_bias.val().unsqueeze();
                    let hidden = x.matmul(coder.encoder.val());
                    activation::relu(hidden + coder.encoder_bias.val().unsqueeze())
                };
                let subspace = operands.subspace.clone().or(own.clone());
                let new = swap(&encode, &base, operands.source(), subspace);
                let new = new.matmul(coder.decoder.val()) + coder.decoder_bias.val().unsqueeze();
                tokens.split(&base, new)
            }),
        });
        let (encoder, decoder) = parts();
        let threshold = vector(0.5, 10);
        let mut it =
            JumpReluAutoencoderIntervention::new(encoder, threshold.clone(), decoder, tokens);
        let coder = it.featurizer.dictionary().clone();
        if let Some(swapped) = swapped {
            it = it.with_swapped(swapped);
        }
        cases.push(Case {
            name: "jump relu",
            it: it.into(),
            tokens,
            formula: Box::new(move |base, operands| {
                let encode = |x: Activation| {
                    let hidden = tokens.join(x).matmul(coder.encoder.val());
                    let hidden = hidden + coder.encoder_bias.val().unsqueeze();
                    let threshold = threshold.clone().unsqueeze::<2>();
                    let off = hidden.clone().lower_equal(threshold.expand(hidden.shape()));
                    activation::relu(hidden).mask_fill(off, 0.0)
                };
                let subspace = operands.subspace.clone().or(listed.clone());
                let new = swap(&encode, &base, operands.source(), subspace);
                let new = new.matmul(coder.decoder.val()) + coder.decoder_bias.val().unsqueeze();
                tokens.split(&base, new)
            }),
        });
    }
}

fn plain_cases(cases: &mut Vec<Case>) {
    type New = Box<dyn Fn(Activation, &Operands<A>) -> Activation>;
    let mut plain = |name, it, new: New| {
        cases.push(Case {
            name,
            it,
            tokens: TokenGrouping::Each,
            formula: Box::new(move |base, operands| {
                let changed = new(base.clone(), &operands);
                operands.within_subspace(base, changed)
            }),
        });
    };
    plain(
        "vanilla",
        VanillaIntervention.into(),
        Box::new(|_, it| it.source()),
    );
    plain(
        "addition",
        AdditionIntervention.into(),
        Box::new(|base, it| base + it.source()),
    );
    plain(
        "subtraction",
        SubtractionIntervention.into(),
        Box::new(|base, it| base - it.source()),
    );
    plain(
        "fill",
        FillIntervention { value: -0.3 }.into(),
        Box::new(|base, _| base.full_like(-0.3)),
    );
    plain(
        "scaling",
        ScalingIntervention { factor: -2.5 }.into(),
        Box::new(|base, _| base * -2.5),
    );
    for (operation, sign) in [
        (SourceOperation::Swap, 0.0),
        (SourceOperation::Add, 1.0),
        (SourceOperation::Subtract, -1.0),
    ] {
        let it = ConstantSourceIntervention::new(vector::<A>(9.0, 8), operation);
        let source = it.source.val();
        plain(
            "constant",
            it.into(),
            Box::new(move |base, _| {
                let source = source.clone().cast(base.dtype());
                let source = source.unsqueeze::<3>().expand(base.dims());
                match sign {
                    1.0 => base + source,
                    -1.0 => base - source,
                    _ => source,
                }
            }),
        );
    }
    for kind in [ReftKind::LoReft, ReftKind::NoReft, ReftKind::LobiReft] {
        let it = Reft::new(kind, rotation::<A>(3, OrthonormalMap::Householder), 11);
        let reft = it.clone();
        plain(
            "reft",
            it.into(),
            Box::new(move |base, _| {
                let directions = match (&reft.rotation, &reft.projection) {
                    (Some(rotation), _) => rotation.matrix(),
                    (_, projection) => projection.as_ref().expect("one of them").val(),
                };
                let x = TokenGrouping::Each.join(base.clone());
                let mut new: Rows = reft.bias.val().unsqueeze();
                if let Some(weight) = &reft.weight {
                    new = x.clone().matmul(weight.val()) + new;
                }
                if kind.replaces() {
                    let mut old = x.clone().matmul(directions.clone());
                    if let Some(bias) = &reft.projection_bias {
                        old = old + bias.val().unsqueeze();
                    }
                    new = new - old;
                }
                let [vectors, _d] = x.dims();
                let [_one, rank] = new.dims();
                let change = new.expand([vectors, rank]).matmul(directions.transpose());
                TokenGrouping::Each.add(base, change)
            }),
        );
    }
}

#[test]
fn names_compute_their_formulas_bit_by_bit() {
    let mut cases = Vec::new();
    plain_cases(&mut cases);
    for tokens in [TokenGrouping::Each, TokenGrouping::Joint(2)] {
        rotated_cases(tokens, &mut cases);
        coded_cases(tokens, &mut cases);
    }
    for (case, dtype) in cases
        .iter()
        .flat_map(|case| [DType::F32, DType::BF16].map(|dtype| (case, dtype)))
    {
        let d_site = match case.tokens {
            TokenGrouping::Each => 8,
            TokenGrouping::Joint(_) => 4,
        };
        let features = case.it.features(2, d_site).expect("it fits");
        for part in [None, Some(subspace::<A>(features))] {
            let name = format!("{}, {dtype:?}, subspace {}", case.name, part.is_some());
            let run = |of: &dyn Fn(Activation, Operands<A>) -> Activation| {
                let base = wave::<A, 3>(0.0, [2, 2, d_site], dtype).require_grad();
                let source = wave::<A, 3>(2.0, [2, 2, d_site], dtype).require_grad();
                let needed = case.it.needs_source().then(|| source.clone());
                let output = of(base.clone(), Operands::new(needed, part.clone()));
                let weights = wave::<A, 3>(0.5, [2, 2, d_site], dtype);
                let gradients = (output.clone() * weights).sum().backward();
                let of = |x: &Activation| x.grad(&gradients).map(bits);
                (bits(output), of(&base), of(&source))
            };
            let found = run(&|base, operands| case.it.apply(base, operands));
            let expected = run(&|base, operands| (case.formula)(base, operands));
            assert_eq!(found.0, expected.0, "{name}");
            assert_eq!(found.1, expected.1, "{name}: gradient of the base");
            assert_eq!(found.2, expected.2, "{name}: gradient of the source");
        }
    }
}

/// The bits of the gradients of all parameters, in order.
struct Gradients<'a> {
    all: &'a <A as AutodiffBackend>::Gradients,
    found: Vec<Option<Vec<u32>>>,
}

impl ModuleVisitor<A> for Gradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
        self.found.push(param.val().grad(self.all).map(bits));
    }
}

#[test]
fn parameters_get_the_gradients_of_the_formulas() {
    let mut cases = Vec::new();
    plain_cases(&mut cases);
    rotated_cases(TokenGrouping::Each, &mut cases);
    coded_cases(TokenGrouping::Each, &mut cases);
    let mut trained = 0;
    for case in cases {
        let run = |of: &dyn Fn(Activation, Operands<A>) -> Activation| {
            let base = wave::<A, 3>(0.0, [2, 3, 8], DType::F32).require_grad();
            let source = wave::<A, 3>(2.0, [2, 3, 8], DType::F32);
            let needed = case.it.needs_source().then_some(source);
            let output = of(base, Operands::new(needed, None));
            let weights = wave::<A, 3>(0.5, [2, 3, 8], DType::F32);
            let mut gradients = Gradients {
                all: &(output * weights).sum().backward(),
                found: Vec::new(),
            };
            case.it.visit(&mut gradients);
            gradients.found
        };
        let found = run(&|base, operands| case.it.apply(base, operands));
        let expected = run(&|base, operands| (case.formula)(base, operands));
        trained += found.iter().flatten().count();
        assert_eq!(found, expected, "{}", case.name);
    }
    assert!(trained >= 45, "only {trained} gradients");
}

type F = Flex;

fn along(values: [f32; 2]) -> Directions<F> {
    let device = Default::default();
    Directions::along(Tensor::from_floats(values, &device)).expect("a direction")
}

/// What becomes of `h` at one token, with this source.
fn steered(it: impl Intervention<F>, h: [f32; 2], source: Option<[f32; 2]>) -> [f32; 2] {
    let device = Default::default();
    let token = |x: [f32; 2]| Tensor::<F, 3>::from_floats([[x]], &device);
    let features = it.features(1, 2).expect("it fits");
    assert!(features <= 2);
    let new = values(it.apply(token(h), Operands::new(source.map(token), None)));
    [new[0], new[1]]
}

fn assert_near(found: [f32; 2], expected: [f32; 2]) {
    for (found, expected) in found.into_iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-6, "{found}, not {expected}");
    }
}

/// `v = (0.6, 0.8)`; `h = (3, 4)` is 5 along it and 0 across, `(4, -3)` the other way round.
#[test]
fn steering_along_a_direction() {
    let v = || along([3.0, 4.0]);
    let device = Default::default();
    let two = ConstantSource::<F>::new(Tensor::from_floats([2.0], &device), SourceOperation::Add);

    // h + 2 v
    let added = steered(Composed::of(v(), two), [1.0, 0.0], None);
    assert_near(added, [1.0 + 1.2, 1.6]);
    // h + 0.5 ‖h‖ v, ‖(4, -3)‖ = 5
    let added = steered(
        Composed::of(v(), AddNorm { factor: 0.5 }),
        [4.0, -3.0],
        None,
    );
    assert_near(added, [4.0 + 1.5, -3.0 + 2.0]);
    // (1, 2) is 0.6 + 1.6 = 2.2 along v: (1, 2) - 2.2 v
    let out = steered(Composed::of(v(), Fill::ZERO), [1.0, 2.0], None);
    assert_near(out, [1.0 - 1.32, 2.0 - 1.76]);
    // (1, 2) + (3 - 1) · 2.2 v
    let scaled = steered(Composed::of(v(), Scale { factor: 3.0 }), [1.0, 2.0], None);
    assert_near(scaled, [1.0 + 2.64, 2.0 + 3.52]);
    // capped at 1: (1, 2) - 1.2 v
    let capped = steered(Composed::of(v(), Clamp::at_most(1.0)), [1.0, 2.0], None);
    assert_near(capped, [1.0 - 0.72, 2.0 - 0.96]);
    // a floor of 3: (1, 2) + 0.8 v
    let lifted = steered(
        Composed::of(v(), Clamp::between(3.0, 4.0)),
        [1.0, 2.0],
        None,
    );
    assert_near(lifted, [1.0 + 0.48, 2.0 + 0.64]);
    // within the limits: to the bit
    let kept = steered(
        Composed::of(v(), Clamp::between(2.0, 3.0)),
        [1.0, 2.0],
        None,
    );
    assert_eq!(kept, [1.0, 2.0]);
    // the component of (3, 4), which is 5: (1, 2) + (5 - 2.2) v
    let swapped = steered(Composed::of(v(), Swap), [1.0, 2.0], Some([3.0, 4.0]));
    assert_near(swapped, [1.0 + 1.68, 2.0 + 2.24]);
    // a quarter of the way: (1, 2) + 0.25 · 2.8 v
    let quarter = Composed::of(v(), Interpolate { share: 0.25 });
    assert_near(
        steered(quarter, [1.0, 2.0], Some([3.0, 4.0])),
        [1.0 + 0.42, 2.0 + 0.56],
    );
    // the source's component is added: (1, 2) + 5 v
    let sum = steered(Composed::of(v(), Add), [1.0, 2.0], Some([3.0, 4.0]));
    assert_near(sum, [1.0 + 3.0, 2.0 + 4.0]);
}

#[test]
fn operations_by_themselves() {
    assert_eq!(steered(Clamp::at_least(0.0), [-1.0, 2.0], None), [0.0, 2.0]);
    let half = Interpolate { share: 0.5 };
    assert_eq!(steered(half, [1.0, 2.0], Some([3.0, -2.0])), [2.0, 0.0]);
    // ‖(3, 4)‖ = 5
    let added = steered(AddNorm { factor: 1.0 }, [3.0, 4.0], None);
    assert_eq!(added, [8.0, 9.0]);
    // Of one feature only; a subspace that is named comes first.
    let it = || Composed::<F, _, _>::alone(Scale { factor: 3.0 });
    assert_eq!(
        steered(it().with_changed(vec![1]), [1.0, 2.0], None),
        [1.0, 6.0]
    );
    assert!(it().with_changed(vec![2]).features(1, 2).is_err());
    let named = Tensor::<F, 3, Bool>::from_data([[[true, false]]], &Default::default());
    let token = Tensor::<F, 3>::from_floats([[[1.0, 2.0]]], &Default::default());
    let new = it()
        .with_changed(vec![1])
        .apply(token, Operands::new(None, Some(named)));
    assert_eq!(values(new), [3.0, 2.0]);
    // Under a mask.
    let device = Default::default();
    let even = SigmoidMask::<F>::uniform(0.0, 2, 1.0, &device); // shares of ½
    let it = Composed::of(Identity, Scale { factor: 3.0 }).with_mask(even);
    assert_eq!(steered(it.clone(), [1.0, 2.0], None), [2.0, 4.0]);
    assert_eq!(
        steered(it.with_changed(vec![1]), [1.0, 2.0], None),
        [1.0, 4.0]
    );
}

#[test]
fn closures_get_the_features() {
    let double = Closure::<F>::with_source(|z, operands| z * 0.0 + operands.source() * 2.0);
    // Twice the component of (3, 4), which is 10: (1, 2) + (10 - 2.2) v
    let new = steered(
        Composed::of(along([3.0, 4.0]), double),
        [1.0, 2.0],
        Some([3.0, 4.0]),
    );
    assert_near(new, [1.0 + 7.8 * 0.6, 2.0 + 7.8 * 0.8]);
}

/// An operation across features sees those that stay as they are, wherever they are in the list.
#[test]
fn operations_see_all_features() {
    let device = Default::default();
    let centred = || Closure::<F>::new(|z, _operands| z.clone() - z.mean_dim(2));
    for (changed, expected) in [(0, [-1.0, 3.0]), (1, [1.0, 1.0])] {
        let axes = Directions::spanned_by(Tensor::<F, 2>::eye(2, &device)).expect("of full rank");
        let it = Composed::of(axes, centred()).with_changed(vec![changed]);
        assert_near(steered(it, [1.0, 3.0], None), expected);
    }
}

/// What an intervention does along a basis, `encode` and `decode` do as well.
#[test]
fn a_basis_agrees_with_encode_and_decode() {
    fn check(featurizer: impl Featurizer<F>) {
        let x = matrix::<F>(0.3, [3, 8]);
        let encode = |x| featurizer.encode(x);
        let encoded = Encoded::new(x.clone(), &encode);
        let tripled = featurizer.decode(encoded.features() * 3.0, &encoded);
        let it = Composed::of(featurizer.clone(), Scale { factor: 3.0 });
        let expected = it.apply(x.unsqueeze_dim(1), Operands::new(None, None));
        assert_eq!(
            values(encoded.features()).len(),
            3 * it.features(1, 8).expect("it fits")
        );
        for (found, expected) in values(tripled).into_iter().zip(values(expected)) {
            assert!((found - expected).abs() <= 1e-5, "{found}, not {expected}");
        }
    }
    check(Rotation::new(rotation(3, OrthonormalMap::Retraction)));
    check(Rotation::new(rotation(8, OrthonormalMap::Cayley)));
    check(Directions::spanned_by(matrix(0.7, [8, 2])).expect("of full rank"));
    check(Directions::along(vector(0.2, 8)).expect("a direction"));
    check(Identity);
}

#[test]
fn a_dictionary_keeps_its_error() {
    // f = ReLU(x), y = (f₀, 2 f₁): the error of (1, 3) is (0, -3).
    let device = Default::default();
    let eye = Tensor::<F, 2>::eye(2, &device);
    let decoder = Tensor::from_floats([[1.0, 0.0], [0.0, 2.0]], &device);
    let zeros = || Tensor::zeros([2], &device);
    let relu = FeatureActivation::relu();
    let dictionary = Dictionary::new((eye, zeros()), relu, (decoder, zeros())).expect("it fits");
    let features = || DictionaryFeatures::new(dictionary.clone()).expect("an autoencoder");
    // Nothing changes: to the bit.
    let same = steered(
        Composed::of(features(), Scale { factor: 1.0 }),
        [0.1, 0.7],
        None,
    );
    assert_eq!(same, [0.1, 0.7]);
    // Feature 1 from 3 to 0.5: (1, 3) + (0.5 - 3) · (0, 2)
    let clamped = Composed::of(features(), Clamp::at_most(0.5)).with_changed(vec![1]);
    assert_eq!(steered(clamped, [1.0, 3.0], None), [1.0, -2.0]);
    // The same feature, selected.
    let one = DictionaryFeatures::selected(dictionary.clone(), &[1]).expect("there");
    let clamped = Composed::of(one, Clamp::at_most(0.5));
    assert_eq!(steered(clamped, [1.0, 3.0], None), [1.0, -2.0]);
    // Swapped with (5, 1): (1, 3) + (4, (1 - 3) · 2)
    let swapped = steered(Composed::of(features(), Swap), [1.0, 3.0], Some([5.0, 1.0]));
    assert_eq!(swapped, [5.0, -1.0]);
}

/// A mask over a dictionary's features is trained, the dictionary is not.
#[test]
fn gradients_reach_a_mask_through_a_dictionary() {
    let dictionary = Dictionary::<A>::new(
        (matrix(1.0, [8, 10]), vector(2.0, 10)),
        FeatureActivation::relu(),
        (matrix(3.0, [10, 8]), vector(4.0, 8)),
    );
    let features = DictionaryFeatures::new(dictionary.expect("it fits")).expect("an autoencoder");
    let mask = SigmoidMask::new(vector(0.4, 10), 0.3);
    let it = Composed::of(features, Swap).with_mask(mask);
    let [base, source] = [0.0, 2.0].map(|phase| wave::<A, 3>(phase, [2, 1, 8], DType::F32));
    let output = it.apply(base, Operands::new(Some(source), None));
    let mut gradients = Gradients {
        all: &(output * wave(0.5, [2, 1, 8], DType::F32)).sum().backward(),
        found: Vec::new(),
    };
    it.visit(&mut gradients);
    let found: Vec<bool> = gradients.found.iter().map(Option::is_some).collect();
    assert_eq!(found, [false, false, false, false, true]);
    assert_eq!(it.mask_parameters(), [it.mask.logits.id]);
}

#[test]
fn parts_that_do_not_fit_are_errors() {
    let device = Default::default();
    let three = ConstantSource::<F>::new(Tensor::zeros([3], &device), SourceOperation::Swap);
    let misfit = Composed::of(along([1.0, 0.0]), three).features(1, 2);
    let message = misfit.expect_err("1 feature, not 3").to_string();
    assert!(message.contains("1 feature in the operation"), "{message}");
    let mask = SigmoidMask::<F>::uniform(0.0, 2, 1.0, &device);
    let misfit = Composed::of(along([1.0, 0.0]), Swap)
        .with_mask(mask)
        .features(1, 2);
    assert!(misfit.is_err());
    let misfit = Composed::of(along([1.0, 0.0]), Swap).features(1, 5);
    assert_eq!(misfit.expect_err("2 features").d_site, 5);
    for vector in [[0.0, 0.0], [f32::NAN, 1.0]] {
        assert!(Directions::<F>::along(Tensor::from_floats(vector, &device)).is_err());
    }
}
