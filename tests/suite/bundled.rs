//! What the bundled models know.

use burn::tensor::backend::Backend;
use burn_align_models::{Decoder, FromPretrained, LoadOptions, TokenBatch};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_chacha::ChaCha8Rng;
use workbench::fit::next_tokens;
use workbench::queues::Queue;

#[allow(dead_code, unreachable_pub, reason = "the task of an example")]
#[path = "../../examples/train_price_tagging/task.rs"]
mod task;

use task::{ANSWERS, POSITIONS, Part, Question};

on_every_backend!(
    the_induction_model_answers_questions_about_new_queues,
    the_price_tagging_model_knows_prices_and_brackets_that_it_was_never_asked_about,
);

fn the_induction_model_answers_questions_about_new_queues<B: Backend>(device: &B::Device) {
    let options = LoadOptions::default();
    let induction =
        Decoder::<B>::from_pretrained("bundled:induction", &options, device).expect("bundled");
    let tokenizer = induction.tokenizer().expect("a tokenizer");
    let mut rng = StdRng::seed_from_u64(2026);
    let mut prompts: Vec<Vec<u32>> = (0..500)
        .map(|_| Queue::draw(1, &mut rng).words().join(" "))
        .map(|words| tokenizer.encode(&words).expect("words"))
        .collect();
    let answers: Vec<u32> = prompts.iter_mut().filter_map(Vec::pop).collect();
    let prompts = TokenBatch::new(prompts).expect("a batch");
    let next = next_tokens(&induction.model, &prompts, device).expect("a batch");
    let right = next.iter().zip(&answers).filter(|(a, b)| a == b).count();
    assert!(right * 100 >= answers.len() * 98, "{right} of 500");
}

fn the_price_tagging_model_knows_prices_and_brackets_that_it_was_never_asked_about<B: Backend>(
    device: &B::Device,
) {
    let options = LoadOptions::default();
    let prices =
        Decoder::<B>::from_pretrained("bundled:price-tagging", &options, device).expect("bundled");
    let tokenizer = prices.tokenizer().expect("a tokenizer");
    let answers = ANSWERS.map(|answer| tokenizer.single_token(answer).expect("a word"));
    let mut rng = ChaCha8Rng::seed_from_u64(2026);
    let questions: Vec<Question> = (0..1000)
        .map(|_| Part::HeldOut.question(&mut rng))
        .collect();
    let prompts = tokenizer.encode_batch(questions.iter().map(Question::prompt));
    let prompts = prompts.expect("words");
    assert!(prompts.lengths().iter().all(|it| *it == POSITIONS.len()));
    let next = next_tokens(&prices.model, &prompts, device).expect("a batch");
    let pairs = next.iter().zip(&questions);
    let right = pairs.filter(|(next, it)| **next == answers[usize::from(it.is_yes())]);
    let right = right.count();
    assert!(right >= 980, "{right} of 1000");
}
