//! Runs that are interrupted and resumed.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use burn::backend::{Autodiff, Flex};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn_align::front::InterventionType;
use burn_align::training::{
    CheckpointInterval, Checkpoints, History, RateSchedule, TrainingConfig, TrainingError,
    TrainingEvent, losses, train,
};

use crate::support::{message, values};
use crate::training::{data, model};

type A = Autodiff<Flex>;

const FILE: &str = "training.safetensors";

/// Rotation and mask, both optimizers, a schedule, a temperature, groups of batches, the best
/// epoch: 4 steps of 2 batches in each of 5 epochs.
fn config() -> TrainingConfig {
    TrainingConfig::default()
        .with_epochs(5)
        .with_batch_size(3)
        .with_accumulation(2)
        .with_schedule(RateSchedule::WarmUpThenDecay(0.1))
        .with_temperature(5.0, 0.5)
        .with_learning_rate(2e-2)
        .with_patience(5)
        .with_seed(3)
}

fn saved_in(folder: &Path) -> TrainingConfig {
    config().with_checkpoints(Checkpoints::new(folder).with_every(CheckpointInterval::Steps(1)))
}

struct Bits(Vec<u32>);

impl ModuleVisitor<A> for Bits {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
        self.0
            .extend(values(param.val()).into_iter().map(f32::to_bits));
    }
}

/// All parameters to the bit, with what shows the temperature, and the history.
type Outcome = (Vec<u32>, Vec<u32>, History);

fn run(
    config: &TrainingConfig,
    observe: impl FnMut(TrainingEvent<'_>),
) -> Result<Outcome, TrainingError> {
    let device = Default::default();
    let model = model::<A>(InterventionType::BoundlessRotatedSpace, &device);
    let all = data::<Flex>(24, &device);
    let held_out = [data::<Flex>(10, &device)];
    let (trained, history) = train(
        model,
        std::slice::from_ref(&all),
        &held_out,
        config,
        losses::cross_entropy,
        observe,
    )?;
    let mut bits = Bits(Vec::new());
    trained.interventions().to_vec().visit(&mut bits);
    let output = trained
        .valid()
        .forward_inputs(&held_out[0].inputs)
        .expect("valid");
    let logits = values(output.counterfactual).into_iter().map(f32::to_bits);
    Ok((bits.0, logits.collect(), history))
}

/// Runs this test program again to train in a folder, and kills it after this many steps and a
/// short time.
fn train_and_kill(folder: &Path, steps: usize, later: Duration) {
    let program = std::env::current_exe().expect("this program");
    let mut child = Command::new(program)
        .args([
            "--exact",
            "checkpoints::a_run_to_be_killed",
            "--ignored",
            "--nocapture",
        ])
        .env("BURN_ALIGN_TEST_CHECKPOINTS", folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let told = lines
        .map_while(Result::ok)
        .filter(|line| line.starts_with("step "));
    assert_eq!(
        told.take(steps).count(),
        steps,
        "the run has ended before it was killed"
    );
    std::thread::sleep(later);
    child.kill().expect("it was running");
    let status = child.wait().expect("it has ended");
    assert!(!status.success(), "the run has ended before it was killed");
}

#[test]
#[ignore = "is run, and killed, by another test"]
fn a_run_to_be_killed() {
    let Some(folder) = std::env::var_os("BURN_ALIGN_TEST_CHECKPOINTS") else {
        return;
    };
    run(&saved_in(Path::new(&folder)), |event| {
        if let TrainingEvent::Step(report) = event {
            writeln!(io::stdout(), "step {}", report.step).expect("read");
            std::thread::sleep(Duration::from_millis(5));
        }
    })
    .expect("trained");
}

#[test]
fn a_run_that_was_killed_ends_with_the_same_numbers() {
    let whole = run(&config(), |_| {}).expect("trained");
    assert_eq!(whole.2.steps.len(), 20);
    let folder = tempfile::tempdir().expect("a folder");
    for (steps, later) in [(1, 0), (3, 4), (4, 5), (2, 6)] {
        train_and_kill(folder.path(), steps, Duration::from_millis(later));
    }
    let mut resumed = 0;
    let (mut first, mut last) = (None, 0);
    let found = run(&saved_in(folder.path()), |event| match event {
        TrainingEvent::Resumed(history) => {
            resumed = history.steps.len();
            assert_eq!(history.steps[..], whole.2.steps[..resumed]);
        }
        TrainingEvent::Step(report) => {
            first.get_or_insert(report.step);
            last = report.step;
        }
        _ => {}
    })
    .expect("trained");
    // All but the last step of each were written before the kill.
    assert!(resumed >= 6, "resumed after {resumed} steps");
    assert_eq!((first, last), (Some(resumed), 19));
    assert_eq!(found, whole);
    // A finished run is not run again.
    let again = run(&saved_in(folder.path()), |event| {
        assert!(matches!(event, TrainingEvent::Resumed(_)), "{event:?}");
    });
    assert_eq!(again.expect("read"), whole);
}

#[test]
fn epochs_may_be_all_that_is_kept() {
    let whole = run(&config(), |_| {}).expect("trained");
    let folder = tempfile::tempdir().expect("a folder");
    let config = config().with_checkpoints(Checkpoints::new(folder.path()));
    // Epochs have 4 steps: those of the second are lost.
    let cut_off = std::panic::catch_unwind(|| {
        run(&config, |event| {
            let is_seventh = matches!(event, TrainingEvent::Step(report) if report.step == 6);
            assert!(!is_seventh, "interrupted");
        })
    });
    assert!(cut_off.is_err());
    let mut resumed = None;
    let found = run(&config, |event| {
        if let TrainingEvent::Resumed(history) = event {
            resumed = Some(history.steps.len());
        }
    });
    assert_eq!(found.expect("trained"), whole);
    assert_eq!(resumed, Some(4));
}

#[test]
fn another_run_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let of_this = saved_in(folder.path());
    run(&of_this, |_| {}).expect("trained");
    let before = fs::read(folder.path().join(FILE)).expect("written");
    let other = run(&of_this.clone().with_learning_rate(1e-3), |_| {}).expect_err("refused");
    let file = folder.path().join(FILE);
    assert_eq!(
        message(&other),
        format!(
            "{}: the checkpoint belongs to another run: config.learning_rate: expected 0.001, \
             found 0.02; give each run its own folder, or remove the checkpoint to start over",
            file.display()
        )
    );
    let device = Default::default();
    let refused = |kind, data: &[_]| {
        let found = train(
            model::<A>(kind, &device),
            data,
            &[],
            &of_this,
            losses::cross_entropy,
            |_| {},
        );
        match found.map(|_| ()).expect_err("refused") {
            TrainingError::OtherRun { what, .. } => what,
            other => panic!("{other}"),
        }
    };
    let right = data::<Flex>(24, &device);
    let boundless = InterventionType::BoundlessRotatedSpace;
    assert_eq!(refused(boundless, &[data::<Flex>(23, &device)]), "data");
    let mut other_label = right.clone();
    other_label.labels[5][0] ^= 1;
    assert_eq!(refused(boundless, &[other_label]), "data");
    let rotated = refused(InterventionType::RotatedSpace, &[right]);
    assert!(rotated.starts_with("alignment."), "{rotated}");
    assert_eq!(fs::read(&file).expect("still there"), before);
    // Less memory gives the same run.
    run(&of_this.with_memory_budget(0), |_| {}).expect("read");
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = saved_in(folder.path());
    run(&config, |_| {}).expect("trained");
    let file = folder.path().join(FILE);
    let right = fs::read(&file).expect("written");
    let text = |from: &str, to: &str| {
        let found = right
            .windows(from.len())
            .position(|it| it == from.as_bytes());
        let mut bytes = right.clone();
        bytes[found.expect("it is there")..][..from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    for (bytes, expected) in [
        (right[..right.len() - 1].to_vec(), ""),
        (right[..100].to_vec(), ""),
        (Vec::new(), ""),
        (b"not at all".to_vec(), ""),
        (
            text("burn_align_training", "someone_elses_work_"),
            "it has no state of a run",
        ),
        (
            text("\\\"format\\\":1", "\\\"format\\\":9"),
            "expected format 1, found 9",
        ),
        (
            text("\"parameter.0\"", "\"parametre.0\""),
            "parameter.0: expected a tensor of F32, found none",
        ),
        (
            text("\"optimizer.0.moment_2\"", "\"optimizer.0.moment_9\""),
            "optimizer.0.moment_2: expected a tensor of F32, found none",
        ),
    ] {
        fs::write(&file, &bytes).expect("written");
        match run(&config, |_| {}).expect_err("refused") {
            TrainingError::CheckpointDamaged { reason, .. } => {
                assert!(reason.contains(expected), "{reason}");
            }
            other => panic!("{other}"),
        }
        assert_eq!(fs::read(&file).expect("still there"), bytes);
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_loses_nothing() {
    let whole = run(&config(), |_| {}).expect("trained");
    let folder = tempfile::tempdir().expect("a folder");
    // What is left of a run that was killed while writing.
    let part = folder.path().join("training.safetensors.part");
    fs::write(&part, b"half a checkpoint").expect("written");
    let error = run(&saved_in(folder.path()), |event| {
        if matches!(event, TrainingEvent::Step(report) if report.step == 9) {
            fs::create_dir(&part).expect("made");
        }
    });
    let error = error.expect_err("refused");
    assert!(
        matches!(
            &error,
            TrainingError::CheckpointIo {
                doing: "written",
                ..
            }
        ),
        "{error:?}"
    );
    let said = message(&error);
    let expected = format!(
        "{}: the checkpoint could not be written: ",
        folder.path().join(FILE).display()
    );
    assert!(said.starts_with(&expected), "{said}");
    assert!(
        said.ends_with("the run resumes from there when it is started again"),
        "{said}"
    );
    fs::remove_dir(&part).expect("removed");
    let mut resumed = None;
    let found = run(&saved_in(folder.path()), |event| {
        if let TrainingEvent::Resumed(history) = event {
            resumed = Some(history.steps.len());
        }
    });
    assert_eq!(found.expect("trained"), whole);
    assert_eq!(resumed, Some(9));
}

#[test]
fn a_folder_that_is_none_is_found_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, b"no folder").expect("written");
    let error = run(&saved_in(&file), |event| panic!("{event:?}")).expect_err("refused");
    assert!(
        matches!(&error, TrainingError::CheckpointIo { .. }),
        "{error:?}"
    );
}

/// A file that may not grow any further is equivalent to a full disk.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = std::env::current_exe().expect("this program");
    let output = Command::new("bash")
        .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\" 2>&1"])
        .arg(program)
        .args([
            "--exact",
            "checkpoints::a_run_to_be_killed",
            "--ignored",
            "--nocapture",
        ])
        .env("BURN_ALIGN_TEST_CHECKPOINTS", folder.path())
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("CheckpointIo { file:"), "{said}");
    assert!(said.contains("FileTooLarge"), "{said}");
    assert_eq!(
        fs::read_dir(folder.path()).expect("a folder").count(),
        0,
        "a part is left"
    );
}
