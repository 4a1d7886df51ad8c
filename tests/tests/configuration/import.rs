//! Other load balancers' configurations, imported and applied.

use anyhow::Result;
use lvs_xdp_tests::ask::{services, wait_for};

use crate::{File, lab};

/// A director with a web service, as keepalived would have it.
const KEEPALIVED: &str = "\
global_defs {
    router_id lvs1
}
virtual_server 192.168.2.100 80 {
    delay_loop 1
    lb_algo rr
    lb_kind DR
    protocol TCP
    real_server 192.168.2.220 80 {
        weight 1
        TCP_CHECK {
            connect_timeout 1
        }
        notify_down /usr/local/bin/page
    }
    real_server 192.168.2.210 80 {
        weight 1
        TCP_CHECK {
            connect_timeout 1
        }
    }
}
";

#[test]
fn a_running_table_is_imported_as_itself() -> Result<()> {
    let lab = lab(2)?;
    for words in [
        "-A -t 192.168.2.100:80 -s wrr -p 50 -M 255.255.255.0",
        "-a -t 192.168.2.100:80 -r 192.168.2.220 -g -w 5 -x 100 -y 50",
        "-a -t 192.168.2.100:80 -r 192.168.2.210 -g -w 1",
        "-A -u [2001:db8::100]:53 -s sh -b sh-port",
    ] {
        lab.ipvsadm(words.split(' '))?;
    }
    let file = File::new("")?;
    // By number, and by the names that the host has for ports; in full, since ipvsadm leaves thresholds out.
    for save in [&["-S", "-n", "--full"][..], &["-S", "--full"]] {
        file.write(&lab.ipvsadm(save.iter().copied())?)?;
        let output = lab.cli_output(["import", &file.name()])?;
        assert_eq!(String::from_utf8(output.stderr)?, "");
        file.write(&String::from_utf8(output.stdout)?)?;
        assert_eq!(
            lab.cli(["apply", "--dry-run", &file.name()])?,
            "nothing to change\n"
        );
    }
    Ok(())
}

#[test]
fn keepalived_is_imported_applied_and_serves() -> Result<()> {
    let lab = lab(2)?;
    let file = File::new(KEEPALIVED)?;
    let output = lab.cli_output(["import", &file.name()])?;
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stderr)?,
        format!(
            "lvs-xdp: {name}: line 1: global_defs: not taken over, with all that is in it: there is nothing of it in \
             the table\n\
             lvs-xdp: {name}: line 14: notify_down /usr/local/bin/page: not taken over: no programs are run at a \
             change: `lvs-xdp checks` and the agent's log tell of it\n",
            name = file.name()
        )
    );
    file.write(&String::from_utf8(output.stdout)?)?;
    let dry = lab.cli(["apply", "--dry-run", &file.name()])?;
    assert!(
        dry.ends_with("3 changes, not made, touch 0 of 0 connections\n"),
        "{dry}"
    );
    assert_eq!(services(&lab)?, []);
    lab.cli(["apply", &file.name()])?;
    let mut answered = std::collections::BTreeSet::new();
    wait_for("both real servers to answer", || {
        answered.insert(lab.fetch("/")?);
        Ok(answered.len() == 2)
    })?;
    assert_eq!(lab.cli(["export"])?, std::fs::read_to_string(file.path())?);
    Ok(())
}

#[test]
fn what_is_no_configuration_is_refused() -> Result<()> {
    let lab = lab(1)?;
    let file = File::new("virtual_server 192.168.2.100 80 {\n")?;
    let output = lab.cli_output(["import", &file.name()])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert_eq!(
        String::from_utf8(output.stderr)?,
        format!(
            "lvs-xdp: {name}: line 1: the block of `virtual_server` has no end: close it with a `}}`\n",
            name = file.name()
        )
    );
    Ok(())
}
