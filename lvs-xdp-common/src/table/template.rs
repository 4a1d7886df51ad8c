//! Persistence templates: entries that say where a client's next connections go.
//!
//! A template's entry is found by the hash of its own flow. Its word says when it ends, not when it was
//! last seen. A connection that a template controls names it in its cold row by place and mark; the
//! template's cold row counts them. As in the kernel (`ip_vs_conn_expire`), a template that controls
//! connections does not end, but looks again after a minute.

use super::{Key, New, Place, TRIES, find, is_expired, remove, word_at};
use crate::{
    abi::{ColdRow, Options, destination_flag},
    connection::{Entry, State},
    flow::Flow,
    maps::Maps,
    reason::Reason,
};

/// Seconds that a template lives on when its time is over and it still controls connections.
const LIVES_ON: u32 = 60;

/// Where a new connection goes, packed into one register: bit 0 whether anywhere, then the destination's id
/// in 20 bits and, above bit 32, one more than the place of the template that said so; or, where it goes
/// nowhere, the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Followed(pub u64);

impl Followed {
    /// Where a scheduler said.
    #[inline(always)]
    pub const fn chosen(destination: u32) -> Self {
        Self(1 | (destination as u64) << 1)
    }

    #[inline(always)]
    const fn template(destination: u32, place: u32) -> Self {
        Self(1 | (destination as u64) << 1 | (place as u64 + 1) << 32)
    }

    /// Nowhere, and why.
    #[inline(always)]
    pub const fn nowhere(reason: Reason) -> Self {
        Self((reason as u64) << 1)
    }

    /// Whether it goes anywhere.
    #[inline(always)]
    pub const fn is_somewhere(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether a template said so.
    #[inline(always)]
    pub const fn is_template(self) -> bool {
        self.0 >> 32 != 0
    }

    /// Why it goes nowhere.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a reason's number")]
    pub const fn reason(self) -> Reason {
        Reason::from_number((self.0 >> 1) as u32)
    }

    /// The destination's id.
    #[inline(always)]
    pub const fn destination(self) -> u32 {
        (self.0 >> 1 & 0xf_ffff) as u32
    }

    /// The template's place: bucket * 8 + slot.
    #[inline(always)]
    pub const fn place(self) -> u32 {
        ((self.0 >> 32) as u32).wrapping_sub(1)
    }
}

/// The entry of a template, unless it has expired.
#[inline(always)]
pub fn look_for<'m, M: Maps>(maps: &'m M, flow: &Flow, hash: u64, now: u32) -> Option<(Place<'m>, Entry)> {
    let key = Key::new(hash, maps.control().bucket_mask.load());
    let (place, entry) = find(maps, key)?;
    let row = maps.cold(place.index)?;
    if !flow.is(row) || is_expired(maps, entry, now) && !is_kept(maps, place, entry, now) {
        return None;
    }
    // Its word as it is now: that it was kept has changed it.
    Some((place, Entry(place.word.load())))
}

/// Follows a template: its time starts again. The connection that comes of it takes [`hold`] of it.
///
/// As in the kernel, one that another service of the virtual address has made (an FTP service beside one for
/// all ports) is followed like the service's own. A template is void, and is taken out, where its destination
/// was removed, is being drained, or has weight 0 while expire_quiescent_template is set
/// (`ip_vs_check_template`).
#[inline(always)]
pub fn follow<M: Maps>(maps: &M, template: &New, options: u64) -> u64 {
    let New { hash, flow, .. } = template;
    const VOID: u64 = destination_flag::REMOVED | destination_flag::DRAINING;
    let options = Options(options);
    let now = maps.now();
    let Some((place, entry)) = look_for(maps, flow, *hash, now) else {
        return Followed::nowhere(Reason::NoDestination).0;
    };
    let Some(destination) = maps.destination(entry.destination()) else {
        return Followed::nowhere(Reason::NoDestination).0;
    };
    let is_void = destination.towards.load() & VOID != 0
        || options.has(Options::EXPIRE_QUIESCENT) && destination.weight.load() == 0;
    if is_void {
        // Where this fails its word has changed: it is void all the same.
        let _ = remove(maps, place, entry);
        return Followed::nowhere(Reason::NoDestination).0;
    }
    let fresh = Entry::until(
        entry.tag(),
        entry.destination(),
        entry.state(),
        now,
        options.timeout(),
    );
    if fresh.0 != entry.0 {
        // Where this fails another CPU has followed it, too, or has assured it, within the same second.
        let _ = place.word.swap(entry.0, fresh.0);
    }
    Followed::template(entry.destination(), place.index).0
}

/// Whether an expired entry is a template that still controls connections; it gets another minute then.
#[inline(always)]
pub fn is_kept<M: Maps>(maps: &M, place: Place<'_>, entry: Entry, now: u32) -> bool {
    if !entry.state().is_template() {
        return false;
    }
    let controlled = maps
        .cold(place.index)
        .map_or(0, |row| row.controlled.load() & 0xffff_ffff);
    if controlled == 0 {
        return false;
    }
    let renewed = Entry::until(entry.tag(), entry.destination(), entry.state(), now, LIVES_ON);
    let _ = place.word.swap(entry.0, renewed.0);
    true
}

/// One connection more that the template at a place controls; what the connection's cold row says of it.
///
/// Counted and told apart in one step: should the template give way in this moment, the reference is to the one
/// that has counted it, be it gone.
#[inline(always)]
pub fn hold<M: Maps>(maps: &M, place: u32) -> u64 {
    let Some(row) = maps.cold(place) else {
        return 0;
    };
    let mark = row.controlled.add(1) & !0xffff_ffff;
    // Without a mark no template has ever been there.
    if mark == 0 { 0 } else { mark | u64::from(place) }
}

/// The cold row of the template that a connection's one refers to, where no other template has had its place
/// since; it may be a connection's by now, whose row counts nothing.
#[inline(always)]
fn referred<M: Maps>(maps: &M, reference: u64) -> Option<&ColdRow> {
    if reference == 0 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the place")]
    let row = maps.cold(reference as u32)?;
    (row.controlled.load() >> 32 == reference >> 32).then_some(row)
}

/// The template that a connection's cold row refers to.
#[cfg(not(target_arch = "bpf"))]
pub fn controlling<M: Maps>(maps: &M, reference: u64) -> Option<Flow> {
    referred(maps, reference)
        .map(Flow::read)
        .filter(Flow::is_template)
}

/// A connection that a template controlled has gone.
#[inline(always)]
pub fn release<M: Maps>(maps: &M, reference: u64) {
    let Some(row) = referred(maps, reference) else {
        return;
    };
    let mut tries = 0;
    while tries < TRIES {
        tries += 1;
        let seen = row.controlled.load();
        if seen >> 32 != reference >> 32 || seen & 0xffff_ffff == 0 || row.controlled.swap(seen, seen - 1) {
            return;
        }
    }
    // Others count at the same time, again and again: so it is still there.
    row.controlled.add(1u64.wrapping_neg());
}

/// A connection that a template controls was established: the template is not displaced any more
/// (`ip_vs_control_assure_ct`).
#[inline(always)]
pub(super) fn assure<M: Maps>(maps: &M, reference: u64) {
    if referred(maps, reference).is_none() {
        return;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the place")]
    let Some(word) = word_at(maps, reference as u32) else {
        return;
    };
    let mut tries = 0;
    while tries < TRIES {
        tries += 1;
        let entry = Entry(word.load());
        if !matches!(entry.state(), State::Template) || word.swap(entry.0, entry.with_state(State::Assured).0)
        {
            return;
        }
    }
}
