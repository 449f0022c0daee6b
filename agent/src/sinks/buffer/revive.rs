//! Batches from bytes, on the accounts of those who wrote them.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use super::{
    codec::{DecodeError, Encoded, Head, decode, salvage},
    home::Home,
};
use crate::record::{Batch, Stream};

/// The most streams that are kept.
const MAX_STREAMS: usize = 1024;

/// Makes one stream for all batches of it, as sinks keep something for each stream.
#[derive(Debug, Default)]
pub(super) struct Reviver {
    /// By the encoded stream.
    streams: HashMap<Bytes, Arc<Stream>>,
}

impl Reviver {
    /// The batch that was encoded.
    ///
    /// # Errors
    /// It can't be read.
    pub(super) fn batch(&mut self, payload: Vec<u8>, home: &Home) -> Result<Batch, DecodeError> {
        self.revive(decode(payload)?, home)
    }

    /// What is left of a batch that was damaged, which may be no line.
    ///
    /// # Errors
    /// Nothing of it can be read.
    pub(super) fn rest(&mut self, payload: Vec<u8>, home: &Home) -> Result<Batch, DecodeError> {
        self.revive(salvage(payload)?, home)
    }

    fn revive(&mut self, encoded: Encoded, home: &Home) -> Result<Batch, DecodeError> {
        let stream = self.stream(&encoded.head, home)?;
        Ok(Batch { stream, data: encoded.data, lines: encoded.lines })
    }

    fn stream(&mut self, bytes: &Bytes, home: &Home) -> Result<Arc<Stream>, DecodeError> {
        if let Some(known) = self.streams.get(bytes) {
            // The account of a container that is gone is closed, and opened again for what comes later.
            let account = home.account(known.account.cgroup, &known.resource);
            if Arc::ptr_eq(&account, &known.account) {
                return Ok(Arc::clone(known));
            }
        }
        let head = Head::parse(bytes)?;
        let (key, class, origin, cgroup) = (Arc::clone(&head.key), head.class, head.origin(), head.cgroup);
        let resource = Arc::new(head.resource());
        let account = home.account(cgroup, &resource);
        let stream = Arc::new(Stream { key, class, origin, resource, account, source: None });
        if self.streams.len() >= MAX_STREAMS {
            self.streams.clear();
        }
        // Not a part of the batch's bytes, which it would keep.
        self.streams.insert(Bytes::copy_from_slice(bytes), Arc::clone(&stream));
        Ok(stream)
    }
}
