//! The command line `lvs-xdp VERB ...`: what is typed, what it asks of the agent, what is printed.
//!
//! [`args`] has all that can be typed; each group of verbs has a file of its own. All output goes
//! through one writer: a reader that has seen enough (`| head`) is no error.

mod agent;
mod args;
mod check;
mod checks;
mod configuration;
mod connections;
mod documents;
mod drain;
mod handshakes;
mod import;
mod install;
mod mark;
mod realserver;
mod server;
mod service;
mod settings;
mod status;
mod table;
mod value;

use std::{
    ffi::OsString,
    io::{self, BufWriter, Write},
    iter,
    net::IpAddr,
    path::Path,
    process::ExitCode,
};

use clap::{Parser as _, error::ErrorKind};
use serde::Serialize;

use args::{Cli, ListArgs, Verb};

use crate::{
    api::{
        client::{BlockingClient, ClientError},
        target::ClientOptions,
    },
    dataplane, doctor, ipvsadm,
};

/// Why a verb was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// What was typed cannot be meant.
    #[error("{0}")]
    Usage(String),
    /// It is understood and not done.
    #[error("{0}")]
    Refused(String),
    /// The agent refused it, or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// All is said already; this is the status.
    #[error("status {0}")]
    Status(u8),
    /// The answer could not be printed.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// Runs the command line on this process's standard output and error. `words` are those after the
/// program's name. The status is 0 done, 1 refused, 2 wrong usage.
pub fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let cli = match Cli::try_parse_from(iter::once("lvs-xdp".into()).chain(words)) {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(explain(&error, &mut out, &mut io::stderr())),
    };
    if let Verb::Ipvsadm(args) = cli.verb {
        drop(out);
        return ipvsadm::main(
            ipvsadm::Face::Ipvsadm,
            "ipvsadm".as_ref(),
            args.words.into_iter(),
            cli.connection.into(),
        );
    }
    let failure = match run(cli, &mut out).and_then(|()| Ok(out.flush()?)) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            return ExitCode::SUCCESS;
        }
        Err(Failure::Status(status)) => return ExitCode::from(status),
        Err(failure) => failure,
    };
    // Without standard error the status alone tells.
    drop(writeln!(io::stderr(), "lvs-xdp: {failure}"));
    ExitCode::from(if matches!(failure, Failure::Usage(_)) {
        2
    } else {
        1
    })
}

fn run(cli: Cli, out: &mut dyn Write) -> Result<(), Failure> {
    let Cli { connection, verb } = cli;
    let connection = ClientOptions::from(connection);
    let target = match verb {
        Verb::Agent(args) => return agent::run(args, connection),
        // What these do, they do on this host.
        Verb::Import { .. }
        | Verb::Realserver(_)
        | Verb::InstallIpvsadm { .. }
        | Verb::Completions { .. }
        | Verb::Man { .. } => connection.socket_path().into(),
        _ => connection.target().map_err(Failure::Usage)?,
    };
    if let (true, Verb::Doctor { .. }) = (target.is_remote(), &verb) {
        return Err(Failure::Usage(format!(
            "doctor looks at the director that it runs on, not at {target}: run it there"
        )));
    }
    if let (true, Verb::Unload { pin_dir: Some(_) }) = (target.is_remote(), &verb) {
        return Err(Failure::Usage(format!(
            "--pin-dir is a directory of this host, and {target} is another one: run it there"
        )));
    }
    let mut client = BlockingClient::new(target);
    match verb {
        Verb::Status(list) => status::status(&client.status()?, &list, out),
        Verb::Service(verb) => service::run(*verb, &mut client, out),
        Verb::Server(verb) => server::run(verb, &mut client, out),
        Verb::Mark(verb) => mark::run(verb, &mut client, out),
        Verb::Connections(args) => connections::run(args, &mut client, out),
        Verb::Settings { name, value, list } => settings::run(name, value, &list, &mut client, out),
        Verb::Apply { file, dry_run, list } => configuration::apply(&file, dry_run, &list, &mut client, out),
        Verb::Import {
            file,
            format,
            config_id,
        } => import::run(&file, format, config_id, out, &mut io::stderr()),
        Verb::Export(list) => configuration::export(&list, &mut client, out),
        Verb::Rollback { back, dry_run, list } => {
            configuration::rollback(back, dry_run, &list, &mut client, out)
        }
        Verb::History(list) => configuration::history(&list, &mut client, out),
        Verb::Stats(list) => status::stats(&client.services()?, &list, out),
        Verb::Checks(list) => checks::print(&client.checks()?, &list, out),
        Verb::Handshakes(args) => handshakes::run(&args, &mut client, out),
        Verb::Metrics => Ok(out.write_all(client.metrics()?.as_bytes())?),
        Verb::Announce { addresses, list } => announce(addresses, &list, &mut client, out),
        Verb::Doctor { all, pin_dir, list } => examine(all, &pin_dir, &list, &mut client, out),
        Verb::Unload { pin_dir } => unload(&mut client, pin_dir.as_deref()),
        Verb::Realserver(verb) => realserver::run(verb, out),
        Verb::Agent(_) | Verb::Ipvsadm(_) => Ok(()),
        Verb::InstallIpvsadm { prefix } => install::run(&prefix, out),
        Verb::Completions { shell } => documents::completions(shell, out),
        Verb::Man { dir } => documents::man(dir.as_deref(), out),
        Verb::Openapi => write_json(&client.openapi()?, out),
    }
}

/// Says what is wrong, and what mends it. The status is 0, 1 for warnings, 2 where something is broken.
fn examine(
    all: bool,
    pin_dir: &Path,
    list: &ListArgs,
    client: &mut BlockingClient,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let report = match client.status() {
        Ok(status) => doctor::examine(&status, &client.services()?),
        Err(error @ ClientError::Connect { .. }) => doctor::examine_alone(pin_dir, &error.to_string()),
        Err(error) => return Err(error.into()),
    };
    let report = report.map_err(|error| Failure::Refused(format!("{error:#}")))?;
    if list.json {
        write_json(&report, out)?;
    } else {
        report.write(all, out)?;
    }
    match report.status() {
        0 => Ok(()),
        status => {
            out.flush()?;
            Err(Failure::Status(status))
        }
    }
}

/// Says which addresses were announced.
fn announce(
    addresses: Vec<IpAddr>,
    list: &ListArgs,
    client: &mut BlockingClient,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let announced = client.announce(addresses)?;
    if list.json {
        return write_json(&announced, out);
    }
    for address in announced {
        writeln!(out, "{address} is announced")?;
    }
    Ok(())
}

/// By the agent; where there is none to ask, and the directory is named, without it. An agent that lives
/// holds that directory locked.
fn unload(client: &mut BlockingClient, pin_dir: Option<&Path>) -> Result<(), Failure> {
    match (client.unload(), pin_dir) {
        (Err(ClientError::Connect { .. }), Some(pin_dir)) => {
            dataplane::unload(pin_dir).map_err(|error| Failure::Refused(format!("{error:#}")))
        }
        (Err(error @ ClientError::Connect { .. }), None) if !client.is_remote() => {
            Err(Failure::Refused(format!(
                "{error}; or, where it has died, name what it has left: lvs-xdp unload --pin-dir /sys/fs/bpf/lvs-xdp"
            )))
        }
        (result, _) => Ok(result?),
    }
}

/// JSON for programs, and for those who debug them.
fn write_json<T: Serialize + ?Sized>(value: &T, out: &mut dyn Write) -> Result<(), Failure> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

/// What the parser has to say: help and version in full on standard output, faults on one line.
/// Returns the exit status.
fn explain(error: &clap::Error, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
            0
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            drop(err.write_all(text.as_bytes()));
            2
        }
        _ => {
            drop(writeln!(err, "lvs-xdp: {}", one_line(&text)));
            2
        }
    }
}

/// The parser's message as one line: what is wrong and its tips, without the usage.
fn one_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let parts = text
        .split("\n\n")
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    let told = parts.filter(|part| !part.is_empty() && !part.starts_with("Usage:"));
    told.collect::<Vec<_>>()
        .join("; ")
        .replace("; For more information, try", "; try")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status and standard error of a line that is not even understood.
    fn fault(line: &str) -> (u8, String) {
        let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = explain(&error, &mut out, &mut err);
        assert!(out.is_empty());
        (status, String::from_utf8(err).unwrap())
    }

    #[test]
    fn faults_are_one_line() {
        for (line, part) in [
            (
                "lvs-xdp servise list",
                "similar subcommands exist: 'metrics', 'server', 'service'; try '--help'",
            ),
            ("lvs-xdp agent", "--interface <IF>"),
            ("lvs-xdp agent --interface a-name-too-long-", "at most 15 bytes"),
            (
                "lvs-xdp agent --interface eth0 --connections 1000",
                "out of range",
            ),
            (
                "lvs-xdp agent --interface eth0 --connections 5000",
                "the next is 8192",
            ),
            (
                "lvs-xdp agent --interface eth0 --xdp-mode fast",
                "[possible values: auto, native, generic]",
            ),
            (
                "lvs-xdp service add tcp 10.0.0.1:70000",
                "port 70000 is out of range: use 1 to 65535",
            ),
            ("lvs-xdp service add tcp 10.0.0.1", "it has no port"),
            (
                "lvs-xdp service add icmp 10.0.0.1:80",
                "[possible values: tcp, udp, sctp, mark, mark6]",
            ),
            ("lvs-xdp service add mark 0", "mark 0 is out of range"),
            ("lvs-xdp mark add 0 --address 10.0.0.1", "1..=4294967295"),
            ("lvs-xdp mark add 1", "--address <ADDRESS[/PREFIX]>"),
            ("lvs-xdp mark add 1 --ports 80", "--address <ADDRESS[/PREFIX]>"),
            ("lvs-xdp mark delete 1 --ports 80", "--address <ADDRESS[/PREFIX]>"),
            (
                "lvs-xdp mark add 1 --address 10.0.0.1 --ports 80,90-85",
                "`90-85` is no port or range of ports",
            ),
            (
                "lvs-xdp mark add 1 --address 10.0.0.1 --protocol icmp",
                "[possible values: any, tcp, udp, sctp]",
            ),
            (
                "lvs-xdp mark add 1 --address 10.0.0.1:80",
                "is no address or prefix",
            ),
            (
                "lvs-xdp service add tcp 10.0.0.1:80 --scheduler random",
                "[possible values: rr, wrr, lc, wlc, lblc, lblcr, dh, sh, sed, nq, fo, ovf, mh]",
            ),
            (
                "lvs-xdp service add tcp 10.0.0.1:80 --persistent=0",
                "1..=2678400",
            ),
            (
                "lvs-xdp service add tcp 10.0.0.1:80 --persistent 360",
                "unexpected argument '360'",
            ),
            (
                "lvs-xdp service add tcp 10.0.0.1:80 --persistent --netmask 129",
                "an IPv6 prefix length from 1 to 128",
            ),
            (
                "lvs-xdp service add tcp 10.0.0.1:80 --removal forget",
                "[possible values: drop, reschedule, reset, default]",
            ),
            (
                "lvs-xdp service add tcp 10.0.0.1:80 --slow-start 60",
                "write one such as 90s or 10m",
            ),
            (
                "lvs-xdp service edit tcp 10.0.0.1:80 --slow-start 2days",
                "a day is the most",
            ),
            (
                "lvs-xdp service edit tcp 10.0.0.1:80 --set sloppy_tcp=2",
                "use a value from 0 to 1",
            ),
            (
                "lvs-xdp service edit tcp 10.0.0.1:80 --set sloppy=1",
                "`sloppy` is no setting: use one of expire_nodest_conn",
            ),
            (
                "lvs-xdp service edit tcp 10.0.0.1:80 --no-persistent --netmask 255.0.0.0",
                "cannot be used with",
            ),
            (
                "lvs-xdp service edit tcp 10.0.0.1:80 --no-one-packet --one-packet",
                "cannot be used with",
            ),
            (
                "lvs-xdp server add tcp 10.0.0.1:80 10.0.0.2 -x -1",
                "--upper-threshold",
            ),
            (
                "lvs-xdp server add tcp 10.0.0.1:80 10.0.0.2 -y 2147483648",
                "0..=2147483647",
            ),
            ("lvs-xdp server edit tcp 10.0.0.1:80 10.0.0.2", "--weight"),
            (
                "lvs-xdp server drain tcp 10.0.0.1:80 10.0.0.2 --deadline soon",
                "write one such as 90s or 10m",
            ),
            ("lvs-xdp settings sloppy", "`sloppy` is no setting: use one of"),
            ("lvs-xdp settings sloppy_tcp on", "use a number, or `default`"),
            (
                "lvs-xdp connections --client 10.0.0.1:80",
                "is no address or network",
            ),
            (
                "lvs-xdp connections --service 10.0.0.1:80",
                "such as tcp/192.168.2.100:80",
            ),
            (
                "lvs-xdp connections --state OPEN",
                "`OPEN` is no state: use one of",
            ),
            ("lvs-xdp connections flush", "--all"),
            (
                "lvs-xdp connections flush --all --state UDP",
                "cannot be used with",
            ),
            (
                "lvs-xdp service edit tcp 10.0.0.1:80",
                "--scheduler <SCHEDULER>|--flag <FLAG>|--persistent",
            ),
            ("lvs-xdp server add tcp 10.0.0.1:80", "<RIP>"),
            (
                "lvs-xdp server add tcp 10.0.0.1:80 10.0.0.2 --weight -1",
                "--weight",
            ),
            (
                "lvs-xdp server add tcp 10.0.0.1:80 10.0.0.2 --weight 2147483648",
                "0..=2147483647",
            ),
            ("lvs-xdp server list tcp", "<VIP:PORT>"),
            ("lvs-xdp realserver setup --vip 10.0.0", "is no IP address"),
            (
                "lvs-xdp service add tcp 10.0.0.1:80 --check icmp",
                "`icmp` is no check: write one such as tcp",
            ),
            (
                "lvs-xdp service add tcp 10.0.0.1:80 --check tcp --check-interval 1",
                "`1` is no time: write one such as 500ms or 2s",
            ),
            (
                "lvs-xdp service add tcp 10.0.0.1:80 --check http --check-status 99",
                "`99` is no status or range of statuses",
            ),
            (
                "lvs-xdp service edit tcp 10.0.0.1:80 --no-check --check tcp",
                "cannot be used with",
            ),
            (
                "lvs-xdp server add tcp 10.0.0.1:80 10.0.0.2 --check maybe",
                "is no check",
            ),
        ] {
            let (status, text) = fault(line);
            assert_eq!(status, 2, "{line}");
            assert!(
                text.starts_with("lvs-xdp: ") && text.contains(part),
                "{line}: {text}"
            );
            assert_eq!(text.matches('\n').count(), 1, "{line}: {text}");
        }
    }
}
