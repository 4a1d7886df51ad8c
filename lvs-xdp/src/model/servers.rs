//! The real servers of a service: in the schedulers' order, and found by their names.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    fmt, iter,
};

use crate::api::types::{ServerKey, ServerSpec};

/// The real servers of one service.
///
/// The order is IPVS's, which adds at the list's head: the one added last comes first. Each has a number that says
/// when it was added, so that adding, finding and deleting one takes the logarithm of how many there are.
#[derive(Clone, Default)]
pub struct Servers {
    specs: BTreeMap<Reverse<u64>, ServerSpec>,
    numbers: HashMap<ServerKey, u64>,
}

/// Real servers in their order, the one added last first.
pub(super) type Iter<'a> = std::collections::btree_map::Values<'a, Reverse<u64>, ServerSpec>;

impl Servers {
    /// All of them, in their order.
    pub fn iter(&self) -> Iter<'_> {
        self.specs.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.specs.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    /// The one of that name.
    pub fn get(&self, key: &ServerKey) -> Option<&ServerSpec> {
        self.specs.get(&Reverse(*self.numbers.get(key)?))
    }

    /// Whether there is one of that name.
    pub fn contains(&self, key: &ServerKey) -> bool {
        self.numbers.contains_key(key)
    }

    /// The one of that name, to be changed. Its name must stay.
    pub(super) fn get_mut(&mut self, key: &ServerKey) -> Option<&mut ServerSpec> {
        self.specs.get_mut(&Reverse(*self.numbers.get(key)?))
    }

    /// Adds one at the head. There must be none of its name.
    pub(super) fn add(&mut self, spec: ServerSpec) {
        let number = self
            .specs
            .first_key_value()
            .map_or(0, |(Reverse(last), _)| last + 1);
        self.numbers.insert(spec.key, number);
        self.specs.insert(Reverse(number), spec);
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, key: &ServerKey) -> Option<ServerSpec> {
        let number = self.numbers.remove(key)?;
        self.specs.remove(&Reverse(number))
    }
}

/// From real servers in their order, the one to be added last first, of which no two may have one name.
impl FromIterator<ServerSpec> for Servers {
    fn from_iter<T: IntoIterator<Item = ServerSpec>>(servers: T) -> Self {
        let mut all = Self::default();
        for spec in Vec::from_iter(servers).into_iter().rev() {
            all.add(spec);
        }
        all
    }
}

impl<'a> IntoIterator for &'a Servers {
    type Item = &'a ServerSpec;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// What counts is what can be seen: the real servers and their order.
impl PartialEq for Servers {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && iter::zip(self, other).all(|(one, other)| one == other)
    }
}

impl Eq for Servers {}

impl PartialEq<[ServerSpec]> for Servers {
    fn eq(&self, other: &[ServerSpec]) -> bool {
        self.iter().eq(other)
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}
