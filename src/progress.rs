//! Progress bars.

use std::time::Duration;

use burn_align_models::pretrained::LoadProgress;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts steps of long work; hidden where standard error is no terminal.
pub fn bar(steps: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(steps).with_message(what);
    bar.set_style(
        ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {prefix} [{elapsed}<{eta}]")
            .expect("the template is right"),
    );
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A bar that follows the loading of a model, for
/// [`LoadOptions::with_progress`](burn_align_models::LoadOptions::with_progress).
pub fn loading() -> impl Fn(LoadProgress<'_>) {
    let bar = ProgressBar::new(0).with_message("loading");
    bar.set_style(
        ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}")
            .expect("the template is right"),
    );
    move |progress| {
        bar.set_length(progress.bytes_total as u64);
        bar.set_position(progress.bytes_done as u64);
        if progress.tensors_done + 1 == progress.tensors_total {
            bar.finish_and_clear();
        }
    }
}
