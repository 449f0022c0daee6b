//! The first bytes of a file: by them it is known again, and a file that was truncated and has grown is told apart
//! from one that only grew.

use std::{fs::File, os::unix::fs::FileExt};

use sha2::{Digest, Sha256};

/// How many bytes are kept.
const SPACE: usize = 256;

/// The first bytes of a file, as far as they are known.
#[derive(Clone, Debug, Default)]
pub(super) struct Head(Vec<u8>);

impl Head {
    /// Reads the first bytes of a file, of which everything before `end` is done with.
    #[must_use]
    pub(super) fn read(file: &File, end: u64) -> Self {
        let mut bytes = vec![0; SPACE.min(usize::try_from(end).unwrap_or(SPACE))];
        let read = file.read_at(&mut bytes, 0).unwrap_or_default();
        bytes.truncate(read);
        Self(bytes)
    }

    /// Takes bytes of the file, when they are the next ones of its head.
    pub(super) fn extend(&mut self, position: u64, bytes: &[u8]) {
        if self.0.len() < SPACE && position == self.0.len() as u64 {
            self.0.extend_from_slice(&bytes[..bytes.len().min(SPACE - self.0.len())]);
        }
    }

    /// Whether the file begins with other bytes now.
    #[must_use]
    pub(super) fn differs(&self, file: &File) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let mut bytes = [0; SPACE];
        // A file that can't be read gives no evidence.
        file.read_at(&mut bytes[..self.0.len()], 0).is_ok_and(|read| bytes[..read] != self.0)
    }

    /// How many bytes are known.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A digest of the bytes: log lines do not belong into the agent's state.
    #[must_use]
    pub(super) fn digest(&self) -> String {
        data_encoding::HEXLOWER.encode(&Sha256::digest(&self.0)[..16])
    }
}
