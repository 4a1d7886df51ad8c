//! Two network cards of the director, which go, come back, and change their names.

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::{status, wait_for},
    lab::{Lab, VIP},
    load::Load,
    topology::port_name,
    web::WebServer,
};

use crate::{hosts, in_both_modes, logged, upload};

in_both_modes!(
    a_card_that_is_taken_out_and_put_back_is_attached_again,
    a_card_that_goes_down_and_up_under_another_name_goes_on,
    clients_and_servers_are_on_segments_of_their_own,
    a_card_that_was_replaced_while_no_agent_ran_is_attached,
);

/// The reference case with one more segment, between the director's and the router's other cards, a client `near`
/// and a real server `far` on it; the agent is on both of the director's cards.
struct TwoCards {
    // In the order in which they have to go.
    far: WebServer,
    lab: Lab,
}

impl TwoCards {
    fn start(mode: XdpMode) -> Result<Self> {
        let mut lab = hosts(mode, 1)?;
        let topology = lab.topology_mut();
        topology.add_switch("beside")?;
        topology.connect("router", "eth2", "beside", &["192.168.3.1/24"])?;
        topology.connect("director", "eth1", "beside", &["192.168.3.200/24"])?;
        for (name, address) in [("near", "192.168.3.50/24"), ("far", "192.168.3.220/24")] {
            topology.add_host(name)?;
            topology.connect(name, "eth0", "beside", &[address])?;
            topology.host(name).ip("route add default via 192.168.3.1")?;
        }
        let far = WebServer::start(lab.topology().host("far"), "far", &lab.big_file())?;
        lab.prepare_real_servers()?;
        lab.start_agent_on(&["eth0", "eth1"])?;
        let vip = VIP.to_string();
        far.netns()
            .run(lab.agent()?.binary(), ["realserver", "setup", "--vip", &vip])?;
        lab.add_service("rr")?;
        lab.ipvsadm(["-a", "-t", &format!("{VIP}:80"), "-r", "192.168.3.220:80", "-g"])?;
        Ok(Self { far, lab })
    }

    /// Both servers answer a client, in turn.
    fn check(&self, client: &str) -> Result<()> {
        let report = Load::sequential(VIP, 20).run(self.lab.topology().host(client))?;
        assert_eq!(report.failures(), []);
        assert_eq!(report.counts(), [("far", 10), ("rs1", 10)].into());
        Ok(())
    }

    fn wait_for_server(&self) -> Result<()> {
        let ready = |server: lvs_xdp::api::types::Server| server.effective_weight > 0;
        wait_for("both servers", || {
            Ok(lvs_xdp_tests::ask::servers(&self.lab)?.into_iter().all(ready))
        })?;
        Ok(())
    }
}

/// Names and indices of the interfaces that the program is on.
fn attached(lab: &Lab) -> Result<Vec<(String, u32)>> {
    let interfaces = status(lab)?.interfaces.into_iter();
    Ok(interfaces
        .map(|interface| (interface.name, interface.index))
        .collect())
}

fn a_card_that_is_taken_out_and_put_back_is_attached_again(mode: XdpMode) -> Result<()> {
    let mut two = TwoCards::start(mode)?;
    two.check("client")?;
    let before = attached(&two.lab)?;
    assert_eq!(before.len(), 2);
    two.lab.director().ip("link delete eth1")?;
    wait_for("the loss of eth1", || Ok(attached(&two.lab)?.len() == 1))?;
    let topology = two.lab.topology_mut();
    topology.connect("director", "eth1", "beside", &["192.168.3.200/24"])?;
    if mode == XdpMode::Native {
        topology.attach_xdp_pass("director", "eth1")?;
    }
    wait_for("eth1", || Ok(attached(&two.lab)?.len() == 2))?;
    assert_ne!(attached(&two.lab)?, before, "it is another interface");
    two.wait_for_server()?;
    two.check("client")?;
    assert_eq!(
        logged(&two.lab, "eth1 is gone: no packet comes from it until it is back")?,
        1
    );
    let mode = mode.name();
    assert_eq!(
        logged(&two.lab, &format!("eth1 is back: attached in {mode} mode"))?,
        1
    );
    Ok(())
}

fn a_card_that_goes_down_and_up_under_another_name_goes_on(mode: XdpMode) -> Result<()> {
    let two = TwoCards::start(mode)?;
    let before = attached(&two.lab)?;
    let director = two.lab.director();
    director.ip("link set eth1 down")?;
    director.ip("link set eth1 name wan0")?;
    director.ip("link set wan0 up")?;
    wait_for("the new name", || {
        Ok(attached(&two.lab)?.iter().any(|(name, _)| name == "wan0"))
    })?;
    let indices = |list: &[(String, u32)]| list.iter().map(|(_, index)| *index).collect::<Vec<_>>();
    assert_eq!(
        indices(&attached(&two.lab)?),
        indices(&before),
        "they are the same interfaces"
    );
    two.wait_for_server()?;
    two.check("client")?;
    assert_eq!(logged(&two.lab, "eth1 is called wan0 now")?, 1);
    assert_eq!(logged(&two.lab, "is back")?, 0);
    assert_eq!(logged(&two.lab, "is gone")?, 0);
    Ok(())
}

/// The new card has even the old one's index, which the pin of its attachment is named by.
fn a_card_that_was_replaced_while_no_agent_ran_is_attached(mode: XdpMode) -> Result<()> {
    let mut two = TwoCards::start(mode)?;
    let index = attached(&two.lab)?.into_iter().find(|(name, _)| name == "eth1");
    let index = index.context("eth1 is not attached")?.1;
    two.lab.agent_mut()?.kill()?;
    let (director, switches) = (two.lab.director(), two.lab.topology().switches());
    let (port, switches) = (port_name("director", "eth1"), switches.name().to_owned());
    director.ip("link delete eth1")?;
    director.ip(&format!(
        "link add eth1 index {index} type veth peer name {port} netns {switches}"
    ))?;
    director.run("ethtool", ["-K", "eth1", "tx", "off"])?;
    director.ip("link set eth1 up")?;
    director.ip("address add 192.168.3.200/24 dev eth1")?;
    two.lab
        .topology()
        .switches()
        .ip(&format!("link set {port} master beside up"))?;
    if mode == XdpMode::Native {
        two.lab.topology_mut().attach_xdp_pass("director", "eth1")?;
    }
    let config = two.lab.config().agent.clone();
    two.lab.agent_mut()?.launch(&config)?;
    assert!(attached(&two.lab)?.contains(&("eth1".to_owned(), index)));
    two.wait_for_server()?;
    two.check("client")
}

/// The VIP on the director's `lo`; clients come by one card, and servers are behind both.
fn clients_and_servers_are_on_segments_of_their_own(mode: XdpMode) -> Result<()> {
    let two = TwoCards::start(mode)?;
    let director = two.lab.director();
    director.ip(&format!("address delete {VIP}/32 dev eth0"))?;
    director.ip(&format!("address add {VIP}/32 dev lo"))?;
    let near = two.lab.topology().host("near");
    near.ip(&format!("route add {VIP}/32 via 192.168.3.200"))?;
    two.check("near")?;
    two.check("client")?;
    // rs1 was the last one.
    upload(&two.lab, &two.far)
}
