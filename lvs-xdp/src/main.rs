//! One binary, two faces: `lvs-xdp VERB ...`, and ipvsadm for whoever calls it by that name.

use std::{env, ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path, process::ExitCode};

use lvs_xdp::{cli, ipvsadm};

fn main() -> ExitCode {
    let mut words = env::args_os();
    let called_as = words.next().unwrap_or_default();
    if is_ipvsadm(&called_as) {
        ipvsadm::main(words, None)
    } else {
        cli::main(words)
    }
}

/// Whether the program was called through a link such as `/usr/local/sbin/ipvsadm`.
fn is_ipvsadm(called_as: &OsStr) -> bool {
    Path::new(called_as)
        .file_name()
        .is_some_and(|name| name.as_bytes().ends_with(b"ipvsadm"))
}
