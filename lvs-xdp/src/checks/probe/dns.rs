//! Asking a name server (RFC 1035).

use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE, rdata::RData};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    api::types::{DnsProbe, DnsRecord, Protocol},
    checks::{
        Target,
        host::Host,
        socket::{Deadline, Failure, connect, datagrams},
    },
};

/// The longest answer there can be.
const LONGEST: usize = 65_535;

pub(super) async fn ask(
    probe: &DnsProbe,
    target: &Target,
    host: &Host,
    deadline: Deadline,
) -> Result<String, Failure> {
    let id = fastrand::u16(..);
    let question = question(probe, id).map_err(Failure::Unknown)?;
    let refused = |error| Failure::of("no answer", &error);
    if target.protocol == Some(Protocol::Tcp) {
        let (_lead, mut stream) = connect(target, host, deadline).await?;
        let exchange = async {
            // Each message follows its length (4.2.2).
            let length = u16::try_from(question.len()).unwrap_or(u16::MAX);
            let framed = [&length.to_be_bytes()[..], &question].concat();
            stream.write_all(&framed).await.map_err(refused)?;
            let mut answer = vec![0; usize::from(stream.read_u16().await.map_err(refused)?)];
            stream.read_exact(&mut answer).await.map_err(refused)?;
            judge(probe, id, &answer)
        };
        return deadline.wait("answer", exchange).await;
    }
    let (_lead, socket) = datagrams(target, host).await?;
    socket.send(&question).await.map_err(refused)?;
    let mut answer = vec![0; LONGEST];
    let length = deadline.wait("answer", async {
        socket.recv(&mut answer).await.map_err(refused)
    });
    let length = length.await?;
    judge(probe, id, &answer[..length])
}

fn question(probe: &DnsProbe, id: u16) -> Result<Vec<u8>, String> {
    let name = Name::new(&probe.name).map_err(|error| format!("`{}` is no name: {error}", probe.name))?;
    let record = QTYPE::TYPE(record(probe.record));
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet
        .questions
        .push(Question::new(name, record, QCLASS::CLASS(CLASS::IN), false));
    packet
        .build_bytes_vec()
        .map_err(|error| format!("the question makes no sense: {error}"))
}

fn record(record: DnsRecord) -> TYPE {
    match record {
        DnsRecord::A => TYPE::A,
        DnsRecord::Aaaa => TYPE::AAAA,
        DnsRecord::Cname => TYPE::CNAME,
        DnsRecord::Mx => TYPE::MX,
        DnsRecord::Ns => TYPE::NS,
        DnsRecord::Ptr => TYPE::PTR,
        DnsRecord::Soa => TYPE::SOA,
        DnsRecord::Srv => TYPE::SRV,
        DnsRecord::Txt => TYPE::TXT,
    }
}

fn judge(probe: &DnsProbe, id: u16, answer: &[u8]) -> Result<String, Failure> {
    let bad = |why: String| Err(Failure::Bad(why));
    let answer = match Packet::parse(answer) {
        Ok(answer) if answer.id() == id && answer.has_flags(PacketFlag::RESPONSE) => answer,
        Ok(_) => return bad("an answer to another question".to_owned()),
        Err(error) => return bad(format!("an answer that is none of a name server: {error}")),
    };
    let code = answer.rcode();
    if code != RCODE::NoError {
        return bad(format!("the name server says {}", code_name(code)));
    }
    let count = answer.answers.len();
    let Some(wanted) = probe.address else {
        return Ok(format!("no error, {count} records"));
    };
    let has_it = answer.answers.iter().any(|record| match &record.rdata {
        RData::A(a) => wanted == std::net::Ipv4Addr::from(a.address),
        RData::AAAA(aaaa) => wanted == std::net::Ipv6Addr::from(aaaa.address),
        _ => false,
    });
    if has_it {
        Ok(format!("no error, {count} records, with the address"))
    } else {
        bad(format!("no error, {count} records, without {wanted}"))
    }
}

/// IANA's name of it, where it is one of RFC 1035's.
fn code_name(code: RCODE) -> String {
    match code {
        RCODE::FormatError => "FORMERR".to_owned(),
        RCODE::ServerFailure => "SERVFAIL".to_owned(),
        RCODE::NameError => "NXDOMAIN".to_owned(),
        RCODE::NotImplemented => "NOTIMP".to_owned(),
        RCODE::Refused => "REFUSED".to_owned(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use simple_dns::{ResourceRecord, rdata::A};

    use super::*;

    fn probe(address: Option<&str>) -> DnsProbe {
        DnsProbe {
            name: "www.example.org".to_owned(),
            record: DnsRecord::A,
            address: address.map(|text| text.parse().unwrap()),
        }
    }

    fn answer(id: u16, code: RCODE, addresses: &[[u8; 4]]) -> Vec<u8> {
        let mut packet = Packet::new_reply(id);
        *packet.rcode_mut() = code;
        for address in addresses {
            let rdata = RData::A(A {
                address: u32::from_be_bytes(*address),
            });
            let name = Name::new("www.example.org").unwrap();
            packet
                .answers
                .push(ResourceRecord::new(name, CLASS::IN, 60, rdata));
        }
        packet.build_bytes_vec().unwrap()
    }

    #[test]
    fn a_question_is_one_of_rfc_1035() {
        let octets = question(&probe(None), 0x1234).unwrap();
        assert_eq!(octets[..12], [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&octets[12..], b"\x03www\x07example\x03org\x00\x00\x01\x00\x01");
    }

    #[test]
    fn answers_are_judged_by_code_and_address() {
        let one = [192, 0, 2, 7];
        for (wanted, octets, expected) in [
            (None, answer(7, RCODE::NoError, &[one]), Ok("no error, 1 records")),
            (None, answer(7, RCODE::NoError, &[]), Ok("no error, 0 records")),
            (None, answer(7, RCODE::NameError, &[]), Err("NXDOMAIN")),
            (None, answer(7, RCODE::ServerFailure, &[]), Err("SERVFAIL")),
            (None, answer(8, RCODE::NoError, &[one]), Err("another question")),
            (None, b"HTTP/1.1 200".to_vec(), Err("")),
            (None, Vec::new(), Err("none of a name server")),
            (
                Some("192.0.2.7"),
                answer(7, RCODE::NoError, &[[1; 4], one]),
                Ok("with the address"),
            ),
            (
                Some("192.0.2.8"),
                answer(7, RCODE::NoError, &[one]),
                Err("without 192.0.2.8"),
            ),
        ] {
            let seen = judge(&probe(wanted), 7, &octets);
            match (&seen, expected) {
                (Ok(seen), Ok(part)) | (Err(Failure::Bad(seen)), Err(part)) => {
                    assert!(seen.contains(part), "{seen}");
                }
                _ => panic!("{seen:?}, expected {expected:?}"),
            }
        }
    }
}
