//! Features that were planted are found; dead ones come back; wrong settings are errors.

use burn::backend::Flex;
use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData};
use burn_align::dictionaries::{Dictionary, DictionaryOptions};
use burn_align::training::RateSchedule;
use burn_align::training::dictionary::{
    DictionaryStep, DictionaryTrainer, DictionaryTrainingConfig, DictionaryTrainingError,
    JumpReluSparsity, L0Penalty, Products, Sparsity, TopKSparsity,
};
use rand::seq::index::sample;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{noise, tensor};
use crate::support::{message, values};

/// Rows that are sums of two of some directions each.
struct Planted {
    directions: Vec<Vec<f32>>,
    rng: ChaCha8Rng,
}

impl Planted {
    const WIDTH: usize = 16;
    const COUNT: usize = 16;

    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let directions = (0..Self::COUNT).map(|_| {
            let numbers = noise(&mut rng, Self::WIDTH);
            let norm = numbers.iter().map(|it| it * it).sum::<f32>().sqrt();
            numbers.iter().map(|it| it / norm).collect()
        });
        let directions = directions.collect();
        Self { directions, rng }
    }

    fn rows(&mut self, count: usize) -> Tensor<Flex, 2> {
        let mut numbers = vec![0.0; count * Self::WIDTH];
        for row in numbers.chunks_mut(Self::WIDTH) {
            for direction in sample(&mut self.rng, Self::COUNT, 2) {
                let factor: f32 = self.rng.random_range(1.0..2.0);
                for (sum, x) in row.iter_mut().zip(&self.directions[direction]) {
                    *sum += factor * x;
                }
            }
        }
        tensor(numbers, Self::WIDTH, &Default::default())
    }

    /// For each direction, the cosine with the feature that is closest to it.
    fn found(&self, dictionary: &Dictionary<Flex>) -> Vec<f32> {
        let features = values(dictionary.decoder.val());
        let features: Vec<&[f32]> = features.chunks(Self::WIDTH).collect();
        let cosine = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let closest = |direction: &Vec<f32>| {
            let cosines = features.iter().map(|feature| cosine(direction, feature));
            cosines.fold(0.0, f32::max)
        };
        self.directions.iter().map(closest).collect()
    }
}

/// How many of the directions have been found.
fn close(cosines: &[f32]) -> usize {
    cosines.iter().filter(|cosine| **cosine > 0.9).count()
}

fn planted_config(sparsity: Sparsity, steps: usize) -> DictionaryTrainingConfig {
    DictionaryTrainingConfig::new(40, sparsity, steps * 128)
        .with_batch_tokens(128)
        .with_learning_rate(1e-2)
        .with_dead_after(20)
        .with_seed(1)
}

fn train(
    trainer: &mut DictionaryTrainer<Flex>,
    planted: &mut Planted,
    steps: usize,
) -> Vec<DictionaryStep> {
    let steps = (0..steps).map(|_| trainer.step(planted.rows(128)).expect("finite"));
    steps.collect()
}

#[test]
fn top_k_finds_planted_features() {
    let mut planted = Planted::new(1);
    let config = planted_config(Sparsity::top_k(2), 300);
    let device = Default::default();
    let mut trainer = DictionaryTrainer::new(Planted::WIDTH, &config, &device).expect("it fits");
    let before = planted.found(&trainer.dictionary().expect("it fits"));
    assert!(close(&before) <= 2, "{before:?}");
    let steps = train(&mut trainer, &mut planted, 300);
    assert!(steps.iter().all(|step| step.l0 <= 2.0));
    assert_eq!(steps[299].l0, 2.0);
    assert!(steps[299].explained_variance > 0.9, "{:?}", steps[299]);
    let dictionary = trainer.dictionary().expect("it fits");
    let found = planted.found(&dictionary);
    assert!(close(&found) >= 14, "{found:?}");
    let norms = values(dictionary.decoder.val().square().sum_dim(1).sqrt());
    assert!(norms.iter().all(|norm| (norm - 1.0).abs() < 1e-5));

    // Saved for SAELens and read again, it computes the same.
    let folder = tempfile::tempdir().expect("a folder");
    let info = Default::default();
    dictionary
        .save_saelens(&info, folder.path())
        .expect("written");
    let options = DictionaryOptions::default();
    let again = Dictionary::<Flex>::load(folder.path(), &options, &device).expect("read");
    let x = planted.rows(50);
    let [saved, loaded] = [&dictionary, &again.dictionary].map(|it| values(it.encode(x.clone())));
    assert_eq!(saved, loaded);
    let active = |row: &[f32]| row.iter().filter(|value| **value != 0.0).count();
    assert!(saved.chunks(40).all(|row| active(row) <= 2));
}

#[test]
fn jump_relu_finds_planted_features() {
    let mut planted = Planted::new(2);
    let sparsity = JumpReluSparsity::new(0.05)
        .with_penalty(L0Penalty::Target(2.0))
        .with_warm_up(50)
        .with_bandwidth(0.3);
    let config = planted_config(sparsity.into(), 400);
    let device = Default::default();
    let mut trainer = DictionaryTrainer::new(Planted::WIDTH, &config, &device).expect("it fits");
    let steps = train(&mut trainer, &mut planted, 400);
    let (first, last) = (steps[0], steps[399]);
    assert!(first.l0 > 10.0 && last.l0 < 4.0, "{first:?} {last:?}");
    assert!(last.explained_variance > 0.95, "{last:?}");
    let found = planted.found(&trainer.dictionary().expect("it fits"));
    assert!(close(&found) >= 12, "{found:?}");
}

/// Half of the features are off at first.
fn half_dead(config: &DictionaryTrainingConfig) -> DictionaryTrainer<Flex> {
    let device = Default::default();
    let start = DictionaryTrainer::<Flex>::new(Planted::WIDTH, config, &device);
    let mut start = start.and_then(|it| Ok(it.dictionary()?)).expect("it fits");
    let biases: Vec<f32> = (0..40)
        .map(|at| if at % 2 == 0 { -3.0 } else { 0.0 })
        .collect();
    let biases = Tensor::from_data(TensorData::new(biases, [40]), (&device, DType::F32));
    start.encoder_bias = Param::from_tensor(biases);
    DictionaryTrainer::from_dictionary(&start, config).expect("it fits")
}

#[test]
fn the_auxiliary_loss_revives_dead_features() {
    let dead = |auxiliary: f64| {
        let sparsity = TopKSparsity::new(2).with_auxiliary(auxiliary);
        let config = planted_config(sparsity.into(), 100)
            .with_dead_after(3)
            .with_schedule(RateSchedule::Constant);
        let mut trainer = half_dead(&config);
        train(&mut trainer, &mut Planted::new(3), 61)[60].dead
    };
    let (without, with) = (dead(0.0), dead(1.0));
    assert!(without >= 18, "{without}");
    assert!(with <= 14, "{with}, without {without}");
}

#[test]
fn dead_features_are_resampled() {
    let sparsity = JumpReluSparsity::new(1e-3);
    let config = planted_config(sparsity.into(), 100).with_dead_after(3);
    let last = |config: &DictionaryTrainingConfig| {
        let mut trainer = half_dead(config);
        let steps = train(&mut trainer, &mut Planted::new(4), 12);
        assert!(steps[5].dead >= 18, "{:?}", steps[5]);
        let norms = trainer.dictionary().expect("it fits").decoder.val();
        let norms = values(norms.square().sum_dim(1));
        assert!(norms.iter().all(|norm| (norm - 1.0).abs() < 1e-5));
        steps[11].dead
    };
    assert!(last(&config) >= 18);
    assert_eq!(last(&config.with_resampling(7)), 0);
}

#[test]
fn what_cannot_be_trained_is_an_error() {
    let device = Default::default();
    let valid = || DictionaryTrainingConfig::new(12, Sparsity::top_k(3), 640).with_batch_tokens(64);
    let refused = |width, config: DictionaryTrainingConfig| {
        let found = DictionaryTrainer::<Flex>::new(width, &config, &device);
        message(&found.map(|_| ()).expect_err("refused"))
    };
    let jump = |sparsity: JumpReluSparsity| {
        DictionaryTrainingConfig::new(12, sparsity, 640).with_batch_tokens(64)
    };
    let sparse = |sparsity: TopKSparsity| {
        DictionaryTrainingConfig::new(12, sparsity, 640).with_batch_tokens(64)
    };
    let of_jump = JumpReluSparsity::new;
    for (found, expected) in [
        (
            refused(8, sparse(TopKSparsity::new(13))),
            "k: expected 1 to 12, the number of features, found 13",
        ),
        (
            refused(8, sparse(TopKSparsity::new(0))),
            "k: expected 1 to 12, the number of features, found 0",
        ),
        (
            refused(8, sparse(TopKSparsity::new(3).with_auxiliary(f64::NAN))),
            "auxiliary: expected a finite number, not below 0, found NaN",
        ),
        (
            refused(0, valid()),
            "width of the activations: expected at least 1, found 0",
        ),
        (
            refused(8, valid().with_batch_tokens(641)),
            "tokens: expected at least 641, the tokens of a step, found 640",
        ),
        (
            refused(8, valid().with_learning_rate(0.0)),
            "learning_rate: expected a finite number above 0, found 0",
        ),
        (
            refused(8, jump(of_jump(-1.0))),
            "coefficient: expected a finite number, not below 0, found -1",
        ),
        (
            refused(8, jump(of_jump(1.0).with_bandwidth(0.0))),
            "bandwidth: expected a finite number above 0, found 0",
        ),
        (
            refused(8, jump(of_jump(1.0).with_penalty(L0Penalty::Target(13.0)))),
            "target of the penalty: expected above 0, and at most 12, the number of features, \
             found 13",
        ),
    ] {
        assert_eq!(found, expected);
    }

    let rows = |value: f32, width: usize| tensor::<Flex>(vec![value; 64 * width], width, &device);
    let mut trainer = DictionaryTrainer::<Flex>::new(8, &valid(), &device).expect("it fits");
    let error = trainer.step(rows(1.0, 7)).expect_err("refused");
    assert_eq!(
        message(&error),
        "activations: expected 8 features, the width of the dictionary, found 7"
    );
    trainer.step(rows(1.0, 8)).expect("finite");
    let before = values(trainer.dictionary().expect("it fits").encoder.val());
    let error = trainer.step(rows(f32::NAN, 8)).expect_err("refused");
    assert!(
        matches!(error, DictionaryTrainingError::NotFinite { step: 1 }),
        "{error:?}"
    );
    let after = values(trainer.dictionary().expect("it fits").encoder.val());
    assert_eq!(before, after);
    // Few enough are active for sparse products.
    for products in [Products::Sparse, Products::Dense] {
        let config = planted_config(Sparsity::top_k(2), 10).with_products(products);
        let start = DictionaryTrainer::<Flex>::new(8, &config, &device).expect("it fits");
        let mut broken = start.dictionary().expect("it fits");
        let biases: Vec<f32> = (0..40)
            .map(|at| if at == 7 { f32::NAN } else { 0.0 })
            .collect();
        let biases = Tensor::from_data(TensorData::new(biases, [40]), (&device, DType::F32));
        broken.encoder_bias = Param::from_tensor(biases);
        let mut trainer = DictionaryTrainer::from_dictionary(&broken, &config).expect("it fits");
        let error = trainer.step(rows(1.0, 8)).expect_err("refused");
        assert!(
            matches!(error, DictionaryTrainingError::Diverged { step: 0, .. }),
            "{error:?}"
        );
    }

    let dictionary = trainer.dictionary().expect("it fits");
    for (config, expected) in [
        (sparse(TopKSparsity::new(2)), "k: expected 2, found 3"),
        (
            jump(of_jump(1.0)),
            "dictionary: expected JumpReLU, found another activation function",
        ),
        (
            DictionaryTrainingConfig::new(13, Sparsity::top_k(3), 640).with_batch_tokens(64),
            "features: expected 13, found 12",
        ),
    ] {
        let error = DictionaryTrainer::from_dictionary(&dictionary, &config);
        assert_eq!(message(&error.map(|_| ()).expect_err("refused")), expected);
    }
}
