//! The ways to ask, each of a real server that serves and of one that does not.

use std::{fs, net::UdpSocket, path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use lvs_xdp::api::types::{
    Change, Check, CheckResult, CheckTarget, DnsProbe, DnsRecord, ExecProbe, HttpProbe, Probe, Protocol,
    ServerKey, ServerSpec, ServiceKey, TlsOptions, UdpProbe,
};
use lvs_xdp_tests::{agent::XdpMode, ask::wait_for, lab::Lab, process::Process};
use tempfile::TempDir;

use crate::{add_server, check, client, empty_lab, http, service, status};

/// Replaces the check, and returns what it says of rs1 the first time.
fn ask(lab: &Lab, check: Check) -> Result<CheckResult> {
    let mut client = client(lab)?;
    // What was known goes with the service.
    client.change(vec![Change::Clear])?;
    let changes = [
        Change::AddService {
            service: service(lab, check),
        },
        add_server(lab, 1),
    ];
    client.change(changes.to_vec())?;
    let mut last = None;
    wait_for("a result", || {
        last = status(lab, 1)?.last;
        Ok(last.is_some())
    })?;
    last.ok_or_else(|| anyhow::anyhow!("no result"))
}

/// Asks in each of some ways, and compares what is said.
fn judge(lab: &Lab, cases: impl IntoIterator<Item = (Check, bool, &'static str)>) -> Result<()> {
    for (check, is_good, part) in cases {
        let result = ask(lab, check.clone())?;
        ensure!(
            result.is_good == is_good && result.why.contains(part),
            "{check:?}: {result:?}, expected {is_good} with `{part}`"
        );
    }
    Ok(())
}

/// nginx with TLS on port 8443 of rs1, and its certificate.
struct Tls {
    _server: Process,
    directory: TempDir,
}

impl Tls {
    fn start(lab: &Lab) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let certified = rcgen::generate_simple_self_signed(["www.example.org".to_owned()])?;
        let place = directory.path().display();
        fs::write(directory.path().join("certificate"), certified.cert.pem())?;
        fs::write(
            directory.path().join("key"),
            certified.signing_key.serialize_pem(),
        )?;
        let configuration = directory.path().join("nginx.conf");
        fs::write(
            &configuration,
            format!(
                r#"daemon off;
master_process off;
pid {place}/nginx.pid;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {place};
  proxy_temp_path {place};
  fastcgi_temp_path {place};
  uwsgi_temp_path {place};
  scgi_temp_path {place};
  default_type text/plain;
  server {{
    listen 8443 ssl;
    ssl_certificate {place}/certificate;
    ssl_certificate_key {place}/key;
    location / {{ return 200 "secret of $ssl_server_name\n"; }}
  }}
}}
"#
            ),
        )?;
        let mut command = lab.topology().host("rs1").command("nginx");
        command
            .arg("-p")
            .arg(directory.path())
            .arg("-e")
            .arg("stderr")
            .arg("-c")
            .arg(&configuration);
        Ok(Self {
            _server: Process::spawn(command)?,
            directory,
        })
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("certificate")
    }
}

#[test]
fn http_and_https() -> Result<()> {
    let lab = empty_lab(XdpMode::Native)?;
    let tls = Tls::start(&lab)?;
    let plain = |probe| check(Probe::Http(probe), CheckTarget::Vip);
    let page = HttpProbe::default;
    let text = |text: &str| Some(text.to_owned());
    judge(
        &lab,
        [
            (check(http(), CheckTarget::Vip), true, "status 200"),
            (check(Probe::Tcp {}, CheckTarget::Vip), true, "connected"),
            (
                Check {
                    port: Some(81),
                    ..check(Probe::Tcp {}, CheckTarget::Vip)
                },
                false,
                "Connection refused",
            ),
            (
                plain(HttpProbe {
                    contains: text("rs1"),
                    ..page()
                }),
                true,
                "with the text",
            ),
            (
                plain(HttpProbe {
                    contains: text("rs2"),
                    ..page()
                }),
                false,
                "but the body has no `rs2`",
            ),
            (
                plain(HttpProbe {
                    method: "HEAD".into(),
                    ..page()
                }),
                true,
                "status 200",
            ),
            (
                plain(HttpProbe {
                    path: "/none".into(),
                    ..page()
                }),
                false,
                "status 404, expected 200-399",
            ),
            (
                plain(HttpProbe {
                    path: "/none".into(),
                    status: vec!["200".parse().unwrap(), "400-404".parse().unwrap()],
                    ..page()
                }),
                true,
                "status 404",
            ),
        ],
    )?;
    let ca = Some(tls.certificate());
    let name = "www.example.org";
    let secure = |host: Option<String>, tls: TlsOptions| {
        let probe = HttpProbe {
            host,
            contains: text("secret of www.example.org"),
            tls: Some(tls),
            ..page()
        };
        Check {
            port: Some(8443),
            timeout: "300ms".parse().unwrap(),
            ..check(Probe::Http(probe), CheckTarget::Vip)
        }
    };
    let options = TlsOptions::default;
    let named = |server_name: &str| TlsOptions {
        server_name: text(server_name),
        ca: ca.clone(),
        ..options()
    };
    judge(
        &lab,
        [
            (
                secure(
                    text(name),
                    TlsOptions {
                        ca: ca.clone(),
                        ..options()
                    },
                ),
                true,
                "with the text",
            ),
            (
                secure(
                    text("www.example.org:8443"),
                    TlsOptions {
                        ca: ca.clone(),
                        ..options()
                    },
                ),
                true,
                "with the text",
            ),
            (secure(None, named(name)), true, "with the text"),
            (
                secure(text(name), named("www.example.net")),
                false,
                "certificate not valid for name",
            ),
            (
                secure(
                    None,
                    TlsOptions {
                        ca: ca.clone(),
                        ..options()
                    },
                ),
                false,
                "certificate not valid for name",
            ),
            (
                secure(
                    text(name),
                    TlsOptions {
                        verify: false,
                        ..options()
                    },
                ),
                true,
                "with the text",
            ),
            (
                Check {
                    port: Some(80),
                    ..secure(
                        text(name),
                        TlsOptions {
                            verify: false,
                            ..options()
                        },
                    )
                },
                false,
                "no TLS session",
            ),
        ],
    )
}

/// A server on a UDP port of rs1 that answers each datagram with what `answer` makes of it.
fn answer_datagrams(
    lab: &Lab,
    port: u16,
    answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
) -> Result<()> {
    let rs1 = lab.topology().host("rs1");
    let at = (lab.vip(), port);
    let socket = rs1.enter(|| UdpSocket::bind(at))??;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    // Ends by itself when nobody asks any more.
    drop(std::thread::spawn(move || {
        let mut question = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            if let Some(answer) = answer(&question[..length]) {
                let _ = socket.send_to(&answer, from);
            }
        }
    }));
    Ok(())
}

fn udp(port: u16, probe: UdpProbe) -> Check {
    Check {
        port: Some(port),
        ..check(Probe::Udp(probe), CheckTarget::Vip)
    }
}

#[test]
fn datagrams() -> Result<()> {
    let lab = empty_lab(XdpMode::Native)?;
    answer_datagrams(&lab, 7, |question| Some([b"heard ", question].concat()))?;
    answer_datagrams(&lab, 9, |_| None)?;
    let probe = UdpProbe::default;
    let text = |text: &str| Some(text.to_owned());
    judge(
        &lab,
        [
            (
                udp(
                    7,
                    UdpProbe {
                        send: "ping".into(),
                        ..probe()
                    },
                ),
                true,
                "an answer of 10 octets",
            ),
            (
                udp(
                    7,
                    UdpProbe {
                        send_hex: "68 69".replace(' ', ""),
                        contains: text("heard hi"),
                        ..probe()
                    },
                ),
                true,
                "with the text",
            ),
            (
                udp(
                    7,
                    UdpProbe {
                        contains: text("pong"),
                        ..probe()
                    },
                ),
                false,
                "without `pong`",
            ),
            (udp(9, probe()), true, "no answer, and no error"),
            (
                udp(
                    9,
                    UdpProbe {
                        answer: true,
                        ..probe()
                    },
                ),
                false,
                "no answer within 150ms",
            ),
            // The ICMP error is about the VIP, and reaches the socket all the same.
            (udp(10, probe()), false, "Connection refused"),
        ],
    )
}

#[test]
fn names() -> Result<()> {
    let lab = empty_lab(XdpMode::Native)?;
    // One record, 192.0.2.7, for what begins with `w`; for all else there is no such name.
    answer_datagrams(&lab, 53, |question| {
        let is_known = question.get(13) == Some(&b'w');
        let mut answer = question.to_vec();
        answer[2] = 0x81;
        answer[3] = if is_known { 0x80 } else { 0x83 };
        if is_known {
            answer[7] = 1;
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
        }
        Some(answer)
    })?;
    let dns = |name: &str, address: Option<&str>| Check {
        port: Some(53),
        ..check(
            Probe::Dns(DnsProbe {
                name: name.to_owned(),
                record: DnsRecord::A,
                address: address.map(|text| text.parse().unwrap()),
            }),
            CheckTarget::Vip,
        )
    };
    // The service is a TCP one, and so is the question: nobody answers there.
    judge(
        &lab,
        [(dns("www.example.org", None), false, "Connection refused")],
    )?;
    let mut client = client(&lab)?;
    let key = ServiceKey::new(Protocol::Udp, lab.vip(), 53);
    for (check, is_good, part) in [
        (dns("www.example.org", None), true, "no error, 1 records"),
        (
            dns("www.example.org", Some("192.0.2.7")),
            true,
            "with the address",
        ),
        (
            dns("www.example.org", Some("192.0.2.8")),
            false,
            "without 192.0.2.8",
        ),
        (dns("example.org", None), false, "NXDOMAIN"),
    ] {
        let mut service = service(&lab, check);
        service.key = key;
        let server = ServerKey {
            address: lab.family().real_server(1),
            port: 53,
        };
        let add = Change::AddServer {
            service: key,
            server: ServerSpec::new(server, 1),
            require_on_link: false,
        };
        client.change(vec![Change::Clear])?;
        client.change(vec![Change::AddService { service }, add])?;
        let mut last = None;
        wait_for("a result", || {
            last = status(&lab, 1)?.last;
            Ok(last.is_some())
        })?;
        let last = last.expect("a result");
        assert!(
            last.is_good == is_good && last.why.contains(part),
            "{last:?}, expected `{part}`"
        );
    }
    Ok(())
}

#[test]
fn programs() -> Result<()> {
    let lab = empty_lab(XdpMode::Native)?;
    let exec = |script: &str| {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        check(Probe::Exec(ExecProbe { command }), CheckTarget::Vip)
    };
    judge(
        &lab,
        [
            (
                exec("echo $LVS_XDP_VIP $LVS_XDP_RIP $LVS_XDP_PORT"),
                true,
                "status 0: 192.168.2.100 192.168.2.220 80",
            ),
            (
                exec("echo no database; exit 7"),
                false,
                "exit status: 7: no database",
            ),
            (exec("sleep 60"), false, "no end of the program within 150ms"),
        ],
    )
}
