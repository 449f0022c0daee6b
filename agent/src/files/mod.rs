//! Log files: what the ring brings is taken when its place is certain, and all else is read from the file.
pub mod event;
