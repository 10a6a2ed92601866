//! How to use burn-align, chapter by chapter.
//!
#![doc = include_str!("../guide/links.txt")]
#![doc = include_str!("../guide/README.md")]

// The chapters are Markdown files, so that they can also be read on GitHub. Their links are defined
// twice: at the end of each file for GitHub, and before it for rustdoc, which uses the first
// definition.
macro_rules! chapters {
    ($($name:ident: $file:literal,)*) => {$(
        #[doc = include_str!("../guide/links.txt")]
        #[doc = include_str!(concat!("../guide/", $file))]
        pub mod $name {}
    )*};
}

chapters! {
    first_steps: "01-first-steps.md",
    coming_from_pyvene: "02-coming-from-pyvene.md",
    sites: "03-sites.md",
    plans: "04-plans.md",
    units: "05-units.md",
    das: "06-das.md",
    path_patching: "07-path-patching.md",
    causal_scrubbing: "08-causal-scrubbing.md",
    backends: "09-backends.md",
    adding_a_model: "10-adding-a-model.md",
    adding_an_intervention: "11-adding-an-intervention.md",
    adding_a_method: "12-adding-a-method.md",
    errors: "13-errors.md",
    generation: "14-generation.md",
    dictionaries: "15-dictionaries.md",
    attribution: "16-attribution.md",
    circuits: "17-circuits.md",
}
