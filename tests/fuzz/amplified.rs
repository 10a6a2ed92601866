//! Small inputs that refer to something large many times: they are rejected, or take memory in
//! proportion to the input.

use std::fs;

use burn::backend::Flex;
use burn_align::saved::SavedInterventions;
use burn_align_models::{Decoder, FromPretrained, LoadOptions};
use workbench::requests::Request;

use crate::pickles::{archive, push_text};
use crate::{SLACK, fixtures, taken};

fn check(bytes: usize, size: usize) {
    assert!(bytes <= 10 * size + SLACK, "{bytes} bytes for {size}");
}

/// Subspaces with repeated ids, into parts with all features.
#[test]
fn repeated_subspaces() {
    let device = Default::default();
    let folder = fixtures().join("checkpoints/gpt2_plain");
    let model = Decoder::<Flex>::from_pretrained(folder, &LoadOptions::default(), &device);
    let model = model.expect("a fixture");
    let request = |parts: &str, ids: String| {
        format!(
            r#"{{"model": "", "base": {{"input_ids": [[1, 5, 9]]}},
                "sources": [{{"input_ids": [[2, 6, 4]]}}],
                "config": {{"alignable_representations": [{{"subspace_partition": {parts}}}]}},
                "unit_locations": {{"sources->base": 1}},
                "subspaces": [[[{ids}]]]}}"#
        )
    };
    let answer = |json: &str| {
        let (bytes, logits) = taken(|| {
            let request = Request::parse(json).expect("a request");
            let answer = request
                .answer(&fixtures(), &model, &device)
                .expect("it fits");
            answer.tensors["logits"].clone().into_data()
        });
        check(bytes, json.len());
        logits
    };
    let once = answer(&request("[[0, 16]]", "0".to_owned()));
    let again = answer(&request("[[0, 16]]", vec!["0"; 200_000].join(",")));
    assert_eq!(once, again, "a part that is named twice is changed once");
    // Many parts, each with all features.
    let parts = format!("[{}]", vec!["[0,16]"; 20_000].join(","));
    let ids: Vec<String> = (0..20_000).map(|id| id.to_string()).collect();
    assert_eq!(once, answer(&request(&parts, ids.join(","))));
}

/// A pickle in which one long tuple is the shape of every tensor.
#[test]
fn shapes_that_are_used_again() {
    let mut pickle = b"\x80\x02}(".to_vec();
    // The shape is remembered as 1, the storage as 2, the function as 3.
    push_text(&mut pickle, "0");
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\nq\x03((");
    push_text(&mut pickle, "storage");
    pickle.extend(b"ctorch\nFloatStorage\n");
    push_text(&mut pickle, "0");
    push_text(&mut pickle, "cpu");
    pickle.extend(b"K\x00tQq\x02K\x00(");
    pickle.extend(b"K\x01".repeat(50_000));
    pickle.extend(b"tq\x01h\x01\x89}tR");
    for name in 1..500 {
        push_text(&mut pickle, &name.to_string());
        pickle.extend(b"h\x03(h\x02K\x00h\x01h\x01\x89}tR");
    }
    pickle.extend(b"u.");
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let from = fixtures().join("trainable/low_rank");
    let mut archives = 0;
    for entry in fs::read_dir(&from).expect("a fixture") {
        let file = entry.expect("readable").path();
        let name = file.file_name().expect("a name").to_owned();
        let mut bytes = fs::read(&file).expect("readable");
        if file.extension().is_some_and(|extension| extension == "bin") {
            bytes = archive(&pickle);
            archives += 1;
        }
        fs::write(folder.path().join(name), bytes).expect("written");
    }
    assert_eq!(archives, 1);
    let (bytes, loaded) =
        taken(|| SavedInterventions::<Flex>::load(folder.path(), &Default::default()));
    check(bytes, pickle.len());
    let error = loaded.expect_err("refused").to_string();
    assert!(
        error.contains("expected a tensor of at most 8 axes, found 50000"),
        "{error}"
    );
}
