//! JSON objects, with bounds on depth and size that hold while parsing.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

use super::{MAX_DEPTH, MAX_VALUES};
use crate::record::Attributes;

/// The object that a body is; `None` when it is anything else, or over the limits. Of a key that occurs twice the last
/// value stands.
pub(super) fn parse(body: &[u8]) -> Option<Attributes> {
    // What is no object is told by its first byte, without a parser.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let mut values = MAX_VALUES;
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Bounded { depth: MAX_DEPTH, values: &mut values }.deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    match value {
        Value::Object(attributes) => Some(attributes),
        _ => None,
    }
}

/// Builds a [`Value`] as long as depth and the number of values last.
struct Bounded<'a> {
    depth: usize,
    values: &'a mut usize,
}

impl Bounded<'_> {
    fn inner<E: Error>(&mut self) -> Result<Bounded<'_>, E> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(Bounded { depth, values: self.values })
    }

    fn count<E: Error>(&mut self) -> Result<(), E> {
        *self.values = self.values.checked_sub(1).ok_or_else(|| E::custom("too many values"))?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut sequence: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = sequence.next_element_seed(self.inner()?)? {
            self.count()?;
            elements.push(element);
        }
        Ok(Value::Array(elements))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        let mut attributes = Attributes::new();
        while let Some(key) = map.next_key::<String>()? {
            self.count()?;
            attributes.insert(key, map.next_value_seed(self.inner()?)?);
        }
        Ok(Value::Object(attributes))
    }
}
