//! Every input of the kept corpora, without a fuzzer.

use std::{fs, path::Path};

use lvs_xdp_fuzz::{api, config, decide, keepalived, restore};

/// Tries all inputs of a target, of which there are more than 50.
fn all_go_well(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut inputs = 0;
    for input in fs::read_dir(corpus).expect("the corpus is there") {
        let path = input.expect("it can be listed").path();
        println!("{}", path.display());
        run(&fs::read(&path).expect("it can be read"));
        inputs += 1;
    }
    assert!(inputs > 50, "only {inputs} inputs");
}

#[test]
fn what_was_found_once_goes_well() {
    all_go_well("decide", decide::run);
}

#[test]
fn bodies_that_were_found_once_go_well() {
    all_go_well("api", api::run);
}

#[test]
fn configuration_files_that_were_found_once_go_well() {
    all_go_well("config", config::run);
}

#[test]
fn rules_that_were_found_once_go_well() {
    all_go_well("restore", restore::run);
}

#[test]
fn keepaliveds_files_that_were_found_once_go_well() {
    all_go_well("keepalived", keepalived::run);
}
