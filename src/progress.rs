//! Progress bars.

use std::borrow::Cow;
use std::time::Duration;

use burn_align::training::TrainingEvent;
use burn_align_models::pretrained::LoadProgress;
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

/// A bar that counts the steps of a long task; hidden if standard error is not a terminal.
pub fn bar(steps: u64, what: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::new(steps).with_message(what);
    bar.set_style(
        ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {prefix} [{elapsed}<{eta}]")
            .expect("the template is valid"),
    );
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A bar that follows training, with the loss and the last accuracy on held-out data, for
/// [`train`](burn_align::training::train).
pub fn training(what: impl Into<Cow<'static, str>>) -> impl FnMut(TrainingEvent<'_>) {
    let bar = bar(0, what).with_finish(ProgressFinish::AndClear);
    let (mut loss, mut accuracy) = (String::new(), String::new());
    move |event| {
        match event {
            TrainingEvent::Prepared { examples, of } => {
                bar.set_length(of as u64);
                bar.set_position(examples as u64);
            }
            TrainingEvent::Resumed(history) => {
                if let Some(last) = history.steps.last() {
                    loss = format!("loss {:.3}", last.loss);
                }
            }
            TrainingEvent::Step(report) => {
                bar.set_length(report.steps as u64);
                bar.set_position(report.step as u64 + 1);
                loss = format!("loss {:.3}", report.loss);
            }
            TrainingEvent::Epoch(report) => {
                if let Some(held_out) = report.held_out {
                    accuracy = format!(" IIA {:.3}", held_out.accuracy);
                }
            }
            _ => {}
        }
        bar.set_prefix(format!("{loss}{accuracy}"));
    }
}

/// A bar that follows the loading of a model, for
/// [`LoadOptions::with_progress`](burn_align_models::LoadOptions::with_progress).
pub fn loading() -> impl Fn(LoadProgress<'_>) {
    let bar = ProgressBar::new(0).with_message("loading");
    bar.set_style(
        ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}")
            .expect("the template is valid"),
    );
    move |progress| {
        bar.set_length(progress.bytes_total as u64);
        bar.set_position(progress.bytes_done as u64);
        if progress.tensors_done + 1 == progress.tensors_total {
            bar.finish_and_clear();
        }
    }
}
