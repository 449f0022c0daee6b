#![no_std]
//! What kernel and agent share: `repr(C)` data and constants, one event family per file.
