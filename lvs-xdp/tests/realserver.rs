//! A real server's settings, in a namespace of its own, seen from another one on its segment.

mod netns;

use std::{net::IpAddr, path::PathBuf};

use lvs_xdp::{
    api::types::TunnelKind,
    realserver::{self, SetupOptions, ShowOptions, TunnelEnd, UndoOptions},
};
use netns::Netns;

const VIP: &str = "192.168.2.100";
const VIP6: &str = "2001:db8:2::100";
const SYSCTLS: [&str; 4] = [
    "ipv4/conf/all/arp_ignore",
    "ipv4/conf/all/arp_announce",
    "ipv4/conf/lo/arp_ignore",
    "ipv4/conf/lo/arp_announce",
];

/// A real server, and a neighbour of it that asks.
struct Segment {
    server: Netns,
    peer: Netns,
    directory: tempfile::TempDir,
}

impl Segment {
    fn new() -> Self {
        let segment = Self {
            server: Netns::new(),
            peer: Netns::new(),
            directory: tempfile::tempdir().expect("a directory"),
        };
        let Self { server, peer, .. } = &segment;
        server.join("eth0", peer, "eth0");
        server.ip("address add 192.168.2.210/24 dev eth0");
        server.ip("address add 2001:db8:2::210/64 dev eth0 nodad");
        peer.ip("address add 192.168.2.200/24 dev eth0");
        peer.ip("address add 2001:db8:2::200/64 dev eth0 nodad");
        segment
    }

    fn state_file(&self) -> PathBuf {
        self.directory.path().join("realserver.json")
    }

    fn try_setup(&self, vips: &[&str], interface: &str, dry_run: bool) -> anyhow::Result<String> {
        let options = SetupOptions {
            vips: ips(vips),
            interface: interface.into(),
            tunnel: None,
            dry_run,
            state_file: self.state_file(),
        };
        let mut out = Vec::new();
        self.server
            .block_on(async || realserver::setup(&options, &mut out).await)?;
        Ok(String::from_utf8(out)?)
    }

    fn setup(&self, vips: &[&str]) -> String {
        self.try_setup(vips, "lo", false).expect("setup succeeds")
    }

    fn undo(&self, vips: &[&str], dry_run: bool) -> String {
        let options = UndoOptions {
            vips: ips(vips),
            interface: "lo".into(),
            dry_run,
            state_file: self.state_file(),
        };
        let mut out = Vec::new();
        self.server
            .block_on(async || realserver::undo(&options, &mut out).await)
            .expect("undo succeeds");
        String::from_utf8(out).expect("text")
    }

    fn show(&self, vips: &[&str], json: bool) -> (bool, String) {
        let options = ShowOptions {
            vips: ips(vips),
            interface: "lo".into(),
            json,
            state_file: self.state_file(),
        };
        let mut out = Vec::new();
        let ok = self
            .server
            .block_on(async || realserver::show(&options, &mut out).await)
            .expect("show succeeds");
        (ok, String::from_utf8(out).expect("text"))
    }

    /// Everything that setup may change.
    fn settings(&self) -> (Vec<String>, String) {
        (
            SYSCTLS.map(|path| self.server.sysctl(path)).to_vec(),
            self.server.ip("-o address show dev lo"),
        )
    }

    /// Whether anybody on the segment answers for an address.
    fn answers(&self, address: &str) -> bool {
        let entry = || self.peer.ip(&format!("neighbour show {address} dev eth0"));
        // Four seconds: three questions, a second apart.
        self.peer
            .ip(&format!("neighbour replace {address} dev eth0 nud none use"));
        for _ in 0..80 {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let entry = entry();
            if entry.contains("lladdr") || entry.contains("FAILED") {
                self.peer.ip(&format!("neighbour del {address} dev eth0"));
                return entry.contains("lladdr");
            }
        }
        panic!("the kernel came to no conclusion about {address}: {}", entry());
    }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts
        .iter()
        .map(|text| text.parse().expect("an address"))
        .collect()
}

#[test]
fn a_real_server_takes_the_vip_and_is_silent_about_it() {
    let segment = Segment::new();
    let before = segment.settings();
    let done = segment.setup(&[VIP, VIP6]);
    for command in [
        "sysctl -w net.ipv4.conf.all.arp_ignore=1",
        "sysctl -w net.ipv4.conf.all.arp_announce=2",
        "sysctl -w net.ipv4.conf.lo.arp_ignore=1",
        "sysctl -w net.ipv4.conf.lo.arp_announce=2",
        "ip address add 192.168.2.100/32 dev lo",
        "ip address add 2001:db8:2::100/128 dev lo nodad",
    ] {
        assert!(
            done.lines()
                .any(|line| line.starts_with(command) && line.contains("# done")),
            "{command}: {done}"
        );
    }
    let (sysctls, addresses) = segment.settings();
    assert_eq!(sysctls, ["1", "2", "1", "2"]);
    assert!(
        addresses.contains("192.168.2.100/32") && addresses.contains("2001:db8:2::100/128"),
        "{addresses}"
    );
    assert!(
        addresses.contains("nodad") && !addresses.contains("tentative"),
        "{addresses}"
    );

    assert!(
        segment.answers("192.168.2.210") && segment.answers("2001:db8:2::210"),
        "its own addresses"
    );
    assert!(!segment.answers(VIP), "an ARP request for the VIP was answered");
    assert!(
        !segment.answers(VIP6),
        "a neighbour solicitation for the VIP was answered"
    );

    segment.undo(&[], false);
    assert_eq!(segment.settings(), before);
    assert!(!segment.state_file().exists(), "the record is of no more use");
}

/// The trap: without the sysctls the real server answers. (So the test above tests something.)
#[test]
fn without_the_sysctls_a_vip_on_lo_is_announced() {
    let segment = Segment::new();
    segment.server.ip("address add 192.168.2.100/32 dev lo");
    assert!(segment.answers(VIP));
    let (ok, shown) = segment.show(&[], false);
    assert!(!ok);
    assert!(shown.contains("ok       192.168.2.100: on lo"), "{shown}");
    let arp = "missing  net.ipv4.conf.all.arp_ignore: 0  # sysctl -w net.ipv4.conf.all.arp_ignore=1";
    assert!(shown.contains(arp), "{shown}");
}

#[test]
fn a_second_time_changes_nothing() {
    let segment = Segment::new();
    let before = segment.settings();
    segment.setup(&[VIP, VIP6]);
    let once = (
        segment.settings(),
        std::fs::read(segment.state_file()).expect("a record"),
    );
    let said = segment.setup(&[VIP6, VIP, VIP]);
    assert!(
        said.lines().count() == 6 && said.lines().all(|line| line.ends_with("# already so")),
        "{said}"
    );
    assert_eq!(
        (
            segment.settings(),
            std::fs::read(segment.state_file()).expect("a record")
        ),
        once
    );
    segment.undo(&[], false);
    assert_eq!(
        segment.settings(),
        before,
        "the second time did not forget what was there at first"
    );
    assert!(segment.undo(&[], false).contains("nothing to undo"));
}

#[test]
fn a_dry_run_changes_nothing() {
    let segment = Segment::new();
    let before = segment.settings();
    let said = segment
        .try_setup(&[VIP, VIP6], "lo", true)
        .expect("it can be said");
    assert!(
        said.lines().count() == 6 && said.lines().all(|line| line.contains("# to do")),
        "{said}"
    );
    assert_eq!(segment.settings(), before);
    assert!(!segment.state_file().exists());
    segment.setup(&[VIP]);
    let after = segment.settings();
    let said = segment.undo(&[], true);
    assert!(
        said.lines().count() == 5 && said.lines().all(|line| line.contains("# to do")),
        "{said}"
    );
    assert_eq!(segment.settings(), after);
    assert!(segment.show(&[VIP], false).0);
}

#[test]
fn undo_leaves_what_setup_did_not_change() {
    let segment = Segment::new();
    segment.server.set_sysctl("ipv4/conf/all/arp_ignore", "1");
    segment.server.ip("address add 192.168.2.101/32 dev lo");
    segment.setup(&[VIP, "192.168.2.101"]);
    // Somebody else has an opinion meanwhile.
    segment.server.set_sysctl("ipv4/conf/lo/arp_ignore", "8");
    let said = segment.undo(&[], false);
    assert!(said.contains("left alone: somebody has set it to 8"), "{said}");
    let (sysctls, addresses) = segment.settings();
    assert_eq!(sysctls, ["1", "0", "8", "0"]);
    assert!(
        addresses.contains("192.168.2.101/32") && !addresses.contains(VIP),
        "{addresses}"
    );
}

#[test]
fn the_sysctls_stay_until_the_last_vip_is_gone() {
    let segment = Segment::new();
    segment.setup(&[VIP]);
    segment.setup(&["192.168.2.101"]);
    let said = segment.undo(&[VIP], false);
    assert!(said.contains("# the sysctls stay, for 192.168.2.101"), "{said}");
    assert_eq!(segment.settings().0, ["1", "2", "1", "2"]);
    segment.undo(&["192.168.2.101"], false);
    assert_eq!(segment.settings().0, ["0", "0", "0", "0"]);
}

#[test]
fn namespaces_that_share_a_record_do_not_mix() {
    let (one, mut other) = (Segment::new(), Segment::new());
    other.directory = tempfile::tempdir_in(one.directory.path()).expect("a directory");
    one.setup(&[VIP]);
    std::fs::rename(one.state_file(), other.state_file()).expect("it can be moved");
    other.setup(&["192.168.2.101"]);
    other.undo(&[], false);
    assert_eq!(other.settings().0, ["0", "0", "0", "0"]);
    std::fs::rename(other.state_file(), one.state_file()).expect("the record of the first is still there");
    assert_eq!(one.settings().0, ["1", "2", "1", "2"]);
    one.undo(&[], false);
    assert_eq!(one.settings().0, ["0", "0", "0", "0"]);
}

#[test]
fn show_says_what_is_missing() {
    let segment = Segment::new();
    let (ok, shown) = segment.show(&[], false);
    assert!(!ok && shown.contains("missing  VIP: none on lo"), "{shown}");
    segment.setup(&[VIP]);
    let (ok, shown) = segment.show(&[], false);
    assert!(
        ok && shown.lines().count() == 5 && shown.lines().all(|line| line.starts_with("ok ")),
        "{shown}"
    );
    segment.server.ip("address del 192.168.2.100/32 dev lo");
    let (ok, shown) = segment.show(&[], true);
    let report: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert!(
        !ok && report["ok"] == false && report["interface"] == "lo",
        "{shown}"
    );
    let vip = &report["points"][4];
    assert_eq!(vip["name"], VIP);
    assert_eq!(vip["ok"], false);
    assert_eq!(vip["command"], "ip address add 192.168.2.100/32 dev lo");
}

#[test]
fn what_would_not_work_is_refused_and_changes_nothing() {
    let segment = Segment::new();
    segment.server.ip("address add 192.168.2.102/24 dev lo");
    let before = segment.settings();
    for (vips, interface, part) in [
        (&[][..], "lo", "use --vip"),
        (&["127.0.0.1"], "lo", "loopback"),
        (&[VIP, "224.0.0.1"], "lo", "multicast"),
        (&[VIP], "eth0", "use --interface lo"),
        (&[VIP], "eth7", "there is no interface eth7"),
        (&[VIP], "../lo", "there is no interface"),
        (
            &[VIP, "192.168.2.210"],
            "lo",
            "ip address del 192.168.2.210/24 dev eth0",
        ),
        (
            &[VIP, "192.168.2.102"],
            "lo",
            "ip address del 192.168.2.102/24 dev lo",
        ),
    ] {
        let error = segment
            .try_setup(vips, interface, false)
            .expect_err("it cannot work");
        let line = format!("{error:#}");
        assert!(
            line.contains(part) && !line.contains('\n'),
            "{vips:?} {interface}: {line}"
        );
    }
    assert_eq!(segment.settings(), before);
    assert!(!segment.state_file().exists());
}

#[test]
fn only_root_may_change_anything_but_everybody_may_look() {
    let segment = Segment::new();
    let before = segment.settings();
    let options = |dry_run| SetupOptions {
        vips: ips(&[VIP]),
        interface: "lo".into(),
        tunnel: None,
        dry_run,
        state_file: segment.state_file(),
    };
    let (refused, dry) = segment.server.block_on(async || {
        // SAFETY: it takes numbers only. As a bare system call it is about this thread alone, which
        // ends with this closure; the C library's function would change the whole process.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) };
        assert_eq!(result, 0, "root may become nobody");
        let refused = realserver::setup(&options(false), &mut Vec::new()).await;
        let dry = realserver::setup(&options(true), &mut Vec::new()).await;
        (refused, dry)
    });
    let error = format!("{:#}", refused.expect_err("it is not root"));
    assert!(
        error.contains("run it as root") && !error.contains('\n'),
        "{error}"
    );
    dry.expect("to say what would be done needs no root");
    assert_eq!(segment.settings(), before);
}

#[test]
fn an_interface_that_is_down_is_set_up() {
    let segment = Segment::new();
    segment.server.ip("link set lo down");
    let said = segment.setup(&[VIP]);
    assert!(said.contains("ip link set lo up"), "{said}");
    let route = segment.server.ip("route get 192.168.2.100");
    assert!(
        route.starts_with("local "),
        "the real server takes packets for the VIP: {route}"
    );
}

/// What a kernel with tunnels makes of it is seen in the virtual machine.
#[test]
fn the_end_of_a_tunnel_is_told_before_it_is_made() {
    let segment = Segment::new();
    let before = segment.settings();
    let options = SetupOptions {
        vips: ips(&[VIP]),
        interface: "lo".into(),
        tunnel: Some(TunnelEnd {
            kind: TunnelKind::Gue,
            port: Some(6080),
            is_ipv6: false,
        }),
        dry_run: true,
        state_file: segment.state_file(),
    };
    let mut out = Vec::new();
    segment
        .server
        .block_on(async || realserver::setup(&options, &mut out).await)
        .expect("a dry run");
    let out = String::from_utf8(out).expect("text");
    let commands: Vec<_> = out
        .lines()
        .filter_map(|line| Some(line.split_once('#')?.0.trim_end()))
        .collect();
    assert_eq!(
        commands[..5],
        [
            "modprobe ipip",
            "ip link set tunl0 up",
            "sysctl -w net.ipv4.conf.tunl0.rp_filter=2",
            "ip address add 192.168.2.100/32 dev tunl0",
            "ip fou add port 6080 gue",
        ]
    );
    assert!(out.contains("ip address add 192.168.2.100/32 dev lo"), "{out}");
    assert_eq!(segment.settings(), before);
}
