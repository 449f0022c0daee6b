//! Lists whose items say by `type` of which kind they are.
//!
//! serde's own way buffers an item until it knows its kind, and forgets where each value stands; here the options are read
//! where they are, as [`super::reader`] gives `type` first.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, MapAccess, Visitor, value::MapAccessDeserializer},
};

/// The option that says of which kind an item is.
pub(super) const TYPE: &str = "type";

/// What has kinds.
pub(crate) trait Tagged: Sized {
    /// The kinds as they are written.
    const KINDS: &'static [&'static str];

    /// Reads the options of an item of this kind, which is one of [`Self::KINDS`].
    ///
    /// # Errors
    /// The first option that is wrong.
    fn read<'de, A: MapAccess<'de>>(kind: &str, options: MapAccessDeserializer<A>) -> Result<Self, A::Error>;
}

/// Reads a list.
pub(super) fn deserialize<'de, D: Deserializer<'de>, T: Tagged>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let items = Vec::<Item<T>>::deserialize(deserializer)?;
    Ok(items.into_iter().map(|item| item.0).collect())
}

struct Item<T>(T);

impl<'de, T: Tagged> Deserialize<'de> for Item<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ItemVisitor(PhantomData))
    }
}

struct ItemVisitor<T>(PhantomData<T>);

impl<'de, T: Tagged> Visitor<'de> for ItemVisitor<T> {
    type Value = Item<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a section of options")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Item<T>, A::Error> {
        if access.next_key::<String>()?.as_deref() != Some(TYPE) {
            return Err(de::Error::missing_field(TYPE));
        }
        let kind = access.next_value_seed(Kind::<T>(PhantomData))?;
        T::read(&kind, MapAccessDeserializer::new(access)).map(Item)
    }
}

/// The kind of an item, refused where it stands.
struct Kind<T>(PhantomData<T>);

impl<'de, T: Tagged> DeserializeSeed<'de> for Kind<T> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        let kind = String::deserialize(deserializer)?;
        if T::KINDS.contains(&&*kind) { Ok(kind) } else { Err(de::Error::unknown_variant(&kind, T::KINDS)) }
    }
}
