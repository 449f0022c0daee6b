//! What a set of pins tells the next agent of itself, in a pinned map: it goes with what it is about.

use std::{collections::BTreeMap, path::Path};

use aya::maps::{Array, Map, MapData};
use serde::{Deserialize, Serialize};
use sidestep_abi::layout;

use super::PinError;
use crate::load::{AttachPoint, Health};

/// Space for the text.
const SPACE: usize = 32 * 1024;

/// A set of pins, as its maker has left it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct About {
    /// Version of the agent that has made it.
    pub version: String,
    /// SHA-256 of the kernel programs' object.
    pub object: String,
    /// When it was made, in seconds since the Unix epoch.
    pub made_unix_seconds: u64,
    /// `capture.attach` of its maker; `None` for the best.
    pub attach: Option<AttachPoint>,
    /// Bytes of its ring.
    pub ring_size: u32,
    /// Where everything lies.
    pub layout: Layout,
    /// Names of its links.
    pub links: Vec<String>,
    /// Its probes.
    pub probes: Vec<ProbeAbout>,
}

/// A probe, as [`crate::load::Probe`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ProbeAbout {
    /// What it sees.
    pub name: String,
    /// Where it is attached.
    pub attached: Option<AttachPoint>,
    /// How it does.
    pub health: Health,
    /// Why it is not healthy.
    pub reason: String,
    /// Whether a container's log is incomplete without it.
    pub required: bool,
}

/// Where records and values have their fields: what [`layout`] says in the agent that has made the set.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Layout {
    /// [`layout::MEANING`]
    pub meaning: u32,
    /// The head of every record.
    pub header: Shape,
    /// Records by name: kind and fixed part.
    pub records: BTreeMap<String, (u16, Shape)>,
    /// Keys and values of maps.
    pub values: BTreeMap<String, Shape>,
}

/// A structure.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Shape {
    /// Its bytes.
    pub size: usize,
    /// Offset and size of each field, by name.
    pub fields: BTreeMap<String, (usize, usize)>,
}

impl From<&layout::Shape> for Shape {
    fn from(shape: &layout::Shape) -> Self {
        // How a path of tokens is spaced is the compiler's.
        let field = |field: &layout::Field| (field.name.replace(' ', ""), (field.offset, field.size));
        Self { size: shape.size, fields: shape.fields.iter().map(field).collect() }
    }
}

impl Layout {
    /// Of this agent.
    #[must_use]
    pub fn own() -> Self {
        let record = |(kind, shape): &(u16, layout::Shape)| (shape.name.to_owned(), (*kind, Shape::from(shape)));
        Self {
            meaning: layout::MEANING,
            header: (&layout::HEADER).into(),
            records: layout::RECORDS.iter().map(record).collect(),
            values: layout::VALUES.iter().map(|shape| (shape.name.to_owned(), shape.into())).collect(),
        }
    }

    /// Whether the records lie as in `other`.
    #[must_use]
    pub fn has_records_of(&self, other: &Self) -> bool {
        (self.meaning, &self.header, &self.records) == (other.meaning, &other.header, &other.records)
    }

    /// Whether a map's keys and values lie as in `other`.
    #[must_use]
    pub fn has_values_of(&self, other: &Self, map: &str) -> bool {
        let names = ["", " key", " item", " item item"].map(|part| format!("{map}{part}"));
        names.iter().all(|name| self.values.get(name) == other.values.get(name))
    }
}

impl About {
    /// Reads what a set says.
    ///
    /// # Errors
    /// It says nothing, or nothing that this agent understands.
    pub fn read(path: &Path) -> Result<Self, PinError> {
        let unreadable = |reason: String| PinError::About { path: path.to_owned(), reason };
        let data = MapData::from_pin(path).map_err(|error| unreadable(crate::load::probes::text(error)))?;
        let array: Array<_, [u8; SPACE]> = Map::from_map_data(data)
            .and_then(Array::try_from)
            .map_err(|error| unreadable(crate::load::probes::text(error)))?;
        let text = array.get(&0, 0).map_err(|error| unreadable(crate::load::probes::text(error)))?;
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(SPACE);
        serde_json::from_slice(&text[..end]).map_err(|error| unreadable(error.to_string()))
    }

    /// Pins it.
    ///
    /// # Errors
    /// The kernel refuses the map or the pin.
    pub fn pin(&self, path: &Path) -> Result<(), PinError> {
        let failed = |reason: String| PinError::About { path: path.to_owned(), reason };
        let text = serde_json::to_vec(self).map_err(|error| failed(error.to_string()))?;
        let mut value = [0; SPACE];
        let space = value.get_mut(..text.len()).ok_or_else(|| failed(format!("{} bytes do not fit", text.len())))?;
        space.copy_from_slice(&text);
        let mut array =
            Array::<MapData, [u8; SPACE]>::create(1, 0).map_err(|error| failed(crate::load::probes::text(error)))?;
        array.set(0, value, 0).map_err(|error| failed(crate::load::probes::text(error)))?;
        array.pin(path).map_err(|error| failed(crate::load::probes::text(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_layout_names_every_field_once() {
        let layout = Layout::own();
        assert_eq!(layout.records.len(), layout::RECORDS.len(), "each kind has a name of its own");
        for (kind, shape) in &layout::RECORDS {
            let (known, fields) = &layout.records[shape.name];
            assert_eq!((known, fields.fields.len()), (kind, shape.fields.len()));
            assert!(fields.fields.values().all(|(offset, size)| *size > 0 && offset + size <= shape.size));
            assert!(fields.fields.contains_key("header.kind"), "{fields:?}");
        }
        let text = serde_json::to_string(&layout).expect("JSON");
        assert!(text.len() < SPACE / 2, "{} bytes", text.len());
        assert_eq!(serde_json::from_str::<Layout>(&text).expect("layout"), layout);
    }
}
