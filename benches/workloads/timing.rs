//! Warm-up, repeats and waiting for the device.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use burn::tensor::backend::Backend;

/// Fewest repeats.
const LEAST: usize = 5;
/// Most repeats.
const MOST: usize = 200;

/// Seconds of the repeats of one workload.
pub(crate) struct Times {
    /// In ascending order.
    seconds: Vec<f64>,
}

impl Times {
    fn new(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self { seconds }
    }

    /// The median of the seconds.
    pub(crate) fn median(&self) -> f64 {
        self.seconds[self.seconds.len() / 2]
    }

    /// (slowest - fastest) / median.
    pub(crate) fn spread(&self) -> f64 {
        (self.seconds[self.seconds.len() - 1] - self.seconds[0]) / self.median()
    }

    /// The number of repeats.
    pub(crate) fn repeats(&self) -> usize {
        self.seconds.len()
    }
}

/// Times `run` for at least this many seconds, after two warm-ups.
pub(crate) fn time<B: Backend, T>(
    run: impl Fn() -> Result<T>,
    seconds: f64,
    device: &B::Device,
) -> Result<Times> {
    let run = || -> Result<Duration> {
        B::sync(device)?;
        let start = Instant::now();
        let results = run()?;
        B::sync(device)?;
        let elapsed = start.elapsed();
        drop(results);
        Ok(elapsed)
    };
    run()?;
    run()?;
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < LEAST || (times.len() < MOST && start.elapsed().as_secs_f64() < seconds) {
        times.push(run()?.as_secs_f64());
    }
    Ok(Times::new(times))
}

/// Times the steps of a training for at least this many seconds, after three steps of warm-up.
///
/// `train` trains for the given number of steps, and calls the function after each.
pub(crate) fn time_steps<B: Backend>(
    train: impl Fn(usize, &mut dyn FnMut()) -> Result<()>,
    seconds: f64,
    device: &B::Device,
) -> Result<Times> {
    const WARM_UP: usize = 3;
    // Without a time limit for training, the number of steps is estimated from the first few.
    let mut steps = WARM_UP + LEAST;
    loop {
        let mut times = Vec::new();
        let mut start = Instant::now();
        train(steps, &mut || {
            // The step has read its loss from the device, but its update may still run.
            let synchronised = B::sync(device).is_ok();
            times.push(if synchronised {
                start.elapsed().as_secs_f64()
            } else {
                f64::NAN
            });
            start = Instant::now();
        })?;
        let times = times.split_off(WARM_UP);
        let all: f64 = times.iter().sum();
        ensure!(all.is_finite(), "the device was lost");
        if all >= seconds || times.len() >= MOST {
            return Ok(Times::new(times));
        }
        let wanted = (seconds / all * times.len() as f64).ceil() as usize;
        steps = WARM_UP + wanted.clamp(times.len() + 1, MOST);
    }
}
