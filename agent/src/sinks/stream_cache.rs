//! What a sink keeps of each stream, for as long as the stream lives.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use crate::record::Stream;

/// A value for each of at most `CAPACITY` streams. A stream is known by its address, which is compared and never
/// followed, and costs less than its name; the weak reference keeps the address from being used again for another
/// stream, without keeping the stream itself alive.
#[derive(Debug)]
pub(crate) struct StreamCache<V, const CAPACITY: usize> {
    values: HashMap<usize, (Weak<Stream>, V)>,
}

impl<V, const CAPACITY: usize> Default for StreamCache<V, CAPACITY> {
    fn default() -> Self {
        Self { values: HashMap::new() }
    }
}

impl<V, const CAPACITY: usize> StreamCache<V, CAPACITY> {
    /// The value of a stream, made now when there is none. Where there is no room, streams that are gone make it, or
    /// all do.
    pub(crate) fn get_or_insert_with(&mut self, stream: &Arc<Stream>, make: impl FnOnce(&Stream) -> V) -> &mut V {
        let key = Arc::as_ptr(stream).addr();
        if self.values.len() >= CAPACITY && !self.values.contains_key(&key) {
            self.values.retain(|_, (stream, _)| stream.strong_count() > 0);
            if self.values.len() >= CAPACITY {
                self.values.clear();
            }
        }
        let (_, value) = self.values.entry(key).or_insert_with(|| (Arc::downgrade(stream), make(stream)));
        value
    }

    /// How many values are kept.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Class, Origin};

    fn stream(number: usize) -> Arc<Stream> {
        Arc::new(Stream {
            key: number.to_string().into(),
            class: Class::Business,
            origin: Origin::File { path: "/a".into() },
            resource: Arc::default(),
            account: Arc::default(),
            source: None,
        })
    }

    #[test]
    fn a_value_is_made_once_for_a_stream_and_never_given_to_another() {
        let mut cache = StreamCache::<usize, 16>::default();
        let kept: Vec<_> = (0..8).map(stream).collect();
        for (number, stream) in kept.iter().enumerate() {
            assert_eq!(*cache.get_or_insert_with(stream, |_| number), number);
        }
        // Streams that live for a moment only: the allocator would like to use their addresses again.
        for number in 100..1000 {
            assert_eq!(*cache.get_or_insert_with(&stream(number), |_| number), number);
            assert!(cache.len() <= 16);
        }
        for (number, stream) in kept.iter().enumerate() {
            assert_eq!(*cache.get_or_insert_with(stream, |_| panic!("it lives and is known")), number);
        }
    }

    #[test]
    fn more_living_streams_than_there_is_room_for_begin_anew() {
        let mut cache = StreamCache::<usize, 4>::default();
        let kept: Vec<_> = (0..9).map(stream).collect();
        for (number, stream) in kept.iter().enumerate() {
            assert_eq!(*cache.get_or_insert_with(stream, |_| number), number);
        }
        assert_eq!(cache.len(), 1);
    }
}
