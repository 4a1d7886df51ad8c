use proptest::prelude::*;

use super::*;
use crate::config;

fn names() -> Names {
    Names::new(
        || "http 80/tcp\n".to_owned(),
        |host| (host == "rs1.example.org").then_some([198, 51, 100, 1].into()),
        |_| None,
    )
}

fn no_files(_: &str) -> io::Result<Vec<File>> {
    Ok(Vec::new())
}

fn read(text: &str, format: Format, include: Include<'_>) -> Result<Imported, Fault> {
    let context = Context {
        name: "conf",
        names: &names(),
        include,
        config_id: "main",
    };
    import(text, format, context)
}

/// The file that comes out, and behind it what was left out. It says the same when it is read again.
fn told(text: &str, format: Format, include: Include<'_>) -> String {
    let Imported { configuration, notes } = read(text, format, include).unwrap();
    let file = config::write(&configuration).unwrap();
    let (again, _) = config::read(&file).unwrap();
    assert_eq!(again, configuration);
    let notes: Vec<_> = notes.iter().map(ToString::to_string).collect();
    format!("{file}\n-- not taken over:\n{}\n", notes.join("\n"))
}

fn keepalived(text: &str) -> String {
    told(text, Format::Keepalived, &no_files)
}

/// The notes alone.
fn notes(text: &str) -> Vec<String> {
    let imported = read(text, Format::Keepalived, &no_files).unwrap();
    imported.notes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_format_is_known_by_its_first_word() {
    for (text, format) in [
        ("# saved\n\n-A -t 10.0.0.1:80 -s rr\n", Format::Ipvsadm),
        ("ipvsadm -A -t 10.0.0.1:80 -s rr\n", Format::Ipvsadm),
        ("! lvs\nglobal_defs {\n}\n", Format::Keepalived),
        ("", Format::Keepalived),
    ] {
        assert_eq!(Format::of(text), format, "{text}");
    }
}

const SAVED: &str = "\
# by number and by name
-A -t 192.0.2.1:80 -s wrr -p 600 -M 255.255.255.0
-a -t 192.0.2.1:80 -r 198.51.100.1:80 -g -w 3 -x 100 -y 50
-a -t 192.0.2.1:http -r rs1.example.org:http -g -w 1
-a -t 192.0.2.1:http -r 198.51.100.2:http -i -w 1 --tun-type gue --tun-port 6080
-A -u [2001:db8::1]:53 -s sh -b sh-port -o
-a -u [2001:db8::1]:53 -r [2001:db8::53]:53 -g -w 1
-A -t 192.0.2.1:443 -s rr
-a -t 192.0.2.1:443 -r 198.51.100.1:443 -m -w 1
-A -t 192.0.2.1:5060 -s rr --pe sip
-a -t 192.0.2.1:5060 -r 198.51.100.1:5060 -g
-A -f 7 -s fo
-a -f 7 -r 198.51.100.1 -g -w 2
-a -t 192.0.2.9:80 -r 198.51.100.1:80 -g
-L -n
-A -t nowhere:80
";

#[test]
fn a_saved_table_is_taken_over_line_by_line() {
    insta::assert_snapshot!(told(SAVED, Format::Ipvsadm, &no_files));
}

const WHOLE: &str = r#"! A director
global_defs {
    router_id lvs1   # its name
}
vrrp_instance VI_1 {
    virtual_ipaddress {
        192.0.2.1/24 dev eth0
    }
}
$RS=198.51.100
$CHECK= \
    TCP_CHECK { \
        connect_timeout 3 \
        retry 2 \
    }
virtual_server_group WEB {
    192.0.2.1 80
    192.0.2.10-12 8080
    fwmark 7
    nonsense here
}
virtual_server group WEB {
    delay_loop 6
    lb_algo wlc
    lb_kind DR
    persistence_timeout 50
    persistence_granularity 255.255.255.0
    protocol TCP
    alpha
    hysteresis 2
    quorum 4
    quorum_down "/usr/bin/logger down"
    sorry_server 198.51.100.200 80
    real_server ${RS}.1 80 {
        weight 2
        uthreshold 1000
        lthreshold 800
        inhibit_on_failure
        $CHECK
        notify_down "/usr/local/bin/page {me}"
    }
    real_server ${RS}.2 80 {
        weight 2
        inhibit_on_failure
        $CHECK
    }
    real_server ${RS}.3 8080
    {
        weight 2
        HTTP_GET {
            url {
                path /health
                digest 9b3a0c85a887a256d6939da88aabd8cd
                status_code 200 204
            }
            url {
                path /other
            }
            virtualhost www.example.org
            connect_port 8081
            connect_timeout 30
            delay_before_retry 3
        }
        TCP_CHECK {
        }
    }
}
virtual_server 2001:db8::1 443 {
    lvs_sched sh
    sh-port
    lvs_method TUN type gre csum
    virtualhost tls.example.org
@other  protocol UDP
@main   persistence_timeout
    persistence_granularity 64
    persistence_engine sip
    real_server 198.51.100.9 443 {
        SSL_GET {
            url {
                path /
            }
            enable_sni
        }
    }
    real_server 2001:db8::9 443 {
        lvs_method DR
        MISC_CHECK {
            misc_path "/usr/lib/check 'two words' three"
            misc_timeout 4
            misc_dynamic
        }
    }
    real_server 2001:db8::a 443 {
        SMTP_CHECK {
        }
    }
}
virtual_server 192.0.2.3 53 {
    protocol UDP
    lb_algo rr
    lb_kind DR
    ops
    real_server 198.51.100.1 53 {
        DNS_CHECK {
            type A
            name www.example.org
        }
    }
    real_server 198.51.100.2 53 {
        UDP_CHECK {
            payload 00 ff 10
            require_reply
        }
    }
    real_server 198.51.100.3 53 {
        lb_kind NAT
    }
}
virtual_server 192.0.2.4 80 {
    real_server 198.51.100.1 8080 {
    }
}
virtual_server nobody 80 {
}
virtual_server_group UNUSED {
    192.0.2.99 80
}
"#;

#[test]
fn virtual_servers_of_keepalived_are_taken_over_or_named() {
    insta::assert_snapshot!(keepalived(WHOLE));
}

/// Every line that says something is in the result or in a note: without any one of them one of both differs.
#[test]
fn no_line_is_left_out_in_silence() {
    let whole = keepalived(WHOLE);
    let lines: Vec<_> = WHOLE.lines().collect();
    // What is as by default, or in a block that is named as a whole.
    let silent = [
        "router_id",
        "192.0.2.1/24",
        "weight 1",
        "lb_algo wlc",
        "protocol TCP",
        "enable_sni",
        "path /\n",
        "path /other",
        "192.0.2.99 80",
    ];
    for (position, line) in lines.iter().enumerate() {
        let words = line.trim();
        let is_structure = words.contains(['{', '}', '$', '\\', '@', '!']) || words.ends_with("80 {");
        let is_silent = is_structure || silent.iter().any(|word| format!("{words}\n").contains(word));
        if is_silent || words.is_empty() || line.contains("digest") {
            continue;
        }
        // A line of blanks keeps the numbers of the others.
        let mut others = lines.clone();
        others[position] = "";
        let text = others.join("\n") + "\n";
        match read(&text, Format::Keepalived, &no_files) {
            Ok(_) => assert_ne!(keepalived(&text), whole, "{line}"),
            Err(_) => assert!(
                words.starts_with("TCP_CHECK") || words.starts_with("real_server"),
                "{line}"
            ),
        }
    }
}

#[test]
fn included_files_are_read_where_they_are_named() {
    let files = |pattern: &str| -> io::Result<Vec<File>> {
        match pattern {
            "conf.d/*.conf" => Ok(vec![
                (
                    "conf.d/a.conf".into(),
                    "virtual_server 192.0.2.1 80 {\n lb_kind DR\n include rs\n}\n".into(),
                ),
                (
                    "conf.d/b.conf".into(),
                    "virtual_server 192.0.2.2 80 {\n lb_kind DR\n odd\n}\n".into(),
                ),
            ]),
            "conf.d/rs" => Ok(vec![(
                "conf.d/rs".into(),
                "\nreal_server 198.51.100.1 80 {\n  heavy 7\n}\n".into(),
            )]),
            "secret" => Err(io::ErrorKind::PermissionDenied.into()),
            "loop" => Ok(vec![("loop".into(), "include loop\n".into())]),
            _ => Ok(Vec::new()),
        }
    };
    let text = "include conf.d/*.conf\ninclude nothing\ninclude secret\n";
    insta::assert_snapshot!(told(text, Format::Keepalived, &files));
    let fault = read("include loop\n", Format::Keepalived, &files).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "loop: line 1: files include one another 16 times deep: take one of them out"
    );
}

#[test]
fn what_cannot_be_read_is_one_line() {
    for (text, message) in [
        (
            "virtual_server 192.0.2.1 80 {\n lb_kind DR\n",
            "conf: line 1: the block of `virtual_server` has no end: close it with a `}`",
        ),
        (
            "a\n}\n",
            "conf: line 2: there is no block that this `}` could end",
        ),
        (
            "{\n",
            "conf: line 1: there is nothing that this `{` could belong to",
        ),
        (
            "vrrp_instance VI_1 {\n}\n",
            "nothing of it can be taken over, from the first on: conf: line 1: vrrp_instance VI_1: not taken over, with \
             all that is in it: moving addresses between directors (VRRP) stays with keepalived",
        ),
    ] {
        let fault = read(text, Format::Keepalived, &no_files).unwrap_err();
        assert_eq!(fault.to_string(), message);
    }
    let fault = read("-A nonsense\n", Format::Ipvsadm, &no_files).unwrap_err();
    assert!(
        fault.to_string().starts_with("nothing of it can be taken over"),
        "{fault}"
    );
}

#[test]
fn parameters_that_grow_without_end_are_named() {
    let text = "$A=${A}${A}${A}${A}\n$B=1\nvirtual_server 192.0.2.1 80 {\n$A\nlb_kind ${NO} $B\n}\n";
    assert_eq!(
        notes(text),
        [
            "conf: line 4: not taken over: its parameters make it too long",
            "conf: line 5: lb_kind ${NO} 1: not taken over: it takes DR, or TUN with the tunnel's type",
        ]
    );
}

/// Words of both formats, so that more than the first of them is read.
fn word() -> impl Strategy<Value = String> {
    let words = WHOLE.split_whitespace().chain(SAVED.split_whitespace());
    let words = words.map(str::to_owned).collect::<Vec<_>>();
    prop_oneof![
        6 => prop::sample::select(words),
        1 => "[ -~]{0,12}",
        1 => prop::sample::select(vec!["\n".to_owned(), "{".to_owned(), "}\n".to_owned(), "{\n".to_owned()]),
    ]
}

proptest! {
    #[test]
    fn no_text_is_too_odd(words in prop::collection::vec((word(), prop::bool::ANY), 0..200)) {
        let text: String = words
            .into_iter()
            .map(|(word, ends)| word + if ends { "\n" } else { " " })
            .collect();
        for format in [Format::Ipvsadm, Format::Keepalived] {
            if let Ok(Imported { configuration, .. }) = read(&text, format, &no_files) {
                let file = config::write(&configuration).unwrap();
                prop_assert_eq!(config::read(&file).unwrap().0, configuration);
            }
        }
    }

    #[test]
    fn no_octets_are_too_odd(text in "\\PC{0,400}") {
        for format in [Format::Ipvsadm, Format::Keepalived] {
            drop(read(&text, format, &no_files));
        }
    }
}
