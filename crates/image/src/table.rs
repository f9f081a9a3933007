//! What belongs to objects, by objref.

use crate::record::Objref;

/// A value for each of some objrefs, in their order. Those of an image are numbers in a row, so a value is where its objref
/// says, most often.
#[derive(Clone, Debug, PartialEq)]
pub struct Table<T>(Vec<(Objref, T)>);

impl<T> Table<T> {
    /// An empty one.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Where a value is, or would be.
    fn place(&self, objref: Objref) -> Result<usize, usize> {
        let Some((first, _)) = self.0.first() else { return Err(0) };
        let straight = usize::try_from(i64::from(objref) - i64::from(*first)).unwrap_or(usize::MAX);
        match self.0.get(straight) {
            Some((there, _)) if *there == objref => Ok(straight),
            _ => self.0.binary_search_by_key(&objref, |(there, _)| *there),
        }
    }

    /// Where a value is among all of them.
    pub fn position(&self, objref: Objref) -> Option<usize> {
        self.place(objref).ok()
    }

    /// The value of `objref`.
    pub fn get(&self, objref: &Objref) -> Option<&T> {
        self.place(*objref).ok().and_then(|at| self.0.get(at)).map(|(_, value)| value)
    }

    /// The value of `objref`, to be changed.
    pub fn get_mut(&mut self, objref: &Objref) -> Option<&mut T> {
        self.place(*objref).ok().and_then(|at| self.0.get_mut(at)).map(|(_, value)| value)
    }

    /// Whether `objref` has a value.
    pub fn contains_key(&self, objref: &Objref) -> bool {
        self.place(*objref).is_ok()
    }

    /// Gives `objref` a value, and the one it had back. Above all others it takes no time; others are moved out of the way.
    pub fn insert(&mut self, objref: Objref, value: T) -> Option<T> {
        if self.0.last().is_none_or(|(last, _)| *last < objref) {
            self.0.push((objref, value));
            return None;
        }
        match self.place(objref) {
            Ok(at) => self.0.get_mut(at).map(|(_, there)| std::mem::replace(there, value)),
            Err(at) => {
                self.0.insert(at, (objref, value));
                None
            }
        }
    }

    /// Takes the value of `objref` out.
    pub fn remove(&mut self, objref: &Objref) -> Option<T> {
        self.place(*objref).ok().map(|at| self.0.remove(at).1)
    }

    /// Takes all of them out.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> Iter<'_, T> {
        self.into_iter()
    }

    /// The objrefs.
    pub fn keys(&self) -> impl Iterator<Item = &Objref> {
        self.0.iter().map(|(objref, _)| objref)
    }

    /// The values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }

    /// The values, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|(_, value)| value)
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Of several values of one objref, the last counts.
impl<T> FromIterator<(Objref, T)> for Table<T> {
    fn from_iter<I: IntoIterator<Item = (Objref, T)>>(values: I) -> Self {
        let mut table = Self(values.into_iter().collect());
        table.0.sort_by_key(|(objref, _)| *objref);
        table.0.dedup_by(|later, one| {
            let same = later.0 == one.0;
            if same {
                std::mem::swap(later, one);
            }
            same
        });
        table
    }
}

/// Iterates over a [`Table`].
pub type Iter<'a, T> = std::iter::Map<std::slice::Iter<'a, (Objref, T)>, fn(&(Objref, T)) -> (&Objref, &T)>;

impl<'a, T> IntoIterator for &'a Table<T> {
    type Item = (&'a Objref, &'a T);
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(objref, value)| (objref, value))
    }
}

impl<T> IntoIterator for Table<T> {
    type Item = (Objref, T);
    type IntoIter = std::vec::IntoIter<(Objref, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// It is a map.
        #[test]
        fn as_a_map(values in proptest::collection::vec((1..40i32, any::<u8>()), 0..60), asked in 0..42i32) {
            let map: BTreeMap<Objref, u8> = values.iter().copied().collect();
            let collected: Table<u8> = values.iter().copied().collect();
            let mut table = Table::new();
            for (objref, value) in values {
                table.insert(objref, value);
            }
            prop_assert_eq!(&table, &collected);
            prop_assert!(map.iter().eq(&table));
            prop_assert_eq!(table.get(&asked), map.get(&asked));
            prop_assert_eq!(table.position(asked), map.keys().position(|objref| *objref == asked));
            prop_assert_eq!(table.remove(&asked), map.get(&asked).copied());
            prop_assert_eq!(table.len() + usize::from(map.contains_key(&asked)), map.len());
        }
    }
}
