//! Which place a new entry takes, and what gives way for it.

use super::*;

#[test]
fn an_expired_entry_is_displaced_and_its_count_settled() {
    for bucket in BUCKET {
        let maps = tables(PAIR);
        fill(&maps, 0, 100, State::Established);
        fill(&maps, 1, 200, State::Established);
        assert_eq!(counts(&maps, 9), (16, 0));
        let expired = Entry::new(77, 5, State::Close, maps.now() - 11, 0);
        count(&maps, 9, State::Established, State::Empty);
        let place = if bucket == 0 { 12 } else { 3 };
        put(&maps, place / 8, place % 8, expired);
        assert_eq!(counts(&maps, 5), (0, 1));

        let new = new(3, bucket, 1);
        assert_eq!(enter_in(&maps, &new, 4, State::SynRecv), Inserted::Done);
        assert_eq!((counts(&maps, 5), counts(&maps, 4)), ((0, 0), (1, 0)));
        assert_eq!(
            find(&maps, key(&maps, &new)).map(|(place, _)| place.index as usize),
            Some(place)
        );
    }
}

#[test]
fn an_expired_entry_of_the_same_tag_gives_way_wherever_it_is() {
    for (at, bucket) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let maps = tables(PAIR);
        put(&maps, at, 6, Entry::new(3, 5, State::SynRecv, maps.now() - 61, 0));
        let new = new(3, bucket, 1);
        assert_eq!(enter_in(&maps, &new, 4, State::SynRecv), Inserted::Done);
        assert_eq!((counts(&maps, 5), counts(&maps, 4)), ((0, 0), (1, 0)));
        let tags = maps.hot.iter().flat_map(|bucket| &bucket.0);
        assert_eq!(tags.filter(|word| Entry(word.load()).tag() == 3).count(), 1);
    }
}

#[test]
fn nothing_is_displaced_while_there_is_room() {
    for bucket in BUCKET {
        for free in 0..16 {
            let maps = tables(PAIR);
            fill(&maps, 0, 100, State::SynRecv);
            fill(&maps, 1, 200, State::SynRecv);
            maps.hot[free / 8].0[free % 8].store(0);
            let new = new(3, bucket, 1);
            assert_eq!(enter_in(&maps, &new, 4, State::SynRecv), Inserted::Done);
            assert_eq!(
                find(&maps, key(&maps, &new)).map(|(place, _)| place.index as usize),
                Some(free)
            );
        }
    }
}

#[test]
fn without_room_the_oldest_half_open_entry_gives_way() {
    for bucket in BUCKET {
        let maps = tables(PAIR);
        fill(&maps, 0, 100, State::Established);
        fill(&maps, 1, 200, State::Established);
        // In the primary bucket, which goes first where both have half-open ones.
        let at = usize::try_from(bucket).expect("0 or 1");
        for (slot, age) in [(2, 5), (5, 40), (6, 20)] {
            count(&maps, 9, State::Established, State::Empty);
            put(
                &maps,
                at,
                slot,
                Entry::new(50, 8, State::SynRecv, maps.now() - age, 0),
            );
        }
        for (client, slot) in [(1, 5), (2, 6), (3, 2)] {
            let new = new(u64::from(client), bucket, client);
            assert_eq!(enter_in(&maps, &new, 4, State::Established), Inserted::Done);
            let (place, _) = find(&maps, key(&maps, &new)).expect("it was entered");
            assert_eq!(place.index as usize, at * 8 + slot);
        }
        assert_eq!(
            (counts(&maps, 8), counts(&maps, 4), counts(&maps, 9)),
            ((0, 0), (3, 0), (13, 0))
        );
        assert_eq!(
            enter_in(&maps, &new(9, bucket, 9), 4, State::SynRecv),
            Inserted::Full
        );
    }
}

#[test]
fn a_half_open_entry_of_the_partner_gives_way_where_the_primary_has_none() {
    let maps = tables(PAIR);
    fill(&maps, 0, 100, State::Established);
    fill(&maps, 1, 200, State::SynRecv);
    let new = new(3, 0, 1);
    assert_eq!(enter_in(&maps, &new, 4, State::SynRecv), Inserted::Done);
    assert_eq!(counts(&maps, 9), (15, 0));
}

#[test]
fn nothing_else_gives_way() {
    for state in [
        State::Claimed,
        State::Assured,
        State::Udp,
        State::Established,
        State::FinWait,
        State::TimeWait,
        State::Close,
    ] {
        let maps = tables(PAIR);
        fill(&maps, 0, 100, state);
        fill(&maps, 1, 200, state);
        let before = words(&maps);
        assert_eq!(enter_in(&maps, &new(3, 0, 1), 4, State::SynRecv), Inserted::Full);
        assert_eq!(words(&maps), before);
        assert_eq!(counts(&maps, 4), (0, 0));
    }
}

#[test]
fn a_claim_never_grows_so_old_that_it_gives_way() {
    let maps = tables(PAIR);
    fill(&maps, 0, 100, State::Claimed);
    fill(&maps, 1, 200, State::Claimed);
    for _ in 0..10 {
        maps.pass_time(10_000);
        assert_eq!(enter_in(&maps, &new(3, 0, 1), 4, State::SynRecv), Inserted::Full);
    }
}

#[test]
fn the_emptier_bucket_is_taken_when_the_first_holds_6() {
    for (in_first, in_second, expected) in [
        (0, 0, 0),
        (5, 0, 0),
        (6, 0, 1),
        (6, 5, 1),
        (6, 6, 0),
        (7, 6, 1),
        (7, 7, 0),
        (7, 8, 0),
        (8, 7, 1),
    ] {
        let maps = tables(PAIR);
        for (bucket, number) in [(0, in_first), (1, in_second)] {
            for slot in 0..number {
                let tag = u32::try_from(100 + bucket * 10 + slot).expect("small");
                put(
                    &maps,
                    bucket,
                    slot,
                    Entry::new(tag, 9, State::Established, maps.now(), 0),
                );
            }
        }
        let new = new(3, 0, 1);
        assert_eq!(enter_in(&maps, &new, 4, State::SynRecv), Inserted::Done);
        let (place, _) = find(&maps, key(&maps, &new)).expect("it was entered");
        assert_eq!(place.index / 8, expected, "{in_first} and {in_second}");
    }
}
