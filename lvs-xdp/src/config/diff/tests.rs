use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    api::types::{Configuration, Scheduler, ServiceSpec, Settings},
    config::{read, summary, write},
    model::tests::any_change,
};

/// Any table: what is left of any changes.
fn any_model() -> impl Strategy<Value = Model> {
    vec(any_change(), 0..60).prop_map(|changes| {
        let mut model = Model::default();
        for change in changes {
            let _ = model.apply(&[change]);
        }
        model
    })
}

proptest! {
    #[test]
    fn the_difference_leads_from_any_table_to_any_other(from in any_model(), to in any_model()) {
        let changes = diff(&from, &to);
        let mut model = from.clone();
        model.apply(&changes).unwrap();
        prop_assert_eq!(&model, &to);
        prop_assert_eq!(changes.is_empty(), from == to);
        prop_assert_eq!(steps(&from, &to, |_, _| 1).is_empty(), from == to);
        prop_assert!(diff(&to, &to).is_empty());
    }

    #[test]
    fn a_written_file_reads_as_the_same_table(model in any_model()) {
        let configuration = Configuration::of(&model);
        let text = write(&configuration).unwrap();
        let (again, read) = read(&text).unwrap();
        prop_assert_eq!(again, configuration);
        prop_assert_eq!(&read, &model);
        prop_assert_eq!(Configuration::of(&read).model().unwrap(), model);
    }
}

fn model(text: &str) -> Model {
    read(text).unwrap().1
}

/// A service with real servers, in the order in which they are added.
fn servers(hosts: &[(u8, u32)]) -> String {
    let mut text = "[[service]]\nprotocol = \"tcp\"\naddress = \"192.0.2.1\"\nport = 80\n".to_owned();
    for (host, weight) in hosts {
        text += &format!("[[service.server]]\naddress = \"198.51.100.{host}\"\nweight = {weight}\n");
    }
    text
}

#[test]
fn a_difference_is_no_longer_than_it_has_to_be() {
    let before = model(&servers(&[(1, 1), (2, 1), (3, 1)]));
    for (after, length) in [
        (&[(1, 1), (2, 1), (3, 1), (4, 1)][..], 1),
        (&[(1, 1), (3, 1)], 1),
        (&[(1, 1), (2, 5), (3, 1)], 1),
        // The last one is added last: the others stay.
        (&[(1, 1), (4, 1), (2, 1), (3, 1)], 5),
        (&[(2, 1), (3, 1), (1, 1)], 2),
        (&[(4, 1), (5, 1)], 5),
    ] {
        let after = model(&servers(after));
        assert_eq!(diff(&before, &after).len(), length, "{after:?}");
    }
    assert_eq!(diff(&before, &Model::default()).len(), 1);
    let mut other = before.clone();
    let key = *before.services().keys().next().unwrap();
    let service = ServiceSpec::new(key, Scheduler::Rr);
    let settings = Settings {
        sloppy_tcp: 1,
        ..Settings::default()
    };
    let changes = [Change::SetSettings { settings }, Change::EditService { service }];
    other.apply(&changes).unwrap();
    assert_eq!(diff(&before, &other), changes);
}

#[test]
fn steps_say_what_changes_and_which_connections_it_touches() {
    let before = model(
        &(servers(&[(1, 1), (2, 1), (3, 1)])
            + r#"
            [[service]]
            protocol = "udp"
            address = "2001:db8::1"
            port = 53
            [[service.server]]
            address = "2001:db8:1::1"
            [[mark]]
            mark = 7
            addresses = ["192.0.2.7/32"]
            [[mark]]
            mark = 8
            addresses = ["192.0.2.8/32"]
            "#),
    );
    let after = model(
        r#"
        [settings]
        sloppy_tcp = 1
        [timeouts]
        tcp = 600
        [[mark]]
        mark = 8
        addresses = ["192.0.2.8/32"]
        [[mark]]
        mark = 7
        addresses = ["192.0.2.7/32"]
        protocol = "tcp"
        ports = ["80", "443"]
        [[service]]
        protocol = "tcp"
        address = "192.0.2.1"
        port = 80
        scheduler = "mh"
        flags = ["port"]
        persistence = { timeout = 360 }
        [[service.server]]
        address = "198.51.100.3"
        [[service.server]]
        address = "198.51.100.1"
        method = { tunnel = { type = "gue", port = 6080 } }
        [[service.server]]
        address = "198.51.100.4"
        weight = 3
        upper_threshold = 100
        [[service]]
        mark = 7
        "#,
    );
    let steps = steps(&before, &after, |service, server| {
        u64::from(service.port()) * 10 + u64::from(server.port)
    });
    let lines: Vec<_> = steps
        .iter()
        .map(|step| {
            let Step {
                action,
                object,
                detail,
                connections,
            } = step;
            format!("{action:?} {object} [{detail}] {connections}")
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
    insta::assert_snapshot!(summary(&steps));
    insta::assert_snapshot!(summary(&steps[..2]));
}
