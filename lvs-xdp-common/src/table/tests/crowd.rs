//! Several CPUs at once, on tables that are far too small for them.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::{abi::Kind, director, hash, maps::Maps, reason::Reason};

const OPERATIONS: u32 = 60_000;

/// A cheap generator of its own for each thread (xorshift64, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn of_cpu(cpu: u64) -> Self {
        Self(cpu.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 >> 33).expect("31 bits") % limit
    }
}

/// Lets four CPUs do `one` again and again, while time passes and, as by the agent, expired entries are ended.
fn crowd(maps: &Memory, one: impl Fn(&mut Random) + Sync) {
    let done = AtomicBool::new(false);
    let one = &one;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..5)
            .map(|cpu| {
                scope.spawn(move || {
                    let mut random = Random::of_cpu(cpu);
                    for _ in 0..OPERATIONS {
                        one(&mut random);
                    }
                })
            })
            .collect();
        let clock = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                maps.pass_time(7);
                sweep(maps);
                std::thread::sleep(core::time::Duration::from_micros(300));
            }
        });
        for worker in workers {
            worker.join().expect("a worker's assertion holds");
        }
        done.store(true, Ordering::Relaxed);
        clock.join().expect("the clock runs");
    });
}

/// Every entry's word, with its place.
fn places(maps: &Memory) -> impl Iterator<Item = (Place<'_>, Entry)> {
    let words = maps.hot.iter().flat_map(|bucket| &bucket.0);
    (0..)
        .zip(words)
        .map(|(index, word)| (Place { word, index }, Entry(word.load())))
}

fn sweep(maps: &Memory) {
    for (place, entry) in places(maps) {
        if entry.is_live() && is_expired(maps, entry, maps.now()) {
            expire(maps, place, entry, maps.now());
        }
    }
}

/// What holds when all CPUs rest, and after everything has ended.
fn check_and_end(maps: &Memory) {
    check_counts(maps).expect("counts are exact while entries are there");
    for (place, entry) in places(maps) {
        assert_ne!(entry.state(), State::Claimed, "no claim is left");
        let key = Key::new(
            u64::from(entry.tag()) << 41 | u64::from(place.index / 8),
            maps.control.bucket_mask.load(),
        );
        assert!(entry.0 == 0 || sharing(maps, key.primary, key.partner(), entry.tag()) == 1);
    }
    check_control(maps);
    // Connections end first, and templates when they control none; those get a minute more while they do.
    for _ in 0..3 {
        maps.pass_time(16_000);
        sweep(maps);
    }
    for (_, entry) in places(maps) {
        assert_eq!(entry, Entry::EMPTY);
    }
    for counts in &maps.counts {
        let Counts {
            connections,
            templates,
            overload,
            ..
        } = counts;
        assert_eq!((connections.load(), templates.load(), overload.load()), (0, 0, 0));
    }
}

/// Every template controls as many connections as refer to it.
fn check_control(maps: &Memory) {
    for (place, entry) in places(maps).filter(|(_, entry)| entry.state().is_template()) {
        let word = maps.cold[place.index as usize].controlled.load();
        let own = word & !0xffff_ffff | u64::from(place.index);
        let referring = places(maps).filter(|(other, entry)| {
            entry.is_live()
                && !entry.state().is_template()
                && maps.cold[other.index as usize].control.load() == own
        });
        assert_eq!(
            usize::try_from(word & 0xffff_ffff).expect("few"),
            referring.count(),
            "{entry:?}"
        );
    }
}

/// With tags that collide: a flow never goes to another's destination.
#[test]
fn many_cpus_at_once_never_mix_up_flows_and_lose_no_count() {
    const CLIENTS: u32 = 96;
    let maps = tables(64);
    crowd(&maps, |random| {
        let client = random.below(CLIENTS);
        let flags = Signal([SYN, SYN, ACK, ACK, ACK, FIN, RST][random.below(7) as usize]);
        one_packet(&maps, client, client % 11 + 1, flags);
    });
    check_and_end(&maps);
}

/// What the director does for a packet, with a check of every answer of the table.
fn one_packet(maps: &Memory, client: u32, destination: u32, flags: Signal) {
    // 40 tags for 96 clients: more than half share theirs with another.
    let new = new(u64::from(client % 40) + 1, u64::from(client / 40), client);
    let now = maps.now();
    if let Some((place, entry)) = find(maps, key(maps, &new))
        && !is_expired(maps, entry, now)
    {
        let own = is_flow(maps, place, &new.flow);
        // The row is the entry's own only where the word is the same before and after.
        if own && place.word.load() == entry.0 {
            assert_eq!(entry.destination(), destination);
        }
        if is_plain(entry, flags) {
            refresh(maps, place.index, entry, now);
            return;
        }
        if change(maps, place.index, entry, &new.flow, flags) == Changed::Kept {
            return;
        }
    }
    if flags.opens(IpProto::TCP)
        && let Inserted::Exists(other) = enter_in(maps, &new, destination, State::SynRecv)
    {
        assert_eq!(other, destination);
    }
}

const VIP: u32 = 0xc0a8_0264;
/// The three services: TCP and UDP with persistence, and UDP without.
const SERVICES: [(IpProto, u16); 3] = [(IpProto::TCP, 80), (IpProto::UDP, 80), (IpProto::UDP, 81)];
/// Destinations of each service; those of service `n` are n * 4 to n * 4 + 2.
const DESTINATIONS: u32 = 3;

/// Tables with whole services, whose destinations have thresholds.
fn director_tables() -> Memory {
    let maps = Memory::new(128, 4, 16);
    maps.control.flags.store(crate::abi::control_flag::TEMPLATES);
    for (id, (protocol, port)) in (1..).zip(SERVICES) {
        let address = Address::from_ipv4(VIP);
        let row = &maps.services[id as usize];
        row.address[1].store(address.low());
        row.identity
            .store(crate::abi::ServiceRow::identity(port, protocol));
        let timeout = if id < 3 { 30 } else { 0 };
        row.options[0].store(Options::new(Options::REUSE, timeout, 0xffff_fffe).0);
        let hash = hash::service(maps.control.key(), address, port, protocol.0);
        let (first, _) = crate::abi::index_buckets(hash, maps.control.service_mask.load());
        let bucket = &maps.service_index[first as usize].0;
        let free = bucket.iter().find(|word| word.load() == 0).expect("a free word");
        free.store(crate::abi::index_word(hash, id));
        let offset = id * 8;
        row.lists[0].store(crate::abi::ListWord::new(Kind::Wlc, offset, DESTINATIONS, 0, false).0);
        maps.lists[offset as usize].store(1 << 32 | 1);
        for number in 0..DESTINATIONS {
            let destination = id * 4 + number;
            maps.lists[(offset + 1 + number) as usize]
                .store(crate::abi::ListEntry::new(1, destination, true).0);
            let row = &maps.destinations[destination as usize];
            row.towards
                .store(destination_flag::USED | destination_flag::RESOLVED);
            row.place.store(u64::from(id) << 32 | 1);
            row.weight.store(1);
            maps.counts[destination as usize].limits.store(9 << 32 | 6);
        }
    }
    maps
}

/// A frame of a client to a service.
fn frame((protocol, port): (IpProto, u16), client: u32, flags: u8) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 2, 200]);
    frame[12..18].copy_from_slice(&[8, 0, 0x45, 0, 0, 40]);
    frame[22..24].copy_from_slice(&[64, protocol.0]);
    frame[26..30].copy_from_slice(&(0x0a00_0000 + client / 4).to_be_bytes());
    frame[30..34].copy_from_slice(&VIP.to_be_bytes());
    let source_port = u16::try_from(client % 4).expect("small") + 1000;
    frame[34..36].copy_from_slice(&source_port.to_be_bytes());
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    frame[46] = 0x50;
    frame[47] = flags;
    frame
}

/// Whole packets: templates that are made, followed, assured and displaced, thresholds that are reached and left.
/// A packet never goes to a destination of another service, and in the end every count is exact.
#[test]
fn many_cpus_at_once_keep_templates_and_thresholds_right() {
    let maps = director_tables();
    let met: [AtomicU32; Reason::ALL.len()] = core::array::from_fn(|_| AtomicU32::new(0));
    crowd(&maps, |random| {
        let number = random.below(3);
        let flags = [SYN, SYN, ACK, ACK, FIN, RST][random.below(6) as usize];
        let frame = frame(SERVICES[number as usize], random.below(160), flags);
        let verdict = director::decide(&frame[..], &maps, 1);
        if verdict.destination != 0 {
            assert_eq!(verdict.destination / 4, number + 1);
        }
        met[verdict.reason as usize].fetch_add(1, Ordering::Relaxed);
    });
    // What is said of overload agrees with the counts; between the two thresholds it may be either.
    for counts in &maps.counts {
        let total = Counts::total(counts.connections.load());
        let is_overloaded = counts.overload.load() != 0;
        if counts.limits.load() == 0 || total < 6 {
            assert!(!is_overloaded, "{total}");
        } else if total >= 9 {
            assert!(is_overloaded, "{total}");
        }
    }
    for reason in [
        Reason::NewConnection,
        Reason::Connection,
        Reason::NoConnection,
        Reason::NoDestination,
    ] {
        let count = met[reason as usize].load(Ordering::Relaxed);
        assert!(count > 100, "{} {count}", reason.name());
    }
    check_and_end(&maps);
}

/// One count, up and down from four CPUs: the flag says in the end what the count says.
#[test]
fn overload_agrees_with_the_count_whoever_speaks_last() {
    for _ in 0..50 {
        let maps = tables(16);
        maps.counts[4].limits.store(6 << 32 | 5);
        std::thread::scope(|scope| {
            for cpu in 1..5 {
                let maps = &maps;
                scope.spawn(move || {
                    let mut random = Random::of_cpu(cpu);
                    let mut own = 0;
                    for _ in 0..400 {
                        if own == 0 || own < 4 && random.below(2) == 0 {
                            count(maps, 4, State::Empty, State::Udp);
                            own += 1;
                        } else {
                            count(maps, 4, State::Udp, State::Empty);
                            own -= 1;
                        }
                    }
                });
            }
        });
        let counts = &maps.counts[4];
        let total = Counts::total(counts.connections.load());
        let is_overloaded = counts.overload.load() != 0;
        match total {
            0..5 => assert!(!is_overloaded, "{total}"),
            5 => {}
            _ => assert!(is_overloaded, "{total}"),
        }
    }
}
