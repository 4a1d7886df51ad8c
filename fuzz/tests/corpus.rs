//! Every input of the kept corpus, without a fuzzer.

use std::{fs, path::Path};

#[test]
fn what_was_found_once_goes_well() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut inputs = 0;
    for input in fs::read_dir(corpus).expect("the corpus is there") {
        let path = input.expect("it can be listed").path();
        println!("{}", path.display());
        lvs_xdp_fuzz::run(&fs::read(&path).expect("it can be read"));
        inputs += 1;
    }
    assert!(inputs > 50, "only {inputs} inputs");
}
