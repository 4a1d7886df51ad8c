//! Lists that end.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, SeqAccess, Visitor},
};

/// The most changes of one request: as many as fit into the largest body. One that says little in itself would take
/// a hundred times its words in memory.
pub const MAX_CHANGES: usize = 1 << 19;

/// Reads a list, but no longer one than [`MAX_CHANGES`].
pub(super) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(List::<T, MAX_CHANGES>(PhantomData))
}

struct List<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            if list.len() == MOST {
                return Err(A::Error::custom(format_args!(
                    "there are more than {MOST} in the list: send them in several requests"
                )));
            }
            list.push(item);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Changes;

    fn read(text: &str) -> Result<Vec<u32>, String> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        deserializer
            .deserialize_seq(List::<u32, 3>(PhantomData))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_list_ends_where_it_is_too_long() {
        assert_eq!(read("[]"), Ok(Vec::new()));
        assert_eq!(read("[1, 2, 3]"), Ok(vec![1, 2, 3]));
        let error = read("[1, 2, 3, 4, 5").unwrap_err();
        assert!(
            error.starts_with("there are more than 3 in the list: send"),
            "{error}"
        );
        let changes = [r#"{"change": "clear"}"#].repeat(MAX_CHANGES + 1).join(",");
        let error = serde_json::from_str::<Changes>(&format!(r#"{{"changes": [{changes}]}}"#)).unwrap_err();
        assert!(error.to_string().contains("more than 524288"), "{error}");
        assert!(read("7").unwrap_err().contains("a list of at most 3"));
    }
}
