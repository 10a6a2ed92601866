//! What the bundled models know.

use burn::tensor::backend::Backend;
use burn_align_models::{FromPretrained, Gpt2, LoadOptions, TokenBatch};
use rand::SeedableRng;
use rand::rngs::StdRng;
use workbench::fit::next_tokens;
use workbench::queues::Queue;

on_every_backend!(the_induction_model_answers_questions_about_new_queues);

fn the_induction_model_answers_questions_about_new_queues<B: Backend>(device: &B::Device) {
    let options = LoadOptions::default();
    let induction =
        Gpt2::<B>::from_pretrained("bundled:induction", &options, device).expect("bundled");
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
