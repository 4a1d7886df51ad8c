//! Real servers that take packets out of tunnels by the kernel's own devices, made ready by `realserver setup`.

use anyhow::{Context as _, Result, ensure};
use lvs_xdp_tests::{agent::XdpMode, ask::packets, family::Family, far::Far};

use crate::{config, in_the_guest};

in_the_guest!(
    the_kernels_own_devices_take_out_what_ipv4_carries,
    the_kernels_own_devices_take_out_what_ipv6_carries,
);

/// What `realserver setup` is told of a tunnel, and what `ipvsadm` is.
const TUNNELS: [(&str, &str); 3] = [
    ("ipip", "-i"),
    ("gue --tunnel-port 6080", "-i --tun-type gue --tun-port 6080"),
    ("gre", "-i --tun-type gre"),
];

fn the_kernels_own_devices_take_out_what_ipv4_carries() -> Result<()> {
    serves_through(Family::V4)
}

fn the_kernels_own_devices_take_out_what_ipv6_carries() -> Result<()> {
    serves_through(Family::V6)
}

/// Both families of packets in tunnels over this one, each with set-up and its undoing.
fn serves_through(outer: Family) -> Result<()> {
    for inner in Family::ALL {
        let far = Far::new(config(XdpMode::Native).agent, inner)?;
        let vip = far.lab.vip().to_string();
        for (number, (tunnel, options)) in TUNNELS.into_iter().enumerate() {
            let what = || format!("{inner:?} in {tunnel} over {outer:?}");
            let mut setup = vec!["setup", "--vip", &vip, "--tunnel"];
            setup.extend(tunnel.split(' '));
            if outer == Family::V6 {
                setup.extend(["--tunnel-over", "ipv6"]);
            }
            far.realserver(&setup).with_context(what)?;
            far.server("-a", outer, options)?;
            far.check_turns().with_context(what)?;
            // Long, where every instruction is emulated: once over each family.
            if number == 0 && inner == outer {
                far.check_upload("big").with_context(what)?;
            }
            far.server("-d", outer, "")?;
            far.realserver(&["undo", "--vip", &vip]).with_context(what)?;
        }
        ensure!(
            inner != outer || packets(&far.lab, "too-big")? > 0,
            "no client was told of a tunnel's MTU"
        );
        assert_eq!(packets(&far.lab, "rewrite-failed")?, 0);
    }
    Ok(())
}
