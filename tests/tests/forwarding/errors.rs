//! ICMP errors about what a real server has sent: they come to the director, for the VIP is there, and are meant for
//! the real server.

use anyhow::Result;
use lvs_xdp_tests::{agent::XdpMode, ask::packets, family::Family, process::run};

use crate::{in_both_modes_and_families, lab};

in_both_modes_and_families!(a_narrow_link_to_the_client_is_no_black_hole);

fn a_narrow_link_to_the_client_is_no_black_hole(mode: XdpMode, family: Family) -> Result<()> {
    let lab = lab(mode, 2)?.over(family);
    lab.add_service("rr")?;
    // The client does not know, and so asks for full-sized segments; no real server probes for itself.
    lab.router().ip("link set eth0 mtu 1300")?;
    for server in lab.real_servers() {
        server.netns().sysctl("net.ipv4.tcp_mtu_probing", "0")?;
    }
    for server in ["rs2", "rs1"] {
        let told = packets(&lab, "related")?;
        let mut download = lab.curl();
        // 2 MB are more than fits in between.
        download.args([
            "--range",
            "0-1999999",
            "--write-out",
            "%{size_download}",
            "--output",
            "/dev/null",
        ]);
        download.arg(lab.url("/big"));
        assert_eq!(run(download)?, "2000000", "{server}");
        assert!(packets(&lab, "related")? > told, "{server}");
        // The next one knows it from the start.
        let host = lab.topology().host(server);
        let route = host.ip(&format!("route get {}", family.client()))?;
        assert!(route.contains("mtu 1300"), "{route}");
    }
    Ok(())
}
