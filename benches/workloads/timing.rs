//! Warm-up, repeats and waiting for the device.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use burn::tensor::backend::Backend;

use crate::usage::{PerRepeat, Sampling, Usage};

/// Fewest repeats.
const LEAST: usize = 5;
/// Most repeats.
const MOST: usize = 200;

/// How often a workload is repeated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repeats {
    /// Minimum total seconds of repeats.
    pub(crate) seconds: f64,
    /// Exactly this many, after one warm-up.
    pub(crate) exactly: Option<usize>,
}

impl Repeats {
    fn warm_ups(self) -> usize {
        match self.exactly {
            Some(_) => 1,
            None => 2,
        }
    }

    /// Whether another one follows.
    fn go_on(self, count: usize, seconds: f64) -> bool {
        match self.exactly {
            Some(exactly) => count < exactly,
            None => count < LEAST || (count < MOST && seconds < self.seconds),
        }
    }
}

/// Seconds of the repeats of one workload.
pub(crate) struct Times {
    /// In ascending order.
    seconds: Vec<f64>,
    usage: Option<PerRepeat>,
}

impl Times {
    /// - before: what had been used before the repeats, and `after` them, in `wall` seconds
    fn new(mut seconds: Vec<f64>, [before, after]: [Option<Usage>; 2], wall: f64) -> Self {
        seconds.sort_by(f64::total_cmp);
        let usage = before.zip(after);
        let usage = usage.map(|(before, after)| after.per_repeat(&before, wall, seconds.len()));
        Self { seconds, usage }
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

    /// What a repeat took besides, if the system tells.
    pub(crate) fn usage(&self) -> Option<&PerRepeat> {
        self.usage.as_ref()
    }
}

/// Times the repeats of `run`, after the warm-ups.
pub(crate) fn time<B: Backend, T>(
    run: impl Fn() -> Result<T>,
    repeats: Repeats,
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
    for _ in 0..repeats.warm_ups() {
        run()?;
    }
    let mut times = Vec::new();
    let sampling = Sampling::begin();
    let before = Usage::now();
    let start = Instant::now();
    while repeats.go_on(times.len(), start.elapsed().as_secs_f64()) {
        times.push(run()?.as_secs_f64());
    }
    let wall = start.elapsed().as_secs_f64();
    let after = Usage::now();
    drop(sampling);
    Ok(Times::new(times, [before, after], wall))
}

/// Times one run, without a warm-up: of work that takes many minutes.
pub(crate) fn time_once<B: Backend, T>(
    run: impl Fn() -> Result<T>,
    device: &B::Device,
) -> Result<Times> {
    let sampling = Sampling::begin();
    B::sync(device)?;
    let before = Usage::now();
    let start = Instant::now();
    run()?;
    B::sync(device)?;
    let seconds = start.elapsed().as_secs_f64();
    let after = Usage::now();
    drop(sampling);
    Ok(Times::new(vec![seconds], [before, after], seconds))
}

/// Times the steps of a training, after three steps of warm-up.
///
/// `train` trains for the given number of steps, and calls the function after each.
pub(crate) fn time_steps<B: Backend>(
    train: impl Fn(usize, &mut dyn FnMut()) -> Result<()>,
    repeats: Repeats,
    device: &B::Device,
) -> Result<Times> {
    const WARM_UP: usize = 3;
    // Without a time limit for training, the number of steps is estimated from the first few.
    let mut steps = WARM_UP + repeats.exactly.unwrap_or(LEAST);
    loop {
        let mut times = Vec::new();
        let mut start = Instant::now();
        let (mut before, mut after, mut sampling) = (None, None, None);
        train(steps, &mut || {
            // The step has read its loss from the device, but its update may still run.
            let synchronised = B::sync(device).is_ok();
            times.push(if synchronised {
                start.elapsed().as_secs_f64()
            } else {
                f64::NAN
            });
            if times.len() == WARM_UP {
                sampling = Some(Sampling::begin());
                before = Usage::now();
            } else if times.len() == steps {
                after = Usage::now();
                sampling = None;
            }
            start = Instant::now();
        })?;
        drop(sampling);
        let times = times.split_off(WARM_UP);
        let all: f64 = times.iter().sum();
        ensure!(all.is_finite(), "the device was lost");
        if !repeats.go_on(times.len(), all) {
            return Ok(Times::new(times, [before, after], all));
        }
        let wanted = (repeats.seconds / all * times.len() as f64).ceil() as usize;
        steps = WARM_UP + wanted.clamp(times.len() + 1, MOST);
    }
}
