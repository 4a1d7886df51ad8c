//! lc, wlc, sed, nq, fo and ovf.

use super::*;

/// The first of those that no other undercuts: loads in proportion to weights, as fractions.
pub(super) fn least<'a>(
    list: impl IntoIterator<Item = &'a Destination>,
    load: impl Fn(&Destination) -> u64,
    weight: impl Fn(&Destination) -> u32,
) -> Option<&'a Destination> {
    let mut best: Option<&Destination> = None;
    for one in list {
        let undercuts = best.is_none_or(|best| {
            u128::from(load(one)) * u128::from(weight(best))
                < u128::from(load(best)) * u128::from(weight(one))
        });
        if undercuts {
            best = Some(one);
        }
    }
    best
}

/// wlc's choice, which lblc and lblcr take, too.
pub(super) fn weighted_least(list: &[Destination]) -> Option<u32> {
    let usable = list.iter().filter(|one| one.is_usable());
    least(usable, |one| one.overhead(), |one| one.weight).map(|one| one.id)
}

/// A scheduler that keeps nothing in mind.
struct Forgetful(fn(&[Destination]) -> Option<u32>);

impl Model for Forgetful {
    fn choose(&mut self, list: &[Destination], _: Client) -> Option<u32> {
        (self.0)(list)
    }
}

fn usable(list: &[Destination]) -> impl Iterator<Item = &Destination> {
    list.iter().filter(|one| one.is_usable())
}

fn least_connections(list: &[Destination]) -> Option<u32> {
    least(usable(list), |one| one.overhead(), |_| 1).map(|one| one.id)
}

fn shortest_delay(list: &[Destination]) -> Option<u32> {
    least(usable(list), |one| u64::from(one.active) + 1, |one| one.weight).map(|one| one.id)
}

fn never_queue(list: &[Destination]) -> Option<u32> {
    let idle = usable(list).find(|one| one.active == 0);
    idle.map(|one| one.id).or_else(|| shortest_delay(list))
}

fn heaviest<'a>(list: impl Iterator<Item = &'a Destination>) -> Option<u32> {
    least(list, |_| 1, |one| one.weight).map(|one| one.id)
}

fn fail_over(list: &[Destination]) -> Option<u32> {
    heaviest(usable(list))
}

fn overflow(list: &[Destination]) -> Option<u32> {
    heaviest(usable(list).filter(|one| one.active <= one.weight))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn lc_takes_the_one_with_the_least_connections(happenings in happenings(any_weight())) {
        compare(Kind::Lc, (false, false), &mut Forgetful(least_connections), happenings)?;
    }

    #[test]
    fn wlc_weighs_the_connections(happenings in happenings(any_weight())) {
        compare(Kind::Wlc, (false, false), &mut Forgetful(weighted_least), happenings)?;
    }

    #[test]
    fn sed_expects_the_shortest_delay(happenings in happenings(any_weight())) {
        compare(Kind::Sed, (false, false), &mut Forgetful(shortest_delay), happenings)?;
    }

    #[test]
    fn nq_takes_the_first_idle_one(happenings in happenings(any_weight())) {
        compare(Kind::Nq, (false, false), &mut Forgetful(never_queue), happenings)?;
    }

    #[test]
    fn fo_takes_the_heaviest(happenings in happenings(any_weight())) {
        compare(Kind::Fo, (false, false), &mut Forgetful(fail_over), happenings)?;
    }

    #[test]
    fn ovf_takes_the_heaviest_that_has_room(happenings in happenings(any_weight())) {
        compare(Kind::Ovf, (false, false), &mut Forgetful(overflow), happenings)?;
    }
}
