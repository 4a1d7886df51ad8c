//! rr and wrr.

use super::*;

/// rr: a mark, as an index, at the one chosen last; before the first at the start.
#[derive(Default)]
struct RoundRobin {
    mark: Option<usize>,
}

impl Model for RoundRobin {
    fn changed(&mut self, _: &[Destination], gone: Option<usize>, added: bool) {
        if added {
            self.mark = self.mark.map(|mark| mark + 1);
        }
        if let (Some(gone), Some(mark)) = (gone, self.mark)
            && gone <= mark
        {
            self.mark = mark.checked_sub(1);
        }
    }

    fn choose(&mut self, list: &[Destination], _: Client) -> Option<u32> {
        let start = self.mark.map_or(0, |mark| mark + 1);
        let index = (start..start + list.len())
            .map(|index| index % list.len())
            .find(|&index| list[index].is_usable())?;
        self.mark = Some(index);
        Some(list[index].id)
    }
}

/// wrr: pass after pass over the list, each with a lower weight to reach.
#[derive(Default)]
struct Weighted {
    mark: Option<usize>,
    cw: i64,
    di: i64,
    mw: i64,
}

impl Model for Weighted {
    fn changed(&mut self, list: &[Destination], _: Option<usize>, _: bool) {
        let weights = || {
            list.iter()
                .map(|one| i64::from(one.weight))
                .filter(|weight| *weight > 0)
        };
        let most = weights().max().unwrap_or(0);
        // By trial: the greatest number that divides all of them.
        let least = weights().min().unwrap_or(1);
        self.di = (1..=least)
            .rev()
            .find(|n| weights().all(|weight| weight % n == 0))
            .unwrap_or(1);
        self.mw = most - (self.di - 1);
        self.mark = None;
        if self.cw > self.mw || self.cw == 0 {
            self.cw = self.mw;
        } else if self.di > 1 {
            self.cw = self.cw / self.di * self.di + 1;
        }
    }

    /// Every pass but the first is over the whole list. The search is over when all have been looked at for the
    /// lowest weight: after a whole pass for it, or, where the first one was for it and began in the middle, in
    /// the next one for it, at the mark.
    fn choose(&mut self, list: &[Destination], _: Client) -> Option<u32> {
        if self.mw == 0 {
            return None;
        }
        let began = self.mark;
        let mut start = began.map_or(0, |mark| mark + 1);
        let mut is_rest_done = false;
        loop {
            let is_lowest = self.cw <= self.di;
            let end = began.filter(|_| is_rest_done && is_lowest);
            for (index, one) in list.iter().enumerate().skip(start) {
                if one.has_room() && i64::from(one.weight) >= self.cw {
                    self.mark = Some(index);
                    return Some(one.id);
                }
                if end == Some(index) {
                    self.mark = end;
                    return None;
                }
            }
            self.cw = if is_lowest { self.mw } else { self.cw - self.di };
            if is_lowest && start == 0 {
                self.mark = None;
                return None;
            }
            is_rest_done |= is_lowest;
            start = 0;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn rr_goes_round(happenings in happenings(any_weight())) {
        compare(Kind::Rr, (false, false), &mut RoundRobin::default(), happenings)?;
    }

    #[test]
    fn wrr_steps_down(happenings in happenings(weight())) {
        compare(Kind::Wrr, (false, false), &mut Weighted::default(), happenings)?;
    }
}

#[test]
fn wrr_takes_the_heaviest_weights_in_few_steps() {
    let mut service = Service::new(Kind::Wrr, (false, false));
    let heaviest = i32::MAX.unsigned_abs();
    service.lay(&[
        Destination::new(1, heaviest, false),
        Destination::new(2, heaviest - 1, false),
    ]);
    // The step is 1: as often as not each is chosen, and the weight to reach goes down by it every other time.
    let chosen: Vec<_> = (0..6).filter_map(|_| service.choose(CLIENT)).collect();
    assert_eq!(chosen, [1, 1, 2, 1, 2, 1]);
}

#[test]
fn a_packet_that_sees_the_list_before_does_not_move_the_mark() {
    let mut service = Service::new(Kind::Rr, (false, false));
    let one = |id| Destination::new(id, 1, false);
    service.lay(&[one(2), one(1)]);
    let before = service.list;
    assert_eq!(
        (service.choose(CLIENT), service.choose(CLIENT)),
        (Some(2), Some(1))
    );
    service.lay(&[one(3), one(2), one(1)]);
    service.carry();
    let cursor = service.maps.cursors[1].load();
    let flow = Flow::new(&Packet::sample(), 1);
    assert_eq!(choose(&service.maps, before, RingWord::default(), &flow), 2);
    assert_eq!(service.maps.cursors[1].load(), cursor);
    assert_eq!(service.choose(CLIENT), Some(3));
}

/// Several CPUs at once: in whole rounds each destination gets its share, and nobody is passed over.
#[test]
fn many_cpus_at_once_share_the_turns() {
    extern crate std;
    for kind in [Kind::Rr, Kind::Wrr] {
        let mut service = Service::new(kind, (false, false));
        service.lay(&[1, 2, 3].map(|id| Destination::new(id, id, false)));
        service.carry();
        let service = &service;
        let chosen: Vec<u32> = std::thread::scope(|scope| {
            let cpus: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..3000)
                            .filter_map(|_| service.choose(CLIENT))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            cpus.into_iter()
                .flat_map(|cpu| cpu.join().expect("it chooses"))
                .collect()
        });
        assert_eq!(chosen.len(), 12_000);
        for id in 1..4 {
            let share = chosen.iter().filter(|&&one| one == id).count();
            let fair = match kind {
                Kind::Rr => 4000,
                _ => 2000 * id as usize,
            };
            // A CPU that was overtaken again and again takes its turn without moving the mark.
            assert!(share.abs_diff(fair) < 600, "{kind:?} {id}: {share}, not {fair}");
        }
    }
}

const CLIENT: Client = Client {
    address: 1,
    port: 1,
    virtual_address: 1,
    now: 0,
};
