//! The reader against a model of the kernel's side.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// A ring in memory, with the kernel's side of it.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    data: Vec<u8>,
    produced: u64,
    consumed: u64,
}

impl Model {
    pub(crate) fn new(size: usize) -> Self {
        Self { data: vec![0; 2 * size], produced: 0, consumed: 0 }
    }

    fn put(&mut self, offset: usize, byte: u8) {
        let size = self.data.len() / 2;
        self.data[offset % size] = byte;
        self.data[offset % size + size] = byte;
    }

    fn put_header(&mut self, position: u64, header: u32) {
        for (index, byte) in header.to_ne_bytes().into_iter().enumerate() {
            self.put(position as usize + index, byte);
        }
    }

    /// Space for a record, as the kernel reserves it; `None` when the ring is full.
    pub(crate) fn reserve(&mut self, length: usize) -> Option<u64> {
        let whole = (HEADER + length as u64).next_multiple_of(8);
        let position = self.produced;
        if position + whole - self.consumed > self.size() {
            return None;
        }
        self.put_header(position, length as u32 | BUSY);
        self.produced += whole;
        Some(position)
    }

    pub(crate) fn commit(&mut self, position: u64, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            self.put((position + HEADER) as usize + index, *byte);
        }
        self.put_header(position, bytes.len() as u32);
    }

    fn discard(&mut self, position: u64, length: usize) {
        self.put_header(position, length as u32 | DISCARDED);
    }
}

impl Memory for Model {
    fn size(&self) -> u64 {
        self.data.len() as u64 / 2
    }

    fn produced(&self) -> u64 {
        self.produced
    }

    fn consumed(&self) -> u64 {
        self.consumed
    }

    fn consume(&mut self, position: u64) {
        assert!(self.consumed < position && position <= self.produced, "only forwards, only what is there");
        self.consumed = position;
    }

    fn header(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.data[offset..offset + 4].try_into().expect("four bytes"))
    }

    fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        &self.data[offset..offset + length]
    }
}

impl<M> Ring<M> {
    pub(crate) fn memory(&mut self) -> &mut M {
        &mut self.memory
    }

    pub(crate) fn into_memory(self) -> M {
        self.memory
    }
}

#[derive(Clone, Debug)]
enum Act {
    Reserve(Vec<u8>),
    /// Completes the open record with this index, or gives it up.
    End(usize, bool),
    Read,
    Release(u8),
    /// The reader is killed, another one begins.
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..60).prop_map(Act::Reserve),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(index, discard)| Act::End(index, discard)),
        4 => Just(Act::Read),
        2 => any::<u8>().prop_map(Act::Release),
        1 => Just(Act::Restart),
    ]
}

proptest! {
    #[test]
    fn reads_every_complete_record_in_order(acts in prop::collection::vec(act(), 1..300)) {
        let mut ring = Ring::new(Model::new(256));
        // Records that are reserved and not released: where they are, whether they are complete, their bytes.
        let mut records: VecDeque<(u64, Option<bool>, Vec<u8>)> = VecDeque::new();
        let mut next = 0;
        for act in acts {
            match act {
                Act::Reserve(bytes) => {
                    if let Some(position) = ring.memory().reserve(bytes.len()) {
                        records.push_back((position, None, bytes));
                    }
                }
                Act::End(index, discard) => {
                    let open = records.iter().filter(|(_, done, _)| done.is_none()).count();
                    let Some(index) = index.checked_rem(open) else { continue };
                    let record = records.iter_mut().filter(|(_, done, _)| done.is_none()).nth(index);
                    let (position, done, bytes) = record.expect("below their number");
                    *done = Some(!discard);
                    if discard {
                        ring.memory().discard(*position, bytes.len());
                    } else {
                        ring.memory().commit(*position, bytes);
                    }
                }
                Act::Read => {
                    let expected = loop {
                        match records.get(next) {
                            Some((_, Some(false), _)) => next += 1,
                            Some((_, Some(true), bytes)) => {
                                next += 1;
                                break Some(bytes.clone());
                            }
                            _ => break None,
                        }
                    };
                    prop_assert_eq!(ring.read().expect("intact"), expected.as_deref());
                }
                Act::Release(of) => {
                    let (read, consumed) = (ring.position(), ring.memory().consumed());
                    let position = consumed + (read - consumed) * u64::from(of) / 255;
                    // Rounds end between records.
                    let position = records.iter().map(|(start, ..)| *start).chain([read])
                        .filter(|start| *start <= position).max().unwrap_or(consumed);
                    ring.release(position);
                    while records.front().is_some_and(|(start, ..)| *start < position) {
                        records.pop_front();
                        next = next.saturating_sub(1);
                    }
                    prop_assert_eq!(ring.held(), read - position.max(consumed));
                }
                Act::Restart => {
                    ring = Ring::new(ring.into_memory());
                    next = 0;
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_records_or_an_error(bytes in prop::collection::vec(any::<u8>(), 64), produced in 0..64u64) {
        let mut model = Model::new(64);
        bytes.iter().enumerate().for_each(|(offset, byte)| model.put(offset, *byte));
        model.produced = produced & !7;
        let mut ring = Ring::new(model);
        while let Ok(Some(_)) = ring.read() {}
        prop_assert!(ring.position() <= produced);
        ring.release(u64::MAX);
    }
}

#[test]
fn an_impossible_length_gives_up_what_is_there() {
    let mut model = Model::new(64);
    let position = model.reserve(8).expect("room");
    model.commit(position, b"complete");
    let torn = model.reserve(8).expect("room");
    model.put_header(torn, 1000);
    let mut ring = Ring::new(model);
    assert_eq!(ring.read(), Ok(Some(&b"complete"[..])));
    let corrupt = ring.read().expect_err("no record");
    assert_eq!(corrupt, Corrupt { position: 16, length: 1000, there: 16 });
    assert!(corrupt.to_string().contains("16 bytes are given up"), "{corrupt}");
    assert_eq!(ring.read(), Ok(None));
    assert_eq!((ring.waiting(), ring.held()), (0, 32));
    let again = ring.memory().reserve(4).expect("room");
    ring.memory().commit(again, b"next");
    assert_eq!(ring.read(), Ok(Some(&b"next"[..])));
}
