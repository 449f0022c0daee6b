//! Messages of `opentelemetry/proto/common/v1/common.proto`, with the fields that are in use.

use serde_json::Value;

/// More nested values than this become their JSON text. Readers give up on messages that are nested deeper than 100, and a
/// level of JSON takes three of them.
const MAX_DEPTH: usize = 16;

/// A named value.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<AnyValue>,
}

/// A value of any type; none stands for null.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AnyValue {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(message, tag = "5")]
    Array(ArrayValue),
    #[prost(message, tag = "6")]
    Map(KeyValueList),
}

#[derive(Clone, PartialEq, prost::Message)]
struct ArrayValue {
    #[prost(message, repeated, tag = "1")]
    values: Vec<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValueList {
    #[prost(message, repeated, tag = "1")]
    values: Vec<KeyValue>,
}

impl AnyValue {
    /// A list of texts.
    pub(super) fn texts<'text>(texts: impl Iterator<Item = &'text str>) -> Self {
        let values = texts.map(|text| Self { kind: Some(Kind::Text(text.to_owned())) }).collect();
        Self { kind: Some(Kind::Array(ArrayValue { values })) }
    }

    /// The same value.
    pub(super) fn from_json(value: &Value) -> Self {
        Self::nested(value, MAX_DEPTH)
    }

    fn nested(value: &Value, depth: usize) -> Self {
        let kind = match value {
            Value::Null => None,
            Value::Bool(value) => Some(Kind::Bool(*value)),
            Value::String(text) => Some(Kind::Text(text.clone())),
            Value::Number(number) => Some(match number.as_i64() {
                Some(integer) => Kind::Int(integer),
                // There is no unsigned integer, and as a double it would lose digits.
                None if number.is_u64() => Kind::Text(number.to_string()),
                None => Kind::Double(number.as_f64().unwrap_or(f64::NAN)),
            }),
            Value::Array(_) | Value::Object(_) if depth == 0 => Some(Kind::Text(value.to_string())),
            Value::Array(values) => {
                let values = values.iter().map(|value| Self::nested(value, depth - 1)).collect();
                Some(Kind::Array(ArrayValue { values }))
            }
            Value::Object(entries) => {
                let entry = |(key, value): (&String, &Value)| KeyValue {
                    key: key.clone(),
                    value: Some(Self::nested(value, depth - 1)),
                };
                Some(Kind::Map(KeyValueList { values: entries.iter().map(entry).collect() }))
            }
        };
        Self { kind }
    }
}
