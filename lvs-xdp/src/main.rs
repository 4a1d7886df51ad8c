//! One binary, two faces: `lvs-xdp VERB ...`, and ipvsadm for whoever calls it by that name.

use std::{env, process::ExitCode};

use lvs_xdp::{api::target::ClientOptions, cli, ipvsadm};

fn main() -> ExitCode {
    let mut words = env::args_os();
    let called_as = words.next().unwrap_or_default();
    match ipvsadm::Face::of(&called_as) {
        Some(face) => ipvsadm::main(face, &called_as, words, ClientOptions::default()),
        None => cli::main(words),
    }
}
