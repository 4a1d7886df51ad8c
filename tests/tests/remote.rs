//! The agent over the network: who is let in, who is not, and what is said of it.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    agent::AgentConfig,
    lab::{DIRECTOR, Lab, LabConfig},
    netns::Netns,
    process::{COMMAND_LIMIT, output},
};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

const READER: &str = "5ec2e7000000000000000000000000aa";
const WRITER: &str = "5ec2e7000000000000000000000000bb";
const LATER: &str = "5ec2e7000000000000000000000000cc";
/// What every token begins with, and nothing else.
const SECRET: &str = "5ec2e7";
const SERVICE: [&str; 4] = ["service", "add", "tcp", "192.168.2.100:80"];

/// Files that only their owner may read.
struct Files(TempDir);

impl Files {
    fn new() -> Result<Self> {
        let files = Self(tempfile::tempdir()?);
        files.write(
            "tokens",
            &format!("ro:{READER}\n# who may change something\n{WRITER}\n"),
        )?;
        files.write("reader", READER)?;
        files.write("writer", WRITER)?;
        files.write("later", LATER)?;
        Ok(files)
    }

    /// With certificates of the agent, a client, and a client of somebody else.
    fn with_certificates(self) -> Result<Self> {
        let authority = || {
            let mut params = CertificateParams::new(Vec::new())?;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate()?)
        };
        let (ours, others) = (authority()?, authority()?);
        self.write("ca", &ours.pem())?;
        for (name, issuer) in [("agent", &ours), ("client", &ours), ("stranger", &others)] {
            let key = KeyPair::generate()?;
            let params = CertificateParams::new([DIRECTOR.to_string()])?;
            self.write(&format!("{name}.pem"), &params.signed_by(&key, issuer)?.pem())?;
            self.write(&format!("{name}.key"), &key.serialize_pem())?;
        }
        Ok(self)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, contents: &str) -> Result<()> {
        fs::write(self.path(name), contents)?;
        Ok(fs::set_permissions(
            self.path(name),
            Permissions::from_mode(0o600),
        )?)
    }

    /// The words of a line, those that begin with `@` as paths of these files.
    fn words(&self, line: &str) -> Vec<String> {
        let word = |word: &str| match word.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => word.to_owned(),
        };
        line.split_whitespace().map(word).collect()
    }

    fn config(&self, line: &str) -> AgentConfig {
        AgentConfig {
            arguments: self.words(line),
            ..AgentConfig::default()
        }
    }

    fn lab(&self, line: &str) -> Result<Lab> {
        Lab::start(LabConfig {
            real_servers: 1,
            agent: self.config(line),
            binary: None,
        })
    }

    /// Runs a command of `lvs-xdp` on a host with these options; its status and all that it has said.
    fn ask(&self, lab: &Lab, host: &Netns, options: &str, words: &[&str]) -> Result<(Option<i32>, String)> {
        let mut command = host.command(lab.agent()?.binary());
        command.args(words).args(self.words(options));
        said(command)
    }
}

fn said(command: Command) -> Result<(Option<i32>, String)> {
    let ended = output(command, COMMAND_LIMIT)?;
    let text = [ended.stdout, ended.stderr].concat();
    Ok((ended.status.code(), String::from_utf8(text)?))
}

/// What curl on the director gets from the agent, with the answer's head.
fn curl(lab: &Lab, words: &[&str]) -> Result<String> {
    let mut command = lab.director().command("curl");
    command
        .args(["--silent", "--include", "--noproxy", "*"])
        .args(words);
    Ok(said(command)?.1)
}

#[test]
fn a_token_lets_in_and_one_to_read_with_changes_nothing() -> Result<()> {
    let files = Files::new()?;
    let mut lab = files.lab("--listen 127.0.0.1:7143 --token-file @tokens")?;
    let page = "http://127.0.0.1:7143/v1/status";
    for header in [
        "x-nothing: at all".to_owned(),
        format!("authorization: Bearer {LATER}"),
        format!("authorization: Basic {WRITER}"),
    ] {
        let answer = curl(&lab, &["--header", &header, page])?;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{header}: {answer}");
        assert!(answer.contains("www-authenticate: Bearer"), "{header}: {answer}");
    }
    let at = "--connect http://127.0.0.1:7143 --token-file";
    let ask = |lab: &Lab, token: &str, words: &[&str]| {
        files.ask(lab, lab.director(), &format!("{at} @{token}"), words)
    };
    assert_eq!(ask(&lab, "reader", &["status"])?.0, Some(0));
    let (status, text) = ask(&lab, "reader", &SERVICE)?;
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("one to read with"), "{text}");
    let change = [
        "--request",
        "POST",
        "--data",
        "{}",
        "http://127.0.0.1:7143/v1/zero",
    ];
    let reader = format!("authorization: Bearer {READER}");
    let answer = curl(&lab, &[&["--header", &reader][..], &change].concat())?;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert_eq!(ask(&lab, "writer", &SERVICE)?, (Some(0), String::new()));
    let history = lab.cli(["history"])?;
    assert!(history.contains("token 3 at 127.0.0.1 "), "{history}");

    // The files are read again, or stay as they were.
    assert_eq!(ask(&lab, "later", &["status"])?.0, Some(1));
    files.write("tokens", &format!("{LATER}\n"))?;
    lab.agent_mut()?.signal(Signal::SIGHUP)?;
    wait_for(&lab, "tokens and certificates were read again")?;
    assert_eq!(ask(&lab, "later", &["status"])?.0, Some(0));
    assert_eq!(ask(&lab, "writer", &["status"])?.0, Some(1));
    fs::set_permissions(files.path("tokens"), Permissions::from_mode(0o644))?;
    lab.agent_mut()?.signal(Signal::SIGHUP)?;
    wait_for(&lab, "tokens and certificates stay as they were")?;
    assert_eq!(ask(&lab, "later", &["status"])?.0, Some(0));

    let log = lab.agent()?.log()?;
    assert!(log.contains("token 3 at 127.0.0.1:"), "{log}");
    let export = lab.cli(["export"])?;
    let state = String::from_utf8(fs::read(lab.agent()?.state_dir().join("state"))?)?;
    for text in [log, history, export, state] {
        assert!(!text.contains(SECRET), "{text}");
    }
    Ok(())
}

fn wait_for(lab: &Lab, words: &str) -> Result<()> {
    for _ in 0..100 {
        if lab.agent()?.log()?.contains(words) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("`{words}` is not in:\n{}", lab.agent()?.log()?)
}

#[test]
fn a_certificate_lets_in_from_another_host() -> Result<()> {
    let files = Files::new()?.with_certificates()?;
    let tls = "--tls-cert @agent.pem --tls-key @agent.key";
    let lab = files.lab(&format!("--listen {DIRECTOR}:7143 {tls} --tls-client-ca @ca"))?;
    let at = format!("--connect https://{DIRECTOR}:7143 --tls-ca @ca");
    let ask = |options: &str, words: &[&str]| {
        files.ask(
            &lab,
            lab.topology().host("rs1"),
            &format!("{at} {options}"),
            words,
        )
    };
    let own = "--tls-cert @client.pem --tls-key @client.key";
    assert_eq!(ask(own, &SERVICE)?, (Some(0), String::new()));
    let (status, text) = ask("--tls-cert @stranger.pem --tls-key @stranger.key", &["status"])?;
    assert_eq!(status, Some(1), "{text}");
    // Without a certificate there is no session, whatever token is shown.
    let (status, text) = ask("--token-file @writer", &["status"])?;
    assert_eq!(status, Some(1), "{text}");
    let (status, text) = ask(own, &["doctor"])?;
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("run it there"), "{text}");
    // The agent has to show a certificate as well.
    let unknown = format!("--connect https://{DIRECTOR}:7143 --tls-ca @stranger.pem {own}");
    let (status, text) = files.ask(&lab, lab.topology().host("rs1"), &unknown, &["status"])?;
    assert_eq!(status, Some(1), "{text}");

    let mut fingerprint = Command::new("openssl");
    fingerprint.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]);
    let text = said({
        fingerprint.arg(files.path("client.pem"));
        fingerprint
    })?;
    let digits = text.1.split_once('=').context("a fingerprint")?.1.trim();
    let name = format!(
        "certificate SHA256:{} at ",
        digits.replace(':', "").to_lowercase()
    );
    let (log, history) = (lab.agent()?.log()?, lab.cli(["history"])?);
    assert!(log.contains(&name), "{log}");
    assert!(history.contains(&name), "{history}");

    // A client that says nothing is cut off, and does not keep others from the agent.
    let mut silent = lab.director().command("bash");
    silent.args(["-c", &format!("exec 3<>/dev/tcp/{DIRECTOR}/7143; cat <&3")]);
    let silent = std::thread::spawn(move || said(silent));
    assert_eq!(ask(own, &["status"])?.0, Some(0));
    silent
        .join()
        .map_err(|_| anyhow::anyhow!("the silent client panicked"))??;
    wait_for(&lab, "it was not made within 5 s")?;
    assert!(!lab.agent()?.log()?.contains("PRIVATE KEY"));
    Ok(())
}

#[test]
fn what_lets_everybody_in_is_refused() -> Result<()> {
    let files = Files::new()?.with_certificates()?;
    let mut lab = files.lab("")?;
    lab.agent_mut()?.terminate()?;
    fs::set_permissions(files.path("reader"), Permissions::from_mode(0o644))?;
    fs::set_permissions(files.path("stranger.key"), Permissions::from_mode(0o604))?;
    for (line, expected, part) in [
        ("--listen 127.0.0.1:7143", 2, "would let everybody in"),
        ("--listen 0.0.0.0:7143 --token-file @tokens", 2, "over TLS only"),
        (
            "--listen 127.0.0.1:7143 --token-file @reader",
            1,
            "is open to others than its owner (mode 0644)",
        ),
        (
            "--listen 127.0.0.1:7143 --token-file @tokens --tls-cert @stranger.pem --tls-key @stranger.key",
            1,
            "is open to everybody",
        ),
        (
            "--listen 127.0.0.1:7143 --token-file @tokens --tls-cert @agent.pem --tls-key @client.key",
            1,
            "do not belong together",
        ),
        (
            "--listen 192.0.2.1:7143 --tls-cert @agent.pem --tls-key @agent.key --tls-client-ca @ca",
            1,
            "no interface",
        ),
    ] {
        let (status, text) = said(lab.agent()?.command(&files.config(line)))?;
        assert_eq!(status, Some(expected), "{line}: {text}");
        assert!(text.contains(part), "{line}: {text}");
        assert!(!text.contains(SECRET), "{line}: {text}");
        assert!(!lab.agent()?.socket().exists(), "{line}");
    }
    Ok(())
}
