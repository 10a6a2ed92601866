//! Files that are whole, with numbers that contradict one another.

use std::fs;

use burn::backend::Flex;

use super::{FEATURIZER, INVERSE, Modules, SUBSPACE, subspace};
use crate::interventions::{Orthonormal, OrthonormalMap};
use crate::methods::causal_variables::{LoadSubmissionError, Submission, SubmissionUnit};
use crate::saved::{Floats, torch_file};

/// A submission whose numbers were changed before they were written.
///
/// - change: of the matrix, and of the parameter and the base
fn load(
    name: &str,
    change: impl FnOnce(&mut Floats, &mut [Floats; 2]),
) -> Result<Submission<Flex>, LoadSubmissionError> {
    let device = Default::default();
    let unit = SubmissionUnit::residual_stream(0, "last_token");
    let rotation = Orthonormal::<Flex>::random([3, 2], OrthonormalMap::Householder, 0, &device);
    let modules = subspace(&unit, &rotation.expect("a rotation"), true).expect("its numbers");
    let Modules::Subspace {
        mut matrix,
        mut state,
        is_trained,
    } = modules
    else {
        panic!("a rotation is a subspace");
    };
    change(&mut matrix, &mut state);
    let modules = Modules::Subspace {
        matrix,
        state,
        is_trained,
    };
    let bytes = torch_file(&modules.value(SUBSPACE)).expect("in memory");
    let folder = std::env::temp_dir().join(format!("submission-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    for end in [FEATURIZER, INVERSE] {
        fs::write(folder.join(format!("{unit}{end}")), &bytes).expect("written");
    }
    let loaded = Submission::load(&folder, &device);
    fs::remove_dir_all(&folder).expect("removed");
    loaded
}

#[test]
fn a_matrix_must_be_that_of_its_state() {
    load("same", |_, _| ()).expect("nothing was changed");
    let error = load("matrix", |matrix, _| matrix.values[0] += 0.1).expect_err("another matrix");
    let text = error.to_string();
    assert!(
        text.contains("expected the rotation_matrix that its state_dict gives"),
        "{text}"
    );
}

#[test]
fn directions_must_be_orthonormal() {
    let longer = load("longer", |_, [_, base]| {
        base.values.iter_mut().for_each(|value| *value *= 1.1);
    });
    let error = longer.expect_err("longer directions");
    assert!(
        matches!(&error, LoadSubmissionError::NotOrthonormal { deviation, .. }
            if (*deviation - 0.21).abs() < 1e-3),
        "{error}"
    );
    for name in ["parameter", "base", "matrix-nan"] {
        let found = load(name, |matrix, [parameter, base]| {
            let floats = match name {
                "parameter" => parameter,
                "base" => base,
                _ => matrix,
            };
            floats.values[0] = f32::NAN;
        });
        let error = found.expect_err("not a number");
        assert!(
            matches!(&error, LoadSubmissionError::NotOrthonormal { deviation, .. }
                if deviation.is_infinite()),
            "{name}: {error}"
        );
    }
}
