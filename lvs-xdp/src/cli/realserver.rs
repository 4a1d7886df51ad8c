//! `lvs-xdp realserver ...`: what is done on a real server.

use std::{io::Write, path::PathBuf};

use super::{
    Failure,
    args::{RealserverVerb, TunnelOver},
};
use crate::{
    api::types::TunnelKind,
    realserver::{
        self, DEFAULT_INTERFACE, DEFAULT_STATE_FILE, SetupOptions, ShowOptions, TunnelEnd, UndoOptions,
    },
};

/// The tunnel that was typed.
fn tunnel_end(
    kind: Option<TunnelKind>,
    port: Option<u16>,
    over: TunnelOver,
) -> Result<Option<TunnelEnd>, Failure> {
    let Some(kind) = kind else { return Ok(None) };
    match (kind, port) {
        (TunnelKind::Gue, None) => Err(Failure::Usage(
            "--tunnel gue needs the port to which the director sends: add --tunnel-port".to_owned(),
        )),
        (TunnelKind::Ipip | TunnelKind::Gre, Some(_)) => Err(Failure::Usage(format!(
            "--tunnel {kind} has no port: leave --tunnel-port out"
        ))),
        (TunnelKind::Gue, Some(_)) | (TunnelKind::Ipip | TunnelKind::Gre, None) => Ok(Some(TunnelEnd {
            kind,
            port,
            is_ipv6: over == TunnelOver::Ipv6,
        })),
    }
}

/// Runs one of them, in this process: no agent is needed on a real server.
pub(super) fn run(verb: RealserverVerb, out: &mut dyn Write) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let state_file = PathBuf::from(DEFAULT_STATE_FILE);
    let result = match verb {
        RealserverVerb::Setup {
            vips,
            interface,
            tunnel,
            tunnel_port,
            tunnel_over,
            dry_run,
        } => runtime.block_on(realserver::setup(
            &SetupOptions {
                vips,
                interface,
                tunnel: tunnel_end(tunnel, tunnel_port, tunnel_over)?,
                dry_run,
                state_file,
            },
            out,
        )),
        RealserverVerb::Undo {
            vips,
            interface,
            dry_run,
        } => runtime.block_on(realserver::undo(
            &UndoOptions {
                vips,
                interface,
                dry_run,
                state_file,
            },
            out,
        )),
        RealserverVerb::Show(list) => {
            let options = ShowOptions {
                vips: Vec::new(),
                interface: DEFAULT_INTERFACE.to_owned(),
                json: list.json,
                state_file,
            };
            match runtime.block_on(realserver::show(&options, out)) {
                Ok(true) => Ok(()),
                Ok(false) => Err(anyhow::anyhow!(
                    "not all is as direct routing needs it: `lvs-xdp realserver setup` mends it"
                )),
                Err(error) => Err(error),
            }
        }
    };
    result.map_err(|error| Failure::Refused(format!("{error:#}")))
}
