//! `lvs-xdp realserver ...`: what is done on a real server.

use std::io::Write;

use super::{Failure, args::RealserverVerb};

/// Where the command line meets the set-up of a real server.
pub(super) fn run(verb: RealserverVerb, _out: &mut dyn Write) -> Result<(), Failure> {
    let done = match verb {
        RealserverVerb::Setup {
            vips,
            interface,
            dry_run: _,
        } => {
            format!("{} is not put on {interface}", join(&vips))
        }
        RealserverVerb::Undo { vips, dry_run: _ } => format!("{} stays", join(&vips)),
        RealserverVerb::Show(_) => "nothing is shown".to_owned(),
    };
    Err(Failure::Refused(format!(
        "{done}: this build cannot set up real servers"
    )))
}

fn join(vips: &[std::net::IpAddr]) -> String {
    vips.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
