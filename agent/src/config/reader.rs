//! serde's view of a tree.

use std::{cell::RefCell, collections::HashSet};

use serde::de::{
    self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};

use super::{
    failure::{Failure, Kind, Place},
    report::{MAX_PROBLEMS, Problem},
    tagged::TYPE,
    tree::{Entry, Node, Span, Value},
};

#[derive(Default)]
pub(super) struct Context {
    /// Nodes that are left out, by address.
    pub(super) skipped: RefCell<HashSet<usize>>,
    pub(super) problems: RefCell<Vec<Problem>>,
}

impl Context {
    pub(super) fn skips(&self, node: usize) -> bool {
        self.skipped.borrow().contains(&node)
    }

    pub(super) fn note(&self, problem: Problem) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() < MAX_PROBLEMS {
            problems.push(problem);
        }
    }
}

/// serde's view of one node.
pub(super) struct Reader<'t, 'c> {
    pub(super) node: &'t Node,
    pub(super) path: String,
    /// Where to point to when the node itself has no place.
    fallback: Span,
    context: &'c Context,
}

impl<'t, 'c> Reader<'t, 'c> {
    pub(super) fn root(node: &'t Node, context: &'c Context) -> Self {
        Self { node, path: String::new(), fallback: node.span.clone(), context }
    }

    pub(super) fn entry(&self, entry: &'t Entry) -> Self {
        let path = join(&self.path, &entry.key);
        Self { node: &entry.node, path, fallback: entry.key_span.clone(), context: self.context }
    }

    pub(super) fn item(&self, index: usize, node: &'t Node) -> Self {
        let fallback = node.place(&self.fallback);
        Self { node, path: format!("{}[{index}]", self.path), fallback, context: self.context }
    }

    /// Gives a failure that has no place yet this node's.
    fn place(&self) -> impl Fn(Failure) -> Failure + use<> {
        let span = if self.node.span.is_empty() { self.fallback.clone() } else { self.node.span.clone() };
        let place = Place { node: address(self.node), span, path: self.path.clone() };
        move |failure| match failure.place {
            Some(_) => failure,
            None => Failure { place: Some(place.clone()), ..failure },
        }
    }

    /// Reads the value. What fails after all of it was buffered, as in tagged enums, has its place here at the latest.
    fn read<'de, S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Failure> {
        let place = self.place();
        seed.deserialize(self).map_err(place)
    }

    fn entries(self, known: Option<&'static [&'static str]>) -> Entries<'t, 'c> {
        let entries = match &self.node.value {
            Value::Mapping(entries) => entries.as_slice(),
            _ => &[],
        };
        if let Some(known) = known {
            for entry in entries {
                let is_unknown = !known.contains(&entry.key.as_str());
                if is_unknown && self.context.skipped.borrow_mut().insert(address(&entry.node)) {
                    let failure = Failure::new(Kind::UnknownField { field: entry.key.clone(), expected: known });
                    self.context.note(failure.problem(join(&self.path, &entry.key), entry.key_span.clone()));
                }
            }
        }
        Entries {
            tag: entries.iter().find(|entry| entry.key == TYPE),
            reader: self,
            rest: entries.iter(),
            current: None,
        }
    }
}

impl<'de> de::Deserializer<'de> for Reader<'_, '_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let place = self.place();
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => visitor.visit_i128(*value),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(value) => visitor.visit_str(value),
            Value::Sequence(items) => visitor.visit_seq(Items { rest: items.iter().enumerate(), reader: self }),
            Value::Mapping(_) => visitor.visit_map(self.entries(None)),
        }
        .map_err(place)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let place = self.place();
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
        .map_err(place)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Failure> {
        let place = self.place();
        visitor.visit_newtype_struct(self).map_err(place)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match self.node.value {
            // A section whose options are all commented out is a section of defaults.
            Value::Mapping(_) | Value::Null => {
                let place = self.place();
                visitor.visit_map(self.entries(Some(fields))).map_err(place)
            }
            // serde would take a list for the options in their order.
            Value::Sequence(_) => Err(self.place()(de::Error::invalid_type(Unexpected::Seq, &"a section of options"))),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let place = self.place();
        match &self.node.value {
            Value::String(variant) => visitor.visit_enum(variant.as_str().into_deserializer()),
            Value::Mapping(entries) if entries.len() == 1 => {
                visitor.visit_enum(Variant(self.entry(&entries[0]), entries))
            }
            other => {
                let names = variants.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                let found = match other {
                    Value::Bool(value) => format!("`{value}`"),
                    Value::Integer(value) => format!("the number `{value}`"),
                    Value::Float(value) => format!("the number `{value}`"),
                    Value::Sequence(_) => "a list".to_owned(),
                    Value::Mapping(_) => "a section of options".to_owned(),
                    Value::Null | Value::String(_) => "nothing".to_owned(),
                };
                Err(Failure::new(Kind::Expected { expected: format!("one of {names}"), found }))
            }
        }
        .map_err(place)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'t, 'c> {
    reader: Reader<'t, 'c>,
    rest: std::iter::Enumerate<std::slice::Iter<'t, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Failure;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        for (index, item) in self.rest.by_ref() {
            if !self.reader.context.skips(address(item)) {
                return self.reader.item(index, item).read(seed).map(Some);
            }
        }
        Ok(None)
    }
}

struct Entries<'t, 'c> {
    reader: Reader<'t, 'c>,
    /// Who reads a section of several kinds has to know the kind first.
    tag: Option<&'t Entry>,
    rest: std::slice::Iter<'t, Entry>,
    current: Option<&'t Entry>,
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = Failure;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        let rest = self.rest.by_ref().filter(|entry| entry.key != TYPE);
        for entry in self.tag.take().into_iter().chain(rest) {
            if !self.reader.context.skips(address(&entry.node)) {
                self.current = Some(entry);
                let path = join(&self.reader.path, &entry.key);
                let place = Place { node: address(&entry.node), span: entry.key_span.clone(), path };
                let named = seed.deserialize(entry.key.as_str().into_deserializer());
                return named
                    .map(Some)
                    .map_err(|failure: Failure| Failure { place: failure.place.or(Some(place)), ..failure });
            }
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        match self.current.take() {
            Some(entry) => self.reader.entry(entry).read(seed),
            None => Err(de::Error::custom("a value was asked for before its key")),
        }
    }
}

/// A variant with content: `{name: content}`.
struct Variant<'t, 'c>(Reader<'t, 'c>, &'t [Entry]);

impl<'de, 't, 'c> EnumAccess<'de> for Variant<'t, 'c> {
    type Error = Failure;
    type Variant = Reader<'t, 'c>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), Failure> {
        let name = self.1.first().map_or("", |entry| entry.key.as_str());
        let variant = seed.deserialize(name.into_deserializer())?;
        Ok((variant, self.0))
    }
}

impl<'de> VariantAccess<'de> for Reader<'_, '_> {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        match self.node.value {
            Value::Null => Ok(()),
            _ => Err(self.place()(Failure::new(Kind::Message("nothing may stand here".to_owned())))),
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Failure> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Failure> {
        de::Deserializer::deserialize_any(self, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Failure> {
        de::Deserializer::deserialize_struct(self, "", fields, visitor)
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Identifies a node of a tree that does not move.
pub(super) fn address(node: &Node) -> usize {
    std::ptr::from_ref(node).addr()
}
